"""Layer norm, softmax, and the dot product of every row with one vector: 4096 rows of 1024."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.workload import Arrays, Ops, Workload
from benchmarks.workloads.derivatives import (
    normalize,
    normalize_backward,
    softmax,
    softmax_backward,
)

ROWS, COLUMNS = 4096, 1024


def inputs(rows: int = ROWS, columns: int = COLUMNS) -> Arrays:
    """The rows, the weight and bias of the norm, the vector."""
    rng = np.random.default_rng(0)
    shapes = (rows, columns), (columns,), (columns,), (columns,)
    x, weight, bias, v = (rng.standard_normal(s, dtype=np.float32) for s in shapes)
    return [x, 1 + 0.1 * weight, 0.1 * bias, v]


def expression(m: Ops, x: Any, weight: Any, bias: Any, v: Any) -> Any:
    """softmax(layer_norm(x)) . v, a number per row."""
    return m.sum_last(m.softmax(m.layer_norm(x, weight, bias)) * v)


def closed_form(
    calls: int, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, v: np.ndarray
) -> Arrays:
    """The sum of the numbers, and the gradients in the order of the inputs."""
    normalized, factor = normalize(x)
    likelihood = softmax(normalized * weight + bias)
    ct = softmax_backward(v, likelihood)
    return [
        np.sum(likelihood @ v),
        normalize_backward(ct * weight, normalized, factor),
        (ct * normalized).sum(axis=0),
        ct.sum(axis=0),
        likelihood.sum(axis=0),
    ]


WORKLOAD = Workload(
    name="layer_norm",
    title="layer norm, softmax, dot, 4096 x 1024, forward+backward",
    inputs=inputs,
    closed_form=closed_form,
    tolerance=1e-4,  # sums over 4096 rows of terms of either sign
    kind="gradient",
    expression=expression,
)
