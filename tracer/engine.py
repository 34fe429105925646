"""The backward engine: one loop over the nodes reachable from the outputs, newest first.

Nodes are numbered as they are made and their edges lead to older nodes, so sorting by number is a
topological order; there is no recursion, and a chain of any length can be differentiated.
Start reading at `run`.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tracegrad.ir.errors import GradientError, ShapeError
from tracegrad.ir.quiet import IGNORE, QUIET
from tracegrad.tracer.anomaly import anomaly, check, explain
from tracegrad.tracer.once import warn_once
from tracegrad.tracer.profiling import accumulate_in_block, apply_node, profilers
from tracegrad.tracer.roots import Root, many, roots_of, seed, target_edge, type_at
from tracegrad.tracer.state import state
from tracegrad.tracer.storage import announce, before_write
from tracegrad.tracer.tape import AccumulateGrad, BackwardNode, Edge, OperationNode
from tracegrad.tracer.tensor import Tensor, literal, wrap

_UNUSED = (
    "The differentiated Tensor at index {i} appears to not have been used in the graph. Set "
    "allow_unused=True if this is the desired behavior."
)
_IN_TRANSFORM = (
    "backward() called inside a functorch transform. This is not supported, please use functorch.grad "
    "or functorch.vjp instead or call backward() outside of functorch transforms."
)
_CYCLE = (
    "Using backward() with create_graph=True will create a reference cycle between the parameter "
    "and its gradient which can cause a memory leak. We recommend using autograd.grad when "
    "creating the graph to avoid this. If you have to use this function, make sure to reset the "
    ".grad fields of your parameters to None after use to break the cycle and avoid the leak."
)
_NO_INPUTS = "`inputs` argument to `{name}()` cannot be empty."
_Slot = tuple[Tensor, bool]  # a cotangent, and whether its memory is ours to keep or add to


def backward(
    tensors: Tensor | Sequence[Tensor],
    grad_tensors: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    *,
    inputs: Sequence[Tensor] | Tensor | None = None,
) -> None:
    """Add the gradients of `tensors` to `.grad` of the leaves they depend on.

    Args:
        tensors: outputs to differentiate.
        grad_tensors: a cotangent per output, of its shape; None where an output has one element.
        retain_graph: keep what the graph saved (default: `create_graph`).
        create_graph: make the gradients differentiable.
        inputs: accumulate into these tensors only.
    Raises:
        GradientError: an output has no history, no cotangent, or its graph was freed.
        ShapeError: a cotangent does not have its output's shape.
    """
    if state.transforms:
        raise GradientError(_IN_TRANSFORM)
    keep = create_graph if retain_graph is None else retain_graph
    if inputs is None and not create_graph and isinstance(tensors, Tensor):
        if _one_step(tensors, grad_tensors, keep):
            return
    if create_graph:
        warn_once(_CYCLE)
    roots = roots_of(tensors, grad_tensors)
    if state.recorder is not None:
        state.recorder.backward([edge[0] for edge, _ in roots], True)
    if inputs is None:
        run(roots, keep, create_graph, None)
        return
    targets = many(inputs)
    if not targets:
        raise GradientError(_NO_INPUTS.format(name="backward"))
    edges = [target_edge(t) for t in targets]
    found = run(roots, keep, create_graph, edges, into_leaves=True)
    for target, ct in zip(targets, found, strict=True):
        if ct is not None and isinstance(target, Tensor) and not target.is_leaf:
            accumulate(target, ct, create_graph, fresh=False)


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool | None = None,
    is_grads_batched: bool = False,
    materialize_grads: bool = False,
) -> tuple[Tensor | None, ...]:
    """The gradients of `outputs` with respect to `inputs`, leaving `.grad` alone.

    Args:
        outputs, inputs: tensors or gradient edges; the inputs must require grad.
        grad_outputs: a cotangent per output; None where an output has one element.
        retain_graph, create_graph: as for `backward`.
        allow_unused: return None for inputs that the outputs do not depend on.
        is_grads_batched: each cotangent has a batch dimension in front, and so have the results.
        materialize_grads: return zeros for those instead.
    Returns:
        One tensor per input, of its shape and dtype.
    Raises:
        GradientError: an input was not used and `allow_unused` is not set; no inputs; and as
            `backward`.
    """
    if materialize_grads and allow_unused is False:
        raise ValueError(
            "Expected allow_unused to be True or not passed when materialize_grads=True, "
            "but got: allow_unused=False."
        )
    roots = roots_of(outputs, grad_outputs, is_grads_batched)
    targets = many(inputs)
    if not targets:
        raise GradientError(_NO_INPUTS.format(name="grad"))
    edges = [target_edge(t) for t in targets]
    if state.recorder is not None:
        state.recorder.backward([edge[0] for edge, _ in roots], False)
    keep = create_graph if retain_graph is None else retain_graph
    go = _run_batch if is_grads_batched else run
    found = go(roots, keep, create_graph, edges)
    if materialize_grads:
        batch = roots[0][1]._array.shape[:1] if is_grads_batched else ()
        found = [_zeros(t, batch) if f is None else f for t, f in zip(targets, found, strict=True)]
    elif not allow_unused:
        for i, f in enumerate(found):
            if f is None:
                raise GradientError(_UNUSED.format(i=i))
    return tuple(found)


def _zeros(target: Any, batch: tuple[int, ...]) -> Tensor:
    type = type_at(target)
    return literal(np.zeros((*batch, *type.shape), type.dtype.numpy))


def _run_batch(
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


# ---- the short way ------------------------------------------------------------------------------

_ONES: dict[Any, Tensor] = {}  # the cotangent 1 of 0-d outputs, by dtype; never written to


def _one_step(output: Tensor, gradient: Any, keep: bool) -> bool:
    """The backward of an output whose node leads to leaves only, without building an order.

    That is the usual case of a compiled function. False where the general loop is needed.
    """
    node = output.grad_fn
    if (
        node is None or node.hooks is not None or node.retained or len(node.types) != 1
        or node.runs_user_code or state.recorder is not None or anomaly.enabled
    ):  # fmt: skip
        return False
    for target, _ in node.edges:
        if target is not None and (type(target) is not AccumulateGrad or target.hooks is not None):
            return False
    array = output._array
    if gradient is not None and not isinstance(gradient, Tensor):
        return False
    if gradient is None and array.shape == ():
        ct = _ONES.get(array.dtype)
        if ct is None:
            ct = _ONES[array.dtype] = wrap(np.ones((), array.dtype))
    else:
        ct = seed(0, output, gradient)
    before = state.grad_enabled
    state.grad_enabled = False
    try:
        cotangents: list[Tensor | None] = [ct]
        apply = apply_node if profilers else type(node).apply
        parts = apply(node, cotangents, False)
        into = accumulate_in_block if profilers else accumulate
        for (target, _), part in zip(node.edges, parts, strict=True):
            if part is not None and target is not None:
                fresh = part is not ct and node.owns(part, cotangents)
                into(target.variable, part, False, fresh=fresh)  # type: ignore[attr-defined]
    finally:
        state.grad_enabled = before
    if not keep:
        node.release()
    return True


# ---- the loop -----------------------------------------------------------------------------------


class Run:
    """One backward while it goes on.

    Attributes:
        planned: the nodes that it will run or whose cotangents it will return.
        node: the one that is running.
        selective: whether it computes the gradients of given inputs only.
        shared: what hooks of several tensors keep between their calls.
    """

    def __init__(
        self, planned: Container[BackwardNode], above: Run | None, selective: bool
    ) -> None:
        self.planned = planned
        self.selective = selective
        self.node: BackwardNode | None = None if above is None else above.node
        self.shared: dict[Any, Any] = {}


def run(
    roots: Sequence[Root],
    keep: bool,
    create_graph: bool,
    targets: Sequence[Edge] | None,
    into_leaves: bool = False,
) -> list[Tensor | None]:
    """Propagate the cotangents of `roots`.

    With `targets` None, leaves accumulate; otherwise the cotangents arriving at the target edges
    are returned, nodes that lead to no target are not run, and only leaves among the targets
    accumulate, if `into_leaves`.
    """
    cotangents: dict[BackwardNode, list[_Slot | None]] = {}
    before = state.grad_enabled, state.run
    state.grad_enabled = create_graph
    try:
        for edge, ct in roots:
            _deliver(cotangents, edge, ct, False, create_graph)
        order = reachable([edge[0] for edge, _ in roots])
        useful = None if targets is None else _leading_to(order, targets)
        state.run = this = Run(
            set(order) if useful is None else useful, before[1], useful is not None
        )
        wanted: dict[Edge, Tensor | None] = {} if targets is None else dict.fromkeys(targets)
        plain = (
            not create_graph and state.recorder is None and not profilers and not anomaly.enabled
        )
        for node in order:
            slots = cotangents.pop(node, None)
            if slots is None or (useful is not None and node not in useful):
                continue
            if plain and not wanted and node.hooks is None and not node.retained:
                if _plain_step(node, slots, cotangents, keep):
                    continue
            if node.hooks is not None or node.retained:
                _arrived(node, slots, create_graph)
            for edge in wanted:
                if edge[0] is node:
                    wanted[edge] = _value(slots, edge[1])
            if isinstance(node, AccumulateGrad):
                if targets is None or into_leaves:
                    _leaf(node, slots, create_graph)
            elif useful is None or any(e[0] in useful for e in node.edges):
                this.node = node
                _step(node, slots, cotangents, keep, create_graph, useful)
    finally:
        state.grad_enabled, state.run = before
    return [] if targets is None else [wanted[edge] for edge in targets]


def _plain_step(
    node: BackwardNode, slots: list[_Slot | None], cotangents: dict[Any, Any], keep: bool
) -> bool:
    """Run one node where nobody watches and no history is asked for; False if it cannot be."""
    first = slots[0]
    if first is None or len(slots) > 1:
        return False
    if type(node) is AccumulateGrad:
        accumulate(node.variable, first[0], False, fresh=first[1])
        return True
    if not isinstance(node, OperationNode):
        return False
    parts = node.parts(first[0])
    if parts is None:
        return False
    for (target, number), slot in zip(node.edges, parts):
        if slot is None or target is None:
            continue
        have = cotangents.get(target)
        if have is None and len(target.types) < 2:
            cotangents[target] = [slot]
        else:
            _deliver(cotangents, (target, number), slot[0], slot[1], False)
    if not keep and node.saved:
        node.saved = None
    return True


def _leaf(node: AccumulateGrad, slots: list[_Slot | None], create_graph: bool) -> None:
    """Add to `.grad` of a leaf, between its hooks."""
    slot = slots[0]
    if slot is None:
        return
    hooks = node.hooks
    into = accumulate_in_block if profilers else accumulate
    if hooks is None:
        into(node.variable, slot[0], create_graph, fresh=slot[1])
        return
    cts = hooks.before([slot[0]])
    if cts[0] is not None:
        fresh = slot[1] and not hooks.pre and not hooks.post
        into(node.variable, cts[0], create_graph, fresh=fresh)
    hooks.on_leaf(node.variable)
    hooks.after((), cts)


def _value(slots: list[_Slot | None], number: int) -> Tensor | None:
    slot = slots[number] if number < len(slots) else None
    return None if slot is None else slot[0]


def _step(
    node: BackwardNode, slots: list[_Slot | None], cotangents: dict[Any, Any], keep: bool,
    create_graph: bool, useful: set[BackwardNode] | None,
) -> None:  # fmt: skip
    """Run one node and hand its results on."""
    cts = [None if s is None else s[0] for s in slots]
    hooks = node.hooks
    if hooks is not None and hooks.pre:
        cts = hooks.before(cts)
        if not node.runs_user_code and all(ct is None for ct in cts):
            cts = []  # prehooks took the cotangents away: nothing flows on
    apply = _watched if anomaly.enabled else apply_node if profilers else type(node).apply
    parts = apply(node, cts, create_graph) if cts else [None] * len(node.edges)
    exposed = hooks is not None and bool(hooks.post)
    if hooks is not None and exposed:
        parts = list(parts)
        given = hooks.after([parts[i] for i in node.shown], cts)
        for i, part in zip(node.shown, given, strict=True):
            parts[i] = part
    for edge, part in zip(node.edges, parts, strict=True):
        target = edge[0]
        if part is None or target is None or (useful is not None and target not in useful):
            continue
        fresh = not exposed and node.owns(part, cts)
        _deliver(cotangents, edge, part, fresh, create_graph)
    if not keep:
        node.release()


def _watched(
    node: BackwardNode, cts: list[Tensor | None], create_graph: bool
) -> Sequence[Tensor | None]:
    """Run a node in anomaly mode."""
    try:
        parts = apply_node(node, cts, create_graph)
        check(node, parts)
    except Exception:
        explain(node)
        raise
    return parts


def _deliver(
    cotangents: dict[Any, Any], edge: Edge, part: Tensor, fresh: bool, create_graph: bool
) -> None:
    """Add `part` to what has arrived at one output of a node."""
    node, number = edge
    slots = cotangents.get(node)
    if slots is None:
        slots = cotangents[node] = [None] * max(1, len(node.types) if node else 1)
    have = slots[number]
    if have is None:
        slots[number] = (part, fresh)
    elif have[1] and not create_graph and state.recorder is None:
        token = QUIET.set(IGNORE)
        np.add(have[0]._array, part._array, out=have[0]._array)
        QUIET.reset(token)
    else:
        slots[number] = (have[0] + part, True)


def _arrived(node: BackwardNode, slots: list[_Slot | None], create_graph: bool) -> None:
    """Run hooks and fill `.grad` of outputs that asked for it."""
    for number in node.hooks.tensor if node.hooks is not None else ():
        if node.hooks is not None and node.hooks.tensor[number]:
            # what a hook saw it may have kept, so it is no longer ours to add to
            ct = node.hooks.on_cotangent(number, _value(slots, number))
            slots[number] = None if ct is None else (ct, False)
    for number, reference in (node.retained or {}).items():
        tensor, ct = reference(), _value(slots, number)
        if tensor is not None and ct is not None:
            accumulate(tensor, ct, create_graph, fresh=False)


def reachable(roots: Sequence[BackwardNode | None]) -> list[BackwardNode]:
    """All nodes that the roots depend on, newest first."""
    seen: set[BackwardNode] = {r for r in roots if r is not None}
    stack = list(seen)
    while stack:
        for node, _ in stack.pop().edges:
            if node is not None and node not in seen:
                seen.add(node)
                stack.append(node)
    return sorted(seen, key=_age, reverse=True)


_age = operator.attrgetter("sequence")


def _leading_to(order: Sequence[BackwardNode], targets: Sequence[Edge]) -> set[BackwardNode]:
    """Those of the nodes from which a target can be reached (the targets among them)."""
    useful = {node for node, _ in targets if node is not None}
    for node in reversed(order):
        if node not in useful and any(e[0] in useful for e in node.edges):
            useful.add(node)
    return useful


_LOCKS = tuple(threading.RLock() for _ in range(16))  # a leaf has one of them, by its address


def _laid_out(ct: Tensor, leaf: Tensor, fresh: bool) -> Tensor:
    """The first gradient of a leaf: memory of its own, in the leaf's layout where that is dense."""
    array, like = ct._array, leaf._array
    if state.recorder is not None:
        return ct.detach().clone()
    if array.strides == like.strides or (like.flags.c_contiguous and array.flags.c_contiguous):
        return wrap(array) if fresh else ct.detach().clone()
    dense = like.size == 0 or (like.strides and 0 not in like.strides)
    made = np.empty_like(like) if dense else np.empty(like.shape, like.dtype)
    if made.strides != like.strides:  # gaps: row by row
        made = np.empty(like.shape, like.dtype)
    made[...] = array
    return wrap(made)


def accumulate(leaf: Tensor, ct: Tensor, create_graph: bool, *, fresh: bool) -> None:
    """Add `ct` to `leaf.grad`: in place, unless the sum itself is to be differentiable.

    Backwards of several threads may add to one leaf: no update is lost.
    """
    if ct.dtype is not leaf.dtype:
        ct = ct.to(leaf.dtype)
    if state.recorder is not None:
        state.recorder.grad_read(leaf)
    lock = _LOCKS[id(leaf) >> 6 & 15]
    if create_graph:
        added = False
        while not added:  # the sum is made outside the lock: it may call the user's pack hooks
            have = leaf._grad
            total = ct if have is None else have + ct
            with lock:
                added = leaf._grad is have
                if added:
                    leaf._grad = total
        return
    with lock:
        have = leaf._grad
        if have is None:
            leaf._grad = _laid_out(ct, leaf, fresh)
        elif state.recorder is not None:
            have.add_(ct)
        else:
            if before_write:
                announce(have._storage)
            token = QUIET.set(IGNORE)
            np.add(have._array, ct._array, out=have._array)
            QUIET.reset(token)
            have._storage.bump("add_")
