"""What changes outside a compiled function is seen by its next call, as eager mode sees it."""

from __future__ import annotations

import math
import os
import sys
import time
import warnings
from collections.abc import Callable
from types import SimpleNamespace as Space
from typing import Any

import numpy as np
import pytest
from beside import assert_equal

import tracegrad as tg
import tracegrad.nn.functional as F
import tracegrad.runtime.threads


def same_over(fn: Callable[..., Any], *changes: Callable[[], Any], arguments: Any = None) -> Any:
    """Compare `compile(fn)` with `fn` before and after each change, twice each time."""
    compiled = tg.compile(fn)
    arguments = arguments or (lambda: (tg.tensor([1.0, 2.0, 3.0]),))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tg.EagerWarning)
        for change in (lambda: None, *changes):
            change()
            for _ in range(2):
                assert_equal(compiled(*arguments()), fn(*arguments()))
    return compiled


METADATA: dict[str, Callable[[Any], Any]] = {
    "shape": lambda w: w.shape[0],
    "len": lambda w: len(w),
    "size": lambda w: w.size(0),
    "numel": lambda w: w.numel(),
    "dtype": lambda w: 2 if w.dtype is tg.float32 else 3,
    "is_floating_point": lambda w: 2 if w.is_floating_point() else 3,
    "ndim": lambda w: w.ndim,
    "stride": lambda w: sum(w.stride()),
    "requires_grad": lambda w: 2 if w.requires_grad else 3,
    "is_contiguous": lambda w: 2 if w.is_contiguous() else 3,
}
OTHERS: dict[str, Callable[[], Any]] = {
    "shape": lambda: tg.ones(5, 3),
    "dtype": lambda: tg.ones(4, 3, dtype=tg.int64),
    "rank": lambda: tg.ones(4, 3, 2),
    "strides": lambda: tg.ones(3, 4).t(),
}


@pytest.mark.parametrize("read", METADATA.values(), ids=METADATA)
@pytest.mark.parametrize("how", ["closure", "list", "module"])
def test_metadata_of_a_tensor_that_is_no_input(read: Callable[[Any], Any], how: str) -> None:
    w = tg.ones(4, 3)
    held = [w]

    class Holder(tg.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = tg.nn.Buffer(w) if hasattr(tg.nn, "Buffer") else w

        def forward(self, x: Any) -> Any:
            return x * read(self.w)

    fns = {"closure": lambda x: x * read(w), "list": lambda x: x * read(held[0])}
    module = Holder()
    target = module.w if how == "module" else w
    fn = module if how == "module" else fns[how]

    def put(make: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: setattr(target, "data", make())

    grad = [lambda: target.requires_grad_(), lambda: target.requires_grad_(False)]
    compiled = same_over(fn, *grad, *map(put, OTHERS.values()))
    assert compiled.cache_info().eager_calls == 0, compiled.explain()
    assert compiled.cache_info().hits > 0


def test_a_change_of_metadata_is_told() -> None:
    w = tg.ones(4)
    f = tg.compile(lambda x: x * w.shape[0])
    f(tg.ones(2))
    w.data = tg.ones(5)
    f(tg.ones(2))
    assert "w was float32[4], strides (4,), now it is float32[5], strides (4,)" in f.explain()


CONTAINERS: dict[str, tuple[Callable[..., Any], Callable[[], Any]]] = {
    "list": (lambda p: p[0] * 2 + p[1], lambda: ([tg.ones(3), tg.ones(3)],)),
    "dict": (lambda p: p["a"] * p["k"], lambda: ({"a": tg.ones(3), "k": 2.5},)),
    "nested": (lambda p: p["a"][0] * p["a"][1], lambda: ({"a": [tg.ones(3), 2]},)),
    "loop": (lambda p: sum(q * 2 for q in p), lambda: ([tg.ones(3), tg.ones(3)],)),
    "star": (lambda *p: p[0] * sum(p), lambda: (tg.ones(3), tg.ones(3))),
}


@pytest.mark.parametrize("row", CONTAINERS.values(), ids=CONTAINERS)
def test_containers_of_tensors_are_replayed_for_other_tensors(row: Any) -> None:
    fn, arguments = row
    compiled = same_over(fn, arguments=arguments)
    info = compiled.cache_info()
    assert (info.traces, info.hits, info.eager_calls) == (1, 1, 0), compiled.explain()


def test_which_containers_of_an_argument_are_one() -> None:
    def fn(p: Any) -> Any:
        return p[0][0] * (2 if p[0] is p[1] else 3)

    f = tg.compile(fn)
    one = [tg.ones(3)]
    for given in ([one, one], [one, [one[0]]], [one, one]):
        for _ in range(2):
            assert_equal(f(given), fn(given))
    assert f.cache_info() == (4, 2, 2, 0), f.explain()


def test_an_argument_that_is_also_read_from_outside() -> None:
    kept = [2.0]

    def fn(x: Any, given: Any) -> Any:
        return x * given[0] * kept[0] * (1 if given is kept else 10)

    f, x = tg.compile(fn), tg.ones(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tg.EagerWarning)
        for _ in range(2):
            assert_equal(f(x, kept), fn(x, kept))
            assert_equal(f(x, [2.0]), fn(x, [2.0]))
            kept[0] += 1
            assert_equal(f(x, [2.0]), fn(x, [2.0]))
            kept[0] -= 1


def imports_inside(x: Any) -> Any:
    from math import tau

    return x * tau


def double(x: Any) -> Any:
    return x * 2


LIBRARY: dict[str, tuple[Callable[[Any], Any], Any, str, Any]] = {
    "new constant of math": (lambda x: x * math.zz, math, "zz", 3.0),
    "bool of numpy": (lambda x: x * (2 if np.zz else 3), np, "zz", False),
    "constant of tracegrad": (lambda x: x * tg.pi, tg, "pi", 3.0),
    "function of tracegrad": (lambda x: tg.sin(x), tg, "sin", double),
    "function of a submodule": (lambda x: F.relu(x - 2), F, "relu", double),
    "submodule": (lambda x: tg.nn.functional.relu(x - 2), tg.nn, "functional", Space(relu=double)),
    "class": (lambda x: tg.nn.ReLU()(x - 2), tg.nn, "ReLU", tg.nn.Sigmoid),
    "imported inside": (imports_inside, math, "tau", 1.0),
}


@pytest.mark.parametrize("row", LIBRARY.values(), ids=LIBRARY)
def test_what_a_library_module_holds(row: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fn, module, name, value = row
    if name == "zz":
        monkeypatch.setattr(module, name, True, raising=False)
    compiled = same_over(fn, lambda: monkeypatch.setattr(module, name, value))
    assert compiled.cache_info().hits > 0, compiled.explain()


def depth(limit: int) -> Callable[[], None]:
    return lambda: sys.setrecursionlimit(limit)


def read_threads(x: Any) -> Any:
    return x * tg.runtime.threads.get_num_threads()


STATE: dict[str, tuple[Callable[[Any], Any], Callable[[], Any], str]] = {
    "threads": (
        read_threads,
        lambda: tg.runtime.threads.set_num_threads(7),
        "state of the process",
    ),
    "seed": (lambda x: x * tg.initial_seed(), lambda: tg.manual_seed(9), "initial_seed"),
    "recursion": (lambda x: x * sys.getrecursionlimit(), depth(4321), "sys.getrecursionlimit"),
    "id": (lambda x: x + id(x) * 0, lambda: None, "address of an object: id"),
    "clock": (lambda x: x + time.time() * 0, lambda: None, "depends on the clock: time.time"),
    "environment": (lambda x: x * len(os.getenv("TG_A", "")), lambda: None, "os.getenv"),
}


@pytest.mark.parametrize("row", STATE.values(), ids=STATE)
def test_state_of_the_process(row: Any) -> None:
    fn, change, reason = row
    threads, limit = tg.runtime.threads.get_num_threads(), sys.getrecursionlimit()
    try:
        compiled = same_over(fn, change)
    finally:
        tg.runtime.threads.set_num_threads(threads)
        sys.setrecursionlimit(limit)
    assert compiled.cache_info().traces == 0
    assert reason in compiled.explain()


def test_reasons_are_told_once_with_their_count() -> None:
    def fn(x: Any) -> Any:
        for _ in range(3):
            x = x * x.numpy().sum()
        return x

    f = tg.compile(fn)
    with pytest.warns(tg.EagerWarning):
        f(tg.ones(2))
        f(tg.ones(3))
    text = f.explain()
    assert text.count("reads the values of a tensor (numpy)") == 1
    assert "(3 times)" in text and "for 2 kinds of arguments" in text


def test_what_a_module_does_while_it_is_imported_is_not_the_functions(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SciPy is imported at the first `erf`; so may a module of the user's be."""
    (tmp_path / "imported_late.py").write_text(
        "import functools, time\n"
        "rows = list(range(1000))\n"
        "@functools.lru_cache\n"
        "def cached(n):\n"
        "    return rows[n]\n"
        "def setup():\n"
        "    globals()['started'] = time.time()\n"
        "    return sorted(rows, key=lambda n: cached(n))[2]\n"
        "SCALE = setup()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def f(x: Any) -> Any:
        from imported_late import SCALE

        return x * SCALE

    compiled = tg.compile(f)
    x = tg.tensor([1.0, 2.0])
    for _ in range(3):
        assert compiled(x).tolist() == [2.0, 4.0]
    assert compiled.cache_info().hits == 2
    monkeypatch.setattr(sys.modules["imported_late"], "SCALE", 5)
    assert compiled(x).tolist() == [5.0, 10.0]
