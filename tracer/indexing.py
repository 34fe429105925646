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
    UnsupportedError,
)
from tracegrad.ir.types import broadcast_shapes
from tracegrad.tracer import inplace
from tracegrad.tracer.arguments import bool_argument, check_fits, type_name
from tracegrad.tracer.composites import composite, viewing
from tracegrad.tracer.index_items import check_scalar_index, items, truth
from tracegrad.tracer.pointwise import named, need_tensor
from tracegrad.tracer.shapes import clone, scalar_text, select, slice_dim, wrap_dim
from tracegrad.tracer.state import state
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
    viewed, arrays, mask = _parse(x, index)
    source = _as_value(viewed, value)
    if not arrays:
        shape = viewed._array.shape
        source = _trimmed(source, shape)
        inplace.copy(viewed, source if source._array.shape == shape else source.expand(shape))
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
    """A view of all of `x`."""
    items = index if isinstance(index, tuple) else (index,)
    name = "SliceBackward0" if any(isinstance(i, slice) for i in items) else "AliasBackward0"
    return named(ops.reshape(x, shape=tuple(x.shape)), name)


def _as_value(x: Tensor, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        return wrap(value)
    from tracegrad.tracer.factories import new_leaf, one

    if isinstance(value, complex | np.complexfloating):
        raise dtypes.complex_refused(f"the number {value}")
    if not isinstance(value, bool | int | float | np.generic):
        raise OperandError(f"can't assign a {type_name(value)} to a {scalar_text(x)}")
    number = value.item() if isinstance(value, np.generic) else value
    if isinstance(number, int) and not -(2**63) <= number < 2**64:
        raise ParameterError("Overflow when unpacking long long")
    check_fits(number, x.dtype)
    return new_leaf(one(number, x.dtype), False)


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
    parts = items(index)
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
            arrays[d] = literal(np.zeros(truth(item), np.int64))
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
    for k, found in enumerate(np.nonzero(item._array)):
        arrays[d + k] = wrap(found)
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
    out._array = np.ascontiguousarray(out._array)  # nobody else has seen the copy yet
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
    updates = ops.permute(value, axes=back)
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


def check_put(input: Tensor, indices: Any, values: Any) -> None:
    """PyTorch's checks of the arguments of `index_put_`."""
    if not isinstance(indices, tuple | list):
        raise OperandError(
            "index_put_(): argument 'indices' (position 1) must be tuple of Tensors, not "
            f"{type(indices).__name__}"
        )
    if not isinstance(values, Tensor):
        raise OperandError(
            "index_put_(): argument 'values' (position 2) must be Tensor, not "
            f"{type(values).__name__}"
        )
    used = sum(_dimensions(i) for i in indices)
    if used > input.ndim:
        raise DimensionError(f"too many indices for tensor of dimension {input.ndim} (got {used})")
    _check_dtypes(input, values)


def index_put(input: Tensor, indices: Any, values: Tensor, accumulate: bool = False) -> Tensor:
    """`input` with `values` (its dtype, broadcast) put or added at `indices`, out of place.

    Raises:
        DTypeError: the dtypes differ.
        ShapeError: `values` does not broadcast to what the indices choose.
        DimensionError: too many indices, or one out of range.
    """
    need_tensor("index_put", "input", 1, input)
    check_put(input, indices, values)
    viewed, arrays, _ = _parse(input, tuple(indices))
    if not arrays:
        raise ParameterError("index_put_(): at least one index must be a tensor")
    return named(_put(viewed, arrays, values, accumulate), "IndexPutBackward0")


@composite
def index_select(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """The elements `index` (1-D, integer) along `dim`; a copy."""
    need_tensor("index_select", "input", 1, input)
    need_tensor("index_select", "index", 3, index)
    if index.ndim > 1:
        raise DimensionError("index_select(): Index is supposed to be a vector")
    d = wrap_dim(dim, input.ndim)
    places = ops.reshape(index, shape=(-1,))
    if input.ndim == 0:  # as a vector of one
        if places._array.size != 1:
            raise ShapeError(
                "index_select(): Index to scalar can have only 1 value, got "
                f"{places._array.size} value(s)"
            )
        taken = _gathered(ops.reshape(input, shape=(1,)), {0: places})
        return named(ops.reshape(taken, shape=()), "IndexSelectBackward0")
    return named(_gathered(input, {d: places}), "IndexSelectBackward0")


@composite
def gather(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """`out[i, j, k] = input[i, index[i, j, k], k]` for dim = 1, and so on for other dims.

    Raises:
        ShapeError: `index` has another number of dimensions, or is larger outside `dim`.
    """
    need_tensor("gather", "input", 1, input)
    need_tensor("gather", "index", 3, index)
    from tracegrad.tracer.reductions import take_along

    if min(input.ndim, index.ndim) == 0 and max(input.ndim, index.ndim) < 2:  # vectors of one
        out = gather(_row(input), dim, _row(index))
        return named(ops.reshape(out, shape=tuple(index.shape)), "GatherBackward0")
    d = _check_gather("gather", input, wrap_dim(dim, input.ndim), index)
    return named(take_along(input, d, index), "GatherBackward0")


def _row(x: Tensor) -> Tensor:
    """A number as a vector of one; a vector as it is."""
    return ops.reshape(x, shape=(1,)) if x.ndim == 0 else x


def _check_gather(name: str, input: Tensor, d: int, index: Tensor) -> int:
    if index.dtype not in (dtypes.int32, dtypes.int64):
        raise ShapeError(f"{name}(): Expected dtype int32/int64 for index")
    if index.ndim != input.ndim:
        whose = "self" if name == "scatter" else "input"
        raise ShapeError(f"Index tensor must have the same number of dimensions as {whose} tensor")
    for axis in range(input.ndim):
        if axis != d and index.shape[axis] > input.shape[axis]:
            what = f"Size does not match at dimension {axis} expected index"
            what = "Expected index" if name == "scatter" else what
            raise ShapeError(
                f"{what} {list(index.shape)} to be no larger than self {list(input.shape)} apart "
                f"from dimension {d}"
            )
    return d


@composite
def scatter(input: Tensor, dim: int, index: Tensor, src: Any, *, reduce: Any = None) -> Tensor:
    """`input` with `src[i, j, k]` put at `[i, index[i, j, k], k]` (dim = 1), out of place."""
    need_tensor("scatter", "input", 1, input)
    need_tensor("scatter", "index", 3, index)
    if reduce is None:
        if isinstance(src, Tensor):
            _same_dtype(input, src)
        return named(
            _scatter("scatter", input, dim, index, src, ops.scatter_set), "ScatterBackward0"
        )
    if reduce not in ("add", "multiply"):
        raise ShapeError("reduce argument must be either add or multiply.")
    if reduce == "multiply":
        raise UnsupportedError("scatter(): reduce='multiply' is not supported; only 'add' is")
    return _scatter("scatter", input, dim, index, src, ops.scatter_add)


def _same_dtype(input: Tensor, src: Tensor) -> None:
    if src.dtype is not input.dtype:
        raise DTypeError("scatter(): Expected self.dtype to be equal to src.dtype")


@composite
def scatter_add(input: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """`input` with `src[i, j, k]` added at `[i, index[i, j, k], k]` (dim = 1), out of place."""
    need_tensor("scatter_add", "input", 1, input)
    need_tensor("scatter_add", "index", 3, index)
    if not isinstance(src, Tensor):
        kind = type(src).__name__
        raise OperandError(
            f"scatter_add_(): argument 'src' (position 3) must be Tensor, not {kind}"
        )
    _same_dtype(input, src)
    out = _scatter("scatter", input, dim, index, src, ops.scatter_add)
    return named(out, "ScatterAddBackward0")


def _scatter(name: str, input: Tensor, dim: int, index: Tensor, src: Any, put: Any) -> Tensor:
    d = wrap_dim(dim, input.ndim)
    if min(input.ndim, index.ndim) == 0 and max(input.ndim, index.ndim) < 2:  # vectors of one
        out = _scatter(name, _row(input), dim, _row(index),
                       _row(src) if isinstance(src, Tensor) else src, put)  # fmt: skip
        return ops.reshape(out, shape=tuple(input.shape))
    if isinstance(src, Tensor) and src.ndim != index.ndim == input.ndim:
        raise ShapeError("Index tensor must have the same number of dimensions as src tensor")
    d = _check_gather(name, input, d, index)
    updates = _as_value(input, src)
    if isinstance(src, Tensor) and any(n > m for n, m in zip(index.shape, src.shape)):
        raise ShapeError(
            f"Expected index {list(index.shape)} to be no larger than self {list(input.shape)} "
            f"apart from dimension {d} and to be no larger size than src {list(src.shape)}"
        )
    if updates._array.shape != index._array.shape:
        if updates.ndim == 0:
            updates = ops.broadcast(updates, shape=tuple(index.shape))
        else:
            for axis, n in enumerate(index.shape):
                updates = slice_dim(updates, axis, 0, n)
    places: Any = np.indices(index._array.shape, sparse=True)
    arrays = [index if a == d else literal(p.astype(np.int64)) for a, p in enumerate(places)]
    return put(input, updates, *arrays, axes=tuple(range(input.ndim)))


def nonzero(input: Tensor, *, as_tuple: bool = False) -> Any:
    """Positions of the non-zero elements: int64 (n, ndim), or one vector per dimension."""
    need_tensor("nonzero", "input", 1, input)
    bool_argument("nonzero", "as_tuple", as_tuple)
    if state.recorder is not None:
        state.recorder.value_read(input, "nonzero")
    found = np.nonzero(np.atleast_1d(input._array))
    if as_tuple:
        return tuple(wrap(f) for f in found)
    if input.ndim == 0:
        return wrap(np.zeros((len(found[0]), 0), np.int64))
    return wrap(np.stack(found, axis=1))


def masked_select(input: Tensor, mask: Tensor) -> Tensor:
    """The elements where `mask` (broadcast) holds, in one dimension.

    Raises:
        OperandError: `input` or `mask` is no tensor.
        DTypeError: `mask` is not bool.
    """
    need_tensor("masked_select", "input", 1, input)
    need_tensor("masked_select", "mask", 2, mask)
    if mask.dtype is not dtypes.bool_:
        raise DTypeError("masked_select: expected BoolTensor for mask")
    shape = np.broadcast_shapes(tuple(input.shape), tuple(mask.shape))
    return named(getitem(input.expand(shape), mask.expand(shape)), "MaskedSelectBackward0")


@composite
def masked_fill(input: Tensor, mask: Tensor, value: Any) -> Tensor:
    """`input` with `value` (a number or a 0-d tensor, cast) where `mask` (bool, broadcast) holds.

    Raises:
        DTypeError: `mask` is not bool.
        ShapeError: `value` has dimensions.
    """
    need_tensor("masked_fill", "input", 1, input)
    need_tensor("masked_fill", "mask", 2, mask)
    if mask.dtype is not dtypes.bool_:
        kind = C_NAMES.get(mask.dtype.name, mask.dtype.name)
        raise DTypeError(
            f"masked_fill_ only supports boolean masks, but got mask with dtype {kind}"
        )
    if isinstance(value, Tensor) and value.ndim:
        raise ShapeError(
            "masked_fill_ only supports a 0-dimensional value tensor, but got tensor with "
            f"{value.ndim} dimension(s)."
        )
    broadcast_shapes(tuple(input.shape), tuple(mask.shape))  # names the tensor's size first
    out = ops.where(mask, _as_value(input, value).to(input.dtype), input)
    return named(out, f"MaskedFillBackward{int(isinstance(value, Tensor))}")


C_NAMES = {
    "float32": "float", "float64": "double", "float16": "c10::Half", "bfloat16": "c10::BFloat16",
    "int64": "long int", "int32": "int", "int16": "short int", "int8": "signed char",
    "uint8": "unsigned char",
}  # fmt: skip

FUNCTIONS = {
    f.__name__: f
    for f in (
        index_put, index_select, gather, scatter, scatter_add, nonzero, masked_select, masked_fill,
    )
}  # fmt: skip
