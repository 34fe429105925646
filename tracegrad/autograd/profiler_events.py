"""One run of something that a profiler recorded, and the sums over a group of them.

A `FunctionEvent` is one run of an operation, backward node, compiled function, kernel or labelled
block; a `FunctionEventAvg` sums the events of one group. Times are microseconds (floats), memory is
bytes. Start reading at `FunctionEvent`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from tracegrad.ir.location import user_stacklevel

FUNCTION, BACKWARD, LABEL = 0, 1, 7  # `scope`, as PyTorch numbers them


class DeviceType(Enum):
    """Where an event ran.

    Example:
        >>> DeviceType.CPU
        <DeviceType.CPU: 0>
    """

    CPU = 0
    CUDA = 1


class Kernel(NamedTuple):
    """A kernel on a device, as PyTorch lists them: its name, the device, and microseconds.

    Example:
        >>> Kernel("k", 0, 1.5).duration
        1.5
    """

    name: str
    device: int
    duration: float


def format_time(microseconds: float) -> str:
    """A duration with three digits: `2.947s`, `26.488ms`, `5.509us`.

    Example:
        >>> format_time(2947.0), format_time(5.5), format_time(2e6)
        ('2.947ms', '5.500us', '2.000s')
    """
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
    """What events and averages have in common.

    Example:
        >>> average = FunctionEventAvg()
        >>> average.cpu_time_total, average.cpu_time_total_str
        (0, '0.000us')
    """

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
    """Start and end, microseconds since the profile began.

    Example:
        >>> Interval(1.5, 4.0).elapsed_us()
        2.5
    """

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
        device_type, device_index: where it ran; its time is then the device's.
        use_device: "cuda" where the profile measures devices too.
        kernels: that it asked a device to run, without those of the events inside it.
    Example:
        >>> event = FunctionEvent(0, "aten::mul", 1000, 1, end_ns=3500)
        >>> event.time_range.elapsed_us(), event.cpu_time_str
        (2.5, '2.500us')
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
    device_type: DeviceType = DeviceType.CPU
    device_index: int = 0
    use_device: str | None = None
    kernels: list[Kernel] = field(default_factory=list)

    overload_name = ""

    @property
    def key(self) -> str:
        """The name, under which averages are grouped."""
        return self.name

    @property
    def trace_name(self) -> str | None:
        """The name in a trace file; None for memory that was freed outside all events."""
        return None if self.activity_type == "memory" else self.shown_name or self.name

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
        """Time from start to end, microseconds; 0 where that was on a device."""
        return (self.end_ns - self.start_ns) / 1e3 if self._on_cpu else 0.0

    @property
    def self_cpu_time_total(self) -> float:  # type: ignore[override]
        """The same without the events inside."""
        return self._own_time if self._on_cpu else 0.0

    @property
    def device_time_total(self) -> float:  # type: ignore[override]
        """Microseconds on a device: of its kernels and those of the events inside, or its own."""
        if not self._on_cpu:
            return (self.end_ns - self.start_ns) / 1e3
        return sum((event.self_device_time_total for event in self._tree()), 0.0)

    @property
    def self_device_time_total(self) -> float:  # type: ignore[override]
        """The same without the events inside."""
        if not self._on_cpu:
            return self._own_time
        return sum((kernel.duration for kernel in self.kernels), 0.0)

    @property
    def _on_cpu(self) -> bool:
        return self.device_type is DeviceType.CPU

    @property
    def _own_time(self) -> float:
        inside = sum(child.end_ns - child.start_ns for child in self.cpu_children)
        return (self.end_ns - self.start_ns - inside) / 1e3

    @property
    def cpu_memory_usage(self) -> int:
        """Bytes allocated less bytes freed, the events inside included."""
        return sum(event.self_cpu_memory_usage for event in self._tree())

    @property
    def device_memory_usage(self) -> int:  # type: ignore[override]
        """The same on devices."""
        return sum(event.self_device_memory_usage for event in self._tree())

    def _tree(self) -> list[FunctionEvent]:
        """It and those inside; labels of recursive functions nest deeper than Python calls may."""
        found = [self]
        for event in found:
            found += event.cpu_children
        return found

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

    Example:
        >>> average = FunctionEventAvg()
        >>> for end in (2000, 4000):
        ...     _ = average.add(FunctionEvent(0, "aten::mul", 1000, 1, end_ns=end))
        >>> average.count, average.cpu_time
        (2, 2.0)
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
        self.activity_type: str | None = None
        self.is_estimated = False
        self.device_type = DeviceType.CPU
        self.use_device: str | None = None

    def add(self, other: FunctionEvent | FunctionEventAvg) -> FunctionEventAvg:
        """Count one more event, or the events of another average; returns itself.

        Raises:
            AssertionError: `other` is neither, or its key is another.
        """
        if not isinstance(other, FunctionEvent | FunctionEventAvg):
            raise AssertionError("Expected other to be a FunctionEvent or FunctionEventAvg")
        if self.key is None:
            for name in ("key", "input_shapes", "overload_name", "stack", "scope", "cpu_parent",
                         "cpu_children", "is_user_annotation", "activity_type", "device_type",
                         "use_device"):  # fmt: skip
                setattr(self, name, getattr(other, name))
        if other.key != self.key:
            raise AssertionError(f"Expected keys to match, but got {other.key} vs {self.key}")
        for name in ("count", "cpu_time_total", "self_cpu_time_total", "cpu_memory_usage",
                     "self_cpu_memory_usage", "flops", "device_time_total",
                     "self_device_time_total", "device_memory_usage",
                     "self_device_memory_usage"):  # fmt: skip
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
