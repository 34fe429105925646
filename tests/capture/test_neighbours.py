"""Compiled functions among others: nested, methods, recursion, threads, copies, pickles, errors.

A compiled function stands wherever the function itself may stand, and does the same there.
"""

from __future__ import annotations

import copy
import cProfile
import functools
import inspect
import pickle
import sys
import threading
import weakref
from collections.abc import Iterator
from enum import Enum
from typing import Any

import pytest

import tracegrad as tg
from tracegrad import nn


@tg.compile
def inner(x: Any) -> Any:
    return x * 2


@tg.compile
def outer(x: Any) -> Any:
    """Twice, and one."""
    return inner(x) + 1


@tg.compile
def factorial(x: Any, n: int) -> Any:
    return x if n == 0 else factorial(x, n - 1) * n


class Scale:
    offset = 1.0

    def __init__(self, factor: float) -> None:
        self.factor = factor

    @tg.compile
    def method(self, x: Any) -> Any:
        return x * self.factor + self.offset

    @staticmethod
    @tg.compile
    def static(x: Any) -> Any:
        return x + 1

    @classmethod
    @tg.compile
    def of_class(cls, x: Any) -> Any:
        return x * cls.offset

    def __call__(self, x: Any) -> Any:
        return x - self.factor


def test_compiled_inside_compiled_is_one_trace() -> None:
    before = inner.cache_info()
    for k in range(3):
        x = tg.full((2,), float(k), requires_grad=True)
        outer(x).sum().backward()
        assert x.grad.tolist() == [2.0, 2.0]
    assert outer.cache_info().hits == 2 and inner.cache_info() == before


def test_methods_see_changes_of_their_object_and_class(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = Scale(2.0), Scale(3.0)
    x = tg.ones(2)
    for _ in range(2):
        assert one.method(x).tolist() == [3.0, 3.0] and two.method(x).tolist() == [4.0, 4.0]
    one.factor = 5.0
    assert one.method(x).tolist() == [6.0, 6.0] and two.method(x).tolist() == [4.0, 4.0]
    monkeypatch.setattr(Scale, "offset", 10.0)
    assert one.method(x).tolist() == [15.0, 15.0] and two.method(x).tolist() == [13.0, 13.0]
    assert one.of_class(x).tolist() == [10.0, 10.0] == Scale.of_class(x).tolist()
    assert Scale.static(x).tolist() == [2.0, 2.0] == one.static(x).tolist()


def test_callable_objects_and_partials() -> None:
    scale = Scale(2.0)
    called = tg.compile(scale)
    bound = tg.compile(scale.__call__)
    part = tg.compile(functools.partial(lambda k, x: x * k, 3))
    for factor in (2.0, 2.0, 4.0):
        scale.factor = factor
        x = tg.ones(2)
        assert called(x).tolist() == [1 - factor] * 2 == bound(x).tolist()
        assert part(x).tolist() == [3.0, 3.0]
    assert called.cache_info().hits == 1 and part.cache_info().hits == 2


def test_objects_as_arguments_count_by_identity() -> None:
    class Mode(Enum):
        UP = 1
        DOWN = 2

    f = tg.compile(lambda x, scale, mode: x * scale.factor if mode is Mode.UP else -x)
    one, two = Scale(2.0), Scale(3.0)
    for _ in range(2):
        for scale in (one, two):
            for mode in Mode:
                want = scale.factor if mode is Mode.UP else -1.0
                assert f(tg.ones(1), scale, mode).tolist() == [want]
    one.factor = 7.0
    assert f(tg.ones(1), one, Mode.UP).tolist() == [7.0]
    assert f.cache_info().hits == 4, f.explain()


def test_a_new_object_at_each_call_ends_in_eager_mode() -> None:
    f = tg.compile(lambda x, scale: x * scale.factor, verify="off")
    with pytest.warns(tg.EagerWarning, match="more than 64 objects, the last one a Scale"):
        for k in range(70):
            assert f(tg.ones(1), Scale(float(k))).tolist() == [float(k)]
    assert f.cache_info().eager_calls == 6


def test_what_runs_in_pieces_is_refused() -> None:
    def generator(x: Any) -> Iterator[Any]:
        yield x

    async def coroutine(x: Any) -> Any:
        return x

    async def both(x: Any) -> Any:
        yield x

    for fn, kind in ((generator, "a generator"), (coroutine, "a coroutine"),
                     (both, "an asynchronous generator")):  # fmt: skip
        for given in (fn, functools.partial(fn, tg.ones(1))):
            with pytest.raises(tg.errors.OperandError, match=f"{fn.__name__} is {kind} function"):
                tg.compile(given)


def test_recursion() -> None:
    for n in (3, 3, 4, 3):
        want = {3: 6.0, 4: 24.0}[n]
        assert factorial(tg.ones(1), n).tolist() == [want]
    assert factorial.cache_info().traces == 2

    @tg.compile
    def endless(x: Any) -> Any:
        return endless(x + 1)

    for _ in range(2):
        with pytest.raises(RecursionError, match="maximum recursion depth exceeded"):
            endless(tg.ones(1))
    assert outer(tg.ones(2)).tolist() == [3.0, 3.0]


def test_errors_are_those_of_the_function() -> None:
    def f(x: Any, y: Any, fail: str) -> Any:
        z = x + 1
        if fail == "raise":
            raise KeyError("mine")
        if fail == "shape":
            return z @ y
        if fail == "unbound":
            del z
            return z
        return z * y

    compiled = tg.compile(f)
    x = tg.ones(2)
    for fail in ("", "raise", "", "shape", "unbound", ""):
        found = []
        for fn in (f, compiled):
            try:
                found.append(fn(x, tg.ones(3) if fail == "shape" else x, fail).tolist())
            except Exception as error:
                found.append((type(error), str(error)))
        assert found[0] == found[1]
        assert tg.is_grad_enabled() and x.tolist() == [1.0, 1.0]
    assert compiled.cache_info().hits == 2


def test_threads_that_call_one_function_at_once() -> None:
    compiled = tg.compile(lambda x: (x * 2).exp().sum())
    start = threading.Barrier(4)
    results: list[Any] = []

    def work(k: int) -> None:
        x = tg.full((8,), k / 8, requires_grad=True)
        start.wait()
        for _ in range(50):
            y = compiled(x)
            (slope,) = tg.autograd.grad(y, x)
            results.append((k, y.item(), slope[0].item()))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(results) == 200
    for k in range(4):
        x = tg.full((8,), k / 8, requires_grad=True)
        y = (x * 2).exp().sum()
        (slope,) = tg.autograd.grad(y, x)
        mine = [r[1:] for r in results if r[0] == k]
        assert all(r == pytest.approx((y.item(), slope[0].item()), rel=1e-6) for r in mine)
    info = compiled.cache_info()
    assert info.traces == 1 and info.misses == 1


# ---- copies -------------------------------------------------------------------------------------


def test_copies_of_functions() -> None:
    for again in (copy.copy(outer), copy.deepcopy(outer), pickle.loads(pickle.dumps(outer))):
        assert again(tg.ones(2)).tolist() == [3.0, 3.0]
    assert pickle.loads(pickle.dumps(outer)) is outer
    assert copy.copy(outer) is not outer
    local = tg.compile(lambda x: x)
    with pytest.raises((pickle.PicklingError, AttributeError), match="pickle"):
        pickle.dumps(local)


class Holds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.run = tg.compile(self.layer)

    def forward(self, x: Any) -> Any:
        return self.run(x) * 2


@pytest.mark.parametrize("make", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_of_modules_are_independent(make: Any) -> None:
    for model in (tg.compile(nn.Linear(2, 2)), Holds()):
        x = tg.ones(1, 2)
        want = model(x).detach().clone()
        model(x)
        twin = make(model)
        assert twin(x).tolist() == want.tolist()
        for p in twin.parameters():
            p.data.zero_()
        assert twin(x).tolist() == [[0.0, 0.0]] and model(x).tolist() == want.tolist()


def test_it_looks_like_the_function() -> None:
    assert outer.__name__ == "outer" and outer.__doc__ == "Twice, and one."
    assert str(inspect.signature(outer)) == "(x: 'Any') -> 'Any'"
    assert outer.__wrapped__(tg.ones(1)).tolist() == [3.0]
    assert weakref.ref(outer)() is outer


def test_all_kinds_of_parameters() -> None:
    def f(x: Any, *more: Any, scale: float = 2.0, **named: Any) -> Any:
        return x * scale + sum(more) + named.get("z", 0)

    compiled = tg.compile(f)
    a, b = tg.ones(2), tg.ones(2) * 3
    calls: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...] = (
        ((a,), {}), ((a, b), {}), ((a, b, b), {"scale": 3.0}), ((a,), {"z": b, "scale": 1.0}),
        ((a,), {"scale": 2.0}),
    )  # fmt: skip
    for _ in range(2):
        for args, kwargs in calls:
            assert compiled(*args, **kwargs).tolist() == f(*args, **kwargs).tolist()
    assert compiled.cache_info().hits == 5
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        compiled()


def test_profilers_of_python_go_on() -> None:
    """cProfile's is no function, and comes back after a capture; one set by hand is called on."""

    def f(x: Any) -> Any:
        return x * 2

    def afterwards() -> None:
        pass

    profile = cProfile.Profile()
    profile.enable()
    try:
        tg.compile(f)(tg.ones(2))
        tg.compile(lambda x: tg.debug_callback(lambda: None) or x)(tg.ones(2))
        afterwards()
    finally:
        profile.disable()
    names = {entry.code.co_name for entry in profile.getstats() if not isinstance(entry.code, str)}
    assert "afterwards" in names

    seen: list[str] = []
    sys.setprofile(lambda frame, event, arg: seen.append(frame.f_code.co_name))
    try:
        tg.compile(f)(tg.ones(2))
        afterwards()
    finally:
        sys.setprofile(None)
    assert "f" in seen and "afterwards" in seen
