"""The numbers of a convolution, and the positions in its arrays as C text.

What follows from the decisions of `plan_convolution` without deciding anything. Start reading at
`Sizes`, then `positions`.
"""

from __future__ import annotations

from dataclasses import dataclass

from tracegrad.codegen.affine import Affine
from tracegrad.codegen.window_geometry import SpatialAxis, position
from tracegrad.ir.types import Shape


@dataclass(frozen=True)
class Sizes:
    """The numbers of one convolution: x (images, channels, *in), w (outputs, group_in, *taps)."""

    images: int
    channels: int
    outputs: int
    groups: int
    in_plane: int
    out_plane: int
    taps: int

    @property
    def group_in(self) -> int:
        """Input channels of a group."""
        return self.channels // self.groups

    @property
    def group_out(self) -> int:
        """Output channels of a group."""
        return self.outputs // self.groups

    @property
    def depth(self) -> int:
        """Rows of the column matrix: taps of all input channels of a group."""
        return self.group_in * self.taps

    @property
    def flops(self) -> int:
        """Operations of the whole convolution."""
        return 2 * self.images * self.outputs * self.out_plane * self.depth

    @property
    def weights(self) -> int:
        """Elements of w."""
        return self.outputs * self.depth


@dataclass(frozen=True)
class Tiling:
    """Which positions one column matrix holds.

    Attributes:
        packed: several whole images side by side (`images` of them, the last tile maybe fewer).
        tiled: a run of `rows` output rows of one image; `tiles` such runs per image.
        width: columns of the matrix as C text; `max_width` the most there are.
        row_width: positions of one output row.
    """

    packed: bool
    tiled: bool
    images: int
    rows: int
    tiles: int
    row_width: int
    width: str
    max_width: int


def positions(sizes: Sizes, axes: tuple[SpatialAxis, ...]) -> dict[str, str]:
    """Positions of input lines, output lines, weights and rows of columns, as C text.

    `n` counts images, `o` output channels, `group` groups, `c` input channels of the group.
    """
    in_shape: Shape = tuple(a.size for a in axes)
    out_shape: Shape = tuple(a.out for a in axes)
    taps: Shape = tuple(a.kernel for a in axes)
    inputs, outputs = tuple(a.i for a in axes), tuple(a.o for a in axes)
    line = position(("n", "group", "c", *inputs[:-1], "0"),
                    (sizes.images, sizes.groups, sizes.group_in, *in_shape))  # fmt: skip
    out_line = position(("n", "o", *outputs[:-1], "0"), (sizes.images, sizes.outputs, *out_shape))
    within = position((*inputs[:-1], "0"), in_shape)
    kernel = tuple(a.k for a in axes)
    inner = axes[-1].input
    return {
        "line": _without_zero(line).text(),
        "out_line": _without_zero(out_line).text(),
        "weight": position(("o", "c", *kernel), (sizes.outputs, sizes.group_in, *taps)).text(),
        "tap": position(("c", *kernel), (sizes.group_in, *taps)).text(),
        "row": position(outputs, out_shape).text(),
        "input_position": f"{_without_zero(within).text()} + {inner}" if len(axes) > 1 else inner,
    }


def _without_zero(index: Affine) -> Affine:
    return Affine(index.const, tuple(t for t in index.terms if t[0] != "0"))


def parts(
    op_name: str, sizes: Sizes, axes: tuple[SpatialAxis, ...], tile: Tiling, block: int, blocks: int
) -> dict[str, str]:
    """Where the parts of a tile begin, and which part an item is, as C text."""
    n, group = Affine(0, (("n", sizes.outputs),)), Affine(0, (("group", sizes.group_out),))
    channel = n + group if sizes.groups > 1 else n
    start = channel * sizes.out_plane
    row = Affine(0, (("row", tile.row_width),)) if tile.tiled else Affine()
    planes = position(("n", "group", "c"), (sizes.images, sizes.groups, sizes.group_in))
    taps = tuple(a.kernel for a in axes)
    tap = position(("c", *(a.k for a in axes)), (sizes.group_in, *taps))
    tile_start = (start + row).text()
    source = "in_1" if op_name == "conv_weight_grad" else "in_0"
    first = Affine(0, (("c_begin", -sizes.taps),)) if blocks > 1 else Affine()
    per_tile = blocks * sizes.groups
    return {
        "out_start": (start + Affine(0, (("o", sizes.out_plane),))).text(),
        "plane": (planes * sizes.in_plane + Affine.symbol("i")).text(),
        "tile_start": tile_start,
        "group_weight": f" + {sizes.group_out * sizes.depth} * group" if sizes.groups > 1 else "",
        "block_weight": f" + {sizes.taps} * c_begin" if blocks > 1 else "",
        "cotangent": "panel" if tile.packed else f"{source} + {tile_start}",
        "cotangent_stride": "width" if tile.packed else str(sizes.out_plane),
        "c_begin": "c_begin" if blocks > 1 else "0",
        "c_end": "c_end" if blocks > 1 else str(sizes.group_in),
        "block_tap": (tap + first).text(),
        "block_rows": f"(c_end - c_begin) * {sizes.taps}" if blocks > 1 else str(sizes.depth),
        "item_group": f"item / {blocks} % {sizes.groups}".replace("/ 1 ", ""),
        "item_tile": f"item / {per_tile}" if per_tile > 1 else "item",
        "item_outputs": (
            f"item % {sizes.channels} / {sizes.group_in} * {sizes.group_out}"
            if sizes.groups > 1 else "0"
        ),
    }  # fmt: skip
