"""Special functions: the error functions, the gamma function's logarithm and its derivatives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.errors import ParameterError
from tracegrad.ir.primitive import FLOAT, Refusal
from tracegrad.ir.primitives.elementary import exp
from tracegrad.ir.primitives.logic import equal, where
from tracegrad.ir.primitives.pointwise import (
    per_dtype,
    pointwise,
    pointwise_samples,
    scipy_special,
    unary,
    widened,
)
from tracegrad.ir.types import TensorType

TWO_OVER_SQRT_PI = 2.0 / math.sqrt(math.pi)
HALF_SQRT_PI = math.sqrt(math.pi) / 2.0

# ---- error functions ---------------------------------------------------------------------------

erf = unary("erf", scipy_special("erf"), "erf{f}({x})", cost=25, ulp=8, source="NIST DLMF §7.2",
            vjp=lambda ct, out, x: ct * (TWO_OVER_SQRT_PI * exp(-(x * x))))  # fmt: skip
erfc = unary("erfc", scipy_special("erfc"), "erfc{f}({x})", cost=40, ulp=24,
             vjp=lambda ct, out, x: ct * (-TWO_OVER_SQRT_PI * exp(-(x * x))),
             source="NIST DLMF §7.2")  # fmt: skip
erfinv = unary("erfinv", scipy_special("erfinv"),
               per_dtype(dtypes.FLOATS, floats="tg_erfinv_{s}({x})"), cost=150, ulp=8,
               vjp=lambda ct, out, x: ct * (HALF_SQRT_PI * exp(out * out)),
               sample=(-0.95, 0.95), source="NIST DLMF §7.17")  # fmt: skip

# ---- gamma function ----------------------------------------------------------------------------

MAX_ORDER = 60


def _polygamma_positive(order: int, x: Any) -> Any:
    import scipy.special

    sign = -1.0 if order % 2 == 0 else 1.0
    return sign * math.factorial(order) * scipy.special.zeta(order + 1.0, x)


def _cotangent_derivative(order: int, c: Any) -> Any:
    """d^order/dt^order of cot t, as a polynomial in c = cot t: each step is -(1 + c^2) d/dc."""
    series = np.polynomial.Polynomial([0.0, 1.0])
    for _ in range(order):
        series = -np.polynomial.Polynomial([1.0, 0.0, 1.0]) * series.deriv()
    return series(c)


def _polygamma(x: Any, *, order: int) -> Any:
    """Through the Hurwitz zeta function; left of 0 by reflection (DLMF 5.15.6)."""
    if order == 0:
        return scipy_special("psi")(x)
    wide = np.asarray(x, np.float64)
    left = (wide < 0) & (wide != np.floor(wide))
    found = _polygamma_positive(order, np.where(left, 1.0 - wide, np.where(wide <= 0, 0.0, wide)))
    if not left.any():
        return found
    phase = np.where(left, wide - np.rint(wide), 0.25)
    bend = math.pi ** (order + 1) * _cotangent_derivative(order, 1.0 / np.tan(math.pi * phase))
    return np.where(left, (-1) ** order * found - bend, found)


def _normalize_order(types: Sequence[TensorType], params: Mapping[str, Any]) -> dict[str, Any]:
    order = params["order"]
    if not isinstance(order, int) or isinstance(order, bool) or order > MAX_ORDER:
        raise ParameterError(
            f"polygamma(n, x): n must be an int from 0 to {MAX_ORDER}, got {order!r}"
        )
    if order < 0:
        raise ParameterError(f"polygamma(n, x) does not support negative n. Got n = {order}")
    return {"order": order}


def _polygamma_samples(rng: np.random.Generator, dtype: dtypes.DType) -> Any:
    for order in (1, 2, 0):
        yield from pointwise_samples((0.6, 5.0) if order else (2.0, 6.0))(rng, dtype, order=order)


polygamma = pointwise(
    "polygamma", ("x",), params=("order",), normalize=_normalize_order, promotion=FLOAT,
    dtypes=dtypes.FLOATS, samples=_polygamma_samples, eager=widened(_polygamma),
    c_expr=per_dtype(dtypes.FLOATS, floats="tg_polygamma_{s}({order}, {x})"), cost=200, ulp=32,
    vjp=(lambda ct, out, x, *, order: ct * polygamma(x, order=order + 1),),
    jvp=(lambda dx, out, x, *, order: dx * polygamma(x, order=order + 1),),
    source="NIST DLMF §5.15 and §25.11; poles as SciPy's zeta(n + 1, x)",
    doc="The derivative of order `order` of digamma; `order` is a static int.",
    refusals=(Refusal((np.ones(2),), {"order": -1}, ParameterError,
                      "does not support negative n"),),
)  # fmt: skip
digamma = unary("digamma", scipy_special("psi"),
                per_dtype(dtypes.FLOATS, floats="tg_digamma_{s}({x})"), cost=80, ulp=32,
                vjp=lambda ct, out, x: ct * polygamma(x, order=1), sample=(2.0, 6.0),
                source="NIST DLMF §5.2, §5.11",
                doc="Derivative of lgamma. Near its zeros the error is absolute.")  # fmt: skip


def _lgamma(x: Any) -> Any:
    # SciPy has -inf at -inf; C and PyTorch have +inf.
    return np.where(x == -np.inf, np.inf, scipy_special("gammaln")(x))


lgamma = unary("lgamma", _lgamma,
               per_dtype(dtypes.FLOATS, floats="tg_lgamma_{s}({x})"), cost=60, ulp=16,
               vjp=lambda ct, out, x: ct * digamma(x), sample=(2.2, 6.0), source="NIST DLMF §5.2",
               doc="log |gamma(x)|. Near its zeros at 1 and 2 the error is absolute.")  # fmt: skip

# ---- Bessel functions --------------------------------------------------------------------------

i0 = unary("i0", scipy_special("i0"), per_dtype(dtypes.FLOATS, floats="tg_i0_{s}({x})"), cost=120,
           ulp=32, vjp=lambda ct, out, x: ct * i1(x), sample=(-4.0, 4.0),
           source="NIST DLMF §10.25, §10.40",
           doc="Modified Bessel function of the first kind, order 0.")  # fmt: skip


def _i1_slope(x: Any) -> Any:
    """i0 - i1 / x, which is 1/2 at 0."""
    zero = equal(x, 0)
    return where(zero, 0.5, i0(x) - i1(x) / where(zero, 1, x))


i1 = unary("i1", scipy_special("i1"), per_dtype(dtypes.FLOATS, floats="tg_i1_{s}({x})"), cost=120,
           ulp=32, vjp=lambda ct, out, x: ct * _i1_slope(x), sample=(-4.0, 4.0),
           source="NIST DLMF §10.25, §10.40",
           doc="Modified Bessel function of the first kind, order 1.")  # fmt: skip
