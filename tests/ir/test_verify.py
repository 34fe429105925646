"""The verifier: each kind of breakage is found, with the pass and the nodes around it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tracegrad.ir import dtypes, ops
from tracegrad.ir.errors import GraphError
from tracegrad.ir.graph import Graph, GraphBuilder, Value
from tracegrad.ir.location import Location
from tracegrad.ir.primitive import Primitive
from tracegrad.ir.types import TensorType
from tracegrad.ir.verify import verify

F = dtypes.float32


@pytest.fixture
def graph() -> Graph:
    """mul, reduce_sum, exp."""
    builder = GraphBuilder("loss", Location("model.py", 41))
    x, w = (builder.input(TensorType((2, 3), F), name) for name in "xw")
    with builder:
        y = ops.exp(ops.reduce_sum(ops.mul(x, w), axes=(1,)))
    return builder.finish([y])


def changed(graph: Graph, position: int, **changes: Any) -> Graph:
    nodes = list(graph.nodes)
    nodes[position] = replace(nodes[position], **changes)
    return graph.replace(nodes=tuple(nodes))


def test_a_good_graph_is_returned(graph: Graph) -> None:
    assert verify(graph) is graph


def test_the_message_names_the_pass_and_shows_the_surroundings(graph: Graph) -> None:
    with pytest.raises(GraphError) as caught:
        verify(graph.replace(nodes=graph.nodes[:1] + graph.nodes[2:]), after="dce")
    assert str(caught.value) == (
        "graph loss is broken after dce, at node 1: "
        "operand 0 of exp is not defined before this node\n"
        "    t0 = mul(x, w)  # float32[2, 3]  model.py:41\n"
        "  > t1 = exp(undefined)  # float32[2]  model.py:41"
    )


def refuses(graph: Graph, match: str) -> None:
    with pytest.raises(GraphError, match=match):
        verify(graph)


def test_wrong_order(graph: Graph) -> None:
    refuses(graph.replace(nodes=graph.nodes[::-1]), "at node 0: operand 0 of exp is not defined")


def test_value_defined_twice(graph: Graph) -> None:
    refuses(graph.replace(nodes=(*graph.nodes, graph.nodes[0])),
            r"at node 3: the result of mul is already defined \(single assignment\)")  # fmt: skip


def test_input_defined_by_a_node(graph: Graph) -> None:
    refuses(changed(graph, 0, out=graph.inputs[0]), "result of mul is already defined")


def test_input_listed_twice(graph: Graph) -> None:
    refuses(graph.replace(inputs=graph.inputs[:1] * 2), "input 1 is listed twice")


@pytest.mark.parametrize(
    "kind", [TensorType((3,), F), TensorType((2,), dtypes.float64), TensorType((2,), F, "cuda:0")]
)
def test_stored_type_differs_from_the_rule(graph: Graph, kind: TensorType) -> None:
    refuses(changed(graph, 2, out=Value(kind)), r"exp must yield float32\[2\], the node says")


def test_operands_that_the_primitive_refuses(graph: Graph) -> None:
    narrow = Value(TensorType((4,), F), "narrow")
    broken = changed(graph, 0, inputs=(graph.inputs[0], narrow))
    refuses(broken.replace(inputs=(*graph.inputs, narrow)), "mul refuses its operands: The size of")


def test_wrong_number_of_operands(graph: Graph) -> None:
    refuses(changed(graph, 0, inputs=graph.inputs[:1]), r"mul takes 2 operand\(s\), the node has 1")


def test_parameters_missing_or_unknown(graph: Graph) -> None:
    refuses(changed(graph, 1, params={"axes": (1,)}),
            r"reduce_sum has parameters \['axes', 'keepdims'\], the node \['axes'\]")  # fmt: skip
    refuses(
        changed(graph, 0, params={"axes": (1,)}), r"mul has parameters \[\], the node \['axes'\]"
    )


def test_parameter_that_cannot_be_hashed(graph: Graph) -> None:
    refuses(changed(graph, 1, params={"axes": [1], "keepdims": False}),
            r"parameter axes of reduce_sum is not hashable: \[1\]")  # fmt: skip


def test_output_that_nothing_yields(graph: Graph) -> None:
    refuses(graph.replace(outputs=(Value(TensorType((), F)),)), "output 0 is defined by no node")


def test_primitive_that_is_not_in_the_table(graph: Graph) -> None:
    imposter: Primitive = replace(graph.nodes[0].primitive)
    refuses(
        changed(graph, 0, primitive=imposter), "<primitive mul> is not a primitive of the table"
    )
