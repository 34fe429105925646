"""The table of local rewrites that `simplify` applies, each with the reason why it is exact.

Exact means bit for bit, for every operand: infinities, NaN (whose sign and payload nothing may
rely on, IEEE 754-2019 §6.2), signed zeros and integers that wrap around. What is not in the table
is as deliberate as what is; Note [Rewrites that are not exact] lists the tempting ones.

A row's result is a captured value, a number, or built with `ops`; the driver broadcasts and casts
it to the type of the value that it replaces. Start reading at `ROWS`.
"""

from __future__ import annotations

from typing import Any

from tracegrad.ir import dtypes
from tracegrad.ir import ops as table
from tracegrad.ir.dtypes import DType
from tracegrad.ir.passes.patterns import Row

ops: Any = table  # its names are made when it is imported

# Note [Rewrites that are not exact]
# x + 0.0 -> x          turns -0.0 into 0.0's place: -0.0 + 0.0 is 0.0. (x + -0.0 is in the table.)
# 0.0 - x -> -x         0.0 - 0.0 is 0.0, not -0.0. (-0.0 - x is in the table.)
# x * 0.0 -> 0.0        inf * 0.0 and nan * 0.0 are nan, -1 * 0.0 is -0.0. Integers only.
# x - x -> 0.0          inf - inf and nan - nan are nan. Integers only.
# x / x -> 1.0          0/0, inf/inf, nan/nan.
# x / c -> x * (1 / c)  1/c is rounded (exact for powers of two; the C compiler does those).
# -(x - y) -> y - x     gives -0.0 where x equals y; y - x gives 0.0.
# pow(x, 0.5) -> sqrt   pow(-0.0, 0.5) is 0.0, sqrt gives -0.0; pow(-inf, 0.5) is inf, sqrt nan.
# sum over no axes -> x -0.0 + 0.0, with which a sum of floats starts, is 0.0. Integers only.
# abs(-x) -> abs(x)     of unsigned integers: there -x is 2^n - x.
# (x + y) + z           and every other reassociation rounds differently.
# not (x < y) -> y <= x true and false are swapped where an operand is nan.
# maximum(y, x)         for maximum(x, y): 0.0 and -0.0 compare equal, either may come out.


def _in_order(axes: tuple[int, ...]) -> bool:
    return axes == tuple(range(len(axes)))


def _adds_leading_ones(old: tuple[int, ...], new: tuple[int, ...]) -> bool:
    return new == (1,) * (len(new) - len(old)) + old


def _holds(wide: DType, narrow: DType) -> bool:
    """Whether every value of `narrow` survives a cast to `wide` and back."""
    if wide is narrow or narrow is dtypes.bool_:
        return True
    digits = {"float16": (11, 5), "bfloat16": (8, 8), "float32": (24, 8), "float64": (53, 11)}
    if narrow.kind == "f":
        if wide.kind != "f":
            return False
        return all(w >= n for w, n in zip(digits[wide.name], digits[narrow.name], strict=True))
    bits = 8 * narrow.itemsize - (narrow.kind == "i")
    if wide.kind == "f":  # exponents reach far enough in each case where the digits suffice
        return bits <= digits[wide.name][0]
    if wide.kind == "b" or (narrow.kind == "i" and wide.kind == "u"):
        return False
    return 8 * wide.itemsize - (wide.kind == "i") >= bits


def _passes_through(start: DType, middle: DType, end: DType) -> bool:
    """Whether casting `start` to `end` gives the same by way of `middle`.

    A negative or large float cast to a narrow integer has no value of its own (C11 §6.3.1.4), so
    a way that holds a float and ends in another integer type is left alone.
    """
    through_float = "f" in (start.kind, middle.kind)
    return _holds(middle, start) and (end is start or end.kind in "fb" or not through_float)


_ARITHMETIC = (
    Row("mul(x, 1)", lambda x: x, "the product with one is the other operand"),
    Row("div(x, 1)", lambda x: x, "the quotient by one is the dividend", kinds="f"),
    Row("add(x, -0.0)", lambda x: x, "x + -0.0 is x, for x = 0.0 and -0.0 too", kinds="f"),
    Row("sub(x, 0.0)", lambda x: x, "x - 0.0 is x, for x = 0.0 and -0.0 too"),
    Row("sub(-0.0, x)", lambda x: ops.neg(x), "-0.0 - x is -x, zeros included", kinds="f"),
    Row("add(x, 0)", lambda x: x, "integers have one zero", kinds="bui"),
    Row("sub(0, x)", lambda x: ops.neg(x), "the negative, modulo 2^n", kinds="ui"),
    Row("sub(x, x)", lambda x: 0, "no integer is nan or infinite", kinds="ui"),
    Row("mul(x, 0)", lambda x: 0, "no integer is nan, infinite or a negative zero", kinds="bui"),
    Row("mul(x, -1)", lambda x: ops.neg(x), "only the sign changes", kinds="if"),
    Row("div(x, -1)", lambda x: ops.neg(x), "only the sign changes", kinds="f"),
    Row("neg(neg(x))", lambda x: x, "the sign changes twice"),
    Row("add(x, neg(y))", lambda x, y: ops.sub(x, y), "IEEE 754 defines x - y as x + (-y)"),
    Row("sub(x, neg(y))", lambda x, y: ops.add(x, y), "x - (-y) is x + y by the same definition"),
    Row("mul(neg(x), neg(y))", lambda x, y: ops.mul(x, y), "the sign is the xor of the signs"),
    Row("div(neg(x), neg(y))", lambda x, y: ops.div(x, y), "the sign is the xor of the signs"),
    Row("abs(neg(x))", lambda x: ops.abs(x), "abs drops the sign", kinds="if"),
    Row("abs(abs(x))", lambda x: ops.abs(x), "abs drops a sign that is not there"),
    Row("pow(x, 0)", lambda x: 1, "one, for nan too (IEEE 754 §9.2.1)"),
    Row("pow(x, 1)", lambda x: x, "the base"),
    Row("pow(x, 2)", lambda x: ops.mul(x, x), "NumPy's kernel squares by a product where the "
        "exponent is one number; of the true square it is the correct rounding"),
    Row("maximum(x, x)", lambda x: x, "the larger of two equals, nan from nan"),
    Row("minimum(x, x)", lambda x: x, "the smaller of two equals, nan from nan"),
)  # fmt: skip

_WHOLE = tuple(
    Row(f"{name}(x)", lambda x: x, "integers are whole", kinds="ui")
    for name in ("floor", "ceil", "round", "trunc")
)

_LOGIC = (
    Row("logical_not(logical_not(x))", lambda x: x, "x is bool",
        when=lambda x: x.dtype.kind == "b"),
    Row("logical_and(x, True)", lambda x: x, "x is bool", when=lambda x: x.dtype.kind == "b"),
    Row("logical_and(x, False)", lambda x: False, "whatever x is"),
    Row("logical_or(x, False)", lambda x: x, "x is bool", when=lambda x: x.dtype.kind == "b"),
    Row("logical_or(x, True)", lambda x: True, "whatever x is"),
    Row("bitwise_not(bitwise_not(x))", lambda x: x, "every bit flips twice"),
    Row("bitwise_and(x, x)", lambda x: x, "idempotent"),
    Row("bitwise_or(x, x)", lambda x: x, "idempotent"),
    Row("where(True, x, y)", lambda x, y: x, "the condition is known"),
    Row("where(False, x, y)", lambda x, y: y, "the condition is known"),
    Row("where(c, x, x)", lambda c, x: x, "both branches are the same"),
    Row("where(logical_not(c), x, y)", lambda c, x, y: ops.where(c, y, x), "c is bool",
        when=lambda c, x, y: c.dtype.kind == "b"),
)  # fmt: skip

_CONVERSION = (
    Row("cast(x, dtype=d)", lambda x, d: x, "same dtype", when=lambda x, d: x.dtype is d),
    Row("cast(cast(x, dtype=wide), dtype=d)", lambda x, wide, d: ops.cast(x, dtype=d),
        "the first cast loses nothing", when=lambda x, wide, d: _passes_through(x.dtype, wide, d)),
    Row("detach(detach(x))", lambda x: ops.detach(x), "the values, through which nothing flows"),
)  # fmt: skip

_MOVEMENT = (
    Row("reshape(x, shape=s)", lambda x, s: x, "same shape", when=lambda x, s: x.shape == s),
    Row("reshape(reshape(x), shape=s)", lambda x, s: ops.reshape(x, shape=s),
        "row-major order stays"),
    Row("permute(x, axes=a)", lambda x, a: x, "every axis stays", when=lambda x, a: _in_order(a)),
    Row("permute(permute(x, axes=a), axes=b)",
        lambda x, a, b: ops.permute(x, axes=tuple(a[i] for i in b)), "two permutations are one"),
    Row("broadcast(x, shape=s)", lambda x, s: x, "same shape", when=lambda x, s: x.shape == s),
    Row("broadcast(broadcast(x), shape=s)", lambda x, s: ops.broadcast(x, shape=s),
        "axes line up from the last in both"),
    Row("broadcast(reshape(x, shape=s), shape=t)", lambda x, s, t: ops.broadcast(x, shape=t),
        "broadcasting adds leading ones itself", when=lambda x, s, t: _adds_leading_ones(x.shape, s)),
    Row("slice(x, start=a, stop=b, step=c)", lambda x, a, b, c: x, "nothing is cut",
        when=lambda x, a, b, c: b == x.shape and not any(a) and set(c) <= {1}),
    Row("pad(x, padding=p)", lambda x, p: x, "nothing is added",
        when=lambda x, p: not any(map(any, p))),
    Row("flip(x, axes=())", lambda x: x, "no axis is turned"),
    Row("flip(flip(x, axes=a), axes=a)", lambda x, a: x, "each axis is turned twice"),
    Row("concat(x)", lambda x: x, "one operand"),
)  # fmt: skip

_REDUCTION = (
    Row("reduce_sum(x)", lambda x: 0, "a sum of nothing", when=lambda x: 0 in x.shape),
    Row("reduce_sum(x, axes=())", lambda x: x, "one integer, as int64", kinds="i"),
    Row("reduce_prod(x, axes=())", lambda x: x, "a product of one (integers become int64)"),
    Row("reduce_max(x, axes=())", lambda x: x, "the largest of one element"),
    Row("reduce_min(x, axes=())", lambda x: x, "the smallest of one element"),
    Row("reduce_any(x, axes=())", lambda x: x, "x is bool", when=lambda x: x.dtype.kind == "b"),
    Row("reduce_all(x, axes=())", lambda x: x, "x is bool", when=lambda x: x.dtype.kind == "b"),
)  # fmt: skip

ROWS: tuple[Row, ...] = _ARITHMETIC + _WHOLE + _LOGIC + _CONVERSION + _MOVEMENT + _REDUCTION
"""Every rewrite, in the order of trial; one fires per node, and its result is tried again."""
