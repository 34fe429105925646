"""Contraction, convolution and pooling against plain loops, and their derivatives.

The tests made from the table cover shapes, dtypes, batch rules and refusals of every record; these
compare values with definitions written as loops, over all small geometries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest

from tracegrad.ir import ops
from tracegrad.ir.composite_einsum import einsum
from tracegrad.ir.composite_linalg import bmm, dot, linear, matmul, mm, mv, outer, tensordot
from tracegrad.ir.dtypes import from_numpy
from tracegrad.ir.errors import DTypeError, ShapeError
from tracegrad.ir.evaluate import evaluate
from tracegrad.ir.graph import Graph, GraphBuilder
from tracegrad.ir.passes.autodiff import vjp
from tracegrad.ir.types import TensorType
from tracegrad.ir.windows import WindowAxis

EXACT = {"rtol": 1e-12, "atol": 1e-12}  # float64 sums of at most 1,000 terms of size about one


def traced(function: Callable[..., Any], *arrays: np.ndarray) -> Graph:
    """The graph of `function` on operands like `arrays`."""
    builder = GraphBuilder("f")
    inputs = [builder.input(TensorType(a.shape, from_numpy(a.dtype))) for a in arrays]
    with builder:
        result = function(*inputs)
    return builder.finish([result])


def directional(
    graph: Graph, arrays: Sequence[np.ndarray], along: Sequence[np.ndarray], step: float
) -> Any:
    """Central difference of all outputs along a direction."""
    up = evaluate(graph, [a + step * d for a, d in zip(arrays, along, strict=True)])
    down = evaluate(graph, [a - step * d for a, d in zip(arrays, along, strict=True)])
    return [(u - v) / (2 * step) for u, v in zip(up, down, strict=True)]


def check_two_orders(function: Callable[..., Any], *arrays: np.ndarray, step: float = 1e-4) -> None:
    """The vjp, and the vjp of the vjp, against central differences along a random direction.

    The functions here are polynomials of degree two or piecewise linear, so the difference
    quotient has only rounding error: 1e-16 / step, on sums of up to 1,000 terms.
    """
    rng = np.random.default_rng(3)
    graph, values = traced(function, *arrays), list(arrays)
    for _ in range(2):
        floats = [i for i, v in enumerate(values) if v.dtype.kind == "f"]
        along = [rng.normal(size=v.shape) if v.dtype.kind == "f" else 0 * v for v in values]
        cotangents = [rng.normal(size=v.shape) for v in graph.outputs]
        backward = vjp(graph, floats)
        grads = evaluate(backward, [*values, *cotangents])
        difference = directional(graph, values, along, step)
        expected = sum(float(np.sum(c * d)) for c, d in zip(cotangents, difference, strict=True))
        got = sum(float(np.sum(g * along[i])) for g, i in zip(grads, floats, strict=True))
        assert got == pytest.approx(expected, rel=1e-8, abs=1e-8)
        graph, values = backward, [*values, *cotangents]


# ---- contraction --------------------------------------------------------------------------------

DOTS = [
    ("ij,jk->ik", (2, 3), (3, 4), ((1,), (0,)), ((), ())),
    ("ij,kj->ik", (2, 3), (4, 3), ((1,), (1,)), ((), ())),
    ("ji,jk->ik", (3, 2), (3, 4), ((0,), (0,)), ((), ())),
    ("bij,bjk->bik", (2, 3, 4), (2, 4, 5), ((2,), (1,)), ((0,), (0,))),
    ("ibj,kjb->bik", (3, 2, 4), (5, 4, 2), ((2,), (1,)), ((1,), (2,))),
    ("ijk,kjl->il", (2, 3, 4), (4, 3, 5), ((1, 2), (1, 0)), ((), ())),
    ("abi,cba->bic", (2, 3, 4), (5, 3, 2), ((0,), (2,)), ((1,), (1,))),
    ("i,j->ij", (3,), (4,), ((), ()), ((), ())),
    ("i,i->", (3,), (3,), ((0,), (0,)), ((), ())),
]


@pytest.mark.parametrize(("equation", "xs", "ys", "contract", "batch"), DOTS)
def test_dot_general_is_the_sum_of_products(equation, xs, ys, contract, batch):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=xs), rng.normal(size=ys)
    got = ops.dot_general(x, y, contract=contract, batch=batch)
    np.testing.assert_allclose(got, np.einsum(equation, x, y), **EXACT)
    check_two_orders(lambda a, b: ops.dot_general(a, b, contract=contract, batch=batch), x, y)


def test_dot_general_of_halves_accumulates_in_float32():
    x = np.full((1, 4096), 1.0, np.float16)
    y = np.full((4096, 1), 1.0, np.float16)
    # A float16 accumulator stops at 2048: 2048 + 1 rounds to 2048.
    assert ops.dot_general(x, y, contract=((1,), (0,)))[0, 0] == 4096


def test_dot_general_of_integers_wraps():
    x = np.full((1, 4), 100, np.int8)
    assert ops.dot_general(x, x, contract=((1,), (1,)))[0, 0] == np.array(40000).astype(np.int8)


MATMULS = [
    ((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 4)), ((2, 3), (3, 4)), ((5, 2, 3), (3, 4)),
    ((5, 2, 3), (3,)), ((3,), (5, 3, 4)), ((5, 2, 3), (5, 3, 4)), ((2, 3), (5, 3, 4)),
    ((1, 2, 3), (5, 3, 4)), ((5, 2, 3), (1, 3, 4)), ((6, 1, 2, 3), (5, 3, 4)),
    ((2, 3), (1, 3, 4)), ((6, 5, 2, 3), (6, 5, 3, 4)), ((0, 3), (3, 4)), ((2, 0), (0, 4)),
]  # fmt: skip


@pytest.mark.parametrize(("xs", "ys"), MATMULS)
def test_matmul_broadcasts_like_numpy(xs, ys):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=xs), rng.normal(size=ys)
    np.testing.assert_allclose(matmul(x, y), x @ y, **EXACT)
    if x.size and y.size:
        check_two_orders(matmul, x, y)


@pytest.mark.parametrize(
    ("function", "shapes"),
    [(matmul, MATMULS[i]) for i in (0, 1, 2, 3, 4, 5, 6, 7, 13)] + [(linear, ((5, 2, 3), (4, 3)))],
)
def test_plain_products_and_their_gradients_need_no_permute(function, shapes):
    graph = traced(function, *(np.zeros(s) for s in shapes))
    assert [n.primitive.name for n in graph.nodes] == ["dot_general"]
    if shapes[1:] == ((5, 3, 4),) and len(shapes[0]) == 1:
        return  # a vector times a batch: the gradient of the batch does need one
    names = [n.primitive.name for n in vjp(graph, [0, 1]).nodes]
    assert names == ["dot_general", "dot_general"]


MESSAGES = [
    (matmul, ((), (3,)), "both arguments to matmul need to be at least 1D, but they are 0D and 1D"),
    (matmul, ((3,), (4,)), "inconsistent tensor size, expected tensor [3] and src [4] to have the "
     "same number of elements, but got 3 and 4 elements respectively"),
    (matmul, ((2, 3), (4,)), "size mismatch, got input (2), mat (2x3), vec (4)"),
    (matmul, ((3,), (4, 5)), "mat1 and mat2 shapes cannot be multiplied (1x3 and 4x5)"),
    (matmul, ((2, 3), (4, 5)), "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    (matmul, ((2, 3, 4), (5, 2)), "mat1 and mat2 shapes cannot be multiplied (6x4 and 5x2)"),
    (matmul, ((2, 3, 4), (5,)), "size mismatch, got input (6), mat (6x4), vec (5)"),
    (matmul, ((2, 3, 4), (2, 5, 6)), "Expected size for first two dimensions of batch2 tensor to "
     "be: [2, 4] but got: [2, 5]."),
    (matmul, ((4,), (2, 3, 4)), "Expected size for first two dimensions of batch2 tensor to be: "
     "[2, 4] but got: [2, 3]."),
    (matmul, ((2, 3, 4), (3, 4, 6)), "The size of tensor a (2) must match the size of tensor b (3) "
     "at non-singleton dimension 0"),
    (mm, ((3,), (3, 2)), "self must be a matrix"),
    (bmm, ((3, 3), (3, 2, 3)), "batch1 must be a 3D tensor"),
    (bmm, ((2, 3, 4), (3, 4, 5)), "Expected size for first two dimensions of batch2 tensor to be: "
     "[2, 4] but got: [3, 4]."),
    (mv, ((2, 3), (4,)), "size mismatch, got input (2), mat (2x3), vec (4)"),
    (dot, ((2, 3), (3,)), "1D tensors expected, but got 2D and 1D tensors"),
    (outer, ((2, 1), (3,)), "outer: Expected 1-D argument self, but got 2-D"),
    (linear, ((2, 6, 3), (5, 4)), "mat1 and mat2 shapes cannot be multiplied (12x3 and 4x5)"),
    (tensordot, ((2, 3), (4, 5), 1), "contracted dimensions need to match, but first has size 3 in "
     "dim -1 and second has size 4 in dim 0"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "shapes", "text"), MESSAGES)
def test_products_refuse_shapes_in_pytorchs_words(function, shapes, text):
    operands = [np.zeros(s) if isinstance(s, tuple) else s for s in shapes]
    with pytest.raises(ShapeError) as caught:
        function(*operands)
    assert str(caught.value) == text


def test_matmul_refuses_mixed_dtypes():
    with pytest.raises(
        DTypeError, match="expected m1 and m2 to have the same dtype.* float != double"
    ):
        matmul(np.zeros((2, 3), np.float32), np.zeros((3, 2)))


def test_linear_adds_the_bias():
    rng = np.random.default_rng(0)
    x, w, b = rng.normal(size=(5, 2, 3)), rng.normal(size=(4, 3)), rng.normal(size=4)
    np.testing.assert_allclose(linear(x, w, b), x @ w.T + b, **EXACT)
    with pytest.raises(ShapeError, match=r"bias of shape \[5\] does not fit"):
        linear(x, w, np.zeros(5))


def test_tensordot_sums_the_partner_of_a_size_one_axis():
    x, y = np.arange(2.0).reshape(2, 1), np.arange(20.0).reshape(4, 5)
    np.testing.assert_allclose(tensordot(x, y, ([1], [0])), np.outer(x[:, 0], y.sum(0)), **EXACT)


EINSUMS = [
    ("ij,jk->ik", (2, 3), (3, 4)), ("ij,jk", (2, 3), (3, 4)),
    ("bij,bjk->bik", (2, 3, 4), (2, 4, 5)),
    ("...ij,...jk->...ik", (5, 2, 3), (3, 4)), ("ij->ji", (2, 3)), ("ij->", (2, 3)),
    ("ij,ij->i", (2, 3), (2, 3)), ("i,j->ij", (2,), (3,)), ("ij,j,k->ki", (2, 3), (3,), (4,)),
    ("ab,bc,cd,de->ae", (2, 3), (3, 4), (4, 5), (5, 2)), ("ij,ik->j", (2, 3), (2, 4)),
    ("i...,i->...", (2, 3, 4), (2,)), ("bhqd,bhkd->bhqk", (2, 3, 4, 5), (2, 3, 6, 5)),
]  # fmt: skip


@pytest.mark.parametrize(("equation", "shapes"), [(row[0], row[1:]) for row in EINSUMS])
def test_einsum_agrees_with_numpy(equation, shapes):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=s) for s in shapes]
    np.testing.assert_allclose(einsum(equation, *arrays), np.einsum(equation, *arrays), **EXACT)


@pytest.mark.parametrize(
    ("equation", "shape"), [("ii->i", (3, 3)), ("ii", (3, 3)), ("iji->j", (3, 2, 3))]
)
def test_einsum_takes_diagonals(equation, shape):
    x = np.random.default_rng(0).normal(size=shape)
    np.testing.assert_allclose(einsum(equation, x), np.einsum(equation, x), **EXACT)


def test_einsum_broadcasts_axes_of_size_one():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 1)), rng.normal(size=(3, 4))
    np.testing.assert_allclose(einsum("ij,jk->ik", x, y), x * y.sum(0), **EXACT)


@pytest.mark.parametrize(
    ("equation", "shapes", "text"),
    [
        (
            "ij,jk->ik",
            ((2, 3), (4, 5)),
            "subscript j has size 4 for operand 1 which does not broadcast",
        ),
        (
            "ijk->i",
            ((2, 3),),
            r"subscripts in the equation \(3\) does not match .* \(2\) for operand 0",
        ),
        ("ij->ik", ((2, 3),), "output subscript k does not appear"),
        ("ij,jk", ((2, 3),), "fewer operands were provided"),
        ("i", ((2,), (2,)), "more operands were provided"),
        ("i1", ((2, 3),), "invalid subscript given at index 1"),
        (
            "ii",
            ((2, 3),),
            "subscript i is repeated for operand 0 but the sizes don't match, 3 != 2",
        ),
        ("i->ii", ((2,),), "output subscript i appears more than once"),
        ("i..", ((2,),), "found '.' for operand 0 that is not part of any ellipsis"),
    ],
)
def test_einsum_refuses_in_pytorchs_words(equation, shapes, text):
    with pytest.raises(ShapeError, match=text):
        einsum(equation, *(np.zeros(s) for s in shapes))


# ---- convolution --------------------------------------------------------------------------------


def loop_conv(x: np.ndarray, w: np.ndarray, stride, padding, dilation, groups) -> np.ndarray:
    """The definition, one output element at a time."""
    rank = x.ndim - 2
    padded = np.pad(x, ((0, 0), (0, 0), *padding))
    sizes = [
        (padded.shape[2 + i] - dilation[i] * (w.shape[2 + i] - 1) - 1) // stride[i] + 1
        for i in range(rank)
    ]
    out = np.zeros((x.shape[0], w.shape[0], *sizes))
    for n, o, *at in product(*map(range, out.shape)):
        start = o // (w.shape[0] // groups) * w.shape[1]
        for c, *tap in product(*map(range, w.shape[1:])):
            place = [a * s + k * d for a, s, k, d in zip(at, stride, tap, dilation, strict=True)]
            out[(n, o, *at)] += w[(o, c, *tap)] * padded[(n, start + c, *place)]
    return out


CONVS = (
    [
        ((size,), (kernel,), (stride,), (padding,), (dilation,), groups)
        for size, kernel, stride, padding, dilation, groups in product(
            (6, 7), (2, 3), (1, 2), ((0, 0), (2, 1)), (1, 2), (1, 2)
        )
    ]
    + [
        ((5, 6), (3, 2), stride, padding, dilation, groups)
        for stride, padding, dilation, groups in product(
            ((1, 1), (2, 3)), (((0, 0), (0, 0)), ((1, 2), (3, 0))), ((1, 1), (2, 1)), (1, 2)
        )
    ]
    + [
        ((4, 3, 4), (2, 2, 3), (1, 1, 1), ((0, 0),) * 3, (1, 1, 1), 1),
        ((4, 3, 4), (2, 2, 3), (2, 1, 2), ((1, 0), (0, 1), (1, 1)), (1, 2, 1), 2),
    ]
)


@pytest.mark.parametrize(("sizes", "kernel", "stride", "padding", "dilation", "groups"), CONVS)
def test_convolution_agrees_with_loops_and_its_gradients_with_differences(
    sizes, kernel, stride, padding, dilation, groups
):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 2, *sizes)), rng.normal(size=(4, 2 // groups, *kernel))
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    np.testing.assert_allclose(ops.conv(x, w, **geometry), loop_conv(x, w, **geometry), **EXACT)
    check_two_orders(lambda a, b: ops.conv(a, b, **geometry), x, w)


def test_convolution_fills_in_parameters():
    x, w = np.ones((1, 2, 5, 5)), np.ones((3, 2, 3, 3))
    np.testing.assert_array_equal(
        ops.conv(x, w, padding=1),
        ops.conv(x, w, stride=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1), groups=1),
    )


def test_convolution_in_several_blocks_of_images_is_the_same(monkeypatch):
    from tracegrad.ir.primitives import convolution_eager

    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(5, 2, 6, 6)), rng.normal(size=(3, 2, 3, 3))
    ct = rng.normal(size=(5, 3, 4, 4))
    calls: list[Callable[[], Any]] = [
        lambda: ops.conv(x, w),
        lambda: ops.conv_input_grad(ct, w, input_size=(6, 6)),
        lambda: ops.conv_weight_grad(x, ct, kernel_size=(3, 3)),
    ]
    whole = [call() for call in calls]
    monkeypatch.setattr(convolution_eager, "COLUMN_BYTES", 1)
    for call, expected in zip(calls, whole, strict=True):
        np.testing.assert_allclose(call(), expected, **EXACT)


# ---- windows ------------------------------------------------------------------------------------

WINDOWS = [
    ((size,), (window,), (stride,), (padding,), (dilation,))
    for size, window, stride, padding, dilation in product(
        (6, 7), (2, 3), (1, 2, 3), ((0, 0), (1, 0), (1, 1)), (1, 2)
    )
] + [
    ((5, 6), (3, 2), (2, 1), ((1, 1), (0, 1)), (1, 2)),
    ((4, 5, 4), (2, 3, 2), (2, 2, 1), ((1, 0), (1, 1), (0, 0)), (1, 1, 2)),
]


def loop_windows(x: np.ndarray, window, stride, padding, dilation):
    """Yield (output index, list of (value, flat spatial index)) by the definition."""
    axes = [
        WindowAxis(n, k, s, d, low, high)
        for n, k, s, d, (low, high) in zip(
            x.shape[2:], window, stride, dilation, padding, strict=True
        )
    ]
    for n, c in product(range(x.shape[0]), range(x.shape[1])):
        for at in product(*(range(a.out) for a in axes)):
            seen = []
            for tap in product(*map(range, window)):
                place = tuple(
                    o * a.stride + k * a.dilation - a.low
                    for o, k, a in zip(at, tap, axes, strict=True)
                )
                if all(0 <= p < a.size for p, a in zip(place, axes, strict=True)):
                    seen.append((x[(n, c, *place)], int(np.ravel_multi_index(place, x.shape[2:]))))
            yield (n, c, *at), seen


@pytest.mark.parametrize(("sizes", "window", "stride", "padding", "dilation"), WINDOWS)
def test_windows_agree_with_loops_and_their_gradients_with_differences(
    sizes, window, stride, padding, dilation
):
    rng = np.random.default_rng(0)
    # A permutation of well separated values: the maximum stays where it is under differences.
    x = rng.permutation(float(2 * 2 * np.prod(sizes)) * np.linspace(0, 1, 4 * np.prod(sizes)))
    x = x.reshape(2, 2, *sizes)
    geometry = {"window": window, "stride": stride, "padding": padding, "dilation": dilation}
    largest, where = ops.window_max(x, **geometry), ops.window_argmax(x, **geometry)
    total = ops.window_sum(x, **geometry)
    count = 0
    for at, seen in loop_windows(x, **geometry):
        assert (largest[at], where[at]) == max(seen)
        assert total[at] == pytest.approx(sum(v for v, _ in seen), rel=1e-12)
        count += 1
    assert count == largest.size == total.size
    check_two_orders(lambda a: ops.window_max(a, **geometry) * ops.window_max(a, **geometry), x)
    check_two_orders(lambda a: ops.window_sum(a, **geometry), x)


def test_window_max_prefers_the_first_of_equals_and_the_last_nan():
    nan = np.nan
    x = np.array([[[1, 3, 3, 1], [nan, 2, nan, 5], [-0.0, 0.0, -1, -1], [-np.inf] * 4]])
    value, index = ops.window_max(x, window=4)[0, :, 0], ops.window_argmax(x, window=4)[0, :, 0]
    np.testing.assert_array_equal(value, [3, nan, 0, -np.inf])
    assert np.signbit(value[2])
    np.testing.assert_array_equal(index, [1, 2, 0, 0])


def test_window_argmax_never_names_padding():
    x = np.full((1, 1, 3, 3), -np.inf)
    index = ops.window_argmax(x, window=3, stride=2, padding=1)
    np.testing.assert_array_equal(index[0, 0], [[0, 1], [3, 4]])


def test_window_gather_and_scatter_add_are_transposes():
    rng = np.random.default_rng(0)
    x, ct = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(2, 3, 7))
    index = rng.integers(0, 20, size=(2, 3, 7))  # indices repeat, so sums must accumulate
    forward = np.sum(ops.window_gather(x, index) * ct)
    backward = np.sum(x * ops.window_scatter_add(ct, index, input_size=(4, 5)))
    assert forward == pytest.approx(backward, rel=1e-12)
    check_two_orders(lambda a: ops.window_gather(a, ops.window_argmax(a, window=2)), x)


def test_window_sum_of_integers_wraps_in_its_own_dtype():
    x = np.full((1, 1, 4), 100, np.int8)
    assert ops.window_sum(x, window=4)[0, 0, 0] == np.array(400).astype(np.int8)
