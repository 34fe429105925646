"""Programs drawn at random: views, writes to views and bases, arithmetic between them.

Each is run three times: its gradients must be central differences of itself, and its values those
of a reference that has no views at all, where every tensor is an index map into one flat memory.
Start reading at `Program`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tracegrad as tg

VIEWS: tuple[tuple[str, Callable[[Any], Any], Callable[[np.ndarray], np.ndarray]], ...] = (
    ("row", lambda t: t[0], lambda a: a[0]),
    ("last", lambda t: t[..., -1], lambda a: a[..., -1]),
    ("from 1", lambda t: t[1:], lambda a: a[1:]),
    ("every second", lambda t: t[..., ::2], lambda a: a[..., ::2]),
    ("T", lambda t: t.permute(*range(t.ndim)[::-1]), lambda a: a.T),
    ("new axis", lambda t: t[None], lambda a: a[None]),
    ("squeeze", lambda t: t.squeeze(), lambda a: a.squeeze()),
    ("narrow", lambda t: t.narrow(0, 0, 1), lambda a: a[:1]),
    ("diagonal", lambda t: t.diagonal(0, -2, -1), lambda a: np.diagonal(a, 0, -2, -1)),
    ("unfold", lambda t: t.unfold(0, 2, 2), lambda a: np.moveaxis(
        np.stack([a[i:i + 2] for i in range(0, len(a) - 1, 2)]), 1, -1)),
    ("alias", lambda t: t[...], lambda a: a),
    ("tensor_split", lambda t: t.tensor_split(2)[1], lambda a: a[(len(a) + 1) // 2:]),
)  # fmt: skip

Write = Callable[[Any, Any], Any]
WRITES: tuple[tuple[str, Write, Write], ...] = (
    ("mul_", lambda t, o: t.mul_(o), lambda a, o: a * o),
    ("add_", lambda t, o: t.add_(o, alpha=2), lambda a, o: a + 2 * o),
    ("sub", lambda t, o: t.__isub__(o), lambda a, o: a - o),
    ("copy_", lambda t, o: t.copy_(o), lambda a, o: o + 0 * a),
    ("all", lambda t, o: t.__setitem__(..., o), lambda a, o: o + 0 * a),
    ("tanh_", lambda t, o: t.tanh_(), lambda a, o: np.tanh(a)),
    ("square_", lambda t, o: t.mul_(0.5).square_(), lambda a, o: (0.5 * a) ** 2),
    ("fill_", lambda t, o: t.fill_(0.7), lambda a, o: np.full_like(a, 0.7)),
    ("zero_", lambda t, o: t.zero_(), lambda a, o: np.zeros_like(a)),
    ("masked", lambda t, o: t.masked_fill_(t > 0.5, 0.25), lambda a, o: np.where(a > 0.5, 0.25, a)),
    ("mask", lambda t, o: t.__setitem__(t < -0.5, 0.125), lambda a, o: np.where(a < -0.5, 0.125, a)),
    ("index", lambda t, o: t.index_fill_(0, tg.tensor([0]), -0.5),
     lambda a, o: np.concatenate([np.full_like(a[:1], -0.5), a[1:]])),
    ("lerp_", lambda t, o: t.lerp_(o, 0.25), lambda a, o: a + 0.25 * (o - a)),
    ("out", lambda t, o: t.copy_(t.clone() * o), lambda a, o: a * o),
)  # fmt: skip


class Program:
    """A drawn list of statements, run on tensors or on the reference's arrays.

    The reference keeps a flat memory and, per tensor, the places of its elements in it.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.x = rng.uniform(-1, 1, (2, 3))
        self.steps = [
            ("view" if rng.random() < 0.45 else "write" if rng.random() < 0.8 else "new",
             int(rng.integers(0, 99)), int(rng.integers(0, 99)), int(rng.integers(0, 99)))
            for _ in range(int(rng.integers(5, 11)))
        ]  # fmt: skip

    def tensors(self, x: Any) -> Any:
        """A number from every tensor of the program, summed with different weights."""
        known = [x * 1.5, tg.zeros(3, 2, dtype=tg.float64)]
        for kind, which, what, other in self.steps:
            t = known[which % len(known)]
            if kind == "view":
                if self._fits(t, what):
                    known.append(VIEWS[what % len(VIEWS)][1](t))
            elif kind == "write":
                self._write(t, what, self._operand(known, other, t, x))
            else:
                known.append(t.clone().sin() * x.sum())  # a copy: t may be written to
        return sum(((i + 1) * t.sin()).sum() for i, t in enumerate(known))

    @staticmethod
    def _fits(t: Any, what: int) -> bool:
        name = VIEWS[what % len(VIEWS)][0]
        least = {"diagonal": 2, "squeeze": 0, "T": 0, "new axis": 0, "alias": 0}.get(name, 1)
        two = name in ("unfold", "from 1", "tensor_split")
        return least <= t.ndim < 5 and not (two and t.shape[0] < 2)

    @staticmethod
    def _operand(known: Any, other: int, t: Any, x: Any) -> Any:
        """Another tensor of the same shape (a copy: it may share memory), or a number of x."""
        same = [k for k in known if tuple(k.shape) == tuple(t.shape)]
        return x[0, other % 3] if other % 2 else same[other % len(same)] * 1

    @staticmethod
    def _write(t: Any, what: int, operand: Any) -> None:
        name, write, _ = WRITES[what % len(WRITES)]
        if name != "index" or (t.ndim and t.shape[0]):
            write(t, operand)

    def reference(self, x: np.ndarray) -> float:
        """The same number, computed without views."""
        memory = np.concatenate([(x * 1.5).ravel(), np.zeros(6)])
        known = [np.arange(6).reshape(2, 3), np.arange(6, 12).reshape(3, 2)]
        for kind, which, what, other in self.steps:
            places = known[which % len(known)]
            if kind == "view":
                if self._fits(places, what):
                    known.append(VIEWS[what % len(VIEWS)][2](places))
            elif kind == "write":
                same = [k for k in known if k.shape == places.shape]
                operand = x[0, other % 3] if other % 2 else memory[same[other % len(same)]]
                name, _, value = WRITES[what % len(WRITES)]
                if name != "index" or (places.ndim and places.shape[0]):
                    memory[places] = value(memory[places], operand)
            else:
                made = np.sin(memory[places]) * x.sum()
                known.append(np.arange(memory.size, memory.size + made.size).reshape(made.shape))
                memory = np.concatenate([memory, made.ravel()])
        return float(sum(((i + 1) * np.sin(memory[p])).sum() for i, p in enumerate(known)))


@pytest.mark.parametrize("block", range(8))
def test_random_programs(block: int) -> None:
    step = 1e-6
    for seed in range(block * 40, block * 40 + 40):
        program = Program(seed)
        x = tg.tensor(program.x, requires_grad=True)
        total = program.tensors(x)
        assert total.item() == pytest.approx(program.reference(program.x), rel=1e-12), seed
        (gradient,) = tg.autograd.grad(total, x)
        for place in np.ndindex(2, 3):
            ends = []
            for sign in (1, -1):
                moved = program.x.copy()
                moved[place] += sign * step
                ends.append(program.reference(moved))
            slope = (ends[0] - ends[1]) / (2 * step)  # error about 1e-9 on values of about 10
            assert gradient[place].item() == pytest.approx(slope, rel=1e-5, abs=1e-6), (seed, place)
