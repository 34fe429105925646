"""The compositions of `ir/composite.py` against NumPy and SciPy, and their gradients."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special

from tracegrad.ir import composite, dtypes, ops
from tracegrad.ir.errors import DimensionError, DTypeError, ShapeError
from tracegrad.ir.evaluate import evaluate
from tracegrad.ir.graph import GraphBuilder
from tracegrad.ir.passes.autodiff import vjp
from tracegrad.ir.primitive import type_of

NAN, INF = float("nan"), float("inf")
RNG = np.random.default_rng(11)
X = RNG.standard_normal((3, 4, 5))


def gradient_graph(f, *arrays):
    builder = GraphBuilder("f")
    values = [builder.input(type_of(a)) for a in arrays]
    with builder:
        out = f(*values)
    return vjp(builder.finish([out]), [0])


def gradient(f, x, *rest, ct=1.0):
    arrays = [np.asarray(x), *rest]
    graph = gradient_graph(f, *arrays)
    seed = np.broadcast_to(np.asarray(ct, arrays[0].dtype), graph.inputs[-1].shape)
    return evaluate(graph, [*arrays, seed])[0]


def assert_gradient_is_the_slope(f, x):
    """Gradient along a random direction against a central difference, first and second order."""
    ct = RNG.standard_normal(np.shape(f(x)))
    dx = RNG.standard_normal(x.shape)
    step = 1e-6  # truncation and cancellation both near 1e-10 for values near 1
    slope = np.sum(ct * (f(x + step * dx) - f(x - step * dx))) / (2 * step)
    np.testing.assert_allclose(np.sum(gradient(f, x, ct=ct) * dx), slope, rtol=1e-6, atol=1e-8)

    graph = gradient_graph(f, x)
    first = lambda x: evaluate(graph, [x, ct])[0]  # noqa: E731
    w = RNG.standard_normal(x.shape)
    slope = np.sum(w * (first(x + step * dx) - first(x - step * dx))) / (2 * step)
    second = evaluate(vjp(graph, [0]), [x, ct, w])[0]
    np.testing.assert_allclose(np.sum(second * dx), slope, rtol=1e-6, atol=1e-8)


REDUCED = [
    (lambda x: composite.reduce_mean(x), lambda x: x.mean()),
    (lambda x: composite.reduce_mean(x, (0, 2)), lambda x: x.mean((0, 2))),
    (lambda x: composite.reduce_mean(x, -1, True), lambda x: x.mean(-1, keepdims=True)),
    (lambda x: composite.logsumexp(x), scipy.special.logsumexp),
    (lambda x: composite.logsumexp(x, 1), lambda x: scipy.special.logsumexp(x, 1)),
    (lambda x: composite.logsumexp(x, (0, 2), True),
     lambda x: scipy.special.logsumexp(x, (0, 2), keepdims=True)),
    (lambda x: composite.softmax(x, 1), lambda x: scipy.special.softmax(x, 1)),
    (lambda x: composite.softmax(x), lambda x: scipy.special.softmax(x, -1)),
    (lambda x: composite.log_softmax(x, 0), lambda x: scipy.special.log_softmax(x, 0)),
    (lambda x: composite.matrix_transpose(x), lambda x: x.swapaxes(1, 2)),
    (lambda x: composite.expand_dims(x, (0, -1)), lambda x: x[None, ..., None]),
    (lambda x: composite.squeeze(composite.expand_dims(x, 1)), lambda x: x),
    (lambda x: composite.stack([x, x * x], 1), lambda x: np.stack([x, x * x], 1)),
    (lambda x: composite.stack([x], -1), lambda x: x[..., None]),
    (lambda x: composite.max_with_index(x, 1)[0], lambda x: x.max(1)),
    (lambda x: composite.min_with_index(x, -1, True)[0], lambda x: x.min(-1, keepdims=True)),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(REDUCED)))
def test_composition_agrees_with_numpy_and_its_gradient_with_the_slope(case):
    f, reference = REDUCED[case]
    np.testing.assert_allclose(f(X), reference(X), rtol=1e-13)  # a few roundings of float64
    assert_gradient_is_the_slope(f, X)


# ---- means --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "word"), [("int64", "Long"), ("bool", "Bool"), ("uint8", "Byte")]
)
def test_mean_of_integers_is_refused(dtype, word):
    with pytest.raises(DTypeError, match=rf"could not infer output dtype\. .* Got: {word}$"):
        composite.reduce_mean(np.ones(3, dtype))


def test_mean_of_nothing_is_nan():
    np.testing.assert_array_equal(composite.reduce_mean(np.zeros((0, 2)), 0), [NAN, NAN])


def test_mean_of_float16_does_not_overflow_on_the_way():
    out = composite.reduce_mean(np.full(4, 60000.0, np.float16))
    assert out.dtype == np.float16
    assert out == np.float16(60000.0)


# ---- exponentials -------------------------------------------------------------------------------


def test_logsumexp_neither_overflows_nor_underflows():
    for shift in (1e4, -1e4):
        got = composite.logsumexp(np.array([0.0, 1.0, 2.0]) + shift, 0)
        np.testing.assert_allclose(got, 2.40760596444438 + shift, rtol=1e-15)  # one rounding


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("x", "value", "slope"),
    [  # as PyTorch 2.13 gives them
        ([-INF, -INF], -INF, [NAN, NAN]),
        ([-INF, 1.0], 1.0, [0.0, 1.0]),
        ([INF, 1000.0], INF, [NAN, 0.0]),
        ([NAN, 1.0], NAN, [NAN, NAN]),
    ],
)
def test_logsumexp_at_special_points(x, value, slope, dtype):
    x = np.array(x, dtype)
    np.testing.assert_array_equal(composite.logsumexp(x, 0), value)
    np.testing.assert_array_equal(gradient(lambda x: composite.logsumexp(x, 0), x), slope)


def test_logsumexp_of_nothing_is_minus_infinity():
    np.testing.assert_array_equal(composite.logsumexp(np.zeros((0, 2)), 0), [-INF, -INF])
    assert composite.logsumexp(np.zeros((2, 0)), 0).shape == (0,)


def test_logsumexp_takes_integers():
    out = composite.logsumexp(np.ones(2, np.int64), 0)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, 1 + np.log(2), rtol=1e-6)  # float32


@pytest.mark.parametrize("x", [[-INF, -INF], [INF, 1.0], [NAN, 1.0]])
def test_softmax_of_a_slice_without_a_limit_is_nan(x):
    np.testing.assert_array_equal(composite.softmax(np.array(x), 0), [NAN, NAN])
    np.testing.assert_array_equal(composite.log_softmax(np.array(x), 0), [NAN, NAN])


def test_masked_elements_get_no_weight_and_no_gradient():
    x = np.array([-INF, 0.0, 0.0])
    np.testing.assert_array_equal(composite.softmax(x, 0), [0.0, 0.5, 0.5])
    np.testing.assert_array_equal(composite.log_softmax(x, 0)[0], -INF)
    got = gradient(lambda x: composite.softmax(x, 0), x, ct=[1.0, 1.0, 0.0])
    np.testing.assert_array_equal(got, [0.0, 0.25, -0.25])
    got = gradient(lambda x: composite.log_softmax(x, 0), x, ct=[0.0, 1.0, 0.0])
    np.testing.assert_array_equal(got, [0.0, 0.5, -0.5])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_softmax_is_computed_in_float32_and_rounded_once(dtype):
    x = RNG.standard_normal(100).astype(dtypes.by_name(dtype).numpy)
    exact = scipy.special.softmax(x.astype(np.float64))
    ulp = 2.0 ** (-11 if dtype == "float16" else -8)  # half a unit, relative
    got = composite.softmax(x, 0)
    assert got.dtype == x.dtype
    np.testing.assert_allclose(got.astype(np.float64), exact, rtol=1.01 * ulp)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_of_integers_is_refused(name):
    with pytest.raises(
        DTypeError, match=f"\"{name}_lastdim_kernel_impl\" not implemented for 'Long'"
    ):
        getattr(composite, name)(np.ones(2, np.int64), 0)


def test_softmax_of_nothing_is_nothing():
    assert composite.softmax(np.zeros((2, 0)), 1).shape == (2, 0)
    assert composite.log_softmax(np.zeros((0, 2)), 0).shape == (0, 2)


# ---- picking elements ---------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_take_along_axis_agrees_with_numpy(axis):
    index = np.argsort(X, axis)
    np.testing.assert_array_equal(
        composite.take_along_axis(X, index, axis), np.take_along_axis(X, index, axis)
    )


def test_take_along_axis_of_a_smaller_index():
    x = np.arange(12).reshape(3, 4)
    got = composite.take_along_axis(x, np.array([[3, 2], [1, 1]]), 1)
    np.testing.assert_array_equal(got, [[3, 2], [5, 5]])
    assert composite.take_along_axis(np.array(7.0), np.array(0), 0) == 7.0


def test_gradient_of_take_along_axis_adds_up_repeats():
    x, index = np.zeros((2, 3)), np.array([[0, 0, 2], [1, -1, 1]])
    got = gradient(lambda x, i: composite.take_along_axis(x, i, 1), x, index,
                   ct=[[1, 2, 3], [4, 5, 6]])  # fmt: skip
    np.testing.assert_array_equal(got, [[3, 0, 3], [0, 10, 5]])


def test_take_along_axis_refuses_what_does_not_fit():
    x = np.zeros((2, 3))
    with pytest.raises(ShapeError, match="same number of dimensions as input"):
        composite.take_along_axis(x, np.array([0]), 1)
    with pytest.raises(
        ShapeError, match=r"expected index \[3, 1\] to be no larger than self \[2, 3\]"
    ):
        composite.take_along_axis(x, np.zeros((3, 1), np.int64), 1)
    with pytest.raises(DTypeError, match="Expected dtype int32/int64 for index"):
        composite.take_along_axis(x, np.zeros((2, 1)), 1)
    with pytest.raises(
        DimensionError, match="index 5 is out of bounds for dimension 1 with size 3"
    ):
        composite.take_along_axis(x, np.array([[5]]), 1)


def test_gradient_of_max_with_index_goes_to_the_first_of_ties():
    x = np.array([[4.0, 4.0, 1.0], [NAN, 2.0, NAN]])
    values, index = composite.max_with_index(x, 1)
    np.testing.assert_array_equal(values, [4.0, NAN])
    np.testing.assert_array_equal(index, [0, 0])
    got = gradient(lambda x: composite.max_with_index(x, 1)[0], x, ct=[2.0, 3.0])
    np.testing.assert_array_equal(got, [[2, 0, 0], [3, 0, 0]])


def test_max_with_index_of_an_empty_axis_is_refused_by_its_public_name():
    with pytest.raises(
        DimensionError, match=r"^max\(\): Expected reduction dim 1 to have non-zero"
    ):
        composite.max_with_index(np.zeros((2, 0)), 1)
    with pytest.raises(
        DimensionError, match=r"^min\(\): Expected reduction dim 0 to have non-zero"
    ):
        composite.min_with_index(np.zeros((0, 2)), 0)


# ---- shapes -------------------------------------------------------------------------------------


def test_squeeze_leaves_larger_axes_alone():
    assert composite.squeeze(np.zeros((3, 1, 1)), (0, 1)).shape == (3, 1)
    assert composite.squeeze(np.zeros((1, 1))).shape == ()


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: composite.matrix_transpose(np.zeros(2)), ShapeError, "Got 1-D tensor"),
        (lambda: composite.expand_dims(np.zeros(3), 3), DimensionError, "but got 3"),
        (lambda: composite.squeeze(np.zeros(3), 3), DimensionError, "but got 3"),
        (lambda: composite.stack([]), ShapeError, "stack expects a non-empty TensorList"),
        (lambda: composite.stack([np.zeros(2), np.zeros(3)]), ShapeError,
         r"but got \[2\] at entry 0 and \[3\] at entry 1"),
        (lambda: composite.stack([np.zeros(2)], 3), DimensionError, "but got 3"),
    ],
)  # fmt: skip
def test_shape_compositions_refuse_with_pytorchs_words(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_compositions_work_on_values_and_arrays_alike():
    builder = GraphBuilder("f")
    x = builder.input(type_of(X), "x")
    with builder:
        out = composite.softmax(ops.mul(x, 2.0), 1)
    np.testing.assert_array_equal(
        evaluate(builder.finish([out]), [X])[0], composite.softmax(ops.mul(X, 2.0), 1)
    )
