"""What a replay makes anew of the tape of a captured run: the nodes that call the user's functions.

Places are positions in the captured graph. `tracer/user_nodes.py` finds all of it at the end of a
capture, `tracer/segments.py` compiles what lies between the nodes, and `tracer/split_tape.py` makes the
tape of each replay. Start reading at `UserTape`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tracegrad.ir.graph import Graph, Value
from tracegrad.ir.location import Location
from tracegrad.ir.types import TensorType
from tracegrad.tracer.capture_memory import Step
from tracegrad.tracer.cutting import Cut
from tracegrad.tracer.remaking import Part
from tracegrad.tracer.tape import BackwardNode

Place = tuple[str, int]  # ("input", k) or ("output", k) of a captured graph


class Refused(Exception):
    """The tape of a run cannot be made again; the text says why. Never leaves a capture."""

    def __init__(self, what: str, location: Location | None) -> None:
        super().__init__(what)
        self.location = location


@dataclass(frozen=True)
class Slot:
    """A tensor that user nodes or their objects hold.

    `kind` is "input" (input `at` itself), "view" (of input `at`, by `steps`), "result" (the tensor that
    is returned at position `at`) or "made" (a tensor of its own, with the value at `place`).
    `takes` is the place of the value whose cotangent goes where the tensor's does; None without one.
    """

    kind: str
    at: int = 0
    steps: tuple[Step, ...] = ()
    place: Place | None = None
    order: tuple[int, ...] | None = None
    takes: Place | None = None


@dataclass(frozen=True)
class UserNode:
    """One node, and what of it is the same at each replay.

    Attributes:
        node: its class.
        name: how it prints.
        types: of what it gives.
        takes: per edge, the place of the value whose cotangent goes there; None where none does.
        gives: per output, the place of its value; None where it has no gradient.
        fixed: attributes that are the same at each replay.
        attributes: the part that makes the user's attributes of a context.
        saved: what it keeps: ("none",), ("tensor", part), ("own", output), ("packed", part, part),
            ("number", value), ("kept", k), where `kept` has the places of operands and result.
        hooks: output number -> its hooks in order: (number at the capture, part).
        retained: (output number, slot) of the tensors that asked for `retain_grad()`.
    """

    node: type[BackwardNode]
    name: str
    types: tuple[TensorType, ...]
    takes: tuple[Place | None, ...]
    gives: tuple[Place | None, ...]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    attributes: int | None = None
    saved: tuple[tuple[Any, ...], ...] = ()
    kept: tuple[Place, ...] = ()
    hooks: Mapping[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    retained: tuple[tuple[int, int], ...] = ()
    location: Location | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it is made again itself, and not only its hooks."""
        return bool(self.fixed)


@dataclass(frozen=True)
class UserTape:
    """What a replay makes anew of a run's tape.

    Attributes:
        graph: the captured graph, with all values at places among its outputs.
        wrt: the inputs that take a gradient.
        nodes: oldest first.
        parts: the objects of the nodes.
        slots: the tensors of the parts.
        results: (output, place) of each tensor returned that has a history: where its value is.
    """

    graph: Graph
    wrt: tuple[int, ...]
    nodes: tuple[UserNode, ...]
    parts: tuple[Part | None, ...]
    slots: tuple[Slot, ...]
    results: tuple[tuple[int, Place], ...]

    def value(self, place: Place) -> Value:
        """The value at a place."""
        kind, k = place
        return self.graph.inputs[k] if kind == "input" else self.graph.outputs[k]

    def cut(self) -> Cut:
        """The graph cut at the nodes."""
        gives = [[None if p is None else self.value(p) for p in n.gives] for n in self.nodes]
        return Cut(self.graph, gives, self.wrt)

    def taken(self, cut: Cut, node: UserNode, edge: int) -> Value | None:
        """What a node takes at an edge, as a value of the cut graph."""
        place = node.takes[edge]
        if place is None:
            return None
        value = self.value(place)
        own = not node.is_whole and place in node.gives
        return value if own else cut.as_used(value)
