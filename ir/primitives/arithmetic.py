"""Arithmetic: sums, products, quotients and remainders, powers, extrema, rounding.

Integers wrap around as in NumPy. Dividing an integer by an integer zero raises
`DivisionByZeroError`, eagerly and in generated code (through the kernel's `status`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.errors import DivisionByZeroError, DTypeError, of_values
from tracegrad.ir.primitive import (
    FLOAT,
    LINEAR,
    NUMERIC,
    ZERO,
    Primitive,
    Refusal,
    get,
    is_scalar,
    type_of,
)  # fmt: skip
from tracegrad.ir.primitives.elementary import log
from tracegrad.ir.primitives.logic import (
    equal,
    greater,
    greater_equal,
    less,
    less_equal,
    logical_and,
    logical_not,
    logical_or,
    where,
)
from tracegrad.ir.primitives.pointwise import (
    NUMBERS,
    REAL,
    Range,
    binary,
    nonzero,
    per_dtype,
    pointwise,
    refused_dtype,
    unary,
    widened,
)
from tracegrad.ir.primitives.support import zero_of

# ---- sign --------------------------------------------------------------------------------------

_NO_BOOL_NEG = (
    "Negation, the `-` operator, on a bool tensor is not supported. If you are trying to invert "
    "a mask, use the `~` or `logical_not()` operator instead."
)
_NO_BOOL_SUB = (
    "Subtraction, the `-` operator, with two bool tensors is not supported. "
    "Use the `^` or `logical_xor()` operator instead."
)

neg = unary(
    "neg", np.negative, per_dtype(NUMBERS, floats="-{x}", ints="({T})(0 - ({U}){x})"),
    vjp=lambda ct, out, x: -ct, jvp=(LINEAR,), promotion=NUMERIC, dtypes=NUMBERS,
    source="definition", refused={"bool": _NO_BOOL_NEG},
    refusals=(refused_dtype("neg", dtypes.bool_, 1, "Negation, the `-` operator, on a bool"),),
)  # fmt: skip


def _sign(x: Any) -> Any:
    return np.subtract(x > 0, x < 0, dtype=np.int8)


sign = unary(
    "sign", _sign,
    per_dtype(dtypes.ALL, floats="tg_sign_{s}({x})", ints="tg_sign_{s}({x})", bools="{x}"),
    vjp=ZERO, promotion=NUMERIC, source="PyTorch torch.sign",
    doc="-1, 0 or 1; 0 for NaN, as in PyTorch. Of a truth value, itself.",
)  # fmt: skip
abs = unary(
    "abs", np.abs, per_dtype(NUMBERS, floats="fabs{f}({x})", ints="tg_abs_{s}({x})"),
    vjp=lambda ct, out, x: ct * sign(x), promotion=NUMERIC, dtypes=NUMBERS, source="definition",
    doc="Magnitude; its derivative at 0 is 0.", refusals=(refused_dtype("abs_cpu", dtypes.bool_),),
)  # fmt: skip


def _copysign_part(ct: Any, out: Any, x: Any, y: Any) -> Any:
    return ct * (sign(out) * sign(x))


copysign = binary(
    "copysign", np.copysign, "copysign{f}({x}, {y})", promotion=FLOAT,
    vjp=(_copysign_part, ZERO), jvp=(_copysign_part, ZERO), source="IEEE 754-2019 §5.5.1",
    doc="The magnitude of `x` with the sign of `y`; its derivative at x = 0 is 0.",
)  # fmt: skip

# ---- sum, product, quotient --------------------------------------------------------------------

add = binary(
    "add", np.add,
    per_dtype(dtypes.ALL, floats="{x} + {y}", ints="({T})(({U}){x} + ({U}){y})", bools="{x} | {y}"),
    vjp=(lambda ct, out, x, y: ct, lambda ct, out, x, y: ct),
    jvp=(lambda dx, out, x, y: dx, lambda dy, out, x, y: dy), source="definition",
    doc="Sum; of truth values, their disjunction.",
)  # fmt: skip
sub = binary(
    "sub", np.subtract,
    per_dtype(NUMBERS, floats="{x} - {y}", ints="({T})(({U}){x} - ({U}){y})"),
    vjp=(lambda ct, out, x, y: ct, lambda ct, out, x, y: -ct), dtypes=NUMBERS,
    jvp=(lambda dx, out, x, y: dx, lambda dy, out, x, y: -dy), source="definition",
    refused={"bool": _NO_BOOL_SUB},
    refusals=(refused_dtype("sub", dtypes.bool_, 2, "Subtraction, the `-` operator, with two"),),
)  # fmt: skip
mul = binary(
    "mul", np.multiply,
    per_dtype(dtypes.ALL, floats="{x} * {y}", ints="({T})(({U}){x} * ({U}){y})", bools="{x} & {y}"),
    vjp=(lambda ct, out, x, y: ct * y, lambda ct, out, x, y: ct * x),
    jvp=(lambda dx, out, x, y: dx * y, lambda dy, out, x, y: x * dy), source="definition",
    doc="Product; of truth values, their conjunction.",
)  # fmt: skip
div = binary(
    "div", np.divide, "{x} / {y}", promotion=FLOAT, ranges=(REAL, nonzero(0.5, 3.0)), cost=4,
    vjp=(lambda ct, out, x, y: ct / y, lambda ct, out, x, y: -ct * (x / y) / y),
    jvp=(lambda dx, out, x, y: dx / y, lambda dy, out, x, y: -dy * out / y), source="definition",
    doc="True quotient: integers become the default float.",
)  # fmt: skip

# ---- division with remainder -------------------------------------------------------------------


def _by_kind(name: str, floats: Callable[..., Any], ints: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel that refuses integer zeros among the divisors."""

    def kernel(x: Any, y: Any) -> Any:
        if y.dtype.kind not in "iu":
            return floats(x, y)
        if y.size and not np.all(y):
            zeros = np.count_nonzero(np.asarray(y) == 0)
            raise of_values(DivisionByZeroError(
                f"ZeroDivisionError: {name}: {zeros} of {y.size} integer divisors are 0; "
                "replace them with where(y == 0, 1, y) or divide floating-point numbers"
            ))  # fmt: skip
        return ints(x, y)

    return kernel


def _remainder(x: Any, y: Any) -> Any:
    """PyTorch's: fmod, moved to the sign of the divisor."""
    r = np.fmod(x, y)
    return np.where((r != 0) & ((r < 0) != (y < 0)), r + y, r)


def _floor_divide(x: Any, y: Any) -> Any:
    """PyTorch's (and CPython's): the quotient of an exact remainder, rounded to an integer."""
    r = np.fmod(x, y)
    quotient = (x - r) / y
    quotient = np.where((r != 0) & ((r < 0) != (y < 0)), quotient - 1, quotient)
    floored = np.floor(quotient)
    floored = np.where(quotient - floored > 0.5, floored + 1, floored)
    floored = np.where(quotient != 0, floored, np.copysign(np.zeros_like(quotient), x / y))
    return np.where(y == 0, x / y, floored)


def division(
    name: str, floats: Any, ints: Any, c_floats: str, *, rules: Any, kernel: str, **record: Any
) -> Primitive:
    """Declare a primitive of division with remainder."""
    ones = np.array([1, 2]), np.array([1, 0])
    return binary(
        name, _by_kind(name, floats, ints),
        per_dtype(NUMBERS, floats=c_floats, ints=f"tg_{name}_{{s}}({{x}}, {{y}}, status)"),
        vjp=rules, jvp=rules, dtypes=NUMBERS, ranges=((-9.0, 9.0), nonzero(1.0, 4.0)), cost=15,
        kernel=kernel,
        refusals=(refused_dtype(kernel, dtypes.bool_, 2),
                  Refusal(ones, {}, DivisionByZeroError, f"^ZeroDivisionError: {name}: 1 of 2")),
        **record,
    )  # fmt: skip


def _same(ct: Any, out: Any, x: Any, y: Any) -> Any:
    return ct


# x = n*y + out with n a whole number, constant nearby: d out/d y = -n.
def _less_truncated(ct: Any, out: Any, x: Any, y: Any) -> Any:
    return -ct * get("trunc")(x / y)


def _less_floored(ct: Any, out: Any, x: Any, y: Any) -> Any:
    return -ct * floor_divide(x, y)


fmod = division("fmod", np.fmod, np.fmod, "fmod{f}({x}, {y})", rules=(_same, _less_truncated),
                kernel="fmod_cpu", source="C11 §7.12.10.1",
                doc="Remainder signed like the dividend.")  # fmt: skip
remainder = division("remainder", _remainder, np.remainder, "tg_remainder_{s}({x}, {y})",
                     rules=(_same, _less_floored), kernel="remainder_cpu",
                     source="PyTorch torch.remainder; Python's %",
                     doc="Remainder signed like the divisor.")  # fmt: skip
floor_divide = division("floor_divide", _floor_divide, np.floor_divide,
                        "tg_floor_divide_{s}({x}, {y})", rules=ZERO, kernel="div_floor_cpu",
                        source="PyTorch torch.floor_divide; Python's //",
                        doc="Quotient rounded towards minus infinity.")  # fmt: skip

# ---- power -------------------------------------------------------------------------------------


def _power(x: Any, y: Any) -> Any:
    if x.dtype.kind not in "iu":
        if y.size == 1 and y.item() == 0.5:
            # NumPy takes sqrt for a single 0.5, which differs from pow at -0.0 and -inf.
            shape = np.broadcast_shapes(np.shape(x), np.shape(y))
            whole = np.full(shape or (1,), y, x.dtype)
            return np.power(np.atleast_1d(x), whole).reshape(shape)
        return np.power(x, y)
    negative = np.asarray(y) < 0
    if not negative.any():
        return np.power(x, y)
    # 1/x rounded to an integer: only 1 and -1 have one that is not 0.
    odd = np.where(np.asarray(y) % 2 == 0, 1, -1)
    tiny = np.where(x == 1, 1, np.where(x == -1, odd, 0)) if x.dtype.kind == "i" else x == 1
    found = np.where(negative, tiny, np.power(x, np.where(negative, 0, y).astype(y.dtype)))
    return found.astype(x.dtype)


def _refuse_negative_power(x: Any, y: Any) -> None:
    """A Python number as exponent must not be negative where the base is of integers."""
    if isinstance(y, int) and y < 0 and (is_scalar(x) or not type_of(x).dtype.is_floating_point):
        if not isinstance(x, float):
            raise DTypeError("Integers to negative integer powers are not allowed.")


def _power_by_base(ct: Any, out: Any, x: Any, y: Any) -> Any:
    # y * x**(y-1) would be 0 * inf at x = y = 0 (and 0 * NaN at x = NaN), where 0 is meant.
    moot = logical_and(equal(y, 0), logical_not(greater(abs(x), 0)))
    return ct * (y * where(moot, 0, pow(x, where(moot, 1, y - 1))))


def _power_by_exponent(ct: Any, out: Any, x: Any, y: Any) -> Any:
    # 0**y is flat in y from y = 0 on, though log(0) is infinite.
    flat = logical_and(equal(x, 0), greater_equal(y, 0))
    return ct * where(flat, 0, out * log(where(flat, 1, x)))


pow = binary(
    "pow", _power, per_dtype(NUMBERS, floats="pow{f}({x}, {y})", ints="tg_pow_{s}({x}, {y})"),
    vjp=(_power_by_base, _power_by_exponent), jvp=(_power_by_base, _power_by_exponent),
    dtypes=NUMBERS, ranges=((0.3, 3.0), (0.0, 3.0)), cost=40, ulp=8,
    numbers=_refuse_negative_power, kernel="pow",
    source="IEEE 754-2019 §9.2.1; gradients at 0 as PyTorch's",
    doc="`x` to the power `y`; of integers, 0 where the true value is a fraction.",
    refusals=(refused_dtype("pow", dtypes.bool_, 2),
              Refusal((np.array([2]), -1), {}, DTypeError,
                      "^Integers to negative integer powers are not allowed.$")),
)  # fmt: skip

# ---- extrema -----------------------------------------------------------------------------------


def extremum(name: str, ufunc: Any, helper: str, loses: Callable[..., Any]) -> Primitive:
    """Declare maximum or minimum: NaN wins, and equal operands share the gradient in halves.

    `loses(a, b)` says where `a` is not chosen.
    """

    def part(ct: Any, mine: Any, other: Any) -> Any:
        return where(loses(mine, other), 0, where(equal(mine, other), ct * 0.5, ct))

    rules = (lambda ct, out, x, y: part(ct, x, y), lambda ct, out, x, y: part(ct, y, x))
    c_expr = per_dtype(
        dtypes.ALL, floats=f"{helper}_{{s}}({{x}}, {{y}})", ints=f"{helper}_{{s}}({{x}}, {{y}})"
    )
    return binary(
        name, ufunc, c_expr, vjp=rules, jvp=rules, source="IEEE 754-2019 §9.6",
        doc="NaN where either operand is NaN; the gradient of equal operands is halved.",
    )  # fmt: skip


maximum = extremum("maximum", np.maximum, "tg_max", less)
minimum = extremum("minimum", np.minimum, "tg_min", greater)

_NO_BOOL_RELU = "Boolean inputs not supported for relu"
relu = unary(
    "relu", lambda x: np.maximum(x, x.dtype.type(0)),
    per_dtype(NUMBERS, floats="tg_max_{s}({x}, 0)", ints="tg_max_{s}({x}, 0)"),
    vjp=lambda ct, out, x: where(less_equal(out, 0), zero_of(out), ct), promotion=NUMERIC, dtypes=NUMBERS,
    source="definition; a primitive for the sake of one pass over memory",
    doc="The larger of `x` and 0; the gradient at 0 is 0. NaN stays NaN.",
    refused={"bool": _NO_BOOL_RELU}, refusals=(refused_dtype("relu", dtypes.bool_, 1, _NO_BOOL_RELU),),
)  # fmt: skip


def _clamp_inside(ct: Any, out: Any, x: Any, lo: Any, hi: Any) -> Any:
    return where(logical_and(greater_equal(x, lo), less_equal(x, hi)), ct, 0)


def _clamp_low(ct: Any, out: Any, x: Any, lo: Any, hi: Any) -> Any:
    return where(logical_and(less(lo, hi), less(x, lo)), ct, 0)


def _clamp_high(ct: Any, out: Any, x: Any, lo: Any, hi: Any) -> Any:
    return where(logical_or(greater(x, hi), less(hi, lo)), ct, 0)


_CLAMP: tuple[Range, ...] = (REAL, (-2.0, 0.5), (1.0, 2.0))
clamp = pointwise(
    "clamp", ("x", "lo", "hi"), eager=widened(lambda x, lo, hi: np.minimum(np.maximum(x, lo), hi)),
    c_expr=per_dtype(NUMBERS, floats="tg_min_{s}(tg_max_{s}({x}, {lo}), {hi})",
                     ints="tg_min_{s}(tg_max_{s}({x}, {lo}), {hi})"),
    vjp=(_clamp_inside, _clamp_low, _clamp_high), jvp=(_clamp_inside, _clamp_low, _clamp_high),
    dtypes=NUMBERS, ranges=_CLAMP, cost=2, source="PyTorch torch.clamp",
    doc="`x` held between `lo` and `hi`; the gradient passes inside and at the bounds. "
        "Where lo > hi the result is `hi`.",
    refusals=(refused_dtype("clamp_cpu", dtypes.bool_, 3),),
)  # fmt: skip

# ---- rounding ----------------------------------------------------------------------------------


def rounding(name: str, ufunc: Any, c_name: str) -> Primitive:
    """Declare a rounding to whole numbers: integers stay as they are, the derivative is zero."""

    def kernel(x: Any) -> Any:
        return x if x.dtype.kind in "iu" else ufunc(x)

    return unary(
        name, kernel, per_dtype(NUMBERS, floats=f"{c_name}{{f}}({{x}})", ints="{x}"), vjp=ZERO,
        promotion=NUMERIC, dtypes=NUMBERS, source="IEEE 754-2019 §5.9", kernel=f"{name}_vml_cpu",
        refusals=(refused_dtype(f"{name}_vml_cpu", dtypes.bool_),),
    )  # fmt: skip


floor = rounding("floor", np.floor, "floor")
ceil = rounding("ceil", np.ceil, "ceil")
round = rounding("round", np.rint, "rint")
trunc = rounding("trunc", np.trunc, "trunc")
