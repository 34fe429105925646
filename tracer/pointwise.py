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
from tracegrad.ir.errors import DTypeError, KernelError, OperandError, OptionError
from tracegrad.ir.primitive import INTEGRAL, NO_PROMOTION, TABLE, is_scalar
from tracegrad.ir.types import broadcast_shapes
from tracegrad.tracer.arguments import check_fits, int_argument, wrong_type
from tracegrad.tracer.composites import composite
from tracegrad.tracer.dispatch import dispatch1, dispatch2
from tracegrad.tracer.once import warn_once
from tracegrad.tracer.pointwise_checks import (
    check_add,
    check_close,
    check_lerp,
    check_no_bool,
    check_no_integers,
    check_rounding,
    need_floating,
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
_SAFE = 1e38  # numbers below it convert to float32 without overflow


class _Direct(dict[str, Any]):
    """Primitive name -> record if float operands of one dtype need no promotion, else None."""

    def __missing__(self, name: str) -> Any:
        op = TABLE[name]
        plain = op.promotion not in (INTEGRAL, NO_PROMOTION) and op.promote is None
        accepts = dtypes.float32 in op.dtypes and dtypes.float64 in op.dtypes
        self[name] = op if plain and accepts else None
        return self[name]


_direct = _Direct()


def apply1(name: str, x: Any) -> Any:
    """Primitive `name` of one tensor."""
    if isinstance(x, Tensor):
        op = _direct[name]
        if op is not None:
            dtype = x._array.dtype
            if dtype is FLOAT32 or dtype is FLOAT64:  # another byte order is another object
                return dispatch1(op, x)
    return TABLE[name](x)


def apply2(name: str, x: Any, y: Any) -> Any:
    """Primitive `name` of two operands, at least one a tensor; floats of one dtype go straight."""
    op = _direct[name]
    if op is not None:
        kind = y.__class__
        if isinstance(x, Tensor):
            dtype = x._array.dtype
            if dtype is FLOAT32 or dtype is FLOAT64:
                if kind is float or kind is int:
                    if -_SAFE < y < _SAFE:
                        return dispatch2(op, x, dtype.type(y))
                elif isinstance(y, Tensor) and y._array.dtype is dtype:
                    return dispatch2(op, x, y)
        elif type(x) in (int, float) and isinstance(y, Tensor) and -_SAFE < x < _SAFE:
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
    listed = {*UNARY.values(), *BINARY.values(), "detach", "logit"}  # `logit` takes `eps` too
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
@composite
def square(input: Any) -> Any:
    """`input` squared (PyTorch's `pow(input, 2)`)."""
    return apply2("pow", input, 2)


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
@composite
def round(input: Any, *, decimals: int = 0) -> Any:
    """Round half to even, to `decimals` places.

    Raises:
        OperandError: `decimals` is no int.
        KernelError: integers are rounded to other than 0 places.
    """
    need_tensor("round", "input", 1, input)
    int_argument("round", "decimals", 0, decimals)
    if decimals:
        need_floating("round_cpu", input)
    if decimals == 0:
        return apply1("round", input)
    scale = float(10 ** abs(decimals))
    if decimals > 0:
        return apply2("div", apply1("round", apply2("mul", input, scale)), scale)
    return apply2("mul", apply1("round", apply2("div", input, scale)), scale)


@_public
@composite
def frac(input: Any) -> Any:
    """The fractional part, with the sign of `input`.

    Raises:
        KernelError: `input` is not floating.
    """
    need_tensor("frac", "input", 1, input)
    need_floating("frac_cpu", input)
    return named(apply2("sub", input, apply1("trunc", input)), "FracBackward0")


@_public
@composite
def clamp(input: Any, min: Any = None, max: Any = None) -> Any:
    """`input` limited to [min, max]; the gradient passes where the value was not changed.

    Raises:
        OptionError: both limits are None.
    """
    need_tensor("clamp", "input", 1, input)
    if min is None and max is None:
        raise OptionError("torch.clamp: At least one of 'min' or 'max' must not be None")
    if input.dtype.category == 0:
        return _clamp_bool(input, min, max)
    for limit in (min, max):
        if isinstance(limit, int) and input.dtype.category == 1:
            check_fits(limit, input.dtype)
    real = any(_is_real(x) for x in (input, min, max))
    low, high = (float("-inf"), float("inf")) if real else _integer_limits(input.dtype)
    low, high = low if min is None else min, high if max is None else max
    numbers = is_scalar(low) and is_scalar(high)
    return named(TABLE["clamp"](input, low, high), f"ClampBackward{int(numbers)}")


def _clamp_bool(input: Any, min: Any, max: Any) -> Any:
    """`clamp` of bools: in the dtype that they and the limits promote to."""
    limits = [x for x in (min, max) if x is not None]
    wide = dtypes.promote(
        (x.dtype, len(x.shape)) if hasattr(x, "shape") else (dtypes.scalar_dtype(x), None)
        for x in (input, *limits)
    )
    if wide is not dtypes.bool_:
        return clamp(input.to(wide), min, max)
    tensor = any(hasattr(x, "shape") for x in limits)
    if len(limits) == 1 and tensor:  # the larger or the smaller of two bools
        return apply2("maximum" if max is None else "minimum", input, limits[0])
    which = "" if len(limits) == 2 else "_max" if min is None else "_min"
    kernel = f"clamp{which}{'' if tensor else '_scalar'}_cpu"
    raise KernelError(f"\"{kernel}\" not implemented for 'Bool'")


def _is_real(x: Any) -> bool:
    return x.dtype.is_floating_point if hasattr(x, "dtype") else isinstance(x, float)


def _integer_limits(dtype: dtypes.DType) -> tuple[int, int]:
    limits = np.iinfo(dtype.numpy)
    return int(limits.min), int(limits.max)


@_public
@composite
def clip(input: Any, min: Any = None, max: Any = None) -> Any:
    """`clamp` under its other name."""
    return clamp(input, min, max)


def _need_limit(function: str, argument: str, limit: Any) -> None:
    if limit is None:
        raise wrong_type(function, argument, 2, "Tensor or Number", limit)


@_public
@composite
def clamp_min(input: Any, min: Any) -> Any:
    """`input` where it is at least `min`, else `min`.

    Raises:
        OperandError: `min` is neither a tensor nor a number.
    """
    _need_limit("clamp_min", "min", min)
    return named(clamp(input, min=min), f"ClampMinBackward{int(hasattr(min, 'shape'))}")


@_public
@composite
def clamp_max(input: Any, max: Any) -> Any:
    """`input` where it is at most `max`, else `max`.

    Raises:
        OperandError: `max` is neither a tensor nor a number.
    """
    _need_limit("clamp_max", "max", max)
    return named(clamp(input, max=max), f"ClampMaxBackward{int(hasattr(max, 'shape'))}")


@_public
def relu(input: Any) -> Any:
    """The larger of `input` and 0; gradient 0 at 0. NaN stays NaN."""
    need_tensor("relu", "input", 1, input)
    return apply1("relu", input)


_BYTES = (
    "where received a uint8 condition tensor. This behavior is deprecated and will be removed in a "
    "future version of PyTorch. Use a boolean condition instead."
)


@_public
@composite
def where(condition: Any, input: Any = None, other: Any = None) -> Any:
    """`input` where `condition` holds, else `other`; with one argument, `nonzero` as a tuple.

    Raises:
        OperandError: `condition` is no tensor.
        DTypeError: it is not bool.
    """
    need_tensor("where", "condition", 1, condition)
    if input is None and other is None:
        return condition.nonzero(as_tuple=True)
    if condition.dtype is dtypes.uint8:
        warn_once(_BYTES)
        condition = apply2("not_equal", condition, 0)
    if condition.dtype is not dtypes.bool_:
        raise DTypeError(
            "where expected condition to be a boolean tensor, but got a tensor with dtype "
            f"{dtypes.torch_name(condition.dtype)}"
        )
    return TABLE["where"](condition, input, other)


@_public
@composite
def lerp(input: Any, end: Any, weight: Any) -> Any:
    """`input + weight * (end - input)`, computed from the nearer end: `end` exactly for weight 1.

    Raises:
        OperandError: `input` or `end` is no tensor, or `weight` neither a tensor nor a number.
        DTypeError: the tensors are of different dtypes.
        KernelError: they are not floating.
    """
    need_tensor("lerp", "input", 1, input)
    need_tensor("lerp", "end", 2, end)
    check_lerp(input, end, weight)
    broadcast_shapes(tuple(input.shape), tuple(end.shape))  # names the size of `input` first
    return named(_lerp(input, end, weight), f"LerpBackward{int(isinstance(weight, Tensor))}")


def _lerp(input: Any, end: Any, weight: Any) -> Any:
    way = apply2("sub", end, input)
    if is_scalar(weight):
        if -0.5 < weight < 0.5:
            return apply2("add", input, apply2("mul", weight, way))
        return apply2("sub", end, apply2("mul", way, 1 - weight))
    near = apply2("less", apply1("abs", weight), 0.5)
    first = apply2("add", input, apply2("mul", weight, way))
    second = apply2("sub", end, apply2("mul", way, apply2("sub", 1, weight)))
    return TABLE["where"](near, first, second)


@_public
@composite
def addcmul(input: Any, tensor1: Any, tensor2: Any, *, value: Any = 1) -> Any:
    """`input + value * tensor1 * tensor2`.

    Raises:
        OperandError: an operand is no tensor, or `value` no number.
    """
    check_add("addcmul", input, tensor1, tensor2, value)
    if all(x.dtype is dtypes.bool_ for x in (input, tensor1, tensor2)):
        raise KernelError("\"addcmul_cpu_out\" not implemented for 'Bool'")
    out = add(input, apply2("mul", tensor1, tensor2), alpha=value)
    return named(out, "AddcmulBackward0")


@_public
@composite
def addcdiv(input: Any, tensor1: Any, tensor2: Any, *, value: Any = 1) -> Any:
    """`input + value * tensor1 / tensor2`.

    Raises:
        OperandError: an operand is no tensor, or `value` no number.
        DTypeError: integers are divided by integers.
    """
    check_add("addcdiv", input, tensor1, tensor2, value)
    check_no_integers(tensor1, tensor2)
    out = add(input, apply2("div", tensor1, tensor2), alpha=value)
    return named(out, "AddcdivBackward0")


@_public
@composite
def isclose(
    input: Any, other: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> Any:
    """`|input - other| <= atol + rtol * |other|`; equal infinities are close.

    Raises:
        OperandError: an argument of the wrong type.
        DTypeError: the tensors are of different dtypes.
        ToleranceError: a tolerance is negative.
    """
    need_tensor("isclose", "input", 1, input)
    need_tensor("isclose", "other", 2, other)
    check_close(input, other, rtol, atol, equal_nan)
    equal = apply2("equal", input, other)
    if equal_nan and input.dtype.is_floating_point:
        both = apply2("bitwise_and", apply1("isnan", input), apply1("isnan", other))
        equal = apply2("bitwise_or", equal, both)
    if rtol == 0 and atol == 0:
        return equal
    if not input.dtype.is_floating_point:  # as PyTorch: in the default dtype
        input, other = (x.to(dtypes.get_default_dtype()) for x in (input, other))
    allowed = apply2("add", apply2("mul", apply1("abs", other), rtol), atol)
    gap = apply1("abs", apply2("sub", input, other))
    near = apply2("bitwise_and", apply2("less_equal", gap, allowed), apply1("isfinite", gap))
    return apply2("bitwise_or", near, equal)


_LARGEST = {t: float(np.finfo(t).max) for t in ("float16", "float32", "float64")}
_LARGEST["bfloat16"] = float.fromhex("0x1.fep127")


@_public
@composite
def nan_to_num(
    input: Any, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None
) -> Any:
    """NaN and infinities replaced by numbers (by default 0 and the largest finite ones).

    Integers and bools have none: they are copied.

    Raises:
        OperandError: `input` is no tensor, or a replacement no number.
    """
    need_tensor("nan_to_num", "input", 1, input)
    for name, x in (("nan", nan), ("posinf", posinf), ("neginf", neginf)):
        if x is not None and not is_scalar(x):
            raise wrong_type("nan_to_num", name, 0, "float", x)
    if not input.dtype.is_floating_point:
        return TABLE["cast"](input, dtype=input.dtype)
    largest = _LARGEST[input.dtype.name]
    high = largest if posinf is None else posinf
    low = -largest if neginf is None else neginf
    result = where(apply1("isnan", input), nan, input)
    result = where(apply2("equal", input, float("inf")), high, result)
    out = where(apply2("equal", input, float("-inf")), low, result)
    return named(out, "NanToNumBackward0")


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
