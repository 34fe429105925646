"""What the plans of convolution and pooling share: spatial axes as C text, and the work's division.

Loops run over outputs `o0, o1, ...` and taps `k0, k1, ...`; the input they meet is
`i0 = stride*o0 + dilation*k0 - padding`. The last axis is the innermost, vectorised loop: which of
its outputs a tap serves is read from two tables, so the loop itself has no test. Start reading at
`SpatialAxis`, then `Division`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tracegrad.codegen.affine import Affine
from tracegrad.codegen.plan import PARALLEL, Parameter
from tracegrad.ir.dtypes import DType
from tracegrad.ir.types import Shape, TensorType, contiguous_strides
from tracegrad.ir.windows import WindowAxis

PARALLEL_SECONDS = 50e-6  # work below this stays on one thread
SLICES = 16  # parts into which parallel work is cut, however many threads there are
SLICE_MEMORY = 1 << 26  # bytes of scratch of all slices together
CACHE_LINE = 64


@dataclass(frozen=True)
class SpatialAxis:
    """One spatial axis in C.

    Attributes:
        o, k, i: names of the output, tap and input index.
        out, kernel, size: how many of each there are.
        start, stop: the range of `o` that a kernel visits, as C text.
        input: `i` as an expression in `o` and `k`.
        padded: some tap of some window falls on padding.
        outside: the C condition that it does.
        first, last: C text of the outputs [first, last) whose tap `k` falls on the input.
        first_table, last_table: entries of the tables that `first` and `last` read where `padded`.
    """

    o: str
    k: str
    i: str
    out: int
    kernel: int
    size: int
    start: str
    stop: str
    input: str
    padded: bool
    outside: str
    first: str
    last: str
    first_table: str
    last_table: str


def spatial_axis(number: int, axis: WindowAxis, tiled: bool = False) -> SpatialAxis:
    """The texts of one axis; `tiled` where a kernel visits outputs [row, row_end) only."""
    o, k, i = f"o{number}", f"k{number}", f"i{number}"
    meets = Affine(-axis.low, ((o, axis.stride), (k, axis.dilation if axis.kernel > 1 else 0)))
    meets = Affine(meets.const, tuple(t for t in meets.terms if t[1]))
    inside = [axis.inside(tap) for tap in range(axis.kernel)]
    padded = any(pair != (0, axis.out) for pair in inside)
    return SpatialAxis(
        o, k, i, axis.out, axis.kernel, axis.size,
        "row" if tiled else "0", "row_end" if tiled else str(axis.out),
        meets.text(), padded, f"{i} < 0 || {i} >= {axis.size}",
        f"first[{k}]" if padded else "0", f"last[{k}]" if padded else str(axis.out),
        ", ".join(str(pair[0]) for pair in inside), ", ".join(str(pair[1]) for pair in inside),
    )  # fmt: skip


def position(symbols: Sequence[str], sizes: Shape) -> Affine:
    """Row-major position of the index `symbols` in an array of shape `sizes`."""
    total = Affine()
    for symbol, stride, size in zip(symbols, contiguous_strides(sizes), sizes, strict=True):
        if size > 1:
            total = total + Affine(0, ((symbol, stride),))
    return total


@dataclass(frozen=True)
class Division:
    """Independent work items, cut into slices that threads share out.

    A slice has its own scratch and always the same items, so no result depends on the number of
    threads.
    """

    items: int
    slices: int
    slice_bytes: int
    parallel: bool
    pragma: str

    @property
    def scratch_bytes(self) -> int:
        """Scratch of all slices."""
        return self.slices * self.slice_bytes


def divide(
    items: int, bytes_per_slice: int, seconds: float, threads: bool, limit: int = SLICES
) -> Division:
    """Cut `items` into slices where the whole work is worth threads.

    Args:
        items: number of work items.
        bytes_per_slice: scratch that one slice needs.
        seconds: the work's time on one core, about.
        threads: whether the compiler has OpenMP.
        limit: the most slices.
    """
    slice_bytes = -(-bytes_per_slice // CACHE_LINE) * CACHE_LINE
    slices = min(items, limit, max(1, SLICE_MEMORY // max(slice_bytes, 1)))
    parallel = threads and seconds > PARALLEL_SECONDS and slices > 1
    return Division(
        items, slices if parallel else 1, slice_bytes, parallel,
        f"#pragma {PARALLEL}",
    )  # fmt: skip


ROLES = {"x": "images", "w": "weights", "ct": "cotangents", "index": "positions"}
"""What the operands of these primitives are, for comments: the user's names are other ones."""


@dataclass(frozen=True)
class Arithmetic:
    """The C types of a kernel and how elements are converted.

    Attributes:
        stored: type in memory. compute: type of products. total: type of long sums.
        converts: whether `load` and `store` do anything.
        load, store: function or cast put before a parenthesised expression.
    """

    stored: str
    compute: str
    total: str
    converts: bool
    load: str
    store: str


def arithmetic(dtype: DType) -> Arithmetic:
    """Halves compute in float; integers in uint64_t, whose wrapping is defined in C."""
    if dtype.name in ("float32", "float64"):
        return Arithmetic(dtype.c_type, dtype.c_type, "double", False, "", "")
    if dtype.kind == "f":
        load, store = f"tg_load_{dtype.name}", f"tg_store_{dtype.name}"
        return Arithmetic(dtype.c_type, "float", "double", True, load, store)
    return Arithmetic(dtype.c_type, "uint64_t", "uint64_t", True, "(uint64_t)", f"({dtype.c_type})")


def kernel_parameters(
    names: Sequence[str], in_types: Sequence[TensorType], out_type: TensorType
) -> tuple[Parameter, ...]:
    """The parameters of a kernel: operands in_0, in_1, ..., result out_0, and scratch."""
    operands = tuple(
        Parameter(f"in_{k}", t.dtype.c_type, False, f"{ROLES.get(name, name)} {t}")
        for k, (name, t) in enumerate(zip(names, in_types, strict=True))
    )
    result = Parameter("out_0", out_type.dtype.c_type, True, str(out_type))
    return (*operands, result, Parameter("scratch", "char", True))


def summary_lines(title: str, *lines: str) -> tuple[str, ...]:
    """Lines of the comment above a kernel; what would end the comment early is taken apart."""
    return tuple(line.replace("*/", "* /") for line in (title, *lines) if line)
