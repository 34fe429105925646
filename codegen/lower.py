"""Lowering: a value at an index becomes scalar terms of C.

`Lowering.term(value, index)` follows a value back to the buffers that exist: pointwise operations
become expressions, movement operations arithmetic on the index, a gather an index that is itself a
term. Nothing is materialised here; what has a buffer was decided by the schedule.

A `Term` is a node of the kernel's own small graph: shared terms become named variables, the rest is
printed in place. Start reading at `Lowering.term`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tracegrad.codegen.affine import Affine, Index, offset, reshaped
from tracegrad.codegen.expressions import Expr, number
from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.graph import Node, Value
from tracegrad.ir.location import Location
from tracegrad.ir.types import Shape, contiguous_strides


@dataclass(frozen=True)
class Buffer:
    """Memory that holds a value: its C name, strides in elements, and element type.

    A `local` buffer is an array, or with `scalar` a variable, inside the loop over rows: it holds
    the part of one row.
    """

    name: str
    dtype: DType
    shape: Shape
    strides: Shape
    local: bool = False
    scalar: bool = False


@dataclass(frozen=True)
class Guard:
    """The condition `low <= index < high` under which an access is inside its buffer."""

    index: Affine
    low: int
    high: int


@dataclass(eq=False)
class Term:
    """One scalar of a kernel.

    `kind` is "number" (text), "index" (an affine as an integer), "load" (buffer at an offset, if
    the guards hold) or "apply" (a template over operands; guards select between two of them).
    """

    kind: str
    dtype: DType
    template: str = ""
    operands: dict[str, Term] = field(default_factory=dict)
    affine: Affine = Affine()
    guards: tuple[Guard, ...] = ()
    literal: Expr | None = None
    location: Location | None = None
    op: str = ""
    hint: str = ""
    symbol: str = ""  # a name other affines use for it: it must be a variable
    uses: int = 0
    cost: int = 0
    in_row: bool = False  # it reads what an earlier stage computed of the same row
    is_variable: bool = False  # a load of a variable: it has no index


class SplitRequest(Exception):
    """Lowering wants a loop variable as two: `variable = outer * divisor + inner`."""

    def __init__(self, variable: str, divisor: int) -> None:
        super().__init__(variable, divisor)
        self.variable = variable
        self.divisor = divisor


INT64 = dtypes.int64


class Lowering:
    """Terms of one kernel, shared by (value, index, guards).

    Args:
        producer: the node that yields a value, or None for a graph input.
        buffers: where realised values live.
        extents: loop variables of the kernel and their sizes.
        own: values computed by this kernel itself, with the index at which it computes them.
        prefix: of the names of computed indices.
        splits: whether loops may be split; otherwise indices are divided at run time.
    """

    def __init__(
        self,
        producer: Callable[[Value], Node | None],
        buffers: Mapping[Value, Buffer],
        extents: Mapping[str, int],
        own: Mapping[Value, Index],
        prefix: str = "",
        splits: bool = True,
    ) -> None:
        self.producer = producer
        self.buffers = buffers
        self.extents = dict(extents)
        self.own = own
        self.prefix, self.splits = prefix, splits
        self.memo: dict[Any, Term] = {}
        self.symbols: dict[str, Term] = {}
        self.divided: list[tuple[str, str, int, Affine]] = []  # quotient, remainder, of what
        self.uses_status = False

    def term(self, value: Value, index: Index, guards: tuple[Guard, ...] = ()) -> Term:
        """The scalar of `value` at `index`; its value is irrelevant where a guard fails."""
        found = self._shared(value, index, guards)
        found.uses += 1
        return found

    def _shared(self, value: Value, index: Index, guards: tuple[Guard, ...]) -> Term:
        """The same, not counted as a use: for operations that pass a term on unchanged."""
        key = (value, index, guards)
        found = self.memo.get(key)
        if found is None:
            found = self.memo[key] = self._make(value, index, guards)
        return found

    def _make(self, value: Value, index: Index, guards: tuple[Guard, ...]) -> Term:
        computed_here = value in self.own
        if computed_here and self.own[value] != index:
            raise AssertionError(f"kernel reads {value!r} at another index than it writes")
        if value in self.buffers and not computed_here:
            return self._load(value, index, guards)
        flat = self._same_memory(value)
        if flat is not None:
            return self._load(flat, index, guards, contiguous_strides(value.shape))
        node = self.producer(value)
        assert node is not None, f"{value!r} has neither a buffer nor a producer"
        family = node.primitive.family
        made = getattr(self, f"_{family}")(node, index, guards)
        assert isinstance(made, Term)
        return made

    # ---- leaves ---------------------------------------------------------------------------------

    def _same_memory(self, value: Value) -> Value | None:
        """A realised contiguous value of which `value` is a reshape, element for element."""
        base = same_memory(value, self.producer)
        if base is value or base in self.own or base not in self.buffers:
            return None
        buffer = self.buffers[base]
        return base if buffer.strides == contiguous_strides(buffer.shape) else None

    def _load(
        self, value: Value, index: Index, guards: tuple[Guard, ...], strides: Shape | None = None
    ) -> Term:
        buffer = self.buffers[value]
        at = self._undivided(offset(index, buffer.strides if strides is None else strides))
        key = ("load", buffer.name, at, guards)
        if key not in self.memo:
            self.memo[key] = Term(
                "load", value.dtype, buffer.name, affine=at, guards=guards, hint=value.name, cost=1
            )
        return self.memo[key]

    def _creation(self, node: Node, index: Index, guards: tuple[Guard, ...]) -> Term:
        dtype = node.out.dtype
        if node.primitive.name == "constant":
            return Term("number", dtype, literal=number(node.params["value"], dtype))
        counter = Term("index", INT64, affine=index[node.params["axis"]])
        return self._cast_term(counter, dtype, node)

    # ---- pointwise ------------------------------------------------------------------------------

    def _pointwise(self, node: Node, index: Index, guards: tuple[Guard, ...]) -> Term:
        if node.primitive.name == "detach":
            return self._shared(node.inputs[0], index, guards)
        operands = {
            name: self.term(v, aligned(index, v.shape), guards)
            for name, v in zip(node.primitive.args, node.inputs, strict=True)
        }
        if node.primitive.name == "cast":
            return self._cast_term(operands["x"], node.out.dtype, node)
        return self.apply(node, c_template(node), operands)

    def apply(self, node: Node, template: str, operands: dict[str, Term]) -> Term:
        """A term for one node, rounded where the dtype is computed in a wider type."""
        dtype = node.out.dtype
        if "status" in template:  # it can fail: integer division
            self.uses_status = True
        if dtype.c_compute != dtype.c_type and node.primitive.cost > 0:
            template = f"tg_round_{dtype.name}({template})"
        elif dtype.kind in "iu" and dtype.itemsize < 4 and node.primitive.cost > 0:
            template = f"({dtype.c_type})({template})"
        return Term("apply", dtype, template, operands, location=node.location,
                    op=node.primitive.name, hint=node.out.name, cost=node.primitive.cost)  # fmt: skip

    def _cast_term(self, x: Term, dtype: DType, node: Node) -> Term:
        if x.dtype is dtype:
            return x
        return Term("apply", dtype, cast_template(x.dtype, dtype), {"x": x},
                    location=node.location, cost=1)  # fmt: skip

    # ---- movement -------------------------------------------------------------------------------

    def _movement(self, node: Node, index: Index, guards: tuple[Guard, ...]) -> Term:
        rule = getattr(self, f"_{node.primitive.name}", None)
        assert rule is not None, f"no lowering for {node.primitive.name}"
        return rule(node, index, guards)

    def _reshape(self, node: Node, index: Index, guards: tuple[Guard, ...]) -> Term:
        source = node.inputs[0]
        if 0 in source.shape:
            at: Index = (Affine(),) * source.ndim
        else:
            at = reshaped(index, node.out.shape, source.shape, self._divmod)
        return self._shared(source, at, guards)

    def _permute(self, node: Node, index: Index, guards: tuple[Guard, ...]) -> Term:
        at = [Affine()] * len(index)
        for i, axis in enumerate(node.params["axes"]):
            at[axis] = index[i]
        return self._shared(node.inputs[0], tuple(at), guards)

    def _broadcast(self, node: Node, index: Index, guards: tuple[Guard, ...]) -> Term:
        source = node.inputs[0]
        return self._shared(source, aligned(index, source.shape), guards)

    def _slice(self, node: Node, index: Index, guards: tuple[Guard, ...]) -> Term:
        p = node.params
        at = tuple(
            e * step + start for e, start, step in zip(index, p["start"], p["step"], strict=True)
        )
        return self._shared(node.inputs[0], at, guards)

    def _flip(self, node: Node, index: Index, guards: tuple[Guard, ...]) -> Term:
        source = node.inputs[0]
        at = tuple(
            e * -1 + (n - 1) if i in node.params["axes"] else e
            for i, (e, n) in enumerate(zip(index, source.shape, strict=True))
        )
        return self._shared(source, at, guards)

    def _pad(self, node: Node, index: Index, guards: tuple[Guard, ...]) -> Term:
        """Inside the guards the operand, outside the padding value."""
        source, dtype = node.inputs[0], node.out.dtype
        at: list[Affine] = []
        conditions: list[Guard] = []
        for e, n, (low, high, interior) in zip(
            index, source.shape, node.params["padding"], strict=True
        ):
            e = e + -low
            step = interior + 1
            span = (n - 1) * step + 1 if n else 0
            if low or high:
                conditions.append(Guard(e, 0, span))
            if interior:
                e, remainder = self._divmod(e + step * (low // step + 1), step)
                e = e + -(low // step + 1)
                conditions.append(Guard(remainder, 0, 1))
            at.append(e if n > 1 else Affine())  # where the guards hold, it is 0
        fill = Term("number", dtype, literal=number(node.params["value"], dtype))
        if 0 in source.shape:
            return fill
        if not conditions:
            return self._shared(source, tuple(at), guards)
        inside = self.term(source, tuple(at), guards + tuple(conditions))
        return self._select(tuple(conditions), inside, fill, node)

    def _concat(self, node: Node, index: Index, guards: tuple[Guard, ...]) -> Term:
        """The operand whose range along the axis contains the index."""
        axis = node.params["axis"]
        start = sum(v.shape[axis] for v in node.inputs)
        result: Term | None = None
        for v in reversed(node.inputs):
            size = v.shape[axis]
            start -= size
            if size == 0 or 0 in v.shape:
                continue
            place = index[axis] + -start
            here = (Guard(place, 0, size),)
            at = (*index[:axis], place if size > 1 else Affine(), *index[axis + 1 :])
            inside = self.term(v, at, guards + here)
            result = inside if result is None else self._select(here, inside, result, node)
        return result if result is not None else Term("number", node.out.dtype, literal=Expr("0"))

    def _select(self, conditions: tuple[Guard, ...], yes: Term, no: Term, node: Node) -> Term:
        no.uses += 1
        return Term("apply", node.out.dtype, "{cond} ? {yes} : {no}", {"yes": yes, "no": no},
                    guards=conditions, location=node.location, cost=1)  # fmt: skip

    def _divmod(self, expression: Affine, divisor: int) -> tuple[Affine, Affine]:
        if divisor == 1:
            return expression, Affine()
        exact = expression.divmod(divisor, self.extents)
        if exact is not None:
            return exact
        if self.splits and len(expression.terms) == 1 and expression.const == 0:
            ((name, c),) = expression.terms
            loop = name in self.extents and name not in self.symbols
            if c == 1 and loop and self.extents[name] % divisor == 0:
                raise SplitRequest(name, divisor)
        bounds = expression.bounds(self.extents)
        counter = Term("index", INT64, affine=expression)
        parts = []
        for op, high in (
            ("/", None if bounds is None else bounds[1] // divisor + 1),
            ("%", divisor),
        ):
            counter.uses += 1
            term = Term("apply", INT64, f"{{x}} {op} {divisor}", {"x": counter}, cost=4)
            parts.append(self._symbol((op, expression, divisor), term, high))
        names = (parts[0].symbols[0], parts[1].symbols[0])
        if (*names, divisor, expression) not in self.divided:
            self.divided.append((*names, divisor, expression))
        return parts[0], parts[1]

    def _undivided(self, at: Affine) -> Affine:
        """`divisor * (e / divisor) + e % divisor` is `e`."""
        for quotient, remainder, divisor, expression in reversed(self.divided):
            c = at.coefficient(remainder)
            if c and at.coefficient(quotient) == c * divisor:
                parts = Affine.symbol(quotient) * divisor + Affine.symbol(remainder)
                at = at + parts * -c + expression * c
        return at

    def _symbol(self, key: Any, term: Term, extent: int | None) -> Affine:
        """Make an integer term a symbol that index expressions may use."""
        found = self.memo.get(("symbol", key))
        if found is None:
            found = self.memo["symbol", key] = term
            term.symbol = f"at{self.prefix}{len(self.symbols)}"
            self.symbols[term.symbol] = term
            if extent is not None:
                self.extents[term.symbol] = extent
        return Affine.symbol(found.symbol)

    # ---- indexing and random --------------------------------------------------------------------

    def _indexing(self, node: Node, index: Index, guards: tuple[Guard, ...]) -> Term:
        assert node.primitive.name == "gather", f"{node.primitive.name} needs a kernel of its own"
        source, picks, axes = node.inputs[0], node.inputs[1:], node.params["axes"]
        at = self.picked(picks, axes, source.shape, index, guards)
        if source.type.size == 0:  # the index into the empty axis is checked, and refused
            empty = [a for a in axes if source.shape[a] == 0]
            if not empty:  # another axis is empty, and with it the result
                return Term("number", source.dtype, literal=Expr("0"))
            check = self.symbols[at[empty[0]].symbols[0]]
            check.uses += 1
            zero = f"({source.dtype.c_compute})({{x}} * 0)"
            return Term("apply", source.dtype, zero, {"x": check}, location=node.location)
        return self._shared(source, at, guards)

    def picked(
        self, picks: tuple[Value, ...], axes: tuple[int, ...], shape: Shape, index: Index,
        guards: tuple[Guard, ...],
    ) -> Index:  # fmt: skip
        """The index that integer operands `picks` select along `axes`, bounds checked."""
        ndim = max(len(p.shape) for p in picks)
        lead, rest = index[:ndim], list(index[ndim:])
        self.uses_status = True
        chosen: dict[int, Affine] = {}
        for pick, axis in zip(picks, axes, strict=True):
            raw = self.term(pick, aligned(lead, pick.shape), guards)
            key = (pick, aligned(lead, pick.shape), guards, axis, shape)
            check = f"tg_index({{x}}, {shape[axis]}, {axis}, status)"
            term = Term("apply", INT64, check, {"x": raw}, cost=2, guards=())
            chosen[axis] = self._symbol(key, term, shape[axis])
        return tuple(chosen[a] if a in chosen else rest.pop(0) for a in range(len(shape)))

    def _random(self, node: Node, index: Index, guards: tuple[Guard, ...]) -> Term:
        flat = Term("index", INT64, affine=offset(index, contiguous_strides(node.out.shape)))
        flat.uses += 1
        state = node.inputs[-1]
        seed = self.term(state, (Affine(0),))
        counter = self.term(state, (Affine(1),))
        operands = {"seed": seed, "counter": counter, "i": flat}
        if len(node.inputs) == 2:
            operands["x"] = self.term(node.inputs[0], index, guards)
        return self.apply(node, random_template(node), operands)


def same_memory(value: Value, producer: Callable[[Value], Node | None]) -> Value:
    """The value whose contiguous buffer holds the same elements in the same order."""
    while (node := producer(value)) is not None and node.primitive.name in ("reshape", "detach"):
        value = node.inputs[0]
    return value


def aligned(index: Index, shape: Shape) -> Index:
    """The index into an operand of `shape` that broadcasts against `index`."""
    lead = len(index) - len(shape)
    return tuple(Affine() if n == 1 else index[lead + i] for i, n in enumerate(shape))


def c_template(node: Node) -> str:
    """The record's C expression for the dtype at hand, libm suffix and type names filled in."""
    op = node.primitive
    dtype = node.inputs[op.args.index(op.promote[0]) if op.promote else 0].dtype
    found = op.c_expr
    if isinstance(found, Mapping):
        for name in (dtype.name, dtype.c_compute, _KINDS[dtype.kind], "default"):
            if name in found:
                found = found[name]
                break
        else:
            raise AssertionError(f"{op.name} has no C expression for {dtype}")
    assert isinstance(found, str), f"{op.name} has no C expression"
    suffix = "" if dtype.name == "float64" else "f"
    for name, value in node.params.items():
        found = found.replace("{" + name + "}", str(value))
    return found.replace("{f}", suffix).replace("{T}", dtype.c_compute)


_KINDS = {"f": "float", "i": "int", "u": "uint", "b": "bool"}


def cast_template(source: DType, target: DType) -> str:
    """C's conversion between two dtypes; out-of-range conversions as docs/numerics.md says."""
    if target.kind == "b":
        return "{x} != 0"
    if source.kind == "f" and target.kind in "iu":
        return f"tg_cast_{target.name}({{x}})"
    if target.c_compute != target.c_type:
        return f"tg_round_{target.name}((float){{x}})"
    return f"({target.c_compute}){{x}}"


def random_template(node: Node) -> str:
    """The call of the counter-based generator for one element."""
    name, dtype = node.primitive.name, node.out.dtype
    args = "{seed}, {counter}, {i}"
    if name == "random_bits":
        return f"tg_random_bits({args})"
    if name == "random_bernoulli":
        return f"tg_random_bernoulli_{_short(node.inputs[0].dtype)}({args}, {{x}})"
    if name == "random_randint":
        return f"tg_random_randint({args}, {node.params['low']}, {node.params['high']})"
    return f"tg_{name}_{_short(dtype)}({args})"


def _short(dtype: DType) -> str:
    return {"float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "bf16"}[dtype.name]
