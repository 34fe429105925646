"""Element by element, with a rule of their own at odd points: degrees, `xlogy`, `logit`.

They join the table `pointwise.FUNCTIONS`. Start reading at `logit`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.primitive import is_scalar
from tracegrad.tracer.arguments import wrong_type
from tracegrad.tracer.composites import composite
from tracegrad.tracer.pointwise import _public, apply1, apply2, named, need_tensor
from tracegrad.tracer.pointwise_composed import clamp, where
from tracegrad.tracer.tensor import Tensor, literal


def _real(input: Any) -> Any:
    return input if input.dtype.is_floating_point else input.to(dtypes.get_default_dtype())


@_public
@composite
def deg2rad(input: Any) -> Any:
    """Degrees as radians, `input * pi / 180`.

    Example:
        >>> import tracegrad as tg
        >>> tg.deg2rad(tg.tensor([180.]))
        tensor([3.1416])
    """
    need_tensor("deg2rad", "input", 1, input)
    return named(apply2("mul", _real(input), math.pi / 180), "Deg2RadBackward0")


@_public
@composite
def rad2deg(input: Any) -> Any:
    """Radians as degrees, `input * 180 / pi`.

    Example:
        >>> import tracegrad as tg
        >>> tg.rad2deg(tg.tensor([tg.pi]))
        tensor([180.])
    """
    need_tensor("rad2deg", "input", 1, input)
    return named(apply2("mul", _real(input), 180 / math.pi), "Rad2DegBackward0")


@_public
@composite
def xlogy(input: Any, other: Any) -> Any:
    """`input * log(other)`, which is 0 where `input` is 0, and NaN where `other` is NaN.

    Example:
        >>> import tracegrad as tg
        >>> tg.xlogy(tg.tensor([0., 2.]), tg.tensor([0., 1.]))
        tensor([0., 0.])
    """
    for position, (name, x) in enumerate((("input", input), ("other", other)), 1):
        if not is_scalar(x):
            need_tensor("xlogy", name, position, x)
    x, y = _promoted(input, other)
    zero = apply2("bitwise_and", apply2("equal", x, 0), apply2("equal", y, y))
    safe = where(zero, 1, y)
    return named(where(zero, 0, apply2("mul", x, apply1("log", safe))), "XlogyBackward0")


def _promoted(*operands: Any) -> list[Tensor]:
    """Operands of a floating function as tensors of their common dtype."""
    known = [
        (x.dtype, x.ndim) if isinstance(x, Tensor) else (dtypes.scalar_dtype(x), None)
        for x in operands
    ]
    dtype = dtypes.promote(known)
    if not dtype.is_floating_point:
        dtype = dtypes.get_default_dtype()
    return [
        x.to(dtype) if isinstance(x, Tensor) else literal(np.asarray(x, dtype.numpy))
        for x in operands
    ]


@_public
@composite
def logit(input: Any, eps: float | None = None) -> Any:
    """`log(input / (1 - input))`; with `eps`, of `input` limited to [eps, 1 - eps].

    Example:
        >>> import tracegrad as tg
        >>> tg.logit(tg.tensor([0.5]))
        tensor([0.])
    """
    need_tensor("logit", "input", 1, input)
    x = _real(input)
    if eps is not None:
        if not is_scalar(eps):
            raise wrong_type("logit", "eps", 0, "float", eps)
        x = clamp(x, eps, 1 - eps)
    return named(apply1("logit", x), "LogitBackward0")
