"""Compositions of the table: plain functions over its operations.

They work on whatever the operations work on: NumPy arrays, IR values, Tensors. What they return is
differentiable as often as wanted, because all they call is. Start reading at `reduce_mean`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tracegrad.ir import dtypes, ops
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import DTypeError, KernelError, ShapeError
from tracegrad.ir.primitive import type_of
from tracegrad.ir.primitives.reduction import refuse_empty
from tracegrad.ir.primitives.support import (
    normal_axes,
    normal_axis,
    nullary_like,
)

# ---- shapes -------------------------------------------------------------------------------------


def matrix_transpose(x: Any) -> Any:
    """Exchange the last two axes.

    Args:
        x: any dtype, shape (..., m, n).
    Returns:
        Same dtype, shape (..., n, m).
    Raises:
        ShapeError: fewer than two dimensions.
    Source: definition.
    Example:
        >>> import numpy as np
        >>> matrix_transpose(np.arange(6).reshape(2, 3)).shape
        (3, 2)
    """
    ndim = len(x.shape)
    if ndim < 2:
        raise ShapeError(
            f"tensor.mT is only supported on matrices or batches of matrices. Got {ndim}-D tensor."
        )
    return ops.permute(x, axes=(*range(ndim - 2), ndim - 1, ndim - 2))


def expand_dims(x: Any, axes: int | Iterable[int]) -> Any:
    """Insert axes of size 1, so that they stand at `axes` of the result.

    Args:
        x: any dtype and shape.
        axes: positions in the result, each in [-m, m) for a result of m dimensions.
    Returns:
        Same dtype and elements, `x.ndim + len(axes)` dimensions.
    Raises:
        DimensionError: a position is out of range.
        ShapeError: a position is named twice.
    Source: definition.
    Example:
        >>> import numpy as np
        >>> expand_dims(np.zeros((3, 4)), (0, -1)).shape
        (1, 3, 4, 1)
    """
    listed = tuple(axes) if isinstance(axes, Iterable) else (axes,)
    ndim = len(x.shape) + len(listed)
    ones = normal_axes(listed, ndim)
    sizes = iter(x.shape)
    return ops.reshape(x, shape=tuple(1 if i in ones else next(sizes) for i in range(ndim)))


def squeeze(x: Any, axes: int | Iterable[int] | None = None) -> Any:
    """Drop those of `axes` that have size 1, and keep the others.

    Args:
        x: any dtype and shape.
        axes: default all axes.
    Returns:
        Same dtype and elements.
    Raises:
        DimensionError: an axis is out of range.
        ShapeError: an axis is named twice.
    Source: definition (`torch.squeeze`).
    Example:
        >>> import numpy as np
        >>> squeeze(np.zeros((1, 3, 1)), 0).shape
        (3, 1)
    """
    chosen = normal_axes(axes, len(x.shape))
    shape = tuple(n for i, n in enumerate(x.shape) if n != 1 or i not in chosen)
    return ops.reshape(x, shape=shape)


def stack(xs: Sequence[Any], axis: int = 0) -> Any:
    """Put operands of one shape side by side along a new axis.

    Args:
        xs: operands of one shape; dtypes are promoted.
        axis: where the new axis stands in the result.
    Returns:
        The common dtype; the shape of one operand with `len(xs)` inserted at `axis`.
    Raises:
        ShapeError: `xs` is empty, or shapes differ.
        DimensionError: `axis` is out of range.
    Source: definition.
    Example:
        >>> import numpy as np
        >>> stack([np.zeros(3), np.ones(3)], axis=1).shape
        (3, 2)
    """
    if not xs:
        raise ShapeError("stack expects a non-empty TensorList")
    first = tuple(xs[0].shape)
    for i, x in enumerate(xs):
        if tuple(x.shape) != first:
            raise ShapeError(
                f"stack expects each tensor to be equal size, but got {list(first)} at entry 0 "
                f"and {list(x.shape)} at entry {i}"
            )
    where = normal_axis(axis, len(first) + 1)
    return ops.concat(*(expand_dims(x, where) for x in xs), axis=where)


# ---- means and exponentials ---------------------------------------------------------------------


def _widened(x: Any) -> tuple[Any, DType]:
    """`x`, float16 and bfloat16 as float32; and the dtype in which the result is due."""
    dtype = type_of(x).dtype
    if dtype.is_floating_point and dtype.itemsize == 2:
        return ops.cast(x, dtype=dtypes.float32), dtype
    return x, dtype


def _narrowed(x: Any, dtype: DType) -> Any:
    return x if type_of(x).dtype is dtype else ops.cast(x, dtype=dtype)


def _count(x: Any, axes: tuple[int, ...]) -> int:
    number = 1
    for a in axes:
        number *= x.shape[a]
    return number


def reduce_mean(x: Any, axes: int | Iterable[int] | None = None, keepdims: bool = False) -> Any:
    """Arithmetic mean over axes; of no elements NaN.

    Args:
        x: floating dtype, any shape. The half types are summed in wider types.
        axes: default all.
        keepdims: keep reduced axes with size 1.
    Returns:
        Same dtype, reduced shape.
    Raises:
        DTypeError: an integer or bool operand.
        DimensionError: an axis is out of range.
    Source: definition.
    Example:
        >>> import numpy as np
        >>> reduce_mean(np.array([1.0, 2.0, 6.0]))
        array(3.)
    """
    wide, dtype = _widened(x)
    if not dtype.is_floating_point:
        raise DTypeError(
            "mean(): could not infer output dtype. Input dtype must be either a floating point "
            f"or complex dtype. Got: {dtypes.torch_name(dtype)}"
        )
    chosen = normal_axes(axes, len(x.shape))
    total = ops.reduce_sum(wide, axes=chosen, keepdims=keepdims)
    return _narrowed(ops.div(total, float(_count(x, chosen))), dtype)


def _largest(dtype: DType) -> float:
    return float(np.finfo(dtype.numpy).max)


def logsumexp(x: Any, axes: int | Iterable[int] | None = None, keepdims: bool = False) -> Any:
    """Log of the sum of exponentials, without overflow: m + log(sum(exp(x - m))), m the maximum.

    Args:
        x: any dtype; integers become the default float.
        axes: default all.
        keepdims: keep reduced axes with size 1.
    Returns:
        Reduced shape. A slice of -inf only, or of no elements, gives -inf; the gradient of a
        slice of -inf only is NaN, as in PyTorch. A slice with +inf gives +inf.
    Raises:
        DimensionError: an axis is out of range.
    Source: Blanchard, Higham and Higham, IMA J. Numer. Anal. 41 (2021), 2311-2330.
    Example:
        >>> import numpy as np
        >>> logsumexp(np.array([1000.0, 1000.0])).round(4)
        np.float64(1000.6931)
    """
    wide, dtype = _widened(x)
    if not dtype.is_floating_point:
        dtype = dtypes.get_default_dtype()
        wide = ops.cast(x, dtype=dtype)
    chosen = normal_axes(axes, len(x.shape))
    if _count(x, chosen) == 0:
        nothing = ops.reduce_sum(ops.exp(wide), axes=chosen, keepdims=keepdims)
        return _narrowed(ops.log(nothing), dtype)
    peak = ops.reduce_max(ops.detach(wide), axes=chosen, keepdims=True)
    # Held to finite values, so that inf - inf does not spoil the elements beside an infinite one.
    largest = _largest(type_of(wide).dtype)
    shift = ops.minimum(ops.maximum(peak, -largest), largest)
    total = ops.reduce_sum(ops.exp(ops.sub(wide, shift)), axes=chosen, keepdims=True)
    result = ops.add(ops.log(total), shift)
    if not keepdims:
        result = squeeze(result, chosen)
    return _narrowed(result, dtype)


def _shifted(op: str, x: Any, axis: int) -> tuple[Any, DType, tuple[int, ...]]:
    """`x - max(x)` along `axis`, the maximum held constant (its gradient cancels)."""
    wide, dtype = _widened(x)
    axes = normal_axes(axis, len(x.shape))
    if not dtype.is_floating_point:
        last = "lastdim_" if axes in ((), (len(x.shape) - 1,)) else ""
        word = dtypes.torch_name(dtype)
        raise KernelError(f"\"{op}_{last}kernel_impl\" not implemented for '{word}'")
    if _count(x, axes) == 0:
        return wide, dtype, axes
    return ops.sub(wide, ops.reduce_max(ops.detach(wide), axes=axes, keepdims=True)), dtype, axes


def softmax(x: Any, axis: int = -1) -> Any:
    """exp(x) / sum(exp(x)) along one axis, without overflow.

    Args:
        x: floating dtype. The half types are computed in float32 and rounded once.
        axis: in [-x.ndim, x.ndim).
    Returns:
        Same dtype and shape. A slice of -inf only, or with +inf or NaN, gives NaN, as in PyTorch.
    Raises:
        DTypeError: an integer or bool operand.
        DimensionError: `axis` is out of range.
    Source: Blanchard, Higham and Higham, IMA J. Numer. Anal. 41 (2021), 2311-2330.
    Example:
        >>> import numpy as np
        >>> softmax(np.array([0.0, 0.0]))
        array([0.5, 0.5])
    """
    shifted, dtype, axes = _shifted("softmax", x, axis)
    weights = ops.exp(shifted)
    total = ops.reduce_sum(weights, axes=axes, keepdims=True)
    return _narrowed(ops.div(weights, total), dtype)


def log_softmax(x: Any, axis: int = -1) -> Any:
    """x - logsumexp(x) along one axis, without overflow.

    Args:
        x: floating dtype. The half types are computed in float32 and rounded once.
        axis: in [-x.ndim, x.ndim).
    Returns:
        Same dtype and shape. A slice of -inf only, or with +inf or NaN, gives NaN, as in PyTorch.
    Raises:
        DTypeError: an integer or bool operand.
        DimensionError: `axis` is out of range.
    Source: Blanchard, Higham and Higham, IMA J. Numer. Anal. 41 (2021), 2311-2330.
    Example:
        >>> import numpy as np
        >>> log_softmax(np.array([0.0, 0.0])).round(4)
        array([-0.6931, -0.6931])
    """
    shifted, dtype, axes = _shifted("log_softmax", x, axis)
    total = ops.reduce_sum(ops.exp(shifted), axes=axes, keepdims=True)
    return _narrowed(ops.sub(shifted, ops.log(total)), dtype)


# ---- picking elements ---------------------------------------------------------------------------


def take_along_axis(x: Any, index: Any, axis: int) -> Any:
    """result[i, j, k] = x[i, index[i, j, k], k], for axis 1 of three (`torch.gather`).

    Args:
        x: any dtype, n dimensions.
        index: int32 or int64, n dimensions; other axes no larger than those of `x`. Negative
            entries count from the end.
        axis: in [-n, n).
    Returns:
        Dtype of `x`, shape of `index`.
    Raises:
        ShapeError: the numbers of dimensions differ, or `index` is too large along another axis.
        DTypeError: `index` is neither int32 nor int64.
        DimensionError: `axis` or an index is out of range.
    Source: definition.
    Example:
        >>> import numpy as np
        >>> take_along_axis(np.array([[1, 2], [3, 4]]), np.array([[1], [0]]), 1)
        array([[2],
               [3]])
    """
    ndim = len(x.shape)
    if type_of(index).dtype not in (dtypes.int32, dtypes.int64):
        raise DTypeError("gather(): Expected dtype int32/int64 for index")
    if len(index.shape) != ndim:
        raise ShapeError(
            "Index tensor must have the same number of dimensions as input tensor; "
            f"got {len(index.shape)} and {ndim}"
        )
    where = normal_axis(axis, ndim)
    if ndim == 0:
        row = ops.reshape(x, shape=(1,))
        return ops.gather(row, index, axes=(0,))
    for d, (wanted, size) in enumerate(zip(index.shape, x.shape, strict=True)):
        if d != where and wanted > size:
            raise ShapeError(
                f"Size does not match at dimension {d} expected index {list(index.shape)} to be no "
                f"larger than self {list(x.shape)} apart from dimension {where}"
            )
    indices = [index if d == where else _counter_along(index, d) for d in range(ndim)]
    return ops.gather(x, *indices, axes=tuple(range(ndim)))


def _counter_along(index: Any, axis: int) -> Any:
    """0, 1, ... along `axis`, of size 1 along the others, so that it broadcasts with `index`."""
    shape = tuple(n if d == axis else 1 for d, n in enumerate(index.shape))
    return nullary_like(index, "iota", shape=shape, axis=axis, dtype=dtypes.int64)


def max_with_index(x: Any, axis: int, keepdims: bool = False) -> tuple[Any, Any]:
    """Maximum along one axis and where it stands (`torch.max(x, dim)`).

    Args:
        x: any dtype; a NaN counts as the maximum.
        axis: in [-x.ndim, x.ndim).
        keepdims: keep the reduced axis with size 1.
    Returns:
        Values, of the dtype of `x`, and int64 positions of their first occurrence. The gradient of
        a value goes to that one position, where `reduce_max` shares it among ties.
    Raises:
        DimensionError: `axis` is out of range, or of size 0.
    Source: definition.
    Example:
        >>> import numpy as np
        >>> max_with_index(np.array([[1.0, 5.0], [7.0, 7.0]]), 1)
        (array([5., 7.]), array([1, 0]))
    """
    return _with_index("max", x, axis, keepdims)


def min_with_index(x: Any, axis: int, keepdims: bool = False) -> tuple[Any, Any]:
    """Minimum along one axis and where it stands; else as `max_with_index`.

    Args:
        x: any dtype; a NaN counts as the minimum.
        axis: in [-x.ndim, x.ndim).
        keepdims: keep the reduced axis with size 1.
    Returns:
        Values, of the dtype of `x`, and int64 positions of their first occurrence.
    Raises:
        DimensionError: `axis` is out of range, or of size 0.
    Source: definition.
    Example:
        >>> import numpy as np
        >>> min_with_index(np.array([[1.0, 5.0], [7.0, 7.0]]), 1)
        (array([1., 7.]), array([0, 0]))
    """
    return _with_index("min", x, axis, keepdims)


def _with_index(which: str, x: Any, axis: int, keepdims: bool) -> tuple[Any, Any]:
    ndim = len(x.shape)
    where = normal_axis(axis, ndim)
    refuse_empty(which, type_of(x), (where,) if ndim else ())
    search = ops.argmax if which == "max" else ops.argmin
    index = search(x, axis=where, keepdims=True)
    values = take_along_axis(x, index, where)
    if keepdims or ndim == 0:
        return values, index
    return squeeze(values, where), squeeze(index, where)
