"""The workloads by name. A new one is a module here and an entry in `WORKLOADS`."""

from __future__ import annotations

from benchmarks.workload import Workload
from benchmarks.workloads import black_scholes, call, chain, mlp, pointwise

WORKLOADS: dict[str, Workload] = {
    w.name: w
    for w in (
        call.WORKLOAD,
        chain.WORKLOAD,
        pointwise.WORKLOAD,
        black_scholes.WORKLOAD,
        mlp.WORKLOAD,
    )
}
