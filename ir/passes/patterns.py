"""Patterns of local rewrites: written as text, matched against the nodes behind a value.

A pattern reads like the printed graph: `mul(x, 1)`, `permute(permute(x, axes=inner), axes=outer)`.

- `name(...)` is a value that this primitive yields; its operands are patterns;
- a number is a constant, or a constant repeated over a shape; `0` and `-0.0` differ, and 1 stands
  for 1, 1.0 and True alike;
- the operands of a commutative primitive (`tracegrad.ir.passes.cse.COMMUTATIVE`) fit either way;
- an identifier captures a value; twice the same identifier must be twice the same value;
- `keyword=identifier` captures a parameter, `keyword=literal` compares it; a parameter that is not
  mentioned may be anything.

Start reading at `Row`, then `match`.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tracegrad.ir.graph import Node, Value
from tracegrad.ir.passes.cse import COMMUTATIVE

Producer = Callable[[Value], "Node | None"]
SPREADING = frozenset({"broadcast", "reshape", "permute", "slice", "flip"})
"""Movement primitives that keep one repeated number what it is."""


@dataclass(frozen=True)
class Application:
    """The value that primitive `name` yields from `operands`."""

    name: str
    operands: tuple[Any, ...]  # Application, str (a capture) or a number
    params: Mapping[str, Any]  # str (a capture) or ("literal", value)


@dataclass(frozen=True)
class Row:
    """One rewrite of the table.

    Attributes:
        pattern: what to look for, as text (see the module).
        result: a function of the captures, by name; it returns a captured value, a number, or
            what it builds with `ops`. The driver broadcasts and casts that to the type wanted.
        reason: why every bit of the result stays the same.
        kinds: kinds of the result's dtype for which it holds, of "b", "u", "i" and "f".
        when: a further condition, a function of the captures.
    """

    pattern: str
    result: Callable[..., Any]
    reason: str
    kinds: str = "buif"
    when: Callable[..., bool] | None = None
    root: Application = field(init=False, repr=False)

    def __post_init__(self) -> None:
        root = parse(self.pattern)
        if not isinstance(root, Application):
            raise TypeError(f"pattern {self.pattern!r} must be the application of a primitive")
        object.__setattr__(self, "root", root)

    def match(
        self, operands: tuple[Value, ...], params: Mapping[str, Any], kind: str, producer: Producer
    ) -> dict[str, Any] | None:
        """The captures, if operands and parameters of a node of the root's primitive fit."""
        captures: dict[str, Any] = {}
        if kind not in self.kinds or not _match(self.root, operands, params, captures, producer):
            return None
        if self.when is not None and not self.when(**captures):
            return None
        return captures


def parse(text: str) -> Any:
    """Turn the text of a pattern into Applications, captures (str) and numbers.

    Raises:
        TypeError: the text is not in the language of patterns.
    """
    return _parse(ast.parse(text, mode="eval").body)


def _parse(tree: ast.expr) -> Any:
    if isinstance(tree, ast.Name):
        return tree.id
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name):
        params = {str(k.arg): _parse_param(k.value) for k in tree.keywords}
        return Application(tree.func.id, tuple(map(_parse, tree.args)), params)
    try:
        return ast.literal_eval(tree)
    except ValueError:
        raise TypeError(f"{ast.unparse(tree)!r} is no pattern") from None


def _parse_param(tree: ast.expr) -> Any:
    return tree.id if isinstance(tree, ast.Name) else ("literal", ast.literal_eval(tree))


def uniform_number(value: Value, producer: Producer) -> bool | int | float | None:
    """The number that every element of `value` is known to be, or None."""
    node = producer(value)
    while node is not None and node.primitive.name in SPREADING:
        node = producer(node.inputs[0])
    if node is None or node.primitive.name != "constant":
        return None
    number: bool | int | float = node.params["value"]
    return number


def same_number(a: bool | int | float, b: bool | int | float) -> bool:
    """Equality of numbers in which 0.0 and -0.0 differ, and nan equals nothing."""
    return a == b and math.copysign(1, a) == math.copysign(1, b)


def _match(
    pattern: Application,
    operands: tuple[Value, ...],
    params: Mapping[str, Any],
    captures: dict[str, Any],
    producer: Producer,
) -> bool:
    """Extend `captures` and say whether all fits; commutative operands fit in either order."""
    if len(pattern.operands) != len(operands) or not all(
        _match_param(p, params[k], captures) for k, p in pattern.params.items()
    ):
        return False
    orders = [operands, operands[::-1]] if pattern.name in COMMUTATIVE else [operands]
    for order in orders:
        attempt = dict(captures)
        pairs = zip(pattern.operands, order, strict=True)
        if all(_match_value(p, v, attempt, producer) for p, v in pairs):
            captures.update(attempt)
            return True
    return False


def _match_param(pattern: Any, param: Any, captures: dict[str, Any]) -> bool:
    if isinstance(pattern, str):
        return bool(captures.setdefault(pattern, param) == param)
    return bool(pattern[1] == param)


def _match_value(pattern: Any, value: Value, captures: dict[str, Any], producer: Producer) -> bool:
    if isinstance(pattern, str):
        return captures.setdefault(pattern, value) is value
    if isinstance(pattern, Application):
        node = producer(value)
        return (
            node is not None
            and node.primitive.name == pattern.name
            and _match(pattern, node.inputs, node.params, captures, producer)
        )
    number = uniform_number(value, producer)
    return number is not None and same_number(number, pattern)
