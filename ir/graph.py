"""The IR: frozen values, nodes and graphs, and the builder that makes them.

A `Graph` is a list of nodes in topological order, each yielding one `Value` (static single
assignment). Inputs are values without a node. Start reading at `Graph`, then `GraphBuilder`.

Invariants, checked by `tracegrad.ir.verify`: every input of a node is a graph input or the result
of an earlier node; every value is defined once; the stored type is what the primitive's rules say.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tracegrad.ir import primitive as _primitive
from tracegrad.ir.dtypes import DType, from_numpy
from tracegrad.ir.location import Location
from tracegrad.ir.operators import Operators
from tracegrad.ir.primitive import Primitive, is_scalar
from tracegrad.ir.types import Shape, TensorType


@dataclass(frozen=True, slots=True, eq=False)
class Value(Operators):
    """What a node yields, or a graph input. Identity is the object; `name` is for reading."""

    type: TensorType
    name: str = ""

    @property
    def shape(self) -> Shape:
        """Shape, a tuple of ints."""
        return self.type.shape

    @property
    def dtype(self) -> DType:
        """Element type."""
        return self.type.dtype

    @property
    def device(self) -> str:
        """Device name."""
        return self.type.device

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.type.shape)

    def __repr__(self) -> str:
        return f"<Value {self.name or hex(id(self))}: {self.type}>"

    @staticmethod
    def __tracegrad_bind__(
        op: Primitive, operands: Sequence[Any], params: Mapping[str, Any]
    ) -> Any:
        return GraphBuilder.current().append(op, operands, params)


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One application of a primitive."""

    primitive: Primitive
    inputs: tuple[Value, ...]
    params: Mapping[str, Any]
    out: Value
    location: Location | None = None

    def __repr__(self) -> str:
        names = ", ".join(v.name or "?" for v in self.inputs)
        return f"<Node {self.out.name or '?'} = {self.primitive.name}({names})>"


@dataclass(frozen=True, eq=False)
class Graph:
    """A function from inputs to outputs. `name` labels it in print-outs."""

    inputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]
    name: str = "graph"
    _producers: dict[Value, Node] = field(default_factory=dict, init=False, repr=False)

    def replace(self, **changes: Any) -> Graph:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def producer(self, value: Value) -> Node | None:
        """The node that yields `value`; None for an input."""
        if not self._producers and self.nodes:
            self._producers.update((n.out, n) for n in self.nodes)
        return self._producers.get(value)

    @property
    def device(self) -> str:
        """Where the graph computes: the device of the first input that is not in host memory."""
        return _device(self.inputs)

    def uses(self) -> dict[Value, list[Node]]:
        """For each value, the nodes that read it (once per operand position)."""
        found: dict[Value, list[Node]] = {v: [] for v in self.inputs}
        for node in self.nodes:
            found.setdefault(node.out, [])
            for v in node.inputs:
                found[v].append(node)
        return found

    def __str__(self) -> str:
        from tracegrad.ir.printer import format_graph

        return format_graph(self)


def _device(values: Iterable[Value]) -> str:
    return next((v.type.device for v in values if v.type.device != "cpu"), "cpu")


class _State(threading.local):
    def __init__(self) -> None:
        self.stack: list[GraphBuilder] = []


_state = _State()


class GraphBuilder:
    """Collects nodes. While it is active (`with builder:`), operations on Values append to it.

    Example:
        >>> from tracegrad.ir import dtypes, ops
        >>> builder = GraphBuilder("square")
        >>> x = builder.input(TensorType((3,), dtypes.float32), "x")
        >>> with builder:
        ...     y = x * x
        >>> len(builder.finish([y]).nodes)
        1
    """

    def __init__(self, name: str = "graph", location: Location | None = None) -> None:
        self.name = name
        self.location = location  # given to every node appended until it is changed
        self.inputs: list[Value] = []
        self.nodes: list[Node] = []

    @staticmethod
    def current() -> GraphBuilder:
        """The innermost active builder of this thread."""
        assert _state.stack, "an operation on IR values needs an active GraphBuilder"
        return _state.stack[-1]

    def __enter__(self) -> GraphBuilder:
        _state.stack.append(self)
        _primitive.ambient.handlers.append(self.append)
        return self

    def __exit__(self, *exc: object) -> None:
        _primitive.ambient.handlers.pop()
        _state.stack.pop()

    @property
    def device(self) -> str:
        """Where constants belong: the device of the first input that is not in host memory."""
        return _device(self.inputs)

    def input(self, type: TensorType, name: str = "") -> Value:
        """Add a graph input."""
        value = Value(type, name)
        self.inputs.append(value)
        return value

    def constant(self, number: Any, dtype: DType, device: str = "cpu") -> Value:
        """A 0-d constant."""
        plain = dtype.numpy.type(number).item()
        return self.append(_primitive.TABLE["constant"], (), {"value": plain, "dtype": dtype})

    def append(
        self,
        op: Primitive,
        operands: Iterable[Any],
        params: Mapping[str, Any],
        *,
        location: Location | None = None,
        name: str = "",
    ) -> Value:
        """Add a node; numbers among the operands become constants. Returns its value."""
        values = tuple(self._lift(x) for x in operands)
        type = op.infer([v.type for v in values], params)
        out = Value(type if values else replace(type, device=self.device), name)
        self.nodes.append(Node(op, values, dict(params), out, location or self.location))
        return out

    def _lift(self, x: Any) -> Value:
        if isinstance(x, Value):
            return x
        if is_scalar(x) or (isinstance(x, np.ndarray) and x.ndim == 0):
            array = np.asarray(x)
            return self.constant(array.item(), from_numpy(array.dtype))
        raise TypeError(f"cannot lift {type(x).__name__} into a graph; pass it as an input")

    def finish(self, outputs: Sequence[Value]) -> Graph:
        """The graph made so far."""
        return Graph(tuple(self.inputs), tuple(self.nodes), tuple(outputs), self.name)


def with_names(graph: Graph, names: Mapping[Value, str]) -> Graph:
    """The same graph with other names for the results of some nodes."""
    builder = GraphBuilder(graph.name)
    builder.inputs.extend(graph.inputs)
    new: dict[Value, Value] = {}
    for node in graph.nodes:
        inputs = [new.get(v, v) for v in node.inputs]
        name = names.get(node.out, node.out.name)
        new[node.out] = builder.append(
            node.primitive, inputs, node.params, location=node.location, name=name
        )
    return builder.finish([new.get(v, v) for v in graph.outputs])


def params_key(params: Mapping[str, Any]) -> tuple[Any, ...]:
    """A hashable identity of parameters in which 0.0 and -0.0, 1 and True differ."""
    return tuple((k, _exact(params[k])) for k in sorted(params))


def _exact(x: Any) -> Any:
    if isinstance(x, bool | float):
        return (type(x).__name__, repr(x))
    if isinstance(x, tuple):
        return tuple(map(_exact, x))
    return x
