"""How a row group is laid out on the device: teams, their loops along a row, and where arrays are.

Start reading at `RowLayout`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from tracegrad.codegen.affine import Affine
from tracegrad.codegen.cuda.device import LANE, THREADS, Span, index_type, takes_lanes
from tracegrad.codegen.cuda.plan import WARP
from tracegrad.codegen.cuda.teams import Team
from tracegrad.codegen.lower import Buffer, Term
from tracegrad.codegen.nest import Axis, Merges
from tracegrad.codegen.row_groups import RowGroup
from tracegrad.codegen.rows import Stage, merge_loops
from tracegrad.ir.graph import Value
from tracegrad.ir.sizes import Size, ceil_div

SHARE = 8  # elements of a row for each thread, about
MANY = 6  # arrays of a row, with which it is half of that
UNROLLED = 8  # steps of a loop along a row that are written out, so that arrays can be registers
REGISTERS = 72  # for arrays of one thread that live at the same time
ACCUMULATORS = 40  # of these, for what accumulates over rows
MOST_PARTS = 2048  # blocks of rows whose accumulators are combined
FEWEST_PER_PART = 8  # rows


@dataclass(frozen=True)
class Form:
    """How a team goes through the elements of a stage.

    Attributes:
        span: the elements; without loops, every thread computes the one that there is.
        steps: how many steps each thread takes, where they are written out; else 0.
        exact: whether all threads have something to do in all steps.
        serial: loops that one thread runs through for each element of the span.
    """

    span: Span
    steps: int
    exact: bool
    serial: Span | None = None

    @property
    def mapping(self) -> tuple[int, int, int]:
        """Stages with the same give a thread the same elements."""
        return int(self.span.size), self.span.lanes, self.steps

    @property
    def mine(self) -> int:
        """Elements of one thread."""
        return self.steps * self.span.lanes

    def slot(self) -> str:
        """The place of the element at hand among those of the thread."""
        if self.span.lanes == 1:
            return "s"
        return f"{self.span.lanes} * s + {LANE}"


def _form(stage: Stage, merges: Merges, team: Team) -> Form:
    kept = [a for a in stage.inner if not a.reduced]
    inner = [a for a in stage.inner if a.reduced]
    if kept and inner:  # each thread reduces elements of its own
        return Form(Span.over(kept, "e"), 0, False, Span.over(inner, "r"))
    axes = kept or inner
    if not axes:
        return Form(Span((), "e"), 0, True)
    span = Span.over(axes, "e", _lanes(stage, merges, axes[-1]))
    if isinstance(span.size, Size):
        return Form(span, 0, False)
    steps = -(-span.parts // team.width)
    if steps > UNROLLED:
        return Form(span, 0, False)
    return Form(span, steps, span.parts % team.width == 0)


def _lanes(stage: Stage, merges: Merges, last: Axis) -> int:
    terms = stage.lowered.terms()
    sizes = [t.dtype.itemsize for t in terms if t.kind == "load" and not t.is_variable]
    sizes += [v.dtype.itemsize for v in stage.group.values]
    cost = sum(t.cost for t in terms if t.kind == "apply")
    lanes = 4 if cost > 32 else max(4, min(8, 16 // max(sizes)))
    rest = last.extent % lanes
    whole = not isinstance(rest, Size) and rest == 0
    return lanes if whole and takes_lanes(terms, merges.affine, last.variable) else 1


def _team(rows: int, longest: int, arrays: int) -> Team:
    """How many threads share a row: more where each has parts of many arrays to keep."""
    if isinstance(longest, Size):
        return Team(THREADS, THREADS)
    share = SHARE if arrays <= MANY else max(SHARE // 2, 1)
    width = 1 << max((-(-int(longest) // share) - 1).bit_length(), 0)
    if width > WARP:
        width = max(64, min(width, 512))
        return Team(width, width)
    few = not isinstance(rows, Size) and rows * width <= 2**16
    return Team(width, 64 if few else THREADS)


class Registers:
    """How many registers of a thread the arrays take that live in each stage."""

    def __init__(self, stages: int, most: int) -> None:
        self.words, self.most = [0] * stages, most

    def take(self, first: int, last: int, words: int) -> bool:
        """Take some for the time of some stages, if they are there."""
        if max(self.words[first : last + 1]) + words > self.most:
            return False
        for k in range(first, last + 1):
            self.words[k] += words
        return True


class RowLayout:
    """What is decided about the kernel of a row group before its text is written.

    Attributes:
        rows, merges: the loops over rows, and the loop variables of each stage.
        count: how many rows there are.
        team: the threads of a row.
        forms: how the team goes through each stage.
        index: the type of indices.
        parts, per_part: where something accumulates over rows, in how many blocks of how many.
        made: what the kernel makes: the stage, and where its elements are in a row.
        aligned: whether inputs begin at the alignment of vectors.
        memory: outputs of which stages read a variable, and where they go.
        own: the local arrays; `in_registers` those of them that are arrays of each thread.
    """

    def __init__(
        self, name: str, group: RowGroup, stages: list[Stage], buffers: Mapping[Value, Buffer],
        aligned: bool, memory: Mapping[Value, Buffer],
    ) -> None:  # fmt: skip
        self.memory = memory
        self.name, self.group, self.stages = name, group, stages
        self.buffers, self.aligned = buffers, aligned
        self.rows, self.merges = merge_loops(stages)
        self.count = prod(group.rows)
        longest = max(prod(a.extent for a in s.inner) for s in stages)
        self.many = sum(
            n.out.type.size > 1 for t in stages if t.accumulates for n in t.group.reductions
        )
        self.own = {v: b for v, b in buffers.items() if b.local and not b.scalar}
        self.team = _team(self.count, longest, len(self.own) + 2 * self.many)
        both = list(zip(stages, self.merges, strict=True))
        self.forms = [_form(s, m, self.team) for s, m in both]
        extents: dict[str, int] = {a.variable: a.extent for a in self.rows}
        symbols: dict[str, int] = {}
        affines: list[Affine] = []
        for s, m in both:
            for a in s.inner:
                extents[a.variable] = max(extents.get(a.variable, 0), a.extent)
            low = s.lowered.lowering
            symbols.update({k: n for k, n in low.extents.items() if k in low.symbols})
            affines += [m.affine(a) for a in s.affines()]
        wide = any(isinstance(n, Size) for n in (self.count, longest))
        wide = wide or max(self.count * longest, 1) >= 2**30
        self.index = "int64_t" if wide else index_type(affines, {}, {**symbols, **extents})
        self.accumulating = any(s.accumulates for s in stages)
        self.per_part = self._rows_per_part()
        self.parts = ceil_div(self.count, self.per_part)
        self.made: dict[str, tuple[int, Affine | None]] = {}  # buffer: stage, place in its row
        for k, (s, m) in enumerate(both):
            for v in s.group.stores:
                self.made[buffers[v].name] = (k, m.affine(s.within))
            for node in s.group.reductions:
                self.made[buffers[node.out].name] = (k, None)
        self.registers = Registers(
            len(stages), REGISTERS if self.team.threads <= THREADS else REGISTERS // 2
        )
        for stage, form in zip(stages, self.forms, strict=True):
            if stage.accumulates and self.accumulators_in_registers(form):
                self.registers.take(0, len(stages) - 1, 2 * form.mine * len(stage.group.reductions))
        self.in_registers = self._in_registers()

    def _rows_per_part(self) -> int:
        share = ceil_div(self.count, MOST_PARTS)
        return share if isinstance(share, Size) else max(FEWEST_PER_PART, share)

    def in_memory(self, v: Value) -> Buffer:
        """The buffer that holds a value, for others than the kernel."""
        return self.memory.get(v) or self.buffers[v]

    # ---- where arrays are -----------------------------------------------------------------------

    def foreign(self, k: int) -> set[str]:
        """The arrays of which a thread reads in stage `k` what another may have written."""
        found = set()
        for t in self.stages[k].lowered.terms():
            if t.kind == "load" and not t.is_variable and t.template in self.made:
                if not self._is_own(k, t):
                    found.add(t.template)
        return found

    def _is_own(self, k: int, term: Term) -> bool:
        """Whether each thread reads what it has written itself."""
        maker, within = self.made[term.template]
        here, there = self.forms[k], self.forms[maker]
        if within is None or here.serial or there.serial or here.mapping != there.mapping:
            return False
        if not here.span.axes or [a.extent for a in here.span.axes] != [
            a.extent for a in there.span.axes
        ]:
            return False
        rest = self.merges[k].affine(term.affine) + within * -1
        row = {a.variable for a in self.rows}
        return rest.const == 0 and all(s in row for s in rest.symbols)

    def _in_registers(self) -> dict[str, Form]:
        """The local arrays that can be arrays of each thread."""
        foreign = {n for k in range(len(self.stages)) for n in self.foreign(k)}
        found: dict[str, Form] = {}
        for v, b in self.own.items():
            maker, within = self.made[b.name]
            form = self.forms[maker]
            if b.name in foreign or within is None or not form.steps:
                continue
            last = max(self.readers(b.name), default=maker)
            if self.registers.take(maker, last, form.mine * -(-v.dtype.itemsize // 4)):
                found[b.name] = form
        return found

    def readers(self, name: str) -> list[int]:
        """The stages that read a buffer."""
        return [
            k for k, s in enumerate(self.stages)
            if any(t.kind == "load" and t.template == name for t in s.lowered.terms())
        ]  # fmt: skip

    def row_size(self, v: Value) -> int:
        """Elements of a value in one row."""
        return int(prod(v.shape[len(self.group.rows) :]))

    def accumulators_in_registers(self, form: Form) -> bool:
        """Whether what accumulates over rows, in stages of this form, can be arrays of each thread."""
        return bool(form.steps) and 2 * form.mine * self.many <= ACCUMULATORS

    def shared_bytes(self) -> int:
        """Shared memory of a block for arrays."""
        total = 0
        for v, b in self.own.items():
            if b.name not in self.in_registers:
                total += self.row_size(v) * v.dtype.itemsize
        for stage, form in zip(self.stages, self.forms, strict=True):
            for node in stage.group.reductions if stage.accumulates else ():
                if node.out.type.size > 1 and not self.accumulators_in_registers(form):
                    total += int(node.out.type.size) * 8
        return total * self.team.per_block + self._part_bytes()

    def _part_bytes(self) -> int:
        """Shared memory for what the warps of a block have reduced."""
        if not self.team.is_block:
            return 0
        cells = sum(1 + (r.extra is not None) for s in self.stages for *_, r in s.lowered.reduced)
        return cells * 8 * (self.team.width // WARP)
