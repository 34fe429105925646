"""Random programs with hooks, `Function`s, views, writes, checkpoints and hooks on saved tensors.

Each is a list of steps over a pool of tensors, run compiled and as it is. What cannot be replayed may
run eagerly; it may not differ.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from user_node_cases import (
    LOG,
    Cube,
    Dirty,
    Exp,
    Mask,
    Same,
    Two,
    agree,
    backwards,
    note,
    run,
    second,
)

import tracegrad as tg
from tracegrad.autograd.graph import saved_tensors_hooks
from tracegrad.utils.checkpoint import checkpoint


@pytest.fixture(autouse=True)
def _empty_log() -> None:
    LOG.clear()


def hooked(a: Any, b: Any, k: int) -> Any:
    a.register_hook(lambda g: (note("hook", k), g * (k + 1))[1])
    return a.sin()


def hooked_with_a_tensor(a: Any, b: Any, k: int) -> Any:
    a.register_hook(lambda g: g + b.detach() * g)
    return a * b


def written(a: Any, b: Any, k: int) -> Any:
    c = a * 1.5
    c.mul_(b)
    return c


def written_through_a_view(a: Any, b: Any, k: int) -> Any:
    c = a.sin()
    c[k % 3 :].mul_(0.5)
    return c


def written_in_place(a: Any, b: Any, k: int) -> Any:
    """A tensor that others may have taken views of, or hooked."""
    return a.mul_(0.5)


def without_grad(a: Any, b: Any, k: int) -> Any:
    with tg.no_grad():
        c = a * b
    return c + b


def packed(a: Any, b: Any, k: int) -> Any:
    with saved_tensors_hooks(lambda t: t * 2, lambda t: t / 2):
        return (a * b).tanh()


STEPS: tuple[Callable[[Any, Any, int], Any], ...] = (
    lambda a, b, k: a.sin(),
    lambda a, b, k: (a * 0.3).exp(),
    lambda a, b, k: a * b,
    lambda a, b, k: a + b,
    lambda a, b, k: a.flip(0),
    lambda a, b, k: a[k % 3].expand(3) * b,
    lambda a, b, k: a.reshape(3, 1)[:, 0],
    lambda a, b, k: a.detach() * b,
    lambda a, b, k: Cube.apply(a * 0.5),
    lambda a, b, k: Exp.apply(a * 0.1),
    lambda a, b, k: Two.apply(a, b, 0.5 + k)[k % 2],
    lambda a, b, k: Same.apply(a) * b,
    lambda a, b, k: Dirty.apply(a * 1.0),
    lambda a, b, k: Mask.apply(a)[0],
    lambda a, b, k: checkpoint(lambda t: (t * b).sin().exp(), a, use_reentrant=False),
    lambda a, b, k: checkpoint(lambda t: Cube.apply(t) * b, a, use_reentrant=False),
    packed, written, written_through_a_view, without_grad, hooked, hooked_with_a_tensor,
    written_in_place,
)  # fmt: skip
ON_RESULTS = len(STEPS) - 3  # the last ones, for results of operations only


def drawn(seed: int) -> Callable[..., Any]:
    """A program of two to nine steps; their numbers are its constants."""
    rng = random.Random(seed)
    steps = tuple(
        (rng.randrange(len(STEPS)), rng.random(), rng.random(), rng.randrange(3))
        for _ in range(rng.randrange(2, 10))
    )

    def program(w: Any, x: Any) -> Any:
        pool = [w * 1.0, x * 1.0, w]
        for number, first, other, k in steps:
            a, b = pool[int(first * len(pool))], pool[int(other * len(pool))]
            if number >= ON_RESULTS and a is w:
                a = pool[0]
            pool.append(STEPS[number](a, b, k))
        return pool[-1].clone(), (pool[-2] * pool[len(pool) // 2]).sum()

    return program


@pytest.mark.parametrize("seed", [*range(40), 320, 1299, 1622])
def test_a_random_program(seed: int) -> None:
    program = drawn(seed)
    after = (backwards, second)[seed % 2]
    try:
        want = run(program, 4, after)
    except tg.errors.GradientError as error:  # written to what was kept: said likewise
        want = str(error).partition(" It was modified")[0]
    LOG.clear()
    compiled = tg.compile(program, wait=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tg.EagerWarning)
        try:
            found: Any = run(compiled, 4, after)
        except tg.errors.GradientError as error:
            found = str(error).partition(" It was modified")[0]
    agree(found, want)
