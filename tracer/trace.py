"""A trace: one captured run, compiled.

A `Trace` owns the graphs, the forward executable and the launcher. The forward also returns the
residuals, which the tape node in `compiled_backward` keeps. Start reading at `Trace`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tracegrad.codegen.checks import Check
from tracegrad.codegen.launchers import GUARD_RAISED
from tracegrad.codegen.memory_plan import MemoryPlans, memory_plan
from tracegrad.codegen.unit import Unit, contiguous_inputs
from tracegrad.ir.errors import (
    CaptureError,
    NotDifferentiableError,
)
from tracegrad.ir.graph import Graph, Value
from tracegrad.ir.passes import autodiff, optimize
from tracegrad.ir.passes.partition import Partition, partition
from tracegrad.ir.passes.sizes import with_sizes
from tracegrad.ir.types import Shape, TensorType
from tracegrad.runtime import background, executable
from tracegrad.runtime.cuda.placing import device_index
from tracegrad.runtime.executable import Executable, Strayed
from tracegrad.runtime.kernels import pointer
from tracegrad.runtime.layouts import inverse
from tracegrad.tracer.capture import Capture
from tracegrad.tracer.compiled_backward import Backward
from tracegrad.tracer.guard_words import in_words as guards_in_words
from tracegrad.tracer.joint import JointMode
from tracegrad.tracer.launcher import GRADIENT, MISS, OVERLAP, LauncherBuilder
from tracegrad.tracer.places import Place, passed_through, put_last
from tracegrad.tracer.predicates import in_words
from tracegrad.tracer.pytree import LEAF, Structure
from tracegrad.tracer.resident import on_device_of, plain_memory
from tracegrad.tracer.segments import Segmented
from tracegrad.tracer.tape import numbers_abroad
from tracegrad.tracer.tensor import Tensor
from tracegrad.tracer.user_tape import Slot

if TYPE_CHECKING:
    from tracegrad.tracer.guards import Guard
    from tracegrad.tracer.kept_by_tape import Saved

_SHOWN = 12  # inputs in `explain()`


def _reordered(type: TensorType, order: tuple[int, ...] | None) -> TensorType:
    """The type of a result, given that of the output that has it in the order of its memory."""
    if order is None:
        return type
    return replace(type, shape=tuple(type.shape[k] for k in inverse(order)))


class Trace:
    """A captured run that can be replayed.

    Args:
        name: of the user's function.
        capture: the run.
        guards: what must hold outside for a replay.
        why: the words for `explain()`: why it was captured.
        verify: "first", "always" or "off": when results are compared with the interpreter's.
        same: pairs (argument position, tensor): the argument was this captured tensor.
        sizes: shapes of arguments, by position, with the sizes that vary from call to call.
        earlier: the graphs of traces for other sizes.
        debug: look for NaN in what is computed.
        budget: bytes that the forward may keep for the backward beside inputs and results.
        saved: inputs and outputs in whose memory lies what the tape of the captured run has saved: a
            write to it before the backward is refused, as in eager mode.
    """

    def __init__(
        self, name: str, capture: Capture, guards: Sequence[Guard], why: str, verify: str,
        same: Sequence[tuple[int, Tensor]] = (), sizes: Mapping[int, Shape] | None = None,
        earlier: Sequence[Graph] = (), debug: bool = False, budget: int | None = None,
        saved: Sequence[Saved] = (),
    ) -> None:  # fmt: skip
        self.name, self.capture, self.guards, self.why = name, capture, tuple(guards), why
        self.verify, self.same, self.debug = verify, tuple(same), debug
        self.budget = budget
        written = {w.source for w in capture.writes}
        self.saved = tuple(s for s in saved if s[0] == "output" or s[1] not in written)
        self.saved_by: tuple[tuple[int, ...], ...] = ()  # what each of a node's `saved` is for
        self.hits = 0
        self.failed_guard: int | None = None
        self.sizes = sizes or {}
        self.result_orders = [capture.orders.get(k) for k in self.cotangent_outputs()]
        self.result_types = tuple(
            _reordered(capture.graph.outputs[k].type, order)
            for k, order in zip(self.cotangent_outputs(), self.result_orders, strict=True)
        )
        self.graph = with_sizes(optimize(capture.graph), self._input_shapes(), earlier)
        self.place = None if self.graph.device == "cpu" else device_index(self.graph.device)
        self.copied, self.strides = self._layouts()
        self.wrt = self._wrt() if capture.tape is None else ()
        asked = [self.graph.inputs[i].type for i in self.wrt]
        self.abroad = numbers_abroad(asked, self.graph.device)
        self.cut: Partition | None = None
        self.backward_error: NotDifferentiableError | None = None
        forward = self.graph
        self.segmented: Segmented | None = None
        if capture.tape is not None:
            contiguous = [s.contiguous for s in capture.sources]
            self.segmented = Segmented(
                self, capture.tape, self._input_shapes(), self.graph, contiguous
            )
            forward = self.segmented.forward
        if self.wrt:
            try:
                self.cut = self._partition(self.cotangent_outputs())
                forward = self.cut.forward
            except NotDifferentiableError as error:
                self.backward_error = error  # raised by backward(), as eager mode would
        self.forward_graph = optimize(forward)
        self.predicates = list(capture.predicates)
        self._keys = tuple(p.key for p in self.predicates)
        distinct, places = passed_through(self.forward_graph)
        kept = set(range(len(places))) - ({p.at for p in self.predicates} - self.wanted())
        self.distinct, self.places, self.returned = put_last(distinct, places, kept)
        self._backwards: dict[tuple[bool, ...], Backward] = {}
        self._from_inputs: dict[tuple[bool, ...], Backward] = {}
        self._histories: dict[tuple[bool, ...], tuple[Graph, tuple[int, ...]]] = {}
        self.apart = False  # the worker compiles for it
        self.mode = JointMode(self)
        self.executable: Executable | None = None
        self.launch: Callable[[Sequence[Any]], Any] = lambda leaves: MISS
        self.launcher_text = ""

    # ---- building -------------------------------------------------------------------------------

    def _input_shapes(self) -> dict[int, Shape]:
        """The shapes with sizes that vary, by number of the input."""
        return {
            k: self.sizes[s.position] for k, s in enumerate(self.capture.sources)
            if s.kind == "argument" and s.position in self.sizes
        }  # fmt: skip

    def _layouts(self) -> tuple[set[int], dict[Value, Shape]]:
        """Inputs that the launcher copies, and the strides of the other non-contiguous ones."""
        plain = contiguous_inputs(self.graph)
        copied: set[int] = set()
        strides: dict[Value, Shape] = {}
        for k, (source, value) in enumerate(
            zip(self.capture.sources, self.graph.inputs, strict=True)
        ):
            if source.contiguous:
                continue
            if source.strides is None or value in plain:
                copied.add(k)
            else:
                strides[value] = source.strides
        return copied, strides

    def cotangent_outputs(self) -> tuple[int, ...]:
        """Positions of the graph's outputs that take a cotangent."""
        return tuple(k for k, flag in enumerate(self.capture.differentiable) if flag)

    def _wrt(self) -> tuple[int, ...]:
        """Inputs that require grad and on which a differentiable output depends.

        Asked of the graph as captured: where simplification finds that nothing depends on an input
        after all, its gradient is zero, not missing.
        """
        asked = [k for k, s in enumerate(self.capture.sources) if s.requires_grad]
        return autodiff.connected_inputs(self.capture.graph, asked, self.cotangent_outputs())

    def _partition(self, outputs: Sequence[int]) -> Partition:
        whole = autodiff.joint(self.graph, self.wrt, outputs)
        return partition(whole, len(self.graph.inputs), len(self.graph.outputs), self.budget)

    def wanted(self) -> set[int]:
        """The outputs of the captured graph that a replay returns or leaves somewhere."""
        places = [
            *self.capture.returns,
            *((w.kind, w.at) for w in self.capture.writes),
            *((c.kind, c.at) for c in self.capture.gradient_changes),
            *(place for callback in self.capture.callbacks for place in callback.tensors),
            *((kind, k) for kind, k, _ in self.capture.views),
            *(() if self.segmented is None else self.segmented.given),
            *(s.place for s in self._slots() if s.place is not None),
        ]
        return {k for kind, k in places if kind == "output"}

    def _slots(self) -> Sequence[Slot]:
        return () if self.capture.tape is None else self.capture.tape.slots

    def replaced(self) -> dict[int, int]:
        """Arrays of the forward that only replace what an input holds: they may be written there.

        Not where somebody looks at that input after the launch as it was before: what the backward
        keeps, callbacks, a verification of each call, results that are an input's value.
        """
        capture = self.capture
        if (
            self.place is not None or self.debug or self.verify == "always" or capture.callbacks
            or (self.wrt and self.cotangent_outputs()) or self.segmented is not None
        ):  # fmt: skip
            return {}
        read = {at for kind, at in self.places if kind == "input"}
        writes = [
            w for w in capture.writes if w.kind == "output" and self.places[w.at][0] == "array"
        ]
        kept = [k for kind, k in capture.returns if kind == "output"]
        kept += [c.at for c in capture.gradient_changes if c.kind == "output"]
        kept += [p.at for p in self.predicates]
        kept += [k for kind, k, _ in capture.views if kind == "output"]
        arrays = [self.places[k][1] for k in kept] + [self.places[w.at][1] for w in writes]
        found = {}
        for w in writes:
            array, source = self.places[w.at][1], capture.sources[w.source]
            alone = arrays.count(array) == 1
            if alone and source.contiguous and w.source not in read:
                if self.distinct[array].type == self.graph.inputs[w.source].type:
                    found[array] = w.source
        return found

    def checks(self, places: Sequence[Place]) -> list[Check]:
        """What generated code checks; `places` are those of the captured graph's outputs."""
        checks = []
        for p in self.predicates:
            kind, at = places[p.at]
            kind = "output" if kind == "array" else "input"
            checks.append(Check(kind, at, p.seen.tobytes(), str(p)))
        return checks

    def compile(self) -> None:
        """Generate, compile and load the forward; then make the launcher.

        Raises:
            CompilerNotFound, CompileError: from the toolchain.
        """
        graph = self.kernel_graph()
        checks = self.checks(self.places)
        if graph.outputs or checks:
            self.executable = executable.build(
                graph, "forward", self.strides, checks, self.returned, self.debug, self.replaced()
            )
        self.make_launcher()

    def make_launcher(self) -> None:
        """Write the launcher anew: for forward and backward apart, or for both in one pass."""
        self.launcher_text, self.launch = LauncherBuilder(self).build()

    def compile_apart(self, then: Callable[[], None]) -> background.Job | None:
        """Have the worker do what takes long in `compile`; None where it cannot, or nothing does.

        Args:
            then: called in a thread when it has.
        """
        graph, checks = self.kernel_graph(), self.checks(self.places)
        job = None
        if graph.outputs or checks:
            job = background.submit(
                graph, self.strides, checks, self.returned, then, self.replaced()
            )
        self.apart = job is not None
        return job

    def kernel_graph(self) -> Graph:
        """What is compiled: the forward graph with each output once and no input among them."""
        return self.forward_graph.replace(outputs=self.distinct, name=self.name)

    def returned_graph(self) -> Graph:
        """`kernel_graph` without the outputs that are only checked."""
        graph = self.kernel_graph()
        return graph.replace(outputs=graph.outputs[: self.returned])

    def beginning(self, count: int) -> tuple[bytes, ...]:
        """What the first `count` predicates saw, see `Predicate.key`."""
        return self._keys[:count]

    def key_of(self, stray: Strayed) -> bytes:
        """What a predicate found instead."""
        return stray.value[: len(self._keys[stray.number])]

    def adopt(self, stray: Strayed) -> bool:
        """Take the number that compiled code computes for the one read eagerly, if they are close."""
        adopted = self.predicates[stray.number].adopted(stray.value)
        if adopted is not None:
            self.predicates[stray.number] = adopted
            self._keys = tuple(p.key for p in self.predicates)
        return adopted is not None

    def run_forward(self, arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """The compiled forward on arrays: one result per output of `returned_graph()`.

        Raises:
            Strayed: a predicate is not as it was at the capture.
        """
        if self.executable is None:
            return ()
        fit = [plain_memory(a) if k in self.copied else a for k, a in enumerate(arrays)]
        fit = on_device_of(self.graph, fit)
        replaced = dict(self.executable.unit.inplace) if self.place is None else {}
        for k in replaced.values():
            fit[k] = fit[k].copy()  # this is a look at the results, no launch
        made = iter(self.executable.call(*(pointer(a) for a in fit)))
        return tuple(
            fit[replaced[k]] if k in replaced else next(made) for k in range(self.returned)
        )

    # ---- the backward ---------------------------------------------------------------------------

    def backward(self, present: tuple[bool, ...]) -> Backward:
        """The backward for cotangents of some of the outputs; generated at first use.

        Raises:
            NotDifferentiableError: an operation on the way has no derivative.
        """
        if self.backward_error is not None:
            raise self.backward_error
        found = self._backwards.get(present)
        if found is None:
            found = self._backwards[present] = Backward(self, present)
        return found

    def backward_of_inputs(self, present: tuple[bool, ...]) -> Backward:
        """The same from the inputs alone, for launches that have kept nothing else."""
        found = self._from_inputs.get(present)
        if found is None:
            found = self._from_inputs[present] = Backward(self, present, of_inputs=True)
        return found

    def result_shape(self, number: int) -> Shape:
        """The shape of an output that takes a cotangent, by its number among those."""
        return self.result_types[number].shape

    def backwards(self) -> tuple[Backward, ...]:
        """The backwards that were asked for so far."""
        if self.segmented is not None:
            return tuple(b for s in self.segmented.segments for b in s.backwards())
        return (*self._backwards.values(), *self._from_inputs.values())

    def full_backwards(self) -> tuple[Backward, ...]:
        """The backward for cotangents of all differentiable outputs: of each segment, where the
        user's functions lie between several.

        Raises:
            CaptureError: nothing was differentiable in the captured run.
        """
        if self.segmented is not None:
            return tuple(s.full_backward() for s in self.segmented.segments)
        return (self.full_backward(),)

    def vjp_graph(self, present: tuple[bool, ...]) -> tuple[Graph, tuple[int, ...]]:
        """Primal inputs and present cotangents -> gradients of the inputs that they reach."""
        outputs = [k for k, here in zip(self.cotangent_outputs(), present, strict=True) if here]
        wrt = autodiff.connected_inputs(self.capture.graph, self.wrt, outputs)
        return optimize(autodiff.vjp(self.graph, wrt, outputs)), wrt

    def history_graph(self, present: tuple[bool, ...]) -> tuple[Graph, tuple[int, ...]]:
        """As `vjp_graph`, of the function as captured and not simplified.

        For gradients that are differentiated again: what simplification sees to be constant may
        have a history all the same.
        """
        found = self._histories.get(present)
        if found is None:
            outputs = [k for k, here in zip(self.cotangent_outputs(), present, strict=True) if here]
            wrt = autodiff.connected_inputs(self.capture.graph, self.wrt, outputs)
            found = autodiff.vjp(self.capture.graph, wrt, outputs), wrt
            self._histories[present] = found
        return found

    def full_backward(self) -> Backward:
        """The backward for cotangents of all differentiable outputs.

        Raises:
            CaptureError: nothing was differentiable in the captured run.
        """
        outputs = self.cotangent_outputs()
        if self.segmented is not None:
            raise CaptureError(
                f"{self.name} has several backward graphs, between which functions of yours are "
                "called; .source('backward') shows them all"
            )
        if not self.wrt or not outputs:
            raise CaptureError(
                f"{self.name} has no backward: no result depends on an input that requires grad"
            )
        return self.backward((True,) * len(outputs))

    def place_of_condition(self, number: int) -> int:
        """The position that a launcher reports where a condition on numbers fails."""
        return len(self.guards) + len(self.capture.sources) + number

    def missed(self, position: int) -> Any:
        """Note which guard failed; what a launcher returns then."""
        self.failed_guard = position
        return MISS

    # ---- words ----------------------------------------------------------------------------------

    def guard_that_failed(self) -> Guard | None:
        """The guard of something outside that failed last."""
        position = self.failed_guard
        known = position is not None and 0 <= position < len(self.guards)
        return self.guards[position] if known else None  # type: ignore[index]

    def explain_miss(self) -> str:
        """Which guard failed last, what it expected and what it saw."""
        position = self.failed_guard
        if position is None:
            return "no guard failed"
        if 0 <= position < len(self.guards):
            return self.guards[position].explain()
        if position == GUARD_RAISED:
            gone = next((g for g in self.guards if not g.holds()), None)
            return gone.explain() if gone is not None else "what it read could not be looked up"
        if position == GRADIENT:
            return "a .grad was there, or was not, unlike at the capture, or a hook waits for it"
        if position == OVERLAP:
            return "a tensor that it writes to overlapped another input"
        if position < 0:
            return "an argument was also read from outside the function, and no longer is"
        if position >= self.place_of_condition(0):
            condition = self.capture.conditions[position - self.place_of_condition(0)]
            return f"it no longer holds that {condition}"
        source = self.capture.sources[position - len(self.guards)]
        name = source.value.name or "a tensor from outside"
        return f"{name} is not {source.value.type} with the same strides and requires_grad any more"

    def explain_stray(self, stray: Strayed) -> str:
        """Which predicate saw another value, in words."""
        predicate = self.predicates[stray.number]
        return f"{predicate} at an earlier capture, now {predicate.as_number(stray.value)}"

    def describe(self, number: int) -> list[str]:
        """Lines for `explain()`."""
        listed = [f"{s.value.name or s.kind}: {s.value.type}" for s in self.capture.sources]
        inputs = ", ".join(listed[:_SHOWN])
        if len(listed) > _SHOWN:
            inputs += f" and {len(listed) - _SHOWN} more"
        kernels = self.executable.unit.kernels if self.executable is not None else 0
        lines = [
            f"Trace {number}: captured because {self.why}; replayed {self.hits} time(s).",
            f"    inputs: {inputs or 'none'}",
            f"    {len(self.graph.nodes)} operations in {kernels} kernel(s)",
        ]
        if self.budget is not None:
            lines.append(
                f"    residuals: {self._kept_bytes():,} bytes, of a budget of {self.budget:,}"
            )
        if self.mode.active is not None:
            lines.append(
                "    gradients: computed by each launch, because a backward follows each call"
            )
        for k, shape in self._input_shapes().items():
            name = self.capture.sources[k].value.name
            lines.append(
                f"    sizes that vary: {name} is {list(shape)}, here {list(map(int, shape))}"
            )
        lines += [f"    path: {read}" for read in in_words(self.predicates)]
        for name, location in self.capture.pinned:
            lines.append(f"    only for this value of {name}: Python reads it at {location}")
        lines += [f"    where: {condition}" for condition in self.capture.conditions]
        return lines + [f"    guarded: {line}" for line in guards_in_words(self.guards)]

    # ---- results --------------------------------------------------------------------------------

    def remember_results(self, structure: Structure, leaves: Sequence[Any]) -> None:
        """Keep how the returned tensors are nested among other values."""
        self._structure = structure
        self._leaves = [None if isinstance(x, Tensor) else (x,) for x in leaves]
        self.single = structure is LEAF and isinstance(leaves[0], Tensor)

    def rebuild(self, tensors: tuple[Tensor, ...]) -> Any:
        """The tensors of a launch in the form in which the function returns them."""
        if self.single:
            return tensors[0]
        remaining = iter(tensors)
        leaves = [next(remaining) if x is None else x[0] for x in self._leaves]
        return self._structure.build(iter(leaves))

    def memory_plans(self) -> MemoryPlans:
        """The memory of each pass: forward, backward, and both in one where launches run that.

        Raises:
            CaptureError: the trace is on a device, whose pool gives temporaries their places.
        """
        if self.place is not None:
            raise CaptureError(
                f"memory_plan: {self.name} runs on {self.graph.device}, where temporaries come from the "
                "pool at each call; see cuda.memory_stats()"
            )
        made = []
        graph, checks = self.kernel_graph(), self.checks(self.places)
        if graph.outputs or checks:
            unit = executable.planned(graph, self.strides, checks, self.returned, self.replaced())
            primal = {at for kind, at in self.places[: len(self.graph.outputs)] if kind == "array"}
            kept = set(range(self.returned)) - primal
            made.append(memory_plan(f"forward of {self.name}", unit, kept))
        if self.cut is not None or self.segmented is not None:
            for b in self.backwards() or self.full_backwards():
                unit = executable.planned(b.kernel_graph(), b.strides)
                made.append(memory_plan(f"backward of {self.name}", unit))
        joint = self.mode.active
        if joint is not None:
            checks = self.checks(joint.places)
            unit = executable.planned(joint.graph(), {}, checks, joint.returned)
            made.append(memory_plan(f"joint pass of {self.name}", unit))
        return MemoryPlans(made)

    def _kept_bytes(self) -> int:
        """Bytes that the forward keeps for the backward beside its inputs and what it returns."""
        cuts = [self.cut] if self.segmented is None else [s.cut for s in self.segmented.segments]
        return sum(cut.stored_bytes for cut in cuts if cut is not None)

    def source_on(self, which: str, device: str) -> str:
        """The text of the forward or backward as it would be on a device."""
        if which == "backward":
            return "\n".join(
                executable.generate(b.kernel_graph(), b.strides, device=device).source
                for b in self.full_backwards()
            )
        graph = self.kernel_graph()
        if not graph.outputs:
            return "/* nothing is computed */\n"
        checks = self.checks(self.places) if device == "cpu" else ()
        return executable.generate(graph, self.strides, checks, self.returned, device).source

    def forward_unit(self) -> Unit | None:
        """The generated C of the forward; None where nothing is computed."""
        return self.executable.unit if self.executable is not None else None
