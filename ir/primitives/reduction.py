"""Reductions over axes. `axes` is a sorted tuple of axes counted from 0; `keepdims` keeps ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import DimensionError
from tracegrad.ir.primitive import LINEAR, NUMERIC, Refusal, Sample, draw, primitive, strided
from tracegrad.ir.primitives.movement import broadcast, reshape
from tracegrad.ir.types import Shape, TensorType


def normal_axis(name: str, axis: int, ndim: int) -> int:
    """`axis` counted from 0.

    Raises:
        DimensionError: out of range (PyTorch's text).
    """
    reach = max(ndim, 1)
    if not -reach <= axis < reach:
        raise DimensionError(
            f"Dimension out of range (expected to be in range of [{-reach}, {reach - 1}], "
            f"but got {axis})"
        )
    return axis % reach


def normalize_axes(types: Sequence[TensorType], params: Mapping[str, Any]) -> dict[str, Any]:
    """Canonical `axes` and `keepdims`: None means all axes, an int means one."""
    ndim = types[0].ndim
    axes = params.get("axes")
    if axes is None:
        chosen = tuple(range(ndim))
    else:
        listed = (axes,) if isinstance(axes, int) else tuple(axes)
        chosen = tuple(sorted(normal_axis("reduce", a, ndim) for a in listed)) if ndim else ()
        if len(set(chosen)) != len(chosen):
            raise DimensionError(f"an axis appears twice in {listed}")
    return {"axes": chosen, "keepdims": bool(params.get("keepdims", False))}


def reduced_shape(x: TensorType, *, axes: tuple[int, ...], keepdims: bool) -> Shape:
    """The shape rule of reductions."""
    if keepdims:
        return tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    return tuple(n for i, n in enumerate(x.shape) if i not in axes)


def spread(reduced: Any, x: Any, axes: tuple[int, ...], keepdims: bool) -> Any:
    """Broadcast a reduced value back over the shape of `x`: the transpose of a sum."""
    if not keepdims:
        kept = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
        reduced = reshape(reduced, shape=kept)
    return broadcast(reduced, shape=x.shape)


def reduction_samples(low: float = -3.0, high: float = 3.0) -> Any:
    """Samples over shapes, axes and `keepdims`."""

    def samples(rng: np.random.Generator, dtype: DType) -> Iterator[Sample]:
        def case(shape: Shape, axes: tuple[int, ...], keepdims: bool = False, kind: str = "plain") -> Sample:
            x = draw(rng, dtype, shape, low, high)
            return Sample((strided(x) if kind == "strided" else x,),
                          {"axes": axes, "keepdims": keepdims}, kind)  # fmt: skip

        yield case((3, 4), (0, 1))
        yield case((3, 4), (0,))
        yield case((3, 4), (1,), True)
        yield case((2, 3, 4), (0, 2))
        yield case((2, 3, 4), (1,), True)
        yield case((), (), False, "scalar")
        yield case((3, 5), (1,), False, "strided")
        yield case((70, 150), (1,), False, "large")
        yield case((70, 150), (0,), False, "large")
        yield case((70, 150), (0, 1), False, "large")

    return samples


def _sum_dtype(x: TensorType, **params: Any) -> DType:
    return dtypes.int64 if x.dtype.category < 2 else x.dtype


def _eager_sum(x: np.ndarray, *, axes: tuple[int, ...], keepdims: bool) -> np.ndarray:
    """Sum with a float64 accumulator (int64 for integers), rounded once at the end."""
    wide = np.float64 if x.dtype.kind not in "biu" else np.int64
    return np.sum(x, axis=axes, keepdims=keepdims, dtype=wide)


def _batch_axes(op_name: str) -> Any:
    def rule(size: int, batched: tuple[bool, ...], x: Any, *, axes: tuple[int, ...], keepdims: bool) -> Any:
        from tracegrad.ir.primitive import TABLE, bind

        return bind(TABLE[op_name], (x,), {"axes": tuple(a + 1 for a in axes), "keepdims": keepdims})

    return rule


reduce_sum = primitive(
    "reduce_sum", args=("x",), params=("axes", "keepdims"), family="reduction",
    doc="Sum over axes; float types accumulate in float64, integers and bool in int64.",
    shape=reduced_shape, dtype=_sum_dtype, normalize=normalize_axes, promotion=NUMERIC,
    eager=_eager_sum,
    vjp=(lambda ct, out, x, *, axes, keepdims: spread(ct, x, axes, keepdims),),
    jvp=(LINEAR,), batch=_batch_axes("reduce_sum"), samples=reduction_samples(),
    refusals=(Refusal((np.zeros((2, 3)),), {"axes": (2,)}, DimensionError, "Dimension out of range"),),
    backward_name=lambda p: "SumBackward1" if p.get("keepdims") else "SumBackward0",
    ulp=1, source="definition",
)  # fmt: skip
