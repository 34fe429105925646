"""Results that are views: of an argument, of a tensor from outside, or of another result.

A replay makes such a view anew of the tensor that it looks at, by the same movement operations. So it
shares memory and version counter, has its `_base` and its place in the tape as in eager mode. Where the
run has made the memory, the tensor that has all of it is an output of the graph, returned or not.
Start reading at `found`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracegrad.runtime.layouts import is_dense
from tracegrad.tracer.capture_memory import Memory
from tracegrad.tracer.dispatch import viewed
from tracegrad.tracer.state import state
from tracegrad.tracer.tape import OperationNode, gradient_edge
from tracegrad.tracer.tensor import Tensor
from tracegrad.tracer.views import ViewNode, class_of_views, replay

if TYPE_CHECKING:
    from tracegrad.tracer.tape import BackwardNode


@dataclass(frozen=True)
class ResultView:
    """How to make a view of a tensor.

    `parts`: one for each node that the run had on the tape, the first one first: its steps, its name
    ("" without a node) and whether the one node stands for all steps. Without any, it is `detach()`.
    `recorded`: it was made in grad mode, or the call is not.
    """

    parts: tuple[tuple[tuple[Any, ...], str, bool], ...]
    recorded: bool = True

    def make(self, base: Tensor) -> Tensor:
        """The view."""
        if not self.parts:
            return base.detach()
        if self.recorded:
            return self._made(base)
        state.grad_enabled = False
        try:
            return self._made(base)
        finally:
            state.grad_enabled = True

    def _made(self, base: Tensor) -> Tensor:
        out = base
        for steps, name, whole in self.parts:
            if name and not whole:
                out = replay(out, steps)
                if isinstance(out._grad_fn, OperationNode) and out._grad_fn.name() != name:
                    out._grad_fn.rename(name)
                continue
            source, array = out, out._array
            for op, params, _ in steps:
                array = op.eager(array, **params)
            out = viewed(source, array.view() if array is source._array else array, steps)
            if whole:
                edge = gradient_edge(source)
                out._requires_grad = True
                out._grad_fn = class_of_views(name)(source, edge, steps)
        return out


def found(
    results: Sequence[Tensor], memory_of: Callable[[Tensor], Memory],
    source_of: Callable[[Tensor], int | None],
) -> dict[int, tuple[Tensor, ResultView]]:  # fmt: skip
    """The results that are views which a replay can make: by id, of what, and how.

    One that has memory of the run's own to itself, without gaps, is no view to anybody who looks at
    values only: it is computed as it lies, which is quicker.

    Args:
        source_of: the number of the input that a tensor is.
    """
    views = {}
    for tensor in results:
        memory = memory_of(tensor)
        if source_of(tensor) is not None or tensor is memory.root:
            continue
        if memory.writes or memory.shared:
            continue
        others = any(t is not tensor and memory_of(t) is memory for t in results)
        if memory.source is None and not others and is_dense(tensor._array):
            continue
        made = _described(memory.root, tensor)
        if made is not None:
            views[id(tensor)] = memory.root, made
    return views


def _described(base: Tensor, tensor: Tensor) -> ResultView | None:
    """How `tensor` comes of `base`; None where making it again gives something else."""
    if tensor._storage is not base._storage:
        return None
    if tensor._view is None and not tensor._requires_grad:
        found = ResultView(())
        return found if _alike(found.make(base), tensor) else None
    steps = _steps(base, tensor)
    if not steps or tensor._view is None:
        return None
    parts: list[tuple[tuple[Any, ...], str, bool]] = []
    node = tensor.grad_fn
    while steps and node is not None:
        if not isinstance(node, (OperationNode, ViewNode)) or node.hooks or node.retained:
            return None
        whole = isinstance(node, ViewNode)
        count = len(node.chain) if isinstance(node, ViewNode) else 1
        if count > len(steps):
            return None
        parts.append((steps[-count:], node.name(), whole))
        steps, node = steps[:-count], node.edges[0][0]
    if steps:
        parts.append((steps, "", False))
    recorded = tensor._view.made != "no_grad" or not state.grad_enabled
    made = ResultView(tuple(reversed(parts)), recorded)
    return made if _alike(made.make(base), tensor) else None


def _steps(base: Tensor, tensor: Tensor) -> tuple[Any, ...] | None:
    """The movement operations between two tensors over the same memory."""
    view, above = tensor._view, base._view
    if view is None:
        return None
    chain = tuple(view.chain)
    if view.base is base:
        return chain
    if above is None or above.base is not view.base:
        return None
    first = tuple(above.chain)
    same = len(first) <= len(chain) and all(p is q for p, q in zip(first, chain))
    return chain[len(first) :] if same else None


def _alike(made: Tensor, tensor: Tensor) -> bool:
    """Whether a view made again is, to its user, the one that the run made."""
    a, b = made._array, tensor._array
    mine, theirs = made._view, tensor._view
    if (mine is None) != (theirs is None):
        return False
    if mine is not None and theirs is not None:
        if (
            mine.base is not theirs.base
            or mine.made != theirs.made
            or mine.borrowed != theirs.borrowed
        ):
            return False
    return (
        made._ptr() == tensor._ptr() and a.shape == b.shape and a.strides == b.strides
        and a.dtype == b.dtype and made._storage is tensor._storage
        and made.requires_grad == tensor.requires_grad
        and tensor._grad is None
        and _kind(made.grad_fn, made) == _kind(tensor.grad_fn, tensor)
    )  # fmt: skip


def _kind(node: BackwardNode | None, tensor: Tensor) -> tuple[Any, ...]:
    if node is None:
        return ()
    ends = [(type(n), number) for n, number in node.next_functions]
    return type(node), node.name(), tensor._output_nr, ends
