"""Checkpoints in a captured run: their values are computed again by the compiled backward.

In eager mode the function runs once more. What that would do beyond computing the same values (count a
batch in a BatchNorm layer, print, draw other random numbers) a compiled backward would not do: then
the run stays eager. Start reading at `Region`.
"""

from __future__ import annotations

from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from tracegrad.ir.location import here
from tracegrad.tracer.random import default_generator
from tracegrad.tracer.state import state

if TYPE_CHECKING:
    from tracegrad.tracer.capture import GraphRecorder
    from tracegrad.tracer.capture_memory import Memory


class Region:
    """The block in which a checkpointed function runs.

    Args:
        number: of the checkpoint in the run, from 1.
        repeatable: run again, it draws the same numbers of the global generator.
    """

    def __init__(self, recorder: GraphRecorder, number: int, repeatable: bool) -> None:
        self._recorder, self._number, self._repeatable = recorder, number, repeatable
        self._line = here()
        self._differentiable = state.grad_enabled
        self._after: list[tuple[Memory, int]] = []

    def __enter__(self) -> None:
        recorder = self._recorder
        self._first = len(recorder.builder.nodes)
        self._sources = len(recorder.sources)
        self._doings = self._did()
        self._writes = {id(m): (m, m.writes) for m in recorder.memories()}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        if kind is not None or not self._differentiable:
            return  # no backward comes here
        recorder = self._recorder
        nodes = recorder.builder.nodes
        for k in range(self._first, len(nodes)):
            location = nodes[k].location or self._line
            if location is not None:
                marked = replace(location, region=self._number)
                nodes[k] = replace(nodes[k], location=marked)
        self._after = [(m, m.writes) for m in recorder.memories()]
        more = self._more()
        if more:
            recorder.stay_eager(
                f"the function of a checkpoint {more}, and would so when it runs again"
            )

    def finish(self) -> None:
        """The run has ended: what the function used must be as it was, for eager mode reads it again."""
        if any(m.writes != before for m, before in self._after):
            self._recorder.reasons.append(self._recorder.reason(
                "a tensor is written to after a checkpoint that may have used it", self._line
            ))  # fmt: skip

    def _did(self) -> tuple[int, ...]:
        return self._recorder.doings()

    def _more(self) -> str:
        """What the function has done that was more than computing, in words."""
        recorder = self._recorder
        if any(m.writes != before for m, before in self._writes.values()):
            return "writes to a tensor from outside of it"
        if any(m.source is not None and m.writes for m in recorder.memories()):
            return "writes to a tensor from outside of it"
        for source in recorder.sources[self._sources :]:
            if source.kind == "random":
                if source.generator is not default_generator:
                    return "draws from a generator of its own"
                if not self._repeatable:
                    return "draws other random numbers"
        if self._did() != self._doings:
            return "has hooks, gradients, callbacks or schedules in it"
        return ""
