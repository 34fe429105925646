"""Scatters that join what they bring with what is there: sums, products, means and extremes.

They join the table `gathering.FUNCTIONS`. Start reading at `scatter_reduce`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tracegrad.ir import dtypes, ops
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import DimensionError, DTypeError, ShapeError
from tracegrad.ir.primitive import Primitive
from tracegrad.tracer.arguments import bool_argument
from tracegrad.tracer.composites import composite
from tracegrad.tracer.gathering import FUNCTIONS, _same_dtype, _scatter
from tracegrad.tracer.pointwise import apply2, named, need_tensor
from tracegrad.tracer.shapes import wrap_dim
from tracegrad.tracer.tape import scalar_type_name

_JOINS: dict[str, Primitive] = {
    "sum": ops.scatter_add, "mean": ops.scatter_add, "prod": ops.scatter_mul,
    "amax": ops.scatter_max, "amin": ops.scatter_min,
}  # fmt: skip
Put = Callable[[Any, Any, Primitive], Any]
"""`put(x, value, scatter)`: `x` with `value` brought to the chosen places."""


@composite
def scatter_reduce(
    input: Any, dim: int, index: Any, src: Any, reduce: str, *, include_self: bool = True
) -> Any:
    """`input` with `src[i, j, k]` joined to what is at `[i, index[i, j, k], k]` (dim = 1).

    Args:
        index: int64, no larger than `src`, and but for `dim` no larger than `input`.
        reduce: "sum", "prod", "mean", "amax" or "amin".
        include_self: whether what `input` holds in such places takes part.
    Raises:
        ShapeError: another `reduce`, or shapes that do not fit.
        DTypeError: the dtypes of `input` and `src` differ.

    Example:
        >>> import tracegrad as tg
        >>> x, index = tg.tensor([1., 2., 3.]), tg.tensor([0, 0, 2])
        >>> tg.scatter_reduce(x, 0, index, tg.tensor([5., 4., 1.]), "amax")
        tensor([5., 2., 3.])
    """
    for position, word, x in ((1, "input", input), (3, "index", index), (4, "src", src)):
        need_tensor("scatter_reduce", word, position, x)
    bool_argument("scatter_reduce", "include_self", include_self)
    if reduce not in _JOINS:
        raise ShapeError(
            f"reduce argument must be either sum, prod, mean, amax or amin, got {reduce}"
        )
    _same_dtype(input, src)

    def put(x: Any, value: Any, join: Primitive) -> Any:
        return _scatter("scatter", x, dim, index, value, join)

    return named(_joined(input, src, reduce, include_self, put), "ScatterReduceBackward0")


@composite
def index_reduce(
    input: Any, dim: int, index: Any, source: Any, reduce: str, *, include_self: bool = True
) -> Any:
    """`input` with `source[i]` joined to what is at `index[i]` along `dim`, for every i.

    Args:
        index: int32 or int64, 1-D, as long as `source` along `dim`; it may repeat.
        reduce: "prod", "mean", "amax" or "amin".
        include_self: whether what `input` holds in such places takes part.
    Raises:
        ShapeError: another `reduce`, or shapes that do not fit.
        DTypeError: the dtypes of `input` and `source` differ.
        DimensionError: `index` is not 1-D, or of another dtype.

    Example:
        >>> import tracegrad as tg
        >>> x = tg.tensor([1., 2., 3.])
        >>> tg.index_reduce(x, 0, tg.tensor([0, 0]), tg.tensor([5., 4.]), "prod")
        tensor([20.,  2.,  3.])
    """
    for position, word, x in ((1, "input", input), (3, "index", index), (4, "source", source)):
        need_tensor("index_reduce", word, position, x)
    bool_argument("index_reduce", "include_self", include_self)
    if reduce not in _JOINS or reduce == "sum":
        raise ShapeError(
            f"index_reduce(): Expected reduce to be one of prod, mean, amax or amin but got {reduce}."
        )
    d = wrap_dim(dim, input.ndim)
    _check_slices(input, d, index, source)
    if input.ndim == 0:
        whole = index_reduce(
            ops.reshape(input, shape=(1,)), 0, index, ops.reshape(source, shape=(1,)), reduce,
            include_self=include_self,
        )  # fmt: skip
        return ops.reshape(whole, shape=())
    places = index.reshape(-1).to(dtypes.int64)
    order = (d, *(a for a in range(input.ndim) if a != d))

    def put(x: Any, value: Any, join: Primitive) -> Any:
        if value is not source:
            value = ops.broadcast(x.new_tensor(value), shape=tuple(source.shape))
        return join(x, ops.permute(value, axes=order), places, axes=(d,))

    return named(_joined(input, source, reduce, include_self, put), "IndexReduceBackward0")


def _check_slices(input: Any, d: int, index: Any, source: Any) -> None:
    if index.ndim > 1:
        raise DimensionError(
            f"index_reduce_(): Index is supposed to be a vector, got {index.ndim}-D"
        )
    if index.dtype not in (dtypes.int32, dtypes.int64):
        raise DimensionError("index_reduce_(): Expected dtype int32/int64 for index")
    if source.dtype is not input.dtype:
        raise DTypeError(
            f"index_reduce_(): self ({scalar_type_name(input.dtype)}) and source "
            f"({scalar_type_name(source.dtype)}) must have the same scalar type"
        )
    have, want = list(source.shape), list(input.shape)
    if input.ndim:
        want[d] = index._array.size
    if have != want:
        raise ShapeError(
            f"index_reduce_(): source of shape {have} does not fit {index._array.size} indices along "
            f"dimension {d} of a tensor of shape {list(input.shape)}; it must be {want}"
        )


def _joined(x: Any, source: Any, reduce: str, include_self: bool, put: Put) -> Any:
    """`x` with `source` joined to the chosen places."""
    start = x
    if not include_self:
        start = put(x, _neutral(x.dtype, reduce), ops.scatter_set)
    out = put(start, source, _JOINS[reduce])
    if reduce != "mean":
        return out
    count = x.new_ones(tuple(x.shape))
    if not include_self:
        count = put(count, 0, ops.scatter_set)
    count = put(count, 1, ops.scatter_add)
    return apply2("div" if x.dtype.is_floating_point else "floor_divide", out, count)


def _neutral(dtype: DType, reduce: str) -> Any:
    """What leaves any number as it is when it is joined to it."""
    if reduce in ("sum", "mean", "prod"):
        return int(reduce == "prod")
    if dtype.is_floating_point:
        return -math.inf if reduce == "amax" else math.inf
    if dtype is dtypes.bool_:
        return reduce == "amin"
    limits = np.iinfo(dtype.numpy)
    return int(limits.min if reduce == "amax" else limits.max)


FUNCTIONS.update(scatter_reduce=scatter_reduce, index_reduce=index_reduce)
