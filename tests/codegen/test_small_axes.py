"""Sums beside small last axes: written out, with the same bits, and nothing of that shape in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from compiled import assert_compiled_equals_evaluated, reference, run
from drawing import graph as drawn_graph
from drawing import plan, temporaries
from random_graphs import assert_same_bits

from tracegrad.codegen.plan import Target
from tracegrad.codegen.small_axes import unrolled
from tracegrad.codegen.unit import plan_unit
from tracegrad.ir import dtypes, ops
from tracegrad.ir.passes import autodiff, optimize
from tracegrad.ir.passes.sizes import with_sizes
from tracegrad.ir.sizes import Size
from tracegrad.ir.types import TensorType


def total(x: Any, *axes: int, keepdims: bool = False) -> Any:
    return ops.reduce_sum(x, axes=axes, keepdims=keepdims)


def pairs(x: Any) -> Any:
    """The energy of bodies at `x` (n, 3), each with each."""
    n = x.shape[0]
    left = ops.broadcast(ops.reshape(x, shape=(n, 1, 3)), shape=(n, n, 3))
    d = left - ops.reshape(x, shape=(1, n, 3))
    return total(1.0 / ops.sqrt(total(d * d, 2) + 1e-2), 0, 1)


CASES: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "along": (lambda x: total(x * 2.0, 1), ((100, 3),)),
    "along, kept": (lambda x: total(x, 1, keepdims=True) + x, ((100, 3),)),
    "beside": (lambda x: total(ops.sin(x), 0), ((100, 3),)),
    "beside, kept": (lambda x: total(x, 0, keepdims=True) * x, ((100, 4),)),
    "middle": (lambda x: total(x * x, 1), ((5, 40, 2),)),
    "both": (lambda x: total(total(x, 2) * 0.5, 0), ((8, 20, 3),)),
    "weights": (lambda x, w: total(x * w, 1), ((100, 3), (3,))),
    "a number": (lambda x, w: total(x * w, 1), ((100, 3), ())),
    "one column": (lambda x, w: total(x * w, 1), ((100, 3), (100, 1))),
    "broadcast": (lambda x: total(ops.broadcast(x, shape=(50, 2, 3)), 2), ((2, 3),)),
    "also whole": (lambda x: (ops.exp(x), total(ops.exp(x), 1)), ((100, 3),)),
    "flipped": (lambda x: total(ops.flip(x, axes=(1,)) * x, 1), ((100, 3),)),
    "pairs": (pairs, ((40, 3),)),
}


WHOLE = ("along, kept", "middle", "weights", "flipped")  # those that integers have, too
TYPED = [(name, dtype) for name in CASES for dtype in ("float32", "float64", "bfloat16")]


@pytest.mark.parametrize(("name", "dtype"), [*TYPED, *((name, "int32") for name in WHOLE)])
def test_results_and_gradients(name: str, dtype: str) -> None:
    fn, shapes = CASES[name]
    chosen = dtypes.by_name(dtype)
    graph = drawn_graph(fn, *(TensorType(s, chosen) for s in shapes))
    rng = np.random.default_rng(0)
    arrays = [(rng.normal(size=s) * 3).astype(chosen.numpy) for s in shapes]
    assert_compiled_equals_evaluated(graph, arrays)
    if chosen.is_floating_point and len(graph.outputs) == 1:
        wrt = list(range(len(shapes)))
        backward = optimize(autodiff.vjp(graph, wrt, [0]))
        cts = [np.ones(v.shape, chosen.numpy) for v in backward.inputs[len(arrays) :]]
        assert_compiled_equals_evaluated(backward, [*arrays, *cts])


@pytest.mark.parametrize("name", ["along", "beside", "middle", "weights", "one column"])
def test_the_same_bits_as_the_loop(name: str) -> None:
    """Zeros with signs, infinities and nan too."""
    fn, shapes = CASES[name]
    if name == "beside":
        fn = lambda x: total(x * 1.5, 0)  # noqa: E731
    graph = drawn_graph(fn, *shapes)
    rng = np.random.default_rng(1)
    special = np.array([0.0, -0.0, 1.0, -1.0, 1e30, -1e30, 1e-40], np.float32)
    arrays = [rng.choice(special, size=v.shape).astype(np.float32) for v in graph.inputs]
    arrays[0].reshape(-1)[::17] = np.inf
    arrays[0].reshape(-1)[5::31] = np.nan
    with np.errstate(all="ignore"):
        want = reference(graph, arrays)
    got = run(graph, arrays)
    for a, b in zip(got, want, strict=True):
        assert np.array_equal(np.isnan(a), np.isnan(b))
        if name != "beside" and name != "middle":  # long sums may be added in another order
            assert_same_bits([np.nan_to_num(a)], [np.nan_to_num(b)])


def test_nothing_of_the_shape_of_the_pairs_is_in_memory() -> None:
    graph = drawn_graph(pairs, (256, 3))
    backward = optimize(autodiff.vjp(graph, [0], [0]))
    unit = plan_unit(backward, Target(vector_math=None), {})
    assert unit.arena_bytes < 256 * 256 * 4
    assert all(s.nbytes < 256 * 256 * 4 for s in unit.slots if s.kind == "arena")


def test_small_work_and_long_axes_are_left_alone() -> None:
    for shape in [(10, 3), (100, 5), (100, 1)]:
        graph = drawn_graph(lambda x: total(x, 1), shape)
        assert unrolled(graph) is graph


def test_idempotent() -> None:
    graph = unrolled(drawn_graph(pairs, (40, 3)))
    assert unrolled(graph) is graph or str(unrolled(graph)) == str(graph)


def test_a_value_that_is_also_needed_whole_is_computed_once() -> None:
    unit = plan(lambda x: (ops.exp(x), total(ops.exp(x), 1)), (1000, 3))
    assert len(temporaries(unit)) <= 1


def test_sizes_that_vary() -> None:
    for rows in (64, 100, 1000):
        graph = drawn_graph(lambda x: total(x * x, 1), (rows, 3))
        marked = with_sizes(graph, {0: (Size.symbol("n0", rows), 3)})
        x = np.random.default_rng(0).normal(size=(rows, 3)).astype(np.float32)
        assert_same_bits(run(marked, [x]), run(graph, [x]))
