"""A pointwise chain with three transcendental functions, reduced to a sum: 4 M elements."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.workload import Arrays, Ops, Workload

SIZE = 4_000_000


def inputs() -> Arrays:
    """Standard normal numbers."""
    return [np.random.default_rng(0).standard_normal(SIZE, dtype=np.float32)]


def expression(m: Ops, x: Any) -> Any:
    """sin(x) exp(-x^2) + tanh(x)."""
    return m.sin(x) * m.exp(-x * x) + m.tanh(x)


def closed_form(calls: int, x: np.ndarray) -> Arrays:
    """The sum and its gradient; shared factors are computed once."""
    sine, bell, squash = np.sin(x), np.exp(-x * x), np.tanh(x)
    gradient = bell * (np.cos(x) - 2 * x * sine) + 1 - squash * squash
    return [np.sum(sine * bell + squash), gradient]


WORKLOAD = Workload(
    name="pointwise",
    title="(sin(x)*exp(-x*x)+tanh(x)).sum(), 4 M, forward+backward",
    inputs=inputs,
    closed_form=closed_form,
    tolerance=2e-3,  # the terms of the sum cancel: 4 M of size 1 add up to about a thousand
    kind="gradient",
    expression=expression,
)
