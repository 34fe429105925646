"""Compiled functions on a device: replayed, with the values of eager mode on the CPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tracegrad as tg
from tracegrad.ir.dtypes import float32
from tracegrad.ir.primitive import TABLE
from tracegrad.ir.types import TensorType
from tracegrad.runtime.cuda import eager
from tracegrad.tracer.compiled_backward import Backward

F = tg.nn.functional


def replayed(f: Any, times: int) -> None:
    """All calls but the first were answered by one trace."""
    info = f.cache_info()
    assert (info.traces, info.eager_calls) == (1, 0) and info.hits == times - 1, f.explain()


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "chain": lambda x, y: (x.sin() * y + 1).sum(),
    "softmax": lambda x, y: (x.softmax(1) * y).sum(0),
    "layer norm": lambda x, y: F.layer_norm(x, (4,)) * y,
    "product": lambda x, y: (x @ y.t()).relu().mean(),
    "transposed": lambda x, y: (x.t() @ y).exp().log1p(),
    "picked": lambda x, y: x[:, 1:3] * y[[2, 0, 1], 1:3],
    "in place": lambda x, y: x.clone().mul_(2).add_(y),
    "several": lambda x, y: (x.cumsum(1), x.max(1).values, (y > 0).sum()),
    "constant": lambda x, y: x + tg.arange(4.0, device=x.device) * y,
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_replay_is_eager_mode(name: str, device: str) -> None:
    function = FUNCTIONS[name]
    f = tg.compile(function)
    for seed in range(3):
        tg.manual_seed(seed)
        x, y = tg.randn(3, 4), tg.randn(3, 4)
        there = x.to(device).requires_grad_(), y.to(device).requires_grad_()
        here = x.requires_grad_(), y.requires_grad_()
        got, want = f(*there), function(*here)
        got, want = (v if isinstance(v, tuple) else (v,) for v in (got, want))
        for a, b in zip(got, want, strict=True):
            assert a.is_cuda
            np.testing.assert_allclose(
                a.detach().cpu().numpy(), b.detach().numpy(), rtol=2e-5, atol=2e-6
            )
        got[0].sum().backward()
        want[0].sum().backward()
        for a, b in zip(there, here, strict=True):
            assert (a.grad is None) == (b.grad is None)
            if a.grad is not None and b.grad is not None:
                np.testing.assert_allclose(
                    a.grad.cpu().numpy(), b.grad.numpy(), rtol=2e-5, atol=2e-6
                )
    replayed(f, 3)


def _training(where: str, compiled: bool) -> tuple[list[float], list[Any]]:
    tg.manual_seed(0)
    model = tg.nn.Sequential(
        tg.nn.Linear(6, 8, bias=False),
        tg.nn.BatchNorm1d(8),
        tg.nn.ReLU(),
        tg.nn.Dropout(0.2),
        tg.nn.Linear(8, 3),
    ).to(where)
    optimizer = tg.optim.Adam(model.parameters(), lr=0.01)

    def step(x: Any, target: Any) -> Any:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), target)
        loss.backward()
        tg.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    run = tg.compile(step) if compiled else step
    losses = []
    for k in range(6):
        x = tg.randn(16, 6).to(where)
        target = tg.randint(0, 3, (16,)).to(where)
        optimizer.param_groups[0]["lr"] = 0.01 / (k + 1)
        losses.append(run(x, target).item())
    if compiled:
        info = run.cache_info()
        assert info.eager_calls <= 1 and info.hits >= 3, run.explain()
    return losses, [p.detach().cpu().numpy() for p in model.parameters()]


@pytest.mark.parametrize("compiled", [False, True])
def test_training_steps_are_those_of_the_cpu(compiled: bool, device: str) -> None:
    want, weights = _training("cpu", False)
    got, moved = _training(device, compiled)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    for a, b in zip(moved, weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_loops_that_depend_on_values_are_paths(device: str) -> None:
    def double(x: Any) -> Any:
        while x.norm() < 100:
            x = x * 2
        return x

    f = tg.compile(double)
    for start in (1.0, 3.0, 1.0, 0.25, 3.0, 1.0):
        x = tg.full((4,), start, device=device)
        assert f(x).tolist() == double(x).tolist()
    assert f.cache_info().hits >= 3 and f.cache_info().eager_calls == 0, f.explain()


def test_writes_to_an_argument_are_seen(device: str) -> None:
    def f(x: Any, y: Any) -> Any:
        x.add_(y)
        x[0] = 7.0
        return x.sum()

    compiled = tg.compile(f)
    x = tg.zeros(3, device=device)
    for k in range(3):
        total = compiled(x, tg.ones(3, device=device))
        assert x.tolist() == [7.0, k + 1.0, k + 1.0] and total.item() == 9.0 + 2 * k
    replayed(compiled, 3)


def test_random_numbers_are_drawn_anew(device: str) -> None:
    f = tg.compile(lambda x: x + tg.rand_like(x))
    tg.manual_seed(5)
    got = [f(tg.zeros(4, device=device)).tolist() for _ in range(3)]
    tg.manual_seed(5)
    assert got == [tg.rand(4).tolist() for _ in range(3)]
    replayed(f, 3)


def test_numbers_in_host_memory_go_with_a_device(device: str) -> None:
    scale = tg.tensor(2.0)
    f = tg.compile(lambda x: x * scale)
    assert f(tg.ones(2, device=device)).tolist() == [2.0, 2.0]
    scale.fill_(3.0)
    assert f(tg.ones(2, device=device)).tolist() == [3.0, 3.0]
    replayed(f, 2)


def test_arguments_on_another_device_are_another_trace(device: str) -> None:
    f = tg.compile(lambda x: x * 2)
    assert not f(tg.ones(2)).is_cuda and f(tg.ones(2, device=device)).is_cuda
    assert not f(tg.ones(2)).is_cuda and f.cache_info().traces == 2


def test_what_computes_in_two_places_stays_eager(device: str) -> None:
    f = tg.compile(lambda x: (x * 2).to(device) + 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            assert f(tg.ones(2)).tolist() == [3.0, 3.0]
    assert "to('cuda:0')" in str(caught[0].message) and f.cache_info().eager_calls == 1


def test_a_module_that_moves_is_captured_anew(device: str) -> None:
    layer = tg.nn.Linear(2, 2)
    f = tg.compile(lambda x: layer(x))
    f(tg.ones(1, 2))
    layer.to(device)
    for _ in range(2):
        assert f(tg.ones(1, 2, device=device)).is_cuda
    layer.cpu()
    assert not f(tg.ones(1, 2)).is_cuda


def test_an_index_out_of_bounds_is_eager_mode_s_error(device: str) -> None:
    f = tg.compile(lambda x, i: x[i] * 2)
    x, i = tg.arange(3.0, device=device), tg.tensor([0, 2], device=device)
    assert f(x, i).tolist() == [0.0, 4.0]
    with pytest.raises(IndexError, match="index 5 is out of bounds"):
        f(x, tg.tensor([0, 5], device=device))
    assert f(x, i).tolist() == [0.0, 4.0]


def test_second_derivatives(device: str) -> None:
    f = tg.compile(lambda x: (x**3).sum())
    x = tg.tensor([1.0, 2.0], device=device, requires_grad=True)
    (first,) = tg.autograd.grad(f(x), x, create_graph=True)
    (second,) = tg.autograd.grad(first.sum(), x)
    assert first.tolist() == [3.0, 12.0] and second.tolist() == [6.0, 12.0]


def test_the_source_is_cuda(device: str) -> None:
    f = tg.compile(lambda x: x.exp() * 2)
    f(tg.ones(4, device=device))
    assert f.cache_info().traces == 1
    assert "cuda:0" in str(f.graph()) or "cuda" in f.explain()


def test_gradients_of_the_interpreter_have_memory_of_their_own(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Backward, "_ready", lambda self: False)  # it is still being compiled
    f = tg.compile(lambda w: (w * 3).sum())
    for _ in range(3):
        w = tg.tensor(2.0, device=device, requires_grad=True)
        for _ in range(3):
            f(w).backward()
        assert w.grad is not None and w.grad.item() == 9.0
        w.grad.zero_()
    assert (tg.ones(2, device=device) * 3).tolist() == [3.0, 3.0]


def test_constants_of_a_device_have_memory_of_their_own(device: str) -> None:
    made = TensorType((), float32, device)
    constant = eager.bound(TABLE["constant"], (), {"value": 2.0, "dtype": float32}, made)
    first = constant()
    first.fill(7.0)
    assert constant().item() == 2.0


@pytest.mark.parametrize("layout", ["steps", "transposed"])
def test_values_that_python_reads_are_compared_wherever_they_lie(layout: str, device: str) -> None:
    @tg.compile
    def f(x: Any) -> Any:
        return x * float(np.sum(x.tolist()))

    base = tg.arange(6.0, device=device)
    x = base[::2] if layout == "steps" else base.reshape(2, 3).t()
    want = (x * x.sum()).tolist()
    for _ in range(3):
        assert f(x).tolist() == want
    replayed(f, 3)
    seen = x.cpu().reshape(-1)
    base[: len(seen)] = seen.to(device)  # in front of it all is as it was seen
    assert f(x).tolist() == (x * x.sum()).tolist()
