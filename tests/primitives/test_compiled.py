"""Every primitive of the table, compiled: generated C against the eager kernel.

One translation unit per primitive and dtype holds all its samples as independent outputs, so the
scheduler, the lowering and the records' C expressions are all in the path. Start reading at
`test_compiled_equals_eager`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest

from tracegrad.codegen.unit import contiguous_inputs
from tracegrad.ir import dtypes
from tracegrad.ir.graph import Graph, GraphBuilder, Value
from tracegrad.ir.ops import TABLE
from tracegrad.ir.primitive import Primitive, bind, evaluate_primitive, promoted, type_of
from tracegrad.ir.types import Shape
from tracegrad.runtime import executable
from tracegrad.runtime.kernels import pointer

DTYPES = (dtypes.float32, dtypes.float64, dtypes.float16, dtypes.bfloat16, dtypes.int64, dtypes.int8,
          dtypes.uint8, dtypes.bool_)  # fmt: skip
EXACT_KINDS = "biu"


def samples(op: Primitive, dtype: dtypes.DType) -> list[Any]:
    """The samples of a primitive with operands of a dtype that it accepts."""
    found = []
    for s in op.samples(np.random.default_rng(7), dtype):
        params = dict(s.params)
        if op.normalize is not None:
            params = dict(op.normalize([type_of(np.asarray(x)) for x in s.operands], params))
        found.append((promoted(op, s.operands), params))
    return found


CASES = [
    (op, dtype) for op in TABLE.values() for dtype in DTYPES
    if dtype in op.dtypes and samples(op, dtype)
]  # fmt: skip


def magnitude(op: Primitive, operands: Any, params: Any, want: np.ndarray) -> np.ndarray:
    """The scale on which rounding errors of a result are measured.

    Sums round in the order in which they are taken, and cancel: their errors are on the scale of
    the same sum over magnitudes.
    """
    if op.name == "reduce_sum" or op.family in ("contraction", "convolution"):
        return evaluate_primitive(op, [np.abs(x) for x in operands], params)
    return want


def ulp_distance(got: np.ndarray, want: np.ndarray, scale: np.ndarray) -> float:
    """The largest difference in units in the last place of `scale`."""
    dtype = dtypes.from_numpy(want.dtype)
    eps = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
    tiny = {"float64": 2.0**-1022, "float32": 2.0**-126, "float16": 2.0**-14, "bfloat16": 2.0**-126}
    a, b = got.astype(np.float64), want.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(all="ignore"):
        exponent = np.floor(np.log2(np.maximum(np.abs(scale.astype(np.float64)), tiny[dtype.name])))
        distance = np.abs(a - b) / (eps[dtype.name] * 2.0**exponent)
    return float(np.max(np.where(same, 0.0, distance), initial=0.0))


class Together(NamedTuple):
    """All samples of a primitive and dtype: a graph of independent outputs, and what each should be.

    `wanted` has pairs of a result and the scale on which its rounding errors are measured.
    """

    graph: Graph
    strides: dict[Value, Shape]
    arrays: list[np.ndarray]
    wanted: list[tuple[np.ndarray, np.ndarray]]


def together(op: Primitive, dtype: dtypes.DType) -> Together:
    """The samples as one graph; what has to be contiguous is."""
    builder = GraphBuilder(op.name)
    outputs, arrays, wanted, strides = [], [], [], {}
    with builder:
        for operands, params in samples(op, dtype):
            values = []
            for x in operands:
                array = np.asarray(x)
                value = builder.input(type_of(array))
                values.append(value)
                arrays.append(array)
                if not array.flags.c_contiguous:
                    strides[value] = tuple(s // array.itemsize for s in array.strides)
            outputs.append(bind(op, tuple(values), params))
            want = evaluate_primitive(op, operands, params)
            wanted.append((want, magnitude(op, operands, params, want)))
    graph = builder.finish(outputs)
    plain = contiguous_inputs(graph)
    for k, value in enumerate(graph.inputs):
        if value in plain and value in strides:
            del strides[value]
            arrays[k] = np.ascontiguousarray(arrays[k])
    return Together(graph, strides, arrays, wanted)


def assert_wanted(
    results: Sequence[np.ndarray], wanted: Sequence[tuple[np.ndarray, np.ndarray]], ulp: int
) -> None:
    """Integers and booleans are equal; floats within `ulp` units in the last place."""
    for got, (want, scale) in zip(results, wanted, strict=True):
        assert got.shape == want.shape
        assert got.dtype == want.dtype
        if dtypes.from_numpy(want.dtype).kind in EXACT_KINDS:
            np.testing.assert_array_equal(got, want)
        else:
            assert ulp_distance(got, want, scale) <= ulp


@pytest.mark.parametrize(("op", "dtype"), CASES, ids=[f"{o.name}-{d.name}" for o, d in CASES])
def test_compiled_equals_eager(op: Primitive, dtype: dtypes.DType) -> None:
    made = together(op, dtype)
    run = executable.build(made.graph, "run", made.strides).call
    assert_wanted(run(*(pointer(a) for a in made.arrays)), made.wanted, op.ulp)
