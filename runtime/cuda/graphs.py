"""From a graph on a device to a function of addresses: generate, compile, load.

Start reading at `launcher`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from tracegrad.codegen.cuda.plan import CudaTarget, CudaUnit
from tracegrad.codegen.cuda.unit import build_cuda
from tracegrad.ir.graph import Graph, Value
from tracegrad.ir.types import Shape
from tracegrad.runtime.cuda import cublas, driver, executable


def target(index: int) -> CudaTarget:
    """What device `index` can do."""
    return CudaTarget(
        driver.arch(index), driver.multiprocessors(index), cublas=cublas.cublas_available()
    )


def generate(
    graph: Graph, strides: Mapping[Value, Shape] | None = None, returned: int | None = None,
    device: int | None = None,
) -> CudaUnit:  # fmt: skip
    """The CUDA of a graph for its device; for a usual one where there is none at hand."""
    index = int(graph.device.partition(":")[2] or 0) if device is None else device
    chosen = target(index) if driver.status() is None else CudaTarget()
    return build_cuda(graph, target=chosen, strides=strides, returned=returned)


def launcher(    graph: Graph, name: str, strides: Mapping[Value, Shape] | None = None,
    device: int | None = None,
) -> Callable[..., tuple[Any, ...]]:  # fmt: skip
    """A function from addresses of the inputs to the memories of the outputs."""
    return build(graph, name, strides, device=device).call


def build(
    graph: Graph, name: str, strides: Mapping[Value, Shape] | None = None,
    returned: int | None = None, device: int | None = None,
) -> executable.CudaExecutable:  # fmt: skip
    """Generate, compile and load a graph.

    Args:
        strides: of inputs that are not contiguous, in elements.
        returned: how many of the outputs the caller gets.
        device: its number, where the inputs do not say it.
    Raises:
        CompilerNotFound: there is neither nvcc nor NVRTC, and the cache does not hold the code.
        CompileError: the compiler refused the code.
    """
    index = int(graph.device.partition(":")[2] or 0) if device is None else device
    start = time.perf_counter()
    unit = generate(graph, strides, returned, index)
    elapsed = (time.perf_counter() - start) * 1e3
    types = [v.type for v in graph.outputs[:returned]]
    return executable.build(
        graph, name, unit, outputs=types, device=index, codegen_ms=elapsed, strides=strides
    )
