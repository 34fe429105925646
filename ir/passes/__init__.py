"""Passes: pure functions `Graph -> Graph`. Start reading at `optimize`.

`simplify` comes first, because it makes nodes equal that were not; then `eliminate_common_nodes`,
because one of two equal nodes must go before either can die; then `eliminate_dead_nodes`, because
the two before leave behind what they replaced. A merge may let another rewrite fire
(`maximum(a, b)` with a and b found equal), so the three repeat until nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable

from tracegrad.ir.graph import Graph
from tracegrad.ir.passes.cse import eliminate_common_nodes
from tracegrad.ir.passes.dce import eliminate_dead_nodes
from tracegrad.ir.passes.simplify import simplify
from tracegrad.ir.verify import verify

Pass = Callable[[Graph], Graph]

PIPELINE: tuple[Pass, ...] = (simplify, eliminate_common_nodes, eliminate_dead_nodes)
"""The passes of `optimize`, in order."""

_ROUNDS = 20  # each round that changes something removes a node or shortens one: two are usual


def optimize(graph: Graph, check: bool = False) -> Graph:
    """Run the pipeline until nothing changes.

    Args:
        graph: any graph that `verify` accepts.
        check: run `verify` on the graph given and after each pass.
    Returns:
        A graph with the same inputs that computes the same outputs, bit for bit.
    Raises:
        GraphError: a pass broke an invariant (only with `check`).
    """
    if check:
        verify(graph, after="capture")
    for _ in range(_ROUNDS):
        before = graph
        for run in PIPELINE:
            graph = run(graph)
            if check:
                verify(graph, after=run.__name__)
        if graph.nodes == before.nodes and graph.outputs == before.outputs:
            break
    return graph
