"""Comparisons, logic on truth values and on bits, tests of floating values, and `where`.

Results of comparisons and tests are bool; every derivative here is zero but `where`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import DTypeError
from tracegrad.ir.primitive import (
    NO_PROMOTION,
    NUMERIC,
    ZERO,
    Primitive,
    Refusal,
    Sample,
    always,
    draw,
    strided,
)
from tracegrad.ir.primitives.pointwise import (
    WHOLE,
    binary,
    comparison,
    per_dtype,
    pointwise,
    refused_dtype,
    unary,
)
from tracegrad.ir.types import Shape, TensorType

# ---- comparisons -------------------------------------------------------------------------------

equal = comparison("equal", np.equal, "==")
not_equal = comparison("not_equal", np.not_equal, "!=")
less = comparison("less", np.less, "<")
less_equal = comparison("less_equal", np.less_equal, "<=")
greater = comparison("greater", np.greater, ">")
greater_equal = comparison("greater_equal", np.greater_equal, ">=")

# ---- truth values ------------------------------------------------------------------------------


def logical(name: str, ufunc: Any, operator: str) -> Primitive:
    """Declare a connective: operands of any dtypes are compared with zero, the result is bool."""
    return binary(
        name, lambda x, y: ufunc(x != 0, y != 0), f"({{x}} != 0) {operator} ({{y}} != 0)",
        vjp=ZERO, jvp=ZERO, promotion=NO_PROMOTION, dtype=always(dtypes.bool_), source="definition",
    )  # fmt: skip


logical_and = logical("logical_and", np.logical_and, "&")
logical_or = logical("logical_or", np.logical_or, "|")
logical_xor = logical("logical_xor", np.logical_xor, "^")
logical_not = unary("logical_not", lambda x: x == 0, "{x} == 0", vjp=ZERO, promotion=NO_PROMOTION,
                    dtype=always(dtypes.bool_), source="definition")  # fmt: skip

# ---- tests of floating values ------------------------------------------------------------------


def classification(name: str, ufunc: Any, integer_answer: str) -> Primitive:
    """Declare a test of floating values; integers give the same answer always."""
    return unary(
        name, ufunc,
        per_dtype(dtypes.ALL, floats=f"tg_{name}_{{s}}({{x}})", ints=integer_answer),
        vjp=ZERO, promotion=NUMERIC, dtype=always(dtypes.bool_), source="IEEE 754-2019 §5.7.2",
    )  # fmt: skip


isnan = classification("isnan", np.isnan, "0")
isinf = classification("isinf", np.isinf, "0")
isfinite = classification("isfinite", np.isfinite, "1")

# ---- bits --------------------------------------------------------------------------------------

_BITS = (dtypes.bool_, *WHOLE)


def bitwise(name: str, ufunc: Any, operator: str) -> Primitive:
    """Declare a bitwise connective of integers or of truth values."""
    c_expr = per_dtype(
        _BITS, ints=f"({{T}})({{x}} {operator} {{y}})", bools=f"{{x}} {operator} {{y}}"
    )
    return binary(
        name, ufunc, c_expr, vjp=ZERO, jvp=ZERO, dtypes=_BITS, source="C11 §6.5.10-12",
        refusals=(refused_dtype(f"{name}_cpu", dtypes.float32, 2),),
    )  # fmt: skip


bitwise_and = bitwise("bitwise_and", np.bitwise_and, "&")
bitwise_or = bitwise("bitwise_or", np.bitwise_or, "|")
bitwise_xor = bitwise("bitwise_xor", np.bitwise_xor, "^")
bitwise_not = unary(
    "bitwise_not", np.invert, per_dtype(_BITS, ints="({T})~{x}", bools="!{x}"), vjp=ZERO,
    promotion=NUMERIC, dtypes=_BITS, source="C11 §6.5.3.3",
    refusals=(refused_dtype("bitwise_not_cpu", dtypes.float32),),
)  # fmt: skip


def shift(name: str, ufunc: Any, helper: str, kernel: str) -> Primitive:
    """Declare a shift. A negative distance counts as one past the width: only the fill remains."""
    return binary(
        name, ufunc, per_dtype(WHOLE, ints=f"{helper}_{{s}}({{x}}, {{y}})"), vjp=ZERO, jvp=ZERO,
        dtypes=WHOLE, ranges=((-100.0, 100.0), (0.0, 9.0)), source="C11 §6.5.7",
        kernel=kernel,
        refusals=(refused_dtype(kernel, dtypes.float32, 2), refused_dtype(kernel, dtypes.bool_, 2)),
    )  # fmt: skip


def _left_shift(x: Any, y: Any) -> Any:
    width = 8 * x.dtype.itemsize
    inside = (y >= 0) & (y < width)
    return np.where(inside, np.left_shift(x, np.where(inside, y, 0).astype(x.dtype)), 0)


def _right_shift(x: Any, y: Any) -> Any:
    width = 8 * x.dtype.itemsize
    inside = (y >= 0) & (y < width)
    filled = np.where(x < 0, -1, 0).astype(x.dtype)
    return np.where(inside, np.right_shift(x, np.where(inside, y, 0).astype(x.dtype)), filled)


bitwise_left_shift = shift("bitwise_left_shift", _left_shift, "tg_shl", "lshift_cpu")
bitwise_right_shift = shift("bitwise_right_shift", _right_shift, "tg_shr", "rshift_cpu")

# ---- choice ------------------------------------------------------------------------------------


def _where_dtype(condition: TensorType, x: TensorType, y: TensorType) -> DType:
    if condition.dtype.kind != "b":
        raise DTypeError(
            "where expected condition to be a boolean tensor, but got a tensor with dtype "
            f"{condition.dtype.name}; compare it with something first, e.g. condition != 0"
        )
    return x.dtype


def _where_samples(rng: np.random.Generator, dtype: DType) -> Iterator[Sample]:
    def case(kind: str, *shapes: Shape) -> Sample:
        mask = rng.random(shapes[0]) < 0.5
        operands = (np.asarray(mask), *(draw(rng, dtype, s) for s in shapes[1:]))
        return Sample(tuple(map(strided, operands)) if kind == "strided" else operands, {}, kind)

    yield case("plain", (3, 4), (3, 4), (3, 4))
    yield case("scalar", (), (), ())
    yield case("empty", (0, 3), (0, 3), (0, 3))
    yield case("strided", (3, 5), (3, 5), (3, 5))
    yield case("large", (70, 150), (70, 150), (70, 150))
    yield case("broadcast", (2, 1, 4), (3, 1), (4,))
    yield case("broadcast", (5,), (), (5,))


# Note [Unselected branches]: a cotangent is *chosen*, never multiplied by 0 or 1, so an infinite
# or NaN value in the branch not taken cannot reach the gradient of the one taken.
where = pointwise(
    "where", ("condition", "x", "y"), eager=np.where, c_expr="{condition} ? {x} : {y}",
    promote=("x", "y"), dtype=_where_dtype, samples=_where_samples, source="definition",
    vjp=(None, lambda ct, out, c, x, y: where(c, ct, 0), lambda ct, out, c, x, y: where(c, 0, ct)),
    jvp=(None, lambda dx, out, c, x, y: where(c, dx, 0), lambda dy, out, c, x, y: where(c, 0, dy)),
    refusals=(Refusal((np.zeros(3), np.zeros(3), np.zeros(3)), {}, DTypeError,
                      "where expected condition to be a boolean tensor"),),
    doc="Elements of `x` where `condition`, else of `y`.",
)  # fmt: skip
