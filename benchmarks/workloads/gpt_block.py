"""A block of a GPT: layer norm, causal attention, layer norm, GELU perceptron, each added to x.

Batch 8, sequence 128, width 256, 4 heads; gradients of the input and of every weight.
Source: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), section 2.3.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from benchmarks.workload import Arrays, Ops, Workload
from benchmarks.workloads.derivatives import (
    normalize,
    normalize_backward,
    softmax,
    softmax_backward,
)

BATCH, SEQUENCE, WIDTH, HEADS = 8, 128, 256, 4


def inputs(batch: int = BATCH, sequence: int = SEQUENCE, width: int = WIDTH) -> Arrays:
    """x (batch, sequence, width), then weight and bias of: norm, qkv, projection, norm, two layers."""
    rng = np.random.default_rng(0)
    made: Arrays = [rng.standard_normal((batch, sequence, width), dtype=np.float32)]
    for shape in (
        (width,),
        (width, 3 * width),
        (width, width),
        (width,),
        (width, 4 * width),
        (4 * width, width),
    ):
        norm = len(shape) == 1
        scale = np.float32(0.1 if norm else shape[0] ** -0.5)
        made.append(scale * rng.standard_normal(shape, dtype=np.float32) + np.float32(norm))
        made.append(np.float32(0.1) * rng.standard_normal(shape[-1:], dtype=np.float32))
    return made


def expression(m: Ops, x: Any, *weights: Any) -> Any:
    """Half the squares of the block's output, so that every element has another cotangent."""
    g1, n1, w_qkv, b_qkv, w_out, b_out, g2, n2, w_up, b_up, w_down, b_down = weights
    qkv = m.layer_norm(x, g1, n1) @ w_qkv + b_qkv
    x = x + m.causal_attention(qkv, HEADS) @ w_out + b_out
    hidden = m.gelu(m.layer_norm(x, g2, n2) @ w_up + b_up)
    y = x + hidden @ w_down + b_down
    return 0.5 * y * y


def rows(x: np.ndarray) -> np.ndarray:
    """All places of all sequences, as the rows of a matrix."""
    return x.reshape(-1, x.shape[-1])


def of_linear(ct: np.ndarray, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, Arrays]:
    """The cotangents of x, and of w and b, given that of `x @ w + b`."""
    return ct @ w.T, [rows(x).T @ rows(ct), rows(ct).sum(axis=0)]


def of_norm(ct: np.ndarray, seen: np.ndarray, factor: np.ndarray, g: np.ndarray) -> Any:
    """The cotangents of x, and of weight and bias, given that of a layer norm."""
    grads = [rows(ct * seen).sum(axis=0), rows(ct).sum(axis=0)]
    return normalize_backward(ct * g, seen, factor), grads


def closed_form(calls: int, x: np.ndarray, *weights: np.ndarray) -> Arrays:
    """The sum of the expression, and the gradients in the order of the inputs."""
    from scipy.special import erf

    g1, n1, w_qkv, b_qkv, w_out, b_out, g2, n2, w_up, b_up, w_down, b_down = weights
    batch, sequence, width = x.shape
    scale = (width // HEADS) ** -0.5

    seen1, factor1 = normalize(x)
    normed1 = seen1 * g1 + n1
    qkv = (normed1 @ w_qkv + b_qkv).reshape(batch, sequence, 3, HEADS, -1)
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)
    later = np.triu(np.ones((sequence, sequence), bool), 1)
    attention = softmax(np.where(later, -np.inf, q @ k.swapaxes(-1, -2) * scale).astype(x.dtype))
    mixed = (attention @ v).transpose(0, 2, 1, 3).reshape(x.shape)
    middle = x + mixed @ w_out + b_out
    seen2, factor2 = normalize(middle)
    normed2 = seen2 * g2 + n2
    up = normed2 @ w_up + b_up
    below = 0.5 * (1 + erf(up * math.sqrt(0.5)))
    hidden = up * below
    y = middle + hidden @ w_down + b_down

    ct, down_grads = of_linear(y, hidden, w_down)
    density = np.exp(-0.5 * up * up) * (1 / math.sqrt(2 * math.pi))
    ct, up_grads = of_linear(ct * (below + up * density), normed2, w_up)
    ct, norm2_grads = of_norm(ct, seen2, factor2, g2)
    of_middle = y + ct
    ct, out_grads = of_linear(of_middle, mixed, w_out)
    ct = ct.reshape(batch, sequence, HEADS, -1).transpose(0, 2, 1, 3)
    of_scores = softmax_backward(ct @ v.swapaxes(-1, -2), attention) * scale
    of_qkv = np.stack(
        [of_scores @ k, of_scores.swapaxes(-1, -2) @ q, attention.swapaxes(-1, -2) @ ct]
    )
    ct, qkv_grads = of_linear(
        of_qkv.transpose(1, 3, 0, 2, 4).reshape(batch, sequence, 3 * width), normed1, w_qkv
    )
    ct, norm1_grads = of_norm(ct, seen1, factor1, g1)
    grads = [*norm1_grads, *qkv_grads, *out_grads, *norm2_grads, *up_grads, *down_grads]
    return [0.5 * np.sum(y * y), of_middle + ct, *grads]


WORKLOAD = Workload(
    name="gpt_block",
    title="GPT block 8 x 128 x 256, 4 heads, forward+backward",
    inputs=inputs,
    closed_form=closed_form,
    tolerance=1e-4,  # sums of 1024 products in float32, and over 1024 places
    kind="gradient",
    expression=expression,
    needs=frozenset({"matmul", "attention"}),
)
