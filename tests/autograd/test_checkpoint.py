"""`utils.checkpoint`: the variant `use_reentrant=False` and what both share, as in PyTorch."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest

import tracegrad as tg
from tracegrad.autograd import Function
from tracegrad.autograd.graph import save_on_cpu, saved_tensors_hooks
from tracegrad.utils.checkpoint import CheckpointError, checkpoint, set_checkpoint_early_stop


def leaf(*values: float) -> Any:
    return tg.tensor(values or (1.0, 2.0), dtype=tg.float64, requires_grad=True)


def kept(function: Any, *args: Any, **options: Any) -> Any:
    return checkpoint(function, *args, use_reentrant=False, **options)


class Cube(Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return grad * 3 * ctx.saved_tensors[0] ** 2


FUNCTIONS = [
    lambda x: tg.sin(tg.exp(x) * x),
    lambda x: Cube.apply(Cube.apply(x) + x),
    lambda x: tg.exp(kept(lambda y: tg.sin(y) * y, x) * x),
    tg.compile(lambda x: tg.tanh(x * x) * x),
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=["plain", "Function", "nested", "compiled"])
def test_derivatives_are_those_without_checkpoint(function: Any) -> None:
    """First and second ones, and backward twice with `retain_graph`."""
    found = []
    for call in (kept, lambda f, x: f(x)):
        x = leaf()
        y = call(function, x * 1).sum()
        (g,) = tg.autograd.grad(y, x, create_graph=True)
        (h,) = tg.autograd.grad((g * g).sum(), x, retain_graph=True)
        y.backward(retain_graph=True)
        y.backward()
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            y.backward()
        found.append((g.tolist(), h.tolist(), x.grad.tolist()))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-12)


def test_second_derivatives_of_functions_under_saved_tensor_hooks() -> None:
    """What `save_for_backward` kept through hooks has its history again."""
    x = leaf()
    with save_on_cpu():
        y = Cube.apply(x * 1).sum()
    (g,) = tg.autograd.grad(y, x, create_graph=True)
    (h,) = tg.autograd.grad(g.sum(), x)
    assert h.tolist() == [6, 12]


def test_intermediate_values_are_not_kept_and_freed_during_the_backward() -> None:
    made: list[Any] = []

    def function(x: Any) -> Any:
        y = tg.exp(x)
        made.append(weakref.ref(y._array))
        return tg.sin(y)

    x = leaf()
    y = kept(function, x)
    assert [r() for r in made] == [None]
    y.sum().backward()
    assert [r() for r in made] == [None, None]


def test_the_function_runs_once_more_per_backward_and_stops_early() -> None:
    calls: list[str] = []

    def function(x: Any) -> Any:
        calls.append("start")
        y = tg.exp(tg.sin(x)) * 2
        calls.append("end")
        return y

    kept(function, leaf()).sum().backward()
    assert calls == ["start", "end", "start"]
    calls.clear()
    kept(function, leaf(), early_stop=False).sum().backward()
    assert calls == ["start", "end"] * 2


def test_random_numbers_are_the_same_ones() -> None:
    def function(x: Any) -> Any:
        return tg.exp(x) * tg.rand(2, dtype=tg.float64)

    results = []
    for call in (kept, lambda f, x: f(x)):
        tg.manual_seed(3)
        x = leaf()
        y = call(function, x)
        tg.rand(5)
        y.sum().backward()
        results.append((x.grad.tolist(), tg.rand(1).item()))
    assert results[0] == results[1]


def test_arguments_overwritten_in_between_are_noticed() -> None:
    x = leaf() * 1
    y = kept(lambda x: tg.sin(tg.exp(x)), x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def twice(first: Any, second: Any) -> Any:
    calls: list[int] = []

    def function(x: Any) -> Any:
        calls.append(1)
        return first(x) if len(calls) == 1 else second(x)

    return function


def test_another_computation_the_second_time_is_noticed() -> None:
    f = twice(lambda x: tg.sin(tg.exp(x)), lambda x: x + 1)
    with pytest.raises(
        CheckpointError,
        match="A different number of tensors was saved during the original forward and "
        "recomputation.\nNumber of tensors saved during forward: 2\n"
        "Number of tensors saved during recomputation: 0",
    ):
        kept(f, leaf()).sum().backward()
    f = twice(lambda x: tg.sin(tg.exp(x)), lambda x: tg.sin(tg.exp(x.sum())))
    with pytest.raises(
        CheckpointError,
        match="Recomputed values for the following tensors have different metadata than during "
        "the forward pass.\ntensor at position 0:\nsaved metadata: ",
    ):
        kept(f, leaf()).sum().backward()


def test_contexts_and_keywords() -> None:
    seen: list[str] = []

    class Note:
        def __init__(self, text: str) -> None:
            self.text = text

        def __enter__(self) -> None:
            seen.append(self.text)

        def __exit__(self, *error: object) -> None:
            pass

    x = leaf()
    y = kept(
        lambda x, scale: tg.exp(x * scale), x, scale=2.0,
        context_fn=lambda: (Note("first"), Note("second")),
    )  # fmt: skip
    y.sum().backward()
    assert seen == ["first", "second"]
    np.testing.assert_allclose(x.grad.numpy(), 2 * np.exp([2.0, 4.0]))


def test_inside_a_compiled_function_it_is_replayed() -> None:
    f = tg.compile(lambda x: kept(lambda y: tg.exp(y) * y, x) * 2, wait=True, strict=True)
    for n in (1.0, 2.0, 3.0):
        x = leaf(n)
        f(x).sum().backward()
        np.testing.assert_allclose(x.grad.numpy(), 2 * np.exp(n) * (n + 1), rtol=1e-6)
    assert f.cache_info().hits == 2


def test_without_grad_mode_it_is_a_plain_call() -> None:
    with tg.no_grad():
        assert kept(tg.exp, leaf()).grad_fn is None


def test_options_are_checked() -> None:
    with pytest.raises(
        ValueError, match=r"^determinism_check should be one of \['default', 'none'"
    ):
        kept(tg.exp, leaf(), determinism_check="foo")
    with pytest.raises(NotImplementedError, match="checkpoint: debug=True is not supported"):
        kept(tg.exp, leaf(), debug=True)
    with pytest.warns(
        UserWarning,
        match="^torch.utils.checkpoint: the use_reentrant parameter should be passed explicitly",
    ) as told:
        checkpoint(tg.exp, leaf())
    assert told[0].filename == __file__


def test_more_saved_tensors_the_second_time_are_refused() -> None:
    """PyTorch's text; with `early_stop` the second run ends before."""
    f = twice(tg.exp, lambda x: tg.sin(tg.exp(x)))
    with pytest.raises(
        CheckpointError,
        match="^torch.utils.checkpoint: trying to save more tensors during recomputation than "
        "during the original forward pass.",
    ):
        kept(f, leaf(), early_stop=False).sum().backward()


def test_early_stop_can_be_set_for_a_block() -> None:
    """`set_checkpoint_early_stop` counts when `checkpoint` is called, over its argument."""
    ends: list[int] = []

    def function(x: Any) -> Any:
        y = tg.exp(x) * 2
        ends.append(1)
        return y

    with set_checkpoint_early_stop(False):
        y = kept(function, leaf())
        with set_checkpoint_early_stop(True):
            z = kept(function, leaf(), early_stop=False)
    assert len(ends) == 2
    z.sum().backward()
    assert len(ends) == 2
    y.sum().backward()
    assert len(ends) == 3


def test_the_module_is_found_without_importing_it() -> None:
    assert tg.utils.checkpoint.checkpoint is checkpoint
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tg.utils.nothing  # noqa: B018


def logged(function: Any, *args: Any, twice: bool = False) -> list[Any]:
    """What hooks around a checkpoint and a product are given and asked for, in order."""
    log: list[Any] = []

    def pack(tensor: Any) -> Any:
        log.append(tensor.tolist())
        return len(log) - 1, tensor

    def unpack(packed: Any) -> Any:
        log.append(packed[0])
        return packed[1]

    with saved_tensors_hooks(pack, unpack):
        y = kept(function, *args)
        log.append("called")
        z = (y * y).sum()
    log.append("backward")
    z.backward(retain_graph=twice)
    if twice:
        z.backward()
    return log


def test_hooks_around_keep_the_arguments_as_in_pytorch() -> None:
    """torch 2.13's order: each tensor among the positional arguments, also without gradient, before
    the function runs, and nothing of the inside; asked for again when the backward needs the inside.
    """
    x = leaf(1.0, 2.0)
    assert logged(lambda a: a * a * a, x) == [
        [1, 2], "called", [1, 8], [1, 8], "backward", 2, 3, 0,
    ]  # fmt: skip
    assert x.grad.tolist() == [6.0, 192.0]
    factor = tg.tensor([3.0, 3.0], dtype=tg.float64)
    assert logged(lambda a, b, n: a * b**n, x, factor, 1)[:3] == [[1, 2], [3, 3], "called"]
    assert logged(lambda pair: pair[0] * pair[1], [x, x])[0] == "called"
    assert logged(lambda a: a * factor, x)[:2] == [[1, 2], "called"]
    assert logged(lambda a: kept(lambda b: b * b, a) * a, x)[:2] == [[1, 2], "called"]
    assert logged(lambda a: a * a, x, twice=True)[5:] == [2, 3, 0, 2, 3, 0]


def test_the_second_run_has_what_the_hooks_around_give_back() -> None:
    x = leaf(1.0, 2.0)
    with saved_tensors_hooks(lambda t: t * 10, lambda t: t):
        y = kept(lambda a: a * a, x)
    y.sum().backward()
    assert x.grad.tolist() == [20.0, 40.0]  # as torch 2.13
    z = leaf(1.0, 2.0) * 1
    with saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        y = kept(lambda a: a * a, z)
    z.add_(1)  # the hooks have a copy
    (found,) = tg.autograd.grad(y.sum(), y)
    assert found.tolist() == [1.0, 1.0]
    with saved_tensors_hooks(lambda t: (t, t._version), lambda packed: packed[0]):
        y = kept(lambda a: a * a, x * 1)
    (g,) = tg.autograd.grad(y.sum(), x, create_graph=True)
    assert tg.autograd.grad(g.sum(), x)[0].tolist() == [2.0, 2.0]


def test_arguments_that_hooks_pack_are_not_held() -> None:
    x = leaf(1.0, 2.0)
    given = x * 3
    gone = weakref.ref(given._array)
    with saved_tensors_hooks(lambda t: t.detach().numpy().copy(), tg.from_numpy):
        y = kept(lambda a: (a * a).exp(), given)
    del given
    assert gone() is None
    y.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 18 * np.array([1, 2]) * np.exp([9.0, 36.0]))
