"""What the recorder of a run notes for the nodes of its tape that call the user's functions.

Start reading at `UserNodeRecords.gather`, which looks at the tape when the run has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, cast

from tracegrad.ir import primitive
from tracegrad.ir.graph import GraphBuilder, Value
from tracegrad.ir.location import Location, here
from tracegrad.tracer.capture_checkpoint import Region
from tracegrad.tracer.capture_hook import Recorder
from tracegrad.tracer.capture_memory import Memory
from tracegrad.tracer.engine import reachable
from tracegrad.tracer.pytree import leaves_of
from tracegrad.tracer.saved import Recomputed
from tracegrad.tracer.tape import BackwardNode, OperationNode
from tracegrad.tracer.tensor import Tensor
from tracegrad.tracer.user_nodes import Gatherer
from tracegrad.tracer.user_tape import Refused

if TYPE_CHECKING:
    from tracegrad.tracer.capture import GraphRecorder, Reason, Source
    from tracegrad.tracer.capture_grads import Gradient
    from tracegrad.tracer.capture_state import StateReads
    from tracegrad.tracer.function_node import FunctionNode


class UserNodeRecords(Recorder):
    """The part of `GraphRecorder` that is about such nodes."""

    builder: GraphBuilder
    sources: list[Source]
    reasons: list[Reason]
    _memories: dict[int, Memory]
    _given: dict[int, int]
    _deferred: dict[int, Reason]
    _first: int
    _callbacks: list[Any]
    _gradients: dict[int, Gradient]
    _reached: dict[int, Tensor]
    states: StateReads

    def _begin(self) -> None:
        """Nothing is noted yet."""
        self._inputs: dict[int, Tensor] = {}  # by number of the source
        self._applied: dict[int, tuple[list[Any], Sequence[Tensor], list[Any]]] = {}  # by the node
        self._hooked: dict[int, Value] = {}  # by the node
        self._operations: dict[int, tuple[list[Any], Value]] = {}  # by the node
        self._user_nodes: Gatherer | None = None
        self._gathered = False
        self._regions: list[Region] = []  # of checkpoints
        self._places: dict[int, tuple[Recomputed, Tensor, int]] = {}  # by the place

    if TYPE_CHECKING:  # what `GraphRecorder` adds

        def value_of(self, tensor: Tensor) -> Value: ...  # noqa: D102

        def stay_eager(self, what: str) -> None: ...  # noqa: D102

        def _set(self, tensor: Tensor, value: Value, memory: Memory) -> None: ...

        def _defer(self, node: BackwardNode, what: str) -> None: ...

        def reason(self, what: str, location: Location | None) -> Reason: ...  # noqa: D102

    def for_function(self, node: FunctionNode, args: Sequence[Any]) -> Recorder | None:
        """This one; what the arguments are is known before they may be written to."""
        self._defer(node, f"autograd.Function {node._function.__name__}")
        values = [self.value_of(x) for x in args if isinstance(x, Tensor)]
        self._applied[id(node)] = values, (), []
        return self

    def function(self, node: FunctionNode, args: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Its outputs are values of their own: their cotangents go to the node."""
        gives: list[Value | None] = []
        for x in outputs:
            mine = isinstance(x, Tensor) and x._grad_fn is node
            gives.append(self._given_by(x) if mine else None)
        given = [x for x in outputs if isinstance(x, Tensor) and x._grad_fn is node]
        self._applied[id(node)] = self._applied[id(node)][0], given, gives

    def _given_by(self, tensor: Tensor) -> Value:
        if id(tensor) in self._given:
            self.stay_eager("an autograd.Function gives a tensor from outside a history")
        detach = primitive.TABLE["detach"]
        value = self.builder.append(detach, [self.value_of(tensor)], {}, location=here())
        memory = self._memories[id(tensor._storage.memory)]
        self._set(tensor, value, memory)
        if memory.root is tensor:
            memory.value = value
        return value

    def checkpoint(self, repeatable: bool) -> AbstractContextManager[None] | None:
        """Mark what it computes; this run's own backward runs it again."""
        made = Region(cast("GraphRecorder", self), len(self._regions) + 1, repeatable)
        self._regions.append(made)
        return made

    def recomputed(self, place: Recomputed, tensor: Tensor) -> None:
        """Know what it stands for."""
        self._places[id(place)] = place, tensor, tensor._storage.version

    def stands_for(self, place: Recomputed) -> Tensor | None:
        """The tensor for which a place of a checkpoint stands; None where it was written to since."""
        _, tensor, version = self._places[id(place)]
        return tensor if tensor._storage.version == version else None

    def memories(self) -> Iterable[Memory]:
        """All memory that the run knows."""
        return self._memories.values()

    def doings(self) -> tuple[int, ...]:
        """How much the run has done so far that is more than computing."""
        return (
            len(self._hooked), len(self._callbacks), len(self._gradients), len(self._reached),
            len(self.states.afterwards),
        )  # fmt: skip

    def memory_of(self, tensor: Tensor) -> Memory:
        """The memory of a tensor that has a value."""
        return self._memories[id(tensor._storage.memory)]

    def source_of(self, tensor: Tensor) -> int | None:
        """The number of the input that a tensor is."""
        return self._given.get(id(tensor))

    def given(self, number: int) -> Tensor:
        """The tensor that is an input."""
        return self._inputs[number]

    def differentiated(self) -> tuple[int, ...]:
        """The inputs that take a gradient."""
        return tuple(k for k, s in enumerate(self.sources) if s.requires_grad and k in self._inputs)

    def gather(self, result: Any, external: Callable[[Any], bool], keyed: set[int]) -> None:
        """Look at the tape of the results, as long as it is known what is from before the run."""
        self._gathered = True
        for region in self._regions:
            region.finish()
        found = Gatherer(
            cast("GraphRecorder", self), self._first, self._applied, self._hooked, self._operations,
            lambda node: r.location if (r := self._deferred.get(id(node))) else None,
        )  # fmt: skip
        try:
            tensors = [t for t in leaves_of(result) if isinstance(t, Tensor)]
            if found.gather(tensors, result, external, keyed):
                self._user_nodes = found
                if self.builder.device != "cpu":
                    raise Refused(
                        "functions of the user's are called in a backward on a device", None
                    )
                if any(is_freed(t._grad_fn) for t in tensors if t._requires_grad):
                    raise Refused("a part of a result's history was let go of by a backward", None)
        except Refused as error:
            self._refuse(error)

    def _unless_refused(self, make: Callable[[Gatherer], Any]) -> Any:
        """What is made of the user nodes; None where there are none, or they are refused."""
        if self._user_nodes is None:
            return None
        try:
            return make(self._user_nodes)
        except Refused as error:
            self._refuse(error)
            return None

    def _refuse(self, error: Refused) -> None:
        self._user_nodes = None
        self.reasons.append(self.reason(str(error), error.location))


def is_freed(node: BackwardNode | None) -> bool:
    """Whether a backward that reaches `node` would find that what it needs was let go of."""
    return any(isinstance(n, OperationNode) and n.saved is None for n in reachable([node]))
