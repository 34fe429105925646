"""Traces that a worker process compiles while their function runs eagerly.

The first compiled result is compared with the eager run that was captured, so a pending trace keeps
copies of what went into that run and of what came out: the user may write to both meanwhile.
Start reading at `Pending.begin`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from tracegrad.runtime import background
from tracegrad.tracer import verification
from tracegrad.tracer.capture_memory import with_strides
from tracegrad.tracer.tensor import Tensor
from tracegrad.tracer.trace import Trace


def waits(wish: bool | None) -> bool:
    """Whether a call waits for the compiler, as `compile(wait=wish)` says or the environment."""
    return wish if wish is not None else os.environ.get("TRACEGRAD_WAIT", "") not in ("", "0")


def first_results(
    trace: Trace, tensors: Sequence[Tensor], lying: Sequence[np.ndarray]
) -> list[np.ndarray | None]:
    """What the captured run gave for each output of its graph; None where nobody has seen it.

    Args:
        tensors: what it returned.
        lying: the memory of its inputs, some of which it has written to.
    """
    results: list[np.ndarray | None] = [None] * len(trace.capture.graph.outputs)
    for tensor, (kind, k) in zip(tensors, trace.capture.returns, strict=True):
        if kind == "output":
            order = trace.capture.orders.get(k)
            results[k] = tensor._array if order is None else tensor._array.transpose(order)
    for w in trace.capture.writes:
        if w.kind == "output":
            results[w.at] = lying[w.source]
    return results


class Pending:
    """A captured trace that is being compiled.

    Attributes:
        job: the worker's.
        arrays, results: inputs and outputs of the captured run, as they were.
        checked: the trace is compiled, and its first result right; where the rest is quick and this
            is False, something went wrong, and is to be met again where the user hears of it.
    """

    def __init__(
        self, trace: Trace, arrays: Sequence[np.ndarray], results: Sequence[np.ndarray | None]
    ) -> None:
        self.trace = trace
        self.arrays: tuple[np.ndarray, ...] = ()
        self.results: tuple[np.ndarray | None, ...] = ()
        if trace.verify != "off":
            self.arrays = tuple(with_strides(a) for a in arrays)
            self.results = tuple(None if r is None else r.copy() for r in results)
        self.checked = False
        self.job: background.Job

    @classmethod
    def begin(
        cls, trace: Trace, arrays: Sequence[np.ndarray], results: Sequence[np.ndarray | None]
    ) -> Pending | None:
        """Have a trace compiled; None where there is nothing to compile or no worker to do it."""
        pending = cls(trace, arrays, results)
        job = trace.compile_apart(pending._load)
        if job is None:
            return None
        pending.job = job
        return pending

    def _load(self) -> None:
        """In a thread of its own: load the code and compare its first result."""
        try:
            self.trace.compile()
            found = verification.first_mismatch(self.trace, self.arrays, self.results)
            self.checked = found is None
        except Exception:  # `checked` says so: the next call does it again, and tells the user
            self.checked = False

    @property
    def ready(self) -> bool:
        """Whether the rest is quick."""
        return self.job.finished

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the worker; returns whether it is done."""
        return self.job.wait(timeout)
