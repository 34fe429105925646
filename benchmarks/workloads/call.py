"""The cost of a call: sin of one element, no gradient."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.workload import Arrays, Ops, Workload


def inputs() -> Arrays:
    """One element."""
    return [np.array([0.5], np.float32)]


def expression(m: Ops, x: Any) -> Any:
    """sin(x)."""
    return m.sin(x)


def closed_form(calls: int, x: np.ndarray) -> Arrays:
    """sin(x)."""
    return [np.sin(x)]


WORKLOAD = Workload(
    name="call",
    title="sin(x), 1 element, no gradient",
    inputs=inputs,
    closed_form=closed_form,
    tolerance=1e-6,  # 4 ulp of float32 and some
    kind="forward",
    expression=expression,
)
