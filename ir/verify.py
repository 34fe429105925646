"""The checker of graphs: every invariant of the IR, looked at after every pass in tests.

Start reading at `verify`.
"""

from __future__ import annotations

from collections.abc import Iterator

from tracegrad.ir.errors import GraphError, TracegradError
from tracegrad.ir.graph import Graph, Node, Value
from tracegrad.ir.primitive import TABLE, Primitive
from tracegrad.ir.printer import Names, format_node
from tracegrad.ir.types import TensorType

_AROUND = 3  # nodes printed before and after the culprit


def verify(graph: Graph, after: str = "") -> Graph:
    """Check that `graph` keeps the invariants of the IR. Linear in nodes.

    Inputs are distinct; a node reads only inputs and earlier results; every value is defined once;
    operands and parameters are those that the primitive declares; parameters are hashable; the
    type of a result is the one that the primitive's rules give; outputs are defined.

    Args:
        graph: the graph to check.
        after: the pass that made it, for the message.
    Returns:
        `graph`.
    Raises:
        GraphError: the first invariant broken, the pass, and the nodes around the culprit.
    """
    defined: set[Value] = set()
    for i, value in enumerate(graph.inputs):
        if value in defined:
            raise _broken(graph, after, f"input {i} is listed twice", None)
        defined.add(value)
    for i, node in enumerate(graph.nodes):
        for problem in _problems(node, defined):
            raise _broken(graph, after, problem, i)
        defined.add(node.out)
    for i, value in enumerate(graph.outputs):
        if value not in defined:
            raise _broken(graph, after, f"output {i} is defined by no node and no input", None)
    return graph


def _problems(node: Node, defined: set[Value]) -> Iterator[str]:
    """What is wrong with `node`, given the values defined before it; worst first."""
    op = node.primitive
    if not isinstance(op, Primitive) or TABLE.get(op.name) is not op:
        yield f"{op!r} is not a primitive of the table"
    if not op.variadic and len(node.inputs) != len(op.args):
        yield f"{op.name} takes {len(op.args)} operand(s), the node has {len(node.inputs)}"
    for i, value in enumerate(node.inputs):
        if value not in defined:
            yield f"operand {i} of {op.name} is not defined before this node"
    if node.out in defined:
        yield f"the result of {op.name} is already defined (single assignment)"
    if set(node.params) != set(op.params):
        yield f"{op.name} has parameters {sorted(op.params)}, the node {sorted(node.params)}"
    for name, param in node.params.items():
        if not _is_hashable(param):
            yield f"parameter {name} of {op.name} is not hashable: {param!r}"
    yield from _type_problems(node)


def _type_problems(node: Node) -> Iterator[str]:
    try:
        expected: TensorType = node.primitive.infer([v.type for v in node.inputs], node.params)
    except (TracegradError, TypeError, ValueError, LookupError) as error:
        yield f"{node.primitive.name} refuses its operands: {error}"
        return
    if node.out.type != expected:
        yield f"{node.primitive.name} must yield {expected}, the node says {node.out.type}"


def _is_hashable(param: object) -> bool:
    try:
        hash(param)
    except TypeError:
        return False
    return True


def _broken(graph: Graph, after: str, problem: str, position: int | None) -> GraphError:
    when = f" after {after}" if after else ""
    if position is None:
        return GraphError(f"graph {graph.name} is broken{when}: {problem}")
    return GraphError(
        f"graph {graph.name} is broken{when}, at node {position}: {problem}\n"
        + "\n".join(_excerpt(graph, position))
    )


def _excerpt(graph: Graph, position: int) -> Iterator[str]:
    names = Names(graph)
    for i in range(max(position - _AROUND, 0), min(position + _AROUND + 1, len(graph.nodes))):
        node = graph.nodes[i]
        where = f"  {node.location}" if node.location else ""
        mark = ">" if i == position else " "
        yield f"  {mark} {format_node(node, names)}  # {node.out.type}{where}"
