"""Element by element, the less common: powers in double, exponents of two, gamma functions, sums of
exponentials, and choices that pass over NaN.

They join the table `pointwise.FUNCTIONS`. Start reading at `logaddexp`.
"""

from __future__ import annotations

import math
from typing import Any

from tracegrad.ir import dtypes
from tracegrad.ir.errors import DTypeError, KernelError, ShapeError
from tracegrad.ir.primitive import TABLE, is_scalar
from tracegrad.tracer.arguments import int_argument
from tracegrad.tracer.composites import composite
from tracegrad.tracer.pointwise import FUNCTIONS, _public, apply1, apply2, named, need_tensor
from tracegrad.tracer.pointwise_checks import need_floating
from tracegrad.tracer.pointwise_composed import where
from tracegrad.tracer.pointwise_odd import _real
from tracegrad.tracer.reductions import _wide
from tracegrad.tracer.tape import scalar_type_name

# ---- powers -------------------------------------------------------------------------------------


@_public
@composite
def float_power(input: Any, exponent: Any) -> Any:
    """`input` to the power `exponent`, both taken as float64; one of them may be a number.

    Raises:
        OperandError: neither is a tensor.

    Example:
        >>> import tracegrad as tg
        >>> tg.float_power(tg.tensor([2, 4]), -1)
        tensor([0.5000, 0.2500], dtype=torch.float64)
    """
    if not is_scalar(input) or is_scalar(exponent):
        need_tensor("float_power", "input", 1, input)
    if not is_scalar(exponent):
        need_tensor("float_power", "exponent", 2, exponent)
    base, power = _double(input), _double(exponent)
    out = apply2("pow", base, power)
    if is_scalar(exponent):
        return out
    return named(out, "PowBackward2" if is_scalar(input) else "PowBackward1")


def _double(x: Any) -> Any:
    return float(x) if is_scalar(x) else x.to(dtypes.float64)


@_public
@composite
def ldexp(input: Any, other: Any) -> Any:
    """`input * 2 ** other`.

    Raises:
        OperandError: one of them is no tensor.

    Example:
        >>> import tracegrad as tg
        >>> tg.ldexp(tg.tensor([1., 3.]), tg.tensor([4, -1]))
        tensor([16.0000,  1.5000])
    """
    need_tensor("ldexp", "input", 1, input)
    need_tensor("ldexp", "other", 2, other)
    dtype = dtypes.promote([(x.dtype, x.ndim) for x in (input, other)])
    if not dtype.is_floating_point:
        dtype = dtypes.get_default_dtype()
    scale = apply2("pow", 2.0, other.to(dtype))
    return named(apply2("mul", input.to(dtype), scale), "LdexpBackward0")


# ---- special functions --------------------------------------------------------------------------


@_public
@composite
def sinc(input: Any) -> Any:
    """`sin(pi x) / (pi x)`, 1 at 0.

    Example:
        >>> import tracegrad as tg
        >>> tg.sinc(tg.tensor([0., 0.5]))
        tensor([1.0000, 0.6366])
    """
    need_tensor("sinc", "input", 1, input)
    x = _real(input)
    turn = apply2("mul", _wide(x), math.pi)
    zero = apply2("equal", turn, 0)
    safe = where(zero, 1, turn)
    out = where(zero, 1, apply2("div", apply1("sin", safe), safe))
    return named(out if out.dtype is x.dtype else out.to(x.dtype), "SincBackward0")


@_public
@composite
def polygamma(n: int, input: Any) -> Any:
    """The derivative of order `n` of `digamma`, n from 0 to 60.

    Raises:
        OperandError: `n` is no int.
        ShapeError, ParameterError: it is out of range.

    Example:
        >>> import tracegrad as tg
        >>> tg.polygamma(1, tg.tensor([1.]))
        tensor([1.6449])
    """
    order = int_argument("polygamma", "n", 1, n)
    if order < 0:
        raise ShapeError("polygamma(n, x) does not support negative n.")
    need_tensor("polygamma", "input", 2, input)
    return named(TABLE["polygamma"](_real(input), order=order), "PolygammaBackward0")


@_public
@composite
def mvlgamma(input: Any, p: int) -> Any:
    """The logarithm of the multivariate gamma function of `p` dimensions.

    Raises:
        ShapeError: `p` is below 1.
        OperandError: it is no int.

    Example:
        >>> import tracegrad as tg
        >>> tg.mvlgamma(tg.tensor([3.]), 2)
        tensor([1.5502])
    """
    need_tensor("mvlgamma", "input", 1, input)
    p = int_argument("mvlgamma", "p", 2, p)
    if p < 1:
        raise ShapeError("p has to be greater than or equal to 1")
    x = _real(input)
    total = p * (p - 1) * math.log(math.pi) / 4
    out = apply2("add", apply1("lgamma", x), total)
    for j in range(1, p):
        out = apply2("add", out, apply1("lgamma", apply2("sub", x, j / 2)))
    return named(out, "MvlgammaBackward0")


@_public
@composite
def heaviside(input: Any, values: Any) -> Any:
    """0 where `input` is negative (or NaN), 1 where it is positive, `values` where it is 0.

    Its derivative by `values` is 1 where `input` is 0 (PyTorch has none); by `input` it is 0.

    Raises:
        DTypeError: the dtypes differ.

    Example:
        >>> import tracegrad as tg
        >>> tg.heaviside(tg.tensor([-1., 0., 2.]), tg.tensor(0.5))
        tensor([0.0000, 0.5000, 1.0000])
    """
    need_tensor("heaviside", "input", 1, input)
    need_tensor("heaviside", "values", 2, values)
    if input.dtype is not values.dtype:
        raise DTypeError("heaviside is not yet implemented for tensors with different dtypes.")
    step = apply2("greater", input, 0).to(input.dtype)
    return where(apply2("equal", input, 0), values, step)


# ---- sums of exponentials -----------------------------------------------------------------------


@_public
@composite
def logaddexp(input: Any, other: Any) -> Any:
    """`log(exp(input) + exp(other))` without overflow.

    Example:
        >>> import tracegrad as tg
        >>> tg.logaddexp(tg.tensor([0., 100.]), tg.tensor([0., 100.]))
        tensor([  0.6931, 100.6931])
    """
    more, apart = _sorted("logaddexp", input, other)
    out = apply2("add", more, apply1("log1p", apply1("exp", apart)))
    return named(out, "LogaddexpBackward0")


@_public
@composite
def logaddexp2(input: Any, other: Any) -> Any:
    """`log2(2 ** input + 2 ** other)` without overflow.

    Example:
        >>> import tracegrad as tg
        >>> tg.logaddexp2(tg.tensor([3.]), tg.tensor([3.]))
        tensor([4.])
    """
    more, apart = _sorted("logaddexp2", input, other)
    part = apply2("mul", apply1("log1p", apply1("exp2", apart)), 1 / math.log(2))
    return named(apply2("add", more, part), "Logaddexp2Backward0")


def _sorted(name: str, input: Any, other: Any) -> tuple[Any, Any]:
    """The larger operand, and the distance to the other, not positive: smooth where they cross."""
    need_tensor(name, "input", 1, input)
    need_tensor(name, "other", 2, other)
    dtype = dtypes.promote([(x.dtype, x.ndim) for x in (input, other)])
    if not dtype.is_floating_point:
        need_floating(f"{name}_cpu", input)
    x, y = input.to(dtype), other.to(dtype)
    first = apply2("greater_equal", x, y)
    more, less = where(first, x, y), where(first, y, x)
    endless = apply2("bitwise_and", apply1("isinf", more), apply2("equal", more, less))
    return more, apply2("sub", where(endless, 0, less), where(endless, 0, more))


# ---- integers and neighbours --------------------------------------------------------------------


def _of_tensors(name: str, category: int, doc: str) -> None:
    @_public
    def function(input: Any, other: Any) -> Any:
        need_tensor(name, "input", 1, input)
        need_tensor(name, "other", 2, other)
        dtype = dtypes.promote([(x.dtype, x.ndim) for x in (input, other)])
        if dtype.category != category:
            raise KernelError(f"\"{name}_cpu\" not implemented for '{scalar_type_name(dtype)}'")
        return apply2(name, input, other)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc
    FUNCTIONS[name] = FUNCTIONS.pop("function")


_of_tensors("gcd", 1, "The greatest common divisor of integers, not negative; 0 of two zeros.")
_of_tensors("lcm", 1, "The least common multiple of integers, not negative; 0 where one is 0.")
_of_tensors(
    "nextafter",
    2,
    "The floating-point number next to `input` on the way to `other`; the gradient is that of `input` "
    "(PyTorch has zeros).",
)

# ---- choices ------------------------------------------------------------------------------------


@_public
@composite
def fmax(input: Any, other: Any) -> Any:
    """The larger of two, of which one may be NaN; the first takes the gradient of equal ones.

    Example:
        >>> import tracegrad as tg
        >>> tg.fmax(tg.tensor([1., tg.nan]), tg.tensor([2., 3.]))
        tensor([2., 3.])
    """
    return _chosen("fmax", "greater_equal", input, other)


@_public
@composite
def fmin(input: Any, other: Any) -> Any:
    """The smaller of two, of which one may be NaN; the first takes the gradient of equal ones.

    Example:
        >>> import tracegrad as tg
        >>> tg.fmin(tg.tensor([1., tg.nan]), tg.tensor([2., 3.]))
        tensor([1., 3.])
    """
    return _chosen("fmin", "less_equal", input, other)


def _chosen(name: str, comparison: str, input: Any, other: Any) -> Any:
    need_tensor(name, "input", 1, input)
    need_tensor(name, "other", 2, other)
    first = apply2(comparison, input, other)
    if other.dtype.is_floating_point:
        first = apply2("bitwise_or", first, apply1("isnan", other))
    return named(where(first, input, other), f"{name.title()}Backward0")


# ---- tests --------------------------------------------------------------------------------------


@_public
@composite
def signbit(input: Any) -> Any:
    """Whether the sign is set: of negative numbers, -0.0 and some NaN.

    Example:
        >>> import tracegrad as tg
        >>> tg.signbit(tg.tensor([-0.0, 0.0]))
        tensor([ True, False])
    """
    need_tensor("signbit", "input", 1, input)
    if not input.dtype.is_floating_point:
        return apply2("less", input, 0)
    return apply2("less", apply2("copysign", 1.0, input.detach()), 0)


@_public
@composite
def isposinf(input: Any) -> Any:
    """Whether an element is +inf.

    Example:
        >>> import tracegrad as tg
        >>> tg.isposinf(tg.tensor([tg.inf, -tg.inf]))
        tensor([ True, False])
    """
    need_tensor("isposinf", "input", 1, input)
    return apply2("bitwise_and", apply1("isinf", input), apply2("greater", input, 0))


@_public
@composite
def isneginf(input: Any) -> Any:
    """Whether an element is -inf.

    Example:
        >>> import tracegrad as tg
        >>> tg.isneginf(tg.tensor([tg.inf, -tg.inf]))
        tensor([False,  True])
    """
    need_tensor("isneginf", "input", 1, input)
    return apply2("bitwise_and", apply1("isinf", input), apply2("less", input, 0))
