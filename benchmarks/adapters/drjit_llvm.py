"""Dr.Jit on its LLVM back end: trace, differentiate, evaluate, wait."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.workload import Prepared, Workload


def load(mode: str, threads: int) -> Callable[[Workload], Prepared | None]:
    """The calling thread only waits, so the pool alone computes."""
    import drjit as dr

    dr.set_thread_count(threads)
    return prepare


def prepare(workload: Workload) -> Prepared | None:
    """None for the perceptron: it has no matrix product of this size to compare."""
    if workload.kind == "mlp":
        return None
    import drjit as dr
    from drjit.llvm.ad import Float

    ops = SimpleNamespace(
        sin=dr.sin, exp=dr.exp, tanh=dr.tanh, erf=dr.erf, sqrt=dr.sqrt, log=dr.log
    )
    expression = workload.expression
    assert expression is not None, f"{workload.name} has no expression"
    args = [Float(a) for a in workload.inputs()]
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
        total = dr.sum(out)
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
