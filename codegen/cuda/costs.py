"""What each launch of a unit moves and computes, and for which Python lines.

Start reading at `launch_costs`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tracegrad.codegen.costs import FusedOperation, fused_operations
from tracegrad.codegen.cuda.plan import CudaTarget
from tracegrad.codegen.cuda.unit import plan_cuda, render_cuda, scheduled
from tracegrad.ir.graph import Graph, Value
from tracegrad.ir.location import Location
from tracegrad.ir.types import Shape

LIBRARY = "cublas"  # the name of a launch that is a call of the library
LAUNCH = 2e-6  # seconds that the shortest launch takes
SECONDS_PER_OP, SECONDS_PER_BYTE = 5e-14, 5e-13  # rough on purpose


@dataclass(frozen=True)
class LaunchCost:
    """One launch of a unit.

    Attributes:
        kernel: its function in the unit's text, or `cublas`.
        nbytes: that it moves; ops: that it performs, about.
        operations: those that the step of the schedule computes which the launch is part of.
        lines: where they were written.
    """

    kernel: str
    nbytes: int
    ops: int
    operations: tuple[FusedOperation, ...]
    lines: tuple[Location, ...]

    @property
    def seconds(self) -> float:
        """What it takes, roughly."""
        return max(LAUNCH, self.ops * SECONDS_PER_OP, self.nbytes * SECONDS_PER_BYTE)


def launch_costs(
    graph: Graph, target: CudaTarget, strides: Mapping[Value, Shape], returned: int | None = None
) -> tuple[LaunchCost, ...]:
    """The launches of a graph, in order; arguments as for `build_cuda`.

    Several launches of one step have the operations of the step each.

    Example:
        >>> from tracegrad.ir import dtypes
        >>> from tracegrad.ir.graph import GraphBuilder
        >>> from tracegrad.ir.types import TensorType
        >>> builder = GraphBuilder("double")
        >>> x = builder.input(TensorType((4,), dtypes.float32), "x")
        >>> with builder:
        ...     y = x * 2
        >>> [cost] = launch_costs(builder.finish([y]), CudaTarget(), {})
        >>> cost.kernel, cost.nbytes, cost.ops
        ('kernel_0', 32, 4)
    """
    plan = plan_cuda(graph, target, strides, returned)
    launches = render_cuda(plan).launches
    graph, steps = scheduled(graph, strides)
    stored = {v for step in steps for v in step.values}
    inside = [tuple(fused_operations(graph, step, stored)) for step in steps]
    return tuple(
        LaunchCost(
            launch.kernel or LIBRARY, int(kernel.nbytes), int(kernel.ops), inside[step],
            lines_of(inside[step]),
        )
        for kernel, step, launch in zip(plan.kernels, plan.steps, launches, strict=True)
    )  # fmt: skip


def lines_of(operations: Iterable[FusedOperation]) -> tuple[Location, ...]:
    """Where operations were written, each line once."""
    found = {(at.file, at.line): at for op in operations if (at := op.node.location) is not None}
    return tuple(found.values())
