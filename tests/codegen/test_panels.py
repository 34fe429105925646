"""Products and the maps behind them: one kernel, whose panels of rows go to BLAS and then through the map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.codegen.drawing import BARE, graph
from tracegrad.codegen.plan import Target
from tracegrad.codegen.unit import plan_unit
from tracegrad.ir import dtypes, ops
from tracegrad.ir.evaluate import evaluate
from tracegrad.runtime import executable, threads
from tracegrad.runtime.kernels import pointer


def dot(x: Any, w: Any) -> Any:
    return ops.dot_general(x, w, contract=((x.ndim - 1,), (0,)), batch=((), ()))


def spread(b: Any, like: Any) -> Any:
    return ops.broadcast(ops.reshape(b, shape=(1,) * (like.ndim - 1) + b.shape), shape=like.shape)


def with_bias(x, w, b):
    y = dot(x, w)
    return ops.maximum(y + spread(b, y), 0.0)


def residual(x, w, b):
    y = dot(x, w)
    return x + y * spread(b, y)


def two_readers(x, w, b):
    y = dot(x, w)
    z = ops.tanh(y + spread(b, y))
    return z, dot(y, w)


def kept_too(x, w, b):
    y = dot(x, w)
    return y, ops.sin(y) + spread(b, y)


def update(x, w, b):
    """The gradient of a weight, and the weight after a step."""
    g = ops.dot_general(x, x, contract=((0,), (0,)), batch=((), ()))
    return g, w - 0.01 * g


def transposed_reader(x, w, b):
    y = dot(x, w)
    return ops.permute(y, axes=(1, 0)) * 2.0


def flipped_rows(x, w, b):
    return ops.flip(dot(x, w), axes=(0,)) * 2.0


def summed(x, w, b):
    y = dot(x, w)
    return ops.reduce_sum(y * y, axes=(0,), keepdims=False)


def other_product_first(x, w, b):
    y = dot(x, w)
    z = dot(y, w)
    return z + y


FUSED = [with_bias, residual, two_readers, kept_too, update]
APART = [transposed_reader, flipped_rows, summed]


def drawn(
    function: Callable[..., Any], rows: int = 300, width: int = 200, dtype: Any = dtypes.float32
) -> Any:
    return graph(function, (rows, width), (width, width), (width,), dtype=dtype)


def products_with_maps(function: Callable[..., Any], **sizes: int) -> int:
    return sum(
        ", then " in k.summary[0] for k in plan_unit(drawn(function, **sizes), BARE, {}).kernels
    )


@pytest.mark.parametrize("function", FUSED, ids=lambda f: f.__name__)
def test_maps_that_read_the_product_element_by_element_are_joined(function) -> None:
    assert products_with_maps(function) >= 1


@pytest.mark.parametrize("function", APART, ids=lambda f: f.__name__)
def test_other_readers_stay_apart(function) -> None:
    assert products_with_maps(function) == 0


def test_small_products_and_compilers_without_threads_have_no_panels() -> None:
    assert products_with_maps(with_bias, rows=20, width=20) == 0
    plan = plan_unit(drawn(with_bias), Target(openmp=False, vector_math=None), {})
    assert len(plan.kernels) == 2


def test_a_product_that_another_step_needs_first_stays_where_it_is() -> None:
    """The last product is joined to the sum; the first one is read by a product before that."""
    kernels = plan_unit(drawn(other_product_first), BARE, {}).kernels
    assert [", then " in k.summary[0] for k in kernels] == [False, True]


def test_the_update_of_a_weight_is_written_in_place() -> None:
    plan = plan_unit(drawn(update, 300, 300), BARE, {}, inplace={1: 1})
    assert plan.inplace == {1: 1} and len(plan.kernels) == 1


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.float64], ids=str)
@pytest.mark.parametrize("rows", [129, 256, 300])
@pytest.mark.parametrize(
    "function", [*FUSED, *APART, other_product_first], ids=lambda f: f.__name__
)
def test_values_and_thread_counts(function, rows: int, dtype) -> None:
    made = drawn(function, rows, 200, dtype)
    rng = np.random.default_rng(0)
    given = [(rng.standard_normal(v.shape) / 8).astype(dtype.numpy) for v in made.inputs]
    want = evaluate(made, given)
    run = executable.build(made, "forward")
    before = threads.get_num_threads()
    found = []
    try:
        for count in (1, 2, 7):
            threads.set_num_threads(count)
            found.append(run.call(*(pointer(a) for a in given)))
    finally:
        threads.set_num_threads(before)
    tolerance = 2e-5 if dtype is dtypes.float32 else 1e-12
    for k, expected in enumerate(want):
        np.testing.assert_allclose(found[0][k], expected, rtol=tolerance, atol=tolerance)
        assert all(np.array_equal(f[k], found[0][k]) for f in found)


def test_rows_of_several_axes() -> None:
    """A sequence of vectors: its first axes are the rows of the product."""

    def layer(x, w, b):
        y = ops.dot_general(x, w, contract=((2,), (0,)), batch=((), ()))
        return ops.tanh(y + spread(b, y))

    made = graph(layer, (4, 75, 200), (200, 200), (200,))
    assert len(plan_unit(made, BARE, {}).kernels) == 1
    rng = np.random.default_rng(0)
    given = [(rng.standard_normal(v.shape) / 8).astype(np.float32) for v in made.inputs]
    (got,) = executable.build(made, "forward").call(*(pointer(a) for a in given))
    np.testing.assert_allclose(got, evaluate(made, given)[0], rtol=2e-5, atol=2e-5)
