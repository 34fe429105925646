"""Nodes with kernels of their own: convolutions and windowed reductions.

Their planners live in `plan_convolution` and `plan_window`; this module picks the one for a node
and wraps the result as the translation unit needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from tracegrad.codegen.lower import Buffer
from tracegrad.codegen.plan import KernelPlan, Target
from tracegrad.codegen.plan_convolution import ConvolutionPlan, plan_convolution
from tracegrad.codegen.plan_window import WindowPlan, plan_window
from tracegrad.ir.graph import Node
from tracegrad.ir.types import TensorType

PLANNERS: dict[str, Callable[..., ConvolutionPlan | WindowPlan]] = {
    "convolution": plan_convolution,
    "window": plan_window,
}


def _with_plain_planes(type: TensorType) -> TensorType:
    """A type of which only the first size, the number of images, can be one that varies."""
    return replace(type, shape=(*type.shape[:1], *map(int, type.shape[1:])))


def plan_opaque(
    name: str, node: Node, operands: Sequence[Buffer], out: Buffer, scratch: str, target: Target
) -> tuple[KernelPlan, str, int]:
    """The plan, the rendered text and the bytes of scratch of a node with its own kernel.

    Args:
        scratch: what the scratch buffer will be called, if the kernel needs one.
    """
    where = ""
    if node.location is not None:
        where = f"{node.location}: {node.location.text}".rstrip(": ")
    plan = PLANNERS[node.primitive.family](
        node.primitive.name, [_with_plain_planes(v.type) for v in node.inputs],
        _with_plain_planes(node.out.type), node.params, name=name, comment=where, threads=target.openmp,
    )  # fmt: skip
    last = scratch if plan.scratch_bytes else "0"
    arguments = (*(b.name for b in operands), out.name, last)
    nbytes = sum(v.type.nbytes for v in (*node.inputs, node.out))
    kernel = KernelPlan(
        name, plan.summary, plan.parameters, (), arguments, nbytes=nbytes, ops=plan.flops
    )
    return kernel, plan.render().strip(), plan.scratch_bytes
