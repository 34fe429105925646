"""The workloads by name. A new one is a module here and an entry in `WORKLOADS`."""

from __future__ import annotations

from benchmarks.workload import Workload
from benchmarks.workloads import (
    black_scholes,
    call,
    chain,
    gpt_block,
    layer_norm,
    lenet,
    mlp,
    pairwise,
    pointwise,
    rosenbrock,
    tiny_model,
)

WORKLOADS: dict[str, Workload] = {
    w.name: w
    for w in (
        call.WORKLOAD,
        chain.WORKLOAD,
        pointwise.WORKLOAD,
        black_scholes.WORKLOAD,
        pairwise.WORKLOAD,
        layer_norm.WORKLOAD,
        tiny_model.WORKLOAD,
        mlp.WORKLOAD,
        gpt_block.WORKLOAD,
        lenet.WORKLOAD,
        rosenbrock.WORKLOAD,
    )
}
