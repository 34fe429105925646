"""In-place writes that autograd has to know of: how history moves when memory changes.

A view knows its base and the chain of movement operations between them. After a write through a
view, the base's history becomes a `CopySlices` node (the written region takes its cotangent from
the new value, the rest from the old base), and every other view of that base makes its `grad_fn`
anew, by replaying its chain, when it is next asked. Start reading at `rebase`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tracegrad.ir import ops
from tracegrad.ir.primitive import bind
from tracegrad.tracer import tape
from tracegrad.tracer.state import state
from tracegrad.tracer.tensor import Tensor, View, wrap


def replay(x: Any, chain: Sequence[Any]) -> Any:
    """Apply a view's chain of movement operations to `x` (a Tensor or an IR value)."""
    for op, params, _ in chain:
        x = bind(op, (x,), params)
    return x


def refresh(tensor: Tensor, view: View) -> None:
    """Make the history of a view anew after its memory was written through some alias."""
    version = tensor._storage.version
    base = view.base
    if not base.requires_grad or not view.recorded:
        view.version = version
        return
    before = state.grad_enabled, state.recorder
    state.grad_enabled, state.recorder = True, None
    try:
        twin = replay(base, view.chain)
    finally:
        state.grad_enabled, state.recorder = before
    _move(tensor, twin._grad_fn, twin._output_nr)
    tensor._requires_grad = twin._requires_grad
    view.version = version  # last: another thread may look meanwhile


def _move(tensor: Tensor, node: tape.BackwardNode | None, number: int) -> None:
    """Give `tensor` another place in the tape; `retain_grad()` goes on at the new one."""
    old = tensor._grad_fn
    if old is not None and old.retained and node is not None:
        mine = old.retained.get(tensor._output_nr)
        if mine is not None and mine() is tensor:
            old.retained = {k: v for k, v in old.retained.items() if v is not mine}
            node.retained = {**(node.retained or {}), number: mine}
    tensor._grad_fn, tensor._output_nr = node, number


class CopySlices(tape.BackwardNode):
    """The backward of writing a new value into a region of a base."""

    __slots__ = ("chain", "outside")

    def __init__(self, edges: Sequence[tape.Edge], base: Tensor, chain: Sequence[Any]) -> None:
        super().__init__(edges, (base.type_info,))
        self.chain = tuple(chain)
        self.outside = _outside(base._array, self.chain)

    def apply(self, cotangents: list[Tensor | None], create_graph: bool) -> list[Tensor | None]:
        """The old base's cotangent outside the region, the new value's inside."""
        ct = cotangents[0]
        assert ct is not None, "the engine runs a node with one output only with its cotangent"
        old = new = None
        if self.edges[0][0] is not None:
            zero = np.zeros((), ct._array.dtype)
            old = ops.where(wrap(self.outside), ct, wrap(zero))
        if self.edges[1][0] is not None:
            new = replay(ct, self.chain) + 0  # memory of its own
        return [old, new]


def _outside(base: np.ndarray, chain: Sequence[Any]) -> np.ndarray:
    """A mask of the base: True where the region that `chain` leads to is not."""
    mask = np.empty_like(base, dtype=np.bool_)
    mask[...] = True
    region = mask
    for op, params, _ in chain:
        region = op.eager(region, **params)
    assert region.size == 0 or np.may_share_memory(region, mask), "a view's chain made a copy"
    region.flags.writeable = True
    region[...] = False
    return mask


def rebase(target: Tensor, value: Tensor) -> None:
    """Give `target` the history of `value`, which was just written to its memory."""
    view = target._view
    if view is None:
        assert value._grad_fn is not None or not value._requires_grad, "a leaf was written"
        _move(target, value._grad_fn, value._output_nr)
        target._requires_grad = value._requires_grad
        return
    base = view.base
    edges = (tape.gradient_edge(base), tape.gradient_edge(value))
    if edges[0][0] is None and edges[1][0] is None:
        return
    _move(base, CopySlices(edges, base, view.chain), 0)
    base._requires_grad = True
