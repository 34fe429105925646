"""Programs with hooks and `Function`s inside, and how a compiled one is compared with itself.

`run` calls a function several times with other values; what comes of it, gradients, the order of the
calls of the user's code and what that code sees must `agree`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tracegrad as tg
from tracegrad import nn

LOG: list[Any] = []


def note(*values: Any) -> None:
    LOG.append([v.tolist() if isinstance(v, tg.Tensor) else v for v in values])


def taken() -> list[Any]:
    found = list(LOG)
    LOG.clear()
    return found


class Cube(tg.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        (x,) = ctx.saved_tensors
        note("cube", g, x, ctx.needs_input_grad)
        return g * x * 10  # not its derivative, so that it is seen to be used


class Exp(tg.autograd.Function):
    """Keeps its result."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        y = x.exp()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        (y,) = ctx.saved_tensors
        note("exp", g, y)
        return g * y * 2


class Two(tg.autograd.Function):
    """Two arguments, two results, attributes of many kinds."""

    @staticmethod
    def forward(x: Any, y: Any, by: Any) -> Any:
        return x * y, (x + y) * by

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, y, by = inputs
        ctx.save_for_backward(x, None, y)
        ctx.set_materialize_grads(False)
        ctx.by, ctx.shape, ctx.kept = by, x.shape, {"mean": x.mean(), "list": [y.sum(), 3]}

    @staticmethod
    def backward(ctx: Any, a: Any, b: Any) -> Any:
        x, none, y = ctx.saved_tensors
        assert none is None
        note("two", a, b, ctx.by, tuple(ctx.shape), ctx.kept["mean"], *ctx.kept["list"])
        gx = gy = None
        if ctx.needs_input_grad[0]:
            gx = (0 if a is None else a * y * 2) + (0 if b is None else b * ctx.by)
        if ctx.needs_input_grad[1]:
            gy = (0 if a is None else a * x * 3) + (0 if b is None else b * ctx.kept["mean"])
        return gx, gy, None


class Dirty(tg.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        note("dirty", g)
        return g * 5


class Same(tg.autograd.Function):
    """Returns its argument."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        note("same", g)
        return -g


class Mask(tg.autograd.Function):
    """A second result without gradient, and a tensor on ctx."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.mask = x > 0.3
        count = ctx.mask.sum()
        ctx.mark_non_differentiable(count)
        return x * ctx.mask, count

    @staticmethod
    def backward(ctx: Any, g: Any, count: Any) -> Any:
        note("mask", g, count, ctx.mask)
        return g * ctx.mask


# ---- programs: w is a leaf, x an argument that may require grad ---------------------------------


def hook(w: Any, x: Any) -> Any:
    y = x * w
    y.register_hook(lambda g: g * 2)
    return y.exp()


def hook_after_uses(w: Any, x: Any) -> Any:
    y = x * w
    z = y.exp()
    y.register_hook(lambda g: note("hook", g))
    return z + y.sin()


def hooks_in_order(w: Any, x: Any) -> Any:
    a = (x * w).sin()
    b = (x + w).exp()
    c = a * 2
    b.register_hook(lambda g: note("b", g))
    a.register_hook(lambda g: (note("a", g), g * 2)[1])
    a.register_hook(lambda g: note("a again", g))
    c.register_hook(lambda g: note("c", g))
    return c * b + a


def hook_that_sees_tensors(w: Any, x: Any) -> Any:
    y = x * w
    z = y.sin()
    scale, part = 3.0, (z, [x, 2.0])
    z.register_hook(lambda g: g * y * scale + part[0] * part[1][0] * w)
    return z * 2


def hook_of_a_hook(w: Any, x: Any) -> Any:
    y = x * w

    def scaled(g: Any, by: Any = 2.0, *, more: Any = y) -> Any:
        return g * by + more

    def outer(g: Any) -> Any:
        return scaled(g) + 1

    y.register_hook(functools.partial(outer))
    return y.exp()


def hook_that_removes_itself(w: Any, x: Any) -> Any:
    y = x * w

    def once(g: Any) -> Any:
        note("once", g)
        handle.remove()
        return g * 7

    handle = y.register_hook(once)
    return y.sin()


def hook_that_counts(w: Any, x: Any) -> Any:
    y = x * w
    count = 0

    def counted(g: Any) -> Any:
        nonlocal count
        count += 1
        note("count", count)
        return g * count

    y.register_hook(counted)
    y.register_hook(lambda g: note("so far", count))
    return y * 3


def hook_removed(w: Any, x: Any) -> Any:
    y = x * w
    with y.register_hook(lambda g: g * 100):
        return y.exp()


def retained_result(w: Any, x: Any) -> Any:
    y = x * w
    y.retain_grad()
    return y, (y * y).sum()


def function(w: Any, x: Any) -> Any:
    return Cube.apply(x * w) + x


def function_of_arguments(w: Any, x: Any) -> Any:
    return Cube.apply(w) * x + Cube.apply(x)


def function_of_views(w: Any, x: Any) -> Any:
    return Cube.apply(x.reshape(3, 1)).sum() + Cube.apply(w[1:]).sum() + Cube.apply(x.flip(0)).sum()


def functions_in_a_row(w: Any, x: Any) -> Any:
    return Exp.apply(Cube.apply(Cube.apply(x * w)))


def functions_side_by_side(w: Any, x: Any) -> Any:
    a = Cube.apply(x * w)
    b = Exp.apply(w)
    return Cube.apply(a * b) + Exp.apply(a) * b


def two_results(w: Any, x: Any) -> Any:
    a, b = Two.apply(x * w, w, 2.5)
    return a.sum() + b.sin().sum()


def one_result_of_two(w: Any, x: Any) -> Any:
    return Two.apply(w, x, 2.5)[1]


def result_is_a_functions(w: Any, x: Any) -> Any:
    return Exp.apply(w * x)


def written_to_in_a_function(w: Any, x: Any) -> Any:
    y = x * w
    z = Dirty.apply(y)
    return z.sin() + y


def written_to_afterwards(w: Any, x: Any) -> Any:
    y = Exp.apply(x * w) * 1
    z = Cube.apply(y.clone())
    z += 1
    z *= w
    return z


def returned_as_it_is(w: Any, x: Any) -> Any:
    y = (x * w).sin()
    return (Same.apply(y) * y).sum()


def without_gradient(w: Any, x: Any) -> Any:
    y, count = Mask.apply(x * w)
    return y * count


def hook_on_a_functions_result(w: Any, x: Any) -> Any:
    y = Cube.apply(x * w)
    y.register_hook(lambda g: (note("hook", g), g * y)[1])
    a, b = Two.apply(y, w, 0.5)
    b.register_hook(lambda g: g * 3)
    return a * b


def module(w: Any, x: Any) -> Any:
    y = LAYER(x * w)
    y.register_hook(lambda g: g * 2)
    return nn.functional.relu(y).mean()


def random(w: Any, x: Any) -> Any:
    y = Cube.apply(x * w * tg.rand(3))
    return nn.functional.dropout(y, 0.5)


def path(w: Any, x: Any) -> Any:
    y = Cube.apply(x * w)
    if x.sum() > 1:
        y = Exp.apply(y)
    else:
        y.register_hook(lambda g: g * 9)
    return y


def state(w: Any, x: Any) -> Any:
    with tg.no_grad():
        SEEN.mul_(0.9).add_(x)
    return Cube.apply(x * w) * SEEN.clone()


LAYER = nn.Linear(3, 3)
SEEN = tg.zeros(3)

PROGRAMS = (
    hook, hook_after_uses, hooks_in_order, hook_that_sees_tensors, hook_of_a_hook,
    hook_that_removes_itself, hook_that_counts, hook_removed, retained_result, function,
    function_of_arguments, function_of_views, functions_in_a_row, functions_side_by_side,
    two_results, one_result_of_two, result_is_a_functions, written_to_in_a_function,
    written_to_afterwards, returned_as_it_is, without_gradient, hook_on_a_functions_result, module,
    random, path, state,
)  # fmt: skip


def run(
    fn: Callable[..., Any], calls: int, after: Callable[[Any, Any, Any], list[Any]]
) -> list[list[Any]]:
    """What `after` makes of the results of some calls, with the log of each."""
    tg.manual_seed(0)
    with tg.no_grad():
        SEEN.zero_()
    LAYER.zero_grad()
    found = []
    for k in range(calls):
        w = tg.tensor([0.5, 1.0, -0.7], requires_grad=True)
        x = tg.tensor(np.linspace(0.1, 0.4 + k / 4, 3), dtype=tg.float32, requires_grad=True)
        x = x if k % 3 else x.detach()
        found.append([*after(fn(w, x), w, x), SEEN.clone(), LAYER.weight.grad, taken()])
    return found


def agree(mine: Any, theirs: Any) -> None:
    assert type(mine) is type(theirs)
    if isinstance(mine, (list, tuple)):
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            agree(a, b)
    elif isinstance(mine, tg.Tensor):
        assert mine.requires_grad == theirs.requires_grad
        # libm's vector functions may differ by 4 ulp, which cubes and products add up to
        np.testing.assert_allclose(
            mine.detach().numpy(), theirs.detach().numpy(), rtol=2e-5, atol=1e-6
        )
    elif isinstance(mine, float):
        assert mine == pytest.approx(theirs, rel=2e-5, abs=1e-6)
    else:
        assert mine == theirs


def backwards(result: Any, w: Any, x: Any) -> list[Any]:
    """Two backwards of the sum of all results."""
    results = result if isinstance(result, tuple) else (result,)
    total = sum((k + 1) * r.sum() for k, r in enumerate(results))
    total.backward(retain_graph=True)
    first = [w.grad.clone(), x.grad if x.grad is None else x.grad.clone()]
    total.backward()
    kept = [r.grad for r in results if r.retains_grad]
    return [*results, *first, w.grad, x.grad, *kept]


def second(result: Any, w: Any, x: Any) -> list[Any]:
    results = result if isinstance(result, tuple) else (result,)
    total = sum((k + 1) * r.sum() for k, r in enumerate(results))
    (slope,) = tg.autograd.grad(total, w, create_graph=True)
    if not slope.requires_grad:
        return [slope]
    (bend,) = tg.autograd.grad((slope * slope).sum(), w, allow_unused=True)
    return [slope, bend]
