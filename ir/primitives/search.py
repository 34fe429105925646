"""Where the extreme of a slice stands: `argmax` and `argmin`.

The first occurrence wins, and a NaN counts as the extreme of both. `axis` is None for the position
in the flattened operand. The results are int64 and pass no gradient on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import DimensionError
from tracegrad.ir.primitive import (
    ZERO,
    Primitive,
    Refusal,
    Sample,
    always,
    draw,
    primitive,
    strided,
)
from tracegrad.ir.primitives.movement import reshape
from tracegrad.ir.primitives.reduction import ordered, reduced_shape, refuse_empty
from tracegrad.ir.primitives.support import normal_axis
from tracegrad.ir.types import Shape, TensorType


def _normalize(types: Sequence[TensorType], params: Mapping[str, Any]) -> dict[str, Any]:
    axis = params.get("axis")
    chosen = None if axis is None else normal_axis(axis, types[0].ndim)
    return {"axis": chosen, "keepdims": bool(params.get("keepdims", False))}


def _samples(rng: np.random.Generator, dtype: DType) -> Iterator[Sample]:
    def case(shape: Shape, axis: int | None, keepdims: bool = False, kind: str = "plain") -> Sample:
        x = draw(rng, dtype, shape)
        return Sample(
            (strided(x) if kind == "strided" else x,), {"axis": axis, "keepdims": keepdims}, kind
        )

    yield case((3, 4), None)
    yield case((3, 4), None, True)
    yield case((3, 4), 0)
    yield case((2, 3, 4), 1, True)
    yield case((4, 1), 1)
    yield case((), None, False, "scalar")
    yield case((), 0, True, "scalar")
    yield case((0, 3), 1, False, "empty")
    yield case((3, 5), 1, False, "strided")
    yield case((3, 5), None, False, "strided")
    yield case((70, 150), 1, False, "large")
    yield case((70, 150), 0, False, "large")


def _search(name: str, kernel: Any) -> Primitive:
    """Declare the position of an extreme."""

    def shape(x: TensorType, *, axis: int | None, keepdims: bool) -> Shape:
        if axis is None and x.size == 0:
            raise DimensionError(
                f"{name}(): Expected reduction dim to be specified for input.numel() == 0."
            )
        axes = tuple(range(x.ndim)) if axis is None or x.ndim == 0 else (axis,)
        refuse_empty(name, x, axes)
        return reduced_shape(x, axes=axes, keepdims=keepdims)

    def eager(x: np.ndarray, *, axis: int | None, keepdims: bool) -> np.ndarray:
        return kernel(ordered(x), axis=axis if x.ndim else None, keepdims=keepdims)

    nothing = np.zeros((0, 3))
    return primitive(
        name, args=("x",), params=("axis", "keepdims"), family="reduction",
        shape=shape, dtype=always(dtypes.int64), normalize=_normalize, eager=eager,
        vjp=ZERO, jvp=ZERO, batch=_batch(name), samples=_samples, source="definition",
        refusals=(
            Refusal((np.zeros((2, 3)),), {"axis": 2}, DimensionError, "Dimension out of range"),
            Refusal((nothing,), {}, DimensionError,
                    rf"{name}\(\): Expected reduction dim to be specified"),
            Refusal((nothing,), {"axis": 0}, DimensionError,
                    rf"{name}\(\): Expected reduction dim 0 to have non-zero size"),
        ),
        doc=f"{name} along `axis`, or of the flattened operand where `axis` is None; int64.",
    )  # fmt: skip


def _batch(name: str) -> Callable[..., Any]:
    def rule(
        size: int, batched: tuple[bool, ...], x: Any, *, axis: int | None, keepdims: bool
    ) -> Any:
        apply = argmax if name == "argmax" else argmin
        rest = tuple(x.shape[1:])
        if axis is not None and rest:
            return apply(x, axis=axis + 1, keepdims=keepdims)
        flat = apply(reshape(x, shape=(size, prod(rest))), axis=1, keepdims=False)
        return reshape(flat, shape=(size, *(1 for _ in rest))) if keepdims else flat

    return rule


argmax = _search("argmax", np.argmax)
argmin = _search("argmin", np.argmin)
