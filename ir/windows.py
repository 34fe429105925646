"""Geometry of sliding windows, shared by convolution, pooling and the C code for both.

Along one axis, output index `o` and kernel index `k` meet input index
`o*stride + k*dilation - low`, where `low` is the padding before the input. Everything here
follows from that line.
Start reading at `WindowAxis`, then `each_offset`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from operator import index
from typing import Any

Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class WindowAxis:
    """One spatial axis: `size` inputs, `kernel` taps, `out` outputs.

    Attributes:
        size: length of the input along the axis.
        kernel: number of taps.
        stride: inputs between the first taps of neighbouring windows.
        dilation: inputs between neighbouring taps.
        low, high: padding before and after the input.
    """

    size: int
    kernel: int
    stride: int
    dilation: int
    low: int
    high: int

    @property
    def extent(self) -> int:
        """Inputs from the first tap to the last, both included."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def out(self) -> int:
        """Number of windows that fit; zero or negative where none does."""
        return (self.size + self.low + self.high - self.extent) // self.stride + 1

    def inside(self, k: int) -> tuple[int, int]:
        """The outputs [first, last) whose tap `k` falls on the input, not on padding.

        Example:
            >>> WindowAxis(size=8, kernel=3, stride=1, dilation=1, low=1, high=1).inside(0)
            (1, 8)
        """
        shift = k * self.dilation - self.low  # tap k of output o is input o*stride + shift
        first = min(max(0, -(shift // self.stride)), max(self.out, 0))
        last = min(self.out, (self.size - 1 - shift) // self.stride + 1)
        return first, max(first, last)

    def every_window_meets_input(self) -> bool:
        """False where some window lies wholly in the padding."""
        covered = {o for k in range(self.kernel) for o in range(*self.inside(k))}
        return len(covered) == max(self.out, 0)

    def slices(self, k: int) -> tuple[slice, slice]:
        """The outputs that see the input through tap `k`, and the inputs that they see."""
        first, last = self.inside(k)
        start = first * self.stride + k * self.dilation - self.low
        if last == first:
            return slice(0, 0), slice(0, 0)
        stop = start + (last - first - 1) * self.stride + 1
        return slice(first, last), slice(start, stop, self.stride)


def window_axes(
    sizes: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: Pairs,
    dilation: tuple[int, ...],
) -> tuple[WindowAxis, ...]:
    """The geometry of each spatial axis."""
    return tuple(
        WindowAxis(n, k, s, d, low, high)
        for n, k, s, (low, high), d in zip(sizes, kernel, stride, padding, dilation, strict=True)
    )


Slices = tuple[slice, ...]


def each_offset(
    axes: tuple[WindowAxis, ...],
) -> Iterator[tuple[tuple[int, ...], Slices, Slices]]:
    """Every tap of the window in row-major order: its indices, and who meets whom through it.

    Yields:
        (taps, outputs, inputs): `inputs[...]` of the spatial input are the elements that
        `outputs[...]` of the spatial output see through these taps; the two have equal shapes.
    """
    for taps in product(*(range(a.kernel) for a in axes)):
        pairs = [a.slices(k) for a, k in zip(axes, taps, strict=True)]
        yield taps, tuple(p[0] for p in pairs), tuple(p[1] for p in pairs)


def trailing(slices: Slices) -> Any:
    """The index that applies `slices` to the last axes of an array."""
    return (..., *slices)


def tuple_of(value: Any, rank: int) -> tuple[int, ...]:
    """An int repeated `rank` times, or the ints of a sequence as they are."""
    if hasattr(value, "__index__"):
        return (index(value),) * rank
    return tuple(index(v) for v in value)


def pairs_of(value: Any, rank: int) -> Pairs:
    """Padding as (before, after) pairs, from an int, ints or pairs."""
    if hasattr(value, "__index__"):
        return ((index(value), index(value)),) * rank
    return tuple(tuple_of(v, 2) for v in value)  # type: ignore[misc]
