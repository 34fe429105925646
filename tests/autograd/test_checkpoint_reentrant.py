"""`checkpoint(use_reentrant=True)` and `checkpoint_sequential`, as in PyTorch.

The figures and texts are PyTorch's for the same programs.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from typing import Any

import numpy as np
import pytest

import tracegrad as tg
from tracegrad.utils.checkpoint import checkpoint, checkpoint_sequential, noop_context_fn


def leaf(*values: float) -> Any:
    return tg.tensor(values or (1.0, 2.0), dtype=tg.float64, requires_grad=True)


def again(function: Any, *args: Any, **options: Any) -> Any:
    return checkpoint(function, *args, use_reentrant=True, **options)


def later(function: Any, *args: Any, **options: Any) -> Any:
    return checkpoint(function, *args, use_reentrant=False, **options)


def plain(function: Any, *args: Any) -> Any:
    return function(*args)


# ---- the reentrant variant ----------------------------------------------------------------------


def test_gradients_reach_arguments_and_what_the_function_uses() -> None:
    found = []
    for call in (again, plain):
        x, w = leaf(), leaf(5.0, 6.0)
        y = call(lambda x, w=w: tg.sin(x * w) * w, x * 2)
        y.sum().backward()
        found.append((x.grad.tolist(), w.grad.tolist()))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-15)


def test_the_function_runs_without_recording_then_in_full() -> None:
    seen: list[bool] = []

    def function(x: Any) -> Any:
        y = tg.exp(x)
        seen.append(y.requires_grad)
        return y * 2

    y = again(function, leaf())
    assert repr(y).endswith("grad_fn=<CheckpointFunctionBackward>)")
    y.sum().backward(retain_graph=True)
    y.sum().backward()
    assert seen == [False, True, True]
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.sum().backward()


def test_several_outputs_of_which_some_have_no_gradient() -> None:
    x, z = leaf(), leaf(3.0, 4.0)
    a, b, c, d = again(lambda x, z: (x * z, tg.exp(z), x.detach(), 5), x, z)
    assert d == 5
    a.sum().backward()
    assert x.grad.tolist() == [3, 4] and z.grad.tolist() == [1, 2]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_nested_in_itself_and_in_the_other_variant() -> None:
    found = []
    for outer, inner in ((again, again), (again, later), (later, again), (plain, plain)):
        x = leaf()
        y = outer(lambda x, i=inner: i(lambda z: tg.sin(z) * z, x * 2) + x, x)
        y.sum().backward()
        found.append(x.grad.tolist())
    np.testing.assert_allclose(found[:3], [found[3]] * 3, rtol=1e-15)


def test_random_numbers_are_the_same_ones_if_asked_for() -> None:
    drawn: list[Any] = []

    def function(x: Any) -> Any:
        drawn.append(tg.rand(2).tolist())
        return x * 2

    for preserve in (True, False):
        drawn.clear()
        tg.manual_seed(0)
        y = again(function, leaf(), preserve_rng_state=preserve)
        y.sum().backward()
        assert (drawn[0] == drawn[1]) is preserve


def test_only_a_plain_backward_goes_through_it() -> None:
    x = leaf()
    y = again(tg.exp, x).sum()
    text = (
        r"^When use_reentrant=True, torch.utils.checkpoint is incompatible with .grad\(\) or "
        r"passing an `inputs` parameter to .backward\(\)"
    )
    with pytest.raises(RuntimeError, match=text):
        tg.autograd.grad(y, x)
    with pytest.raises(RuntimeError, match=text):
        y.backward(inputs=[x])
    y.backward()
    np.testing.assert_allclose(x.grad.numpy(), np.exp([1.0, 2.0]))


def test_something_must_require_grad() -> None:
    with pytest.warns(
        UserWarning, match="^None of the inputs have requires_grad=True. Gradients will be None$"
    ) as told:
        assert not again(tg.exp, tg.ones(2)).requires_grad
    assert told[0].filename == __file__
    y = again(lambda x: x.detach(), leaf())
    with pytest.raises(
        RuntimeError,
        match=r"^none of output has requires_grad=True, this checkpoint\(\) is not necessary$",
    ):
        y.sum().backward()


def test_tensors_in_containers_take_no_part() -> None:
    x = leaf()
    y = again(lambda x, more: x * more["x"], x, {"x": x})
    y.sum().backward()
    assert x.grad.tolist() == [2, 4]  # through the container too, by the backward inside


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="^Unexpected keyword arguments: scale,bias$"):
        again(tg.exp, leaf(), scale=2, bias=1)
    text = "^Passing `context_fn` or `debug` is only supported when use_reentrant=False.$"
    with pytest.raises(ValueError, match=text):
        again(tg.exp, leaf(), context_fn=lambda: noop_context_fn())
    with pytest.raises(ValueError, match=text):
        again(tg.exp, leaf(), debug=True)
    again(tg.exp, leaf(), context_fn=noop_context_fn)


def test_an_argument_overwritten_in_between_is_noticed() -> None:
    x = leaf() * 1
    y = again(tg.exp, x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_it_keeps_nothing_but_its_arguments() -> None:
    made: list[Any] = []

    def function(x: Any) -> Any:
        y = tg.exp(x)
        made.append(weakref.ref(y._array))
        return tg.sin(y)

    x = leaf()
    y = again(function, x)
    assert made[0]() is None
    y.sum().backward()
    del y
    gc.collect()
    assert made[1]() is None


def test_inside_a_compiled_function_the_run_stays_eager() -> None:
    f = tg.compile(lambda x: again(lambda y: tg.exp(y) * y, x) * 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for n in (1.0, 2.0, 3.0):
            x = leaf(n)
            f(x).sum().backward()
            np.testing.assert_allclose(x.grad.numpy(), 2 * np.exp(n) * (n + 1))
    assert any("checkpoint is used inside" in str(w.message) for w in caught)


# ---- several functions in a row -----------------------------------------------------------------

CHAIN = [tg.sin, lambda x: x * 2, tg.exp, lambda x: x + 1, lambda x: x * x]


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("segments", [1, 2, 3, 4, 5])
def test_a_sequence_in_any_number_of_segments(segments: int, reentrant: bool) -> None:
    x = leaf()
    y = checkpoint_sequential(CHAIN, segments, x * 1, use_reentrant=reentrant)
    y.sum().backward()
    want = leaf()
    out = want
    for function in CHAIN:
        out = function(out)
    out.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), want.grad.numpy(), rtol=1e-15)


def test_all_segments_but_the_last_run_again() -> None:
    calls: list[int] = []

    def step(k: int) -> Any:
        def function(x: Any) -> Any:
            calls.append(k)
            return tg.exp(x)

        return function

    x = leaf(0.1)
    y = checkpoint_sequential([step(k) for k in range(5)], 2, x, use_reentrant=False)
    assert calls == [0, 1, 2, 3, 4]
    calls.clear()
    y.sum().backward()
    assert calls == [0, 1]


def test_a_sequential_module() -> None:
    model = tg.nn.Sequential(tg.nn.Linear(2, 3), tg.nn.Tanh(), tg.nn.Linear(3, 1))
    x = tg.ones(1, 2, requires_grad=True)
    model(x).backward()
    want = [p.grad.clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = None
    checkpoint_sequential(model, 2, x, use_reentrant=False).backward()
    for p, w in zip(model.parameters(), want, strict=True):
        np.testing.assert_allclose(p.grad.numpy(), w.numpy(), rtol=1e-6)


def test_arguments_of_a_sequence_are_checked() -> None:
    x = leaf()
    with pytest.raises(ValueError, match="^Unexpected keyword arguments: foo$"):
        checkpoint_sequential(CHAIN, 2, x, use_reentrant=False, foo=1)
    with pytest.raises(ValueError, match="6 segments of 5 functions .* must be at most 5"):
        checkpoint_sequential(CHAIN, 6, x, use_reentrant=False)
    with pytest.raises(ZeroDivisionError):
        checkpoint_sequential(CHAIN, 0, x, use_reentrant=False)
    with pytest.warns(
        UserWarning, match="^torch.utils.checkpoint.checkpoint_sequential: the use_reentrant"
    ) as told:
        checkpoint_sequential(CHAIN, 2, x)
    assert len(told) == 1 and told[0].filename == __file__
