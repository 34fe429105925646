"""Values and gradients where a formula alone would go wrong: ties, zeros, NaN, bounds, overflow.

The numbers were read off PyTorch 2.13 (CPU, float64), but for the gradient of floor_divide, which
PyTorch refuses and which is 0 here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tracegrad.ir import dtypes, ops
from tracegrad.ir.errors import DivisionByZeroError, DTypeError, NotDifferentiableError
from tracegrad.ir.evaluate import evaluate
from tracegrad.ir.graph import GraphBuilder
from tracegrad.ir.passes.autodiff import vjp
from tracegrad.ir.passes.jvp import jvp
from tracegrad.ir.primitive import NOT_DIFFERENTIABLE, TABLE, primitive, type_of

NAN, INF = np.nan, np.inf


def value_and_gradients(name: str, operands: tuple[float, ...]) -> tuple[Any, list[Any]]:
    """The value and one derivative per operand, by reverse mode; forward mode must agree."""
    builder = GraphBuilder(name)
    arrays = [np.asarray(x, np.float64) for x in operands]
    inputs = [builder.input(type_of(a)) for a in arrays]
    with builder:
        out = TABLE[name](*inputs)
    graph = builder.finish([out])
    (value,) = evaluate(graph, arrays)
    grads = evaluate(vjp(graph, range(len(arrays))), [*arrays, np.float64(1.0)[()] + np.zeros(())])
    for i, grad in enumerate(grads):
        _, tangent = evaluate(jvp(graph, [i]), [*arrays, np.ones(())])
        np.testing.assert_array_equal(tangent, grad)
    return value.item(), [g.item() for g in grads]


@pytest.mark.parametrize(
    ("name", "operands", "value", "gradients"),
    [
        ("abs", (0.0,), 0.0, [0.0]),
        ("abs", (NAN,), NAN, [0.0]),
        ("sign", (NAN,), 0.0, [0.0]),
        ("sqrt", (0.0,), 0.0, [INF]),
        ("copysign", (0.0, -1.0), -0.0, [0.0, 0.0]),
        ("copysign", (-2.0, -1.0), -2.0, [1.0, 0.0]),
        ("maximum", (1.0, 1.0), 1.0, [0.5, 0.5]),
        ("maximum", (NAN, 1.0), NAN, [1.0, 1.0]),
        ("minimum", (1.0, NAN), NAN, [1.0, 1.0]),
        ("pow", (0.0, 0.0), 1.0, [0.0, 0.0]),
        ("pow", (0.0, 1.0), 0.0, [1.0, 0.0]),
        ("pow", (0.0, 2.0), 0.0, [0.0, 0.0]),
        ("pow", (0.0, 0.5), 0.0, [INF, 0.0]),
        ("pow", (0.0, -1.0), INF, [-INF, -INF]),
        ("pow", (NAN, 0.0), 1.0, [0.0, NAN]),
        ("pow", (-2.0, 3.0), -8.0, [12.0, NAN]),
        ("clamp", (1.0, 1.0, 2.0), 1.0, [1.0, 0.0, 0.0]),
        ("clamp", (2.0, 1.0, 2.0), 2.0, [1.0, 0.0, 0.0]),
        ("clamp", (0.0, 1.0, 2.0), 1.0, [0.0, 1.0, 0.0]),
        ("clamp", (1.5, 2.0, 1.0), 1.0, [0.0, 0.0, 1.0]),
        ("clamp", (3.0, 2.0, 1.0), 1.0, [0.0, 0.0, 1.0]),
        ("hypot", (0.0, 0.0), 0.0, [NAN, NAN]),
        ("atan2", (0.0, 0.0), 0.0, [0.0, -0.0]),
        ("fmod", (-5.0, 3.0), -2.0, [1.0, 1.0]),
        ("remainder", (-5.0, 3.0), 1.0, [1.0, 2.0]),
        ("remainder", (-4.0, 2.0), -0.0, [1.0, 2.0]),
        ("remainder", (-1.0, INF), INF, [1.0, 1.0]),
        ("floor_divide", (-1.0, INF), -1.0, [0.0, 0.0]),
        ("floor_divide", (5.0, 0.0), INF, [0.0, 0.0]),
        ("round", (2.5,), 2.0, [0.0]),
        ("digamma", (0.0,), -INF, [INF]),
        ("lgamma", (-1.0,), INF, [NAN]),
        ("erfinv", (1.0,), INF, [INF]),
        ("erfinv", (2.0,), NAN, [NAN]),
    ],
)
def test_value_and_gradient(
    name: str, operands: tuple[float, ...], value: float, gradients: list[float]
) -> None:
    got, grads = value_and_gradients(name, operands)
    np.testing.assert_equal([got, *grads], [value, *gradients])


def test_mixed_second_derivative_of_power_at_exponent_zero() -> None:
    """d/dy d/dx x**y = 1/x at y = 0: the guard against 0 * inf must not flatten it."""
    builder = GraphBuilder("power")
    x, y = (builder.input(type_of(np.zeros(())), n) for n in "xy")
    with builder:
        out = ops.pow(x, y)
    by_x = vjp(builder.finish([out]), [0])
    (mixed,) = evaluate(vjp(by_x, [1]), [*map(np.asarray, (4.0, 0.0, 1.0, 1.0))])
    assert mixed == 0.25


def test_where_keeps_nan_out_of_the_selected_branch() -> None:
    """The gradient of where(x > 0, x, nan) stays finite at a selected element."""
    builder = GraphBuilder("f")
    c = builder.input(type_of(np.zeros(2, bool)), "c")
    x, y = (builder.input(type_of(np.zeros(2)), n) for n in "xy")
    with builder:
        out = ops.where(c, x, y)
    graph = builder.finish([out])
    arrays = [np.array([True, False]), np.array([1.0, NAN]), np.array([NAN, INF])]
    gx, gy = evaluate(vjp(graph, [1, 2]), [*arrays, np.array([NAN, 3.0])])
    np.testing.assert_array_equal(gx, [NAN, 0.0])
    np.testing.assert_array_equal(gy, [0.0, 3.0])


# ---- integers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "x", "y", "expected"),
    [
        ("pow", [2, 1, -1, -1, 0], [-1, -2, -2, -3, -1], [0, 1, 1, -1, 0]),
        ("bitwise_left_shift", [1, -5, 7], [-1, 40, 2], [0, 0, 28]),
        ("bitwise_right_shift", [1, -5, 7], [-1, 40, 2], [0, -1, 1]),
        ("floor_divide", [7, -7, 7, -7, -(2**31)], [2, 2, -2, -2, -1], [3, -4, -4, 3, -(2**31)]),
        ("remainder", [7, -7, 7, -7, -(2**31)], [2, 2, -2, -2, -1], [1, 1, -1, -1, 0]),
        ("fmod", [7, -7, 7, -7], [2, 2, -2, -2], [1, -1, 1, -1]),
        ("add", [2**31 - 1], [1], [-(2**31)]),
        ("mul", [2**30], [4], [0]),
    ],
)
def test_integer_arithmetic(name: str, x: list[int], y: list[int], expected: list[int]) -> None:
    got = TABLE[name](np.array(x, np.int32), np.array(y, np.int32))
    np.testing.assert_array_equal(got, np.array(expected, np.int32))
    assert got.dtype == np.int32


@pytest.mark.parametrize("name", ["floor_divide", "remainder", "fmod"])
def test_integer_division_by_zero_is_refused(name: str) -> None:
    with pytest.raises(RuntimeError, match="^ZeroDivisionError"):
        TABLE[name](np.array([1]), np.array([0]))
    with pytest.raises(DivisionByZeroError, match=rf"{name}: 1 of 1 integer divisors are 0"):
        TABLE[name](np.array([1]), 0)
    assert TABLE[name](np.zeros(0, np.int64), np.zeros(0, np.int64)).size == 0


def test_true_division_of_integers_is_floating() -> None:
    got = ops.div(np.array([1, 2]), np.array([2, 0]))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, np.array([0.5, INF], np.float32))


def test_integer_to_negative_number_power_is_refused() -> None:
    for base in (np.array([2]), np.array([2], np.uint8)):
        with pytest.raises(
            DTypeError, match="^Integers to negative integer powers are not allowed"
        ):
            ops.pow(base, -1)
    np.testing.assert_array_equal(ops.pow(np.array([2, 1]), np.array(-1)), [0, 1])
    assert ops.pow(np.array(2.0), -1) == 0.5


def test_out_of_range_conversion_is_defined() -> None:
    """Note [Floating to integer] of `ir/primitives/conversion.py`."""
    x = np.array([1e10, -1e10, NAN, INF, 300.7], np.float32)
    low32, low64 = -(2**31), -(2**63)
    expected = {
        dtypes.int32: [low32, low32, low32, low32, 300],
        dtypes.int8: [0, 0, 0, 0, 44],
        dtypes.uint8: [0, 0, 0, 0, 44],
        dtypes.int64: [10**10, -(10**10), low64, low64, 300],
        dtypes.bool_: [1, 1, 1, 1, 1],
    }
    for dtype, values in expected.items():
        got = ops.cast(x, dtype=dtype)
        np.testing.assert_array_equal(got, np.array(values, dtype.numpy))


def test_polygamma_left_of_zero() -> None:
    """Reflection, against the recurrence psi_n(x) = psi_n(x + 1) - (-1)^n n! x^(-n-1)."""
    x = np.array([-0.5, -1.5, -2.25, -6.75])
    for order, factor in ((1, -1.0), (2, 2.0), (3, -6.0)):
        left = ops.polygamma(x, order=order)
        right = ops.polygamma(x + 1, order=order) - factor * x ** (-order - 1.0)
        np.testing.assert_allclose(left, right, rtol=1e-12)


# ---- promotion, and what has no derivative ------------------------------------------------------


@pytest.mark.parametrize("dtype", [*dtypes.INTEGERS, dtypes.bool_], ids=lambda d: d.name)
def test_functions_of_integers_are_of_default_dtype(dtype: dtypes.DType) -> None:
    x = np.ones((2,), dtype.numpy)
    for op in (ops.sin, ops.exp, ops.sqrt, ops.erf, ops.reciprocal):
        got = op(x)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, op(x.astype(np.float32)))


def test_numbers_do_not_widen_arrays() -> None:
    x = np.ones(3, np.float16)
    assert ops.mul(x, 2.5).dtype == np.float16
    assert ops.add(np.ones(3, np.int8), 7).dtype == np.int8
    assert ops.add(np.ones(3, np.int8), 0.5).dtype == np.float32


def test_derivative_of_what_has_none_names_the_operation() -> None:
    sin = TABLE["sin"]
    record = {n: getattr(sin, n) for n in ("args", "family", "shape", "dtype", "eager", "batch",
                                           "samples", "source")}  # fmt: skip
    stubborn = primitive("stubborn", vjp=NOT_DIFFERENTIABLE, jvp=NOT_DIFFERENTIABLE, **record)
    try:
        builder = GraphBuilder("f")
        x = builder.input(type_of(np.zeros(2)), "x")
        with builder:
            out = stubborn(x)
        for differentiate in (vjp, jvp):
            with pytest.raises(NotDifferentiableError, match="^stubborn: has no derivative"):
                differentiate(builder.finish([out]), [0])
    finally:
        del TABLE["stubborn"]
