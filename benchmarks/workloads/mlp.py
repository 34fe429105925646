"""One training step of a perceptron 784-512-512-10: batch 256, cross entropy, plain SGD.

The step changes the weights, so the results after n calls are those of n steps on one batch.
"""

from __future__ import annotations

import numpy as np

from benchmarks.workload import Arrays, Workload

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


def step(x: np.ndarray, labels: np.ndarray, weights: Arrays) -> tuple[np.ndarray, Arrays]:
    """The loss before the step and the weights after it."""
    activations = [x]
    for w, b in zip(weights[0:-2:2], weights[1:-2:2], strict=True):
        activations.append(np.maximum(activations[-1] @ w + b, 0))
    logits = activations[-1] @ weights[-2] + weights[-1]
    shifted = logits - logits.max(axis=1, keepdims=True)
    likelihood = np.exp(shifted)
    total = likelihood.sum(axis=1, keepdims=True)
    rows = np.arange(len(x))
    loss = np.mean(np.log(total[:, 0]) - shifted[rows, labels])
    ct = likelihood / total
    ct[rows, labels] -= 1
    ct /= len(x)
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
    tolerance=1e-4,  # sums of 784 products in float32, in whatever order
    kind="mlp",
)
