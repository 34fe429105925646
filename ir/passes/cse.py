"""Common subexpression elimination: nodes that compute the same value become one node."""

from __future__ import annotations

from collections.abc import Hashable

from tracegrad.ir.graph import Graph, Node, Value, params_key

COMMUTATIVE = frozenset(
    {"add", "mul", "equal", "not_equal", "logical_and", "logical_or", "logical_xor",
     "bitwise_and", "bitwise_or", "bitwise_xor"}
)  # fmt: skip
"""Primitives whose operands may be swapped without changing a bit of the result.

With two NaN operands the hardware returns the payload and sign of the first, which no operation
here lets a program rely on (IEEE 754-2019 §6.2.3 leaves it open). Not in the list: maximum and
minimum of floats, because `maximum(0.0, -0.0)` gives either zero depending on the order; hypot,
because the C standard does not promise its symmetry to the last bit.
"""

COMMUTATIVE_EXCEPT_FLOATS = frozenset({"maximum", "minimum"})
"""Swapped too where the operands are integers or bool, which have one zero."""


def eliminate_common_nodes(graph: Graph) -> Graph:
    """Let every reader of a repeated computation read the first one. Linear; idempotent.

    Two nodes are the same when primitive, operands and parameters are (0.0 and -0.0 differ, and
    so do 1 and True); for commutative primitives in either order of operands. The earlier node
    stays, with its name and source line; the later one is dropped.
    """
    number: dict[Value, int] = {v: i for i, v in enumerate(graph.inputs)}
    first: dict[Hashable, Value] = {}
    same: dict[Value, Value] = {}
    kept: list[Node] = []
    for node in graph.nodes:
        inputs = tuple(same.get(v, v) for v in node.inputs)
        earlier = first.setdefault(_key(node, [number[v] for v in inputs]), node.out)
        if earlier is not node.out:
            same[node.out] = earlier
            continue
        number[node.out] = len(number)
        kept.append(node if inputs == node.inputs else _reading(node, inputs))
    if len(kept) == len(graph.nodes):
        return graph
    return graph.replace(nodes=tuple(kept), outputs=tuple(same.get(v, v) for v in graph.outputs))


def _key(node: Node, operands: list[int]) -> Hashable:
    name = node.primitive.name
    swappable = name in COMMUTATIVE or (
        name in COMMUTATIVE_EXCEPT_FLOATS and not node.out.dtype.is_floating_point
    )
    order = sorted(operands) if swappable else operands
    return name, tuple(order), params_key(node.params), node.out.type


def _reading(node: Node, inputs: tuple[Value, ...]) -> Node:
    return Node(node.primitive, inputs, node.params, node.out, node.location)
