"""The frameworks that are measured, by name. Start reading at `Peer`.

An adapter turns a workload into a `Prepared` program of its framework; it is imported only in the
process that measures that framework.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.workload import Prepared, Workload


@dataclass(frozen=True)
class Peer:
    """A way to run workloads.

    Attributes:
        name: what `--peers` calls it and what the table shows.
        package: the import name that must be there; `distribution` where its project name differs.
        adapter: module under `benchmarks.adapters`; `adapter.Adapter(mode, threads)` prepares.
        mode: given to the adapter.
    """

    name: str
    package: str
    adapter: str
    mode: str = ""

    def installed(self) -> bool:
        """Whether its package can be imported."""
        return importlib.util.find_spec(self.package) is not None

    def version(self) -> str:
        """The installed version."""
        return importlib.metadata.version(self.package)

    def load(self, threads: int) -> Callable[[Workload], Prepared | None]:
        """Import the framework and limit its threads; returns what prepares a workload."""
        module: Any = importlib.import_module(f"benchmarks.adapters.{self.adapter}")
        return module.load(self.mode, threads)


PEERS: dict[str, Peer] = {
    p.name: p
    for p in (
        Peer("tracegrad", "tracegrad", "tensors", "tracegrad compiled"),
        Peer("tracegrad-eager", "tracegrad", "tensors", "tracegrad eager"),
        Peer("numpy", "numpy", "by_hand"),
        Peer("torch", "torch", "tensors", "torch eager"),
        Peer("torch.compile", "torch", "tensors", "torch compiled"),
        Peer("jax", "jax", "jax_jit"),
        Peer("drjit", "drjit", "drjit_llvm"),
        Peer("pytensor", "pytensor", "pytensor_function"),
        Peer("pytensor-c", "pytensor", "pytensor_function", "CVM"),
    )
}
