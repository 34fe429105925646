"""Side effects of compiled functions: never lost unawares, repeated by `tracegrad.print` and
`debug_callback`, or given up by wish (`side_effects="drop"`).

Each program and its compiled twin are called on the same sequence; what they leave outside is equal.
"""

from __future__ import annotations

import collections
import logging
import random
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import tracegrad as tg

LOG: list[Any] = []
STATE: dict[str, Any] = {"count": 0, "last": None}
TOTAL = 0


class Meter:
    def __init__(self) -> None:
        self.count = 0
        self.seen: list[int] = []


METER = Meter()


def appends(x: Any) -> Any:
    LOG.append(tuple(x.shape))
    return x * 2


def counts(x: Any) -> Any:
    STATE["count"] += 1
    return x * 2


def sets_a_global(x: Any) -> Any:
    global TOTAL
    TOTAL += 1
    return x + 1


def sets_an_attribute(x: Any) -> Any:
    METER.count += 1
    METER.seen.append(METER.count)
    return x * METER.count


def keeps_a_tensor(x: Any) -> Any:
    STATE["last"] = x * 2
    return x * 3


def logs(x: Any) -> Any:
    logging.getLogger("tracegrad.tests").warning("shape %s", tuple(x.shape))
    return x * 2


def writes_a_file(x: Any) -> Any:
    with PATH.open("a") as file:
        file.write("x")
    return x * 2


def draws(x: Any) -> Any:
    return x * random.random()


def draws_of_numpy(x: Any) -> Any:
    return x * float(np.random.rand())  # noqa: NPY002


def asks_the_clock(x: Any) -> Any:
    return x * (time.perf_counter() > 0)


def prints(x: Any) -> Any:
    print("shape", tuple(x.shape))
    return x * 2


PATH = Path()
PROGRAMS = (
    appends, counts, sets_a_global, sets_an_attribute, keeps_a_tensor, logs, writes_a_file, draws,
    draws_of_numpy, asks_the_clock, prints,
)  # fmt: skip


def outside() -> Any:
    """All that the programs change, as plain values."""
    last = STATE["last"]
    return (
        list(LOG), STATE["count"], None if last is None else last.tolist(), TOTAL, METER.count,
        list(METER.seen), PATH.read_text() if PATH.is_file() else "",
    )  # fmt: skip


def start(folder: Path) -> None:
    global PATH, TOTAL
    LOG.clear()
    METER.__init__()  # type: ignore[misc]
    STATE.update(count=0, last=None)
    PATH, TOTAL = folder / "written", 0
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    PATH.unlink(missing_ok=True)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)
def test_effects_are_those_of_the_function(
    program: Any, tmp_path: Path, capsys: Any, caplog: Any
) -> None:
    found = []
    for fn in (program, tg.compile(program)):
        start(tmp_path)
        caplog.clear()
        results = []
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for n in (2, 2, 3, 2):
                results.append(fn(tg.ones(n)).tolist())
        found.append((results, outside(), capsys.readouterr().out, len(caplog.records)))
    assert found[0] == found[1]
    eager = [w for w in told if w.category is tg.EagerWarning]
    assert len(eager) == 1 and program.__name__ in str(eager[0].message)
    assert f"{Path(__file__).name}:" in fn.explain()  # the line is told


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)
def test_effects_are_dropped_by_wish(program: Any, tmp_path: Path, capsys: Any) -> None:
    start(tmp_path)
    compiled = tg.compile(program, side_effects="drop")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = compiled(tg.ones(2))
        after = outside()
        capsys.readouterr()
        for _ in range(3):
            assert compiled(tg.ones(2)).tolist() == first.tolist()
    assert outside() == after and not capsys.readouterr().out
    info = compiled.cache_info()
    assert (info.hits, info.misses, info.eager_calls) == (3, 1, 0), compiled.explain()


def test_dropping_effects_still_sees_what_others_change(tmp_path: Path) -> None:
    start(tmp_path)
    scale = [2.0]

    @tg.compile(side_effects="drop")
    def f(x: Any) -> Any:
        LOG.append("called")
        return x * scale[0]

    assert f(tg.ones(1)).tolist() == [2.0] == f(tg.ones(1)).tolist()
    scale[0] = 3.0
    assert f(tg.ones(1)).tolist() == [3.0] == f(tg.ones(1)).tolist()
    assert LOG == ["called"] * 2


def test_strict_raises_with_all_reasons(tmp_path: Path) -> None:
    start(tmp_path)

    @tg.compile(strict=True)
    def f(x: Any) -> Any:
        LOG.append(1)
        print("x")
        return x * 2

    for _ in range(2):
        with pytest.raises(
            tg.errors.CaptureError, match=r"(?s)f was run.*print.*LOG|f was run.*LOG.*print"
        ):
            f(tg.ones(2))
    assert tg.compile(lambda x: x * 2, strict=True)(tg.ones(1)).tolist() == [2.0]


# ---- effects that are repeated ------------------------------------------------------------------


def test_print_shows_the_values_of_each_call(capsys: Any) -> None:
    def f(x: Any) -> Any:
        tg.print("before", x, sep=": ")
        y = x * 2
        tg.print({"y": y, "n": 3}, [y.sum()], end="!\n")
        return y + 1

    compiled = tg.compile(f)
    for k in range(4):
        x = tg.tensor([float(k), 1.0])
        f(x)
        want = capsys.readouterr().out
        compiled(x)
        assert capsys.readouterr().out == want and "before: tensor([" in want
    assert compiled.cache_info().hits == 3


def test_callbacks_come_in_order_and_see_values_before_writes() -> None:
    seen: list[Any] = []

    def see(*args: Any) -> None:
        seen.append([a.tolist() if isinstance(a, tg.Tensor) else a for a in args])

    def f(x: Any, total: Any) -> Any:
        tg.debug_callback(see, "start", total)
        total.add_(x)
        tg.debug_callback(see, "added", total, 7)
        total.mul_(2)
        return x.exp()

    compiled = tg.compile(f)
    for fn in (f, compiled):
        seen.append(fn)
        total = tg.zeros(2)
        for k in range(4):
            fn(tg.full((2,), float(k)), total)
        seen.append(total.tolist())
    half = len(seen) // 2
    assert seen[1:half] == seen[half + 1 :]
    assert compiled.cache_info().hits == 3


def test_what_a_callback_does_to_its_tensors_stays_there() -> None:
    kept: list[Any] = []

    def spoil(x: Any) -> None:
        kept.append(x.requires_grad)
        x.zero_()

    def f(x: Any) -> Any:
        y = x * 2
        tg.debug_callback(spoil, y)
        tg.debug_callback(spoil, x)
        return y.sum()

    compiled = tg.compile(f)
    for _ in range(3):
        x = tg.ones(2, requires_grad=True)
        y = compiled(x)
        y.backward()
        assert y.item() == 4.0 and x.tolist() == [1.0, 1.0] and x.grad.tolist() == [2.0, 2.0]
    assert kept == [False] * 6 and compiled.cache_info().hits == 2


def test_a_callback_on_one_path_only(capsys: Any) -> None:
    def f(x: Any) -> Any:
        if x.sum() > 0:
            tg.print("positive", x)
        return x * 2

    compiled = tg.compile(f)
    for value in (1.0, -1.0, 2.0, -2.0, 3.0):
        f(tg.full((2,), value))
        want = capsys.readouterr().out
        compiled(tg.full((2,), value))
        assert capsys.readouterr().out == want
    assert compiled.cache_info().hits == 3


def test_a_callback_that_raises() -> None:
    def refuse(x: Any) -> None:
        if x.sum() > 3:
            raise ValueError("too much")

    def f(x: Any, total: Any) -> Any:
        tg.debug_callback(refuse, x)
        total.add_(x)
        return x * 2

    compiled = tg.compile(f)
    total = tg.zeros(2)
    compiled(tg.ones(2), total)
    compiled(tg.ones(2), total)
    with pytest.raises(ValueError, match="too much"):
        compiled(tg.full((2,), 5.0), total)
    assert total.tolist() == [2.0, 2.0]
    assert compiled(tg.ones(2), total).tolist() == [2.0, 2.0]


def test_callbacks_in_transforms() -> None:
    seen: list[Any] = []
    slope = tg.func.grad(lambda x: (tg.debug_callback(lambda y: seen.append(y.item()), x), x**2)[1])
    assert slope(tg.tensor(3.0)).item() == 6.0 and seen == [3.0]
    with pytest.raises(NotImplementedError, match="inside vmap a tensor stands for many values"):
        tg.vmap(lambda x: (tg.print(x), x)[1])(tg.ones(3))
    with pytest.raises(TypeError, match="fn must be callable, got int"):
        tg.debug_callback(3)


def test_gradients_inside_and_callbacks() -> None:
    seen: list[float] = []

    def f(x: Any) -> Any:
        (slope,) = tg.autograd.grad((x**3).sum(), x)
        tg.debug_callback(lambda s: seen.append(s.sum().item()), slope)
        return slope * 2

    compiled = tg.compile(f)
    for k in range(4):
        compiled(tg.full((2,), float(k), requires_grad=True))
    assert seen == [6.0 * k * k for k in range(4)] and compiled.cache_info().hits == 3


# ---- containers in and out ----------------------------------------------------------------------


@dataclass
class Batch:
    x: Any
    scale: float = 1.0
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Output:
    loss: Any
    parts: tuple[Any, ...]
    name: str = "out"


class Pair(NamedTuple):
    first: Any
    second: Any


def test_dataclasses_in_and_out() -> None:
    def f(batch: Batch) -> Output:
        y = batch.x * batch.scale + batch.more["bias"]
        return Output(y.sum(), (y, batch.x), f"scaled by {batch.scale}")

    compiled = tg.compile(f)
    for k, scale in enumerate((1.0, 1.0, 2.0, 1.0, 2.0)):
        batch = Batch(tg.full((2,), float(k)), scale, {"bias": tg.ones(2) * k})
        got, want = compiled(batch), f(batch)
        assert type(got) is Output and got.name == want.name
        assert got.loss.item() == want.loss.item() and got.parts[1] is batch.x
        assert got.parts[0].tolist() == want.parts[0].tolist()
    assert compiled.cache_info().traces == 2 and compiled.cache_info().hits == 3


def test_a_dataclass_that_the_function_changes() -> None:
    def f(batch: Batch) -> Any:
        batch.scale = batch.scale * 2
        return batch.x * batch.scale

    compiled = tg.compile(f)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tg.EagerWarning)
        for fn in (f, compiled, compiled):
            batch = Batch(tg.ones(2))
            assert [fn(batch).tolist() for _ in range(3)] == [[2.0] * 2, [4.0] * 2, [8.0] * 2]
            assert batch.scale == 8.0


def test_other_containers() -> None:
    def f(pair: Pair, listed: list[Any], named: dict[str, Any]) -> Any:
        return {
            "pair": Pair(pair.second, pair.first * 2), "none": None, "number": 3, "text": "abc",
            "nested": [(listed[0], named["a"] + 1), []], "twice": [pair.first] * 2,
        }  # fmt: skip

    compiled = tg.compile(f)
    for k in range(3):
        a, b, c, d = (tg.full((2,), float(k + i)) for i in range(4))
        got = compiled(Pair(a, b), [c], {"a": d})
        assert type(got["pair"]) is Pair and got["pair"].first is b
        assert got["pair"].second.tolist() == [2.0 * k] * 2
        assert (got["none"], got["number"], got["text"]) == (None, 3, "abc")
        assert got["nested"][0][0] is c and got["nested"][0][1].tolist() == [k + 4.0] * 2
        assert got["nested"][1] == [] and got["twice"][0] is a is got["twice"][1]
    assert compiled.cache_info().hits == 2


@pytest.mark.parametrize("make", [
    lambda x: {1, 2}, lambda x: np.ones(2), lambda x: collections.deque([x]), lambda x: object,
    lambda x: Meter(), lambda x: (x * 2).numpy(), lambda x: iter([x]),
], ids=["set", "array", "deque", "class", "object", "numpy", "iterator"])  # fmt: skip
def test_other_results_are_made_anew_at_each_call(make: Callable[[Any], Any]) -> None:
    compiled = tg.compile(make)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tg.EagerWarning)
        first, second = compiled(tg.ones(2)), compiled(tg.ones(2))
    assert type(first) is type(make(tg.ones(2))) is type(second)
    assert first is not second or isinstance(first, type)
