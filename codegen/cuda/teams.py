"""Teams: the threads that share one row, and how what each has accumulated becomes one result.

A team is one thread, a part of a warp, a warp, or a block. Within a warp values go by shuffles, between
the warps of a block through shared memory; always in the same order, so that results are the same
bits in every run and on every grid. Start reading at `Team`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tracegrad.codegen.cuda.device import Items
from tracegrad.codegen.cuda.plan import WARP, Block
from tracegrad.codegen.plan import Line, Loop
from tracegrad.codegen.reducers import Reducer

Accumulator = tuple[Reducer, str]


@dataclass(frozen=True)
class Team:
    """`width` threads: a power of two, at most a warp, or a multiple of one, which is then a block.

    Attributes:
        width: how many threads there are.
        threads: of the whole block.
    """

    width: int
    threads: int

    @property
    def is_block(self) -> bool:
        """Whether the block is one team."""
        return self.width > WARP

    @property
    def per_block(self) -> int:
        """How many teams a block has."""
        return self.threads // self.width

    @property
    def lane(self) -> str:
        """The number of a thread in its team, in C."""
        return "threadIdx.x" if self.is_block else "lane" if self.width > 1 else "0"

    def number(self, block: str = "blockIdx.x") -> str:
        """The number of a thread's team in the grid."""
        if self.is_block:
            return block
        own = "threadIdx.x" if self.width == 1 else f"threadIdx.x / {self.width}"
        return f"{block} * {self.per_block} + {own}"

    def head(self) -> list[Line]:
        """What a thread must know of its team."""
        if self.is_block or self.width == 1:
            return []
        lines = [Line(f"const int lane = threadIdx.x % {self.width};")]
        if self.width < WARP:
            ones = hex((1 << self.width) - 1)
            at = f"threadIdx.x % {WARP} / {self.width} * {self.width}"
            lines.append(Line(f"const unsigned team = {ones}u << ({at});", "its lanes in the warp"))
        return lines

    def sync(self) -> list[Line]:
        """A line behind which the team sees what each of it has written."""
        if self.is_block:
            return [Line("__syncthreads();")]
        return [] if self.width == 1 else [Line(f"__syncwarp({self._mask()});")]

    def _mask(self) -> str:
        return "TG_ALL" if self.width >= WARP else "team"

    def first(self, items: Items) -> list[Line | Block]:
        """Statements of one thread of the team."""
        if self.width == 1:
            return list(items)
        return [Block(f"if ({self.lane} == 0)", tuple(items))]

    def combine(
        self, accumulators: Sequence[Accumulator], everyone: bool, parts: str = "part"
    ) -> list[Line | Loop | Block]:
        """Make the accumulators of the first thread, or of everyone, those of the whole team.

        Args:
            parts: the beginning of the names of shared arrays.
        """
        if self.width == 1 or not accumulators:
            return []
        distance = min(self.width, WARP) // 2
        shuffled = [line for r, acc in accumulators for line in shuffle(r, acc, self._mask())]
        items: list[Line | Loop | Block] = [
            Line("#pragma unroll"),
            Block(f"for (int away = {distance}; away > 0; away >>= 1)", tuple(shuffled)),
        ]
        if not self.is_block:
            return items
        warps = self.width // WARP
        saved, read, joined = [], [], []
        for r, acc in accumulators:
            for (kind, name), (_, shared) in zip(
                cells(r, acc), cells(r, part(acc, parts)), strict=True
            ):
                items.append(Line(f"__shared__ {kind} {shared}[{warps}];"))
                saved.append(Line(f"{shared}[threadIdx.x / {WARP}] = {name};"))
                read.append(Line(f"{name} = {shared}[0];"))
            joined += join(r, acc, [f"{s}[w]" for _, s in cells(r, part(acc, parts))])
        items.append(Block(f"if (threadIdx.x % {WARP} == 0)", tuple(saved)))
        items.append(Line("__syncthreads();"))
        loop = Block(f"for (int w = 1; w < {warps}; w++)", tuple(joined))
        items += [*read, loop] if everyone else [Block("if (threadIdx.x == 0)", (*read, loop))]
        return items


def part(acc: str, parts: str) -> str:
    """The name of the array that has an accumulator's parts."""
    return acc.replace("acc", parts)


def cells(r: Reducer, acc: str) -> list[tuple[str, str]]:
    """The variables of an accumulator: (type, name)."""
    found = [(r.c_type, acc)]
    if r.extra is not None:
        found.append((r.extra[0], acc + r.extra[1]))
    return found


def shuffle(r: Reducer, acc: str, mask: str) -> list[Line]:
    """Take in what the thread `away` has."""
    lines = [
        Line(f"const {kind} {name}_next = __shfl_xor_sync({mask}, {name}, away);")
        for kind, name in cells(r, acc)
    ]
    return lines + join(r, acc, [f"{name}_next" for _, name in cells(r, acc)])


def join(r: Reducer, acc: str, other: Sequence[str]) -> list[Line]:
    """Take another accumulator of the same reduction in."""
    if r.extra is None:
        return r.update(acc, other[0], "0", "")
    value, at = other
    greater = ">" if "{v} > {acc}" in r.step[0] else "<"
    better = [f"{acc}_at < 0", f"{value} {greater} {acc}"]
    same = f"{value} == {acc}"
    if "{v} != {v}" in r.step[0]:  # floats: NaN wins
        better.append(f"({value} != {value} && {acc} == {acc})")
        same = f"({same} || ({value} != {value} && {acc} != {acc}))"
    better.append(f"({same} && {at} < {acc}_at)")
    return [
        Line(f"const int {acc}_moves = {at} >= 0 && ({' || '.join(better)});"),
        Line(f"{acc}_at = {acc}_moves ? {at} : {acc}_at;"),
        Line(f"{acc} = {acc}_moves ? {value} : {acc};"),
    ]
