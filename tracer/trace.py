"""A trace: one captured run, compiled; and the tape node of its backward.

A `Trace` owns the graphs, the executables and the launcher. The forward executable also returns the
residuals; `CompiledBackward` keeps them on the tape and runs the backward executable when the
engine reaches it. The backward is generated at its first use. Start reading at `Trace`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tracegrad.codegen.launchers import GUARD_RAISED, GuardLine, Launcher, launcher_text
from tracegrad.codegen.unit import Unit, contiguous_inputs
from tracegrad.ir.errors import (
    CaptureError,
    CompileError,
    CompilerNotFound,
    GradientError,
    NotDifferentiableError,
)
from tracegrad.ir.evaluate import evaluate
from tracegrad.ir.graph import Graph, Value
from tracegrad.ir.passes import autodiff, optimize
from tracegrad.ir.passes.partition import Partition, partition
from tracegrad.ir.primitive import type_of
from tracegrad.ir.types import Shape
from tracegrad.runtime import executable
from tracegrad.runtime.executable import Executable
from tracegrad.runtime.kernels import pointer
from tracegrad.tracer import tape, verification
from tracegrad.tracer.capture import Capture, Source
from tracegrad.tracer.pytree import LEAF, Structure
from tracegrad.tracer.storage import Storage
from tracegrad.tracer.tensor import Tensor, wrap

if TYPE_CHECKING:
    from tracegrad.tracer.guards import Guard

MISS = object()
"""What a launcher returns when one of its guards fails."""


class Trace:
    """A captured run that can be replayed.

    Args:
        name: of the user's function.
        capture: the run.
        guards: what must hold outside for a replay.
        why: the words for `explain()`: why it was captured.
        verify: "first", "always" or "off": when results are compared with the interpreter's.
        same: pairs (argument position, tensor): the argument was this captured tensor.
    """

    def __init__(
        self, name: str, capture: Capture, guards: Sequence[Guard], why: str, verify: str,
        same: Sequence[tuple[int, Tensor]] = (),
    ) -> None:  # fmt: skip
        self.name, self.capture, self.guards, self.why = name, capture, tuple(guards), why
        self.verify, self.same = verify, tuple(same)
        self.hits = 0
        self.failed_guard: int | None = None
        self.graph = optimize(capture.graph)
        self.copied, self.strides = self._layouts()
        self.wrt = self._wrt()
        self.cut: Partition | None = None
        self.backward_error: NotDifferentiableError | None = None
        forward = self.graph
        if self.wrt:
            try:
                self.cut = self._partition(self._cotangent_outputs())
                forward = self.cut.forward
            except NotDifferentiableError as error:
                self.backward_error = error  # raised by backward(), as eager mode would
        self.forward_graph = optimize(forward)
        self.distinct, self.places = _passed_through(self.forward_graph)
        self._backwards: dict[tuple[bool, ...], Backward] = {}
        self.executable: Executable | None = None
        self.launch: Callable[[Sequence[Any]], Any] = lambda leaves: MISS
        self.launcher_text = ""

    # ---- building -------------------------------------------------------------------------------

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

    def _cotangent_outputs(self) -> tuple[int, ...]:
        return tuple(k for k, flag in enumerate(self.capture.differentiable) if flag)

    def _wrt(self) -> tuple[int, ...]:
        """Inputs that require grad and on which a differentiable output depends.

        Asked of the graph as captured: where simplification finds that nothing depends on an input
        after all, its gradient is zero, not missing.
        """
        asked = [k for k, s in enumerate(self.capture.sources) if s.requires_grad]
        return autodiff.connected_inputs(self.capture.graph, asked, self._cotangent_outputs())

    def _partition(self, outputs: Sequence[int]) -> Partition:
        whole = autodiff.joint(self.graph, self.wrt, outputs)
        return partition(whole, len(self.graph.inputs), len(self.graph.outputs))

    def compile(self) -> None:
        """Generate, compile and load the forward; then make the launcher.

        Raises:
            CompilerNotFound, CompileError: from the toolchain.
        """
        graph = self.kernel_graph()
        if graph.outputs:
            self.executable = executable.build(graph, "forward", self.strides)
        self._make_launcher()

    def kernel_graph(self) -> Graph:
        """What is compiled: the forward graph with each output once and no input among them."""
        return self.forward_graph.replace(outputs=self.distinct, name=self.name)

    def run_forward(self, arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """The compiled forward on arrays: one result per output of `kernel_graph()`."""
        if self.executable is None:
            return ()
        fit = [plain_memory(a) if k in self.copied else a for k, a in enumerate(arrays)]
        return self.executable.call(*(pointer(a) for a in fit))

    # ---- the launcher ---------------------------------------------------------------------------

    def _make_launcher(self) -> None:
        names = _input_names(self.capture.sources)
        namespace: dict[str, Any] = {
            "MISS": MISS, "trace": self, "wrap": wrap, "pointer": pointer, "missed": self._missed,
            "contiguous": plain_memory, "CompiledBackward": CompiledBackward,
            "edge": tape.gradient_edge,
        }  # fmt: skip
        guards = self._guard_views(namespace)
        inputs: list[str] = []
        addresses: list[str] = []
        for k, (source, name) in enumerate(zip(self.capture.sources, names, strict=True)):
            if source.kind == "argument":
                inputs.append(f"{name} = leaves[{source.position}]")
            elif source.kind == "random":
                namespace[f"generator_{k}"] = source.generator
                inputs.append(f"{name} = generator_{k}.next_state()")
            else:
                namespace[name] = source.tensor
            if k in self.copied:
                inputs.append(f"copy_{k} = contiguous({name}._array)")
                addresses.append(f"pointer(copy_{k})")
            else:
                addresses.append(f"{name}._ptr()")
        if self.executable is not None:
            namespace["forward"] = self.executable.call
            made = ", ".join(f"array_{k}" for k in range(len(self.distinct)))
            call = f"{made}, = forward({', '.join(addresses)})"
            if self.verify == "always":
                namespace["verified"] = lambda *parts: verification.verified(self, *parts)
                arrays = _tuple([f"{name}._array" for name in names])
                call += f"\n    {made}, = verified({arrays}, ({made},))"
        else:
            call = "trace.hits += 1"
        results = self._result_lines(names)
        view = Launcher(
            f"Replay of {self.name}, captured because {self.why}.", tuple(guards), tuple(inputs),
            call, tuple(results), self._returned(names),
        )  # fmt: skip
        self.launcher_text = launcher_text(view)
        exec(compile(self.launcher_text, f"<tracegrad launcher of {self.name}>", "exec"), namespace)
        self.launch = namespace["launch"]

    def _guard_views(self, namespace: dict[str, Any]) -> list[GuardLine]:
        views = []
        for i, guard in enumerate(self.guards):
            namespace.update(guard.bindings)
            where = f", read at {guard.location}" if guard.location else ""
            views.append(GuardLine(guard.text, f"{guard.name}{where}", i))
        for k, s in enumerate(self.capture.sources):
            if s.kind != "captured":
                continue
            assert s.tensor is not None
            namespace[f"captured_{k}"] = s.tensor
            name = s.value.name or f"captured_{k}"
            array = s.tensor._array
            namespace[f"dtype_{k}"] = array.dtype
            text = (
                f"captured_{k}._array.shape == {array.shape} and "
                f"captured_{k}._array.strides == {array.strides} and "
                f"captured_{k}._array.dtype == dtype_{k} and "
                f"captured_{k}.requires_grad is {s.tensor.requires_grad}"
            )
            views.append(GuardLine(text, f"{name}: {s.value.type}", len(self.guards) + k))
        for position, tensor in self.same:
            namespace[f"same_{position}"] = tensor
            text = f"leaves[{position}] is same_{position}"
            views.append(GuardLine(text, "the argument was also read from outside", -1))
        return views

    def _missed(self, position: int) -> Any:
        self.failed_guard = position
        return MISS

    def _result_lines(self, names: Sequence[str]) -> list[str]:
        """Wrap the arrays that the caller sees, and put the backward on the tape."""
        lines = []
        owners = self._owners()
        for k, (kind, at) in enumerate(self.places[: len(self.capture.graph.outputs)]):
            if kind == "array" and owners[at] == k:
                lines.append(f"out_{k} = wrap(array_{at})")
            else:  # the same value once more: memory of its own
                source = f"array_{at}" if kind == "array" else f"{names[at]}._array"
                lines.append(f"out_{k} = wrap({source}.copy())")
        outputs = self._cotangent_outputs()
        if self.wrt and outputs:
            residuals = _tuple([self._residual(v, names) for v in self._residual_values()])
            edges = _tuple([f"edge({names[i]})" for i in self.wrt])
            inputs = _tuple([f"({n}._array, {n}._storage, {n}._storage.version)" for n in names])
            lines.append(f"node = CompiledBackward(trace, {edges}, {residuals}, {inputs})")
            for number, k in enumerate(outputs):
                lines.append(f"out_{k}._requires_grad = True")
                lines.append(f"out_{k}._grad_fn = node")
                if number:
                    lines.append(f"out_{k}._output_nr = {number}")
        lines.append("trace.hits += 1")
        return lines

    def _owners(self) -> dict[int, int]:
        """For each array of the forward that the caller sees, the first output that wraps it."""
        owners: dict[int, int] = {}
        for k, (kind, at) in enumerate(self.places[: len(self.capture.graph.outputs)]):
            if kind == "array":
                owners.setdefault(at, k)
        return owners

    def _residual_values(self) -> tuple[Value, ...]:
        return self.cut.residuals if self.cut is not None else ()

    def _residual(self, value: Value, names: Sequence[str]) -> str:
        """Python text of one residual: (array, storage or None, version).

        The storage is that of the tensor whose memory it is, so that a write to it is noticed.
        """
        assert self.cut is not None
        if value in self.cut.forward.inputs:
            k = self.cut.forward.inputs.index(value)
            array = f"copy_{k}" if k in self.copied else f"{names[k]}._array"
            return f"({array}, {names[k]}._storage, {names[k]}._storage.version)"
        kind, at = self.places[self.cut.forward.outputs.index(value)]
        if kind == "input":  # simplification found it to be one
            array = f"{names[at]}._array"
            if not self.capture.sources[at].contiguous:
                array = f"contiguous({array})"
            return f"({array}, {names[at]}._storage, {names[at]}._storage.version)"
        owner = self._owners().get(at)
        return f"(array_{at}, {'None' if owner is None else f'out_{owner}._storage'}, 0)"

    def _returned(self, names: Sequence[str]) -> str:
        parts = []
        for kind, k in self.capture.returns:
            if kind == "output":
                parts.append(f"out_{k}")
            elif self.capture.sources[k].kind in ("argument", "captured"):
                parts.append(names[k])
            else:
                parts.append(f"wrap({names[k]}._array.copy())")  # each call makes a new one
        return _tuple(parts)

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

    def vjp_graph(self, present: tuple[bool, ...]) -> tuple[Graph, tuple[int, ...]]:
        """Primal inputs and present cotangents -> gradients of the inputs that they reach."""
        outputs = [k for k, here in zip(self._cotangent_outputs(), present, strict=True) if here]
        wrt = autodiff.connected_inputs(self.capture.graph, self.wrt, outputs)
        return optimize(autodiff.vjp(self.graph, wrt, outputs)), wrt

    def full_backward(self) -> Backward:
        """The backward for cotangents of all differentiable outputs.

        Raises:
            CaptureError: nothing was differentiable in the captured run.
        """
        outputs = self._cotangent_outputs()
        if not self.wrt or not outputs:
            raise CaptureError(
                f"{self.name} has no backward: no result depends on an input that requires grad"
            )
        return self.backward((True,) * len(outputs))

    # ---- words ----------------------------------------------------------------------------------

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
        if position < 0:
            return "an argument was also read from outside the function, and no longer is"
        source = self.capture.sources[position - len(self.guards)]
        name = source.value.name or "a tensor from outside"
        return f"{name} is not {source.value.type} with the same strides and requires_grad any more"

    def describe(self, number: int) -> list[str]:
        """Lines for `explain()`."""
        inputs = ", ".join(
            f"{s.value.name or s.kind}: {s.value.type}" for s in self.capture.sources
        )
        kernels = self.executable.unit.kernels if self.executable is not None else 0
        lines = [
            f"Trace {number}: captured because {self.why}; replayed {self.hits} time(s).",
            f"    inputs: {inputs or 'none'}",
            f"    {len(self.graph.nodes)} operations in {kernels} kernel(s)",
        ]
        for guard in self.guards:
            where = f", read at {guard.location}" if guard.location else ""
            lines.append(f"    guarded: {guard.name} ({guard.kind}){where}")
        return lines

    # ---- results --------------------------------------------------------------------------------

    def remember_results(self, structure: Structure, leaves: Sequence[Any]) -> None:
        """Keep how the returned tensors are nested among other values."""
        self._structure = structure
        self._leaves = [None if isinstance(x, Tensor) else (x,) for x in leaves]
        self._single = structure is LEAF and isinstance(leaves[0], Tensor)

    def rebuild(self, tensors: tuple[Tensor, ...]) -> Any:
        """The tensors of a launch in the form in which the function returns them."""
        if self._single:
            return tensors[0]
        remaining = iter(tensors)
        leaves = [next(remaining) if x is None else x[0] for x in self._leaves]
        return self._structure.build(iter(leaves))

    def forward_unit(self) -> Unit | None:
        """The generated C of the forward; None where nothing is computed."""
        return self.executable.unit if self.executable is not None else None


class Backward:
    """The backward executable of a trace for one pattern of cotangents.

    With all cotangents present it starts from the residuals that the forward kept; with some
    missing, so that no `0 * inf` is added for them, from the primal inputs.
    """

    def __init__(self, trace: Trace, present: tuple[bool, ...]) -> None:
        assert trace.cut is not None
        self.trace = trace
        self.from_residuals = all(present)
        self.graph, self.wrt = trace.vjp_graph(present)
        if self.from_residuals:
            self.graph, self.wrt = optimize(trace.cut.backward), trace.wrt
        self.distinct, self.places = _passed_through(self.graph)
        self.strides = self._strides()
        self.copied = self._copied()
        self.interpreted = False  # set where verification failed
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
        if self.distinct and not self.interpreted:
            first = self._executable is None
            if first:
                self._build()
            if self._executable is not None:
                made = self._executable.call(*(pointer(a) for a in arrays))
                if first or self.trace.verify == "always":
                    verification.check_backward(self, arrays, made)
        if self.interpreted:
            return [np.array(a) for a in evaluate(self.graph, arrays)]
        given: set[int] = set()  # each gradient has memory of its own: it may be added to
        parts = []
        for kind, at in self.places:
            fresh = kind == "array" and at not in given
            array = made[at] if kind == "array" else arrays[at]
            parts.append(array if fresh else array.copy())
            given.update((at,) if fresh else ())
        return parts

    def _build(self) -> None:
        """Compile; without a compiler that can, the gradients are interpreted."""
        try:
            self._executable = executable.build(self.kernel_graph(), "backward", self.strides)
        except (CompilerNotFound, CompileError) as error:
            self.interpreted = True
            if isinstance(error, CompileError):
                text = f"the backward of {self.trace.name} runs eagerly: {error}"
                warnings.warn(text, verification.EagerWarning, stacklevel=4)


class CompiledBackward(tape.BackwardNode):
    """The tape node of a compiled function."""

    __slots__ = ("trace", "residuals", "inputs")

    def __init__(
        self, trace: Trace, edges: Sequence[tape.Edge],
        residuals: tuple[tuple[np.ndarray, Storage | None, int], ...],
        inputs: tuple[tuple[np.ndarray, Storage, int], ...],
    ) -> None:  # fmt: skip
        super().__init__(edges, [trace.graph.outputs[k].type for k in trace._cotangent_outputs()])
        self.trace = trace
        self.residuals: Any = residuals
        self.inputs: Any = inputs

    def name(self) -> str:
        """How it prints."""
        return "CompiledBackward0"

    def release(self) -> None:
        """Drop residuals and inputs."""
        self.residuals = None
        self.inputs = None

    def owns(self, part: Tensor, cotangents: Sequence[Tensor | None]) -> bool:
        """Gradients are new arrays, one each."""
        return part._array.base is None

    def apply(self, cotangents: list[Tensor | None], create_graph: bool) -> list[Tensor | None]:
        """Run the compiled backward, or eager operations where it must be differentiable."""
        if self.residuals is None:
            raise GradientError(tape.FREED)
        present = tuple(c is not None for c in cotangents)
        given = [c for c in cotangents if c is not None]
        if create_graph:
            parts, wrt = self._differentiable(present, given)
        else:
            backward = self.trace.backward(present)
            wrt = backward.wrt
            arrays = self._arrays(backward)
            parts = [wrap(a) for a in backward.run(arrays, [c._array for c in given])]
        by_input = dict(zip(wrt, parts, strict=True))
        return [by_input.get(i) for i in self.trace.wrt]

    def _arrays(self, backward: Backward) -> list[np.ndarray]:
        """What the backward starts from, checked to be as the forward left it."""
        return self._unchanged(self.residuals if backward.from_residuals else self.inputs)

    def _unchanged(self, kept: Sequence[tuple[np.ndarray, Storage | None, int]]) -> Any:
        for array, storage, version in kept:
            if storage is not None and storage.version != version:
                text = tape._overwritten(storage, version, tape.NO_EDGE, type_of(array))
                raise GradientError(text)
        return [array for array, _, _ in kept]

    def _differentiable(self, present: tuple[bool, ...], given: Sequence[Tensor]) -> Any:
        """Gradients computed by eager operations on the inputs, so that they have a history."""
        graph, wrt = self.trace.vjp_graph(present)
        inputs = []
        for array, (_, storage, _) in zip(self._unchanged(self.inputs), self.inputs, strict=True):
            inputs.append(wrap(array, storage))
        for i, (node, number) in zip(self.trace.wrt, self.edges, strict=True):
            inputs[i]._requires_grad = True
            inputs[i]._grad_fn, inputs[i]._output_nr = node, number
        return evaluate(graph, [*inputs, *given]), wrt


def _passed_through(graph: Graph) -> tuple[tuple[Value, ...], list[tuple[str, int]]]:
    """The distinct computed outputs, and for each output ("array", k) or ("input", k)."""
    inputs = {v: k for k, v in enumerate(graph.inputs)}
    distinct: list[Value] = []
    places: list[tuple[str, int]] = []
    for v in graph.outputs:
        if v in inputs:
            places.append(("input", inputs[v]))
            continue
        if v not in distinct:
            distinct.append(v)
        places.append(("array", distinct.index(v)))
    return tuple(distinct), places


def _input_names(sources: Sequence[Source]) -> list[str]:
    """A distinct Python name for each input; no other name of a launcher begins with `in_`."""
    names: list[str] = []
    for k, s in enumerate(sources):
        name = f"in_{s.value.name}"
        names.append(name if s.value.name.isidentifier() and name not in names else f"in_{k}")
    return names


def _tuple(parts: Sequence[str]) -> str:
    """The text of a tuple."""
    return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"


def plain_memory(array: np.ndarray) -> np.ndarray:
    """The array itself where it is row-major without gaps and aligned, else a copy that is."""
    return np.require(array, requirements=("C", "A"))
