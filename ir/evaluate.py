"""The interpreter: run a graph node by node. It is the reference for everything compiled.

`evaluate` hands each node to `bind`, so what happens depends on the inputs: NumPy arrays are
computed with the eager kernels, Tensors run on the eager tape, and values of a graph under
construction append nodes to it, which is how one graph is inlined into another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tracegrad.ir.errors import DTypeError, OperandError, ShapeError
from tracegrad.ir.graph import Graph, GraphBuilder, Node, Value
from tracegrad.ir.primitive import bind, evaluate_primitive, type_of


def evaluate(graph: Graph, inputs: Sequence[Any]) -> list[Any]:
    """Run `graph` on `inputs`.

    An intermediate result is released after its last use, so the memory in use is that of the
    values alive at one time. Results may share memory with inputs (movement operations are views).

    Args:
        graph: any graph; its nodes run in order.
        inputs: one NumPy array, Tensor or `Value` per graph input, of its shape and dtype. Among
            `Value`s the nodes go to the active builder and keep their source lines.
    Returns:
        One result per graph output, of the layer of the inputs.
    Raises:
        OperandError: the number of inputs is wrong, or one is no tensor.
        ShapeError: an input has another shape than the graph's.
        DTypeError: an input has another dtype than the graph's.
    Example:
        >>> from tracegrad.ir import dtypes, ops
        >>> from tracegrad.ir.types import TensorType
        >>> builder = GraphBuilder("double")
        >>> x = builder.input(TensorType((2,), dtypes.float32), "x")
        >>> with builder:
        ...     y = ops.add(x, x)
        >>> evaluate(builder.finish([y]), [np.array([1, 2], np.float32)])
        [array([2., 4.], dtype=float32)]
    """
    check_inputs(graph, inputs)
    last_use = last_uses(graph)
    known: dict[Value, Any] = dict(zip(graph.inputs, inputs, strict=True))
    # Arrays are computed at once even while a builder is active (a pass that folds constants).
    apply = evaluate_primitive if _all_arrays(inputs) else bind
    with _source_lines(inputs) as at_line_of:
        for i, node in enumerate(graph.nodes):
            at_line_of(node)
            known[node.out] = apply(
                node.primitive, tuple(known[v] for v in node.inputs), node.params
            )
            for value in {node.out, *node.inputs}:
                if last_use[value] == i:
                    del known[value]
    return [known[v] for v in graph.outputs]


def check_inputs(graph: Graph, inputs: Sequence[Any]) -> None:
    """Hold `inputs` to the number, shapes and dtypes of the inputs of `graph`.

    Raises:
        OperandError, ShapeError, DTypeError: naming the graph, the input and both types.
    """
    if len(inputs) != len(graph.inputs):
        raise OperandError(
            f"{graph.name}: takes {len(graph.inputs)} input(s), got {len(inputs)}; "
            f"expected {', '.join(str(v.type) for v in graph.inputs) or 'none'}"
        )
    for i, (value, given) in enumerate(zip(graph.inputs, inputs, strict=True)):
        what = f"{graph.name}: input {i}" + (f" ({value.name})" if value.name else "")
        if not (isinstance(given, np.ndarray | np.generic) or hasattr(given, "dtype")):
            raise OperandError(
                f"{what} must be an array or a tensor of type {value.type}, "
                f"got {type(given).__name__}"
            )
        seen = type_of(given)
        if seen.shape != value.shape:
            raise ShapeError(f"{what} must have shape {value.shape}, got {seen.shape}")
        if seen.dtype is not value.dtype:
            raise DTypeError(
                f"{what} must have dtype {value.dtype.name}, got {seen.dtype.name}; "
                f"cast it with .astype({value.dtype.name!r}) or .to(tracegrad.{value.dtype.name})"
            )


def _all_arrays(inputs: Sequence[Any]) -> bool:
    return bool(inputs) and all(isinstance(x, np.ndarray | np.generic) for x in inputs)


def last_uses(graph: Graph) -> dict[Value, int]:
    """The position of the node after which each value is dead; outputs and inputs unused: never."""
    last = {v: i for i, node in enumerate(graph.nodes) for v in (node.out, *node.inputs)}
    last.update(dict.fromkeys(graph.outputs, len(graph.nodes)))
    return last


@contextmanager
def _source_lines(inputs: Sequence[Any]) -> Iterator[Any]:
    """While a graph is inlined, give the nodes appended the source lines of the originals."""
    if not any(isinstance(x, Value) for x in inputs):
        yield lambda node: None
        return
    builder = GraphBuilder.current()
    outer = builder.location

    def at_line_of(node: Node) -> None:
        builder.location = node.location or outer

    try:
        yield at_line_of
    finally:
        builder.location = outer
