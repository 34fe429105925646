"""Matrix products in tiles: the kernel behind `dot_general` and the convolutions.

A block of threads computes one tile of the result, each thread a few of its elements in registers. Slices
of both operands pass through shared memory, two of each: while one is multiplied, the next one is
read from global memory into registers. What an operand is, a matrix or the taps of a convolution, only shows in
the text that reads one element: a `Side`.

A result with too few tiles to fill the device has its long sum cut into `splits` parts; a second
kernel adds these in order. No atomics: the same bits every time. Start reading at `plan_tiles`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tracegrad.codegen.cuda.elements import Element, ceil_div, own_kernel
from tracegrad.codegen.cuda.plan import CudaKernel, CudaTarget
from tracegrad.codegen.plan import Parameter, Scratch

LEAST_SPLIT = 64  # products in a row that a part of a sum has at least
_SPLITS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
MOST_SPLITS = _SPLITS[-1]
COMBINE_THREADS = 256

# Costs, in products of one multiprocessor: about 200 000 a microsecond. Rough on purpose.
READING = 90_000  # a read from global memory
COMBINING = 300_000  # another kernel
PART = 0.6  # writing and reading one element of a part


@dataclass(frozen=True)
class Tile:
    """Sizes of a block's work.

    Attributes:
        rows, columns: of the tile of the result.
        depth: how many products are taken between two barriers.
        per_thread: rows and columns of one thread.
        speed: products a second, against the fastest tile; rough on purpose.
        blocks: how many are to fit a multiprocessor, for its registers.
    """

    rows: int
    columns: int
    depth: int
    per_thread: tuple[int, int]
    speed: float
    blocks: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.rows // self.per_thread[0] * (self.columns // self.per_thread[1])

    def count(self, m: int, n: int) -> int:
        """How many tiles cover a matrix."""
        return ceil_div(m, self.rows) * ceil_div(n, self.columns)


_TILES = (
    Tile(128, 128, 8, (8, 8), 1.0, 2),
    Tile(64, 128, 8, (4, 8), 0.9, 2),
    Tile(128, 64, 8, (8, 4), 0.9, 2),
    Tile(64, 64, 16, (4, 4), 0.75, 3),
    Tile(32, 32, 16, (2, 2), 0.4, 4),
    Tile(128, 16, 16, (4, 2), 0.5, 4),
    Tile(16, 128, 16, (2, 4), 0.5, 4),
)
_WIDE_TYPE_TILES = (  # of types of 8 bytes, whose sums take two registers
    Tile(64, 64, 16, (4, 4), 1.0, 2),
    Tile(32, 32, 16, (2, 2), 0.6, 3),
    Tile(64, 16, 16, (2, 2), 0.6, 3),
    Tile(16, 64, 16, (2, 2), 0.6, 3),
)


@dataclass(frozen=True)
class Side:
    """How one element of an operand is read, at `row` (or `column`) and `k`.

    Attributes:
        parameter: the operand.
        along: "k" or "outer": along which of the two neighbours lie in memory.
        outer: lines before, that need the row or column only; inner: those that need k.
        conditions: what must hold beside the bounds of the matrix.
        text: the element in memory.
    """

    parameter: Parameter
    along: str
    text: str
    outer: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Work:
    """One product of matrices, or `batch` of them.

    Attributes:
        m, n, k: rows, columns and contracted size.
        batch: how many products; `batch_lines` need the number of one, `batch_name`.
        sides: how the operands are read.
        out: the result; `out_lines` need `row` and `column`, `out_text` is the element.
        index: the C type of positions.
        arguments: buffers of the two operands and of the result.
    """

    m: int
    n: int
    k: int
    batch: int
    element: Element
    sides: tuple[Side, Side]
    out: Parameter
    out_text: str
    arguments: tuple[str, str, str]
    index: str = "int"
    batch_name: str = "batch"
    batch_lines: tuple[str, ...] = ()
    out_lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Slots:
    """How the threads of a block share out the elements of one operand's slice.

    Attributes:
        count: elements of a thread. outer, k: the element `i`'s place in the slice, in C.
        conditions: the bounds that must be checked.
    """

    name: str
    outer_name: str
    extent: int
    count: int
    outer: str
    k: str
    conditions: tuple[str, ...]
    side: Side


@dataclass(frozen=True)
class TilePlan:
    """What the template `tiles.cu.j2` lays out; see `Work` and `Tile`."""

    work: Work
    tile: Tile
    splits: int
    part: int
    across: int
    tiles: int
    slots: tuple[Slots, ...]
    down_place: str
    across_place: str
    down: str
    along: str
    bounds: tuple[str, ...]
    lanes: int


def choose(
    m: int, n: int, k: int, batch: int, element: Element, target: CudaTarget
) -> tuple[Tile, int]:
    """The tile that should be done first, and into how many parts its sums are cut.

    A slice takes as long as its products, those of all blocks that a multiprocessor gets, or as a
    read from memory where these are few; parts cost a second kernel, and memory.
    """
    splits_tried = [s for s in _SPLITS if s == 1 or s * LEAST_SPLIT <= k]
    tiles = _TILES if element.nbytes == 4 else _WIDE_TYPE_TILES

    def cost(choice: tuple[Tile, int]) -> float:
        tile, splits = choice
        rounds = ceil_div(tile.count(m, n) * batch * splits, target.multiprocessors)
        slices = ceil_div(ceil_div(k, splits), tile.depth)
        products = rounds * tile.rows * tile.columns * tile.depth / tile.speed
        parts = COMBINING + PART * splits * batch * m * n if splits > 1 else 0
        return slices * (max(products, READING) + products / 10) + parts

    return min(((t, s) for t in tiles for s in splits_tried), key=cost)


def plan_tiles(
    name: str, work: Work, target: CudaTarget, summary: Sequence[str], nbytes: int, ops: int
) -> tuple[CudaKernel, ...]:
    """The kernel of a product, and the one that adds the parts of its sums.

    Args:
        name: of the first kernel.
        summary: comment lines: what is multiplied, the Python line.
        nbytes, ops: bytes moved, and operations.
    """
    tile, splits = choose(work.m, work.n, work.k, work.batch, work.element, target)
    part = ceil_div(ceil_div(work.k, splits), tile.depth) * tile.depth if splits > 1 else work.k
    splits = ceil_div(work.k, part) if splits > 1 else 1
    plan = _plan(work, tile, splits, part)
    how = f"Tiles of {tile.rows} x {tile.columns}, {tile.depth} products between two barriers"
    if splits > 1:
        how += f"; the sum in {splits} parts of {part}"
    results, arguments, scratch = split_results(name, work, splits)
    kernel = own_kernel("tiles.cu.j2", CudaKernel(
        name, (summary[0], f"{how}.", *summary[1:]), (*(s.parameter for s in work.sides), results),
        arguments=arguments, grid=(plan.tiles * work.batch, splits, 1), block=(tile.threads, 1, 1),
        nbytes=nbytes, ops=ops, scratch=scratch,
    ), plan=plan)  # fmt: skip
    return kernel, *combining(name, work, splits, scratch, summary)


def split_results(
    name: str, work: Work, splits: int
) -> tuple[Parameter, tuple[str, ...], tuple[Scratch, ...]]:
    """Where a kernel's sums go: into the result, or as parts into scratch memory.

    Returns:
        The parameter, the names of all buffers of the kernel, and its scratch.
    """
    if splits == 1:
        return work.out, work.arguments, ()
    size = splits * work.batch * work.m * work.n
    scratch = Scratch(f"{name}_parts", work.element.compute, size * work.element.nbytes)
    parts = Parameter("parts", work.element.compute, True, f"[{splits}, {_shape(work)}]")
    return parts, (*work.arguments[:2], scratch.name), (scratch,)


def combining(
    name: str, work: Work, splits: int, scratch: Sequence[Scratch], summary: Sequence[str]
) -> tuple[CudaKernel, ...]:
    """The kernel that adds the parts; none where there is one."""
    return (_combine(f"{name}_combine", work, splits, scratch[0], summary),) if scratch else ()


def _combine(
    name: str, work: Work, splits: int, scratch: Scratch, summary: Sequence[str]
) -> CudaKernel:
    size = work.batch * work.m * work.n
    parts = Parameter("parts", work.element.compute, False, f"[{splits}, {_shape(work)}]")
    kernel = CudaKernel(
        name, ("The parts of the sums, added in order.", *summary[1:]), (parts, work.out),
        arguments=(scratch.name, work.arguments[2]), grid=(ceil_div(size, COMBINE_THREADS), 1, 1),
        block=(COMBINE_THREADS, 1, 1), scratch=(scratch,), nbytes=scratch.nbytes,
    )  # fmt: skip
    return own_kernel("combine.cu.j2", kernel, work=work, splits=splits, size=size)


def _shape(work: Work) -> str:
    return f"{work.batch}, {work.m}, {work.n}" if work.batch > 1 else f"{work.m}, {work.n}"


def _plan(work: Work, tile: Tile, splits: int, part: int) -> TilePlan:
    ragged = work.k % tile.depth != 0  # else a slice is whole, in every part
    slots = tuple(
        _slots(tile, side, name, extent, f"{outer} < {limit}" if limit % extent else "", ragged)
        for side, name, outer, extent, limit in (
            (work.sides[0], "a", "row", tile.rows, work.m),
            (work.sides[1], "b", "column", tile.columns, work.n),
        )
    )
    lanes = 2 if work.element.nbytes > 4 else 4  # 16 bytes of shared memory at a time
    down, down_place = _spread("i", "down", tile.rows, tile.per_thread[0], lanes)
    along, across_place = _spread("j", "along", tile.columns, tile.per_thread[1], lanes)
    across = tile.columns // tile.per_thread[1]
    bounds = [f"row < {work.m}"] if work.m % tile.rows else []
    bounds += [f"column < {work.n}"] if work.n % tile.columns else []
    return TilePlan(
        work, tile, splits, part, ceil_div(work.n, tile.columns), tile.count(work.m, work.n), slots,
        down_place, across_place, f"thread / {across} * {down}", f"thread % {across} * {along}",
        tuple(bounds), lanes,
    )  # fmt: skip


def _spread(counter: str, first: str, extent: int, each: int, lanes: int) -> tuple[int, str]:
    """How a thread's elements lie along a tile: runs of `lanes`, the runs of all threads side by side."""
    run = min(each, lanes)
    if run == each:
        return run, f"{first} + {counter}"
    apart = extent // (each // run)
    return run, f"{first} + {counter} / {run} * {apart} + {counter} % {run}"


def _slots(tile: Tile, side: Side, name: str, extent: int, bound: str, ragged: bool) -> Slots:
    threads = tile.threads
    count = extent * tile.depth // threads
    if side.along == "k":
        step = threads // tile.depth
        outer, k = f"thread / {tile.depth}", f"thread % {tile.depth}"
        outer += f" + {step} * i" if count > 1 else ""
    else:
        outer, k = f"thread % {extent}", f"thread / {extent}"
        k += f" + {threads // extent} * i" if count > 1 else ""
    conditions = [bound] if bound else []
    conditions += ["k < last"] if ragged else []
    return Slots(
        name, "row" if name == "a" else "column", extent, count, outer, k,
        (*conditions, *side.conditions), replace(side),
    )  # fmt: skip
