"""The interpreter: results, checks of the inputs, memory, and inlining."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from tracegrad.ir import dtypes, ops
from tracegrad.ir.errors import DTypeError, OperandError, ShapeError
from tracegrad.ir.evaluate import evaluate
from tracegrad.ir.graph import Graph, GraphBuilder
from tracegrad.ir.location import Location
from tracegrad.ir.types import TensorType

F = dtypes.float32


def affine() -> Graph:
    builder = GraphBuilder("affine", Location("model.py", 3))
    x = builder.input(TensorType((2, 3), F), "x")
    b = builder.input(TensorType((3,), F))
    with builder:
        y = ops.add(ops.mul(x, 2.0), b)
    return builder.finish([y, x])


X, B = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(3, np.float32)


def test_outputs_in_order() -> None:
    y, x = evaluate(affine(), [X, B])
    np.testing.assert_array_equal(y, 2 * X + B)
    assert x is X and y.dtype == np.float32


@pytest.mark.parametrize(
    ("inputs", "error", "match"),
    [
        ([X], OperandError,
         r"affine: takes 2 input\(s\), got 1; expected float32\[2, 3\], float32\[3\]"),
        ([X.T, B], ShapeError, r"affine: input 0 \(x\) must have shape \(2, 3\), got \(3, 2\)"),
        ([X, B.astype(np.float64)], DTypeError,
         r"input 1 must have dtype float32, got float64; cast it with .astype\('float32'\)"),
        ([X, [1, 1, 1]], OperandError, "input 1 must be an array or a tensor .* got list"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit(inputs: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        evaluate(affine(), inputs)


def test_memory_is_that_of_the_values_alive() -> None:
    builder = GraphBuilder("chain")
    x = y = builder.input(TensorType((250_000,), F), "x")
    with builder:
        for _ in range(40):
            y = ops.mul(y, 1.5)
    graph = builder.finish([y])
    array = np.ones(250_000, np.float32)
    tracemalloc.start()
    evaluate(graph, [array])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert x.type.nbytes * 2 <= peak < x.type.nbytes * 4  # two alive, not forty


def test_inlining_appends_to_the_active_builder_with_the_source_lines() -> None:
    outer = GraphBuilder("outer", Location("outer.py", 1))
    values = [outer.input(v.type) for v in affine().inputs]
    with outer:
        y, x = evaluate(affine(), values)
        z = ops.neg(y)
    graph = outer.finish([z])
    assert x is values[0]
    assert [str(n.location) for n in graph.nodes] == ["model.py:3"] * 3 + ["outer.py:1"]
    np.testing.assert_array_equal(evaluate(graph, [X, B])[0], -(2 * X + B))


def test_arrays_are_computed_even_while_a_builder_is_active() -> None:
    with GraphBuilder("other") as other:
        y, _ = evaluate(affine(), [X, B])
    assert isinstance(y, np.ndarray) and not other.nodes


def test_a_graph_of_constants_needs_no_inputs() -> None:
    builder = GraphBuilder("two")
    with builder:
        two = ops.add(builder.constant(1, F), 1.0)
    (found,) = evaluate(builder.finish([two]), [])
    assert found.shape == () and found == 2


def test_numpy_scalars_among_arrays_keep_their_dtype() -> None:
    """NumPy gives scalars for arithmetic on 0-d arrays; they are values, not weak numbers."""
    x = np.asarray(1 / 3)
    made = ops.exp(x - np.asarray(0.0))
    assert made.dtype == np.float64
    assert made == np.exp(1 / 3)
    assert ops.mul(np.float64(1 / 3), np.float32(2)).dtype == np.float64
    assert ops.mul(np.ones(3, np.float32), 2.5).dtype == np.float32
