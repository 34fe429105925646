"""Dead code elimination: drop the nodes that no output depends on."""

from __future__ import annotations

from tracegrad.ir.graph import Graph


def eliminate_dead_nodes(graph: Graph) -> Graph:
    """Drop nodes no output depends on. Linear in nodes; idempotent. Needs: topological order.

    Every primitive is a pure function of its operands (random ones of their state), so a node
    without a reader has no effect. Graph inputs stay, read or not: they are the signature.
    """
    live = set(graph.outputs)
    for node in reversed(graph.nodes):
        if node.out in live:
            live.update(node.inputs)
    return graph.replace(nodes=tuple(n for n in graph.nodes if n.out in live))
