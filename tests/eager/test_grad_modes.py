"""no_grad, enable_grad, set_grad_enabled, inference_mode: contexts and decorators."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

import tracegrad as tg


@pytest.fixture()
def x() -> tg.Tensor:
    return tg.ones(2, requires_grad=True)


def test_contexts_nest_and_restore(x: tg.Tensor) -> None:
    with tg.no_grad():
        assert (x * 2).grad_fn is None
        with tg.enable_grad():
            assert (x * 2).requires_grad
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad


def test_mode_is_restored_by_an_exception() -> None:
    with pytest.raises(KeyError), tg.no_grad():
        raise KeyError
    assert tg.is_grad_enabled()


def test_factories_may_still_require_grad_inside_no_grad() -> None:
    with tg.no_grad():
        assert tg.ones(1, requires_grad=True).requires_grad


@pytest.mark.parametrize("decorate", [tg.no_grad(), tg.no_grad])
def test_decorates_functions_and_methods(decorate: Any, x: tg.Tensor) -> None:
    class Model:
        @decorate
        def double(self, x: tg.Tensor) -> tg.Tensor:
            """Twice x."""
            return x * 2

    assert not Model().double(x).requires_grad
    assert (Model.double.__name__, Model.double.__doc__) == ("double", "Twice x.")
    assert tg.is_grad_enabled()


def test_decorated_generator_runs_its_steps_in_the_mode_and_its_caller_outside(
    x: tg.Tensor,
) -> None:
    log: list[Any] = []

    @tg.no_grad()
    def steps() -> Iterator[bool]:
        try:
            got = yield (x * 2).requires_grad
            log.append(got)
            yield (x * 2).requires_grad
        except ValueError:
            log.append(tg.is_grad_enabled())
            yield tg.is_grad_enabled()
        finally:
            log.append("closed")

    run = steps()
    assert next(run) is False and tg.is_grad_enabled()
    assert run.send("sent") is False and tg.is_grad_enabled()
    assert run.throw(ValueError) is False and tg.is_grad_enabled()
    run.close()
    assert log == ["sent", False, "closed"]


def test_enable_grad_decorator_inside_no_grad(x: tg.Tensor) -> None:
    @tg.enable_grad()
    def double() -> tg.Tensor:
        return x * 2

    with tg.no_grad():
        assert double().requires_grad


def test_set_grad_enabled_as_call_context_and_decorator() -> None:
    tg.set_grad_enabled(False)
    try:
        assert not tg.is_grad_enabled()
    finally:
        tg.set_grad_enabled(True)
    with tg.set_grad_enabled(False):
        assert not tg.is_grad_enabled()
    assert tg.is_grad_enabled()

    @tg.set_grad_enabled(False)
    def inside() -> bool:
        return tg.is_grad_enabled()

    assert tg.is_grad_enabled() and not inside() and tg.is_grad_enabled()


def test_inference_mode() -> None:
    with tg.inference_mode():
        assert tg.is_inference_mode_enabled() and not tg.is_grad_enabled()
        with tg.inference_mode(False):
            assert tg.is_grad_enabled()
    assert tg.is_grad_enabled() and not tg.is_inference_mode_enabled()


def test_modes_are_per_thread() -> None:
    seen: list[bool] = []
    with tg.no_grad():
        thread = threading.Thread(target=lambda: seen.append(tg.is_grad_enabled()))
        thread.start()
        thread.join()
    assert seen == [True]


def test_backward_works_inside_no_grad(x: tg.Tensor) -> None:
    y = (x * x).sum()
    with tg.no_grad():
        y.backward()
        assert not tg.is_grad_enabled()
    assert x.grad.tolist() == [2.0, 2.0] and not x.grad.requires_grad
