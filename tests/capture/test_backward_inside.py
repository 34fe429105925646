"""Compiled functions that differentiate inside: `autograd.grad`, `func`, `backward()` and `.grad`.

Each is called beside the eager function on equal arguments while values, gradients and modes change;
results, `.grad`, versions and errors are the same, and the calls are replays.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

import tracegrad as tg
import tracegrad.nn.functional as F


@pytest.fixture(autouse=True)
def no_eager_runs() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", tg.EagerWarning)
        yield


def close(got: Any, want: Any) -> None:
    if isinstance(want, tuple | list):
        assert len(got) == len(want)
        for a, b in zip(got, want, strict=True):
            close(a, b)
    elif want is None:
        assert got is None
    else:
        assert (got.dtype, got.shape, got.requires_grad) == (
            want.dtype,
            want.shape,
            want.requires_grad,
        )
        np.testing.assert_allclose(
            got.detach().numpy(), want.detach().numpy(), rtol=2e-5, atol=2e-6
        )


def at(k: int, *shape: int) -> tg.Tensor:
    rng = np.random.default_rng(k)
    return tg.tensor(rng.uniform(0.3, 1.5, shape or (4,)).astype(np.float32)).requires_grad_()


def first(x: Any) -> Any:
    return tg.autograd.grad((x**3).sum(), x)[0]


def second(x: Any) -> Any:
    (slope,) = tg.autograd.grad((x.sin() * x.exp()).sum(), x, create_graph=True)
    return tg.autograd.grad((slope * slope).sum(), x)[0]


def penalty(x: Any) -> Any:
    y = (x**3).sum()
    (slope,) = tg.autograd.grad(y, x, create_graph=True)
    return y + (slope * slope).sum()


def cut_off(x: Any) -> Any:
    """Nothing flows through a gradient that was computed without a graph."""
    y = (x**3).sum()
    (slope,) = tg.autograd.grad(y, x, retain_graph=True)
    return y * slope.sum()


def several(x: Any) -> Any:
    y, z = x * 2, x.exp()
    return tg.autograd.grad([y, z], [x, y], [z.detach(), y.detach()], allow_unused=True)


def unused(x: Any) -> Any:
    w = tg.ones(3, requires_grad=True)
    return tg.autograd.grad((x * 2).sum(), [x, w], materialize_grads=True)


def through_views(x: Any) -> Any:
    y = x * 1
    y[1:] *= x[:-1]
    return tg.autograd.grad((y * y).sum(), x)[0]


FUNCTIONS: tuple[Callable[[Any], Any], ...] = (
    first, second, penalty, cut_off, several, unused, through_views,
    tg.func.grad(lambda x: (x.softmax(0) * x).sum()), tg.func.jacrev(lambda x: x.softmax(0) * x),
    tg.func.grad_and_value(lambda x: x.norm()), tg.vmap(tg.func.grad(lambda x: x**3)),
)  # fmt: skip


@pytest.mark.parametrize("fn", FUNCTIONS, ids=lambda f: getattr(f, "__name__", "transform"))
def test_gradients_are_results(fn: Callable[[Any], Any]) -> None:
    compiled = tg.compile(fn)
    for k in range(4):
        x, z = at(k), at(k)
        got, want = compiled(z), fn(x)
        close(got, want)
        if isinstance(want, tg.Tensor) and want.requires_grad:
            got.sum().backward()
            want.sum().backward()
            close(z.grad, x.grad)
        assert (z.grad is None) == (x.grad is None)
    assert compiled.cache_info().hits == 3, compiled.explain()


def parameters() -> list[tg.Tensor]:
    return [at(1, 8, 4), at(2, 8), at(3, 3, 8)]


def loss_of(p: Sequence[Any], x: Any, target: Any) -> Any:
    return F.cross_entropy(tg.tanh(x @ p[0].T + p[1]) @ p[2].T, target)


def to_none(p: Sequence[Any], x: Any, target: Any) -> Any:
    for w in p:
        w.grad = None
    loss = loss_of(p, x, target)
    loss.backward()
    return loss.detach()


def to_zero(p: Sequence[Any], x: Any, target: Any) -> Any:
    for w in p:
        if w.grad is not None:
            w.grad.zero_()
    loss = loss_of(p, x, target)
    loss.backward()
    return loss


def accumulating(p: Sequence[Any], x: Any, target: Any) -> Any:
    (loss_of(p, x, target) / 2).backward()
    (loss_of(p, x * 2, target) / 2).backward()


def descending(p: Sequence[Any], x: Any, target: Any) -> Any:
    loss = to_zero(p, x, target)
    with tg.no_grad():
        total = sum((w.grad * w.grad).sum() for w in p)
        scale = (1.0 / (total.sqrt() + 1e-6)).clamp(max=1.0)
        for w in p:
            w.grad.mul_(scale)
            w.sub_(w.grad, alpha=0.1)
    return loss


@pytest.mark.parametrize(
    "fn", [to_none, to_zero, accumulating, descending], ids=lambda f: f.__name__
)
def test_backward_into_parameters(fn: Callable[..., Any]) -> None:
    mine, theirs = parameters(), parameters()
    compiled = tg.compile(lambda x, target: fn(theirs, x, target))
    for k in range(6):
        x, target = at(k, 16, 4).detach(), tg.tensor(np.random.default_rng(k).integers(0, 3, 16))
        close(compiled(x, target), fn(mine, x, target))
        for p, q in zip(mine, theirs, strict=True):
            close(q, p)
            close(q.grad, p.grad)
            assert (q._version, q.grad._version) == (p._version, p.grad._version)
            assert q.is_leaf and q.grad.is_leaf
    expected = 5 if fn is to_none else 4  # the first call found no gradients
    assert compiled.cache_info().hits == expected, compiled.explain()


def test_gradients_that_come_and_go_between_calls() -> None:
    mine, theirs = parameters(), parameters()
    compiled = tg.compile(lambda x, target: accumulating(theirs, x, target))
    target = tg.tensor([0, 1])
    for k in range(8):
        for p in (mine, theirs):
            if k % 3 == 2:
                p[0].grad = None
            if k == 5:
                p[1].grad = tg.ones(8)
        accumulating(mine, at(k, 2, 4).detach(), target)
        compiled(at(k, 2, 4).detach(), target)
        close([q.grad for q in theirs], [p.grad for p in mine])
    assert compiled.cache_info().hits >= 4


def test_the_gradient_of_an_argument() -> None:
    def f(x: Any, y: Any) -> Any:
        (x * y).sum().backward()
        x.grad = x.grad * 2
        return x.grad

    compiled = tg.compile(f)
    for k in range(3):
        x, z, y = at(k), at(k), at(k + 9).detach()
        got, want = compiled(z, y), f(x, y)
        close([got, z.grad], [want, x.grad])
        assert got is z.grad and want is x.grad
    assert compiled.cache_info().hits == 2


def test_a_gradient_that_is_set_without_being_read() -> None:
    """Also where the capture found it as it was left."""
    w, kept = at(0), tg.ones(4)

    def clear(x: Any) -> Any:
        w.grad = None
        return x * 1

    def put(x: Any) -> Any:
        w.grad = kept
        return x * 1

    for f, before, after in ((clear, tg.zeros(4), None), (put, None, kept)):
        compiled = tg.compile(f)
        w.grad = after
        for _ in range(3):
            compiled(at(1))
            assert w.grad is after
            w.grad = before
        assert compiled.cache_info().hits == 2


def test_a_graph_used_up_inside_is_used_up_outside() -> None:
    def f(x: Any) -> Any:
        y = (x**3).sum()
        y.backward()
        return y

    compiled = tg.compile(f)
    for k in range(3):
        x, z = at(k), at(k)
        for fn, t in ((f, x), (compiled, z)):
            y = fn(t)
            assert y.requires_grad
            with pytest.raises(RuntimeError, match="backward through the graph a second time"):
                y.backward()
        close(z.grad, x.grad)


def test_errors_inside_are_eagers() -> None:
    def twice(x: Any) -> Any:
        y = (x**3).sum()
        y.backward()
        y.backward()

    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        tg.compile(twice)(at(0))

    def unused(x: Any, w: Any) -> Any:
        return tg.autograd.grad((x * 2).sum(), [x, w])

    with pytest.raises(RuntimeError, match="appears to not have been used in the graph"):
        tg.compile(unused)(at(0), at(1))


# ---- what stays eager, and right ------------------------------------------------------------------


def staying_eager(fn: Callable[..., Any], reason: str, calls: Sequence[Sequence[Any]]) -> None:
    compiled = tg.compile(fn)
    for k, arguments in enumerate(calls):
        twins = [a.detach().clone().requires_grad_() for a in arguments]
        if k == 0:
            with pytest.warns(tg.EagerWarning, match=reason):
                got = compiled(*twins)
        else:
            got = compiled(*twins)
        close(got, fn(*arguments))
        close([t.grad for t in twins], [a.grad for a in arguments])
    assert compiled.cache_info().hits == 0


def test_hooks_on_the_way() -> None:
    def f(x: Any) -> Any:
        y = x * 2
        y.register_hook(lambda g: g * 3)
        x.register_hook(lambda g: g * 2)
        y.sum().backward()

    staying_eager(f, "register_hook", [[at(0)], [at(1)]])


def test_a_hook_that_a_leaf_gets_later_is_heard() -> None:
    w = at(0)

    def f(x: Any) -> None:
        (w * x).sum().backward()

    compiled = tg.compile(f)
    x = at(5).detach()
    for _ in range(3):
        w.grad = None
        compiled(x)
    assert compiled.cache_info().hits == 2
    heard: list[Any] = []
    w.register_hook(lambda g: heard.append(g) or g * 10)
    w.grad = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tg.EagerWarning)
        compiled(x)
    assert len(heard) == 1
    close(w.grad, x * 10)


def test_a_backward_through_what_was_computed_before() -> None:
    w = at(0)
    outside = w * 2

    def f(x: Any) -> Any:
        return tg.autograd.grad((outside * x).sum(), w, retain_graph=True)[0]

    compiled = tg.compile(f)
    with pytest.warns(tg.EagerWarning, match="MulBackward0 from before the call"):
        close(compiled(at(1).detach()), f(at(1).detach()))
    close(compiled(at(2).detach()), f(at(2).detach()))
