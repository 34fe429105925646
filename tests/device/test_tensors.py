"""Tensors on a device: where they come from, how they move, what they refuse."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import tracegrad as tg
from tracegrad.runtime.cuda import driver

F = tg.nn.functional


def test_a_tensor_says_where_it_is(device: str) -> None:
    x = tg.ones(2, 3, device=device)
    assert x.device == tg.device("cuda", 0) and x.is_cuda and not x.is_cpu and x.get_device() == 0
    assert repr(x[0]) == "tensor([1., 1., 1.], device='cuda:0')"
    assert x.cpu().device == tg.device("cpu") and x.cpu().get_device() == -1
    assert tg.ones(1, device="cuda").device.index == 0


FACTORIES = {
    "zeros": lambda d: tg.zeros(2, 3, device=d), "ones": lambda d: tg.ones(2, device=d),
    "full": lambda d: tg.full((2,), 7.0, device=d), "eye": lambda d: tg.eye(3, device=d),
    "arange": lambda d: tg.arange(5, device=d), "linspace": lambda d: tg.linspace(0, 1, 4, device=d),
    "tensor": lambda d: tg.tensor([[1, 2], [3, 4]], device=d),
    "as_tensor": lambda d: tg.as_tensor([1.5], device=d),
    "asarray": lambda d: tg.asarray(np.arange(3), device=d),
    "empty then filled": lambda d: tg.empty(3, device=d).fill_(2),
    "zeros_like": lambda d: tg.zeros_like(tg.ones(2, device=d)),
    "ones_like in another dtype": lambda d: tg.ones_like(tg.ones(2, device=d), dtype=tg.int64),
    "full_like": lambda d: tg.full_like(tg.ones(2, device=d), 3),
    "new_tensor": lambda d: tg.ones(2, device=d).new_tensor([1.0]),
    "new_zeros": lambda d: tg.ones(2, device=d).new_zeros(3),
    "scalar_tensor": lambda d: tg.scalar_tensor(2.0, device=d),
    "tril": lambda d: tg.ones(3, 3, device=d).tril(),
}  # fmt: skip


@pytest.mark.parametrize("name", FACTORIES)
def test_factories_put_their_result_on_a_device(name: str, device: str) -> None:
    made, want = FACTORIES[name](device), FACTORIES[name]("cpu")
    assert made.device.type == "cuda" and made.dtype is want.dtype
    assert made.cpu().tolist() == want.tolist()


RANDOM = {
    "rand": lambda d: tg.rand(3, 5, device=d), "randn": lambda d: tg.randn(7, device=d),
    "randint": lambda d: tg.randint(0, 10, (9,), device=d),
    "randperm": lambda d: tg.randperm(6, device=d),
    "normal": lambda d: tg.normal(1.0, 2.0, (4,), device=d),
    "bernoulli": lambda d: tg.bernoulli(tg.full((20,), 0.3, device=d)),
    "rand_like": lambda d: tg.rand_like(tg.ones(3, device=d)),
    "uniform_": lambda d: tg.empty(4, device=d).uniform_(-1, 1),
    "dropout": lambda d: F.dropout(tg.ones(30, device=d), 0.4),
}  # fmt: skip


@pytest.mark.parametrize("name", RANDOM)
def test_random_numbers_are_the_same_on_all_devices(name: str, device: str) -> None:
    tg.manual_seed(3)
    want = RANDOM[name]("cpu")
    tg.manual_seed(3)
    got = RANDOM[name](device)
    assert got.is_cuda
    if name in ("rand", "randint", "randperm", "bernoulli", "rand_like", "dropout"):
        assert got.tolist() == want.tolist()
    else:
        np.testing.assert_allclose(got.cpu().numpy(), want.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "dtype",
    [
        "float32",
        "float64",
        "float16",
        "bfloat16",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint8",
        "bool",
    ],
)
def test_moves_keep_every_bit_and_the_layout(dtype: str, device: str) -> None:
    kind = getattr(tg, dtype)
    x = tg.arange(24).reshape(2, 3, 4).to(kind)
    for there in (x, x.permute(2, 0, 1), x[:, ::2], x[1], x[0:0], x.expand(5, 2, 3, 4)):
        moved = there.to(device)
        assert moved.dtype is kind and moved.shape == there.shape
        assert tg.equal(moved.cpu(), there)
    assert x.permute(2, 0, 1).to(device).stride() == x.permute(2, 0, 1).stride()


def test_to_returns_the_tensor_itself_where_nothing_changes(device: str) -> None:
    x = tg.ones(2, device=device)
    assert x.to(device) is x and x.cuda() is x and x.to("cuda") is x
    assert x.to(device, copy=True) is not x
    y = tg.ones(2)
    assert y.cpu() is y and y.to(x).device == x.device and y.type_as(x).device == x.device
    assert y.to(device, tg.float64).dtype is tg.float64


def test_gradients_pass_through_moves(device: str) -> None:
    x = tg.tensor([1.0, 2.0], requires_grad=True)
    y = (x.to(device) * 3).cpu()
    assert type(y.grad_fn).__name__ == "ToCopyBackward0"
    (y * y).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [18.0, 36.0] and x.grad.device.type == "cpu"


def test_devices_do_not_mix(device: str) -> None:
    x, y = tg.ones(2, 2, device=device), tg.ones(2, 2)
    for function in (lambda: x + y, lambda: y * x, lambda: x @ y, lambda: tg.cat([x, y])):
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device, but found"
                           " at least two devices, cuda:0 and cpu!"):  # fmt: skip
            function()
    number = tg.tensor(2.0)
    assert (x * number).device == x.device and (number - x).tolist() == [[1.0, 1.0]] * 2


def test_numpy_is_refused_and_says_how(device: str) -> None:
    x = tg.ones(2, device=device)
    text = "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host"
    for read in (x.numpy, lambda: np.asarray(x), lambda: np.sin(x)):
        with pytest.raises(TypeError) as error:
            read()
        assert text in str(error.value)
    assert x.numpy(force=True).tolist() == [1.0, 1.0]


def test_what_python_reads(device: str) -> None:
    x = tg.tensor([3.0], device=device)
    assert (
        x.item() == 3.0 and float(x) == 3.0 and int(x) == 3 and bool(x > 2) and x.tolist() == [3.0]
    )
    assert f"{x[0]:.1f}" == "3.0" and 3.0 in x and len(x) == 1
    assert [v.item() for v in tg.arange(3, device=device)] == [0, 1, 2]


def test_views_share_memory(device: str) -> None:
    x = tg.zeros(3, 4, device=device)
    x[1] = 2.0
    x.t()[0].add_(1)
    x[:, 1:3].mul_(5)
    x.view(-1)[11] = 9
    y = tg.zeros(3, 4)
    y[1] = 2.0
    y.t()[0].add_(1)
    y[:, 1:3].mul_(5)
    y.view(-1)[11] = 9
    assert x.tolist() == y.tolist() and x._version == y._version
    overlapping = tg.arange(6.0, device=device)
    overlapping[1:] = overlapping[:-1].clone()
    assert overlapping.tolist() == [0.0, 0.0, 1.0, 2.0, 3.0, 4.0]


def test_writes_with_history(device: str) -> None:
    def f(x: Any) -> Any:
        y = x * 2
        y[0] = y[1].clone() * x[2]
        y[1:].mul_(x[1:])
        return (y * y).sum()

    a = tg.tensor([1.0, 2.0, 3.0], requires_grad=True)
    b = tg.tensor([1.0, 2.0, 3.0], device=device, requires_grad=True)
    f(a).backward()
    f(b).backward()
    assert a.grad is not None and b.grad is not None and a.grad.tolist() == b.grad.tolist()


def test_indexing_takes_indices_from_the_host(device: str) -> None:
    x = tg.arange(12.0, device=device).reshape(3, 4)
    assert x[tg.tensor([2, 0])].tolist() == [[8.0, 9.0, 10.0, 11.0], [0.0, 1.0, 2.0, 3.0]]
    assert x[[0, 1], [1, 2]].tolist() == [1.0, 6.0] and x[x > 9].tolist() == [10.0, 11.0]
    x[tg.tensor([0]), 1] = 5.0
    x[x < 1] = -1.0
    assert x[0].tolist() == [-1.0, 5.0, 2.0, 3.0]
    with pytest.raises(
        (IndexError, RuntimeError), match="index 7 is out of bounds for dimension 0"
    ):
        x[tg.tensor([7], device=device)]
    assert x.sum().item() == 69.0  # the fault left nothing behind


def test_copy_between_devices(device: str) -> None:
    x, y = tg.zeros(2, 3, device=device), tg.arange(6.0).reshape(2, 3)
    x.copy_(y)
    y.copy_(x * 2)
    assert x.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]] and y[1].tolist() == [6.0, 8.0, 10.0]


def test_copies_and_pickles_stay_on_the_device(device: str) -> None:
    x = tg.arange(6.0, device=device).reshape(2, 3).requires_grad_()
    twin = copy.deepcopy(x)
    assert twin.is_cuda and twin.requires_grad and twin.tolist() == x.tolist()
    assert twin.data_ptr() != x.data_ptr()
    back = pickle.loads(pickle.dumps(x))
    assert back.is_cuda and back.tolist() == x.tolist()
    p = pickle.loads(pickle.dumps(tg.nn.Parameter(x.detach())))
    assert p.is_cuda and isinstance(p, tg.nn.Parameter)


def test_the_default_device(device: str) -> None:
    with tg.device(device):
        assert tg.ones(1).is_cuda and tg.get_default_device() == tg.device(device)
        assert (
            tg.tensor([1]).is_cuda and tg.randn(2).is_cuda and not tg.ones(1, device="cpu").is_cuda
        )
    assert not tg.ones(1).is_cuda
    tg.set_default_device(device)
    try:
        assert tg.nn.Linear(2, 3).weight.is_cuda
    finally:
        tg.set_default_device(None)
    assert not tg.ones(1).is_cuda


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        tg.ones(1, device="cuda:99")
    with pytest.raises(RuntimeError, match="use device 'cpu'"):
        tg.ones(1, device="mps")


def test_modules_move_with_their_parameters_gradients_and_buffers(device: str) -> None:
    model = tg.nn.Sequential(tg.nn.Linear(3, 4), tg.nn.BatchNorm1d(4))
    weight = model[0].weight
    model(tg.randn(5, 3)).sum().backward()
    assert model.to(device) is model and model[0].weight is weight
    assert weight.is_cuda and weight.is_leaf and weight.grad is not None and weight.grad.is_cuda
    assert model[1].running_mean.is_cuda
    assert not model.cpu()[0].weight.is_cuda and model.cuda()[0].weight.is_cuda


def test_state_goes_from_device_to_device(device: str) -> None:
    here, there = tg.nn.Linear(2, 2), tg.nn.Linear(2, 2).to(device)
    there.load_state_dict(here.state_dict())
    assert there.weight.is_cuda and there.weight.tolist() == here.weight.tolist()
    here.load_state_dict(there.state_dict())
    assert not here.weight.is_cuda


def test_memory_goes_both_ways_through_dlpack(device: str) -> None:
    x = tg.arange(12.0, device=device).reshape(3, 4)

    class Other:
        def __dlpack__(self, stream: Any = None) -> Any:
            return x.t()[1:].__dlpack__(stream=stream)

        def __dlpack_device__(self) -> tuple[int, int]:
            return x.__dlpack_device__()

    y = tg.from_dlpack(Other())
    assert y.shape == (3, 3) and y.stride() == (1, 4) and y.data_ptr() == x.data_ptr() + 4
    x.mul_(2)
    assert y[0].tolist() == [2.0, 10.0, 18.0]
    capsule = x.__dlpack__()
    del capsule  # nobody took it
    with pytest.raises(BufferError, match="requires? grad"):
        x.clone().requires_grad_().__dlpack__()


def test_the_cuda_array_interface(device: str) -> None:
    x = tg.arange(6.0, device=device).reshape(2, 3)

    class Other:
        __cuda_array_interface__ = x.__cuda_array_interface__

    y = tg.as_tensor(Other())
    assert y.is_cuda and y.data_ptr() == x.data_ptr() and y.tolist() == x.tolist()
    assert x.t().__cuda_array_interface__["strides"] == (4, 12)
    assert not hasattr(tg.ones(1), "__cuda_array_interface__")
    with pytest.raises(Exception, match="no bfloat16"):
        x.to(tg.bfloat16).__cuda_array_interface__  # noqa: B018


@pytest.mark.gpu
@pytest.mark.skipif(driver.status() is not None, reason="pinned memory needs a driver")
def test_pinned_memory(device: str) -> None:
    x = tg.arange(100000.0, requires_grad=True)
    pinned = x.pin_memory()
    assert pinned.is_pinned() and not x.is_pinned() and pinned.pin_memory() is pinned
    there = pinned.to(device, non_blocking=True)
    tg.cuda.synchronize()
    assert there.is_cuda and tg.equal(there.cpu(), x) and pinned.t().is_pinned()
    (there * 2).sum().backward()
    assert x.grad is not None and x.grad[0].item() == 2.0
    with pytest.raises(RuntimeError, match="only dense CPU tensors can be pinned"):
        there.pin_memory()
    rows = tg.arange(6.0).reshape(3, 2)
    assert tg.equal(tg.func.vmap(lambda row: row.pin_memory() * 2)(rows), rows * 2)
    _, tangent = tg.func.jvp(lambda row: row.pin_memory() * 2, (rows,), (rows + 1,))
    assert tg.equal(tangent, (rows + 1) * 2)


LAID_OUT = {
    "a mask": lambda x: x.masked_fill(x > 0.5, 0.1), "where": lambda x: tg.where(x > 0, x, -x),
    "a column": lambda x: x * x.sum(1, keepdim=True), "a row": lambda x: x + x[0].clone(),
    "a row of two dimensions": lambda x: x + x.sum(0, keepdim=True),
    "another dtype": lambda x: x + x.to(tg.float64), "a number": lambda x: x * tg.tensor(2.0),
    "both orders": lambda x: x + x.contiguous(), "gaps": lambda x: x[::2] * 2,
}  # fmt: skip


@pytest.mark.parametrize("name", LAID_OUT)
def test_results_lie_in_memory_as_on_the_cpu(name: str, device: str) -> None:
    x = tg.linspace(-1, 2, 20).reshape(5, 4).t()
    got, want = LAID_OUT[name](x.to(device)), LAID_OUT[name](x)
    assert got.stride() == want.stride()
    np.testing.assert_allclose(got.cpu().numpy(), want.numpy(), rtol=1e-6)
    w, v = x.to(device).requires_grad_(), x.clone().requires_grad_()
    LAID_OUT[name](w).square().sum().backward()
    LAID_OUT[name](v).square().sum().backward()
    assert w.grad is not None and v.grad is not None
    np.testing.assert_allclose(w.grad.cpu().numpy(), v.grad.numpy(), rtol=1e-5, atol=1e-6)
