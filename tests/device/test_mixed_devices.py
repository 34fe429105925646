"""What is asked across devices: gradients, out=, numbers of the host, defaults, names of types."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest

import tracegrad as tg

F = tg.nn.functional
MIXED = "Expected all tensors to be on the same device, but found at least two devices"


def test_a_gradient_is_on_the_device_of_its_tensor(device: str) -> None:
    w = tg.ones(3, device=device, requires_grad=True)
    for start in (
        lambda: (w * 2).backward(tg.ones(3)),
        lambda: tg.autograd.grad(w * 2, w, tg.ones(3)),
    ):
        with pytest.raises(
            RuntimeError, match="gradient at index 0 - expected device cuda:0 but got"
        ):
            start()
    with pytest.raises(
        RuntimeError, match="gradient with device type 'cpu' to a tensor with device"
    ):
        w.grad = tg.ones(3)
    assert w.grad is None
    w.sum().backward(tg.tensor(2.0))  # a number moves
    assert w.grad is not None and w.grad.is_cuda and w.grad.tolist() == [2.0, 2.0, 2.0]


def test_functions_and_hooks_give_gradients_on_the_device(device: str) -> None:
    class Away(tg.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x * 2

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return g.cpu()

    w = tg.ones(3, device=device, requires_grad=True)
    with pytest.raises(
        RuntimeError, match="AwayBackward returned an invalid gradient at index 0 - exp"
    ):
        Away.apply(w).sum().backward()
    y = w * 2
    y.register_hook(lambda g: g.cpu())
    with pytest.raises(RuntimeError, match="has changed the device of value"):
        y.sum().backward()
    assert w.grad is None


def test_results_stay_on_their_device(device: str) -> None:
    here, there = tg.zeros(2), tg.zeros(2, device=device)
    for function in (
        lambda: tg.add(tg.ones(2), 1, out=there),
        lambda: tg.add(tg.ones(2, device=device), 1, out=here),
        lambda: tg.tensor(1.0).add_(tg.tensor(2.0, device=device)),
    ):
        with pytest.raises(RuntimeError, match=MIXED):
            function()
    assert here.tolist() == there.tolist() == [0.0, 0.0]
    assert tg.ones(2, out=there).is_cuda and there.tolist() == [1.0, 1.0]


def test_composites_take_numbers_of_the_host(device: str) -> None:
    rates = []
    for lr in (0.1, tg.tensor(0.1)):
        w = tg.ones(3, device=device, requires_grad=True)
        optimizer = tg.optim.Adam([w], lr=lr)
        for _ in range(4):
            optimizer.zero_grad()
            (w * w).sum().backward()
            optimizer.step()
        rates.append(w.tolist())
    np.testing.assert_allclose(rates[0], rates[1], rtol=1e-6)


def test_composites_with_constants_differentiate_in_any_layout(device: str) -> None:
    def run(d: str) -> Any:
        w = tg.linspace(-1, 2, 20, device=d).reshape(4, 5).requires_grad_()
        x = (w.t() * 1.0).t()
        x.index_fill_(1, tg.tensor([2, 0], device=d), 3.0)
        (x * x).sum().backward()
        assert w.grad is not None
        return w.grad.tolist()

    for _ in range(3):
        assert run(device) == run("cpu")


def test_gradients_of_several_devices_are_clipped_together(device: str) -> None:
    def run(d: str) -> Any:
        a, b = tg.ones(3, requires_grad=True), tg.ones(2, device=d, requires_grad=True)
        a.sum().backward()
        (b * 3).sum().backward()
        norm = tg.nn.utils.clip_grad_norm_([a, b], 0.5)
        assert a.grad is not None and b.grad is not None and b.grad.device == b.device
        return [norm.item(), *a.grad.tolist(), *b.grad.tolist()]

    np.testing.assert_allclose(run(device), run("cpu"), rtol=1e-5)


def test_a_compiled_function_follows_the_default_device(device: str) -> None:
    f = tg.compile(lambda: tg.ones(3))
    assert not f().is_cuda and not f().is_cuda
    with tg.device(device):
        assert f().is_cuda and f().is_cuda
    assert not f().is_cuda


def test_blocks_with_a_device_belong_to_their_thread(device: str) -> None:
    inside, leave = threading.Event(), threading.Event()
    seen: list[str] = []

    def other() -> None:
        tg.set_default_device(device)
        with tg.device("cpu"):
            inside.set()
            leave.wait()
        seen.append(tg.get_default_device().type)

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait()
    with tg.device(device):
        leave.set()
        thread.join()
        seen.append(tg.get_default_device().type)
    assert seen == ["cuda", "cuda"] and tg.get_default_device().type == "cpu"
    with pytest.raises(RuntimeError, match="invalid device ordinal"), tg.device("cuda:99"):
        pass
    assert tg.get_default_device().type == "cpu"


def test_names_of_types_say_the_device(device: str) -> None:
    x = tg.ones(2, device=device)
    assert x.type() == tg.typename(x) == "torch.cuda.FloatTensor" and x.type(x.type()) is x
    assert not x.type("torch.DoubleTensor").is_cuda and not x.type(tg.LongTensor).is_cuda
    assert tg.ones(1).type("torch.cuda.LongTensor").is_cuda and x.type(tg.float64).is_cuda
    assert not isinstance(x, tg.FloatTensor) and isinstance(x.cpu(), tg.FloatTensor)


def test_dlpack_says_and_does_what_it_is_asked(device: str) -> None:
    x = tg.arange(3.0, device=device)
    twin = tg.from_dlpack(x, copy=True)
    assert twin.is_cuda and twin.data_ptr() != x.data_ptr() and twin.tolist() == x.tolist()
    assert np.from_dlpack(x, device="cpu").tolist() == [0.0, 1.0, 2.0]
    for asked in ({"dl_device": (1, 0), "copy": False}, {"dl_device": (2, 7)}):
        with pytest.raises(BufferError, match="cannot be given to device"):
            x.__dlpack__(**asked)


@pytest.mark.filterwarnings("error")
def test_a_capsule_that_is_refused_is_given_back(device: str) -> None:
    from tracegrad.runtime.cuda import exchange

    gc.collect()
    before = len(exchange._lent)
    with pytest.raises((RuntimeError, BufferError, SystemError)):
        np.from_dlpack(tg.ones(3, device=device))  # NumPy reads host memory only
    assert len(exchange._lent) == before


NUMBERS = {
    "product": lambda x, k: x * k, "of itself": lambda x, k: x * (k * k), "gelu": lambda x, k: F.gelu(x * k),
    "lerp": lambda x, k: tg.lerp(x, x * 2, k), "where": lambda x, k: tg.where(x > 0, k, x),
    "both": lambda x, k: (x + k) / (k + 1), "std": lambda x, k: (x * k).std(),
}  # fmt: skip


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_the_host_get_their_gradient_there(
    name: str, compiled: bool, device: str
) -> None:
    f = tg.compile(NUMBERS[name]) if compiled else NUMBERS[name]
    k, v = tg.tensor(2.0, requires_grad=True), tg.full((4,), 0.5, requires_grad=True)
    k2, v2 = k.detach().clone().requires_grad_(), v.detach().clone().requires_grad_()
    x = tg.linspace(-1, 2, 6)
    for _ in range(4):  # then composites are compiled, and traces replayed
        (f(x.to(device), k).sum() + f(x.to(device), v.sum()).sum()).backward()
        (NUMBERS[name](x, k2).sum() + NUMBERS[name](x, v2.sum()).sum()).backward()
    for got, want in ((k, k2), (v, v2)):
        assert got.grad is not None and want.grad is not None and not got.grad.is_cuda
        np.testing.assert_allclose(got.grad.numpy(), want.grad.numpy(), rtol=2e-5)
    (g,) = tg.autograd.grad(f(x.to(device), k).square().sum(), k, create_graph=True)
    (h,) = tg.autograd.grad(NUMBERS[name](x, k2).square().sum(), k2, create_graph=True)
    assert not g.is_cuda
    np.testing.assert_allclose(g.item(), h.item(), rtol=2e-5)
    if h.requires_grad:
        got, want = tg.autograd.grad(g, k)[0], tg.autograd.grad(h, k2)[0]
        np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=2e-4)


def test_moves_take_batches_and_tangents_along(device: str) -> None:
    x = tg.linspace(-1, 2, 6, device=device).reshape(2, 3)
    double = (x * 2).tolist()
    assert tg.func.vmap(lambda r: r.cpu() * 2)(x).tolist() == double
    assert tg.func.vmap(lambda r: r.to(device) * 2)(x.cpu()).tolist() == double
    assert tg.func.jvp(lambda r: r.cpu() * 2, (x,), (x,))[1].tolist() == double
    eye = (tg.eye(3) * 2).tolist()
    assert tg.func.jacfwd(lambda r: r.cpu() * 2)(x[0]).tolist() == eye
    assert tg.func.jacrev(lambda r: r.cpu() * 2)(x[0]).tolist() == eye
    assert tg.func.jacrev(lambda k: x[0] * k)(tg.tensor(2.0)).tolist() == x[0].tolist()
    assert tg.func.vmap(lambda r: tg.as_tensor(r, device="cpu") * 2)(x).tolist() == double
    outer = tg.func.vmap(tg.func.vmap(lambda r: r.cpu() * 2))(x)
    assert outer.tolist() == double and not outer.is_cuda
