"""Normalisation of channels: figures of PyTorch 2.13 in float64, derivatives, state, texts."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest

import tracegrad as tg
import tracegrad.nn.functional as F
from tracegrad import nn
from tracegrad.autograd import gradcheck, gradgradcheck

S3 = [(4, 3), (2, 3, 4), (5, 3), "eval", (4, 3), "train", (6, 3)]


def wave(*shape, dtype=tg.float64):
    n = math.prod(shape)
    values = [math.sin(1.7 * i + 0.3 * i * i) for i in range(n)]
    return tg.tensor(values, dtype=dtype).reshape(*shape)


# module, inputs and modes one after another; then of the last call the first elements of the result
# y and of the gradient of its input, and the gradients of its weights, for sum(y^3); its statistics
GOLDEN: dict[str, Any] = {
    "batch 1d": (
        lambda: nn.BatchNorm1d(3),
        S3,
        [-0.60502828668, 1.2293460781, -1.2326104236, 0.82901622315, -1.2808581207],
        [-0.79733396193, 0.12973485157, 0.16852766966, 0.36540155639, 0.59355984488],
        [[-19.680419306, 4.4278491401, -2.8827794507], [17.999992424, 17.999992285, 17.999994519]],
        {
            "running_mean": [1.4132971209, 1.0141670974, 0.83084046187],
            "running_var": [3.88691674, 4.2038020684, 5.5778102158],
            "num_batches_tracked": 4,
        },
    ),
    "batch momentum": (
        lambda: nn.BatchNorm1d(3, eps=1e-2, momentum=0.4, bias=False),
        S3,
        [-0.6049011211, 1.2290829706, -1.2324229828, 0.82884197952, -1.2805839885],
        [-0.79666028825, 0.12973190707, 0.16848221233, 0.36493686224, 0.59309511886],
        [[-19.668012551, 4.4250067726, -2.8814645135]],
        {
            "running_mean": [4.7980114151, 3.4111940114, 2.9841609505],
            "running_var": [12.317666157, 13.109992322, 18.249810547],
            "num_batches_tracked": 4,
        },
    ),
    "batch mean of all": (
        lambda: nn.BatchNorm1d(3, momentum=None),
        S3,
        [-0.60502828668, 1.2293460781, -1.2326104236, 0.82901622315, -1.2808581207],
        [-0.79733396193, 0.12973485157, 0.16852766966, 0.36540155639, 0.59355984488],
        [[-19.680419306, 4.4278491401, -2.8827794507], [17.999992424, 17.999992285, 17.999994519]],
        {
            "running_mean": [3.7411332536, 2.6937632054, 2.1508794192],
            "running_var": [8.2641636244, 9.1581794919, 12.675297844],
            "num_batches_tracked": 4,
        },
    ),
    "batch plain": (
        lambda: nn.BatchNorm1d(3, affine=False),
        S3,
        [-0.60502828668, 1.2293460781, -1.2326104236, 0.82901622315, -1.2808581207],
        [-0.79733396193, 0.12973485157, 0.16852766966, 0.36540155639, 0.59355984488],
        [],
        {
            "running_mean": [1.4132971209, 1.0141670974, 0.83084046187],
            "running_var": [3.88691674, 4.2038020684, 5.5778102158],
            "num_batches_tracked": 4,
        },
    ),
    "batch untracked": (
        lambda: nn.BatchNorm1d(3, track_running_stats=False),
        S3,
        [-0.60502828668, 1.2293460781, -1.2326104236, 0.82901622315, -1.2808581207],
        [-0.79733396193, 0.12973485157, 0.16852766966, 0.36540155639, 0.59355984488],
        [[-19.680419306, 4.4278491401, -2.8827794507], [17.999992424, 17.999992285, 17.999994519]],
        {},
    ),
    "batch 2d": (
        lambda: nn.Sequential(nn.BatchNorm2d(2)),
        [(3, 2, 2, 3), "eval", (1, 2, 3, 1)],
        [2.0494495887, 4.853336559, -1.0146713198, 5.1119890496, -0.51053252897],
        [12.951766937, 72.633230082, 3.1747191402, 80.670048663, 0.80459870022],
        [[365.64979301, 404.82051663], [86.354031776, 83.083268148]],
        {
            "0.running_mean": [0.0060973314865, 0.027663288022],
            "0.running_var": [0.94651791942, 0.94443686854],
            "0.num_batches_tracked": 1,
        },
    ),
    "batch 3d": (
        lambda: nn.BatchNorm3d(2),
        [(1, 2, 1, 2, 3), "eval", (1, 2, 1, 1, 1)],
        [2.0326505042, 4.7674468835],
        [12.576752743, 69.462240174],
        [[25.19471157, 325.07146155], [12.395004216, 68.185649362]],
        {
            "running_mean": [-0.0032763690511, 0.048062480363],
            "running_var": [0.97129653787, 0.9635713619],
            "num_batches_tracked": 1,
        },
    ),
    "groups": (
        lambda: nn.GroupNorm(2, 4),
        [(2, 4), (2, 4, 3), (1, 4, 2, 2)],
        [-0.26039131797, 0.89833142877, -1.526657267, 1.012057997, -1.3089263534],
        [-1.3023386494, 0.14886329803, 1.0247559748, 0.4757025807, 0.3336964847],
        [
            [-5.442731712, -2.8344271097, -1.9089673292, -6.552842596],
            [12.689240384, 11.310716313, 12.760422375, 11.239535055],
        ],
        {},
    ),
    "one group": (
        lambda: nn.GroupNorm(1, 3, eps=1e-2, affine=False),
        [(2, 3), (2, 3, 3)],
        [-0.37243693449, 0.79206901539, -1.6450228365, 0.90636319471, -1.4262052245],
        [-2.0282752316, 0.10364674533, 1.5997364581, 0.59366307889, 0.53296022621],
        [],
        {},
    ),
    "instance": (
        lambda: nn.InstanceNorm1d(3),
        [(2, 3, 4), (3, 4), "eval", (2, 3, 4)],
        [-0.28333411816, 0.84398656137, -1.515283516, 0.95463107281, -1.3171229524],
        [-0.98893751299, 0.13092687613, 0.48980871498, 0.36820192188, 0.51208625522],
        [],
        {},
    ),
    "instance tracked": (
        lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True, momentum=0.3),
        [(2, 3, 2, 2), (3, 2, 2), "eval", (2, 3, 1, 2)],
        [1.9456647647, 4.733714324, -1.172520222, 5.2739110221, -0.59184990019],
        [8.7054618918, 51.529968944, 3.3364212438, 67.500313742, 0.81612187187],
        [[989.66467097, 1261.4001032, 37.431552328], [214.4900409, 247.53697097, 24.935050592]],
        {
            "running_mean": [0.46175535777, 0.47467985465, 0.470766339],
            "running_var": [1.7018778123, 1.5281263981, 1.6579681021],
            "num_batches_tracked": 0,
        },
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_a_sequence_of_batches_is_that_of_pytorch(case):
    make, calls, result, gradient, weights, statistics = GOLDEN[case]
    module = make().double()
    for k, shape in enumerate(calls):
        if isinstance(shape, str):
            module.train(shape == "train")
            continue
        x = (wave(*shape) * (k + 1) + k).requires_grad_()
        module.zero_grad(set_to_none=True)
        y = module(x)
        (y**3).sum().backward()
    close = {"rtol": 1e-10, "atol": 1e-10}  # float64, of figures with 11 digits
    np.testing.assert_allclose(y.detach().numpy().ravel()[:5], result, **close)
    np.testing.assert_allclose(x.grad.numpy().ravel()[:5], gradient, **close)
    for p, expected in zip(module.parameters(), weights, strict=True):
        np.testing.assert_allclose(p.grad.numpy(), expected, **close)
    kept = dict(module.named_buffers())
    assert list(kept) == list(statistics)
    for name, expected in statistics.items():
        np.testing.assert_allclose(kept[name].numpy(), expected, **close)


X, W, B = wave(3, 4, 2), wave(4) + 2, wave(8)[4:]
MEAN, VAR = wave(4) / 2, wave(4) + 2
FUNCTIONS = {
    "batch": lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True, eps=0.1),
    "batch of two axes": lambda x, w, b: F.batch_norm(x[..., 0], None, None, w, b, training=True),
    "batch with running": lambda x, w, b: F.batch_norm(x, MEAN, VAR, w, b),
    "groups": lambda x, w, b: F.group_norm(x, 2, w, b, eps=0.1),
    "instances": lambda x, w, b: F.instance_norm(x, weight=w, bias=b, eps=0.1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_of_first_and_second_order(name):
    given = [t.clone().requires_grad_() for t in (X, W, B)]
    assert gradcheck(FUNCTIONS[name], given)
    assert gradgradcheck(FUNCTIONS[name], given)


@pytest.mark.parametrize("dtype", [tg.float16, tg.bfloat16], ids=str)
def test_halves_are_computed_in_float32(dtype):
    x = (wave(16, 4, dtype=tg.float32) * 3 + 100).to(dtype)
    norm = nn.BatchNorm1d(4)
    out = norm(x)
    exact = nn.BatchNorm1d(4)(x.float())
    assert out.dtype is dtype and norm.running_mean.dtype is tg.float32
    np.testing.assert_array_equal(
        out.float().detach().numpy(), exact.to(dtype).float().detach().numpy()
    )
    half = nn.BatchNorm1d(4).to(dtype)
    assert half(x).dtype is dtype and half.running_var.dtype is dtype
    assert half.num_batches_tracked.dtype is tg.int64
    assert F.group_norm(x, 2, tg.ones(4)).dtype is dtype


def test_empty_batches_leave_the_statistics():
    mean, variance = tg.full((3,), 2.0), tg.full((3,), 5.0)
    assert F.batch_norm(tg.ones(0, 3), mean, variance, training=True).shape == (0, 3)
    assert mean.tolist() == [2.0] * 3 and variance.tolist() == [5.0] * 3
    assert F.group_norm(tg.ones(0, 4, 3), 2, tg.ones(4)).shape == (0, 4, 3)


def test_the_backward_of_an_older_batch_does_not_see_newer_statistics():
    norm = nn.BatchNorm1d(3).double().eval()
    x = wave(4, 3).requires_grad_()
    y = norm(x)
    norm.train()(wave(5, 3) * 7)
    y.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), np.full((4, 3), 1 / math.sqrt(1 + 1e-5)))


def test_names_of_nodes():
    x = wave(4, 4).requires_grad_()
    assert type(F.batch_norm(x, MEAN, VAR).grad_fn).__name__ == "NativeBatchNormBackward0"
    batch = F.batch_norm(x, None, None, training=True)
    assert type(batch.grad_fn).__name__ == "NativeBatchNormBackward0"
    assert type(F.group_norm(x, 2).grad_fn).__name__ == "NativeGroupNormBackward0"


# ---- modules ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("module", "text"), [
    (nn.BatchNorm2d(3), "BatchNorm2d(3, eps=1e-05, momentum=0.1, affine=True, bias=True, "
                        "track_running_stats=True)"),
    (nn.BatchNorm1d(2, momentum=None, affine=False),
     "BatchNorm1d(2, eps=1e-05, momentum=None, affine=False, bias=False, "
     "track_running_stats=True)"),
    (nn.InstanceNorm1d(4), "InstanceNorm1d(4, eps=1e-05, momentum=0.1, affine=False, bias=False, "
                           "track_running_stats=False)"),
    (nn.GroupNorm(2, 4, bias=False), "GroupNorm(2, 4, eps=1e-05, affine=True, bias=False)"),
])  # fmt: skip
def test_text(module, text):
    assert repr(module) == text


def test_statistics_off_and_on():
    norm = nn.BatchNorm1d(2)
    norm.track_running_stats = False
    norm(tg.tensor([[1.0, 2.0], [2.0, 7.0]]))
    assert norm.running_mean.tolist() == [0.0, 0.0] and norm.num_batches_tracked == 0
    norm.eval()
    assert norm(tg.tensor([[1.0, 2.0]])).round().tolist() == [[1.0, 2.0]]
    norm.train().track_running_stats = True
    norm(tg.tensor([[1.0, 2.0], [2.0, 7.0]]))
    assert norm.num_batches_tracked == 1
    norm.weight.data.fill_(3.0)
    norm.reset_parameters()
    assert [t.tolist() for t in norm.state_dict().values()] == [
        [1.0, 1.0], [0.0, 0.0], [0.0, 0.0], [1.0, 1.0], 0,
    ]  # fmt: skip


def test_state_notes_versions_and_loads_older_ones():
    net = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU())
    net(wave(4, 3, dtype=tg.float32))
    saved = net.state_dict(prefix="net.")
    assert dict(saved._metadata) == {
        "net": {"version": 1}, "net.0": {"version": 2}, "net.1": {"version": 1},
    }  # fmt: skip
    saved = net.state_dict()
    assert list(saved) == [
        "0.weight", "0.bias", "0.running_mean", "0.running_var", "0.num_batches_tracked",
    ]  # fmt: skip
    del saved["0.num_batches_tracked"]
    with pytest.raises(tg.errors.ModuleStateError) as raised:
        net.load_state_dict(saved)
    assert str(raised.value) == (
        "Error(s) in loading state_dict for Sequential:\n\t"
        'Missing key(s) in state_dict: "0.num_batches_tracked". '
    )
    fresh = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU())
    assert not any(fresh.load_state_dict(dict(saved)))  # of a version that is not known
    assert fresh[0].running_mean.tolist() == net[0].running_mean.tolist()
    assert fresh[0].num_batches_tracked == 0


def test_instances_without_a_batch():
    norm = nn.InstanceNorm1d(3, affine=True)
    x = wave(2, 3, 4, dtype=tg.float32)
    np.testing.assert_array_equal(norm(x)[1].detach().numpy(), norm(x[1]).detach().numpy())
    with pytest.warns(UserWarning) as caught:
        nn.InstanceNorm1d(5)(x)
    assert [str(w.message) for w in caught] == [
        "input's size at dim=1 does not match num_features. You can silence this warning by not "
        "passing in num_features, which is not used because affine=False"
    ]


# ---- refusals -----------------------------------------------------------------------------------

ones = tg.ones
MIXED = "mixed dtype (CPU): all inputs must share same datatype."
NOT_FLOAT = "mixed dtype (CPU): expect parameter to have scalar type of Float"


@pytest.mark.parametrize(("call", "kind", "text"), [
    (lambda: nn.BatchNorm1d(3)(ones(1, 3)), ValueError,
     "Expected more than 1 value per channel when training, got input size torch.Size([1, 3])"),
    (lambda: nn.BatchNorm1d(3)(ones(3)), ValueError, "expected 2D or 3D input (got 1D input)"),
    (lambda: nn.BatchNorm2d(3)(ones(2, 4)), ValueError, "expected 4D input (got 2D input)"),
    (lambda: nn.BatchNorm3d(3)(ones(2, 4)), ValueError, "expected 5D input (got 2D input)"),
    (lambda: nn.BatchNorm1d(3)(ones(2, 4)), RuntimeError,
     "running_mean should contain 4 elements not 3"),
    (lambda: F.batch_norm(ones(2, 3), None, None), RuntimeError,
     "running_mean must be defined in evaluation mode"),
    (lambda: F.batch_norm(ones(2, 3), ones(3), None), RuntimeError,
     "running_var must be defined in evaluation mode"),
    (lambda: F.batch_norm(ones(2, 3), ones(3), None, training=True), ValueError,
     "running_mean and running_var must either both be None or neither be None"),
    (lambda: F.batch_norm(ones(2, 3), ones(3), ones(4)), RuntimeError,
     "running_var should contain 3 elements not 4"),
    (lambda: F.batch_norm(ones(2, 3), ones(3), ones(3), ones(4)), RuntimeError,
     "weight should contain 3 elements not 4"),
    (lambda: F.batch_norm(ones(2, 3), ones(3), ones(3), None, ones(4)), RuntimeError,
     "bias should contain 3 elements not 4"),
    (lambda: F.batch_norm(ones(3), ones(3), ones(3)), RuntimeError,
     "running_mean should contain 0 elements not 3"),
    (lambda: F.batch_norm(tg.arange(6).reshape(2, 3), ones(3), ones(3)), NotImplementedError,
     "\"batch_norm\" not implemented for 'Long'"),
    (lambda: F.batch_norm(ones(2, 3).double(), ones(3), ones(3)), RuntimeError, MIXED),
    (lambda: F.batch_norm(ones(2, 3), ones(3).half(), ones(3).half()), RuntimeError, NOT_FLOAT),
    (lambda: F.batch_norm(ones(2, 3).half(), ones(3).double(), ones(3).double()), RuntimeError,
     NOT_FLOAT),
    (lambda: F.batch_norm(ones(2, 3), ones(3), ones(3), training=True, eps=0.0), ValueError,
     "batch_norm eps must be positive during training, but got 0.0"),
    (lambda: F.batch_norm(ones(2, 3), ones(3), ones(3), eps=-1), ValueError,
     "batch_norm eps must be non-negative, but got -1"),
    (lambda: F.batch_norm(ones(2, 3), ones(3).requires_grad_(), ones(3), training=True),
     RuntimeError,
     "The function 'native_batch_norm' is not differentiable with respect to argument "
     "'running_mean'. This input cannot have requires_grad True."),
    (lambda: F.group_norm(ones(4), 2), RuntimeError,
     "Expected at least 2 dimensions for input tensor but received 1"),
    (lambda: F.group_norm(ones(2, 3), 2), RuntimeError,
     "Expected number of channels in input to be divisible by num_groups, but got input of shape "
     "[2, 3] and num_groups=2"),
    (lambda: F.group_norm(ones(2, 4), -1), RuntimeError,
     "Expected num groups to be greater than 0, got -1"),
    (lambda: F.group_norm(ones(2, 4, 3), 2, ones(3)), RuntimeError,
     "Expected weight to be a vector of size equal to the number of channels in input, but got "
     "weight of shape [3] and input of shape [2, 4, 3]"),
    (lambda: F.group_norm(ones(2, 4, 3), 2, None, ones(3)), RuntimeError,
     "Expected bias to be a vector of size equal to the number of channels in input, but got "
     "bias of shape [3] and input of shape [2, 4, 3]"),
    (lambda: F.group_norm(ones(1, 2), 2), ValueError,
     "Expected more than 1 value per channel when training, got input size [1, 2]"),
    (lambda: F.group_norm(tg.arange(24).reshape(2, 4, 3), 2), NotImplementedError,
     "\"GroupNormKernelImpl\" not implemented for 'Long'"),
    (lambda: nn.GroupNorm(3, 4), ValueError, "num_channels (4) must be divisible by num_groups (3)"),
    (lambda: nn.InstanceNorm1d(3, affine=True)(ones(2, 4, 3)), ValueError,
     "expected input's size at dim=1 to match num_features (3), but got: 4."),
    (lambda: nn.InstanceNorm2d(3)(ones(2, 3)), ValueError, "expected 3D or 4D input (got 2D input)"),
    (lambda: nn.InstanceNorm1d(3)(ones(2, 3, 1)), ValueError,
     "Expected more than 1 spatial element when training, got input size torch.Size([2, 3, 1])"),
    (lambda: F.instance_norm(ones(2, 3, 4), use_input_stats=False), RuntimeError,
     "Expected running_mean and running_var to be defined when use_input_stats is false"),
])  # fmt: skip
def test_refused(call, kind, text):
    with pytest.raises(kind) as raised:
        call()
    assert str(raised.value) == text


# ---- compiled -----------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_compiled_step_keeps_the_statistics(momentum):
    def make():
        tg.manual_seed(0)
        return nn.Sequential(
            nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=momentum), nn.ReLU(), nn.Linear(4, 1)
        )

    def step(net, x):
        for p in net.parameters():
            p.grad = None
        loss = net(x).pow(2).mean()
        loss.backward()
        return loss

    eager, traced = make(), make()
    compiled = tg.compile(lambda x: step(traced, x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing runs eagerly, and the first results are right
        for k in range(9):
            if k in (4, 6):
                eager.train(k == 6), traced.train(k == 6)
            x = tg.randn(6, 3)
            want, got = step(eager, x), compiled(x)
            np.testing.assert_allclose(got.item(), want.item(), rtol=1e-5)
            for a, b in zip(eager.parameters(), traced.parameters(), strict=True):
                np.testing.assert_allclose(b.grad.numpy(), a.grad.numpy(), rtol=1e-4, atol=1e-6)
            for a, b in zip(eager.buffers(), traced.buffers(), strict=True):
                assert b._version == a._version
                np.testing.assert_allclose(b.numpy(), a.numpy(), rtol=1e-5, atol=1e-7)
    assert traced[1].num_batches_tracked == 7
    info = compiled.cache_info()
    assert (info.hits, info.eager_calls) == (7, 0), compiled.explain()  # each mode is captured once


def test_a_compiled_module_in_both_modes():
    net = nn.Sequential(nn.BatchNorm2d(2), nn.GroupNorm(2, 2), nn.InstanceNorm2d(2)).double()
    twin = nn.Sequential(nn.BatchNorm2d(2), nn.GroupNorm(2, 2), nn.InstanceNorm2d(2)).double()
    compiled = tg.compile(twin)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for k in range(6):
            net.train(k < 3), twin.train(k < 3)
            x = wave(2, 2, 3, 3) * (k + 1)
            want, got = net(x), compiled(x)
            np.testing.assert_allclose(got.detach().numpy(), want.detach().numpy(), rtol=1e-9)
    np.testing.assert_allclose(twin[0].running_var.numpy(), net[0].running_var.numpy(), rtol=1e-12)
    assert twin[0].num_batches_tracked == 3
