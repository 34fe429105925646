"""PyTorch's element-by-element functions over the table of primitives.

`UNARY` and `BINARY` list what is made mechanically; the rest are functions with PyTorch's
signatures. Every function takes the tensor first, so it doubles as a method. Start reading at
`apply2`, the fast path of Python's operators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tracegrad.ir import dtypes, ops
from tracegrad.ir.errors import DTypeError, OperandError
from tracegrad.ir.primitive import INTEGRAL, NO_PROMOTION, TABLE, is_scalar
from tracegrad.tracer.composites import composite
from tracegrad.tracer.dispatch import dispatch1, dispatch2
from tracegrad.tracer.pointwise_checks import (
    check_no_bool,
    check_rounding,
    need_number,
)
from tracegrad.tracer.tape import OperationNode
from tracegrad.tracer.tensor import Tensor, wrap

assert ops  # fills the table

UNARY: dict[str, str] = {
    "neg": "neg", "negative": "neg", "abs": "abs", "absolute": "abs", "sign": "sign",
    "exp": "exp", "exp2": "exp2", "expm1": "expm1", "log": "log", "log2": "log2", "log10": "log10",
    "log1p": "log1p", "sin": "sin", "cos": "cos", "tan": "tan", "asin": "asin", "arcsin": "asin",
    "acos": "acos", "arccos": "acos", "atan": "atan", "arctan": "atan", "sinh": "sinh",
    "cosh": "cosh", "tanh": "tanh", "asinh": "asinh", "arcsinh": "asinh", "acosh": "acosh",
    "arccosh": "acosh", "atanh": "atanh", "arctanh": "atanh", "sqrt": "sqrt", "rsqrt": "rsqrt",
    "reciprocal": "reciprocal", "erf": "erf", "erfc": "erfc", "erfinv": "erfinv",
    "lgamma": "lgamma", "digamma": "digamma", "floor": "floor", "ceil": "ceil", "trunc": "trunc",
    "fix": "trunc", "isnan": "isnan", "isinf": "isinf", "isfinite": "isfinite",
    "logical_not": "logical_not", "bitwise_not": "bitwise_not", "sigmoid": "sigmoid",
}  # fmt: skip
BINARY: dict[str, str] = {
    "mul": "mul", "multiply": "mul", "maximum": "maximum", "minimum": "minimum",
    "floor_divide": "floor_divide", "atan2": "atan2",
    "arctan2": "atan2", "hypot": "hypot", "copysign": "copysign",
    "eq": "equal", "ne": "not_equal", "not_equal": "not_equal", "lt": "less", "less": "less",
    "le": "less_equal", "less_equal": "less_equal", "gt": "greater", "greater": "greater",
    "ge": "greater_equal", "greater_equal": "greater_equal",
    "logical_and": "logical_and", "logical_or": "logical_or", "logical_xor": "logical_xor",
    "bitwise_and": "bitwise_and", "bitwise_or": "bitwise_or", "bitwise_xor": "bitwise_xor",
    "bitwise_left_shift": "bitwise_left_shift", "bitwise_right_shift": "bitwise_right_shift",
}  # fmt: skip

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
SAFE = 1e38  # numbers below it convert to float32 without overflow


class _Direct(dict[str, Any]):
    """Primitive name -> record if float operands of one dtype need no promotion, else None."""

    def __missing__(self, name: str) -> Any:
        op = TABLE[name]
        plain = op.promotion not in (INTEGRAL, NO_PROMOTION) and op.promote is None
        accepts = dtypes.float32 in op.dtypes and dtypes.float64 in op.dtypes
        self[name] = op if plain and accepts else None
        return self[name]


direct = _Direct()


def apply1(name: str, x: Any) -> Any:
    """Primitive `name` of one tensor."""
    if isinstance(x, Tensor):
        op = direct[name]
        if op is not None:
            dtype = x._array.dtype
            if dtype is FLOAT32 or dtype is FLOAT64:  # another byte order is another object
                return dispatch1(op, x)
    return TABLE[name](x)


def apply2(name: str, x: Any, y: Any) -> Any:
    """Primitive `name` of two operands, at least one a tensor; floats of one dtype go straight."""
    op = direct[name]
    if op is not None:
        kind = type(y)  # that of a symbolic number is its own
        if isinstance(x, Tensor):
            dtype = x._array.dtype
            if dtype is FLOAT32 or dtype is FLOAT64:
                if kind is float or kind is int:
                    if -SAFE < y < SAFE:
                        return dispatch2(op, x, dtype.type(y))
                elif isinstance(y, Tensor) and y._array.dtype is dtype:
                    return dispatch2(op, x, y)
        elif type(x) in (int, float) and isinstance(y, Tensor) and -SAFE < x < SAFE:
            dtype = y._array.dtype
            if dtype is FLOAT32 or dtype is FLOAT64:
                return dispatch2(op, dtype.type(x), y)
    if name == "sub":
        check_no_bool(x, y)
    out = _promoted[name](_operand(x), _operand(y))
    return wrap(out) if isinstance(out, np.ndarray) else out  # of two numbers


class _Promoted(dict[str, Any]):
    """Primitive name -> function of two operands that need promotion, or checks of their own."""

    def __missing__(self, name: str) -> Any:
        op = TABLE[name]
        self[name] = composite(lambda x, y: op(x, y))
        return self[name]


_promoted = _Promoted()


def _operand(x: Any) -> Any:
    return wrap(x) if isinstance(x, np.ndarray) else x


def need_tensor(function: str, argument: str, position: int, x: Any) -> None:
    """Raise PyTorch's TypeError unless `x` is a Tensor (or an IR value)."""
    if not hasattr(type(x), "__tracegrad_bind__"):
        raise OperandError(
            f"{function}(): argument '{argument}' (position {position}) must be Tensor, "
            f"not {type(x).__name__}"
        )


def named(out: Tensor, name: str) -> Tensor:
    """Give the node of a freshly computed result the name that PyTorch prints."""
    node = out._grad_fn if isinstance(out, Tensor) else None
    if isinstance(node, OperationNode):
        node.rename(name)
    return out


def _unary(name: str, primitive: str) -> Callable[..., Any]:
    def function(input: Any) -> Any:
        need_tensor(name, "input", 1, input)
        return apply1(primitive, input)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"`{primitive}` of every element; same shape. A primitive of the table."
    return function


def _binary(name: str, primitive: str) -> Callable[..., Any]:
    def function(input: Any, other: Any) -> Any:
        if not isinstance(input, Tensor) and (is_scalar(input) is False or is_scalar(other)):
            need_tensor(name, "input", 1, input)
        return apply2(primitive, input, other)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"`{primitive}` of two operands, broadcast together and promoted."
    return function


def _unlisted(operands: int) -> list[str]:
    """Primitives that the lists above do not name: a new row of the table is public at once."""
    listed = {*UNARY.values(), *BINARY.values(), "detach", "logit", "i1"}  # `logit` takes `eps` too
    return [
        op.name
        for op in TABLE.values()
        if op.family == "pointwise" and len(op.args) == operands and not op.params
        and op.name not in listed
    ]  # fmt: skip


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: _unary(name, name) for name in _unlisted(1)},
    **{name: _binary(name, name) for name in _unlisted(2)},
    **{name: _unary(name, primitive) for name, primitive in UNARY.items()},
    **{name: _binary(name, primitive) for name, primitive in BINARY.items()},
}


def _public(function: Callable[..., Any]) -> Callable[..., Any]:
    FUNCTIONS[function.__name__] = function
    return function


def _scaled(input: Any, other: Any, alpha: Any) -> Any:
    """`alpha * other` in the dtype of the result of adding it to `input`."""
    operands = [x for x in (input, other) if hasattr(type(x), "__tracegrad_bind__")]
    if not operands or not is_scalar(alpha):
        return apply2("mul", other, alpha)
    result = dtypes.promote(
        (x.dtype, len(x.shape)) if hasattr(x, "shape") else (dtypes.scalar_dtype(x), None)
        for x in (input, other)
    )
    if isinstance(alpha, bool) and result is not dtypes.bool_:
        raise DTypeError("Boolean alpha only supported for Boolean results.")
    if isinstance(alpha, float) and not result.is_floating_point:
        raise DTypeError(
            "For integral input tensors, argument alpha must not be a floating point number."
        )
    if result is dtypes.bool_ and is_scalar(other):
        return bool(other and alpha)
    if result is dtypes.bool_:
        return apply2("bitwise_and", other, bool(alpha))
    if is_scalar(other):
        return other * alpha
    if other.dtype is not result:
        other = TABLE["cast"](other, dtype=result)
    return apply2("mul", other, alpha)


@_public
def add(input: Any, other: Any, *, alpha: Any = 1) -> Any:
    """`input + alpha * other`, broadcast and promoted."""
    plain = type(alpha) is int and alpha == 1
    if not plain:
        need_number("add", "alpha", alpha)
    return apply2("add", input, other if plain else _scaled(input, other, alpha))


@_public
def sub(input: Any, other: Any, *, alpha: Any = 1) -> Any:
    """`input - alpha * other`, broadcast and promoted."""
    plain = type(alpha) is int and alpha == 1
    if not plain:
        need_number("sub", "alpha", alpha)
        check_no_bool(input, other)
    return apply2("sub", input, other if plain else _scaled(input, other, alpha))


@_public
def rsub(input: Any, other: Any, *, alpha: Any = 1) -> Any:
    """`other - alpha * input`."""
    out = sub(other, input, alpha=alpha)
    return out if isinstance(other, Tensor) else named(out, "RsubBackward1")


@_public
@composite
def div(input: Any, other: Any, *, rounding_mode: str | None = None) -> Any:
    """`input / other`; integers divide to the default float dtype.

    Args:
        rounding_mode: None, "trunc" (towards zero) or "floor" (as `//`).
    Raises:
        OperandError: the rounding mode is no text.
        OptionError: it is another text.
        KernelError: two bool tensors are divided and rounded.
    """
    if rounding_mode is None:
        return apply2("div", input, other)
    check_rounding(input, other, rounding_mode)
    if rounding_mode == "floor":
        return named(apply2("floor_divide", input, other), "DivBackward2")
    kinds = [x.dtype.category if isinstance(x, Tensor) else 0 for x in (input, other)]
    if max(kinds) == 2 or isinstance(other, float) or isinstance(input, float):
        return named(apply1("trunc", apply2("div", input, other)), "DivBackward2")
    if max(kinds) == 1:  # bools divide as numbers
        input, other = (
            x.to(dtypes.uint8) if isinstance(x, Tensor) and x.dtype is dtypes.bool_ else x
            for x in (input, other)
        )
    # x - fmod(x, y) is an exact multiple of y, so flooring the quotient changes nothing
    return apply2("floor_divide", apply2("sub", input, apply2("fmod", input, other)), other)


@_public
def fmod(input: Any, other: Any) -> Any:
    """Remainder signed like `input`; promoted and broadcast.

    Raises:
        DivisionByZeroError: an integer is divided by zero.
    """
    return _modulo("fmod", "FmodBackward1", input, other)


@_public
def remainder(input: Any, other: Any) -> Any:
    """Remainder signed like `other` (Python's `%`); promoted and broadcast.

    Raises:
        DivisionByZeroError: an integer is divided by zero.
    """
    return _modulo("remainder", "RemainderBackward1", input, other)


def _modulo(name: str, of_tensors: str, input: Any, other: Any) -> Any:
    if not isinstance(input, Tensor) and (is_scalar(input) is False or is_scalar(other)):
        need_tensor(name, "input", 1, input)
    out = apply2(name, input, other)
    return named(out, of_tensors) if isinstance(other, Tensor) else out


@_public
def pow(input: Any, exponent: Any) -> Any:
    """`input` to the power `exponent`, at least one of them a tensor; promoted."""
    if not isinstance(input, Tensor) and (is_scalar(input) is False or is_scalar(exponent)):
        need_tensor("pow", "input", 1, input)
    if type(exponent) is bool and getattr(input, "dtype", None) is dtypes.bool_:
        return apply2("bitwise_or", input, not exponent)
    out = apply2("pow", input, exponent)
    if not isinstance(exponent, Tensor):
        return out
    return named(out, "PowBackward1" if isinstance(input, Tensor) else "PowBackward2")


@_public
def sgn(input: Any) -> Any:
    """`sign`; of complex numbers, were there any, the direction."""
    need_tensor("sgn", "input", 1, input)
    return named(apply1("sign", input), "SgnBackward0")


@_public
def positive(input: Any) -> Any:
    """`input` itself.

    Raises:
        DTypeError: it is bool.
    """
    need_tensor("positive", "input", 1, input)
    if input.dtype is dtypes.bool_:
        raise DTypeError("The `+` operator, on a bool tensor is not supported.")
    return input


@_public
def relu(input: Any) -> Any:
    """The larger of `input` and 0; gradient 0 at 0. NaN stays NaN."""
    need_tensor("relu", "input", 1, input)
    return apply1("relu", input)


FUNCTIONS.update(subtract=sub, divide=div, true_divide=div)

INPLACE = sorted({*_unlisted(1), *_unlisted(2), *(
    "add sub subtract mul multiply div divide true_divide pow fmod remainder floor_divide neg "
    "negative abs absolute sign sgn exp exp2 expm1 log log2 log10 log1p sin cos tan asin arcsin "
    "acos arccos atan arctan sinh cosh tanh asinh acosh atanh arcsinh arccosh arctanh sqrt rsqrt "
    "reciprocal erf erfc "
    "erfinv lgamma digamma floor ceil round trunc fix frac clamp clip clamp_min clamp_max relu "
    "sigmoid square lerp addcmul addcdiv eq ne lt le gt ge logical_and logical_or logical_xor "
    "logical_not bitwise_and bitwise_or bitwise_xor bitwise_not bitwise_left_shift "
    "bitwise_right_shift atan2 arctan2 hypot copysign nan_to_num not_equal less less_equal greater "
    "greater_equal"
).split()})  # fmt: skip
"""Functions that also exist in place, with an underscore."""
