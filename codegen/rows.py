"""Row kernels: a row group becomes one loop over rows with its stages inside.

    for each row:                           shared among threads
        stage: loops over the row           a maximum, a sum, a map; vectorised
        stage: ...

Reductions over the rows accumulate in blocks of rows of fixed size; their results are combined in
the order of the blocks, so they do not depend on the number of threads. Start reading at `plan_rows`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod

from tracegrad.codegen.affine import Affine, Index, offset
from tracegrad.codegen.body import Body
from tracegrad.codegen.loops import MAX_BLOCKS, PARALLEL_SECONDS
from tracegrad.codegen.lower import Buffer, Guard, Lowering, SplitRequest, Term
from tracegrad.codegen.nest import (
    Axis,
    Lowered,
    Merges,
    domain_loops,
    kernel_plan,
    python_lines,
    stop_of_block,
)
from tracegrad.codegen.plan import PARALLEL, KernelPlan, Line, Loop, Parameter, Scratch, Target
from tracegrad.codegen.reducers import Reducer
from tracegrad.codegen.row_groups import RowGroup, accumulates
from tracegrad.ir.graph import Node, Value
from tracegrad.ir.sizes import Size, ceil_div
from tracegrad.ir.types import Shape, contiguous_strides

ROW_BLOCKS = 64  # blocks of rows whose accumulators are combined

Item = Line | Loop


def plan_rows(
    name: str, group: RowGroup, producer: Callable[[Value], Node | None],
    buffers: Mapping[Value, Buffer], target: Target,
) -> KernelPlan:  # fmt: skip
    """Decide the kernel of a row group.

    Args:
        name: the C name of the kernel.
        group: what it computes.
        producer: the node that yields a value.
        buffers: of everything in memory, the group's own values included.
        target: what the compiler can do.
    """
    known = {**buffers, **local_buffers(group)}
    return _RowKernel(name, group, lower_stages(group, producer, known), known, target).plan()


def lower_stages(
    group: RowGroup, producer: Callable[[Value], Node | None], known: Mapping[Value, Buffer]
) -> list[Stage]:
    """The loops and terms of all stages; `known` has the buffers of all that they read and write."""
    splits: list[dict[str, int]] = [{} for _ in group.stages]
    stages: list[Stage] = []
    while len(stages) < len(group.stages):
        at = len(stages)
        try:
            stages.append(Stage(group, at, splits[at], producer, known))
        except SplitRequest as request:
            if _axis_of(request.variable) < len(group.rows):  # then it is split in all stages
                stages = []
                for each in splits:
                    each[request.variable] = request.divisor
            else:
                splits[at][request.variable] = request.divisor
    return stages


def _axis_of(variable: str) -> int:
    """The axis of the domain along which a loop variable runs."""
    found = re.match(r"i(\d+)", variable)
    assert found is not None, variable
    return int(found[1])


def local_buffers(group: RowGroup) -> dict[Value, Buffer]:
    """Arrays of one row, or variables, for the values that get no memory."""
    k = len(group.rows)
    made: dict[Value, Buffer] = {}
    for stage in group.stages:
        for v in stage.values:
            if v in group.local:
                inner = contiguous_strides(v.shape[k:])
                made[v] = Buffer(
                    f"row_{len(made)}", v.dtype, v.shape, (0,) * k + inner, local=True,
                    scalar=prod(v.shape[k:]) == 1,
                )  # fmt: skip
    return made


class _RowLowering(Lowering):
    """Terms of one stage, which may read of earlier stages what is of its own row."""

    def of_row(self, made: frozenset[Value], rows: int, row: Affine) -> _RowLowering:
        """The values that the row group makes, how many axes the rows are, and the row's number."""
        self.made, self.rows, self.row = made, rows, row
        return self

    def _same_memory(self, value: Value) -> Value | None:
        found = super()._same_memory(value)
        return None if found in self.made else found

    def _load(
        self, value: Value, index: Index, guards: tuple[Guard, ...], strides: Shape | None = None
    ) -> Term:
        if value not in self.made:
            return super()._load(value, index, guards, strides)
        k = self.rows
        row = self._undivided(offset(index[:k], contiguous_strides(value.shape[:k])))
        own = self._undivided(self.row)
        if row.const != own.const or dict(row.terms) != dict(own.terms):
            raise AssertionError(f"a row kernel reads {value!r} of another row than its own")
        term = super()._load(value, index, guards, strides)
        buffer = self.buffers[value]
        term.in_row, term.is_variable = True, buffer.scalar
        return term


class Stage:
    """One stage: a group, its loops and its terms."""

    def __init__(
        self, rows: RowGroup, position: int, splits: Mapping[str, int],
        producer: Callable[[Value], Node | None], buffers: Mapping[Value, Buffer],
    ) -> None:  # fmt: skip
        self.group = group = rows.stages[position]
        k = len(rows.rows)
        axes, index = domain_loops(group.domain, group.reduced, splits)
        self.row_axes = [a for a in axes if _axis_of(a.variable) < k]
        self.inner = [a for a in axes if _axis_of(a.variable) >= k]
        self.accumulates = accumulates(group, k)
        row = offset(index[:k], contiguous_strides(rows.rows))
        made = frozenset(v for s in rows.stages[:position] for v in s.values)
        extents = {a.variable: a.extent for a in axes}
        own = dict.fromkeys(group.stores, index)
        lowering = _RowLowering(producer, buffers, extents, own, prefix=f"{position}_")
        self.lowered = Lowered(group, index, lowering.of_row(made, k, row))
        self.within = offset(index[k:], contiguous_strides(group.domain[k:]))
        kept = [d for d in range(k, len(group.domain)) if d not in group.reduced]
        inner = contiguous_strides(tuple(group.domain[d] for d in kept))
        self.result_within = offset([index[d] for d in kept], inner)

    def affines(self) -> list[Affine]:
        """Every index expression that the loops must serve."""
        return [*self.lowered.affines(), self.within, self.result_within]


def merge_loops(stages: list[Stage]) -> tuple[list[Axis], list[Merges]]:
    """The loops over rows, which all stages share, and of each stage its final loop variables."""
    every = [a for s in stages for a in s.affines()]
    shared = Merges()
    rows = shared.merge([replace(a, reduced=False) for a in stages[0].row_axes], every)
    shared.rename(rows)
    merges: list[Merges] = []
    for stage in stages:
        own = Merges(list(shared.pairs), dict(shared.names))
        stage.inner = own.merge(stage.inner, stage.affines())
        kept = [a for a in stage.inner if not a.reduced]
        own.rename([*kept, *(a for a in stage.inner if a.reduced)], len(rows))
        merges.append(own)
    return rows, merges


class _RowKernel:
    """The planning of one row group."""

    def __init__(
        self, name: str, group: RowGroup, stages: list[Stage], buffers: Mapping[Value, Buffer],
        target: Target,
    ) -> None:  # fmt: skip
        self.name, self.group, self.stages = name, group, stages
        self.buffers, self.target = buffers, target
        self.rows, self.merges = merge_loops(stages)
        self.head: list[list[Item]] = [[] for _ in self.rows]  # statements outside the row
        self.row: list[Item] = []
        self.accumulators: list[_Accumulator] = []
        self.reductions = 0
        self.named = 0
        self.shown: dict[str, str] = {}

    # ---- the plan -------------------------------------------------------------------------------

    def plan(self) -> KernelPlan:
        for stage, merges in zip(self.stages, self.merges, strict=True):
            self._add(stage, merges)
        written = [self.buffers[v].name for v in self.group.values]
        plan = row_plan(
            self.name, self.group, self.stages, self.buffers, self._loops(), written, self.shown
        )
        scratch = tuple(a.scratch for a in self.accumulators if a.scratch is not None)
        passed = tuple(Parameter(s.name, s.c_type, True, "one part a block") for s in scratch)
        return replace(
            plan, parameters=plan.parameters + passed, scratch=scratch,
            arguments=plan.arguments + tuple(s.name for s in scratch),
        )  # fmt: skip

    # ---- stages ---------------------------------------------------------------------------------

    def _add(self, stage: Stage, merges: Merges) -> None:
        """Add the statements of one stage."""
        kept = [a for a in stage.inner if not a.reduced]
        inner = kept + [a for a in stage.inner if a.reduced]
        loops = [*self.rows, *inner]
        level, depth, lowering = len(self.rows), len(loops), stage.lowered.lowering
        body = Body(
            lowering, merges.affine, {a.variable: d + 1 for d, a in enumerate(loops)},
            {a.variable: a.extent for a in loops}, row=level, named=self.named,
        )  # fmt: skip
        body.shown = self.shown  # one name for one variable in the whole kernel
        for value, at, term in stage.lowered.stored:
            buffer = self.buffers[value]
            if buffer.local and not buffer.scalar:
                self._declare(value)
            body.store(depth, buffer, stage.within if buffer.local else at, term)
        row = level if stage.accumulates else level + len(kept)
        clauses = []
        for node, at, term, r in stage.lowered.reduced:
            acc = f"acc{self.reductions}"
            self.reductions += 1
            if stage.accumulates:
                clauses.append(self._accumulate(body, stage, node, term, r, acc, depth))
                continue
            r = r.lanes or r
            body.before(row, *r.declare(acc))
            element = body.emit(term, depth).text
            position = merges.affine(r.position).text()
            body.at(depth, *r.update(acc, element, position, body.comment(node)))
            clauses.append(r.clause(acc))
            body.after(row, self._result(stage, body, node, at, r, acc))
        if row == depth:  # the accumulators live inside the innermost loop
            clauses = []
        simd = None if None in clauses else " ".join(c for c in clauses if c)
        vector = simd is not None and not lowering.uses_status
        headers = [Loop(a.variable, str(a.extent), ()) for a in loops]
        if vector and depth > level:
            headers[-1] = replace(headers[-1], pragmas=(f"omp simd {simd}".rstrip(),))
        for d in range(level):
            self.head[d].extend(body.statements[d])
        self.row.extend(body.nest(headers, level))
        self.named += len(body.named)

    def _declare(self, value: Value) -> None:
        buffer = self.buffers[value]
        size = prod(value.shape[len(self.group.rows) :])
        self.row.append(Line(f"{buffer.dtype.c_type} {buffer.name}[{size}];"))

    def _result(
        self, stage: Stage, body: Body, node: Node, at: Affine, r: Reducer, acc: str
    ) -> Line:
        """Where the reduction of a row goes."""
        buffer = self.buffers[node.out]
        if buffer.scalar:
            c_type = "int" if node.out.dtype.kind == "b" else node.out.dtype.c_compute
            return Line(f"const {c_type} {buffer.name} = {r.value(acc, node.out.dtype)};")
        if buffer.local:
            self._declare(node.out)
            at = stage.result_within
        return Line(f"{buffer.name}[{body.affine(at).text()}] = {r.result(acc)};")

    def _accumulate(
        self, body: Body, stage: Stage, node: Node, term: Term, scalar: Reducer, acc: str,
        depth: int,
    ) -> str | None:  # fmt: skip
        """A reduction over the rows: into an array along the row, or a variable."""
        element = body.emit(term, depth).text
        size = node.out.type.size
        r = (scalar.lanes or scalar) if size == 1 else scalar
        at = f"{acc}[{body.affine(stage.result_within).text()}]" if size > 1 else acc
        body.at(depth, *r.update(at, element, "0", body.comment(node)))
        self.accumulators.append(_Accumulator(self, node, scalar, acc))
        return "" if size > 1 else r.clause(acc)

    # ---- the loops over rows --------------------------------------------------------------------

    def _loops(self) -> list[Item]:
        threads = self._threads()
        blocked = bool(self.accumulators) and bool(self.rows)
        items = self.row
        for d in range(len(self.rows) - 1, -1, -1):
            axis = self.rows[d]
            header = Loop(axis.variable, str(axis.extent), tuple(items))
            if d == 0 and blocked:
                size = self.rows_per_block()
                header = replace(header, start=f"block * {size}", stop="stop")
            elif d == 0:
                header = replace(header, pragmas=threads)
            items = [*self.head[d], header]
        if not self.accumulators:
            return items
        assert blocked, "reductions over one row are no reductions over rows"
        size = self.rows_per_block()
        stop = stop_of_block(f"block * {size}", size, self.rows[0].extent)
        begin = [line for a in self.accumulators for line in a.begin()]
        end = [line for a in self.accumulators for line in a.end()]
        block = Loop(
            "block", str(self.blocks()),
            (Line(f"const int64_t stop = {stop};"), *begin, *items, *end), pragmas=threads,
            comment=f"blocks of {size} rows: the same sums on any number of threads",
        )  # fmt: skip
        top = [line for a in self.accumulators for line in a.declare()]
        return [*top, block, *(line for a in self.accumulators for line in a.combine())]

    def blocks(self) -> int:
        """How many blocks the rows are cut into, where something accumulates over them.

        Where the number of rows varies the last blocks may have none.
        """
        extent = self.rows[0].extent
        return ROW_BLOCKS if isinstance(extent, Size) else ceil_div(extent, self.rows_per_block())

    def rows_per_block(self) -> int:
        """Enough rows that combining what they accumulate is little work beside them."""
        share = ceil_div(self.rows[0].extent, ROW_BLOCKS)
        if isinstance(share, Size):
            return share
        per_row = prod(a.extent for a in self.rows[1:])
        return max(FEWEST_PER_BLOCK // max(int(per_row), 1), 1, share)

    def _threads(self) -> tuple[str, ...]:
        if not self.target.openmp or not self.rows:
            return ()
        count = prod(self.group.rows)
        sizes = [prod(s.group.domain) for s in self.stages]
        known = [None if isinstance(n, Size) else n for n in sizes]
        seconds = sum(
            n * s.lowered.seconds(k) for n, k, s in zip(sizes, known, self.stages, strict=True)
        )
        varying = [n for n in sizes if isinstance(n, Size)]
        if isinstance(count, Size) or varying:
            most = max(varying, default=count)
            per_element = float(seconds) / float(int(most))
            return (f"{PARALLEL} if({most} > {int(PARALLEL_SECONDS / per_element)})",)
        return (PARALLEL,) if seconds > PARALLEL_SECONDS else ()


FEWEST_PER_BLOCK = 8  # rows


def row_plan(
    name: str, group: RowGroup, stages: Sequence[Stage], buffers: Mapping[Value, Buffer],
    body: Sequence[Line | Loop], written: Sequence[str], shown: Mapping[str, str],
    memory: Sequence[Buffer] = (),
) -> KernelPlan:  # fmt: skip
    """The plan of a row kernel with this body, which writes these buffers.

    Args:
        memory: buffers that are written to only, of values that the kernel reads from variables.
        shown: names of buffers in the text; local ones are called as in Python, where that is free.
    """
    shown = dict(shown)
    for v in group.local:
        if v.name.isidentifier() and v.name not in shown.values():
            shown[buffers[v].name] = v.name
    terms = [t for s in stages for t in s.lowered.terms()]
    local = {b.name for v, b in buffers.items() if b.local or v in group.local}
    read = {t.template for t in terms if t.kind == "load"} - local
    operations = sum(
        prod(s.group.domain) * sum(t.cost for t in s.lowered.terms() if t.kind == "apply")
        for s in stages
    )
    return kernel_plan(
        name, summary(group, stages), body, read, written, (*buffers.values(), *memory), operations,
        any(s.lowered.lowering.uses_status for s in stages), tuple(shown.items()),
    )  # fmt: skip


def summary(group: RowGroup, stages: Sequence[Stage]) -> tuple[str, ...]:
    """What a row kernel computes, and the Python lines."""
    count = " x ".join(map(str, group.rows))
    made = {n.primitive.name for s in stages for n in s.group.reductions}
    done = f", with {' and '.join(sorted(made))}" if made else ""
    lines = {k: v for s in stages for k, v in s.lowered.locations().items()}
    return (f"{count} rows, each in {len(stages)} stages{done}.", *python_lines(lines))


class _Accumulator:
    """A reduction over the rows: its part of a block, and how the parts become the result."""

    def __init__(self, kernel: _RowKernel, node: Node, r: Reducer, acc: str) -> None:
        self.size = node.out.type.size
        self.r, self.acc = r, acc
        self.one = (r.lanes or r) if self.size == 1 else r  # what accumulates in a block
        self.node, self.out = node, kernel.buffers[node.out].name
        self.blocks = kernel.blocks()
        self.partial = acc.replace("acc", "partial")
        self.scratch: Scratch | None = None
        if self.blocks * self.size > MAX_BLOCKS:
            nbytes = self.blocks * self.size * 8  # the widest accumulator
            name = f"{self.partial}_{kernel.name.rpartition('_')[2]}"
            self.scratch = Scratch(name, r.c_type, nbytes)
            self.partial = name

    def _each(self, text: str) -> Item:
        """A statement for each element `j` along the row."""
        return Loop("j", str(self.size), (Line(text),))

    def declare(self) -> list[Item]:
        """Room for the parts of all blocks."""
        if self.scratch is not None:
            return []
        return [Line(f"{self.r.c_type} {self.partial}[{self.blocks * self.size}];")]

    def begin(self) -> list[Item]:
        """At the beginning of a block."""
        if self.size == 1:
            return list(self.one.declare(self.acc))
        if self.r.initial == "0":
            return [Line(f"{self.r.c_type} {self.acc}[{self.size}] = {{0}};")]
        declared = Line(f"{self.r.c_type} {self.acc}[{self.size}];")
        return [declared, self._each(f"{self.acc}[j] = {self.r.initial};")]

    def end(self) -> list[Item]:
        """At the end of a block."""
        if self.size == 1:
            return [Line(f"{self.partial}[block] = {self.one.finished(self.acc)};")]
        return [self._each(f"{self.partial}[{self.size} * block + j] = {self.acc}[j];")]

    def combine(self) -> list[Item]:
        """Behind all blocks: the parts in the order of the blocks."""
        first = f"{self.partial}[{'j' if self.size > 1 else '0'}]"
        part = f"{self.partial}[{f'{self.size} * block + j' if self.size > 1 else 'block'}]"
        update = self.r.update(first, part, "0", "")
        inside: tuple[Item, ...] = tuple(update)
        if self.size > 1:
            inside = (Loop("j", str(self.size), inside, pragmas=("omp simd",)),)
        out = f"{self.out}[{'j' if self.size > 1 else '0'}]"
        last = Line(f"{out} = {self.r.result(first)};")
        stored: Item = last if self.size == 1 else Loop("j", str(self.size), (last,))
        return [Loop("block", str(self.blocks), inside, start="1"), stored]
