"""One training step of a small model, 1000-100-10: batch 16, squared error, plain SGD."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.workload import Arrays, Ops, Workload

WIDTHS = (1000, 100, 10)
BATCH = 16
RATE = 0.01


def inputs() -> Arrays:
    """The batch, its targets, then weights and biases in turn; y = x @ w + b."""
    rng = np.random.default_rng(0)
    wide, middle, narrow = WIDTHS
    made: Arrays = [
        rng.random((BATCH, wide), dtype=np.float32),
        rng.random((BATCH, narrow), dtype=np.float32),
    ]
    for shape in ((wide, middle), (middle,), (middle, narrow), (narrow,)):
        made.append((rng.random(shape, dtype=np.float32) - np.float32(0.5)) / 16)
    return made


def expression(m: Ops, x: Any, target: Any, w: Any, b: Any, v: Any, c: Any) -> Any:
    """The mean squared error of two layers."""
    error = m.relu(x @ w + b) @ v + c - target
    return m.mean(error * error)


def closed_form(calls: int, x: np.ndarray, target: np.ndarray, *weights: np.ndarray) -> Arrays:
    """The last loss and the weights after `calls` steps."""
    w, b, v, c = weights
    loss = np.zeros(())
    for _ in range(calls):
        hidden = np.maximum(x @ w + b, 0)
        error = hidden @ v + c - target
        loss = np.mean(error * error)
        ct = 2 * error / error.size
        back = ct @ v.T * (hidden > 0)
        w, b = w - RATE * (x.T @ back), b - RATE * back.sum(axis=0)
        v, c = v - RATE * (hidden.T @ ct), c - RATE * ct.sum(axis=0)
    return [np.asarray(loss), w, b, v, c]


WORKLOAD = Workload(
    name="tiny_model",
    title="TinyModel 1000-100-10, batch 16, SGD step",
    inputs=inputs,
    closed_form=closed_form,
    tolerance=2e-6,  # of a weight, which a step changes by a thousandth: 2e-3 of a gradient
    kind="training",
    expression=expression,
    data=2,
    rate=RATE,
    needs=frozenset({"matmul"}),
)
