"""What the user writes between the brackets of `x[...]`, item by item. Start reading at `items`."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.errors import DimensionError, ParameterError
from tracegrad.ir.location import user_stacklevel
from tracegrad.runtime.cuda.array import host
from tracegrad.tracer.arguments import type_name
from tracegrad.tracer.reading import array_of
from tracegrad.tracer.state import state
from tracegrad.tracer.tensor import Tensor, literal

_BAD = (
    "only integers, slices (`:`), ellipsis (`...`), None and long or byte Variables are valid "
    "indices (got {})"
)
_NO_TUPLE = (
    "Using a non-tuple sequence for multidimensional indexing is deprecated and will be changed in "
    "pytorch 2.9; use x[tuple(seq)] instead of x[seq]. In pytorch 2.9 this will be interpreted as "
    "tensor index, x[torch.tensor(seq)], which will result either in an error or a different result"
)
_BYTES = "indexing with dtype torch.uint8 is now deprecated, please use a dtype torch.bool instead."
_LONG = 2**63


def items(index: Any, x: Tensor) -> list[Any]:
    """The index of `x` as a list of None, Ellipsis, slices, ints, bools and Tensors."""
    kind = type(index)
    if kind is slice or (kind is int and -_LONG <= index < _LONG):
        return [index]
    if isinstance(index, tuple):
        return [i if type(i) is slice else _item(i, x) for i in index]
    if _means_tuple(index):
        warnings.warn(_NO_TUPLE, UserWarning, stacklevel=user_stacklevel())
        return [_item(i, x) for i in index]
    return [_item(index, x)]


def _means_tuple(index: Any) -> bool:
    """PyTorch's (and NumPy's former) rule: a short list with indices in it stands for a tuple."""
    if isinstance(index, Tensor | np.ndarray) or not isinstance(index, Sequence):
        return False
    if len(index) >= 32:
        return False
    parts = Tensor | slice | Sequence | np.ndarray
    return any(i is None or i is Ellipsis or isinstance(i, parts) for i in index)


def _item(item: Any, x: Tensor) -> Any:
    """One index as None, Ellipsis, slice, int, bool or Tensor."""
    if item is None or item is Ellipsis or isinstance(item, slice | bool):
        return item
    if isinstance(item, int):
        if not -_LONG <= item < _LONG:
            raise ParameterError("Overflow when unpacking long long")
        return item
    if isinstance(item, Tensor):
        return _tensor_item(item)
    if isinstance(item, Sequence | np.ndarray):
        array = array_of(item)
        masks = (np.dtype(np.bool_), np.dtype(np.uint8))
        return _tensor_item(literal(array if array.dtype in masks else array.astype(np.int64), x))
    try:
        if isinstance(item, np.bool_):
            raise TypeError
        return operator.index(item)
    except TypeError:
        raise DimensionError(_BAD.format(type_name(item))) from None


def _tensor_item(item: Tensor) -> Any:
    """A tensor as an index: uint8 is a mask, and an integer of no dimension an int."""
    dtype = item.dtype
    if dtype is dtypes.uint8:
        if item._array.ndim:
            warnings.warn(_BYTES, UserWarning, stacklevel=user_stacklevel())
        return item.to(dtypes.bool_)
    if item._array.ndim == 0 and dtype.category == 1:
        if state.recorder is not None and state.recorder.varies(item):
            return item  # vmap: another element for each example
        return int(item)  # a view, so the recorder hears that the value was read
    if dtype not in (dtypes.int64, dtypes.int32, dtypes.bool_):
        raise DimensionError("tensors used as indices must be long, int, byte or bool tensors")
    return item


def check_scalar_index(index: Any) -> None:
    """Refuse what would take away or cut a dimension of a tensor that has none."""
    if isinstance(index, slice):
        raise DimensionError("slice() cannot be applied to a 0-dim tensor.")
    if isinstance(index, int | np.integer) and not isinstance(index, bool):
        raise DimensionError(
            "invalid index of a 0-dim tensor. Use `tensor.item()` in Python or `tensor.item<T>()` "
            "in C++ to convert a 0-dim tensor to a number"
        )


def truth(item: Any) -> int:
    """1 or 0, for a mask of no dimension; a tensor's value is read."""
    if isinstance(item, Tensor):
        if state.recorder is not None:
            state.recorder.value_read(item, "mask index")
        return int(bool(host(item._array)))
    return int(item)
