"""The nodes in the history of a captured run's results that call the user's functions in a backward.

They are `Function`s, and operations whose results have hooks, ask for `retain_grad()`, or keep what
hooks on saved tensors made of them. A replay puts such nodes in its own tape (`tracer/split_tape.py`),
with what they keep made again around its tensors, and compiled segments between them
(`tracer/cutting.py`). Where that cannot be done, `Refused` says why, and the function runs eagerly.
Start reading at `Gatherer.gather`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tracegrad.ir.graph import Graph, Node, Value
from tracegrad.ir.location import Location
from tracegrad.ir.primitive import Primitive
from tracegrad.runtime.layouts import is_dense
from tracegrad.tracer.capture_memory import Step, path
from tracegrad.tracer.engine import reachable
from tracegrad.tracer.function_node import FunctionNode
from tracegrad.tracer.hooks import RemovableHandle
from tracegrad.tracer.remaking import Describer, NotRemade
from tracegrad.tracer.saved import Packed, Recomputed
from tracegrad.tracer.stand_in_rules import without_stand_ins
from tracegrad.tracer.symbolic import plain_number
from tracegrad.tracer.tape import AccumulateGrad, BackwardNode, OperationNode, gradient_edge
from tracegrad.tracer.tape_check import TapeCheck
from tracegrad.tracer.tensor import Tensor
from tracegrad.tracer.user_tape import Place, Refused, Slot, UserNode, UserTape

if TYPE_CHECKING:
    from tracegrad.tracer.capture import GraphRecorder


@dataclass
class _Found:
    """A node while it is looked at: `UserNode` with values in place of places."""

    node: BackwardNode
    takes: list[Value | None]
    gives: list[Value | None]
    fixed: dict[str, Any] = field(default_factory=dict)
    attributes: int | None = None
    saved: list[tuple[Any, ...]] = field(default_factory=list)
    kept: list[Value] = field(default_factory=list)
    hooks: dict[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    retained: list[tuple[int, Tensor]] = field(default_factory=list)
    location: Location | None = None


_OWN = ("_is_tensor", "_input_types", "_tensor_outputs", "needs_input_grad", "_recorded", "_wanted",
        "_materialize")  # fmt: skip
_DROPPED = ("_saved", "_to_save", "_dirty", "_constant", "_for_forward", "_in_jvp", "_accessed")


class Gatherer:
    """Finds the user nodes of a run that has ended.

    Args:
        recorder: of the run.
        first: nodes with smaller numbers are from before it.
        applied: of each `Function` by the id of its node: values of its tensors among the arguments,
            then of its outputs.
        hooked: by the id of a node, the value that has hooks or retains its gradient.
        operations: by the id of their node: values of the operands, then of the result.
        noted: by the id of a node, where the user's function came to it.
    """

    def __init__(
        self, recorder: GraphRecorder, first: int, applied: Mapping[int, Any],
        hooked: Mapping[int, Value], operations: Mapping[int, Any],
        noted: Callable[[BackwardNode], Location | None],
    ) -> None:  # fmt: skip
        self._recorder = recorder
        self._first = first
        self._applied, self._hooked, self._operations = applied, hooked, operations
        self._noted = noted
        self._found: list[_Found] = []
        self._numbers: dict[int, int] = {}  # of nodes, by id
        self._tensors: list[Tensor] = []
        self._slots: dict[int, int] = {}
        self._results: Sequence[Tensor] = ()
        self._describer: Describer

    # ---- finding --------------------------------------------------------------------------------

    def gather(
        self, results: Sequence[Tensor], tree: Any, external: Callable[[Any], bool],
        keyed: set[int],
    ) -> bool:  # fmt: skip
        """Look at the history of the results; returns whether there are user nodes in it.

        Args:
            tree: what the function returned, the results in it.
            external, keyed: see `Describer`.
        Raises:
            Refused: a node, or what it keeps, cannot be made again.
        """
        self._results = results
        nodes = self._user_nodes(results)
        if not nodes:
            return False
        self._numbers = {id(n): k for k, n in enumerate(nodes)}
        self._describer = Describer(external, keyed, self._slot, self._handle)
        self._describer.returned(tree)
        for node in nodes:  # this call's backward is to see numbers
            without_stand_ins(getattr(node, "__dict__", {}), plain_number)
        for node in nodes:
            where = self._noted(node)
            try:
                self._found.append(self._looked_at(node, where))
            except NotRemade as error:
                raise Refused(f"{_what(node)} keeps {error}", where) from None
        return True

    def _user_nodes(self, results: Sequence[Tensor]) -> list[BackwardNode]:
        roots = [t._grad_fn for t in results if t._requires_grad]
        nodes = [
            n for n in reachable(roots)
            if n.sequence > self._first and not isinstance(n, AccumulateGrad) and self._calls(n)
        ]  # fmt: skip
        return sorted(nodes, key=lambda n: n.sequence)

    def _calls(self, node: BackwardNode) -> bool:
        """Whether the user's code is called where the node runs, or sees what comes of it."""
        if node.runs_user_code or has_hooks(node):
            return True
        if any(r() is t for r in (node.retained or {}).values() for t in self._results):
            return True
        return isinstance(node, OperationNode) and any(map(_is_packed, node.saved or ()))

    # ---- one node -------------------------------------------------------------------------------

    def _looked_at(self, node: BackwardNode, where: Location | None) -> _Found:
        if isinstance(node, FunctionNode):
            found = self._of_function(node, where)
        elif isinstance(node, OperationNode) and self._is_whole(node):
            found = self._of_operation(node, where)
        elif id(node) in self._hooked:
            value = self._hooked[id(node)]
            found = _Found(node, [value], [value])
        else:
            raise Refused(f"{_what(node)} has no place in the graph", where)
        found.location = where
        if node.hooks is not None and (node.hooks.pre or node.hooks.post):
            raise Refused(f"a hook of the node {node.name()} is used inside the function", where)
        for number, hooks in (node.hooks.tensor if node.hooks is not None else {}).items():
            if hooks:
                found.hooks[number] = tuple(
                    (k, self._describer.describe(h)) for k, h in hooks.items()
                )
        for number, reference in (node.retained or {}).items():
            tensor = reference()
            if tensor is not None:
                found.retained.append((number, tensor))
                if any(tensor is r for r in self._results):
                    self._slot(tensor)
        if getattr(node, "_metadata", None):
            raise Refused(f"{_what(node)} has metadata", where)
        return found

    def _of_function(self, node: FunctionNode, where: Location | None) -> _Found:
        values = self._applied.get(id(node))
        if values is None:
            raise Refused(f"{_what(node)} is used inside the function, in a transform", where)
        takes, outputs, gives = values
        if node._saved is None:
            raise Refused(
                f"{_what(node)}, whose backward has run, is in the history of a result", where
            )
        found = _Found(node, takes, gives)
        for t in outputs:
            self._check_memory(t, where)
        found.fixed = {name: node.__dict__[name] for name in _OWN if name in node.__dict__}
        mine = {
            name: x
            for name, x in node.__dict__.items()
            if name not in _OWN and name not in _DROPPED
        }
        if mine:
            found.attributes = self._describer.values(mine)
        if not self._describer.is_external(node._function):
            raise NotRemade("a class that the function makes")
        for s in node._saved:
            found.saved.append(self._kept(s))
        return found

    def _kept(self, saved: Any) -> tuple[Any, ...]:
        """One entry of what a `Function` has saved."""
        if saved is None:
            return ("none",)
        if isinstance(saved[0], Packed):
            kept = None
            if not _is_packed(saved[0]):
                kept = self._stands_for(saved[0])
            if kept is None:
                raise NotRemade("what hooks on saved tensors made of them")
            if isinstance(saved[1], int):
                return ("own", saved[1])
            return ("tensor", self._describer.describe(kept))
        if isinstance(saved[0], Tensor):
            if saved[0]._storage.version != saved[1]:
                raise NotRemade("a tensor that was written to since it was saved")
            return ("tensor", self._describer.describe(saved[0]))
        _, storage, version, number = saved
        if storage.version != version:
            raise NotRemade("an output that was written to since it was saved")
        return ("own", number)

    def _is_whole(self, node: OperationNode) -> bool:
        """Whether the node of an operation is made again itself, and not just its hooks.

        Where its rule reads the result, a derivative of the derivative comes to the hooks once more.
        """
        if node.saved is None or id(node) not in self._operations:
            return False
        packed = any(map(_is_packed, node.saved))
        return packed or len(node.plan.types) in node.plan.kept(node.wanted)

    def _of_operation(self, node: OperationNode, where: Location | None) -> _Found:
        operands, value = self._operations[id(node)]
        assert node.saved is not None, "see `_is_whole`"
        if node.plan.abroad:
            raise Refused(f"{_what(node)} computes with a number in host memory", where)
        found = _Found(node, [], [value])
        for edge, operand in zip(node.edges, operands, strict=True):
            found.takes.append(None if edge[0] is None else operand)
        found.fixed = {"plan": node.plan, "params": node.params, "wanted": node.wanted}
        for i, s in zip(node.plan.kept(node.wanted), node.saved, strict=True):
            if isinstance(s, Packed) and not _is_packed(s):
                tensor = self._stands_for(s)
                found.saved.append(("kept", len(found.kept)))
                found.kept.append(self._recorder.value_of(tensor))
            elif isinstance(s, Packed):
                if s.companions:
                    raise NotRemade("what a transform goes on with")
                parts = self._describer.describe(s.value), self._describer.describe(s.hook)
                found.saved.append(("packed", *parts))
            elif s[1] is None:
                found.saved.append(("number", s[0]))
            elif s[1].version != s[2]:
                raise NotRemade("a tensor that was written to since it was saved")
            else:
                found.saved.append(("kept", len(found.kept)))
                found.kept.append(value if i == len(operands) else operands[i])
        return found

    def _stands_for(self, packed: Packed) -> Tensor:
        """The tensor that a checkpoint keeps a place for."""
        found = self._recorder.stands_for(packed.value)
        if found is None or packed.companions:
            raise NotRemade("a tensor that was written to since it was saved")
        return found

    # ---- tensors and handles --------------------------------------------------------------------

    def _slot(self, tensor: Tensor) -> int:
        number = self._slots.get(id(tensor))
        if number is None:
            number = self._slots[id(tensor)] = len(self._tensors)
            self._tensors.append(tensor)
            self._recorder.value_of(tensor)  # one from outside becomes an input
        return number

    def _check_memory(self, tensor: Tensor, where: Location | None) -> None:
        memory = self._recorder.memory_of(tensor)
        if memory.through_view:
            raise Refused(
                "a tensor with a hook, or of an autograd.Function, is written to through a view",
                where,
            )

    def _handle(self, handle: RemovableHandle) -> tuple[int, int] | None:
        hooks = handle._hooks()
        for node in self._numbers_of_hooked():
            assert node.hooks is not None, "it has some"
            for mine in node.hooks.tensor.values():
                if mine is hooks and handle.id in mine:
                    return self._numbers[id(node)], handle.id
        return None

    def _numbers_of_hooked(self) -> Iterator[BackwardNode]:
        for node in reachable([t._grad_fn for t in self._results if t._requires_grad]):
            if id(node) in self._numbers and node.hooks is not None:
                yield node

    # ---- the end --------------------------------------------------------------------------------

    def ancestors(self, nodes: Sequence[Node], results: Sequence[Value]) -> set[Value]:
        """The values through which a gradient passes, from the results, or from what nodes take."""
        gives = {v for f in self._found for v in f.gives if v is not None}
        entered = {v for f in self._found if not f.fixed for v in f.gives if v is not None}
        others = [v for f in self._found if f.fixed for v in f.takes if v is not None]
        kept = [self._recorder.value_of(t) for t in self._tensors if t.requires_grad]
        found = {v for v in (*results, *others, *kept) if v not in gives} | entered
        for node in reversed(nodes):
            if node.out in found:
                found.update(v for v in node.inputs if v not in gives or v in entered)
        return found | gives

    def finish(
        self, place: Callable[[Value], Place], laid_out: Callable[[Tensor], Place],
        orders: Mapping[int, tuple[int, ...]],
    ) -> Callable[[Callable[[Value], Place]], Callable[[Graph], UserTape]]:  # fmt: skip
        """Give places to what a replay needs; then, to be called in turn, to what only derivatives
        need; then make the description for the graph that has them all as outputs.

        Raises:
            Refused: a tensor cannot be made again.
        """
        slots = [self._placed(t, laid_out, orders) for t in self._tensors]
        gives = [tuple(None if v is None else place(v) for v in f.gives) for f in self._found]
        kept = [tuple(map(place, f.kept)) for f in self._found]

        def derived(place: Callable[[Value], Place]) -> Callable[[Graph], UserTape]:
            takes = [tuple(None if v is None else place(v) for v in f.takes) for f in self._found]
            tensors = [
                Slot(s.kind, s.at, s.steps, s.place, s.order, place(self._recorder.value_of(t)))
                if t.requires_grad and s.kind in ("made", "view")
                else s for s, t in zip(slots, self._tensors, strict=True)
            ]  # fmt: skip
            results = [place(self._recorder.value_of(t)) for t in self._results]
            return lambda graph: self._tape(graph, takes, gives, kept, tensors, results)

        return derived

    def _placed(
        self, tensor: Tensor, laid_out: Callable[[Tensor], Place],
        orders: Mapping[int, tuple[int, ...]],
    ) -> Slot:  # fmt: skip
        recorder = self._recorder
        memory = recorder.memory_of(tensor)
        k = recorder.source_of(tensor)
        if memory.source is not None and memory.writes:
            raise Refused(
                "the backward uses a tensor from outside that the function writes to", None
            )
        if k is not None:
            return Slot("input", k)
        for at, result in enumerate(self._results):
            if result is tensor:
                if laid_out(tensor)[0] == "input":
                    raise Refused("the backward uses a result made from data", None)
                return Slot("result", at)
        if tensor._requires_grad and gradient_edge(tensor)[0] is None or tensor._grad is not None:
            raise Refused("the backward uses a tensor that has a gradient, but no history", None)
        if tensor._requires_grad and tensor._grad_fn is None:
            raise Refused("the backward uses a leaf that the function makes", None)
        if memory.source is not None:
            steps = path(memory.root, tensor)
            apart = tensor._storage is not memory.root._storage
            if apart or memory.shared or steps is None or not all(map(_moves, steps)):
                raise Refused("the backward uses memory that several tensors share", None)
            return Slot("view", memory.source, tuple(steps))
        for other in (*self._results, *self._tensors):
            shared = other is not tensor and other._storage.memory is tensor._storage.memory
            if shared and recorder.value_of(other) is not recorder.value_of(tensor):
                raise Refused("the backward uses a view of another tensor that it uses", None)
        if not is_dense(tensor._array):
            raise Refused("the backward uses a tensor with gaps in memory", None)
        kind, at = laid_out(tensor)
        return Slot("made", 0, (), (kind, at), orders.get(at) if kind == "output" else None)

    def _tape(
        self, graph: Graph, takes: Sequence[Any], gives: Sequence[Any], kept: Sequence[Any],
        slots: Sequence[Slot], results: Sequence[Place],
    ) -> UserTape:  # fmt: skip
        nodes = []
        for f, taken, given, mine in zip(self._found, takes, gives, kept, strict=True):
            retained = [(n, self._slots[id(t)]) for n, t in f.retained if id(t) in self._slots]
            nodes.append(UserNode(
                type(f.node), f.node.name(), f.node.types, taken, given, f.fixed, f.attributes,
                tuple(f.saved), mine, f.hooks, tuple(retained), f.location,
            ))  # fmt: skip
        tape = UserTape(
            graph, self._recorder.differentiated(), tuple(nodes), tuple(self._describer.parts),
            tuple(slots),
            tuple((k, p) for k, (p, t) in enumerate(zip(results, self._results, strict=True))
                  if t._requires_grad and self._recorder.source_of(t) is None),
        )  # fmt: skip
        edges = {k: gradient_edge(self._recorder.given(k)) for k in tape.wrt}
        check = TapeCheck(tape, [f.node for f in self._found], edges, self._first)
        check.nodes([f.location for f in self._found])
        for k, place in tape.results:
            check.tensor(place, self._results[k])
        for slot, tensor in zip(slots, self._tensors, strict=True):
            if slot.takes is not None:
                check.tensor(slot.takes, tensor)
        return tape


def _is_packed(saved: Any) -> bool:
    """Whether a hook of the user's has made it; of a checkpoint's values a replay keeps what it likes."""
    return isinstance(saved, Packed) and not isinstance(saved.value, Recomputed)


def _moves(step: Step) -> bool:
    return isinstance(step[0], Primitive) and step[0].family == "movement"


def has_hooks(node: BackwardNode) -> bool:
    """Whether a function is called when the engine comes to a node."""
    hooks = node.hooks
    return hooks is not None and bool(
        hooks.pre or hooks.post or hooks.accumulated or any(hooks.tensor.values())
    )


def _what(node: BackwardNode) -> str:
    if isinstance(node, FunctionNode):
        return f"autograd.Function {node._function.__name__}"
    if has_hooks(node):
        return "register_hook()"
    if isinstance(node, OperationNode) and any(map(_is_packed, node.saved or ())):
        return "saved_tensors_hooks"
    return node.name()
