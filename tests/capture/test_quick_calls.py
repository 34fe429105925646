"""Calls like the last one are recognised without a key; whatever differs must be seen all the same.

Each case is a sequence of calls of one compiled function, compared with the eager function. The calls
before a change are many enough to be recognised, and the test says that they were.
"""

from __future__ import annotations

import gc
import math
import threading
import weakref
from collections.abc import Iterator

import pytest

import tracegrad as tg
from tracegrad.runtime.cuda import current


@pytest.fixture(autouse=True)
def no_device_chosen() -> Iterator[None]:
    """Other tests of this process may have chosen a device: calls are not recognised then."""
    before = [*current.chosen]
    current.chosen.clear()
    yield
    current.chosen[:] = before


def t(*values: float, dtype=tg.float32) -> tg.Tensor:
    return tg.tensor(list(values), dtype=dtype)


def scaled(x, s):
    return x * s


def sided(x, y):
    return x - 2 * y


def copied_sign(x, s):
    return x + math.copysign(1.0, s)


class Box:
    def __init__(self, rate: float) -> None:
        self.rate = rate


def boxed(x, box):
    return x * box.rate


def kinds(x, n):
    return x + (1 if type(n) is bool else 2 if type(n) is int else 3)


x, y = t(1, 2), t(3, 4)
view = tg.arange(8).float()[::2][:2]
box = Box(2.0)
CASES = {
    "another number": (scaled, [(x, 2.0)] * 4 + [(x, 3.0), (x, 2.0), (x, 5.0), (x, 2)]),
    "zeros have signs": (copied_sign, [(x, 1.0)] * 4 + [(x, 0.0), (x, -0.0), (x, 0.0), (x, -1.0)]),
    "bool, int and float": (kinds, [(x, 1)] * 4 + [(x, True), (x, 1.0), (x, 1), (x, False), (x, 0)]),
    "texts": (lambda x, s: x * len(s), [(x, "ab")] * 4 + [(x, "abc"), (x, b"ab"), (x, "ab")]),
    "None": (lambda x, s: x if s is None else x * s, [(x, None)] * 4 + [(x, 2.0), (x, None)]),
    "swapped": (sided, [(x, y)] * 4 + [(y, x), (x, y)]),
    "the same twice": (sided, [(x, y)] * 4 + [(x, x), (y, y), (x, y)]),
    "shape": (sided, [(x, y)] * 4 + [(t(1), y), (t(1, 2, 3), t(1, 2, 3)), (x, y)]),
    "dtype": (sided, [(x, y)] * 4 + [(t(1, 2, dtype=tg.float64), y), (x, t(1, 2, dtype=tg.int64)), (x, y)]),
    "strides": (sided, [(x, y)] * 4 + [(view, y), (x, view), (x, y)]),
    "a parameter": (sided, [(x, y)] * 4 + [(tg.nn.Parameter(t(5, 6)), y), (x, y)]),
    "a number for a tensor": (sided, [(x, y)] * 4 + [(x, 2.0), (x, y)]),
    "objects": (boxed, [(x, box)] * 4 + [(x, Box(3.0)), (x, box)]),
    "five tensors": (
        lambda a, b, c, d, e: a - 2 * b + 3 * c - 4 * d + 5 * e,
        [(x, y, x + 1, y + 1, x + 2)] * 4 + [(x, x, x, y, y), (y, x, x + 1, y + 1, x + 2)],
    ),
    "no arguments": (lambda: tg.ones(2) * 2, [()] * 4),
    "more and fewer": (lambda *xs: sum(xs, start=tg.zeros(2)), [(x, y)] * 4 + [(x,), (x, y, x), (x, y)]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore::tracegrad.EagerWarning", "ignore::tracegrad.RecaptureWarning")
def test_sequences_of_calls(case: str) -> None:
    function, calls = CASES[case]
    f = tg.compile(function, wait=True)
    for k, given in enumerate(calls):
        got, want = f(*given), function(*given)
        assert got.dtype is want.dtype and got.tolist() == want.tolist(), given
        if k == 3:
            assert f._quick is not None and f._quick.fits(given)


def recognised(function, *given):
    """The function compiled, so that it recognises a call."""
    f = tg.compile(function, wait=True)
    for _ in range(3):
        f(*given)
    assert f._quick is not None and f._quick.fits(given)
    return f


def test_modes_are_seen() -> None:
    a = t(1, 2).requires_grad_()
    f = recognised(scaled, a, 2.0)
    assert f(a, 2.0).requires_grad
    with tg.no_grad():
        assert not f._quick.fits((a, 2.0))
        assert not f(a, 2.0).requires_grad
    with tg.inference_mode():
        assert not f._quick.fits((a, 2.0))
        assert f(a, 2.0).is_inference()
    assert f(a, 2.0).requires_grad
    a.requires_grad_(False)
    assert not f(a, 2.0).requires_grad


def test_the_default_dtype_is_seen() -> None:
    def made(x):
        return x.sum() + tg.ones(2)

    f = recognised(made, t(1, 2))
    tg.set_default_dtype(tg.float64)
    try:
        assert f(t(1, 2)).dtype is tg.float64
    finally:
        tg.set_default_dtype(tg.float32)
    assert f(t(1, 2)).dtype is tg.float32


def test_eager_blocks_hooks_and_profilers_are_seen() -> None:
    ran = []

    def f(x):
        ran.append(1)
        return x * x

    a = t(1, 2).requires_grad_()
    compiled = tg.compile(f, wait=True, side_effects="drop")
    for _ in range(3):
        compiled(a)
    runs = len(ran)
    compiled(a)
    assert len(ran) == runs
    with tg.eager():
        compiled(a)
    assert len(ran) == runs + 1
    with tg.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        compiled(a)
    assert len(ran) == runs + 2
    with tg.autograd.set_detect_anomaly(True):
        compiled(a)
    assert len(ran) == runs + 3
    with tg.autograd.profiler.profile() as prof:
        compiled(a)
    assert len(ran) == runs + 3 and "f" in {e.name for e in prof.function_events}


def test_a_default_device_is_seen() -> None:
    f = recognised(scaled, x, 2.0)
    current.chosen.append(0)
    try:
        assert not f._quick.fits((x, 2.0))
        assert f(x, 2.0).tolist() == [2, 4]
    finally:
        current.chosen.clear()


def test_keywords_and_wrong_calls() -> None:
    f = recognised(scaled, x, 2.0)
    assert f(x, s=2.0).tolist() == [2, 4]
    assert f(s=2.0, x=x).tolist() == [2, 4]
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        f(x)
    with pytest.raises(TypeError, match="takes 2 positional arguments"):
        f(x, 2.0, 3.0)
    assert f(x, 2.0).tolist() == [2, 4]


def test_what_guards_look_at_is_looked_at() -> None:
    space = {"rate": 2.0}
    function = eval("lambda x: x * rate", space)
    f = recognised(function, x)
    space["rate"] = 3.0
    assert f(x).tolist() == [3, 6]
    box.rate = 2.0
    g = recognised(boxed, x, box)
    box.rate = 7.0
    assert g(x, box).tolist() == [7, 14]
    box.rate = 2.0
    assert g(x, box).tolist() == [2, 4]


def test_numbers_that_vary_are_recognised_with_any_value() -> None:
    f = tg.compile(scaled, wait=True)
    for k in range(5):
        f(x, 0.5 + k)
    assert f._quick is not None and f._quick.fits((x, 99.25))
    assert f(x, 99.25).tolist() == [99.25, 198.5]
    assert not f._quick.fits((x, 99))
    assert f(x, 3).tolist() == [3, 6]


def test_data_replaced_under_a_recognised_argument() -> None:
    a = t(1, 2)
    f = recognised(scaled, a, 2.0)
    a.data = t(5, 6, 7)
    assert f(a, 2.0).tolist() == [10, 12, 14]
    a.data = t(5, 6, dtype=tg.float64)
    assert f(a, 2.0).tolist() == [10, 12]
    a.resize_(1)
    assert f(a, 2.0).tolist() == [10]


@pytest.mark.parametrize("size", [2, 1 << 16])
def test_arguments_are_not_kept_alive(size: int) -> None:
    given = tg.ones(size)
    f = recognised(scaled, given, 2.0)
    memory = weakref.ref(given._array)
    del given
    gc.collect()
    assert memory() is None
    assert f(tg.ones(size), 2.0).sum().item() == 2 * size


def test_branches_are_taken_by_value() -> None:
    def f(x):
        return x * 2 if x.sum() > 0 else x * 3

    g = tg.compile(f, wait=True)
    for k in (1, 1, 1, -1, 1, -1, -1, -1, 1):
        assert g(t(k, k)).tolist() == f(t(k, k)).tolist()
    assert g.cache_info().misses == 2


def test_threads_with_other_modes() -> None:
    a = t(1, 2).requires_grad_()
    f = recognised(scaled, a, 2.0)
    wrong = []

    def work(recorded: bool) -> None:
        with tg.set_grad_enabled(recorded):
            for _ in range(300):
                if f(a, 2.0).requires_grad is not recorded:
                    wrong.append(recorded)

    threads = [threading.Thread(target=work, args=(flag,)) for flag in (True, False) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_methods_and_copies() -> None:
    import copy

    class Model:
        def __init__(self) -> None:
            self.rate = 2.0

        @tg.compile(wait=True)
        def forward(self, x):
            return x * self.rate

    model, other = Model(), Model()
    for _ in range(4):
        assert model.forward(x).tolist() == [2, 4]
    other.rate = 5.0
    assert other.forward(x).tolist() == [5, 10]
    assert model.forward(x).tolist() == [2, 4]
    f = recognised(scaled, x, 2.0)
    assert copy.copy(f)(x, 2.0).tolist() == [2, 4]
