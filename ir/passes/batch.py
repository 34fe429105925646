"""Batching as a pass: `batch` makes a graph of one example into a graph of many.

A value is *batched* when it differs between the examples; it then carries a new first axis. One
walk over the nodes in order applies the record's batch rule where an operand is batched and keeps
the node as it is where none is, so work that the examples share is done once.
Start reading at `batch`; one step of it is `batched_result`, which eager `vmap` takes too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tracegrad.ir import ops
from tracegrad.ir.errors import GraphError, NotBatchableError, ParameterError
from tracegrad.ir.graph import Graph, GraphBuilder, Node, Value
from tracegrad.ir.primitive import Primitive, type_of
from tracegrad.ir.types import TensorType


def batch(graph: Graph, batched: Sequence[int], size: int) -> Graph:
    """The graph that applies `graph` to `size` examples at once.

    Args:
        graph: the graph of one example.
        batched: positions of the inputs that hold one value per example; the others are shared.
        size: number of examples, at least 0.
    Returns:
        A graph in which the inputs `batched` and all outputs have a new first axis of `size`
        (an output that is the same for all examples is broadcast).
    Raises:
        ParameterError: a position in `batched` is no input's, or `size` is negative.
        NotBatchableError: an operation without a batch rule meets a batched operand.
    Example:
        >>> from tracegrad.ir import dtypes, ops
        >>> builder = GraphBuilder("dot")
        >>> x = builder.input(TensorType((3,), dtypes.float32), "x")
        >>> w = builder.input(TensorType((3,), dtypes.float32), "w")
        >>> with builder:
        ...     y = ops.reduce_sum(x * w)
        >>> many = batch(builder.finish([y]), batched=[0], size=5)
        >>> [str(v.type) for v in (*many.inputs, *many.outputs)]
        ['float32[5, 3]', 'float32[3]', 'float32[5]']
    """
    _check(graph, batched, size)
    builder = GraphBuilder(f"{graph.name}_batch")
    many: dict[Value, Value] = {}  # for each batched value of `graph`, the value of all examples
    for i, value in enumerate(graph.inputs):
        if i in batched:
            widened = TensorType((size, *value.shape), value.dtype, value.device)
            many[value] = builder.input(widened, value.name)
        else:
            builder.inputs.append(value)
    with builder:
        for node in graph.nodes:
            builder.location = node.location
            if any(v in many for v in node.inputs):
                many[node.out] = _batched_node(node, many, size)
            else:
                builder.nodes.append(node)
        builder.location = None
        outputs = [many[v] if v in many else _shared(v, size) for v in graph.outputs]
    return builder.finish(outputs)


def _check(graph: Graph, batched: Sequence[int], size: int) -> None:
    for i in batched:
        if not 0 <= i < len(graph.inputs):
            raise ParameterError(
                f"batch: there is no input {i}; {graph.name} has {len(graph.inputs)} input(s), "
                "counted from 0"
            )
    if size < 0:
        raise ParameterError(f"batch: size must be at least 0, got {size}")


def _batched_node(node: Node, many: dict[Value, Value], size: int) -> Value:
    operands = tuple(many.get(v, v) for v in node.inputs)
    flags = tuple(v in many for v in node.inputs)
    made: Value = batched_result(node.primitive, size, flags, operands, node.params, node.out.type)
    return made


def batched_result(
    op: Primitive, size: int, batched: tuple[bool, ...], operands: Sequence[Any],
    params: Mapping[str, Any], type: TensorType,
) -> Any:  # fmt: skip
    """`op` applied to `size` examples at once.

    Args:
        batched: which operands carry the examples along a new first axis.
        type: of the result for one example.
    Raises:
        NotBatchableError: the operation has no batch rule.
    """
    rule = op.batch
    if isinstance(rule, str):
        raise NotBatchableError(f"{op.name}: has no batch rule: {rule}")
    result = rule(size, batched, *operands, **params)
    if tuple(result.shape) != (size, *type.shape) or result.dtype is not type.dtype:
        raise GraphError(
            f"batch: the rule of {op.name} gave {type_of(result)} for {size} examples of {type}"
        )
    return result


def _shared(value: Value, size: int) -> Value:
    return ops.broadcast(value, shape=(size, *value.shape))
