"""Nodes with kernels of their own: convolutions and windowed reductions.

Their planners live in `plan_convolution` and `plan_window`; this module picks the one for a node
and wraps the result as the translation unit needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from tracegrad.codegen.lower import Buffer
from tracegrad.codegen.plan import KernelPlan, Target
from tracegrad.ir.graph import Node


def plan_opaque(
    name: str, node: Node, operands: Sequence[Buffer], out: Buffer, target: Target
) -> tuple[KernelPlan, str, int]:
    """The plan, the rendered text and the bytes of scratch of a node with its own kernel."""
    raise AssertionError(f"no kernel for {node.primitive.name}")
