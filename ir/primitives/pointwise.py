"""Operations element by element: the factories with which the tables beside this file are made.

A row of a table (`logic`, `elementary`, `arithmetic`, `special`, `conversion`) is one call of
`unary`, `binary`, `comparison` or, for other operand lists, `pointwise`. Operands broadcast; the
driver un-broadcasts cotangents. Start reading at `pointwise`, then `unary`.

C expressions: `per_dtype` spells an expression out for each dtype it is meant for. A name that
begins with `tg_` is a helper of `codegen/templates/prelude_math.c.j2`; one that can fail takes
the kernel's `status`. An operand occurs once in an expression (a helper names it where it is
needed twice), so nested expressions neither repeat text nor work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import DTypeError, KernelError, OperandError, ShapeError
from tracegrad.ir.primitive import (
    FLOAT,
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

Draw = Callable[["np.random.Generator", DType, Shape], np.ndarray]
Range = tuple[float, float] | Draw
REAL: Range = (-3.0, 3.0)
NUMBERS = tuple(d for d in dtypes.ALL if d.kind != "b")
"""Every dtype with arithmetic: all but bool."""
WHOLE = tuple(d for d in dtypes.ALL if d.kind in "iu")
"""Every integer dtype, uint32 among them."""


def nonzero(low: float, high: float) -> Draw:
    """Sample values of magnitude in [low, high) and of either sign: divisors, for example."""

    def values(rng: np.random.Generator, dtype: DType, shape: Shape) -> np.ndarray:
        magnitude = draw(rng, dtype, shape, low, high)
        if not dtype.is_signed:
            return magnitude
        return np.where(rng.random(shape) < 0.5, -magnitude, magnitude).astype(dtype.numpy)

    return values


# ---- kernels -----------------------------------------------------------------------------------


def widened(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel that computes float16 and bfloat16 operands in float32; the caller rounds back."""

    def wide(*arrays: Any, **params: Any) -> Any:
        if any(a.dtype.itemsize == 2 and a.dtype.kind in "fV" for a in arrays):
            arrays = tuple(a.astype(np.float32) if a.dtype.kind in "fV" else a for a in arrays)
        return kernel(*arrays, **params)

    wide.kernel = kernel  # type: ignore[attr-defined]  # for callers that know the dtypes
    return wide


def scipy_special(name: str) -> Callable[..., Any]:
    """The function of `scipy.special` called `name`; SciPy is imported at the first call."""

    def kernel(x: Any) -> Any:
        import scipy.special

        return getattr(scipy.special, name)(x)

    return widened(kernel)


# ---- C expressions -----------------------------------------------------------------------------

SUFFIX = {
    "bool": "u8", "uint8": "u8", "int8": "i8", "int16": "i16", "int32": "i32", "int64": "i64",
    "uint32": "u32", "float16": "f32", "bfloat16": "f32", "float32": "f32", "float64": "f64",
}  # fmt: skip
"""Suffix of helper names by dtype; float16 and bfloat16 are computed in float."""


def per_dtype(
    accepted: Sequence[DType], *, floats: str = "", ints: str = "", bools: str = ""
) -> dict[str, str]:
    """C expressions by dtype name, from one per kind.

    `{s}` becomes the helper suffix, `{T}` the C type computed with, `{U}` the unsigned C type in
    which integer arithmetic wraps around as NumPy's does (overflow of signed integers is
    undefined in C).
    """
    by_kind = {"f": floats, "i": ints, "u": ints, "b": bools or ints}
    found = {}
    for dtype in accepted:
        unsigned = "uint64_t" if dtype.itemsize == 8 else "uint32_t"
        text = by_kind[dtype.kind].replace("{s}", SUFFIX[dtype.name])
        found[dtype.name] = text.replace("{T}", dtype.c_compute).replace("{U}", unsigned)
    return found


# ---- shapes, samples, batching -----------------------------------------------------------------


def broadcast_shape(*types: TensorType, **params: Any) -> Shape:
    """The shape rule of pointwise operations."""
    return broadcast_shapes(*(t.shape for t in types))


def drawn(rng: np.random.Generator, dtype: DType, shape: Shape, values: Range) -> np.ndarray:
    """Sample values from an interval or a function."""
    if callable(values):
        return np.asarray(values(rng, dtype, shape), dtype.numpy)
    return draw(rng, dtype, shape, *values)


def pointwise_samples(*ranges: Range) -> Callable[..., Iterator[Sample]]:
    """Samples of every shape class, operand i drawn from `ranges[i]`."""

    def samples(rng: np.random.Generator, dtype: DType, **params: Any) -> Iterator[Sample]:
        def operands(*shapes: Shape) -> tuple[np.ndarray, ...]:
            return tuple(drawn(rng, dtype, s, r) for s, r in zip(shapes, ranges, strict=True))

        n = len(ranges)
        yield Sample(operands(*[(3, 4)] * n), params)
        yield Sample(operands(*[()] * n), params, "scalar")
        yield Sample(operands(*[(0, 3)] * n), params, "empty")
        yield Sample(tuple(map(strided, operands(*[(3, 5)] * n))), params, "strided")
        yield Sample(operands(*[(70, 150)] * n), params, "large")
        if n > 1:
            shapes = ((2, 1, 4), (3, 1), (4,))[:n]
            yield Sample(operands(*shapes), params, "broadcast")
            yield Sample(operands(*(((),) + ((5,),) * (n - 1))), params, "broadcast")

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


# ---- factories ---------------------------------------------------------------------------------

_MISMATCH = r"The size of tensor a \(3\) must match the size of tensor b \(4\)"


def refused_dtype(kernel: str, dtype: DType, args: int = 1, match: str = "") -> Refusal:
    """The refusal of operands of `dtype`, by the name of PyTorch's kernel or by another text."""
    operands = (np.ones(2, dtype.numpy),) * args
    if match:
        return Refusal(operands, {}, DTypeError, match)
    text = f"\"{kernel}\" not implemented for '{dtypes.torch_name(dtype)}'"
    return Refusal(operands, {}, KernelError, text)


def _default_refusals(
    name: str, args: tuple[str, ...], record: Mapping[str, Any]
) -> tuple[Refusal, ...]:
    text = f"{name}: operand must be a tensor or a number, got str"
    found = [Refusal(("a",) * len(args), {}, OperandError, text)]
    accepted = record.get("dtypes", dtypes.ALL)
    if len(args) == 2:
        shaped = tuple(np.zeros(s, accepted[-1].numpy) for s in ((2, 3), (2, 4)))
        found.append(Refusal(shaped, {}, ShapeError, _MISMATCH))
    return tuple(found)


def pointwise(
    name: str, args: tuple[str, ...], *, ranges: tuple[Range, ...] = (), **record: Any
) -> Primitive:
    """Declare a pointwise primitive; `ranges` are the sample intervals of the operands."""
    record.setdefault("samples", pointwise_samples(*(ranges or (REAL,) * len(args))))
    record.setdefault("shape", broadcast_shape)
    record.setdefault("dtype", same_dtype(0))
    more = record.pop("refusals", ())
    params = record.get("params", ())
    record["refusals"] = (() if params else _default_refusals(name, args, record)) + tuple(more)
    made: Primitive
    record.setdefault("batch", lambda *a, **k: batch_pointwise(made)(*a, **k))
    made = primitive(name, args=args, family="pointwise", **record)
    return made


def unary(
    name: str,
    eager: Any,
    c_expr: Any,
    *,
    vjp: Any,
    jvp: Any = None,
    sample: Range = REAL,
    **record: Any,
) -> Primitive:
    """Declare a function of one real operand; integers become the default float.

    `jvp` defaults to `vjp`: for a real function of one element both multiply by f'(x).
    """
    record.setdefault("promotion", FLOAT)
    if record["promotion"] == FLOAT:
        record.setdefault("dtypes", dtypes.FLOATS)
    jvp = jvp if jvp is not None else vjp
    return pointwise(
        name, ("x",), eager=widened(eager), c_expr=c_expr, ranges=(sample,),
        vjp=(vjp,) if callable(vjp) else vjp, jvp=(jvp,) if callable(jvp) else jvp, **record,
    )  # fmt: skip


def binary(name: str, eager: Any, c_expr: Any, *, vjp: Any, jvp: Any, **record: Any) -> Primitive:
    """Declare a function of two operands, promoted together."""
    if record.get("promotion") == FLOAT:
        record.setdefault("dtypes", dtypes.FLOATS)
    return pointwise(
        name, ("x", "y"), eager=widened(eager), c_expr=c_expr, vjp=vjp, jvp=jvp, **record
    )


def comparison(name: str, eager: Any, operator: str) -> Primitive:
    """Declare a comparison: operands promoted, result bool, derivative zero."""
    return binary(
        name, eager, f"{{x}} {operator} {{y}}", vjp=ZERO, jvp=ZERO,
        dtype=always(dtypes.bool_), source="IEEE 754-2019 §5.11 comparison predicates",
    )  # fmt: skip
