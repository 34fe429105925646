"""Common subexpressions and dead nodes, and the pipeline that runs them with `simplify`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tracegrad.ir import dtypes, ops
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import GraphError
from tracegrad.ir.graph import Graph, GraphBuilder, Value
from tracegrad.ir.location import Location
from tracegrad.ir.passes import eliminate_common_nodes, eliminate_dead_nodes, optimize
from tracegrad.ir.primitive import TABLE
from tracegrad.ir.types import TensorType
from tracegrad.ir.verify import verify

F, I64 = dtypes.float32, dtypes.int64


def graph_of(build: Callable[[Value, Value], list[Any]], dtype: DType = F) -> Graph:
    builder = GraphBuilder("g")
    x, y = (builder.input(TensorType((3,), dtype), name) for name in "xy")
    with builder:
        outputs = build(x, y)
    return builder.finish(outputs)


def merged(graph: Graph) -> bool:
    return verify(eliminate_common_nodes(graph)).outputs[0] is graph.outputs[0] and (
        len(set(eliminate_common_nodes(graph).outputs)) == 1
    )


@pytest.mark.parametrize("name", ["add", "mul", "equal", "not_equal", "logical_and", "logical_or"])
def test_cse_merges_commuted_operands(name: str) -> None:
    assert merged(graph_of(lambda x, y: [TABLE[name](x, y), TABLE[name](y, x)]))


@pytest.mark.parametrize(
    "name", ["sub", "div", "pow", "less", "atan2", "maximum", "minimum", "hypot"]
)
def test_cse_leaves_operands_whose_order_matters(name: str) -> None:
    assert not merged(graph_of(lambda x, y: [TABLE[name](x, y), TABLE[name](y, x)]))


@pytest.mark.parametrize("name", ["maximum", "minimum", "bitwise_and", "bitwise_or", "bitwise_xor"])
def test_cse_merges_commuted_integers(name: str) -> None:
    assert merged(graph_of(lambda x, y: [TABLE[name](x, y), TABLE[name](y, x)], I64))


@pytest.mark.parametrize(
    ("a", "b"),
    [((0.0, F), (-0.0, F)), ((1, I64), (True, dtypes.bool_)), ((1.0, F), (1.0, dtypes.float64))],
)  # fmt: skip
def test_cse_tells_constants_apart_that_compare_equal(a: Any, b: Any) -> None:
    def build(x: Value, y: Value) -> list[Any]:
        return [GraphBuilder.current().constant(*c) for c in (a, b)]

    graph = graph_of(build)
    assert eliminate_common_nodes(graph) is graph


def test_cse_merges_equal_nans_and_equal_constants() -> None:
    def build(x: Value, y: Value) -> list[Any]:
        builder = GraphBuilder.current()
        return [x + builder.constant(float("nan"), F), x + builder.constant(float("nan"), F)]

    assert merged(graph_of(build))


def test_cse_tells_parameters_apart() -> None:
    graph = graph_of(lambda x, y: [ops.cast(x, dtype=I64), ops.cast(x, dtype=dtypes.int32)])
    assert eliminate_common_nodes(graph) is graph


def test_cse_follows_chains_and_keeps_the_earlier_name_and_line() -> None:
    builder = GraphBuilder("g")
    x = builder.input(TensorType((3,), F), "x")
    with builder:
        builder.location = Location("a.py", 1)
        first = ops.sin(builder.append(TABLE["exp"], [x], {}, name="early"))
        builder.location = Location("a.py", 2)
        second = ops.sin(builder.append(TABLE["exp"], [x], {}, name="late"))
        total = first + second
    graph = verify(eliminate_common_nodes(builder.finish([total])))
    assert [n.primitive.name for n in graph.nodes] == ["exp", "sin", "add"]
    assert graph.nodes[0].out.name == "early" and str(graph.nodes[1].location) == "a.py:1"
    assert graph.nodes[2].inputs == (first, first)


def test_random_numbers_of_one_state_are_one_node_and_of_two_states_two() -> None:
    builder = GraphBuilder("g")
    states = [builder.input(TensorType((2,), I64), name) for name in "st"]
    with builder:
        a, b, c = (ops.random_bits(s, shape=(3,)) for s in (states[0], states[0], states[1]))
    graph = eliminate_common_nodes(builder.finish([a, b, c]))
    assert graph.outputs == (a, a, c)


def test_dce_drops_chains_that_no_output_reads_and_keeps_inputs() -> None:
    graph = graph_of(lambda x, y: [ops.exp(x), ops.sin(ops.cos(y))])
    live = verify(eliminate_dead_nodes(graph.replace(outputs=graph.outputs[:1])))
    assert [n.primitive.name for n in live.nodes] == ["exp"]
    assert live.inputs == graph.inputs
    assert eliminate_dead_nodes(live).nodes == live.nodes


def test_optimize_repeats_until_a_merge_has_let_a_rewrite_fire() -> None:
    graph = graph_of(lambda x, y: [ops.maximum(ops.exp(x * y), ops.exp(y * x))])
    names = [n.primitive.name for n in optimize(graph, check=True).nodes]
    assert names == ["mul", "exp"]


def test_optimize_with_check_names_what_came_in_broken() -> None:
    graph = graph_of(lambda x, y: [ops.exp(x)])
    with pytest.raises(GraphError, match="graph g is broken after capture: output 0"):
        optimize(graph.replace(nodes=()), check=True)


def test_a_graph_without_nodes_passes_through() -> None:
    graph = graph_of(lambda x, y: [y, x, y])
    assert optimize(graph, check=True).outputs == graph.outputs
