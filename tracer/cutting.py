"""A captured graph cut at the nodes of the tape that call the user's functions.

Such a node (`UserNode`) stands in the tape of every replay: the cotangents of what it *gives* arrive
there, the user's code makes of them those of what it *takes*. So for derivatives what it gives is an
input of the graph, whatever it was computed from. Between the nodes lie *segments*, each compiled:

    x -> exp -> [hook] -> sin -> [Function] -> sum -> result
         segment 0        segment 1            segment 2

The nodes are numbered in the order of their age, which is the order, reversed, in which the engine
runs them. The *level* of a value is the number of nodes up to the youngest on which it depends; segment
k takes the cotangents of values of level k. It is run after all nodes from k on, and before node k - 1:
so nodes are run in the order of eager mode. Values of one level from which other inputs are reached are
in segments of their own: where the gradients of some inputs only are asked for, nodes are run that lead
to them, and no others. Start reading at `Cut`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tracegrad.ir.graph import Graph, Node, Value


class End(NamedTuple):
    """Where a cotangent goes: output `number` of user node or segment `at`, or to input `at`."""

    kind: str  # "input", "node" or "segment"
    at: int
    number: int = 0


@dataclass(frozen=True)
class Stretch:
    """One segment: the cotangents of `outputs` give those of the ends `wrt`.

    Attributes:
        graph: inputs are those of the whole, then all that user nodes give; outputs as said.
        wrt: positions among its inputs.
        level: that of the outputs.
    """

    graph: Graph
    wrt: tuple[int, ...]
    level: int


class Cut:
    """A graph cut.

    Args:
        graph: as captured, not simplified: equal values may differ in their history.
        gives: for each user node, oldest first, the values that it gives.
        wrt: the inputs that take a gradient.
    Attributes:
        graph: inputs are those of the whole, then all that the nodes give.
        given: for each input after the first ones: (user node, output number).
    """

    def __init__(
        self, graph: Graph, gives: Sequence[Sequence[Value | None]], wrt: Sequence[int]
    ) -> None:
        self.wrt = tuple(wrt)
        self.whole = len(graph.inputs)
        self.given: list[tuple[int, int]] = []
        self._fresh: dict[Value, Value] = {}
        for k, values in enumerate(gives):
            for number, v in enumerate(values):
                if v is not None:
                    assert v not in self._fresh, "a value is given by one node"
                    self.given.append((k, number))
                    self._fresh[v] = Value(v.type, v.name)
        nodes = [
            Node(n.primitive, tuple(self._fresh.get(v, v) for v in n.inputs), n.params, n.out, n.location)
            for n in graph.nodes
        ]  # fmt: skip
        self.graph = Graph((*graph.inputs, *self._fresh.values()), tuple(nodes), (), graph.name)
        self._places = {v: k for k, v in enumerate(self.graph.inputs)}
        self._reached = self._all_reached()
        self._segments: dict[tuple[int, frozenset[int]], int] = {}
        self._outputs: list[list[Value]] = []  # by segment

    def _all_reached(self) -> dict[Value, frozenset[int]]:
        """For each value, the positions of the inputs that its cotangent leads to."""
        free = {*self.wrt, *range(self.whole, len(self.graph.inputs))}
        reached = {v: frozenset((k,) if k in free else ()) for v, k in self._places.items()}
        none: frozenset[int] = frozenset()
        for node in self.graph.nodes:
            found = none
            if node.out.dtype.is_floating_point:
                for i, v in enumerate(node.inputs):
                    if node.primitive.has_history(i):
                        found |= reached[v]
            reached[node.out] = found
        return reached

    def as_used(self, value: Value) -> Value:
        """What stands for a value wherever it is used: an input, if a node gives it."""
        return self._fresh.get(value, value)

    def reached(self, value: Value) -> frozenset[int]:
        """The inputs of the cut graph that the cotangent of a value leads to."""
        return self._reached[value]

    def end(self, value: Value) -> End | None:
        """Where the cotangent of a value of the cut graph goes; None where it leads nowhere."""
        reached = self._reached[value]
        if not reached:
            return None
        k = self._places.get(value)
        if k is not None:
            return End("input", k) if k < self.whole else End("node", *self.given[k - self.whole])
        number = self._segments.setdefault((self._level(reached), reached), len(self._outputs))
        if number == len(self._outputs):
            self._outputs.append([])
        outputs = self._outputs[number]
        if value not in outputs:
            outputs.append(value)
        return End("segment", number, outputs.index(value))

    def _level(self, reached: frozenset[int]) -> int:
        youngest = max(reached)
        return 0 if youngest < self.whole else 1 + self.given[youngest - self.whole][0]

    def stretches(self) -> list[Stretch]:
        """The segments that `end` was asked for, by number."""
        return [
            Stretch(self.graph.replace(outputs=tuple(outputs)), tuple(sorted(reached)), level)
            for (level, reached), outputs in zip(self._segments, self._outputs, strict=True)
        ]
