"""The statements of a row kernel, stage by stage. Start reading at `RowText.write`."""

from __future__ import annotations

from dataclasses import dataclass

from tracegrad.codegen.affine import Affine
from tracegrad.codegen.cuda.device import LANE, DeviceBody, Held, Items, Span, used
from tracegrad.codegen.cuda.plan import Block
from tracegrad.codegen.cuda.row_layout import Form, RowLayout
from tracegrad.codegen.cuda.teams import Accumulator
from tracegrad.codegen.lower import Buffer
from tracegrad.codegen.nest import Merges
from tracegrad.codegen.plan import Line, Loop, Scratch
from tracegrad.codegen.reducers import Reducer
from tracegrad.codegen.rows import Stage
from tracegrad.ir.graph import Node

Made = list[tuple[Node, Reducer, str]]
"""The reductions of a stage with the names of their accumulators."""


@dataclass(frozen=True)
class Accumulated:
    """A reduction over the rows: its result, its accumulator, and where its parts go."""

    node: Node
    r: Reducer
    acc: str
    size: int
    form: Form
    array: str  # "" where the accumulator is one variable
    scratch: tuple[Scratch, ...]


class RowText:
    """The statements of a row kernel."""

    def __init__(self, kernel: RowLayout, held: Held) -> None:
        self.k, self.held, self.team = kernel, held, kernel.team
        self.outside: list[Line | Loop | Block] = []
        self.row: list[Line | Loop | Block] = []
        self.shown: dict[str, str] = {}
        self.accumulated: list[Accumulated] = []
        self.reductions = self.named = 0
        self.unseen: set[str] = set()  # arrays written since the team last waited
        self.items: list[Line | Loop | Block] = []
        self.declared: list[Line] = []

    def write(self) -> None:
        """Write all of it."""
        for v, b in self.k.own.items():
            self._declare(b, self.k.row_size(v))
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
        if self.k.foreign(k) & self.unseen:
            self.row += self.team.sync()
            self.unseen.clear()
        body = self._body(k, stage, merges, form)
        level = 1 if not form.span.axes else 3 if form.serial else 2 + (form.span.lanes > 1)
        for value, at, term in stage.lowered.stored:
            buffer = self.k.buffers[value]
            body.store(level, buffer, stage.within if buffer.local else at, term)
            self.unseen.add(buffer.name)
        accumulators: Made = []
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
            aligned=self.k.aligned,
        )  # fmt: skip
        body.shown = self.shown
        return body

    def _replicated(self, body: DeviceBody, accumulators: Made) -> None:
        """One element for each row: every thread computes it, the first one stores it."""
        stores = [line for line in body.statements[1] if self._is_store(line)]
        self.row += [*(line for _, r, acc in accumulators for line in r.declare(acc))]
        self.row += [line for line in body.statements[1] if line not in stores]
        if stores:
            self.row += self.team.first(stores)
        self._results(accumulators)

    def _is_store(self, item: object) -> bool:
        return isinstance(item, Line) and item.text.split("[")[0] in self.k.made

    def _together(self, body: DeviceBody, form: Form, accumulators: Made) -> None:
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
            start, step = span.counted(team.lane), span.counted(str(team.width))
            return [Loop(span.counter, str(span.stop), tuple(inside), start, step)]
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
        accumulators: Made,
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

    def _results(self, accumulators: Made) -> None:
        """What a reduction along the row leaves: a variable, or an element in memory."""
        for node, r, acc in accumulators:
            buffer = self.k.buffers[node.out]
            out = self.k.in_memory(node.out)
            if buffer.scalar and (out is buffer or self.k.readers(buffer.name)):
                c_type = "int" if node.out.dtype.kind == "b" else node.out.dtype.c_compute
                self.row.append(
                    Line(f"const {c_type} {buffer.name} = {r.value(acc, node.out.dtype)};")
                )
                if out is not buffer:
                    value = buffer.name if c_type == out.dtype.c_type else r.result(acc)
                    self.row += self.team.first([Line(f"{out.name}[row] = {value};")])
                continue
            place = "0" if out.local else "row"
            self.row += self.team.first([Line(f"{out.name}[{place}] = {r.result(acc)};")])
            self.unseen.add(out.name)

    # ---- what accumulates over the rows ---------------------------------------------------------

    def _accumulate(
        self, body: DeviceBody, form: Form, node: Node, r: Reducer, acc: str, element: str, level: int
    ) -> None:  # fmt: skip
        size = int(node.out.type.size)
        array, at = "", acc
        if size > 1:
            array = "mine" if self.k.accumulators_in_registers(form) else "shared"
            place = form.slot() if array == "mine" else body.index(_flat(form), level)
            at = f"{acc}[{place}]"
        body.at(level, *r.update(at, element, "0", body.comment(node)))
        step = self.k.name.removeprefix("kernel_")
        name = f"{acc.replace('acc', 'partial')}_{step}"
        scratch = (Scratch(name, r.c_type, int(self.k.parts) * size * 8),)
        self.accumulated.append(Accumulated(node, r, acc, size, form, array, scratch))

    def _begin(self, a: Accumulated) -> list[Line | Loop | Block]:
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

    def _end(self, a: Accumulated) -> list[Line | Loop | Block]:
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


def _slot_of(a: Accumulated) -> str:
    if a.array == "mine":
        return a.form.slot()
    lane = Affine.symbol(LANE) if a.form.span.lanes > 1 else Affine()
    return (_flat(a.form) + lane).text()


def _lanes_of(form: Form, items: Items) -> Items:
    if form.span.lanes == 1:
        return items
    return [Loop(LANE, str(form.span.lanes), tuple(items), pragmas=("unroll",))]
