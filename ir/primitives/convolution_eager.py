"""NumPy kernels of convolution and its transposes: columns (im2col) and matrix products.

Half types are computed in float32. Images are taken in blocks, so that the columns, which are
larger than the images by the number of taps, stay under `COLUMN_BYTES`. Start at `eager_conv`.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np

from tracegrad.ir.primitives.contraction import wide
from tracegrad.ir.types import Shape
from tracegrad.ir.windows import Pairs, WindowAxis, each_offset, trailing, window_axes

Ints = tuple[int, ...]
COLUMN_BYTES = 1 << 24
"""How many bytes of columns are gathered at a time."""


def gather_columns(x: np.ndarray, axes: tuple[WindowAxis, ...]) -> np.ndarray:
    """im2col: (n, c, *sizes) -> (n, c, taps, positions), zero where a tap lies in the padding."""
    taps, out = prod(a.kernel for a in axes), tuple(a.out for a in axes)
    columns = np.zeros((*x.shape[:2], taps, *out), x.dtype)
    for i, (_, outputs, inputs) in enumerate(each_offset(axes)):
        columns[:, :, i][trailing(outputs)] = x[trailing(inputs)]
    return columns.reshape(*x.shape[:2], taps, prod(out))


def scatter_columns(columns: np.ndarray, axes: tuple[WindowAxis, ...]) -> np.ndarray:
    """The transpose of `gather_columns`: (n, c, taps, positions) -> (n, c, *sizes), summed."""
    n, c = columns.shape[:2]
    taps = prod(a.kernel for a in axes)
    columns = columns.reshape(n, c, taps, *(a.out for a in axes))
    x = np.zeros((n, c, *(a.size for a in axes)), columns.dtype)
    for i, (_, outputs, inputs) in enumerate(each_offset(axes)):
        x[trailing(inputs)] += columns[:, :, i][trailing(outputs)]
    return x


def _image_blocks(n: int, bytes_per_image: int) -> Iterator[slice]:
    step = max(1, COLUMN_BYTES // max(1, bytes_per_image))
    for start in range(0, n, step):
        yield slice(start, min(n, start + step))


def _grouped_columns(x: np.ndarray, axes: tuple[WindowAxis, ...], groups: int) -> np.ndarray:
    """Columns as one matrix per image and group: (n, groups, c/groups * taps, positions)."""
    columns = gather_columns(x, axes)
    n, c, taps, positions = columns.shape
    return columns.reshape(n, groups, c // groups * taps, positions)


def _column_bytes(x: np.ndarray, axes: tuple[WindowAxis, ...]) -> int:
    return x.shape[1] * x.itemsize * prod(a.kernel * a.out for a in axes)


def eager_conv(
    x: np.ndarray, w: np.ndarray, *, stride: Ints, padding: Pairs, dilation: Ints, groups: int
) -> np.ndarray:
    """Weights times columns: (o/g, c/g * taps) by (c/g * taps, positions), per image and group."""
    axes = window_axes(x.shape[2:], w.shape[2:], stride, padding, dilation)
    source, dtype = wide(x), x.dtype
    matrix = wide(w).reshape(groups, w.shape[0] // groups, prod(w.shape[1:]))
    out = np.empty((x.shape[0], w.shape[0], *(a.out for a in axes)), dtype)
    for block in _image_blocks(x.shape[0], _column_bytes(source, axes)):
        product = np.matmul(matrix, _grouped_columns(source[block], axes, groups))
        out[block] = product.reshape(out[block].shape)
    return out


def eager_input_grad(
    ct: np.ndarray,
    w: np.ndarray,
    *,
    input_size: Shape,
    stride: Ints,
    padding: Pairs,
    dilation: Ints,
    groups: int,
) -> np.ndarray:
    """Transposed weights times cotangents give columns, which are summed into the input."""
    axes = window_axes(input_size, w.shape[2:], stride, padding, dilation)
    n, o, positions = ct.shape[0], w.shape[0], prod(ct.shape[2:])
    channels, taps = w.shape[1] * groups, prod(w.shape[2:])
    matrix = wide(w).reshape(groups, o // groups, w.shape[1] * taps).transpose(0, 2, 1)
    source = wide(ct).reshape(n, groups, o // groups, positions)
    out = np.empty((n, channels, *input_size), ct.dtype)
    for block in _image_blocks(n, channels * taps * positions * source.itemsize):
        columns = np.matmul(matrix, source[block])
        columns = columns.reshape(len(columns), channels, taps, positions)
        out[block] = scatter_columns(columns, axes)
    return out


def eager_weight_grad(
    x: np.ndarray,
    ct: np.ndarray,
    *,
    kernel_size: Shape,
    stride: Ints,
    padding: Pairs,
    dilation: Ints,
    groups: int,
) -> np.ndarray:
    """Cotangents times transposed columns, summed over the images."""
    axes = window_axes(x.shape[2:], kernel_size, stride, padding, dilation)
    n, o, positions = x.shape[0], ct.shape[1], prod(ct.shape[2:])
    source, dtype = wide(x), x.dtype
    cotangent = wide(ct).reshape(n, groups, o // groups, positions)
    rows = x.shape[1] // groups * prod(kernel_size)
    total = np.zeros((groups, o // groups, rows), source.dtype)
    for block in _image_blocks(n, _column_bytes(source, axes)):
        columns = _grouped_columns(source[block], axes, groups)
        products = np.matmul(cotangent[block], columns.swapaxes(-1, -2))
        total += products.sum(axis=0, dtype=total.dtype)
    return total.reshape(o, x.shape[1] // groups, *kernel_size).astype(dtype, copy=False)
