"""The backward engine: one loop over the nodes reachable from the outputs, newest first.

Nodes are numbered as they are made and their edges lead to older nodes, so sorting by number is a
topological order; there is no recursion, and a chain of any length can be differentiated.
Start reading at `run`.
"""

from __future__ import annotations

import operator
from collections.abc import Container, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tracegrad.ir.errors import GradientError
from tracegrad.ir.quiet import IGNORE, QUIET
from tracegrad.tracer.accumulate import accumulate
from tracegrad.tracer.anomaly import anomaly, check, explain
from tracegrad.tracer.array_rules import zeros_of
from tracegrad.tracer.engine_short import one_step
from tracegrad.tracer.once import warn_once
from tracegrad.tracer.profiling import accumulate_in_block, apply_node, profilers
from tracegrad.tracer.roots import Root, many, roots_of, target_edge, type_at
from tracegrad.tracer.state import state
from tracegrad.tracer.tape import AccumulateGrad, BackwardNode, Edge, OperationNode
from tracegrad.tracer.tensor import Tensor, literal

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
        if one_step(tensors, grad_tensors, keep):
            return
    targets = () if inputs is None else _inputs("backward", inputs)
    roots = roots_of(tensors, grad_tensors)
    if create_graph:
        warn_once(_CYCLE)
    if state.recorder is not None:
        state.recorder.backward([edge[0] for edge, _ in roots], True)
    if inputs is None:
        run(roots, keep, create_graph, None)
        return
    edges = [target_edge(t, accumulates=True) for t in targets]
    found = run(roots, keep, create_graph, edges, into_leaves=True)
    once = {id(t): (t, ct) for t, ct in zip(targets, found, strict=True)}
    for target, ct in once.values():
        if ct is None or not isinstance(target, Tensor):
            continue
        if not target.is_leaf and not target.retains_grad:  # else the run has done so
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
    outputs, targets = many(outputs), _inputs("grad", inputs)
    roots = roots_of(outputs, grad_outputs, is_grads_batched)
    edges = [target_edge(t) for t in targets]
    if state.recorder is not None:
        state.recorder.backward([edge[0] for edge, _ in roots], False)
    keep = create_graph if retain_graph is None else retain_graph
    if is_grads_batched:
        from tracegrad.tracer.engine_batch import run_batch

        found = run_batch(roots, keep, create_graph, edges)
    else:
        found = run(roots, keep, create_graph, edges)
    if materialize_grads:
        batch = roots[0][1]._array.shape[:1] if is_grads_batched else ()
        found = [_zeros(t, batch) if f is None else f for t, f in zip(targets, found, strict=True)]
    elif not allow_unused:
        for i, f in enumerate(found):
            if f is None:
                raise GradientError(_UNUSED.format(i=i))
    return tuple(found)


def _inputs(name: str, inputs: Any) -> tuple[Any, ...]:
    targets = many(inputs)
    if not targets:
        raise GradientError(_NO_INPUTS.format(name=name))
    return targets


def _zeros(target: Any, batch: tuple[int, ...]) -> Tensor:
    type = type_at(target)
    return literal(zeros_of(replace(type, shape=(*batch, *type.shape))))


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
    """All nodes that the roots depend on, newest first; leaves as soon as they are ready.

    A leaf is ready when the oldest node that leads to it has run, as in PyTorch; how old its own
    node is depends on what else is alive.
    """
    stack = list(dict.fromkeys(r for r in roots if r is not None))
    last: dict[BackwardNode, BackwardNode] = {n: n for n in stack if type(n) is AccumulateGrad}
    seen = set(stack)
    while stack:
        user = stack.pop()
        for node, _ in user.edges:
            if type(node) is AccumulateGrad:
                known = last.get(node)
                if known is None or known is node or user.sequence < known.sequence:
                    last[node] = user
            elif node is not None and node not in seen:
                seen.add(node)
                stack.append(node)
    after: dict[BackwardNode, list[BackwardNode]] = {}
    for leaf, user in last.items():
        after.setdefault(user, []).append(leaf)
    order: list[BackwardNode] = []
    for node in sorted(seen, key=_age, reverse=True):
        if node not in last:
            order.append(node)
        if node in after:
            order += after[node]
    return order


_age = operator.attrgetter("sequence")


def _leading_to(order: Sequence[BackwardNode], targets: Sequence[Edge]) -> set[BackwardNode]:
    """Those of the nodes from which a target can be reached (the targets among them)."""
    useful = {node for node, _ in targets if node is not None}
    for node in reversed(order):
        if node not in useful and any(e[0] in useful for e in node.edges):
            useful.add(node)
    return useful
