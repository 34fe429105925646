"""Where the elements of an array lie: strides in bytes, as NumPy has them, and orders of dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tracegrad.ir.types import Shape, contiguous_strides


def is_packed(shape: Shape, strides: Shape, itemsize: int) -> bool:
    """Whether elements lie one after another, the last axis fastest."""
    if 0 in shape:
        return True
    step = itemsize
    for n, stride in zip(reversed(shape), reversed(strides), strict=True):
        if n != 1 and stride != step:
            return False
        step *= n
    return True


def packed_strides(shape: Sequence[int], itemsize: int) -> Shape:
    """Row-major strides in bytes, as NumPy gives them."""
    return tuple(s * itemsize for s in contiguous_strides(tuple(shape)))


def reshaped_strides(old: Shape, strides: Shape, new: Shape, itemsize: int) -> Shape | None:
    """The strides with which memory shows as shape `new`, of as many elements; None if it cannot.

    Example:
        >>> reshaped_strides((4, 3), (24, 4), (2, 2, 3), 4)
        (48, 24, 4)
        >>> reshaped_strides((4, 3), (24, 4), (12,), 4) is None
        True
    """
    if 0 in new:
        return packed_strides(new, itemsize)
    axes = [(n, s) for n, s in zip(old, strides, strict=True) if n != 1]
    made: list[int] = []
    at = len(new)
    while axes:
        size, stride = axes.pop()  # a stretch of axes that lie one in the other, innermost first
        step = stride
        while axes and axes[-1][1] == size * stride:
            size *= axes.pop()[0]
        left = size
        while left > 1:
            at -= 1
            if left % new[at]:
                return None
            made.append(step)
            left //= new[at]
            step *= new[at]
    while at:  # axes of size 1 are left
        made.append(made[-1] * new[at] if made else itemsize)
        at -= 1
    return tuple(reversed(made))


# ---- orders of dimensions; arrays are NumPy's, or on a device -----------------------------------


def memory_order(array: Any) -> tuple[int, ...] | None:
    """The dimensions from the one that is outermost in memory; None where it is row-major."""
    if array.flags.c_contiguous:
        return None
    return tuple(sorted(range(array.ndim), key=lambda d: (-abs(array.strides[d]), d)))


def forward_order(array: Any) -> tuple[int, ...] | None:
    """`memory_order` where it differs from that of the dimensions, and no elements repeat or run
    backwards; else None.
    """
    if any(s <= 0 and n > 1 for n, s in zip(array.shape, array.strides, strict=True)):
        return None
    order = memory_order(array)
    return None if order == tuple(range(array.ndim)) else order


def is_dense(array: Any) -> bool:
    """Whether the elements lie side by side in memory, its dimensions in some order."""
    order = memory_order(array)
    return order is None or array.transpose(order).flags.c_contiguous


def inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    """The order that undoes another one."""
    return tuple(order.index(d) for d in range(len(order)))
