"""How each reduction accumulates in C: its accumulator, its update, its result.

Sums and products of floats run in double and are rounded once, as in eager mode; integers run in
int64. Start reading at `reducer`.
"""

from __future__ import annotations

from dataclasses import dataclass

from tracegrad.codegen.affine import Affine, Index, offset
from tracegrad.codegen.expressions import number
from tracegrad.codegen.plan import Line
from tracegrad.ir.dtypes import DType
from tracegrad.ir.graph import Node
from tracegrad.ir.types import Shape, contiguous_strides


@dataclass(frozen=True)
class Reducer:
    """The C of one accumulator.

    Attributes:
        c_type: type of the accumulator.
        initial: its first value.
        step: statements that update `{acc}` by `{v}` (at `{p}`).
        element: the C type of `{v}` where the update reads it more than once: it becomes a variable.
        operator: the OpenMP reduction operator, or "" where the compiler may not reorder.
        position: flat position among the reduced elements (for argmax).
        extra: a second accumulator: (type, suffix of its name, first value).
        finish: template of the accumulators' value; convert: of what memory holds, from that.
        lanes: the same reduction for a loop along one row, where the vector's lanes may each take
            their elements; None where this one does.
    """

    c_type: str
    initial: str
    step: tuple[str, ...]
    operator: str
    convert: str
    position: Affine = Affine()
    extra: tuple[str, str, str] | None = None
    element: str = ""
    finish: str = "{acc}"
    lanes: Reducer | None = None

    @property
    def by_columns(self) -> bool:
        """Whether an array of accumulators can hold it."""
        return self.extra is None

    @property
    def in_blocks(self) -> bool:
        """Whether block results combine by the same update."""
        return self.extra is None

    def declare(self, acc: str) -> list[Line]:
        """Declarations of the accumulator."""
        lines = [Line(f"{self.c_type} {acc} = {self.initial};")]
        if self.extra is not None:
            c_type, suffix, initial = self.extra
            lines.append(Line(f"{c_type} {acc}{suffix} = {initial};"))
        return lines

    def update(self, acc: str, value: str, position: str, comment: str) -> list[Line]:
        """Statements that take one more element in."""
        lines = []
        if self.element and not value.isidentifier():
            name = f"{acc.split('[')[0]}_next"
            lines.append(f"const {self.element} {name} = {value};")
            value = name
        for s in self.step:
            lines.append(s.replace("{acc}", acc).replace("{v}", value).replace("{p}", position))
        return [Line(text, comment if k == 0 else "") for k, text in enumerate(lines)]

    def result(self, acc: str) -> str:
        """The finished value, as memory holds it."""
        return self.convert.replace("{acc}", self.finished(acc))

    def finished(self, acc: str) -> str:
        """The finished value, in the type of the accumulator."""
        return self.finish.replace("{acc}", acc)

    def value(self, acc: str, dtype: DType) -> str:
        """The finished value as arithmetic uses it, not as memory holds it."""
        if dtype.c_compute == dtype.c_type:
            return self.result(acc)
        return f"tg_round_{dtype.name}((float){self.finished(acc)})"

    def clause(self, acc: str) -> str | None:
        """The OpenMP clause that allows a vector loop; None where there is none."""
        if not self.operator:
            return None
        beside = f" reduction(|: {acc}{self.extra[1]})" if self.extra is not None else ""
        return f"reduction({self.operator}: {acc}){beside}"


def reducer(node: Node, index: Index, domain: Shape) -> Reducer:
    """The accumulator of a reduction node over `domain` at `index`."""
    name = node.primitive.name
    x, out = node.inputs[0].dtype, node.out.dtype
    if name in ("reduce_sum", "reduce_prod"):
        op, start = ("+", "0") if name == "reduce_sum" else ("*", "1")
        wide = "double" if out.kind == "f" else "int64_t"
        return Reducer(wide, start, (f"{{acc}} {op}= {{v}};",), op, store_template(out, wide))
    if name in ("reduce_any", "reduce_all"):
        op, start = ("|", "0") if name == "reduce_any" else ("&", "1")
        return Reducer("int", start, (f"{{acc}} {op}= ({{v}}) != 0;",), op, "(uint8_t){acc}")
    if name in ("reduce_max", "reduce_min"):
        return _extremum(name == "reduce_max", x, out)
    assert name in ("argmax", "argmin"), f"no accumulator for {name}"
    return _arg_extremum(node, index, domain)


def _extremum(greatest: bool, x: DType, out: DType) -> Reducer:
    """NaN wins, as in NumPy and PyTorch: `v != v` is true for NaN only."""
    sign = ">" if greatest else "<"
    nan = " || {v} != {v}" if x.kind == "f" else ""
    kind, least, stored = x.c_compute, _least(x, greatest), store_template(out, x.c_compute)
    step = f"{{acc}} = {{v}} {sign} {{acc}}{nan} ? {{v}} : {{acc}};"
    operator = "max" if greatest else "min"
    if x.kind != "f":
        lanes = Reducer(kind, least, (step,), operator, stored, element=kind)
    else:  # a lane's NaN would not win over the other lanes: it is looked for beside
        steps = (
            f"{{acc}} = {{v}} {sign} {{acc}} ? {{v}} : {{acc}};",
            "{acc}_nan |= {v} != {v};",
        )
        seen = ("int", "_nan", "0")
        lanes = Reducer(kind, least, steps, operator, stored, extra=seen, element=kind,
                        finish="({acc}_nan ? TG_NAN : {acc})")  # fmt: skip
    return Reducer(kind, least, (step,), "", stored, element=kind, lanes=lanes)


def _arg_extremum(node: Node, index: Index, domain: Shape) -> Reducer:
    greatest = node.primitive.name == "argmax"
    x = node.inputs[0].dtype
    axis = node.params["axis"]
    whole = axis is None or not domain
    position = offset(index, contiguous_strides(domain)) if whole else index[axis]
    sign = ">" if greatest else "<"
    beats = f"{{v}} {sign} {{acc}} || {{acc}}_at < 0"
    if x.kind == "f":
        beats += " || ({v} != {v} && {acc} == {acc})"
    steps = (
        f"const int {{acc}}_moves = {beats};",
        "{acc}_at = {acc}_moves ? {p} : {acc}_at;",
        "{acc} = {acc}_moves ? {v} : {acc};",
    )
    return Reducer(x.c_compute, _least(x, greatest), steps, "", "{acc}", position,
                   ("int64_t", "_at", "-1"), x.c_compute, "{acc}_at")  # fmt: skip


def _least(x: DType, greatest: bool) -> str:
    """The identity of max (or min) for a dtype."""
    if x.kind == "f":
        return "-TG_INF" if greatest else "TG_INF"
    if x.kind == "b":
        return "0" if greatest else "1"
    import numpy as np

    limits = np.iinfo(x.numpy)
    return number(int(limits.min if greatest else limits.max), x).text


def store_template(dtype: DType, have: str) -> str:
    """Convert an accumulator of C type `have` to what memory of `dtype` holds."""
    if dtype.c_compute != dtype.c_type:
        return f"tg_store_{dtype.name}((float){{acc}})"
    return "{acc}" if have == dtype.c_type else f"({dtype.c_type}){{acc}}"
