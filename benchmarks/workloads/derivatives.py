"""Parts that several closed forms share, each with its derivative written by hand."""

from __future__ import annotations

import numpy as np

from benchmarks.workload import LAYER_NORM_EPS

Normalized = tuple[np.ndarray, np.ndarray]


def normalize(x: np.ndarray) -> Normalized:
    """Every row of x with mean 0 and variance 1, and the factor that made it so."""
    centered = x - x.mean(axis=-1, keepdims=True)
    factor = 1 / np.sqrt((centered * centered).mean(axis=-1, keepdims=True) + LAYER_NORM_EPS)
    return centered * factor, factor


def normalize_backward(ct: np.ndarray, normalized: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """The cotangent of x, given that of `normalize(x)[0]`."""
    along = (ct * normalized).mean(axis=-1, keepdims=True)
    return factor * (ct - ct.mean(axis=-1, keepdims=True) - normalized * along)


def softmax(x: np.ndarray) -> np.ndarray:
    """Along the last dimension."""
    likelihood = np.exp(x - x.max(axis=-1, keepdims=True))
    return likelihood / likelihood.sum(axis=-1, keepdims=True)


def softmax_backward(ct: np.ndarray, out: np.ndarray) -> np.ndarray:
    """The cotangent of x, given that of `out = softmax(x)`."""
    return out * (ct - (ct * out).sum(axis=-1, keepdims=True))


def cross_entropy_with_gradient(
    logits: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The mean cross entropy of rows of logits, and its gradient."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    likelihood = np.exp(shifted)
    total = likelihood.sum(axis=1, keepdims=True)
    rows = np.arange(len(logits))
    loss = np.mean(np.log(total[:, 0]) - shifted[rows, labels])
    gradient = likelihood / total
    gradient[rows, labels] -= 1
    gradient /= len(logits)
    return loss, gradient
