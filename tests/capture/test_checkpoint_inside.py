"""`checkpoint` inside compiled functions: the compiled backward computes again what it did not keep."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from user_node_cases import LOG, Cube, agree, backwards, note, run, second

import tracegrad as tg
from tracegrad import nn
from tracegrad.utils.checkpoint import checkpoint, checkpoint_sequential

NORM = nn.BatchNorm1d(3)
OWN = tg.Generator().manual_seed(3)


@pytest.fixture(autouse=True)
def _empty_log() -> None:
    LOG.clear()


def again(function: Any, *args: Any, **options: Any) -> Any:
    return checkpoint(function, *args, use_reentrant=False, **options)


def chain(w: Any, x: Any) -> Any:
    return again(lambda y: (y * w).sin().exp() * y, x)


def two(w: Any, x: Any) -> Any:
    y = again(lambda y: (y * w).sin(), x * 2)
    return again(lambda y, z: y.exp() * z, y, w) + y


def nested(w: Any, x: Any) -> Any:
    def inner(y: Any) -> Any:
        return (y * y).tanh() * w

    return again(lambda y: again(inner, y.sin()).exp(), x * w)


def products(w: Any, x: Any) -> Any:
    m = w[:, None] * x
    return again(lambda a: (a @ a).relu() @ a.t(), m).sum(0)


def random(w: Any, x: Any) -> Any:
    y = again(lambda y: nn.functional.dropout(y * w, 0.5) * tg.rand(3), x)
    return y + tg.rand(3)  # the stream goes on behind the numbers of the checkpoint


def path(w: Any, x: Any) -> Any:
    return again(lambda y: y.exp() * w if y.sum() > 1 else y * w * w, x)


def function_inside(w: Any, x: Any) -> Any:
    return again(lambda y: Cube.apply(y * w).exp(), x)


def hook_behind(w: Any, x: Any) -> Any:
    y = again(lambda y: (y * w).exp(), x)
    y.register_hook(lambda g: (note("hook", g), g * 2)[1])
    return y * w


def several_results(w: Any, x: Any) -> Any:
    a, b = again(lambda y: (y * w, {"b": (y + w).sin()}), x)
    return a * b["b"]


def without_grad(w: Any, x: Any) -> Any:
    with tg.no_grad():
        scale = again(lambda y: y.exp().sum(), x)
    return x * w * scale


def sequential(w: Any, x: Any) -> Any:
    layers = [tg.sin, tg.exp, tg.tanh, lambda t: t * w]
    return checkpoint_sequential(layers, 2, x, use_reentrant=False)


PROGRAMS = (
    chain, two, nested, products, random, path, function_inside, hook_behind, several_results,
    without_grad, sequential,
)  # fmt: skip


@pytest.mark.parametrize("after", [backwards, second], ids=["twice", "second derivative"])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)
def test_replayed_as_eagerly(program: Any, after: Any) -> None:
    compiled = tg.compile(program, wait=True, strict=True)
    state = tg.get_rng_state
    found = [run(compiled, 6, after), state().tolist()]
    agree(found, [run(program, 6, after), state().tolist()])
    assert compiled.cache_info().hits >= 2


def test_nothing_inside_is_kept_for_the_backward() -> None:
    """Not the products nor what is computed of them: the backward computes them once more."""

    def layers(x: Any, *weights: Any) -> Any:
        for w in weights:
            x = (x @ w).tanh().softmax(-1)
        return x

    def kept(fn: Any) -> int:
        """Elements that the forward of a replay leaves for the backward, its inputs left out."""
        f = tg.compile(fn, wait=True, strict=True)
        args = [tg.rand(16, 16, requires_grad=True) for _ in range(4)]
        f(*args)
        result = f(*args)
        own = {id(a._array) for a in args}
        return sum(a.size for a, _, _ in result.grad_fn.residuals if id(a) not in own)

    def whole(x: Any, *weights: Any) -> Any:
        return layers(x, *weights).sum()

    def checkpointed(x: Any, *weights: Any) -> Any:
        return again(layers, x, *weights).sum()

    def in_two(x: Any, *weights: Any) -> Any:
        y = again(layers, x, *weights[:2])
        return again(layers, y, *weights[2:]).sum()

    assert kept(whole) >= 3 * 16 * 16
    assert kept(checkpointed) == 0
    assert kept(in_two) == 16 * 16


def test_sizes_that_vary() -> None:
    f = tg.compile(chain, wait=True, strict=True)
    for n in (30, 31, 32, 30, 31, 32):
        found = []
        for fn in (f, chain):
            w, x = (tg.linspace(0, k, n, requires_grad=True) for k in (1, 2))
            fn(w, x).sum().backward()
            found.append([w.grad, x.grad])
        agree(*found)
    assert f.cache_info().hits == 3


def test_a_parameter_that_is_written_to_before_the_backward_is_noticed() -> None:
    """Eager mode would compute with the new values; the compiled backward refuses."""
    f = tg.compile(chain, wait=True, strict=True)
    f(tg.ones(3, requires_grad=True), tg.ones(3, requires_grad=True))
    w, x = tg.ones(3, requires_grad=True), tg.ones(3, requires_grad=True)
    y = f(w, x)
    with tg.no_grad():
        w.mul_(2)
    with pytest.raises(tg.errors.GradientError, match="modified by an inplace operation"):
        y.sum().backward()


# ---- what stays eager, and why ------------------------------------------------------------------


def counts_batches(w: Any, x: Any) -> Any:
    return again(lambda y: NORM(y * w), x.expand(4, 3) * tg.arange(1.0, 5.0)[:, None])


def draws_others(w: Any, x: Any) -> Any:
    return again(lambda y: y * w * tg.rand(3), x, preserve_rng_state=False)


def draws_from_its_own(w: Any, x: Any) -> Any:
    return again(lambda y: y * w * tg.rand(3, generator=OWN), x)


def has_a_hook(w: Any, x: Any) -> Any:
    def hooked(y: Any) -> Any:
        z = y * w
        z.register_hook(lambda g: (note("hook", g), g * 2)[1])
        return z.exp()

    return again(hooked, x)


def with_contexts(w: Any, x: Any) -> Any:
    return again(lambda y: y * w, x, context_fn=lambda: (tg.enable_grad(), tg.enable_grad()))


def reentrant(w: Any, x: Any) -> Any:
    return checkpoint(lambda y: (y * 2).exp(), x * w, use_reentrant=True)


def between_saved_hooks(w: Any, x: Any) -> Any:
    with tg.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        return again(lambda y: (y * w).exp(), x)


def writes_afterwards(w: Any, x: Any) -> Any:
    """Eager mode's second run sees what was written."""
    v = w * 1.0
    y = again(lambda y: (y * v).exp(), x)
    v.mul_(0.5)
    return y * v.detach()


def notes(w: Any, x: Any) -> Any:
    return again(lambda y: (note("run"), y * w)[1], x)


@pytest.mark.parametrize(
    ("program", "text"),
    [
        (counts_batches, "writes to a tensor from outside of it, and would so when it runs again"),
        (draws_others, "draws other random numbers"),
        (draws_from_its_own, "draws from a generator of its own"),
        (has_a_hook, "has hooks, gradients, callbacks"),
        (with_contexts, "checkpoint is used inside the function"),
        (reentrant, "checkpoint is used inside the function"),
        (between_saved_hooks, "checkpoint is used inside the function"),
        (writes_afterwards, "a tensor is written to after a checkpoint that may have used it"),
        (notes, "side effect"),
    ],
)
def test_eager_with_the_reason(program: Any, text: str) -> None:
    def once(w: Any, x: Any) -> Any:
        result = program(w, x)
        return result.sum()

    def after(result: Any, w: Any, x: Any) -> list[Any]:
        result.backward()
        return [result, w.grad, x.grad, NORM.running_mean.clone()]

    compiled = tg.compile(once, wait=True)
    found = []
    with pytest.warns(tg.EagerWarning) as told:
        for fn in (compiled, once):
            NORM.reset_running_stats()
            OWN.manual_seed(3)
            found.append(run(fn, 4, after))
    assert any(text in line for line in compiled.explain().splitlines()), compiled.explain()
    assert told
    agree(*found)
    assert compiled.cache_info().hits == 0
    assert np.isfinite(found[0][0][0].item())
