"""Maps that read memory along another axis than the one along which they store.

A transposed operand read element by element costs a whole sector of memory for each. So a block takes
a square of both axes: it reads the operand along the operand's axis into shared memory, waits, and
computes along the axis of the result. Start reading at `turned_axis`.
"""

from __future__ import annotations

from math import prod

from tracegrad.codegen.affine import Affine
from tracegrad.codegen.cuda.device import THREADS, DeviceBody, Items, Span, used
from tracegrad.codegen.cuda.groups import GroupNest
from tracegrad.codegen.cuda.plan import WARP, Block, CudaKernel
from tracegrad.codegen.expressions import Expr
from tracegrad.codegen.lower import Term
from tracegrad.codegen.nest import Axis
from tracegrad.codegen.plan import Line, Loop
from tracegrad.ir.sizes import Size

SHORT = 16  # elements of an axis, below which a square is mostly empty
MOST_TILES = 4  # operands that are turned: more would leave little shared memory
STEP = THREADS // WARP


def turned_axis(nest: GroupNest) -> Axis | None:
    """The axis along which some operand lies in memory, where that is not the last one."""
    if len(nest.axes) < 2 or any(isinstance(a.extent, Size) for a in nest.axes):
        return None
    last = nest.axes[-1]
    for axis in nest.axes[:-1]:
        if min(axis.extent, last.extent) >= SHORT and 0 < len(_turned(nest, axis)) <= MOST_TILES:
            return axis
    return None


def _turned(nest: GroupNest, axis: Axis) -> list[Term]:
    """The operands that lie along `axis`, each address once."""
    last = nest.axes[-1].variable
    loops = {a.variable for a in nest.axes}
    found: dict[tuple[str, Affine], Term] = {}
    for t in nest.terms:
        if t.kind != "load" or t.guards:
            continue
        a = nest.affine(t.affine)
        lies = a.coefficient(axis.variable) == 1 and abs(a.coefficient(last)) >= SHORT
        if lies and all(s in loops for s in a.symbols):
            found.setdefault((t.template, a), t)
    return list(found.values())


class _TileBody(DeviceBody):
    """A body that finds some of its operands in shared memory."""

    tiles: dict[tuple[str, Affine], str]

    def _load(self, term: Term, at: int) -> Expr:
        tile = None if term.guards else self.tiles.get((term.template, self.affine(term.affine)))
        if tile is None:
            return super()._load(term, at)
        return self._loaded(f"{tile}[across][down + s]", term)


def plan_turned(nest: GroupNest, axis: Axis) -> CudaKernel:
    """The kernel of a map that reads along `axis` and stores along the last one."""
    last = nest.axes[-1]
    others = [a for a in nest.axes if a not in (axis, last)]
    extents = {a.variable: a.extent for a in nest.axes}
    levels = {**{a.variable: 1 for a in others}, axis.variable: 2, last.variable: 2}
    body = _TileBody(nest.lowering, nest.affine, levels, extents, index=nest.index)
    body.tiles = {}
    tiles: list[Line] = []
    fetched: list[Line] = []
    for k, t in enumerate(_turned(nest, axis)):
        name, at = f"tile{k}", nest.affine(t.affine)
        body.tiles[t.template, at] = name
        tiles.append(Line(f"__shared__ {t.dtype.c_type} {name}[{WARP}][{WARP + 1}];"))
        fetched.append(Line(f"{name}[down + s][across] = {t.template}[{at.text()}];"))
    for value, at, term in nest.stored:
        body.store(2, nest.buffers[value], at, term)
    columns, lines = -(-last.extent // WARP), -(-axis.extent // WARP)
    squares = Span(
        (*others, Axis(_first(axis), lines, False), Axis(_first(last), columns, False)),
        "blockIdx.x",
    )
    read = _square(nest, axis, last, ("across", "down + s"), fetched)
    made = _square(nest, axis, last, ("down + s", "across"), body.statements[2])
    items = [
        *body.statements[0], *tiles, Line(f"const int across = threadIdx.x % {WARP};"),
        Line(f"const int down = threadIdx.x / {WARP};"),
        *used(squares.definitions(), nest.index, [*body.statements[1], read, made]),
        *body.statements[1], read, Line("__syncthreads();"), made,
    ]  # fmt: skip
    blocks = prod(a.extent for a in squares.axes)
    return nest.kernel(items, (blocks, 1, 1), THREADS, body.shown)


def _first(axis: Axis) -> str:
    return f"{axis.variable}_square"


def _square(
    nest: GroupNest, axis: Axis, last: Axis, places: tuple[str, str], inside: Items
) -> Loop:
    """A loop over a square in which a thread has these places along the two axes."""
    definitions = [
        (a.variable, f"{WARP} * {_first(a)} + {place}")
        for a, place in zip((axis, last), places, strict=True)
    ]
    inner = Block(
        f"if ({axis.variable} < {axis.extent} && {last.variable} < {last.extent})", tuple(inside)
    )
    lines = [Line(f"const {nest.index} {name} = {text};") for name, text in definitions]
    return Loop("s", str(WARP), (*lines, inner), step=str(STEP), pragmas=("unroll",))  # type: ignore[arg-type]
