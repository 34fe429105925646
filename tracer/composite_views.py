"""Functions that return views, ready to run: what `Single` and `Composite` are to other functions.

Start reading at `Viewing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tracegrad.tracer.dispatch import viewed
from tracegrad.tracer.tape import OperationNode, leaf_edge
from tracegrad.tracer.views import ViewNode

if TYPE_CHECKING:
    from tracegrad.tracer.composite_plan import Step
    from tracegrad.tracer.tensor import Tensor


class Hop:
    """Movement operations that one node stands for.

    Attributes:
        kernels: in order, their parameters filled in.
        chain: the same as steps of a `View`.
        node: a call that makes the node of a given edge; None where nothing is recorded.
    """

    __slots__ = ("kernels", "chain", "node")

    def __init__(self, steps: Sequence[Step], node: Any) -> None:
        self.kernels = tuple(s.plan.kernel for s in steps)
        self.chain = tuple((s.plan.op, s.params, s.plan.out_type.shape) for s in steps)
        self.node: Any = None
        if isinstance(node, ViewNode):
            kind, operands, types = type(node), node.operands, node.types
            self.node = lambda edge: kind.of(edge, self.chain, operands, types)
        elif node is not None:
            kind, plan, params = type(node), steps[0].plan, steps[0].params
            self.node = lambda edge: kind(plan, params, (edge,), 1, ())


class Viewing:
    """A function that returns a view of its one tensor, for given shape, strides and arguments."""

    __slots__ = ("hops",)

    def __init__(self, hops: Sequence[Hop]) -> None:
        self.hops = tuple(hops)

    @classmethod
    def of(cls, steps: Sequence[Step], made: Sequence[Tensor]) -> Viewing | None:
        """From what the function did and the tensors that its steps made; None if it does more."""
        hops: list[Hop] = []
        end = len(steps)
        while end:
            node = made[end - 1]._grad_fn
            if node is None:
                count = end
            elif isinstance(node, ViewNode):
                count = len(node.chain)
            elif isinstance(node, OperationNode):
                count = 1
            else:
                return None
            hops.append(Hop(steps[end - count : end], node))
            end -= count
        return cls(hops[::-1])

    def run(self, tensors: Sequence[Tensor]) -> Tensor:
        """The view, with its node."""
        x = tensors[0]
        for hop in self.hops:
            array = x._array
            for kernel in hop.kernels:
                array = kernel(array)
            out = viewed(x, array if array is not x._array else array.view(), hop.chain)
            if hop.node is not None:
                node = x._grad_fn
                edge = (node, x._output_nr) if node is not None else leaf_edge(x)
                out._grad_fn = hop.node(edge)
                out._requires_grad = True
            x = out
        return x
