"""Loop nests: a group of values with one domain becomes one `KernelPlan`.

The group computes, over one domain, values that are stored element by element and reductions over
the same axes. Three forms of nest cover all of them:

- *map*: no reduction; the last axis is the vector loop.
- *row*: reduced axes inside the kept ones; a full reduction is cut into blocks of fixed size whose
  results are added in block order, so the result does not depend on the number of threads.
- *column*: the last axis is kept; an array of accumulators runs along it.

Start reading at `plan_group`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

from tracegrad.codegen.affine import Index
from tracegrad.codegen.body import Body
from tracegrad.codegen.lower import Buffer, Lowering, SplitRequest
from tracegrad.codegen.nest import (
    Axis,
    Group,
    Lowered,
    Merges,
    domain_loops,
    kernel_plan,
    nest_summary,
    stop_of_block,
)
from tracegrad.codegen.plan import PARALLEL, KernelPlan, Line, Loop, Target
from tracegrad.ir.graph import Node, Value
from tracegrad.ir.sizes import Size, ceil_div

BLOCK = 4096  # elements of a block of a full reduction
COLUMNS = 512  # accumulators of a block of a column reduction
MAX_BLOCKS = 1024  # partial results kept on the stack
PARALLEL_SECONDS = 50e-6  # work below this runs on one thread


def plan_group(
    name: str,
    group: Group,
    producer: Callable[[Value], Node | None],
    buffers: Mapping[Value, Buffer],
    target: Target,
) -> KernelPlan:
    """Decide the loop nest of a group.

    Args:
        name: the C name of the kernel.
        group: what it computes.
        producer: the node that yields a value.
        buffers: of everything realised, the group's own values included.
        target: what the compiler can do.
    """
    splits: dict[str, int] = {}
    while True:
        axes, index = domain_loops(group.domain, group.reduced, splits)
        try:
            return _Nest(name, group, axes, index, producer, buffers, target).plan()
        except SplitRequest as request:
            splits[request.variable] = request.divisor


class _Nest:
    """The planning of one group for one choice of loops."""

    def __init__(
        self, name: str, group: Group, axes: list[Axis], index: Index,
        producer: Callable[[Value], Node | None], buffers: Mapping[Value, Buffer], target: Target,
    ) -> None:  # fmt: skip
        self.name, self.group, self.target = name, group, target
        self.buffers = buffers
        own = dict.fromkeys(group.stores, index)
        self.lowering = Lowering(producer, buffers, {a.variable: a.extent for a in axes}, own)
        self.lowered = Lowered(group, index, self.lowering)
        self.stored, self.reduced = self.lowered.stored, self.lowered.reduced
        merges = Merges()
        self.axes = merges.merge(axes, self.lowered.affines())
        merges.rename(self.axes)
        self.affine = merges.affine

    # ---- the plan -------------------------------------------------------------------------------

    def plan(self) -> KernelPlan:
        kept = [a for a in self.axes if not a.reduced]
        inner = [a for a in self.axes if a.reduced]
        if 0 in self.group.domain:
            items = self._empty(kept)
        elif not self.reduced:
            items = self._map(kept)
        elif (
            kept
            and inner
            and not self.axes[-1].reduced
            and all(r.by_columns for *_, r in self.reduced)
        ):
            items = self._columns(kept, inner)
        elif not kept and self._in_threads(inner):
            items = self._full(inner)
        else:
            items = self._rows(kept, inner)
        return self._finish(tuple(items))

    def _empty(self, kept: list[Axis]) -> list[Line | Loop]:
        """Nothing to read: reductions over nothing have their first value."""
        body = self._body(kept)
        for node, at, _, r in self.reduced:
            if node.out.type.size:
                target = f"{self.buffers[node.out].name}[{self.affine(at).text()}]"
                body.at(len(kept), Line(f"{target} = {r.result(r.initial)};"))
        return body.nest([Loop(a.variable, str(a.extent), ()) for a in kept])

    def _body(self, loops: Sequence[Axis]) -> Body:
        depths = {a.variable: d + 1 for d, a in enumerate(loops)}
        extents = {a.variable: a.extent for a in loops}
        self.body = Body(self.lowering, self.affine, depths, extents)
        return self.body

    def _map(self, loops: list[Axis]) -> list[Line | Loop]:
        body = self._body(loops)
        depth = len(loops)
        for value, at, term in self.stored:
            body.store(depth, self.buffers[value], at, term)
        headers = [self._loop(a, d, depth) for d, a in enumerate(loops)]
        if depth == 1 and self._threads(loops[0].extent):
            headers[0] = self._in_blocks(body, loops[0], BLOCK)
        return body.nest(headers)

    def _in_blocks(self, body: Body, axis: Axis, size: int) -> Loop:
        """Cut a flat loop into blocks of fixed size, one thread each.

        A vector loop ends in a scalar rest, whose math functions may round differently; fixed
        blocks put the rest at the same elements for any number of threads.
        """
        stop = stop_of_block(f"block * {size}", size, axis.extent)
        body.wrap(0, lambda items: Loop(
            "block", str(ceil_div(axis.extent, size)), (Line(f"const int64_t stop = {stop};"), *items),
            pragmas=self._threads(axis.extent), comment="blocks of fixed size",
        ))  # fmt: skip
        simd = () if self.lowering.uses_status else ("omp simd",)
        return Loop(axis.variable, "stop", (), start=f"block * {size}", pragmas=simd)

    def _rows(self, kept: list[Axis], inner: list[Axis]) -> list[Line | Loop]:
        loops = kept + inner
        body = self._body(loops)
        depth, row = len(loops), len(kept)
        for value, at, term in self.stored:
            body.store(depth, self.buffers[value], at, term)
        clauses = []
        for k, (node, at, term, scalar) in enumerate(self.reduced):
            r = scalar.lanes or scalar
            body.before(row, *r.declare(f"acc{k}"))
            element = body.emit(term, depth).text
            position = self.affine(r.position).text()
            body.at(depth, *r.update(f"acc{k}", element, position, body.comment(node)))
            out = self.buffers[node.out]
            target = f"{out.name}[{self.affine(at).text()}]"
            body.after(row, Line(f"{target} = {r.result(f'acc{k}')};"))
            clauses.append(r.clause(f"acc{k}"))
        simd = None if None in clauses else " ".join(c for c in clauses if c)
        headers = [self._loop(a, d, depth, row, simd) for d, a in enumerate(loops)]
        return body.nest(headers)

    def _in_threads(self, inner: list[Axis]) -> bool:
        """Whether a full reduction is cut into blocks: where it is worth it, or may be."""
        if not all(r.in_blocks for *_, r in self.reduced) or not inner:
            return False
        total = prod(a.extent for a in inner)
        if isinstance(total, Size):
            return True
        return total >= 2 * BLOCK and self._parallel(total) and self._blocks(inner) > 1

    def _blocks(self, inner: list[Axis]) -> int:
        """How many blocks a full reduction is cut into."""
        return ceil_div(inner[0].extent, self._rows_per_block(inner))

    def _rows_per_block(self, inner: list[Axis]) -> int:
        per_row = prod(a.extent for a in inner[1:])
        rows = max(1, BLOCK // max(per_row, 1))
        return max(rows, ceil_div(inner[0].extent, MAX_BLOCKS))

    def _full(self, inner: list[Axis]) -> list[Line | Loop]:
        """A reduction to scalars, in blocks of fixed size added in order."""
        body = self._body(inner)
        depth = len(inner)
        for value, at, term in self.stored:
            body.store(depth, self.buffers[value], at, term)
        rows, blocks = self._rows_per_block(inner), self._blocks(inner)
        extent = inner[0].extent
        declare: list[Line] = []
        save: list[Line] = []
        combine: list[Line] = []
        finish: list[Line] = []
        top: list[Line] = []
        clauses = []
        for k, (node, _, term, r) in enumerate(self.reduced):
            acc, lanes = f"acc{k}", r.lanes or r
            most = MAX_BLOCKS if isinstance(blocks, Size) else blocks
            top.append(Line(f"{r.c_type} partial{k}[{most}];"))
            declare.extend(lanes.declare(acc))
            element = body.emit(term, depth).text
            body.at(depth, *lanes.update(acc, element, "0", body.comment(node)))
            save.append(Line(f"partial{k}[block] = {lanes.finished(acc)};"))
            combine.extend(r.update(f"total{k}", f"partial{k}[block]", "0", ""))
            finish.append(Line(f"{self.buffers[node.out].name}[0] = {r.result(f'total{k}')};"))
            clauses.append(lanes.clause(acc))
        simd = None if None in clauses else " ".join(c for c in clauses if c)
        first = inner[0].variable
        headers = [self._loop(a, d, depth, 0, simd) for d, a in enumerate(inner)]
        stop = stop_of_block(f"block * {rows}", rows, extent)
        headers[0] = Loop(first, "stop", (), start=f"block * {rows}", pragmas=headers[0].pragmas)
        nest = body.nest(headers)
        hoisted = [item for item in nest if isinstance(item, Line)]
        loops = [item for item in nest if isinstance(item, Loop)]
        block = Loop(
            "block", str(blocks),
            (Line(f"const int64_t stop = {stop};"), *declare, *loops, *save),
            pragmas=self._threads(prod(a.extent for a in inner)),
            comment="blocks of fixed size: the same sum on any number of threads",
        )  # fmt: skip
        totals = [line for k, (*_, r) in enumerate(self.reduced) for line in r.declare(f"total{k}")]
        return [*hoisted, *top, block, *totals, Loop("block", str(blocks), tuple(combine)), *finish]

    def _columns(self, kept: list[Axis], inner: list[Axis]) -> list[Line | Loop]:
        """Reduced axes outside the last kept one: an array of accumulators along it."""
        column, outer = kept[-1], kept[:-1]
        loops = [*outer, *inner, column]
        body = self._body(loops)
        depth, row = len(loops), len(outer)
        width = COLUMNS if isinstance(column.extent, Size) else min(column.extent, COLUMNS)
        c = column.variable
        blocked = column.extent > COLUMNS
        slot = f"{c} - {c}0" if blocked else c
        stop = f"{c}1" if blocked else str(column.extent)
        start = f"{c}0" if blocked else "0"
        for value, at, term in self.stored:
            body.store(depth, self.buffers[value], at, term)
        declare: list[Line | Loop] = []
        finish: list[Line | Loop] = []
        for k, (node, at, term, r) in enumerate(self.reduced):
            acc = f"acc{k}[{slot}]"
            declare.append(Line(f"{r.c_type} acc{k}[{width}];"))
            declare.append(Loop(c, stop, (Line(f"{acc} = {r.initial};"),), start=start))
            element = body.emit(term, depth).text
            body.at(depth, *r.update(acc, element, "0", body.comment(node)))
            target = f"{self.buffers[node.out].name}[{self.affine(at).text()}]"
            finish.append(Loop(c, stop, (Line(f"{target} = {r.result(acc)};"),), start=start))
        headers = [self._loop(a, d, depth, row, "") for d, a in enumerate(loops)]
        headers[-1] = Loop(c, stop, (), start=start, pragmas=("omp simd",))
        if not blocked:
            body.before(row, *declare)
            body.after(row, *finish)
            return body.nest(headers)
        first, last = f"{c}0", f"{c}1"
        end = stop_of_block(first, width, column.extent)
        head = [Line(f"const int64_t {last} = {end};"), *declare]
        threads = self._threads(prod(a.extent for a in loops)) if row == 0 else ()
        body.wrap(row, lambda items: Loop(
            first, str(column.extent), (*head, *items, *finish), step=str(width), pragmas=threads,
            comment=f"columns in blocks of {width}",
        ))  # fmt: skip
        return body.nest(headers)

    # ---- loop headers ---------------------------------------------------------------------------

    def _loop(
        self, axis: Axis, depth: int, total: int, row: int | None = None, simd: str | None = ""
    ) -> Loop:
        """The header of one loop: threads on the outermost kept one, vectors on the innermost."""
        pragmas: list[str] = []
        extents = prod(a.extent for a in self.axes)
        outermost = depth == 0 and not axis.reduced and axis.extent > 1
        innermost = depth == total - 1
        vector = innermost and simd is not None and not self.lowering.uses_status
        threads = self._threads(extents) if outermost else ()
        if threads:
            pragmas.extend(threads)
        elif vector and (row is None or depth >= row):
            pragmas.append(f"omp simd {simd}".rstrip())
        return Loop(axis.variable, str(axis.extent), (), pragmas=tuple(pragmas))

    def _threads(self, elements: int) -> tuple[str, ...]:
        """The pragma of a loop over so many elements; none where one thread is enough."""
        if not self.target.openmp or not self._parallel(elements):
            return ()
        if isinstance(elements, Size):  # the call decides
            return (
                f"{PARALLEL} if({elements} > {int(PARALLEL_SECONDS / self.lowered.seconds())})",
            )
        return (PARALLEL,)

    def _parallel(self, elements: int) -> bool:
        """Whether so many elements are worth threads, or may be in another call."""
        if isinstance(elements, Size):
            return True
        return elements * self.lowered.seconds(elements) > PARALLEL_SECONDS

    # ---- parameters -----------------------------------------------------------------------------

    def _finish(self, body: tuple[Line | Loop, ...]) -> KernelPlan:
        terms = self.lowered.terms()
        empty = 0 in self.group.domain
        read = [] if empty else [t.template for t in terms if t.kind == "load"]
        written = [self.buffers[v].name for v in self.group.values]
        return kernel_plan(
            self.name, nest_summary(self.group, self.lowered), body, read, written, self.buffers.values(),
            ops=prod(self.group.domain) * sum(t.cost for t in terms if t.kind == "apply"),
            uses_status=self.lowering.uses_status and not empty,
            names=tuple(self.body.shown.items()),
        )  # fmt: skip
