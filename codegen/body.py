"""The body of a loop nest: terms become statements, each at the outermost loop where it can stand.

A term that is used twice, hoisted, used as an index or long becomes a named variable; the others
are printed where they are used. Start reading at `Body.emit`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from tracegrad.codegen.affine import Affine
from tracegrad.codegen.expressions import ATOM, Expr, fill
from tracegrad.codegen.lower import Buffer, Guard, Lowering, Term
from tracegrad.codegen.plan import Line, Loop
from tracegrad.ir.graph import Node
from tracegrad.ir.location import Location

LONG = 64  # characters after which an expression gets a name

Item = Line | Loop


class Body:
    """Statements of one nest, by depth: `depths[variable]` is the level inside its loop.

    Args:
        lowering: where the terms came from; knows the symbols.
        affine: rewrites an index into the final loop variables.
        depths: level of each loop variable, from 1.
        extents: size of each loop variable.
        row: level of the loop over rows, where what earlier stages computed of a row is known.
        named: how many variables of the same kernel have names already.
    """

    def __init__(
        self, lowering: Lowering, affine: Callable[[Affine], Affine],
        depths: Mapping[str, int], extents: Mapping[str, int], row: int = 0, named: int = 0,
    ) -> None:  # fmt: skip
        self.lowering, self.affine = lowering, affine
        self.depths, self.extents = depths, extents
        self.row, self.first = row, named
        levels = max(depths.values(), default=0) + 1
        self.statements: list[list[Item]] = [[] for _ in range(levels)]
        self.afterwards: list[list[Item]] = [[] for _ in range(levels)]
        self.wrappers: dict[int, Callable[[tuple[Item, ...]], Loop]] = {}
        self.named: dict[int, str] = {}
        self.shown: dict[str, str] = {}  # names of variables, as people should read them
        self.depth_memo: dict[int, int] = {}

    # ---- where a term can stand -----------------------------------------------------------------

    def depth(self, term: Term) -> int:
        """The level of the innermost loop that a term depends on."""
        found = self.depth_memo.get(id(term))
        if found is None:
            levels = [self.depth(t) for t in term.operands.values()]
            levels += [self._affine_depth(term.affine)]
            levels += [self._affine_depth(g.index) for g in term.guards]
            if term.in_row:
                levels.append(self.row)
            found = self.depth_memo[id(term)] = max(levels)
        return found

    def _affine_depth(self, a: Affine) -> int:
        return max((self._symbol_depth(s) for s in self.affine(a).symbols), default=0)

    def _symbol_depth(self, symbol: str) -> int:
        if symbol in self.depths:
            return self.depths[symbol]
        return self.depth(self.lowering.symbols[symbol])

    def type_of(self, term: Term) -> str:
        """The C type of a variable that holds a term."""
        return variable_type(term)

    # ---- printing -------------------------------------------------------------------------------

    def emit(self, term: Term, at: int) -> Expr:
        """The C expression of `term` for use at level `at`; adds the statements it needs."""
        name = self.named.get(id(term))
        if name is not None:
            return Expr(name)
        own = self.depth(term)
        trivial = (
            term.kind == "number" or term.is_variable or (term.kind == "index" and not term.symbol)
        )
        shared = term.uses > 1 or bool(term.symbol) or own < at
        expr = self._expression(term, own if shared and not trivial else at)
        if trivial or not (shared or len(expr.text) > LONG):
            return expr
        level = own if shared else at
        name = term.symbol or f"t{self.first + len(self.named)}"
        self.named[id(term)] = name
        if term.hint.isidentifier() and term.hint not in self.shown.values():
            self.shown[name] = term.hint
        declaration = f"const {self.type_of(term)} {name} = {expr.text};"
        self.statements[level].append(Line(declaration, where(term.location, term.op)))
        return Expr(name)

    def _expression(self, term: Term, at: int) -> Expr:
        if term.kind == "number":
            assert term.literal is not None
            return term.literal
        if term.kind == "index":
            text = self.index(term.affine, at)
            return Expr(text, ATOM if text.isidentifier() or text.isdigit() else 10)
        if term.kind == "load":
            loaded = self._load(term, at)
            if not term.guards:
                return loaded
            return fill("{c} ? {x} : 0", {"c": self._condition(term.guards, at), "x": loaded})
        slots = {}
        for name, operand in term.operands.items():
            if (
                name == "yes"
                and operand.kind == "load"
                and operand.guards == term.guards
                and (operand.uses == 1)
            ):
                slots[name] = self._load(operand, at)
            else:
                slots[name] = self.emit(operand, at)
        if term.guards:
            slots["cond"] = self._condition(term.guards, at)
        return fill(term.template, slots)

    def _load(self, term: Term, at: int) -> Expr:
        if term.is_variable:
            return Expr(term.template)
        text = f"{term.template}[{self.index(term.affine, at)}]"
        if term.dtype.c_compute != term.dtype.c_type:
            text = f"tg_load_{term.dtype.name}({text})"
        return Expr(text)

    def index(self, a: Affine, at: int) -> str:
        """The C text of an index; adds the statements of the symbols in it."""
        final = self.affine(a)
        for symbol in final.symbols:
            if symbol not in self.depths:
                self.emit(self.lowering.symbols[symbol], at)
        return final.text()

    def _condition(self, guards: Sequence[Guard], at: int) -> Expr:
        tests = []
        for g in guards:
            text = self.index(g.index, at)
            bounds = self.affine(g.index).bounds(self.extents)
            if bounds is None or bounds[0] < g.low:
                tests.append(f"{text} >= {g.low}")
            if bounds is None or bounds[1] >= g.high:
                tests.append(f"{text} < {g.high}" if g.high != g.low + 1 or bounds is None
                             else f"{text} == {g.low}")  # fmt: skip
        if not tests:
            return Expr("1")
        return Expr(" && ".join(tests), 3 if len(tests) > 1 else 8)

    # ---- statements -----------------------------------------------------------------------------

    def store(self, depth: int, buffer: Buffer, at: Affine, term: Term) -> None:
        """Add `buffer[at] = term`."""
        value = self.emit(term, depth)
        text = value.text
        line = where(term.location, term.op) if not text.isidentifier() else ""
        if buffer.scalar:
            declaration = f"const {self.type_of(term)} {buffer.name} = {text};"
            self.statements[depth].append(Line(declaration, line))
            return
        if buffer.dtype.c_compute != buffer.dtype.c_type:
            text = f"tg_store_{buffer.dtype.name}({text})"
        self.statements[depth].append(
            Line(f"{buffer.name}[{self.index(at, depth)}] = {text};", line)
        )

    def at(self, depth: int, *items: Item) -> None:
        """Add statements inside loop level `depth`."""
        self.statements[depth].extend(items)

    before = at

    def after(self, depth: int, *items: Item) -> None:
        """Add statements at level `depth`, behind the loop inside it."""
        self.afterwards[depth].extend(items)

    def wrap(self, depth: int, wrapper: Callable[[tuple[Item, ...]], Loop]) -> None:
        """Put a loop of another kind around the nest at level `depth`."""
        self.wrappers[depth] = wrapper

    def comment(self, node: Node) -> str:
        """The Python line of a node."""
        return where(node.location, node.primitive.name)

    def nest(self, headers: Sequence[Loop], outermost: int = 0) -> list[Item]:
        """The statements from level `outermost` on, inside their loops.

        `headers[d]` is the loop around level d + 1.
        """
        depth = len(headers)
        items: list[Item] = [*self.statements[depth], *self.afterwards[depth]]
        if depth in self.wrappers:
            items = [self.wrappers[depth](tuple(items))]
        for d in range(depth - 1, outermost - 1, -1):
            inside: tuple[Item, ...] = (replace(headers[d], body=tuple(items)),)
            if d in self.wrappers:
                inside = (self.wrappers[d](inside),)
            items = [*self.statements[d], *inside, *self.afterwards[d]]
        return items


def variable_type(term: Term) -> str:
    """The C type of a variable that holds a term; conditions are int, so they vectorise."""
    if term.dtype.kind == "b":
        return "int"
    return term.dtype.c_compute


def where(location: Location | None, op: str) -> str:
    """The Python line; with the operation where the line's text cannot be looked up."""
    if location is None:
        return ""
    return str(location) if location.text or not op else f"{location} {op}"
