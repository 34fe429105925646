"""The Tensor as a Python object: conversion, copying, pickling, arrays, recorder, random state."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import numpy as np
import pytest

import tracegrad as tg
from tracegrad.tracer.capture_hook import Recorder, recording


def test_numbers_and_arrays_on_the_left() -> None:
    x = tg.ones(2, requires_grad=True)
    for left in (2, 2.0, np.float32(2), np.float64(2), np.array([2.0, 2.0], np.float32)):
        out = left * x
        assert isinstance(out, tg.Tensor) and out.requires_grad
        assert out.dtype is tg.float32 and out.tolist() == [2.0, 2.0]
    assert (1 - x).tolist() == [0.0, 0.0] and (2**x).tolist() == [2.0, 2.0]


def test_from_numpy_and_numpy_share_memory() -> None:
    array = np.zeros(3)
    x = tg.from_numpy(array)
    array[0] = 1
    x[1] = 2
    assert x.tolist() == array.tolist() == [1.0, 2.0, 0.0]
    assert x.numpy() is not None and np.shares_memory(x.numpy(), array)
    assert not np.shares_memory(tg.tensor(array).numpy(), array)
    with pytest.raises(ValueError, match="negative"):
        tg.from_numpy(array[::-1])
    with pytest.raises(RuntimeError, match="complex"):
        tg.from_numpy(np.zeros(2, complex))


def test_python_protocols() -> None:
    x = tg.tensor([3, 4])
    assert list(range(10))[tg.tensor(4)] == 4 and int(x[0]) == 3 and len(x) == 2
    assert [int(v) for v in x] == [3, 4] and 4 in x and 5 not in x
    assert hash(x) == hash(x) and x in {x: 1}
    assert (x == None) is False and (x != None) is True  # noqa: E711
    assert f"{tg.tensor(1.5):.2f}" == "1.50"


def test_deepcopy_and_pickle_keep_leaves() -> None:
    x = tg.ones(2, requires_grad=True)
    (x * 3).sum().backward()
    twin = copy.deepcopy([x, x])
    assert twin[0] is twin[1] and twin[0].grad.tolist() == [3.0, 3.0] and twin[0].requires_grad
    twin[0].grad.zero_()
    assert x.grad.tolist() == [3.0, 3.0]
    loaded = pickle.loads(pickle.dumps(x))
    assert loaded.requires_grad and loaded.is_leaf and loaded.tolist() == [1.0, 1.0]
    with pytest.raises(RuntimeError, match="Only Tensors created explicitly by the user"):
        copy.deepcopy(x * 2)


def test_half_types_compute_and_print() -> None:
    x = tg.ones(2, dtype=tg.bfloat16, requires_grad=True)
    (x * 3).sum().backward()
    assert x.grad.tolist() == [1 * 3.0, 3.0] and x.grad.dtype is tg.bfloat16


def test_printing_options() -> None:
    x = tg.tensor([1.23456, 1000000.0])
    try:
        tg.set_printoptions(precision=2, sci_mode=False)
        assert repr(x) == "tensor([      1.23, 1000000.00])"
        tg.set_printoptions(profile="short", threshold=3)
        assert repr(tg.arange(9.0)) == "tensor([0., 1.,  ..., 7., 8.])"
    finally:
        tg.set_printoptions(profile="default")
    assert repr(x) == "tensor([1.2346e+00, 1.0000e+06])"


def test_generators_repeat_and_are_independent() -> None:
    tg.manual_seed(7)
    first, state = tg.randn(5), tg.get_rng_state()
    second = tg.rand(3)
    tg.manual_seed(7)
    assert tg.equal(tg.randn(5), first) and tg.equal(tg.rand(3), second)
    tg.set_rng_state(state)
    assert tg.equal(tg.rand(3), second)
    assert tg.initial_seed() == 7
    own = tg.Generator().manual_seed(7)
    assert tg.equal(tg.randn(5, generator=own), first)
    assert not tg.equal(tg.randn(5, generator=own), first)
    assert sorted(tg.randperm(6).tolist()) == list(range(6))
    drawn = tg.randint(2, 5, (1000,))
    assert sorted(set(drawn.tolist())) == [2, 3, 4]
    assert abs(tg.bernoulli(tg.full((4000,), 0.3)).mean().item() - 0.3) < 0.03


class Log(Recorder):
    """Writes down the names of what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def record(self, op: Any, operands: Any, params: Any, out: Any) -> None:
        self.lines.append(op.name)

    def record_inplace(self, name: str, target: Any, value: Any) -> None:
        self.lines.append(f"{name} {tuple(target.shape)}")

    def value_read(self, tensor: Any, what: str) -> None:
        self.lines.append(f"read {what}")

    def constant(self, tensor: Any) -> None:
        self.lines.append("constant")

    def random_state(self, tensor: Any, generator: Any) -> None:
        self.lines.append("random")

    def note(self, what: str, tensor: Any = None) -> None:
        self.lines.append(f"note {what}")


def test_recorder_hears_everything_in_order() -> None:
    x = tg.ones(3, requires_grad=True)
    log = Log()
    with recording(log):
        y = x * 2
        y[0] = 1.0
        bool(y.sum() > 1)
        tg.rand(2)
        y.sum().backward()
        x.grad  # noqa: B018
    assert log.lines[:1] == ["mul"]
    assert "fill_ ()" in log.lines
    assert ["reduce_sum", "greater", "read bool"] in [log.lines[i : i + 3] for i in range(12)]
    assert log.lines.index("random") < log.lines.index("random_uniform")
    assert log.lines.index("note backward") < log.lines.index("note .grad")
    before = list(log.lines)
    x * 3
    assert log.lines == before


def test_in_place_gradient_is_the_same_while_recording() -> None:
    x = tg.ones(3, requires_grad=True)
    with recording(Log()):
        y = x * 2
        y.mul_(y)
        y.sum().backward()
        (x * 5).sum().backward()
    assert x.grad.tolist() == [13.0] * 3


@pytest.mark.parametrize(
    ("act", "error", "text"),
    [
        (lambda: tg.ones(2, device="cuda"), RuntimeError, "device cuda is not available"),
        (lambda: tg.ones(2).to("nowhere"), RuntimeError, "Expected one of cpu, cuda"),
        (lambda: tg.ones(2, dtype="float32"), TypeError, "'dtype' must be torch.dtype, not str"),
        (lambda: tg.tensor([1j]), RuntimeError, "complex"),
        (
            lambda: tg.ones(2).to(object()),
            TypeError,
            "to.. received an invalid combination of arguments",
        ),
        (lambda: tg.manual_seed(None), TypeError, "int.. argument must be a string"),
        (lambda: tg.randint(3, 3, (1,)), RuntimeError, "expects 'from' to be less than 'to'"),
        (lambda: tg.zeros(-1), RuntimeError, "zeros: Dimension size must be non-negative."),
        (lambda: tg.ones(2).foo, AttributeError, "foo"),
        (lambda: tg.nothing, AttributeError, "module 'tracegrad' has no attribute 'nothing'"),
    ],
)
def test_refusals(act: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        act()


@pytest.mark.parametrize("dtype", [tg.float16, tg.bfloat16, tg.float32], ids=str)
def test_results_beyond_the_range_are_infinite_without_a_warning(dtype: Any) -> None:
    """Sums are wider than their dtype inside a kernel; NumPy warns when such a number narrows."""
    largest = float(np.finfo(np.float16).max) if dtype is tg.float16 else 3e38
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = tg.full((3,), largest, dtype=dtype, requires_grad=True)
        for result in (x.sum(), x.sum(0, keepdim=True), (x * 2).prod(), x @ x, x * x, x + x):
            assert bool(result.isinf().all())
            result.sum().backward()


@pytest.mark.parametrize(("dtype", "expected"), [
    (tg.float16, [700.0, 500.0, 449.75, 3.0, 400.0, 1417.0]),
    (tg.bfloat16, [700.0, 500.0, 450.0, 3.0, 400.0, 1416.0]),
], ids=str)  # fmt: skip
def test_norms_of_halves_do_not_overflow(dtype: Any, expected: list[float]) -> None:
    # figures of PyTorch 2.13
    x = tg.tensor([300.0, 400.0, 0.1]).half().to(dtype).requires_grad_()
    norms = [x.norm(p) for p in (1, 2, 3, 0, float("inf"), 0.5)]
    assert [n.item() for n in norms] == expected and norms[0].dtype is dtype
    norms[1].backward()
    np.testing.assert_allclose(x.grad.float().numpy(), [0.6, 0.8, 2e-4], rtol=8e-3)  # 1 ulp
