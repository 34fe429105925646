"""Backwards for a batch of cotangents (`is_grads_batched`). Start reading at `run_batch`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tracegrad.ir.errors import ShapeError
from tracegrad.tracer.engine import reachable, run
from tracegrad.tracer.roots import Root
from tracegrad.tracer.state import state
from tracegrad.tracer.tape import BackwardNode, Edge
from tracegrad.tracer.tensor import Tensor


def run_batch(
    roots: Sequence[Root], keep: bool, create_graph: bool, targets: Sequence[Edge]
) -> list[Tensor | None]:
    """The results for each element of the cotangents' first dimension, along a new first one.

    One run serves all, in step with that for the first element; where the graph calls functions
    of the user's, which may do with a cotangent what they like, it is one run for each.
    """
    from tracegrad.tracer.batching import Examples
    from tracegrad.tracer.capture_hook import recording
    from tracegrad.tracer.joining import stack

    counts = {ct._array.shape[0] for _, ct in roots}
    if len(counts) > 1:
        raise ShapeError(
            "grad: with is_grads_batched=True all grad_outputs must have the same first dimension, "
            f"got {sorted(counts)}"
        )
    count = counts.pop()
    if not count:
        raise ShapeError("grad: is_grads_batched=True needs a batch of at least one, got 0")
    if _runs_user_code([edge[0] for edge, _ in roots]):
        rows = []
        for i in range(count):
            seeds = [(edge, ct[i]) for edge, ct in roots]
            rows.append(run(seeds, keep or i + 1 < count, create_graph, targets))
        with _grad_mode(create_graph):
            return [None if c[0] is None else stack(c) for c in zip(*rows, strict=True)]
    with _grad_mode(create_graph):
        examples = Examples(count, "different", create_graph)
        seeds = [(edge, examples.example(ct, 0)) for edge, ct in roots]
        with recording(examples):
            found = run(seeds, keep, create_graph, targets)
        many = [None if ct is None else examples.batch(ct) for ct in found]
    examples.close()
    return many


def _runs_user_code(roots: Sequence[BackwardNode | None]) -> bool:
    """Whether a backward from these nodes calls functions that may read or keep cotangents."""
    return any(n.runs_user_code or n.hooks is not None or n.retained for n in reachable(roots))


@contextmanager
def _grad_mode(enabled: bool) -> Iterator[None]:
    before = state.grad_enabled
    state.grad_enabled = enabled
    try:
        yield
    finally:
        state.grad_enabled = before
