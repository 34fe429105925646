"""Gradients at the points where a formula divides zero by zero, ties, or takes a branch.

First derivatives are those of torch 2.13, which gave the numbers, but for `xlogy` by y at (0, 0),
where it has NaN and 0 is right. Second ones are too, but where torch has NaN and a number is right
(docs/autograd.md, "Where tracegrad differs on purpose"). The compiled function gives the same.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, nan
from typing import Any

import numpy as np
import pytest

import tracegrad as tg
from tracegrad.nn.functional import softplus

Function = Callable[..., Any]
L3, L2 = 1 / 3, 2.0**-0.5


def norm(p: float) -> Function:
    return lambda x: tg.norm(x, p)


def rows_norm(p: float) -> Function:
    return lambda x: tg.norm(tg.stack([x, x]), p, dim=1).sum()


def first_of(name: str) -> Function:
    return lambda x: getattr(tg, name)(x, 0)[0]


# the function, its operands, their gradients for cotangents 1, 2, 3 ...
FIRST: list[tuple[str, Function, list[list[float]], list[list[float]]]] = [
    ("norm 0.5", norm(0.5), [[1.0, 0.0, -2.0]], [[1 + 2**0.5, 0, -1 - L2]]),
    ("norm 0.5 of zeros", norm(0.5), [[0.0, 0.0]], [[0, 0]]),
    ("norm 0", norm(0), [[1.0, 0.0, -2.0]], [[0, 0, 0]]),
    ("norm 1", norm(1), [[1.0, 0.0, -2.0]], [[1, 0, -1]]),
    ("norm 1.5 of zeros", norm(1.5), [[0.0, 0.0]], [[0, 0]]),
    ("norm 2 of zeros", norm(2), [[0.0, 0.0]], [[0, 0]]),
    ("norm 3 of zeros", norm(3), [[0.0, 0.0]], [[0, 0]]),
    ("norm -1", norm(-1), [[1.0, 0.0, -2.0]], [[0, 0, 0]]),
    ("norm -2 of zeros", norm(-2), [[0.0, 0.0]], [[0, 0]]),
    ("norm inf, ties", norm(inf), [[3.0, 3.0, -3.0]], [[L3, L3, -L3]]),
    ("norm inf of zeros", norm(inf), [[0.0, 0.0]], [[0, 0]]),
    ("norm -inf, ties", norm(-inf), [[2.0, -1.0, 1.0]], [[0, -0.5, 0.5]]),
    ("norm 0.5 of rows", rows_norm(0.5), [[4.0, 0.0]], [[2, 0]]),
    ("norm inf of rows", rows_norm(inf), [[-2.0, 2.0]], [[-1, 1]]),
    ("logit", tg.logit, [[0.0, 1.0, 0.5, -0.5, 1.5]], [[inf, inf, 12, nan, nan]]),
    ("logit eps 0", lambda x: tg.logit(x, 0.0), [[0.0, 1.0, -0.5, 1.5]], [[inf, inf, 0, 0]]),
    ("logit eps 1/4", lambda x: tg.logit(x, 0.25), [[0.0, 0.25, 0.75, 1.0]], [[0, 32 / 3, 16, 0]]),
    ("atan2", tg.atan2, [[0.0, -0.0, 0.0, 0.0], [0.0, 0.0, 2.0, -2.0]],
     [[0, 0, 1.5, -2], [0, 0, 0, 0]]),
    ("hypot", tg.hypot, [[0.0, 3.0], [0.0, 4.0]], [[nan, 1.2], [nan, 1.6]]),
    ("pow", tg.pow, [[0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 2.0, 0.5]], [[0, 2, 0, inf], [0, 0, 0, 0]]),
    ("x ** 0", lambda x: x**0, [[0.0, 1.0]], [[0, 0]]),
    ("x ** 0.5", lambda x: x**0.5, [[0.0, 4.0]], [[inf, 0.5]]),
    ("x ** -1", lambda x: x**-1, [[0.0, 2.0]], [[-inf, -0.5]]),
    ("0 ** x", lambda x: 0.0**x, [[0.0, 1.0, -1.0]], [[0, 0, -inf]]),
    ("xlogy", tg.xlogy, [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]], [[0, 0, -inf], [0, 0, inf]]),
    ("sqrt", tg.sqrt, [[0.0, 4.0]], [[inf, 0.5]]),
    ("abs", tg.abs, [[0.0, -0.0, -2.0]], [[0, 0, -3]]),
    ("sgn", tg.sgn, [[0.0, -2.0]], [[0, 0]]),
    ("copysign", tg.copysign, [[0.0, 2.0], [1.0, -1.0]], [[0, -2], [0, 0]]),
    ("cumprod, a zero", lambda x: tg.cumprod(x, 0), [[2.0, 0.0, 3.0]], [[1, 22, 0]]),
    ("cumprod, zeros", lambda x: tg.cumprod(x, 0), [[0.0, 0.0, 3.0]], [[1, 0, 0]]),
    ("prod, a zero", tg.prod, [[2.0, 0.0, 3.0]], [[0, 6, 0]]),
    ("prod, zeros", tg.prod, [[0.0, 0.0, 3.0]], [[0, 0, 0]]),
    ("std of equals", tg.std, [[2.0, 2.0]], [[0, 0]]),
    ("std of one", tg.std, [[2.0]], [[nan]]),
    ("logsumexp of -inf", lambda x: tg.logsumexp(x, 0), [[-inf, -inf]], [[nan, nan]]),
    ("logsumexp with inf", lambda x: tg.logsumexp(x, 0), [[-inf, 0.0]], [[0, 1]]),
    ("max, ties", tg.max, [[3.0, 3.0, 1.0]], [[0.5, 0.5, 0]]),
    ("min, ties", tg.min, [[3.0, 1.0, 1.0]], [[0, 0.5, 0.5]]),
    ("max over dim, ties", first_of("max"), [[3.0, 3.0, 1.0]], [[1, 0, 0]]),
    ("amax, ties", tg.amax, [[3.0, 3.0, 1.0]], [[0.5, 0.5, 0]]),
    ("clamp", lambda x: tg.clamp(x, -1, 1), [[-1.0, 1.0, 0.0, -2.0, 2.0, nan]], [[1, 2, 3, 0, 0, 0]]),
    ("clamp by tensors", tg.clamp, [[0.0, 1.0, 3.0], [0.0, 2.0, 2.0], [1.0, 3.0, 2.0]],
     [[1, 0, 0], [0, 2, 0], [0, 0, 3]]),
    ("softplus", lambda x: softplus(x, threshold=5), [[0.0, 5.5, -800.0]], [[0.5, 2, 0]]),
    ("maximum", tg.maximum, [[1.0, 2.0], [1.0, 1.0]], [[0.5, 2], [0.5, 0]]),
    ("fmod", tg.fmod, [[0.0, -5.0], [1.0, 3.0]], [[1, 2], [0, 2]]),
    ("where", lambda x: tg.where(x > 0, tg.log(x), x), [[0.0, 2.0]], [[nan, 1]]),
]  # fmt: skip
# second derivatives: of the sum of 1, 2, 3 ... times the gradients above
SECOND: list[tuple[str, Function, list[list[float]], list[list[float]]]] = [
    ("norm 0.5", norm(0.5), [[1.0, 0.0, -2.0]], [[-2.5 * L2, 0, -1.25 * L2]]),
    ("norm 2 of zeros", norm(2), [[0.0, 0.0]], [[0, 0]]),
    ("norm -1 of zeros", norm(-1), [[0.0, 0.0]], [[0, 0]]),
    ("norm inf, ties", norm(inf), [[3.0, 3.0, -3.0]], [[0, 0, 0]]),
    ("logit eps", lambda x: tg.logit(x, 0.25), [[0.0, 0.5, 1.0]], [[0, 0, 0]]),
    ("atan2", tg.atan2, [[0.0, 0.0], [0.0, 1.0]], [[0, -4], [0, -4]]),
    ("pow", tg.pow, [[0.0, 0.0], [2.0, 3.0]], [[2, 0], [0, 0]]),
    ("x ** 2", lambda x: x**2, [[0.0, 1.0]], [[2, 8]]),
    ("abs", tg.abs, [[0.0, -2.0]], [[0, 0]]),
    ("prod, a zero", tg.prod, [[2.0, 0.0, 3.0]], [[6, 9, 4]]),
    ("prod, zeros", tg.prod, [[0.0, 0.0, 3.0]], [[6, 3, 0]]),
    ("max, ties", tg.max, [[3.0, 3.0]], [[0, 0]]),
    ("clamp", lambda x: tg.clamp(x, -1, 1) ** 2, [[-1.0, 1.0, 2.0]], [[2, 8, 0]]),
    ("logsumexp", lambda x: tg.logsumexp(x, 0), [[-inf, 0.0]], [[0, 0]]),
    ("logit outside", tg.logit, [[-0.5, 0.5, 1.5]], [[0, 0, 0]]),
]  # fmt: skip


def weighted(y: Any) -> Any:
    steps = tg.arange(1.0, y.numel() + 1, dtype=y.dtype)
    return (y * steps.reshape(y.shape)).sum()


def slopes(f: Function, given: list[list[float]], dtype: Any, order: int) -> list[Any]:
    xs = [tg.tensor(v, dtype=dtype, requires_grad=True) for v in given]
    found = tg.autograd.grad(weighted(f(*xs)), xs, create_graph=order > 1)
    if order > 1:
        total = sum(weighted(g) for g in found)
        if not total.requires_grad:
            return [tg.zeros_like(x) for x in xs]
        found = tg.autograd.grad(total, xs, materialize_grads=True)
    return list(found)


def check(f: Function, given: Any, want: Any, dtype: Any, order: int) -> None:
    for g, w in zip(slopes(f, given, dtype, order), want, strict=True):
        np.testing.assert_allclose(g.numpy(), w, rtol=1e-6 if dtype is tg.float32 else 1e-12)


DTYPES = [tg.float32, tg.float64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("f", "given", "want"), [r[1:] for r in FIRST], ids=[r[0] for r in FIRST])
def test_first_derivatives(f: Function, given: Any, want: Any, dtype: Any) -> None:
    check(f, given, want, dtype, 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("f", "given", "want"), [r[1:] for r in SECOND], ids=[r[0] for r in SECOND]
)
def test_second_derivatives(f: Function, given: Any, want: Any, dtype: Any) -> None:
    check(f, given, want, dtype, 2)


@pytest.mark.parametrize(("f", "given", "want"), [r[1:] for r in FIRST], ids=[r[0] for r in FIRST])
def test_compiled_functions_have_the_same_derivatives(f: Function, given: Any, want: Any) -> None:
    compiled = tg.compile(f)
    for _ in range(3):  # the first call is eager
        check(compiled, given, want, tg.float64, 1)


@pytest.mark.parametrize(
    ("f", "given", "want"), [r[1:] for r in SECOND], ids=[r[0] for r in SECOND]
)
def test_compiled_functions_have_the_same_second_derivatives(
    f: Function, given: Any, want: Any
) -> None:
    compiled = tg.compile(f)
    for _ in range(3):
        check(compiled, given, want, tg.float64, 2)


@pytest.mark.parametrize("f", [tg.floor, tg.sign, norm(0), lambda x: x**0])
def test_zero_gradients_of_compiled_functions_may_be_asked_for_with_a_graph(f: Function) -> None:
    compiled = tg.compile(f)
    for _ in range(3):
        x = tg.tensor([0.0, 1.5], requires_grad=True)
        (found,) = tg.autograd.grad(weighted(compiled(x)), x, create_graph=True)
        assert found.tolist() == [0.0, 0.0]


FLAT: list[tuple[str, Function, list[float]]] = [
    ("relu", tg.relu, [-1.0, 0.0, 2.0, nan]),
    ("relu, 0-d", lambda x: tg.relu(x[0]), [2.0]),
    ("relu_", lambda x: (x * 1).relu_(), [-1.0, 2.0]),
    ("prod of one", tg.prod, [3.0]),
    ("prod of none", tg.prod, []),
    ("prod over one", lambda x: tg.prod(x, 0), [3.0]),
]


@pytest.mark.parametrize("mode", [lambda f: f, tg.compile], ids=["eager", "compiled"])
@pytest.mark.parametrize(("f", "given"), [r[1:] for r in FLAT], ids=[r[0] for r in FLAT])
def test_gradients_of_functions_without_curvature_have_a_history(
    f: Function, given: list[float], mode: Any
) -> None:
    """As torch 2.13: with `create_graph=True` one can go on from them, and finds zeros."""
    g = mode(f)
    for _ in range(3):
        x = tg.tensor(given, requires_grad=True)
        (found,) = tg.autograd.grad(weighted(g(x)), x, create_graph=True)
        found.sum().backward()
        assert x.grad is not None and not x.grad.numpy().any()


def test_norm_zero_has_a_history_and_counts_nan() -> None:
    x = tg.tensor([0.0, nan, 2.0, -0.0], requires_grad=True)
    y = tg.norm(x, 0)
    assert y.item() == 2
    assert y.requires_grad


def test_the_nearer_end_of_lerp_is_exact() -> None:
    """torch computes from the end that is nearer."""
    a, b = tg.tensor([1e8, inf]), tg.tensor([1.1, 1.0])
    for weight in (1.0, tg.ones(2)):
        assert tg.lerp(a, b, weight)[0].item() == b[0].item()
    assert tg.lerp(a, b, 0.5)[1].item() == tg.lerp(a, b, tg.tensor([0.5, 0.5]))[1].item() == inf
    for weight in (0.0, tg.zeros(2)):
        assert tg.lerp(a, b, weight)[0].item() == a[0].item()
