"""What a workload and a prepared program are. Start reading at `Workload`.

A workload states its work once. `expression` is written with the names of `Ops`, so every framework
runs the same formula; `closed_form` is the same work with hand-written derivatives in NumPy, used
twice: in float64 as the reference, in float32 as the peer "numpy".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Arrays = list[np.ndarray]


class Ops(Protocol):
    """The functions an expression may use, of whichever framework.

    Besides these, expressions use operators, indexing, `reshape`, and the product `@`. A framework
    uses its own function where it has one and composes the others.

    Attributes:
        mean: of all elements.
        sum_last: along the last dimension.
        gelu: x Phi(x), by erf.
        softmax, layer_norm: along the last dimension; `layer_norm(x, weight, bias)` with
            `LAYER_NORM_EPS`.
        causal_attention: `(qkv, heads)` with queries, keys and values side by side in the last
            dimension of qkv (batch, sequence, 3 * width); returns (batch, sequence, width).
        cross_entropy: mean over the rows of `(logits, labels)`.
        conv2d: `(x, weight, bias, padding)` in the layout NCHW.
        max_pool2d: the largest of every 2 x 2 window.
    """

    sin: Callable[[Any], Any]
    exp: Callable[[Any], Any]
    tanh: Callable[[Any], Any]
    erf: Callable[[Any], Any]
    sqrt: Callable[[Any], Any]
    log: Callable[[Any], Any]
    mean: Callable[[Any], Any]
    sum_last: Callable[[Any], Any]
    relu: Callable[[Any], Any]
    gelu: Callable[[Any], Any]
    softmax: Callable[[Any], Any]
    layer_norm: Callable[[Any, Any, Any], Any]
    causal_attention: Callable[[Any, int], Any]
    cross_entropy: Callable[[Any, Any], Any]
    conv2d: Callable[[Any, Any, Any, int], Any]
    max_pool2d: Callable[[Any], Any]


LAYER_NORM_EPS = 1e-5


@dataclass
class Prepared:
    """A program ready to be timed.

    Attributes:
        call: does the whole work once and waits until its results exist.
        results: the results of the last call, in the workload's order, as NumPy arrays.
    """

    call: Callable[[], Any]
    results: Callable[[], Arrays]


@dataclass(frozen=True)
class Workload:
    """One piece of work, the same for every framework.

    Attributes:
        name: what `--workloads` calls it.
        title: the row of the table.
        inputs: makes the float32 inputs (and integer labels), the same at every call.
        closed_form: `closed_form(calls, *inputs)` is the list of results after so many calls, in
            the inputs' precision.
        tolerance: largest accepted error of a result, relative to its largest element, and why.
        kind: "gradient" (sum of the expression and its gradients), "gradient and value" (the
            elements of the expression too), "forward" (the expression alone), "hessian" (of the
            sum of the expression) or "training" (a step of plain SGD that replaces the weights;
            the expression is the loss, results are the loss before the step and the weights).
        expression: the formula.
        data: how many of the inputs come before the weights of a training step.
        rate: the learning rate of a training step.
        needs: what not every framework offers: "matmul", "attention", "conv2d", "hessian".
    """

    name: str
    title: str
    inputs: Callable[[], Arrays]
    closed_form: Callable[..., Arrays]
    tolerance: float
    kind: str
    expression: Callable[..., Any]
    data: int = 0
    rate: float = 0.0
    needs: frozenset[str] = frozenset()


def relative_error(got: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Largest difference of any result, relative to the largest element of that result.

    Raises:
        ValueError: the number or the shapes of the results differ.
    """
    if len(got) != len(expected):
        raise ValueError(f"{len(got)} results, expected {len(expected)}")
    worst = 0.0
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        if a.shape != b.shape:
            raise ValueError(f"result {i} has shape {a.shape}, expected {b.shape}")
        error = np.max(np.abs(a.astype(np.float64) - b)) / np.max(np.abs(b))
        worst = max(worst, float(error)) if np.isfinite(error) else float("inf")
    return worst
