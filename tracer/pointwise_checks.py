"""What pointwise functions refuse, in PyTorch's words."""

from __future__ import annotations

from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.errors import (
    DTypeError,
    KernelError,
    OperandError,
    OptionError,
    ToleranceError,
)
from tracegrad.ir.primitive import is_scalar
from tracegrad.tracer.arguments import type_name, wrong_type
from tracegrad.tracer.tape import scalar_type_name


def check_no_bool(x: Any, y: Any) -> None:
    """Refuse to subtract bools, in PyTorch's words (two of them are refused by the primitive)."""
    if _is_bool(x) is not _is_bool(y):
        raise DTypeError(
            "Subtraction, the `-` operator, with a bool tensor is not supported. If you are trying "
            "to invert a mask, use the `~` or `logical_not()` operator instead."
        )


def _is_bool(x: Any) -> bool:
    if isinstance(x, np.ndarray | np.generic):
        return x.dtype.kind == "b"
    return type(x) is bool or getattr(x, "dtype", None) is dtypes.bool_


def check_close(input: Any, other: Any, rtol: Any, atol: Any, equal_nan: Any) -> None:
    """Refuse what `isclose` cannot compare."""
    for name, x in (("rtol", rtol), ("atol", atol)):
        if not isinstance(x, int | float | np.floating):
            raise OperandError(
                f"isclose(): argument '{name}' must be float, not {type(x).__name__}"
            )
    if not isinstance(equal_nan, bool):
        raise OperandError(
            f"isclose(): argument 'equal_nan' must be bool, not {type(equal_nan).__name__}"
        )
    if input.dtype is not other.dtype:
        raise DTypeError(
            f"{scalar_type_name(input.dtype)} did not match {scalar_type_name(other.dtype)}"
        )
    for name, x in (("rtol", rtol), ("atol", atol)):
        if not x >= 0:
            raise ToleranceError(f"{name} must be greater than or equal to zero, but got {x:g}")


def _is_tensor(x: Any) -> bool:
    return hasattr(type(x), "__tracegrad_bind__")


def need_floating(kernel: str, x: Any) -> None:
    """Refuse a tensor that is not floating, where PyTorch has no kernel for it."""
    if not x.dtype.is_floating_point:
        raise KernelError(f"\"{kernel}\" not implemented for '{dtypes.torch_name(x.dtype)}'")


def need_number(function: str, argument: str, x: Any) -> None:
    """Refuse what is neither a number nor a tensor of no dimension."""
    if not is_scalar(x) and not (_is_tensor(x) and len(x.shape) == 0):
        raise wrong_type(function, argument, 0, "Number", x)


def check_rounding(input: Any, other: Any, mode: Any) -> None:
    """Refuse rounding modes that `div` does not have, and rounded quotients of bools."""
    if not isinstance(mode, str):
        raise OperandError(
            f"div(): argument 'rounding_mode' must be str or None, not {type_name(mode)}"
        )
    if mode not in ("trunc", "floor"):
        raise OptionError(
            f"div expected rounding_mode to be one of None, 'trunc', or 'floor' but found '{mode}'"
        )
    if all(_is_bool(x) for x in (input, other)):
        raise KernelError(f"\"div_{mode}_cpu\" not implemented for 'Bool'")


def check_lerp(input: Any, end: Any, weight: Any) -> None:
    """Refuse tensors of different dtypes, as PyTorch's `lerp` does, and integers."""
    if not is_scalar(weight) and not _is_tensor(weight):
        raise OperandError(
            f"lerp(): argument 'weight' (position 3) must be Tensor or Number, not "
            f"{type_name(weight)}"
        )
    for name, x in (("end", end), ("weight", weight)):
        if _is_tensor(x) and x.dtype is not input.dtype and (name == "end" or len(x.shape)):
            want, have = (_C_WORDS.get(d.name, d.name) for d in (input.dtype, x.dtype))
            raise DTypeError(f"expected dtype {want} for `{name}` but got dtype {have}")
    need_floating("lerp_kernel_scalar" if is_scalar(weight) else "lerp_kernel_tensor", input)


def check_add(function: str, input: Any, tensor1: Any, tensor2: Any, value: Any) -> None:
    """Refuse the operands of `addcmul` and `addcdiv` that are no tensors, and factors."""
    for position, (name, x) in enumerate(
        (("input", input), ("tensor1", tensor1), ("tensor2", tensor2)), 1
    ):
        if not _is_tensor(x):
            raise wrong_type(function, name, position, "Tensor", x)
    need_number(function, "value", value)


def check_no_integers(x: Any, y: Any) -> None:
    """Refuse to divide integers by integers in `addcdiv`, in PyTorch's words."""
    if not x.dtype.is_floating_point and not y.dtype.is_floating_point:
        raise DTypeError(
            "Integer division with addcdiv is no longer supported, and in a future  release "
            "addcdiv will perform a true division of tensor1 and tensor2. The historic addcdiv "
            "behavior can be implemented as (input + value * torch.trunc(tensor1 / tensor2))."
            "to(input.dtype) for integer inputs and as (input + value * tensor1 / tensor2) for "
            "float inputs. The future addcdiv behavior is just the latter implementation: "
            "(input + value * tensor1 / tensor2), for all dtypes."
        )


_C_WORDS = {
    "float32": "float", "float64": "double", "float16": "c10::Half", "bfloat16": "c10::BFloat16",
    "int64": "long int", "int32": "int", "int16": "short int", "int8": "signed char",
    "uint8": "unsigned char",
}  # fmt: skip
