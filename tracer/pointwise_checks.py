"""What pointwise functions refuse, in PyTorch's words."""

from __future__ import annotations

from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.errors import DTypeError, OperandError, ToleranceError
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
