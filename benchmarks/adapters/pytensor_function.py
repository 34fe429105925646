"""PyTensor: one compiled `function` per workload, trusted inputs. `mode` names its linker."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.workload import Arrays, Prepared, Workload
from benchmarks.workloads.mlp import RATE


def load(mode: str, threads: int) -> Callable[[Workload], Prepared]:
    """`mode` is a PyTensor mode; empty for its default. The environment limits its threads."""
    import pytensor
    from pytensor.compile.mode import Mode

    pytensor.config.floatX = "float32"
    options = {"mode": Mode("cvm", "fast_run") if mode == "CVM" else mode} if mode else {}
    return lambda workload: prepare(workload, options)


def prepare(workload: Workload, options: dict[str, Any]) -> Prepared:
    """Compile happens here, so the harness counts it in the first call."""
    import pytensor
    import pytensor.tensor as pt

    inputs = workload.inputs()
    if workload.kind == "mlp":
        return training_step(inputs, options)
    ops = SimpleNamespace(
        sin=pt.sin, exp=pt.exp, tanh=pt.tanh, erf=pt.erf, sqrt=pt.sqrt, log=pt.log
    )
    assert workload.expression is not None, f"{workload.name} has no expression"
    variables = [pt.vector(dtype="float32") for _ in inputs]
    out = workload.expression(ops, *variables)
    outputs = [out]
    if workload.kind != "forward":
        total = out.sum()
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


def training_step(inputs: Arrays, options: dict[str, Any]) -> Prepared:
    """The weights are shared variables that the function updates."""
    import pytensor
    import pytensor.tensor as pt

    x, labels = pt.matrix(dtype="float32"), pt.vector(dtype="int64")
    weights = [pytensor.shared(a) for a in inputs[2:]]
    w1, b1, w2, b2, w3, b3 = weights
    hidden = pt.maximum(x @ w1 + b1, 0)
    hidden = pt.maximum(hidden @ w2 + b2, 0)
    likelihood = pt.special.log_softmax(hidden @ w3 + b3, axis=-1)
    loss = -likelihood[pt.arange(labels.shape[0]), labels].mean(dtype="float32")
    grads = pytensor.grad(loss, weights)
    rate = np.float32(RATE)
    updates = [(w, w - rate * g) for w, g in zip(weights, grads, strict=True)]
    prepared = repeated(
        pytensor.function([x, labels], [loss], updates=updates, **options), inputs[:2]
    )
    return Prepared(prepared.call, lambda: [*prepared.results(), *(w.get_value() for w in weights)])
