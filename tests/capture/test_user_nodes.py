"""Hooks and `Function`s inside compiled functions whose backward runs outside: replayed, as eagerly.

Each program of `user_node_cases` is run twice, compiled and as it is.
"""

from __future__ import annotations

from typing import Any

import pytest
from user_node_cases import LOG, PROGRAMS, agree, backwards, run

import tracegrad as tg


@pytest.fixture(autouse=True)
def _empty_log() -> None:
    LOG.clear()


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)
def test_replayed_as_eagerly(program: Any) -> None:
    compiled = tg.compile(program, wait=True, strict=True)
    agree(run(compiled, 7, backwards), run(program, 7, backwards))
    assert compiled.cache_info().hits >= 3


def second(result: Any, w: Any, x: Any) -> list[Any]:
    results = result if isinstance(result, tuple) else (result,)
    total = sum((k + 1) * r.sum() for k, r in enumerate(results))
    (slope,) = tg.autograd.grad(total, w, create_graph=True)
    if not slope.requires_grad:
        return [slope]
    (bend,) = tg.autograd.grad((slope * slope).sum(), w, allow_unused=True)
    return [slope, bend]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)
def test_second_derivatives(program: Any) -> None:
    compiled = tg.compile(program, wait=True, strict=True)
    agree(run(compiled, 5, second), run(program, 5, second))
    assert compiled.cache_info().hits >= 1


def parts(result: Any, w: Any, x: Any) -> list[Any]:
    """A gradient of one element of the first result only, with a cotangent of other layout."""
    first = result[0] if isinstance(result, tuple) else result
    ct = tg.ones(2, *first.shape)[1].flip(0) if first.ndim else None
    found = tg.autograd.grad(first, [w], ct, allow_unused=True)
    return [*found, w.grad, x.grad]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)
def test_gradients_of_one_input(program: Any) -> None:
    compiled = tg.compile(program, wait=True, strict=True)
    agree(run(compiled, 5, parts), run(program, 5, parts))
