"""Tensors made, indexed and converted inside compiled functions: replayed right, or eager and told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from beside import assert_same

import tracegrad as tg


def made(x: Any) -> Any:
    """Factories and their kin, deterministic ones."""
    pattern = tg.full_like(x, 2) + tg.arange(3.0) + x.new_ones(3) + tg.linspace(0, 1, 3)
    more = x.new_full((3,), 0.5) + tg.eye(3)[1] + tg.tensor([1, 2, 3]) + tg.scalar_tensor(2)
    return x * pattern + more * tg.logspace(0, 1, 3), tg.zeros_like(x, dtype=tg.int32)


def indexed(x: Any) -> Any:
    """Index lists, None, Ellipsis, steps and 0-d integers."""
    table = x[None] * tg.arange(1.0, 4.0)[:, None]
    found = table[:, [2, 0]], table[[0, 1], [1, 2]], table[..., ::2], table[[-1]], table[None, 1]
    return tuple(part * 2 for part in found)  # no two share memory


def converted(x: Any) -> Any:
    """Casts, layouts and views that only say what the tensor is."""
    turned = (x[None] * tg.ones(2, 1)).t()
    half = x.half().double().to(tg.float32, copy=True)
    return (
        half + x.type_as(x),
        turned.clone(memory_format=tg.contiguous_format),
        turned.mT * x.size(0),
    )


def scaled(x: Any) -> Any:
    """`alpha`, tolerance comparisons and integers that wrap."""
    whole = tg.tensor([1, 2, 3], dtype=tg.uint8)
    return tg.add(x, whole, alpha=2), whole * -1, tg.isclose(x, x), tg.sub(whole, whole, alpha=3)


@pytest.mark.parametrize("plain", [made, indexed, converted, scaled], ids=lambda f: f.__name__)
def test_replay(plain: Callable[..., Any]) -> None:
    assert_same(plain, (tg.rand(3, requires_grad=True),), times=3, traces=1)


def test_random_tensors_are_drawn_anew_by_each_replay() -> None:
    def f(x: Any) -> Any:
        noise = tg.rand_like(x), tg.randint_like(x, 2, 9), tg.empty(3).exponential_(2.0)
        return (*noise, tg.bernoulli(x.detach()), tg.empty(3).uniform_(1, 2), tg.normal(x, 0.1))

    assert_same(f, (tg.rand(3, requires_grad=True),), times=3, traces=1)


BUFFER = bytearray(np.ones(3, np.float32).tobytes())


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (lambda x: x * tg.frombuffer(BUFFER, dtype=tg.float32), r"frombuffer\(\) is used inside"),
        (lambda x: tg.full((3,), 2.0, out=tg.empty(3)) * x, r"full\(out=...\) is used inside"),
        (lambda x: (x * 2).view(tg.int32), r"view\(dtype\) is used inside"),
        (lambda x: tg.from_dlpack(x * 2), r"from_dlpack\(\) is used inside"),
        (lambda x: x * x.untyped_storage().nbytes(), r"untyped_storage\(\) is used inside"),
        (lambda x: np.exp(x), "Python reads the values of a tensor"),
    ],
)
def test_what_a_replay_could_not_know_stays_eager(act: Any, reason: str) -> None:
    compiled = tg.compile(act)
    with pytest.warns(tg.EagerWarning, match=reason):
        first = compiled(tg.ones(3))
    assert tg.equal(first, act(tg.ones(3)))
    assert tg.equal(compiled(tg.zeros(3) + 5), act(tg.zeros(3) + 5))
    assert compiled.cache_info().traces == 0
