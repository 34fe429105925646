"""Capture: one eager run of a function becomes a graph.

`GraphRecorder` listens to the dispatcher. Every eager operation appends a node with its Python
line; tensors that the function was given are inputs, tensors that it found elsewhere become
*captured* inputs (the guards must cover them, or the capture is refused), tensors it made from data
are *literal* inputs. What cannot be replayed soundly is noted as a reason to stay eager.
Start reading at `GraphRecorder.record`, then `Capture`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tracegrad.ir import primitive
from tracegrad.ir.graph import Graph, GraphBuilder, Node, Value, with_names
from tracegrad.ir.location import Location, here, user_frame
from tracegrad.ir.primitive import Primitive
from tracegrad.ir.types import Shape, contiguous_strides
from tracegrad.runtime.cuda.array import DeviceArray, host
from tracegrad.runtime.layouts import is_dense, memory_order
from tracegrad.tracer import result_views
from tracegrad.tracer.capture_grads import Gradient, GradientChange
from tracegrad.tracer.capture_memory import Memory, WriteBack, path, put, taken, with_strides
from tracegrad.tracer.capture_state import Number, StateReads
from tracegrad.tracer.capture_user_nodes import UserNodeRecords, is_freed
from tracegrad.tracer.engine import reachable
from tracegrad.tracer.keys import BY_VALUE, PLAIN
from tracegrad.tracer.predicates import LARGEST, PREDICATES, Predicate, Read
from tracegrad.tracer.state import state
from tracegrad.tracer.symbolic import Condition, NumberReads
from tracegrad.tracer.tape import AccumulateGrad, BackwardNode, OperationNode
from tracegrad.tracer.tensor import Tensor, wrap
from tracegrad.tracer.user_tape import UserTape

if TYPE_CHECKING:
    from tracegrad.tracer.callbacks import Callback
    from tracegrad.tracer.random import Generator
    from tracegrad.tracer.result_views import ResultView
    from tracegrad.tracer.views import Region


@dataclass(frozen=True)
class Reason:
    """Why a function stays eager, and the line that decides it."""

    what: str
    location: Location | None

    def __str__(self) -> str:
        where = f" at {self.location} ({self.location.text})" if self.location else ""
        return f"{self.what}{where}"


_WRITTEN_LEAF = "a leaf that requires grad is used after it was written to"
_HOOKS = ("register_hook()", "retain_grad()")  # on tensors


def _used(what: str) -> Reason:
    return Reason(f"{what} is used inside the function", here())


def element_strides(array: np.ndarray) -> Shape | None:
    """Strides in elements where generated code can use the memory as it lies, else None."""
    if array.flags.c_contiguous and array.flags.aligned:
        return contiguous_strides(array.shape)
    size = array.itemsize
    if not array.flags.aligned or any(s % size for s in array.strides):
        return None
    return tuple(s // size for s in array.strides)


@dataclass(frozen=True)
class Source:
    """Where the launcher finds an input of the graph.

    `kind` is "argument" (position among the flattened arguments), "captured" (a tensor from
    outside, the same object each time), "grad" (the `.grad` of input `position`), "literal" (made
    by the function from Python data), "random" (the next state of a generator) or "number" (a
    Python number, read afresh). `strides` count elements; None where generated code cannot use the
    memory as it lies. `tensor` is kept for captured and literal inputs.
    """

    kind: str
    value: Value
    strides: Shape | None
    requires_grad: bool
    position: int = 0
    tensor: Tensor | None = None
    generator: Generator | None = None
    number: Number | None = None

    @property
    def contiguous(self) -> bool:
        """Whether the memory is row-major without gaps."""
        return self.strides == contiguous_strides(self.value.shape)


@dataclass(frozen=True)
class Capture:
    """A captured run.

    Attributes:
        graph: inputs in the order of `sources`; outputs the distinct tensors returned.
        sources: where each input comes from.
        returns: for each tensor returned, ("output", k), ("input", k), or ("view", k): of `views`.
        differentiable: for each graph output, whether it required grad.
        writes: the inputs that hold other values afterwards.
        gradients: inputs whose `.grad` the run had to do with.
        unhooked: inputs whose gradient a backward of the run came to; no hook waited for it.
        gradient_changes: what became of them.
        freed: outputs whose history a backward of the run has used up.
        afterwards: what a replay calls once its results are there.
        callbacks: what a replay calls with values of the graph.
        predicates: the values that Python read, in order; for other values the run goes elsewhere.
        conditions: what the numbers among the arguments must fulfil.
        orders: of outputs that are a result's dimensions in the order of its memory: that order.
        tape: what a replay makes anew of the tape, where user code is called in the backward.
        views: results that are views, of ("output", k) or ("input", k).
        pinned: names of numbers that vary, and where Python read their very values all the same.
        reasons: why this run must not be replayed; empty where it may.
    """

    graph: Graph
    sources: tuple[Source, ...]
    returns: tuple[tuple[str, int], ...]
    differentiable: tuple[bool, ...]
    reasons: tuple[Reason, ...]
    writes: tuple[WriteBack, ...] = ()
    gradients: tuple[Gradient, ...] = ()
    unhooked: tuple[int, ...] = ()
    gradient_changes: tuple[GradientChange, ...] = ()
    freed: tuple[int, ...] = ()
    afterwards: tuple[Callable[[], Any], ...] = ()
    predicates: tuple[Predicate, ...] = ()
    callbacks: tuple[Callback, ...] = ()
    conditions: tuple[Condition, ...] = ()
    pinned: tuple[tuple[str, Location | None], ...] = ()
    orders: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    tape: UserTape | None = None
    views: tuple[tuple[str, int, ResultView], ...] = ()


@dataclass
class GraphRecorder(UserNodeRecords):
    """Builds a graph while a function runs eagerly."""

    name: str
    builder: GraphBuilder = field(init=False)
    sources: list[Source] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.builder = GraphBuilder(self.name)
        self.arrays: list[np.ndarray] = []  # of the inputs as they were, for the first check
        self.lying: list[np.ndarray] = []  # of the inputs, as they lie in memory
        self._values: dict[int, Value] = {}
        self._current: dict[int, int] = {}  # writes to its memory when a tensor's value was taken
        self._alive: list[Any] = []  # keeps ids from being reused
        self._memories: dict[int, Memory] = {}
        self._given: dict[int, int] = {}  # numbers of the sources, by the tensor
        self._gradients: dict[int, Gradient] = {}  # by the leaf
        self._reached: dict[int, Tensor] = {}  # leaves that a backward came to
        self._holders: dict[int, Tensor] = {}  # a known tensor by its array
        self._first = BackwardNode((), ()).sequence  # older nodes are from before the run
        self._names: dict[Value, str] = {}  # by the user's variables
        self.existed: Callable[[object], bool] = lambda value: False  # before the run
        self._reads: list[Read] = []
        self._callbacks: list[tuple[Callback, list[Value]]] = []
        self._cuts: list[tuple[Value, Reason]] = []
        self.states = StateReads(self)
        self.numbers = NumberReads(self)
        self._ordered: dict[tuple[Value, tuple[int, ...]], Value] = {}
        self._deferred: dict[int, Reason] = {}  # by the node that must not outlive the run
        self._called: dict[int, str] = {}  # names of tensors that may become inputs
        self._begin()

    # ---- inputs ---------------------------------------------------------------------------------

    def argument(self, tensor: Tensor, position: int, name: str) -> None:
        """Declare a tensor argument."""
        self._input(tensor, "argument", name, position=position)

    def knows(self, tensor: Tensor) -> bool:
        """Whether a tensor has a value already (the same tensor passed twice)."""
        return id(tensor) in self._values

    def _input(self, given: Tensor, kind: str, name: str, **where: Any) -> Value:
        value = self.builder.input(given.type_info, name)
        number = self._given[id(given)] = len(self.sources)
        self._inputs[number] = given
        self._source(kind, value, given, **where)
        self._know(given, value)
        memory = self._memories[id(given._storage.memory)]
        memory.shared = memory.root is not given
        memory.source = number
        return value

    def _source(self, kind: str, value: Value, given: Tensor, **where: Any) -> None:
        strides = element_strides(given._array)
        self.arrays.append(given._array)
        self.lying.append(given._array)
        self.sources.append(Source(kind, value, strides, given.requires_grad, **where))

    def _know(self, tensor: Tensor, value: Value) -> None:
        self._alive.append(tensor)
        self._alive.append(tensor._storage.memory)
        self._holders.setdefault(id(tensor._array), tensor)
        self._alive.append(tensor._array)
        memory = self._memories.get(id(tensor._storage.memory))
        if memory is None:
            memory = self._memories[id(tensor._storage.memory)] = Memory(tensor, value)
        self._set(tensor, value, memory)

    def _set(self, tensor: Tensor, value: Value, memory: Memory) -> None:
        memory.tracked |= tensor._requires_grad
        self._values[id(tensor)] = value
        self._current[id(tensor)] = memory.writes

    def value_of(self, tensor: Tensor) -> Value:
        """The value of a tensor; one not seen before is captured from outside."""
        found = self._values.get(id(tensor))
        if found is None:
            kept = self._kept(tensor)
            if kept is not None:
                return kept
            name = self._called.get(id(tensor), "")
            return self._input(tensor, "captured", name, tensor=tensor)
        memory = self._memories[id(tensor._storage.memory)]
        if self._current[id(tensor)] != memory.writes:
            found = self._anew(tensor, memory) or found
            self._set(tensor, found, memory)
        return found

    def _kept(self, tensor: Tensor) -> Value | None:
        """The value of another object over memory that is known, as nodes of the tape make for what
        they keep; cut off where it has no history. One from before the run is an input of its own:
        at another call it may look at other memory than now.
        """
        memory = self._memories.get(id(tensor._storage.memory))
        if memory is None or self.existed(tensor):
            return None
        holder = self._holders.get(id(tensor._array))
        value = None
        if holder is not None and holder._storage.memory is tensor._storage.memory:
            value = self.value_of(holder)
        elif (steps := path(memory.root, tensor)) is not None:
            value = taken(self.builder, memory.value, steps, here())
        if value is not None:
            if memory.tracked and not tensor._requires_grad:
                detach = primitive.TABLE["detach"]
                value = self.builder.append(detach, [value], {}, location=here())
            self._know(tensor, value)
        return value

    def _anew(self, tensor: Tensor, memory: Memory) -> Value | None:
        """What `tensor` shows after a write through another tensor over its memory."""
        steps = path(memory.root, tensor)
        value = None
        if steps is not None:
            value = taken(self.builder, memory.value, steps, here())
        if value is None:
            self.stay_eager("memory is written to and read through views that have no place here")
        elif not tensor._requires_grad and memory.root._requires_grad:
            detach = primitive.TABLE["detach"]
            value = self.builder.append(detach, [value], {}, location=here())
        return value

    # ---- the protocol ---------------------------------------------------------------------------

    def record(
        self, op: Primitive, operands: Sequence[Any], params: Mapping[str, Any], out: Tensor
    ) -> None:
        """Append a node."""
        self._read_names()
        location = here()
        if self.labels and location is not None:
            location = replace(location, labels=self.labels)
        inputs = [self.value_of(x) if isinstance(x, Tensor) else self._array(x) for x in operands]
        for x, used in zip(operands, inputs, strict=True):
            if state.grad_enabled and self._written_leaf(x):
                self._cut_off(used, _WRITTEN_LEAF)
        if state.grad_enabled and op.name != "detach" and any(map(self._cut_view, operands)):
            self.stay_eager(
                "a view that was made under no_grad() requires grad, but has no history"
            )
        value = self.builder.append(op, inputs, params, location=location)
        if not out._requires_grad and self._cut(op, operands, value):
            detach = primitive.TABLE["detach"]
            value = self.builder.append(detach, [value], {}, location=location)
        self._know(out, value)
        node = out._grad_fn
        if isinstance(node, OperationNode) and node.plan.op is op:  # a cast may only pass it on
            self._alive.append(node)
            self._operations.setdefault(id(node), (inputs, value))

    def recorded(self) -> int:
        """How many operations have been recorded."""
        return len(self.builder.nodes)

    def by_elements(self, first: int) -> bool:
        """Whether all operations from number `first` on go element by element."""
        families = {n.primitive.family for n in self.builder.nodes[first:]}
        return families <= {"pointwise", "creation"}

    def _cut_off(self, value: Value, what: str) -> None:
        """Stay eager if a derivative of a result goes through `value`: the graph would go on to what
        `value` is made of, where the tape ends or goes elsewhere.
        """
        self._cuts.append((value, Reason(what, here())))

    def _read_names(self) -> None:
        """Name values by the local variables of the user's function that hold them by now."""
        frame = user_frame()
        if frame is None or frame.f_code.co_name == "<module>":
            return
        for name, x in frame.f_locals.items():
            if isinstance(x, Tensor) and (value := self._values.get(id(x))) is not None:
                self._names.setdefault(value, name)

    def _array(self, x: Any) -> Any:
        if isinstance(x, np.ndarray | DeviceArray) and x.ndim:
            return self._literal(wrap(x.copy()))
        return x

    def _cut(self, op: Primitive, operands: Sequence[Any], value: Value) -> bool:
        """Whether grad mode stopped a gradient that the operation would have passed on."""
        return value.dtype.is_floating_point and any(
            isinstance(x, Tensor) and x._requires_grad and op.takes_gradient(i)
            for i, x in enumerate(operands)
        )

    def _cut_view(self, x: Any) -> bool:
        """Whether `x` is a view made here that requires grad without a history (`View.made`)."""
        if not isinstance(x, Tensor) or x._view is None or not x._view.made:
            return False
        leaf = x._requires_grad and x._grad_fn is None
        return leaf and all(s.value is not self._values[id(x)] for s in self.sources)

    def _written_leaf(self, x: Any) -> bool:
        """A leaf that requires grad whose memory the run has written to."""
        if not isinstance(x, Tensor) or not x._requires_grad or x._grad_fn is not None:
            return False
        memory = self._memories.get(id(x._storage.memory))
        return memory is not None and memory.writes > 0

    def check_write(self, name: str, target: Tensor, value: Tensor) -> None:
        """Keep what an input held before the run wrote to it: the first replay is checked with it."""
        if id(target) not in self._values:
            self.value_of(target)
        memory = self._memories[id(target._storage.memory)]
        if memory.source is not None and memory.writes == 0:
            self.arrays[memory.source] = with_strides(self.arrays[memory.source])

    def record_inplace(self, name: str, target: Tensor, value: Tensor) -> None:
        """Give a tensor its new value, and the memory that it looks at."""
        new = self.value_of(value)
        if id(target) not in self._values:
            self.value_of(target)  # from outside
        memory = self._memories[id(target._storage.memory)]
        outside = memory.source is not None
        if outside and (
            target._grad_fn is not None or (value._requires_grad and state.grad_enabled)
        ):
            self.stay_eager(f"{name} writes with history to a tensor from outside the function")
        elif memory.shared:
            self.stay_eager(f"{name} writes to memory that several tensors from outside share")
        told = target._requires_grad and state.grad_enabled  # autograd hears of it
        if memory.tracked and not value._requires_grad and not told:
            leaf = outside and memory.root._grad_fn is None
            what = f"{name} writes without history to a tensor that has one"
            self._cut_off(new, _WRITTEN_LEAF if leaf else what)
        steps = path(memory.root, target)
        whole = None
        if steps is not None:
            whole = put(self.builder, memory.value, steps, new, here())
        if whole is None:
            self.stay_eager(f"{name} writes to a view that has no place in the graph")
        else:
            memory.value = whole
        memory.writes += 1
        memory.through_view |= target is not memory.root
        if target._storage is memory.root._storage:
            memory.noted.append((name, here()))
        self._set(target, new, memory)
        if target is not memory.root and whole is not None:
            self._set(memory.root, whole, memory)

    def value_read(self, tensor: Tensor, what: str) -> None:
        """Python saw values, on which what it did next may depend."""
        array = tensor._array
        if what not in PREDICATES:
            self.stay_eager(f"Python reads the values of a tensor ({what})")
        elif array.nbytes > LARGEST:
            self.stay_eager(
                f"Python reads the values of a large tensor, {array.nbytes} bytes ({what})"
            )
        else:
            self._reads.append(Read(self.value_of(tensor), host(array.copy()), what, here()))

    def constant(self, tensor: Tensor) -> None:
        """Keep the data of a new tensor."""
        self._literal(tensor)

    def _literal(self, tensor: Tensor) -> Value:
        kept = wrap(tensor._array.copy())  # as it is now: the function may write to it later
        value = self.builder.input(tensor.type_info)
        self._source("literal", value, kept, tensor=kept)
        self._know(tensor, value)
        return value

    def random_state(self, tensor: Tensor, generator: Generator) -> None:
        """Make the state an input that each replay draws anew."""
        value = self.builder.input(tensor.type_info, "random_state")
        self._source("random", value, tensor, generator=generator)
        self._know(tensor, value)

    def called(self, tensor: Tensor, name: str) -> None:
        """How a tensor from outside is named where it lies; numbers are no names."""
        if name.isidentifier():
            self._alive.append(tensor)
            self._called[id(tensor)] = name

    def number(self, tensor: Tensor, name: str, where: Number) -> None:
        """Make a Python number an input that each replay reads anew."""
        value = self.builder.input(tensor.type_info, name)
        self._source("number", value, tensor, number=where)
        self._know(tensor, value)

    def callback(self, what: str, callback: Callback, tensors: Sequence[Tensor]) -> None:
        """Keep it, with the values that the tensors have now."""
        for x in callback.leaves:
            if x is not None and type(x[0]) not in PLAIN and not isinstance(x[0], BY_VALUE):
                self.note(f"{what}() of a {type(x[0]).__name__}")
        self._callbacks.append((callback, [self.value_of(t) for t in tensors]))

    def follows(self, owner: object, what: str) -> StateReads | None:
        """The reads of this run; an object of the run's own is made anew by each replay."""
        return self.states if self.existed(owner) else None

    def alias(self, made: Tensor, tensor: Tensor) -> None:
        """The same value."""
        if not self.knows(made):
            self._know(made, self.value_of(tensor))

    def laid_over(
        self, taken: Tensor, source: Tensor, region: Region, params: Mapping[str, Any]
    ) -> None:
        """Know the memory that it has now."""
        self.record(primitive.TABLE["reshape"], (taken,), {"shape": taken._array.shape}, taken)

    def has_moved(self, tensor: Tensor) -> None:
        """Go on with the value that it has now; the run stays eager anyway."""
        self._literal(tensor)

    def backward(self, nodes: Sequence[BackwardNode | None], into_leaves: bool) -> None:
        """A backward over operations of this run is operations itself."""
        for node in reachable(nodes):
            if node.sequence > self._first and not isinstance(node, AccumulateGrad):
                continue  # its own: what its hooks do is recorded
            if node.hooks is not None or node.retained:
                self.note(f"a hook on {node.name()}")
            elif isinstance(node, AccumulateGrad):
                self._reached[id(node.variable)] = node.variable
            elif node.sequence < self._first:
                self.stay_eager(f"the backward goes through {node.name()} from before the call")

    def grad_read(self, tensor: Tensor) -> None:
        """Make the gradient an input, or its absence a condition."""
        gradient = self._gradient(tensor, True)
        if gradient is not None and gradient.read and gradient.initial is not None:
            if gradient.initial is tensor._grad and not self.knows(gradient.initial):
                name = f"{self.sources[gradient.source].value.name}_grad"
                self._input(gradient.initial, "grad", name, position=gradient.source)

    def grad_set(self, tensor: Tensor, value: Tensor | None) -> None:
        """What it was matters no more, unless it was read before."""
        if self._gradient(tensor, False) is not None and value is not None:
            self.value_of(value)

    def _gradient(self, tensor: Tensor, read: bool) -> Gradient | None:
        if id(tensor) not in self._given and self.knows(tensor):
            return None  # of the run's own
        if tensor._grad_fn is not None:
            self.note(".grad of a tensor that is no leaf", tensor)
            return None
        if id(tensor) not in self._given:
            self.value_of(tensor)
        found = self._gradients.get(id(tensor))
        if found is None:
            source = self._given[id(tensor)]
            found = self._gradients[id(tensor)] = Gradient(tensor, source, tensor._grad, read)
        return found

    def requires_grad(self, tensor: Tensor, flag: bool) -> None:
        """A tensor of the run's own may become a leaf: nobody outside sees it."""
        if not self.knows(tensor) or id(tensor) in self._given:
            self.note("requires_grad_", tensor)

    def note(self, what: str, tensor: Tensor | None = None) -> None:
        """Something that has no place in a graph; a backward within the run may have its hooks."""
        if what in _HOOKS and tensor is not None and self._is_own(tensor):
            assert tensor._grad_fn is not None, "it is no leaf"
            self._defer(tensor._grad_fn, what)
            if len(tensor._grad_fn.types) == 1:
                self._hooked.setdefault(id(tensor._grad_fn), self.value_of(tensor))
            return
        if what == "saved_tensors_hooks":
            return  # what they make of tensors is looked at in `gather`
        self.reasons.append(_used(what))

    def _is_own(self, tensor: Tensor) -> bool:
        """Whether a tensor is the result of an operation of the run."""
        node = tensor._grad_fn
        return id(tensor) not in self._given and node is not None and node.sequence > self._first

    def _defer(self, node: BackwardNode, what: str) -> None:
        """What may be used in a backward of the run itself, but not in that of a result."""
        self._alive.append(node)
        self._deferred[id(node)] = _used(what)

    def stay_eager(self, what: str) -> None:
        """Note a reason not to replay this run."""
        self.reasons.append(Reason(what, here()))

    def reason(self, what: str, location: Location | None) -> Reason:
        """A reason to stay eager that belongs to a line."""
        return Reason(what, location)

    def has_changed(self) -> bool:
        """Whether the run has changed anything outside so far that it told of here."""
        drawn = any(s.kind == "random" for s in self.sources)
        written = any(m.source is not None and m.writes for m in self._memories.values())
        return drawn or written or bool(self._gradients or self._callbacks or self.reasons)

    # ---- the end --------------------------------------------------------------------------------

    def finish(self, results: Sequence[Tensor]) -> Capture:
        """The capture, given the tensors that the function returned."""
        for t in results:
            self.value_of(t)
        changed = [
            g for g in self._gradients.values() if not g.read or g.leaf._grad is not g.initial
        ]
        made = [g.leaf._grad for g in changed if g.leaf._grad is not None]
        views = self._views(results)
        shown = [t for t in results if id(t) not in views]
        bases = [base for base, _ in views.values() if id(base) not in self._given]
        shown += {id(b): b for b in bases if all(b is not t for t in shown)}.values()
        self._check_aliases([*shown, *made])
        self._check_devices([*results, *made])
        if any(g._requires_grad for g in made):
            self.stay_eager("a gradient that it leaves in .grad has a history")
        if any(t._grad is not None and id(t) not in self._given for t in results):
            self.stay_eager("a result has a .grad of its own")
        inputs = {s.value: k for k, s in enumerate(self.sources)}
        outputs: list[Value] = []

        def place(value: Value) -> tuple[str, int]:
            if value in inputs:
                return ("input", inputs[value])
            if value not in outputs:
                outputs.append(value)
            return ("output", outputs.index(value))

        orders: dict[int, tuple[int, ...]] = {}

        def laid_out(tensor: Tensor) -> tuple[str, int]:
            """The place of what lies in memory in another order of dimensions, or of the value."""
            value, order = self.value_of(tensor), memory_order(tensor._array)
            if order is None or value in inputs:
                return place(value)
            kind, k = place(self._in_order(value, order))
            orders[k] = order
            return kind, k

        places = {
            id(t): ("input", self._given[id(t)]) if id(t) in self._given else laid_out(t)
            for t in shown
        }
        numbers = {number: k for k, number in enumerate(views)}
        returns = [("view", numbers[id(t)]) if id(t) in views else places[id(t)] for t in results]
        differentiable = [False] * len(outputs)
        freed = []
        for tensor in shown:
            kind, k = places[id(tensor)]
            if kind == "output" and tensor.requires_grad:
                if self._leads_inside(tensor._grad_fn):
                    self.stay_eager("the history of a result leads to a leaf that the run made")
                if not self._gathered:
                    self._check_history(tensor._grad_fn)
                if is_freed(tensor._grad_fn):
                    freed.append(k)
                    if _leads_past_freed(tensor._grad_fn):
                        self.stay_eager("a part of a result's history was let go of by a backward")
                else:
                    differentiable[k] = True
        if self._cuts:
            roots = [self.value_of(t) for t in shown if t.requires_grad]
            reached = self._ancestors([v for v, flag in zip(outputs, differentiable) if flag])
            if self._user_nodes is not None:
                reached = self._user_nodes.ancestors(self.builder.nodes, roots)
            self.reasons += [reason for value, reason in self._cuts if value in reached]
        writes = []
        for memory in self._memories.values():
            if memory.source is not None and memory.writes:
                self._check_apart(memory)
                writes.append(WriteBack(memory.source, *place(memory.value), tuple(memory.noted)))
        gradients = []
        for g in changed:
            final = g.leaf._grad
            if final is None:
                gradients.append(GradientChange(g.source, "none"))
            elif id(final) in self._given:
                gradients.append(GradientChange(g.source, "input", self._given[id(final)]))
            else:
                gradients.append(GradientChange(g.source, *laid_out(final)))
        callbacks = [
            replace(callback, tensors=tuple(map(place, values)))
            for callback, values in self._callbacks
        ]
        predicates = []
        for read in self._reads:
            kind, k = place(read.value)
            if kind == "output":
                predicates.append(read.predicate(k))
            elif self.sources[k].kind != "literal":  # that one is the same at each replay
                outputs.append(read.value)
                predicates.append(read.predicate(len(outputs) - 1))
        derived = self._unless_refused(lambda found: found.finish(place, laid_out, orders))
        returned = len(outputs)  # what follows is needed for derivatives only
        described = derived(place) if derived is not None else None
        graph = with_names(self._graph(outputs), self._names)
        tape = self._unless_refused(lambda _: described(graph)) if described is not None else None
        differentiable += [False] * (returned - len(differentiable))
        return Capture(
            graph.replace(outputs=graph.outputs[:returned]), tuple(self.sources), tuple(returns),
            tuple(differentiable), tuple(self.reasons), tuple(writes),
            tuple(self._gradients.values()), self._unhooked(), tuple(gradients), tuple(freed),
            tuple(self.states.afterwards), tuple(predicates),
            tuple(callbacks), tuple(self.numbers.conditions.values()), tuple(self.numbers.pinned.values()),
            orders, tape, self._placed_views(views, places),
        )  # fmt: skip

    def _views(self, results: Sequence[Tensor]) -> dict[int, tuple[Tensor, ResultView]]:
        """The results that a replay makes as views, by id."""
        found = result_views.found(results, self.memory_of, self.source_of)
        if self._user_nodes is not None and found:
            self.stay_eager("a result is a view, beside functions that the backward calls")
            return {}
        return {k: v for k, v in found.items() if not is_freed(v[0]._grad_fn)}

    def _placed_views(
        self, views: Mapping[int, tuple[Tensor, ResultView]], places: Mapping[int, tuple[str, int]]
    ) -> tuple[tuple[str, int, ResultView], ...]:
        """Where the launcher finds what they are views of."""
        found = []
        for base, view in views.values():
            source = self._given.get(id(base))
            kind, k = places[id(base)] if source is None else ("input", source)
            if kind == "input" and source is None:
                self.stay_eager("a result is a view of a tensor made from data")
            found.append((kind, k, view))
        return tuple(found)

    def _graph(self, outputs: Sequence[Value]) -> Graph:
        """What was recorded, with single numbers that the function made as constants in it."""
        graph = self.builder.finish(outputs)
        numbers = {
            s.value: s.tensor.item() for s in self.sources
            if s.kind == "literal" and s.tensor is not None and s.value.shape == ()
        }  # fmt: skip
        if not numbers:
            return graph
        made: dict[Value, Value] = {}
        builder = GraphBuilder()
        nodes: list[Node] = []
        for node in graph.nodes:
            for v in node.inputs:
                if v in numbers and v not in made:
                    made[v] = builder.constant(numbers[v], v.dtype)
                    nodes.append(builder.nodes[-1])
            inputs = tuple(made.get(v, v) for v in node.inputs)
            nodes.append(node if inputs == node.inputs else replace(node, inputs=inputs))
        return graph.replace(nodes=tuple(nodes))

    def _unhooked(self) -> tuple[int, ...]:
        """The inputs that a hook could be waiting at when the run is replayed."""
        leaves = {**self._reached, **{k: g.leaf for k, g in self._gradients.items()}}
        given = [self._given[k] for k in leaves if k in self._given]
        return tuple(k for k in given if self.sources[k].kind != "grad")  # they require no grad

    def _ancestors(self, values: Sequence[Value]) -> set[Value]:
        """`values` and all that they are computed from."""
        found = set(values)
        for node in reversed(self.builder.nodes):
            if node.out in found:
                found.update(node.inputs)
        return found

    def _leads_inside(self, node: BackwardNode | None) -> bool:
        return any(
            isinstance(n, AccumulateGrad)
            and n.sequence > self._first  # leaves of an argument's history are from before
            and id(n.variable) not in self._given
            for n in reachable([node])
        )

    def _check_history(self, node: BackwardNode | None) -> None:
        """Refuse to replay a run whose results have nodes that call the user's code."""
        for n in () if is_freed(node) else reachable([node]):
            if n.sequence < self._first or isinstance(n, AccumulateGrad):
                continue
            known = self._deferred.get(id(n))
            if known is not None:
                self.reasons.append(known)
            elif n.runs_user_code or n.hooks is not None or n.retained:
                self.note(f"{n.name()}, which calls functions of the user's in a backward,")

    def _check_apart(self, written: Memory) -> None:
        """Refuse to replay writes to memory that another input lies in, too."""
        for k, other in enumerate(self.lying):
            if k != written.source and np.may_share_memory(written.root._array, other):
                self.stay_eager("it writes to an input that overlaps another one")

    def _check_devices(self, results: Sequence[Tensor]) -> None:
        """Refuse to replay what computes in several places; numbers in host memory go with all."""
        device = self.builder.device
        types = [s.value.type for s in self.sources] + [t.type_info for t in results]
        others = {t.device for t in types if t.device != device and (t.shape or t.device != "cpu")}
        others |= {t.type_info.device for t in results if t.type_info.device != device}
        if others:
            self.stay_eager(f"it computes on {' and '.join([device, *sorted(others)])}")

    def _in_order(self, value: Value, order: tuple[int, ...]) -> Value:
        """The value with its dimensions in another order, one for all results that want it."""
        found = self._ordered.get((value, order))
        if found is None:
            permute = primitive.TABLE["permute"]
            found = self.builder.append(permute, (value,), {"axes": order})
            self._ordered[value, order] = found
        return found

    def _check_aliases(self, results: Sequence[Tensor]) -> None:
        """Results that share memory with an input or with each other are eager's business."""
        seen: dict[int, Tensor] = {}
        for tensor in results:
            memory = id(tensor._storage.memory)
            known = self._values[id(tensor)]
            kinds = [s.kind for s in self.sources if s.value is known]
            is_input = id(tensor) in self._given or bool(kinds)
            is_made = "literal" in kinds or not is_input
            if tensor._requires_grad and tensor._grad_fn is None and is_made:
                self.stay_eager("a result is a leaf that requires grad")
            if self._memories[memory].source is not None and not is_input:
                self.stay_eager("a result is a view of an input")
            if seen.setdefault(memory, tensor) is not tensor:
                self.stay_eager("two results share memory")
            elif not is_input and not is_dense(tensor._array):
                self.stay_eager("a result has gaps in memory, or repeats it")


def _leads_past_freed(node: BackwardNode | None) -> bool:
    """Whether some leaf is reached from `node` by nodes alone that still have what they need."""
    stack, seen = [node], {node}
    while stack:
        n = stack.pop()
        if isinstance(n, AccumulateGrad):
            return True
        if n is None or (isinstance(n, OperationNode) and n.saved is None):
            continue
        new = [below for below, _ in n.edges if below not in seen]
        seen.update(new)
        stack.extend(new)
    return False
