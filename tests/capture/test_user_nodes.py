"""Hooks and `Function`s inside compiled functions whose backward runs outside: replayed, as eagerly.

Each program of `user_node_cases` is run twice, compiled and as it is.
"""

from __future__ import annotations

from typing import Any

import pytest
from user_node_cases import LOG, PROGRAMS, agree, backwards, run, second

import tracegrad as tg


@pytest.fixture(autouse=True)
def _empty_log() -> None:
    LOG.clear()


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)
def test_replayed_as_eagerly(program: Any) -> None:
    compiled = tg.compile(program, wait=True, strict=True)
    agree(run(compiled, 7, backwards), run(program, 7, backwards))
    assert compiled.cache_info().hits >= 3


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
