"""Result dtypes and refusals of dtypes that PyTorch has no kernel for: as torch 2.13."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import tracegrad as tg

B = tg.tensor([[True, False], [True, True]])
C = tg.tensor([[False, False], [True, False]])

KERNELS: list[tuple[Callable[[], Any], str, str]] = [
    (lambda: tg.addcmul(B, C, C), "addcmul_cpu_out", "Bool"),
    (lambda: B.clone().addcmul_(C, C, value=2), "addcmul_cpu_out", "Bool"),
    (lambda: B.clamp(True), "clamp_min_scalar_cpu", "Bool"),
    (lambda: B.clamp(max=True), "clamp_max_scalar_cpu", "Bool"),
    (lambda: B.clip(False, True), "clamp_scalar_cpu", "Bool"),
    (lambda: B.clamp(C, C), "clamp_cpu", "Bool"),
    (lambda: B.clamp_min(True), "clamp_min_scalar_cpu", "Bool"),
    (lambda: tg.cumsum(B, 0, dtype=tg.bool), "cumsum_out_cpu", "Bool"),
    (lambda: tg.cumprod(tg.ones(2), 0, dtype=tg.bool), "cumprod_out_cpu", "Bool"),
    (lambda: True**B, "pow", "Bool"),
    (lambda: B**C, "pow", "Bool"),
    (lambda: tg.nn.functional.max_pool1d(tg.arange(4)[None], 2), "max_pool1d_impl", "Long"),
    (lambda: tg.nn.functional.avg_pool1d(tg.arange(4)[None].int(), 2), "avg_pool2d", "Int"),
]


@pytest.mark.parametrize(("call", "kernel", "dtype"), KERNELS)
def test_dtypes_without_a_kernel_are_refused(
    call: Callable[[], Any], kernel: str, dtype: str
) -> None:
    for _ in range(2):  # composites learn at the first call
        with pytest.raises(NotImplementedError) as error:
            call()
        assert str(error.value).startswith(f"\"{kernel}\" not implemented for '{dtype}'")


@pytest.mark.parametrize("dtype", [tg.uint8, tg.int8, tg.int32, tg.int64, tg.float64], ids=str)
@pytest.mark.parametrize("name", ["sum", "prod", "cumsum", "cumprod"])
def test_sums_and_products_have_the_dtype_asked_for(name: str, dtype: Any) -> None:
    x = tg.tensor([100, 2, 3, 1])
    found = getattr(tg, name)(x, 0, dtype=dtype)
    assert found.dtype is dtype
    wide = getattr(tg, name)(x, 0)
    assert wide.dtype is tg.int64
    assert found.tolist() == wide.to(dtype).tolist()


def test_sums_of_bools_and_bytes() -> None:
    assert tg.sum(B, dtype=tg.bool).dtype is tg.bool
    assert tg.sum(B, 0, dtype=tg.bool).tolist() == [True, True]
    assert tg.prod(B, 0, dtype=tg.bool).tolist() == [True, False]
    assert tg.sum(tg.tensor([200, 100]), dtype=tg.uint8).item() == 44


def test_bools_to_the_power_of_a_bool() -> None:
    x = B.clone()
    x **= True
    for power, want in ((B**True, B), (tg.pow(B, False), B | True), (x, B)):
        assert power.dtype is tg.bool
        assert power.tolist() == want.tolist()


def test_the_mean_of_windows_of_int64_is_int64() -> None:
    found = tg.nn.functional.avg_pool1d(tg.tensor([[1, 2, -1, -2]]), 2)
    assert found.dtype is tg.int64
    assert found.tolist() == [[1, -1]]


def test_losses_of_bools_and_floats() -> None:
    """As torch 2.13: the bools count as 0 and 1."""
    x = tg.tensor([0.5, 2.0])
    for pair in ((x, tg.tensor([True, False])), (tg.tensor([True, False]), x)):
        assert tg.nn.functional.mse_loss(*pair).item() == 2.125


def test_chunks_of_nothing_are_as_many_as_asked_for() -> None:
    """As torch 2.13."""
    assert [c.shape for c in tg.zeros(0, 3).chunk(2)] == [(0, 3), (0, 3)]
    assert [c.shape for c in tg.zeros(5).chunk(3)] == [(2,), (2,), (1,)]


def test_bytes_as_a_condition_are_taken_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="where received a uint8 condition tensor"):
        found = tg.where(tg.tensor([1, 0], dtype=tg.uint8), 1.0, 2.0)
    assert found.tolist() == [1.0, 2.0]


def test_numbers_are_gathered_and_scattered_as_vectors_of_one() -> None:
    x, at = tg.tensor(3.0, requires_grad=True), tg.tensor(0)
    y = tg.scatter(x, 0, at, tg.tensor(2.0))
    assert (y.item(), y.shape) == (2.0, ())
    assert tg.scatter(x, 0, tg.tensor([0]), 5).item() == 5.0
    assert tg.scatter_add(tg.tensor([1.0, 2.0]), 0, tg.tensor(1), tg.tensor(5.0)).tolist() == [1, 7]
    g = tg.gather(x, 0, at)
    assert g.shape == ()
    g.backward()
    assert x.grad is not None and x.grad.item() == 1.0
    assert tg.gather(tg.tensor([1.0, 2.0]), 0, tg.tensor(1)).item() == 2.0
    with pytest.raises(RuntimeError, match="index 1 is out of bounds for dimension 0 with size 1"):
        tg.gather(x, 0, tg.tensor(1))


def test_a_warning_about_a_property_is_given_once_per_process() -> None:
    x = tg.ones(2, 2, 2)
    with pytest.warns(UserWarning, match="The use of `x.T` on tensors of dimension other than 2"):
        x.T  # noqa: B018
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert x.T.shape == (2, 2, 2)


@pytest.mark.parametrize("outputs", ["a", ["a"], [1]])
def test_what_is_differentiated_must_be_tensors(outputs: Any) -> None:
    x = tg.ones(1, requires_grad=True)
    with pytest.raises(AssertionError, match="^Expected output to be a torch.Tensor$"):
        tg.autograd.grad(outputs, x)
    with pytest.raises(AssertionError, match="^Expected output to be a torch.Tensor$"):
        tg.autograd.backward(outputs)
