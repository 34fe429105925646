"""Capture: one eager run of a function becomes a graph.

`GraphRecorder` listens to the dispatcher. Every eager operation appends a node with its Python
line; tensors that the function was given are inputs, tensors that it found elsewhere become
*captured* inputs (the guards must cover them, or the capture is refused), tensors it made from data
are *literal* inputs. What cannot be replayed soundly is noted as a reason to stay eager.
Start reading at `GraphRecorder.record`, then `Capture`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tracegrad.ir import primitive
from tracegrad.ir.graph import Graph, GraphBuilder, Value, with_names
from tracegrad.ir.location import Location, here, user_frame
from tracegrad.ir.primitive import Primitive
from tracegrad.ir.types import Shape, contiguous_strides
from tracegrad.tracer.capture_hook import Recorder
from tracegrad.tracer.state import state
from tracegrad.tracer.tensor import Tensor, wrap

if TYPE_CHECKING:
    from tracegrad.tracer.function_node import FunctionNode
    from tracegrad.tracer.random import Generator
    from tracegrad.tracer.views import Region


@dataclass(frozen=True)
class Reason:
    """Why a function stays eager, and the line that decides it."""

    what: str
    location: Location | None

    def __str__(self) -> str:
        where = f" at {self.location} ({self.location.text})" if self.location else ""
        return f"{self.what}{where}"


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
    outside, the same object each time), "literal" (made by the function from Python data) or
    "random" (the next state of a generator). `strides` count elements; None where generated code
    cannot use the memory as it lies. `tensor` is kept for captured and literal inputs.
    """

    kind: str
    value: Value
    strides: Shape | None
    requires_grad: bool
    position: int = 0
    tensor: Tensor | None = None
    generator: Generator | None = None

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
        returns: for each tensor returned, ("output", k) or ("input", k).
        differentiable: for each graph output, whether it required grad.
        reasons: why this run must not be replayed; empty where it may.
    """

    graph: Graph
    sources: tuple[Source, ...]
    returns: tuple[tuple[str, int], ...]
    differentiable: tuple[bool, ...]
    reasons: tuple[Reason, ...]


@dataclass
class GraphRecorder(Recorder):
    """Builds a graph while a function runs eagerly."""

    name: str
    builder: GraphBuilder = field(init=False)
    sources: list[Source] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.builder = GraphBuilder(self.name)
        self.arrays: list[np.ndarray] = []  # of the inputs, for checking the first replay
        self._values: dict[int, Value] = {}
        self._alive: list[Tensor] = []  # keeps ids from being reused
        self._memory: dict[int, list[Tensor]] = {}  # tensors by the memory they look at
        self._inputs: set[int] = set()
        self._names: dict[Value, str] = {}  # by the user's variables

    # ---- inputs ---------------------------------------------------------------------------------

    def argument(self, tensor: Tensor, position: int, name: str) -> None:
        """Declare a tensor argument."""
        self._input(tensor, "argument", name, position=position)

    def knows(self, tensor: Tensor) -> bool:
        """Whether a tensor has a value already (the same tensor passed twice)."""
        return id(tensor) in self._values

    def _input(self, given: Tensor, kind: str, name: str, **where: Any) -> Value:
        value = self.builder.input(given.type_info, name)
        self._source(kind, value, given, **where)
        self._inputs.add(id(given._storage.memory))
        self._know(given, value)
        return value

    def _source(self, kind: str, value: Value, given: Tensor, **where: Any) -> None:
        strides = element_strides(given._array)
        self.arrays.append(given._array)
        self.sources.append(Source(kind, value, strides, given.requires_grad, **where))

    def _know(self, tensor: Tensor, value: Value) -> None:
        self._values[id(tensor)] = value
        self._alive.append(tensor)
        self._memory.setdefault(id(tensor._storage.memory), []).append(tensor)

    def value_of(self, tensor: Tensor) -> Value:
        """The value of a tensor; one not seen before is captured from outside."""
        found = self._values.get(id(tensor))
        if found is None:
            found = self._input(tensor, "captured", "", tensor=tensor)
        return found

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
        if state.grad_enabled and op.name != "detach" and any(map(self._cut_view, operands)):
            self.stay_eager("a view that was made under no_grad() is a leaf of its own")
        value = self.builder.append(op, inputs, params, location=location)
        if not out._requires_grad and self._cut(op, operands, value):
            detach = primitive.TABLE["detach"]
            value = self.builder.append(detach, [value], {}, location=location)
        self._know(out, value)

    def _read_names(self) -> None:
        """Name values by the local variables of the user's function that hold them by now."""
        frame = user_frame()
        if frame is None or frame.f_code.co_name == "<module>":
            return
        for name, x in frame.f_locals.items():
            if isinstance(x, Tensor) and (value := self._values.get(id(x))) is not None:
                self._names.setdefault(value, name)

    def _array(self, x: Any) -> Any:
        if isinstance(x, np.ndarray) and x.ndim:
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

    def record_inplace(self, name: str, target: Tensor, value: Tensor) -> None:
        """Give a local tensor its new value; a write that outsiders could see stays eager."""
        new = self.value_of(value)
        memory = id(target._storage.memory)
        if id(target) not in self._values or memory in self._inputs:
            self.stay_eager(f"{name} writes to a tensor from outside the function")
        elif len({id(t) for t in self._memory[memory]}) > 1:
            self.stay_eager(f"{name} writes to memory that several tensors share")
        if target._requires_grad and not value._requires_grad and not state.grad_enabled:
            self.stay_eager(f"{name} writes without history to a tensor that has one")
        self._values[id(target)] = new

    def value_read(self, tensor: Tensor, what: str) -> None:
        """Python saw values, on which what it did next may depend."""
        self.stay_eager(f"Python reads the values of a tensor ({what})")

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

    def for_function(self, node: FunctionNode, args: Sequence[Any]) -> Recorder | None:
        """This one: the run goes on to be recorded, though it will stay eager."""
        self.note(f"autograd.Function {node._function.__name__}")
        return self

    def note(self, what: str, tensor: Tensor | None = None) -> None:
        """Something that has no place in a graph."""
        self.stay_eager(f"{what} is used inside the function")

    def stay_eager(self, what: str) -> None:
        """Note a reason not to replay this run."""
        self.reasons.append(Reason(what, here()))

    # ---- the end --------------------------------------------------------------------------------

    def finish(self, results: Sequence[Tensor]) -> Capture:
        """The capture, given the tensors that the function returned."""
        values = [self.value_of(t) for t in results]
        self._check_aliases(results)
        inputs = {s.value: k for k, s in enumerate(self.sources)}
        outputs: list[Value] = []
        returns = []
        for value in values:
            if value in inputs:
                returns.append(("input", inputs[value]))
                continue
            if value not in outputs:
                outputs.append(value)
            returns.append(("output", outputs.index(value)))
        differentiable = [False] * len(outputs)
        for tensor, (kind, k) in zip(results, returns, strict=True):
            if kind == "output":
                differentiable[k] = tensor.requires_grad
        return Capture(
            with_names(self.builder.finish(outputs), self._names), tuple(self.sources), tuple(returns),
            tuple(differentiable), tuple(self.reasons),
        )  # fmt: skip

    def _check_aliases(self, results: Sequence[Tensor]) -> None:
        """Results that share memory with an input or with each other are eager's business."""
        seen: dict[int, Tensor] = {}
        for tensor in results:
            memory = id(tensor._storage.memory)
            known = self._values[id(tensor)]
            is_input = any(s.value is known for s in self.sources)
            if tensor._requires_grad and tensor._grad_fn is None and not is_input:
                self.stay_eager("a result is a leaf that requires grad")
            if memory in self._inputs and not is_input:
                self.stay_eager("a result is a view of an input")
            if seen.setdefault(memory, tensor) is not tensor:
                self.stay_eager("two results share memory")
            elif not is_input and not (
                tensor._array.base is None or tensor._array.flags.c_contiguous
            ):
                self.stay_eager("a result is not contiguous in memory")
