"""Forward mode as a pass: `jvp` appends to a graph the nodes that carry tangents along.

One walk over the nodes in order. For each node the record's rules say what the tangent of each
operand adds to the tangent of the result; this driver broadcasts the contributions to the
result's shape and sums them. A value that nothing varies has no tangent at all (a symbolic zero),
so no node is spent on it.
Start reading at `jvp`; one step of it is `tangent_of_result`, which eager forward mode takes too.

The result is an ordinary graph: it can be optimised, evaluated, compiled and differentiated again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tracegrad.ir import ops
from tracegrad.ir.errors import DTypeError
from tracegrad.ir.graph import Graph, GraphBuilder, Node, Value
from tracegrad.ir.passes.autodiff import differentiable_outputs, zeros
from tracegrad.ir.passes.dce import eliminate_dead_nodes
from tracegrad.ir.primitive import Primitive


def jvp(graph: Graph, wrt: Sequence[int]) -> Graph:
    """Values and forward-mode derivatives in one graph.

    Args:
        graph: the primal graph.
        wrt: positions of the inputs that vary; each of floating dtype.
    Returns:
        A graph whose inputs are the primal inputs, then one tangent per entry of `wrt`; and whose
        outputs are the primal outputs, then one tangent per output of floating dtype, of that
        output's shape and dtype (zeros where it does not depend on the inputs `wrt`).
    Raises:
        DTypeError: an input of `wrt` is not of floating dtype.
        NotDifferentiableError: a tangent reaches an operation that states it has no derivative.
    Source: Griewank and Walther, Evaluating Derivatives, 2nd ed., §3.1.
    Example:
        >>> from tracegrad.ir import dtypes, ops
        >>> from tracegrad.ir.types import TensorType
        >>> builder = GraphBuilder("f")
        >>> x = builder.input(TensorType((3,), dtypes.float32), "x")
        >>> with builder:
        ...     y = ops.reduce_sum(x * x)
        >>> [str(v.type) for v in jvp(builder.finish([y]), wrt=[0]).outputs]
        ['float32[]', 'float32[]']
    """
    builder = GraphBuilder(f"{graph.name}_jvp")
    builder.inputs.extend(graph.inputs)
    # Primal values are kept as they are: the result begins with the primal nodes.
    builder.nodes.extend(graph.nodes)
    tangents = {graph.inputs[i]: _tangent_input(builder, graph, i) for i in wrt}
    with builder:
        for node in graph.nodes:
            builder.location = node.location
            tangent = _node_tangent(node, tangents)
            if tangent is not None:
                tangents[node.out] = tangent
        builder.location = None
        seeds = [graph.outputs[i] for i in differentiable_outputs(graph)]
        results = [tangents[v] if v in tangents else zeros(v.type) for v in seeds]
    return eliminate_dead_nodes(builder.finish([*graph.outputs, *results]))


def _tangent_input(builder: GraphBuilder, graph: Graph, i: int) -> Value:
    primal = graph.inputs[i]
    if not primal.dtype.is_floating_point:
        raise DTypeError(
            f"jvp: only inputs of floating dtype can vary; input {i} "
            f"({primal.name or 'unnamed'}) is {primal.type}"
        )
    return builder.input(primal.type, f"d_{primal.name}" if primal.name else f"d{i}")


def _node_tangent(node: Node, tangents: dict[Value, Value]) -> Value | None:
    """The tangent of a node's result; None where it is zero."""
    if not node.out.dtype.is_floating_point:
        return None
    known = [tangents.get(v) for v in node.inputs]
    made: Value | None = tangent_of_result(
        node.primitive, node.inputs, node.params, node.out, known
    )
    return made


def tangent_of_result(
    op: Primitive, operands: Sequence[Any], params: Mapping[str, Any], out: Any,
    tangents: Sequence[Any],
) -> Any:  # fmt: skip
    """The tangent of `out = op(*operands, **params)`, of its shape; None where it is zero.

    Args:
        tangents: for each operand its tangent, or None where that is zero.
    """
    total: Any = None
    for i, tangent in enumerate(tangents):
        if tangent is None or not op.takes_gradient(i):
            continue
        part = op.tangent(i, tangent, out, operands, params)
        if part is None:
            continue
        if part.shape != out.shape:
            part = ops.broadcast(part, shape=tuple(out.shape))
        total = part if total is None else total + part
    return total
