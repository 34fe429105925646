"""Optimizers against sequences computed by hand in NumPy; their state, texts and schedules."""

from __future__ import annotations

import math

import numpy as np
import pytest

import tracegrad as tg
from tracegrad import nn, optim
from tracegrad.optim import lr_scheduler

START = np.array([1.0, -2.0, 0.5])


def gradient(p):
    return 3 * p * p + np.cos(p)


def run(make, steps=6):
    """Values after each step on sum(p^3 + sin p)."""
    p = nn.Parameter(tg.tensor(START))
    optimizer = make([p])
    seen = []
    for _ in range(steps):
        optimizer.zero_grad()
        (p**3 + p.sin()).sum().backward()
        version = p._version
        optimizer.step()
        assert p._version > version  # written in place
        seen.append(p.detach().numpy().copy())
    return np.array(seen)


def sgd(lr, momentum=0.0, dampening=0.0, decay=0.0, nesterov=False, sign=1.0, steps=6):
    p, b, seen = START.copy(), None, []
    for _ in range(steps):
        g = sign * gradient(p) + decay * p
        if momentum:
            b = g if b is None else momentum * b + (1 - dampening) * g
            g = g + momentum * b if nesterov else b
        p = p - lr * g
        seen.append(p)
    return np.array(seen)


def adam(lr, b1=0.9, b2=0.999, eps=1e-8, decay=0.0, decoupled=False, amsgrad=False, sign=1.0):
    p, m, v, top, seen = START.copy(), 0.0, 0.0, 0.0, []
    for t in range(1, 7):
        g = sign * gradient(p)
        if decoupled:
            p = p - lr * decay * p
        else:
            g = g + decay * p
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        top = np.maximum(top, v)
        root = np.sqrt((top if amsgrad else v) / (1 - b2**t))
        p = p - lr * (m / (1 - b1**t)) / (root + eps)
        seen.append(p)
    return np.array(seen)


CASES = [
    (lambda p: optim.SGD(p, lr=0.01), sgd(0.01)),
    (lambda p: optim.SGD(p, lr=0.01, momentum=0.9), sgd(0.01, 0.9)),
    (lambda p: optim.SGD(p, 0.01, 0.9, 0.4), sgd(0.01, 0.9, 0.4)),
    (lambda p: optim.SGD(p, 0.01, weight_decay=0.3), sgd(0.01, decay=0.3)),
    (lambda p: optim.SGD(p, 0.01, 0.9, nesterov=True), sgd(0.01, 0.9, nesterov=True)),
    (lambda p: optim.SGD(p, 0.01, 0.5, maximize=True), sgd(0.01, 0.5, sign=-1.0)),
    (lambda p: optim.Adam(p, lr=0.1), adam(0.1)),
    (lambda p: optim.Adam(p, 0.1, (0.5, 0.7), 1e-3, 0.2), adam(0.1, 0.5, 0.7, 1e-3, 0.2)),
    (lambda p: optim.Adam(p, 0.1, (0.5, 0.1), amsgrad=True), adam(0.1, 0.5, 0.1, amsgrad=True)),
    (lambda p: optim.Adam(p, 0.1, maximize=True), adam(0.1, sign=-1.0)),
    (lambda p: optim.AdamW(p, 0.1), adam(0.1, decay=0.01, decoupled=True)),
    (lambda p: optim.AdamW(p, 0.1, weight_decay=0.5, amsgrad=True),
     adam(0.1, decay=0.5, decoupled=True, amsgrad=True)),
]  # fmt: skip


@pytest.mark.parametrize(("make", "expected"), CASES)
def test_steps_are_the_formula(make, expected):
    np.testing.assert_allclose(run(make), expected, rtol=1e-11)


def test_groups_have_settings_of_their_own_and_lr_may_change():
    a, b = nn.Parameter(tg.ones(1)), nn.Parameter(tg.ones(1))
    optimizer = optim.SGD([{"params": a}, {"params": [b], "lr": 0.5}], lr=0.25)
    (a + b).backward()
    optimizer.step()
    assert (a.item(), b.item()) == (0.75, 0.5)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert (a.item(), b.item()) == (0.75, 0.0)


def test_step_leaves_gradients_and_skips_parameters_without():
    a, b = nn.Parameter(tg.ones(1)), nn.Parameter(tg.ones(1))
    optimizer = optim.Adam([a, b])
    (a * 3).backward()
    optimizer.step()
    assert a.grad.item() == 3 and b.item() == 1 and len(optimizer.state) == 1


def test_zero_grad_leaves_zeros_by_default():
    a = nn.Parameter(tg.ones(2))
    optimizer = optim.SGD([a])
    a.sum().backward()
    grad = a.grad
    optimizer.zero_grad()
    assert a.grad is grad and grad.tolist() == [0.0, 0.0]
    optimizer.zero_grad(set_to_none=True)
    assert a.grad is None


def test_zero_grad_cuts_the_history_of_a_gradient():
    a = nn.Parameter(tg.ones(2))
    optimizer = optim.SGD([a])
    (a**3).sum().backward(create_graph=True)
    optimizer.zero_grad()
    assert not a.grad.requires_grad and a.grad.tolist() == [0.0, 0.0]


def test_closure_is_run_with_gradients():
    a = nn.Parameter(tg.ones(1))
    optimizer = optim.SGD([a], lr=0.5)

    def closure():
        optimizer.zero_grad()
        loss = (a * a).sum()
        loss.backward()
        return loss

    with tg.no_grad():
        assert optimizer.step(closure).item() == 1.0
    assert a.item() == 0.0


@pytest.mark.parametrize("make", [
    lambda p: optim.SGD(p, 0.01, 0.9), lambda p: optim.Adam(p, 0.1, amsgrad=True),
])  # fmt: skip
def test_training_goes_on_from_saved_state(make):
    def steps(p, optimizer, n):
        for _ in range(n):
            optimizer.zero_grad()
            (p**3).sum().backward()
            optimizer.step()

    a = nn.Parameter(tg.tensor(START))
    first = make([a])
    steps(a, first, 3)
    b = nn.Parameter(a.detach().clone())
    second = make([b])
    second.load_state_dict(first.state_dict())
    steps(a, first, 3)  # the loaded state is a copy: these steps do not touch it
    steps(b, second, 3)
    assert tg.equal(a, b)


def test_saved_state_has_pytorchs_form():
    a = nn.Parameter(tg.ones(2))
    optimizer = optim.Adam([a])
    assert optimizer.state_dict()["state"] == {}
    a.sum().backward()
    optimizer.step()
    saved = optimizer.state_dict()
    assert saved["param_groups"][0]["params"] == [0]
    assert list(saved["state"][0]) == ["step", "exp_avg", "exp_avg_sq"]
    assert saved["state"][0]["step"].item() == 1


RULES = [optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop, optim.Adagrad]


@pytest.mark.parametrize("rule", RULES)
def test_parameters_may_come_with_names_which_their_group_keeps(rule):
    layer = nn.Linear(3, 2)
    optimizer = rule(layer.named_parameters(), lr=0.1)
    (group,) = optimizer.param_groups
    assert group["param_names"] == ["weight", "bias"]
    assert group["params"][0] is layer.weight and group["params"][1] is layer.bias
    before = layer.weight.detach().clone()
    layer(tg.ones(1, 3)).sum().backward()
    optimizer.step()
    assert not tg.equal(before, layer.weight)
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]
    assert "    param_names: ['weight', 'bias']\n" in repr(optimizer)


def test_every_group_has_names_or_none_has():
    optimizer = optim.SGD([{"params": [("p", P)]}, {"params": {"q": Q}.items(), "lr": 0.2}])
    assert [g["param_names"] for g in optimizer.param_groups] == [["p"], ["q"]]
    assert "param_names" not in optim.SGD([P]).param_groups[0]
    assert optim.SGD([("p", P), ("p", Q)]).param_groups[0]["param_names"] == ["p", "p"]


def test_loaded_names_replace_those_there():
    """As in PyTorch: parameters are matched by their places, whatever their names."""
    named, other, bare = optim.SGD([("p", P)]), optim.SGD([("q", P)]), optim.SGD([P])
    other.load_state_dict(bare.state_dict())
    assert other.param_groups[0]["param_names"] == ["q"]
    for optimizer in (other, bare):
        optimizer.load_state_dict(named.state_dict())
        assert optimizer.param_groups[0]["param_names"] == ["p"]


P, Q = nn.Parameter(tg.ones(2)), nn.Parameter(tg.ones(2))
EMPTY = {"state": {}, "param_groups": []}
REFUSALS = [
    (lambda: optim.SGD([P], lr=-1.0), ValueError, "Invalid learning rate: -1.0"),
    (lambda: optim.SGD([P], lr=float("nan")), ValueError, "Invalid learning rate: nan"),
    (lambda: optim.SGD([P], momentum=-1.0), ValueError, "Invalid momentum value: -1.0"),
    (lambda: optim.SGD([P], weight_decay=-1.0), ValueError, "Invalid weight_decay value: -1.0"),
    (lambda: optim.SGD([P], nesterov=True), ValueError,
     "Nesterov momentum requires a momentum and zero dampening"),
    (lambda: optim.Adam([P], lr=-1.0), ValueError, "Invalid learning rate: -1.0"),
    (lambda: optim.Adam([P], eps=-1.0), ValueError, "Invalid epsilon value: -1.0"),
    (lambda: optim.Adam([P], betas=(1.0, 0.9)), ValueError,
     "Invalid beta parameter at index 0: 1.0"),
    (lambda: optim.Adam([P], betas=(0.9, -1)), ValueError,
     "Invalid beta parameter at index 1: -1"),
    (lambda: optim.AdamW([P], weight_decay=-1.0), ValueError, "Invalid weight_decay value: -1.0"),
    (lambda: optim.SGD([]), ValueError, "optimizer got an empty parameter list"),
    (lambda: optim.SGD(P), TypeError,
     "params argument given to the optimizer should be an iterable of Tensors or dicts, but got "
     "torch.FloatTensor"),
    (lambda: optim.SGD([3]), TypeError,
     "optimizer can only optimize Tensors, but one of the params is int"),
    (lambda: optim.SGD([P * 2]), ValueError, "can't optimize a non-leaf Tensor"),
    (lambda: optim.SGD([{"params": [P]}, {"params": P}]), ValueError,
     "some parameters appear in more than one parameter group"),
    (lambda: optim.SGD({P}), TypeError,
     "optimizer parameters need to be organized in ordered collections, but the ordering of "
     "tensors in sets will change between runs. Please use a list instead."),
    (lambda: optim.SGD([P]).add_param_group(3), TypeError,
     "param_group must be a dict, but got <class 'int'>"),
    (lambda: optim.SGD([P]).load_state_dict(EMPTY), ValueError,
     "loaded state dict has a different number of parameter groups"),
    (lambda: optim.SGD([P]).load_state_dict(optim.SGD([P, Q]).state_dict()), ValueError,
     "loaded state dict contains a parameter group that doesn't match the size of optimizer's "
     "group"),
    (lambda: optim.SGD([("p", P), Q]), ValueError,
     "all optimizer params should be with/without names. Some param names are missing"),
    (lambda: optim.SGD([{"params": [("p", P)]}, {"params": [Q]}]), ValueError,
     "all optimizer param groups should be with/without names. cannot add param group without "
     "names to the optimizer"),
    (lambda: optim.SGD([P]).add_param_group({"params": [("q", Q)]}), ValueError,
     "all optimizer param groups should be with/without names. cannot add param group with names "
     "to the optimizer"),
    (lambda: optim.SGD([{"params": [("p", P)]}, {"params": [("q", P)]}]), ValueError,
     "some parameters appear in more than one parameter group"),
    (lambda: optim.SGD([("p", 3)]), TypeError,
     "optimizer can only optimize Tensors, but one of the params is int"),
    (lambda: optim.SGD([["p", P]]), TypeError,
     "optimizer can only optimize Tensors, but one of the params is list"),
    (lambda: optim.SGD({"p": P}), TypeError,
     "optimizer can only optimize Tensors, but one of the params is str"),
    (lambda: lr_scheduler.StepLR(3, 2), TypeError, "int is not an Optimizer"),
    (lambda: lr_scheduler.LambdaLR(optim.SGD([P]), [abs] * 3), ValueError,
     "Expected 1 lr_lambdas, but got 3"),
]  # fmt: skip


@pytest.mark.parametrize(("act", "error", "text"), REFUSALS, ids=[r[2][:50] for r in REFUSALS])
def test_refusals_say_what_pytorch_says(act, error, text):
    with pytest.raises(error) as caught:
        act()
    assert str(caught.value) == text


def test_a_parameter_listed_twice_warns():
    with pytest.warns(UserWarning, match="a parameter group with duplicate parameters"):
        optim.SGD([P, P])


def test_prints_its_settings():
    assert repr(optim.SGD([{"params": [P]}, {"params": [Q], "lr": 0.5}])) == (
        "SGD (\nParameter Group 0\n    dampening: 0\n    differentiable: False\n"
        "    foreach: None\n    fused: None\n    lr: 0.001\n    maximize: False\n"
        "    momentum: 0\n    nesterov: False\n    weight_decay: 0\n\nParameter Group 1\n"
        "    dampening: 0\n    differentiable: False\n    foreach: None\n    fused: None\n"
        "    lr: 0.5\n    maximize: False\n    momentum: 0\n"
        "    nesterov: False\n    weight_decay: 0\n)"
    )


# ---- learning rates -----------------------------------------------------------------------------


def rates(make, epochs):
    optimizer = optim.SGD([P], lr=0.8)
    schedule = make(optimizer)
    seen = []
    for _ in range(epochs):
        assert schedule.get_last_lr() == [optimizer.param_groups[0]["lr"]]
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_step_schedule():
    seen = rates(lambda o: lr_scheduler.StepLR(o, 2, gamma=0.5), 5)
    assert seen == [0.8, 0.8, 0.4, 0.4, 0.2]


def test_lambda_schedule():
    seen = rates(lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 2.0**-epoch), 4)
    assert seen == [0.8, 0.4, 0.2, 0.1]


def test_cosine_schedule_goes_down_and_back():
    seen = rates(lambda o: lr_scheduler.CosineAnnealingLR(o, 4, eta_min=0.1), 9)
    expected = [0.1 + 0.7 * (1 + math.cos(math.pi * t / 4)) / 2 for t in range(9)]
    assert seen == pytest.approx(expected, rel=1e-12)


def test_schedule_before_the_optimizer_warns():
    schedule = lr_scheduler.StepLR(optim.SGD([P]), 1)
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        schedule.step()


def test_schedule_goes_on_from_saved_state():
    first = lr_scheduler.StepLR(optim.SGD([P], lr=1.0), 2, gamma=0.5)
    first.optimizer.step()
    first.step()
    second = lr_scheduler.StepLR(optim.SGD([P], lr=1.0), 2, gamma=0.5)
    second.load_state_dict(first.state_dict())
    assert "optimizer" not in first.state_dict() and second.last_epoch == 1
    with pytest.raises(KeyError, match="initial_lr"):
        lr_scheduler.StepLR(optim.SGD([P]), 1, last_epoch=3)
