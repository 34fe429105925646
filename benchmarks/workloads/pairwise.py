"""The gravitational energy of 1024 bodies: every pair once, by the matrix of all distances."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.workload import Arrays, Ops, Workload

BODIES = 1024
SOFTENING = 0.01  # added to squared distances, so that a body's distance from itself divides


def inputs() -> Arrays:
    """Positions, standard normal, (bodies, 3)."""
    return [np.random.default_rng(0).standard_normal((BODIES, 3), dtype=np.float32)]


def expression(m: Ops, x: Any) -> Any:
    """Half of -1/r for every ordered pair; the pairs of a body with itself add a constant."""
    between = x[:, None, :] - x[None, :, :]
    return -0.5 / m.sqrt(m.sum_last(between * between) + SOFTENING)


def closed_form(calls: int, x: np.ndarray) -> Arrays:
    """The energy, and the forces with their sign turned."""
    between = x[:, None, :] - x[None, :, :]
    inverse = 1 / np.sqrt((between * between).sum(axis=-1) + SOFTENING)
    return [-0.5 * np.sum(inverse), (between * (inverse**3)[:, :, None]).sum(axis=1)]


WORKLOAD = Workload(
    name="pairwise",
    title="pairwise energy of 1024 bodies, forward+backward",
    inputs=inputs,
    closed_form=closed_form,
    tolerance=1e-4,  # forces are sums of 1024 terms that cancel
    kind="gradient",
    expression=expression,
)
