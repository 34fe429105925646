"""Hooks, `autograd.Function` and `checkpoint` around and inside compiled functions: never lost.

Each program is a pair of twins, one compiled; between the calls hooks come and go. What the hooks see,
results and gradients are those of the function.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tracegrad as tg
from tracegrad import nn


class Twin:
    """Parameters, a module, a log, and a step to be compiled."""

    def __init__(self, program: Callable[[Twin, Any], Any], compiled: bool) -> None:
        tg.manual_seed(0)
        self.w = tg.rand(3, requires_grad=True)
        self.layer = nn.Linear(3, 3)
        self.log: list[Any] = []
        self.handles: list[Any] = []
        self.node: Any = None
        self.run = (
            tg.compile(lambda x: program(self, x)) if compiled else lambda x: program(self, x)
        )

    def note(self, value: Any) -> None:
        self.log.append(value.tolist() if isinstance(value, tg.Tensor) else value)


def plain(t: Twin, x: Any) -> Any:
    return (t.layer(x * t.w)).tanh()


def backward_inside(t: Twin, x: Any) -> Any:
    t.w.grad = None
    (t.layer(x) * t.w).sum().backward()
    return t.w.grad * 2


def hook_inside(t: Twin, x: Any) -> Any:
    y = x * t.w
    y.register_hook(lambda g: g * 2)
    return y.exp()


def hook_that_notes(t: Twin, x: Any) -> Any:
    y = x * t.w
    y.register_hook(lambda g: t.note(g))
    return y.exp()


def retained(t: Twin, x: Any) -> Any:
    y = x * t.w
    y.retain_grad()
    (y * y).sum().backward()
    return y.grad


class Cube(tg.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        (x,) = ctx.saved_tensors
        return g * x * 10  # not its derivative, so that it is seen to be used


def function_inside(t: Twin, x: Any) -> Any:
    return Cube.apply(x * t.w) + x


def checkpointed(t: Twin, x: Any) -> Any:
    return tg.utils.checkpoint.checkpoint(lambda y: (y * t.w).sin(), x, use_reentrant=False)


def saved_hooks_inside(t: Twin, x: Any) -> Any:
    def pack(v: Any) -> Any:
        t.note("pack")
        return v

    with tg.autograd.graph.saved_tensors_hooks(pack, lambda v: v):
        return (x * t.w).exp()


PROGRAMS = (
    plain, backward_inside, hook_inside, hook_that_notes, retained, function_inside, checkpointed,
    saved_hooks_inside,
)  # fmt: skip


def tensor_hook(t: Twin) -> None:
    t.handles.append(t.w.register_hook(lambda g: g * 3))


def noting_hook(t: Twin) -> None:
    t.handles.append(t.w.register_hook(lambda g: t.note(g.round(decimals=3))))


def post_hook(t: Twin) -> None:
    t.handles.append(
        t.w.register_post_accumulate_grad_hook(lambda p: t.note(p.grad.round(decimals=3)))
    )


def module_hook(t: Twin) -> None:
    t.handles.append(t.layer.register_forward_hook(lambda m, args, out: out * 2))


def module_pre_hook(t: Twin) -> None:
    t.handles.append(t.layer.register_forward_pre_hook(lambda m, args: (args[0] + 1,)))


def node_hook(t: Twin) -> None:
    t.node = t.w.expand(1, 3).grad_fn.next_functions[0][0]  # a leaf does not keep its node alive
    t.handles.append(t.node.register_prehook(lambda grads: (grads[0] * 5,)))


def remove(t: Twin) -> None:
    while t.handles:
        t.handles.pop().remove()


CHANGES = (tensor_hook, noting_hook, post_hook, module_hook, module_pre_hook, node_hook)


def same(got: Any, want: Any) -> None:
    if want is None or got is None:
        assert got is want
    else:
        np.testing.assert_allclose(
            got.detach().numpy(), want.detach().numpy(), rtol=2e-5, atol=1e-6
        )


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)
def test_hooks_that_come_and_go(program: Any, change: Any) -> None:
    eager, compiled = Twin(program, False), Twin(program, True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tg.EagerWarning)
        for k in range(8):
            results = []
            for t in (eager, compiled):
                if k in (2, 6):
                    change(t)
                if k == 4:
                    remove(t)
                x = tg.tensor(np.linspace(0.1, 0.7 + k, 3), dtype=tg.float32, requires_grad=True)
                y = t.run(x)
                if y.requires_grad:
                    y.sum().backward()
                results.append((y, x.grad, t.w.grad))
                if k % 3 == 2:
                    t.w.grad = None
            for mine, theirs in zip(results[1], results[0], strict=True):
                same(mine, theirs)
            assert len(compiled.log) == len(eager.log)
            for mine, theirs in zip(compiled.log, eager.log, strict=True):
                assert mine == pytest.approx(theirs, abs=2e-3)


@pytest.mark.parametrize("program", [plain, function_inside, hook_inside])
def test_second_derivatives_beside_hooks(program: Any) -> None:
    eager, compiled = Twin(program, False), Twin(program, True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tg.EagerWarning)
        for k in range(4):
            found = []
            for t in (eager, compiled):
                x = tg.full((3,), 0.3 + k / 10, requires_grad=True)
                (slope,) = tg.autograd.grad(t.run(x).sum(), x, create_graph=True)
                found.append((slope, tg.autograd.grad((slope * slope).sum(), t.w)[0]))
            for mine, theirs in zip(found[1], found[0], strict=True):
                same(mine, theirs)


def test_a_hook_on_a_leaf_that_autograd_grad_inside_comes_to() -> None:
    """It runs in `autograd.grad` too, whose gradients no `.grad` holds."""

    def program(t: Twin, x: Any) -> Any:
        (g,) = tg.autograd.grad((x * t.w).sin().sum(), t.w)
        return g * 2

    twins = [Twin(program, compiled) for compiled in (False, True)]
    x = tg.linspace(0, 1, 3)
    for change in ("nothing", "nothing", "hook", "again", "removed", "nothing"):
        for t in twins:
            if change == "hook":
                t.handles.append(t.w.register_hook(lambda g, t=t: (t.note(g), g * 10)[1]))
            elif change == "removed":
                t.handles.pop().remove()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            eager, compiled = (t.run(x) for t in twins)
        np.testing.assert_allclose(compiled.numpy(), eager.numpy(), rtol=1e-6)
        assert twins[0].log == twins[1].log or np.allclose(twins[0].log, twins[1].log)
    assert len(twins[1].log) == 2


# ---- where the backward runs inside, too --------------------------------------------------------


class Two(tg.autograd.Function):
    @staticmethod
    def forward(x: Any, y: Any) -> Any:
        return x * y, x + y

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, a: Any, b: Any) -> Any:
        x, y = ctx.saved_tensors
        return a * y * 2 + b, a * x * 3 + b


class Dirty(tg.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        return g * 5


class Times(tg.autograd.Function):
    factor = 3.0

    @staticmethod
    def forward(ctx: Any, x: Any, by: float) -> Any:
        ctx.by = by
        return x * by

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        return g * ctx.by * Times.factor, None


def with_hook(w: Any, x: Any) -> Any:
    y = x * w
    y.register_hook(lambda g: g * 2)
    handle = y.register_hook(lambda g: g * 100)
    handle.remove()
    return y.exp().sum()


def with_retained(w: Any, x: Any) -> Any:
    y = x * w
    y.retain_grad()
    z = (y * y).sum()
    z.backward(retain_graph=True)
    return z + (y.grad * 0.5).sum().detach() * w.sum()


def with_second_derivative(w: Any, x: Any) -> Any:
    (g,) = tg.autograd.grad(Cube.apply(x * w).sum(), w, create_graph=True)
    return (w * g).sum()


INSIDE: dict[str, Callable[[Any, Any], Any]] = {
    "function": lambda w, x: Cube.apply(x * w).sum(),
    "two results": lambda w, x: sum(Two.apply(x * w, w)).sum(),
    "written to": lambda w, x: Dirty.apply(x * w).sum(),
    "a number and a class attribute": lambda w, x: Times.apply(x * w, 0.5).sum(),
    "hook": with_hook,
    "retain_grad": with_retained,
    "second derivative": with_second_derivative,
}


@pytest.mark.parametrize("name", INSIDE)
def test_functions_and_hooks_whose_backward_runs_inside_are_replayed(name: str) -> None:
    body = INSIDE[name]

    def step(w: Any, x: Any) -> Any:
        w.grad = None
        loss = body(w, x)
        loss.backward()
        with tg.no_grad():
            w -= 0.1 * w.grad
        return loss.detach()

    compiled = tg.compile(step, strict=True, wait=True)
    mine, theirs = (tg.tensor([1.0, 2.0, 3.0], requires_grad=True) for _ in range(2))
    for k in range(4):
        x = tg.tensor([0.1, 0.2, 0.3]) * (k + 1)
        same(compiled(mine, x), step(theirs, x))
        same(mine, theirs)
        same(mine.grad, theirs.grad)
    assert compiled.cache_info().hits == 3


def test_what_a_backward_inside_reads_is_guarded() -> None:
    def step(w: Any) -> Any:
        (g,) = tg.autograd.grad(Times.apply(w, 0.5).sum(), w)
        return g

    compiled = tg.compile(step, strict=True, wait=True)
    w = tg.ones(2, requires_grad=True)
    before = Times.factor
    try:
        for factor in (3.0, 3.0, 4.0, 4.0):
            Times.factor = factor
            assert compiled(w).tolist() == [0.5 * factor] * 2
    finally:
        Times.factor = before
    assert compiled.cache_info().hits == 2


@pytest.mark.parametrize("keep", [True, False])
def test_a_graph_that_outlives_the_run(keep: bool) -> None:
    """It is replayed where the backward inside has left it whole."""

    def step(w: Any) -> Any:
        y = Cube.apply(w)
        (g,) = tg.autograd.grad(y.sum(), w, retain_graph=keep)
        return y, g

    compiled = tg.compile(step, wait=True)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for k in range(3):
            found = []
            for fn in (compiled, step):
                w = tg.full((2,), 1.0 + k, requires_grad=True)
                y, g = fn(w)
                if keep:
                    y.sum().backward()
                else:
                    with pytest.raises(tg.errors.GradientError, match="second time"):
                        y.sum().backward()
                found.append((y, g, w.grad))
            for mine, theirs in zip(*found, strict=True):
                same(mine, theirs)
    assert compiled.cache_info().hits == (2 if keep else 0)
    assert keep or "whose backward has run" in str(told[0].message)


def test_a_hook_on_a_tensor_from_outside_is_refused() -> None:
    def step(w: Any) -> Any:
        w.register_hook(lambda g: g * 2)
        return (w * 2).sum()

    compiled = tg.compile(step)
    with pytest.warns(tg.EagerWarning, match=r"register_hook\(\) is used inside"):
        compiled(tg.ones(2, requires_grad=True))
