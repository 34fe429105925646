"""In-place operations: compute functionally, write, bump the version, move the history.

`x.op_(...)` is `x.op(...)` followed by a write of the value into x's memory, so gradients are
right by construction: where the functional operation keeps x for its backward, it is given a copy.
What has no sound meaning is refused with PyTorch's words. Start reading at `apply`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tracegrad.ir import ops
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import DTypeError, GradientError, ShapeError
from tracegrad.tracer.pointwise import named
from tracegrad.tracer.profiling import profilers
from tracegrad.tracer.state import state
from tracegrad.tracer.storage import announce, before_write
from tracegrad.tracer.tape import scalar_type_name
from tracegrad.tracer.tensor import Tensor, wrap
from tracegrad.tracer.views import rebase

_LEAF = "a leaf Variable that requires grad is being used in an in-place operation."
_VIEW_OF_LEAF = (
    "a view of a leaf Variable that requires grad is being used in an in-place operation."
)
_NO_GRAD_VIEW = (
    "A view was created in no_grad mode and is being modified inplace with grad mode enabled. "
    "Given that this use case is ambiguous and error-prone, it is forbidden. You can clarify your "
    "code by moving both the view and the inplace either both inside the no_grad block (if you "
    "don't want the inplace to be tracked) or both outside (if you want the inplace to be tracked)."
)
_VIEW_OF_FUNCTION = (
    "Output {number} of {name} is a view and is being modified inplace. This view was created "
    "inside a custom Function (or because an input was returned as-is) and the autograd logic to "
    "handle view+inplace would override the custom backward associated with the custom Function, "
    "leading to incorrect gradients. This behavior is forbidden. You can fix this by cloning the "
    "output of the custom Function."
)
_OVERLAP = (
    "unsupported operation: more than one element of the written-to tensor refers to a single "
    "memory location. Please clone() the tensor before performing the operation."
)


def check_writable(target: Tensor) -> None:
    """Refuse writes that autograd or the memory layout does not allow.

    Raises:
        GradientError: `target` is a leaf that requires grad (or a view of one) under grad mode.
        ShapeError: several elements of `target` share memory (an expanded tensor).
    """
    if state.grad_enabled:
        view = target._view
        node = target._grad_fn
        if view is not None and node is not None and node.runs_user_code:
            text = _VIEW_OF_FUNCTION.format(number=target._output_nr, name=node.name())
            raise GradientError(text)
        if target.requires_grad and target.is_leaf:
            raise GradientError(_LEAF)
        if view is not None:
            if view.base.requires_grad and view.base.is_leaf:
                raise GradientError(_VIEW_OF_LEAF)
            if view.base.requires_grad and not view.recorded:
                raise GradientError(_NO_GRAD_VIEW)
    array = target._array
    if not array.flags.writeable:
        if 0 in array.strides and array.size > 1:
            raise ShapeError(_OVERLAP)
        raise ShapeError("cannot write in place: the memory is read-only; clone() the tensor first")


def apply(
    name: str, target: Tensor, compute: Callable[..., Any], *operands: Any, **params: Any
) -> Tensor:
    """`target[...] = compute(target, *operands, **params)`, differentiably; returns `target`.

    Args:
        name: the in-place operation's name, e.g. `add_`, for messages.
        compute: the functional operation.
    Raises:
        DTypeError: the result's dtype is of a higher category than the target's.
        ShapeError: the result's shape is not the target's.
    """
    if profilers and state.profiler is not None:
        return state.profiler.inplace(apply, name, target, compute, operands, params)
    check_writable(target)
    source = target
    if state.grad_enabled and any(
        isinstance(x, Tensor) and x.requires_grad for x in (target, *operands, *params.values())
    ):
        source = _twin(target)
        operands = tuple(source if x is target else x for x in operands)
    elif state.recorder is None and not params and _directly(name, target, *operands):
        return target
    value = compute(source, *operands, **params)
    return write(name, target, value)


_UFUNCS = {"add_": np.add, "sub_": np.subtract, "mul_": np.multiply, "div_": np.divide}


def _directly(name: str, target: Tensor, *operands: Any) -> bool:
    """Let NumPy write the result of plain arithmetic where it belongs; False if it is not plain."""
    ufunc = _UFUNCS.get(name)
    array = target._array
    if ufunc is None or len(operands) != 1 or array.dtype not in (np.float32, np.float64):
        return False
    other = operands[0]
    if isinstance(other, Tensor):
        number = other._array
        if number.dtype != array.dtype or number.shape != array.shape:
            return False
    elif type(other) in (int, float) and abs(other) < 1e38:
        number = array.dtype.type(other)
    else:
        return False
    if before_write:
        announce(target._storage)
    with np.errstate(all="ignore"):
        ufunc(array, number, out=array)
    target._storage.bump(name)
    return True


_COPIES = {"copy_": "CopyBackwards", "fill_": "FillBackward1"}


def _twin(target: Tensor) -> Tensor:
    """A copy of `target` with its history, for rules that need the value before the write."""
    twin = wrap(target._array.copy())
    twin._requires_grad = target._requires_grad
    twin._grad_fn, twin._output_nr = target._grad_fn, target._output_nr
    if state.recorder is not None:
        from tracegrad.ir.primitive import TABLE

        state.recorder.record(TABLE["cast"], (target,), {"dtype": target.dtype}, twin)
    return twin


def write(name: str, target: Tensor, value: Tensor) -> Tensor:
    """Put `value` (cast, and broadcast if it must) into `target`'s memory with its history."""
    value = _fitted(name, target, value)
    if name in _COPIES and state.grad_enabled and value._requires_grad:
        # a node of its own, not that of the user's tensor (a leaf has none)
        value = named(ops.cast(value, dtype=value.dtype), _COPIES[name])
    if before_write:
        announce(target._storage)
    target._array[...] = value._array
    target._storage.bump(name)
    if state.grad_enabled and (value._requires_grad or target.requires_grad):
        rebase(target, value)
    elif target._view is not None and not state.grad_enabled:
        target.grad_fn  # noqa: B018  (a no_grad write leaves the history as it was, made anew)
    if state.recorder is not None:
        state.recorder.record_inplace(name, target, value)
    return target


def _fitted(name: str, target: Tensor, value: Tensor) -> Tensor:
    have, want = value.dtype, target.dtype
    if have is not want:
        check_cast(have, want)
        value = value.to(want)
    shape = target._array.shape
    if value._array.shape != shape:
        if np.broadcast_shapes(value._array.shape, shape) != shape:
            raise ShapeError(
                f"output with shape {list(shape)} doesn't match the broadcast shape "
                f"{list(value._array.shape)}"
            )
        value = value.expand(shape)
    return value


def check_cast(have: DType, want: DType) -> None:
    """Refuse to store a higher category into a lower one (PyTorch's text)."""
    if have.category > want.category:
        raise DTypeError(
            f"result type {scalar_type_name(have)} can't be cast to the desired output type "
            f"{scalar_type_name(want)}"
        )
