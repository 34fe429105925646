"""Gradients through compiled functions: the tape around them, twice, higher orders, hooks."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
from beside import assert_equal, assert_same

import tracegrad as tg


def leaf(*shape: int, dtype: Any = tg.float64) -> Any:
    return tg.randn(*shape, dtype=dtype, requires_grad=True)


def cube(x: Any) -> Any:
    return (x * x * x).sum()


def test_eager_code_before_and_after() -> None:
    f = tg.compile(lambda x, y: tg.sin(x) * y)

    def around(x: Any, y: Any) -> Any:
        return (tg.exp(f(x * 2, y)) + x).sum()

    def plain(x: Any, y: Any) -> Any:
        return (tg.exp(tg.sin(x * 2) * y) + x).sum()

    assert_same(plain, (leaf(4), leaf(4)), compiled=around, times=3)


def test_chained_compiled_functions() -> None:
    f, g = tg.compile(lambda x: tg.sin(x)), tg.compile(lambda x: x * x)
    assert_same(lambda x: tg.sin(tg.sin(x) ** 2), (leaf(3),),
                compiled=lambda x: f(g(f(x))), times=3)  # fmt: skip


def test_backward_twice_needs_retain_graph() -> None:
    f = tg.compile(cube)
    for _ in range(3):
        x = leaf(3)
        y = f(x)
        y.backward(retain_graph=True)
        first = x.grad.clone()
        y.backward()
        assert_equal(x.grad, first * 2)
    with pytest.raises(tg.errors.GradientError, match="backward through the graph a second time"):
        y.backward()


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 2), (1, 2), (0, 1, 2)])
def test_outputs_that_go_unused_add_nothing(used: tuple[int, ...]) -> None:
    """1/x and log have infinite derivatives at 0: a cotangent of 0 instead of None gives NaN."""

    def f(x: Any, y: Any) -> Any:
        return (x * y).sum(), (1 / x).sum(), tg.log(x).sum()

    g = tg.compile(f)
    for _ in range(3):
        grads = []
        for fn in (g, f):
            x = tg.tensor([0.0, 2.0], requires_grad=True)
            y = tg.tensor([3.0, 4.0], requires_grad=True)
            outs = fn(x, y)
            sum(outs[k] for k in used).backward()
            grads.append((x.grad, y.grad))
        (a, b), (c, d) = grads
        np.testing.assert_array_equal(a.numpy(), c.numpy())
        assert (b is None) == (d is None)
        if b is not None:
            np.testing.assert_array_equal(b.numpy(), d.numpy())


def test_three_orders() -> None:
    f = tg.compile(lambda x: (x**4).sum())
    for _ in range(3):
        x = leaf(3)
        (a,) = tg.autograd.grad(f(x), x, create_graph=True)
        (b,) = tg.autograd.grad(a.sum(), x, create_graph=True)
        (c,) = tg.autograd.grad(b.sum(), x)
        for got, want in ((a, 4 * x**3), (b, 12 * x**2), (c, 24 * x)):
            np.testing.assert_allclose(got.detach().numpy(), want.detach().numpy(), rtol=1e-13)


def test_second_order_against_differences() -> None:
    def f(x: Any, w: Any) -> Any:
        return tg.tanh(x @ w).softmax(-1)[:, 0].sum() + (tg.sin(w) * w).sum()

    g = tg.compile(f)
    x, w = leaf(3, 4), leaf(4, 2)
    g(x, w)
    along = tg.randn(4, 2, dtype=tg.float64)

    def slope(at: Any) -> Any:
        at = at.detach().requires_grad_()
        return (tg.autograd.grad(g(x, at), at)[0] * along).sum().item()

    (first,) = tg.autograd.grad(g(x, w), w, create_graph=True)
    (second,) = tg.autograd.grad((first * along).sum(), w)
    step = 1e-4
    high, low = (slope(w.detach() + s * step * along) for s in (1, -1))
    numeric = (high - low) / (2 * step)
    # central difference: truncation of order step**2 = 1e-8, rounding 1e-16 / 1e-4
    assert (second * along).sum().item() == pytest.approx(numeric, rel=1e-6, abs=1e-7)


def test_create_graph_after_the_input_got_new_memory() -> None:
    f = tg.compile(cube)
    f(leaf(3))
    x = leaf(3)
    y = f(x)
    old = x.detach().clone()
    x.data = tg.zeros(3, dtype=tg.float64)
    y.backward(create_graph=True)
    np.testing.assert_allclose(x.grad.detach().numpy(), (3 * old**2).numpy(), rtol=1e-14)


def test_an_input_overwritten_before_the_backward_is_noticed() -> None:
    f = tg.compile(cube)
    for _ in range(3):
        x = leaf(3)
        y = f(x)
        with tg.no_grad():
            x.add_(1)
        with pytest.raises(tg.errors.GradientError, match="modified by an inplace operation.*add_"):
            y.backward()


def test_a_result_overwritten_before_the_backward_is_noticed() -> None:
    f = tg.compile(lambda x: (tg.exp(x), tg.exp(x)))
    for _ in range(3):
        x = leaf(3)
        a, b = f(x)
        with tg.no_grad():
            a.zero_()
        (grad,) = (
            tg.autograd.grad(b.sum(), x, retain_graph=True, allow_unused=True)
            if (not _kept(f, a))
            else (None,)
        )
        if grad is None:
            with pytest.raises(tg.errors.GradientError, match="modified by an inplace operation"):
                (a.sum() + b.sum()).backward()
        else:
            np.testing.assert_allclose(grad.numpy(), np.exp(x.detach().numpy()))


def _kept(f: Any, result: Any) -> bool:
    """Whether the backward starts from the memory of a result."""
    node = result.grad_fn
    return any(r[0] is result._array for r in getattr(node, "residuals", ()))


def test_hooks_on_inputs_and_results() -> None:
    f = tg.compile(lambda x: tg.sin(x) * 2)
    for _ in range(3):
        seen: list[Any] = []
        x = leaf(3)
        x.register_hook(lambda g, seen=seen: seen.append("x") or g * 10)
        y = f(x)
        y.register_hook(lambda g, seen=seen: seen.append("y"))
        y.sum().backward()
        assert seen == ["y", "x"]
        np.testing.assert_allclose(x.grad.numpy(), 20 * np.cos(x.detach().numpy()), rtol=1e-13)


def test_gradients_accumulate() -> None:
    f = tg.compile(cube)
    x = leaf(3)
    for _ in range(4):
        f(x).backward()
    np.testing.assert_allclose(x.grad.numpy(), 12 * x.detach().numpy() ** 2, rtol=1e-13)


def test_strided_cotangents() -> None:
    f = tg.compile(lambda x: x * x)
    for _ in range(3):
        x = leaf(3, 4)
        f(x).T.sum(0).sum().backward()
        f(x).backward(tg.ones(4, 3, dtype=tg.float64).T)
        f(x).backward(tg.ones(1, 1, dtype=tg.float64).expand(3, 4))
        np.testing.assert_allclose(x.grad.numpy(), 6 * x.detach().numpy(), rtol=1e-13)


def test_a_derivative_of_zero_is_no_history_in_both_modes() -> None:
    assert_same(lambda x: ((tg.floor(x) * x).sum(), tg.floor(x)), (leaf(3),), traces=1)


def test_two_hooks_whose_handles_were_dropped_both_run() -> None:
    x = leaf(3)
    seen: list[int] = []
    x.register_hook(lambda g: seen.append(1))
    x.register_hook(lambda g: seen.append(2))
    tg.compile(cube)(x).backward()
    assert seen == [1, 2]


def test_a_training_loop_does_not_grow() -> None:
    model = tg.nn.Linear(8, 8)
    optimizer = tg.optim.SGD(model.parameters(), lr=0.01)
    loss_of = tg.compile(lambda x: (model(x) ** 2).mean())
    first: list[Any] = []
    sizes = []
    for step in range(200):
        x = tg.randn(4, 8)
        if step == 0:
            first = [weakref.ref(x)]
        loss = loss_of(x)
        if step < 2:
            first.append(weakref.ref(loss))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in (50, 199):
            gc.collect()
            sizes.append(sum(isinstance(o, tg.Tensor) for o in gc.get_objects()))
    del x, loss
    gc.collect()
    assert [r() for r in first] == [None] * 3
    assert sizes[0] == sizes[1]
    assert loss_of.cache_info().traces == 1


def test_training_compiled_and_eagerly_gives_the_same_losses() -> None:
    losses = []
    for wrap in (lambda f: f, tg.compile):
        tg.manual_seed(1)
        model = tg.nn.Sequential(tg.nn.Linear(4, 8), tg.nn.Tanh(), tg.nn.Linear(8, 1)).double()
        optimizer = tg.optim.Adam(model.parameters(), lr=0.01)
        loss_of = wrap(lambda x, m=model: ((m(x) - x.sum(1, keepdim=True)) ** 2).mean())
        run = []
        for _ in range(20):
            loss = loss_of(tg.randn(16, 4, dtype=tg.float64))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.append(loss.item())
        losses.append(run)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-11)
