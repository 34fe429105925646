"""Elements by their place in the whole tensor, along a dimension, or on diagonals; and norms kept
below a limit.

They join the table `gathering.FUNCTIONS`. Start reading at `take`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tracegrad.ir import dtypes, ops
from tracegrad.ir.errors import (
    BoundsError,
    DimensionError,
    DTypeError,
    ShapeError,
)
from tracegrad.ir.types import broadcast_shapes
from tracegrad.tracer.arguments import bool_argument, int_argument
from tracegrad.tracer.composites import composite
from tracegrad.tracer.gathering import FUNCTIONS, gather
from tracegrad.tracer.indexing import _put
from tracegrad.tracer.pointwise import apply2, named, need_tensor
from tracegrad.tracer.pointwise_checks import need_number
from tracegrad.tracer.pointwise_composed import where
from tracegrad.tracer.reductions import norm
from tracegrad.tracer.reductions import sum as total
from tracegrad.tracer.regions import diagonal
from tracegrad.tracer.shapes import clone, narrow, wrap_dim
from tracegrad.tracer.tape import scalar_type_name
from tracegrad.tracer.tensor import literal


def _public(function: Any) -> Any:
    FUNCTIONS[function.__name__] = function
    return function


# ---- by the place in the whole ------------------------------------------------------------------


def _places(name: str, input: Any, index: Any) -> Any:
    """`index` as a vector, checked against the number of elements."""
    need_tensor(name, "input", 1, input)
    need_tensor(name, "index", 2, index)
    if index.dtype is not dtypes.int64:
        raise DTypeError(
            f"{name}(): Expected a long tensor for index, but got {scalar_type_name(index.dtype)}"
        )
    if input._array.size == 0 and index._array.size:
        raise BoundsError(f"{name}(): tried to take from an empty tensor")
    return ops.reshape(index, shape=(-1,))


@_public
@composite
def take(input: Any, index: Any) -> Any:
    """The elements of the flattened `input` at `index` (int64, any shape), in its shape.

    Raises:
        DTypeError: `index` is not int64.
        BoundsError: an index is out of range.

    Example:
        >>> import tracegrad as tg
        >>> tg.take(tg.tensor([[4, 3, 5], [6, 7, 8]]), tg.tensor([0, -1]))
        tensor([4, 8])
    """
    places = _places("take", input, index)
    flat = ops.reshape(input, shape=(-1,))
    found = ops.gather(flat, places, axes=(0,))
    return named(ops.reshape(found, shape=tuple(index.shape)), "TakeBackward0")


@_public
@composite
def put(input: Any, index: Any, source: Any, accumulate: bool = False) -> Any:
    """`input` with `source` put at (or added to) the places `index` of the flattened tensor.

    Raises:
        DimensionError: `index` has another number of elements than `source`.
        DTypeError: `index` is not int64, or the dtypes of `input` and `source` differ.

    Example:
        >>> import tracegrad as tg
        >>> tg.zeros(2, 2).put(tg.tensor([3, 0]), tg.tensor([9., 8.]))
        tensor([[8., 0.],
                [0., 9.]])
    """
    for position, (word, x) in enumerate(
        (("input", input), ("index", index), ("source", source)), 1
    ):
        need_tensor("put", word, position, x)
    bool_argument("put", "accumulate", accumulate)
    if index.dtype is dtypes.int64 and source.dtype is not input.dtype:
        raise DTypeError(
            "put_(): self and source expected to have the same dtype, but got self.dtype = "
            f"{scalar_type_name(input.dtype)} and source.dtype = {scalar_type_name(source.dtype)}"
        )
    places = _places("put_", input, index)
    if index._array.size != source._array.size:
        raise DimensionError(
            "put_(): Expected source and index to have the same number of elements, but got "
            f"source.numel() = {source._array.size}, index.numel() = {index._array.size}"
        )
    flat = ops.reshape(input, shape=(-1,))
    new = ops.reshape(source, shape=(-1,))
    out = ops.reshape(_put(flat, {0: places}, new, accumulate), shape=tuple(input.shape))
    return named(out, "PutBackward0")


# ---- along a dimension --------------------------------------------------------------------------


@_public
@composite
def take_along_dim(input: Any, indices: Any, dim: int | None = None) -> Any:
    """`gather` whose `input` and `indices` broadcast but for `dim`; of the flattened without `dim`.

    Raises:
        ShapeError: they have not as many dimensions.
        DTypeError: `indices` is not int64.

    Example:
        >>> import tracegrad as tg
        >>> x = tg.tensor([[10, 30, 20]])
        >>> tg.take_along_dim(x, x.argmax(dim=1, keepdim=True), dim=1)
        tensor([[30]])
    """
    need_tensor("take_along_dim", "input", 1, input)
    need_tensor("take_along_dim", "indices", 2, indices)
    if indices.dtype is not dtypes.int64:
        raise DTypeError(
            "torch.take_along_dim(): dtype of indices should be Long but got "
            f"{scalar_type_name(indices.dtype)}"
        )
    if dim is None:
        return gather(ops.reshape(input, shape=(-1,)), 0, ops.reshape(indices, shape=(-1,)))
    if input.ndim != indices.ndim:
        raise ShapeError(
            "torch.take_along_dim(): input and indices should have the same number of dimensions, "
            f"but got {input.ndim} dimensions for input, and {indices.ndim} dimensions for indices"
        )
    d = wrap_dim(dim, input.ndim)
    if input.ndim == 0:
        return gather(input, 0, indices)
    have, want = list(input.shape), list(indices.shape)
    have[d] = want[d] = 1
    shared = list(broadcast_shapes(tuple(have), tuple(want)))
    wide, index = list(shared), list(shared)
    wide[d], index[d] = input.shape[d], indices.shape[d]
    return gather(input.broadcast_to(tuple(wide)), d, indices.broadcast_to(tuple(index)))


@_public
@composite
def narrow_copy(input: Any, dim: int, start: int, length: int) -> Any:
    """`narrow` in memory of its own.

    Raises:
        DimensionError, ShapeError: as `narrow`.

    Example:
        >>> import tracegrad as tg
        >>> tg.narrow_copy(tg.arange(4), 0, 1, 2)
        tensor([1, 2])
    """
    return named(clone(narrow(input, dim, start, length)), "NarrowCopyBackward0")


@_public
@composite
def renorm(input: Any, p: float, dim: int, maxnorm: float) -> Any:
    """`input` whose slices along `dim` are scaled to a p-norm of at most `maxnorm`.

    Raises:
        ShapeError: `p` is not positive, `maxnorm` negative, or `input` has one dimension.

    Example:
        >>> import tracegrad as tg
        >>> tg.renorm(tg.tensor([[3., 4.], [0.3, 0.4]]), 2, 0, 1)
        tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])
    """
    need_tensor("renorm", "input", 1, input)
    need_number("renorm", "p", p)
    need_number("renorm", "maxnorm", maxnorm)
    if p <= 0:
        raise ShapeError("renorm: non-positive-norm not supported")
    if maxnorm < 0:
        raise ShapeError(f"renorm: expected maxnorm to be >= 0 but got {maxnorm:g}")
    if input.ndim < 2:
        raise ShapeError(f"renorm: input needs at least 2 dimensions, got {input.ndim} dimensions")
    d = wrap_dim(dim, input.ndim)
    size = norm(input, p, tuple(a for a in range(input.ndim) if a != d), keepdim=True)
    over = apply2("greater", size, maxnorm)
    factor = where(over, apply2("div", maxnorm, apply2("add", size, 1e-7)), 1.0)
    return named(apply2("mul", input, factor), "RenormBackward0")


# ---- diagonals ----------------------------------------------------------------------------------


@_public
@composite
def diag(input: Any, diagonal: int = 0) -> Any:
    """A vector as the diagonal of a square matrix, or the diagonal of a matrix as a vector.

    Raises:
        ShapeError: `input` has no dimension, or more than two.

    Example:
        >>> import tracegrad as tg
        >>> tg.diag(tg.tensor([1, 2]))
        tensor([[1, 0],
                [0, 2]])
    """
    need_tensor("diag", "input", 1, input)
    offset = int_argument("diag", "diagonal", 2, diagonal)
    if input.ndim == 1:
        return diag_embed(input, offset)
    if input.ndim != 2:
        raise ShapeError(f"diag(): Supports 1D or 2D tensors. Got {input.ndim}D")
    return named(clone(_diagonal(input, offset, 0, 1)), "DiagonalBackward0_copy")


_diagonal = diagonal


@_public
@composite
def diagflat(input: Any, offset: int = 0) -> Any:
    """The elements of `input` as the diagonal of a square matrix.

    Example:
        >>> import tracegrad as tg
        >>> tg.diagflat(tg.tensor([[1], [2]]))
        tensor([[1, 0],
                [0, 2]])
    """
    need_tensor("diagflat", "input", 1, input)
    return diag_embed(
        ops.reshape(input, shape=(-1,)), int_argument("diagflat", "offset", 2, offset)
    )


@_public
@composite
def diag_embed(input: Any, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Any:
    """The last dimension of `input` as the diagonals of new dimensions `dim1` and `dim2`.

    Raises:
        ShapeError: the two are the same.
        DimensionError: one is out of range.

    Example:
        >>> import tracegrad as tg
        >>> tg.diag_embed(tg.tensor([1, 2]), 1)
        tensor([[0, 1, 0],
                [0, 0, 2],
                [0, 0, 0]])
    """
    need_tensor("diag_embed", "input", 1, input)
    k = int_argument("diag_embed", "offset", 2, offset)
    ndim = input.ndim + 1
    one, other = wrap_dim(dim1, ndim), wrap_dim(dim2, ndim)
    if one == other:
        raise ShapeError(f"diagonal dimensions cannot be identical {dim1}, {dim2}")
    if one > other:
        one, other, k = other, one, -k
    size = input.shape[-1] + abs(k)
    around = ((0, 0, 0),) * (input.ndim - 1)
    nothing = False if input.dtype is dtypes.bool_ else 0
    rows = ops.pad(input, padding=(*around, (max(-k, 0), max(k, 0), 0)), value=nothing)
    wide = ops.reshape(rows, shape=(*input.shape[:-1], size, 1))
    whole = ops.where(literal(np.eye(size, k=k, dtype=np.bool_), input), wide, nothing)
    order = [a for a in range(ndim) if a not in (one, other)]
    back = [0] * ndim
    for at, a in enumerate([*order, one, other]):
        back[a] = at
    return named(ops.permute(whole, axes=tuple(back)), "DiagEmbedBackward0")


@_public
@composite
def trace(input: Any) -> Any:
    """The sum of the diagonal of a matrix.

    Raises:
        ShapeError: `input` is no matrix.

    Example:
        >>> import tracegrad as tg
        >>> tg.trace(tg.tensor([[1., 2.], [3., 4.]]))
        tensor(5.)
    """
    need_tensor("trace", "input", 1, input)
    if input.ndim != 2:
        raise ShapeError(f"trace: expected a matrix, but got tensor with dim {input.ndim}")
    return named(total(_diagonal(input, 0, 0, 1)), "TraceBackward0")
