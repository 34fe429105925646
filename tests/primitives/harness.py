"""What the table-driven tests share: the cases, graphs of one primitive, directional derivatives.

Every test here is made from the table, so a new record is tested without an edit. A case is a
primitive, a dtype that it accepts and a shape class of its samples; samples are seeded by the
primitive's name and the dtype. Start reading at `cases`, then `graph_of`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np
import pytest

from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.evaluate import evaluate
from tracegrad.ir.graph import Graph, GraphBuilder
from tracegrad.ir.ops import TABLE
from tracegrad.ir.primitive import Primitive, Sample, type_of
from tracegrad.ir.verify import verify

SMALL = ("plain", "scalar", "empty", "broadcast", "strided")
"""The shape classes on which derivatives are tested; the large one adds only time."""


def generator(op: Primitive, dtype: DType, stream: int = 0) -> np.random.Generator:
    """The generator of a case: the same in every run and process."""
    return np.random.default_rng([zlib.crc32(f"{op.name} {dtype.name}".encode()), stream])


@lru_cache(maxsize=4)
def samples(op: Primitive, dtype: DType, stream: int = 0) -> tuple[Sample, ...]:
    """All samples of a primitive for a dtype; none where the primitive does not accept it."""
    if dtype not in op.dtypes:
        return ()
    return tuple(op.samples(generator(op, dtype, stream), dtype))


def of_kind(op: Primitive, dtype: DType, kind: str) -> list[Sample]:
    """The samples of one shape class."""
    return [s for s in samples(op, dtype) if s.kind == kind]


@cache
def kinds(op: Primitive, dtype: DType) -> tuple[str, ...]:
    """The shape classes that the samples cover, in order."""
    return tuple(dict.fromkeys(s.kind for s in samples(op, dtype)))


def cases(
    chosen: Iterable[DType] = dtypes.ALL,
    only: Sequence[str] | None = None,
    where: Callable[[Primitive], bool] = lambda op: True,
) -> list[Any]:
    """Test parameters (op, dtype, kind): the table x `chosen` x the shape classes in `only`."""
    return [
        pytest.param(op, dtype, kind, id=f"{op.name}-{dtype.name}-{kind}")
        for op in TABLE.values()
        if where(op)
        for dtype in chosen
        for kind in kinds(op, dtype)
        if only is None or kind in only
    ]


def widest(op: Primitive) -> DType:
    """float64 where the primitive accepts it, else the last dtype with samples."""
    accepted = [d for d in (dtypes.float64, *reversed(dtypes.ALL)) if samples(op, d)]
    assert accepted, f"{op.name} has no samples"
    return accepted[0]


def graph_of(op: Primitive, sample: Sample) -> Graph:
    """The graph that applies `op`, promotion and normalisation included, to a sample's operands."""
    builder = GraphBuilder(op.name)
    inputs = [builder.input(type_of(a), f"x{i}") for i, a in enumerate(arrays(sample))]
    with builder:
        out = op(*inputs, **sample.params)
    return verify(builder.finish([out]))


def arrays(sample: Sample) -> tuple[np.ndarray, ...]:
    """The operands as arrays."""
    return tuple(np.asarray(x) for x in sample.operands)


def floating(sample: Sample) -> tuple[int, ...]:
    """Positions of the operands of floating dtype."""
    return tuple(i for i, x in enumerate(arrays(sample)) if is_floating(x))


def is_floating(x: np.ndarray) -> bool:
    return dtypes.from_numpy(x.dtype).is_floating_point


def directions(rng: np.random.Generator, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """One random direction per input, of its shape and dtype."""
    return [np.asarray(rng.standard_normal(x.shape)).astype(x.dtype) for x in inputs]


def dot(xs: Sequence[np.ndarray], ys: Sequence[np.ndarray]) -> float:
    """The inner product of two lists of arrays, in float64."""
    return float(sum(np.sum(np.float64(x) * np.float64(y)) for x, y in zip(xs, ys, strict=True)))


def magnitude(xs: Sequence[np.ndarray], ys: Sequence[np.ndarray]) -> float:
    """The inner product of the absolute values: the scale of rounding in `dot`."""
    return dot([np.abs(x) for x in xs], [np.abs(y) for y in ys])


def slope(
    graph: Graph, inputs: Sequence[np.ndarray], wrt: Sequence[int], along: Sequence[np.ndarray],
    weights: Sequence[np.ndarray], step: float = 1e-5,
) -> float:  # fmt: skip
    """Directional derivative of <weights, graph(inputs)> by a central difference of fourth order.

    The truncation error is h^4 f^(5) / 30 and rounding adds about 1e-16 / h, so at h = 1e-3 ...
    1e-5 in float64 a correct derivative agrees to 1e-9 or better where f is smooth.
    """

    def at(h: float) -> float:
        moved = list(inputs)
        for i, d in zip(wrt, along, strict=True):
            moved[i] = np.asarray(inputs[i] + h * d)
        return dot(weights, evaluate(graph, moved))

    return (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)
