"""Independent references: one element of each primitive by Python's own arithmetic and `math`.

Nothing here calls what the eager kernels call. A primitive without an entry is tested by the
other tables alone (derivatives, batching, compiled code).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np


def _digamma(x: float) -> float:
    """Recurrence up to 200, then the asymptotic series (DLMF 5.5.2, 5.11.2)."""
    terms = []
    while x < 200.0:
        terms.append(-1.0 / x)
        x += 1.0
    return math.fsum([*terms, math.log(x), -0.5 / x, -1 / (12 * x**2), 1 / (120 * x**4)])


def _polygamma(x: float, *, order: int) -> float:
    """The defining series up to 300, then its Euler-Maclaurin tail (DLMF 5.15.1)."""
    if order == 0:
        return _digamma(x)
    s, terms = order + 1, []
    while x < 300.0:
        terms.append(x**-s)
        x += 1.0
    terms += [x ** (1 - s) / (s - 1), x**-s / 2, s * x ** (-s - 1) / 12]
    terms.append(-s * (s + 1) * (s + 2) * x ** (-s - 3) / 720)
    return (-1) ** (order + 1) * math.factorial(order) * math.fsum(terms)


def _erfinv(x: float) -> float:
    """The normal quantile, which loses digits to (x + 1) / 2, and one step of Newton."""
    y = NormalDist().inv_cdf((x + 1) / 2) / math.sqrt(2)
    return y - (math.erf(y) - x) * math.exp(y * y) * math.sqrt(math.pi) / 2


def _power(x: Any, y: Any) -> Any:
    if isinstance(x, int) and y < 0:
        return {1: 1, -1: 1 if y % 2 == 0 else -1}.get(x, 0)
    return x**y


def _round(x: Any) -> Any:
    return round(x)


def _truncated_quotient(x: Any, y: Any) -> Any:
    return x - y * (abs(x) // abs(y)) * (1 if (x < 0) == (y < 0) else -1)


SCALAR: dict[str, Callable[..., Any]] = {
    "neg": operator.neg, "abs": abs, "sign": lambda x: (x > 0) - (x < 0),
    "add": lambda x, y: x or y if isinstance(x, bool) else x + y, "sub": operator.sub,
    "mul": lambda x, y: x and y if isinstance(x, bool) else x * y, "div": operator.truediv,
    "pow": _power, "maximum": max, "minimum": min, "remainder": operator.mod,
    "fmod": lambda x, y: math.fmod(x, y) if isinstance(x, float) else _truncated_quotient(x, y),
    "floor_divide": operator.floordiv, "copysign": math.copysign,
    "clamp": lambda x, lo, hi: min(max(x, lo), hi),
    "floor": math.floor, "ceil": math.ceil, "trunc": math.trunc, "round": _round,
    "sqrt": math.sqrt, "rsqrt": lambda x: 1 / math.sqrt(x), "reciprocal": lambda x: 1 / x,
    "exp": math.exp, "exp2": lambda x: 2.0**x, "expm1": math.expm1, "log": math.log,
    "log2": math.log2, "log10": math.log10, "log1p": math.log1p, "sin": math.sin, "cos": math.cos,
    "tan": math.tan, "asin": math.asin, "acos": math.acos, "atan": math.atan, "sinh": math.sinh,
    "cosh": math.cosh, "tanh": math.tanh, "asinh": math.asinh, "acosh": math.acosh,
    "atanh": math.atanh, "atan2": math.atan2, "hypot": math.hypot, "erf": math.erf,
    "erfc": math.erfc, "erfinv": _erfinv,
    "lgamma": math.lgamma, "digamma": _digamma, "polygamma": _polygamma,
    "isnan": lambda x: isinstance(x, float) and math.isnan(x),
    "isinf": lambda x: isinstance(x, float) and math.isinf(x), "isfinite": math.isfinite,
    "equal": operator.eq, "not_equal": operator.ne, "less": operator.lt, "less_equal": operator.le,
    "greater": operator.gt, "greater_equal": operator.ge,
    "logical_and": lambda x, y: bool(x and y), "logical_or": lambda x, y: bool(x or y),
    "logical_xor": lambda x, y: bool(x) != bool(y), "logical_not": operator.not_,
    "bitwise_and": operator.and_, "bitwise_or": operator.or_, "bitwise_xor": operator.xor,
    "bitwise_not": lambda x: not x if isinstance(x, bool) else ~x,
    "bitwise_left_shift": operator.lshift, "bitwise_right_shift": operator.rshift,
    "where": lambda c, x, y: x if c else y, "detach": lambda x: x,
}  # fmt: skip
"""One element at a time, from Python numbers to a Python number."""


def by_element(
    name: str, operands: tuple[np.ndarray, ...], params: Any, dtype: np.dtype
) -> np.ndarray:
    """The reference applied to every element; whole results wrap around to `dtype`."""
    function = SCALAR[name]
    # float16 and bfloat16 become Python floats through float64, exactly.
    plain = [x.astype(np.float64) if x.dtype.kind in "fV" else x for x in operands]
    wide = [a.ravel().tolist() for a in np.broadcast_arrays(*plain)]
    values = [function(*element, **params) for element in zip(*wide, strict=True)]
    if dtype.kind in "iu":
        bits = 8 * dtype.itemsize
        values = [int(v) % 2**bits for v in values]
        return np.array(values, f"u{dtype.itemsize}").view(dtype)
    return np.array(values, bool if dtype.kind == "b" else np.float64)
