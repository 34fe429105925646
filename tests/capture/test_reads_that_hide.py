"""What a function reads in ways that are easily overlooked: each change of it is seen at the next call.

Variables that only inner functions and comprehensions read, attributes that the user has put on
parameters, the class of a tensor, inference tensors; and writes that eager mode refuses afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import tracegrad as tg
from tracegrad import nn
from tracegrad.ir.errors import GradientError

X = tg.ones(2)


def same(f: Callable[..., Any], compiled: Callable[..., Any], *args: Any) -> None:
    """Both give the same, three times: an eager call, a capture, a replay."""
    for _ in range(3):
        assert compiled(*args).tolist() == f(*args).tolist()


@pytest.mark.parametrize(
    "make",
    [
        lambda s: lambda x: tg.stack([t * s[0] for t in x]),
        lambda s: lambda x: sum(t * s[0] for t in x),
        lambda s: lambda x: (lambda t: t * s[0])(x),
        lambda s: lambda x: (lambda t: (lambda u: u * s[0])(t))(x),
        lambda s: lambda x: tg.stack([t if s[0] > 2 else t * 3 for t in x]),
    ],
)
def test_containers_seen_by_inner_functions(make) -> None:
    held = [2.0]
    f = make(held)
    compiled = tg.compile(f, wait=True)
    same(f, compiled, X)
    held[0] = 5.0
    same(f, compiled, X)


def rebound(kind: str) -> tuple[Callable[..., Any], Callable[[], None]]:
    """A function with an inner one that reads a variable from outside, and what rebinds that."""
    value: Any = 2.0
    if kind == "comprehension":
        f = lambda x: tg.stack([t * value for t in x])  # noqa: E731
    elif kind == "generator":
        f = lambda x: sum(t * value for t in x)  # noqa: E731
    elif kind == "set":
        f = lambda x: x * sum({v * value for v in (1.0, 2.0)})  # noqa: E731
    elif kind == "dict":
        f = lambda x: x * {k: k * value for k in (1.0,)}[1.0]  # noqa: E731
    elif kind == "lambda":
        f = lambda x: (lambda t: t * value)(x)  # noqa: E731
    elif kind == "two deep":
        f = lambda x: (lambda t: (lambda u: u * value)(t))(x)  # noqa: E731
    elif kind == "default":
        f = lambda x: (lambda t, v=value: t * v)(x)  # noqa: E731
    else:

        def f(x):
            def inner(t):
                return t * value

            return inner(x)

    def change() -> None:
        nonlocal value
        value = 5.0

    return f, change


@pytest.mark.parametrize(
    "kind",
    ["comprehension", "generator", "set", "dict", "lambda", "two deep", "default", "function"],
)
def test_variables_that_only_inner_functions_read(kind: str) -> None:
    f, change = rebound(kind)
    compiled = tg.compile(f, wait=True)
    same(f, compiled, X)
    assert compiled.cache_info().hits >= 1
    change()
    assert f(X).tolist() == [5.0, 5.0] or kind in ("set", "generator")
    same(f, compiled, X)


def test_tensors_modules_and_objects_in_such_variables() -> None:
    weight, layer, held = tg.ones(2), nn.Linear(2, 2), type("Held", (), {})()
    held.rate = 2.0
    f = lambda x: (lambda t: layer(t * weight) * held.rate)(x).detach()  # noqa: E731
    compiled = tg.compile(f, wait=True)
    same(f, compiled, X)
    assert compiled.cache_info().hits >= 1
    weight = tg.ones(2) * 3
    same(f, compiled, X)
    layer = nn.Linear(2, 2)
    same(f, compiled, X)
    held.rate = 7.0
    same(f, compiled, X)
    held = type("Held", (), {"rate": 1.0})()
    same(f, compiled, X)


def test_a_variable_that_an_inner_function_changes() -> None:
    count = 0

    def f(x):
        def inner():
            nonlocal count
            count += 1

        inner()
        return x * 2

    compiled = tg.compile(f, wait=True)
    with pytest.warns(tg.EagerWarning, match="count"):
        compiled(X)
    compiled(X)
    compiled(X)
    assert count == 3


# ---- attributes of parameters --------------------------------------------------------------------


def test_attributes_of_parameters() -> None:
    p = nn.Parameter(tg.ones(2))
    p.scale = 2.0
    f = lambda x: (x * p.scale + p * 0).detach()  # noqa: E731
    compiled = tg.compile(f, wait=True)
    same(f, compiled, X)
    assert compiled.cache_info().hits >= 1
    p.scale = 5.0
    same(f, compiled, X)
    p.scale = tg.ones(2) * 4
    same(f, compiled, X)


def test_attributes_asked_for_by_name() -> None:
    layer = nn.Linear(2, 2)

    def f(x):
        for p in layer.parameters():
            x = x + (p.sum() if getattr(p, "decay", True) else 0)
            if hasattr(p, "extra"):
                x = x + 1
        return x.detach()

    compiled = tg.compile(f, wait=True)
    same(f, compiled, X)
    layer.weight.decay = False
    same(f, compiled, X)
    layer.bias.extra = 1
    same(f, compiled, X)
    del layer.weight.decay
    same(f, compiled, X)


def test_attributes_of_parameters_that_are_arguments_run_eagerly() -> None:
    f = lambda x, p: (x * p.scale).detach()  # noqa: E731
    one, other = nn.Parameter(tg.ones(2)), nn.Parameter(tg.ones(2))
    one.scale, other.scale = 2.0, 3.0
    compiled = tg.compile(f, wait=True)
    with pytest.warns(tg.EagerWarning, match="an attribute of a tensor among the arguments"):
        compiled(X, one)
    same(f, compiled, X, other)
    one.scale = 9.0
    same(f, compiled, X, one)


def test_an_attribute_that_is_set_is_set_each_time() -> None:
    p = nn.Parameter(tg.ones(2))

    def f(x):
        p.seen = True
        return x * 2

    compiled = tg.compile(f, wait=True)
    with pytest.warns(tg.EagerWarning):
        compiled(X)
    p.seen = False
    compiled(X)
    assert p.seen


# ---- kinds of tensors ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x.detach() * (2 if isinstance(x, nn.Parameter) else 3),
        lambda x: x.detach() * (2 if type(x) is nn.Parameter else 3),
        lambda x: x.detach() * (2 if x.__class__ is nn.Parameter else 3),
    ],
)
def test_the_class_of_an_argument(f) -> None:
    compiled = tg.compile(f, wait=True)
    plain = tg.ones(2, requires_grad=True)
    for x in (plain, plain, nn.Parameter(tg.ones(2)), plain, nn.Parameter(tg.ones(2))):
        same(f, compiled, x)


def test_inference_tensors_among_arguments() -> None:
    f = lambda x: x * (2 if x.is_inference() else 3)  # noqa: E731
    compiled = tg.compile(f, wait=True)
    with tg.inference_mode():
        inside = tg.ones(2)
    for x in (X, X, inside, X, inside):
        same(f, compiled, x)


def test_a_derivative_beside_inference_tensors() -> None:
    w = tg.ones(2, requires_grad=True)
    with tg.inference_mode():
        x = tg.ones(2) * 3
    compiled = tg.compile(lambda x: (tg.ones(2) * x * w).sum(), wait=True)
    for k in range(3):
        w.grad = None
        if k == 0:
            with pytest.warns(tg.EagerWarning, match="beside inference tensors"):
                y = compiled(x)
        else:
            y = compiled(x)
        y.backward()
        assert w.grad.tolist() == [3.0, 3.0]


# ---- writes that eager mode refuses ---------------------------------------------------------------


def outcome(f: Callable[..., Any], act: Callable[..., Any], x: tg.Tensor) -> Any:
    x.grad = None
    try:
        act(f, x)
    except GradientError as error:
        return str(error).partition(":")[0]
    return x.grad.tolist()


def within(x):
    a = x * 1
    y = a * a.detach().requires_grad_()
    a.add_(1)
    return y.sum(), y


def saved_result(x):
    y = x.exp()
    return (y * 3).sum(), y


def unsaved_result(x):
    y = x * 2
    return (y * 3).sum(), y


def saved_argument(x):
    return (x * x).sum(), x + 1


def plainly(f, x):
    f(x)[0].backward()


def result_written(f, x):
    loss, y = f(x)
    with tg.no_grad():
        y.mul_(2)
    loss.backward()


def argument_written(f, x):
    loss, _ = f(x)
    with tg.no_grad():
        x.mul_(2)
    loss.backward()
    with tg.no_grad():
        x.div_(2)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("act", [plainly, result_written, argument_written])
@pytest.mark.parametrize("f", [within, saved_result, unsaved_result, saved_argument])
@pytest.mark.filterwarnings("ignore::tracegrad.EagerWarning")
def test_writes_that_eager_mode_refuses_are_refused(f, act, joint: bool) -> None:
    compiled = tg.compile(f, wait=True)
    x, twin = (tg.full((2,), 0.5, requires_grad=True) for _ in range(2))
    for _ in range(6 if joint and f is not within else 2):
        if f is not within:
            compiled(x)[0].backward()
    stricter = f is saved_result and act is argument_written  # it starts from the argument
    for _ in range(3):
        want, got = outcome(f, act, twin), outcome(compiled, act, x)
        assert got == want or (stricter and "modified by an inplace operation" in got)
        with tg.no_grad():
            x.fill_(0.5), twin.fill_(0.5)


def test_writes_to_what_a_scaled_loss_does_not_need() -> None:
    f = lambda x, b: (x * x + b).sum()  # noqa: E731
    compiled = tg.compile(f, wait=True)
    x, b = tg.ones(2, requires_grad=True), tg.ones(2, requires_grad=True)
    for _ in range(6):
        compiled(x, b).backward()
    assert compiled._order[-1].mode.active is not None
    x.grad = b.grad = None
    loss = compiled(x, b)
    with tg.no_grad():
        b.add_(1)
    (loss * 0.5).backward(retain_graph=True)
    loss.backward()
    assert (x.grad.tolist(), b.grad.tolist()) == ([3.0, 3.0], [1.5, 1.5])
