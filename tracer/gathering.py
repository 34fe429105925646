"""PyTorch's functions that read and write at positions in index tensors, or where a mask holds.

Start reading at `gather`, then `scatter`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
from tracegrad.runtime.cuda.array import host
from tracegrad.tracer.arguments import bool_argument
from tracegrad.tracer.composites import composite
from tracegrad.tracer.indexing import (
    C_NAMES,
    _as_value,
    _check_dtypes,
    _dimensions,
    _gathered,
    _parse,
    _put,
    getitem,
)
from tracegrad.tracer.pointwise import named, need_tensor
from tracegrad.tracer.profiling import note_made, now, profilers
from tracegrad.tracer.shapes import slice_dim, wrap_dim
from tracegrad.tracer.state import state
from tracegrad.tracer.tensor import Tensor, literal


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
    arrays = [index if a == d else literal(p.astype(np.int64), index) for a, p in enumerate(places)]
    return put(input, updates, *arrays, axes=tuple(range(input.ndim)))


def nonzero(input: Tensor, *, as_tuple: bool = False) -> Any:
    """Positions of the non-zero elements: int64 (n, ndim), or one vector per dimension."""
    need_tensor("nonzero", "input", 1, input)
    bool_argument("nonzero", "as_tuple", as_tuple)
    if state.recorder is not None:
        state.recorder.value_read(input, "nonzero")
    since = now()
    found = np.nonzero(np.atleast_1d(host(input._array)))
    if as_tuple:
        each = tuple(literal(f, input) for f in found)
        if profilers:
            note_made("nonzero_numpy", each, since, (input,))
        return each
    places = np.zeros((len(found[0]), 0), np.int64) if input.ndim == 0 else np.stack(found, 1)
    out = literal(places, input)
    if profilers:
        note_made("nonzero", (out,), since, (input,))
    return out


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


FUNCTIONS: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (
        index_put, index_select, gather, scatter, scatter_add, nonzero, masked_select, masked_fill,
    )
}  # fmt: skip
