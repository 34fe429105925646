"""Looking into a compiled function: its graphs, texts, guards and counters, and all of it in words.

`CompiledFunction` inherits from `Inspection`. Start reading at `Inspection.explain`.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from tracegrad.ir.errors import CaptureError, ParameterError
from tracegrad.ir.graph import Graph

if TYPE_CHECKING:
    from tracegrad.codegen.memory_plan import MemoryPlans
    from tracegrad.tracer.capture import Reason
    from tracegrad.tracer.trace import Trace
    from tracegrad.tracer.widening import Widening


class CacheInfo(NamedTuple):
    """Counters of a compiled function: replays, captures, traces, and calls that ran eagerly."""

    hits: int
    misses: int
    traces: int
    eager_calls: int


class Inspection:
    """What a compiled function shows of itself."""

    _label: str
    _order: list[Trace]
    _eager_keys: dict[Any, tuple[Reason, ...]]
    _widening: Widening
    _misses: int
    _eager_calls: int

    if TYPE_CHECKING:  # what `CompiledFunction` adds

        def wait(self, timeout: float | None = None) -> bool: ...  # noqa: D102

    def _trace(self, index: int) -> Trace:
        self.wait()
        if not self._order:
            reason = next(iter(self._eager_keys.values()), None)
            why = f"it runs eagerly: {reason[0]}" if reason else "call it first"
            raise CaptureError(f"{self._label} has no trace to show; {why}")
        try:
            return self._order[index]
        except IndexError:
            raise ParameterError(
                f"{self._label} has {len(self._order)} trace(s); there is no trace {index!r}. They "
                "are numbered from 0 in the order of .explain(), or from -1 backwards"
            ) from None

    def graph(self, trace: int = -1) -> Graph:
        """The captured and simplified graph of a trace (the newest by default)."""
        return self._trace(trace).graph

    def backward_graph(self, trace: int = -1) -> Graph:
        """The graph from residuals and cotangents to gradients."""
        return self._trace(trace).full_backward().graph

    def source(self, which: str = "forward", trace: int = -1, device: str | None = None) -> str:
        """The generated C, or CUDA of a trace on a device, commented.

        Args:
            which: `"forward"`, `"backward"`, or `"joint"` for the pass that computes the gradients
                of a scalar result with it; launches use that where a backward follows each call.
            device: `"cpu"` or `"cuda"` for the text that the trace would have there; a CUDA device is
                not needed. None: where it runs.
        Raises:
            ParameterError: `which` or `device` is something else.
            CaptureError: there is no trace yet, or nothing to differentiate.
        """
        chosen = self._trace(trace)
        if which not in ("forward", "backward", "joint"):
            raise ParameterError(
                f"source: which must be 'forward', 'backward' or 'joint', got {which!r}"
            )
        if device not in (None, "cpu", "cuda"):
            raise ParameterError(f"source: device must be 'cpu' or 'cuda', got {device!r}")
        if which == "joint":
            return chosen.mode.source(device)
        if device is not None:
            return chosen.source_on(which, device)
        if which == "backward":
            return "\n".join(b.unit().source for b in chosen.full_backwards())
        unit = chosen.forward_unit()
        return unit.source if unit is not None else "/* nothing is computed */\n"

    def memory_plan(self, trace: int = -1) -> MemoryPlans:
        """Each buffer of each pass of a trace: its bytes, its life, the Python line it comes from.

        Temporaries share one arena: those that live at different times lie at the same place. Waits
        until what was captured is compiled.

        Returns:
            A tuple of `MemoryPlan`, for the forward, the backward (where there is one) and the joint
            pass (where launches run it). It prints as tables; the fields of a plan and of its `buffers`
            have the same as numbers.
        Raises:
            CaptureError: there is no trace yet, or it runs on a device.

        Example:
            >>> import tracegrad as tg
            >>> f = tg.compile(lambda x: (x - x.mean()).exp().sum(), wait=True)
            >>> y = f(tg.ones(1000))
            >>> (plan,) = f.memory_plan()
            >>> [(b.name, b.kind, b.nbytes) for b in plan.buffers]
            [('in_0', 'input', 4000), ('out_0', 'output', 4), ('tmp_0', 'temporary', 4)]
        """
        return self._trace(trace).memory_plans()

    def launcher(self, trace: int = -1) -> str:
        """The generated Python that checks the guards and calls the C."""
        chosen = self._trace(trace)
        text = chosen.launcher_text
        if chosen.executable is not None and "forward(" in text:
            return f"{text}\n\n{chosen.executable.text}"
        return text

    def guards(self, trace: int = -1) -> tuple[Any, ...]:
        """What must hold outside the function for a trace to be replayed."""
        return self._trace(trace).guards

    def cache_info(self) -> CacheInfo:
        """Counters: replays, captures, traces kept, calls that ran eagerly."""
        hits = sum(t.hits for t in self._order)
        return CacheInfo(hits, self._misses, len(self._order), self._eager_calls)

    def explain(self) -> str:
        """In words: each trace, why it was captured, what it is guarded by; what runs eagerly.

        Waits until what was captured is compiled.
        """
        self.wait()
        info = self.cache_info()
        lines = [
            f"{self._label}: {info.traces} trace(s), {info.hits} replay(s), {info.misses} capture(s), "
            f"{info.eager_calls} eager call(s) after a capture."
        ]
        for k, trace in enumerate(self._order):
            lines.extend(f"  {line}" for line in trace.describe(k))
        if self._widening.reason:
            lines.append(
                "  Each value of a number among the arguments has traces of its own, for what stands "
                f"in for a number could be told from it: {self._widening.reason}."
            )
        for reasons, kinds in Counter(self._eager_keys.values()).items():
            several = "one kind" if kinds == 1 else f"{kinds} kinds"
            lines.append(f"  Runs eagerly for {several} of arguments, because:")
            for reason, times in Counter(map(str, reasons)).items():
                lines.append(f"    {reason}" + (f" ({times} times)" if times > 1 else ""))
        return "\n".join(lines)
