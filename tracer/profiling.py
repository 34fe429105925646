"""Where the tracer lets a profiler listen: operations, backward nodes, compiled calls.

`profilers` holds one entry per profiler that runs in any thread. Empty, the usual case, it costs
the hot paths one truth test; otherwise they look whether `state.profiler` is theirs. Who listens is
a `Profiler`; `tracegrad.autograd.profiler` has the one that users meet. Start reading there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from tracegrad.tracer.state import state

if TYPE_CHECKING:
    from tracegrad.ir.primitive import Primitive
    from tracegrad.tracer.tape import BackwardNode
    from tracegrad.tracer.tensor import Tensor

profilers: list[Profiler] = []


class Profiler:
    """Base class of profilers. Each method runs what it is given, between two looks at a clock."""

    def operation(
        self, run: Callable[..., Tensor], op: Primitive, operands: Sequence[Any],
        params: Mapping[str, Any],
    ) -> Tensor:  # fmt: skip
        """Return `run(op, operands, params)`; called by the dispatcher."""
        raise NotImplementedError

    def inplace(
        self, run: Callable[..., Tensor], name: str, target: Tensor, compute: Callable[..., Any],
        operands: Sequence[Any], params: Mapping[str, Any],
    ) -> Tensor:  # fmt: skip
        """Return `run(name, target, compute, *operands, **params)`."""
        raise NotImplementedError

    def launch(self, label: str, run: Callable[[list[Any]], Any], leaves: list[Any]) -> Any:
        """Return `run(leaves)`, one attempt to replay a trace of the compiled function `label`."""
        raise NotImplementedError

    def block(self, name: str) -> AbstractContextManager[Any]:
        """A block that the operations inside belong to."""
        raise NotImplementedError


def apply_node(
    node: BackwardNode, cotangents: list[Tensor | None], create_graph: bool
) -> Sequence[Tensor | None]:
    """`node.apply(...)`, as a block of this thread's profiler where there is one."""
    profiler = state.profiler
    if profiler is None:
        return node.apply(cotangents, create_graph)
    with profiler.block(node.name()):
        return node.apply(cotangents, create_graph)
