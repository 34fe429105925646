"""What a profiler recorded: events, their averages, and lists of either.

A `FunctionEvent` is one run of an operation, node, kernel or labelled block; a `FunctionEventAvg`
sums the events of one group; an `EventList` holds one kind and answers the questions. Times are
microseconds (floats), memory is bytes. Start reading at `EventList.key_averages`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tracegrad.ir.errors import ParameterError

STACK_METRICS = ("self_cpu_time_total", "self_cuda_time_total")


def format_time(microseconds: float) -> str:
    """A duration with three digits: `2.947s`, `26.488ms`, `5.509us`."""
    if microseconds >= 1e6:
        return f"{microseconds / 1e6:.3f}s"
    if microseconds >= 1e3:
        return f"{microseconds / 1e3:.3f}ms"
    return f"{microseconds:.3f}us"


class Times:
    """What events and averages have in common; nothing here runs on a device."""

    count: int
    cpu_time_total: float
    self_cpu_time_total: float
    cuda_time = cuda_time_total = self_cuda_time_total = 0.0
    device_time = device_time_total = self_device_time_total = 0.0
    xpu_time = xpu_time_total = self_xpu_time_total = 0.0
    cuda_memory_usage = self_cuda_memory_usage = 0
    device_memory_usage = self_device_memory_usage = 0
    xpu_memory_usage = self_xpu_memory_usage = 0

    @property
    def cpu_time(self) -> float:
        """Mean time of one run, microseconds."""
        return self.cpu_time_total / self.count if self.count else 0.0


@dataclass(frozen=True)
class Interval:
    """Start and end on the monotonic clock, microseconds."""

    start: float
    end: float

    def elapsed_us(self) -> float:
        """The length, microseconds."""
        return self.end - self.start


@dataclass(eq=False)
class FunctionEvent(Times):
    """One run of an operation, a backward node, a compiled function or a labelled block.

    Attributes:
        id: its number in the order of starting.
        name: `aten::mul`, `MulBackward0`, or the label.
        start_ns, end_ns: `time.perf_counter_ns()` before and after.
        thread: identifier of the thread.
        cpu_parent: the event that it ran inside, or None.
        input_shapes: a list per operand (`[]` for a number); empty unless shapes were recorded.
        stack: the user's lines, innermost first; empty unless stacks were recorded.
        self_cpu_memory_usage: bytes of new memory that its result holds (a view holds none).
        flops: floating-point operations, 0 where they are not known.
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

    @property
    def key(self) -> str:
        """The name, under which averages are grouped."""
        return self.name

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
        """Bytes of new memory, the events inside included."""
        return self.self_cpu_memory_usage + sum(c.cpu_memory_usage for c in self.cpu_children)

    def __repr__(self) -> str:
        return (
            f"<FunctionEvent id={self.id} name={self.name} "
            f"cpu_time={format_time(self.cpu_time_total)} thread={self.thread} "
            f"input_shapes={self.input_shapes} cpu_memory_usage={self.cpu_memory_usage}>"
        )


@dataclass(eq=False)
class FunctionEventAvg(Times):
    """The sums over a group of events; `cpu_time` is their mean."""

    key: str
    input_shapes: Any = ""
    stack: list[str] = field(default_factory=list)
    cpu_parent: FunctionEvent | None = None
    count: int = 0
    cpu_time_total: float = 0.0
    self_cpu_time_total: float = 0.0
    cpu_memory_usage: int = 0
    self_cpu_memory_usage: int = 0
    flops: int = 0

    def add(self, event: Any) -> None:
        """Count one more event, or the events of another average."""
        self.count += event.count
        self.cpu_time_total += event.cpu_time_total
        self.self_cpu_time_total += event.self_cpu_time_total
        self.cpu_memory_usage += event.cpu_memory_usage
        self.self_cpu_memory_usage += event.self_cpu_memory_usage
        self.flops += event.flops

    def __repr__(self) -> str:
        return (
            f"<FunctionEventAvg key={self.key} "
            f"self_cpu_time={format_time(self.self_cpu_time_total)} "
            f"cpu_time={format_time(self.cpu_time)}  self_cuda_time={format_time(0.0)} "
            f"cuda_time={format_time(0.0)} input_shapes={self.input_shapes} "
            f"cpu_memory_usage={self.cpu_memory_usage} cuda_memory_usage=0>"
        )


class EventList(list[Any]):
    """Events or averages, with the memory and stack columns that were asked for.

    Args:
        events: what it holds.
        profile_memory, with_flops, with_stack: what was recorded beside times.
    """

    def __init__(
        self, events: Iterable[Any] = (), *, profile_memory: bool = False,
        with_flops: bool = False, with_stack: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(events)
        self.recorded = {
            "profile_memory": profile_memory, "with_flops": with_flops, "with_stack": with_stack,
        }  # fmt: skip

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

        Args:
            group_by_input_shapes: events on other shapes form groups of their own.
            group_by_stack_n: how many lines of the stack must agree.
            group_by_overload_name: accepted for PyTorch's sake; operations have no overloads here.
        Raises:
            ParameterError: `group_by_stack_n` is negative.
        """
        if group_by_stack_n < 0:
            raise ParameterError(
                f"key_averages: group_by_stack_n must be at least 0, got {group_by_stack_n}"
            )
        groups: dict[Any, FunctionEventAvg] = {}
        for event in self:
            shapes = str(event.input_shapes) if group_by_input_shapes else ""
            stack = event.stack[:group_by_stack_n]
            group = groups.get((event.key, shapes, *stack))
            if group is None:
                kept = event.input_shapes if group_by_input_shapes else ""
                group = FunctionEventAvg(event.key, kept, stack, event.cpu_parent)
                groups[(event.key, shapes, *stack)] = group
            group.add(event)
        return EventList(groups.values(), **self.recorded)

    def total_average(self) -> FunctionEventAvg:
        """One average over all events, named Total."""
        total = FunctionEventAvg("Total")
        for event in self:
            total.add(event)
        return total

    def table(
        self, sort_by: str | None = None, row_limit: int = 100, max_src_column_width: int = 75,
        max_name_column_width: int = 55, max_shapes_column_width: int = 80,
        header: str | None = None, top_level_events_only: bool = False,
        time_unit: str | None = None,
    ) -> str:  # fmt: skip
        """The events as text, one row each; see `profile.table`."""
        from tracegrad.autograd.profiler_table import Layout, render

        layout = Layout(
            row_limit, max_src_column_width, max_name_column_width, max_shapes_column_width,
            header, top_level_events_only, time_unit,
        )  # fmt: skip
        return render(self, sort_by, layout)

    def export_chrome_trace(self, path: str | os.PathLike[str]) -> None:
        """Write the events as JSON for Perfetto or chrome://tracing: a list of complete events.

        Each is `{"name", "ph": "X", "ts", "dur", "tid", "pid", "args"}`, times in microseconds.
        """
        events = [
            {
                "name": event.name, "ph": "X", "ts": event.start_ns / 1e3,
                "dur": event.cpu_time_total, "tid": event.thread, "pid": os.getpid(),
                "args": _details(event),
            } for event in self
        ]  # fmt: skip
        with open(path, "w", encoding="utf-8") as file:
            json.dump(events, file)

    def export_stacks(
        self, path: str | os.PathLike[str], metric: str = "self_cpu_time_total"
    ) -> None:
        """Write one line per event, `outer;...;inner microseconds`: the input of flame graphs.

        Raises:
            ParameterError: `metric` is none of `self_cpu_time_total`, `self_cuda_time_total`.
        """
        if metric not in STACK_METRICS:
            raise ParameterError("metric should be one of: " + str(list(STACK_METRICS)))
        blanks = str.maketrans(" ;\t\n", "____")
        with open(path, "w", encoding="utf-8") as file:
            for event in self:
                value = int(getattr(event, metric))
                if event.stack and value > 0:
                    frames = [line.translate(blanks) for line in reversed(event.stack)]
                    file.write(f"{';'.join(frames)} {value}\n")


def _details(event: FunctionEvent) -> dict[str, Any]:
    """What a trace viewer shows when an event is selected."""
    found: dict[str, Any] = {"id": event.id}
    if event.input_shapes:
        found["Input Dims"] = event.input_shapes
    if event.stack:
        found["Call stack"] = ";".join(event.stack)
    if event.self_cpu_memory_usage:
        found["Bytes"] = event.self_cpu_memory_usage
    return found
