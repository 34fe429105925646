"""Sequences of calls: what makes a new trace, what is replayed, and that both are right."""

from __future__ import annotations

import collections
import re
import warnings
from typing import Any

import numpy as np
import pytest
from beside import assert_equal, assert_same

import tracegrad as tg
from tracegrad.tracer import capturing


def chain(x: Any) -> Any:
    return (tg.sin(x) * 2 + x * x).sum()


def leaf(*shape: int, dtype: Any = tg.float32) -> Any:
    return tg.randn(shape, dtype=dtype, requires_grad=True)


def test_the_same_call_is_captured_once() -> None:
    f = assert_same(chain, (leaf(25),), times=4, traces=1)
    assert f.cache_info().hits == 3


def test_shapes_dtypes_and_requires_grad_make_traces() -> None:
    calls = [(leaf(3),), (leaf(3, 2),), (leaf(3, dtype=tg.float64),), (tg.randn(3),), (leaf(0),),
             (leaf(),), (leaf(1, 1),)]  # fmt: skip
    assert_same(chain, *calls, traces=7)


def test_memory_layouts_make_traces() -> None:
    def twice(x: Any) -> Any:
        return x * 2 + x.sum(0)

    base = tg.randn(6, 6)
    assert_same(twice, (base,), (base.T,), (base[::2, ::2],), (base[0:1].expand(6, 6),), traces=4)


def test_unaligned_memory_is_copied() -> None:
    raw = np.zeros(4 * 8 + 1, np.uint8)
    x = tg.from_numpy(raw[1:].view(np.float32))
    x.copy_(tg.arange(8.0))
    f = tg.compile(lambda x: x * 2)
    for _ in range(3):
        assert_equal(f(x), x * 2)


def test_grad_mode_is_part_of_the_key() -> None:
    x = leaf(5)
    f = tg.compile(chain)
    for _ in range(2):
        assert f(x).requires_grad
        with tg.no_grad():
            assert not f(x).requires_grad
        with tg.inference_mode():
            assert not f(x).requires_grad


def test_the_default_dtype_is_part_of_the_key() -> None:
    f = tg.compile(lambda: tg.ones(2) / 3)
    assert f().dtype is tg.float32
    tg.set_default_dtype(tg.float64)
    try:
        assert f().dtype is tg.float64
    finally:
        tg.set_default_dtype(tg.float32)
    assert f().dtype is tg.float32


def scaled(x: Any, k: Any) -> Any:
    return x * k if k is not None else x + 1


@pytest.mark.parametrize(
    "values",
    [(1, 1.0, True), (0.0, -0.0), (2, 3), (float("nan"), float("inf")), (None, 2), (np.float64(2), 2)],
)  # fmt: skip
def test_numbers_go_by_value(values: tuple[Any, ...]) -> None:
    assert_same(scaled, *[(leaf(4), k) for k in values], traces=len(values))


def test_signed_zero_is_not_confused() -> None:
    f = tg.compile(lambda x, k: tg.copysign(x, tg.full((), k)))
    one = tg.ones(1)
    assert [f(one, k).item() for k in (0.0, -0.0, 0.0, -0.0)] == [1.0, -1.0, 1.0, -1.0]


def test_strings_choose_branches() -> None:
    def act(x: Any, name: str) -> Any:
        return {"sin": tg.sin, "cos": tg.cos}[name](x)

    assert_same(act, (leaf(3), "sin"), (leaf(3), "cos"), traces=2)


def test_odd_strings_do_not_break_the_launcher() -> None:
    f = tg.compile(lambda x, s: x + len(s))
    for s in ('"""', "\\", "a\nb", "'"):
        assert_equal(f(tg.ones(2), s), tg.ones(2) + len(s))
        assert_equal(f(tg.ones(2), s), tg.ones(2) + len(s))


def test_functions_go_by_identity() -> None:
    def act(x: Any, g: Any) -> Any:
        return g(x) * 2

    assert_same(act, (leaf(3), tg.sin), (leaf(3), tg.cos), (leaf(3), tg.sin), traces=2)


Pair = collections.namedtuple("Pair", "a b")


def test_containers_and_keywords() -> None:
    def f(pair: Any, items: Any = (), *more: Any, table: Any = None, **rest: Any) -> Any:
        out = pair.a * pair.b
        for x in (*items, *more, *(table or {}).values(), *rest.values()):
            out = out + x
        return out

    g = tg.compile(f)
    x, y = tg.randn(3), tg.randn(3)
    for _ in range(2):
        for args, kwargs in [
            ((Pair(x, y),), {}), ((Pair(x, y), [x]), {}), ((Pair(y, x), (x, y), y), {}),
            ((Pair(x, 2),), {"table": {"k": x, "l": y}}), ((Pair(x, 2),), {"z": y, "w": x}),
        ]:  # fmt: skip
            assert_equal(g(*args, **kwargs), f(*args, **kwargs))
    assert g.cache_info().eager_calls == 0, g.explain()


def test_a_shape_is_an_argument() -> None:
    f = tg.compile(lambda x, shape, y: x.reshape(shape) + y)
    x, y = tg.randn(6), tg.randn(2, 3)
    for _ in range(2):
        assert_equal(f(x, y.shape, y), x.reshape(2, 3) + y)


def test_the_same_tensor_twice_then_different_ones() -> None:
    def f(a: Any, b: Any) -> Any:
        return (a * b).sum()

    g = tg.compile(f)
    for _ in range(2):
        for same in (True, False, True):
            a = leaf(3)
            b = a if same else leaf(3)
            g(a, b).backward()
            assert_equal(a.grad, (2 * a if same else b).detach())
            if not same:
                assert_equal(b.grad, a.detach())


weight = tg.ones(3, requires_grad=True)


def test_an_argument_also_read_from_outside() -> None:
    def f(x: Any) -> Any:
        return (x * weight * weight).sum()

    g = tg.compile(f)
    for first in (weight, leaf(3), weight):
        weight.grad = first.grad = None
        g(first).backward()
        got = weight.grad.clone(), first.grad.clone()
        weight.grad = first.grad = None
        f(first).backward()
        assert_equal(got, (weight.grad, first.grad))


def test_a_global_tensor_is_read_anew() -> None:
    scale = tg.ones(3)
    f = tg.compile(lambda x: x * scale)
    x = tg.randn(3)
    assert_equal(f(x), x)
    scale.mul_(5)
    assert_equal(f(x), x * 5)
    scale.data = tg.full((3,), 7.0)
    assert_equal(f(x), x * 7)
    scale = tg.full((3,), 2.0)
    assert_equal(f(x), x * 2)


def test_a_global_that_is_gone_raises_as_eager_would() -> None:
    box: dict[str, Any] = {}
    exec("k = 2.0\ndef f(x): return x * k", box)
    f = tg.compile(box["f"])
    assert_equal(f(tg.ones(2)), tg.full((2,), 2.0))
    del box["k"]
    with pytest.raises(NameError, match="'k'"):
        f(tg.ones(2))
    box["k"] = 3.0
    assert_equal(f(tg.ones(2)), tg.full((2,), 3.0))


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        (np.ones(3), r"argument 0 of <lambda> is a ndarray.*from_numpy"),
        ([np.ones(3)], r"argument 0\[0\] of <lambda> is a ndarray"),
        (iter([1]), r"argument 0 of <lambda> is a list_iterator, whose changes"),
        ({"k": {1, 2}}, r"argument 0\['k'\] of <lambda> is a set"),
    ],
)
def test_calls_with_other_arguments_run_eagerly(argument: Any, text: str) -> None:
    f = tg.compile(lambda x: x)
    with pytest.warns(tg.EagerWarning, match=text):
        assert f(argument) is argument
    assert f(argument) is argument
    assert_equal(f(tg.ones(2)), tg.ones(2))
    assert f.cache_info().traces == 1 and f.cache_info().eager_calls == 2
    with pytest.raises(tg.errors.CaptureError, match=text):
        tg.compile(lambda x: x, strict=True)(argument)


def test_compile_checks_its_own_arguments() -> None:
    with pytest.raises(tg.errors.ParameterError, match=r"backend must be one of .*'tpu'"):
        tg.compile(chain, backend="tpu")
    with pytest.raises(tg.errors.ParameterError, match=r"verify must be one of .*'never'"):
        tg.compile(chain, verify="never")
    with pytest.raises(tg.errors.ParameterError, match=r"side_effects must be one of .*'lose'"):
        tg.compile(chain, side_effects="lose")
    with pytest.raises(tg.errors.OperandError, match="expected a function or module, got int"):
        tg.compile(3)


def test_decorator_forms() -> None:
    @tg.compile
    def f(x: Any) -> Any:
        """Doubles."""
        return x * 2

    @tg.compile(verify="always", backend="c")
    def g(x: Any) -> Any:
        return x * 2

    @tg.compile(backend="eager")
    def h(x: Any) -> Any:
        return x * 2

    assert (f.__name__, f.__doc__) == ("f", "Doubles.")
    for fn in (f, g, h):
        assert_equal(fn(tg.ones(2)), tg.full((2,), 2.0))
        assert_equal(fn(tg.ones(2)), tg.full((2,), 2.0))
    assert h.cache_info() == (0, 0, 0, 0)


def test_modules_and_their_methods() -> None:
    model = tg.nn.Sequential(tg.nn.Linear(4, 8), tg.nn.ReLU(), tg.nn.Linear(8, 2))
    compiled = tg.compile(model)
    x = tg.randn(5, 4)
    for _ in range(3):
        want = model(x)
        want.sum().backward()
        grads = [p.grad for p in model.parameters()]
        model.zero_grad()
        got = compiled(x)
        got.sum().backward()
        assert_equal([p.grad for p in model.parameters()], grads)
        assert_equal(got, want)
        model.zero_grad()
    assert compiled.cache_info().traces == 1


def test_a_module_as_an_argument_and_its_modes() -> None:
    model = tg.nn.Sequential(tg.nn.Linear(4, 4), tg.nn.Dropout(0.5))
    f = tg.compile(lambda m, x: m(x).sum())
    x = tg.randn(3, 4)
    model.eval()
    assert_equal(f(model, x), f(model, x))
    model.train()
    state = tg.get_rng_state()
    want = model(x).sum()
    tg.set_rng_state(state)
    assert_equal(f(model, x), want)
    assert f(model, x).item() != f(model, x).item()
    model.eval()
    assert_equal(f(model, x), model(x).sum())


def test_eager_everywhere_and_in_a_block() -> None:
    f = tg.compile(chain)
    with tg.eager():
        f(tg.ones(2))
    assert f.cache_info().misses == 0
    f(tg.ones(2))
    assert f.cache_info().misses == 1


def test_a_compiled_function_inside_another() -> None:
    inner = tg.compile(lambda x: tg.sin(x) * 2)
    assert_same(lambda x: inner(x).sum(), (leaf(3),), traces=1)


def test_many_traces_warn_once() -> None:
    f = tg.compile(lambda x: x * 2)
    with pytest.warns(tg.RecaptureWarning, match="captured 9 times.*shape"):
        for n in range(12):
            f(tg.ones((1,) * n))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        f(tg.ones((1,) * 20))


@pytest.mark.parametrize("way", ["argument", "text", "global"])
def test_a_number_that_is_another_at_each_call_ends_in_eager_mode(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No storm: after 64 captures of one kind of call the rest runs eagerly, and says so once."""
    monkeypatch.setattr(capturing, "MANY_CAPTURES", 10)
    world = {"rate": 0.0}

    def f(x: Any, rate: Any) -> Any:
        return x * (world["rate"] if way == "global" else float(rate))

    compiled = tg.compile(f, verify="off")
    told = []
    for k in range(15):
        value = k + 0.5
        world["rate"] = value
        argument: Any = {"argument": value, "text": str(value), "global": 0}[way]
        with warnings.catch_warnings(record=True) as some:
            warnings.simplefilter("always")
            assert compiled(tg.ones(2), argument).tolist() == [value, value]
        told += [str(w.message) for w in some if issubclass(w.category, tg.EagerWarning)]
    assert len(told) == 1 and "it has been captured 10 times, the last time because" in told[0]
    assert "as a tensor" in told[0] and "keeps changing" in compiled.explain()
    assert compiled.cache_info().traces == compiled.cache_info().misses == 10
    hits = compiled.cache_info().hits
    world["rate"] = 3.5  # what is known is replayed still
    compiled(tg.ones(2), {"argument": 3.5, "text": "3.5", "global": 0}[way])
    assert compiled.cache_info().hits == hits + 1
    compiled(tg.ones(3), 0.5 if way != "text" else "0.5")  # another kind of call is captured
    assert compiled.cache_info().misses == 11


def test_strict_raises_at_each_call_that_is_one_capture_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(capturing, "MANY_CAPTURES", 2)
    f = tg.compile(lambda x, k: x * round(k), strict=True)
    for k in (1.5, 2.5):
        f(tg.ones(1), k)
    for k in (3.5, 4.5):
        with pytest.raises(tg.errors.CaptureError, match="has been captured 2 times"):
            f(tg.ones(1), k)


def test_long_chains_compile() -> None:
    def f(x: Any) -> Any:
        for _ in range(600):
            x = x * 1.001 + 0.5
        return x

    assert_same(f, (leaf(3),), traces=1)


def test_the_warning_of_many_traces_names_variable_values_and_line() -> None:
    f = tg.compile(lambda x, temperature, pair=(1, 2): x * round(temperature) * pair[0], wait=True)
    with pytest.warns(tg.RecaptureWarning) as caught:
        for k in range(10):
            f(tg.ones(2), 0.5 + k)
    (told,) = (str(w.message) for w in caught if w.category is tg.RecaptureWarning)
    assert "captured 9 times; it was called with another temperature: 7.5 -> 8.5" in told
    assert re.search(r"Python reads temperature at test_calls.py:\d+", told)
    f(tg.ones(2, 3), 9.5)
    assert "it was called with another tensor as x: shape (2,) -> (2, 3)" in f.explain(), (
        f.explain()
    )
