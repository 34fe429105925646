"""Reductions over axes. `axes` is a sorted tuple of axes counted from 0; `keepdims` keeps ones.

Sums and products of floats accumulate in float64 and round once; those of integers and bool are
int64. Extremes propagate NaN and share the gradient equally among ties, as PyTorch's `amax`.
`argmax` and `argmin` stand in `search.py`. Start reading at `reduction`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import DimensionError, OperandError, ShapeError
from tracegrad.ir.primitive import (
    LINEAR,
    NUMERIC,
    ZERO,
    Primitive,
    Refusal,
    Sample,
    always,
    bind,
    draw,
    get,
    primitive,
    same_dtype,
    strided,
    type_of,
)
from tracegrad.ir.primitives.movement import broadcast, permute, reshape
from tracegrad.ir.primitives.support import filled_like, normal_axes, zero_of
from tracegrad.ir.types import Shape, TensorType

Axes = tuple[int, ...]


def normalize_axes(types: Sequence[TensorType], params: Mapping[str, Any]) -> dict[str, Any]:
    """Canonical `axes` and `keepdims`: None means all axes, an int means one."""
    axes = normal_axes(params.get("axes"), types[0].ndim)
    return {"axes": axes, "keepdims": kept(params.get("keepdims", False))}


def kept(keepdims: Any) -> bool:
    """`keepdims` as a bool.

    Raises:
        OperandError: it is none (PyTorch's text, but for the name of the function).
    """
    if not isinstance(keepdims, bool | np.bool_):
        raise OperandError(f"argument 'keepdim' must be bool, not {type(keepdims).__name__}")
    return bool(keepdims)


def reduced_shape(x: TensorType, *, axes: Axes, keepdims: bool) -> Shape:
    """The shape rule of reductions."""
    if keepdims:
        return tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    return tuple(n for i, n in enumerate(x.shape) if i not in axes)


def spread(reduced: Any, x: Any, axes: Axes, keepdims: bool) -> Any:
    """Broadcast a reduced value back over the shape of `x`: the transpose of a sum."""
    if not keepdims:
        kept = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
        reduced = reshape(reduced, shape=kept)
    return broadcast(reduced, shape=x.shape)


Interval = tuple[float, float]
_REAL: Interval = (-3.0, 3.0)


def reduction_samples(
    floats: Interval = _REAL, *, empty_axes: tuple[Axes, ...] = ((0,), (1,), (0, 1))
) -> Any:
    """Samples over shapes, axes and `keepdims`; floats are drawn from `floats`.

    `empty_axes` are the axes reduced of an operand of shape (0, 3).
    """

    def samples(rng: np.random.Generator, dtype: DType) -> Iterator[Sample]:
        interval = floats if dtype.kind == "f" else _REAL

        def case(shape: Shape, axes: Axes, keepdims: bool = False, kind: str = "plain") -> Sample:
            x = draw(rng, dtype, shape, *interval)
            return Sample((strided(x) if kind == "strided" else x,),
                          {"axes": axes, "keepdims": keepdims}, kind)  # fmt: skip

        yield case((3, 4), (0, 1))
        yield case((3, 4), (0,))
        yield case((3, 4), (1,), True)
        yield case((2, 3, 4), (0, 2))
        yield case((2, 3, 4), (1,), True)
        yield case((3, 1, 5), ())
        yield case((5, 1), (1,))
        yield case((), (), False, "scalar")
        for axes in empty_axes:
            yield case((0, 3), axes, False, "empty")
        yield case((3, 5), (1,), False, "strided")
        yield case((3, 5, 2), (0, 1), True, "strided")
        yield case((70, 150), (1,), False, "large")
        yield case((70, 150), (0,), False, "large")
        yield case((70, 150), (0, 1), False, "large")

    return samples


def _batch(op: Primitive) -> Callable[..., Any]:
    def rule(size: int, batched: tuple[bool, ...], x: Any, *, axes: Axes, keepdims: bool) -> Any:
        return bind(op, (x,), {"axes": tuple(a + 1 for a in axes), "keepdims": keepdims})

    return rule


_OUT_OF_RANGE = Refusal(
    (np.zeros((2, 3)),), {"axes": (2,)}, DimensionError, "Dimension out of range"
)
_TWICE = Refusal((np.zeros((2, 3)),), {"axes": (1, -1)}, ShapeError, "dim 1 appears multiple times")


def reduction(name: str, **record: Any) -> Primitive:
    """Declare a reduction over `axes` with `keepdims`."""
    made: Primitive
    record.setdefault("normalize", normalize_axes)
    record.setdefault("shape", reduced_shape)
    record.setdefault("samples", reduction_samples())
    record["refusals"] = (_OUT_OF_RANGE, _TWICE, *record.get("refusals", ()))
    made = primitive(
        name, args=("x",), params=("axes", "keepdims"), family="reduction", promotion=NUMERIC,
        batch=lambda *a, **k: _batch(made)(*a, **k), source="definition", **record,
    )  # fmt: skip
    return made


# ---- sums and products --------------------------------------------------------------------------


def _sum_dtype(x: TensorType, **params: Any) -> DType:
    return dtypes.int64 if x.dtype.category < 2 else x.dtype


def _accumulator(x: np.ndarray) -> type:
    return np.int64 if x.dtype.kind in "biu" else np.float64


_add: Callable[..., np.ndarray] = np.add.reduce  # what np.sum comes to
_multiply: Callable[..., np.ndarray] = np.multiply.reduce


def _eager_sum(x: np.ndarray, *, axes: Axes, keepdims: bool) -> np.ndarray:
    """Sum with a float64 accumulator (int64 for integers), rounded once at the end."""
    return _add(x, axis=axes, dtype=_accumulator(x), keepdims=keepdims)


def _bound_sum(types: Sequence[TensorType], params: Mapping[str, Any]) -> Callable[..., Any]:
    kind = np.int64 if types[0].dtype.category < 2 else np.float64
    return partial(_add, axis=params["axes"], dtype=kind, keepdims=params["keepdims"])


_eager_sum.bind = _bound_sum  # type: ignore[attr-defined]


def _eager_prod(x: np.ndarray, *, axes: Axes, keepdims: bool) -> np.ndarray:
    """Product with a float64 accumulator (int64 for integers), rounded once at the end."""
    return _multiply(x, axis=axes, dtype=_accumulator(x), keepdims=keepdims)


def products_of_others(x: Any, axes: Axes) -> Any:
    """For each element, the product of the other elements of its slice: d prod / d x.

    A balanced tree, so no division: zeros, however many, and further derivatives come out right.
    About three multiplications per element. Going up, each level holds products of pairs; going
    down, an element's others are its parent's others times its sibling. See Note [Product tree].
    """
    mul, slice_, pad, flip = get("mul"), get("slice"), get("pad"), get("flip")
    dtype = type_of(x).dtype
    order = tuple(i for i in range(len(x.shape)) if i not in axes) + axes
    width = prod(x.shape[a] for a in axes)
    rows = prod(x.shape[i] for i in range(len(x.shape)) if i not in axes)
    if width < 2 or rows == 0:
        return get("add")(filled_like(x, 1.0), zero_of(x))
    level = reshape(permute(x, axes=order), shape=(rows, width))
    if dtype.itemsize == 2:
        level = get("cast")(level, dtype=dtypes.float32)
    pairs, widths = [], []
    while width > 1:
        widths.append(width)
        if width % 2:
            level = pad(level, padding=((0, 0, 0), (0, 1, 0)), value=1)
            width += 1
        pairs.append(reshape(level, shape=(rows, width // 2, 2)))
        left = slice_(level, start=(0, 0), stop=(rows, width), step=(1, 2))
        right = slice_(level, start=(0, 1), stop=(rows, width), step=(1, 2))
        level, width = mul(left, right), width // 2
    others: Any = None
    for pair, size in zip(reversed(pairs), reversed(widths), strict=True):
        sibling = flip(pair, axes=(2,))
        parts = (
            sibling if others is None else mul(reshape(others, shape=(*others.shape, 1)), sibling)
        )
        others = reshape(parts, shape=(rows, pair.shape[1] * 2))
        if others.shape[1] != size:
            others = slice_(others, start=(0, 0), stop=(rows, size), step=(1, 1))
    if dtype.itemsize == 2:
        others = get("cast")(others, dtype=dtype)
    inverse = tuple(sorted(range(len(order)), key=order.__getitem__))
    others = reshape(others, shape=tuple(x.shape[a] for a in order))
    return permute(others, axes=inverse)


# Note [Product tree]: for x = (a, b, c, d), going up: (a, b, c, d), (ab, cd), abcd.
# Going down: others of (ab, cd) are (cd, ab); others of (a, b, c, d) are
# (cd*b, cd*a, ab*d, ab*c). Dividing abcd by a instead would give NaN where a is 0.


def _prod_tangent(dx: Any, out: Any, x: Any, *, axes: Axes, keepdims: bool) -> Any:
    moved = get("mul")(dx, products_of_others(x, axes))
    return reduce_sum(moved, axes=axes, keepdims=keepdims)


reduce_sum = reduction(
    "reduce_sum", dtype=_sum_dtype, eager=_eager_sum,
    doc="Sum over axes; float types accumulate in float64, integers and bool in int64. Empty: 0.",
    vjp=(lambda ct, out, x, *, axes, keepdims: spread(ct, x, axes, keepdims),), jvp=(LINEAR,),
    backward_name=lambda p: "SumBackward1" if p.get("keepdims") else "SumBackward0", ulp=1,
)  # fmt: skip

reduce_prod = reduction(
    "reduce_prod", dtype=_sum_dtype, eager=_eager_prod,
    doc="Product over axes; floats accumulate in float64, integers and bool in int64. Empty: 1.",
    vjp=(lambda ct, out, x, *, axes, keepdims: get("mul")(
        spread(ct, x, axes, keepdims), products_of_others(x, axes)),),
    jvp=(_prod_tangent,), samples=reduction_samples((0.95, 1.05)), ulp=256,
    backward_name=lambda p: "ProdBackward1" if p.get("keepdims") else "ProdBackward0",
)  # fmt: skip

# ---- extremes -----------------------------------------------------------------------------------


def refuse_empty(public: str, x: TensorType, axes: Axes) -> None:
    """Refuse to reduce an axis of size 0 where the reduction has no neutral element.

    Raises:
        DimensionError: some axis of `axes` has size 0 (PyTorch's text).
    """
    for a in axes:
        if x.shape[a] == 0:
            raise DimensionError(f"{public}(): Expected reduction dim {a} to have non-zero size.")


def _normalize_extreme(public: str) -> Callable[..., dict[str, Any]]:
    def normalize(types: Sequence[TensorType], params: Mapping[str, Any]) -> dict[str, Any]:
        if params.get("axes") is None and types[0].size == 0:
            raise ShapeError(
                f"{public}(): Expected reduction dim to be specified for input.numel() == 0. "
                "Specify the reduction dim with the 'dim' argument."
            )
        return normalize_axes(types, params)

    return normalize


def _ties(out: Any, x: Any, axes: Axes, keepdims: bool) -> Any:
    """1 where an element equals the extreme of its slice, else 0, in the dtype of `x`."""
    equal = get("equal")(x, spread(out, x, axes, keepdims))
    return get("cast")(equal, dtype=type_of(x).dtype)


def _extreme_cotangent(ct: Any, out: Any, x: Any, *, axes: Axes, keepdims: bool) -> Any:
    """Equal shares for ties. A slice with a NaN has no ties: 0/0, so all its gradients are NaN."""
    ties = _ties(out, x, axes, keepdims)
    count = reduce_sum(ties, axes=axes, keepdims=True)
    return get("div")(get("mul")(spread(ct, x, axes, keepdims), ties), count)


def _extreme_tangent(dx: Any, out: Any, x: Any, *, axes: Axes, keepdims: bool) -> Any:
    ties = _ties(out, x, axes, keepdims)
    total = reduce_sum(get("mul")(dx, ties), axes=axes, keepdims=keepdims)
    return get("div")(total, reduce_sum(ties, axes=axes, keepdims=keepdims))


def ordered(x: np.ndarray) -> np.ndarray:
    """`x`, bfloat16 widened to float32: NumPy's own comparisons know where NaN belongs."""
    return x.astype(np.float32) if x.dtype.kind == "V" else x


def extreme(name: str, public: str, kernel: Any, backward_name: str) -> Primitive:
    """Declare a maximum or minimum over axes."""

    def shape(x: TensorType, *, axes: Axes, keepdims: bool) -> Shape:
        refuse_empty(public, x, axes)
        return reduced_shape(x, axes=axes, keepdims=keepdims)

    nothing = np.zeros((0, 3))
    return reduction(
        name, shape=shape, dtype=same_dtype(0), normalize=_normalize_extreme(public),
        eager=lambda x, *, axes, keepdims: kernel(ordered(x), axis=axes, keepdims=keepdims),
        vjp=(_extreme_cotangent,), jvp=(_extreme_tangent,), backward_name=backward_name,
        samples=reduction_samples(empty_axes=((1,),)),
        refusals=(
            Refusal((nothing,), {}, ShapeError,
                    rf"{public}\(\): Expected reduction dim to be specified for input"),
            Refusal((nothing,), {"axes": (0,)}, DimensionError,
                    rf"{public}\(\): Expected reduction dim 0 to have non-zero size\."),
        ),
        doc=f"{public} over axes; a NaN wins; the gradient is shared equally among ties.",
    )  # fmt: skip


reduce_max = extreme("reduce_max", "max", np.maximum.reduce, "AmaxBackward0")
reduce_min = extreme("reduce_min", "min", np.minimum.reduce, "AminBackward0")

# ---- logical ------------------------------------------------------------------------------------

reduce_any = reduction(
    "reduce_any", dtype=always(dtypes.bool_), vjp=ZERO, jvp=ZERO,
    eager=lambda x, *, axes, keepdims: np.any(x != 0, axis=axes, keepdims=keepdims),
    doc="True where some element over the axes is not zero; NaN is not zero. Empty: False.",
)  # fmt: skip

reduce_all = reduction(
    "reduce_all", dtype=always(dtypes.bool_), vjp=ZERO, jvp=ZERO,
    eager=lambda x, *, axes, keepdims: np.all(x != 0, axis=axes, keepdims=keepdims),
    doc="True where no element over the axes is zero. Empty: True.",
)  # fmt: skip
