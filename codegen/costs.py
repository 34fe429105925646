"""What the kernels of a graph cost, and which operations share each of them: the profiler's model.

A launch runs all kernels of a translation unit in one call. `kernel_costs` estimates how its time
is divided: among the kernels by the operations and bytes of their plans, and inside a kernel among
the operations fused into it by `Primitive.cost` times elements. Only proportions matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from tracegrad.codegen.nest import SECONDS_PER_BYTE, SECONDS_PER_OP
from tracegrad.codegen.plan import KernelPlan, Target
from tracegrad.codegen.schedule import Step
from tracegrad.codegen.unit import plan_unit, prepared, scheduled
from tracegrad.ir.graph import Graph, Node, Value
from tracegrad.ir.types import Shape

PRODUCTS = ("contraction", "convolution")
OPERATIONS_AT_ONCE = 4  # of BLAS, for one of a loop: it keeps more of its operands in registers


@dataclass(frozen=True, eq=False)
class FusedOperation:
    """An operation inside a kernel: its node, and about how many operations it performs there."""

    node: Node
    work: float


@dataclass(frozen=True)
class KernelCost:
    """A kernel of a translation unit.

    Attributes:
        name: of its C function.
        seconds: what one launch of it takes, roughly.
        operations: those fused into it that take time, in the order of the graph.
    """

    name: str
    seconds: float
    operations: tuple[FusedOperation, ...]


def kernel_costs(
    graph: Graph, target: Target, strides: Mapping[Value, Shape]
) -> tuple[KernelCost, ...]:
    """The kernels of a graph in the order in which they run; arguments as for `plan_unit`.

    An operation that several kernels recompute is listed in each of them.
    """
    plans = plan_unit(graph, target, strides).kernels
    graph = prepared(graph, strides)
    steps = scheduled(graph, strides, target)
    stored = {v for step in steps for v in step.values}
    return tuple(
        KernelCost(plan.name, _seconds(plan, step), tuple(fused_operations(graph, step, stored)))
        for plan, step in zip(plans, steps, strict=True)
    )


def _seconds(plan: KernelPlan, step: Step) -> float:
    node = step.node or step.product
    products = node is not None and node.primitive.family in PRODUCTS
    operation = SECONDS_PER_OP / (OPERATIONS_AT_ONCE if products else 1)
    return plan.ops * operation + plan.nbytes * SECONDS_PER_BYTE


def fused_operations(graph: Graph, step: Step, stored: set[Value]) -> Iterator[FusedOperation]:
    """The operations that a kernel computes, back to the values that lie in memory."""
    own = set(step.values)
    inside: set[Value] = set()
    stack = list(own)
    while stack:
        v = stack.pop()
        node = graph.producer(v)
        if v in inside or node is None or (v in stored and v not in own):
            continue
        inside.add(v)
        stack.extend(node.inputs)
    nodes = [n for n in graph.nodes if n.out in inside]
    working = [FusedOperation(n, float(_work(n))) for n in nodes if _work(n)]
    # a kernel that only moves or fills memory: that is then its operations' work
    yield from working or [FusedOperation(n, float(n.out.type.size)) for n in nodes if n.out in own]


def _work(node: Node) -> int:
    """`Primitive.cost` times the elements that are computed; movements and constants are free."""
    return node.primitive.cost * _elements(node)


def _elements(node: Node) -> int:
    family = node.primitive.family
    if family == "contraction":
        x = node.inputs[0]
        return node.out.type.size * prod(x.shape[a] for a in node.params["contract"][0])
    if family in ("reduction", "window"):
        return max(node.out.type.size, *(v.type.size for v in node.inputs))
    if family == "indexing" and node.primitive.name != "gather":
        return node.inputs[1].type.size  # the updates of a scatter
    return node.out.type.size
