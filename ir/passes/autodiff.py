"""Reverse mode as a pass: `joint` appends the backward nodes to a graph, `vjp` keeps only those.

One walk over the nodes in reverse. For each node the record's rules give the cotangents of its
operands; this driver, and nothing else, un-broadcasts them to the operand's shape, sums the
contributions to one value, and skips what leads to no wanted input. Start reading at `joint`.

The result is an ordinary graph: it can be optimised, evaluated, compiled and differentiated again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tracegrad.ir import ops
from tracegrad.ir.evaluate import evaluate
from tracegrad.ir.graph import Graph, GraphBuilder, Value
from tracegrad.ir.passes.dce import eliminate_dead_nodes
from tracegrad.ir.types import TensorType


def differentiable_outputs(graph: Graph) -> tuple[int, ...]:
    """Positions of the outputs of floating dtype: the ones that take a cotangent."""
    return tuple(i for i, v in enumerate(graph.outputs) if v.dtype.is_floating_point)


def varied_values(graph: Graph, wrt: Sequence[int]) -> set[Value]:
    """The values through which a change of inputs `wrt` reaches differentiably."""
    varied = {graph.inputs[i] for i in wrt}
    for node in graph.nodes:
        if node.out.dtype.is_floating_point and any(
            v in varied and node.primitive.has_history(i) for i, v in enumerate(node.inputs)
        ):
            varied.add(node.out)
    return varied


def connected_inputs(graph: Graph, wrt: Sequence[int], outputs: Sequence[int]) -> tuple[int, ...]:
    """Those of the inputs `wrt` on which some of the `outputs` depend differentiably."""
    reached = {graph.outputs[i] for i in outputs}
    for node in reversed(graph.nodes):
        if node.out in reached:
            reached.update(v for i, v in enumerate(node.inputs) if node.primitive.has_history(i))
    varied = varied_values(graph, wrt)
    return tuple(i for i in wrt if graph.inputs[i] in reached and graph.inputs[i] in varied)


def zeros(like: TensorType) -> Value:
    """Zeros of a type, as a broadcast constant in the active builder."""
    zero = GraphBuilder.current().constant(0, like.dtype)
    return zero if not like.shape else ops.broadcast(zero, shape=like.shape)


def joint(graph: Graph, wrt: Sequence[int], outputs: Sequence[int] | None = None) -> Graph:
    """Values and reverse-mode derivatives in one graph.

    Args:
        graph: the primal graph.
        wrt: positions of the inputs to differentiate with respect to; of floating dtype.
        outputs: positions of the outputs that get a cotangent; default all of floating dtype.
    Returns:
        A graph whose inputs are the primal inputs, then one cotangent per entry of `outputs`;
        and whose outputs are the primal outputs, then one cotangent per entry of `wrt`, of the
        input's shape and dtype (zeros where nothing depends on it).
    Raises:
        NotDifferentiableError: a derivative is needed of an operation that states it has none.
    Example:
        >>> from tracegrad.ir import dtypes, ops
        >>> builder = GraphBuilder("f")
        >>> x = builder.input(TensorType((3,), dtypes.float32), "x")
        >>> with builder:
        ...     y = ops.reduce_sum(x * x)
        >>> [str(v.type) for v in joint(builder.finish([y]), wrt=[0]).outputs]
        ['float32[]', 'float32[3]']
    """
    outputs = differentiable_outputs(graph) if outputs is None else tuple(outputs)
    builder = _begun_as(graph)
    seeds = [builder.input(graph.outputs[i].type, _ct_name(graph, i)) for i in outputs]
    return _with_gradients(builder, graph, wrt, outputs, seeds)


def value_and_grad(graph: Graph, wrt: Sequence[int], output: int) -> Graph:
    """Values and the gradients of one output: `joint` with the cotangent 1.

    Args:
        graph: the primal graph.
        wrt: positions of the inputs to differentiate with respect to; of floating dtype.
        output: position of an output without dimensions.
    Returns:
        A graph of the same inputs; its outputs are the primal ones, then one gradient per entry of
        `wrt`.
    Raises:
        NotDifferentiableError: a derivative is needed of an operation that states it has none.
    Example:
        >>> from tracegrad.ir import dtypes, ops
        >>> builder = GraphBuilder("f")
        >>> x = builder.input(TensorType((3,), dtypes.float32), "x")
        >>> with builder:
        ...     y = ops.reduce_sum(x * x)
        >>> [str(v.type) for v in value_and_grad(builder.finish([y]), [0], 0).outputs]
        ['float32[]', 'float32[3]']
    """
    builder = _begun_as(graph)
    with builder:
        one = builder.constant(1, graph.outputs[output].dtype, graph.device)
    return _with_gradients(builder, graph, wrt, (output,), [one])


def _begun_as(graph: Graph) -> GraphBuilder:
    """A builder that begins with the primal nodes, whose values are kept as they are."""
    builder = GraphBuilder(graph.name)
    builder.inputs.extend(graph.inputs)
    builder.nodes.extend(graph.nodes)
    return builder


def _with_gradients(
    builder: GraphBuilder, graph: Graph, wrt: Sequence[int], outputs: Sequence[int],
    seeds: Sequence[Value],
) -> Graph:  # fmt: skip
    """The graph of the primal outputs and of the gradients for the cotangents `seeds`."""
    with builder:
        cotangents = _backward(builder, graph, wrt, outputs, seeds)
        results = [_or_zeros(cotangents.get(graph.inputs[i]), graph.inputs[i].type) for i in wrt]
    return builder.finish([*graph.outputs, *results])


def vjp(graph: Graph, wrt: Sequence[int], outputs: Sequence[int] | None = None) -> Graph:
    """Vector-Jacobian product: `joint` without the primal outputs, dead nodes dropped.

    Same arguments and inputs as `joint`; outputs are the cotangents of the inputs `wrt`.
    """
    whole = joint(graph, wrt, outputs)
    return eliminate_dead_nodes(
        whole.replace(outputs=whole.outputs[len(graph.outputs) :], name=f"{graph.name}_vjp")
    )


def _ct_name(graph: Graph, i: int) -> str:
    name = graph.outputs[i].name
    return f"ct_{name}" if name else f"ct{i}"


def _or_zeros(value: Value | None, like: TensorType) -> Value:
    return zeros(like) if value is None else value


def _backward(
    builder: GraphBuilder,
    graph: Graph,
    wrt: Sequence[int],
    outputs: Sequence[int],
    seeds: Sequence[Value],
) -> dict[Value, Value]:
    """Append the backward nodes; returns the summed cotangent of each value that has one."""
    varied = varied_values(graph, wrt)
    pending: dict[Value, list[Value]] = {}
    for i, seed in zip(outputs, seeds, strict=True):
        pending.setdefault(graph.outputs[i], []).append(seed)
    summed: dict[Value, Value] = {}
    for node in reversed(graph.nodes):
        if node.out not in varied or node.out not in pending:
            continue
        builder.location = node.location
        ct = summed[node.out] = _total(pending.pop(node.out))
        for i, operand in enumerate(node.inputs):
            if operand not in varied or not node.primitive.takes_gradient(i):
                continue
            part = node.primitive.cotangent(i, ct, node.out, node.inputs, node.params)
            if part is not None:
                pending.setdefault(operand, []).append(ops.unbroadcast(part, operand.shape))
    for value, parts in pending.items():
        summed[value] = _total(parts)
    return summed


def _total(parts: list[Value]) -> Value:
    total: Any = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def inline(graph: Graph, inputs: Sequence[Any]) -> list[Any]:
    """Apply `graph` to values of the active builder (or Tensors, or arrays): `evaluate`."""
    return list(evaluate(graph, inputs))
