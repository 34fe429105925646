"""Operations element by element: the factories `unary`, `binary` and `comparison`, and the table.

A row of the table is one call. Operands broadcast; the driver un-broadcasts cotangents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import ShapeError
from tracegrad.ir.primitive import (
    FLOAT,
    LINEAR,
    NO_PROMOTION,
    NUMERIC,
    ZERO,
    Primitive,
    Refusal,
    Sample,
    always,
    bind,
    draw,
    primitive,
    same_dtype,
    strided,
)
from tracegrad.ir.types import Shape, TensorType, broadcast_shapes

Range = tuple[float, float]
REAL: Range = (-3.0, 3.0)


def broadcast_shape(*types: TensorType, **params: Any) -> Shape:
    """The shape rule of pointwise operations."""
    return broadcast_shapes(*(t.shape for t in types))


def pointwise_samples(*ranges: Range) -> Callable[..., Iterator[Sample]]:
    """Samples of every shape class, operand i drawn from `ranges[i]`."""

    def samples(rng: np.random.Generator, dtype: DType) -> Iterator[Sample]:
        def operands(*shapes: Shape) -> tuple[np.ndarray, ...]:
            return tuple(
                draw(rng, dtype, s, *r) for s, r in zip(shapes, ranges, strict=True)
            )

        n = len(ranges)
        yield Sample(operands(*[(3, 4)] * n))
        yield Sample(operands(*[()] * n), {}, "scalar")
        yield Sample(operands(*[(0, 3)] * n), {}, "empty")
        yield Sample(tuple(map(strided, operands(*[(3, 5)] * n))), {}, "strided")
        yield Sample(operands(*[(70, 150)] * n), {}, "large")
        if n > 1:
            shapes = ((2, 1, 4), (3, 1), (4,))[:n]
            yield Sample(operands(*shapes), {}, "broadcast")
            yield Sample(operands(*(((),) + ((5,),) * (n - 1))), {}, "broadcast")

    return samples


def batch_pointwise(op: Primitive) -> Callable[..., Any]:
    """The batch rule of broadcasting operations: line up the axes behind the new first one."""

    def rule(size: int, batched: tuple[bool, ...], *args: Any, **params: Any) -> Any:
        from tracegrad.ir.primitives.movement import reshape

        ndim = max(len(a.shape) - b for a, b in zip(args, batched, strict=True))
        aligned = [
            reshape(a, shape=(size, *(1,) * (ndim + 1 - len(a.shape)), *a.shape[1:])) if b else a
            for a, b in zip(args, batched, strict=True)
        ]
        return bind(op, tuple(aligned), params)

    return rule


_MISMATCH = Refusal((np.zeros((2, 3)), np.zeros((2, 4))), {}, ShapeError,
                    r"The size of tensor a \(3\) must match the size of tensor b \(4\)")  # fmt: skip


def pointwise(name: str, args: tuple[str, ...], *, ranges: tuple[Range, ...] = (), **record: Any) -> Primitive:
    """Declare a pointwise primitive; `ranges` are the sample intervals of the operands."""
    record.setdefault("samples", pointwise_samples(*(ranges or (REAL,) * len(args))))
    record.setdefault("shape", broadcast_shape)
    record.setdefault("dtype", same_dtype(0))
    record.setdefault("refusals", (_MISMATCH,) if len(args) == 2 else ())
    made: Primitive
    record.setdefault("batch", lambda *a, **k: batch_pointwise(made)(*a, **k))
    made = primitive(name, args=args, family="pointwise", **record)
    return made


def unary(name: str, eager: Any, c_expr: Any, *, vjp: Any, jvp: Any = None, sample: Range = REAL, **record: Any) -> Primitive:
    """Declare a function of one real operand; integers become the default float.

    `jvp` defaults to `vjp`: for a real function of one element both multiply by f'(x).
    """
    record.setdefault("promotion", FLOAT)
    if record["promotion"] == FLOAT:
        record.setdefault("dtypes", dtypes.FLOATS)
    jvp = jvp if jvp is not None else vjp
    return pointwise(
        name, ("x",), eager=eager, c_expr=c_expr, ranges=(sample,),
        vjp=vjp if not callable(vjp) else (vjp,), jvp=jvp if not callable(jvp) else (jvp,), **record,
    )  # fmt: skip


def binary(name: str, eager: Any, c_expr: Any, *, vjp: Any, jvp: Any, **record: Any) -> Primitive:
    """Declare a function of two operands, promoted together."""
    return pointwise(name, ("x", "y"), eager=eager, c_expr=c_expr, vjp=vjp, jvp=jvp, **record)


def comparison(name: str, eager: Any, operator: str) -> Primitive:
    """Declare a comparison: operands promoted, result bool, derivative zero."""
    return pointwise(
        name, ("x", "y"), eager=eager, c_expr=f"{{x}} {operator} {{y}}", vjp=ZERO, jvp=ZERO,
        dtype=always(dtypes.bool_), source="IEEE 754 comparison",
    )  # fmt: skip


# ---- arithmetic ---------------------------------------------------------------------------------

neg = unary("neg", np.negative, "-{x}", vjp=lambda ct, out, x: -ct, jvp=(LINEAR,),
            promotion=NUMERIC, dtypes=dtypes.INTEGERS + dtypes.FLOATS, source="definition")  # fmt: skip
add = binary("add", np.add, "{x} + {y}",
             vjp=(lambda ct, out, x, y: ct, lambda ct, out, x, y: ct),
             jvp=(lambda dx, out, x, y: dx, lambda dy, out, x, y: dy), source="definition")  # fmt: skip
mul = binary("mul", np.multiply, "{x} * {y}",
             vjp=(lambda ct, out, x, y: ct * y, lambda ct, out, x, y: ct * x),
             jvp=(lambda dx, out, x, y: dx * y, lambda dy, out, x, y: x * dy), source="definition")  # fmt: skip

# ---- trigonometric ------------------------------------------------------------------------------

sin = unary("sin", np.sin, "sin{f}({x})", vjp=lambda ct, out, x: ct * cos(x), cost=20, ulp=4,
            source="NIST DLMF §4.21")  # fmt: skip
cos = unary("cos", np.cos, "cos{f}({x})", vjp=lambda ct, out, x: -ct * sin(x), cost=20, ulp=4,
            source="NIST DLMF §4.21")  # fmt: skip

# ---- comparisons --------------------------------------------------------------------------------

less = comparison("less", np.less, "<")

# ---- conversion ---------------------------------------------------------------------------------


def _cast_samples(rng: np.random.Generator, dtype: DType) -> Iterator[Sample]:
    for target in dtypes.INTEGERS + dtypes.FLOATS + (dtypes.bool_,):
        low = 0.0 if target.kind == "u" else -3.0
        for kind, shape in (("plain", (3, 4)), ("scalar", ()), ("empty", (0,)), ("large", (70, 150))):
            yield Sample((draw(rng, dtype, shape, low, 3.0),), {"dtype": target}, kind)


cast = pointwise(
    "cast", ("x",), params=("dtype",), eager=lambda x, *, dtype: x.astype(dtype.numpy),
    c_expr="{x}", dtype=lambda x, *, dtype: dtype, promotion=NO_PROMOTION, samples=_cast_samples,
    vjp=(lambda ct, out, x, *, dtype: cast(ct, dtype=x.dtype),),
    jvp=(LINEAR,), backward_name="ToCopyBackward0", source="C11 §6.3.1",
)  # fmt: skip

detach = pointwise(
    "detach", ("x",), eager=lambda x: x, c_expr="{x}", vjp=ZERO, jvp=ZERO, promotion=NO_PROMOTION,
    cost=0, source="definition", doc="The same values, through which no gradient flows.",
)  # fmt: skip
