"""Numbers that vary are replaced by stand-ins: that no program can tell, and that none gets out.

Each program is run with several values, eagerly and compiled; results are the same to the bit, of the
same types. Most of them were found by trying to make a compiled function silently wrong.
"""

from __future__ import annotations

import contextlib
import json
import marshal
import operator
import pickle
import typing
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tracegrad as tg
from tracegrad.tracer.symbolic import is_symbolic

SOME = (0.1, 0.2, 0.3, 0.1, 0.7)
WHOLE = (1, 2, 3, 4, 5, 1, 8)
NAN = float("nan")
KIND, LAST, NEGATIVE = type, 0.3, -2.0


def same(a: Any, b: Any) -> None:
    assert type(a) is type(b), (a, b)
    if isinstance(a, tg.Tensor):
        assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
        got, want = a.detach().numpy(), b.detach().numpy()
        assert np.array_equal(np.isnan(got), np.isnan(want))
        np.testing.assert_array_max_ulp(np.nan_to_num(got), np.nan_to_num(want), 2)
    elif isinstance(a, (tuple, list)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif isinstance(a, dict):
        same(list(a.keys()), list(b.keys()))
        same(list(a.values()), list(b.values()))
    else:
        assert a == b or a != a


def check(fn: Callable[..., Any], values: tuple[Any, ...]) -> Any:
    compiled = tg.compile(fn, wait=True)
    for _ in range(2):
        for v in values:
            same(compiled(tg.arange(1.0, 4.0), v), fn(tg.arange(1.0, 4.0), v))
    return compiled


class Forgiving:
    def __enter__(self) -> Forgiving:
        return self

    def __exit__(self, *error: Any) -> bool:
        return True


def suppressing(x: tg.Tensor, s: float) -> tg.Tensor:
    y = x * s
    with contextlib.suppress(TypeError):
        y = y + len(json.dumps(s))
    return y


def forgiving(x: tg.Tensor, s: float) -> tg.Tensor:
    y = x * s
    with Forgiving():
        y = y + len(marshal.dumps(s))
    return y  # noqa: RET504


def finally_returns(x: tg.Tensor, s: float) -> tg.Tensor:
    y = x * s
    try:
        y = y + len(marshal.dumps(s))
    finally:
        return y  # noqa: B012


def in_numpy(x: tg.Tensor, s: float) -> tg.Tensor:
    return tg.from_numpy(np.where(np.arange(3, dtype=np.float32) > 1, s, np.float32(1)))


def through_an_attribute(x: tg.Tensor, s: float) -> tg.Tensor:
    return x * len(HOLDER.dumps(s))


class Holder:
    dumps = staticmethod(json.dumps)
    kind = type


HOLDER = Holder()

FLOATS: dict[str, Callable[..., Any]] = {
    "suppress": suppressing,
    "own context": forgiving,
    "finally": finally_returns,
    "default of json": lambda x, s: x * len(json.dumps({"a": s}, default=str)),
    "hasattr": lambda x, s: x * 2 if hasattr(s, "__array__") else x * s,
    "hasattr complex": lambda x, s: x * 2 if hasattr(s, "__complex__") else x * s,
    "hasattr plain": lambda x, s: x * 2 if hasattr(s, "plain") or hasattr(s, "shown") else x * s,
    "protocol": lambda x, s: x * 2 if isinstance(s, typing.SupportsComplex) else x * s,
    "where of numpy": in_numpy,
    "type under another name": lambda x, s: x * 2 if KIND(s) == float else x * s,  # noqa: E721
    "name of the type": lambda x, s: (x * s, KIND(s).__name__),
    "table of types": lambda x, s: x * {float: 2}.get(KIND(s), 9),
    "operator.is_": lambda x, s: x * 2 if operator.is_(s, LAST) else x * s,
    "pickle": lambda x, s: x * len(pickle.dumps(s)),
    "marshal": lambda x, s: x * len(marshal.dumps(s)),
    "attribute": through_an_attribute,
    "negative power": lambda x, s: x * NEGATIVE**2 * s**2,
    "keys of results": lambda x, s: {s: x, "a": [{s: x * s}]},
    "attributes of numbers": lambda x, s: x * s.real + s.is_integer() + s.hex().count("0"),
}
INTEGERS: dict[str, Callable[..., Any]] = {
    "negative base": lambda x, n: x * (-1) ** n,
    "negative float base": lambda x, n: x * (-0.5) ** n + 1,
    "negative global base": lambda x, n: x * NEGATIVE**n,
    "condition on a power": lambda x, n: x if (-1) ** n > 0 else x * n,
    "method of a constant": lambda x, n: x * 2 if any(map((3).__eq__, [n])) else x * n,
    "method of it": lambda x, n: x * (n.__mul__(2.0) == 2.0 * n) + 1,
    "filter": lambda x, n: x * len(list(filter((3).__eq__, [n, 3, 4]))),
    "bits": lambda x, n: x * (n & 1) + (n | 2) - (n ^ 5) + (n << 1) - (n >> 1) + ~n + (7 & n),
    "keys": lambda x, n: x * len(json.dumps({n: 1}, skipkeys=True)),
    "in a range": lambda x, n: x * (n in range(10**4)),
    "keys of results": lambda x, n: {n: x},
}


@pytest.mark.parametrize("name", FLOATS)
def test_floats(name: str) -> None:
    check(FLOATS[name], SOME)


@pytest.mark.parametrize("name", INTEGERS)
def test_integers(name: str) -> None:
    check(INTEGERS[name], WHOLE)


def test_nan_is_found_by_its_identity() -> None:
    check(lambda x, s: x * 2 if s in (NAN, 1.0) else x * s, (0.1, 0.2, NAN, 1.0, 0.5, NAN))


def test_bits_after_a_write() -> None:
    def step(x: tg.Tensor, n: int) -> tg.Tensor:
        x.add_(1)
        return x * (n & 1)

    check(step, WHOLE)


def helper(n: int) -> int:
    try:
        return {1: 2}[n]
    except KeyError:
        return 5


def test_a_helper_that_catches_and_first_runs_later() -> None:
    def train(w: tg.Tensor, x: tg.Tensor, step: int) -> tg.Tensor:
        loss = ((x * w).sum() - 1) ** 2
        loss.backward()
        with tg.no_grad():
            w -= 0.01 / step * w.grad
        w.grad = None
        return loss * helper(step) if step % 5 == 0 else loss

    compiled = tg.compile(train, wait=True)
    ours, theirs = (tg.ones(2, requires_grad=True) for _ in "ab")
    for k in range(1, 12):
        same(compiled(ours, tg.ones(2), k), train(theirs, tg.ones(2), k))
    same(ours, theirs)


def test_what_is_thrown_holds_numbers() -> None:
    def f(x: tg.Tensor, s: float) -> tg.Tensor:
        if s > 0.25:
            raise ValueError("bad", s, [s])
        return x * s

    compiled = tg.compile(f, wait=True)
    for s in (0.1, 0.2, 0.15):
        compiled(tg.ones(2), s)
    for s in (0.3, 0.4):
        with pytest.raises(ValueError, match="bad") as caught:
            compiled(tg.ones(2), s)
        assert caught.value.args == ("bad", s, [s])
        assert not is_symbolic(caught.value.args[1])
        assert not is_symbolic(caught.value.args[2][0])


@pytest.mark.parametrize("side_effects", ["eager", "drop"])
def test_effects_in_a_branch_that_comes_later_hold_numbers(side_effects: str) -> None:
    kept: list[Any] = []
    table: dict[Any, Any] = {}

    def f(x: tg.Tensor, s: float) -> tg.Tensor:
        if s > 0.25:
            kept.append((s, [s]))
            table["a"] = s
        return x * s

    options: Any = {} if side_effects == "eager" else {"side_effects": side_effects}
    compiled = tg.compile(f, wait=True, **options)
    with contextlib.ExitStack() as stack:
        if side_effects == "eager":
            stack.enter_context(pytest.warns(tg.EagerWarning))
        for s in (0.1, 0.2, 0.15, 0.3, 0.4):
            same(compiled(tg.ones(2), s), tg.ones(2) * s)
    assert kept
    assert not any(is_symbolic(a) or is_symbolic(b[0]) for a, b in kept)
    assert not is_symbolic(table["a"])


def test_callbacks_get_numbers() -> None:
    seen: list[Any] = []

    def f(x: tg.Tensor, s: float) -> tg.Tensor:
        tg.debug_callback(lambda y, r: seen.append((y.tolist(), r)), x, s)
        return x * s

    compiled = tg.compile(f, wait=True)
    for s in (*SOME, *SOME):
        compiled(tg.ones(1), s)
    assert [r for _, r in seen] == [*SOME, *SOME]
    assert all(type(r) is float for _, r in seen)


def test_some_numbers_pinned_and_others_free() -> None:
    import math

    compiled = tg.compile(lambda x, s, t: x * math.exp(s) * t, wait=True)
    for k in range(40):
        s, t = 0.1 * (1 + k % 2), float(k + 1)
        same(compiled(tg.ones(2), s, t), tg.ones(2) * math.exp(s) * t)
    assert compiled.cache_info().misses <= 4


def test_a_long_chain_of_comparisons_pins() -> None:
    compiled = check(lambda x, n: x * (n in range(10**4)), (9_000, 9_001, 12, 20_000))
    assert all(len(t.capture.conditions) <= 200 for t in compiled._order)


# ---- what is made in the function -----------------------------------------------------------------


def test_a_module_that_it_makes_is_another_one_at_each_call() -> None:
    compiled = tg.compile(lambda x: tg.nn.Linear(2, 2), wait=True)
    with pytest.warns(tg.EagerWarning, match="it returns a Linear that it has made"):
        first, second = compiled(tg.ones(2)), compiled(tg.ones(2))
        assert first is not second
        tg.manual_seed(0)
        got = [compiled(tg.ones(2)).weight.sum().item() for _ in range(3)]
    tg.manual_seed(0)
    assert got == [tg.nn.Linear(2, 2).weight.sum().item() for _ in range(3)]


LEAVES: dict[str, Callable[..., Any]] = {
    "linspace": lambda x: tg.linspace(0.0, 1.0, steps=3, requires_grad=True),
    "ones": lambda x: tg.ones(2, requires_grad=True),
    "tensor": lambda x: tg.tensor([1.0, 2.0], requires_grad=True),
    "requires_grad_": lambda x: tg.zeros(2).requires_grad_(),
    "beside": lambda x: (x * 2, tg.ones(2, requires_grad=True)),
}


@pytest.mark.parametrize("name", LEAVES)
def test_a_leaf_that_it_makes_requires_grad_at_each_call(name: str) -> None:
    compiled = tg.compile(LEAVES[name], wait=True)
    with pytest.warns(tg.EagerWarning, match="a result is a leaf that requires grad"):
        for _ in range(3):
            made = compiled(tg.ones(2))
            leaf = made[1] if isinstance(made, tuple) else made
            assert leaf.requires_grad
            assert leaf.is_leaf
            (leaf * 2).sum().backward()
            assert leaf.grad is not None


def test_a_history_of_which_a_part_was_let_go_of() -> None:
    def f(x: tg.Tensor, v: tg.Tensor) -> tg.Tensor:
        a = x.sin()
        a.sum().backward()
        return a.sum() + (v * v).sum()

    compiled = tg.compile(f, wait=True)
    with pytest.warns(tg.EagerWarning, match="a part of a result's history"):
        for _ in range(3):
            x, v = (tg.ones(2, requires_grad=True) for _ in "ab")
            (g,) = tg.autograd.grad(compiled(x, v), v)
            assert g.tolist() == [2.0, 2.0]


def test_sizes_in_slices_of_graphs_of_other_ranks() -> None:
    def f(x: tg.Tensor, y: tg.Tensor) -> tg.Tensor:
        x = x * 1.5 + y
        x = (x.expand_as(tg.ones(3, *x.shape)) * 1.0).squeeze()
        return x[x.shape[0] // 2 :] * 1

    compiled = tg.compile(f, wait=True)
    for m, n in [(2, 6), (1, 6), (4, 6), (1, 1), (5, 6), (3, 6)]:
        a, b = tg.ones(m, n), tg.ones(*((m, n) if m % 2 else (1, n)))
        same(compiled(a, b), f(a, b))
    assert "failed on it" not in compiled.explain()


@pytest.mark.parametrize(("name", "why"), [
    ("suppress", "contextlib"), ("where of numpy", "numpy.where"), ("operator.is_", "operator.is_"),
    ("type under another name", "type"), ("attribute", "json.dumps of a library"),
    ("hasattr", "asks for special methods"), ("protocol", "typing, a library"),
])  # fmt: skip
def test_explain_says_why_numbers_are_not_replaced(name: str, why: str) -> None:
    compiled = check(FLOATS[name], SOME)
    assert f"could be told from it: {why}" in compiled.explain() or (
        "could be told from it: " in compiled.explain() and why in compiled.explain()
    )


def test_each_code_names_attributes_of_a_module_of_its_own() -> None:
    from tracegrad.tracer.stand_in_rules import telling

    def inner(s: float) -> Any:
        return np.where(True, s, 1)

    def outer(x: tg.Tensor, s: float) -> tg.Tensor:
        return x * float(np.sqrt(s)) * float(inner(s))

    assert telling(outer, ()) == "numpy.where"
