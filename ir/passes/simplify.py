"""Algebraic identities and constant folding.

One walk over the nodes, each handed to a builder that looks for something simpler before it
appends: first a constant, then a row of the table in `tracegrad.ir.passes.rewrites`. What a row
builds goes through the same builder, so a result is itself simplified. Start reading at `simplify`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np

from tracegrad.ir import ops
from tracegrad.ir.errors import TracegradError
from tracegrad.ir.graph import Graph, GraphBuilder, Node, Value
from tracegrad.ir.location import Location
from tracegrad.ir.passes.patterns import SPREADING, Row, uniform_number
from tracegrad.ir.passes.rewrites import ROWS
from tracegrad.ir.primitive import TABLE, Primitive, evaluate_primitive, is_scalar
from tracegrad.ir.types import TensorType


def simplify(graph: Graph) -> Graph:
    """Apply the rewrites that are exact in IEEE arithmetic, and fold constants.

    Linear in nodes; idempotent up to dead nodes, which it leaves for `eliminate_dead_nodes`.
    A node that is replaced gives its name and source line to what replaces it.

    Args:
        graph: any graph that `verify` accepts.
    Returns:
        A graph that computes the same outputs bit for bit (NaN is NaN, whatever its payload).
    """
    builder = _Simplifier(graph)
    with builder:
        for node in graph.nodes:
            builder.visit(node)
    outputs = tuple(builder.standing_for(v) for v in graph.outputs)
    if tuple(builder.nodes) == graph.nodes and outputs == graph.outputs:
        return graph
    return graph.replace(nodes=tuple(builder.nodes), outputs=outputs)


class _Simplifier(GraphBuilder):
    """A builder whose `append` returns something simpler where it knows how."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph.name)
        self.inputs = list(graph.inputs)
        self._producers: dict[Value, Node] = {}
        self._same: dict[Value, Value] = {}

    def standing_for(self, value: Value) -> Value:
        """What has replaced `value`, or itself."""
        return self._same.get(value, value)

    def visit(self, node: Node) -> None:
        """Take over `node` of the old graph: as it is, with new operands, or simplified."""
        inputs = tuple(map(self.standing_for, node.inputs))
        self.location = node.location
        before = len(self.nodes)
        simpler = self._simpler(node.primitive, inputs, node.params, node.out.type)
        if simpler is None:
            kept = node if inputs == node.inputs else _copy(node, inputs, node.out, node.location)
            self._enter(kept)
        elif len(self.nodes) > before and self.nodes[-1].out is simpler:
            self._replace_last(node, simpler)
        else:
            self._same[node.out] = simpler

    def append(
        self,
        op: Primitive,
        operands: Iterable[Any],
        params: Mapping[str, Any],
        *,
        location: Location | None = None,
        name: str = "",
    ) -> Value:
        """Add a node that a rewrite asks for, or return something simpler."""
        values = tuple(self._lift(x) for x in operands)
        type = op.infer([v.type for v in values], params)
        simpler = self._simpler(op, values, params, type)
        if simpler is not None:
            return simpler
        out = Value(type, name)
        self._enter(Node(op, values, dict(params), out, location or self.location))
        return out

    def _enter(self, node: Node) -> None:
        self.nodes.append(node)
        self._producers[node.out] = node

    def _replace_last(self, old: Node, made: Value) -> None:
        """Let the node just made yield the value of the old one, whose name users know."""
        last = self.nodes.pop()
        del self._producers[made]
        self._enter(_copy(last, last.inputs, old.out, old.location))

    def _simpler(
        self, op: Primitive, inputs: tuple[Value, ...], params: Mapping[str, Any], type: TensorType
    ) -> Value | None:
        number = self._folded(op, inputs, params)
        if number is not None:
            return self._fitted(number, type)
        for row in rows_of(op.name):
            captures = row.match(inputs, params, type.dtype.kind, self._producers.get)
            if captures is not None:
                return self._fitted(row.result(**captures), type)
        return None

    def _folded(self, op: Primitive, inputs: tuple[Value, ...], params: Mapping[str, Any]) -> Any:
        """The number that every element of the result is, where operands are known numbers.

        Operands of shape () are handed to the eager kernel, whatever it computes. A number repeated
        over a shape is computed once only where the kernel is exact (`ulp` 0): elsewhere NumPy's
        kernel of arrays and that of single numbers may differ in the last bit.
        """
        if op.family not in _FOLDED or not inputs or self._is_normal(op, inputs):
            return None
        exact = op.ulp == 0 and op.family == "pointwise" or op.name in SPREADING
        if not (exact or all(v.shape == () for v in inputs)):
            return None
        numbers = [uniform_number(v, self._producers.get) for v in inputs]
        if None in numbers:
            return None
        arrays = [np.asarray(n, v.dtype.numpy) for n, v in zip(numbers, inputs, strict=True)]
        if op.name in SPREADING:
            return arrays[0].item()
        try:
            result = evaluate_primitive(op, arrays, params)
        except (TracegradError, ArithmeticError):
            return None  # an integer division by zero, say: running the graph reports it
        return result.item() if result.shape == () else None

    def _is_normal(self, op: Primitive, inputs: tuple[Value, ...]) -> bool:
        """True for the broadcast of a constant: the form in which repeated numbers are left."""
        producer = self._producers.get(inputs[0])
        return op.name == "broadcast" and producer is not None and not producer.inputs

    def _fitted(self, result: Any, type: TensorType) -> Value:
        """`result` as a value of `type`: numbers become constants, and shape and dtype follow."""
        if is_scalar(result):
            result = self.constant(result, type.dtype)
        if result.dtype is not type.dtype:
            result = ops.cast(result, dtype=type.dtype)
        if result.shape != type.shape:
            result = ops.broadcast(result, shape=type.shape)
        return result


_FOLDED = frozenset({"pointwise", "reduction", "movement"})


@cache
def rows_of(name: str) -> tuple[Row, ...]:
    """The rows whose pattern is an application of primitive `name`."""
    return tuple(r for r in ROWS if r.root.name == name and name in TABLE)


def _copy(node: Node, inputs: tuple[Value, ...], out: Value, location: Location | None) -> Node:
    return Node(node.primitive, inputs, node.params, out, location)
