"""`compile(residual_budget=...)`: how much a call keeps for its backward, and that gradients stay right."""

from __future__ import annotations

import numpy as np
import pytest

import tracegrad as tg
import tracegrad.nn.functional as F
from tracegrad.ir.errors import ParameterError


def network(x, w, v):
    h = F.dropout((x @ w).tanh(), 0.25)
    return F.cross_entropy(F.layer_norm(h, (64,)) @ v, tg.zeros(48, dtype=tg.int64)) * 3


def attention(x, w, v):
    q = x @ w
    scores = (q @ q.t() / 8).softmax(-1)
    return ((scores @ q) @ v).sin().sum()


def pointwise(x, w, v):
    return ((x.sin() * x.exp()).cumsum(0).tanh() @ w).sum() + v.sum()


def operands() -> list[tg.Tensor]:
    generator = tg.Generator().manual_seed(2)
    shapes = ((48, 32), (32, 64), (64, 10))
    return [tg.randn(*s, generator=generator, dtype=tg.float64, requires_grad=True) for s in shapes]


def gradients(f, given):
    for t in given:
        t.grad = None
    tg.manual_seed(4)
    y = f(*given)
    node = y.grad_fn
    kept = sum(a.nbytes for a, storage, _ in getattr(node, "residuals", ()) if storage is None)
    y.backward(tg.tensor(2.0, dtype=tg.float64))
    return kept, y.item(), [t.grad.numpy().copy() for t in given]


@pytest.mark.parametrize("function", [network, attention, pointwise], ids=lambda f: f.__name__)
def test_what_is_kept_and_what_comes_of_it(function) -> None:
    given = operands()
    _, value, want = gradients(function, given)
    free = tg.compile(function, wait=True)
    gradients(free, given)
    most = gradients(free, given)[0]
    assert most > 0
    for budget in (0, 8, most // 3, most // 2, most - 1, most, 10**9):
        f = tg.compile(function, wait=True, residual_budget=budget)
        gradients(f, given)
        kept, got_value, got = gradients(f, given)
        assert f.cache_info().hits == 1
        assert kept <= min(budget, most)
        assert kept == most or budget < most
        assert kept == sum(p.residual_bytes for p in f.memory_plan())
        assert f"residuals: {kept:,} bytes, of a budget of {budget:,}" in f.explain()
        assert got_value == pytest.approx(value, rel=1e-12)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def test_a_larger_budget_keeps_more() -> None:
    given = operands()
    free = tg.compile(attention, wait=True)
    gradients(free, given)
    most = gradients(free, given)[0]
    kept = []
    for share in range(0, 11, 2):
        f = tg.compile(attention, wait=True, residual_budget=most * share // 10)
        gradients(f, given)
        kept.append(gradients(f, given)[0])
    assert kept == sorted(kept) and kept[0] == 0 and kept[-1] == most


def test_second_derivatives_and_calls_without_gradients() -> None:
    x, w, v = operands()
    f = tg.compile(attention, wait=True, residual_budget=0)
    for _ in range(2):
        (g,) = tg.autograd.grad(f(x, w, v), x, create_graph=True)
        (got,) = tg.autograd.grad((g * g).sum(), w)
    (g,) = tg.autograd.grad(attention(x, w, v), x, create_graph=True)
    (want,) = tg.autograd.grad((g * g).sum(), w)
    np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=1e-9, atol=1e-11)
    with tg.no_grad():
        assert f(x, w, v).item() == pytest.approx(attention(x, w, v).item(), rel=1e-12)


def test_an_operand_written_to_is_still_found() -> None:
    x, w, v = operands()
    f = tg.compile(attention, wait=True, residual_budget=0)
    f(x, w, v)
    y = f(x, w, v)
    with tg.no_grad():
        w.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_modules_methods_and_functions_of_yours() -> None:
    class Doubled(tg.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, g):
            return g * 2

    def f(x, w):
        return (Doubled.apply((x @ w).exp() / 50) @ w.t()).tanh().sum()

    x, w, _ = operands()
    compiled = tg.compile(f, wait=True, residual_budget=0)
    for _ in range(3):
        x.grad = w.grad = None
        compiled(x, w).backward()
    got = x.grad, w.grad
    x.grad = w.grad = None
    f(x, w).backward()
    np.testing.assert_allclose(got[0].numpy(), x.grad.numpy(), rtol=1e-9)
    np.testing.assert_allclose(got[1].numpy(), w.grad.numpy(), rtol=1e-9)
    assert "residuals: 0 bytes, of a budget of 0" in compiled.explain()


@pytest.mark.parametrize("budget", [-1, 1.5, True, "1 MB"])
def test_budgets_that_are_no_number_of_bytes(budget) -> None:
    with pytest.raises(ParameterError, match="residual_budget must be None or a number of bytes"):
        tg.compile(network, residual_budget=budget)
