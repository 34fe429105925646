"""Compiled functions that write to memory: results, inputs, versions, identity and gradients after
each call are those of the eager function, and the calls are replays.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tracegrad as tg
from tracegrad.ir.errors import GradientError


@pytest.fixture(autouse=True)
def no_eager_runs() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", tg.EagerWarning)
        yield


def ramp(*shape: int, dtype: Any = tg.float32, scale: float = 1.0) -> tg.Tensor:
    n = int(np.prod(shape))
    return (tg.arange(n).to(dtype) * scale + 1).reshape(*shape)


def same(got: Any, want: Any) -> None:
    if isinstance(want, tg.Tensor):
        assert (got.dtype, got.shape, got._version) == (want.dtype, want.shape, want._version)
        np.testing.assert_allclose(
            got.detach().numpy(), want.detach().numpy(), rtol=1e-5, atol=1e-6
        )
    elif isinstance(want, tuple | list):
        assert len(got) == len(want)
        for a, b in zip(got, want, strict=True):
            same(a, b)
    else:
        assert got == want


def beside(
    fn: Callable[..., Any],
    make: Callable[[int], Sequence[Any]],
    calls: int = 4,
    hits: int | None = None,
) -> Any:
    """Call `fn` and its compiled self on equal arguments; `make(k)` makes those of call k."""
    compiled = tg.compile(fn)
    for k in range(calls):
        mine, theirs = list(make(k)), list(make(k))
        want, got = fn(*mine), compiled(*theirs)
        same(got, want)
        same(theirs, mine)
        for x, y in zip(mine, theirs, strict=True):
            assert (want is x) == (got is y)
    assert compiled.cache_info().hits == (calls - 1 if hits is None else hits), compiled.explain()
    return compiled


def doubled(x: Any) -> Any:
    x.mul_(2)
    return x


def row_from(x: Any, y: Any) -> Any:
    x[1] = y[0]
    return x.sum()


def swapped(x: Any, y: Any) -> None:
    kept = x.clone()
    x.copy_(y)
    y.copy_(kept)


def through_views(x: Any) -> Any:
    part = x[1:, ::2]
    part += 1
    part.mul_(x[0, 0] + 2)
    return part.sum() + x.sum()


def through_a_transpose(x: Any, y: Any) -> Any:
    x.t()[1].add_(y[:, 0])
    x.view(-1)[3:5] = 0.0
    return y * 2


def into_out(x: Any, y: Any) -> Any:
    tg.add(x, y, out=x)
    return x


def many_writes(x: Any) -> None:
    x.zero_()
    x += 3
    x[0, 0] = 7
    x[:, 1] -= 1


def nothing_new(x: Any) -> Any:
    x.copy_(x * 1)
    return x * 2


def masked(x: Any, y: Any) -> Any:
    x.masked_fill_(y > 4, -1.0)
    return x.amax()


def flipped(x: Any, y: Any) -> Any:
    x.flip(0)  # a copy: the write below is not to x
    x.select(1, 2).copy_(y.narrow(1, 0, 1).squeeze(1))
    x.unsqueeze(0)[0, -1].neg_()
    return x.permute(1, 0) * 1


def written_twice(x: Any, y: Any) -> Any:
    x.add_(y)
    first = x * 1
    x.add_(y)
    return first, x


def data_of(x: Any) -> Any:
    x.data.add_(1)
    x.detach().mul_(2)
    return x * 1


TWO = (swapped, row_from, through_a_transpose, into_out, masked, flipped, written_twice)
ONE = (doubled, through_views, many_writes, nothing_new, data_of)


@pytest.mark.parametrize("fn", TWO + ONE, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [tg.float32, tg.float64, tg.int64], ids=str)
def test_arguments(fn: Callable[..., Any], dtype: Any) -> None:
    count = 2 if fn in TWO else 1
    beside(fn, lambda k: [ramp(3, 4, dtype=dtype, scale=k + i + 1) for i in range(count)])


@pytest.mark.parametrize("fn", TWO + ONE, ids=lambda f: f.__name__)
def test_arguments_that_lie_otherwise_in_memory(fn: Callable[..., Any]) -> None:
    count = 2 if fn in TWO else 1
    if fn is not through_a_transpose:  # `view` of a transpose is refused
        beside(fn, lambda k: [ramp(4, 3, scale=k + i + 1).t() for i in range(count)])
    beside(fn, lambda k: [ramp(6, 4, scale=k + i + 1)[::2] for i in range(count)]
           if fn is not through_a_transpose else [ramp(3, 4), ramp(6, 4, scale=k + 1)[::2]])  # fmt: skip


def test_a_view_as_argument_writes_to_its_base() -> None:
    compiled = tg.compile(doubled)
    for k in range(3):
        base, other = ramp(4, 4, scale=k + 1), ramp(4, 4, scale=k + 1)
        part, twin = base[1:3, 1:], other[1:3, 1:]
        assert compiled(twin) is twin and doubled(part) is part
        same([other, twin], [base, part])
    assert compiled.cache_info().hits == 2


def test_tensors_from_outside_keep_their_state() -> None:
    mean, count = tg.zeros(3), tg.zeros((), dtype=tg.int64)
    expected, counted = tg.zeros(3), tg.zeros((), dtype=tg.int64)

    def update(x: Any, mean: Any, count: Any) -> Any:
        count += 1
        mean.mul_(0.9).add_(x, alpha=0.1)
        return x - mean

    compiled = tg.compile(lambda x: update(x, mean, count))
    for k in range(5):
        x = ramp(3, scale=k)
        same(compiled(x), update(x, expected, counted))
        same([mean, count], [expected, counted])
    assert compiled.cache_info().hits == 4


def test_a_step_of_gradient_descent_under_no_grad() -> None:
    weight, twin = (ramp(2, 2).requires_grad_() for _ in range(2))

    def step(weight: Any, slope: Any) -> None:
        with tg.no_grad():
            weight.sub_(slope, alpha=0.1)

    compiled = tg.compile(lambda slope: step(weight, slope))
    for k in range(4):
        compiled(ramp(2, 2, scale=k))
        step(twin, ramp(2, 2, scale=k))
        same(weight, twin)
        assert weight.is_leaf and weight.requires_grad
        (weight * weight).sum().backward()
        (twin * twin).sum().backward()
        same(weight.grad, twin.grad)
    assert compiled.cache_info().hits == 3


def test_gradients_go_on_while_a_buffer_is_written() -> None:
    buffer, twin = tg.ones(3), tg.ones(3)

    def f(x: Any, buffer: Any) -> Any:
        y = x * buffer.clone()
        buffer.add_(x.detach())
        return (y * y).sum()

    compiled = tg.compile(lambda x: f(x, buffer))
    for k in range(4):
        x, z = (ramp(3, scale=k + 1).requires_grad_() for _ in range(2))
        compiled(x).backward()
        f(z, twin).backward()
        same([x.grad, buffer], [z.grad, twin])
        (slope,) = tg.autograd.grad(compiled(x), x, create_graph=True)
        (wanted,) = tg.autograd.grad(f(z, twin), z, create_graph=True)
        same(tg.autograd.grad(slope.sum(), x), tg.autograd.grad(wanted.sum(), z))
        same(buffer, twin)
    assert compiled.cache_info().hits == 7


def test_what_a_later_write_has_spoilt_is_refused_each_time() -> None:
    """x is read by the backward, and written at the end: an error, as in eager mode."""
    w = ramp(3).requires_grad_()

    def f(x: Any) -> Any:
        y = (w * x).sum()
        x.zero_()
        return y

    compiled = tg.compile(f)
    for k in range(3):
        x = ramp(3, scale=2)
        if k == 0:
            with pytest.warns(tg.EagerWarning, match="a value that zero_ has overwritten"):
                y = compiled(x)
        else:
            y = compiled(x)
        with pytest.raises(GradientError, match="modified by an inplace operation"):
            y.backward()
        assert x.tolist() == [0.0, 0.0, 0.0] and w.grad is None


def local_views(x: Any) -> Any:
    y = x * 2
    part = y[1:]
    part.mul_(y[0].clone())
    y[:, 1] = part.sum()
    y.t()[0].sub_(1)
    return part * y[1:], y.sum()


def local_history(x: Any) -> Any:
    y = x * 1
    rows = y.view(-1)
    rows[2:6] *= x.view(-1)[1:5]
    y[0] = y[1]
    with tg.no_grad():
        z = y * 1
        z[0] = 5
    return (rows * rows).sum() + (y * z).sum()


@pytest.mark.parametrize("fn", [local_views, local_history], ids=lambda f: f.__name__)
def test_views_of_locals_with_history(fn: Callable[..., Any]) -> None:
    compiled = tg.compile(fn)
    for k in range(4):
        x, z = (
            ramp(3, 4, dtype=tg.float64, scale=0.1 * k + 0.1).requires_grad_() for _ in range(2)
        )
        got, want = compiled(x), fn(z)
        same(got, want)
        first = got[0].sum() + got[1] if isinstance(got, tuple) else got
        second = want[0].sum() + want[1] if isinstance(want, tuple) else want
        first.backward()
        second.backward()
        same(x.grad, z.grad)
    assert compiled.cache_info().hits == 3


def test_random_writes_draw_eagers_numbers() -> None:
    def noise(x: Any) -> Any:
        x.uniform_()
        x[0].normal_()
        return x.sum()

    compiled = tg.compile(noise)
    for k in range(4):
        x, z = ramp(2, 3), ramp(2, 3)
        tg.manual_seed(k)
        got = compiled(x)
        after = tg.rand(1)
        tg.manual_seed(k)
        same([got, x], [noise(z), z])
        same(after, tg.rand(1))
    assert compiled.cache_info().hits == 3


# ---- what cannot be replayed stays right ----------------------------------------------------------


def staying_eager(
    fn: Callable[..., Any], make: Callable[[int], Sequence[Any]], reason: str
) -> None:
    compiled = tg.compile(fn)
    for k in range(3):
        mine, theirs = list(make(k)), list(make(k))
        if k == 0:
            with pytest.warns(tg.EagerWarning, match=reason):
                got = compiled(*theirs)
        else:
            got = compiled(*theirs)
        same(got, fn(*mine))
        same(theirs, mine)
    assert compiled.cache_info().hits == 0


def test_a_leaf_used_after_it_was_written_to() -> None:
    def f(w: Any) -> Any:
        with tg.no_grad():
            w.mul_(2)
        return (w * w).sum()

    staying_eager(
        f, lambda k: [ramp(3).requires_grad_()], "a leaf that requires grad is used after"
    )


def test_a_write_with_history_to_an_argument() -> None:
    def f(x: Any, w: Any) -> Any:
        x.mul_(w)
        return x.sum()

    staying_eager(f, lambda k: [ramp(3), ramp(3).requires_grad_()], "writes with history")


def test_two_views_of_one_tensor_as_arguments() -> None:
    def f(x: Any, y: Any) -> Any:
        x.add_(1)
        return y * 2

    def overlapping(k: int) -> list[tg.Tensor]:
        base = ramp(4, scale=k + 1)
        return [base[:3], base[1:]]

    staying_eager(f, overlapping, "several tensors from outside share")


def test_inputs_that_overlap_at_a_later_call() -> None:
    """By address, where the tensors know nothing of one another."""

    def f(x: Any, y: Any) -> Any:
        x.add_(y)
        return y * 2

    compiled = tg.compile(f)
    for k in range(6):

        def arguments(k: int = k) -> list[tg.Tensor]:
            memory = np.arange(1, 8, dtype=np.float32) * (k + 1)
            other = memory[2:5] if k % 2 else memory[2:5].copy()
            return [tg.from_numpy(memory[1:4]), tg.from_numpy(other)]

        mine, theirs = arguments(), arguments()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", tg.EagerWarning)
            same(compiled(*theirs), f(*mine))
        same(theirs, mine)
    assert compiled.cache_info().hits == 2


def test_memory_that_may_not_be_written_is_refused_and_nothing_is_half_written() -> None:
    def f(x: Any, y: Any) -> Any:
        y.add_(1)
        x.add_(1)
        return x

    compiled = tg.compile(f)
    for _ in range(2):
        compiled(ramp(3), ramp(3))
    y = ramp(3)
    frozen = np.ones(3, np.float32)
    frozen.flags.writeable = False
    for fn in (f, compiled):
        with pytest.raises(RuntimeError, match="read-only"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                fn(tg.as_tensor(np.broadcast_to(frozen, (3,))), y)
    assert y.tolist() == [2.0, 3.0, 4.0]  # of the eager call; the replay wrote nothing
    assert compiled(ramp(3), y).tolist() == [2.0, 3.0, 4.0]


def test_an_error_inside_a_replay_leaves_what_eager_leaves() -> None:
    def f(x: Any, index: Any) -> Any:
        x.add_(1)
        return x[index]

    compiled = tg.compile(f)
    for k in range(2):
        compiled(ramp(3), tg.tensor([k]))
    texts = []
    for fn in (f, compiled):
        x = ramp(3)
        with pytest.raises(IndexError) as caught:
            fn(x, tg.tensor([5]))
        texts.append(str(caught.value))
        assert x.tolist() == [2.0, 3.0, 4.0] and x._version == 1
    assert texts[0] == texts[1]
    assert compiled(x, tg.tensor([2])).tolist() == [5.0]


def test_a_replay_that_finds_a_fault_draws_what_eager_draws() -> None:
    def f(x: Any, index: Any) -> Any:
        return x[index] + tg.rand(1)

    compiled = tg.compile(f)
    for k in range(2):
        compiled(ramp(3), tg.tensor([k]))
    drawn = []
    for fn in (f, compiled):
        tg.manual_seed(5)
        with pytest.raises(IndexError):
            fn(ramp(3), tg.tensor([5]))
        drawn.append(fn(ramp(3), tg.tensor([1])).tolist())
    assert drawn[0] == drawn[1]


def test_a_view_from_outside_is_not_one_of_another_argument() -> None:
    """It looked at the argument of the captured call only."""
    base = ramp(3)
    for outside in (base[:2], base.detach(), base.data):
        compiled = tg.compile(lambda x, outside=outside: x.sum() + outside.sum())
        for argument in (base, ramp(3, scale=5), base, ramp(3, scale=7)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", tg.EagerWarning)
                got = compiled(argument, outside)
                alone = tg.compile(lambda x: x.sum() + outside.sum())  # noqa: B023
                alone(base)
                assert alone(argument).item() == (argument.sum() + outside.sum()).item()
            assert got.item() == (argument.sum() + outside.sum()).item()


def test_a_launch_that_finds_an_overlap_draws_no_random_numbers() -> None:
    def f(x: Any, y: Any) -> Any:
        x.add_(tg.rand(3))
        return y * 2

    compiled = tg.compile(f)
    compiled(ramp(3), ramp(3))
    results = []
    for fn in (f, compiled):
        memory = np.arange(1, 8, dtype=np.float32)
        x, y = tg.from_numpy(memory[1:4]), tg.from_numpy(memory[2:5])
        tg.manual_seed(5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", tg.EagerWarning)
            results.append((fn(x, y), x.clone(), tg.rand(2)))
    same(results[1], results[0])


# ---- random programs ------------------------------------------------------------------------------

VIEWS: tuple[Callable[[Any], Any], ...] = (
    lambda t: t[1:], lambda t: t[:, ::2], lambda t: t.movedim(0, -1), lambda t: t.reshape(-1), lambda t: t[0],
    lambda t: t.unsqueeze(0), lambda t: t.detach(), lambda t: t[..., -1], lambda t: t.transpose(0, -1),
)  # fmt: skip
WRITES: tuple[Callable[[Any, Any], Any], ...] = (
    lambda t, s: t.mul_(s), lambda t, s: t.add_(1), lambda t, s: t.fill_(2), lambda t, s: t.sin_(),
    lambda t, s: t.copy_(t * s + 1), lambda t, s: t.sub_(t.sum() * 0.1), lambda t, s: t.clamp_(-2, 2),
)  # fmt: skip


def program(steps: Sequence[tuple[int, int, int]]) -> Callable[..., Any]:
    def f(x: Any, scale: Any) -> Any:
        seen = [x, x * 1]
        for which, view, write in steps:
            chosen = seen[which % len(seen)]
            if view < len(VIEWS) and (chosen.ndim > 1 or view not in (1, 2, 8)) and chosen.ndim:
                if chosen.shape[0] and chosen.shape[-1]:
                    seen.append(VIEWS[view](chosen))
            if write < len(WRITES):
                WRITES[write](seen[-1 - which % min(2, len(seen))], scale)
        return sum(t.sum() for t in seen)

    return f


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 10), st.integers(0, 8)), max_size=8))
def test_random_programs_of_views_and_writes(steps: list[tuple[int, int, int]]) -> None:
    fn = program(steps)
    compiled = tg.compile(fn)
    for k in range(3):
        x, z = (ramp(3, 4, dtype=tg.float64, scale=0.1 + 0.1 * k) for _ in range(2))
        scale = tg.tensor(0.5 + k, dtype=tg.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", tg.EagerWarning)
            try:
                want = fn(x, scale)
            except RuntimeError as error:  # of overlapping memory, say
                with pytest.raises(type(error), match=re.escape(str(error))):
                    compiled(z, scale)
            else:
                same(compiled(z, scale), want)
        same(z, x)


LAYOUTS: dict[str, Any] = {
    "cumsum": lambda x: x.cumsum(0), "cumprod": lambda x: x.cumprod(1), "repeat": lambda x: x.repeat(2, 1),
    "one row": lambda x: x[:1].repeat(2, 3), "tile": lambda x: x.tile(2, 1, 2), "roll": lambda x: x.roll(1, 1),
    "flip": lambda x: x.flip(0) * 1, "stack": lambda x: tg.stack((x, x), 2), "tril": lambda x: x.tril(),
    "softmax": lambda x: x.softmax(0), "logsumexp": lambda x: x.logsumexp(0), "var": lambda x: x.var(0),
    "gather": lambda x: x.gather(0, tg.zeros(2, 4, dtype=tg.int64)),
    "take": lambda x: x.take(tg.tensor([[1, 2], [3, 0]])), "outer": lambda x: tg.outer(x[0], x[:, 0]),
    "matmul": lambda x: x @ x.t(), "layer norm": lambda x: tg.nn.functional.layer_norm(x, (4,)),
    "where": lambda x: tg.where(x > 0, x, 0.0), "clamp": lambda x: x.clamp(-1, 1),
    "norm": lambda x: x.norm(dim=0),
    "kron": lambda x: tg.kron(x, x),
    "mean": lambda x: x.mean(0, keepdim=True),
    "index_select": lambda x: x.index_select(1, tg.tensor([2, 0])),
    "pad": lambda x: tg.nn.functional.pad(x, (1, 2)),
    "masked_fill": lambda x: x.masked_fill(x > 0, 2.0), "addmm": lambda x: tg.addmm(x[:, :1], x, x.t()),
    "cat": lambda x: tg.cat((x, x), 1), "diag_embed": lambda x: tg.diag_embed(x), "max": lambda x: x.max(1)[0],
    "argmax": lambda x: x.argmax(0), "sum": lambda x: x.sum(1),
    "one_hot": lambda x: tg.nn.functional.one_hot(x.abs().long() % 3, 3),
    "addcmul": lambda x: tg.addcmul(x, x, x),
}  # fmt: skip


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("name", LAYOUTS)
def test_results_lie_in_memory_as_those_of_eager_mode(name: str, turned: bool) -> None:
    fn = LAYOUTS[name]

    def made() -> tg.Tensor:
        x = (
            tg.arange(20.0).sin().reshape(4, 5).t()
            if turned
            else tg.arange(20.0).sin().reshape(5, 4)
        )
        return x.detach()

    expected = [fn(made()) for _ in range(2)][-1]
    compiled = tg.compile(fn, wait=True)
    for _ in range(3):
        got = compiled(made())
        assert got.stride() == expected.stride()
        assert tg.allclose(got.double(), expected.double())


# ---- writes that autograd does not hear of ------------------------------------------------------


def through_detach(x: Any) -> Any:
    y = x * 2
    y.detach().mul_(3)
    return y * 1


def through_a_view_of_detach(x: Any) -> Any:
    y = x * 2
    with tg.no_grad():
        y.detach()[0].mul_(3)
    return y.sin()


def to_an_argument(x: Any) -> Any:
    x.detach().mul_(3)
    return x * 3


def returned_itself(x: Any) -> Any:
    y = (x * 2).reshape(-1)
    with tg.no_grad():
        y.detach().add_(1)
    return y


@pytest.mark.parametrize(
    "program", [through_detach, through_a_view_of_detach, to_an_argument, returned_itself]
)
def test_a_write_through_detach_leaves_the_history(program: Callable[..., Any]) -> None:
    """Eager mode's gradient passes as if nothing had been written; a replay's would have ended there."""
    compiled = tg.compile(program, wait=True)
    with pytest.warns(tg.EagerWarning, match="writes without history to a tensor that has one"):
        for k in range(3):
            found = []
            for fn in (compiled, program):
                leaf = tg.tensor([1.0, 2.0 + k], requires_grad=True)
                y = fn(leaf * 1)
                y.sum().backward()
                found.append((y.tolist(), leaf.grad.tolist()))
            assert found[0] == found[1]
    assert compiled.cache_info().hits == 0
