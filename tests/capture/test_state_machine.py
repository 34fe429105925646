"""A state machine that changes the world of a compiled function at random, beside an eager twin.

Two equal worlds (a model, buffers, an optimizer, settings, hooks, a generator) are changed in the same
way; in one the functions are compiled. After each call everything in the two is compared. In CI a few
short walks are made; `TRACEGRAD_LONG=<minutes>` walks for so long.
"""

from __future__ import annotations

import copy
import os
import time
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

import tracegrad as tg
import tracegrad.nn.functional as F
from tracegrad import nn, optim

LONG = float(os.environ.get("TRACEGRAD_LONG", "0"))


class Doubled(tg.autograd.Function):
    """The identity; its gradient is twice what it should be."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x * 1

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        return g * 2


class World:
    """Everything that the functions read and write."""

    def __init__(self, compiled: bool, wait: bool = True) -> None:
        tg.manual_seed(5)
        self.generator = tg.Generator().manual_seed(7)
        # no bias before the normalisation: its gradient is rounding alone, which Adam makes a step of
        first = nn.Linear(3, 4, bias=False)
        self.model = nn.Sequential(first, nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
        self.optimizer: Any = optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.scale, self.flags, self.limits = 1.5, {"square": False}, [1.0, 2.0]
        self.total = tg.zeros(3)
        self.leaf = tg.ones(3, requires_grad=True)
        self.handles: list[Any] = []
        self.seen: list[Any] = []
        functions = (
            self.forward, self.branching, self.writing, self.drawing, self.training, self.slope,
            self.looking, self.blending, self.stepping, self.fitting,
        )  # fmt: skip
        self.functions = {
            f.__name__: tg.compile(f, wait=wait) if compiled else f for f in functions
        }

    def forward(self, x: Any) -> Any:
        y = self.model(x) * self.scale
        return y**2 if self.flags["square"] else y

    def branching(self, x: Any) -> Any:
        y = x * self.leaf
        for limit in self.limits:
            if y.sum() > limit:
                y = y / 2
        return y, int((y > 0).sum())

    def writing(self, x: Any) -> Any:
        self.total.add_(x.detach()[0])
        self.total[1:] *= self.scale
        return x + self.total

    def drawing(self, x: Any) -> Any:
        return x * tg.rand(3) + tg.randn(x.shape[0], 3, generator=self.generator)

    def training(self, x: Any) -> Any:
        self.optimizer.zero_grad(set_to_none=True)
        target = tg.zeros(x.shape[0], dtype=tg.int64)
        loss = F.cross_entropy(self.model(x.detach()), target)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.detach()

    def slope(self, x: Any) -> Any:
        (slope,) = tg.autograd.grad((x**3 * self.leaf).sum(), self.leaf, create_graph=True)
        return slope * x

    def looking(self, x: Any) -> Any:
        tg.debug_callback(lambda v: self.seen.append(v.tolist()), x.sum())
        return x * 2

    def blending(self, x: Any, share: float, count: int) -> Any:
        y = x * share + (1 - share) * self.leaf
        if share > 0.4:
            y = y / (count + share)
        return y.mean(0) * (1 - 0.5**count) + tg.full((3,), share), share if count > 5 else None

    def stepping(self, x: Any, rate: float, count: int) -> Any:
        self.leaf.grad = None
        loss = (Doubled.apply(x.detach() * self.leaf) ** 2).mean() * rate
        loss.backward()
        with tg.no_grad():
            self.leaf -= rate / (1 + count) * self.leaf.grad
        return loss.detach()

    def fitting(self, x: Any) -> Any:
        """A loss, whose backward comes outside: after a few calls it is computed at once."""
        y = self.model(x) * self.scale
        return (F.dropout(y, 0.25) ** 2).mean() + (self.leaf * x).sin().sum(), y

    def state(self) -> dict[str, Any]:
        """All of it, to be compared."""
        return {
            "parameters": list(self.model.parameters()), "buffers": list(self.model.buffers()),
            "gradients": [p.grad for p in (*self.model.parameters(), self.leaf)],
            "versions": [t._version for t in (*self.model.buffers(), self.total, self.leaf)],
            "optimizer": self.optimizer.state_dict(), "total": self.total, "seen": self.seen,
            "random": (tg.get_rng_state(), self.generator.get_state()),
        }  # fmt: skip


def same(got: Any, want: Any, where: str = "") -> None:
    """Equal trees; floats within rounding that grows over a walk."""
    if isinstance(want, tg.Tensor):
        assert (got.dtype, got.shape, got.requires_grad) == (
            want.dtype, want.shape, want.requires_grad,
        ), where  # fmt: skip
        a, b = got.detach().numpy(), want.detach().numpy()
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4, err_msg=where)
    elif isinstance(want, dict):
        assert [*got] == [*want], where
        for key in want:
            same(got[key], want[key], f"{where}[{key!r}]")
    elif isinstance(want, list | tuple):
        assert len(got) == len(want), where
        for i, (a, b) in enumerate(zip(got, want, strict=True)):
            same(a, b, f"{where}[{i}]")
    elif isinstance(want, float):
        assert got == pytest.approx(want, rel=2e-3, abs=2e-4), where
    else:
        assert got == want, where


PLAIN = ("forward", "branching", "writing", "drawing", "training", "slope", "looking")
NUMBERED = ("blending", "stepping")  # take two numbers more
NAMES = (*PLAIN, *NUMBERED)
GRADED = ("training", "slope", "stepping")  # need the grad mode


class Walk(RuleBasedStateMachine):
    """Calls and changes at random."""

    @initialize(wait=st.booleans())
    def begin(self, wait: bool) -> None:
        self.eager, self.compiled = World(False), World(True, wait)
        self.random = tg.get_rng_state()

    def both(self, change: Any) -> None:
        for world in (self.eager, self.compiled):
            change(world)

    @rule(
        name=st.sampled_from(NAMES), rows=st.sampled_from([1, 2, 3, 4, 5, 40]),
        share=st.sampled_from([0.1, 0.2, 0.25, 0.5, 0.75, -0.0, 1]), count=st.integers(0, 7),
        value=st.integers(-4, 8),
        requires_grad=st.booleans(), grad=st.booleans(), layout=st.sampled_from(["plain", "columns", "step"]),
        again=st.integers(1, 2),
    )  # fmt: skip
    def call(
        self,
        name: str,
        rows: int,
        share: float,
        count: int,
        value: int,
        requires_grad: bool,
        grad: bool,
        layout: str,
        again: int,
    ) -> None:
        for _ in range(again):
            outcomes = []
            for world in (self.eager, self.compiled):
                tg.set_rng_state(self.random)
                x = self.input(rows, value, layout)
                if requires_grad:
                    x.requires_grad_()
                numbers = (share, count) if name in NUMBERED else ()
                outcomes.append(self.outcome(world, name, (x, *numbers), grad or name in GRADED))
            same(outcomes[1], outcomes[0], name)
            self.random = tg.get_rng_state()

    @staticmethod
    def input(rows: int, value: int, layout: str) -> Any:
        base = (tg.arange(float(rows * 6)) * 0.7).sin().reshape(rows, 6) + value / 4
        if layout == "columns":
            return base.reshape(6, rows).t()[:, :3].detach()
        return base[:, ::2].detach() if layout == "step" else base[:, :3].clone()

    @staticmethod
    def outcome(world: World, name: str, arguments: Any, grad: bool) -> Any:
        x = arguments[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with tg.set_grad_enabled(grad):
                    result = world.functions[name](*arguments)
            except Exception as error:
                return type(error).__name__, str(error)
            leaves = result if isinstance(result, tuple) else (result,)
            total = [r.sum() for r in leaves if isinstance(r, tg.Tensor) and r.requires_grad]
            if total:
                sum(total).backward()
        return [result, x.grad, x, x._version, name == "writing" or world.state()["random"]]

    @rule(
        times=st.integers(1, 9), value=st.integers(-4, 8),
        kind=st.sampled_from(["plain", "plain", "again", "scaled", "late hook", "given", "unused", "both"]),
    )  # fmt: skip
    def fit(self, times: int, value: int, kind: str) -> None:
        """Calls of one kind in a row, each followed by a backward; the last one is of another kind."""

        def descend(world: World) -> Any:
            tg.set_rng_state(self.random)
            found = []
            for k in range(times):
                x = self.input(4, value + k, "plain").requires_grad_()
                loss, y = world.functions["fitting"](x)
                last = kind if k == times - 1 else "plain"
                if last == "late hook":
                    x.register_hook(lambda g: g * 2)
                elif last == "scaled":
                    loss = loss * 0.5
                elif last == "both":
                    loss = loss + y.sum()
                if last == "given":
                    found.append(tg.autograd.grad(loss, [x, world.leaf], allow_unused=True))
                elif last != "unused":
                    loss.backward(retain_graph=last == "again")
                if last == "again":
                    loss.backward()
                found.append((loss, y, x.grad))
            return found, tg.get_rng_state()

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (want, after), (got, random) = (descend(w) for w in (self.eager, self.compiled))
        same(got, want, "fitting")
        same(random, after, "random numbers of fitting")
        self.random = after

    @rule(name=st.sampled_from((*NAMES, "fitting")))
    def wait(self, name: str) -> None:
        """In between, what the worker has compiled takes over."""
        function: Any = self.compiled.functions[name]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function.wait()

    @rule(value=st.sampled_from([0.5, 1.5, 2.0, -0.0]))
    def scale(self, value: float) -> None:
        self.both(lambda w: setattr(w, "scale", value))

    @rule(flag=st.booleans())
    def flag(self, flag: bool) -> None:
        self.both(lambda w: w.flags.update(square=flag))

    @rule(limits=st.lists(st.sampled_from([0.5, 1.0, 3.0]), max_size=2))
    def limits(self, limits: list[float]) -> None:
        self.both(lambda w: setattr(w, "limits", list(limits)))

    @rule(mode=st.booleans())
    def mode(self, mode: bool) -> None:
        self.both(lambda w: w.model.train(mode))

    @rule(
        layer=st.sampled_from([0, 3]),
        kind=st.sampled_from(["new", "data", "load", "freeze", "thaw"]),
    )
    def parameters(self, layer: int, kind: str) -> None:
        def change(world: World) -> None:
            module = world.model[layer]
            if kind == "new":
                module.weight = nn.Parameter(module.weight.detach() * 0.5)
            elif kind == "data":
                module.weight.data = module.weight.data + 0.125
            elif kind == "load":
                world.model.load_state_dict(
                    {k: v * 0.5 for k, v in world.model.state_dict().items()}
                )
            else:
                module.weight.requires_grad_(kind == "thaw")

        self.both(change)

    @rule(rate=st.sampled_from([0.1, 0.05, 0.0]), decay=st.sampled_from([0, 0.01]))
    def settings(self, rate: float, decay: float) -> None:
        self.both(lambda w: w.optimizer.param_groups[0].update(lr=rate, weight_decay=decay))

    @rule(kind=st.sampled_from(["sgd", "adam", "copy", "clear"]))
    def optimizer(self, kind: str) -> None:
        def change(world: World) -> None:
            if kind == "clear":
                world.optimizer.state.clear()
            elif kind == "copy":
                world.optimizer.load_state_dict(copy.deepcopy(world.optimizer.state_dict()))
            else:
                make = {"sgd": optim.SGD, "adam": optim.AdamW}[kind]
                world.optimizer = make(world.model.parameters(), lr=0.05)

        self.both(change)

    @rule(kind=st.sampled_from(["module", "leaf", "none"]))
    def hooks(self, kind: str) -> None:
        def change(world: World) -> None:
            if kind == "none":
                while world.handles:
                    world.handles.pop().remove()
            elif kind == "module":
                world.handles.append(
                    world.model[0].register_forward_hook(lambda m, a, out: out * 0.5)
                )
            else:
                world.handles.append(world.leaf.register_hook(lambda g: g * 0.5))

        self.both(change)

    @rule(kind=st.sampled_from(["seed", "generator", "total", "leaf", "grads", "view"]))
    def state(self, kind: str) -> None:
        def change(world: World) -> None:
            if kind == "generator":
                world.generator.manual_seed(3)
            elif kind == "total":
                world.total = tg.ones(3)
            elif kind == "view":
                world.total = tg.zeros(2, 3)[1]
            elif kind == "leaf":
                world.leaf = (world.leaf.detach() * 0.5 + 0.25).requires_grad_()
            elif kind == "grads":
                for p in (*world.model.parameters(), world.leaf):
                    p.grad = None

        if kind == "seed":
            tg.manual_seed(11)
            self.random = tg.get_rng_state()
        self.both(change)

    @invariant()
    def worlds_are_equal(self) -> None:
        if hasattr(self, "eager"):
            same(self.compiled.state(), self.eager.state(), "state")


def walk(examples: int, steps: int, seed: int | None) -> None:
    chosen = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, derandomize=seed is None,
        database=None, suppress_health_check=[*HealthCheck],
    )  # fmt: skip
    run_state_machine_as_test(Walk, settings=chosen)


def test_a_few_walks() -> None:
    walk(6, 25, None)


@pytest.mark.skipif(not LONG, reason="TRACEGRAD_LONG=<minutes> asks for it")
def test_long_walks() -> None:
    end = time.monotonic() + LONG * 60
    while time.monotonic() < end:
        walk(5, 50, 1)
