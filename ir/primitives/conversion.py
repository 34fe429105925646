"""`cast` and `detach`: the same elements under another dtype, or without a gradient.

Note [Floating to integer]: C leaves a conversion undefined where the value does not fit. Here it
is defined, alike in the eager kernel and in generated code: the fraction is dropped; for int32
and int64 a value out of range, and NaN, gives the least integer of the type; the narrower types
(and uint32) are what remains of the low bits of int32 (of int64). That is what x86 does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.primitive import LINEAR, NO_PROMOTION, ZERO, Sample, draw
from tracegrad.ir.primitives.pointwise import pointwise


def _to_integer(x: Any, target: DType) -> Any:
    """See Note [Floating to integer]."""
    via = np.int64 if target.name in ("int64", "uint32") else np.int32
    least = float(np.iinfo(via).min)
    wide = np.asarray(x, np.float64)
    fits = (wide > least - 1.0) & (wide < -least)
    return np.where(fits, wide, least).astype(via).astype(target.numpy)


def _cast(x: Any, *, dtype: DType) -> Any:
    if dtype.kind == "b":
        return x != 0
    if dtype.kind in "iu" and x.dtype.kind in "fV":
        return _to_integer(x, dtype)
    return x.astype(dtype.numpy)


_SHAPES = {"plain": (3, 4), "scalar": (), "empty": (0,), "large": (70, 150)}


def _cast_samples(rng: np.random.Generator, dtype: DType) -> Iterator[Sample]:
    for target in dtypes.INTEGERS + dtypes.FLOATS + (dtypes.bool_,):
        low = 0.0 if target.kind == "u" else -3.0
        for kind, shape in (
            ("plain", (3, 4)),
            ("scalar", ()),
            ("empty", (0,)),
            ("large", (70, 150)),
        ):
            yield Sample((draw(rng, dtype, shape, low, 3.0),), {"dtype": target}, kind)


cast = pointwise(
    "cast", ("x",), params=("dtype",), eager=_cast,
    c_expr="{x}", dtype=lambda x, *, dtype: dtype, promotion=NO_PROMOTION, samples=_cast_samples,
    vjp=(lambda ct, out, x, *, dtype: cast(ct, dtype=x.dtype),),
    jvp=(LINEAR,), backward_name="ToCopyBackward0", source="C11 §6.3.1", ulp=1,
    doc="The elements converted to `dtype`; see Note [Floating to integer] in its file.",
)  # fmt: skip

detach = pointwise(
    "detach", ("x",), eager=lambda x: x, c_expr="{x}", vjp=ZERO, jvp=ZERO, promotion=NO_PROMOTION,
    cost=0, source="definition", doc="The same values, through which no gradient flows.",
)  # fmt: skip
