"""The eager dispatcher: runs a kernel, records a node, tells the recorder.

`Tensor.__tracegrad_bind__` is `dispatch`; every operation on tensors comes through it, so it is
written for speed: what can be known from the operands' types is looked up in a `Plan`, made once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import DeviceError, OperandError
from tracegrad.ir.primitive import Primitive, numpy_scalar
from tracegrad.ir.primitives.contraction import MATRIX_PRODUCT
from tracegrad.ir.quiet import IGNORE, QUIET
from tracegrad.ir.types import TensorType
from tracegrad.runtime.cuda.array import DeviceArray
from tracegrad.tracer import tape
from tracegrad.tracer.profiling import profilers
from tracegrad.tracer.saved import pack
from tracegrad.tracer.state import state, watching
from tracegrad.tracer.symbolic import is_symbolic, number_beside, plain_numbers
from tracegrad.tracer.tape import NO_EDGE, Plan, leaf_edge
from tracegrad.tracer.tensor import Tensor, View, dtype_of, type_of_array, wrap
from tracegrad.tracer.views import refresh

_PLANS: dict[Any, Plan] = {}
_PLANS_KEPT = 16384
_NO_PARAMS: dict[str, Any] = {}


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
        if watching:
            params = plain_numbers(params)
        _extend(key, params)
    if not operands:
        key.append(state.place)
    try:
        plan = _PLANS.get(tuple(key))
    except TypeError:
        raise OperandError(f"{op.name}: parameters must be hashable, got {params}") from None
    if plan is None:
        plan = _make_plan(op, arrays, params, tuple(key))
    token = QUIET.set(IGNORE)
    try:
        array = plan.kernel(*arrays)
    finally:
        QUIET.reset(token)
    out = wrap(array) if plan.plain else _wrapped(plan, operands, arrays, params, array)
    if tracked and state.grad_enabled:
        wanted = tracked & plan.takes
        if wanted:
            _track(plan, operands, params, out, wanted)
    if watching and state.recorder is not None:
        _recorded(op, operands, params, out)
    return out


def planned(op: Primitive, arrays: Sequence[Any], params: Mapping[str, Any]) -> Plan:
    """The plan of `op` for operands like `arrays`."""
    key: list[Any] = [op]
    for array in arrays:
        key.append(array.shape)
        key.append(array.dtype)
    if params:
        _extend(key, params)
    if not arrays:
        key.append(state.place)
    return _PLANS.get(tuple(key)) or _make_plan(op, arrays, params, tuple(key))


def _recorded(
    op: Primitive, operands: Sequence[Any], params: Mapping[str, Any], out: Tensor
) -> None:
    """Tell the recorder, then give what is kept to hooks: they may use `out`."""
    assert state.recorder is not None, "there is one"
    state.recorder.record(op, operands, params, out)
    node = out._grad_fn
    if state.saved_hooks and isinstance(node, tape.OperationNode):
        _pack(node, operands, out)


Tensor.__tracegrad_bind__ = staticmethod(dispatch)  # type: ignore[attr-defined]


def _extend(key: list[Any], params: Mapping[str, Any]) -> None:
    """Add parameters to a key; 0.0 and -0.0 are not the same, nor 0 and False."""
    for name, value in params.items():
        kind = value.__class__
        key += (name, kind, value)
        if kind is float:
            key.append(math.copysign(1.0, value))
        elif kind is tuple:
            key.append(tuple([v.__class__ for v in value]))


@dataclass(frozen=True, slots=True)
class _Call:
    """What a call with operands of given types comes to.

    Attributes:
        params: in canonical form.
        numbers: positions of the operands that are Python numbers, and the dtypes they take.
    """

    params: Mapping[str, Any]
    numbers: tuple[tuple[int, DType], ...]


def call(op: Primitive, operands: tuple[Any, ...], params: Mapping[str, Any]) -> Any:
    """Apply `op` to operands as the user gave them: check, promote, dispatch.

    How a call is prepared depends on types only, so it is looked up once it was done; calls that
    cast a tensor are prepared each time.
    """
    key: list[Any] = [op]
    for x in operands:
        if isinstance(x, Tensor):
            key.append(x._array.shape)
            key.append(x._array.dtype)
        elif isinstance(x, int | float):
            if is_symbolic(x):
                return call(op, _known_numbers(op, operands), params)
            key.append(type(x))
            key.append(dtypes.get_default_dtype())
        else:
            return op.checked(operands, params)
    if params:
        _extend(key, params)
    try:
        found = _CALLS.get(tuple(key))
    except TypeError:  # an unhashable parameter: the record says what it thinks of it
        return op.checked(operands, params)
    if found is None:
        given, canonical = op.prepared(operands, params)
        _remember_call(tuple(key), operands, given, canonical)
        return dispatch(op, given, canonical)
    if found.numbers:
        listed = list(operands)
        for i, dtype in found.numbers:
            listed[i] = numpy_scalar(listed[i], dtype)
        return dispatch(op, listed, found.params)
    return dispatch(op, operands, found.params)


def _known_numbers(op: Primitive, operands: tuple[Any, ...]) -> tuple[Any, ...]:
    """Operands with tensors, or plain numbers, in the place of symbolic numbers."""
    floating = [x for x in operands if isinstance(x, Tensor) and x.dtype.is_floating_point]
    beside = None
    if (
        op.name != "pow" and len({x.dtype for x in floating}) == 1
    ):  # an exponent chooses the formula
        beside = floating[0]
    return tuple([number_beside(x, beside) if is_symbolic(x) else x for x in operands])


def _remember_call(
    key: tuple[Any, ...], operands: Sequence[Any], given: Sequence[Any], params: Mapping[str, Any]
) -> None:
    numbers = []
    for i, (x, y) in enumerate(zip(operands, given, strict=True)):
        if not isinstance(x, Tensor):
            numbers.append((i, dtype_of[y.dtype]))
        elif x is not y:
            return  # it was cast
    if len(_CALLS) >= _PLANS_KEPT:
        _CALLS.clear()
    _CALLS[key] = _Call(params, tuple(numbers))


_CALLS: dict[Any, _Call] = {}
Tensor.__tracegrad_call__ = staticmethod(call)  # type: ignore[attr-defined]


def dispatch1(op: Primitive, x: Tensor) -> Tensor:
    """As `dispatch`, for one operand and no parameters."""
    array = x._array
    plan = _PLANS.get((op, array.shape, array.dtype))
    if plan is None or profilers:
        return dispatch(op, (x,), {})
    view = x._view
    if view is not None and view.version != x._storage.version:
        refresh(x, view)
    token = QUIET.set(IGNORE)
    try:
        made = plan.kernel(array)
    finally:
        QUIET.reset(token)
    out = wrap(made) if plan.plain else _wrapped(plan, (x,), (array,), {}, made)
    if x._requires_grad and plan.takes and state.grad_enabled:
        if watching and state.saved_hooks:
            _track(plan, (x,), {}, out, 1)
        else:
            _track1(plan, x, out)
    if watching and state.recorder is not None:
        _recorded(op, (x,), {}, out)
    return out


def dispatch2(op: Primitive, x: Any, y: Any, params: Mapping[str, Any] = _NO_PARAMS) -> Tensor:
    """As `dispatch`, for two operands (Tensors or NumPy scalars of one dtype).

    Args:
        params: always the same for one `op`: the plan is found without them.
    """
    tracked = 0
    if isinstance(x, Tensor):
        a = x._array
        view = x._view
        if view is not None and view.version != x._storage.version:
            refresh(x, view)
        if x._requires_grad:
            tracked = 1
        shape_a, dtype = a.shape, a.dtype
    else:
        a, shape_a, dtype = x, (), y._array.dtype  # a NumPy scalar is slow to ask
    if isinstance(y, Tensor):
        b = y._array
        view = y._view
        if view is not None and view.version != y._storage.version:
            refresh(y, view)
        if y._requires_grad:
            tracked |= 2
        shape_b = b.shape
    else:
        b, shape_b = y, ()
    plan = _PLANS.get((op, shape_a, dtype, shape_b, dtype))
    if plan is None or profilers:
        out = dispatch(op, (x, y), params)
        if params:
            _PLANS[op, shape_a, dtype, shape_b, dtype] = planned(op, (a, b), params)
        return out
    token = QUIET.set(IGNORE)
    try:
        made = plan.kernel(a, b)
    finally:
        QUIET.reset(token)
    out = wrap(made) if plan.plain else _wrapped(plan, (x, y), (a, b), params, made)
    if tracked and state.grad_enabled:
        tracked &= plan.takes
        if tracked and watching and state.saved_hooks:
            _track(plan, (x, y), params, out, tracked)
        elif tracked:
            _track2(plan, x, y, params, out, tracked)
    if watching and state.recorder is not None:
        _recorded(op, (x, y), params, out)
    return out


def _make_plan(
    op: Primitive, arrays: Sequence[Any], params: Mapping[str, Any], key: tuple[Any, ...]
) -> Plan:
    for a in arrays:
        if not isinstance(a, np.ndarray | np.generic | DeviceArray):
            raise OperandError(f"{op.name}: cannot mix tensors with {type(a).__name__}")
    types = tuple(type_of_array(a) for a in arrays)
    _check_devices(op, types)
    plan = Plan(op, types, params, None if types else state.place)
    if len(_PLANS) >= _PLANS_KEPT:
        _PLANS.clear()
    _PLANS[key] = plan
    return plan


def _check_devices(op: Primitive, types: Sequence[TensorType]) -> None:
    """Refuse operands on several devices; numbers in host memory go with all.

    Raises:
        DeviceError: there are two devices (PyTorch's text).
    """
    found = list(dict.fromkeys(t.device for t in types if t.device != "cpu"))
    if found and any(t.device == "cpu" and t.shape for t in types):
        found.append("cpu")
    if len(found) > 1:
        raise DeviceError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{found[0]} and {found[1]}! (operation {op.name}; move one with .to({found[0]!r}))"
        )


def _wrapped(
    plan: Plan, operands: Sequence[Any], arrays: Sequence[Any], params: Mapping[str, Any], made: Any
) -> Tensor:
    """The kernel's result as a Tensor: a view of its operand, or memory of its own."""
    out = made
    if plan.out_type.device != "cpu":
        return _wrapped_on_device(plan, operands, arrays, params, made)
    if type(out) is not np.ndarray or out.dtype != plan.dtype:
        token = QUIET.set(IGNORE)  # a wide sum may be infinite in a half type
        out = np.asarray(out, plan.dtype)
        QUIET.reset(token)
    assert out.shape == plan.out_type.shape, (
        f"{plan.op.name}: kernel gave shape {out.shape}, rule says {plan.out_type.shape}"
    )
    if out.base is None:
        for a in arrays:
            if out is a:
                out = out.view() if plan.views else out.copy()
                break
        else:
            if plan.op.family == "pointwise" or plan.kernel is MATRIX_PRODUCT:
                plan.plain = out is made  # what a kernel makes depends on types only
            elif not out.flags.c_contiguous:
                out = out.copy()
            return wrap(out)
    if plan.views and isinstance(operands[0], Tensor) and _aliases(out, arrays[0]):
        return make_view(operands[0], out, plan.op, params)
    if plan.op.family != "pointwise" and not out.flags.c_contiguous:
        out = out.copy()
    elif not out.flags.owndata and (not out.flags.writeable or _shares(out, arrays)):
        out = out.copy()
    return wrap(out)


def _wrapped_on_device(
    plan: Plan, operands: Sequence[Any], arrays: Sequence[Any], params: Mapping[str, Any],
    out: DeviceArray,
) -> Tensor:  # fmt: skip
    """The same for an array on a device: what is not a view of the operand has its own memory."""
    assert out.shape == plan.out_type.shape, (
        f"{plan.op.name}: kernel gave shape {out.shape}, rule says {plan.out_type.shape}"
    )
    source = arrays[0] if arrays else None
    if out is source:
        out = out.view() if plan.views else out.copy()
    if plan.views and isinstance(operands[0], Tensor) and _aliases(out, source):
        return make_view(operands[0], out, plan.op, params)
    return wrap(out)


def _nullary(x: Tensor, op: Primitive, params: Mapping[str, Any]) -> Tensor:
    """Apply an operation without operands on the device of `x`."""
    array: Any = x._array
    if array.__class__ is not DeviceArray:
        return dispatch(op, (), params)
    before, state.place = state.place, array.index
    try:
        return dispatch(op, (), params)
    finally:
        state.place = before


Tensor.__tracegrad_nullary__ = staticmethod(_nullary)  # type: ignore[attr-defined]


def _aliases(out: Any, source: Any) -> bool:
    """True where `out` is a view of `source` that PyTorch would make a view too."""
    if min(out.strides, default=0) < 0 or out.size == 0:
        return out.size == 0
    return np.may_share_memory(out, source)


def _shares(out: np.ndarray, arrays: Sequence[Any]) -> bool:
    return any(isinstance(a, np.ndarray) and np.may_share_memory(out, a) for a in arrays)


def make_view(source: Tensor, array: Any, op: Any, params: Mapping[str, Any]) -> Tensor:
    """A Tensor over `array`, a view of `source` made by `op`, sharing its version counter."""
    return viewed(source, array, ((op, params, array.shape),))


def viewed(source: Tensor, array: Any, steps: tuple[Any, ...]) -> Tensor:
    """As `make_view`, for several movement operations: (operation, parameters, shape)."""
    storage = source._storage
    out = wrap(array, storage)
    if storage.inference:
        return out
    above = source._view
    if above is None:
        view = out._view = View(source, steps, storage.version, "")
    else:
        view = out._view = View(above.base, steps, storage.version, above.made, above)
    if not state.grad_enabled:
        view.made = "inference" if state.inference else "no_grad"
        view.borrowed = out._requires_grad = source.requires_grad
    return out


def _track1(plan: Plan, x: Tensor, out: Tensor) -> None:
    """As `_track`, for one operand, no parameters and no hooks on what is kept."""
    node = x._grad_fn
    edge = (node, x._output_nr) if node is not None else leaf_edge(x)
    kept = plan._kept.get(1)
    if kept is None:
        kept = plan.kept(1)
    saved: tuple[tape.Saved, ...] = ()
    for i in kept:
        source = out if i else x
        storage = source._storage
        saved = (*saved, (source._array, storage, storage.version))
    out._grad_fn = plan.node(plan, _NO_PARAMS, (edge,), 1, saved)
    out._requires_grad = True


def _track2(
    plan: Plan, x: Any, y: Any, params: Mapping[str, Any], out: Tensor, wanted: int
) -> None:
    """As `_track1`, for two operands."""
    to_x = to_y = NO_EDGE
    if wanted & 1:
        node = x._grad_fn
        to_x = (node, x._output_nr) if node is not None else leaf_edge(x)
    if wanted & 2:
        node = y._grad_fn
        to_y = (node, y._output_nr) if node is not None else leaf_edge(y)
    kept = plan._kept.get(wanted)
    if kept is None:
        kept = plan.kept(wanted)
    saved: list[tape.Saved] = []
    for i in kept:
        source = x if i == 0 else y if i == 1 else out
        if source.__class__ is Tensor or isinstance(source, Tensor):
            storage = source._storage
            saved.append((source._array, storage, storage.version))
        else:
            saved.append((source, None, 0))
    out._grad_fn = plan.node(plan, params, (to_x, to_y), wanted, tuple(saved))
    out._requires_grad = True


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
            edges.append((node, x._output_nr) if node is not None else leaf_edge(x))
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
    if watching and state.saved_hooks and state.recorder is None:
        _pack(node, operands, out)


def _pack(node: tape.OperationNode, operands: Sequence[Any], out: Tensor) -> None:
    """Give what a node keeps to the user's hooks."""
    known = (*operands, out)
    kept = node.plan.kept(node.wanted)
    node.saved = tuple(
        pack(known[i]) if isinstance(known[i], Tensor) else s
        for i, s in zip(kept, node.saved or (), strict=True)
    )
