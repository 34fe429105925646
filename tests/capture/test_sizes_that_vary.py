"""Sizes of arguments that are others from call to call: one trace each, but one code for all.

Each function is called by itself and compiled with a sequence of sizes; results and gradients are
the same within rounding. The first size has code of its own; those after it share theirs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tracegrad as tg
from tracegrad import nn
from tracegrad.tracer import capturing

F = nn.functional
SIZES = (7, 9, 12, 15, 31, 5, 31, 5, 9, 12)  # the last two are replays


def data(*shape: int) -> tg.Tensor:
    return tg.from_numpy(np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32))


def labels(n: int) -> tg.Tensor:
    return tg.arange(n) % 6


tg.manual_seed(0)
CONV, NORM = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)
TABLE = data(10, 6)
LINEAR, LAYER = nn.Linear(6, 4), nn.LayerNorm(6)
Case = tuple[Callable[..., Any], Callable[[int], tuple[tg.Tensor, ...]]]


def rows(n: int) -> tuple[tg.Tensor]:
    return (data(n, 6),)


def images(n: int) -> tuple[tg.Tensor]:
    return (data(n, 2, 4, 4),)


SHARED: dict[str, Case] = {
    "pointwise": (lambda x: (x.sin() * x + 1).exp(), rows),
    "mean": (lambda x: (x * x).mean(), rows),
    "mean of columns": (lambda x: (x * x).mean(0), rows),
    "variance": (lambda x: x.var(), rows),
    "softmax": (lambda x: F.softmax(x, 1), rows),
    "softmax of columns": (lambda x: F.softmax(x, 0), rows),
    "linear": (lambda x: LINEAR(x).relu(), rows),
    "gram": (lambda x: x.t() @ x, rows),
    "products of rows": (lambda x: x @ x.t(), rows),
    "batch of products": (lambda x, y: x @ y, lambda n: (data(n, 3, 4), data(n, 4, 5))),
    "view": (lambda x: x.view(x.shape[0], -1) * 2, lambda n: (data(n, 2, 3),)),
    "flatten": (lambda x: x.flatten(1).sum(1), lambda n: (data(n, 2, 3),)),
    "reshape": (lambda x: x.reshape(-1, 3).sum(0), lambda n: (data(n, 2, 3),)),
    "differences": (lambda x: x[1:] - x[:-1], rows),
    "cat": (lambda x, y: tg.cat([x, y, x]), lambda n: (data(n, 6), data(3, 6))),
    "stack": (lambda x: tg.stack([x, x * 2], 1), rows),
    "pad": (lambda x: F.pad(x, (1, 2)), lambda n: (data(3, n),)),
    "flip": (lambda x: x.flip(0) * x, rows),
    "gather": (lambda x: x[tg.tensor([0, 2, 1])], rows),
    "table": (lambda i: TABLE[i], lambda n: (labels(n),)),
    "arange": (lambda x: x + tg.arange(x.shape[0])[:, None], rows),
    "ones": (lambda x: x * tg.ones(x.shape[0], 1), rows),
    "len": (lambda x: x / len(x), rows),
    "max": (lambda x: x.max(0).values, rows),
    "argmax": (lambda x: x.argmax(1), rows),
    "convolution": (lambda x: CONV(x).relu(), images),
    "batch norm": (lambda x: NORM(CONV(x)), images),
    "pooling": (lambda x: F.max_pool2d(CONV(x), 2), images),
    "layer norm": (lambda x: LAYER(x), rows),
    "two sizes": (lambda x, y: x[:, None] * y, lambda n: (data(n), data(2 * n + 1))),
    "pairs": (lambda x: ((x[:, None] - x[None]) ** 2).sum(), rows),
    "random": (lambda x: F.dropout(x, 0.25) + tg.rand(x.shape[0], 6), rows),
    "cross entropy": (lambda x, y: F.cross_entropy(x, y), lambda n: (data(n, 6), labels(n))),
    "squared error": (lambda x, y: F.mse_loss(x, y), lambda n: (data(n, 6), data(n, 6))),
    "where": (lambda x: tg.where(x > 0, x, tg.zeros_like(x)), rows),
    "expand": (lambda x: x.sum(1, keepdim=True).expand(-1, 6) + x, rows),
    "in place": (lambda x: x.clone().mul_(2).add_(x), rows),
    "large": (lambda x: (x.sin() * 2).sum(), lambda n: (data(n * 20000),)),
    "a large map": (lambda x: x.sin() * 2, lambda n: (data(n * 20000),)),
    "sequences": (lambda x: F.softmax(x @ x.transpose(1, 2), -1) @ x, lambda n: (data(2, n, 4),)),
}
OWN: dict[str, Case] = {
    "loop": (lambda x: sum(x[i] for i in range(x.shape[0])), rows),
    "cumsum": (lambda x: x.cumsum(0), rows),
    "chunk": (lambda x: x.chunk(3)[0] * 2, rows),
    "a branch": (lambda x: x * 2 if x.shape[0] > 10 else x + 1, rows),
    "width of images": (lambda x: CONV(x).relu(), lambda n: (data(1, 2, 4, n),)),
}


def outcome(fn: Callable[..., Any], args: tuple[tg.Tensor, ...]) -> list[np.ndarray]:
    """The result and the gradients of the floating arguments."""
    tg.manual_seed(3)
    leaves = [a.clone().requires_grad_() if a.dtype.is_floating_point else a for a in args]
    out = fn(*leaves)
    found = [out.detach().numpy().copy()]
    if out.requires_grad:
        (out * out).sum().backward()
        found += [x.grad.numpy() for x in leaves if x.requires_grad]
    return found


def check(case: Case) -> Any:
    """The function compiled, after calls with all sizes."""
    fn, arguments = case
    compiled = tg.compile(fn, wait=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for n in SIZES:
            for got, want in zip(
                outcome(compiled, arguments(n)), outcome(fn, arguments(n)), strict=True
            ):
                np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)
    return compiled


def codes(compiled: Any) -> list[str]:
    return [t.executable.unit.code for t in compiled._order]


@pytest.mark.parametrize("name", SHARED)
def test_sizes_share_code(name: str) -> None:
    compiled = check(SHARED[name])
    found = codes(compiled)
    assert len(found) == len(set(SIZES))
    assert len(set(found)) == 2, "a size that was not marked"
    assert "const int64_t n0 = (intptr_t)args[" in compiled.source()
    assert compiled.cache_info().hits == 2
    backwards = [b for t in compiled._order for b in t.backwards()]
    assert len({b.unit().code for b in backwards}) == (1 if backwards else 0)


@pytest.mark.parametrize("name", OWN)
def test_what_depends_on_the_size_in_other_ways_has_code_of_its_own(name: str) -> None:
    compiled = check(OWN[name])
    assert len(set(codes(compiled))) > 2


def test_a_training_step_with_batches_of_all_sizes() -> None:
    def make() -> Callable[..., tg.Tensor]:
        tg.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))
        optimizer = tg.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

        def step(x: tg.Tensor, y: tg.Tensor) -> tg.Tensor:
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        return step

    compiled, plain = tg.compile(make(), wait=True), make()
    for _ in range(3):
        for n in (32, 32, 32, 20, 25, 40, 11, 33):
            got, want = (float(f(data(n, 6), labels(n)).detach()) for f in (compiled, plain))
            np.testing.assert_allclose(got, want, rtol=1e-4)
    shared = {t.executable.unit.code for t in compiled._order if t.sizes}
    assert len(shared) == 1
    assert compiled.cache_info().hits >= 14


def test_a_compiled_backward_is_shared_too() -> None:
    compiled = tg.compile(lambda x: (LINEAR(x) ** 2).mean(), wait=True)
    for n in (*SIZES, *SIZES):
        got, want = outcome(compiled, rows(n)), outcome(lambda x: (LINEAR(x) ** 2).mean(), rows(n))
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)
    made = [b.unit().code for t in compiled._order for b in t.backwards()]
    assert len(made) == len(set(SIZES)) and len(set(made)) == 2


def test_a_size_that_equals_another_by_chance() -> None:
    """Where the number of rows is that of columns, the columns do not vary."""
    w = data(6, 6)
    compiled = tg.compile(lambda x: (x @ w) * tg.ones(6), wait=True)
    for n in (4, 5, 6, 7, 8):
        compiled(data(n, 6))
    assert len(set(codes(compiled))) == 2


def test_sizes_that_were_equal_so_far() -> None:
    compiled = tg.compile(lambda x, y: x.sum() + (y * 2).sum(), wait=True)
    for n, m in ((3, 3), (5, 5), (7, 7), (5, 9), (8, 4), (6, 6)):
        got = compiled(data(n), data(m))
        np.testing.assert_allclose(float(got), float(data(n).sum() + 2 * data(m).sum()), rtol=1e-5)
    assert len(set(codes(compiled))) <= 3


def test_no_warning_of_many_traces_and_the_oldest_are_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(capturing, "MANY_SIZES", 10)
    compiled = tg.compile(lambda x: x * 2, wait=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for n in range(2, 40):
            for _ in range(2):
                assert compiled(data(n)).tolist() == (data(n) * 2).tolist()
    assert compiled.cache_info().traces <= 13
    before = compiled.cache_info().hits
    assert compiled(data(39)).shape == (39,)
    assert compiled.cache_info().hits == before + 1


def test_sizes_that_do_not_come_back_are_not_captured() -> None:
    compiled = tg.compile(lambda x: x * 2, wait=True)
    for n in range(2, 30):
        assert compiled(data(n)).tolist() == (data(n) * 2).tolist()
    info = compiled.cache_info()
    assert (info.misses, info.eager_calls) == (4, 24)
    for n in range(2, 30):
        compiled(data(n))
    assert compiled.cache_info().misses == 28 and len(set(codes(compiled))) == 2


def test_beside_the_compiler() -> None:
    compiled = tg.compile(lambda x: (x.sin() * 2).mean(0), wait=False)
    for n in (3, 4, 5, 6):
        compiled(data(n, 6))
        assert compiled.wait(60)
    for n in (3, 4, 5, 6):
        np.testing.assert_allclose(
            compiled(data(n, 6)).numpy(), (data(n, 6).sin() * 2).mean(0).numpy(), rtol=1e-6
        )
    assert compiled.cache_info().hits == 4
    assert len(set(codes(compiled))) == 2


def test_layouts_and_empty_sizes() -> None:
    def fn(x: tg.Tensor) -> tg.Tensor:
        return (x * 2).sum(0)

    compiled = tg.compile(fn, wait=True)
    empty, single, gaps = data(0, 6), data(1, 6), data(9, 6)[::2]
    for x in (data(3, 6), data(4, 6), data(6, 5).t(), data(6, 7).t(), empty, single, gaps):
        np.testing.assert_allclose(compiled(x).numpy(), fn(x).numpy(), rtol=1e-5, atol=1e-6)


def test_verify_always_and_double_backward() -> None:
    compiled = tg.compile(lambda x: (x.sin() * x).sum(), wait=True, verify="always")
    for n in (*SIZES, *SIZES):
        x = data(n).requires_grad_()
        (first,) = tg.autograd.grad(compiled(x), x, create_graph=True)
        (second,) = tg.autograd.grad(first.sum(), x)
        want = 2 * x.cos() - x * x.sin()
        np.testing.assert_allclose(second.numpy(), want.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_the_error_of_a_wrong_cotangent_has_plain_sizes() -> None:
    compiled = tg.compile(lambda x: x * 2, wait=True)
    for n in (3, 4, 5):
        compiled(data(n))
    x = data(5).requires_grad_()
    compiled(x)
    with pytest.raises(RuntimeError, match=r"\[5\]"):
        compiled(x).backward(tg.ones(4))
