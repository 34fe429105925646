"""Graphs as text: short, runnable Python with types and source lines.

    def f(x, w):                                        # float32[32, 784], float32[784]
        t0 = mul(x, 2.0)                                # float32[32, 784]  model.py:40
        t1 = reduce_sum(t0, axes=(1,), keepdims=False)  # float32[32]       model.py:41
        return t1

Executed in `namespace()`, the text defines a function that computes what the graph computes.
Start reading at `format_graph`.
"""

from __future__ import annotations

import keyword
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.graph import Graph, Node, Value
from tracegrad.ir.primitive import FLOAT, NO_PROMOTION, TABLE

_CODE_WIDTH = 72  # longer lines do not push the column of comments to the right
_TYPE_WIDTH = 24


def format_graph(graph: Graph) -> str:
    """Print `graph` as a Python function, one line per node.

    Values keep their names where these are identifiers and mean nothing else here; a second value
    of the same name gets a number. A constant prints inside the call that reads it where the call
    would give the bare number the same dtype and value, and as a line of its own elsewhere.

    Args:
        graph: any graph that `verify` accepts.
    Returns:
        Text that ends without a newline; `exec(text, namespace())` defines the function. It takes
        what `evaluate` takes, and returns the one output, or a tuple of all.
    """
    inlined = {n: inlinable_constants(graph, n) for n in graph.nodes}
    hidden = _never_named(graph, inlined)
    names = Names(graph, hidden)
    lines = [_signature(graph, names)]
    for node in graph.nodes:
        if node.out not in hidden:
            lines.append(("    " + format_node(node, names, inlined[node]), *_comment(node)))
    lines.append((f"    return {', '.join(map(names.of, graph.outputs)) or '()'}", "", ""))
    return "\n".join(_in_columns(lines))


def namespace() -> dict[str, Any]:
    """The names that printed graphs use: every primitive, and every dtype (bool is `bool_`)."""
    import tracegrad.ir.primitives  # noqa: F401  (fills the table)

    return {**TABLE, **{_dtype_name(d): d for d in dtypes.ALL}}


def format_node(node: Node, names: Names, inlined: Mapping[Value, str] | None = None) -> str:
    """One node as an assignment; operands in `inlined` print as the text given there."""
    inlined = inlined or {}
    operands = [inlined.get(v) or names.of(v) for v in node.inputs]
    keywords = [f"{k}={format_param(v)}" for k, v in node.params.items()]
    return f"{names.of(node.out)} = {node.primitive.name}({', '.join(operands + keywords)})"


def format_param(value: Any) -> str:
    """A static parameter as an expression over `namespace()`."""
    if isinstance(value, DType):
        return _dtype_name(value)
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, tuple):
        return f"({', '.join(map(format_param, value))}{',' * (len(value) == 1)})"
    return repr(value)


class Names:
    """A unique identifier for every value of a graph but `hidden`, made from the users' names."""

    def __init__(self, graph: Graph, hidden: Collection[Value] = ()) -> None:
        reserved = set(namespace()) | set(keyword.kwlist) | {"float"}
        self.function = _function_name(graph.name, reserved)
        self._taken = reserved | {self.function}
        self._names: dict[Value, str] = {}
        self._next: dict[str, int] = {}  # per letter, where the search for a free number starts
        outs = (n.out for n in graph.nodes if n.out not in hidden)
        defined = dict.fromkeys([*graph.inputs, *outs])
        for value in defined:  # users' names first: a made-up name must not take one of them
            if _is_usable(value.name, reserved):
                self._names[value] = self._unique(value.name)
        inputs = set(graph.inputs)
        for value in defined:
            if value not in self._names:
                self._names[value] = self._numbered("x" if value in inputs else "t")

    def of(self, value: Value) -> str:
        """The identifier of `value`; in a broken graph, `undefined` for one that nothing yields."""
        return self._names.get(value, "undefined")

    def _unique(self, name: str) -> str:
        made, i = name, 0
        while made in self._taken:
            i += 1
            made = f"{name}_{i}"
        self._taken.add(made)
        return made

    def _numbered(self, letter: str) -> str:
        i = self._next.get(letter, 0)
        while f"{letter}{i}" in self._taken:
            i += 1
        self._next[letter] = i + 1
        self._taken.add(f"{letter}{i}")
        return f"{letter}{i}"


def inlinable_constants(graph: Graph, node: Node) -> dict[Value, str]:
    """The constant operands of `node` that can print as bare numbers, with their text.

    A bare number is weak in type promotion: it takes the dtype that the other operands decide.
    So it may stand for the constant only where that dtype is the constant's own.
    """
    op = node.primitive
    if op.promotion == NO_PROMOTION:
        return {}
    promoted = _promoted_positions(node)
    numbers: dict[Value, str] = {}
    strong: list[DType] = []
    for i, value in enumerate(node.inputs):
        text = _literal(graph.producer(value)) if i in promoted else None
        if text is not None:
            numbers[value] = text
        elif i in promoted:
            strong.append(value.dtype)
    if not strong or len({*strong, *(v.dtype for v in numbers)}) != 1:
        return {}
    if op.promotion == FLOAT and strong[0].category < 2:
        return {}
    return numbers


def _promoted_positions(node: Node) -> set[int]:
    op = node.primitive
    names: Sequence[str] = op.args * len(node.inputs) if op.variadic else op.args
    return {i for i, n in enumerate(names[: len(node.inputs)]) if not op.promote or n in op.promote}


def _literal(producer: Node | None) -> str | None:
    """The number that a constant node holds, if a literal can say it exactly."""
    if producer is None or producer.primitive.name != "constant":
        return None
    value, dtype = producer.params["value"], producer.params["dtype"]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    same_kind = isinstance(value, {0: bool, 1: int, 2: float}[dtype.category])
    if not same_kind or (dtype.category == 1 and isinstance(value, bool)):
        return None
    return repr(value)


def _never_named(graph: Graph, inlined: Mapping[Node, Mapping[Value, str]]) -> set[Value]:
    """Constants that every reader inlines, and that are no outputs."""
    named = set(graph.outputs)
    used: set[Value] = set()
    for node in graph.nodes:
        used.update(inlined[node])
        named.update(v for v in node.inputs if v not in inlined[node])
    return used - named


def _signature(graph: Graph, names: Names) -> tuple[str, str, str]:
    types = ", ".join(str(v.type) for v in graph.inputs)
    head = f"def {names.function}({', '.join(map(names.of, graph.inputs))}):"
    return head, types, ""


def _comment(node: Node) -> tuple[str, str]:
    return str(node.out.type), str(node.location) if node.location else ""


def _in_columns(lines: Iterable[tuple[str, str, str]]) -> list[str]:
    """Code, type and source line of each line, the comments starting in one column."""
    rows = list(lines)
    width = max(
        (len(code) for code, kind, _ in rows if kind and len(code) <= _CODE_WIDTH), default=0
    )
    types = max((len(kind) for _, kind, at in rows if at and len(kind) <= _TYPE_WIDTH), default=0)
    return [
        f"{code:<{width}}  # {kind:<{types if at else 0}}  {at}".rstrip() if kind else code
        for code, kind, at in rows
    ]


def _dtype_name(dtype: DType) -> str:
    return "bool_" if dtype is dtypes.bool_ else dtype.name


def _is_usable(name: str, reserved: set[str]) -> bool:
    return name.isidentifier() and name not in reserved


def _function_name(name: str, reserved: set[str]) -> str:
    """`name` where it can be one; a graph called `sin` becomes `sin_graph`, not a recursion."""
    if _is_usable(name, reserved):
        return name
    return f"{name}_graph" if name.isidentifier() else "graph"
