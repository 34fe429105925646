"""`x[...]` and `x[...] = value`, with PyTorch's and NumPy's meaning.

An index is read once, left to right, into a *view part* (ints, slices, None, Ellipsis: movement
operations that share memory) and an *array part* (integer and bool tensors: a gather, which
copies). Start reading at `getitem`.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import numpy as np

from tracegrad.ir import dtypes, ops
from tracegrad.ir.errors import (
    DimensionError,
    DTypeError,
    OperandError,
    ParameterError,
    ShapeError,
)
from tracegrad.runtime.cuda.array import host, row_major
from tracegrad.tracer import inplace
from tracegrad.tracer.arguments import check_fits, type_name
from tracegrad.tracer.composites import viewing
from tracegrad.tracer.index_items import check_scalar_index, items, truth
from tracegrad.tracer.moving import moved
from tracegrad.tracer.pointwise import named
from tracegrad.tracer.profiling import note_made, now, profilers
from tracegrad.tracer.shapes import clone, scalar_text, select, slice_dim
from tracegrad.tracer.state import state
from tracegrad.tracer.symbolic import is_symbolic, number_beside
from tracegrad.tracer.tape import scalar_type_name
from tracegrad.tracer.tensor import Tensor, literal, wrap


class Parsed(NamedTuple):
    """The operand after the view part, and the index arrays by the dimensions they index."""

    x: Tensor
    arrays: dict[int, Tensor]
    mask: bool  # the arrays are the positions of one mask


@viewing
def getitem(x: Tensor, index: Any) -> Tensor:
    """`x[index]`: a view for ints, slices, None and Ellipsis; a copy for index tensors.

    Raises:
        DimensionError: too many indices, or one out of range.
        ParameterError: a slice step below 1.
        OperandError: an index of a type that means nothing.
    """
    viewed, arrays, _ = _parse(x, index)
    if not arrays:
        return _alias(x, index) if viewed is x else viewed
    return _gathered(viewed, arrays)


def setitem(x: Tensor, index: Any, value: Any) -> None:
    """`x[index] = value`, in place, with autograd history."""
    if index is True or index is False:  # all of it, or none of it
        if index:
            setitem(x, ..., value)
        return
    viewed, arrays, mask = _parse(x, index)
    source = _as_value(viewed, value)
    if not arrays:
        shape = viewed._array.shape
        source = _trimmed(source, shape)
        if source._array.shape != shape:
            source = source.expand(shape)
        if isinstance(value, Tensor | np.ndarray):
            inplace.copy(viewed, source)
        else:
            inplace.fill(viewed, source)
        return
    if not isinstance(value, Tensor) or (mask and source._array.size == 1):
        source = source.to(viewed.dtype)
    if source.dtype is not viewed.dtype:
        _broadcast(source, _chosen(viewed, arrays)[1])  # a wrong shape is told first
        _check_dtypes(viewed, source)
    inplace.apply("index_put_", viewed, _put_at, source, arrays=arrays)


def _put_at(x: Tensor, value: Tensor, arrays: dict[int, Tensor]) -> Tensor:
    return named(_put(x, arrays, value), "IndexPutBackward0")


def _check_dtypes(x: Tensor, value: Tensor) -> None:
    if value.dtype is not x.dtype:
        raise DTypeError(
            "Index put requires the source and destination dtypes match, got "
            f"{scalar_type_name(x.dtype)} for the destination and {scalar_type_name(value.dtype)} "
            "for the source."
        )


def _alias(x: Tensor, index: Any) -> Tensor:
    """A view of all of `x`; PyTorch leaves out slices that take all, but for one that stands alone."""
    name = "SliceBackward0" if isinstance(index, slice) else "AliasBackward0"
    return named(ops.reshape(x, shape=tuple(x.shape)), name)


def _as_value(x: Tensor, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return moved(value, x.device) if value.ndim == 0 else value
    if isinstance(value, np.ndarray):
        return moved(wrap(value), x.device)
    if is_symbolic(value):
        return _as_value(x, number_beside(value, x))
    from tracegrad.tracer.factories import new_leaf, one, placed

    if isinstance(value, complex | np.complexfloating):
        raise dtypes.complex_refused(f"the number {value}")
    if not isinstance(value, bool | int | float | np.generic):
        raise OperandError(f"can't assign a {type_name(value)} to a {scalar_text(x)}")
    number = value.item() if isinstance(value, np.generic) else value
    if isinstance(number, int) and not -(2**63) <= number < 2**64:
        raise ParameterError("Overflow when unpacking long long")
    check_fits(number, x.dtype)
    return new_leaf(placed(one(number, x.dtype), x.device), False)


def _trimmed(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Drop leading sizes of 1 that the target does not have (PyTorch allows them)."""
    have = tuple(value._array.shape)
    while len(have) > len(shape) and have[0] == 1:
        have = have[1:]
    if have != value._array.shape:
        value = ops.reshape(value, shape=have)
    if len(have) > len(shape):
        raise ShapeError(
            f"expand({scalar_text(value)}{{{list(have)}}}, size={list(shape)}): the number of "
            f"sizes provided ({len(shape)}) must be greater or equal to the number of dimensions "
            f"in the tensor ({len(have)})"
        )
    offset = len(shape) - len(have)
    for d, n in reversed(list(enumerate(have))):
        if n not in (1, shape[offset + d]):
            raise ShapeError(
                f"The expanded size of the tensor ({shape[offset + d]}) must match the existing "
                f"size ({n}) at non-singleton dimension {offset + d}.  "
                f"Target sizes: {list(shape)}.  Tensor sizes: {list(have)}"
            )
    return value


# ---- reading the index --------------------------------------------------------------------------


def _parse(x: Tensor, index: Any) -> Parsed:
    if x._array.ndim == 0 and not isinstance(index, tuple):
        check_scalar_index(index)
    parts = items(index, x)
    used = sum(_dimensions(i) for i in parts)
    if x.ndim == 0 and len(parts) == 1 and isinstance(parts[0], slice):
        raise DimensionError("slice() cannot be applied to a 0-dim tensor.")
    if used > x.ndim:
        raise DimensionError(f"too many indices for tensor of dimension {x.ndim}")
    left = x.ndim - used  # dimensions that an Ellipsis stands for
    arrays: dict[int, Tensor] = {}
    d = 0
    taken = 0  # dimensions that integers took away, for messages
    tensors: list[Tensor] = []
    for item in parts:
        if item is Ellipsis:
            d += left
        elif item is None:
            x = _unsqueezed(x, d)
            d += 1
        elif isinstance(item, slice):
            x = _sliced(x, _inside(x, d), item)
            d += 1
        elif isinstance(item, Tensor) and (item._array.ndim or not _is_mask(item)):
            d = _array_index(x, d, item, arrays)
            tensors.append(item)
        elif isinstance(item, bool | Tensor):  # a mask of no dimension
            x = _unsqueezed(x, d)
            arrays[d] = literal(np.zeros(truth(item), np.int64), x)
            d += 1
            tensors.extend([item] if isinstance(item, Tensor) else [])
        else:
            x = _picked(x, _inside(x, d), item, d + taken)
            taken += 1
    return Parsed(x, arrays, len(tensors) == 1 and _is_mask(tensors[0]))


def _unsqueezed(x: Tensor, d: int) -> Tensor:
    shape = (*x.shape[:d], 1, *x.shape[d:])
    return named(ops.reshape(x, shape=shape), "UnsqueezeBackward0")


def _inside(x: Tensor, d: int) -> int:
    """A dimension that a second Ellipsis may have pushed out of range."""
    if d >= x.ndim:
        raise DimensionError(
            f"Dimension out of range (expected to be in range of [{-x.ndim}, {x.ndim - 1}], "
            f"but got {d})"
        )
    return d


def _dimensions(item: Any) -> int:
    if type(item) in (int, slice):
        return 1
    if item is None or item is Ellipsis or isinstance(item, bool):
        return 0
    return item.ndim if _is_mask(item) else 1


def _is_mask(item: Any) -> bool:
    return isinstance(item, Tensor) and item.dtype is dtypes.bool_


def _picked(x: Tensor, d: int, i: int, original: int) -> Tensor:
    size = x.shape[d]
    if not -size <= i < size:
        raise DimensionError(
            f"index {i} is out of bounds for dimension {original} with size {size}"
        )
    return select(x, d, i)


def _bound(value: Any) -> int | None:
    if value is None:
        return None
    try:
        return operator.index(value)
    except TypeError:
        raise OperandError(
            "slice indices must be integers or None or have an __index__ method"
        ) from None


def _sliced(x: Tensor, d: int, item: slice) -> Tensor:
    step = _bound(item.step)
    if step is not None and step <= 0:
        raise ParameterError(
            "step must be greater than zero" if step else "slice step cannot be zero"
        )
    start, stop, step = slice(_bound(item.start), _bound(item.stop), step).indices(x.shape[d])
    if (start, step) == (0, 1) and stop == x.shape[d]:
        return x
    return slice_dim(x, d, start, max(start, stop), step)


def _array_index(x: Tensor, d: int, item: Tensor, arrays: dict[int, Tensor]) -> int:
    """Enter an index tensor (a mask as its nonzero positions); returns the next dimension."""
    if not _is_mask(item):
        item = moved(item, x.device)
        arrays[d] = item if item.dtype is dtypes.int64 else item.to(dtypes.int64)
        return d + 1
    for k in range(item.ndim):
        if item.shape[k] != x.shape[d + k]:
            raise DimensionError(
                f"The shape of the mask {list(item.shape)} at index {k} does not match the shape "
                f"of the indexed tensor {list(x.shape)} at index {d + k}"
            )
    if state.recorder is not None:
        state.recorder.value_read(item, "mask index")
    for k, found in enumerate(np.nonzero(host(item._array))):
        arrays[d + k] = literal(found, x)
    return d + item.ndim


# ---- index arrays -------------------------------------------------------------------------------


def _order(ndim: int, axes: tuple[int, ...], common: int) -> tuple[int, ...]:
    """Axes of gather's result (common ones first) in the order that NumPy gives them.

    Neighbouring index arrays leave their result in place; separated ones put it in front.
    """
    if axes[-1] - axes[0] + 1 != len(axes):
        return tuple(range(common + ndim - len(axes)))
    before = axes[0]
    rest = ndim - len(axes)
    return (*range(common, common + before), *range(common), *range(common + before, common + rest))


def _common_ndim(arrays: dict[int, Tensor]) -> int:
    try:
        return len(np.broadcast_shapes(*(a._array.shape for a in arrays.values())))
    except ValueError:
        shapes = ", ".join(str(list(a.shape)) for a in arrays.values())
        raise DimensionError(
            f"shape mismatch: indexing tensors could not be broadcast together with shapes {shapes}"
        ) from None


def _gathered(x: Tensor, arrays: dict[int, Tensor]) -> Tensor:
    axes = tuple(arrays)
    common = _common_ndim(arrays)
    _check_bounds(x, arrays)
    out = ops.gather(x, *arrays.values(), axes=axes)
    order = _order(x.ndim, axes, common)
    if order == tuple(range(len(order))):
        return out
    return named(packed(ops.permute(out, axes=order)), "IndexBackward0")


def packed(x: Tensor) -> Tensor:
    """A row-major copy."""
    out = clone(x)
    since = now()
    out._array = row_major(out._array)  # nobody else has seen the copy yet
    if profilers:
        note_made("contiguous", (out,), since, (x,))
    return out


def _check_bounds(x: Tensor, arrays: dict[int, Tensor]) -> None:
    """Refuse indices into a dimension that has no elements (PyTorch's text has no index)."""
    if x._array.size == 0:
        for d, index in arrays.items():
            if x._array.shape[d] == 0 and index._array.size:
                raise DimensionError("index is out of bounds for dimension with size 0")


def _put(x: Tensor, arrays: dict[int, Tensor], value: Tensor, accumulate: bool = False) -> Tensor:
    """`x` with `value` (broadcast) at the indexed places."""
    axes = tuple(arrays)
    order, shape = _chosen(x, arrays)
    value = _broadcast(value, shape)
    back = tuple(sorted(range(len(order)), key=order.__getitem__))
    updates = value if back == tuple(range(len(back))) else ops.permute(value, axes=back)
    put = ops.scatter_add if accumulate else ops.scatter_set
    return put(x, updates, *arrays.values(), axes=axes)


def _chosen(x: Tensor, arrays: dict[int, Tensor]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Order of the axes of what index arrays choose, and its shape."""
    axes = tuple(arrays)
    count = _common_ndim(arrays)
    common = np.broadcast_shapes(*(a._array.shape for a in arrays.values()))
    rest = tuple(n for i, n in enumerate(x.shape) if i not in axes)
    order = _order(x.ndim, axes, count)
    whole = (*common, *rest)
    return order, tuple(whole[a] for a in order)


def _broadcast(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`value` in the shape that indexing gives; leading sizes of 1 may be too many."""
    have = tuple(value._array.shape)
    while len(have) > len(shape) and have[0] == 1:
        have = have[1:]
    paired = zip(reversed(have), reversed(shape))
    if len(have) > len(shape) or any(n not in (1, m) for n, m in paired):
        raise ShapeError(
            f"shape mismatch: value tensor of shape {list(value.shape)} cannot be broadcast to "
            f"indexing result of shape {list(shape)}"
        )
    if have != value._array.shape:
        value = ops.reshape(value, shape=have)
    return value if have == shape else ops.broadcast(value, shape=shape)


C_NAMES = {
    "float32": "float", "float64": "double", "float16": "c10::Half", "bfloat16": "c10::BFloat16",
    "int64": "long int", "int32": "int", "int16": "short int", "int8": "signed char",
    "uint8": "unsigned char",
}  # fmt: skip
