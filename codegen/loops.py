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
from dataclasses import dataclass
from math import prod

from tracegrad.codegen.affine import Affine, Index, offset
from tracegrad.codegen.body import Body
from tracegrad.codegen.lower import Buffer, Lowering, SplitRequest, Term
from tracegrad.codegen.plan import PARALLEL, KernelPlan, Line, Loop, Parameter, Target
from tracegrad.codegen.reducers import Reducer, reducer
from tracegrad.ir.graph import Node, Value
from tracegrad.ir.sizes import Size, ceil_div
from tracegrad.ir.types import Shape, contiguous_strides

BLOCK = 4096  # elements of a block of a full reduction
COLUMNS = 512  # accumulators of a block of a column reduction
MAX_BLOCKS = 1024  # partial results kept on the stack
PARALLEL_SECONDS = 50e-6  # work below this runs on one thread
SECONDS_PER_OP, SECONDS_PER_BYTE = 0.08e-9, 0.1e-9  # one core, vectorised; rough on purpose


@dataclass(frozen=True)
class Group:
    """Values computed in one loop nest.

    Attributes:
        domain: the sizes of the loops.
        reduced: positions in the domain that the reductions sum over; empty for a map.
        stores: values of the domain's shape that get a buffer.
        reductions: nodes that reduce a value of the domain's shape.
    """

    domain: Shape
    reduced: tuple[int, ...]
    stores: tuple[Value, ...]
    reductions: tuple[Node, ...]

    @property
    def values(self) -> tuple[Value, ...]:
        """All values that this group computes into buffers."""
        return self.stores + tuple(n.out for n in self.reductions)


@dataclass
class _Axis:
    """One loop: variable, size, whether it is reduced, and its axis of the domain."""

    variable: str
    extent: int
    reduced: bool


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
        axes, index = _domain(group, splits)
        try:
            return _Nest(name, group, axes, index, producer, buffers, target).plan()
        except SplitRequest as request:
            splits[request.variable] = request.divisor


def _domain(group: Group, splits: Mapping[str, int]) -> tuple[list[_Axis], Index]:
    """Loops of the domain, size-1 axes dropped and asked-for splits made, and the index."""
    axes: list[_Axis] = []
    index: list[Affine] = []

    def loop(variable: str, extent: int, reduced: bool) -> Affine:
        if variable in splits:
            inner = splits[variable]
            high = loop(f"{variable}h", extent // inner, reduced)
            low = loop(f"{variable}l", inner, reduced)
            return high * inner + low
        if extent == 1:
            return Affine()
        axes.append(_Axis(variable, extent, reduced))
        return Affine.symbol(variable)

    for d, n in enumerate(group.domain):
        index.append(loop(f"i{d}", n, d in group.reduced))
    return axes, tuple(index)


class _Nest:
    """The planning of one group for one choice of loops."""

    def __init__(
        self, name: str, group: Group, axes: list[_Axis], index: Index,
        producer: Callable[[Value], Node | None], buffers: Mapping[Value, Buffer], target: Target,
    ) -> None:  # fmt: skip
        self.name, self.group, self.axes, self.target = name, group, axes, target
        self.buffers = buffers
        own = dict.fromkeys(group.stores, index)
        self.lowering = Lowering(producer, buffers, {a.variable: a.extent for a in axes}, own)
        self.stored: list[tuple[Value, Affine, Term]] = []
        for v in group.stores:
            at = offset(index, contiguous_strides(v.shape))
            self.stored.append((v, at, self.lowering.term(v, index)))
        kept_index = [e for d, e in enumerate(index) if d not in group.reduced]
        self.reduced: list[tuple[Node, Affine, Term, Reducer]] = []
        for node in group.reductions:
            kept_shape = [n for d, n in enumerate(group.domain) if d not in group.reduced]
            at = offset(kept_index, contiguous_strides(tuple(kept_shape)))
            term = self.lowering.term(node.inputs[0], index)
            self.reduced.append((node, at, term, reducer(node, index, group.domain)))

    # ---- loops ----------------------------------------------------------------------------------

    def _merge_axes(self) -> None:
        """Make one loop of two adjacent ones wherever every index allows it."""
        affines = [at for _, at, _ in self.stored] + [at for _, at, _, _ in self.reduced]
        affines += [r.position for _, _, _, r in self.reduced]
        terms = self._all_terms()
        for t in terms:
            affines.append(t.affine)
            affines.extend(g.index for g in t.guards)
        self.merges: list[tuple[str, str, str]] = []
        i = len(self.axes) - 2
        while i >= 0:
            outer, inner = self.axes[i], self.axes[i + 1]
            fits = outer.reduced == inner.reduced and all(
                a.coefficient(outer.variable) == a.coefficient(inner.variable) * inner.extent
                for a in affines
            )
            if fits:
                into = outer.variable + inner.variable[1:]
                self.merges.append((outer.variable, inner.variable, into))
                affines = [a.merged(outer.variable, inner.variable, into) for a in affines]
                self.axes[i : i + 2] = [_Axis(into, outer.extent * inner.extent, outer.reduced)]
            i -= 1
        names = {}
        for position, axis in enumerate(self.axes):
            short = "ijklmnpq"[position] if position < 8 else f"i{position}"
            names[axis.variable] = short
            axis.variable = short
        self.renames = names

    def _all_terms(self) -> list[Term]:
        seen: dict[int, Term] = {}
        stack = [t for _, _, t in self.stored] + [t for _, _, t, _ in self.reduced]
        stack += list(self.lowering.symbols.values())
        while stack:
            term = stack.pop()
            if id(term) not in seen:
                seen[id(term)] = term
                stack.extend(term.operands.values())
        return list(seen.values())

    def affine(self, a: Affine) -> Affine:
        """An index in the final loop variables."""
        for outer, inner, into in self.merges:
            a = a.merged(outer, inner, into)
        return Affine(a.const, tuple((self.renames.get(n, n), c) for n, c in a.terms))

    # ---- the plan -------------------------------------------------------------------------------

    def plan(self) -> KernelPlan:
        self._merge_axes()
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

    def _empty(self, kept: list[_Axis]) -> list[Line | Loop]:
        """Nothing to read: reductions over nothing have their first value."""
        body = self._body(kept)
        for node, at, _, r in self.reduced:
            if node.out.type.size:
                target = f"{self.buffers[node.out].name}[{self.affine(at).text()}]"
                body.at(len(kept), Line(f"{target} = {r.result(r.initial)};"))
        return body.nest([Loop(a.variable, str(a.extent), ()) for a in kept])

    def _body(self, loops: Sequence[_Axis]) -> Body:
        depths = {a.variable: d + 1 for d, a in enumerate(loops)}
        extents = {a.variable: a.extent for a in loops}
        self.body = Body(self.lowering, self.affine, depths, extents)
        return self.body

    def _map(self, loops: list[_Axis]) -> list[Line | Loop]:
        body = self._body(loops)
        depth = len(loops)
        for value, at, term in self.stored:
            body.store(depth, self.buffers[value], at, term)
        headers = [self._loop(a, d, depth) for d, a in enumerate(loops)]
        if depth == 1 and self._threads(loops[0].extent):
            headers[0] = self._in_blocks(body, loops[0], BLOCK)
        return body.nest(headers)

    def _in_blocks(self, body: Body, axis: _Axis, size: int) -> Loop:
        """Cut a flat loop into blocks of fixed size, one thread each.

        A vector loop ends in a scalar rest, whose math functions may round differently; fixed
        blocks put the rest at the same elements for any number of threads.
        """
        stop = f"block * {size} + {size} < {axis.extent} ? block * {size} + {size} : {axis.extent}"
        body.wrap(0, lambda items: Loop(
            "block", str(ceil_div(axis.extent, size)), (Line(f"const int64_t stop = {stop};"), *items),
            pragmas=self._threads(axis.extent), comment="blocks of fixed size",
        ))  # fmt: skip
        simd = () if self.lowering.uses_status else ("omp simd",)
        return Loop(axis.variable, "stop", (), start=f"block * {size}", pragmas=simd)

    def _rows(self, kept: list[_Axis], inner: list[_Axis]) -> list[Line | Loop]:
        loops = kept + inner
        body = self._body(loops)
        depth, row = len(loops), len(kept)
        for value, at, term in self.stored:
            body.store(depth, self.buffers[value], at, term)
        clauses = []
        for k, (node, at, term, r) in enumerate(self.reduced):
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

    def _in_threads(self, inner: list[_Axis]) -> bool:
        """Whether a full reduction is cut into blocks: where it is worth it, or may be."""
        if not all(r.in_blocks for *_, r in self.reduced) or not inner:
            return False
        total = prod(a.extent for a in inner)
        if isinstance(total, Size):
            return True
        return total >= 2 * BLOCK and self._parallel(total) and self._blocks(inner) > 1

    def _blocks(self, inner: list[_Axis]) -> int:
        """How many blocks a full reduction is cut into."""
        return ceil_div(inner[0].extent, self._rows_per_block(inner))

    def _rows_per_block(self, inner: list[_Axis]) -> int:
        per_row = prod(a.extent for a in inner[1:])
        rows = max(1, BLOCK // max(per_row, 1))
        return max(rows, ceil_div(inner[0].extent, MAX_BLOCKS))

    def _full(self, inner: list[_Axis]) -> list[Line | Loop]:
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
            acc = f"acc{k}"
            most = MAX_BLOCKS if isinstance(blocks, Size) else blocks
            top.append(Line(f"{r.c_type} partial{k}[{most}];"))
            declare.extend(r.declare(acc))
            element = body.emit(term, depth).text
            body.at(depth, *r.update(acc, element, "0", body.comment(node)))
            save.append(Line(f"partial{k}[block] = {acc};"))
            combine.extend(r.update(f"total{k}", f"partial{k}[block]", "0", ""))
            finish.append(Line(f"{self.buffers[node.out].name}[0] = {r.result(f'total{k}')};"))
            clauses.append(r.clause(acc))
        simd = None if None in clauses else " ".join(c for c in clauses if c)
        first = inner[0].variable
        headers = [self._loop(a, d, depth, 0, simd) for d, a in enumerate(inner)]
        stop = f"block * {rows} + {rows} < {extent} ? block * {rows} + {rows} : {extent}"
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

    def _columns(self, kept: list[_Axis], inner: list[_Axis]) -> list[Line | Loop]:
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
        end = f"{first} + {width} < {column.extent} ? {first} + {width} : {column.extent}"
        head = [Line(f"const int64_t {last} = {end};"), *declare]
        threads = self._threads(prod(a.extent for a in loops)) if row == 0 else ()
        body.wrap(row, lambda items: Loop(
            first, str(column.extent), (*head, *items, *finish), step=str(width), pragmas=threads,
            comment=f"columns in blocks of {width}",
        ))  # fmt: skip
        return body.nest(headers)

    # ---- loop headers ---------------------------------------------------------------------------

    def _loop(
        self, axis: _Axis, depth: int, total: int, row: int | None = None, simd: str | None = ""
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
            return (f"{PARALLEL} if({elements} > {int(PARALLEL_SECONDS / self._seconds())})",)
        return (PARALLEL,)

    def _parallel(self, elements: int) -> bool:
        """Whether so many elements are worth threads, or may be in another call."""
        return isinstance(elements, Size) or elements * self._seconds() > PARALLEL_SECONDS

    def _seconds(self) -> float:
        """About how long one element takes."""
        terms = self._all_terms()
        ops = sum(t.cost for t in terms if t.kind == "apply")
        loads = sum(t.dtype.itemsize for t in terms if t.kind == "load")
        stores = sum(v.dtype.itemsize for v, *_ in self.stored)
        return max(ops * SECONDS_PER_OP + (loads + stores) * SECONDS_PER_BYTE, 1e-12)

    # ---- parameters -----------------------------------------------------------------------------

    def _finish(self, body: tuple[Line | Loop, ...]) -> KernelPlan:
        terms = self._all_terms()
        by_name = {b.name: b for b in self.buffers.values()}
        loads = {t.template for t in terms if t.kind == "load"}
        read = [] if 0 in self.group.domain else sorted(loads, key=natural)
        written = [self.buffers[v].name for v in self.group.values]
        parameters = [
            Parameter(n, by_name[n].dtype.c_type, False, _shape_comment(by_name[n])) for n in read
        ] + [
            Parameter(n, by_name[n].dtype.c_type, True, _shape_comment(by_name[n])) for n in written
        ]
        sizes = sum(prod(by_name[n].shape) * by_name[n].dtype.itemsize for n in read + written)
        elements = prod(self.group.domain)
        return KernelPlan(
            self.name, self._summary(), tuple(parameters), body, tuple(read + written),
            nbytes=sizes, ops=elements * sum(t.cost for t in terms if t.kind == "apply"),
            uses_status=self.lowering.uses_status and 0 not in self.group.domain,
            names=tuple(self.body.shown.items()),
        )  # fmt: skip

    def _summary(self) -> tuple[str, ...]:
        sizes = " x ".join(str(n) for n in self.group.domain)
        loops = f"{sizes} elements" if sizes else "One element"
        names = sorted({n.primitive.name for n in self.group.reductions})
        axes = ", ".join(map(str, self.group.reduced))
        made = [f"{' and '.join(names)} over axes {axes}"] if names else []
        lines = {str(t.location): t.location for t in self._all_terms() if t.location is not None}
        for node, *_ in self.reduced:
            if node.location is not None:
                lines.setdefault(str(node.location), node.location)
        where = [f"{k}: {loc.text}" if loc.text else k for k, loc in sorted(lines.items())]
        return (f"{', '.join([loops, *made])}.", *where)


def natural(name: str) -> tuple[str, int]:
    """A key that sorts names by their number."""
    head, _, number = name.rpartition("_")
    return head, int(number) if number.isdigit() else 0


def _shape_comment(buffer: Buffer) -> str:
    shape = ", ".join(map(str, buffer.shape))
    if buffer.strides != contiguous_strides(buffer.shape):
        return f"{buffer.dtype.name}[{shape}], strides {buffer.strides}"
    return f"{buffer.dtype.name}[{shape}]"
