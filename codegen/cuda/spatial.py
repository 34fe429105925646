"""Axes of windows and convolutions as CUDA text: which inputs an output meets, and the other way.

Output `o0` and tap `k0` meet input `i0 = stride * o0 + dilation * k0 - low`. What has size 1 has no name:
it is 0. Start reading at `Spatial`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tracegrad.codegen.affine import Affine
from tracegrad.codegen.cuda.elements import position
from tracegrad.ir.windows import WindowAxis


@dataclass(frozen=True)
class Spatial:
    """One spatial axis.

    Attributes:
        axis: its geometry.
        o, k, i: names of the output, tap and input index.
        reads: lines that find the input of an output and a tap, where that is not always 0.
        inside: conditions under which that is no padding.
        meets: lines that find the output of an input and a tap: its distance from output 0, and,
            where `on` holds, the output.
        on: conditions under which there is such an output.
    """

    axis: WindowAxis
    o: str
    k: str
    i: str
    reads: tuple[str, ...]
    inside: tuple[str, ...]
    meets: tuple[str, ...]
    on: tuple[str, ...]


def spatial(number: int, axis: WindowAxis) -> Spatial:
    """The texts of one axis."""
    o, k, i, d = (f"{letter}{number}" for letter in "okid")
    taps = {k: axis.kernel}
    tap = Affine.symbol(k) * axis.dilation if axis.kernel > 1 else Affine()
    forward = tap + -axis.low + (Affine.symbol(o) * axis.stride if axis.out > 1 else 0)
    inside = _range(i, forward, {o: axis.out, **taps}, axis.size)
    reads = (f"const int {i} = {forward.text()};",) if axis.size > 1 or inside else ()
    back = tap * -1 + axis.low + (Affine.symbol(i) if axis.size > 1 else 0)
    low, high = back.bounds({i: axis.size, **taps}) or (0, 0)
    meets: tuple[str, ...] = ()
    on: list[str] = []
    if axis.stride == 1:
        on = _range(o, back, {i: axis.size, **taps}, axis.out)
        if axis.out > 1 or on:
            meets = (f"const int {o} = {back.text()};",)
    elif (low, high) != (0, 0):
        on = [f"{d} % {axis.stride} == 0"]
        on += [f"{d} >= 0"] if low < 0 else []
        on += [f"{d} <= {axis.stride * (axis.out - 1)}"] if high >= axis.stride * axis.out else []
        meets = (f"const int {d} = {back.text()};",)
        if axis.out > 1:
            meets += (f"const int {o} = {d} / {axis.stride};",)
    elif axis.out > 1:
        meets = (f"const int {o} = 0;",)
    return Spatial(axis, o, k, i, reads, tuple(inside), meets, tuple(on))


def _range(name: str, value: Affine, extents: dict[str, int], size: int) -> list[str]:
    """Conditions that put a name into [0, size), none that always hold."""
    low, high = value.bounds(extents) or (0, 0)
    found = [f"{name} >= 0"] if low < 0 else []
    return found + ([f"{name} < {size}"] if high >= size else [])


@dataclass(frozen=True)
class Space:
    """All spatial axes of a convolution or a window.

    Attributes:
        axes: the axes, outermost first.
        in_plane, out_plane, taps: elements of a plane of the image, of the outputs, of a window.
        image, window, tap: positions in these, in C.
        reads, inside, meets, on: those of all axes together.
    """

    axes: tuple[Spatial, ...]
    in_plane: int
    out_plane: int
    taps: int

    @property
    def image(self) -> str:
        """The position in a plane of the image."""
        return _row_major([(a.i, a.axis.size) for a in self.axes])

    @property
    def window(self) -> str:
        """The position in a plane of outputs."""
        return _row_major([(a.o, a.axis.out) for a in self.axes])

    @property
    def tap(self) -> str:
        """The position in a window."""
        return _row_major([(a.k, a.axis.kernel) for a in self.axes])

    @property
    def reads(self) -> tuple[str, ...]:
        """Lines that find the input."""
        return tuple(line for a in self.axes for line in a.reads)

    @property
    def inside(self) -> tuple[str, ...]:
        """Conditions that it is no padding."""
        return tuple(text for a in self.axes for text in a.inside)

    @property
    def meets(self) -> tuple[str, ...]:
        """Lines that find the output."""
        return tuple(line for a in self.axes for line in a.meets)

    @property
    def on(self) -> tuple[str, ...]:
        """Conditions that there is one."""
        return tuple(text for a in self.axes for text in a.on)

    @property
    def loops(self) -> tuple[tuple[str, int], ...]:
        """The loops over taps: (name, size)."""
        return tuple((a.k, a.axis.kernel) for a in self.axes if a.axis.kernel > 1)

    def sizes(self, of: str) -> list[tuple[str, int]]:
        """Names and sizes of the "inputs", "outputs" or "taps"."""
        return [
            {
                "inputs": (a.i, a.axis.size),
                "outputs": (a.o, a.axis.out),
                "taps": (a.k, a.axis.kernel),
            }[of]
            for a in self.axes
        ]


def space(axes: Sequence[WindowAxis]) -> Space:
    """The texts of all axes."""
    made = tuple(spatial(number, axis) for number, axis in enumerate(axes))
    in_plane = out_plane = taps = 1
    for a in axes:
        in_plane, out_plane, taps = in_plane * a.size, out_plane * a.out, taps * a.kernel
    return Space(made, in_plane, out_plane, taps)


def _row_major(sizes: Sequence[tuple[str, int]]) -> str:
    terms, stride = [], 1
    for name, size in reversed(sizes):
        terms.append((name, size, stride))
        stride *= size
    return position(terms[::-1])
