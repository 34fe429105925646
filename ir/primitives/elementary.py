"""Elementary functions: powers of two and roots, exponentials, trigonometry, hyperbolics.

`ulp` is the largest distance seen between NumPy and the code that gcc makes with libmvec, with a
margin; the latter alone is allowed 4 ulp by its authors.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.primitive import FLOAT
from tracegrad.ir.primitives.logic import equal, greater, less, logical_or, where
from tracegrad.ir.primitives.pointwise import binary, refused_dtype, unary

LN2, LN10 = math.log(2.0), math.log(10.0)

# ---- roots -------------------------------------------------------------------------------------

sqrt = unary("sqrt", np.sqrt, "sqrt{f}({x})", vjp=lambda ct, out, x: ct / (2 * out),
             sample=(0.1, 5.0), cost=5, source="IEEE 754-2019 §5.4.1")  # fmt: skip
rsqrt = unary("rsqrt", lambda x: 1 / np.sqrt(x), "1.0{f} / sqrt{f}({x})",
              vjp=lambda ct, out, x: -0.5 * ct * (out * out * out), sample=(0.1, 5.0), cost=8,
              source="IEEE 754-2019 §9.2")  # fmt: skip
reciprocal = unary("reciprocal", lambda x: 1 / x, "1.0{f} / {x}",
                   vjp=lambda ct, out, x: -ct * (out * out), sample=(0.2, 3.0), cost=4,
                   source="definition")  # fmt: skip

# ---- exponentials and logarithms ---------------------------------------------------------------

exp = unary("exp", np.exp, "exp{f}({x})", vjp=lambda ct, out, x: ct * out, cost=15, ulp=8,
            source="NIST DLMF §4.2")  # fmt: skip
exp2 = unary("exp2", np.exp2, "exp2{f}({x})", vjp=lambda ct, out, x: ct * (out * LN2), cost=15,
             ulp=8, source="NIST DLMF §4.2")  # fmt: skip
expm1 = unary("expm1", np.expm1, "expm1{f}({x})", vjp=lambda ct, out, x: ct * (out + 1), cost=20,
              ulp=8, source="NIST DLMF §4.2")  # fmt: skip
log = unary("log", np.log, "log{f}({x})", vjp=lambda ct, out, x: ct / x, sample=(0.1, 5.0), cost=15,
            ulp=8, source="NIST DLMF §4.2")  # fmt: skip
log2 = unary("log2", np.log2, "log2{f}({x})", vjp=lambda ct, out, x: ct / (x * LN2),
             sample=(0.1, 5.0), cost=15, ulp=8, source="NIST DLMF §4.2")  # fmt: skip
log10 = unary("log10", np.log10, "log10{f}({x})", vjp=lambda ct, out, x: ct / (x * LN10),
              sample=(0.1, 5.0), cost=15, ulp=8, source="NIST DLMF §4.2")  # fmt: skip
log1p = unary("log1p", np.log1p, "log1p{f}({x})", vjp=lambda ct, out, x: ct / (x + 1),
              sample=(-0.9, 4.0), cost=20, ulp=8, source="NIST DLMF §4.2",
              backward_name="Log1PBackward0")  # fmt: skip

# ---- trigonometry ------------------------------------------------------------------------------

sin = unary("sin", np.sin, "sin{f}({x})", vjp=lambda ct, out, x: ct * cos(x), cost=20, ulp=8,
            source="NIST DLMF §4.21")  # fmt: skip
cos = unary("cos", np.cos, "cos{f}({x})", vjp=lambda ct, out, x: -ct * sin(x), cost=20, ulp=8,
            source="NIST DLMF §4.21")  # fmt: skip
tan = unary("tan", np.tan, "tan{f}({x})", vjp=lambda ct, out, x: ct * (1 + out * out), cost=25,
            ulp=8, sample=(-1.3, 1.3), source="NIST DLMF §4.21")  # fmt: skip
asin = unary("asin", np.arcsin, "asin{f}({x})", vjp=lambda ct, out, x: ct * rsqrt(1 - x * x),
             sample=(-0.95, 0.95), cost=20, ulp=8, source="NIST DLMF §4.24")  # fmt: skip
acos = unary("acos", np.arccos, "acos{f}({x})", vjp=lambda ct, out, x: -ct * rsqrt(1 - x * x),
             sample=(-0.95, 0.95), cost=20, ulp=8, source="NIST DLMF §4.24")  # fmt: skip
atan = unary("atan", np.arctan, "atan{f}({x})", vjp=lambda ct, out, x: ct / (x * x + 1), cost=20,
             ulp=8, source="NIST DLMF §4.24")  # fmt: skip

# ---- hyperbolics -------------------------------------------------------------------------------

sinh = unary("sinh", np.sinh, "sinh{f}({x})", vjp=lambda ct, out, x: ct * cosh(x), cost=25, ulp=8,
             source="NIST DLMF §4.28")  # fmt: skip
cosh = unary("cosh", np.cosh, "cosh{f}({x})", vjp=lambda ct, out, x: ct * sinh(x), cost=25, ulp=8,
             source="NIST DLMF §4.28")  # fmt: skip
tanh = unary("tanh", np.tanh, "tanh{f}({x})", vjp=lambda ct, out, x: ct * (1 - out * out), cost=25,
             ulp=8, source="NIST DLMF §4.34")  # fmt: skip
sigmoid = unary("sigmoid", lambda x: 1 / (1 + np.exp(-x)), "1 / (1 + exp{f}(-{x}))",
                vjp=lambda ct, out, x: ct * (out * (1 - out)), cost=25, ulp=8,
                source="definition; a primitive because its parts overflow where it does not")  # fmt: skip
asinh = unary("asinh", np.arcsinh, "asinh{f}({x})", vjp=lambda ct, out, x: ct * rsqrt(x * x + 1),
              cost=25, ulp=8, source="NIST DLMF §4.37")  # fmt: skip
acosh = unary("acosh", np.arccosh, "acosh{f}({x})", vjp=lambda ct, out, x: ct * rsqrt(x * x - 1),
              sample=(1.1, 4.0), cost=25, ulp=8, source="NIST DLMF §4.37")  # fmt: skip
atanh = unary("atanh", np.arctanh, "atanh{f}({x})", vjp=lambda ct, out, x: ct / (1 - x * x),
              sample=(-0.95, 0.95), cost=25, ulp=8, source="NIST DLMF §4.37")  # fmt: skip


def _outside(x: Any) -> Any:
    return logical_or(less(x, 0), greater(x, 1))


logit = unary("logit", lambda x: np.log(x / (1 - x)), "log{f}({x} / (1.0{f} - {x}))",
              vjp=lambda ct, out, x: where(_outside(x), math.nan, ct / (x * (1 - x))), sample=(0.05, 0.95),
              cost=25, ulp=8, source="definition; a primitive because its parts are 0 * inf at 0 and 1",
              doc="Log odds; NaN outside [0, 1], as is its slope, which is infinite at 0 and 1.")  # fmt: skip

# ---- of two operands ---------------------------------------------------------------------------


def _squared_radius(x: Any, y: Any) -> Any:
    """x*x + y*y; infinite at the origin, where derivatives of the angle, of any order, are 0."""
    radius = x * x + y * y
    return where(equal(radius, 0), math.inf, radius)


_ANGLE = (
    lambda ct, out, x, y: ct * y / _squared_radius(x, y),
    lambda ct, out, x, y: -ct * x / _squared_radius(x, y),
)
atan2 = binary(
    "atan2", np.arctan2, "atan2{f}({x}, {y})", promotion=FLOAT, cost=30, ulp=8,
    vjp=_ANGLE, jvp=_ANGLE,
    source="NIST DLMF §4.23(iv)",
    doc="Angle of the point (y, x), in (-pi, pi]; gradient 0 at the origin, as in PyTorch.",
)  # fmt: skip
hypot = binary(
    "hypot", np.hypot, "hypot{f}({x}, {y})", dtypes=dtypes.FLOATS, cost=20, ulp=4,
    vjp=(lambda ct, out, x, y: ct * (x / out), lambda ct, out, x, y: ct * (y / out)),
    jvp=(lambda dx, out, x, y: dx * (x / out), lambda dy, out, x, y: dy * (y / out)),
    source="C11 §7.12.7.3", doc="sqrt(x*x + y*y) without overflow; the gradient at (0, 0) is NaN.",
    refusals=(refused_dtype("hypot_cpu", dtypes.int64, 2),),
)  # fmt: skip
