"""Plain NumPy: the closed form with hand-written derivatives, in the inputs' float32."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.workload import Arrays, Prepared, Workload


def load(mode: str, threads: int) -> Callable[[Workload], Prepared]:
    """NumPy's only threads are its BLAS's, which the environment limits."""
    return prepare


def prepare(workload: Workload) -> Prepared:
    """Every call starts from the results of the last where the work is a training step."""
    inputs = workload.inputs()
    outcome: Arrays = []

    def call() -> None:
        outcome[:] = workload.closed_form(1, *inputs)

    def train() -> None:
        weights = outcome[1:] or inputs[workload.data :]
        outcome[:] = workload.closed_form(1, *inputs[: workload.data], *weights)

    return Prepared(
        train if workload.kind == "training" else call, lambda: [np.asarray(a) for a in outcome]
    )
