"""NumPy kernels of the windowed reductions: one sweep over the taps of the window.

Each tap pairs a strided slice of the input with the outputs that see it, so nothing is padded or
copied. Start reading at `select`.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from tracegrad.ir.errors import DimensionError, of_values
from tracegrad.ir.types import Shape
from tracegrad.ir.windows import Pairs, each_offset, trailing, window_axes

Ints = tuple[int, ...]


def eager_max(x: np.ndarray, **params: Any) -> np.ndarray:
    """Each window's maximum."""
    return select(x, **params)[0]


def eager_argmax(x: np.ndarray, **params: Any) -> np.ndarray:
    """Each window's maximum as a row-major index into the spatial axes."""
    return select(x, **params)[1]


def select(
    x: np.ndarray, *, window: Ints, stride: Ints, padding: Pairs, dilation: Ints
) -> tuple[np.ndarray, np.ndarray]:
    """Value and flat index of each window's maximum: one sweep over the taps."""
    axes = window_axes(x.shape[2:], window, stride, padding, dilation)
    shape = (*x.shape[:2], *(a.out for a in axes))
    best, index = np.zeros(shape, x.dtype), np.full(shape, -1, np.int64)
    flat = np.arange(prod(x.shape[2:])).reshape(x.shape[2:])
    for _, outputs, inputs in each_offset(axes):
        value, at = x[trailing(inputs)], trailing(outputs)
        take = (index[at] < 0) | (value > best[at]) | (value != value)
        np.copyto(best[at], value, where=take)
        np.copyto(index[at], flat[inputs], where=take)
    return best, index


def rounded(total: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """A sum in its result's dtype; halves are rounded by way of float32, as compiled code does."""
    return (
        total.astype(np.float32) if dtype.itemsize == 2 and dtype.kind != "i" else total
    ).astype(dtype)


def accumulator(dtype: np.dtype[Any]) -> type[np.generic]:
    """What window sums accumulate in: float64, or int64 (which wraps) for integers."""
    return np.int64 if dtype.kind in "iu" else np.float64


def eager_sum(
    x: np.ndarray, *, window: Ints, stride: Ints, padding: Pairs, dilation: Ints
) -> np.ndarray:
    """Each window's sum; the taps are added in row-major order."""
    axes = window_axes(x.shape[2:], window, stride, padding, dilation)
    total = np.zeros((*x.shape[:2], *(a.out for a in axes)), accumulator(x.dtype))
    for _, outputs, inputs in each_offset(axes):
        total[trailing(outputs)] += x[trailing(inputs)]
    return rounded(total, x.dtype)


def eager_spread(
    ct: np.ndarray, *, input_size: Shape, window: Ints, stride: Ints, padding: Pairs, dilation: Ints
) -> np.ndarray:
    """The sum of `ct` over the windows that see each input, in the order of the taps."""
    axes = window_axes(input_size, window, stride, padding, dilation)
    total = np.zeros((*ct.shape[:2], *input_size), accumulator(ct.dtype))
    for _, outputs, inputs in each_offset(axes):
        total[trailing(inputs)] += ct[trailing(outputs)]
    return rounded(total, ct.dtype)


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(*x.shape[:2], prod(x.shape[2:]))


def eager_gather(x: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Elements of each plane at the indices."""
    _check_index("window_gather", index, prod(x.shape[2:]))
    return np.take_along_axis(_flat(x), _flat(index), axis=2).reshape(index.shape)


def eager_scatter_add(ct: np.ndarray, index: np.ndarray, *, input_size: Shape) -> np.ndarray:
    """Sums at the indices, in the order of `ct`."""
    size, planes = prod(input_size), ct.shape[0] * ct.shape[1]
    _check_index("window_scatter_add", index, size)
    total = np.zeros((planes, size), accumulator(ct.dtype))
    plane = np.arange(planes)[:, None]
    per_plane = prod(ct.shape[2:])
    np.add.at(total, (plane, index.reshape(planes, per_plane)), ct.reshape(planes, per_plane))
    return rounded(total, ct.dtype).reshape(*ct.shape[:2], *input_size)


def _check_index(name: str, index: np.ndarray, size: int) -> None:
    if index.size and not (0 <= index.min() and index.max() < size):
        wrong = index.min() if index.min() < 0 else index.max()
        text = f"{name}: index {wrong} is out of range for {size} spatial elements"
        raise of_values(DimensionError(text))
