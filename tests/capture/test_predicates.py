"""Values that Python reads choose among paths: `.item()`, `if tensor`, `while tensor`, masks.

Each program is run by a compiled function and by itself on the same sequence of inputs, several
times over: results, gradients, memory and random numbers are the same, and by the second time
around every path is a replay.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tracegrad as tg


@pytest.fixture(autouse=True)
def no_eager_runs(request: Any) -> Iterator[None]:
    with warnings.catch_warnings():
        if "eager" not in request.node.name:
            warnings.simplefilter("error", tg.EagerWarning)
        warnings.filterwarnings("ignore", message="Converting a tensor with requires_grad")
        yield


def same(got: Any, want: Any) -> None:
    if isinstance(want, tg.Tensor):
        assert (got.dtype, got.shape, got.requires_grad) == (
            want.dtype, want.shape, want.requires_grad,
        )  # fmt: skip
        np.testing.assert_allclose(
            got.detach().numpy(), want.detach().numpy(), rtol=1e-5, atol=1e-6
        )
    elif isinstance(want, tuple | list):
        assert type(got) is type(want) and len(got) == len(want)
        for a, b in zip(got, want, strict=True):
            same(a, b)
    elif isinstance(want, float):
        assert type(got) is float and got == pytest.approx(want, rel=1e-5, nan_ok=True)
    else:
        assert got == want and type(got) is type(want)


def outcome(fn: Callable[..., Any], x: tg.Tensor) -> tuple[Any, ...]:
    """What a call gives: result or error, gradients, what became of the argument."""
    before = x._version
    try:
        result = fn(x)
    except Exception as error:
        return type(error), str(error), x.detach().clone(), x._version - before
    leaves = result if isinstance(result, tuple | list) else [result]
    grad: Any = None
    total = [r.sum() for r in leaves if isinstance(r, tg.Tensor) and r.requires_grad]
    if total:
        first = tg.autograd.grad(sum(total), x, create_graph=True, allow_unused=True)[0]
        grad = first
        if first is not None and first.requires_grad:
            grad = first, tg.autograd.grad(first.sum(), x, allow_unused=True)[0]
    return result, grad, x.detach().clone(), x._version - before


# ---- programs -----------------------------------------------------------------------------------


def doubling(x: Any) -> Any:
    y = x * 2
    while y.norm() < 1000:
        y = y * 2
    return y


def branch(x: Any) -> Any:
    return (x * 3).sin() if x.sum() > 0 else (x - 1).exp()


def nested(x: Any) -> Any:
    if x.max() > 1:
        if x.min() > 0:
            return x * 2
        return x.abs()
    if x.min() < -1:
        return x**2
    return x * 1


def early(x: Any) -> Any:
    for k in range(5):
        if (x * k).sum() > 3:
            return x * k
    return x.exp()


def scaled(x: Any) -> Any:
    return x * int(x.sum().round())


def by_bool(x: Any) -> Any:
    return x * bool((x > 0).all())


def by_float(x: Any) -> Any:
    return x * float(x.max().floor())


def shaped(x: Any) -> Any:
    n = int((x > 0).sum())
    return x[:n] * tg.ones(n)


def masked(x: Any) -> Any:
    return x[x > 0] * 2


def counted(x: Any) -> Any:
    return (x > 0).nonzero().sum() * x


def listed(x: Any) -> Any:
    return sum(k * x for k in (x > 0).tolist())


def selected(x: Any) -> Any:
    return x.masked_select(x < 0).sum() + x.sum()


def scattered(x: Any) -> Any:
    return x.masked_scatter(x > 0, -x)


def ordered(x: Any) -> Any:
    parts = sorted(x.unbind(), key=float)
    return parts[0] * 2 + parts[-1]


def least(x: Any) -> Any:
    return min(x[0], x[1], x[2]) * max(x[0], x[1])


def asserted(x: Any) -> Any:
    assert x.sum() > 0, "the sum must be positive"
    return x.log()


def refused(x: Any) -> Any:
    y = x.exp()
    if y.max() > 5:
        raise ValueError(f"too large: {int(y.max())}")
    return y


def returned(x: Any) -> Any:
    return x * 2, bool(x.sum() > 0), int((x > 0).sum())


def written(x: Any) -> Any:
    y = x.detach()
    y.mul_(2)
    if y.sum() > 4:
        y.sub_(1)
    return y * 1


def drawn(x: Any) -> Any:
    noise = tg.rand(3)
    if (x.detach() + noise).sum() > 2.5:
        return x * tg.rand(3)
    return x + noise


def recursive(x: Any) -> Any:
    return x if x.detach().abs().max() < 1 else recursive(x / 2)


def chosen(x: Any) -> Any:
    return [x.sin(), x.cos(), x.tanh()][int(x.detach().abs().argmax())]


def indexed(x: Any) -> Any:
    return x[int(x.argmax())] * x


def truth(x: Any) -> Any:
    return x[x.sum() > 0] * 2


def equal(x: Any) -> Any:
    return x * 2 if tg.equal(x, x.abs()) else x * 3


def close(x: Any) -> Any:
    return x * 2 if tg.allclose(x, x.round(), atol=1e-3) else x.exp()


def newton(x: Any) -> Any:
    y = tg.ones(3)
    while (y * y - x.abs() - 1).abs().max() > 1e-3:
        y = (y + (x.abs() + 1) / y) / 2
    return y


def not_a_number(x: Any) -> Any:
    value = float((x.detach() - x.detach()).sum() / (x.detach().sum() - 3))
    return x * (0.0 if math.isnan(value) else 1.0)


def made(x: Any) -> Any:
    return x * tg.tensor([float(x[0].round()), 1.0, 2.0])


def strided(x: Any) -> Any:
    return x * 2 if bool(x[1]) else x * 3


def gradient_inside(x: Any) -> Any:
    (slope,) = tg.autograd.grad((x**3).sum(), x, create_graph=True)
    return slope * 2 if slope.sum() > 4 else slope * x


PROGRAMS = (
    doubling, branch, nested, early, scaled, by_bool, by_float, shaped, masked, counted, listed,
    selected, scattered, ordered, least, asserted, refused, returned, written, drawn, recursive,
    chosen, indexed, truth, equal, close, newton, not_a_number, made, strided, gradient_inside,
)  # fmt: skip
INPUTS = (
    [1.0, 2.0, 0.5], [-1.0, 2.0, 0.5], [-1.0, -2.0, -0.5], [0.0, 0.0, 0.0], [1.0, 0.0, 2.0],
    [300.0, 200.0, 100.0], [0.25, 0.5, 0.125],
)  # fmt: skip


@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)
def test_paths_are_those_of_the_function(program: Any, requires_grad: bool) -> None:
    if program is doubling:
        inputs = [i for i in INPUTS if any(i)]
    else:
        inputs = [*INPUTS]
    if program is gradient_inside and not requires_grad:
        pytest.skip("nothing to differentiate")
    compiled = tg.compile(program)
    for turn in range(3):
        before, wanted = compiled.cache_info(), []
        for k, values in enumerate(inputs):
            results = []
            for fn in (program, compiled):
                tg.manual_seed(k)
                x = tg.tensor(values, requires_grad=requires_grad and program is not written)
                results.append((outcome(fn, x), tg.rand(1).item()))
            (want, random), (got, mine) = results
            same(got, want)
            assert mine == random
            wanted.append(want)
        after = compiled.cache_info()
        raised = sum(isinstance(w[0], type) for w in wanted)
        if turn:
            assert after.hits - before.hits == len(inputs) - raised, compiled.explain()
    assert compiled.cache_info().eager_calls == 0


# ---- what else changes between the calls --------------------------------------------------------


def test_shapes_and_globals_change_beside_the_values() -> None:
    limits = [1.0]

    def f(x: Any) -> Any:
        return x * limits[0] if x.sum() > limits[0] else x - limits[0]

    compiled = tg.compile(f)
    for turn in range(3):
        for limits[0] in (1.0, 2.0):
            for n in (2, 3):
                for value in (0.1, 5.0):
                    x = tg.full((n,), value)
                    same(compiled(x), f(x))
        if turn == 0:
            traces = compiled.cache_info().traces
    assert compiled.cache_info().traces == traces == 8, compiled.explain()


def test_a_thousand_turns() -> None:
    def f(x: Any) -> Any:
        y = x
        while y.sum() < 1000:
            y = y + 1
        return y * x

    compiled = tg.compile(f)
    for start in (0.25, 0.5, 0.25, 0.75):
        x, z = (tg.tensor([start], requires_grad=True) for _ in range(2))
        got, want = compiled(x), f(z)
        same(got, want)
        got.backward()
        want.backward()
        same(x.grad, z.grad)
    assert compiled.cache_info().hits == 3, compiled.explain()


def test_a_module_that_branches_trains() -> None:
    class Gate(tg.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tg.nn.Linear(4, 4)

        def forward(self, x: Any) -> Any:
            y = self.inner(x)
            return y.relu() if y.sum() > 0 else y.tanh()

    tg.manual_seed(0)
    eager, mine = Gate(), Gate()
    mine.load_state_dict(eager.state_dict())
    compiled = tg.compile(mine)
    rates = [tg.optim.SGD(m.parameters(), lr=0.1) for m in (eager, mine)]
    for k in range(12):
        x = tg.randn(3, 4)
        for model, net, rate in zip((eager, compiled), (eager, mine), rates, strict=True):
            net.zero_grad(set_to_none=True)
            (model(x) - k % 2).pow(2).sum().backward()
            rate.step()
        same(list(mine.parameters()), list(eager.parameters()))
    assert compiled.cache_info().traces == 2, compiled.explain()


def test_threads_on_different_paths_at_once() -> None:
    compiled = tg.compile(nested)
    errors: list[BaseException] = []

    def work(values: list[float]) -> None:
        try:
            for _ in range(60):
                same(compiled(tg.tensor(values)), nested(tg.tensor(values)))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(v,)) for v in INPUTS[:4]]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors
    assert compiled.cache_info().traces == 4, compiled.explain()


def test_writes_wait_until_the_path_is_known() -> None:
    def f(x: Any, total: Any) -> Any:
        total.add_(x)
        return x * 2 if total.sum() > 4 else x * 3

    compiled = tg.compile(f)
    a, b = tg.zeros(2), tg.zeros(2)
    for k in range(10):
        x = tg.full((2,), 3.0 if k % 2 else -1.5)
        same(compiled(x, a), f(x, b))
        same(a, b)
        assert a._version == b._version
    assert compiled.cache_info().traces == 2


# ---- limits -------------------------------------------------------------------------------------


def test_a_number_that_changes_at_each_call_ends_in_eager_mode() -> None:
    def f(x: Any) -> Any:
        return x * x.sum().item()

    compiled = tg.compile(f)
    with pytest.warns(
        tg.EagerWarning, match=r"keeps changing \(item\).* at .*x.sum\(\).item\(\)"
    ) as told:
        for k in range(30):
            x = tg.tensor([1.0, float(k)])
            same(compiled(x), f(x))
    assert len([w for w in told if w.category is tg.EagerWarning]) == 1
    info = compiled.cache_info()
    assert info.traces <= 9 and info.eager_calls >= 15


def test_too_many_paths_end_in_eager_mode() -> None:
    def f(x: Any) -> Any:
        return sum(x * k for k in range(8) if x[k % 8] > 0) + x * 0

    compiled = tg.compile(f, verify="off")
    with pytest.warns(tg.EagerWarning, match="over 64 paths"):
        for k in range(80):
            x = tg.tensor([1.0 if k >> b & 1 else -1.0 for b in range(8)])
            same(compiled(x), f(x))
    assert compiled.cache_info().traces <= 65


def test_values_of_a_large_tensor_keep_a_function_eager() -> None:
    compiled = tg.compile(lambda x: x[x > 0].sum())
    with pytest.warns(tg.EagerWarning, match="large tensor, 5000 bytes"):
        compiled(tg.ones(5000))
    assert compiled(tg.ones(5000)).item() == 5000


def test_an_error_that_the_function_catches_is_not_a_path_eager() -> None:
    def f(x: Any, i: Any) -> Any:
        try:
            return x[i] * 2
        except IndexError:
            return x * 3

    compiled = tg.compile(f)
    x = tg.ones(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tg.EagerWarning)
        for k in (7, 1, 7, 0, 8, 2):
            same(compiled(x, tg.tensor([k])), f(x, tg.tensor([k])))


# ---- what is shown ------------------------------------------------------------------------------


def test_paths_are_explained_and_printed() -> None:
    compiled = tg.compile(doubling)
    compiled(tg.ones(3))
    compiled(tg.ones(3) * 100)
    text = compiled.explain()
    assert "while y.norm() < 1000:: bool saw True (9 times), False" in text
    assert "bool saw True at an earlier capture, now False" in text
    assert "while y.norm() < 1000:: bool saw True" in compiled.source(trace=0)


# ---- random programs ----------------------------------------------------------------------------

STEPS: tuple[Callable[[Any], Any], ...] = (
    lambda x: x * 2 if x.sum() > 1 else x + 1,
    lambda x: x.sin() if x.max() > 0.5 else x.exp(),
    lambda x: x - int(x.sum().clamp(-3, 3).round()),
    lambda x: x * tg.rand(3) if x.min() < 0 else x,
    lambda x: tg.where(x > 0, x, -x) if bool(x[0] > x[1]) else x.flip(0),
    lambda x: x / 2 if x.abs().max() > 2 else x * 1.5,
    lambda x: x + (x > 0).nonzero().sum(),
)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(0, len(STEPS) - 1), min_size=1, max_size=4),
    st.lists(st.integers(-8, 8), min_size=3, max_size=6),
)
def test_random_programs_with_branches(program: list[int], seeds: list[int]) -> None:
    def f(x: Any) -> Any:
        for k in program:
            x = STEPS[k](x)
        return x

    compiled = tg.compile(f)
    for _ in range(2):
        for k in seeds:
            found = []
            for fn in (f, compiled):
                tg.manual_seed(k)
                x = tg.tensor([k / 4, -k / 8, 0.375], dtype=tg.float64, requires_grad=True)
                found.append((outcome(fn, x), tg.rand(1).item()))
            same(found[1][0], found[0][0])
            assert found[0][1] == found[1][1]


def test_one_value_that_is_read_twice() -> None:
    def f(x: Any) -> Any:
        total = x.sum()
        return x * float(total) + float(total) * int(total)

    compiled = tg.compile(f)
    for k in (1.5, 2.5, 1.5, 2.5):
        same(compiled(tg.full((2,), k)), f(tg.full((2,), k)))
    assert compiled.cache_info().hits == 2


def test_a_long_loop_is_a_few_kernels() -> None:
    compiled = tg.compile(doubling)
    x = tg.full((3,), 1e-36)
    same(compiled(x), doubling(x))
    turns = len(compiled._order[0].predicates)
    assert turns > 120 and compiled._order[0].forward_unit().kernels < turns / 8
    assert max(compiled.source().count("tg_strayed("), 0) == turns + 1
