"""Calls that are followed by a backward compute value and gradients in one pass.

Every case runs the same sequence of calls eagerly and compiled, long enough for the switch, and changes
something between; gradients, errors and memory must be those of eager mode.
"""

from __future__ import annotations

import dataclasses
import gc
import threading
import weakref

import numpy as np
import pytest

import tracegrad as tg
from tracegrad.ir.errors import GradientError
from tracegrad.tracer.joint import PATIENCE, UNUSED

SWITCHED = PATIENCE + 3  # calls after which launches are joint


def wave(x, w):
    return (x.sin() * w).exp().sum()


def leaves(*sizes: int) -> list[tg.Tensor]:
    rng = np.random.default_rng(0)
    return [tg.from_numpy(rng.standard_normal(n)).requires_grad_() for n in sizes]


def is_joint(compiled) -> bool:
    return compiled._order[-1].mode.active is not None


def settled(function, *given: tg.Tensor):
    """The function compiled, in joint mode, and the gradients of its arguments gone."""
    compiled = tg.compile(function, wait=True)
    for _ in range(SWITCHED):
        found = compiled(*given)
        (found[0] if isinstance(found, tuple) else found).backward()
    assert is_joint(compiled)
    for x in given:
        x.grad = None
    return compiled


def same(function, act, *sizes: int) -> None:
    """`act(f, *leaves)` returns tensors, or raises, alike for the function and the joint one."""
    outcomes = []
    for compile in (False, True):
        given = leaves(*sizes)
        f = settled(function, *given) if compile else function
        try:
            found = act(f, *given)
        except GradientError as error:
            found = str(error).split("[")[0][:60]
        outcomes.append((found, [x.grad for x in given]))
    (want, grads), (got, others) = outcomes
    if isinstance(want, str):
        assert got == want
    else:
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=1e-12)
    for a, b in zip(others, grads, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=1e-12)


def one_backward(f, x, w):
    y = f(x, w)
    y.backward()
    return (y,)


def two_calls_accumulate(f, x, w):
    for _ in range(2):
        f(x, w).backward()
    return ()


def retained_twice(f, x, w):
    y = f(x, w)
    y.backward(retain_graph=True)
    first = x.grad.clone()
    y.backward()
    return (first,)


def freed(f, x, w):
    y = f(x, w)
    y.backward()
    y.backward()


def another_cotangent(f, x, w):
    f(x, w).backward(tg.tensor(3.0, dtype=tg.float64))
    return ()


def scaled_loss(f, x, w):
    (f(x, w) * 0.25).backward()
    return ()


def sum_of_losses(f, x, w):
    (f(x, w) + f(x, w)).backward()
    return ()


def gradient_of_given(f, x, w):
    return tg.autograd.grad(f(x, w), (x, w))


def gradient_of_one(f, x, w):
    return tg.autograd.grad(f(x, w), (w,))


def second_derivative(f, x, w):
    (g,) = tg.autograd.grad(f(x, w), (x,), create_graph=True)
    return tg.autograd.grad(g.sum(), (x, w))


def backward_with_history(f, x, w):
    f(x, w).backward(create_graph=True)
    grads = x.grad, w.grad
    x.grad = w.grad = None
    return tg.autograd.grad(grads[0].sum(), (x, w))


def of_some_inputs(f, x, w):
    f(x, w).backward(inputs=[x])
    return ()


def hook_on_leaf(f, x, w):
    handle = x.register_hook(lambda g: g * 10)
    f(x, w).backward()
    handle.remove()
    f(x, w).backward()
    return ()


def hook_after_the_call(f, x, w):
    y = f(x, w)
    x.register_hook(lambda g: g * 10)
    y.backward()
    return ()


def hook_on_result(f, x, w):
    y = f(x, w)
    y.register_hook(lambda g: g * 2)
    y.backward()
    return ()


def result_retains(f, x, w):
    y = f(x, w)
    y.retain_grad()
    y.backward()
    return (y.grad,)


def accumulator_hook(f, x, w):
    seen = []
    y = f(x, w)
    node = y.grad_fn
    while node.next_functions:  # down to a leaf
        node = node.next_functions[0][0]
    node.register_hook(lambda a, b: seen.append(1))
    y.backward()
    return (tg.tensor([len(seen)]),)


def operand_overwritten(f, x, w):
    y = f(x, w)
    with tg.no_grad():
        w.mul_(2)
    y.backward()


def result_written(f, x, w):
    y = f(x, w)
    y.mul_(2)
    y.backward()
    return (y,)


def one_is_frozen(f, x, w):
    w.requires_grad_(False)
    y = f(x, w)
    y.backward()
    w.requires_grad_(True)
    return (y,)


def frozen_after_the_call(f, x, w):
    y = f(x, w)
    w.requires_grad_(False)
    y.backward()
    return ()


def not_leaves(f, x, w):
    f(x * 2, w.cos()).backward()
    return ()


def without_recording(f, x, w):
    with tg.no_grad():
        y = f(x, w)
    assert not y.requires_grad
    return (y,)


def in_inference(f, x, w):
    with tg.inference_mode():
        return (f(x, w) + 0,)


def gradient_of_transform(f, x, w):
    return (tg.func.grad(lambda x: f(x, w.detach()))(x.detach()),)


def other_values(f, x, w):
    with tg.no_grad():
        x.copy_(x * 0.5 + 1)
    return one_backward(f, x, w)


def memory_is_replaced(f, x, w):
    x.data = x.detach() * 3
    return one_backward(f, x, w)


def memory_replaced_after_the_call(f, x, w):
    y = f(x, w)
    x.data = x.detach().t().to(tg.float32)
    w.data = tg.zeros(5, dtype=tg.float64)
    y.backward()
    assert x.grad.dtype is x.dtype
    return ()


def saved_hooks_around(f, x, w):
    packed = []

    def pack(t):
        packed.append(1)
        return t

    with tg.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        f(x, w).backward()
    assert packed
    return ()


ACTS = [
    one_backward, two_calls_accumulate, retained_twice, freed, another_cotangent, scaled_loss,
    sum_of_losses, gradient_of_given, gradient_of_one, second_derivative, of_some_inputs,
    hook_on_leaf, hook_after_the_call, hook_on_result, result_retains, accumulator_hook,
    operand_overwritten, result_written, one_is_frozen, frozen_after_the_call, not_leaves,
    without_recording, in_inference, gradient_of_transform, other_values, memory_is_replaced,
    memory_replaced_after_the_call,
    saved_hooks_around,
    pytest.param(backward_with_history, marks=pytest.mark.filterwarnings("ignore:Using backward")),
]  # fmt: skip


@pytest.mark.parametrize("act", ACTS, ids=lambda f: f.__name__)
def test_what_follows_a_joint_call_is_as_eagerly(act) -> None:
    same(wave, act, 5, 5)


def product(x, w):
    return (x * w).sum()


def plain_sum(x, w):
    return (x + w).sum()


def only_one_matters(x, w):
    return (x * x).sum() + w.detach().sum()


def through_a_branch(x, w):
    return (x * w).sum() if x.sum() > 0 else (x - w).exp().sum()


@pytest.mark.parametrize("function", [product, plain_sum, only_one_matters, through_a_branch])
@pytest.mark.parametrize("act", [one_backward, two_calls_accumulate, retained_twice, other_values])
def test_other_functions(function, act) -> None:
    same(function, act, 4, 4)


def test_gradients_have_memory_of_their_own() -> None:
    """The gradient of a product is the other operand, that of a sum is the same for both."""
    for function in (product, plain_sum):
        x, w = leaves(4, 4)
        f = settled(function, x, w)
        f(x, w).backward()
        memories = [t.detach().numpy() for t in (x, w, x.grad, w.grad)]
        for k, a in enumerate(memories):
            assert not any(np.shares_memory(a, b) for b in memories[:k])
        before = w.grad.clone()
        x.grad.add_(1)
        assert w.grad.tolist() == before.tolist()


def test_a_loss_beside_other_results() -> None:
    """The usual step returns its predictions, too; only the loss is differentiated."""

    def step(x, w):
        y = x * w
        return (y * y).mean(), y

    x, w = leaves(6, 6)
    f = settled(step, x, w)
    loss, y = f(x, w)
    loss.backward()
    got = x.grad, w.grad
    x.grad = w.grad = None
    want_loss, want = step(x, w)
    want_loss.backward()
    assert y.tolist() == want.tolist() and loss.tolist() == pytest.approx(want_loss.tolist())
    np.testing.assert_allclose(got[0].numpy(), x.grad.numpy(), rtol=1e-12)
    np.testing.assert_allclose(got[1].numpy(), w.grad.numpy(), rtol=1e-12)
    x.grad = w.grad = None
    loss, y = f(x, w)
    (loss + y.sum()).backward()  # both, this time
    want_loss, want = step(x, w)
    got = x.grad, w.grad
    x.grad = w.grad = None
    (want_loss + want.sum()).backward()
    np.testing.assert_allclose(got[0].numpy(), x.grad.numpy(), rtol=1e-12)
    np.testing.assert_allclose(got[1].numpy(), w.grad.numpy(), rtol=1e-12)


def test_it_switches_back_where_gradients_go_unused_and_again_when_they_are_used() -> None:
    x, w = leaves(4, 4)
    f = settled(wave, x, w)
    values = {f(x, w).item() for _ in range(UNUSED + 2)}
    assert not is_joint(f)
    for _ in range(4 * PATIENCE):
        y = f(x, w)
        y.backward()
        values.add(y.item())
    assert is_joint(f)
    assert max(values) == pytest.approx(min(values), rel=1e-14)


def test_calls_of_which_few_are_differentiated_stay_apart() -> None:
    x, w = leaves(4, 4)
    f = tg.compile(wave, wait=True)
    for k in range(60):
        y = f(x, w)
        if k % 8 == 0:
            y.backward()
    assert not is_joint(f)


def test_random_numbers_are_the_same_bits() -> None:
    def noisy(x, w):
        return (tg.nn.functional.dropout(x, 0.5) * w).sum()

    runs = []
    for f in (noisy, tg.compile(noisy, wait=True)):
        tg.manual_seed(3)
        x, w = leaves(50, 50)
        found = []
        for _ in range(SWITCHED + 2):
            x.grad = None
            f(x, w).backward()
            found.append((x.grad != 0).tolist())
        runs.append((found, tg.rand(2).tolist()))
    assert runs[0] == runs[1]


def test_a_launch_whose_gradients_are_not_taken_frees_them() -> None:
    x, w = leaves(4, 4)
    f = settled(wave, x, w)
    y = f(x, w)
    gone = [weakref.ref(a) for a in y.grad_fn.gradients]
    del y
    gc.collect()
    assert all(r() is None for r in gone)


def test_threads_that_go_backward_at_once() -> None:
    x, w = leaves(8, 8)
    f = settled(wave, x, w)
    wave(x, w).backward()
    want = [t.grad.numpy() * 400 for t in (x, w)]
    x.grad = w.grad = None

    def work():
        for _ in range(100):
            f(x, w).backward()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    np.testing.assert_allclose(x.grad.numpy(), want[0], rtol=1e-10)
    np.testing.assert_allclose(w.grad.numpy(), want[1], rtol=1e-10)


def test_verification_keeps_a_wrong_joint_pass_out(monkeypatch) -> None:
    """Its first results are compared with the interpreter's, like those of every other pass."""
    from tracegrad.tracer import joint

    x, w = leaves(4, 4)
    f = tg.compile(wave, wait=True)
    build = joint.executable.build

    def wrong(graph, name, *rest, **options):
        made = build(graph, name, *rest, **options)
        if name != "joint":
            return made
        return dataclasses.replace(made, call=lambda *a: tuple(r + 1 for r in made.call(*a)))

    monkeypatch.setattr(joint.executable, "build", wrong)
    with pytest.warns(tg.VerificationWarning, match="joint pass of wave"):
        for _ in range(SWITCHED):
            f(x, w).backward()
    assert not is_joint(f)
    x.grad = None
    f(x, w).backward()
    got = x.grad
    x.grad = None
    wave(x, w).backward()
    np.testing.assert_allclose(got.numpy(), x.grad.numpy(), rtol=1e-12)


def test_the_worker_compiles_it_while_calls_go_on() -> None:
    x, w = leaves(4, 4)
    f = tg.compile(wave, wait=False)
    for _ in range(4 * PATIENCE):
        f(x, w).backward()
        f.wait()
    assert is_joint(f)


def test_explain_and_source_show_it() -> None:
    x, w = leaves(4, 4)
    f = settled(wave, x, w)
    assert "gradients: computed by each launch" in f.explain()
    text = f.source("joint")
    assert "out_0" in text and "out_2" in text
    assert "joint" in f.launcher()
