"""Joint kernels: the value of a loss and its gradients in one pass.

A trace whose calls are followed by `backward()` of one scalar result computes the gradients for the
cotangent 1 together with the results: nothing is saved between, and the backward hands them over.
Calls without a backward would compute them for nothing, so `JointMode` watches what follows the
calls, and switches. Start reading at `JointMode`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tracegrad.ir.errors import CaptureError, CompileError, CompilerNotFound
from tracegrad.ir.evaluate import evaluate
from tracegrad.ir.graph import Graph
from tracegrad.ir.location import user_stacklevel
from tracegrad.ir.passes import autodiff, optimize
from tracegrad.runtime import background, executable
from tracegrad.runtime.executable import Executable
from tracegrad.runtime.kernels import pointer
from tracegrad.tracer import verification
from tracegrad.tracer.places import passed_through, put_last
from tracegrad.tracer.profiling import profilers

if TYPE_CHECKING:
    from tracegrad.tracer.trace import Trace

PATIENCE = 3  # calls in a row that must be followed by a backward before the first switch
UNUSED = 16  # calls whose gradients nobody has asked for before the switch back


class Joint:
    """What one launch computes in joint mode.

    Attributes:
        number: which of the outputs that take a cotangent has the cotangent 1.
        wrt: the inputs that it depends on, of which there are gradients.
        places: where each output of the captured graph is found, as for the forward.
        gradients: the same for each gradient.
        returned: how many of the arrays a launch returns; others are only checked.
        executable: the code; None until `build`.
    """

    def __init__(self, trace: Trace, number: int) -> None:
        self.trace, self.number = trace, number
        output = trace.cotangent_outputs()[number]
        self.wrt = autodiff.connected_inputs(trace.capture.graph, trace.wrt, (output,))
        whole = optimize(autodiff.value_and_grad(trace.graph, self.wrt, output))
        distinct, places = passed_through(whole)
        primal = len(trace.graph.outputs)
        checked = {p.at for p in trace.predicates} - trace.wanted()
        kept = set(range(len(places))) - checked
        self.distinct, self.places, self.returned = put_last(distinct, places, kept)
        self.places, self.gradients = self.places[:primal], self.places[primal:]
        self._whole = whole
        self.executable: Executable | None = None

    def graph(self) -> Graph:
        """What is compiled: each array once."""
        return self._whole.replace(outputs=self.distinct, name=self.trace.name)

    def build(self) -> None:
        """Generate, compile and load.

        Raises:
            CompilerNotFound, CompileError: from the toolchain.
        """
        checks = self.trace.checks(self.places)
        self.executable = executable.build(self.graph(), "joint", {}, checks, self.returned)

    def begin(self) -> background.Job | None:
        """Have the worker compile it; None where there is none."""
        return background.submit(self.graph(), {}, self.trace.checks(self.places), self.returned)

    def is_right(self, arrays: Sequence[np.ndarray]) -> bool:
        """Whether it gives what the interpreter gives for the inputs of some call; warns if not."""
        assert self.executable is not None
        graph = self.graph()
        graph = graph.replace(outputs=graph.outputs[: self.returned])
        try:
            made = self.executable.call(*(pointer(a) for a in arrays))
        except executable.Strayed:
            return False  # rounding led it to another path: the separate kernels stay
        want = [np.asarray(a) for a in evaluate(graph, list(arrays))]
        found = verification.mismatch(graph, arrays, made, want)
        if found is not None:
            verification.report(f"joint pass of {self.trace.name}", graph, arrays, {}, found[1])
        return found is None


class JointMode:
    """Whether the launches of a trace compute gradients, decided by what follows its calls.

    Attributes:
        active: the joint pass that launches run; None while forward and backward are separate.
        limit: number of replays after which the gradients count as unused; whoever takes some moves it.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.active: Joint | None = None
        self.limit = 0
        self._made: dict[int, Joint] = {}
        self._jobs: dict[int, background.Job] = {}
        self._patience = PATIENCE
        self._number, self._begun, self._followed = -1, 0, 0
        self._never = not self._possible()

    def _possible(self) -> bool:
        """Of traces in host memory that leave nothing but their results, from contiguous inputs."""
        trace, capture = self.trace, self.trace.capture
        return not (
            trace.place is not None or trace.debug or trace.verify == "always" or trace.cut is None
            or trace.copied or trace.strides or capture.writes or capture.gradient_changes
            or capture.gradients or capture.freed
        )  # fmt: skip

    def followed(self, number: int, arrays: Sequence[np.ndarray]) -> None:
        """A backward with the cotangent 1 of one output has been run by separate kernels.

        Args:
            number: of the output, among those that take a cotangent.
            arrays: the inputs of its call, to check the joint pass with.
        """
        if self._never or self.active is not None or profilers:  # a profile shows one way
            return
        hits = self.trace.hits
        if number != self._number or hits - self._begun > 2 * self._patience:
            self._number, self._begun, self._followed = number, hits, 0
        self._followed += 1
        if self._followed >= self._patience:
            self._switch(number, arrays)

    def _switch(self, number: int, arrays: Sequence[np.ndarray]) -> None:
        """Go over to the joint pass, if it is compiled and right."""
        joint = self._made.get(number)
        if joint is None:
            if self.trace.result_shape(number) != ():
                self._never = True
                return
            joint = self._made[number] = Joint(self.trace, number)
        if joint.executable is None:
            if self.trace.apart and number not in self._jobs:
                job = joint.begin()
                if job is not None:
                    self._jobs[number] = job
            job = self._jobs.get(number)
            if job is not None and not job.finished:
                return
            try:
                joint.build()
            except (CompilerNotFound, CompileError) as error:
                self._never = True
                if isinstance(error, CompileError):
                    text = f"{self.trace.name} goes on with separate kernels: {error}"
                    warnings.warn(text, verification.EagerWarning, stacklevel=user_stacklevel())
                return
            if self.trace.verify != "off" and not joint.is_right(arrays):
                self._never = True
                return
        self.active, self.limit = joint, self.trace.hits + UNUSED
        self.trace.make_launcher()

    def source(self, device: str | None) -> str:
        """The text of the joint pass: of the one that runs, or that of the first scalar result.

        Raises:
            CaptureError: no scalar result depends on an input that requires grad.
        """
        joint = self.active
        if joint is None:
            scalars = (k for k, t in enumerate(self.trace.result_types) if t.shape == ())
            number = next(scalars, None)
            if self.trace.cut is None or number is None:
                raise CaptureError(
                    f"{self.trace.name} has no joint pass: no scalar result depends on an input that "
                    "requires grad"
                )
            joint = Joint(self.trace, number)
        checks = self.trace.checks(joint.places) if device != "cuda" else ()
        return executable.generate(joint.graph(), {}, checks, joint.returned, device).source

    def jobs(self) -> tuple[background.Job, ...]:
        """The worker's, to be waited for."""
        return tuple(self._jobs.values())

    def leave(self) -> None:
        """Nobody asks for the gradients any more: forward and backward are separate again."""
        self.active = None
        self._patience *= 2
        self._number = -1
        self.trace.make_launcher()
