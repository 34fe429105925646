"""Reductions, movement and indexing: exact values at the points that random samples miss.

Ties, NaN, infinities, empties, products with zeros, repeated indices. What holds for every sample
of every record (derivatives, batch rules, refusals) is tested from the table elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tracegrad.ir import dtypes, ops
from tracegrad.ir.errors import DimensionError, DTypeError, ParameterError, ShapeError
from tracegrad.ir.evaluate import evaluate
from tracegrad.ir.graph import Graph, GraphBuilder
from tracegrad.ir.passes.autodiff import vjp
from tracegrad.ir.primitive import type_of

NAN, INF = float("nan"), float("inf")


def traced(f: Callable[..., Any], *arrays: np.ndarray) -> Graph:
    """The graph of `f` for operands like `arrays`."""
    builder = GraphBuilder("f")
    values = [builder.input(type_of(a)) for a in arrays]
    with builder:
        out = f(*values)
    return builder.finish([out])


def gradient(f: Callable[..., Any], x: Any, *rest: np.ndarray, ct: Any = 1.0) -> np.ndarray:
    """Cotangent of the first operand of `f`, for a cotangent `ct` of its result."""
    arrays = [np.asarray(x), *rest]
    graph = traced(f, *arrays)
    seed = np.broadcast_to(np.asarray(ct, arrays[0].dtype), graph.outputs[0].shape)
    return evaluate(vjp(graph, [0]), [*arrays, seed])[0]


def second_gradient(f: Callable[..., Any], x: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Hessian of the scalar `f` times `direction`."""
    graph = vjp(traced(f, x), [0])
    one = np.ones((), x.dtype)
    return evaluate(vjp(graph, [0]), [x, one, direction])[0]


def total(x: Any) -> Any:
    return ops.reduce_sum(x, axes=None)


# ---- sums and products --------------------------------------------------------------------------


def test_float32_sum_is_rounded_once():
    x = np.array([2.0**24, 1.0, 1.0], np.float32)  # a float32 accumulator would lose both ones
    assert ops.reduce_sum(x, axes=None) == np.float32(2.0**24 + 2)


def test_float16_sum_passes_its_range_inside():
    x = np.array([60000.0, 60000.0, -60000.0], np.float16)
    assert ops.reduce_sum(x, axes=None) == np.float16(60000.0)


def test_bfloat16_sum_and_product_are_rounded_once():
    bfloat16 = dtypes.bfloat16.numpy
    x = np.full(1000, 1.0, bfloat16)
    assert float(ops.reduce_sum(x, axes=None)) == 1000.0  # adding in bfloat16 stops at 256
    x = np.array([1.5, 1.5, 1.5], bfloat16)
    assert ops.reduce_prod(x, axes=None) == np.asarray(3.375, bfloat16)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "int16", "int32", "int64"])
def test_integer_sum_and_product_are_int64(dtype):
    x = np.ones(300, dtype)
    assert ops.reduce_sum(x, axes=None) == 300
    assert ops.reduce_sum(x, axes=None).dtype == np.int64
    assert ops.reduce_prod(x, axes=None).dtype == np.int64


def test_int64_sum_wraps_around():
    x = np.array([2**63 - 1, 1], np.int64)
    assert ops.reduce_sum(x, axes=None) == -(2**63)


def test_empty_sum_is_zero_and_empty_product_is_one():
    x = np.zeros((0, 2), np.float32)
    np.testing.assert_array_equal(ops.reduce_sum(x, axes=0), [0, 0])
    np.testing.assert_array_equal(ops.reduce_prod(x, axes=0), [1, 1])
    assert ops.reduce_prod(x, axes=1).shape == (0,)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        ([2.0, 3.0, 4.0], [12.0, 8.0, 6.0]),
        ([2.0, 0.0, 4.0], [0.0, 8.0, 0.0]),
        ([2.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
        ([0.0, 3.0], [3.0, 0.0]),
        ([7.0], [1.0]),
        ([0.0], [1.0]),
        ([], []),
        ([INF, 0.0], [0.0, INF]),
        ([1.0, 2.0, 3.0, 4.0, 5.0], [120.0, 60.0, 40.0, 30.0, 24.0]),
    ],
)
def test_gradient_of_product_divides_by_nothing(x, expected):
    x = np.array(x, np.float64)
    np.testing.assert_array_equal(gradient(lambda x: ops.reduce_prod(x, axes=None), x), expected)


def test_gradient_of_product_over_some_axes():
    x = np.random.default_rng(0).uniform(0.5, 2.0, (2, 3, 5, 2))
    ct = np.random.default_rng(1).standard_normal((3, 2))
    got = gradient(lambda x: ops.reduce_prod(x, axes=(0, 2)), x, ct=ct)
    expected = ct[None, :, None] * x.prod((0, 2), keepdims=True) / x
    np.testing.assert_allclose(got, expected, rtol=1e-14)  # a few roundings of float64


@pytest.mark.parametrize("x", [[2.0, 3.0, 5.0], [2.0, 0.0, 5.0], [0.0, 0.0, 5.0], [0.0, 0.0, 0.0]])
def test_second_derivative_of_product_with_zeros(x):
    x = np.array(x)
    hessian = [
        [0.0 if i == j else np.prod(np.delete(x, [i, j])) for j in range(3)] for i in range(3)
    ]
    for j in range(3):
        got = second_gradient(lambda x: ops.reduce_prod(x, axes=None), x, np.eye(3)[j])
        np.testing.assert_array_equal(got, hessian[j])


def test_third_derivative_of_product_at_zero():
    x = np.zeros(3)
    graph = vjp(vjp(traced(lambda x: ops.reduce_prod(x, axes=None), x), [0]), [0])
    third = vjp(graph, [0])
    e = np.eye(3)
    got = evaluate(third, [x, np.ones(()), e[0], e[1]])[0]
    np.testing.assert_array_equal(got, e[2])  # d3(abc)/da db dc = 1


def test_float16_product_gradient_does_not_overflow_on_the_way():
    x = np.array([300.0, 300.0, 0.0625, 0.0625], np.float16)
    got = gradient(lambda x: ops.reduce_prod(x, axes=None), x)
    np.testing.assert_array_equal(got, np.array([1.171875, 1.171875, 5624.0, 5624.0], np.float16))


# ---- extremes -----------------------------------------------------------------------------------

FLOAT_NAMES = ["float16", "bfloat16", "float32", "float64"]


@pytest.mark.parametrize("dtype", FLOAT_NAMES)
@pytest.mark.parametrize("op", [ops.reduce_max, ops.reduce_min])
def test_extreme_propagates_nan(op, dtype):
    x = np.array([[1.0, NAN, 3.0], [1.0, 2.0, 3.0]], dtypes.by_name(dtype).numpy)
    out = op(x, axes=1).astype(np.float64)
    assert np.isnan(out[0])
    assert out[1] == (3.0 if op is ops.reduce_max else 1.0)


@pytest.mark.parametrize("dtype", FLOAT_NAMES)
@pytest.mark.parametrize("op", [ops.argmax, ops.argmin])
def test_search_finds_the_first_nan(op, dtype):
    x = np.array([5.0, NAN, -5.0, NAN], dtypes.by_name(dtype).numpy)
    assert op(x, axis=0) == 1
    assert op(x, axis=0).dtype == np.int64


@pytest.mark.parametrize("op", [ops.argmax, ops.argmin])
def test_search_takes_the_first_of_equals(op):
    np.testing.assert_array_equal(op(np.zeros((2, 3)), axis=1), [0, 0])
    assert op(np.zeros((2, 3)), axis=None) == 0


def test_search_keeps_dimensions():
    x = np.array([[1, 9, 3], [4, 5, 6]])
    np.testing.assert_array_equal(ops.argmax(x, axis=1, keepdims=True), [[1], [2]])
    np.testing.assert_array_equal(ops.argmax(x, axis=None, keepdims=True), [[1]])
    assert ops.argmin(np.array(3.0), axis=-1) == 0


def test_ties_share_the_gradient_equally():
    x = [[1.0, 4.0, 4.0, 0.0], [2.0, 2.0, 2.0, 2.0]]
    got = gradient(lambda x: ops.reduce_max(x, axes=1), x, ct=[6.0, 8.0])
    np.testing.assert_array_equal(got, [[0, 3, 3, 0], [2, 2, 2, 2]])
    got = gradient(lambda x: ops.reduce_min(x, axes=(0, 1)), x, ct=5.0)
    np.testing.assert_array_equal(got, [[0, 0, 0, 5], [0, 0, 0, 0]])


def test_gradient_of_extreme_with_nan_is_nan_in_that_slice():
    x = [[1.0, NAN], [1.0, 2.0]]
    got = gradient(lambda x: ops.reduce_max(x, axes=1), x)
    np.testing.assert_array_equal(got, [[NAN, NAN], [0.0, 1.0]])  # as torch.amax


@pytest.mark.parametrize("x", [[-INF, -INF], [INF, INF]])
def test_infinite_ties_share_the_gradient(x):
    np.testing.assert_array_equal(gradient(lambda x: ops.reduce_max(x, axes=None), x), [0.5, 0.5])


def test_extreme_of_empty_names_the_operation_and_the_axis():
    x = np.zeros((2, 0, 3))
    with pytest.raises(ShapeError, match=r"^max\(\): Expected reduction dim to be specified for"):
        ops.reduce_max(x, axes=None)
    with pytest.raises(
        DimensionError, match=r"^min\(\): Expected reduction dim 1 to have non-zero"
    ):
        ops.reduce_min(x, axes=(0, 1))
    with pytest.raises(
        DimensionError, match=r"^argmin\(\): Expected reduction dim to be specified"
    ):
        ops.argmin(x, axis=None)
    assert ops.reduce_max(x, axes=2).shape == (2, 0)
    assert ops.argmax(x, axis=0).shape == (0, 3)


def test_any_and_all_count_nan_as_true():
    x = np.array([[0.0, NAN], [0.0, 0.0], [INF, -1.0]], np.float32)
    np.testing.assert_array_equal(ops.reduce_any(x, axes=1), [True, False, True])
    np.testing.assert_array_equal(ops.reduce_all(x, axes=1), [False, False, True])
    assert not ops.reduce_any(np.zeros(0), axes=None)
    assert ops.reduce_all(np.zeros(0), axes=None)


def test_bfloat16_any_reads_values_not_bits():
    x = np.array([-0.0, 0.0], dtypes.bfloat16.numpy)
    assert not ops.reduce_any(x, axes=None)


def test_zero_dimensional_operand_takes_axis_zero_only():
    assert ops.reduce_sum(np.array(3.0), axes=0) == 3.0
    assert ops.reduce_max(np.array(3.0), axes=(-1,)) == 3.0
    with pytest.raises(DimensionError, match=r"expected to be in range of \[-1, 0\], but got 1"):
        ops.reduce_sum(np.array(3.0), axes=1)


# ---- slices and padding -------------------------------------------------------------------------


def test_pad_puts_values_around_and_between():
    x = np.array([1.0, 2.0, 3.0])
    got = ops.pad(x, padding=((1, 2, 1),), value=9)
    np.testing.assert_array_equal(got, [9, 1, 9, 2, 9, 3, 9, 9])


def test_pad_of_nothing_has_no_interior():
    got = ops.pad(np.zeros(0), padding=((1, 2, 5),), value=NAN)
    np.testing.assert_array_equal(got, [NAN] * 3)


def test_pad_value_is_held_to_the_dtype():
    np.testing.assert_array_equal(
        ops.pad(np.ones(1, np.int64), padding=((1, 0),), value=1.7), [1, 1]
    )
    for value in (NAN, INF, 2**70):
        with pytest.raises(DTypeError, match="cannot be converted to type Int"):
            ops.pad(np.ones(1, np.int32), padding=((1, 0),), value=value)


def test_pad_keeps_a_negative_zero():
    assert np.signbit(ops.pad(np.ones(1), padding=((1, 0, 0),), value=-0.0))[0]


def test_vjp_of_a_strided_slice_is_one_pad():
    x = np.arange(7.0)
    f = lambda x: ops.slice(x, start=(1,), stop=(6,), step=(2,))  # noqa: E731
    names = [n.primitive.name for n in vjp(traced(f, x), [0]).nodes]
    assert names == ["pad"]
    np.testing.assert_array_equal(gradient(f, x, ct=[1, 2, 3]), [0, 1, 0, 2, 0, 3, 0])


def test_vjp_of_an_interior_pad_is_one_slice():
    x = np.arange(3.0)
    f = lambda x: ops.pad(x, padding=((1, 2, 1),), value=9)  # noqa: E731
    names = [n.primitive.name for n in vjp(traced(f, x), [0]).nodes]
    assert names == ["slice"]
    np.testing.assert_array_equal(gradient(f, x, ct=np.arange(8)), [1, 3, 5])


def test_tangent_of_pad_is_padded_with_zero():
    x, dx = np.ones(2), np.array([3.0, 4.0])
    params = {"padding": ((1, 0, 0),), "value": 7.0}
    np.testing.assert_array_equal(ops.pad.tangent(0, dx, None, (x,), params), [0, 3, 4])


@pytest.mark.parametrize("size", range(6))
@pytest.mark.parametrize("step", [1, 2, 4])
def test_slice_and_its_vjp_agree_with_numpy_at_every_bound(size, step):
    x = np.arange(1.0, size + 1)
    for start in range(size + 1):
        for stop in range(start, size + 1):
            params = {"start": (start,), "stop": (stop,), "step": (step,)}
            expected = x[start:stop:step]
            np.testing.assert_array_equal(ops.slice(x, **params), expected)
            back = np.zeros(size)
            back[start:stop:step] = expected
            got = gradient(lambda x, p=params: ops.slice(x, **p), x, ct=expected)
            np.testing.assert_array_equal(got, back)


def test_concat_promotes_and_its_gradient_is_cut():
    a, b = np.array([1, 2], np.int64), np.array([0.5], np.float32)
    out = ops.concat(a, b, axis=0)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, [1, 2, 0.5])
    x = np.zeros((2, 1))
    got = gradient(lambda x, y: ops.concat(x, y, x, axis=1), x, np.zeros((2, 2)),
                   ct=[[1, 2, 3, 4], [5, 6, 7, 8]])  # fmt: skip
    np.testing.assert_array_equal(got, [[1 + 4], [5 + 8]])


def test_concat_of_nothing_is_refused():
    with pytest.raises(ParameterError, match="expected a non-empty list of Tensors"):
        ops.concat(axis=0)


# ---- indexing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)])
def test_gather_agrees_with_numpy(axes):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((4, 5, 6))
    shapes = [(3, 1), (2,), (3, 2)][: len(axes)]
    indices = [rng.integers(-x.shape[a], x.shape[a], s) for a, s in zip(axes, shapes, strict=True)]
    rest = [a for a in range(3) if a not in axes]
    expected = x.transpose(*axes, *rest)[tuple(indices)]
    np.testing.assert_array_equal(ops.gather(x, *indices, axes=axes), expected)


def test_gradient_of_gather_adds_up_repeated_indices():
    x = np.zeros((3, 2))
    index = np.array([2, 0, 2, -1])
    ct = np.array([[1, 2], [3, 4], [5, 6], [7, 8]])
    got = gradient(lambda x, i: ops.gather(x, i, axes=(0,)), x, index, ct=ct)
    np.testing.assert_array_equal(got, [[3, 4], [0, 0], [13, 16]])


@pytest.mark.parametrize("dtype", ["int32", "int64", "float16", "bfloat16", "float32", "float64"])
def test_scatter_add_adds_up_repeated_indices(dtype):
    numpy_dtype = dtypes.by_name(dtype).numpy
    x = np.array([10, 20, 30]).astype(numpy_dtype)
    updates = np.array([1, 2, 3, 4]).astype(numpy_dtype)
    got = ops.scatter_add(x, updates, np.array([0, 2, 0, -3]), axes=(0,))
    np.testing.assert_array_equal(got.astype(np.float64), [18, 20, 32])
    np.testing.assert_array_equal(x.astype(np.float64), [10, 20, 30])  # the operand is left alone


def test_scatter_add_adds_in_row_major_order():
    # (1e16 + 1) + -1e16 = 0 and 1e16 + -1e16 + 1 = 1 in float64: the order shows.
    updates = np.array([[1e16, 1.0], [-1e16, 1.0]])
    index = np.zeros((2, 2), np.int64)
    for layout in (np.ascontiguousarray, np.asfortranarray):
        got = ops.scatter_add(np.zeros(1), layout(updates), layout(index), axes=(0,))
        assert got[0] == 1.0


def test_scatter_set_keeps_the_last_write_in_row_major_order():
    updates = np.array([[1.0, 2.0], [3.0, 4.0]])
    index = np.array([[0, 1], [1, 0]])
    for layout in (np.ascontiguousarray, np.asfortranarray):
        got = ops.scatter_set(np.zeros(3), layout(updates), layout(index), axes=(0,))
        np.testing.assert_array_equal(got, [4, 3, 0])


def test_gradient_of_scatter_set_is_zero_for_what_was_overwritten():
    x, index = np.zeros(3), np.array([0, 1, 0])
    updates = np.array([5.0, 6.0, 7.0])
    set_ = lambda u, x, i: ops.scatter_set(x, u, i, axes=(0,))  # noqa: E731
    np.testing.assert_array_equal(gradient(set_, updates, x, index, ct=[1, 2, 3]), [0, 2, 1])
    set_ = lambda x, u, i: ops.scatter_set(x, u, i, axes=(0,))  # noqa: E731
    np.testing.assert_array_equal(gradient(set_, x, updates, index, ct=[1, 2, 3]), [0, 0, 3])


def test_gradient_of_scatter_add_reaches_operand_and_updates():
    x, updates, index = np.zeros(3), np.zeros(4), np.array([0, 2, 0, -3])
    add = lambda u, x, i: ops.scatter_add(x, u, i, axes=(0,))  # noqa: E731
    np.testing.assert_array_equal(gradient(add, updates, x, index, ct=[1, 2, 3]), [1, 3, 1, 1])
    add = lambda x, u, i: ops.scatter_add(x, u, i, axes=(0,))  # noqa: E731
    np.testing.assert_array_equal(gradient(add, x, updates, index, ct=[1, 2, 3]), [1, 2, 3])


def test_index_of_an_empty_axis_is_out_of_bounds_unless_none_is_asked():
    x = np.zeros((0, 2))
    with pytest.raises(
        DimensionError, match="index 0 is out of bounds for dimension 0 with size 0"
    ):
        ops.gather(x, np.array([0]), axes=(0,))
    assert ops.gather(x, np.zeros(0, np.int64), axes=(0,)).shape == (0, 2)


def test_uint8_index_counts_and_bool_index_is_refused():
    x = np.arange(300)
    np.testing.assert_array_equal(ops.gather(x, np.array([200], np.uint8), axes=(0,)), [200])
    with pytest.raises(DimensionError, match="tensors used as indices must be long"):
        ops.gather(x, np.ones(300, bool), axes=(0,))
