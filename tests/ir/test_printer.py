"""Printed graphs: their form, and that promotion does not change the meaning of the text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tracegrad.ir import dtypes, ops
from tracegrad.ir.dtypes import DType
from tracegrad.ir.evaluate import evaluate
from tracegrad.ir.graph import Graph, GraphBuilder
from tracegrad.ir.location import Location
from tracegrad.ir.primitive import TABLE
from tracegrad.ir.printer import format_graph, namespace
from tracegrad.ir.types import TensorType

F = dtypes.float32


def run(graph: Graph, *arrays: Any) -> Any:
    scope = namespace()
    before = set(scope)
    exec(format_graph(graph), scope)
    (name,) = set(scope) - before - {"__builtins__"}
    return scope[name](*arrays)


def test_a_graph_prints_as_python_with_types_and_lines() -> None:
    builder = GraphBuilder("f")
    x = builder.input(TensorType((32, 784), F), "x")
    w = builder.input(TensorType((784,), F), "w")
    with builder:
        builder.location = Location("/home/user/model.py", 40)
        h = ops.mul(ops.add(x, w), 2.0)
        builder.location = Location("/home/user/model.py", 41)
        y = ops.reduce_sum(ops.mul(h, float("inf")), axes=(1,))
    assert str(builder.finish([y])).splitlines() == [
        "def f(x, w):                                          # float32[32, 784], float32[784]",
        "    t0 = add(x, w)                                    # float32[32, 784]  model.py:40",
        "    t1 = mul(t0, 2.0)                                 # float32[32, 784]  model.py:40",
        '    t2 = constant(value=float("inf"), dtype=float32)  # float32[]         model.py:41',
        "    t3 = mul(t1, t2)                                  # float32[32, 784]  model.py:41",
        "    t4 = reduce_sum(t3, axes=(1,), keepdims=False)    # float32[32]       model.py:41",
        "    return t4",
    ]


def test_users_names_stay_and_are_made_unique() -> None:
    builder = GraphBuilder("sin")  # a function of this name would call itself
    names = ["h", "h", "lambda", "sin", "t0", "a b", "", "float32"]
    value = builder.input(TensorType((3,), F), "x")
    with builder:
        for name in names:
            value = builder.append(TABLE["neg"], [value], {}, name=name)
    lines = str(builder.finish([value])).splitlines()
    assert lines[0].startswith("def sin_graph(x):")
    defined = [line.split(" = ")[0].strip() for line in lines[1:-1]]
    assert defined == ["h", "h_1", "t1", "t2", "t0", "t3", "t4", "t5"]


@pytest.mark.parametrize("value", [2.0, 0.1, -0.0, float("nan"), float("-inf"), 1e-45])
@pytest.mark.parametrize("dtype", dtypes.FLOATS)
def test_float_constants_keep_value_and_dtype(dtype: DType, value: float) -> None:
    builder = GraphBuilder("f")
    x = builder.input(TensorType((2,), dtype), "x")
    with builder:
        c = builder.constant(value, dtype)
        outputs = [ops.add(x, c), ops.broadcast(c, shape=(2,)), ops.maximum(c, c), c]
    graph = builder.finish(outputs)
    array = np.array([1, -0.0]).astype(dtype.numpy)
    for found, expected in zip(run(graph, array), evaluate(graph, [array]), strict=True):
        assert found.dtype == expected.dtype and found.shape == expected.shape
        np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))
        np.testing.assert_array_equal(found.astype(float), expected.astype(float))


@pytest.mark.parametrize(
    ("dtype", "text"),
    [(dtypes.int8, "add(x, 3)"), (dtypes.uint8, "add(x, 3)"), (dtypes.bool_, "add(x, True)")],
)
def test_integer_and_bool_constants_print_as_their_kind(dtype: DType, text: str) -> None:
    builder = GraphBuilder("f")
    x = builder.input(TensorType((2,), dtype), "x")
    with builder:
        y = ops.add(x, builder.constant(3, dtype))
    graph = builder.finish([y])
    assert text in str(graph)
    array = np.array([1, 0]).astype(dtype.numpy)
    found = run(graph, array)
    assert found.dtype == dtype.numpy
    np.testing.assert_array_equal(found, evaluate(graph, [array])[0])


def test_constants_of_another_dtype_than_the_call_would_choose_stay_explicit() -> None:
    builder = GraphBuilder("f")
    x = builder.input(TensorType((2,), dtypes.bool_), "x")
    with builder:
        three = builder.constant(3, dtypes.int8)
        y = ops.logical_and(x, three)  # takes no part in promotion
        z = ops.sin(builder.constant(1, dtypes.float64))  # alone it would be the default dtype
    graph = builder.finish([y, z])
    assert "constant(value=3, dtype=int8)" in str(graph)
    assert "constant(value=1.0, dtype=float64)" in str(graph)
    assert run(graph, np.array([True, False]))[1].dtype == np.float64


def test_graphs_without_inputs_or_outputs_print() -> None:
    assert str(GraphBuilder("empty").finish([])) == "def empty():\n    return ()"
    assert str(GraphBuilder("not a name").finish([])).startswith("def graph():")


def test_long_lines_do_not_push_the_comments_away() -> None:
    builder = GraphBuilder("f")
    x = builder.input(TensorType((1,) * 20, F), "x")
    with builder:
        y = ops.neg(ops.permute(x, axes=tuple(range(20))))
    head, long, short, _ = str(builder.finish([y])).splitlines()
    assert long.index("#") > 72 and short.index("#") == head.index("#") < 40
