"""What several families share: checks of axes, PyTorch's dtype names, values made from nothing.

`nullary_like(x, op, ...)` applies an operation without operands (a constant, a counter) at the
layer `x` belongs to, so that a rule written with it serves arrays, IR values and Tensors alike.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from tracegrad.ir.errors import DimensionError, ShapeError
from tracegrad.ir.primitive import evaluate_primitive, get, type_of
from tracegrad.ir.types import Shape


def normal_axis(axis: Any, ndim: int) -> int:
    """`axis` counted from 0. A 0-d operand accepts 0 and -1.

    Raises:
        DimensionError: out of range (PyTorch's text).
    """
    reach = max(ndim, 1)
    axis = operator.index(axis)
    if not -reach <= axis < reach:
        raise DimensionError(
            f"Dimension out of range (expected to be in range of [{-reach}, {reach - 1}], "
            f"but got {axis})"
        )
    return axis % reach


def normal_axes(axes: int | Iterable[int] | None, ndim: int) -> tuple[int, ...]:
    """Sorted distinct axes counted from 0; None means all of them, an int one.

    Raises:
        DimensionError: an axis is out of range.
        ShapeError: an axis is named twice (PyTorch's text).
    """
    if axes is None:
        return tuple(range(ndim))
    listed = axes if isinstance(axes, Iterable) else (axes,)
    chosen = tuple(sorted(normal_axis(a, ndim) for a in listed))
    for first, second in zip(chosen, chosen[1:], strict=False):
        if first == second:
            raise ShapeError(f"dim {first} appears multiple times in the list of dims")
    return chosen if ndim else ()


def nullary_like(x: Any, op: str, **params: Any) -> Any:
    """Apply the operation `op`, which has no operands, at the layer (and on the device) of `x`."""
    nullary = getattr(type(x), "__tracegrad_nullary__", None)
    if nullary is not None:
        return nullary(x, get(op), params)
    handler = getattr(type(x), "__tracegrad_bind__", None)
    if handler is not None:
        return handler(get(op), (), params)
    return evaluate_primitive(get(op), (), params)


def filled_like(x: Any, value: bool | int | float, shape: Shape | None = None) -> Any:
    """A constant of the dtype and layer of `x`, of its shape or of `shape`."""
    wanted = x.shape if shape is None else shape
    dtype = type_of(x).dtype
    scalar = nullary_like(x, "constant", value=dtype.numpy.type(value).item(), dtype=dtype)
    return get("broadcast")(scalar, shape=tuple(wanted))


def zero_of(x: Any) -> Any:
    """The number 0 of the dtype and layer of `x`: it has the history of `x`, and no slope.

    For rules that give zeros, or other constants, of which PyTorch keeps a history. It is the sum
    of none of the elements, so no element is read; compiled code has a constant in its place.
    """
    row = get("reshape")(x, shape=(-1,)) if type_of(x).size else get("reshape")(x, shape=(0,))
    none = get("slice")(row, start=(0,), stop=(0,), step=(1,))
    return get("reduce_sum")(none, axes=(0,), keepdims=False)
