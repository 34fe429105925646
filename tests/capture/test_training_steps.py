"""Whole training steps as one trace: forward, `backward()`, clipping, `Optimizer.step()`.

Each step is taken by a compiled function and, with a twin of model and optimizer, by the function
itself, while learning rates, settings, groups, state and gradients change between the calls.
Parameters, state, `.grad` and versions are the same within a few ulp; against the same kernels in
several traces they are the same bits.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import tracegrad as tg
import tracegrad.nn.functional as F
from tracegrad import nn, optim

RULES: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "sgd maximize": lambda p: optim.SGD(p, lr=0.01, maximize=True),
    "sgd decay": lambda p: optim.SGD(p, lr=0.1, weight_decay=0.01),
    "momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.1),
    "nesterov": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: optim.Adam(p, lr=0.01),
    "adam decay": lambda p: optim.Adam(p, lr=0.01, weight_decay=0.1, betas=(0.8, 0.9)),
    "amsgrad": lambda p: optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01),
    "rmsprop all": lambda p: optim.RMSprop(
        p, lr=0.01, momentum=0.5, centered=True, weight_decay=0.1
    ),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.01),
    "adagrad all": lambda p: optim.Adagrad(p, lr=0.1, lr_decay=0.1, weight_decay=0.01),
    "adamw maximize": lambda p: optim.AdamW(p, lr=0.01, maximize=True),
}


@pytest.fixture(autouse=True)
def no_eager_runs(request: Any) -> Iterator[None]:
    with warnings.catch_warnings():
        if "eager" not in request.node.name:
            warnings.simplefilter("error", tg.EagerWarning)
        yield


class Trainer:
    """A model, its optimizer, and a step; twins are equal in everything."""

    def __init__(self, rule: str, dtype: Any = tg.float32) -> None:
        tg.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)
        self.optimizer = RULES[rule](self.model.parameters())

    def step(self, x: Any, y: Any) -> Any:
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def batch(k: int, dtype: Any = tg.float32) -> tuple[tg.Tensor, tg.Tensor]:
    rng = np.random.default_rng(k)
    x = tg.tensor(rng.normal(size=(8, 6))).to(dtype)
    return x, tg.tensor(rng.integers(0, 3, 8))


def same(got: Any, want: Any, ulps: int = 64) -> None:
    """Equal tensors, on the scale of the largest element; equal anything else."""
    if isinstance(want, tg.Tensor):
        assert (got.dtype, got.shape, got.requires_grad) == (
            want.dtype, want.shape, want.requires_grad,
        )  # fmt: skip
        a, b = got.detach().numpy(), want.detach().numpy()
        if ulps == 0:
            assert a.tobytes() == b.tobytes()
        else:
            scale = max(1.0, float(np.abs(b).max(initial=0)))
            tolerance = ulps * np.finfo(b.dtype).eps * scale if want.is_floating_point() else 0
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)
    elif isinstance(want, dict):
        assert [*got] == [*want]
        for key in want:
            same(got[key], want[key], ulps)
    elif isinstance(want, list | tuple):
        assert len(got) == len(want)
        for a, b in zip(got, want, strict=True):
            same(a, b, ulps)
    else:
        assert got == want and type(got) is type(want)


def same_trainers(got: Trainer, want: Trainer, ulps: int = 64) -> None:
    mine, others = list(got.model.parameters()), list(want.model.parameters())
    same(mine, others, ulps)
    same([p.grad for p in mine], [p.grad for p in others], ulps)
    same(got.optimizer.state_dict(), want.optimizer.state_dict(), ulps)
    assert [p._version for p in mine] == [p._version for p in others]
    assert got.optimizer.stepped == want.optimizer.stepped


def pair(rule: str, dtype: Any = tg.float32) -> tuple[Trainer, Trainer, Any]:
    """Twins, and the compiled step of the second."""
    eager, compiled = Trainer(rule, dtype), Trainer(rule, dtype)
    return eager, compiled, tg.compile(compiled.step)


# ---- the rules ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_steps_with_a_schedule_are_one_trace(rule: str) -> None:
    eager, compiled, step = pair(rule)
    for k in range(25):
        x, y = batch(k)
        same(step(x, y), eager.step(x, y))
        same_trainers(compiled, eager, 512)
        for t in (eager, compiled):
            t.optimizer.param_groups[0]["lr"] *= 0.9
    info = step.cache_info()
    assert info.traces <= 2 and info.hits >= 22 and info.eager_calls == 0, step.explain()


@pytest.mark.parametrize("rule", ["nesterov", "adamw"])
def test_in_float64(rule: str) -> None:
    eager, compiled, step = pair(rule, tg.float64)
    for k in range(10):
        x, y = batch(k, tg.float64)
        same(step(x, y), eager.step(x, y))
        same_trainers(compiled, eager, 512)


def test_a_thousand_steps_compile_nothing_anew() -> None:
    trainer = Trainer("adam")
    scheduler = optim.lr_scheduler.LambdaLR(trainer.optimizer, lambda t: 1 / (1 + t))
    step = tg.compile(trainer.step)
    x, y = batch(0)
    for _ in range(4):
        step(x, y)
        scheduler.step()
    before = step.cache_info()
    for _ in range(1000):
        step(x, y)
        scheduler.step()
    after = step.cache_info()
    assert after.hits - before.hits == 1000 and after.traces == before.traces, step.explain()
    assert trainer.optimizer.state_dict()["state"][0]["step"].item() == 1004


VARYING: dict[str, tuple[str, Any]] = {
    "momentum": ("momentum", lambda k: 0.9 - 0.02 * k), "weight_decay": ("adamw", lambda k: 0.01 + 0.001 * k),
    "betas": ("adam", lambda k: (0.95 - 0.01 * k, 0.999)), "dampening": ("momentum", lambda k: 0.02 * k),
}  # fmt: skip


@pytest.mark.parametrize("key", VARYING)
def test_a_setting_that_changes_at_each_step_becomes_a_number(key: str) -> None:
    rule, value = VARYING[key]
    eager, compiled, step = pair(rule)
    for k in range(20):
        for t in (eager, compiled):
            t.optimizer.param_groups[0][key] = value(k)
        x, y = batch(k)
        same(step(x, y), eager.step(x, y))
        same_trainers(compiled, eager, 1024)
    assert step.cache_info().traces <= 4, step.explain()


@pytest.mark.parametrize("rule", ["momentum", "adamw", "rmsprop all"])
def test_one_cycle_of_rate_and_momentum(rule: str) -> None:
    eager, compiled, step = pair(rule)
    cycles = [
        optim.lr_scheduler.OneCycleLR(t.optimizer, 0.1, 40) if rule != "rmsprop all"
        else optim.lr_scheduler.CyclicLR(t.optimizer, 0.001, 0.1, step_size_up=5)
        for t in (eager, compiled)
    ]  # fmt: skip
    for k in range(30):
        x, y = batch(k)
        same(step(x, y), eager.step(x, y), 256)
        same_trainers(compiled, eager, 8192)
        for cycle in cycles:
            cycle.step()
    assert step.cache_info().traces <= 4, step.explain()


@pytest.mark.parametrize("rule", ["nesterov", "adam"])
def test_the_same_bits_as_in_several_traces(rule: str) -> None:
    whole, parts = Trainer(rule), Trainer(rule)
    step = tg.compile(whole.step)
    update = tg.compile(lambda: parts.optimizer.step())

    @tg.compile
    def gradients(x: Any, y: Any) -> Any:
        loss = F.cross_entropy(parts.model(x), y)
        loss.backward()
        return loss.detach()

    for k in range(8):
        x, y = batch(k)
        parts.optimizer.zero_grad()
        loss = gradients(x, y)
        update()
        same(step(x, y), loss, 0 if k > 2 else 64)  # the first runs are captures: eager
        if k == 2:
            parts.model.load_state_dict(whole.model.state_dict())
            parts.optimizer.load_state_dict(whole.optimizer.state_dict())
        if k > 3:  # both replay
            same_trainers_but_versions(parts, whole)


def same_trainers_but_versions(got: Trainer, want: Trainer) -> None:
    same(list(got.model.parameters()), list(want.model.parameters()), 0)
    same(got.optimizer.state_dict()["state"], want.optimizer.state_dict()["state"], 0)


# ---- changes between the calls ------------------------------------------------------------------


def set_all(key: str, value: Any) -> Callable[[Trainer], None]:
    def change(trainer: Trainer) -> None:
        for group in trainer.optimizer.param_groups:
            group[key] = value

    return change


def new_state(trainer: Trainer) -> None:
    trainer.optimizer.load_state_dict(copy.deepcopy(trainer.optimizer.state_dict()))


def forget(trainer: Trainer) -> None:
    trainer.optimizer.state.clear()


def forget_one(trainer: Trainer) -> None:
    trainer.optimizer.state.pop(next(iter(trainer.optimizer.state)))


def write_state(trainer: Trainer) -> None:
    for kept in trainer.optimizer.state.values():
        for value in kept.values():
            value.mul_(2)


def replace_state(trainer: Trainer) -> None:
    for kept in trainer.optimizer.state.values():
        for name, value in kept.items():
            kept[name] = value * 0.5


def another_group(trainer: Trainer) -> None:
    groups = trainer.optimizer.param_groups
    moved = groups[0]["params"].pop()
    trainer.optimizer.add_param_group({"params": [moved], "lr": 0.003})


def fewer(trainer: Trainer) -> None:
    gone = trainer.optimizer.param_groups[0]["params"].pop(0)
    trainer.optimizer.state.pop(gone)


def freeze(trainer: Trainer) -> None:
    next(iter(trainer.model.parameters())).requires_grad_(False)


def fresh_parameters(trainer: Trainer) -> None:
    for p in trainer.model.parameters():
        p.data = p.data * 0.5


def new_optimizer(trainer: Trainer) -> None:
    trainer.optimizer = optim.SGD(trainer.model.parameters(), lr=0.05, momentum=0.5)


def tensor_rate(trainer: Trainer) -> None:
    trainer.optimizer.param_groups[0]["lr"] = tg.tensor(0.02)


def tensor_rate_changed(trainer: Trainer) -> None:
    rate = trainer.optimizer.param_groups[0]["lr"]
    if isinstance(rate, tg.Tensor):
        rate.mul_(0.5)


CHANGES: dict[str, tuple[str, Callable[[Trainer], None]]] = {
    "rate": ("adam", set_all("lr", 0.5)), "rate int": ("momentum", set_all("lr", 1)),
    "rate zero": ("adam", set_all("lr", 0.0)), "decay": ("adam", set_all("weight_decay", 0.2)),
    "betas": ("adam", set_all("betas", (0.5, 0.6))), "eps": ("adam", set_all("eps", 1e-3)),
    "momentum": ("momentum", set_all("momentum", 0.5)),
    "no momentum": ("momentum", set_all("momentum", 0)),
    "nesterov": ("momentum", lambda t: (set_all("nesterov", True)(t), set_all("dampening", 0)(t))[0]),
    "maximize": ("sgd", set_all("maximize", True)), "state loaded": ("adam", new_state),
    "state cleared": ("adam", forget), "one state gone": ("momentum", forget_one),
    "state written": ("adam", write_state), "state replaced": ("adam", replace_state),
    "another group": ("adam", another_group), "fewer parameters": ("momentum", fewer),
    "frozen": ("adam", freeze), "new data": ("adam", fresh_parameters),
    "new optimizer": ("adam", new_optimizer), "rate is a tensor": ("momentum", tensor_rate),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_changes_between_steps_are_seen(name: str) -> None:
    rule, change = CHANGES[name]
    eager, compiled, step = pair(rule)
    for k in range(9):
        if k == 4:
            change(eager)
            change(compiled)
        if name == "rate is a tensor" and k > 5:
            tensor_rate_changed(eager)
            tensor_rate_changed(compiled)
        x, y = batch(k)
        same(step(x, y), eager.step(x, y))
        same_trainers(compiled, eager, 2048)
    assert step.cache_info().hits >= 5, step.explain()


# ---- other shapes of a step ---------------------------------------------------------------------


def test_gradients_that_are_zeroed_or_accumulated() -> None:
    eager, compiled = Trainer("momentum"), Trainer("momentum")

    def make(t: Trainer) -> Callable[[Any, Any], Any]:
        def step(x: Any, y: Any) -> Any:
            loss = F.cross_entropy(t.model(x), y)
            loss.backward()
            t.optimizer.step()
            t.optimizer.zero_grad(set_to_none=False)
            return loss.detach()

        return step

    step, plain = tg.compile(make(compiled)), make(eager)
    for k in range(6):
        x, y = batch(k)
        same(step(x, y), plain(x, y))
        same_trainers(compiled, eager)
        if k == 3:  # what lies in .grad is added to
            for t in (eager, compiled):
                for p in t.model.parameters():
                    p.grad.add_(0.25)
    assert step.cache_info().hits >= 4, step.explain()


@pytest.mark.parametrize("clip", ["norm", "infinity", "value"])
def test_clipping_and_batch_norm(clip: str) -> None:
    class Convolutional(Trainer):
        def __init__(self) -> None:
            tg.manual_seed(2)
            self.model = nn.Sequential(
                nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(),
                nn.Linear(48, 5), nn.BatchNorm1d(5), nn.Linear(5, 3),
            )  # fmt: skip
            self.optimizer = optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)

        def step(self, x: Any, y: Any) -> Any:
            self.optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(self.model(x), y)
            loss.backward()
            norm = None
            if clip == "value":
                nn.utils.clip_grad_value_(self.model.parameters(), 0.01)
            else:
                kind = 2.0 if clip == "norm" else float("inf")
                norm = nn.utils.clip_grad_norm_(self.model.parameters(), 0.1, kind)
            self.optimizer.step()
            return loss.detach(), norm

    eager, compiled = Convolutional(), Convolutional()
    step = tg.compile(compiled.step)
    rng = np.random.default_rng(0)
    for k in range(8):
        if k == 6:  # another mode: the statistics stay as they are
            eager.model.eval()
            compiled.model.eval()
        x = tg.tensor(rng.normal(size=(8, 1, 6, 6)).astype(np.float32))
        y = tg.tensor(rng.integers(0, 3, 8))
        same(step(x, y), eager.step(x, y), 1024)
        same_trainers(compiled, eager, 4096)
        same(list(compiled.model.buffers()), list(eager.model.buffers()), 1024)
        versions = [[b._version for b in t.model.buffers()] for t in (compiled, eager)]
        assert versions[0] == versions[1]
    assert step.cache_info().hits == 5, step.explain()


def test_two_optimizers_and_two_steps_in_one_function() -> None:
    def make() -> tuple[Any, Any, Callable[[Any, Any], Any]]:
        tg.manual_seed(3)
        body, head = nn.Linear(6, 5), nn.Linear(5, 3)
        first = optim.Adam(body.parameters(), lr=0.01)
        second = optim.SGD(head.parameters(), lr=0.1, momentum=0.9)

        def step(x: Any, y: Any) -> Any:
            losses = []
            for _ in range(2):
                first.zero_grad(set_to_none=True)
                second.zero_grad(set_to_none=True)
                loss = F.cross_entropy(head(body(x).tanh()), y)
                loss.backward()
                first.step()
                second.step()
                losses.append(loss.detach())
            return losses

        return first, second, step

    (a, b, plain), (c, d, inner) = make(), make()
    step = tg.compile(inner)
    for k in range(6):
        x, y = batch(k)
        same(step(x, y), plain(x, y))
        same(c.state_dict(), a.state_dict(), 512)
        same(d.state_dict(), b.state_dict(), 512)
        for o in (a, b, c, d):
            o.param_groups[0]["lr"] *= 0.8
    assert step.cache_info().hits == 4, step.explain()


def test_an_optimizer_given_as_an_argument_and_a_closure() -> None:
    eager, compiled = Trainer("adam"), Trainer("adam")

    def run(optimizer: Any, model: Any, x: Any, y: Any) -> Any:
        def closure() -> Any:
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss.detach()

        return optimizer.step(closure)

    step = tg.compile(run)
    for k in range(6):
        x, y = batch(k)
        got = step(compiled.optimizer, compiled.model, x, y)
        same(got, run(eager.optimizer, eager.model, x, y))
        same_trainers(compiled, eager, 512)
    assert step.cache_info().hits >= 3, step.explain()


def test_an_optimizer_made_inside() -> None:
    """Each call makes its own: nothing of it is from outside."""

    def fit(x: Any) -> Any:
        w = tg.ones(4, requires_grad=True)
        optimizer = optim.Adam([w], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad(set_to_none=True)
            ((w - x) ** 2).sum().backward()
            optimizer.step()
        return w.detach()

    step = tg.compile(fit)
    for k in range(4):
        x = tg.tensor(np.random.default_rng(k).normal(size=4).astype(np.float32))
        same(step(x), fit(x))
    assert step.cache_info().hits == 3, step.explain()


def test_an_error_in_a_step_leaves_what_eager_leaves() -> None:
    eager, compiled, step = pair("adam")
    for k in range(4):
        x, y = batch(k)
        step(x, y)
        eager.step(x, y)
    x, _ = batch(4)
    wrong = tg.tensor([7] * 8)
    raised = []
    for run in (step, eager.step):
        with pytest.raises(IndexError) as caught:
            run(x, wrong)
        raised.append(str(caught.value))
    assert raised[0] == raised[1]
    same_trainers(compiled, eager, 512)
    x, y = batch(5)
    same(step(x, y), eager.step(x, y))
    same_trainers(compiled, eager, 512)


def test_a_rule_of_the_users_reads_plain_settings() -> None:
    class Rule(optim.SGD):
        def update(self, p: Any, grad: Any, state: Any, group: Any) -> None:
            assert isinstance(group["lr"], float)
            p.sub_(grad.sign() * group["lr"])

    def make() -> Trainer:
        t = Trainer("sgd")
        t.optimizer = Rule(t.model.parameters(), lr=0.01)
        return t

    eager, compiled = make(), make()
    step = tg.compile(compiled.step)
    for t in (eager, compiled):
        for p in t.model.parameters():
            p.grad = p.detach() * 0
    for k in range(6):
        x, y = batch(k)
        same(step(x, y), eager.step(x, y))
        same_trainers(compiled, eager)
        for t in (eager, compiled):
            t.optimizer.param_groups[0]["lr"] = 0.01 if k < 3 else 0.02
    assert step.cache_info().traces == 2, step.explain()


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "lambda": lambda o: optim.lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    "one cycle": lambda o: optim.lr_scheduler.OneCycleLR(o, 0.1, 20, cycle_momentum=False),
    "restarts": lambda o: optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "sequential": lambda o: optim.lr_scheduler.SequentialLR(
        o, [optim.lr_scheduler.LinearLR(o, total_iters=3), optim.lr_scheduler.ExponentialLR(o, 0.9)], [4]
    ),
    "chained": lambda o: optim.lr_scheduler.ChainedScheduler(
        [optim.lr_scheduler.LinearLR(o, total_iters=3), optim.lr_scheduler.ExponentialLR(o, 0.9)]
    ),
}  # fmt: skip


def scheduled(rule: str, schedule: str) -> tuple[Trainer, Any, Callable[[Any, Any], Any]]:
    trainer = Trainer(rule)
    scheduler = SCHEDULES[schedule](trainer.optimizer)

    def step(x: Any, y: Any) -> Any:
        loss = trainer.step(x, y)
        scheduler.step()
        return loss

    return trainer, scheduler, step


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_that_steps_inside(schedule: str) -> None:
    eager, schedule_1, plain = scheduled("adam", schedule)
    compiled, schedule_2, inner = scheduled("adam", schedule)
    step = tg.compile(inner)
    for k in range(10):
        x, y = batch(k)
        same(step(x, y), plain(x, y))
        same_trainers(compiled, eager, 512)
        assert schedule_2.get_last_lr() == schedule_1.get_last_lr()
        assert schedule_2.state_dict().keys() == schedule_1.state_dict().keys()
    assert step.cache_info().hits >= 7, step.explain()


READERS: dict[str, Callable[[Trainer, Any], Any]] = {
    "group": lambda t, s: t.optimizer.param_groups[0]["lr"], "last": lambda t, s: s.get_last_lr()[0],
    "attribute": lambda t, s: s._last_lr[0], "epoch": lambda t, s: s.last_epoch,
    "state": lambda t, s: s.state_dict()["_last_lr"][0],
    "state of the optimizer": lambda t, s: t.optimizer.state_dict()["param_groups"][0]["lr"],
}  # fmt: skip


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("reader", READERS)
def test_a_rate_read_beside_its_schedule_runs_eagerly_or_is_seen(reader: str, before: bool) -> None:
    runs = []
    for compiled in (False, True):
        trainer, scheduler, _ = scheduled("sgd", "lambda")
        read = READERS[reader]

        def step(x: Any, t: Any = trainer, s: Any = scheduler, read: Any = read) -> Any:
            seen = read(t, s) if before else 0
            s.step()
            return x * 1, seen if before else read(t, s)

        runs.append(tg.compile(step) if compiled else step)
    for k in range(6):
        x = tg.ones(2) * k
        got, want = runs[1](x), runs[0](x)
        same(got[0], want[0])
        assert float(got[1]) == float(want[1])


@pytest.mark.parametrize("reader", READERS)
def test_a_rate_read_in_a_function_and_changed_outside_eagerly_or_seen(reader: str) -> None:
    trainer, scheduler, _ = scheduled("sgd", "lambda")
    read = READERS[reader]
    compiled = tg.compile(lambda x: x * read(trainer, scheduler))
    for _ in range(5):
        assert compiled(tg.ones(2)).tolist() == pytest.approx([read(trainer, scheduler)] * 2)
        scheduler.step()


def test_a_schedule_on_a_plateau_runs_eagerly() -> None:
    trainer = Trainer("sgd")
    scheduler = optim.lr_scheduler.ReduceLROnPlateau(trainer.optimizer, patience=0)
    step = tg.compile(lambda x: (scheduler.step(1.0), x * 1)[1])
    with pytest.warns(tg.EagerWarning, match="ReduceLROnPlateau.step"):
        step(tg.ones(2))
    for _ in range(3):
        step(tg.ones(2))
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.1**3)


def test_a_rate_changed_inside_runs_eagerly() -> None:
    eager, compiled = Trainer("sgd"), Trainer("sgd")

    def make(t: Trainer) -> Callable[[Any, Any], Any]:
        def step(x: Any, y: Any) -> Any:
            loss = t.step(x, y)
            t.optimizer.param_groups[0]["lr"] *= 0.5
            return loss

        return step

    step, plain = tg.compile(make(compiled)), make(eager)
    with pytest.warns(tg.EagerWarning, match="lr"):
        step(*batch(0))
    plain(*batch(0))
    for k in range(1, 4):
        same(step(*batch(k)), plain(*batch(k)))
        same_trainers(compiled, eager)


def test_state_made_anew_at_each_call_runs_eagerly() -> None:
    eager, compiled = Trainer("momentum"), Trainer("momentum")

    def make(t: Trainer) -> Callable[[Any, Any], Any]:
        def step(x: Any, y: Any) -> Any:
            t.optimizer.load_state_dict({**t.optimizer.state_dict(), "state": {}})
            return t.step(x, y)

        return step

    step, plain = tg.compile(make(compiled)), make(eager)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for k in range(6):
            same(step(*batch(k)), plain(*batch(k)))
            same_trainers(compiled, eager)
    assert [w for w in caught if w.category is tg.EagerWarning]


def test_what_is_guarded_is_shown() -> None:
    _, compiled, step = pair("adam")
    for k in range(3):
        step(*batch(k))
    text = step.explain()
    assert any(g.name == "optimizer.param_groups[0]['lr']" for g in step.guards())
    assert (
        "guarded: optimizer: " in text and "optimizer.param_groups[0]['maximize'] = False" in text
    )
    compiled.optimizer.param_groups[0]["weight_decay"] = 0.5
    step(*batch(3))
    assert "optimizer.param_groups[0]['weight_decay'] was 0, now it is 0.5" in step.explain()
    assert "lr" in step.source() and "exp_avg" in step.source()
