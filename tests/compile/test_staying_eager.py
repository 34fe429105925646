"""What cannot be replayed runs eagerly: right each time, with one warning that names the line."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from beside import assert_equal

import tracegrad as tg
from tracegrad.tracer.state import state

counter = 0


def reads_numpy(x: Any) -> Any:
    return x * float(x.detach().numpy().sum())


def prints(x: Any) -> Any:
    print("seen", tuple(x.shape))
    return x * 2


def draws_a_python_number(x: Any) -> Any:
    return x * random.random()


def counts(x: Any) -> Any:
    global counter
    counter += 1
    return x * counter


def seeds(x: Any) -> Any:
    tg.manual_seed(3)
    return x + tg.rand(3)


def returns_an_array(x: Any) -> Any:
    return x * 2, np.ones(2)


@pytest.mark.parametrize(
    ("fn", "reason", "line"),
    [
        (reads_numpy, r"reads the values of a tensor \(numpy\)", r"x.detach\(\).numpy\(\)"),
        (prints, "side effect: .*print", r'print\("seen"'),
        (draws_a_python_number, "depends on random numbers: random.random", r"random.random\(\)"),
        (counts, "side effect: .*counter", r"counter"),
        (seeds, r"manual_seed\(\) is used", r"tg.manual_seed\(3\)"),
        (returns_an_array, "it returns a ndarray", ""),
    ],
    ids=lambda x: x.__name__ if callable(x) else "",
)
def test_it_runs_eagerly_with_one_warning(fn: Callable[..., Any], reason: str, line: str) -> None:
    global counter
    f = tg.compile(fn)
    with pytest.warns(tg.EagerWarning, match=rf"{fn.__name__} runs eagerly: .*{reason}.*{line}"):
        first = _run(f, fn)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            _run(f, fn)
    assert first is not None
    assert f.cache_info().traces == 0
    assert f.cache_info().eager_calls == 3
    assert "runs eagerly" in f.explain().lower()
    with pytest.raises(
        tg.errors.CaptureError, match=f"no trace to show; it runs eagerly.*{reason}"
    ):
        f.graph()


def _run(f: Any, plain: Any) -> Any:
    """Both on the same numbers, from the same outside."""
    global counter
    before, generator = counter, random.getstate()
    x, y = tg.tensor([1.0, -2.0, 3.5]), tg.tensor([1.0, -2.0, 3.5])
    got = f(x)
    after = counter
    counter = before
    random.setstate(generator)
    assert_equal(_plain(got), _plain(plain(y)))
    assert_equal(x, y, "argument")
    assert counter == after
    return got


def _plain(result: Any) -> Any:
    return result[0] if isinstance(result, tuple) else result


def test_the_result_of_printing_is_printed_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    f = tg.compile(prints)
    with pytest.warns(tg.EagerWarning):
        f(tg.ones(2))
    f(tg.ones(2))
    assert capsys.readouterr().out == "seen (2,)\nseen (2,)\n"


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x.register_hook(lambda g: g) and x * 2,
        lambda x: (y := x * 2).retain_grad() or y.sum(),
        lambda x: (x * 2).sum().backward() or x * 2,
        lambda x: tg.autograd.grad((x * x).sum(), x)[0],
        lambda x: x * (0 if x.grad is None else 1),
        lambda x: tg.nn.Parameter(tg.ones(3)) * x,
        lambda x: tg.ones(3, requires_grad=True) * x,
        lambda x: (tg.set_grad_enabled(True), x * 2)[1],
    ],
    ids=["hook", "retain_grad", "backward", "grad", ".grad", "Parameter", "leaf", "set_grad"],
)
def test_autograd_inside_is_right(fn: Callable[..., Any]) -> None:
    f = tg.compile(fn)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tg.EagerWarning)
        for _ in range(3):
            results = []
            for g in (f, fn):
                x = tg.ones(3, requires_grad=True)
                out = g(x)
                if out.requires_grad:
                    out.sum().backward()
                results.append((out, x.grad))
            (got, a), (want, b) = results
            np.testing.assert_array_equal(got.detach().numpy(), want.detach().numpy())
            assert got.requires_grad is want.requires_grad
            assert (a is None) == (b is None)
            if a is not None:
                np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_a_write_under_no_grad_keeps_the_history_it_keeps_in_eager_mode() -> None:
    def fn(x: Any) -> Any:
        y = x * 2
        with tg.no_grad():
            y.mul_(3)
        return y

    f = tg.compile(fn)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tg.EagerWarning)
        for _ in range(3):
            x = tg.ones(3, requires_grad=True)
            y = f(x)
            y.sum().backward()
            assert y.tolist() == [6, 6, 6]
            assert x.grad.tolist() == [2, 2, 2]


def test_a_grad_mode_left_behind_is_left_behind_each_time() -> None:
    def fn(x: Any) -> Any:
        tg.set_grad_enabled(False)
        return x * 2

    f = tg.compile(fn)
    try:
        with pytest.warns(tg.EagerWarning, match="changes the grad mode"):
            f(tg.ones(2))
        for _ in range(2):
            tg.set_grad_enabled(True)
            f(tg.ones(2))
            assert not tg.is_grad_enabled()
    finally:
        tg.set_grad_enabled(True)


def test_exceptions_pass_unchanged_and_leave_nothing_behind() -> None:
    class Mine(Exception):
        pass

    def fn(x: Any, fail: bool) -> Any:
        y = x * 2
        if fail:
            raise Mine("text")
        return y

    import sys

    f = tg.compile(fn)
    profiler = sys.getprofile()
    for _ in range(2):
        with pytest.raises(Mine, match="text"):
            f(tg.ones(2), True)
        assert state.recorder is None
        assert sys.getprofile() is profiler
    assert f.cache_info().traces == 0
    assert_equal(f(tg.ones(2), False), tg.full((2,), 2.0))
    assert_equal(f(tg.ones(2), False), tg.full((2,), 2.0))


def test_shape_errors_are_those_of_eager_mode() -> None:
    f = tg.compile(lambda a, b: a + b)
    with pytest.raises(tg.errors.ShapeError) as ours:
        f(tg.ones(2), tg.ones(3))
    with pytest.raises(tg.errors.ShapeError) as theirs:
        tg.ones(2) + tg.ones(3)
    assert str(ours.value) == str(theirs.value)


def test_an_index_out_of_range_in_compiled_code() -> None:
    f = tg.compile(lambda x, i: x[i] * 2)
    x = tg.arange(4.0)
    for _ in range(3):
        assert f(x, tg.tensor([0, -1])).tolist() == [0, 6]
        for bad in (4, -5):
            with pytest.raises(
                IndexError, match=rf"index {bad} is out of bounds for dimension 0 with size 4"
            ):
                f(x, tg.tensor([0, bad]))
    assert f.cache_info().traces == 1


def test_integer_division_by_zero_in_compiled_code() -> None:
    f = tg.compile(lambda a, b: (a // b, a % b))
    a = tg.tensor([7, -7])
    for _ in range(3):
        assert_equal(f(a, tg.tensor([2, 2])), (tg.tensor([3, -4]), tg.tensor([1, 1])))
        with pytest.raises(ZeroDivisionError, match="ZeroDivisionError"):
            f(a, tg.tensor([1, 0]))
    assert f.cache_info().traces == 1


def test_a_tensor_from_nowhere_keeps_a_function_eager() -> None:
    class Box:
        __slots__ = ("made",)

        def __call__(self, x: Any) -> Any:
            return x * next(self.made)

    box = Box()
    box.made = iter([tg.ones(2) * k for k in range(5)])
    f = tg.compile(box)
    with pytest.warns(tg.EagerWarning, match="could go unseen|neither as an argument"):
        assert f(tg.ones(2)).tolist() == [0.0, 0.0]
    assert f(tg.ones(2)).tolist() == [1.0, 1.0]
    with pytest.raises(tg.errors.CaptureError, match="strict=True asks for that"):
        tg.compile(box, strict=True)(tg.ones(2))


def test_the_garbage_collector_is_not_part_of_the_run() -> None:
    """Callbacks of the collector (pytest and hypothesis have some) are nobody's side effects."""
    import gc

    seen: list[str] = []

    def callback(phase: str, info: Any) -> None:
        seen.append(phase)

    def fn(x: Any) -> Any:
        for _ in range(60):
            x = x + len([[k] for k in range(50)])
        return x

    threshold = gc.get_threshold()
    gc.callbacks.append(callback)
    gc.set_threshold(10)
    try:
        f = tg.compile(fn)
        f(tg.ones(2))
        f(tg.ones(2))
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(callback)
    assert seen
    assert f.cache_info().hits == 1, f.explain()
