"""Random graphs as CUDA, run on the CPU: row programs with few outputs, and graphs of the whole table.

All examples are drawn first and compiled together. Start reading at `drawn_together`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import compiled as checks
import numpy as np
import pytest
from compiled import layouts, reference
from emulated import Emulated, run_both_ways
from hypothesis import HealthCheck, Phase, given, settings
from random_graphs import graphs
from test_random_graphs import relaid
from test_row_groups import programs

from tracegrad.codegen.cuda import device, maps, reductions, row_layout, rows
from tracegrad.codegen.cuda.unit import build_cuda
from tracegrad.ir.errors import DivisionByZeroError
from tracegrad.ir.graph import Graph
from tracegrad.ir.passes import autodiff, optimize
from tracegrad.ir.passes.sizes import with_sizes
from tracegrad.ir.primitive import evaluate_primitive
from tracegrad.ir.sizes import Size


def drawn_together(strategy: Any, count: int) -> list[Any]:
    """Examples of a strategy, the same in every run."""
    found: list[Any] = []

    @settings(max_examples=count, derandomize=True, deadline=None, database=None,
              suppress_health_check=list(HealthCheck), phases=[Phase.generate])  # fmt: skip
    @given(strategy)
    def collect(example: Any) -> None:
        found.append(example)

    collect()
    return found


def row_program(drawn: tuple[Graph, list[np.ndarray], int]) -> tuple[Graph, list[np.ndarray]]:
    """A program of row operations; some as their gradients, some with sizes that vary."""
    graph, arrays, how = drawn
    graph = graph.replace(outputs=tuple(v for v in graph.outputs if v not in graph.inputs))
    if how == 1:
        last = len(graph.outputs) - 1
        wrt = list(autodiff.connected_inputs(graph, [0, 1, 2], [last]))
        graph = optimize(autodiff.vjp(graph, wrt, [last]))
        more = [np.ones(v.shape, np.float32) for v in graph.inputs[len(arrays) :]]
        arrays = [*arrays, *more]
    if how == 2:
        size, length = Size.symbol("n0", arrays[0].shape[0]), arrays[0].shape[1]
        if size > 1 and size != length:
            graph = with_sizes(graph, {0: (size, length), 2: (size, 1)})
    outputs = tuple(v for v in dict.fromkeys(graph.outputs) if v not in graph.inputs)
    return graph.replace(outputs=outputs), arrays


def nothing(patch: pytest.MonkeyPatch) -> None:
    """As it is."""


def small_chunks(patch: pytest.MonkeyPatch) -> None:
    """Lanes and chunks even where there is little, and indices of 64 bits."""
    patch.setattr(maps, "FEWEST", 0)
    patch.setattr(reductions, "CHUNK", 16)
    patch.setattr(reductions, "FULL", 8)
    patch.setattr(device, "REACH", 1)


def no_registers(patch: pytest.MonkeyPatch) -> None:
    """Arrays of rows in shared memory, of large teams."""
    patch.setattr(row_layout, "REGISTERS", 0)
    patch.setattr(row_layout, "ACCUMULATORS", 0)
    patch.setattr(row_layout, "SHARE", 1)


def little_shared_memory(patch: pytest.MonkeyPatch) -> None:
    """Arrays of rows in memory."""
    patch.setattr(row_layout, "REGISTERS", 0)
    patch.setattr(rows, "SPARE", 48 * 1024 - 200)


@pytest.mark.parametrize("how", [nothing, small_chunks, no_registers, little_shared_memory])
def test_random_row_programs(
    how: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    how(monkeypatch)
    found = [row_program(d) for d in drawn_together(programs(), 60)]
    found = [(graph, arrays) for graph, arrays in found if graph.outputs]
    emulated = Emulated([build_cuda(graph) for graph, _ in found])
    for k, (graph, arrays) in enumerate(found):
        got, status = run_both_ways(emulated, k, [v.type for v in graph.outputs], arrays)
        assert not any(status)
        for value, want in zip(got, reference(graph, arrays), strict=True):
            size = max(1.0, float(np.abs(want).max(initial=0)))
            np.testing.assert_allclose(value, want, rtol=2e-3, atol=2e-4 * size, err_msg=str(graph))


def test_random_graphs_node_by_node() -> None:
    """With every value stored, each node is right for the operands that the kernels found."""
    cases = []
    for n, (graph, arrays) in enumerate(drawn_together(graphs(), 150)):
        rng = np.random.default_rng(n)
        every = graph.replace(outputs=tuple(node.out for node in graph.nodes))
        arrays = [relaid(rng, a) if a.dtype.kind == "f" else a for a in arrays]
        fit, strides = layouts(every, arrays)
        cases.append((every, fit, build_cuda(every, strides=strides)))
    emulated = Emulated([unit for *_, unit in cases])
    for k, (graph, arrays, _) in enumerate(cases):
        got, status = run_both_ways(emulated, k, [v.type for v in graph.outputs], arrays)
        try:
            reference(graph, arrays)
        except DivisionByZeroError:
            assert status[0] == 2
            continue
        assert not any(status)
        known = dict(zip((*graph.inputs, *graph.outputs), (*arrays, *got), strict=True))
        for node in graph.nodes:
            operands = [known[v] for v in node.inputs]
            want = evaluate_primitive(node.primitive, operands, node.params)
            checks.assert_close(node, known[node.out], want, operands)
