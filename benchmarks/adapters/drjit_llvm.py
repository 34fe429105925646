"""Dr.Jit on its LLVM back end: trace, differentiate, evaluate, wait."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.workload import LAYER_NORM_EPS, Prepared, Workload

LACKS = {"matmul", "attention", "conv2d", "hessian"}
"""What Dr.Jit has nothing to compare for: no products of large matrices and no convolutions, and its
reverse mode is not differentiated again."""


def load(mode: str, threads: int) -> Callable[[Workload], Prepared | None]:
    """The calling thread only waits, so the pool alone computes."""
    import drjit as dr

    dr.set_thread_count(threads)
    return prepare


def operations() -> SimpleNamespace:
    """The names of `Ops` that need no matrix product; along the last dimension of tensors."""
    import drjit as dr

    def softmax(x: Any) -> Any:
        likelihood = dr.exp(x - dr.max(x, axis=-1)[..., None])
        return likelihood / dr.sum(likelihood, axis=-1)[..., None]

    def layer_norm(x: Any, weight: Any, bias: Any) -> Any:
        centered = x - dr.mean(x, axis=-1)[..., None]
        variance = dr.mean(centered * centered, axis=-1)[..., None]
        return centered * dr.rsqrt(variance + LAYER_NORM_EPS) * weight + bias

    return SimpleNamespace(
        sin=dr.sin,
        exp=dr.exp,
        tanh=dr.tanh,
        erf=dr.erf,
        sqrt=dr.sqrt,
        log=dr.log,
        sum_last=lambda x: dr.sum(x, axis=-1),
        softmax=softmax,
        layer_norm=layer_norm,
    )


def prepare(workload: Workload) -> Prepared | None:
    """None where the workload needs what Dr.Jit lacks."""
    if workload.needs & LACKS:
        return None
    import drjit as dr
    from drjit.llvm.ad import Float, TensorXf

    ops, expression, inputs = operations(), workload.expression, workload.inputs()
    kind = Float if all(a.ndim == 1 for a in inputs) else TensorXf
    args = [kind(a) for a in inputs]
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
