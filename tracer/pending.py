"""Traces that a worker process compiles while their function runs eagerly.

The first compiled result is compared with the eager run that was captured, so a pending trace keeps
copies of what went into that run and of what came out: the user may write to both meanwhile.
Start reading at `Pending.begin`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tracegrad.runtime import background
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
            results[k] = tensor._array
    for w in trace.capture.writes:
        if w.kind == "output":
            results[w.at] = lying[w.source]
    return results


@dataclass(frozen=True)
class Pending:
    """A captured trace and the worker's job.

    Attributes:
        arrays, results: inputs and outputs of the captured run, as they were.
    """

    trace: Trace
    job: background.Job
    arrays: tuple[np.ndarray, ...]
    results: tuple[np.ndarray | None, ...]

    @classmethod
    def begin(
        cls, trace: Trace, arrays: Sequence[np.ndarray], results: Sequence[np.ndarray | None]
    ) -> Pending | None:
        """Have a trace compiled; None where there is nothing to compile or no worker to do it."""
        job = trace.compile_apart()
        if job is None:
            return None
        if trace.verify == "off":
            return cls(trace, job, (), ())
        kept = tuple(with_strides(a) for a in arrays)
        return cls(trace, job, kept, tuple(None if r is None else r.copy() for r in results))

    @property
    def ready(self) -> bool:
        """Whether the rest is quick."""
        return self.job.finished

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the worker; returns whether it is done."""
        return self.job.wait(timeout)
