"""state_dict round trips and their refusals; the epoch that every mutation bumps."""

from __future__ import annotations

import gc
import weakref

import pytest

import tracegrad as tg
from tracegrad import nn


def make():
    net = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    net.register_buffer("seen", tg.zeros(1))
    net.register_buffer("scratch", tg.zeros(1), persistent=False)
    return net


def test_state_goes_round():
    a, b = make(), make()
    state = a.state_dict()
    assert list(state) == ["seen", "0.weight", "0.bias", "1.weight", "1.bias"]
    assert not any(t.requires_grad for t in state.values())
    result = b.load_state_dict(state)
    assert repr(result) == "<All keys matched successfully>"
    x = tg.randn(4, 2)
    assert tg.equal(a(x), b(x))
    assert b[0].weight.requires_grad and b[0].weight is not a[0].weight
    assert a.state_dict(keep_vars=True)["0.bias"] is a[0].bias
    assert list(a.state_dict(prefix="net."))[1] == "net.0.weight"


def test_detached_state_shares_memory_and_counts_versions():
    net = make()
    weight = net.state_dict()["0.weight"]
    before = net[0].weight._version
    net.load_state_dict({k: v + 1 for k, v in net.state_dict().items()})
    assert tg.equal(weight, net[0].weight) and net[0].weight._version == before + 1


def test_all_faults_are_listed_at_once_and_nothing_is_written():
    layer = nn.Linear(2, 3)
    before = layer.bias.detach().clone()
    with pytest.raises(RuntimeError) as caught:
        layer.load_state_dict({"weight": tg.ones(2, 2), "x": tg.ones(3), "y": tg.ones(3)})
    assert str(caught.value) == (
        "Error(s) in loading state_dict for Linear:\n"
        '\tMissing key(s) in state_dict: "bias". \n'
        '\tUnexpected key(s) in state_dict: "x", "y". \n'
        "\tsize mismatch for weight: copying a param with shape torch.Size([2, 2]) from "
        "checkpoint, the shape in current model is torch.Size([3, 2])."
    )
    with pytest.raises(RuntimeError) as caught:
        layer.load_state_dict({"bias": tg.zeros(3) + 7, "weight": 3})
    assert str(caught.value) == (
        "Error(s) in loading state_dict for Linear:\n"
        '\tWhile copying the parameter named "weight", expected torch.Tensor or Tensor-like object '
        "from checkpoint but received <class 'int'>"
    )
    assert tg.equal(layer.bias, before)
    with pytest.raises(TypeError, match="Expected state_dict to be dict-like, got <class 'list'>."):
        layer.load_state_dict([])


def test_loading_may_be_lenient_and_may_assign():
    layer = nn.Linear(2, 3)
    weight = tg.ones(3, 2, dtype=tg.float64)
    result = layer.load_state_dict({"weight": weight, "x": tg.ones(1)}, strict=False)
    assert result.missing_keys == ["bias"] and result.unexpected_keys == ["x"]
    assert layer.weight.dtype is tg.float32 and tg.equal(layer.weight, tg.ones(3, 2))
    layer.load_state_dict({"weight": weight, "bias": tg.zeros(3)}, assign=True)
    assert layer.weight.dtype is tg.float64 and isinstance(layer.weight, nn.Parameter)
    assert layer.weight.data_ptr() == weight.data_ptr()


# ---- the epoch ----------------------------------------------------------------------------------


def hooked():
    net = make()
    net.handle = net.register_forward_hook(lambda *a: None)
    net.pre_handle = net.register_forward_pre_hook(lambda *a: None)
    net.added = nn.ReLU()
    net.weight = nn.Parameter(tg.ones(1))
    return net


MUTATIONS = {
    "attribute": lambda m: setattr(m, "scale", 2),
    "attribute deleted": lambda m: delattr(m, "handle"),
    "forward replaced": lambda m: setattr(m, "forward", lambda x: x),
    "list written again": lambda m: setattr(m, "handle", m.handle),
    "parameter assigned": lambda m: setattr(m, "weight", nn.Parameter(tg.ones(1))),
    "parameter to None": lambda m: setattr(m, "weight", None),
    "parameter deleted": lambda m: delattr(m, "weight"),
    "buffer assigned": lambda m: setattr(m, "seen", tg.ones(1)),
    "module assigned": lambda m: setattr(m, "added", nn.Tanh()),
    "item assigned": lambda m: m.__setitem__(0, nn.Tanh()),
    "appended": lambda m: m.append(nn.Tanh()),
    "register_parameter": lambda m: m.register_parameter("p", None),
    "register_buffer": lambda m: m.register_buffer("b", None),
    "add_module": lambda m: m.add_module("m", None),
    "hook": lambda m: m.register_forward_hook(print),
    "hook in front": lambda m: m.register_forward_hook(print, prepend=True),
    "hook removed": lambda m: m.handle.remove(),
    "pre-hook": lambda m: m.register_forward_pre_hook(print),
    "pre-hook removed": lambda m: m.pre_handle.remove(),
    "hooks cleared": lambda m: m._forward_hooks.clear(),
    "dictionary written": lambda m: m._parameters.update(weight=None),
    "eval": lambda m: m.eval(),
    "to": lambda m: m.double(),
    "requires_grad_": lambda m: m.requires_grad_(False),
    "load with assign": lambda m: m.load_state_dict(m.state_dict(), assign=True),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_every_mutation_bumps_the_epoch(name):
    net = hooked()
    before = net._epoch
    MUTATIONS[name](net)
    assert net._epoch > before


def test_eval_bumps_the_modules_below():
    net = make()
    before = [m._epoch for m in net.modules()]
    net.eval()
    assert all(m._epoch > b for m, b in zip(net.modules(), before, strict=True))


def test_what_changes_nothing_keeps_the_epoch():
    net = make()
    before = net._epoch
    net.train()  # it is training already
    net(tg.ones(1, 2))
    net.load_state_dict(net.state_dict())
    net.zero_grad()
    assert net._epoch == before


def test_parts_and_tensors_of_a_module():
    net = make()
    assert net._epoch_parts() == [net[0], net[1]]
    assert [id(t) for t in net._epoch_tensors()] == [id(net.seen), id(net.scratch)]
    assert [id(t) for t in net[0]._epoch_tensors()] == [id(net[0].weight), id(net[0].bias)]
    net[0].bias = None
    assert len(net[0]._epoch_tensors()) == 1


def test_a_module_is_freed_without_the_garbage_collector():
    net = make()
    seen = weakref.ref(net)
    gc.disable()
    try:
        del net
        assert seen() is None
    finally:
        gc.enable()
