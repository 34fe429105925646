"""Element by element, with several primitives: rounding, limits, choices and mixtures.

They join the table `pointwise.FUNCTIONS`. Start reading at `clamp`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.errors import DTypeError, KernelError, OptionError
from tracegrad.ir.primitive import TABLE, is_scalar
from tracegrad.ir.types import broadcast_shapes
from tracegrad.tracer.arguments import check_fits, int_argument, wrong_type
from tracegrad.tracer.composites import composite
from tracegrad.tracer.once import warn_once
from tracegrad.tracer.pointwise import _public, add, apply1, apply2, named, need_tensor
from tracegrad.tracer.pointwise_checks import (
    check_add,
    check_close,
    check_lerp,
    check_no_integers,
    need_floating,
)
from tracegrad.tracer.tensor import Tensor


@_public
@composite
def square(input: Any) -> Any:
    """`input` squared (PyTorch's `pow(input, 2)`)."""
    return apply2("pow", input, 2)


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
