"""How long each kernel of a compiled function takes on a device. Start reading at `kernel_times`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracegrad.ir.errors import CaptureError, OperandError
from tracegrad.ir.graph import Graph, Value
from tracegrad.ir.types import Shape
from tracegrad.tracer.inspection import Inspection

if TYPE_CHECKING:
    from tracegrad.codegen.cuda.costs import LaunchCost

HEAD = ("", "kernel", "us", "bytes", "GB/s", "operations", "lines")


@dataclass(frozen=True)
class KernelTime:
    """One launch.

    Attributes:
        part: "forward" or "backward".
        kernel: its name in `f.source(part)`; "cublas" for a product of the library.
        microseconds: of one run, the least of several, measured in a rehearsal.
        nbytes: that it moves at least; operations: that it performs, about.
        lines: of Python that it computes, such as `train.py:41`.

    Example:
        >>> row = KernelTime("forward", "kernel_0", 4.0, 8_000_000, 1_000_000, ("train.py:41",))
        >>> row.gigabytes_per_second
        2000.0
    """

    part: str
    kernel: str
    microseconds: float
    nbytes: int
    operations: int
    lines: tuple[str, ...]

    @property
    def gigabytes_per_second(self) -> float:
        """Bytes by time."""
        return self.nbytes / self.microseconds / 1e3 if self.microseconds else 0.0


@dataclass(frozen=True)
class KernelTimes:
    """The launches of a trace in the order in which they run; prints as a table.

    Attributes:
        name: of the function; device: that it was measured on.
        rows: one for each launch.

    Example:
        >>> row = KernelTime("forward", "kernel_0", 4.0, 8_000_000, 1_000_000, ("train.py:41",))
        >>> print(KernelTimes("step", "cuda:0", (row,)))
        step on cuda:0: 4.0 us in 1 launches
                 kernel     us    bytes    GB/s  operations  lines
        forward  kernel_0  4.0  8000000  2000.0     1000000  train.py:41
    """

    name: str
    device: str
    rows: tuple[KernelTime, ...]

    def __iter__(self) -> Iterator[KernelTime]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def microseconds(self) -> float:
        """All launches together."""
        return sum(row.microseconds for row in self.rows)

    def __str__(self) -> str:
        cells = [HEAD] + [
            (r.part, r.kernel, f"{r.microseconds:.1f}", str(r.nbytes),
             f"{r.gigabytes_per_second:.1f}", str(r.operations), ", ".join(r.lines))
            for r in self.rows
        ]  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            f"{self.name} on {self.device}: {self.microseconds:.1f} us in {len(self)} launches"
        ]
        for row in cells:
            texts = [
                text.rjust(width) if 2 <= k <= 5 else text.ljust(width)
                for k, (text, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(texts).rstrip())
        return "\n".join(lines)


def kernel_times(f: Callable[..., Any]) -> KernelTimes:
    """Measure each launch of a compiled function's newest trace, forward and backward.

    Every kernel runs alone, many times in a row, on stand-in data of the right sizes and layouts: the
    device is measured and not the host, and nothing of it reaches the function's tensors. Data that
    lie in the device's caches then come faster than they may in the function. A kernel that is
    shorter than its launch, 2 to 4 microseconds, counts as long as that.

    Args:
        f: made by `tracegrad.compile`, and called with tensors on a device.
    Raises:
        OperandError: `f` is no compiled function.
        CaptureError: it has no trace on a device.
        OutOfMemoryError: the stand-in data do not fit beside what the device holds.

    Example:
        >>> import tracegrad as tg
        >>> f = tg.compile(lambda x: (x * 2).sum())
        >>> y = f(tg.ones(1000))
        >>> tg.cuda.kernel_times(f)
        Traceback (most recent call last):
            ...
        tracegrad.ir.errors.CaptureError: <lambda> has no trace on a device: the newest one is on cpu
        >>> if tg.cuda.is_available():
        ...     y = f(tg.ones(1000, device="cuda"))
        ...     times = tg.cuda.kernel_times(f)  # print it
    """
    if not isinstance(f, Inspection):
        raise OperandError(
            "kernel_times: expected a function made by tracegrad.compile, got "
            f"{type(f).__name__}"
        )  # fmt: skip
    trace = f._trace(-1)
    device = trace.graph.device
    if device == "cpu":
        raise CaptureError(f"{trace.name} has no trace on a device: the newest one is on cpu")
    rows = _rows("forward", trace.kernel_graph(), trace.strides) if trace.executable else []
    if trace.wrt and trace.cotangent_outputs():
        backward = trace.full_backward()
        if backward.distinct:
            rows += _rows("backward", backward.kernel_graph(), backward.strides)
    return KernelTimes(trace.name, device, tuple(rows))


def _rows(part: str, graph: Graph, strides: Mapping[Value, Shape]) -> list[KernelTime]:
    from tracegrad.codegen.cuda.costs import launch_costs
    from tracegrad.runtime.cuda import graphs, rehearsal

    index = int(graph.device.partition(":")[2] or 0)
    unit = graphs.generate(graph, strides)
    costs = launch_costs(graph, graphs.target(index), strides)
    measured = rehearsal.rehearse(graph, unit, index, strides)
    return [_row(part, cost, ns) for cost, ns in zip(costs, measured, strict=True)]


def _row(part: str, cost: LaunchCost, nanoseconds: float) -> KernelTime:
    lines = tuple(dict.fromkeys(str(at) for at in cost.lines))
    return KernelTime(part, cost.kernel, nanoseconds / 1e3, cost.nbytes, cost.ops, lines)
