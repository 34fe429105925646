"""Row groups: the stages of a loop over rows, in one kernel.

    a team of threads has a row:
        stage: a loop along the row         a maximum, a sum, a map
        stage: ...

What a stage leaves for the next stays in registers where each thread reads what it wrote itself, else
in shared memory. Reductions over the rows accumulate in each team, over blocks of rows of fixed size;
a second kernel joins their parts in order. Start reading at `plan_rows`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from tracegrad.codegen.affine import Affine
from tracegrad.codegen.cuda.device import (
    LANE,
    THREADS,
    DeviceBody,
    Held,
    Items,
    Span,
    as_cuda,
    index_type,
    takes_lanes,
    used,
)
from tracegrad.codegen.cuda.groups import Producer, plan_group, with_scratch
from tracegrad.codegen.cuda.plan import WARP, Block, CudaKernel, CudaTarget
from tracegrad.codegen.cuda.reductions import combine
from tracegrad.codegen.cuda.teams import Accumulator, Team
from tracegrad.codegen.lower import Buffer, Term
from tracegrad.codegen.nest import Axis, Merges, kernel_plan
from tracegrad.codegen.plan import Line, Loop, Scratch
from tracegrad.codegen.reducers import Reducer
from tracegrad.codegen.row_groups import RowGroup
from tracegrad.codegen.rows import Stage, local_buffers, lower_stages, merge_loops, summary
from tracegrad.ir.graph import Node, Value
from tracegrad.ir.sizes import Size, ceil_div
from tracegrad.ir.types import contiguous_strides

FEW, LONG = 64, 16384  # fewer rows than this, longer than that: one team each would leave most idle
SHARE = 8  # elements of a row for each thread, about
UNROLLED = 8  # steps of a loop along a row that are written out, so that arrays can be registers
REGISTERS = 72  # for arrays of one thread that live at the same time
ACCUMULATORS = 40  # of these, for what accumulates over rows
MOST_PARTS = 512  # blocks of rows whose accumulators are combined
FEWEST_PER_PART = 8  # rows
SPARE = 2048  # bytes of shared memory for what else a block keeps there


def plan_rows(
    name: str, group: RowGroup, producer: Producer, buffers: Mapping[Value, Buffer],
    target: CudaTarget,
) -> tuple[CudaKernel, ...]:  # fmt: skip
    """Decide the kernels of a row group; arguments as for `plan_group`."""
    count = prod(group.rows)
    longest = max(prod(s.domain[len(group.rows) :]) for s in group.stages)
    varies = isinstance(count, Size) or isinstance(longest, Size)
    if varies or count >= FEW or longest < LONG:
        made = _fused(name, group, producer, buffers, target)
        if made is not None:
            return made
    return one_by_one(name, group, producer, buffers, target)


def one_by_one(
    name: str, group: RowGroup, producer: Producer, buffers: Mapping[Value, Buffer],
    target: CudaTarget,
) -> tuple[CudaKernel, ...]:  # fmt: skip
    """Each stage as kernels of its own; what they leave for each other goes through memory."""
    local = [v for s in group.stages for v in s.values if v in group.local]
    known = dict(buffers)
    scratch = []
    for k, v in enumerate(local):
        known[v] = Buffer(_in_memory(name, k), v.dtype, v.shape, contiguous_strides(v.shape))
        scratch.append(Scratch(known[v].name, v.dtype.c_type, v.type.nbytes))
    kernels: list[CudaKernel] = []
    for k, stage in enumerate(group.stages):
        kernels += plan_group(f"{name}_stage_{k}", stage, producer, known, target)
    if kernels:
        kernels[0] = replace(kernels[0], scratch=(*kernels[0].scratch, *scratch))
    return tuple(kernels)


def _in_memory(name: str, k: int) -> str:
    return f"local{k}_{name.removeprefix('kernel_')}"


def _fused(
    name: str, group: RowGroup, producer: Producer, buffers: Mapping[Value, Buffer],
    target: CudaTarget,
) -> tuple[CudaKernel, ...] | None:  # fmt: skip
    """One kernel for all stages, or None where shared memory is too small for what accumulates."""
    local = local_buffers(group)
    moved: dict[Value, Scratch] = {}

    def move(v: Value) -> None:
        """Keep a local value in memory."""
        buffer = Buffer(_in_memory(name, len(moved)), v.dtype, v.shape, contiguous_strides(v.shape))
        local[v] = buffer
        moved[v] = Scratch(buffer.name, v.dtype.c_type, v.type.nbytes)

    for v, b in list(local.items()):
        if not b.scalar and isinstance(prod(v.shape[len(group.rows) :]), Size):
            move(v)  # arrays have the same size in every call
    while True:
        known = {**buffers, **local}
        stages = lower_stages(group, producer, known)
        kernel = _RowKernel(name, group, stages, known, target)
        if kernel.shared_bytes() <= target.shared_bytes - SPARE:
            return kernel.plan(tuple(moved.values()))
        arrays = [v for v, b in local.items() if b.local and not b.scalar]
        if not arrays:
            return None
        move(max(arrays, key=lambda v: v.type.nbytes))


# ---- stages -------------------------------------------------------------------------------------


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

    def slot(self, lane: bool = True) -> str:
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


def _team(rows: int, longest: int) -> Team:
    """How many threads share a row."""
    if isinstance(longest, Size):
        return Team(THREADS, THREADS)
    width = 1 << max((-(-int(longest) // SHARE) - 1).bit_length(), 0)
    if width > WARP:
        width = max(64, min(width, 512))
        return Team(width, width)
    few = not isinstance(rows, Size) and rows * width <= 2**16
    return Team(width, 64 if few else THREADS)


class _RowKernel:
    """The planning of one row group."""

    def __init__(
        self, name: str, group: RowGroup, stages: list[Stage], buffers: Mapping[Value, Buffer],
        target: CudaTarget,
    ) -> None:  # fmt: skip
        self.name, self.group, self.stages = name, group, stages
        self.buffers, self.target = buffers, target
        self.rows, self.merges = merge_loops(stages)
        self.count = prod(group.rows)
        longest = max(prod(a.extent for a in s.inner) for s in stages)
        self.team = _team(self.count, longest)
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
        self.own = {v: b for v, b in buffers.items() if b.local and not b.scalar}
        self.registers = _Registers(len(stages))
        self.many = sum(
            n.out.type.size > 1 for t in stages if t.accumulates for n in t.group.reductions
        )
        for stage, form in zip(stages, self.forms, strict=True):
            if stage.accumulates and self._accumulators_in_registers(form):
                self.registers.take(0, len(stages) - 1, 2 * form.mine * len(stage.group.reductions))
        self.in_registers = self._registers()

    def _rows_per_part(self) -> int:
        share = ceil_div(self.count, MOST_PARTS)
        return share if isinstance(share, Size) else max(FEWEST_PER_PART, share)

    # ---- where arrays are -----------------------------------------------------------------------

    def _foreign(self, k: int) -> set[str]:
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

    def _registers(self) -> dict[str, Form]:
        """The local arrays that can be arrays of each thread."""
        foreign = {n for k in range(len(self.stages)) for n in self._foreign(k)}
        found: dict[str, Form] = {}
        for v, b in self.own.items():
            maker, within = self.made[b.name]
            form = self.forms[maker]
            if b.name in foreign or within is None or not form.steps:
                continue
            last = max(self._readers(b.name), default=maker)
            if self.registers.take(maker, last, form.mine * -(-v.dtype.itemsize // 4)):
                found[b.name] = form
        return found

    def _readers(self, name: str) -> list[int]:
        """The stages that read a buffer."""
        return [
            k for k, s in enumerate(self.stages)
            if any(t.kind == "load" and t.template == name for t in s.lowered.terms())
        ]  # fmt: skip

    def _row_size(self, v: Value) -> int:
        return int(prod(v.shape[len(self.group.rows) :]))

    def _accumulators_in_registers(self, form: Form) -> bool:
        return bool(form.steps) and 2 * form.mine * self.many <= ACCUMULATORS

    def shared_bytes(self) -> int:
        """Shared memory of a block for arrays."""
        total = 0
        for v, b in self.own.items():
            if b.name not in self.in_registers:
                total += self._row_size(v) * v.dtype.itemsize
        for stage, form in zip(self.stages, self.forms, strict=True):
            for node in stage.group.reductions if stage.accumulates else ():
                if node.out.type.size > 1 and not self._accumulators_in_registers(form):
                    total += int(node.out.type.size) * 8
        return total * self.team.per_block

    # ---- the plan -------------------------------------------------------------------------------

    def plan(self, moved: tuple[Scratch, ...]) -> tuple[CudaKernel, ...]:
        """The kernel, and where something accumulates the one that joins the parts."""
        first = _Text(self, Held())
        first.write()
        text = _Text(self, Held(self._affordable(first.held.seen)))
        text.write()
        terms = [t for s in self.stages for t in s.lowered.terms()]
        results = [n.out for s in self.stages if s.accumulates for n in s.group.reductions]
        written = [self.buffers[v].name for v in self.group.values if v not in results]
        local = {self.buffers[v].name for v in self.group.local}
        read = {t.template for t in terms if t.kind == "load"} - local
        for v in self.group.local:
            if v.name.isidentifier() and v.name not in text.shown.values():
                text.shown[self.buffers[v].name] = v.name
        operations = sum(
            prod(s.group.domain) * sum(t.cost for t in s.lowered.terms() if t.kind == "apply")
            for s in self.stages
        )
        plan = kernel_plan(
            self.name, summary(self.group, self.stages), (), read, written, self.buffers.values(),
            operations, any(s.lowered.lowering.uses_status for s in self.stages),
            tuple(text.shown.items()),
        )  # fmt: skip
        teams = self.parts if self.accumulating else self.count
        grid = (-(-int(teams) // self.team.per_block), 1, 1)
        kernel = as_cuda(plan, text.items, grid, (self.team.threads, 1, 1), self.index)
        kernels = [
            with_scratch(kernel, (*moved, *(s for a in text.accumulated for s in a.scratch)))
        ]
        for k, size in enumerate(dict.fromkeys(a.size for a in text.accumulated)):
            alike = [a for a in text.accumulated if a.size == size]
            outs = [self.buffers[a.node.out] for a in alike]
            last = combine(
                self.name, [(b.name, b.dtype.c_type) for b in outs], [(a.r, a.acc) for a in alike],
                [s for a in alike for s in a.scratch], self.parts, size,
            )  # fmt: skip
            kernels.append(replace(last, name=f"{last.name}_{k}" if k else last.name))
        return tuple(kernels)

    def _affordable(self, seen: Mapping[Any, set[int]]) -> set[Any]:
        """The addresses that several stages read and whose elements fit into registers."""
        kept = set()
        for key, stages in sorted(seen.items(), key=str):
            words = key[2][1] * key[2][2]
            if len(stages) > 1 and self.registers.take(min(stages), max(stages), words):
                kept.add(key)
        return kept


class _Registers:
    """How many registers of a thread the arrays take that live in each stage."""

    def __init__(self, stages: int) -> None:
        self.words = [0] * stages

    def take(self, first: int, last: int, words: int) -> bool:
        """Take some for the time of some stages, if they are there."""
        if max(self.words[first : last + 1]) + words > REGISTERS:
            return False
        for k in range(first, last + 1):
            self.words[k] += words
        return True


@dataclass(frozen=True)
class _Accumulated:
    """A reduction over the rows: its result, its accumulator, and where its parts go."""

    node: Node
    r: Reducer
    acc: str
    size: int
    form: Form
    array: str  # "" where the accumulator is one variable
    scratch: tuple[Scratch, ...]


class _Text:
    """The statements of a row kernel."""

    def __init__(self, kernel: _RowKernel, held: Held) -> None:
        self.k, self.held, self.team = kernel, held, kernel.team
        self.outside: list[Line | Loop | Block] = []
        self.row: list[Line | Loop | Block] = []
        self.shown: dict[str, str] = {}
        self.accumulated: list[_Accumulated] = []
        self.reductions = self.named = 0
        self.unseen: set[str] = set()  # arrays written since the team last waited
        self.items: list[Line | Loop | Block] = []
        self.declared: list[Line] = []

    def write(self) -> None:
        """Write all of it."""
        for v, b in self.k.own.items():
            self._declare(b, self.k._row_size(v))
        for k in range(len(self.k.stages)):
            self._stage(k)
        for key, name in self.held.names.items():
            c_type = next(b.dtype.c_type for b in self.k.buffers.values() if b.name == key[0])
            _, lanes, steps = key[2][:3]
            self.declared.append(Line(f"{c_type} {name}[{steps}][{lanes}];"))
        self.items = self._around()

    def _declare(self, b: Buffer, size: int) -> None:
        """Room for a local array."""
        form = self.k.in_registers.get(b.name)
        if form is not None:
            self.declared.append(Line(f"{b.dtype.c_type} {b.name}[{form.mine}];"))
        else:
            self.outside += self._shared(b.dtype.c_type, b.name, size)

    def _shared(self, c_type: str, name: str, size: int) -> list[Line]:
        """An array in shared memory, one for each team."""
        teams = self.team.per_block
        if teams == 1:
            return [Line(f"__align__(16) __shared__ {c_type} {name}[{size}];")]
        return [
            Line(f"__align__(16) __shared__ {c_type} {name}_all[{teams * size}];"),
            Line(f"{c_type} *const {name} = &{name}_all[{size} * (threadIdx.x / {self.team.width})];"),
        ]  # fmt: skip

    # ---- one stage ------------------------------------------------------------------------------

    def _stage(self, k: int) -> None:
        stage, merges, form = self.k.stages[k], self.k.merges[k], self.k.forms[k]
        if self.k._foreign(k) & self.unseen:
            self.row += self.team.sync()
            self.unseen.clear()
        body = self._body(k, stage, merges, form)
        level = 1 if not form.span.axes else 3 if form.serial else 2 + (form.span.lanes > 1)
        for value, at, term in stage.lowered.stored:
            buffer = self.k.buffers[value]
            body.store(level, buffer, stage.within if buffer.local else at, term)
            self.unseen.add(buffer.name)
        accumulators: list[tuple[Node, Reducer, str]] = []
        for node, _, term, r in stage.lowered.reduced:
            acc = f"acc{self.reductions}"
            self.reductions += 1
            element = body.emit(term, level).text
            if stage.accumulates:
                self._accumulate(body, form, node, r, acc, element, level)
                continue
            position = body.index(r.position, level)
            body.at(level, *r.update(acc, element, position, body.comment(node)))
            accumulators.append((node, r, acc))
        self.outside += body.statements[0]
        if not form.span.axes:
            self._replicated(body, accumulators)
        elif form.serial:
            self._each_own(stage, body, form, form.serial, accumulators)
        else:
            self._together(body, form, accumulators)
        self.named += len(body.named)

    def _body(self, k: int, stage: Stage, merges: Merges, form: Form) -> DeviceBody:
        rows = {a.variable: 1 for a in self.k.rows}
        along = {a.variable: 2 for a in form.span.axes}
        serial = {a.variable: 3 for a in form.serial.axes} if form.serial else {}
        extents = {a.variable: a.extent for a in (*self.k.rows, *stage.inner)}
        slots = {n: f.slot() for n, f in self.k.in_registers.items()}
        self.held.loop = None
        if form.steps and form.span.lanes > 1:
            shape = tuple(int(a.extent) for a in form.span.axes)
            self.held.loop = ((shape, form.span.lanes, form.steps), k, "s")
        body = DeviceBody(
            stage.lowered.lowering, merges.affine, {**rows, **along, **serial}, extents,
            lanes=form.span.lanes, along=form.span.axes[-1].variable if form.span.axes else "",
            index=self.k.index, row=1, named=self.named, slots=slots, held=self.held,
        )  # fmt: skip
        body.shown = self.shown
        return body

    def _replicated(self, body: DeviceBody, accumulators: list[tuple[Node, Reducer, str]]) -> None:
        """One element for each row: every thread computes it, the first one stores it."""
        stores = [line for line in body.statements[1] if self._is_store(line)]
        self.row += [*(line for _, r, acc in accumulators for line in r.declare(acc))]
        self.row += [line for line in body.statements[1] if line not in stores]
        if stores:
            self.row += self.team.first(stores)
        self._results(accumulators)

    def _is_store(self, item: object) -> bool:
        return isinstance(item, Line) and item.text.split("[")[0] in self.k.made

    def _together(
        self, body: DeviceBody, form: Form, accumulators: list[tuple[Node, Reducer, str]]
    ) -> None:
        """A loop along the row, shared by the team."""
        self.row += body.statements[1]
        both: list[Accumulator] = [(r, acc) for _, r, acc in accumulators]
        self.row += [line for r, acc in both for line in r.declare(acc)]
        self.row += self._along(form, body.inside(2))
        self.row += self.team.combine(both, everyone=True)
        self._results(accumulators)

    def _along(self, form: Form, inside: Items) -> list[Line | Loop | Block]:
        """The loop of a team along its row."""
        span, team, index = form.span, self.team, self.k.index
        inside = [*used(span.definitions(), index, inside), *inside]
        if not form.steps:
            start = span.counted(team.lane)
            return [
                Loop(
                    span.counter,
                    str(span.stop),
                    tuple(inside),
                    start,
                    span.counted(str(team.width)),
                )
            ]
        lane = "" if team.lane == "0" else f" + {team.lane}"
        part = f"s * {team.width}{lane}" if team.width > 1 else "s"
        items = used([(span.counter, span.counted(part))], index, inside)
        if form.exact:
            items += inside
        else:
            items = used([(span.counter, span.counted(part))], index, [Line(span.counter)])
            items.append(Block(f"if ({span.counter} < {span.stop})", tuple(inside)))  # type: ignore[arg-type]
        return [Loop("s", str(form.steps), tuple(items), pragmas=("unroll",))]

    def _each_own(
        self, stage: Stage, body: DeviceBody, form: Form, serial: Span,
        accumulators: list[tuple[Node, Reducer, str]],
    ) -> None:  # fmt: skip
        """Reductions of parts of a row, each by one thread."""
        inner = body.statements[3]
        loop = Loop(
            serial.counter,
            str(serial.stop),
            (*used(serial.definitions(), self.k.index, inner), *inner),
        )
        after = []
        for node, r, acc in accumulators:
            buffer = self.k.buffers[node.out]
            at = stage.result_within if buffer.local else self._at(stage, node)
            after.append(Line(f"{buffer.name}[{body.index(at, 2)}] = {r.result(acc)};"))
            self.unseen.add(buffer.name)
        inside = [
            *body.statements[2], *(line for _, r, acc in accumulators for line in r.declare(acc)),
            loop, *after,
        ]  # fmt: skip
        self.row += body.statements[1]
        self.row += self._along(form, inside)

    def _at(self, stage: Stage, node: Node) -> Affine:
        return next(at for n, at, _, _ in stage.lowered.reduced if n is node)

    def _results(self, accumulators: list[tuple[Node, Reducer, str]]) -> None:
        """What a reduction along the row leaves: a variable, or an element in memory."""
        for node, r, acc in accumulators:
            buffer = self.k.buffers[node.out]
            if buffer.scalar:
                c_type = "int" if node.out.dtype.kind == "b" else node.out.dtype.c_compute
                self.row.append(
                    Line(f"const {c_type} {buffer.name} = {r.value(acc, node.out.dtype)};")
                )
                continue
            place = "0" if buffer.local else "row"
            self.row += self.team.first([Line(f"{buffer.name}[{place}] = {r.result(acc)};")])
            self.unseen.add(buffer.name)

    # ---- what accumulates over the rows ---------------------------------------------------------

    def _accumulate(
        self, body: DeviceBody, form: Form, node: Node, r: Reducer, acc: str, element: str, level: int
    ) -> None:  # fmt: skip
        size = int(node.out.type.size)
        array, at = "", acc
        if size > 1:
            array = "mine" if self.k._accumulators_in_registers(form) else "shared"
            place = form.slot() if array == "mine" else body.index(_flat(form), level)
            at = f"{acc}[{place}]"
        body.at(level, *r.update(at, element, "0", body.comment(node)))
        step = self.k.name.removeprefix("kernel_")
        name = f"{acc.replace('acc', 'partial')}_{step}"
        scratch = (Scratch(name, r.c_type, int(self.k.parts) * size * 8),)
        self.accumulated.append(_Accumulated(node, r, acc, size, form, array, scratch))

    def _begin(self, a: _Accumulated) -> list[Line | Loop | Block]:
        """Before the first row."""
        if not a.array:
            return list(a.r.declare(a.acc))
        first = Line(f"{a.acc}[{_slot_of(a)}] = {a.r.initial};")
        if a.array == "mine":
            declared = Line(f"{a.r.c_type} {a.acc}[{a.form.mine}];")
            return [
                declared,
                Loop(
                    "s",
                    str(a.form.mine),
                    (Line(f"{a.acc}[s] = {a.r.initial};"),),
                    pragmas=("unroll",),
                ),
            ]
        return [
            *self._shared(a.r.c_type, a.acc, a.size),
            *self._along(a.form, _lanes_of(a.form, [first])),
        ]

    def _end(self, a: _Accumulated) -> list[Line | Loop | Block]:
        """Behind the last row."""
        out = a.scratch[0].name
        if not a.array:
            combined = self.team.combine([(a.r, a.acc)], everyone=False) if a.form.span.axes else []
            return [*combined, *self.team.first([Line(f"{out}[part] = {a.acc};")])]
        wide = "(int64_t)" if self.k.index == "int64_t" else ""
        at = _flat(a.form)
        lane = at + Affine.symbol(LANE) if a.form.span.lanes > 1 else at
        put = Line(f"{out}[{wide}part * {a.size} + {lane.text()}] = {a.acc}[{_slot_of(a)}];")
        return self._along(a.form, _lanes_of(a.form, [put]))

    # ---- around the stages ----------------------------------------------------------------------

    def _around(self) -> list[Line | Loop | Block]:
        k, team, index = self.k, self.team, self.k.index
        wide = "(int64_t)" if index == "int64_t" else ""
        if len(k.rows) == 1:
            definitions = [(k.rows[0].variable, "row")]
        else:
            definitions = Span(tuple(k.rows), "row").definitions()
        body = [*self.declared, *self.row]
        body = [*used(definitions, index, [*self.outside, *body]), *body]
        if not k.accumulating:
            head = [Line(f"const {index} row = {wide}{team.number()};")]
            if team.per_block > 1:
                head += [Line(f"if (row >= {k.count})"), Line("    return;")]
            return [*head, *team.head(), *self.outside, *body]
        head = [Line(f"const {index} part = {wide}{team.number()};", f"{k.per_part} rows")]
        if team.per_block > 1:
            head += [Line(f"if (part >= {k.parts})"), Line("    return;")]
        head.append(Line(f"const {index} begin = part * {k.per_part};"))
        stop = f"begin + {k.per_part} < {k.count} ? begin + {k.per_part} : {k.count}"
        head.append(Line(f"const {index} end = {stop};"))
        begin = [line for a in self.accumulated for line in self._begin(a)]
        end = [line for a in self.accumulated for line in self._end(a)]
        loop = Loop("row", "end", (*body, *team.sync()), "begin")  # type: ignore[arg-type]
        return [*head, *team.head(), *self.outside, *begin, loop, *end]


def _flat(form: Form) -> Affine:
    """The place of the first lane at hand in its row."""
    total, inner = Affine(), 1
    for axis in reversed(form.span.axes):
        total = total + Affine.symbol(axis.variable) * inner
        inner *= axis.extent
    return total


def _slot_of(a: _Accumulated) -> str:
    if a.array == "mine":
        return a.form.slot()
    lane = Affine.symbol(LANE) if a.form.span.lanes > 1 else Affine()
    return (_flat(a.form) + lane).text()


def _lanes_of(form: Form, items: Items) -> Items:
    if form.span.lanes == 1:
        return items
    return [Loop(LANE, str(form.span.lanes), tuple(items), pragmas=("unroll",))]
