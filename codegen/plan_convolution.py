"""Plans of convolution and its two transposes: direct loops, or columns and a matrix product.

*Columns* (im2col): the taps of a tile of positions are gathered into a matrix, and a BLAS call
multiplies it with the weights; the transposes run the same steps backwards. A tile is a run of
output rows of one image, or several small images side by side, so that the product is wide enough
for the BLAS and the columns stay in cache.

*Direct* loops are taken where that does not pay: fewer than `FEW_CHANNELS` output channels in a
group (a depthwise convolution, say), a product under `SMALL_PRODUCT` operations (a BLAS call costs
as much), or a dtype that BLAS does not know.

Start reading at `plan_convolution`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from tracegrad.codegen.convolution_text import Sizes, Tiling, parts, positions
from tracegrad.codegen.plan import Parameter
from tracegrad.codegen.window_geometry import (
    Arithmetic,
    Division,
    SpatialAxis,
    arithmetic,
    divide,
    kernel_parameters,
    spatial_axis,
    summary_lines,
)
from tracegrad.ir.types import TensorType
from tracegrad.ir.windows import WindowAxis, window_axes

FEW_CHANNELS = 4
SMALL_PRODUCT = 16_384  # operations, 2*m*n*k
COLUMN_BYTES = 1 << 18  # a tile of columns: half of a 512 KiB second-level cache
NARROW = 64  # positions; images with fewer are put side by side
BLAS_FLOPS, DIRECT_FLOPS = 60e9, 12e9  # operations a second on one core; rough on purpose


@dataclass(frozen=True)
class ConvolutionPlan:
    """Every decision about one convolution kernel; `template` says which text it fills.

    Attributes:
        name: the C function. summary: comment lines. parameters: its operands, result, scratch.
        sizes, number, work: sizes, C types, division of the work.
        axes: all spatial axes; outer: all but the last; inner: the last.
        reads_tables: the inner axis is padded, so its tables are needed.
        checks_outer: some outer axis is padded; `outside` is the C condition.
        tile: the tile of positions; `channel_block` input channels of an input-gradient item.
        tap, line, weight, out_line: positions in the columns, the input, w and the output, in C.
        row, input_position: position within one output and one input plane.
        out_start, plane, tile_start: where an output plane, an input plane and a tile begin.
        group_weight, block_weight: what is added to w for the group and the channel block.
        cotangent, cotangent_stride: the matrix of cotangents of a tile.
        c_begin, c_end, block_tap, block_rows: the channel block, its columns and their number.
        item_group, item_tile, item_outputs: parts of an item's number.
        panel: element offset of the side-by-side panel in a slice's scratch.
        gemm: name of the matrix product; partials: one sum of weights per slice.
        scratch_bytes: scratch per call; seconds: about, on one core.
    """

    name: str
    template: str
    summary: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    sizes: Sizes
    number: Arithmetic
    work: Division
    axes: tuple[SpatialAxis, ...]
    outer: tuple[SpatialAxis, ...]
    inner: SpatialAxis
    reads_tables: bool
    checks_outer: bool
    outside: str
    tile: Tiling
    channel_block: int
    channel_blocks: int
    blocked: bool
    tap: str
    line: str
    weight: str
    out_line: str
    row: str
    input_position: str
    out_start: str
    plane: str
    tile_start: str
    group_weight: str
    block_weight: str
    cotangent: str
    cotangent_stride: str
    c_begin: str
    c_end: str
    block_tap: str
    block_rows: str
    item_group: str
    item_tile: str
    item_outputs: str
    panel: int
    gemm: str
    grouped: bool
    partials: bool
    scratch_bytes: int
    flops: int
    seconds: float

    def render(self) -> str:
        """The C function."""
        from tracegrad.codegen.unit import render

        return render(self.template, plan=self).strip() + "\n"


_OPERANDS = {
    "conv": ("x", "w"), "conv_input_grad": ("ct", "w"), "conv_weight_grad": ("x", "ct"),
}  # fmt: skip
_TITLES = {
    "conv": "Convolution (cross-correlation) of x with w.",
    "conv_input_grad": "Transpose of a convolution in its input.",
    "conv_weight_grad": "Transpose of a convolution in its weights.",
}


# ---- decisions ----------------------------------------------------------------------------------


def plan_convolution(
    op_name: str,
    in_types: Sequence[TensorType],
    out_type: TensorType,
    params: Mapping[str, Any],
    *,
    name: str = "convolution",
    comment: str = "",
    threads: bool = True,
) -> ConvolutionPlan:
    """Decide how to compute `conv`, `conv_input_grad` or `conv_weight_grad` in C.

    Args:
        op_name: the primitive's name.
        in_types, out_type: types of its operands and result; all contiguous.
        params: its parameters.
        name: of the C function.
        comment: the Python line, for the comment above the function.
        threads: whether OpenMP may be used.
    """
    x, w, ct = _roles(op_name, in_types, out_type)
    spatial = tuple(params[p] for p in ("stride", "padding", "dilation"))
    axes = window_axes(x.shape[2:], w.shape[2:], *spatial)
    sizes = Sizes(
        x.shape[0], x.shape[1], w.shape[0], params["groups"],
        prod(x.shape[2:]), prod(ct.shape[2:]), prod(w.shape[2:]),
    )  # fmt: skip
    number = arithmetic(out_type.dtype)
    tile = _tiling(op_name, sizes, axes, out_type.dtype.itemsize)
    direct = number.converts or uses_direct_loops(sizes, tile)
    made = _direct if direct else _columns
    return made(op_name, sizes, axes, tile, number, in_types, out_type, name, comment, threads)


def uses_direct_loops(sizes: Sizes, tile: Tiling) -> bool:
    """The cost rule: whether a matrix product per tile is not worth its call."""
    product = 2 * sizes.group_out * tile.max_width * sizes.depth
    return sizes.group_out < FEW_CHANNELS or product < SMALL_PRODUCT


def _roles(
    op_name: str, in_types: Sequence[TensorType], out_type: TensorType
) -> tuple[TensorType, TensorType, TensorType]:
    """Input, weight and output of the underlying convolution."""
    if op_name == "conv":
        return in_types[0], in_types[1], out_type
    if op_name == "conv_input_grad":
        return out_type, in_types[1], in_types[0]
    assert op_name == "conv_weight_grad", f"{op_name} is no convolution"
    return in_types[0], out_type, in_types[1]


def _tiling(op_name: str, sizes: Sizes, axes: tuple[WindowAxis, ...], itemsize: int) -> Tiling:
    """Side by side where an image is narrow; runs of rows where its columns outgrow the cache."""
    plane = max(sizes.out_plane, 1)
    row_width = plane // axes[0].out
    if plane < NARROW and sizes.images > 1:
        images = min(sizes.images, -(-NARROW // plane))
        return Tiling(True, False, images, axes[0].out, 1, row_width, "width", images * plane)
    rows = axes[0].out
    if len(axes) > 1 and op_name != "conv_input_grad":
        fitting = COLUMN_BYTES // max(1, sizes.depth * row_width * itemsize)
        rows = min(rows, max(fitting, -(-NARROW // row_width)))
    tiles = -(-axes[0].out // rows)
    tiled = tiles > 1
    width = "width" if tiled else str(plane)
    return Tiling(False, tiled, 1, rows, tiles, row_width, width, rows * row_width)


def _columns(
    op_name: str, sizes: Sizes, axes: tuple[WindowAxis, ...], tile: Tiling, number: Arithmetic,
    in_types: Sequence[TensorType], out_type: TensorType, name: str, comment: str, threads: bool,
) -> ConvolutionPlan:  # fmt: skip
    itemsize = out_type.dtype.itemsize
    blocks = -(-sizes.images // tile.images) * tile.tiles
    channels = sizes.group_in
    if op_name == "conv_input_grad" and not tile.packed:
        fitting = COLUMN_BYTES // (sizes.taps * tile.max_width * itemsize)
        channels = max(1, min(channels, fitting))
    channel_blocks = -(-sizes.group_in // channels)
    items = blocks
    if op_name == "conv_input_grad":
        items = blocks * sizes.groups * channel_blocks
    panel = channels * sizes.taps * tile.max_width
    elements = panel + (sizes.group_out * tile.max_width if tile.packed else 0)
    seconds = sizes.flops / BLAS_FLOPS
    limit = 16
    if op_name == "conv_weight_grad":
        limit = max(1, (1 << 25) // (sizes.weights * itemsize))
    work = divide(items, elements * itemsize, seconds, threads, min(16, limit))
    partials = op_name == "conv_weight_grad" and work.parallel
    scratch = work.scratch_bytes + (work.slices * sizes.weights * itemsize if partials else 0)
    how = (
        f"Columns of {channels * sizes.taps} taps by {tile.max_width} positions, "
        f"{items} products in {work.slices} slice{'s' if work.slices > 1 else ''}."
    )
    suffix = {"conv": "", "conv_input_grad": "_input_grad", "conv_weight_grad": "_weight_grad"}
    return _plan(
        f"convolution{suffix[op_name]}.c.j2", op_name, sizes, axes, tile, number, in_types,
        out_type, name, comment, how, work, scratch, seconds,
        channel_block=channels, channel_blocks=channel_blocks, panel=panel, partials=partials,
    )  # fmt: skip


def _direct(
    op_name: str, sizes: Sizes, axes: tuple[WindowAxis, ...], tile: Tiling, number: Arithmetic,
    in_types: Sequence[TensorType], out_type: TensorType, name: str, comment: str, threads: bool,
) -> ConvolutionPlan:  # fmt: skip
    planes = {
        "conv": (sizes.images * sizes.outputs, sizes.out_plane),
        "conv_input_grad": (sizes.images * sizes.channels, sizes.in_plane),
        "conv_weight_grad": (sizes.outputs * sizes.group_in, 0),
    }
    items, plane = planes[op_name]
    itemsize = {"uint64_t": 8, "float": 4}.get(number.compute, 0) if number.converts else 0
    seconds = sizes.flops / DIRECT_FLOPS
    work = divide(items, plane * itemsize, seconds, threads)
    suffix = {"conv": "", "conv_input_grad": "_input_grad", "conv_weight_grad": "_weight_grad"}
    whole = Tiling(False, False, 1, axes[0].out, 1, tile.row_width, str(sizes.out_plane), 0)
    return _plan(
        f"convolution_direct{suffix[op_name]}.c.j2", op_name, sizes, axes, whole, number, in_types,
        out_type, name, comment, "Direct loops.", work, work.scratch_bytes, seconds,
    )  # fmt: skip


def _plan(
    template: str, op_name: str, sizes: Sizes, axes: tuple[WindowAxis, ...], tile: Tiling,
    number: Arithmetic, in_types: Sequence[TensorType], out_type: TensorType, name: str,
    comment: str, how: str, work: Division, scratch: int, seconds: float, *,
    channel_block: int = 0, channel_blocks: int = 1, panel: int = 0, partials: bool = False,
) -> ConvolutionPlan:  # fmt: skip
    """Fill in the texts that follow from the decisions."""
    spatial = tuple(spatial_axis(i, a, tile.tiled and i == 0) for i, a in enumerate(axes))
    outer, inner = spatial[:-1], spatial[-1]
    outside = " || ".join(a.outside for a in outer if a.padded)
    return ConvolutionPlan(
        name=name, template=template, sizes=sizes,
        summary=summary_lines(_TITLES[op_name], how, comment),
        parameters=kernel_parameters(_OPERANDS[op_name], in_types, out_type),
        number=number, work=work, axes=spatial, outer=outer, inner=inner,
        reads_tables=inner.padded, checks_outer=bool(outside), outside=outside, tile=tile,
        channel_block=channel_block, channel_blocks=channel_blocks,
        blocked=channel_blocks > 1, **positions(sizes, spatial),
        **parts(op_name, sizes, spatial, tile, channel_block, channel_blocks), panel=panel,
        gemm="f32" if out_type.dtype.name == "float32" else "f64",
        grouped=sizes.groups > 1, partials=partials, scratch_bytes=scratch, flops=sizes.flops,
        seconds=seconds,
    )  # fmt: skip
