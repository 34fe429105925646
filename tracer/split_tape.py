"""The tape of a replay in whose backward functions of the user's are called.

Compiled segments and the user's nodes take turns; each replay makes all of them anew, around its own
tensors, oldest first, so that the engine runs them in the order of eager mode. Start reading at
`SplitTape.attach`.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tracegrad.runtime.layouts import inverse
from tracegrad.tracer import tape
from tracegrad.tracer.array_rules import bound
from tracegrad.tracer.compiled_backward import CompiledBackward
from tracegrad.tracer.cutting import End
from tracegrad.tracer.function_node import FunctionNode
from tracegrad.tracer.hooks import Hooks, NodeHooks, RemovableHandle
from tracegrad.tracer.remaking import Making
from tracegrad.tracer.resident import plain_memory
from tracegrad.tracer.saved import Packed
from tracegrad.tracer.segments import Segment
from tracegrad.tracer.storage import Storage, new_storage
from tracegrad.tracer.tape import OperationNode, gradient_edge
from tracegrad.tracer.tensor import Tensor, wrap
from tracegrad.tracer.user_tape import Place, Slot, UserNode

if TYPE_CHECKING:
    from tracegrad.tracer.trace import Trace

Kept = tuple[np.ndarray, Storage | None, int]


class HookedBackward(tape.BackwardNode):
    """Stands where an operation's result has hooks: the cotangent goes on as they leave it."""

    __slots__ = ("_name",)

    def __init__(self, edges: Sequence[tape.Edge], types: Any, name: str) -> None:
        super().__init__(edges, types)
        self._name = name

    def name(self) -> str:
        """That of the operation's node."""
        return self._name

    def apply(self, cotangents: list[Tensor | None], create_graph: bool) -> list[Tensor | None]:
        """The cotangent itself."""
        return list(cotangents)


class SplitTape:
    """Makes the tape of each replay of a trace."""

    def __init__(self, trace: Trace) -> None:
        assert trace.segmented is not None and trace.capture.tape is not None, "it is cut"
        self.segmented = trace.segmented
        self.tape = trace.capture.tape
        self.places = trace.places
        self.orders = trace.capture.orders
        self.contiguous = [s.contiguous for s in trace.capture.sources]
        self.written = {w.source for w in trace.capture.writes}
        self.returned: dict[int, int] = {}  # the position of the result that has an output
        for k, (kind, at) in enumerate(trace.capture.returns):
            if kind == "output":
                self.returned.setdefault(at, k)
        self.kernels = [_kernels(slot, trace) for slot in self.tape.slots]

    def attach(
        self, inputs: Sequence[Tensor], arrays: Sequence[np.ndarray], results: Sequence[Any]
    ) -> None:
        """Put nodes on the tape, and the results at their places in it.

        Args:
            inputs: of the launch.
            arrays: what the forward returned.
            results: the tensors that the caller gets.
        """
        _Replay(self, inputs, arrays, results).run()


def _kernels(slot: Slot, trace: Trace) -> list[Any]:
    """What makes the view of an input that a slot is, step by step."""
    made: list[Any] = []
    if slot.kind != "view":
        return made
    type = trace.capture.graph.inputs[slot.at].type
    for op, params, _ in slot.steps:
        out = op.infer((type,), params)
        made.append(bound(op, (type,), params, out))
        type = out
    return made


class _Replay:
    """The tape of one replay in the making."""

    def __init__(
        self, plan: SplitTape, inputs: Sequence[Tensor], arrays: Sequence[np.ndarray],
        results: Sequence[Any],
    ) -> None:  # fmt: skip
        self.plan, self.inputs, self.arrays, self.results = plan, inputs, arrays, results
        self.nodes: list[Any] = []
        self.segments: dict[int, CompiledBackward] = {}
        self.storages: dict[int, Storage] = {}  # by array of the forward
        for k, position in plan.returned.items():
            kind, at = plan.places[k]
            if kind == "array":
                self.storages.setdefault(at, results[position]._storage)
        self.tensors: dict[int, Tensor] = {}
        self.hooks: list[NodeHooks | None] = []
        self.handles: dict[tuple[int, int], RemovableHandle] = {}
        self.making = Making(plan.tape.parts, self.tensor, self.handles.__getitem__)

    def run(self) -> None:
        """Make all nodes, oldest first."""
        described = self.plan.tape.nodes
        for k, node in enumerate(described):
            self.hooks.append(self._empty_hooks(k, node))
        segmented = self.plan.segmented
        for k in range(len(described) + 1):
            for number, segment in enumerate(segmented.segments):
                if segment.level == k:
                    self.segments[number] = self._segment(number, segment)
            if k < len(described):
                edges = [self._edge(end) for end in segmented.takes[k]]
                made = _empty(described[k], edges)
                made.hooks = self.hooks[k]
                self.nodes.append(made)
        for k, end in segmented.results:
            tape.placed(self.results[k], self._edge(end))
        for k, node in enumerate(described):  # what they hold may lie anywhere in the tape
            self._fill(k, self.nodes[k], node)
        del self.making  # it refers to this object

    def _edge(self, end: End | None) -> tape.Edge:
        if end is None:
            return tape.NO_EDGE
        if end.kind == "input":
            return gradient_edge(self.inputs[end.at])
        if end.kind == "node":
            return self.nodes[end.at], end.number
        return self.segments[end.at], end.number

    # ---- segments -------------------------------------------------------------------------------

    def _segment(self, number: int, segment: Segment) -> CompiledBackward:
        segmented = self.plan.segmented
        whole = len(self.inputs)
        edges, kept = [], []
        for i in segment.wrt:
            k = segment.inputs[i]
            if k < whole:
                edges.append(gradient_edge(self.inputs[k]))
            else:
                at, output = segmented.given_by[k - whole]
                edges.append((self.nodes[at], output))
        for k in segment.inputs:
            place = ("input", k) if k < whole else segmented.given[k - whole]
            kept.append(self._kept(place))
        residuals = [self._kept(place, plain=True) for place in segmented.kept[number]]
        return CompiledBackward(segment, edges, tuple(residuals), tuple(kept))  # type: ignore[arg-type]

    def _kept(self, place: Place, plain: bool = False) -> Kept:
        """What is at a place, with the version that it must have in the backward."""
        kind, at = place
        if kind == "output":
            kind, at = self.plan.places[at]
        if kind == "array":
            return self.arrays[at], self._storage(at), 0
        x = self.inputs[at]
        if at in self.plan.written:
            return plain_memory(x._array.copy()), None, 0
        array = x._array if self.plan.contiguous[at] or not plain else plain_memory(x._array)
        return array, x._storage, x._storage.version

    def _storage(self, at: int) -> Storage:
        found = self.storages.get(at)
        if found is None:
            found = self.storages[at] = new_storage()
        return found

    # ---- tensors --------------------------------------------------------------------------------

    def tensor(self, number: int) -> Tensor:
        """The tensor of a slot."""
        found = self.tensors.get(number)
        if found is None:
            found = self.tensors[number] = self._made(number, self.plan.tape.slots[number])
        return found

    def _made(self, number: int, slot: Slot) -> Tensor:
        if slot.kind == "input":
            return self.inputs[slot.at]
        if slot.kind == "result":
            found: Tensor = self.results[slot.at]
            return found
        if slot.kind == "view":
            base = self.inputs[slot.at]
            array = base._array
            for kernel in self.plan.kernels[number]:
                array = kernel(array)
            return tape.placed(
                wrap(array, base._storage), self._edge(self.plan.segmented.slots[number])
            )
        assert slot.place is not None, "it has a value"
        kind, at = slot.place
        if kind == "output":
            kind, at = self.plan.places[at]
        if kind == "array":
            made = wrap(self._turned(self.arrays[at], slot), self._storage(at))
        else:
            made = wrap(self._turned(self.inputs[at]._array.copy(), slot))
        return tape.placed(made, self._edge(self.plan.segmented.slots[number]))

    def _turned(self, array: np.ndarray, slot: Slot) -> np.ndarray:
        return array if slot.order is None else array.transpose(inverse(slot.order))

    # ---- nodes ----------------------------------------------------------------------------------

    def _empty_hooks(self, k: int, node: UserNode) -> NodeHooks | None:
        """The hooks' handles: a hook may hold its own."""
        if not node.hooks:
            return None
        made = NodeHooks()
        for number, hooks in node.hooks.items():
            mine = made.tensor[number] = Hooks()
            for captured, _ in hooks:
                self.handles[k, captured] = RemovableHandle(mine, _not_yet)
        return made

    def _fill(self, k: int, made: Any, node: UserNode) -> None:
        """What a node holds."""
        for number, hooks in node.hooks.items():
            for captured, part in hooks:
                made.hooks.tensor[number][self.handles[k, captured].id] = self.making.make(part)
        if node.attributes is not None:
            made.__dict__.update(self.making.make(node.attributes))
        if isinstance(made, FunctionNode):
            made._saved = [self._saved(entry, made, node) for entry in node.saved]
        elif isinstance(made, OperationNode):
            made.saved = tuple(self._saved(entry, made, node) for entry in node.saved)
        for number, slot in node.retained:
            if made.retained is None:
                made.retained = {}
            made.retained[number] = weakref.ref(self.tensor(slot))

    def _saved(self, entry: tuple[Any, ...], made: Any, node: UserNode) -> Any:
        kind = entry[0]
        if kind == "tensor":
            tensor = self.making.make(entry[1])
            return tensor, tensor._storage.version
        if kind == "own":
            place = node.gives[entry[1]]
            assert place is not None, "an output of the node"
            array, storage, version = self._kept(place)
            return array, storage, version, entry[1]
        if kind == "kept":
            return self._kept(node.kept[entry[1]])
        if kind == "packed":
            return Packed(self.making.make(entry[1]), self.making.make(entry[2]))
        return (entry[1], None, 0) if kind == "number" else None


def _not_yet(grad: Tensor) -> None:
    raise AssertionError("a hook is in its place before its node is run")


def _empty(node: UserNode, edges: Sequence[tape.Edge]) -> Any:
    """A node without what it holds."""
    if issubclass(node.node, FunctionNode):
        made = node.node.__new__(node.node)
        tape.BackwardNode.__init__(made, edges, node.types)
        made.__dict__.update(
            (name, list(x) if isinstance(x, list) else x) for name, x in node.fixed.items()
        )
        made._saved = []
        return made
    if node.is_whole:
        fixed = node.fixed
        operation: Any = node.node
        return operation(fixed["plan"], fixed["params"], tuple(edges), fixed["wanted"], ())
    return HookedBackward(edges, node.types, node.name)
