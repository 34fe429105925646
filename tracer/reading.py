"""Data as PyTorch reads it: numbers, nested sequences, NumPy arrays and tensors become one array.

The first elements give the shape, all elements the dtype, then every element is converted and
checked. Start reading at `array_of`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import DTypeError, OperandError, ParameterError, ShapeError
from tracegrad.ir.location import user_stacklevel
from tracegrad.runtime.cuda.array import host
from tracegrad.tracer.arguments import limits, type_name
from tracegrad.tracer.once import warn_once
from tracegrad.tracer.state import state
from tracegrad.tracer.tensor import Tensor, dtype_of

_SLOW = (
    "Creating a tensor from a list of numpy.ndarrays is extremely slow. Please consider converting "
    "the list to a single numpy.ndarray with numpy.array() before converting to a tensor."
)
_NEGATIVE = (
    "At least one stride in the given numpy array is negative, and tensors with negative strides "
    "are not currently supported. (You can probably work around this by making a copy of your "
    "array  with array.copy().) "
)
_BYTE_ORDER = (
    "given numpy array has byte order different from the native byte order. Conversion between "
    "byte orders is currently not supported."
)
WITH_GRAD = (
    "Converting a tensor with requires_grad=True to a scalar may lead to unexpected behavior.\n"
    "Consider using tensor.detach() first."
)


def array_of(data: Any, dtype: DType | None = None) -> np.ndarray:
    """`data` as an array of its own memory, of `dtype` or the dtype of the data."""
    if isinstance(data, np.ndarray):
        array = checked(data)
        kind = array.dtype if dtype is None else dtype.numpy
        with np.errstate(all="ignore"):
            return array.astype(kind, order="K", copy=True)
    if isinstance(data, np.generic):
        dtype_of[data.dtype]
        with np.errstate(all="ignore"):
            return np.array(data, data.dtype if dtype is None else dtype.numpy)
    if isinstance(data, str | bytes):
        raise OperandError(f"new(): invalid data type '{type(data).__name__}'")
    shape = _shape(data)
    kinds = _kinds(data, len(shape))
    found = _promoted(kinds | {float} if 0 in shape else kinds)
    plain = _plain(data, len(shape)) if kinds - _PYTHON else data
    array = _values(plain, shape, found)
    if dtype is not None and dtype is not found:
        return _converted(array, dtype)
    if array.dtype == object:
        raise ParameterError("Overflow when unpacking long long")
    with np.errstate(all="ignore"):
        return array.astype(found.numpy, copy=False)


_PYTHON = {bool, int, float}


def checked(array: np.ndarray) -> np.ndarray:
    """An array that a tensor could look at: of a known dtype, this machine's bytes, no flips."""
    if min(array.strides, default=0) < 0:
        raise ParameterError(_NEGATIVE)
    if not array.dtype.isnative:
        raise ParameterError(_BYTE_ORDER)
    dtype_of[array.dtype]  # raises for foreign dtypes
    return array.view(np.ndarray)


def _is_sequence(x: Any) -> bool:
    """What PyTorch goes into: sequences and arrays, but not tensors (they count as numbers)."""
    if isinstance(x, list | tuple | np.ndarray):
        return True
    return isinstance(x, Sequence) and not isinstance(x, Tensor)


def _shape(data: Any) -> tuple[int, ...]:
    """The lengths of the first elements, level by level."""
    shape: list[int] = []
    while _is_sequence(data):
        if isinstance(data, str):
            raise ParameterError("too many dimensions 'str'")
        shape.append(len(data))
        if not shape[-1]:
            break
        data = data[0]
    return tuple(shape)


def _kinds(data: Any, depth: int) -> set[Any]:
    """The types of all elements; NumPy's and tensors' are given as their DTypes."""
    found: set[Any] = set()
    for row in _rows(data, depth):
        found.update(map(type, row))
    if found <= _PYTHON:
        return found
    return {k for row in _rows(data, depth) for k in map(_kind, row)}


def _rows(data: Any, depth: int) -> Iterator[Any]:
    """The innermost sequences; where the nesting ends early, what is there instead."""
    if depth <= 1 or not _is_sequence(data) or isinstance(data, np.ndarray):
        yield data if depth and _is_sequence(data) else (data,)
        return
    for part in data:
        yield from _rows(part, depth - 1)


def _kind(x: Any) -> Any:
    if type(x) in _PYTHON:
        return type(x)
    if isinstance(x, np.ndarray | np.generic):
        return dtype_of[x.dtype]
    if isinstance(x, Tensor):
        return x.dtype
    if isinstance(x, complex):
        raise dtypes.complex_refused(f"the number {x}")
    for kind in (bool, int, float):
        if isinstance(x, kind):
            return kind
    if isinstance(x, list | tuple):  # deeper than the first element: refused below, as a value
        inner = {k for y in x for k in [_kind(y)]}
        return next(iter(inner), float)
    if isinstance(x, str | bytes):
        raise OperandError(f"new(): invalid data type '{type(x).__name__}'")
    raise DTypeError(f"Could not infer dtype of {full_name(x)}")


def full_name(x: Any) -> str:
    """The name of `x`'s type, with the module where PyTorch's messages have it."""
    kind = type(x)
    if kind.__module__ in ("decimal", "datetime"):  # types written in C carry their module
        return f"{kind.__module__}.{kind.__name__}"
    return type_name(x)


def _promoted(kinds: set[Any]) -> DType:
    """The dtype of elements of these kinds; of none, the default."""
    result: DType | None = None
    for kind in kinds:
        if not isinstance(kind, DType):
            plain = {bool: dtypes.bool_, int: dtypes.int64}
            kind = plain.get(kind, dtypes.get_default_dtype())
        result = kind if result is None else dtypes.promote_pair(result, kind)
    return dtypes.get_default_dtype() if result is None else result


def _plain(data: Any, depth: int) -> Any:
    """Nested sequences with 1-element tensors replaced by their numbers, arrays by lists."""
    if isinstance(data, Tensor):
        if state.recorder is not None:
            state.recorder.value_read(data, "tensor()")
        if data._array.size != 1:
            if data.dtype.is_floating_point:
                raise ParameterError("only one element tensors can be converted to Python scalars")
            raise OperandError(
                "only integer tensors of a single element can be converted to an index"
            )
        if data.requires_grad:
            warn_once(WITH_GRAD)
        return host(data._array).reshape(()).item()
    if isinstance(data, np.ndarray):
        if data.ndim == 0:
            raise OperandError("len() of unsized object")
        return data.tolist()
    if isinstance(data, np.generic):
        return data.item()
    if depth and _is_sequence(data):
        if depth > 1 and isinstance(data[0] if len(data) else None, np.ndarray):
            warnings.warn(_SLOW, UserWarning, stacklevel=user_stacklevel())
        return [_plain(x, depth - 1) for x in data]
    return data


def _values(data: Any, shape: tuple[int, ...], dtype: DType) -> np.ndarray:
    """The elements in the widest type of their category: bool, int64 or float64.

    Ints beyond int64 stay objects: floats can hold them, if the caller asked for floats.
    """
    wide: Any = {0: np.bool_, 1: np.int64, 2: np.float64}[dtype.category]
    if 0 in shape:  # PyTorch looks no further
        return np.empty(shape, wide)
    try:
        array = np.array(data, wide)
    except OverflowError:
        array = np.array(data, object)
    except (TypeError, ValueError):
        raise _misfit(data, shape, dtype) from None
    if array.shape != shape:
        raise _misfit(data, shape, dtype)
    return array


def _misfit(data: Any, shape: tuple[int, ...], dtype: DType) -> Exception:
    """The error of the first element that does not fit the shape, in PyTorch's order."""
    return _first_misfit(data, shape, 0, dtype) or ShapeError(f"data is no array of shape {shape}")


def _first_misfit(data: Any, shape: tuple[int, ...], level: int, dtype: DType) -> Exception | None:
    if level == len(shape):
        if isinstance(data, bool | int | float):
            return None
        if dtype.is_floating_point:
            return OperandError(f"must be real number, not {type(data).__name__}")
        return OperandError(f"'{type(data).__name__}' object cannot be interpreted as an integer")
    if not _is_sequence(data):
        return OperandError("not a sequence")
    if len(data) != shape[level]:
        return ParameterError(
            f"expected sequence of length {shape[level]} at dim {level} (got {len(data)})"
        )
    found = (_first_misfit(x, shape, level + 1, dtype) for x in data)
    return next((error for error in found if error is not None), None)


def _converted(array: np.ndarray, dtype: DType) -> np.ndarray:
    """Elements of data in the dtype asked for; integers must hold them."""
    if dtype.kind in "iu" and array.size:
        low, high = limits(dtype, array.dtype.kind == "f")
        if array.dtype.kind == "f" and dtype is dtypes.int64:
            high = 2**63  # as PyTorch compares, in floating point
        if not bool(((array >= low) & (array <= high)).all()):
            raise DTypeError(f"value cannot be converted to type {dtype.name} without overflow")
    with np.errstate(all="ignore"):
        if array.dtype == object and dtype.kind == "f":
            array = array.astype(np.float64)
        return array.astype(dtype.numpy)
