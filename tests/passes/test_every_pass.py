"""What holds for every pass, on random graphs over the whole table."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from random_graphs import CONNECTED, SAMPLED, assert_same_bits, graphs

from tracegrad.ir.errors import DivisionByZeroError
from tracegrad.ir.evaluate import evaluate
from tracegrad.ir.graph import Graph
from tracegrad.ir.passes import PIPELINE, optimize
from tracegrad.ir.primitive import TABLE
from tracegrad.ir.printer import format_graph, namespace
from tracegrad.ir.verify import verify

Drawn = tuple[Graph, list[np.ndarray]]
quick = settings(
    max_examples=400, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)  # fmt: skip


def expected_of(graph: Graph, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """The outputs; graphs that divide an integer by zero are not for these tests."""
    try:
        return evaluate(graph, arrays)
    except DivisionByZeroError:
        assume(False)
        raise


def structure(graph: Graph) -> list[str]:
    return format_graph(graph).splitlines()


@pytest.mark.parametrize("run", [*PIPELINE, optimize], ids=lambda f: f.__name__)
@quick
@given(drawn=graphs())
def test_pass_keeps_every_bit_and_is_idempotent(
    run: Callable[[Graph], Graph], drawn: Drawn
) -> None:
    graph, arrays = drawn
    expected = expected_of(graph, arrays)
    once = verify(run(graph), after=run.__name__)
    assert once.inputs == graph.inputs
    assert_same_bits(evaluate(once, arrays), expected)
    twice = run(once)
    assert structure(twice) == structure(once)


@quick
@given(drawn=graphs())
def test_printed_graph_runs_to_the_same_bits(drawn: Drawn) -> None:
    graph, arrays = drawn
    expected = expected_of(graph, arrays)
    for printed in (graph, optimize(graph, check=True)):
        scope = namespace()
        exec(format_graph(printed), scope)
        assert_same_bits(scope["drawn"](*arrays), expected)


@quick
@given(drawn=graphs())
def test_inlining_a_graph_keeps_every_bit(drawn: Drawn) -> None:
    from tracegrad.ir.graph import GraphBuilder

    graph, arrays = drawn
    expected = expected_of(graph, arrays)
    builder = GraphBuilder("outer")
    values = [builder.input(v.type) for v in graph.inputs]
    with builder:
        outputs = evaluate(graph, values)
    inlined = verify(builder.finish(outputs), after="inlining")
    assert [n.primitive for n in inlined.nodes] == [n.primitive for n in graph.nodes]
    assert_same_bits(evaluate(inlined, arrays), expected)


def test_the_strategy_draws_every_primitive_of_the_table() -> None:
    seen: set[str] = set()

    @settings(quick, max_examples=300)
    @given(drawn=graphs(nodes=40))
    def collect(drawn: Drawn) -> None:
        seen.update(node.primitive.name for node in drawn[0].nodes)

    collect()
    assert {op.name for op in (*CONNECTED, *SAMPLED)} | {"constant"} == set(TABLE) - {"iota"}
    assert set(TABLE) - seen <= {"iota"}
