"""What a function reads of tensors beside their values: seen when it changes, or eager."""

from __future__ import annotations

import math
from typing import Any

import pytest

import tracegrad as tg


def test_replaced_data_of_a_tensor_that_is_only_measured_is_seen() -> None:
    w = tg.ones(2)
    f = tg.compile(lambda x: x * w.shape[0] * len(w) * (1.0 if w.dtype is tg.float32 else 7.0))
    x = tg.ones(2)
    assert f(x).tolist() == f(x).tolist() == [4.0, 4.0]
    w.data = tg.ones(9)
    assert f(x).tolist() == [81.0, 81.0]
    w.data = tg.ones(9, dtype=tg.float64)
    assert f(x).tolist() == [567.0, 567.0]


def test_a_changed_flag_of_a_captured_tensor_is_seen() -> None:
    w = tg.ones(2)
    f = tg.compile(lambda x: x * (9.0 if w.requires_grad else 1.0))
    x = tg.ones(2)
    assert f(x).tolist() == [1.0, 1.0]
    w.requires_grad_()
    assert f(x).tolist() == [9.0, 9.0]


READS: dict[str, Any] = {
    "is_leaf": lambda t: t.is_leaf,
    "grad_fn": lambda t: t.grad_fn is None,
    "retains_grad": lambda t: t.retains_grad,
    "_version": lambda t: t._version,
    "storage_offset": lambda t: t.storage_offset(),
    "data_ptr": lambda t: t.data_ptr(),
    "_is_view": lambda t: t._is_view(),
}


@pytest.mark.parametrize("what", READS)
def test_what_a_key_does_not_hold_keeps_a_function_eager(what: str) -> None:
    read = READS[what]
    f = tg.compile(lambda x: x * float(bool(read(x))))
    with pytest.warns(tg.EagerWarning, match=what):
        f(tg.ones(3))
    assert f.cache_info().traces == 0


def test_a_changed_constant_of_a_library_module_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    f = tg.compile(lambda x: x * math.tau)
    assert f(tg.ones(1)).item() == pytest.approx(math.tau, rel=1e-6)
    monkeypatch.setattr(math, "tau", 2.0)
    assert f(tg.ones(1)).item() == 2.0


def test_positions_made_by_the_library_are_part_of_the_trace() -> None:
    f = tg.compile(lambda x: x.diagonal() * 2)
    x = tg.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert f(x).tolist() == f(x + 1).sub(2).tolist() == [2.0, 8.0]
    g = tg.compile(lambda x, i, s: x.scatter_add(0, i, s))
    given = (tg.ones(3, 2), tg.tensor([[2, 0]]), tg.tensor([[5.0, 7.0]]))
    assert g(*given).tolist() == g(*given).tolist() == [[1.0, 8.0], [1.0, 1.0], [6.0, 1.0]]


@pytest.mark.parametrize("shape", [(1,), (0,), (1, 3), (2, 1)])
def test_product_of_less_than_two_elements_has_a_gradient(shape: tuple[int, ...]) -> None:
    x = tg.full(shape, 3.0, requires_grad=True)
    x.prod(0).sum().backward()
    expected = 3.0 if shape == (2, 1) else 1.0
    assert x.grad is not None
    assert x.grad.tolist() == tg.full(shape, expected).tolist()
