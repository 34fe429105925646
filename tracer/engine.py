"""The backward engine: one loop over the nodes reachable from the outputs, newest first.

Nodes are numbered as they are made and their edges lead to older nodes, so sorting by number is a
topological order; there is no recursion, and a chain of any length can be differentiated.
Start reading at `run`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tracegrad.ir.errors import GradientError, OperandError, ShapeError
from tracegrad.tracer.device import Size
from tracegrad.tracer.profiling import apply_node, profilers
from tracegrad.tracer.state import state
from tracegrad.tracer.tape import AccumulateGrad, BackwardNode, Edge, gradient_edge
from tracegrad.tracer.tensor import Tensor, wrap

_UNUSED = (
    "One of the differentiated Tensors appears to not have been used in the graph. Set "
    "allow_unused=True if this is the desired behavior."
)
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
    keep = create_graph if retain_graph is None else retain_graph
    if inputs is None and not create_graph and isinstance(tensors, Tensor):
        if _one_step(tensors, grad_tensors, keep):
            return
    outputs, seeds = _roots(tensors, grad_tensors)
    if state.recorder is not None:
        state.recorder.note("backward")
    if inputs is None:
        run(outputs, seeds, keep, create_graph, None)
        return
    targets = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    if not targets:
        raise GradientError("'inputs' argument to backward() cannot be empty.")
    found = run(outputs, seeds, keep, create_graph, [_target_edge(t) for t in targets])
    for target, ct in zip(targets, found, strict=True):
        if ct is not None:
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
        outputs, inputs: tensors; the inputs must require grad.
        grad_outputs: a cotangent per output; None where an output has one element.
        retain_graph, create_graph: as for `backward`.
        allow_unused: return None for inputs that the outputs do not depend on.
        materialize_grads: return zeros for those instead.
    Returns:
        One tensor per input, of its shape and dtype.
    Raises:
        GradientError: an input was not used and `allow_unused` is not set; and as `backward`.
    """
    if is_grads_batched:
        raise NotImplementedError("grad: is_grads_batched is not supported; loop over the batch")
    if materialize_grads and allow_unused is False:
        raise ValueError(
            "Expected allow_unused to be True or not passed when materialize_grads=True, "
            "but got: allow_unused=False."
        )
    roots, seeds = _roots(outputs, grad_outputs)
    targets = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    edges = [_target_edge(t) for t in targets]
    if state.recorder is not None:
        state.recorder.note("backward")
    keep = create_graph if retain_graph is None else retain_graph
    found = run(roots, seeds, keep, create_graph, edges)
    if materialize_grads:
        found = [wrap(np.zeros_like(t._array)) if f is None else f for t, f in zip(targets, found)]
    elif not allow_unused and any(f is None for f in found):
        raise GradientError(_UNUSED)
    return tuple(found)


def _target_edge(target: Any) -> Edge:
    if not isinstance(target, Tensor):
        raise OperandError(f"inputs must be Tensors, but got {type(target).__name__}")
    if not target.requires_grad:
        raise GradientError("One of the differentiated Tensors does not require grad")
    return gradient_edge(target)


# ---- roots --------------------------------------------------------------------------------------


def _roots(tensors: Any, grads: Any) -> tuple[list[Tensor], list[Tensor]]:
    outputs = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    given = [grads] if isinstance(grads, Tensor) or grads is None else None
    if given is None:
        try:
            given = list(grads)
        except TypeError:
            given = [grads]
    if grads is None:
        given = [None] * len(outputs)
    if len(given) != len(outputs):
        raise GradientError(f"got {len(outputs)} tensors and {len(given)} gradients")
    for i, out in enumerate(outputs):
        if not isinstance(out, Tensor):
            raise OperandError(f"element {i} of tensors must be a Tensor, got {type(out).__name__}")
    return outputs, [_seed(i, out, g) for i, (out, g) in enumerate(zip(outputs, given))]


def _seed(i: int, out: Tensor, given: Any) -> Tensor:
    if given is None:
        if out.requires_grad and out._array.size != 1:
            raise GradientError("grad can be implicitly created only for scalar outputs")
        seed = wrap(np.ones_like(out._array, subok=False))
    elif not isinstance(given, Tensor):
        raise OperandError(
            f"gradients can be either Tensors or None, but got {type(given).__name__}"
        )
    elif given._array.shape != out._array.shape:
        raise ShapeError(
            f"Mismatch in shape: grad_output[{i}] has a shape of {Size(given.shape)!r} and "
            f"output[{i}] has a shape of {Size(out.shape)!r}."
        )
    else:
        seed = given if given.dtype is out.dtype else given.to(out.dtype)
    if not out.requires_grad:
        raise GradientError(
            f"element {i} of tensors does not require grad and does not have a grad_fn"
        )
    return seed


_ONES: dict[Any, Tensor] = {}  # the cotangent 1 of 0-d outputs, by dtype; never written to


def _one_step(output: Tensor, gradient: Any, keep: bool) -> bool:
    """The backward of an output whose node leads to leaves only, without building an order.

    That is the usual case of a compiled function. False where the general loop is needed.
    """
    node = output.grad_fn
    if (
        node is None or node.hooks or node.retained or len(node.types) != 1
        or state.recorder is not None
    ):  # fmt: skip
        return False
    for target, _ in node.edges:
        if target is not None and (type(target) is not AccumulateGrad or target.hooks):
            return False
    array = output._array
    if gradient is None and array.shape == ():
        seed = _ONES.get(array.dtype)
        if seed is None:
            seed = _ONES[array.dtype] = wrap(np.ones((), array.dtype))
    else:
        seed = _seed(0, output, gradient)
    before = state.grad_enabled
    state.grad_enabled = False
    try:
        cotangents: list[Tensor | None] = [seed]
        apply = apply_node if profilers else type(node).apply
        parts = apply(node, cotangents, False)
        for (target, _), part in zip(node.edges, parts, strict=True):
            if part is not None and target is not None:
                fresh = part is not seed and node.owns(part, cotangents)
                accumulate(target.variable, part, False, fresh=fresh)  # type: ignore[attr-defined]
    finally:
        state.grad_enabled = before
    if not keep:
        node.release()
    return True


# ---- the loop -----------------------------------------------------------------------------------


def run(
    outputs: Sequence[Tensor],
    seeds: Sequence[Tensor],
    keep: bool,
    create_graph: bool,
    targets: Sequence[Edge] | None,
) -> list[Tensor | None]:
    """Propagate `seeds` from `outputs`.

    With `targets` None, leaves accumulate; otherwise nothing accumulates, the cotangents arriving
    at the target edges are returned, and nodes that lead to no target are not run.
    """
    cotangents: dict[BackwardNode, list[_Slot | None]] = {}
    before = state.grad_enabled
    state.grad_enabled = create_graph
    try:
        for out, seed in zip(outputs, seeds, strict=True):
            _deliver(cotangents, gradient_edge(out), seed, False, create_graph)
        order = _reachable([gradient_edge(out)[0] for out in outputs])
        useful = None if targets is None else _leading_to(order, targets)
        wanted: dict[Edge, Tensor | None] = {} if targets is None else dict.fromkeys(targets)
        for node in order:
            slots = cotangents.pop(node, None)
            if slots is None or (useful is not None and node not in useful):
                continue
            _arrived(node, slots, create_graph)
            for edge in wanted:
                if edge[0] is node:
                    wanted[edge] = _value(slots, edge[1])
            if isinstance(node, AccumulateGrad):
                slot = slots[0]
                if targets is None and slot is not None:
                    accumulate(node.variable, slot[0], create_graph, fresh=slot[1])
            elif useful is None or any(e[0] in useful for e in node.edges):
                _step(node, slots, cotangents, keep, create_graph, useful)
    finally:
        state.grad_enabled = before
    return [] if targets is None else [wanted[edge] for edge in targets]


def _value(slots: list[_Slot | None], number: int) -> Tensor | None:
    slot = slots[number] if number < len(slots) else None
    return None if slot is None else slot[0]


def _step(
    node: BackwardNode, slots: list[_Slot | None], cotangents: dict[Any, Any], keep: bool,
    create_graph: bool, useful: set[BackwardNode] | None,
) -> None:  # fmt: skip
    """Run one node and hand its results on."""
    cts = [None if s is None else s[0] for s in slots]
    apply = apply_node if profilers else type(node).apply
    parts = apply(node, cts, create_graph)
    for edge, part in zip(node.edges, parts, strict=True):
        target = edge[0]
        if part is None or target is None or (useful is not None and target not in useful):
            continue
        _deliver(cotangents, edge, part, node.owns(part, cts), create_graph)
    if not keep:
        node.release()


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
        with np.errstate(all="ignore"):
            np.add(have[0]._array, part._array, out=have[0]._array)
    else:
        slots[number] = (have[0] + part, True)


def _arrived(node: BackwardNode, slots: list[_Slot | None], create_graph: bool) -> None:
    """Run hooks and fill `.grad` of outputs that asked for it."""
    for number, hooks in (node.hooks or {}).items():
        ct = _value(slots, number)
        if ct is None:
            continue
        for hook in list(hooks.values()):
            changed = hook(ct)
            ct = ct if changed is None else changed
            # what a hook saw it may have kept, so it is no longer ours to add to
            slots[number] = (ct, False)
    for number, reference in (node.retained or {}).items():
        tensor, ct = reference(), _value(slots, number)
        if tensor is not None and ct is not None:
            accumulate(tensor, ct, create_graph, fresh=False)


def _reachable(roots: Sequence[BackwardNode | None]) -> list[BackwardNode]:
    """All nodes that the roots depend on, newest first."""
    seen: set[BackwardNode] = {r for r in roots if r is not None}
    stack = list(seen)
    while stack:
        for node, _ in stack.pop().edges:
            if node is not None and node not in seen:
                seen.add(node)
                stack.append(node)
    return sorted(seen, key=_age, reverse=True)


def _age(node: BackwardNode) -> int:
    return node.sequence


def _leading_to(order: Sequence[BackwardNode], targets: Sequence[Edge]) -> set[BackwardNode]:
    """Those of the nodes from which a target can be reached (the targets among them)."""
    useful = {node for node, _ in targets if node is not None}
    for node in reversed(order):
        if node not in useful and any(e[0] in useful for e in node.edges):
            useful.add(node)
    return useful


def accumulate(leaf: Tensor, ct: Tensor, create_graph: bool, *, fresh: bool) -> None:
    """Add `ct` to `leaf.grad`: in place, unless the sum itself is to be differentiable."""
    if ct.dtype is not leaf.dtype:
        ct = ct.to(leaf.dtype)
    have = leaf._grad
    if have is None:
        if create_graph:
            leaf._grad = ct
        elif fresh:
            leaf._grad = wrap(ct._array)
        else:
            leaf._grad = ct.detach().clone()
    elif create_graph:
        leaf._grad = have + ct
    elif state.recorder is not None:
        have.add_(ct)
    else:
        with np.errstate(all="ignore"):
            np.add(have._array, ct._array, out=have._array)
        have._storage.bump("add_")
