"""The backward of an output whose node leads to leaves only. Start reading at `one_step`."""

from __future__ import annotations

from typing import Any

import numpy as np

from tracegrad.tracer.accumulate import accumulate
from tracegrad.tracer.anomaly import anomaly
from tracegrad.tracer.profiling import accumulate_in_block, apply_node, profilers
from tracegrad.tracer.roots import seed
from tracegrad.tracer.state import state
from tracegrad.tracer.tape import AccumulateGrad
from tracegrad.tracer.tensor import Tensor, wrap

_ONES: dict[Any, Tensor] = {}  # the cotangent 1 of 0-d outputs, by dtype; never written to


def one_step(output: Tensor, gradient: Any, keep: bool) -> bool:
    """The backward of an output whose node leads to leaves only, without building an order.

    That is the usual case of a compiled function. False where the general loop is needed.
    """
    node = output.grad_fn
    if (
        node is None or node.hooks is not None or node.retained or len(node.types) != 1
        or node.runs_user_code or state.recorder is not None or anomaly.enabled
    ):  # fmt: skip
        return False
    for target, _ in node.edges:
        if target is not None and (type(target) is not AccumulateGrad or target.hooks is not None):
            return False
    array = output._array
    if gradient is not None and not isinstance(gradient, Tensor):
        return False
    if gradient is None and array.shape == ():
        ct = _ONES.get(array.dtype)
        if ct is None:
            ct = _ONES[array.dtype] = wrap(np.ones_like(array))
    else:
        ct = seed(0, output, gradient)
    before = state.grad_enabled
    state.grad_enabled = False
    try:
        cotangents: list[Tensor | None] = [ct]
        apply = apply_node if profilers else type(node).apply
        parts = apply(node, cotangents, False)
        into = accumulate_in_block if profilers else accumulate
        for (target, _), part in zip(node.edges, parts, strict=True):
            if part is not None and target is not None:
                fresh = part is not ct and node.owns(part, cotangents)
                into(target.variable, part, False, fresh=fresh)  # type: ignore[attr-defined]
    finally:
        state.grad_enabled = before
    if not keep:
        node.release()
    return True
