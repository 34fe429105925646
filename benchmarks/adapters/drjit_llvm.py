"""Dr.Jit on its LLVM back end: trace, differentiate, evaluate, wait."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.workload import LAYER_NORM_EPS, Prepared, Workload

LACKS = {"attention", "conv2d", "hessian"}
"""What Dr.Jit has nothing to compare for: its products take two matrices and no batches of them, it has
no convolutions of images, and its reverse mode is not differentiated again."""


def load(mode: str, threads: int) -> Callable[[Workload], Prepared | None]:
    """The calling thread only waits, so the pool alone computes."""
    import drjit as dr

    dr.set_thread_count(threads)
    return prepare


def operations() -> SimpleNamespace:
    """The names of `Ops` that Dr.Jit has or that are composed of what it has."""
    import drjit as dr
    from drjit.llvm.ad import Float, UInt

    def softmax(x: Any) -> Any:
        likelihood = dr.exp(x - dr.max(x, axis=-1)[..., None])
        return likelihood / dr.sum(likelihood, axis=-1)[..., None]

    def layer_norm(x: Any, weight: Any, bias: Any) -> Any:
        centered = x - dr.mean(x, axis=-1)[..., None]
        variance = dr.mean(centered * centered, axis=-1)[..., None]
        return centered * dr.rsqrt(variance + LAYER_NORM_EPS) * weight + bias

    def cross_entropy(logits: Any, labels: Any) -> Any:
        rows, columns = logits.shape
        shifted = logits - dr.detach(dr.max(logits, axis=-1))[..., None]
        chosen = dr.gather(Float, shifted.array, dr.arange(UInt, rows) * columns + labels)
        total = dr.sum(dr.exp(shifted), axis=-1).array
        return dr.mean(dr.log(total) - chosen)

    return SimpleNamespace(
        sin=dr.sin,
        exp=dr.exp,
        tanh=dr.tanh,
        erf=dr.erf,
        sqrt=dr.sqrt,
        log=dr.log,
        mean=lambda x: dr.mean(x, axis=None),
        relu=lambda x: dr.select(x > 0, x, 0),  # not dr.maximum, which older LLVM refuse
        cross_entropy=cross_entropy,
        sum_last=lambda x: dr.sum(x, axis=-1),
        softmax=softmax,
        layer_norm=layer_norm,
    )


def prepare(workload: Workload) -> Prepared | None:
    """None where the workload needs what Dr.Jit lacks."""
    if workload.needs & LACKS:
        return None
    import drjit as dr
    from drjit.llvm.ad import Float, TensorXf, UInt

    ops, expression, inputs = operations(), workload.expression, workload.inputs()
    kind = Float if all(a.ndim == 1 for a in inputs) else TensorXf
    args = [(kind if a.dtype.kind == "f" else UInt)(a) for a in inputs]
    if workload.kind == "training":
        return training_step(ops, workload, args)
    last: list[Any] = []

    def forward() -> None:
        last[:] = [expression(ops, *args)]
        dr.eval(last)
        dr.sync_thread()

    def gradient() -> None:
        for a in args:
            dr.clear_grad(a)
            dr.enable_grad(a)
        out = expression(ops, *args)
        total = dr.sum(out, axis=None)
        dr.backward(total)
        grads = [dr.grad(a) for a in args]
        last[:] = [total, out, *grads] if workload.kind == "gradient and value" else [total, *grads]
        dr.eval(last)
        dr.sync_thread()

    def results() -> list[np.ndarray]:
        found = [np.array(dr.detach(t)) for t in last]
        if workload.kind != "forward":
            found[0] = found[0].reshape(())
        return found

    return Prepared(forward if workload.kind == "forward" else gradient, results)


def training_step(ops: SimpleNamespace, workload: Workload, args: list[Any]) -> Prepared:
    """Loss, backward and the new weights are evaluated together."""
    import drjit as dr

    data, rate = args[: workload.data], workload.rate
    state: list[Any] = [None, args[workload.data :]]

    def call() -> None:
        weights = [dr.detach(w) for w in state[1]]
        dr.enable_grad(weights)
        loss = workload.expression(ops, *data, *weights)
        dr.backward(loss)
        state[:] = [dr.detach(loss), [dr.detach(w) - rate * dr.grad(w) for w in weights]]
        dr.eval(state)
        dr.sync_thread()

    def results() -> list[np.ndarray]:
        return [np.array(state[0]).reshape(()), *(np.array(w) for w in state[1])]

    return Prepared(call, results)
