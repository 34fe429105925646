"""Modules: registration, walking the tree, hooks, copies, printing."""

from __future__ import annotations

import copy
import pickle

import pytest

import tracegrad as tg
from tracegrad import nn
from tracegrad.ir.errors import OperandError, ParameterError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(4, 2, bias=False))
        self.scale = nn.Parameter(tg.ones(1))
        self.register_buffer("count", tg.zeros(2))
        self.register_buffer("scratch", tg.zeros(1), persistent=False)

    def forward(self, x):
        return self.rest(self.first(x)) * self.scale


def test_tensors_and_modules_are_found_by_dotted_name():
    net = Net()
    assert [n for n, _ in net.named_parameters()] == [
        "scale", "first.weight", "first.bias", "rest.1.weight",
    ]  # fmt: skip
    assert [n for n, _ in net.named_buffers()] == ["count", "scratch"]
    assert [n for n, _ in net.named_modules()] == ["", "first", "rest", "rest.0", "rest.1"]
    assert [n for n, _ in net.named_children()] == ["first", "rest"]
    assert [n for n, _ in net.named_parameters(prefix="net", recurse=False)] == ["net.scale"]
    assert net.get_parameter("rest.1.weight") is net.rest[1].weight
    assert net.get_submodule("rest.0") is net.rest[0]
    assert net.get_buffer("count") is net.count


def test_a_shared_parameter_is_listed_once():
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    b.weight = a.weight
    both = nn.Sequential(a, b, a)
    assert len(list(both.parameters())) == 3
    assert len(list(both.modules())) == 3
    assert len(list(both.named_parameters(remove_duplicate=False))) == 6


def test_assignment_moves_a_name_between_kinds():
    net = Net()
    net.scale = None
    assert "scale" in net._parameters and net.scale is None
    net.scale = nn.ReLU()
    assert "scale" not in net._parameters and "scale" in net._modules
    del net.scale
    assert not hasattr(net, "scale")
    net.plain = 3
    net.plain = nn.Parameter(tg.ones(1))
    assert "plain" not in net.__dict__ and "plain" in net._parameters


class WithoutInit(nn.Module):
    def __init__(self, name, value):
        setattr(self, name, value)


class Registering(nn.Module):
    def __init__(self):
        self.register_buffer("x", None)


LINEAR = nn.Linear(2, 3)
REFUSALS = [
    (lambda: setattr(LINEAR, "weight", tg.ones(3, 2)), TypeError,
     "cannot assign 'torch.FloatTensor' as parameter 'weight' "
     "(torch.nn.Parameter or None expected)"),
    (lambda: setattr(LINEAR, "bias", 3), TypeError,
     "cannot assign 'int' as parameter 'bias' (torch.nn.Parameter or None expected)"),
    (lambda: setattr(nn.Sequential(LINEAR), "0", 3), TypeError,
     "cannot assign 'int' as child module '0' (torch.nn.Module or None expected)"),
    (lambda: setattr(Net(), "count", 3), TypeError,
     "cannot assign 'int' as buffer 'count' (torch.nn.Buffer, torch.Tensor or None expected)"),
    (lambda: LINEAR.foo, AttributeError, "'Linear' object has no attribute 'foo'"),
    (lambda: delattr(LINEAR, "foo"), AttributeError, "'Linear' object has no attribute 'foo'"),
    (lambda: WithoutInit("w", nn.Parameter(tg.ones(1))), AttributeError,
     "cannot assign parameters before Module.__init__() call"),
    (lambda: WithoutInit("w", nn.ReLU()), AttributeError,
     "cannot assign module before Module.__init__() call"),
    (Registering, AttributeError, "cannot assign buffer before Module.__init__() call"),
    (lambda: LINEAR.register_parameter("a.b", None), KeyError,
     'parameter name can\'t contain "."'),
    (lambda: LINEAR.register_parameter("", None), KeyError,
     'parameter name can\'t be empty string ""'),
    (lambda: LINEAR.register_parameter(3, None), TypeError,
     "parameter name should be a string. Got int"),
    (lambda: LINEAR.register_parameter("forward", None), KeyError,
     "attribute 'forward' already exists"),
    (lambda: LINEAR.register_parameter("x", tg.ones(1)), TypeError,
     "cannot assign 'torch.FloatTensor' object to parameter 'x' "
     "(torch.nn.Parameter or None required)"),
    (lambda: LINEAR.register_buffer("x", 3), TypeError,
     "cannot assign 'int' object to buffer 'x' (torch Tensor or None required)"),
    (lambda: LINEAR.add_module("a.b", None), KeyError,
     'module name can\'t contain ".", got: a.b'),
    (lambda: LINEAR.add_module("x", 3), TypeError, "int is not a Module subclass"),
    (lambda: nn.Sequential(3), TypeError, "int is not a Module subclass"),
    (lambda: nn.Sequential(LINEAR)[3], IndexError, "index 3 is out of range"),
    (lambda: nn.ModuleList(3), TypeError,
     "ModuleList.extend should be called with an iterable, but got int"),
    (lambda: nn.ModuleList([LINEAR])(3), NotImplementedError,
     'Module [ModuleList] is missing the required "forward" function'),
    (lambda: LINEAR.train("x"), ValueError, "training mode is expected to be boolean"),
    (lambda: LINEAR.to(tg.int32), TypeError,
     "nn.Module.to only accepts floating point or complex dtypes, but got desired "
     "dtype=torch.int32"),
    (lambda: LINEAR.get_submodule("a.b"), AttributeError, "Linear has no attribute `a`"),
    (lambda: LINEAR.get_submodule("weight"), AttributeError, "`weight` is not an nn.Module"),
    (lambda: LINEAR.get_buffer("weight"), AttributeError, "`weight` is not a buffer"),
    (lambda: nn.Parameter(tg.tensor([1])), RuntimeError,
     "Only Tensors of floating point and complex dtype can require gradients"),
    (lambda: nn.Parameter([1.0]), TypeError,
     "Parameter(): data must be a Tensor, not list; use tensor(data)"),
]  # fmt: skip


@pytest.mark.parametrize(("act", "error", "text"), REFUSALS, ids=[r[2] for r in REFUSALS])
def test_refusals_say_what_pytorch_says(act, error, text):
    with pytest.raises(error) as caught:
        act()
    assert caught.value.args[0] == text


def test_forward_hooks_see_and_replace_the_output():
    layer = nn.Identity()
    seen = []
    first = layer.register_forward_hook(lambda m, args, out: seen.append((m, args, out)))
    second = layer.register_forward_hook(lambda m, args, out: out + 1)
    with layer.register_forward_hook(lambda m, args, out: out * 10, prepend=True):
        assert layer(5) == 51
    assert seen == [(layer, (5,), 50)]
    second.remove()
    second.remove()  # a second time does nothing
    first.remove()
    assert layer(5) == 5


def test_forward_pre_hooks_replace_the_arguments():
    layer = nn.Identity()
    layer.register_forward_pre_hook(lambda m, args: args[0] + 1)
    layer.register_forward_pre_hook(lambda m, args: (args[0] * 2,))
    layer.register_forward_pre_hook(
        lambda m, args, kwargs: ((args[0] + kwargs.pop("more"),), kwargs), with_kwargs=True
    )
    layer.register_forward_hook(lambda m, args, kwargs, out: (out, kwargs), with_kwargs=True)
    assert layer(3, more=100) == (108, {})
    layer.register_forward_pre_hook(lambda m, args, kwargs: 7, with_kwargs=True)
    with pytest.raises(ParameterError, match="must return None or a tuple of .new_args, new_kwarg"):
        layer(3, more=100)


def test_train_and_eval_reach_everything_below():
    net = Net()
    assert net.eval() is net
    assert not any(m.training for m in net.modules())
    net.train()
    assert all(m.training for m in net.modules())


def test_apply_visits_children_first():
    order = []
    Net().apply(lambda m: order.append(type(m).__name__))
    assert order == ["Linear", "ReLU", "Linear", "Sequential", "Net"]


@pytest.mark.parametrize("make", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_is_independent_and_equal(make):
    net = Net()
    other = make(net)
    x = tg.ones(2, 3)
    assert tg.equal(net(x), other(x))
    with tg.no_grad():
        other.scale.fill_(0)
    assert net.scale.item() == 1
    before, mine = other._epoch, net._epoch
    other.first.register_forward_hook(lambda *a: None)
    other.added = nn.ReLU()
    assert other._epoch > before and net._epoch == mine
    assert not net.first._forward_hooks


def test_gradients_are_zeroed_in_place_or_dropped():
    tg.manual_seed(0)  # with some others no unit is active, and gradients are zero
    net = Net()
    net(tg.ones(2, 3)).sum().backward()
    grad = net.scale.grad
    assert grad.item() != 0
    net.zero_grad()
    assert net.scale.grad is grad and grad.item() == 0
    net.zero_grad(set_to_none=True)
    assert net.scale.grad is None


def test_requires_grad_of_all_parameters():
    net = Net().requires_grad_(False)
    assert not net(tg.ones(2, 3)).requires_grad


def test_to_casts_in_place_and_keeps_the_parameters():
    net = Net()
    net.register_buffer("index", tg.tensor([1, 2]))
    net(tg.ones(2, 3)).sum().backward()
    before = list(net.parameters())
    assert net.double() is net
    assert all(a is b for a, b in zip(before, net.parameters(), strict=True))
    assert {p.dtype for p in net.parameters()} == {tg.float64}
    assert {p.grad.dtype for p in net.parameters()} == {tg.float64}
    assert net.count.dtype is tg.float64 and net.index.dtype is tg.int64
    net(tg.ones(2, 3, dtype=tg.float64)).sum().backward()
    assert net.to(tg.ones(1, dtype=tg.float32)).scale.dtype is tg.float32
    assert net.to("cpu", tg.float64).scale.dtype is tg.float64
    with pytest.raises(OperandError, match="unexpected keyword argument 'foo'"):
        net.to(foo=1)


def test_sequential_and_list_behave_as_lists():
    a, b, c = nn.ReLU(), nn.Tanh(), nn.Sigmoid()
    s = nn.Sequential(a, b)
    assert list(s.append(c)) == [a, b, c] and len(s) == 3 and s[-1] is c
    assert list(s[1:]) == [b, c] and isinstance(s[1:], nn.Sequential)
    del s[0]
    assert list(s._modules) == ["0", "1"] and s.pop(0) is b
    assert list(s.insert(0, a)) == [a, c]
    s[0] = b
    assert list(s + nn.Sequential(a)) == [b, c, a]
    named = nn.Sequential({"x": a, "y": b})
    assert named.x is a and named[1] is b
    items = nn.ModuleList([a])
    items += [b]
    assert list(items + [c]) == [a, b, c] and isinstance(items[:1], nn.ModuleList)


PRINTED = [
    (nn.Linear(2, 3), "Linear(in_features=2, out_features=3, bias=True)"),
    (nn.Conv2d(1, 2, 3), "Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1))"),
    (nn.Conv2d(2, 2, (3, 1), stride=2, padding=1, dilation=2, groups=2, bias=False),
     "Conv2d(2, 2, kernel_size=(3, 1), stride=(2, 2), padding=(1, 1), dilation=(2, 2), groups=2, "
     "bias=False)"),
    (nn.Conv1d(1, 2, 3, padding="same"),
     "Conv1d(1, 2, kernel_size=(3,), stride=(1,), padding=same)"),
    (nn.Conv3d(1, 2, 3), "Conv3d(1, 2, kernel_size=(3, 3, 3), stride=(1, 1, 1))"),
    (nn.ReLU(), "ReLU()"), (nn.ReLU(True), "ReLU(inplace=True)"), (nn.Tanh(), "Tanh()"),
    (nn.Sigmoid(), "Sigmoid()"), (nn.GELU(), "GELU(approximate='none')"),
    (nn.MaxPool2d(2), "MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)"),
    (nn.AvgPool2d(2), "AvgPool2d(kernel_size=2, stride=2, padding=0)"),
    (nn.Flatten(), "Flatten(start_dim=1, end_dim=-1)"),
    (nn.Dropout(), "Dropout(p=0.5, inplace=False)"),
    (nn.LayerNorm(3), "LayerNorm((3,), eps=1e-05, elementwise_affine=True, bias=True)"),
    (nn.LayerNorm((2, 3), elementwise_affine=False),
     "LayerNorm((2, 3), eps=1e-05, elementwise_affine=False, bias=False)"),
    (nn.Softmax(1), "Softmax(dim=1)"), (nn.LogSoftmax(1), "LogSoftmax(dim=1)"),
    (nn.CrossEntropyLoss(), "CrossEntropyLoss()"), (nn.MSELoss(), "MSELoss()"),
    (nn.NLLLoss(), "NLLLoss()"), (nn.Identity(), "Identity()"),
    (nn.Sequential(), "Sequential()"),
    (nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU())),
     "Sequential(\n  (0): Linear(in_features=2, out_features=3, bias=True)\n"
     "  (1): Sequential(\n    (0): ReLU()\n  )\n)"),
    (nn.ModuleList([nn.ReLU(), nn.ReLU(), nn.Linear(2, 3), nn.Linear(2, 3)]),
     "ModuleList(\n  (0-1): 2 x ReLU()\n"
     "  (2-3): 2 x Linear(in_features=2, out_features=3, bias=True)\n)"),
    (nn.Parameter(tg.zeros(2)),
     "Parameter containing:\ntensor([0., 0.], requires_grad=True)"),
]  # fmt: skip


@pytest.mark.parametrize(("thing", "text"), PRINTED, ids=[p[1][:30] for p in PRINTED])
def test_prints_as_pytorch_does(thing, text):
    assert repr(thing) == text


def test_extra_repr_stands_above_the_submodules():
    class Noted(nn.Sequential):
        def extra_repr(self):
            return "one\ntwo"

    assert repr(Noted()) == "Noted(\n  one\n  two\n)"
    assert repr(Noted(nn.ReLU())) == "Noted(\n  one\n  two\n  (0): ReLU()\n)"
