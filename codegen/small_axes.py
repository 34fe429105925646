"""Sums beside a small last axis, written out: three coordinates are three terms, not a loop.

A loop of three turns is not worth a vector. `unrolled` writes a sum along a small last axis as a sum
of its elements, and a sum that keeps a small last axis as one sum for each of its elements. What is
only computed for such sums is computed element by element, too: the loops that are left run along axes
that are long enough. Start reading at `unrolled`, then `_Unrolling`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from tracegrad.codegen.schedule import SHARED_COST
from tracegrad.ir import dtypes, ops
from tracegrad.ir.graph import Graph, GraphBuilder, Node, Value
from tracegrad.ir.sizes import Size

LONGEST = 4  # elements of an axis that are written out
FEWEST = 64  # elements of the other axes


def unrolled(graph: Graph) -> Graph:
    """Write out the small last axes of sums. Pure; idempotent.

    The terms are added in the order and in the width in which a loop adds them, so the results are the
    same to the bit.
    """
    uses = graph.uses()
    sums = {n for n in graph.nodes if _is_small(n) and not _is_costly_and_shared(n, graph, uses)}
    return _Unrolling(graph, sums).run() if sums else graph


class _Unrolling:
    """The rewriting of one graph.

    A value is made `whole`, or as its `elements` along the last axis, each without that axis; or both.
    """

    def __init__(self, graph: Graph, sums: set[Node]) -> None:
        self.graph, self.sums = graph, sums
        self.whole: dict[Value, Value] = {}
        self.elements: dict[Value, list[Any]] = {}
        self.builder = GraphBuilder(graph.name)
        self.builder.inputs.extend(graph.inputs)

    def run(self) -> Graph:
        wanted_whole, by_elements = self._wanted()
        for node in self.graph.nodes:
            self.builder.location = node.location
            if node.out in by_elements and _goes_by_elements(node):
                with self.builder:
                    self._by_elements(node)
            if node.out not in wanted_whole:
                continue
            if node in self.sums:
                parts = self._elements_of(node.inputs[0])
                with self.builder:
                    made = (_sum_of if _along_small(node) else _sums_of)(node, parts)
                self.whole[node.out] = made
            else:
                inputs = tuple(self.whole.get(v, v) for v in node.inputs)
                self.whole[node.out] = self.builder.append(
                    node.primitive, inputs, node.params, location=node.location, name=node.out.name
                )
        return self.builder.finish([self.whole.get(v, v) for v in self.graph.outputs])

    def _wanted(self) -> tuple[set[Value], set[Value]]:
        """The values that are needed whole, and those needed by their elements."""
        whole, by_elements = set(self.graph.outputs), set[Value]()
        for node in reversed(self.graph.nodes):
            if node.out in whole:
                (by_elements if node in self.sums else whole).update(node.inputs)
            if node.out in by_elements:
                if node.primitive.name == "reshape" and _goes_by_elements(node):
                    whole.update(node.inputs)
                elif _goes_by_elements(node):
                    by_elements.update(node.inputs)
                else:
                    whole.add(node.out)
                    whole.update(node.inputs)
        return whole | {v for v in by_elements if v.ndim == 0}, by_elements

    def _by_elements(self, node: Node) -> None:
        """Compute the elements of a node from those of its operands."""
        name = node.primitive.name
        size = node.out.shape[-1]
        if name == "reshape":  # a last axis of one was added
            self.elements[node.out] = [self.whole.get(v, v) for v in node.inputs]
            return
        operands = [self._elements_of(v) for v in node.inputs]
        made: list[Any] = []
        for k in range(size):
            parts = [p[k if len(p) > 1 else 0] for p in operands]
            if name == "broadcast":
                made.append(ops.broadcast(parts[0], shape=node.out.shape[:-1]))
            else:
                made.append(
                    self.builder.append(node.primitive, parts, node.params, location=node.location,
                                        name=node.out.name if size == 1 else "")
                )  # fmt: skip
        self.elements[node.out] = made

    def _elements_of(self, value: Value) -> list[Any]:
        found = self.elements.get(value)
        if found is None:
            x = self.whole.get(value, value)
            with self.builder:
                found = self.elements[value] = [x] if value.ndim == 0 else _slices(x)
        return found


def _goes_by_elements(node: Node) -> bool:
    """Whether each element along the last axis follows from such elements of the operands."""
    if node.out.ndim < 2 or isinstance(node.out.shape[-1], Size) or node.out.shape[-1] > LONGEST:
        return False
    name = node.primitive.name
    if name == "reshape":
        return (*node.inputs[0].shape, 1) == node.out.shape
    return name == "broadcast" or node.primitive.family == "pointwise"


def _is_small(node: Node) -> bool:
    """A sum along, or beside, a small last axis."""
    if node.primitive.name != "reduce_sum" or node.inputs[0].ndim < 2:
        return False
    *others, last = node.inputs[0].shape
    if isinstance(last, Size) or not 2 <= last <= LONGEST:
        return False
    if prod(others) < FEWEST or 0 in others:
        return False
    axes = node.params["axes"]
    return _along_small(node) or (bool(axes) and node.inputs[0].ndim - 1 not in axes)


def _along_small(node: Node) -> bool:
    """Whether the small axis is what is summed, and not what is kept."""
    return tuple(node.params["axes"]) == (node.inputs[0].ndim - 1,)


def _is_costly_and_shared(node: Node, graph: Graph, uses: Mapping[Value, Sequence[Node]]) -> bool:
    """A sum of something costly that others read as it is, such as the exponentials of a softmax."""
    x = node.inputs[0]
    made = graph.producer(x)
    costly = made is not None and made.primitive.cost >= SHARED_COST
    return costly and (x in graph.outputs or not all(_is_small(user) for user in uses[x]))


def _slices(x: Any) -> list[Any]:
    """The elements of `x` along its last axis, without that axis."""
    *shape, last = x.shape
    zeros, ones = (0,) * len(shape), (1,) * (len(shape) + 1)
    parts = [ops.slice(x, start=(*zeros, k), stop=(*shape, k + 1), step=ones) for k in range(last)]
    return [ops.reshape(part, shape=tuple(shape)) for part in parts]


def _sum_of(node: Node, parts: Sequence[Any]) -> Any:
    out = node.out.dtype
    wide = dtypes.float64 if out.kind == "f" else dtypes.int64
    total: Any = 0 if wide is dtypes.int64 else 0.0
    for part in parts:
        total = total + _cast(part, wide)
    total = _cast(total, out)
    return ops.reshape(total, shape=node.out.shape) if node.params["keepdims"] else total


def _sums_of(node: Node, parts: Sequence[Any]) -> Any:
    axes: Sequence[int] = node.params["axes"]
    shape = (*node.out.shape[:-1], 1)
    sums = [ops.reduce_sum(part, axes=tuple(axes), keepdims=False) for part in parts]
    return ops.concat(*(ops.reshape(s, shape=shape) for s in sums), axis=len(shape) - 1)


def _cast(x: Any, dtype: dtypes.DType) -> Any:
    return x if x.dtype is dtype else ops.cast(x, dtype=dtype)
