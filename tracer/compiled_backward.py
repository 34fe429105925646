"""The backward of a trace: its executable, and the tape node that runs it.

`Backward` is generated at its first use, one per pattern of cotangents that are present.
`CompiledBackward` is what the tape holds: residuals, and the inputs for derivatives of higher
order. Start reading at `CompiledBackward.apply`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tracegrad.codegen.unit import Unit, contiguous_inputs
from tracegrad.ir import ops
from tracegrad.ir.errors import CompileError, CompilerNotFound, GradientError
from tracegrad.ir.evaluate import evaluate
from tracegrad.ir.graph import Graph, Value
from tracegrad.ir.location import user_stacklevel
from tracegrad.ir.passes import optimize
from tracegrad.ir.primitive import type_of
from tracegrad.ir.types import Shape
from tracegrad.runtime import background, executable
from tracegrad.runtime.cuda.array import DeviceArray, host
from tracegrad.runtime.executable import Executable
from tracegrad.runtime.kernels import pointer
from tracegrad.tracer import tape, verification
from tracegrad.tracer.accumulate import first
from tracegrad.tracer.anomaly import anomaly
from tracegrad.tracer.joint import UNUSED
from tracegrad.tracer.moving import homeward
from tracegrad.tracer.places import passed_through
from tracegrad.tracer.profiling import profilers
from tracegrad.tracer.resident import like_device, on_device_of, plain_memory
from tracegrad.tracer.state import state, watching
from tracegrad.tracer.storage import Storage, marking
from tracegrad.tracer.tensor import Tensor, wrap

if TYPE_CHECKING:
    from tracegrad.tracer.joint import Joint
    from tracegrad.tracer.trace import Trace


class Backward:
    """The backward executable of a trace for one pattern of cotangents.

    With all cotangents present it starts from the residuals that the forward kept; with some
    missing, so that no `0 * inf` is added for them, from the primal inputs.
    """

    def __init__(self, trace: Trace, present: tuple[bool, ...], of_inputs: bool = False) -> None:
        assert trace.cut is not None
        self.trace = trace
        self.from_residuals = all(present) and not of_inputs
        self.graph, self.wrt = trace.vjp_graph(present)
        if self.from_residuals:
            self.graph, self.wrt = optimize(trace.cut.backward), trace.wrt
        self.distinct, self.places = passed_through(self.graph)
        read = {v for n in self.graph.nodes for v in n.inputs} | set(self.graph.outputs)
        self.read = tuple(v in read for v in self.graph.inputs)
        self.strides = self._strides()
        self.copied = self._copied()
        self.interpreted = False  # set where verification failed
        self.pending: background.Job | None = None  # the worker's
        self._loaded: Executable | None = None  # what came of it
        self._unit: Unit | None = None
        self._executable: Executable | None = None

    def _strides(self) -> dict[Value, Shape]:
        plain = contiguous_inputs(self.graph)
        return {
            v: self.trace.strides[u]
            for v, u in zip(self.graph.inputs, self._primal_inputs(), strict=False)
            if u in self.trace.strides and v not in plain
        }

    def _copied(self) -> tuple[int, ...]:
        """Positions of primals that may come with strides the kernels do not take."""
        inputs = {v: k for k, v in enumerate(self.trace.graph.inputs)}
        odd = self.trace.copied
        return tuple(
            k for k, u in enumerate(self._primal_inputs())
            if (u in self.trace.strides and self.graph.inputs[k] not in self.strides)
            or (inputs.get(u) in odd and not self.from_residuals)
        )  # fmt: skip

    def _primal_inputs(self) -> tuple[Value, ...]:
        assert self.trace.cut is not None
        return self.trace.cut.residuals if self.from_residuals else self.trace.graph.inputs

    def kernel_graph(self) -> Graph:
        """What is compiled: each gradient once, none that is an input."""
        return self.graph.replace(outputs=self.distinct)

    def unit(self) -> Unit:
        """The generated C."""
        if self._executable is not None:
            return self._executable.unit
        if self._unit is None:
            self._unit = executable.generate(self.kernel_graph(), self.strides)
        return self._unit

    def run(
        self, primals: Sequence[np.ndarray], cotangents: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Gradients of the inputs `wrt`, from residuals (or inputs) and cotangents."""
        arrays = [*primals, *cotangents]
        for k in self.copied:
            arrays[k] = plain_memory(arrays[k])
        for k in range(len(primals), len(arrays)):
            flags = arrays[k].flags
            if not (flags.c_contiguous and flags.aligned):
                arrays[k] = plain_memory(arrays[k])
        made: tuple[np.ndarray, ...] = ()
        interpreted = self.interpreted or not self._ready()
        if self.distinct and not interpreted:
            first = self._executable is None
            if first:
                self._build()
            if self._executable is not None:
                arrays = on_device_of(self.graph, arrays)
                made = self._executable.call(*(pointer(a) for a in arrays))
                if first or self.trace.verify == "always":
                    verification.check_backward(self, arrays, made)
        if interpreted or self.interpreted:
            found = evaluate(self.graph, [host(a) for a in arrays])
            return [like_device(np.array(a), self.graph) for a in found]
        given: set[int] = set()  # each gradient has memory of its own: it may be added to
        parts = []
        for kind, at in self.places:
            fresh = kind == "array" and at not in given
            array = made[at] if kind == "array" else arrays[at]
            parts.append(array if fresh else array.copy())
            given.update((at,) if fresh else ())
        return parts

    def _ready(self) -> bool:
        """Whether the worker need not be waited for; where it must, it has been asked."""
        if self._executable is not None or not self.trace.apart or not self.distinct:
            return True
        if self.pending is None:
            self.pending = background.submit(self.kernel_graph(), self.strides, then=self._load)
        return self.pending is None or self.pending.finished

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the worker; returns whether it is done."""
        return self.pending is None or self.pending.wait(timeout)

    def _load(self) -> None:
        """In a thread of its own: load what the worker has made."""
        try:
            self._loaded = executable.build(self.kernel_graph(), "backward", self.strides)
        except Exception:  # `_build` meets it again, in the user's thread
            self._loaded = None

    def _build(self) -> None:
        """Compile; without a compiler that can, the gradients are interpreted."""
        try:
            self._executable = self._loaded or executable.build(
                self.kernel_graph(), "backward", self.strides, debug=self.trace.debug
            )
        except (CompilerNotFound, CompileError) as error:
            self.interpreted = True
            if isinstance(error, CompileError):
                text = f"the backward of {self.trace.name} runs eagerly: {error}"
                warnings.warn(text, verification.EagerWarning, stacklevel=user_stacklevel())


class CompiledBackward(tape.BackwardNode):
    """The tape node of a compiled function.

    Attributes:
        sources: for each input with a gradient, the leaf itself where its accumulator is not made
            yet, else the edge to what made it.
        residuals: what the forward kept: (array, its storage or None, version). Of a joint launch,
            those that are inputs or results, only to see whether they are written to.
        inputs: the same for all inputs of the trace.
        joint: of a joint launch, what it has computed.
        gradients: of a joint launch, one array per source, or None; until they are taken.
        saved: what eager mode would have saved beside the residuals, only to see whether it is
            written to.
    """

    __slots__ = ("trace", "sources", "residuals", "inputs", "joint", "gradients", "saved", "_edges")

    def __init__(
        self, trace: Trace, sources: tuple[Tensor | tape.Edge, ...],
        residuals: tuple[tuple[np.ndarray, Storage | None, int], ...],
        inputs: tuple[tuple[np.ndarray, Storage, int], ...],
        saved: tuple[tuple[np.ndarray, Storage, int], ...] = (),
        joint: Joint | None = None, gradients: Sequence[np.ndarray | None] | None = None,
    ) -> None:  # fmt: skip
        # not by the base class, which would ask for the edges; there is no anomaly mode here
        self.sources = sources
        self._edges: tuple[tape.Edge, ...] | None = None
        if trace.abroad:  # through nodes of their own, which must be older than this one
            self._edges = tuple(homeward(self._ends(), trace.abroad))
        self.types = trace.result_types
        self.sequence = tape.next_sequence()
        self.retained = None
        self.hooks = None
        self.trace = trace
        self.residuals: Any = residuals
        self.inputs: Any = inputs
        self.joint = joint
        self.gradients = gradients
        self.saved: Any = saved

    @property
    def edges(self) -> tuple[tape.Edge, ...]:  # type: ignore[override]
        """For each source, where its gradient goes; accumulators of leaves are made when asked for."""
        if self._edges is None:
            self._edges = tuple(self._ends())
        return self._edges

    def _ends(self) -> list[tape.Edge]:
        return [(tape.accumulator(s), 0) if isinstance(s, Tensor) else s for s in self.sources]

    def name(self) -> str:
        """How it prints."""
        return "CompiledBackward0"

    def release(self) -> None:
        """Drop residuals and inputs."""
        self.residuals = None
        self.inputs = None
        self.gradients = None
        self.saved = None

    def owns(self, part: Tensor, cotangents: Sequence[Tensor | None]) -> bool:
        """Gradients are new arrays, one each."""
        return part._array.base is None

    def apply(self, cotangents: list[Tensor | None], create_graph: bool) -> list[Tensor | None]:
        """Run the compiled backward, or eager operations where it must be differentiable."""
        if self.residuals is None:
            raise GradientError(tape.FREED)
        present = tuple(c is not None for c in cotangents)
        if self.saved:
            both = zip(self.saved, self.trace.saved_by, strict=True)
            self._unchanged([s for s, by in both if any(present[k] for k in by)])
        given = [
            c if order is None else ops.permute(c, axes=order)
            for c, order in zip(cotangents, self.trace.result_orders, strict=True) if c is not None
        ]  # fmt: skip
        if create_graph or state.recorder is not None:  # a recorder hears of operations only
            parts, wrt = self._differentiable(present, given)
        elif self.joint is not None:
            parts, wrt = self._of_joint(self.joint, present, given)
        else:
            backward = self.trace.backward(present)
            wrt = backward.wrt
            arrays = self._arrays(backward)
            parts = [wrap(a) for a in backward.run(arrays, [c._array for c in given])]
            mode = self.trace.mode
            if mode is not None and len(given) == 1 and is_one(given[0]):
                mode.followed(present.index(True), [a for a, _, _ in self.inputs])
        by_input = dict(zip(wrt, parts, strict=True))
        return [by_input.get(i) for i in self.trace.wrt]

    def _of_joint(
        self, joint: Joint, present: tuple[bool, ...], given: Sequence[Tensor]
    ) -> tuple[list[Tensor], tuple[int, ...]]:
        """Gradients of a joint launch: those that it has computed, or others from its inputs."""
        self._unchanged(self.residuals)
        if (
            self.gradients is not None and len(given) == 1 and present[joint.number]
            and is_one(given[0])
        ):  # fmt: skip
            found = [wrap(a) for a in self.gradients if a is not None]
            self.gradients = None  # they are the caller's now
            self.trace.mode.limit = self.trace.hits + UNUSED
            return found, joint.wrt
        backward = self.trace.backward_of_inputs(present)
        arrays = self._arrays(backward)
        return [wrap(a) for a in backward.run(arrays, [c._array for c in given])], backward.wrt

    def hand_over(self, output: Tensor, keep: bool) -> bool:
        """The whole backward of a scalar result of a joint launch, where nobody watches it.

        Returns:
            False, with nothing done, where the engine must go the long way.
        """
        gradients, joint, inputs = self.gradients, self.joint, self.inputs
        if (
            gradients is None or joint is None or inputs is None
            or output._output_nr != joint.number or self.retained or self.hooks is not None
            or watching or profilers or marking or anomaly.enabled
        ):  # fmt: skip
            return False
        leaves = []
        source: Any
        for source in self.sources:
            if source.__class__ is tuple:
                end = source[0]
            else:
                end = source._accumulator and source._accumulator()
                if end is None:
                    leaves.append(source)
                    continue
            if type(end) is tape.AccumulateGrad and end.hooks is None:
                leaves.append(end.variable)
            else:
                return False
        for _, storage, version in self.residuals:
            if storage.version != version:
                return False
        for _, storage, version in self.saved:
            if storage.version != version:
                return False
        self.gradients = None
        trace = self.trace
        for leaf, array, i in zip(leaves, gradients, trace.wrt):
            if array is not None:
                first(leaf, array, inputs[i][0])
        if not keep:
            self.residuals = self.inputs = self.saved = None
        trace.mode.limit = trace.hits + UNUSED
        return True

    def _arrays(self, backward: Backward) -> list[np.ndarray]:
        """What the backward starts from, checked to be as the forward left it."""
        if backward.from_residuals:
            return self._unchanged(self.residuals)
        return self._unchanged(self.inputs, backward.read)

    def _unchanged(
        self, kept: Sequence[tuple[np.ndarray, Storage | None, int]] | None,
        read: Sequence[bool] | None = None,
    ) -> Any:  # fmt: skip
        """The arrays, of which those that are `read` (all, by default) must be as they were."""
        if kept is None:  # another thread released the node meanwhile
            raise GradientError(tape.FREED)
        for k, (array, storage, version) in enumerate(kept):
            if read is not None and not read[k]:
                continue
            if storage is not None and storage.version != version:
                edge = self._edge_of(storage)
                raise GradientError(tape._overwritten(storage, version, edge, type_of(array)))
        return [array for array, _, _ in kept]

    def _edge_of(self, storage: Storage) -> tape.Edge:
        """What made the input that lies in `storage`, if its gradient is asked for."""
        for i, edge in zip(self.trace.wrt, self.edges, strict=True):
            if self.inputs is not None and self.inputs[i][1] is storage:
                return edge
        return tape.NO_EDGE

    def _differentiable(self, present: tuple[bool, ...], given: Sequence[Tensor]) -> Any:
        """Gradients computed by eager operations on the inputs, so that they have a history."""
        graph, wrt = self.trace.history_graph(present)
        inputs, kept = [], self.inputs
        for array, (_, storage, _) in zip(self._unchanged(kept), kept, strict=True):
            inputs.append(wrap(array, storage))
        for i, (node, number) in zip(self.trace.wrt, self.edges, strict=True):
            inputs[i]._requires_grad = True
            inputs[i]._grad_fn, inputs[i]._output_nr = tape.beyond((node, number))
        found = evaluate(graph, [*inputs, *given])
        # a gradient that is zero everywhere does not depend on a tensor: evaluation keeps an array
        return [
            x if isinstance(x, Tensor) else wrap(like_device(np.array(x), graph)) for x in found
        ], wrt


class FreedBackward(tape.BackwardNode):
    """The tape node of a result whose history a backward inside of the function has used up."""

    __slots__ = ()

    def name(self) -> str:
        """As of other results."""
        return "CompiledBackward0"

    def apply(self, cotangents: list[Tensor | None], create_graph: bool) -> list[Tensor | None]:
        """Refuse: there is nothing left to go through."""
        raise GradientError(tape.FREED)


def gradient_source(tensor: Tensor) -> Tensor | tape.Edge:
    """Where the gradient of an input goes: a leaf that has no accumulator yet, or an edge.

    Accumulators of such leaves are made only where somebody asks for the edges: nobody can have
    put a hook on one that was never made.
    """
    if tensor._grad_fn is None and tensor._view is None:
        if tensor._accumulator is None or tape.forget_accumulator(tensor):
            return tensor
    return tape.gradient_edge(tensor)


def is_one(cotangent: Tensor) -> bool:
    """Whether a cotangent is the number 1, as that of a loss is."""
    array = cotangent._array
    return array.shape == () and array.__class__ is not DeviceArray and bool(array == 1)
