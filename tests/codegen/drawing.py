"""Small graphs for the tests of schedules and plans, written as Python functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tracegrad.codegen.plan import KernelPlan, Loop, Target
from tracegrad.codegen.unit import UnitPlan, plan_unit
from tracegrad.ir import dtypes
from tracegrad.ir.graph import Graph, GraphBuilder
from tracegrad.ir.passes.sizes import with_sizes
from tracegrad.ir.sizes import Size
from tracegrad.ir.types import TensorType

BARE = Target(openmp=True, vector_math=None)


def graph(fn: Callable[..., Any], *shapes: Any, dtype: dtypes.DType = dtypes.float32) -> Graph:
    """The graph of `fn` on inputs of these shapes (or types) called x0, x1, ..."""
    builder = GraphBuilder(fn.__name__ if fn.__name__ != "<lambda>" else "f")
    types = [s if isinstance(s, TensorType) else TensorType(tuple(s), dtype) for s in shapes]
    inputs = [builder.input(t, f"x{k}") for k, t in enumerate(types)]
    with builder:
        made = fn(*inputs)
    return builder.finish(made if isinstance(made, tuple | list) else [made])


def with_some_sizes(graph: Graph, rng: np.random.Generator) -> Graph:
    """The graph with some sizes of its inputs marked as sizes that vary."""
    shapes = {}
    names: dict[int, str] = {}
    for k, v in enumerate(graph.inputs):
        marked = [n for n in v.shape if n > 1 and rng.random() < 0.5]
        shapes[k] = tuple(
            Size.symbol(names.setdefault(n, f"n{len(names)}"), n) if n in marked else n
            for n in v.shape
        )
    return with_sizes(graph, shapes)


def plan(fn: Callable[..., Any], *shapes: Any, **kwargs: Any) -> UnitPlan:
    """The plan of the unit of `fn`."""
    return plan_unit(graph(fn, *shapes, **kwargs), BARE, {})


def only(unit: UnitPlan) -> KernelPlan:
    """The single kernel of a unit."""
    assert len(unit.kernels) == 1, [str(k) for k in unit.kernels]
    return unit.kernels[0]


def temporaries(unit: UnitPlan) -> list[str]:
    """Names of the buffers in the arena."""
    return [s.name for s in unit.slots if s.kind == "arena"]


def loops(kernel: KernelPlan) -> list[str]:
    """Each loop as `variable<stop`, outer before inner."""
    found: list[str] = []

    def walk(items: Any) -> None:
        for item in items:
            if isinstance(item, Loop):
                found.append(f"{item.variable}<{item.stop}")
                walk(item.body)

    walk(kernel.body)
    return found
