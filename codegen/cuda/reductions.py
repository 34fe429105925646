"""Reductions: over the last axes (*rows*), or over axes before the last (*columns*).

A row is shared by a team of threads, of a size that suits its length; columns lie side by side in a
warp, so that it reads whole cache lines. Where there are too few rows or columns to fill the device,
what is reduced is cut into chunks of fixed size; a second kernel joins their parts in order. Nothing
depends on the grid or on the order in which blocks run. Start reading at `plan_reductions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from tracegrad.codegen.cuda.device import THREADS, DeviceBody, Items, Span, takes_lanes, used
from tracegrad.codegen.cuda.groups import GroupNest
from tracegrad.codegen.cuda.plan import WARP, Block, CudaKernel, Dim3
from tracegrad.codegen.cuda.teams import Accumulator, Team, cells, join, part
from tracegrad.codegen.nest import natural, stop_of_block
from tracegrad.codegen.plan import Line, Loop, Parameter, Scratch
from tracegrad.codegen.reducers import Reducer
from tracegrad.ir.graph import Node
from tracegrad.ir.sizes import Size, ceil_div

FULL = 1024  # blocks that fill any device; fixed, so that results do not depend on the device
CHUNK = 4096  # elements of a chunk of a row, at least
FEW = 256  # rows, below which long ones are cut
WIDE = 2**15  # columns that fill the device with one thread each
MOST_SHARED = 40 * 1024  # bytes of a block
MOST_GRID = 65535  # in the second and third direction

Result = tuple[Node, Reducer, str]  # with the name of its accumulator


def plan_empty(nest: GroupNest) -> tuple[CudaKernel, ...]:
    """Nothing to read: reductions over nothing have their first value."""
    finish = [
        Line(f"{nest.buffers[node.out].name}[row] = {r.result(r.initial)};")
        for node, _, _, r in nest.reduced if node.out.type.size
    ]  # fmt: skip
    rows = prod(a.extent for a in nest.kept)
    if not finish:
        return ()
    items = [*_row_number(Team(1, THREADS), rows, nest), *finish]
    return (nest.kernel(items, (ceil_div(int(rows), THREADS), 1, 1), THREADS, {}),)


def plan_reductions(nest: GroupNest) -> tuple[CudaKernel, ...]:
    """The kernels of a group with reductions: one, or one and another that joins the parts."""
    if nest.kept and nest.inner and not nest.axes[-1].reduced:
        return _columns(nest)
    return _rows(nest)


# ---- rows ---------------------------------------------------------------------------------------


def _rows(nest: GroupNest) -> tuple[CudaKernel, ...]:
    rows, length = prod(a.extent for a in nest.kept), prod(a.extent for a in nest.inner)
    lanes = row_lanes(nest)
    span = Span.over(nest.inner, "r", lanes) if nest.inner else Span((), "r")
    chunk = _chunk(rows, length)
    team = row_team(rows, chunk or length, lanes)
    body = nest.body(
        {**{a.variable: 1 for a in nest.kept}, **{a.variable: 2 for a in nest.inner}},
        lanes=lanes, along=nest.inner[-1].variable if nest.inner else "",
    )  # fmt: skip
    results = _take_in(nest, body, 2 + (lanes > 1))
    block = "blockIdx.y" if chunk else "blockIdx.x"
    start, stop, head = span.counted(team.lane), str(span.stop), []
    if chunk:
        size = str(chunk if len(span.axes) == 1 else chunk // lanes)
        head = [Line(f"const {nest.index} begin = {_wide(nest)}blockIdx.x * {size};", "its chunk"),
                Line(f"const {nest.index} end = {stop_of_block('begin', size, span.stop)};")]  # fmt: skip
        start, stop = f"begin + {start}" if start != "0" else "begin", "end"
    loop = _reduced_loop(nest, body, span, 2, start, stop, span.counted(str(team.width)))
    accumulators = [(r, acc) for _, r, acc in results]
    chunks = ceil_div(length, chunk) if chunk else 1
    scratch = _scratch(nest, results, int(chunks) * int(rows)) if chunk else ()
    finish = _finish(nest, results, scratch, "blockIdx.x", rows)
    items = [
        *body.statements[0], *_row_number(team, rows, nest, block), *team.head(), *head,
        *used(_of_row(nest), nest.index, [*body.statements[1], *loop]),
        *body.statements[1], *_declared(accumulators), *loop,
        *team.combine(accumulators, everyone=False), *team.first(finish),
    ]  # fmt: skip
    blocks = -(-int(rows) // team.per_block)
    grid: Dim3 = (int(chunks), blocks, 1) if chunk else (blocks, 1, 1)
    return _with_combine(nest, body, items, grid, team.threads, results, scratch, chunks, rows)


def row_lanes(nest: GroupNest) -> int:
    """How many neighbours along a row a thread takes at once."""
    if not nest.inner:
        return 1
    last = nest.inner[-1]
    lanes = 4 if nest.cost > 32 else max(4, min(8, 16 // nest.widest()))
    rest = last.extent % lanes
    whole = not isinstance(rest, Size) and rest == 0
    return lanes if whole and takes_lanes(nest.terms, nest.affine, last.variable) else 1


def row_team(rows: int, length: int, lanes: int) -> Team:
    """How many threads share a row of a length: each has some elements to itself."""
    if isinstance(length, Size):
        return Team(THREADS, THREADS)
    share = 2 * lanes if lanes > 1 else 4
    width = 1 << max((-(-int(length) // share) - 1).bit_length(), 0)
    if length <= 4:
        width = 1
    elif length <= 1024:
        width = min(width, WARP)
    if width > WARP:
        width = max(64, min(width, THREADS if length <= 16384 else 512))
        return Team(width, width)
    few = not isinstance(rows, Size) and rows * width <= FULL * 64
    return Team(width, 64 if few else THREADS)


def _chunk(rows: int, length: int) -> int:
    """Elements of a row for one block; 0 where rows are not cut."""
    if isinstance(rows, Size) or rows >= FEW:
        return 0
    if isinstance(length, Size):
        return 2 * CHUNK
    if length < 2 * CHUNK:
        return 0
    return max(CHUNK, ceil_div(ceil_div(length * rows, FULL), CHUNK) * CHUNK)


def _row_number(
    team: Team, rows: int, nest: GroupNest, block: str = "blockIdx.x"
) -> list[Line | Block]:
    if not isinstance(rows, Size) and rows == 1 and team.per_block == 1:
        return []
    wide = _wide(nest)
    lines: list[Line | Block] = [Line(f"const {nest.index} row = {wide}{team.number(block)};")]
    if team.per_block > 1:
        lines += [Line(f"if (row >= {rows})"), Line("    return;")]
    return lines


# ---- columns ------------------------------------------------------------------------------------


def _columns(nest: GroupNest) -> tuple[CudaKernel, ...]:
    columns, length = prod(a.extent for a in nest.kept), prod(a.extent for a in nest.inner)
    across, down, chunk = _tile(columns, length, sum(len(cells(r, "")) for *_, r in nest.reduced))
    threads = across * down
    body = nest.body({**{a.variable: 1 for a in nest.kept}, **{a.variable: 2 for a in nest.inner}})
    results = _take_in(nest, body, 2)
    span = Span.over(nest.inner, "r")
    chunks = ceil_div(length, chunk) if chunk else 1
    place, down_at = ("threadIdx.x", "0") if down == 1 else (f"threadIdx.x % {across}", "down")
    head = [
        Line(
            f"const {nest.index} row = {_wide(nest)}blockIdx.x * {across} + {place};", "its column"
        )
    ]
    if down > 1:
        head.append(Line(f"const int down = threadIdx.x / {across};"))
    start, stop = down_at, str(span.stop)
    if chunk:
        head += [Line(f"const {nest.index} begin = {_wide(nest)}blockIdx.y * {chunk};", "its chunk"),
                 Line(f"const {nest.index} end = {stop_of_block('begin', chunk, span.stop)};")]  # fmt: skip
        start, stop = "begin" if down == 1 else f"begin + {down_at}", "end"
    loop = _reduced_loop(nest, body, span, 2, start, stop, str(down))
    accumulators = [(r, acc) for _, r, acc in results]
    inside = [*body.statements[1], *loop]
    scratch = _scratch(nest, results, int(chunks) * int(columns)) if chunk else ()
    finish = _finish(nest, results, scratch, "blockIdx.y", columns)
    items = [
        *body.statements[0], *head, *_declared(accumulators),
        Block(f"if (row < {columns})", (*used(_of_row(nest), nest.index, inside), *inside)),
    ]  # fmt: skip
    if down > 1:
        items += _joined_down(accumulators, across, down)
    condition = f"down == 0 && row < {columns}" if down > 1 else f"row < {columns}"
    items.append(Block(f"if ({condition})", tuple(finish)))
    grid: Dim3 = (-(-int(columns) // across), int(chunks), 1)
    assert grid[1] <= MOST_GRID, "a reduction of columns has too many chunks for a grid"
    return _with_combine(nest, body, items, grid, threads, results, scratch, chunks, columns)


def _tile(columns: int, length: int, many: int) -> tuple[int, int, int]:
    """Columns and rows of a block's threads, and reduced elements of a chunk (0: not cut).

    `many` variables of each thread go through shared memory.
    """
    if not isinstance(columns, Size) and (
        columns >= WIDE or not isinstance(length, Size) and length <= 8
    ):
        return 128, 1, 0
    across = WARP
    if not isinstance(columns, Size):
        across = min(WARP, 1 << max(int(columns) - 1, 0).bit_length())
    down = _down(across, many)
    if isinstance(length, Size):
        return across, down, 1024 if length <= 1024 * MOST_GRID // 2 else 2**20
    blocks = 64 if isinstance(columns, Size) else ceil_div(columns, across)
    chunk = max(ceil_div(length * blocks, FULL), down * 8)
    chunk = ceil_div(chunk, down) * down
    return across, down, 0 if chunk >= length else chunk


def _down(across: int, many: int) -> int:
    """How many threads below each other share columns, so that what they have fits in a block."""
    down = THREADS // across
    while down > 1 and across * down * many * 8 > MOST_SHARED:
        down //= 2
    return down


def _joined_down(accumulators: Sequence[Accumulator], across: int, down: int) -> list[Line | Block]:
    """Join what the threads below each other have."""
    items: list[Line | Block] = []
    joined: list[Line] = []
    for r, acc in accumulators:
        for (kind, name), (_, shared) in zip(
            cells(r, acc), cells(r, part(acc, "part")), strict=True
        ):
            items.append(Line(f"__shared__ {kind} {shared}[{across * down}];"))
            items.append(Line(f"{shared}[threadIdx.x] = {name};"))
        at = f"[{across} * d + threadIdx.x]"
        joined += join(r, acc, [name + at for _, name in cells(r, part(acc, "part"))])
    loop = Block(f"for (int d = 1; d < {down}; d++)", tuple(joined))
    return [*items, Line("__syncthreads();"), Block("if (down == 0)", (loop,))]


# ---- what both share ----------------------------------------------------------------------------


def _wide(nest: GroupNest) -> str:
    return "(int64_t)" if nest.index == "int64_t" else ""


def _of_row(nest: GroupNest) -> list[tuple[str, str]]:
    """The variables of the kept loops by the number of the row."""
    if len(nest.kept) == 1:
        return [(nest.kept[0].variable, "row")]
    return Span.over(nest.kept, "row").definitions() if nest.kept else []


def _take_in(nest: GroupNest, body: DeviceBody, depth: int) -> list[Result]:
    """The statements for one element: what is stored, and what is accumulated."""
    for value, at, term in nest.stored:
        body.store(depth, nest.buffers[value], at, term)
    results = []
    for k, (node, _, term, r) in enumerate(nest.reduced):
        acc = f"acc{k}"
        element = body.emit(term, depth).text
        body.at(depth, *r.update(acc, element, body.index(r.position, depth), body.comment(node)))
        results.append((node, r, acc))
    return results


def _reduced_loop(
    nest: GroupNest, body: DeviceBody, span: Span, level: int, start: str, stop: str, step: str
) -> Items:
    inside = body.inside(level)
    if not span.axes:
        return inside
    inside = [*used(span.definitions(), nest.index, inside), *inside]
    straight = span.lanes == 1 or nest.target.aligned  # nothing between one load and the next
    pragmas = ("unroll 4",) if straight and nest.cost <= 16 else ()
    return [Loop(span.counter, stop, tuple(inside), start, step, pragmas=pragmas)]


def _declared(accumulators: Sequence[Accumulator]) -> list[Line]:
    return [line for r, acc in accumulators for line in r.declare(acc)]


def _scratch(nest: GroupNest, results: Sequence[Result], size: int) -> tuple[Scratch, ...]:
    """Room for the parts of all chunks."""
    step = nest.name.removeprefix("kernel_")
    return tuple(
        Scratch(f"{name}_{step}", kind, size * 8)
        for _, r, acc in results for kind, name in cells(r, part(acc, "partial"))
    )  # fmt: skip


def _finish(
    nest: GroupNest, results: Sequence[Result], scratch: Sequence[Scratch], chunk: str, rows: int
) -> list[Line]:
    """Statements that store the accumulators of a row: finished, or as the parts of a chunk."""
    one = not isinstance(rows, Size) and rows == 1
    if not scratch:
        return [
            Line(f"{nest.buffers[node.out].name}[{'0' if one and not nest.kept else 'row'}] = {r.result(acc)};")
            for node, r, acc in results
        ]  # fmt: skip
    names = [name for _, r, acc in results for _, name in cells(r, acc)]
    at = chunk if not nest.kept else f"{_wide(nest)}{chunk} * {rows} + row"
    return [Line(f"{s.name}[{at}] = {name};") for s, name in zip(scratch, names, strict=True)]


def _with_combine(
    nest: GroupNest, body: DeviceBody, items: Items, grid: Dim3, threads: int,
    results: Sequence[Result], scratch: Sequence[Scratch], chunks: int, rows: int,
) -> tuple[CudaKernel, ...]:  # fmt: skip
    if not scratch:
        return (nest.kernel(items, grid, threads, body.shown),)
    stored = [nest.buffers[v].name for v in nest.group.stores]
    first = nest.kernel(items, grid, threads, body.shown, stored, scratch)
    buffers = [(nest.buffers[node.out].name, node.out.dtype.c_type) for node, _, _ in results]
    accumulators = [(r, acc) for _, r, acc in results]
    return (first, combine(nest.name, buffers, accumulators, scratch, chunks, rows))


def combine(
    name: str, outs: Sequence[tuple[str, str]], accumulators: Sequence[Accumulator],
    scratch: Sequence[Scratch], chunks: int, rows: int,
) -> CudaKernel:  # fmt: skip
    """The kernel that joins the parts of chunks in order: `scratch[chunk][row]`.

    Args:
        name: of the kernel that made the parts.
        outs: name and C type of the buffer of each result.
        accumulators: what accumulated.
        scratch: where the parts are, one for each variable of the accumulators.
        chunks: how many parts each result has.
        rows: how many results there are.
    """
    varies = isinstance(rows, Size) or isinstance(chunks, Size)
    index = "int64_t" if varies or chunks * rows >= 2**30 else "int"
    named = zip(scratch, [c for r, acc in accumulators for c in cells(r, acc)], strict=True)
    scale = "" if not isinstance(rows, Size) and rows == 1 else f" * {rows} + row"
    places = {cell: f"{s.name}[chunk{scale}]" for s, (_, cell) in named}
    inside = [
        line for r, acc in accumulators
        for line in join(r, acc, [places[cell] for _, cell in cells(r, acc)])
    ]  # fmt: skip
    finish = [
        Line(f"{out}[row] = {r.result(acc)};")
        for (out, _), (r, acc) in zip(outs, accumulators, strict=True)
    ]
    few = not isinstance(chunks, Size) and chunks <= 8
    unrolled = ("unroll 4",) if len(accumulators) <= 8 else ()
    if not isinstance(rows, Size) and rows <= 32 and not few:  # a block for each result
        team = Team(THREADS, THREADS)
        loop = Loop(
            "chunk", str(chunks), tuple(inside), team.lane, str(team.width), pragmas=unrolled
        )
        items: list[Line | Loop | Block] = [
            Line(f"const {index} row = blockIdx.x;"), *_declared(accumulators), loop,
            *team.combine(accumulators, everyone=False), *team.first(finish),
        ]  # fmt: skip
        grid, threads = int(rows), THREADS
    else:
        items, across, threads = _joined_columns(
            accumulators, inside, finish, chunks, rows, index, few
        )
        grid = -(-int(rows) // across)
    parameters = [Parameter(s.name, s.c_type, False, "one part a block") for s in scratch]
    written = sorted(outs, key=lambda o: natural(o[0]))
    parameters += [Parameter(out, c_type, True) for out, c_type in written]
    nbytes = sum(s.nbytes for s in scratch)
    return CudaKernel(
        f"{name}_combine", (f"The parts of {chunks} chunks, joined in their order.",),
        tuple(parameters), tuple(items), index, "", tuple(p.name for p in parameters),
        (grid, 1, 1), (threads, 1, 1), nbytes=int(nbytes),
        ops=int(chunks * rows * len(accumulators)),
    )  # fmt: skip


def _joined_columns(
    accumulators: Sequence[Accumulator], inside: Items, finish: Items, chunks: int, rows: int,
    index: str, few: bool,
) -> tuple[list[Line | Loop | Block], int, int]:  # fmt: skip
    """Results side by side in a warp, their chunks shared by the threads below each other.

    Also how many lie side by side, and how many threads there are.
    """
    across = THREADS if few else WARP if isinstance(rows, Size) or rows >= 4096 else 8
    down = _down(across, sum(len(cells(r, acc)) for r, acc in accumulators))
    wide = "(int64_t)" if index == "int64_t" else ""
    place = "threadIdx.x" if down == 1 else f"threadIdx.x % {across}"
    items: list[Line | Loop | Block] = [
        Line(f"const {index} row = {wide}blockIdx.x * {across} + {place};")
    ]
    if down > 1:
        items.append(Line(f"const int down = threadIdx.x / {across};"))
    loop = Loop(
        "chunk", str(chunks), tuple(inside), "down" if down > 1 else "0", str(down),
        pragmas=("unroll 4",) if down > 1 and len(accumulators) <= 8 else (),
    )  # fmt: skip
    items += [*_declared(accumulators), Block(f"if (row < {rows})", (loop,))]
    if down > 1:
        items += _joined_down(accumulators, across, down)
    condition = f"down == 0 && row < {rows}" if down > 1 else f"row < {rows}"
    return [*items, Block(f"if ({condition})", tuple(finish))], across, across * down
