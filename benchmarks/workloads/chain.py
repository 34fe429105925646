"""The chain of the autograd tutorial: 25 elements, so what is measured is overhead."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.workload import Arrays, Ops, Workload


def inputs() -> Arrays:
    """25 points from 0 to 2 pi."""
    return [np.linspace(0.0, 2 * np.pi, 25, dtype=np.float32)]


def expression(m: Ops, a: Any) -> Any:
    """2 sin(a) + 1."""
    return 2 * m.sin(a) + 1


def closed_form(calls: int, a: np.ndarray) -> Arrays:
    """The sum and its gradient 2 cos(a)."""
    return [np.sum(2 * np.sin(a) + 1), 2 * np.cos(a)]


WORKLOAD = Workload(
    name="chain",
    title="(2*sin(a)+1).sum(), 25 elements, forward+backward",
    inputs=inputs,
    closed_form=closed_form,
    tolerance=1e-6,  # a sum of 25 terms of size 1 in float32
    kind="gradient",
    expression=expression,
)
