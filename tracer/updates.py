"""PyTorch's functions that change part of a tensor, or run along it: triangles, running sums,
writes at indices, products added to a tensor.

Each is a composition of primitives and returns a new tensor; `tracegrad.tracer.inplace_methods`
makes the in-place forms of them. Start reading at `index_add`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tracegrad.ir import composite_linalg, dtypes, ops
from tracegrad.ir.errors import DimensionError, DTypeError, OperandError, ShapeError
from tracegrad.ir.types import broadcast_shapes
from tracegrad.runtime.cuda.array import host
from tracegrad.tracer import linalg
from tracegrad.tracer.composites import composite
from tracegrad.tracer.indexing import _as_value, _put
from tracegrad.tracer.pointwise import apply2, named, need_tensor
from tracegrad.tracer.reductions import sum as total
from tracegrad.tracer.shapes import wrap_dim
from tracegrad.tracer.state import state
from tracegrad.tracer.tape import scalar_type_name
from tracegrad.tracer.tensor import literal

FUNCTIONS: dict[str, Callable[..., Any]] = {}


def _public(function: Callable[..., Any]) -> Callable[..., Any]:
    FUNCTIONS[function.__name__] = function
    return function


# ---- triangles ----------------------------------------------------------------------------------


def _triangle(name: str, input: Any, diagonal: Any, mask: Callable[..., np.ndarray]) -> Any:
    need_tensor(name, "input", 1, input)
    if isinstance(diagonal, bool) or not isinstance(diagonal, int):
        kind = type(diagonal).__name__
        raise OperandError(f"{name}(): argument 'diagonal' (position 2) must be int, not {kind}")
    if input.ndim < 2:
        raise ShapeError(f"{name}: input tensor must have at least 2 dimensions")
    kept = literal(mask(np.ones(tuple(input.shape[-2:]), np.bool_), diagonal), input)
    nothing = False if input.dtype is dtypes.bool_ else 0
    return named(ops.where(kept, input, nothing), f"{name.title()}Backward0")


@_public
@composite
def tril(input: Any, diagonal: int = 0) -> Any:
    """The lower triangle of matrices (..., n, m), zeros above diagonal number `diagonal`.

    Raises:
        ShapeError: fewer than two dimensions.

    Example:
        >>> import tracegrad as tg
        >>> tg.tril(tg.ones(2, 2))
        tensor([[1., 0.],
                [1., 1.]])
    """
    return _triangle("tril", input, diagonal, np.tril)


@_public
@composite
def triu(input: Any, diagonal: int = 0) -> Any:
    """The upper triangle of matrices (..., n, m), zeros below diagonal number `diagonal`.

    Raises:
        ShapeError: fewer than two dimensions.

    Example:
        >>> import tracegrad as tg
        >>> tg.triu(tg.ones(2, 2), 1)
        tensor([[0., 1.],
                [0., 0.]])
    """
    return _triangle("triu", input, diagonal, np.triu)


# ---- writes at indices --------------------------------------------------------------------------


def _vector(index: Any) -> Any:
    return ops.reshape(index, shape=(-1,))


def _check_slices(name: str, input: Any, d: int, index: Any, source: Any) -> None:
    """PyTorch's checks of `index_add_`."""
    if index.ndim > 1:
        raise DimensionError(
            f"{name}_(): Index is supposed to be a vector, but got dim: {index.ndim} with type: "
            f"{scalar_type_name(index.dtype)} and size: {list(index.shape)}"
        )
    if index.dtype not in (dtypes.int32, dtypes.int64):
        raise ShapeError(
            f"{name}_(): Expected dtype int32/int64 for index but got: "
            f"{scalar_type_name(index.dtype)}"
        )
    if source.dtype is not input.dtype:
        raise DTypeError(
            f"{name}_(): self ({scalar_type_name(input.dtype)}) and source "
            f"({scalar_type_name(source.dtype)}) must have the same scalar type"
        )
    if source.ndim and d >= source.ndim:
        raise ShapeError(
            f"{name}_(): Indexing dim {d} is out of bounds of the source tensor with dim "
            f"{source.ndim}"
        )
    count, length = index._array.size, source.shape[d] if source.ndim else 1
    if count != length:
        raise ShapeError(
            f"{name}_(): Number of indices ({count}) should be equal to source.size(dim): "
            f"({length}), for dim: {d}"
        )
    if _without(input, d) != _without(source, d):
        raise ShapeError(
            "source tensor shape must match self tensor shape, excluding the specified dimension. "
            f"Got self.shape = {list(input.shape)} source.shape = {list(source.shape)}"
        )


def _without(x: Any, d: int) -> tuple[int, ...]:
    return tuple(n for i, n in enumerate(x.shape) if i != d)


def _put_along(input: Any, d: int, index: Any, source: Any, add: bool) -> Any:
    if input.ndim == 0:
        whole = _put_along(ops.reshape(input, shape=(1,)), 0, index, source, add)
        return ops.reshape(whole, shape=())
    if source.ndim == 0:
        source = ops.reshape(source, shape=(1,))
    places = _vector(index)
    places = places if places.dtype is dtypes.int64 else places.to(dtypes.int64)
    return _put(input, {d: places}, source, add)


@_public
@composite
def index_add(input: Any, dim: int, index: Any, source: Any, *, alpha: Any = 1) -> Any:
    """`input` with `alpha * source[i]` added at `index[i]` along `dim`, for every i.

    Args:
        index: int32 or int64, 1-D (or 0-D), as long as `source` along `dim`; it may repeat.
        source: dtype of `input`, and its shape but for `dim`.
    Raises:
        ShapeError, DTypeError, DimensionError: the arguments do not fit together.

    Example:
        >>> import tracegrad as tg
        >>> tg.index_add(tg.zeros(3), 0, tg.tensor([0, 2, 0]), tg.ones(3))
        tensor([2., 0., 1.])
    """
    need_tensor("index_add", "input", 1, input)
    need_tensor("index_add", "index", 3, index)
    need_tensor("index_add", "source", 4, source)
    d = wrap_dim(dim, input.ndim)
    _check_slices("index_add", input, d, index, source)
    source = source if alpha == 1 else apply2("mul", source, alpha)
    return named(_put_along(input, d, index, source, True), "IndexAddBackward0")


@_public
@composite
def index_copy(input: Any, dim: int, index: Any, source: Any) -> Any:
    """`input` with `source[i]` in the place of `input[index[i]]` along `dim`, for every i.

    Args:
        index: int64, 1-D (or 0-D), as long as `source` along `dim`; the last of equal ones wins.
        source: dtype of `input`, and its shape but for `dim`.
    Raises:
        ShapeError, DTypeError, DimensionError: the arguments do not fit together.

    Example:
        >>> import tracegrad as tg
        >>> tg.index_copy(tg.zeros(3), 0, tg.tensor([2, 0]), tg.tensor([5., 6.]))
        tensor([6., 0., 5.])
    """
    need_tensor("index_copy", "input", 1, input)
    need_tensor("index_copy", "index", 3, index)
    need_tensor("index_copy", "source", 4, source)
    d = wrap_dim(dim, input.ndim)
    _check_copy(input, d, index, source)
    return named(_put_along(input, d, index, source, False), "IndexCopyBackward0")


def _check_copy(input: Any, d: int, index: Any, source: Any) -> None:
    name = "index_copy_()"
    if index.ndim > 1:
        raise DimensionError(f"{name}: Index should have dimension 1 or 0 (got {index.ndim})")
    if source.ndim and input.ndim and source.ndim != input.ndim:
        raise DimensionError(
            f"{name}: When source and destination are not scalars, their dimensionality must "
            f"match. Source dimensionality ({source.ndim}), destination dimensionality "
            f"({input.ndim})"
        )
    if index.dtype is not dtypes.int64:
        raise ShapeError(
            f"{name}: Expected a long tensor for index, but got {scalar_type_name(index.dtype)}"
        )
    if source.dtype is not input.dtype:
        raise DTypeError(
            f"{name}: self and source expected to have the same dtype, but got (self) "
            f"{scalar_type_name(input.dtype)} and (source) {scalar_type_name(source.dtype)}"
        )
    if _without(input, d) != _without(source, d):
        raise ShapeError(
            f"{name}: Source/destination tensor must have same slice shapes. Destination slice "
            f"shape: {' '.join(map(str, _without(input, d)))} at dimension {d} and source slice "
            f"shape: {' '.join(map(str, _without(source, d)))} at dimension 0."
        )
    length = source.shape[d] if source.ndim else 1
    if index._array.size != length:
        raise DimensionError(
            f"{name}: Number of indices ({index._array.size}) should be equal to source.size(dim) "
            f"({length})"
        )


@_public
@composite
def index_fill(input: Any, dim: int, index: Any, value: Any) -> Any:
    """`input` with `value` (a number or a 0-d tensor) at `index` (int64) along `dim`.

    Raises:
        ShapeError: `value` has dimensions, or `index` more than one.
        DimensionError: `dim` or an index is out of range, or `index` is not int64.

    Example:
        >>> import tracegrad as tg
        >>> tg.index_fill(tg.zeros(3), 0, tg.tensor([0, 2]), 5)
        tensor([5., 0., 5.])
    """
    need_tensor("index_fill", "input", 1, input)
    need_tensor("index_fill", "index", 3, index)
    d = wrap_dim(dim, input.ndim)
    if index.dtype is not dtypes.int64:
        raise DimensionError("index_fill_(): Expected dtype int64 for index.")
    if index.ndim > 1:
        raise ShapeError("Index has to be a vector/scalar")
    value = _as_value(input, value)
    if value.ndim:
        raise ShapeError(
            "index_fill_ only supports a 0-dimensional value tensor, but got tensor with "
            f"{value.ndim} dimension(s)."
        )
    value = value.to(input.dtype)
    return named(_put_along(input, d, index, value, False), "IndexFillBackward0")


@_public
@composite
def masked_scatter(input: Any, mask: Any, source: Any) -> Any:
    """`input` with the elements of `source`, in order, where `mask` (bool, broadcast) holds.

    The shape is that of `input` and `mask` broadcast together. The number of elements needed
    depends on the values of `mask`, so a compiled function that uses it stays eager.

    Raises:
        DTypeError: `mask` is not bool, or the dtypes of `input` and `source` differ.
        ShapeError: `source` has too few elements.

    Example:
        >>> import tracegrad as tg
        >>> tg.masked_scatter(tg.zeros(3), tg.tensor([True, False, True]), tg.tensor([1., 2.]))
        tensor([1., 0., 2.])
    """
    need_tensor("masked_scatter", "input", 1, input)
    need_tensor("masked_scatter", "mask", 2, mask)
    need_tensor("masked_scatter", "source", 3, source)
    if mask.dtype is not dtypes.bool_:
        raise DTypeError(
            "masked_scatter_ only supports boolean masks, but got mask with dtype "
            f"{scalar_type_name(mask.dtype)}"
        )
    if source.dtype is not input.dtype:
        raise DTypeError(
            "masked_scatter: expected self and source to have same dtypes but got"
            f"{scalar_type_name(input.dtype)} and {scalar_type_name(source.dtype)}"
        )
    shape = broadcast_shapes(tuple(input.shape), tuple(mask.shape))
    mask = mask.expand(shape)
    if state.recorder is not None:
        state.recorder.value_read(mask, "masked_scatter")
    taken_here = host(mask._array)
    if np.count_nonzero(taken_here) > source._array.size:
        raise ShapeError("Number of elements of source < number of ones in mask")
    if source._array.size == 0:
        return input.expand(shape).clone()
    order = np.cumsum(taken_here.reshape(-1)).reshape(shape) - 1
    places = literal(np.maximum(order, 0), input)
    taken = ops.gather(source.reshape(-1), places, axes=(0,))
    return named(ops.where(mask, taken, input), "MaskedScatterBackward0")


# ---- products added -----------------------------------------------------------------------------


def _added(input: Any, product: Any, beta: Any, alpha: Any, name: str) -> Any:
    product = product if alpha == 1 else apply2("mul", product, alpha)
    scaled = input if beta == 1 else apply2("mul", input, beta)
    return named(apply2("add", product, scaled), name)


@_public
@composite
def addmv(input: Any, mat: Any, vec: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    """`beta * input + alpha * (mat @ vec)`, of a matrix (n, m) and a vector (m,).

    Example:
        >>> import tracegrad as tg
        >>> tg.addmv(tg.ones(2), tg.ones(2, 3), tg.ones(3))
        tensor([4., 4.])
    """
    need_tensor("addmv", "input", 1, input)
    return _added(input, composite_linalg.mv(mat, vec, input), beta, alpha, "AddmvBackward0")


@_public
@composite
def addr(input: Any, vec1: Any, vec2: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    """`beta * input + alpha * outer(vec1, vec2)`, of vectors (n,) and (m,).

    Example:
        >>> import tracegrad as tg
        >>> tg.addr(tg.zeros(1, 2), tg.ones(1), tg.tensor([3., 4.]))
        tensor([[3., 4.]])
    """
    need_tensor("addr", "input", 1, input)
    return _added(input, linalg.outer(vec1, vec2), beta, alpha, "AddrBackward0")


@_public
@composite
def addbmm(input: Any, batch1: Any, batch2: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    """`beta * input + alpha * sum_i(batch1[i] @ batch2[i])`, of batches (b, n, m) and (b, m, p).

    Example:
        >>> import tracegrad as tg
        >>> tg.addbmm(tg.zeros(1, 1), tg.ones(3, 1, 2), tg.ones(3, 2, 1))
        tensor([[6.]])
    """
    need_tensor("addbmm", "input", 1, input)
    product = total(composite_linalg.bmm(batch1, batch2, input), 0)
    return _added(input, product, beta, alpha, "AddbmmBackward0")


def fill_diagonal(input: Any, fill_value: Any, wrap: bool = False) -> Any:
    """`input` with `fill_value` on its main diagonal; `fill_diagonal_` out of place.

    Raises:
        ShapeError: fewer than two dimensions, or more than two that are not of equal size.
    """
    if input.ndim < 2:
        raise ShapeError("dimensions must larger than 1")
    if input.ndim > 2 and len(set(input.shape)) > 1:
        raise ShapeError("all dimensions of input must be of equal length")
    mask = np.zeros(tuple(input.shape), np.bool_)
    np.fill_diagonal(mask, True, wrap=wrap)
    return named(
        ops.where(literal(mask, input), _as_value(input, fill_value).to(input.dtype), input),
        "FillDiagonalBackward0",
    )
