"""Random graphs over the whole table, compiled: each node against its eager kernel, then fused.

Graphs come from the strategy of the pass tests; here their inputs also get odd memory layouts
(negative and zero strides, gaps). Start reading at `test_a_compiled_graph_equals_the_interpreter`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from compiled import assert_compiled_equals_evaluated, assert_same_for_threads, reference
from drawing import graph as drawn_graph
from drawing import with_some_sizes
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from random_graphs import assert_same_bits, graphs

from tracegrad.ir import ops
from tracegrad.ir.errors import DivisionByZeroError, NotDifferentiableError
from tracegrad.ir.graph import Graph
from tracegrad.ir.passes import autodiff, optimize
from tracegrad.ir.passes.dce import eliminate_dead_nodes
from tracegrad.ir.passes.partition import partition
from tracegrad.ir.passes.sizes import with_sizes
from tracegrad.ir.sizes import Size

Drawn = tuple[Graph, list[np.ndarray]]
FEW = settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck),
               phases=[Phase.explicit, Phase.reuse, Phase.generate])  # fmt: skip
MANY = settings(FEW, max_examples=1500, derandomize=False)
SEEDS = st.integers(0, 2**32 - 1)


def relaid(rng: np.random.Generator, array: np.ndarray) -> np.ndarray:
    """The array in other memory: gaps, reversed or permuted axes, or one row for all."""
    choice = rng.integers(5)
    if array.ndim == 0 or choice == 0:
        return array
    if choice == 1:
        return np.broadcast_to(array[:1], array.shape) if array.shape[0] else array
    if choice == 2:
        return np.flip(np.flip(array).copy())
    if choice == 3:
        axes = rng.permutation(array.ndim)
        return np.ascontiguousarray(array.transpose(axes)).transpose(np.argsort(axes))
    wide = np.zeros(tuple(3 * n + 1 for n in array.shape), array.dtype)
    gaps = wide[tuple(slice(1, None, 3) for _ in array.shape)]
    gaps[...] = array
    return gaps


def check_forward(drawn: Drawn, seed: int) -> None:
    graph, arrays = drawn
    rng = np.random.default_rng(seed)
    # operands of indexing, windows and the like are samples that fit: other memory, same values
    assert_compiled_equals_evaluated(graph, [relaid(rng, a) if a.dtype.kind == "f" else a
                                             for a in arrays])  # fmt: skip


def check_sizes(drawn: Drawn, seed: int) -> None:
    """With sizes that vary: each node, and the same arithmetic as without but for sums in blocks."""
    graph, arrays = drawn
    rng = np.random.default_rng(seed)
    marked = with_some_sizes(graph, rng)
    assert [v.type for v in marked.outputs] == [v.type for v in graph.outputs]
    assert_compiled_equals_evaluated(marked, arrays)


def check_backward(drawn: Drawn, seed: int) -> None:
    graph, arrays = drawn
    rng = np.random.default_rng(seed)
    wrt = [k for k, v in enumerate(graph.inputs) if v.dtype.is_floating_point]
    outputs = list(autodiff.differentiable_outputs(graph))[-2:]
    wrt = list(autodiff.connected_inputs(graph, wrt, outputs))
    if not wrt:
        return
    try:
        whole = autodiff.joint(graph, wrt, outputs)
    except NotDifferentiableError:
        return
    cts = [np.asarray(rng.normal(size=v.shape)).astype(v.dtype.numpy)
           for v in whole.inputs[len(graph.inputs):]]  # fmt: skip
    gradients = eliminate_dead_nodes(whole.replace(outputs=whole.outputs[len(graph.outputs) :]))
    assert_compiled_equals_evaluated(optimize(gradients), [*arrays, *cts])
    cut = partition(whole, len(graph.inputs), len(graph.outputs))
    try:
        made = reference(cut.forward, arrays)
    except DivisionByZeroError:
        return
    known = dict(zip((*cut.forward.inputs, *cut.forward.outputs), (*arrays, *made), strict=True))
    halves = reference(cut.backward, [*(known[v] for v in cut.residuals), *cts])
    assert_same_bits(halves, reference(gradients, [*arrays, *cts]))


@FEW
@given(graphs(nodes=15), SEEDS)
def test_a_compiled_graph_equals_the_interpreter(drawn: Drawn, seed: int) -> None:
    check_forward(drawn, seed)


@FEW
@given(graphs(nodes=8), SEEDS)
def test_a_compiled_backward_equals_the_interpreter(drawn: Drawn, seed: int) -> None:
    check_backward(drawn, seed)


@FEW
@given(graphs(nodes=12), SEEDS)
def test_a_compiled_graph_with_sizes_that_vary_equals_the_interpreter(
    drawn: Drawn, seed: int
) -> None:
    check_sizes(drawn, seed)


@pytest.mark.slow
@MANY
@given(graphs(nodes=20), SEEDS)
def test_many_compiled_graphs_with_sizes_that_vary(drawn: Drawn, seed: int) -> None:
    check_sizes(drawn, seed)


@pytest.mark.slow
@MANY
@given(graphs(nodes=25), SEEDS)
def test_many_compiled_graphs_equal_the_interpreter(drawn: Drawn, seed: int) -> None:
    check_forward(drawn, seed)


@pytest.mark.slow
@MANY
@given(graphs(nodes=12), SEEDS)
def test_many_compiled_backwards_equal_the_interpreter(drawn: Drawn, seed: int) -> None:
    check_backward(drawn, seed)


# ---- threads ------------------------------------------------------------------------------------


def parallel_work(x: Any, w: Any) -> Any:
    """Every form of nest, on sizes that are worth several threads."""
    wave = ops.sin(x) * w
    rows = ops.reduce_sum(wave, axes=(1,), keepdims=True)
    columns = ops.reduce_sum(ops.exp(x * 0.1), axes=(0,), keepdims=False)
    everything = ops.reduce_sum(wave * x, axes=(0, 1), keepdims=False)
    greatest = ops.reduce_max(x, axes=(0, 1), keepdims=False)
    product = ops.dot_general(x, wave, contract=((1,), (1,)), batch=((), ()))
    return wave, rows, columns, everything, greatest, product, x / rows


@pytest.mark.parametrize("count", [2, 7])
@pytest.mark.parametrize("vary", [False, True])
def test_any_number_of_threads_gives_the_same_bits(count: int, vary: bool) -> None:
    graph = drawn_graph(parallel_work, (1200, 700), (700,))
    rng = np.random.default_rng(0)
    if vary:
        rows, columns = Size.symbol("n0", 1200), Size.symbol("n1", 700)
        graph = with_sizes(graph, {0: (rows, columns), 1: (columns,)})
    arrays = [rng.normal(size=v.shape).astype(np.float32) for v in graph.inputs]
    assert_same_for_threads(graph, arrays, count)
