"""What a profiler recorded: events, their averages, and lists of either.

A `FunctionEvent` is one run of an operation, backward node, compiled function, kernel or labelled
block; a `FunctionEventAvg` sums the events of one group; an `EventList` holds one kind and answers
the questions. Times are microseconds (floats), memory is bytes. Start reading at
`EventList.key_averages`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from tracegrad.ir.errors import ParameterError
from tracegrad.ir.location import user_stacklevel

__all__ = ["DeviceType", "EventList", "FormattedTimesMixin", "FunctionEvent", "FunctionEventAvg",
           "Interval", "Kernel", "format_time"]  # fmt: skip

FUNCTION, BACKWARD, LABEL = 0, 1, 7  # `scope`, as PyTorch numbers them


class DeviceType(Enum):
    """Where an event ran; everything runs on the CPU here."""

    CPU = 0
    CUDA = 1


class Kernel(NamedTuple):
    """A kernel on a device, as PyTorch lists them; there is none here."""

    name: str
    device: int
    duration: float


def format_time(microseconds: float) -> str:
    """A duration with three digits: `2.947s`, `26.488ms`, `5.509us`."""
    if microseconds >= 1e6:
        return f"{microseconds / 1e6:.3f}s"
    if microseconds >= 1e3:
        return f"{microseconds / 1e3:.3f}ms"
    return f"{microseconds:.3f}us"


def _in_words(name: str) -> Any:
    return property(lambda self: format_time(getattr(self, name)), doc=f"`{name}` as text.")


def _old_name(name: str, text: str) -> Any:
    """A property under PyTorch's former name, which warns as PyTorch does."""

    def read(self: Any) -> Any:
        warnings.warn(text, FutureWarning, stacklevel=user_stacklevel())
        return getattr(self, name)

    return property(read, doc=f"Deprecated by PyTorch: `{name}`.")


class FormattedTimesMixin:
    """What events and averages have in common; nothing here runs on a device."""

    count: int
    cpu_time_total: float
    self_cpu_time_total: float
    device_time_total: float = 0
    self_device_time_total: float = 0
    device_memory_usage: int = 0
    self_device_memory_usage: int = 0
    node_id = -1
    device_type = DeviceType.CPU
    use_device: str | None = None
    is_async = is_remote = is_legacy = False

    @property
    def cpu_time(self) -> float:
        """Mean time of one run, microseconds."""
        return self.cpu_time_total / self.count if self.count else 0.0

    @property
    def device_time(self) -> float:
        """Mean time of one run on a device, microseconds."""
        return self.device_time_total / self.count if self.count else 0.0

    cpu_time_str = _in_words("cpu_time")
    cpu_time_total_str = _in_words("cpu_time_total")
    self_cpu_time_total_str = _in_words("self_cpu_time_total")
    device_time_str = _in_words("device_time")
    device_time_total_str = _in_words("device_time_total")
    self_device_time_total_str = _in_words("self_device_time_total")
    cuda_time = _old_name(
        "device_time", "`cuda_time` is deprecated, please use `device_time` instead."
    )


@dataclass(frozen=True)
class Interval:
    """Start and end, microseconds since the profile began."""

    start: float
    end: float

    def elapsed_us(self) -> float:
        """The length, microseconds."""
        return self.end - self.start


@dataclass(eq=False)
class FunctionEvent(FormattedTimesMixin):
    """One run of an operation, a backward node, a compiled function, a kernel or a labelled block.

    Attributes:
        id: its number in the order of starting.
        name: `aten::mul`, `MulBackward0`, or the label.
        start_ns, end_ns: nanoseconds since the profile began, of a monotonic clock.
        thread: identifier of the thread; fwd_thread: that of the operation it differentiates, or 0.
        cpu_parent: the event that it ran inside, or None; cpu_children: those inside it.
        input_shapes: a list per operand (`[]` for a number); empty unless shapes were recorded.
        stack: the user's lines, innermost first; empty unless stacks were recorded. Those of a
            backward node are the lines of the operation it differentiates.
        self_cpu_memory_usage: bytes allocated less bytes freed, without the events inside.
        flops: floating-point operations, 0 where they are not known.
        sequence_nr: number of the tape's node that it recorded or ran, or -1.
        scope: 0 for a function, 1 for a backward node, 7 for a label.
        activity_type: `cpu_op`, `user_annotation`, `compiled_call`, `capture`, `kernel` or
            `memory`.
        is_estimated: its time was not measured but is a share of a measured one, see
            `tracegrad.autograd.profiler_kernels`.
        shown_name: its name in a trace file, where that differs.
        is_overlapping: it began inside another event and ended after it, as blocks in coroutines
            may; neither is then the other's parent.
    """

    id: int
    name: str
    start_ns: int
    thread: int
    cpu_parent: FunctionEvent | None = None
    end_ns: int = 0
    input_shapes: list[list[int]] = field(default_factory=list)
    stack: list[str] = field(default_factory=list)
    cpu_children: list[FunctionEvent] = field(default_factory=list)
    self_cpu_memory_usage: int = 0
    flops: int = 0
    count: int = 1
    sequence_nr: int = -1
    fwd_thread: int = 0
    scope: int = FUNCTION
    activity_type: str = "cpu_op"
    is_estimated: bool = False
    shown_name: str = ""
    is_overlapping: bool = False

    overload_name = ""
    device_index = 0

    @property
    def key(self) -> str:
        """The name, under which averages are grouped."""
        return self.name

    @property
    def trace_name(self) -> str | None:
        """The name in a trace file; None for memory that was freed outside all events."""
        return None if self.activity_type == "memory" else self.shown_name or self.name

    @property
    def kernels(self) -> list[Kernel]:
        """Kernels on a device: none. Those of compiled functions are events among the children."""
        return []

    @property
    def is_user_annotation(self) -> bool:
        """Whether it is a block that the user labelled."""
        return self.activity_type == "user_annotation"

    @property
    def time_range(self) -> Interval:
        """When it ran."""
        return Interval(self.start_ns / 1e3, self.end_ns / 1e3)

    @property
    def cpu_time_total(self) -> float:  # type: ignore[override]
        """Time from start to end, microseconds."""
        return (self.end_ns - self.start_ns) / 1e3

    @property
    def self_cpu_time_total(self) -> float:  # type: ignore[override]
        """The same without the events inside."""
        inside = sum(child.end_ns - child.start_ns for child in self.cpu_children)
        return (self.end_ns - self.start_ns - inside) / 1e3

    @property
    def cpu_memory_usage(self) -> int:
        """Bytes allocated less bytes freed, the events inside included."""
        return self.self_cpu_memory_usage + sum(c.cpu_memory_usage for c in self.cpu_children)

    cuda_time_total = _old_name(
        "device_time_total",
        "`cuda_time_total` is deprecated. Use `device_time_total` instead.",
    )
    self_cuda_time_total = _old_name(
        "self_device_time_total",
        "`self_cuda_time_total` is deprecated. Use `self_device_time_total` instead.",
    )
    self_cuda_memory_usage = _old_name(
        "self_device_memory_usage",
        "`self_cuda_memory_usage` is deprecated. Use `self_device_memory_usage` instead.",
    )

    def __repr__(self) -> str:
        return (
            f"<FunctionEvent id={self.id} name={self.name} overload_name={self.overload_name} "
            f"device_type={self.device_type} node_id={self.node_id} cpu_time={self.cpu_time_str} "
            f"start_us={self.time_range.start} end_us={self.time_range.end} "
            f"cpu_children={[child.id for child in self.cpu_children]} "
            f"{self.use_device}_time={self.device_time_str} name={self.name} thread={self.thread} "
            f"input_shapes={self.input_shapes} cpu_memory_usage={self.cpu_memory_usage} "
            f"{self.use_device}_memory_usage={self.device_memory_usage} is_async={self.is_async} "
            f"is_remote={self.is_remote} seq_nr={self.sequence_nr} is_legacy={self.is_legacy}>"
        )


class FunctionEventAvg(FormattedTimesMixin):
    """The sums over a group of events; `cpu_time` is their mean.

    Shapes, stack, scope and parent are those of the first event that was added.
    """

    def __init__(self) -> None:
        self.key: str | None = None
        self.count: int = 0
        self.cpu_time_total: float = 0
        self.self_cpu_time_total: float = 0
        self.cpu_memory_usage: int = 0
        self.self_cpu_memory_usage: int = 0
        self.flops: int = 0
        self.input_shapes: Any = None
        self.overload_name: str | None = None
        self.stack: list[str] | None = None
        self.scope: int | None = None
        self.cpu_parent: FunctionEvent | None = None
        self.cpu_children: list[FunctionEvent] | None = None
        self.is_user_annotation = False
        self.is_estimated = False

    def add(self, other: FunctionEvent | FunctionEventAvg) -> FunctionEventAvg:
        """Count one more event, or the events of another average; returns itself.

        Raises:
            AssertionError: `other` is neither, or its key is another.
        """
        if not isinstance(other, FunctionEvent | FunctionEventAvg):
            raise AssertionError("Expected other to be a FunctionEvent or FunctionEventAvg")
        if self.key is None:
            for name in ("key", "input_shapes", "overload_name", "stack", "scope", "cpu_parent",
                         "cpu_children", "is_user_annotation"):  # fmt: skip
                setattr(self, name, getattr(other, name))
        if other.key != self.key:
            raise AssertionError(f"Expected keys to match, but got {other.key} vs {self.key}")
        for name in ("count", "cpu_time_total", "self_cpu_time_total", "cpu_memory_usage",
                     "self_cpu_memory_usage", "flops"):  # fmt: skip
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.is_estimated |= other.is_estimated
        return self

    def __iadd__(self, other: FunctionEvent | FunctionEventAvg) -> FunctionEventAvg:
        return self.add(other)

    def __repr__(self) -> str:
        return (
            f"<FunctionEventAvg key={self.key} self_cpu_time={self.self_cpu_time_total_str} "
            f"cpu_time={self.cpu_time_str}  self_cuda_time={self.self_device_time_total_str} "
            f"cuda_time={self.device_time_str} input_shapes={self.input_shapes} "
            f"cpu_memory_usage={self.cpu_memory_usage} "
            f"cuda_memory_usage={self.device_memory_usage}>"
        )


class EventList(list[Any]):
    """Events or averages, with the memory and FLOPs columns that were asked for.

    Args:
        events: what it holds.
        use_device: accepted for PyTorch's sake; nothing runs on a device.
        profile_memory, with_flops: what was recorded beside times.
    """

    def __init__(
        self, events: Iterable[Any] = (), *, use_device: str | None = None,
        profile_memory: bool = False, with_flops: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(events)
        self.recorded = {"profile_memory": profile_memory, "with_flops": with_flops}

    def __str__(self) -> str:
        return self.table()

    @property
    def self_cpu_time_total(self) -> float:
        """The time spent in all of them, counted once, microseconds."""
        return sum(event.self_cpu_time_total for event in self)

    def key_averages(
        self, group_by_input_shapes: bool = False, group_by_stack_n: int = 0,
        group_by_overload_name: bool = False,
    ) -> EventList:  # fmt: skip
        """Sum the events by name; also by shapes, and by the innermost lines of the stack.

        Labels and estimates form groups of their own beside operations of the same name.

        Args:
            group_by_input_shapes: events on other shapes form groups of their own.
            group_by_stack_n: how many lines of the stack must agree.
            group_by_overload_name: accepted for PyTorch's sake; operations have no overloads here.
        Raises:
            ParameterError: `group_by_stack_n` is negative.
            AssertionError: these are averages already.
        """
        if group_by_stack_n < 0:
            raise ParameterError(
                f"key_averages: group_by_stack_n must be at least 0, got {group_by_stack_n}"
            )
        if any(isinstance(event, FunctionEventAvg) for event in self):
            raise AssertionError(
                "Expected tree to be built before calling key_averages: these are averages already"
            )
        groups: dict[Any, FunctionEventAvg] = {}
        for event in self:
            shapes = str(event.input_shapes) if group_by_input_shapes else ""
            kind = (event.key, event.is_user_annotation, event.is_estimated)
            key = (*kind, shapes, *event.stack[:group_by_stack_n])
            group = groups.get(key)
            if group is None:
                group = groups[key] = FunctionEventAvg()
            group.add(event)
        for group in groups.values():
            group.stack = (group.stack or [])[:group_by_stack_n]
            if not group_by_input_shapes:
                group.input_shapes = ""
        return EventList(groups.values(), **self.recorded)

    def total_average(self) -> FunctionEventAvg:
        """One average over all events, named Total."""
        total = FunctionEventAvg()
        for event in self:
            total.key = None  # shapes, stack and parent are the last event's, as in PyTorch
            total += event
        total.key = "Total"
        return total

    def table(
        self, sort_by: str | None = None, row_limit: int = 100,
        max_src_column_width: int | None = 75, max_name_column_width: int | None = 55,
        max_shapes_column_width: int | None = 80, header: str | None = None,
        top_level_events_only: bool = False, time_unit: str | None = None,
    ) -> str:  # fmt: skip
        """The events as text, one row each; see `profile.table`."""
        from tracegrad.autograd.profiler_table import Layout, render

        layout = Layout(
            row_limit, max_src_column_width, max_name_column_width, max_shapes_column_width,
            header, top_level_events_only, time_unit,
        )  # fmt: skip
        return render(self, sort_by, layout)

    def export_chrome_trace(self, path: str | os.PathLike[str]) -> None:
        """Write the events as a JSON list of trace events, for Perfetto or chrome://tracing.

        Each is `{"name", "ph": "X", "ts", "dur", "tid", "pid", "cat", "args"}` with times in
        microseconds; between them are the arrows and names of lanes that `profile` exports too.
        """
        from tracegrad.autograd.profiler_trace import trace_events, write_json

        write_json(path, trace_events(self))

    def supported_export_stacks_metrics(self) -> list[str]:
        """What `export_stacks` takes as `metric`."""
        return ["self_cpu_time_total", "self_cuda_time_total", "self_xpu_time_total",
                "self_privateuse1_time_total"]  # fmt: skip

    def export_stacks(
        self, path: str | os.PathLike[str], metric: str = "self_cpu_time_total"
    ) -> None:
        """Write one line per event, `outer;...;inner microseconds`: the input of flame graphs.

        Raises:
            ParameterError: `metric` is none of `supported_export_stacks_metrics()`.
        """
        metrics = self.supported_export_stacks_metrics()
        if metric not in metrics:
            raise ParameterError(f"metric should be one of: {metrics}")
        blanks = str.maketrans(" ;\t\n", "____")
        with open(path, "w", encoding="utf-8") as file:
            for event in self:
                value = int(getattr(event, on_device(metric)))
                if event.stack and value > 0:
                    frames = [line.translate(blanks) for line in reversed(event.stack)]
                    file.write(f"{';'.join(frames)} {value}\n")


def on_device(metric: str) -> str:
    """The attribute that holds a metric of a device.

    Example:
        >>> on_device("self_cuda_time_total")
        'self_device_time_total'
    """
    for device in ("cuda", "xpu", "privateuse1"):
        metric = metric.replace(device, "device")
    return metric
