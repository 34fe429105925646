"""Values and gradients of nn and optim beside PyTorch's, where it is installed."""

from __future__ import annotations

import numpy as np
import pytest

import tracegrad as tg
from tracegrad import nn, optim

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

RNG = np.random.default_rng(5)
TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}  # float64; sums are taken in another order


def normal(*shape):
    return RNG.standard_normal(shape)


LABELS = np.array([0, 4, 2, 4])
FUNCTIONS = {
    "linear": (lambda F, x, w, b: F.linear(x, w, b), [normal(5, 3), normal(4, 3), normal(4)]),
    "linear 3d": (lambda F, x, w: F.linear(x, w), [normal(2, 5, 3), normal(4, 3)]),
    "conv1d": (lambda F, x, w, b: F.conv1d(x, w, b, stride=2, padding=1),
               [normal(2, 3, 9), normal(4, 3, 3), normal(4)]),
    "conv2d": (lambda F, x, w, b: F.conv2d(x, w, b, padding=(1, 0), dilation=(1, 2)),
               [normal(2, 3, 6, 7), normal(4, 3, 3, 2), normal(4)]),
    "conv2d groups": (lambda F, x, w: F.conv2d(x, w, groups=2, stride=(2, 1)),
                      [normal(2, 4, 6, 7), normal(6, 2, 3, 3)]),
    "conv2d same": (lambda F, x, w: F.conv2d(x, w, padding="same", dilation=(2, 1)),
                    [normal(1, 2, 6, 7), normal(3, 2, 4, 2)]),
    "conv2d unbatched": (lambda F, x, w: F.conv2d(x, w, padding="valid"),
                         [normal(2, 6, 7), normal(3, 2, 2, 2)]),
    "conv3d": (lambda F, x, w, b: F.conv3d(x, w, b, padding=1),
               [normal(1, 2, 4, 3, 5), normal(3, 2, 2, 3, 2), normal(3)]),
    "relu": (lambda F, x: F.relu(x), [np.array([-1.0, 0.0, 2.0])]),
    "leaky_relu": (lambda F, x: F.leaky_relu(x, 0.2), [np.array([-1.0, 0.0, 2.0])]),
    "sigmoid": (lambda F, x: F.sigmoid(x), [np.array([-800.0, -30.0, -1.0, 0.0, 3.0, 800.0])]),
    "silu": (lambda F, x: F.silu(x), [np.array([-800.0, -1.0, 0.0, 3.0])]),
    "softplus": (lambda F, x: F.softplus(x, 2.0), [np.array([-80.0, -1.0, 0.0, 3.0, 900.0])]),
    "gelu": (lambda F, x: F.gelu(x), [normal(7)]),
    "gelu tanh": (lambda F, x: F.gelu(x, approximate="tanh"), [normal(7)]),
    "softmax": (lambda F, x: F.softmax(x, dim=1), [normal(3, 4, 2) * 30]),
    "log_softmax": (lambda F, x: F.log_softmax(x, dim=0), [normal(3, 4) * 500]),
    "layer_norm": (lambda F, x, w, b: F.layer_norm(x, (4, 2), w, b, 1e-3),
                   [normal(3, 4, 2), normal(4, 2), normal(4, 2)]),
    "max_pool2d": (lambda F, x: F.max_pool2d(x, 3, 2, 1), [normal(2, 3, 7, 8)]),
    "max_pool2d ceil": (lambda F, x: F.max_pool2d(x, 2, 3, 1, ceil_mode=True), [normal(2, 3, 7, 6)]),
    "max_pool2d dilated": (lambda F, x: F.max_pool2d(x, (2, 3), dilation=(2, 1)), [normal(3, 7, 8)]),
    "max_pool2d ties": (lambda F, x: F.max_pool2d(x, 2, 1), [np.zeros((1, 1, 3, 3))]),
    "max_pool1d": (lambda F, x: F.max_pool1d(x, 2), [normal(2, 3, 7)]),
    "avg_pool2d": (lambda F, x: F.avg_pool2d(x, 3, 2, 1), [normal(2, 3, 7, 8)]),
    "avg_pool2d inside": (lambda F, x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
                          [normal(2, 3, 7, 8)]),
    "avg_pool2d ceil": (lambda F, x: F.avg_pool2d(x, 2, 3, 1, ceil_mode=True), [normal(2, 3, 7, 6)]),
    "avg_pool2d ceil inside": (
        lambda F, x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
        [normal(2, 3, 6, 8)]),
    "avg_pool2d divisor": (lambda F, x: F.avg_pool2d(x, 2, divisor_override=3), [normal(2, 6, 8)]),
    "mse_loss": (lambda F, x, y: F.mse_loss(x, y), [normal(3, 4), normal(3, 4)]),
    "mse_loss sum": (lambda F, x, y: F.mse_loss(x, y, reduction="sum"), [normal(3), normal(3)]),
    "l1_loss": (lambda F, x, y: F.l1_loss(x, y, reduction="none"), [normal(3), normal(3)]),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_and_gradients_are_pytorchs(name):
    function, arrays = FUNCTIONS[name]
    ours = [tg.tensor(a, requires_grad=True) for a in arrays]
    theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
    a, b = function(nn.functional, *ours), function(torch.nn.functional, *theirs)
    np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), **TOLERANCE)
    ct = RNG.standard_normal(tuple(b.shape))
    a.backward(tg.tensor(ct))
    b.backward(torch.tensor(ct))
    for x, y in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(x.grad.numpy(), y.grad.numpy(), **TOLERANCE)


WEIGHT = np.array([0.5, 1.0, 0.0, 2.0, 3.0])
LOSSES = [
    ({}, (4, 5), LABELS),
    ({"reduction": "sum"}, (4, 5), LABELS),
    ({"reduction": "none"}, (4, 5), LABELS),
    ({"ignore_index": 4}, (4, 5), LABELS),
    ({"ignore_index": 4, "reduction": "none"}, (4, 5), LABELS),
    ({}, (4, 5), np.array([0, -100, 2, 4])),
    ({}, (4, 5), LABELS.astype(np.uint8)),
    ({"weight": WEIGHT}, (4, 5), LABELS),
    ({"weight": WEIGHT, "ignore_index": 0}, (4, 5), LABELS),
    ({"weight": WEIGHT, "reduction": "none"}, (4, 5), LABELS),
    ({}, (5,), np.array(3)),
    ({"weight": WEIGHT}, (4, 5, 2, 3), RNG.integers(0, 5, (4, 2, 3))),
    ({"ignore_index": 1}, (4, 5, 2, 3), RNG.integers(0, 5, (4, 2, 3))),
]
SMOOTHED = [({**how, "label_smoothing": 0.1}, shape, t) for how, shape, t in LOSSES]
SOFT = [
    ({}, (4, 5), RNG.random((4, 5))),
    ({"weight": WEIGHT, "label_smoothing": 0.2}, (4, 5), RNG.random((4, 5))),
    ({"reduction": "none"}, (4, 5, 2), RNG.random((4, 5, 2))),
    ({"reduction": "sum"}, (5,), RNG.random(5)),
]


def assert_losses_agree(name, how, shape, target):
    x = RNG.standard_normal(shape)
    results = []
    for lib, F in ((tg, nn.functional), (torch, torch.nn.functional)):
        given = {k: lib.tensor(v) if k == "weight" else v for k, v in how.items()}
        leaf = lib.tensor(x, requires_grad=True)
        loss = getattr(F, name)(leaf, lib.tensor(target), **given)
        (loss * loss).sum().backward()
        results.append((loss.detach().numpy(), leaf.grad.numpy()))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, **TOLERANCE)


@pytest.mark.parametrize(("how", "shape", "target"), LOSSES + SMOOTHED + SOFT)
def test_cross_entropy_is_pytorchs(how, shape, target):
    assert_losses_agree("cross_entropy", how, shape, target)


@pytest.mark.parametrize(("how", "shape", "target"), LOSSES)
def test_nll_loss_is_pytorchs(how, shape, target):
    assert_losses_agree("nll_loss", how, shape, target)


OPTIMIZERS = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.2}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.2}),
    ("SGD", {"lr": 0.1, "momentum": 0.5, "maximize": True}),
    ("Adam", {"lr": 0.1}),
    ("Adam", {"lr": 0.1, "betas": (0.5, 0.7), "eps": 1e-3, "weight_decay": 0.2}),
    ("Adam", {"lr": 0.1, "amsgrad": True, "betas": (0.5, 0.1)}),
    ("Adam", {"lr": 0.1, "maximize": True, "weight_decay": 0.2}),
    ("AdamW", {"lr": 0.1}),
    ("AdamW", {"lr": 0.1, "amsgrad": True, "weight_decay": 0.3}),
]


@pytest.mark.parametrize(("name", "how"), OPTIMIZERS)
def test_optimizer_follows_pytorchs(name, how):
    start = normal(3, 2)
    ours = nn.Parameter(tg.tensor(start))
    theirs = torch.nn.Parameter(torch.tensor(start))
    pairs = [(ours, getattr(optim, name)([ours], **how)),
             (theirs, getattr(torch.optim, name)([theirs], **how))]  # fmt: skip
    for _ in range(6):
        for p, optimizer in pairs:
            optimizer.zero_grad()
            ((p * p * p).sum() + p.sin().sum()).backward()
            optimizer.step()
        np.testing.assert_allclose(ours.detach().numpy(), theirs.detach().numpy(), **TOLERANCE)


SCHEDULES = [
    ("StepLR", {"step_size": 2, "gamma": 0.5}),
    ("LambdaLR", {"lr_lambda": lambda epoch: 1 / (1 + epoch)}),
    ("CosineAnnealingLR", {"T_max": 4, "eta_min": 0.01}),
]


@pytest.mark.parametrize(("name", "how"), SCHEDULES)
def test_schedule_follows_pytorchs(name, how):
    rates = []
    for lib in (tg, torch):
        optimizer = lib.optim.SGD([lib.nn.Parameter(lib.ones(1))], lr=0.8)
        schedule = getattr(lib.optim.lr_scheduler, name)(optimizer, **how)
        seen = []
        for _ in range(11):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        rates.append(seen)
    np.testing.assert_allclose(rates[0], rates[1], rtol=1e-12)
