"""One training step of LeNet: 64 images of 1 x 28 x 28, cross entropy, plain SGD.

Source: LeCun, Bottou, Bengio and Haffner, Proc. IEEE 86 (1998), 2278-2324, with rectifiers and
maxima in place of tanh and means, as it is taught today.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.workload import Arrays, Ops, Workload
from benchmarks.workloads.derivatives import cross_entropy_with_gradient

BATCH = 64
RATE = 0.01
PADDING = (2, 0)  # of the two convolutions
SHAPES = ((6, 1, 5, 5), (16, 6, 5, 5), (400, 120), (120, 84), (84, 10))


def inputs(batch: int = BATCH) -> Arrays:
    """Images, labels (int64), then weights and biases in turn; linear layers are x @ w + b."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, 1, 28, 28), dtype=np.float32)
    made: Arrays = [images, rng.integers(0, 10, batch)]
    for shape in SHAPES:
        convolution = len(shape) == 4
        bound = (np.prod(shape[1:]) if convolution else shape[0]) ** -0.5
        for size in (shape, shape[:1] if convolution else shape[1:]):
            made.append((bound * (2 * rng.random(size) - 1)).astype(np.float32))
    return made


def expression(m: Ops, x: Any, labels: Any, *weights: Any) -> Any:
    """The cross entropy of two convolutions, each with its maxima, and three layers."""
    k1, c1, k2, c2, w1, b1, w2, b2, w3, b3 = weights
    x = m.max_pool2d(m.relu(m.conv2d(x, k1, c1, PADDING[0])))
    x = m.max_pool2d(m.relu(m.conv2d(x, k2, c2, PADDING[1])))
    x = x.reshape((x.shape[0], -1))
    x = m.relu(m.relu(x @ w1 + b1) @ w2 + b2)
    return m.cross_entropy(x @ w3 + b3, labels)


def windows(x: np.ndarray, size: int, padding: int) -> np.ndarray:
    """Every size x size window of the images: (batch, height, width, channels, size, size)."""
    edges = (padding, padding)
    x = np.pad(x, ((0, 0), (0, 0), edges, edges))
    seen = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))
    return seen.transpose(0, 2, 3, 1, 4, 5)


def convolve(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray, padding: int) -> np.ndarray:
    """A matrix product of windows and kernels."""
    seen = windows(x, kernel.shape[-1], padding)
    rows = seen.reshape(-1, kernel[0].size) @ kernel.reshape(len(kernel), -1).T + bias
    return rows.reshape(*seen.shape[:3], len(kernel)).transpose(0, 3, 1, 2)


def convolve_backward(
    ct: np.ndarray, x: np.ndarray, kernel: np.ndarray, padding: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The cotangents of x, kernel and bias, given that of `convolve(x, kernel, bias, padding)`."""
    size = kernel.shape[-1]
    rows = ct.transpose(0, 2, 3, 1).reshape(-1, len(kernel))
    of_kernel = (rows.T @ windows(x, size, padding).reshape(len(rows), -1)).reshape(kernel.shape)
    turned = kernel[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
    none = np.zeros(len(turned), ct.dtype)
    of_x = convolve(ct, turned, none, size - 1 - padding)
    return of_x, of_kernel, ct.sum(axis=(0, 2, 3))


def pool(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest of every 2 x 2 window, and which it is."""
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // 2, 2, w // 2, 2).transpose(0, 1, 2, 4, 3, 5)
    blocks = blocks.reshape(n, c, h // 2, w // 2, 4)
    which = blocks.argmax(axis=-1)[..., None]
    return np.take_along_axis(blocks, which, axis=-1)[..., 0], which


def pool_backward(ct: np.ndarray, which: np.ndarray) -> np.ndarray:
    """The cotangent goes to the element that was largest."""
    n, c, h, w = ct.shape
    blocks = np.zeros((n, c, h, w, 4), ct.dtype)
    np.put_along_axis(blocks, which, ct[..., None], axis=-1)
    blocks = blocks.reshape(n, c, h, w, 2, 2).transpose(0, 1, 2, 4, 3, 5)
    return blocks.reshape(n, c, 2 * h, 2 * w)


def step(x: np.ndarray, labels: np.ndarray, weights: Arrays) -> tuple[np.ndarray, Arrays]:
    """The loss before the step and the weights after it."""
    k1, c1, k2, c2, w1, b1, w2, b2, w3, b3 = weights
    first, which1 = pool(np.maximum(convolve(x, k1, c1, PADDING[0]), 0))
    second, which2 = pool(np.maximum(convolve(first, k2, c2, PADDING[1]), 0))
    flat = second.reshape(len(x), -1)
    third = np.maximum(flat @ w1 + b1, 0)
    fourth = np.maximum(third @ w2 + b2, 0)
    loss, ct3 = cross_entropy_with_gradient(fourth @ w3 + b3, labels)
    ct2 = (ct3 @ w3.T) * (fourth > 0)
    ct1 = (ct2 @ w2.T) * (third > 0)
    ct = (ct1 @ w1.T).reshape(second.shape) * (second > 0)
    ct, of_k2, of_c2 = convolve_backward(pool_backward(ct, which2), first, k2, PADDING[1])
    ct = pool_backward(ct * (first > 0), which1)
    _, of_k1, of_c1 = convolve_backward(ct, x, k1, PADDING[0])
    gradients = [of_k1, of_c1, of_k2, of_c2, flat.T @ ct1, ct1.sum(axis=0)]
    gradients += [third.T @ ct2, ct2.sum(axis=0), fourth.T @ ct3, ct3.sum(axis=0)]
    return loss, [w - RATE * g for w, g in zip(weights, gradients, strict=True)]


def closed_form(calls: int, x: np.ndarray, labels: np.ndarray, *weights: np.ndarray) -> Arrays:
    """The last loss and the weights after `calls` steps."""
    loss, current = np.zeros(()), list(weights)
    for _ in range(calls):
        loss, current = step(x, labels, current)
    return [np.asarray(loss), *current]


WORKLOAD = Workload(
    name="lenet",
    title="LeNet, 64 x 1 x 28 x 28, SGD step",
    inputs=inputs,
    closed_form=closed_form,
    tolerance=2e-6,  # of a weight, which a step changes by a thousandth: 2e-3 of a gradient
    kind="training",
    expression=expression,
    data=2,
    rate=RATE,
    needs=frozenset({"matmul", "conv2d"}),
)
