"""Plans of the windowed reductions and their transposes: loops over image planes.

A work item is one plane (one channel of one image). Rows of a result are built tap by tap, so that
the innermost loop runs along the row and vectorises; sums run in float64 (integers in uint64_t) in
the order in which the eager kernels add, so compiled and eager agree to the bit. Start reading at
`plan_window`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from tracegrad.codegen.plan import Parameter
from tracegrad.codegen.window_geometry import (
    Arithmetic,
    Division,
    SpatialAxis,
    arithmetic,
    divide,
    kernel_parameters,
    position,
    spatial_axis,
    summary_lines,
)
from tracegrad.ir.dtypes import DType
from tracegrad.ir.types import Shape, TensorType
from tracegrad.ir.windows import window_axes

ELEMENTS_PER_SECOND = 3e9  # taps handled by one core; rough on purpose


@dataclass(frozen=True)
class WindowPlan:
    """Every decision about one window kernel; `template` says which text it fills.

    Attributes:
        name: the C function. summary: comment lines. parameters: its operands, result, scratch.
        number, work: C types, division of the work (one item per plane).
        axes: all spatial axes; outer: all but the last; inner: the last, if there are any.
        reads_tables: the inner axis is padded, so its tables are needed.
        checks_outer: some outer axis is padded; `outside` is the C condition.
        in_plane, out_plane: elements of a plane of the operand and of the result.
        line, out_line: where a row begins in a plane of the image and of the windows, in C.
        lowest: what every maximum beats. better: the C condition that `value` beats `best`.
        wants_index: the result is the index of the maximum. in_scratch: `best` is a row of scratch.
        scratch_bytes: scratch per call; seconds: about, on one core.
    """

    name: str
    template: str
    summary: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    number: Arithmetic
    work: Division
    axes: tuple[SpatialAxis, ...]
    outer: tuple[SpatialAxis, ...]
    inner: SpatialAxis | None
    reads_tables: bool
    checks_outer: bool
    outside: str
    in_plane: int
    out_plane: int
    line: str
    out_line: str
    lowest: str
    better: str
    wants_index: bool
    in_scratch: bool
    scratch_bytes: int
    flops: int
    seconds: float

    def render(self) -> str:
        """The C function."""
        from tracegrad.codegen.unit import render

        return render(self.template, plan=self).strip() + "\n"


_OPERANDS = {
    "window_max": ("x",), "window_argmax": ("x",), "window_sum": ("x",), "window_spread": ("ct",),
    "window_gather": ("x", "index"), "window_scatter_add": ("ct", "index"),
}  # fmt: skip
_TITLES = {
    "window_max": "Maximum of each window; a NaN wins.",
    "window_argmax": "Index of each window's maximum: the first of equals, or the last NaN.",
    "window_sum": "Sum of each window.",
    "window_spread": "Transpose of window sums: each input gets the sum of ct over its windows.",
    "window_gather": "Elements at the indices that window_argmax gave: all lie inside the plane.",
    "window_scatter_add": "Sums of ct at the indices that window_argmax gave: inside the plane.",
}
_TEMPLATES = {
    "window_max": "window_select.c.j2", "window_argmax": "window_select.c.j2",
    "window_sum": "window_sum.c.j2", "window_spread": "window_spread.c.j2",
    "window_gather": "window_gather.c.j2", "window_scatter_add": "window_scatter_add.c.j2",
}  # fmt: skip


def plan_window(
    op_name: str,
    in_types: Sequence[TensorType],
    out_type: TensorType,
    params: Mapping[str, Any],
    *,
    name: str = "window",
    comment: str = "",
    threads: bool = True,
) -> WindowPlan:
    """Decide how to compute one of the window operations in C.

    Args:
        op_name: the primitive's name.
        in_types, out_type: types of its operands and result; all contiguous.
        params: its parameters.
        name: of the C function.
        comment: the Python line, for the comment above the function.
        threads: whether OpenMP may be used.
    """
    image, windows = in_types[0], out_type
    if op_name in ("window_spread", "window_scatter_add"):
        image, windows = windows, image
    axes = _axes(image, params)
    planes, in_plane, out_plane = (
        prod(image.shape[:2]),
        prod(image.shape[2:]),
        prod(windows.shape[2:]),
    )
    selects = op_name in ("window_max", "window_argmax")
    number = _selecting(image.dtype) if selects else _summing(image.dtype)
    in_scratch = op_name == "window_argmax" or number.converts
    row = axes[-1].out if axes else 0
    held = {
        "window_max": row if in_scratch else 0, "window_argmax": row, "window_sum": row,
        "window_spread": in_plane, "window_scatter_add": in_plane, "window_gather": 0,
    }[op_name]  # fmt: skip
    flops = planes * max(out_plane * prod(a.kernel for a in axes), in_plane)
    seconds = flops / ELEMENTS_PER_SECOND
    work = divide(planes, held * _size_of(number.compute), seconds, threads)
    outer, inner = axes[:-1], axes[-1] if axes else None
    outside = " || ".join(a.outside for a in outer if a.padded)
    return WindowPlan(
        name=name, template=_TEMPLATES[op_name],
        summary=summary_lines(_TITLES[op_name], comment),
        parameters=kernel_parameters(_OPERANDS[op_name], in_types, out_type),
        number=number, work=work, axes=axes, outer=outer, inner=inner,
        reads_tables=inner is not None and inner.padded,
        checks_outer=bool(outside), outside=outside, in_plane=in_plane, out_plane=out_plane,
        line=_line([a.i for a in outer], tuple(a.size for a in axes)),
        out_line=_line([a.o for a in outer], tuple(a.out for a in axes)),
        lowest=_lowest(image.dtype), better=_better(image.dtype, inner, op_name),
        wants_index=op_name == "window_argmax", in_scratch=in_scratch,
        scratch_bytes=work.scratch_bytes, flops=flops, seconds=seconds,
    )  # fmt: skip


def _axes(image: TensorType, params: Mapping[str, Any]) -> tuple[SpatialAxis, ...]:
    """The spatial axes; none for the indexed pair, which sees a plane as one row."""
    if "window" not in params:
        return ()
    given = (params[p] for p in ("window", "stride", "padding", "dilation"))
    return tuple(spatial_axis(i, a) for i, a in enumerate(window_axes(image.shape[2:], *given)))


def _selecting(dtype: DType) -> Arithmetic:
    """Maxima compare in the type itself; halves compare as float, which holds them exactly."""
    if dtype.kind == "f":
        return arithmetic(dtype)
    return Arithmetic(dtype.c_type, dtype.c_type, dtype.c_type, False, "", "")


def _summing(dtype: DType) -> Arithmetic:
    """Sums run in double, or in uint64_t, whose wrapping is defined in C."""
    plain = arithmetic(dtype)
    return Arithmetic(
        plain.stored, plain.total, plain.total, plain.converts, plain.load, plain.store
    )


def _size_of(c_type: str) -> int:
    return 8 if c_type in ("double", "uint64_t", "int64_t") else 4


def _lowest(dtype: DType) -> str:
    if dtype.kind == "f":
        return "-TG_INF"
    return "0" if dtype.kind == "u" else f"INT{8 * dtype.itemsize}_MIN"


def _better(dtype: DType, inner: SpatialAxis | None, op_name: str) -> str:
    """Conditions joined by `|`, which has no branches, so that the loop vectorises."""
    o = inner.o if inner is not None else ""
    parts = [f"value > best[{o}]"]
    if op_name == "window_argmax":
        parts.insert(0, f"index[{o}] < 0")
    if dtype.kind == "f":
        parts.append("value != value")
    return parts[0] if len(parts) == 1 else " | ".join(f"({part})" for part in parts)


def _line(symbols: list[str], sizes: Shape) -> str:
    """Where the row at the outer indices `symbols` begins in a plane; empty for a single row."""
    terms = position((*symbols, "0"), sizes).terms if sizes else ()
    return "".join(f" + {c} * {s}" for s, c in terms if s != "0")
