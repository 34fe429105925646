"""One training step of a perceptron 784-512-512-10: batch 256, cross entropy, plain SGD.

The step changes the weights, so the results after n calls are those of n steps on one batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.workload import Arrays, Ops, Workload
from benchmarks.workloads.derivatives import cross_entropy_with_gradient

WIDTHS = (784, 512, 512, 10)
BATCH = 256
RATE = 0.01


def inputs() -> Arrays:
    """The batch, its labels (int64), then weights and biases in turn; y = x @ w + b."""
    rng = np.random.default_rng(0)
    pixels = rng.random((BATCH, WIDTHS[0]), dtype=np.float32)
    made: Arrays = [pixels, rng.integers(0, 10, BATCH)]
    for wide, narrow in zip(WIDTHS, WIDTHS[1:], strict=False):
        bound = wide**-0.5
        made.append(bound * (2 * rng.random((wide, narrow), dtype=np.float32) - 1))
        made.append(bound * (2 * rng.random(narrow, dtype=np.float32) - 1))
    return made


def expression(m: Ops, x: Any, labels: Any, *weights: Any) -> Any:
    """The cross entropy of three layers."""
    w1, b1, w2, b2, w3, b3 = weights
    hidden = m.relu(x @ w1 + b1)
    hidden = m.relu(hidden @ w2 + b2)
    return m.cross_entropy(hidden @ w3 + b3, labels)


def step(x: np.ndarray, labels: np.ndarray, weights: Arrays) -> tuple[np.ndarray, Arrays]:
    """The loss before the step and the weights after it."""
    activations = [x]
    for w, b in zip(weights[0:-2:2], weights[1:-2:2], strict=True):
        activations.append(np.maximum(activations[-1] @ w + b, 0))
    loss, ct = cross_entropy_with_gradient(activations[-1] @ weights[-2] + weights[-1], labels)
    updated: Arrays = []
    for i in reversed(range(len(activations))):
        w, b = weights[2 * i], weights[2 * i + 1]
        updated = [w - RATE * (activations[i].T @ ct), b - RATE * ct.sum(axis=0), *updated]
        if i:
            ct = (ct @ w.T) * (activations[i] > 0)
    return loss, updated


def closed_form(calls: int, x: np.ndarray, labels: np.ndarray, *weights: np.ndarray) -> Arrays:
    """The last loss and the weights after `calls` steps."""
    loss, current = np.zeros(()), list(weights)
    for _ in range(calls):
        loss, current = step(x, labels, current)
    return [np.asarray(loss), *current]


WORKLOAD = Workload(
    name="mlp",
    title="MLP 784-512-512-10, batch 256, SGD step",
    inputs=inputs,
    closed_form=closed_form,
    tolerance=2e-6,  # of a weight, which a step changes by a thousandth: 2e-3 of a gradient
    kind="training",
    expression=expression,
    data=2,
    rate=RATE,
    needs=frozenset({"matmul"}),
)
