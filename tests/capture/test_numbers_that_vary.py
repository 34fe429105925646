"""Numbers among the arguments that are others at each call: inputs of a trace, not constants.

Each function is called by itself and compiled with a sequence of numbers; results and gradients are
the same bits or within rounding, plain Python numbers stay plain, and as many captures are made as
the number of paths and of values that Python reads asks for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tracegrad as tg
from tracegrad.tracer.stand_in_rules import telling
from tracegrad.tracer.symbolic import is_symbolic

F = tg.nn.functional
RATES = (0.1, 0.2, 0.3, 0.7, 0.05, 0.1, 1.5, 0.33)


def vector() -> tg.Tensor:
    return tg.arange(6.0) / 3


def leaves_of(result: Any) -> tuple[Any, ...]:
    return result if type(result) is tuple else (result,)


def same(got: Any, want: Any) -> None:
    for a, b in zip(leaves_of(got), leaves_of(want), strict=True):
        assert type(a) is type(b)
        if isinstance(b, tg.Tensor):
            assert (a.dtype, a.shape, a.is_contiguous()) == (b.dtype, b.shape, b.is_contiguous())
            np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=1e-6, atol=1e-7)
        else:
            assert a == b or (a != a and b != b)


def replayed(fn: Callable[..., Any], calls: Any, captures: int | None = None) -> Any:
    """Call `fn` compiled and as it is with each of the arguments after a vector."""
    compiled = tg.compile(fn, wait=True)
    for s in calls:
        same(compiled(vector(), s), fn(vector(), s))
    if captures is not None:
        assert compiled.cache_info().misses == captures, compiled.explain()
    return compiled


def in_place(x: tg.Tensor, s: float) -> tg.Tensor:
    y = x.clone()
    y *= s
    y += s
    y -= s / 2
    y /= s + 1
    return y.add_(x, alpha=-s)


def assigned(x: tg.Tensor, s: float) -> tg.Tensor:
    y = x.clone()
    y[1:3] = s
    y[4].fill_(-s)
    return y


WIDENED: dict[str, Callable[[tg.Tensor, float], Any]] = {
    "product": lambda x, s: (x * s, s * x),
    "difference": lambda x, s: (x - s, s - x),
    "quotient": lambda x, s: (x / s, s / x),
    "in place": in_place,
    "assigned": assigned,
    "functions": lambda x, s: (tg.mul(x, s), tg.add(x, x, alpha=s), x.sub(x, alpha=s)),
    "clamp": lambda x, s: (x.clamp(-s, s), tg.clamp(x, min=s)),
    "where": lambda x, s: tg.where(x > s, x, s),
    "full": lambda x, s: x + tg.full((6,), s),
    "full of a dtype": lambda x, s: tg.full((2, 3), s, dtype=tg.float64),
    "tensor": lambda x, s: x * tg.tensor(s) + tg.tensor(s, dtype=tg.float64),
    "comparisons": lambda x, s: (x < s, s <= x, x == s),
    "double": lambda x, s: x.double() * s,
    "one number": lambda x, s: x.sum() * s,
    "expressions": lambda x, s: x * (1 - s) ** 2 + (s // 0.3) - s % 0.3 + x * -s + abs(-s) + (+s),
    "softmax": lambda x, s: tg.softmax(x / s, 0),
    "isinstance": lambda x, s: x * s if isinstance(s, float) else x,
    "is None": lambda x, s: x if s is None or s == None else x * s,  # noqa: E711
}


@pytest.mark.parametrize("name", WIDENED)
def test_a_number_becomes_an_input_at_its_second_value(name: str) -> None:
    replayed(WIDENED[name], RATES, captures=2)


PATHS: dict[str, tuple[Callable[[tg.Tensor, float], Any], int]] = {
    "if": (lambda x, s: x * s if s > 0.5 else x + s, 3),
    "max": (lambda x, s: x * max(s, 0.5), 3),
    "chained": (lambda x, s: x * s if 0.15 < s < 0.5 else x, 4),
    "bool": (lambda x, s: x * s if s else x, 2),
    "lerp": (lambda x, s: tg.lerp(x, x * 2, s), 3),
}


@pytest.mark.parametrize("name", PATHS)
def test_a_comparison_of_it_is_a_path(name: str) -> None:
    fn, captures = PATHS[name]
    compiled = replayed(fn, RATES, captures)
    before = compiled.cache_info().misses
    for s in RATES:
        same(compiled(vector(), s), fn(vector(), s))
    assert compiled.cache_info().misses == before
    assert "where: s" in compiled.explain()


def by_text(x: tg.Tensor, s: float) -> tg.Tensor:
    return x * len(f"{s:.3g}")


def by_table(x: tg.Tensor, s: float) -> tg.Tensor:
    return x * {0.1: 1.0, 0.2: 2.0}.get(s, 3.0)


PINNED: dict[str, Callable[[tg.Tensor, float], Any]] = {
    "format": by_text,
    "str": lambda x, s: x * len(str(s)),
    "math": lambda x, s: x * math.exp(-s),
    "table": by_table,
    "int": lambda x, s: x * int(s * 10),
    "round": lambda x, s: x * round(s, 1),
    "numpy": lambda x, s: x * float(np.sqrt(s)),
    "array": lambda x, s: x * tg.from_numpy(np.arange(6, dtype=np.float32) * s),
    "array on the right": lambda x, s: x * tg.from_numpy(s * np.arange(6, dtype=np.float32)),
    "exponent": lambda x, s: x**s,
    "base": lambda x, s: s**x,
    "half": lambda x, s: x.to(tg.bfloat16) * s,
    "integers": lambda x, s: x.long() * s,
    "returned": lambda x, s: (x * s, s),
    "returned expression": lambda x, s: (x * s, s * 2 + 1),
    "method": lambda x, s: x * 2 if s.is_integer() else x * s,
    "json": lambda x, s: x * len(json.dumps(s)),
    "decimal": lambda x, s: x * float(Decimal(s)),
    "type": lambda x, s: x * s if type(s) is float else x,
    "divmod": lambda x, s: x * divmod(s, 0.3)[1],
    "complex": lambda x, s: x * abs((-s) ** 0.5),
}


@pytest.mark.parametrize("name", PINNED)
def test_what_reads_the_value_makes_the_trace_one_for_this_value(name: str) -> None:
    compiled = replayed(PINNED[name], RATES, captures=len(set(RATES)))
    for s in RATES:
        same(compiled(vector(), s), PINNED[name](vector(), s))
    assert compiled.cache_info().misses == len(set(RATES))
    if name in ("format", "math", "exponent"):
        assert "only for this value of s" in compiled.explain()


def test_whole_numbers() -> None:
    def corrected(x: tg.Tensor, step: int) -> tg.Tensor:
        return x * (1 - 0.9**step) / (1 - 0.99**step) + step

    replayed(corrected, range(1, 40), captures=2)
    replayed(lambda x, n: x * n, (1, 2, 3, 2**53 + 1, 2**60, -7, 0), captures=4)
    repeated = replayed(lambda x, n: sum([x] * n), (1, 2, 3, 2, 1), captures=3)
    assert repeated.cache_info().hits == 2

    def turns(x: tg.Tensor, n: int) -> tg.Tensor:
        for _ in range(n):
            x = x * 1.5
        return x

    replayed(turns, (1, 2, 3, 4, 2, 1), captures=4)


def test_special_values() -> None:
    special = (1.0, math.inf, math.nan, -0.0, 1e300, 1e-300, -math.inf)
    replayed(lambda x, s: x * s, special, captures=2)
    replayed(lambda x, s: x * s if s == s else x, special, captures=3)


@pytest.mark.parametrize("value", [0.0, -0.0])
def test_an_error_is_that_of_the_function(value: float) -> None:
    fn = tg.compile(lambda x, s: x * (1 / s), wait=True)
    for s in (1.0, 2.0, 3.0):
        fn(vector(), s)
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        fn(vector(), value)
    same(fn(vector(), 4.0), vector() * 0.25)
    assert fn.cache_info().hits == 2


def test_a_type_of_another_number_is_another_kind_of_call() -> None:
    fn = tg.compile(lambda x, s: x.long() * s if isinstance(s, int) else x * s, wait=True)
    for s in (0.5, 0.25, 3, 4, True, 0.75, 5):
        want = vector().long() * s if isinstance(s, int) else vector() * s
        same(fn(vector(), s), want)


def test_keywords_and_several_numbers() -> None:
    def f(x: tg.Tensor, rate: float = 0.5, *more: float, decay: float = 0.9) -> tg.Tensor:
        return x * rate - decay * x + sum(more)

    compiled = tg.compile(f, wait=True)
    for k in range(6):
        same(compiled(vector(), rate=0.1 * k, decay=1.0), f(vector(), rate=0.1 * k, decay=1.0))
    assert compiled.cache_info().misses == 2
    for k in range(6):
        args = (0.1 * k, 1.0, 2.0 * k)
        same(compiled(vector(), *args, decay=0.1 * k), f(vector(), *args, decay=0.1 * k))
    assert compiled.cache_info().misses == 4
    assert "in_rate = number(leaves[1])" in compiled.launcher()


@dataclass
class Settings:
    rate: float


def test_numbers_in_containers_stay_constants() -> None:
    def f(x: tg.Tensor, settings: Settings, pair: tuple[float, int]) -> tg.Tensor:
        return x * settings.rate + pair[0] * pair[1]

    compiled = tg.compile(f, wait=True)
    for k in range(4):
        args = Settings(0.5 * k), (1.0 + k, k)
        same(compiled(vector(), *args), f(vector(), *args))
    assert compiled.cache_info().misses == 4


def test_a_training_step_with_a_rate_that_changes_each_time() -> None:
    def step(w: tg.Tensor, x: tg.Tensor, rate: float) -> tg.Tensor:
        loss = ((x * w).sum() - 1) ** 2
        loss.backward()
        with tg.no_grad():
            w -= rate * w.grad
        w.grad = None
        return loss

    compiled = tg.compile(step, wait=True)
    mine, theirs = (tg.ones(6, requires_grad=True) for _ in range(2))
    for k in range(1, 30):
        same(compiled(mine, vector(), 0.1 / k), step(theirs, vector(), 0.1 / k))
        same(mine, theirs)
    assert compiled.cache_info().misses == 2
    assert compiled.cache_info().hits == 27


def test_gradients_to_second_order() -> None:
    def f(x: tg.Tensor, s: float) -> tg.Tensor:
        return (x.sin() * s + (x * s).exp() * (1 + s)).sum()

    compiled = tg.compile(f, wait=True)
    for s in RATES:
        found = []
        for fn in (compiled, f):
            x = vector().double().requires_grad_()
            (first,) = tg.autograd.grad(fn(x, s), x, create_graph=True)
            (second,) = tg.autograd.grad((first * first).sum(), x)
            found.append((first.detach(), second))
        same(*found)
    assert compiled.cache_info().misses == 2


def test_beside_the_compiler() -> None:
    fn = tg.compile(lambda x, s: x * s + (1 - s), wait=False)
    for s in (0.1, 0.2, 0.3):
        same(fn(vector(), s), vector() * s + (1 - s))
    assert fn.wait(60)
    for s in (0.4, 0.5, 0.1):
        same(fn(vector(), s), vector() * s + (1 - s))
    assert fn.cache_info().misses == 2
    assert fn.cache_info().hits == 3


def test_inside_transforms_and_other_compiled_functions() -> None:
    inner = tg.compile(lambda x, s: x * s, wait=True)

    def f(x: tg.Tensor, s: float) -> Any:
        mapped = tg.func.vmap(lambda row: row * s)(tg.stack([x, x + 1]))
        return inner(x, s), mapped, tg.func.grad(lambda y: (y * y * s).sum())(x)

    replayed(f, RATES, captures=2)


def test_kept_by_the_user_it_is_a_number() -> None:
    kept: list[Any] = []

    def f(x: tg.Tensor, s: float) -> tg.Tensor:
        if s > 1:
            kept.append(s * 2)
        return x * s

    compiled = tg.compile(f, wait=True)
    with pytest.warns(tg.EagerWarning, match="list kept changed"):
        for s in (0.1, 0.2, 1.5, 0.3):
            same(compiled(vector(), s), f(vector(), s))
    (mine, theirs) = kept
    assert mine == theirs == 3.0 and isinstance(mine, float) and f"{mine:.1f}" == "3.0"
    assert {mine: 1}[3.0] == 1 and json.loads(json.dumps(float(mine))) == 3.0


PROGRAM = st.lists(
    st.sampled_from(["x * s", "x + s", "s - x", "x / (s + 2)", "x * (s * t)", "x - t", "x * s if s > t else x",
                     "(x * max(s, t)).tanh()", "x * round(t, 2)", "(x + s).sin()"]),
    min_size=1, max_size=5,
)  # fmt: skip
NUMBER = st.floats(-1.5, 1.5, width=32).map(lambda v: round(v, 3))


@settings(deadline=None, max_examples=25)
@given(PROGRAM, st.lists(st.tuples(NUMBER, NUMBER), min_size=3, max_size=6))
def test_random_programs(lines: list[str], calls: list[tuple[float, float]]) -> None:
    body = "".join(f"    x = {line}\n" for line in lines)
    space: dict[str, Any] = {}
    exec(f"def f(x, s, t):\n{body}    return x\n", space)
    f = space["f"]
    compiled = tg.compile(f, wait=True)
    for s, t in calls:
        same(compiled(vector(), s, t), f(vector(), s, t))


SENTINEL = 0.25


def asks_identity(x: tg.Tensor, s: float) -> tg.Tensor:
    return x * 100 if s is SENTINEL else x * s


def catches(x: tg.Tensor, s: float) -> tg.Tensor:
    try:
        return x * len(json.dumps(s))
    except TypeError:
        return x * 1000


def catches_all(x: tg.Tensor, s: float) -> tg.Tensor:
    try:
        return x * float(Decimal(s))
    except:  # noqa: E722
        return x * 1000


def asks_in_a_branch(x: tg.Tensor, s: float) -> tg.Tensor:
    return x * asks_identity(x, s) if s > 0.6 else x * s


@pytest.mark.parametrize("fn", [asks_identity, catches, catches_all, asks_in_a_branch])
def test_code_that_could_tell_a_stand_in_gets_none(fn: Callable[..., Any]) -> None:
    compiled = replayed(fn, (0.1, SENTINEL, 0.3, 0.7, 0.8, SENTINEL, 0.1, 0.9))
    assert "number(" not in compiled.launcher()


def test_where_it_is_too_late_to_begin_anew_an_error_says_so() -> None:
    class Table:
        pass

    table = Table()
    table.entries = {"last": asks_identity}  # type: ignore[attr-defined]

    def step(w: tg.Tensor, s: float) -> tg.Tensor:
        w.mul_(s)
        return table.entries["last"](w, s) if s > 0.6 else w * s  # type: ignore[attr-defined]

    compiled = tg.compile(step, wait=True)
    w = vector()
    for s in (0.5, 0.4, 0.3):
        compiled(w, s)
    with pytest.raises(tg.errors.CaptureError, match="could tell them from numbers: asks_identity"):
        compiled(w, 0.7)


@pytest.mark.parametrize(("code", "tells"), [
    ("with x: return 1", False), ("with open(x) as f: return 1", True),
    ("try: return x\n finally: print(1)", False), ("try: return x\n finally: return 1", True),
    ("try: return x\n except: return 1", True), ("try: return x\n except TypeError: return 1", True),
    ("return x is None or x is not None", False), ("return x is f", True), ("return type(x)", True),
    ("if x is True: return [y for y in x if y is not None]", False), ("return isinstance(x, float)", False),
])  # fmt: skip
def test_what_could_tell_a_stand_in(code: str, tells: bool) -> None:
    space: dict[str, Any] = {}
    exec(f"def f(x):\n {code}\n", space)
    assert bool(telling(space["f"], ())) is tells


def test_parameters_of_operations_hold_plain_numbers() -> None:
    def f(x: tg.Tensor, k: int) -> Any:
        return x.roll(k), x.reshape(2, 3).tril(k), x.reshape(2, 3).sum(k % 2), F.pad(x, (k, 1))

    compiled = replayed(f, (0, 1, 0, 1, 2))
    params = [n.params for t in compiled._order for n in t.capture.graph.nodes]
    listed = [x for p in params for v in p.values() for x in (v if type(v) is tuple else (v,))]
    assert listed and not any(map(is_symbolic, listed))


def test_effects_leave_plain_numbers_behind() -> None:
    optimizer = tg.optim.SGD([tg.ones(2, requires_grad=True)], lr=0.5)

    def f(x: tg.Tensor, rate: float) -> tg.Tensor:
        optimizer.param_groups[0]["lr"] = rate
        return x * rate

    compiled = tg.compile(f)
    with pytest.warns(tg.EagerWarning):
        for rate in (0.1, 0.2, 0.3):
            same(compiled(vector(), rate), vector() * rate)
            assert type(optimizer.param_groups[0]["lr"]) is float
            assert optimizer.param_groups[0]["lr"] == rate
    assert compiled.cache_info().misses == 2
