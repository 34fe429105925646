"""Where the tracer lets a profiler listen: operations, backward nodes, compiled calls.

`profilers` holds one entry per profiler that runs in any thread. Empty, the usual case, it costs
the hot paths one truth test; otherwise they look whether `state.profiler` is theirs. Who listens is
a `Profiler`; `tracegrad.autograd.profiler` has the one that users meet. Start reading there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from tracegrad.tracer.state import state

if TYPE_CHECKING:
    from tracegrad.ir.primitive import Primitive
    from tracegrad.tracer.function_node import FunctionNode
    from tracegrad.tracer.tape import BackwardNode
    from tracegrad.tracer.tensor import Tensor

Block = AbstractContextManager[Any]

profilers: list[Profiler] = []
ACCUMULATE = "torch::autograd::AccumulateGrad"  # PyTorch's name of what adds to `.grad` of a leaf


class Profiler:
    """Base class of profilers.

    Most methods run what they are given, between two looks at a clock; factories tell `made` when
    they have ended, and `block` and `function` return what is entered and left.
    """

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

    def made(self, name: str, out: Sequence[Tensor], since: int, given: Sequence[Tensor]) -> None:
        """A factory has made `out`, having begun at `since`; `given` are its operands."""
        raise NotImplementedError

    def function(self, name: str, node: FunctionNode, given: Sequence[Any]) -> Block:
        """A block for the forward of a `Function`, whose node is `node`."""
        raise NotImplementedError

    def accumulate(
        self, run: Callable[..., None], leaf: Tensor, ct: Tensor, create_graph: bool, fresh: bool
    ) -> None:
        """Call `run(leaf, ct, create_graph, fresh=fresh)`, which adds to `.grad` of a leaf."""
        raise NotImplementedError

    def launch(self, label: str, run: Callable[[list[Any]], Any], leaves: list[Any]) -> Any:
        """Return `run(leaves)`, one attempt to replay a trace of the compiled function `label`."""
        raise NotImplementedError

    def capture(self, label: str, run: Callable[..., Any], *args: Any) -> Any:
        """Return `run(*args)`, which captures and compiles the function `label`."""
        raise NotImplementedError

    def backward(
        self, run: Callable[..., Sequence[Tensor | None]], node: BackwardNode,
        cotangents: list[Tensor | None], create_graph: bool,
    ) -> Sequence[Tensor | None]:  # fmt: skip
        """Return `run(node, cotangents, create_graph)`, one step of the engine."""
        raise NotImplementedError

    def block(self, name: str) -> Block:
        """A block that the operations inside belong to."""
        raise NotImplementedError


def apply_node(
    node: BackwardNode, cotangents: list[Tensor | None], create_graph: bool
) -> Sequence[Tensor | None]:
    """`node.apply(...)`, as an event of this thread's profiler where there is one."""
    profiler = state.profiler
    run = type(node).apply
    if profiler is None:
        return run(node, cotangents, create_graph)
    return profiler.backward(run, node, cotangents, create_graph)


def accumulate_in_block(leaf: Tensor, ct: Tensor, create_graph: bool, *, fresh: bool) -> None:
    """The engine's `accumulate`, as an event of this thread's profiler where there is one."""
    from tracegrad.tracer.accumulate import accumulate

    if state.profiler is None:
        accumulate(leaf, ct, create_graph, fresh=fresh)
    else:
        state.profiler.accumulate(accumulate, leaf, ct, create_graph, fresh)


def now() -> int:
    """When something begins, for `note_made`; 0 where no profiler is open."""
    return time.perf_counter_ns() if profilers else 0


def note_made(name: str, out: Sequence[Tensor], since: int, given: Sequence[Tensor] = ()) -> None:
    """Tell this thread's profiler, where there is one, that a factory has made `out`.

    Args:
        since: when it began, as `now` said.
        given: its operands; memory that `out` shares with them is not new.
    """
    if state.profiler is not None:
        state.profiler.made(name, out, since, given)


def labelled(name: str) -> Block:
    """A block of this thread's profiler; one that does nothing where there is none."""
    profiler = state.profiler
    return nullcontext() if profiler is None else profiler.block(name)
