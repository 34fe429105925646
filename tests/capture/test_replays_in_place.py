"""Replays that write into the memory of inputs: by the kernel itself where nothing can see it too early.

Each case is called several times beside the eager function; arguments, results, versions and errors
must be the same, whether or not the generated code writes in place.
"""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

import tracegrad as tg
from tracegrad.ir.errors import GradientError, ShapeError


def tensors(*shapes: tuple[int, ...]) -> list[tg.Tensor]:
    rng = np.random.default_rng(1)
    return [tg.from_numpy(rng.standard_normal(s).astype(np.float32)) for s in shapes]


def plain(x, y):
    x.sub_(0.1 * y)


def with_result(x, y):
    x.mul_(y)
    return x + 1


def old_value_returned(x, y):
    old = x * 1
    x.add_(y)
    return old


def returned_itself(x, y):
    return x.add_(y)


def exchanged(x, y):
    old = x.clone()
    x.copy_(y)
    y.copy_(old)


def reversed_(x, y):
    x.copy_(x.flip(0) + y)


def shifted(x, y):
    x[1:] += x[:-1] * y[1:]


def by_its_norm(x, y):
    x.div_(x.norm() + y.abs().sum())


def twice(x, y):
    x.add_(y)
    x.mul_(x.sum())


def both(x, y):
    y.mul_(0.9).add_(x)
    x.sub_(0.1 * y)


def chosen(x, y):
    if x.sum() > 0:
        x.sub_(y.abs() + 1)
    else:
        x.add_(y.abs() * 3)


def picked(x, y):
    at = tg.arange(3)
    x.add_(1)
    return y[at]


def product(x, y):
    x.copy_(x.reshape(2, 3) @ tg.ones(3, 3) if x.ndim == 2 else x * y)


def loss_and_step(x, y):
    with tg.enable_grad():
        w = x.detach().requires_grad_()
        ((w * y) ** 2).sum().backward()
        x.sub_(w.grad * 0.01)
    return x.sum()


FUNCTIONS = [
    plain, with_result, old_value_returned, returned_itself, exchanged, reversed_, shifted,
    by_its_norm, twice, both, chosen, picked, product, loss_and_step,
]  # fmt: skip


@pytest.mark.parametrize(
    "options", [{}, {"verify": "always"}, {"verify": "off"}, {"debug": True}], ids=str
)
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_memory_results_and_versions(function, options) -> None:
    compiled = tg.compile(function, wait=True, **options)
    x, y = tensors((6,), (6,))
    a, b = x.clone(), y.clone()
    for _ in range(5):
        got, want = compiled(x, y), function(a, b)
        for p, q in ((x, a), (y, b), (got, want)):
            if q is None:
                assert p is None
            else:
                np.testing.assert_allclose(p.numpy(), q.numpy(), rtol=1e-5, atol=1e-5)
        assert (got is x) == (want is a)
        assert (x._version, y._version) == (a._version, b._version)


def replaced(compiled) -> set[int]:
    """The inputs that the newest trace writes in place."""
    executable = compiled._order[-1].executable
    return set() if executable is None else set(dict(executable.unit.inplace).values())


@pytest.mark.parametrize(
    "function, inputs", [(plain, 1), (both, 1), (exchanged, 0), (reversed_, 0), (chosen, 0)]
)
def test_which_replays_write_in_place(function, inputs: int) -> None:
    compiled = tg.compile(function, wait=True)
    x, y = tensors((6,), (6,))
    compiled(x, y)
    compiled(x, y)
    assert len(replaced(compiled)) >= inputs and (inputs or not replaced(compiled))


OPTIMIZERS = {
    "SGD": lambda p: tg.optim.SGD(p, lr=0.1),
    "momentum": lambda p: tg.optim.SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: tg.optim.AdamW(p, lr=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_of_an_optimizer_makes_no_copies_of_weights(name: str) -> None:
    layer = tg.nn.Linear(4, 3, bias=False)
    optimizer = OPTIMIZERS[name](layer.parameters())

    def step(x):
        optimizer.zero_grad()
        layer(x).pow(2).sum().backward()
        optimizer.step()

    compiled = tg.compile(step, wait=True)
    for _ in range(4):
        compiled(tg.ones(2, 4))
    sources = compiled._order[-1].capture.sources
    (weight,) = (k for k, s in enumerate(sources) if s.tensor is layer.weight)
    assert weight in replaced(compiled)


def test_what_the_tape_saved_of_an_overwritten_tensor_is_known() -> None:
    x, y = tensors((6,), (6,))
    leaf = y.clone().requires_grad_()
    compiled = tg.compile(plain, wait=True)
    compiled(x, y)
    compiled(x, y)
    z = (leaf * x).sum()
    compiled(x, y)
    with pytest.raises(GradientError, match="modified by an inplace operation"):
        z.backward()
    with tg.autograd.graph.allow_mutation_on_saved_tensors():
        z = (leaf * x).sum()
        before = x.clone()
        compiled(x, y)
        z.backward()
    assert leaf.grad.tolist() == before.tolist()


def test_views_and_overlaps_are_seen() -> None:
    base, other = tensors((12,), (6,))
    compiled = tg.compile(plain, wait=True)
    for _ in range(3):
        compiled(base[:6], other)
    twin = base.clone()
    compiled(base[:6], base[3:9])  # what is read is written
    plain(twin[:6], twin[3:9].clone())
    plain_result, want = base.numpy(), twin.numpy()
    np.testing.assert_allclose(plain_result[:3], want[:3], rtol=1e-6)
    eager = tensors((12,), (6,))[0]
    for _ in range(3):
        plain(eager[:6], other)
    plain(eager[:6], eager[3:9])
    assert base.tolist() == eager.tolist()
    compiled(other, base[::2])
    twin = tensors((12,), (6,))[1]
    plain(twin, eager[::2])
    np.testing.assert_allclose(other.numpy(), twin.numpy(), rtol=1e-6)


def test_captured_tensors_that_come_to_share_memory() -> None:
    first, second = tensors((6,), (6,))

    def step():
        first.sub_(0.5 * second)

    compiled = tg.compile(step, wait=True)
    for _ in range(3):
        compiled()
    assert replaced(compiled)
    a, b = first.clone(), second.clone()
    first.data = second.data  # now they are one
    compiled()
    assert second.tolist() == (b - 0.5 * b).tolist() and first.tolist() == second.tolist()
    first.data = a.clone()
    want = (a - 0.5 * second).tolist()
    compiled()
    assert first.tolist() == want


def test_inference_tensors_are_refused() -> None:
    compiled = tg.compile(plain, wait=True)
    x, y = tensors((6,), (6,))
    for _ in range(3):
        compiled(x, y)
    with tg.inference_mode():
        z = x.clone()
        compiled(z, y)
    before = z.tolist()
    with pytest.raises(GradientError, match="Inplace update to inference tensor"):
        compiled(z, y)
    assert z.tolist() == before


def test_read_only_memory_is_left_alone() -> None:
    held = np.arange(6, dtype=np.float32)
    held.flags.writeable = False
    with pytest.warns(UserWarning, match="not writable"):
        x = tg.from_numpy(held)
    z, y = tensors((6,), (6,))
    compiled = tg.compile(plain, wait=True)
    for _ in range(3):
        compiled(z, y)
    with pytest.raises(ShapeError, match="the memory is read-only"):
        compiled(x, y)
    assert held.tolist() == list(range(6))


def test_no_memory_is_kept() -> None:
    x, y = tensors((6,), (6,))
    compiled = tg.compile(plain, wait=True)
    for _ in range(3):
        compiled(x, y)
    memory = weakref.ref(y._array)
    del y
    compiled(x, tg.ones(6))
    gc.collect()  # the capture was a cycle
    assert memory() is None
