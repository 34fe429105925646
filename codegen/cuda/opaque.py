"""Nodes with kernels of their own. Start reading at `plan_node`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tracegrad.codegen.cuda.plan import CudaKernel, CudaTarget
from tracegrad.codegen.lower import Buffer
from tracegrad.ir.graph import Node, Value


def plan_node(
    name: str, node: Node, producer: Callable[[Value], Node | None],
    buffers: Mapping[Value, Buffer], target: CudaTarget,
) -> tuple[CudaKernel, ...]:  # fmt: skip
    """The kernels of a convolution, a window, a product or a scatter.

    Args:
        name: of the first kernel.
        node: what it computes.
        producer: the node that yields a value.
        buffers: of everything in memory.
        target: the device.
    """
    raise AssertionError(f"{node.primitive.name} has no CUDA kernel yet")
