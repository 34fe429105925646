"""Divisors of integers, and the neighbours of floating-point numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.primitive import ZERO
from tracegrad.ir.primitives.pointwise import WHOLE, binary, per_dtype, refused_dtype


def _lcm(x: Any, y: Any) -> Any:
    """0 where one of them is 0; wraps around like a product."""
    shared = np.gcd(x, y)
    return np.abs(x // np.where(shared == 0, 1, shared) * y)


gcd = binary(
    "gcd", np.gcd, per_dtype(WHOLE, ints="tg_gcd_{s}({x}, {y})"), vjp=ZERO, jvp=ZERO, dtypes=WHOLE,
    source="Euclid's algorithm", refusals=(refused_dtype("gcd_cpu", dtypes.float32, 2),),
    cost=60, doc="The greatest common divisor, not negative; 0 of two zeros.",
)  # fmt: skip
lcm = binary(
    "lcm", _lcm, per_dtype(WHOLE, ints="tg_lcm_{s}({x}, {y})"), vjp=ZERO, jvp=ZERO, dtypes=WHOLE,
    source="definition", refusals=(refused_dtype("lcm_cpu", dtypes.float32, 2),),
    cost=70, doc="The least common multiple, not negative; 0 where one of them is 0.",
)  # fmt: skip


def _same(d: Any, *_: Any) -> Any:
    return d


nextafter = binary(
    "nextafter", np.nextafter, "nextafter{f}({x}, {y})", vjp=(_same, ZERO), jvp=(_same, ZERO),
    dtypes=(dtypes.float32, dtypes.float64), source="IEEE 754-2019 §5.3.1",
    refusals=(refused_dtype("nextafter_cpu", dtypes.int64, 2),), cost=10,
    doc="The number next to `x` on the way to `y`; its derivative is that of `x`.",
)  # fmt: skip
