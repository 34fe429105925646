"""Questions about tensors and dtypes that are answered at once, without recording anything new."""

from __future__ import annotations

from typing import Any

from tracegrad.ir.dtypes import DType, promote, scalar_dtype
from tracegrad.ir.dtypes import promote_pair as promote_types
from tracegrad.tracer.pointwise import isclose
from tracegrad.tracer.tensor import Tensor


def is_tensor(obj: Any) -> bool:
    """True for Tensors."""
    return isinstance(obj, Tensor)


def is_floating_point(input: Tensor) -> bool:
    """True for tensors of floating dtype."""
    return input.dtype.is_floating_point


def is_inference(input: Tensor) -> bool:
    """True for tensors made in inference mode, and views of them."""
    return input.is_inference()


def numel(input: Tensor) -> int:
    """Number of elements."""
    return input.numel()


def result_type(tensor1: Any, tensor2: Any) -> DType:
    """The dtype that an operation on the two operands would promote them to."""
    return promote(
        (x.dtype, x.ndim) if isinstance(x, Tensor) else (scalar_dtype(x), None)
        for x in (tensor1, tensor2)
    )


def equal(input: Tensor, other: Tensor) -> bool:
    """True where both have the same shape and equal elements."""
    return input.shape == other.shape and bool(input.eq(other).all())


def allclose(
    input: Tensor, other: Tensor, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> bool:
    """True where all elements are close: `|input - other| <= atol + rtol * |other|`."""
    return bool(isclose(input, other, rtol, atol, equal_nan).all())


FUNCTIONS = {
    f.__name__: f
    for f in (is_tensor, is_floating_point, is_inference, numel, result_type, equal, allclose)
} | {"promote_types": promote_types}
