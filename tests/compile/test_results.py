"""What a compiled function returns: structure, aliases, constants, random numbers, history."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from beside import assert_equal, assert_same

import tracegrad as tg

Pair = collections.namedtuple("Pair", "a b")


def leaf(*shape: int, dtype: Any = tg.float32) -> Any:
    return tg.randn(shape, dtype=dtype, requires_grad=True)


def test_nested_results() -> None:
    def f(x: Any) -> Any:
        return {"a": [x * 2, (x.sum(), None)], "b": Pair(x + 1, "text"), "c": 3, "d": x.shape}

    assert_same(f, (leaf(3),), traces=1)


def test_nothing_computed() -> None:
    assert_same(lambda x: (x, 3), (leaf(3),), traces=1)
    assert_same(lambda x: None, (leaf(3),), traces=1)
    assert_same(lambda: 4, (), traces=1)


def test_an_input_returned_is_the_input_itself() -> None:
    f = tg.compile(lambda x, y: (y, x * 2, x))
    x, y = leaf(3), tg.randn(3)
    for _ in range(3):
        out = f(x, y)
        assert out[0] is y
        assert out[2] is x
    assert f.cache_info().hits == 2


def test_the_same_tensor_returned_twice_is_one_object() -> None:
    def f(x: Any) -> Any:
        y = x * 2
        return y, y

    g = tg.compile(f)
    for _ in range(3):
        a, b = g(leaf(3))
        assert a is b


def test_equal_results_have_memory_of_their_own() -> None:
    f = tg.compile(lambda x: (x + 1, x + 1, x * 1, x * 1))
    x = tg.zeros(3)
    for _ in range(3):
        out = f(x)
        for k, t in enumerate(out):
            t.fill_(k + 10)
        assert [t[0].item() for t in out] == [10, 11, 12, 13]
        assert x.sum().item() == 0


def test_two_leaves_with_equal_gradients_get_memory_of_their_own() -> None:
    f = tg.compile(lambda a, b: ((a + b) * 3).sum())
    for _ in range(3):
        a, b = leaf(4), leaf(4)
        f(a, b).backward()
        a.grad.zero_()
        assert b.grad.sum().item() == 12


def test_the_cotangent_given_is_not_written_to() -> None:
    f = tg.compile(lambda a, b: (a + b, a - 0.0))
    for _ in range(3):
        a, b, ct = leaf(4), leaf(4), tg.ones(4)
        tg.autograd.backward(f(a, b), (ct, ct))
        a.grad.fill_(9)
        b.grad.fill_(9)
        assert ct.sum().item() == 4


def test_constants_are_new_each_time() -> None:
    def f(x: Any) -> Any:
        c = tg.tensor([1.0, 2.0])
        return c, x + c, tg.zeros(2)

    g = tg.compile(f)
    x = tg.ones(2)
    for _ in range(3):
        c, y, z = g(x)
        assert c.tolist() == [1, 2]
        assert z.tolist() == [0, 0]
        c.fill_(7)
        z.fill_(7)
        y.fill_(7)
    assert g.cache_info().hits == 2


def test_views_of_arguments_stay_views() -> None:
    f = tg.compile(lambda x: x[1:], wait=True, strict=True)
    x = tg.zeros(3)
    f(x).fill_(1)
    f(x).fill_(2)
    assert x.tolist() == [0, 2, 2]
    assert f.cache_info().hits == 1


def test_detach_inside_cuts_and_results_share_no_memory_unless_eager() -> None:
    def f(x: Any) -> Any:
        y = x * 3
        return (y.detach() * x).sum(), (x.detach() * 2)

    assert_same(f, (leaf(3),), traces=1)


def test_no_grad_inside() -> None:
    def f(x: Any) -> Any:
        with tg.no_grad():
            a = x * 2
        return (a * x).sum(), a

    assert_same(f, (leaf(3),), traces=1)


def test_enable_grad_inside_no_grad() -> None:
    def f(x: Any) -> Any:
        with tg.enable_grad():
            return x * 2

    g = tg.compile(f)
    for _ in range(2):
        with tg.no_grad():
            assert g(leaf(3)).requires_grad


def test_integer_and_bool_results_have_no_history() -> None:
    def f(x: Any) -> Any:
        return x.argmax(), x > 0, (x * 2).to(tg.int64), x * 2

    assert_same(f, (leaf(5),), traces=1)


def test_in_place_on_locals_is_compiled() -> None:
    def f(x: Any) -> Any:
        y = x * 2
        y += 1
        y.mul_(x.detach())
        z = tg.zeros(3)
        z.add_(y)
        return (y * y).sum() + z.sum()

    assert_same(f, (leaf(3),), traces=1)


def test_random_numbers_are_fresh_and_those_of_eager() -> None:
    def f(x: Any) -> Any:
        return x * tg.rand(4) + tg.randn(4) * tg.nn.functional.dropout(x, 0.5)

    assert_same(f, (leaf(4),), times=4, traces=1)


def test_a_generator_as_an_argument() -> None:
    f = tg.compile(lambda g: tg.rand(3, generator=g))
    a, b = tg.Generator().manual_seed(1), tg.Generator().manual_seed(1)
    for _ in range(3):
        assert_equal(f(a), tg.rand(3, generator=b))
    c = tg.Generator().manual_seed(1)
    d = tg.Generator().manual_seed(1)
    assert_equal(f(c), tg.rand(3, generator=d))


def test_random_residuals_reach_the_backward() -> None:
    def f(x: Any) -> Any:
        return (tg.sin(x * tg.rand(4)) * tg.tensor([1.0, 2.0, 3.0, 4.0])).sum()

    assert_same(f, (leaf(4),), times=3, traces=1)


def test_a_power_of_zero_has_a_zero_gradient_not_none() -> None:
    assert_same(lambda x, y: (x**0 * y).sum(), (leaf(3), leaf(3)), traces=1)


def test_numpy_scalars_out_of_reductions() -> None:
    def f(x: Any) -> Any:
        m = x.max()
        return (x - m).exp().sum().log() + m, m * 3.3, (m / 3).to(tg.float64)

    assert_same(f, (leaf(5),), (leaf(),), (leaf(5, dtype=tg.float64),), traces=3)


@pytest.mark.parametrize("dtype", [tg.float16, tg.bfloat16, tg.float64, tg.int32, tg.bool])
def test_other_dtypes(dtype: Any) -> None:
    def f(x: Any) -> Any:
        return x.sum(0), (x * x).max(), x.reshape(6)[::2] == 1

    x = tg.from_numpy(np.arange(6).reshape(2, 3) % 3).to(dtype)
    assert_same(f, (x,), traces=1)


def test_empty_dimensions_read_nothing() -> None:
    """A loop that turns no time must not have its loads hoisted out of it."""

    def reduced(x: Any) -> Any:
        return (*x.max(-1), x.sum(1), x.prod(1), (x > 0).any(1))

    assert_same(reduced, (tg.zeros(3, 0, 2),), (tg.zeros(3, 0, 2),))
    loss = tg.nn.functional.cross_entropy
    empty = (tg.zeros(0, 3), tg.zeros(0, dtype=tg.int64))
    assert_same(loss, empty, empty)


def test_an_index_into_an_empty_axis_is_refused() -> None:
    f = tg.compile(lambda x, i: x[i])
    assert f(tg.zeros(0, 3), tg.zeros(0, dtype=tg.int64)).shape == (0, 3)
    with pytest.raises(IndexError, match="index is out of bounds for dimension with size 0"):
        f(tg.zeros(0, 3), tg.tensor([1]))


W = tg.arange(12.0).reshape(3, 4) / 7
IN_ANOTHER_ORDER: dict[str, Callable[[tg.Tensor], Any]] = {
    "transposed": lambda x: (x * 2).t(),
    "of a product": lambda x: (x @ W).t(),
    "permuted": lambda x: (x.reshape(2, 3, -1) * 2).permute(2, 0, 1),
    "beside others": lambda x: ((x * 2).t(), (x * 2).sum(), x + 1),
    "computed transposed": lambda x: (x * 2).t() * 3,
    "twice": lambda x: (tg.tanh(x), tg.tanh(x).t()),
    "of a reduction": lambda x: tg.softmax(x, 0).transpose(0, 1),
}


@pytest.mark.parametrize("name", IN_ANOTHER_ORDER)
def test_results_lie_in_memory_as_eager_ones(name: str) -> None:
    """The dimensions in the same order, with gradients to second order."""
    fn = IN_ANOTHER_ORDER[name]
    compiled = tg.compile(fn, wait=True, strict=True)
    for n in (2, 3, 2, 3, 2):
        found = []
        for f in (compiled, fn):
            x = (tg.arange(6.0 * n).reshape(2 * n, 3) / 5).requires_grad_()
            out = f(x)
            outs = out if isinstance(out, tuple) else (out,)
            weighted = [o * o * tg.arange(float(o.numel())).reshape(o.shape) for o in outs]
            (first,) = tg.autograd.grad(sum(w.sum() for w in weighted), x, create_graph=True)
            (second,) = tg.autograd.grad((first * first).sum(), x)
            out = f(x)
            sum(o.sum() for o in (out if isinstance(out, tuple) else (out,))).backward()
            found.append(([*outs], [first, second, x.grad]))
        (mine, my_gradients), (theirs, their_gradients) = found
        for a, b in zip([*mine, *my_gradients], [*theirs, *their_gradients], strict=True):
            np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=1e-5, atol=1e-5)
        assert [a.stride() for a in mine] == [b.stride() for b in theirs]
    assert compiled.cache_info().hits == 8


def test_a_wrong_cotangent_of_a_transposed_result_is_refused_in_its_own_shape() -> None:
    compiled = tg.compile(lambda x: (x * 2).t(), wait=True)
    for _ in range(2):
        y = compiled(tg.ones(2, 3, requires_grad=True))
    with pytest.raises(RuntimeError, match=r"\[3, 2\]"):
        y.backward(tg.ones(2, 3))


def test_a_result_with_gaps_keeps_them() -> None:
    compiled = tg.compile(lambda x: (x * 2)[:, ::2], wait=True, strict=True)
    for _ in range(2):
        assert compiled(tg.ones(2, 4)).stride() == (4, 2)
