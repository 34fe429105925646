"""RMSprop and Adagrad: twenty steps as PyTorch 2.13 takes them in float64; state, texts, traces."""

from __future__ import annotations

import numpy as np
import pytest

import tracegrad as tg
from tracegrad import nn, optim

START = [1.0, -2.0, 0.5]

# of twenty steps on sum(p^2 / 2 + sin p) from START: the rule, then p and the state
GOLDEN = {
    "RMSprop": (
        lambda p: optim.RMSprop(p, 0.05),
        [-0.7379680235422946, -0.7400912808225343, -0.7390781753851239],
        {
            "step": 20.0,
            "square_avg": [0.06305375098752584, 0.07890384189719361, 0.029916518253230908],
        },
    ),
    "RMSprop momentum": (
        lambda p: optim.RMSprop(p, 0.02, alpha=0.9, momentum=0.8, weight_decay=0.1),
        [-0.7951597471126651, -0.5928515052270733, -0.7874913084211381],
        {
            "step": 20.0,
            "square_avg": [0.489541689390144, 0.6142069032671209, 0.23107334623827058],
            "momentum_buffer": [0.9908692301747417, -0.09898808722590821, -1.0925480198337212],
        },
    ),
    "RMSprop centered": (
        lambda p: optim.RMSprop(p, 0.02, 0.7, 1e-3, centered=True),
        [-0.47095749609365983, -0.9518184496616627, -0.612947502554831],
        {
            "step": 20.0,
            "square_avg": [0.48575827642759417, 0.45064565257536565, 0.1788673471297627],
            "grad_avg": [0.6594228488822301, -0.6161820119981098, 0.3800823181532729],
        },
    ),
    "RMSprop all": (
        lambda p: optim.RMSprop(p, 0.002, 0.7, 1e-3, momentum=0.5, centered=True, maximize=True),
        [1.7267073483948638, -2.5668539156237506, 1.1819703383330344],
        {
            "step": 20.0,
            "square_avg": [2.4579555244302473, 9.748403602963787, 2.3116745787954107],
            "momentum_buffer": [-59.51171664395853, 29.08845520868607, -49.14369275987369],
            "grad_avg": [-1.5671542130966094, 3.114131701214732, -1.5193894920605662],
        },
    ),
    "Adagrad": (
        lambda p: optim.Adagrad(p, 0.1),
        [0.26978510626126884, -1.348404594519098, -0.18563068679906825],
        {"step": 20.0, "sum": [38.81587393444008, 54.587468660949774, 22.855011439424825]},
    ),
    "Adagrad decay": (
        lambda p: optim.Adagrad(p, 0.1, lr_decay=0.3, weight_decay=0.2),
        [0.6580767095471431, -1.6689478000185511, 0.16473470064946472],
        {"step": 20.0, "sum": [52.84877675921613, 104.22555706066348, 31.97033202015383]},
    ),
    "Adagrad start": (
        lambda p: optim.Adagrad(p, 0.1, initial_accumulator_value=0.7, eps=1e-2, maximize=True),
        [1.7323552745398072, -2.8126279156498533, 1.2439484082430468],
        {"step": 20.0, "sum": [49.795524085038466, 212.64915803412762, 46.65751268366171]},
    ),
}


def steps(p, optimizer, count):
    for _ in range(count):
        optimizer.zero_grad()
        (p**2 / 2 + p.sin()).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("case", GOLDEN)
def test_twenty_steps_are_those_of_pytorch(case):
    make, expected, state = GOLDEN[case]
    p = nn.Parameter(tg.tensor(START, dtype=tg.float64))
    optimizer = make([p])
    steps(p, optimizer, 20)
    # 1e-12: squares are added in another order, and errors of steps add up
    np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-12)
    assert list(optimizer.state[p]) == list(state)
    for name, value in state.items():
        found = optimizer.state[p][name]
        assert found.dtype is (tg.float32 if name == "step" else tg.float64)
        np.testing.assert_allclose(found.numpy(), value, rtol=1e-12)


@pytest.mark.parametrize("case", GOLDEN)
def test_steps_go_on_from_saved_state(case):
    make, expected, _ = GOLDEN[case]
    p = nn.Parameter(tg.tensor(START, dtype=tg.float64))
    first = make([p])
    steps(p, first, 13)
    q = nn.Parameter(p.detach().clone())
    second = make([q])
    second.load_state_dict(first.state_dict())
    steps(q, second, 7)
    np.testing.assert_allclose(q.detach().numpy(), expected, rtol=1e-12)
    np.testing.assert_array_equal(first.state[p]["step"].numpy(), 13.0)  # nothing is shared


def test_groups_have_the_settings_of_pytorch():
    def groups(optimizer):
        return optimizer.state_dict()["param_groups"]

    p = [nn.Parameter(tg.ones(2))]
    assert groups(optim.RMSprop(p)) == [{
        "lr": 0.01, "momentum": 0, "alpha": 0.99, "eps": 1e-8, "centered": False,
        "weight_decay": 0, "capturable": False, "foreach": None, "maximize": False,
        "differentiable": False, "params": [0],
    }]  # fmt: skip
    assert groups(optim.Adagrad(p)) == [{
        "lr": 0.01, "lr_decay": 0, "eps": 1e-10, "weight_decay": 0,
        "initial_accumulator_value": 0, "foreach": None, "maximize": False,
        "differentiable": False, "fused": None, "params": [0],
    }]  # fmt: skip


def test_adagrad_has_its_state_from_the_start():
    a, b = nn.Parameter(tg.ones(2)), nn.Parameter(tg.ones(3))
    optimizer = optim.Adagrad([a], initial_accumulator_value=0.5)
    assert optimizer.state[a]["step"].item() == 0.0
    assert optimizer.state[a]["sum"].tolist() == [0.5, 0.5]
    optimizer.add_param_group({"params": [b], "lr": 1.0})
    b.sum().backward()
    optimizer.step()
    assert optimizer.state[b]["sum"].tolist() == [1.5] * 3
    np.testing.assert_allclose(b.tolist(), [1 - 1.5**-0.5] * 3, rtol=1e-6)


def test_a_learning_rate_may_be_a_tensor():
    for rule in (optim.RMSprop, optim.Adagrad):
        p, q = (nn.Parameter(tg.tensor(START, dtype=tg.float64)) for _ in range(2))
        steps(p, rule([p], lr=0.125), 3)
        steps(q, rule([q], lr=tg.tensor(0.125)), 3)
        assert p.tolist() == q.tolist()


@pytest.mark.parametrize("settings", [{"foreach": True}, {"foreach": False}, {"fused": True}])
def test_implementations_have_one_result(settings):
    p, q = (nn.Parameter(tg.tensor(START)) for _ in range(2))
    steps(p, optim.Adagrad([p]), 2)
    steps(q, optim.Adagrad([q], **settings), 2)
    assert p.tolist() == q.tolist()


R, A = optim.RMSprop, optim.Adagrad


@pytest.mark.parametrize(("rule", "settings", "kind", "text"), [
    (R, {"lr": -1.0}, ValueError, "Invalid learning rate: -1.0"),
    (R, {"lr": float("nan")}, ValueError, "Invalid learning rate: nan"),
    (R, {"lr": tg.ones(2)}, ValueError, "Tensor lr must be 1-element"),
    (R, {"eps": -1.0}, ValueError, "Invalid epsilon value: -1.0"),
    (R, {"momentum": -0.5}, ValueError, "Invalid momentum value: -0.5"),
    (R, {"weight_decay": -1}, ValueError, "Invalid weight_decay value: -1"),
    (R, {"alpha": -0.1}, ValueError, "Invalid alpha value: -0.1"),
    (A, {"lr": -1.0}, ValueError, "Invalid learning rate: -1.0"),
    (A, {"lr": tg.ones(2)}, ValueError, "Tensor lr must be 1-element"),
    (A, {"lr_decay": -1.0}, ValueError, "Invalid lr_decay value: -1.0"),
    (A, {"weight_decay": -1}, ValueError, "Invalid weight_decay value: -1"),
    (A, {"initial_accumulator_value": -1}, ValueError,
     "Invalid initial_accumulator_value value: -1"),
    (A, {"eps": -1.0}, ValueError, "Invalid epsilon value: -1.0"),
    (A, {"fused": True, "differentiable": True}, RuntimeError,
     "`fused` does not support `differentiable`"),
    (A, {"fused": True, "foreach": True}, RuntimeError,
     "`fused` and `foreach` cannot be `True` together."),
    (R, {"differentiable": True}, NotImplementedError,
     "RMSprop: differentiable=True is not supported: step() writes parameters without recording. "
     "To differentiate through steps, compute new parameters from old ones and call the model with "
     "tracegrad.func.functional_call."),
])  # fmt: skip
def test_refused_settings(rule, settings, kind, text):
    with pytest.raises(kind) as raised:
        rule([nn.Parameter(tg.ones(1))], **settings)
    assert str(raised.value) == text


@pytest.mark.parametrize(("rule", "settings"), [
    (optim.SGD, ["foreach", "differentiable", "fused"]),
    (optim.Adam, ["foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"]),
    (optim.AdamW, ["foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"]),
])  # fmt: skip
def test_settings_of_other_implementations_are_kept_but_change_nothing(rule, settings):
    p, q = (nn.Parameter(tg.tensor(START)) for _ in range(2))
    plain, chosen = rule([p]), rule([q], foreach=True, differentiable=False)
    assert set(settings) <= set(plain.state_dict()["param_groups"][0])
    steps(p, plain, 3)
    steps(q, chosen, 3)
    assert p.tolist() == q.tolist()
    assert rule([p], fused=True).param_groups[0]["fused"] is True
    with pytest.raises(NotImplementedError, match=f"^{rule.__name__}: differentiable=True is not"):
        rule([p], differentiable=True)
    with pytest.raises(RuntimeError, match="^`fused` and `foreach` cannot be `True` together"):
        rule([p], fused=True, foreach=True)
    with pytest.raises(ValueError, match="^Tensor lr must be 1-element$"):
        rule([p], lr=tg.ones(2))


def test_adam_with_decoupled_decay_is_adamw():
    p, q = (nn.Parameter(tg.tensor(START)) for _ in range(2))
    steps(p, optim.Adam([p], weight_decay=0.25, decoupled_weight_decay=True), 3)
    steps(q, optim.AdamW([q], weight_decay=0.25), 3)
    assert p.tolist() == q.tolist()


def test_loaded_settings_that_were_not_saved_get_their_defaults_and_adamw_stays_adamw():
    p = nn.Parameter(tg.tensor(START))
    optimizer = optim.AdamW([p], lr=0.5)
    saved = optimizer.state_dict()
    del saved["param_groups"][0]["fused"]
    saved["param_groups"][0].update(lr=0.125, decoupled_weight_decay=False)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["fused"] is None
    assert optimizer.param_groups[0]["decoupled_weight_decay"] is True
    assert optimizer.param_groups[0]["lr"] == 0.125
