"""Whether cotangents go where the tape of a captured run takes them, once the graph is cut.

The graph knows values, the tape knows tensors: where memory is written to through several views, or
by code that autograd does not hear of, they may tell different stories. Then a run is not replayed.
Start reading at `TapeCheck.tensor`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tracegrad.ir.graph import Value
from tracegrad.ir.location import Location
from tracegrad.tracer.tape import AccumulateGrad, BackwardNode, Edge, gradient_edge
from tracegrad.tracer.tensor import Tensor
from tracegrad.tracer.user_tape import Place, Refused, UserTape


class TapeCheck:
    """Compares the ends that cotangents reach in the cut graph with those in the tape.

    Args:
        nodes: the user nodes on the tape of the run.
        edges: where the gradients of the inputs go.
        first: nodes with smaller numbers are from before the run.
    """

    def __init__(
        self, tape: UserTape, nodes: Sequence[BackwardNode], edges: Mapping[int, Edge], first: int
    ) -> None:  # fmt: skip
        self._tape, self._cut = tape, tape.cut()
        self._nodes, self._edges, self._first = nodes, edges, first
        self._ids = set(map(id, nodes))

    def nodes(self, lines: Sequence[Location | None]) -> None:
        """What the user nodes take.

        Raises:
            Refused: a cotangent would go elsewhere.
        """
        for node, described, line in zip(self._nodes, self._tape.nodes, lines, strict=True):
            if not described.is_whole:  # it takes what it gives: all that the operation leads to
                wanted = set().union(*map(self._below, node.edges))
                self._agree(self._tape.taken(self._cut, described, 0), wanted, line)
                continue
            for i, edge in enumerate(node.edges):
                self._agree(self._tape.taken(self._cut, described, i), self._below(edge), line)

    def tensor(self, place: Place, tensor: Tensor) -> None:
        """A tensor whose value is at `place`; raises as `nodes`."""
        value = self._cut.as_used(self._tape.value(place))
        self._agree(value, self._below(gradient_edge(tensor)), None)

    def _agree(self, value: Value | None, wanted: set[Edge], line: Location | None) -> None:
        found: set[Edge] = set()
        for k in () if value is None else self._cut.reached(value):
            if k < self._cut.whole:
                found.add(self._edges[k])
            else:
                at, number = self._cut.given[k - self._cut.whole]
                found.add((self._nodes[at], number))
        if found != wanted:
            raise Refused("the history of what has hooks has no place in the graph", line)

    def _below(self, edge: Edge) -> set[Edge]:
        """The user nodes, and nodes from before the run, that the tape leads to from an edge."""
        ends: set[Edge] = set()
        stack, seen = [edge], {edge}
        while stack:
            node, number = stack.pop()
            if node is None:
                continue
            older = node.sequence < self._first or isinstance(node, AccumulateGrad)
            if older or id(node) in self._ids:
                ends.add((node, number))
                continue
            new = [e for e in node.edges if e not in seen]
            seen.update(new)
            stack.extend(new)
        return ends
