"""The one printer of C expressions: fills the slots of `c_expr` templates, parenthesising by need.

Start reading at `fill`. Precedences are those of C, from `?:` (1) to a primary expression (14).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from tracegrad.ir.dtypes import DType
from tracegrad.ir.passes.sizes import SizedNumber
from tracegrad.ir.sizes import Size

ATOM, UNARY, TERNARY = 14, 12, 1
_BINARY = {
    "||": 2, "&&": 3, "|": 4, "^": 5, "&": 6, "==": 7, "!=": 7, "<": 8, ">": 8, "<=": 8, ">=": 8,
    "<<": 9, ">>": 9, "+": 10, "-": 10, "*": 11, "/": 11, "%": 11, "?": TERNARY, ":": TERNARY,
}  # fmt: skip
_TOKEN = re.compile(
    r"\s*(?:(?P<slot>\{\w+\})|(?P<op>\|\||&&|==|!=|<=|>=|<<|>>|[-+*/%<>&|^!~?:])"
    r"|(?P<open>\()|(?P<close>\))|(?P<comma>,)|(?P<word>[\w.\[\]]+))"
)


@dataclass(frozen=True)
class Expr:
    """C text and how tightly its outermost operator binds."""

    text: str
    precedence: int = ATOM


@dataclass(frozen=True)
class _Slot:
    name: str
    above: int  # the slot's expression must bind tighter than the operator on its left
    at_least: int  # and at least as tightly as the one on its right


@cache
def _parse(template: str) -> tuple[int, tuple[str | _Slot, ...]]:
    """Precedence of the whole, and its pieces: literal text and slots."""
    tokens = [(m.lastgroup or "", m.group(m.lastgroup or 0), m.start(m.lastgroup or 0), m.end())
              for m in _TOKEN.finditer(template)]  # fmt: skip
    lowest, depth = ATOM, 0
    pieces: list[str | _Slot] = []
    at = 0
    for k, (kind, text, start, end) in enumerate(tokens):
        left = tokens[k - 1] if k else ("open", "", 0, 0)
        right = tokens[k + 1] if k + 1 < len(tokens) else ("close", "", 0, 0)
        if kind == "open":
            depth += 1
        elif kind == "close":
            depth -= 1
            # `(float){x}`: a cast is a closing parenthesis before an operand.
            if depth == 0 and right[0] in ("slot", "word", "open") and _is_cast(template, end):
                lowest = min(lowest, UNARY)
        elif kind == "op" and depth == 0:
            unary = text in "!~" or (text in "+-" and left[0] in ("open", "op", "comma"))
            lowest = min(lowest, UNARY if unary else _BINARY[text])
        elif kind == "slot":
            pieces.append(template[at:start])
            pieces.append(_Slot(text[1:-1], _left_binding(tokens, k), _right_binding(right)))
            at = end
    pieces.append(template[at:])
    return lowest, tuple(pieces)


def _is_cast(template: str, end: int) -> bool:
    return re.search(r"(?:^|[(,?:&|=<>+*/ -])\((?:\w+)\)$", template[:end]) is not None


def _left_binding(tokens: list[Any], k: int) -> int:
    if k == 0:
        return 0
    kind, text = tokens[k - 1][:2]
    if kind == "op":
        before = tokens[k - 2][0] if k > 1 else "open"
        unary = text in "!~" or (text in "+-" and before in ("open", "op", "comma"))
        return UNARY if unary else _BINARY[text]
    return UNARY if kind == "close" else 0


def _right_binding(right: Any) -> int:
    if right[0] != "op":
        return 0
    # `a ? b : c ? d : e` groups to the right: a conditional before `?` needs parentheses
    return TERNARY + 1 if right[1] == "?" else _BINARY[right[1]]


def fill(template: str, slots: Mapping[str, Expr]) -> Expr:
    """Put expressions into the slots of a template, with parentheses only where C needs them.

    Example:
        >>> s = fill("{x} + {y}", {"x": Expr("a"), "y": Expr("b")})
        >>> fill("{x} * {y}", {"x": s, "y": Expr("c")}).text
        '(a + b) * c'
    """
    precedence, pieces = _parse(template)
    out = []
    for piece in pieces:
        if isinstance(piece, str):
            out.append(piece)
            continue
        expr = slots[piece.name]
        fits = expr.precedence > piece.above and expr.precedence >= piece.at_least
        # `- -x` and `--x` differ, and a comparison beside another reads badly bare.
        out.append(expr.text if fits else f"({expr.text})")
    return Expr("".join(out), precedence)


def number(value: bool | int | float, dtype: DType) -> Expr:
    """A C literal of exactly this value; what follows from sizes that vary, as an expression."""
    if isinstance(value, SizedNumber):
        return Expr(value.text)
    if isinstance(value, Size):
        return Expr(str(value))
    if dtype.kind == "b":
        return Expr("1" if value else "0")
    if dtype.kind == "f":
        return _floating(float(value), dtype)
    if dtype.name == "int64" and value == -(2**63):
        return Expr("INT64_MIN")
    text = str(int(value)) + ("LL" if abs(value) >= 2**31 else "")
    return Expr(text, ATOM if value >= 0 else UNARY)


def _floating(value: float, dtype: DType) -> Expr:
    if value != value:
        return Expr("TG_NAN")
    if value in (float("inf"), float("-inf")):
        return Expr("TG_INF") if value > 0 else Expr("-TG_INF", UNARY)
    if dtype.name == "float64":
        text = repr(value)
    else:
        import numpy as np

        text = repr(float(str(np.float32(value))))  # the shortest digits that give this float32
        text += "f"
    if not any(c in text for c in ".e"):
        text = text[:-1] + ".0f" if text.endswith("f") else text + ".0"
    return Expr(text, UNARY if text.startswith("-") else ATOM)
