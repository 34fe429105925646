"""The eager dispatcher: runs a kernel, records a node, tells the recorder.

`Tensor.__tracegrad_bind__` is `dispatch`; every operation on tensors comes through it, so it is
written for speed: what can be known from the operands' types is looked up in a `Plan`, made once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tracegrad.ir.errors import OperandError
from tracegrad.ir.primitive import Primitive
from tracegrad.ir.types import TensorType
from tracegrad.tracer import tape
from tracegrad.tracer.profiling import profilers
from tracegrad.tracer.saved import pack
from tracegrad.tracer.state import state
from tracegrad.tracer.tape import NO_EDGE, Plan, accumulator
from tracegrad.tracer.tensor import Tensor, View, dtype_of, wrap
from tracegrad.tracer.views import refresh

_PLANS: dict[Any, Plan] = {}
_PLANS_KEPT = 16384


def dispatch(op: Primitive, operands: Sequence[Any], params: Mapping[str, Any]) -> Tensor:
    """Apply `op` to promoted operands (Tensors, NumPy scalars or arrays) and wrap the result."""
    if profilers and state.profiler is not None:
        return state.profiler.operation(dispatch, op, operands, params)
    arrays = []
    key: list[Any] = [op]
    tracked = 0
    bit = 1
    for x in operands:
        if isinstance(x, Tensor):
            array = x._array
            view = x._view
            if view is not None and view.version != x._storage.version and state.grad_enabled:
                refresh(x, view)
            if x._requires_grad:
                tracked |= bit
        else:
            array = x
        arrays.append(array)
        key.append(array.shape)
        key.append(array.dtype)
        bit <<= 1
    if params:
        key.extend(params.items())
    try:
        plan = _PLANS.get(tuple(key))
    except TypeError:
        raise OperandError(f"{op.name}: parameters must be hashable, got {params}") from None
    if plan is None:
        plan = _make_plan(op, arrays, params, tuple(key))
    with np.errstate(all="ignore"):
        array = op.eager(*arrays, **params)
    out = _wrapped(plan, operands, arrays, params, array)
    if tracked and state.grad_enabled:
        wanted = tracked & plan.takes
        if wanted:
            _track(plan, operands, params, out, wanted)
    if state.recorder is not None:
        state.recorder.record(op, operands, params, out)
    return out


Tensor.__tracegrad_bind__ = staticmethod(dispatch)  # type: ignore[attr-defined]


def _make_plan(
    op: Primitive, arrays: Sequence[Any], params: Mapping[str, Any], key: tuple[Any, ...]
) -> Plan:
    for a in arrays:
        if not isinstance(a, np.ndarray | np.generic):
            raise OperandError(f"{op.name}: cannot mix tensors with {type(a).__name__}")
    types = tuple(TensorType(a.shape, dtype_of[a.dtype]) for a in arrays)
    plan = Plan(op, types, params)
    if len(_PLANS) >= _PLANS_KEPT:
        _PLANS.clear()
    _PLANS[key] = plan
    return plan


def _wrapped(
    plan: Plan, operands: Sequence[Any], arrays: Sequence[Any], params: Mapping[str, Any], out: Any
) -> Tensor:
    """The kernel's result as a Tensor: a view of its operand, or memory of its own."""
    if type(out) is not np.ndarray:
        with np.errstate(all="ignore"):  # a wide sum may be infinite in a half type
            out = np.asarray(out, plan.dtype)
    elif out.dtype != plan.dtype:
        with np.errstate(all="ignore"):
            out = out.astype(plan.dtype)
    assert out.shape == plan.out_type.shape, (
        f"{plan.op.name}: kernel gave shape {out.shape}, rule says {plan.out_type.shape}"
    )
    if out.base is None:
        for a in arrays:
            if out is a:
                out = out.view() if plan.views else out.copy()
                break
        else:
            return wrap(out)
    if plan.views and isinstance(operands[0], Tensor) and _aliases(out, arrays[0]):
        return make_view(operands[0], out, plan.op, params)
    if not out.flags.owndata and (not out.flags.writeable or _shares(out, arrays)):
        out = out.copy()
    return wrap(out)


def _aliases(out: np.ndarray, source: np.ndarray) -> bool:
    """True where `out` is a view of `source` that PyTorch would make a view too."""
    if min(out.strides, default=0) < 0 or out.size == 0:
        return out.size == 0
    return np.may_share_memory(out, source)


def _shares(out: np.ndarray, arrays: Sequence[Any]) -> bool:
    return any(isinstance(a, np.ndarray) and np.may_share_memory(out, a) for a in arrays)


def make_view(source: Tensor, array: np.ndarray, op: Any, params: Mapping[str, Any]) -> Tensor:
    """A Tensor over `array`, a view of `source` made by `op`, sharing its version counter."""
    storage = source._storage
    out = wrap(array, storage)
    if storage.inference:
        return out
    step = (op, params, array.shape)
    above = source._view
    if above is None:
        out._view = View(source, (step,), storage.version, "")
    else:
        out._view = View(above.base, (*above.chain, step), storage.version, above.made)
    if not state.grad_enabled:
        out._view.made = "inference" if state.inference else "no_grad"
        out._requires_grad = source.requires_grad  # of a leaf of its own, as in PyTorch
    return out


def _track(
    plan: Plan, operands: Sequence[Any], params: Mapping[str, Any], out: Tensor, wanted: int
) -> None:
    """Append the operation to the tape."""
    edges = []
    bit = 1
    for x in operands:
        if wanted & bit:
            # gradient_edge(x), written out; `dispatch` has brought the grad_fn of views up to date
            node = x._grad_fn
            edges.append((node, x._output_nr) if node is not None else (accumulator(x), 0))
        else:
            edges.append(NO_EDGE)
        bit <<= 1
    kept = plan._kept.get(wanted)
    if kept is None:
        kept = plan.kept(wanted)
    saved: list[tape.Saved] = []
    for i in kept:
        if i == len(operands):
            saved.append((out._array, out._storage, out._storage.version))
        else:
            x = operands[i]
            if isinstance(x, Tensor):
                saved.append((x._array, x._storage, x._storage.version))
            else:
                saved.append((x, None, 0))
    out._grad_fn = node = plan.node(plan, params, tuple(edges), wanted, tuple(saved))
    out._requires_grad = True
    if state.saved_hooks:
        known = (*operands, out)
        node.saved = tuple(
            pack(known[i]) if isinstance(known[i], Tensor) else s
            for i, s in zip(kept, saved, strict=True)
        )
