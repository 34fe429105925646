"""Nodes with kernels of their own: which planner takes which. Start reading at `plan_node`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tracegrad.codegen.cuda.convolutions import plan_convolution
from tracegrad.codegen.cuda.plan import CudaKernel, CudaTarget
from tracegrad.codegen.cuda.products import plan_product
from tracegrad.codegen.cuda.scatters import plan_scatter
from tracegrad.codegen.cuda.windows import plan_window
from tracegrad.codegen.lower import Buffer
from tracegrad.ir.graph import Node, Value


def plan_node(
    name: str, node: Node, producer: Callable[[Value], Node | None],
    buffers: Mapping[Value, Buffer], target: CudaTarget,
) -> tuple[CudaKernel, ...]:  # fmt: skip
    """The kernels of a convolution, a window, a product or a scatter, run one after another.

    Args:
        name: of the first kernel.
        node: what it computes.
        producer: the node that yields a value.
        buffers: of everything in memory.
        target: the device.
    """
    planners = {
        "contraction": plan_product,
        "window": plan_window,
        "convolution": plan_convolution,
        "indexing": plan_scatter,
    }
    return planners[node.primitive.family](name, node, producer, buffers, target)
