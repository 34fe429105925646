"""Values without operands: constants and counters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tracegrad.ir.dtypes import DType
from tracegrad.ir.primitive import NO_PROMOTION, Sample, primitive
from tracegrad.ir.types import Shape


def _constant_samples(rng: np.random.Generator, dtype: DType) -> Iterator[Sample]:
    for value in (0, 1) if dtype.kind in "bu" else (0, -3, 7):
        plain = dtype.numpy.type(value).item()
        yield Sample((), {"value": plain, "dtype": dtype}, "scalar")


def _iota_samples(rng: np.random.Generator, dtype: DType) -> Iterator[Sample]:
    if dtype.kind == "b":
        return
    for kind, shape, axis in (("plain", (3, 4), 1), ("plain", (3, 4), 0), ("empty", (0, 2), 0)):
        yield Sample((), {"shape": shape, "axis": axis, "dtype": dtype}, kind)


def _iota(*, shape: Shape, axis: int, dtype: DType) -> np.ndarray:
    along = [1] * len(shape)
    along[axis] = shape[axis]
    return np.broadcast_to(np.arange(shape[axis]).astype(dtype.numpy).reshape(along), shape)


def _batch_nullary(size: int, batched: tuple[bool, ...], **params: Any) -> Any:
    raise AssertionError("an operation without operands is never batched")


constant = primitive(
    "constant", args=(), params=("value", "dtype"), family="creation",
    doc="A 0-d value known at capture.",
    shape=lambda *, value, dtype: (), dtype=lambda *, value, dtype: dtype,
    eager=lambda *, value, dtype: np.asarray(value, dtype.numpy),
    vjp=(), jvp=(), batch=_batch_nullary, promotion=NO_PROMOTION,
    samples=_constant_samples, cost=0, source="definition",
)  # fmt: skip

iota = primitive(
    "iota", args=(), params=("shape", "axis", "dtype"), family="creation",
    doc="The index along `axis`, in every element of `shape`.",
    shape=lambda *, shape, axis, dtype: shape, dtype=lambda *, shape, axis, dtype: dtype,
    eager=_iota, vjp=(), jvp=(), batch=_batch_nullary, promotion=NO_PROMOTION,
    samples=_iota_samples, source="definition",
)  # fmt: skip
