"""Scatters: one thread for each element of the result, which takes the updates to its row in their order.

The indexed axes of the result, as one number, are its *row*. A first kernel finds the row of each update
(and checks the indices); the last one gives each element its updates, in row-major order, so repeated
indices give the bits that eager mode gives, and needs no atomics for it. Between them the updates are
sorted by row with a stable radix sort, 8 bits at a time, so that a row's updates lie together: the work
grows with the updates, not with rows times updates. Its counts are integers, whose atomics have one
outcome. Where there are few updates, each element looks through all of them instead.

The updates to one row are joined one after another by the threads of its columns: the order demands it.
Start reading at `plan_scatter`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from tracegrad.codegen.affine import Affine, offset
from tracegrad.codegen.body import Body
from tracegrad.codegen.cuda.elements import (
    ceil_div,
    index_type,
    own_kernel,
    parts_of,
    plain,
    position,
    summary_of,
)
from tracegrad.codegen.cuda.plan import CudaKernel, CudaTarget
from tracegrad.codegen.lower import Buffer, Lowering, Term
from tracegrad.codegen.plan import Line, Parameter, Scratch
from tracegrad.ir.dtypes import DType
from tracegrad.ir.graph import Node, Value
from tracegrad.ir.types import contiguous_strides

THREADS = 256
DIGITS = 256  # values of the part of a row's number that one pass sorts by
FEW_UPDATES = 16
FEW_STEPS = 1 << 22  # elements times updates up to which elements look through all updates


@dataclass(frozen=True)
class Sizes:
    """A scatter in numbers: rows (places along the indexed axes), their width, and updates to rows."""

    rows: int
    width: int
    updates: int
    blocks: int

    @property
    def index(self) -> str:
        """The C type of rows and updates."""
        return index_type(self.rows + 1, self.updates)

    @property
    def passes(self) -> int:
        """How often the updates are sorted, by 8 more bits each time."""
        return max(1, ceil_div((self.rows - 1).bit_length(), 8))

    @property
    def looks_through(self) -> bool:
        """Whether each element looks through all updates."""
        steps = self.rows * self.width * self.updates
        return self.updates <= FEW_UPDATES or steps <= FEW_STEPS


@dataclass(frozen=True)
class TakePlan:
    """What `scatter_take.cu.j2` lays out.

    Attributes:
        sizes: see there. size: elements of the result. index: the C type of positions.
        parts: lines that take the element's position apart; row: its row, in C.
        before: lines before the loop; held_type, held: what is in the element at first.
        update_parts, inside: lines of the loop, for one update; join: what it does to `held`.
        last_only: only the last update counts.
        looks_through: the loop is over all updates.
        out, result: the result's name, and what is stored there.
    """

    sizes: Sizes
    size: int
    index: str
    parts: tuple[str, ...]
    row: str
    before: tuple[Line, ...]
    held_type: str
    held: str
    update_parts: tuple[str, ...]
    inside: tuple[Line, ...]
    join: tuple[Line, ...]
    last_only: bool
    looks_through: bool
    has_updates: bool
    out: str
    result: str


@dataclass(frozen=True)
class RowsPlan:
    """What `scatter_rows.cu.j2` lays out: `row` is the number of `update`'s row after `lines`."""

    sizes: Sizes
    parts: tuple[str, ...]
    lines: tuple[Line, ...]
    row: str


def plan_scatter(
    name: str, node: Node, producer: Callable[[Value], Node | None],
    buffers: Mapping[Value, Buffer], target: CudaTarget,
) -> tuple[CudaKernel, ...]:  # fmt: skip
    """The kernels of a scatter."""
    shape, axes = plain(node.inputs[0].shape), node.params["axes"]
    width = prod(n for a, n in enumerate(shape) if a not in axes)
    common = plain(node.inputs[1].shape)[: node.inputs[1].ndim - (len(shape) - len(axes))]
    updates = prod(common)
    sizes = Sizes(prod(shape[a] for a in axes), width, updates, ceil_div(updates, THREADS))
    kernels: list[CudaKernel] = []
    c_type, nbytes = sizes.index, 4 if sizes.index == "int" else 8

    def scratch(suffix: str, count: int) -> Scratch:
        return Scratch(f"{name}_{suffix}", c_type, count * nbytes)

    rows = scratch("rows", updates)
    if updates * width:
        kernels.append(_rows(f"{name}_rows", node, producer, buffers, sizes, common, rows))
    if not prod(shape):
        return tuple(kernels)
    order: Scratch | None = None
    begin = scratch("begin", sizes.rows + 1)
    if updates and not sizes.looks_through:
        counts = scratch("counts", (sizes.blocks + 1) * DIGITS)
        for number in range(sizes.passes):
            to_rows, to_order = (scratch(f"{w}_{number % 2}", updates) for w in ("rows", "order"))
            made = Sort(name, number, sizes, rows, order, to_rows, to_order, counts)
            kernels += made.kernels()
            rows, order = to_rows, to_order
        kernels.append(_begin(f"{name}_begin", sizes, rows, begin))
    kernels.append(_take(name, node, producer, buffers, sizes, common, rows, order, begin))
    return tuple(kernels)


# ---- rows of updates ------------------------------------------------------------------------------


def _rows(
    name: str, node: Node, producer: Callable[[Value], Node | None],
    buffers: Mapping[Value, Buffer], sizes: Sizes, common: Sequence[int], rows: Scratch,
) -> CudaKernel:  # fmt: skip
    """Which row each update goes to; indices are checked here."""
    x, picks, axes = node.inputs[0], node.inputs[2:], node.params["axes"]
    extents = {f"j{d}": n for d, n in enumerate(common)}
    lowering = Lowering(producer, buffers, extents, {}, prefix="j", splits=False)
    lead = tuple(Affine() if n == 1 else Affine.symbol(s) for s, n in extents.items())
    at = (*lead, *(Affine() for _ in range(x.ndim - len(axes))))
    where = lowering.picked(picks, axes, plain(x.shape), at, ())
    depths = {**dict.fromkeys(extents, 1), "update": 1}
    body = Body(lowering, lambda a: a, depths, extents)
    strides = contiguous_strides(plain([x.shape[a] for a in axes]))
    checked = [where[a] for a in axes]
    for place in checked:  # also along an axis of size 1
        body.index(place, 1)
    row = body.index(offset(checked, strides), 1)
    read = _read(lowering, buffers)
    written = Parameter("rows", rows.c_type, True, "the row of each update")
    kernel = CudaKernel(
        name, summary_of(node, f"The rows that {sizes.updates} updates go to."), (*read, written),
        arguments=(*(p.name for p in read), rows.name), grid=(sizes.blocks, 1, 1),
        block=(THREADS, 1, 1), nbytes=sizes.updates * 8 * len(picks), ops=sizes.updates,
        uses_status=True, scratch=(rows,),
    )  # fmt: skip
    plan = RowsPlan(
        sizes, tuple(parts_of("update", list(extents.items()), sizes.index)),
        tuple(_lines(body, 0, 1)), row,
    )  # fmt: skip
    return own_kernel("scatter_rows.cu.j2", kernel, plan=plan)


def _lines(body: Body, *levels: int) -> list[Line]:
    found = [item for level in levels for item in body.statements[level]]
    return [item for item in found if isinstance(item, Line)]


def _read(lowering: Lowering, buffers: Mapping[Value, Buffer]) -> tuple[Parameter, ...]:
    """The parameters for the buffers that terms load from."""
    by_name = {b.name: b for b in buffers.values()}
    loads = (t for t in lowering.memo.values() if isinstance(t, Term) and t.kind == "load")
    names = sorted({t.template for t in loads})
    return tuple(Parameter(n, by_name[n].dtype.c_type, False) for n in names)


# ---- sorting updates by row -----------------------------------------------------------------------


@dataclass(frozen=True)
class Sort:
    """One pass of the sort: by digit `number` of the row. Without `order`, updates are in their order.

    Attributes:
        name: of the scatter. sizes: see there.
        rows, order: the rows of the updates, and which ones they are, before the pass.
        to_rows, to_order: after it.
        counts: how often each digit occurs in each block's share, then in all.
    """

    name: str
    number: int
    sizes: Sizes
    rows: Scratch
    order: Scratch | None
    to_rows: Scratch
    to_order: Scratch
    counts: Scratch

    @property
    def digit(self) -> str:
        """The digit of `row`, in C."""
        shifted = f"row >> {8 * self.number}" if self.number else "row"
        return f"({shifted}) & {DIGITS - 1}" if self.number else f"{shifted} & {DIGITS - 1}"

    def kernels(self) -> tuple[CudaKernel, ...]:
        """Count, add up, put into place."""
        count = self._kernel("count", "How often each digit occurs.", (self.rows,), (self.counts,))
        scan = self._kernel(
            "scan", "How many updates of a digit lie in shares before each.", (), (self.counts,)
        )
        read = (self.rows,) if self.order is None else (self.rows, self.order)
        place = self._kernel(
            "place", "Updates of one digit side by side, in the order in which they were.",
            (*read, self.counts), (self.to_rows, self.to_order),
        )  # fmt: skip
        return count, replace(scan, grid=(DIGITS, 1, 1)), place

    def _kernel(
        self, what: str, title: str, read: Sequence[Scratch], written: Sequence[Scratch]
    ) -> CudaKernel:
        names = {
            id(self.rows): "rows", id(self.counts): "counts", id(self.order): "order",
            id(self.to_rows): "to_rows", id(self.to_order): "to_order",
        }  # fmt: skip
        parameters = [Parameter(names[id(s)], s.c_type, False) for s in read]
        parameters += [Parameter(names[id(s)], s.c_type, True) for s in written]
        kernel = CudaKernel(
            f"{self.name}_{what}_{self.number}", (title,), tuple(parameters),
            arguments=tuple(s.name for s in (*read, *written)), grid=(self.sizes.blocks, 1, 1),
            block=(THREADS, 1, 1), scratch=(*read, *written), nbytes=sum(s.nbytes for s in read),
        )  # fmt: skip
        return own_kernel(f"scatter_{what}.cu.j2", kernel, plan=self, digits=DIGITS)


def _begin(name: str, sizes: Sizes, rows: Scratch, begin: Scratch) -> CudaKernel:
    kernel = CudaKernel(
        name, ("Where the updates to each row begin.",),
        (Parameter("rows", rows.c_type, False, "sorted"), Parameter("begin", begin.c_type, True)),
        arguments=(rows.name, begin.name), grid=(ceil_div(sizes.rows + 1, THREADS), 1, 1),
        block=(THREADS, 1, 1), scratch=(rows, begin), nbytes=begin.nbytes,
    )  # fmt: skip
    return own_kernel("scatter_begin.cu.j2", kernel, sizes=sizes)


# ---- taking the updates in ------------------------------------------------------------------------


def _take(
    name: str, node: Node, producer: Callable[[Value], Node | None],
    buffers: Mapping[Value, Buffer], sizes: Sizes, common: Sequence[int], rows: Scratch,
    order: Scratch | None, begin: Scratch,
) -> CudaKernel:  # fmt: skip
    """The elements of the result: what was there, and the updates."""
    x, updates, axes, out = *node.inputs[:2], node.params["axes"], buffers[node.out]
    shape = plain(x.shape)
    own = {f"i{d}": n for d, n in enumerate(shape)}
    loop = {f"j{d}": n for d, n in enumerate(common)}
    extents = {**own, **loop}
    lowering = Lowering(producer, buffers, extents, {}, splits=False)
    symbol = {s: Affine() if n == 1 else Affine.symbol(s) for s, n in extents.items()}
    depths = {**dict.fromkeys(own, 1), **dict.fromkeys(loop, 2), "update": 2}
    body = Body(lowering, lambda a: a, depths, extents)
    held = body.emit(lowering.term(x, tuple(symbol[s] for s in own)), 1).text
    join: tuple[Line, ...] = ()
    if sizes.updates:
        rest = [symbol[f"i{d}"] for d in range(len(shape)) if d not in axes]
        value = lowering.term(updates, (*(symbol[s] for s in loop), *rest))
        join = _join(node, out.dtype, body.emit(value, 2).text, body.comment(node))
    read = _read(lowering, buffers)
    given = {"rows": rows} if order is None else {"order": order, "begin": begin}
    scratch = given if sizes.updates else {}
    passed = tuple(Parameter(n, s.c_type, False) for n, s in scratch.items())
    size, row_sizes = prod(shape), plain([shape[a] for a in axes])
    strides = contiguous_strides(row_sizes)
    index = index_type(size, prod(plain(updates.shape)))
    half = out.dtype.c_compute != out.dtype.c_type
    how = "The result, with the updates to each row in their order."
    kernel = CudaKernel(
        name, summary_of(node, f"{node.primitive.name} of {prod(updates.shape)} updates.", how),
        (*read, *passed, Parameter(out.name, out.dtype.c_type, True)),
        arguments=(*(p.name for p in read), *(s.name for s in scratch.values()), out.name),
        grid=(ceil_div(size, THREADS), 1, 1), block=(THREADS, 1, 1), ops=prod(updates.shape),
        nbytes=(2 * size + prod(plain(updates.shape))) * x.dtype.itemsize,
        uses_status=lowering.uses_status, scratch=tuple(scratch.values()),
    )  # fmt: skip
    plan = TakePlan(
        sizes, size, index, tuple(parts_of("at", list(own.items()), index)),
        position([(f"i{a}", n, s) for a, n, s in zip(axes, row_sizes, strides, strict=True)]),
        tuple(_lines(body, 0, 1)), out.dtype.c_compute, held,
        tuple(parts_of("update", list(loop.items()), sizes.index)), tuple(_lines(body, 2)), join,
        node.primitive.name == "scatter_set", sizes.looks_through, sizes.updates > 0, out.name,
        f"tg_store_{out.dtype.name}(held)" if half else "held",
    )  # fmt: skip
    return own_kernel("scatter_take.cu.j2", kernel, plan=plan)


_JOINED = {
    "scatter_add": ("held + update_value", "held | update_value"),
    "scatter_set": ("update_value", "update_value"),
    "scatter_max": ("update_value > held{nan} ? update_value : held", "held | update_value"),
    "scatter_min": ("update_value < held{nan} ? update_value : held", "held & update_value"),
    "scatter_mul": ("held * update_value", "held & update_value"),
}
"""What comes to stand in the place of `held`: for numbers (NaN wins), and for truth values."""


def _join(node: Node, dtype: DType, value: str, where: str) -> tuple[Line, ...]:
    """The statements that take one update in; halves are rounded each time, as in eager mode."""
    nan = " || update_value != update_value" if dtype.kind == "f" else ""
    text = _JOINED[node.primitive.name][dtype.kind == "b"].format(nan=nan)
    if dtype.c_compute != dtype.c_type:
        text = f"tg_round_{dtype.name}({text})"
    elif dtype.kind != "f":
        text = f"({dtype.c_type})({text})"
    return (
        Line(f"const {dtype.c_compute} update_value = {value};"),
        Line(f"held = {text};", where),
    )
