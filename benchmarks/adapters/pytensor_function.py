"""PyTensor: one compiled `function` per workload, trusted inputs. `mode` names its linker."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.workload import LAYER_NORM_EPS, Arrays, Prepared, Workload

LACKS = {"attention", "conv2d"}
"""What is not compared: PyTensor multiplies batches of matrices one after another and has no
attention of its own, and it no longer has pooling."""


def load(mode: str, threads: int) -> Callable[[Workload], Prepared | None]:
    """`mode` is a PyTensor mode; empty for its default. The environment limits its threads."""
    import pytensor
    from pytensor.compile.mode import Mode

    pytensor.config.floatX = "float32"
    options = {"mode": Mode("cvm", "fast_run") if mode == "CVM" else mode} if mode else {}
    return lambda workload: prepare(workload, options)


def operations() -> SimpleNamespace:
    """The names of `Ops`."""
    import pytensor.tensor as pt

    def layer_norm(x: Any, weight: Any, bias: Any) -> Any:
        centered = x - x.mean(-1, keepdims=True, dtype="float32")
        variance = (centered * centered).mean(-1, keepdims=True, dtype="float32")
        return centered / pt.sqrt(variance + np.float32(LAYER_NORM_EPS)) * weight + bias

    def cross_entropy(logits: Any, labels: Any) -> Any:
        likelihood = pt.special.log_softmax(logits, axis=-1)
        return -likelihood[pt.arange(labels.shape[0]), labels].mean(dtype="float32")

    return SimpleNamespace(
        sin=pt.sin,
        exp=pt.exp,
        tanh=pt.tanh,
        erf=pt.erf,
        sqrt=pt.sqrt,
        log=pt.log,
        mean=lambda x: x.mean(dtype="float32"),
        sum_last=lambda x: x.sum(-1),
        relu=lambda x: pt.maximum(x, 0),
        softmax=lambda x: pt.special.softmax(x, axis=-1),
        layer_norm=layer_norm,
        cross_entropy=cross_entropy,
    )


def prepare(workload: Workload, options: dict[str, Any]) -> Prepared | None:
    """Compile happens here, so the harness counts it in the first call."""
    if workload.needs & LACKS:
        return None
    import pytensor
    import pytensor.tensor as pt

    inputs = workload.inputs()
    variables = [pt.tensor(dtype=a.dtype.name, shape=(None,) * a.ndim) for a in inputs]
    if workload.kind == "training":
        return training_step(workload, variables[: workload.data], inputs, options)
    out = workload.expression(operations(), *variables)
    total = out.sum()
    outputs = [out]
    if workload.kind == "hessian":
        outputs = [pytensor.gradient.hessian(total, variables[0])]
    elif workload.kind != "forward":
        kept = [out] if workload.kind == "gradient and value" else []
        outputs = [total, *kept, *pytensor.grad(total, variables)]
    return repeated(pytensor.function(variables, outputs, **options), inputs)


def repeated(function: Any, inputs: Arrays) -> Prepared:
    """The same arguments at every call, not checked again."""
    function.trust_input = True
    last: list[Any] = []

    def call() -> None:
        last[:] = function(*inputs)

    return Prepared(call, lambda: [np.asarray(a) for a in last])


def training_step(
    workload: Workload, variables: list[Any], inputs: Arrays, options: dict[str, Any]
) -> Prepared:
    """The weights are shared variables that the function updates; `variables` are the data's."""
    import pytensor

    data = inputs[: workload.data]
    weights = [pytensor.shared(a) for a in inputs[workload.data :]]
    loss = workload.expression(operations(), *variables, *weights)
    rate = np.float32(workload.rate)
    grads = pytensor.grad(loss, weights)
    updates = [(w, w - rate * g) for w, g in zip(weights, grads, strict=True)]
    prepared = repeated(pytensor.function(variables, [loss], updates=updates, **options), data)
    return Prepared(prepared.call, lambda: [*prepared.results(), *(w.get_value() for w in weights)])
