"""`compile(debug=True)` on the CPU: the first operation that makes a NaN is named."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tracegrad as tg
from tracegrad.ir.errors import NaNError
from tracegrad.runtime.debugging import in_memory

FILE = Path(__file__).name
NAN = float("nan")


def scores(x: Any, w: Any) -> Any:
    y = x * 2
    z = y.log()
    return (z @ w).exp().sum()


LINE = scores.__code__.co_firstlineno + 2


def good() -> tuple[Any, Any]:
    tg.manual_seed(0)
    return tg.rand(4, 8) + 0.1, tg.randn(8, 5)


def with_element(x: Any, value: float) -> Any:
    made = x.clone()
    made[2, 3] = value
    return made


def test_numbers_are_computed_as_ever() -> None:
    x, w = good()
    f = tg.compile(scores, debug=True)
    for _ in range(3):
        assert float(f(x, w)) == pytest.approx(float(scores(x, w)), rel=1e-5)
    assert f.cache_info()[:2] == (2, 1)  # calls that capture wait


def test_a_replay_names_the_operation_its_line_and_the_element() -> None:
    x, w = good()
    f = tg.compile(scores, debug=True)
    f(x, w)
    with pytest.raises(FloatingPointError) as caught:
        f(with_element(x, -1.0), w)
    assert isinstance(caught.value, NaNError)
    assert str(caught.value).splitlines() == [
        f"scores: log makes NaN of operands without NaN at {FILE}:{LINE}: z = y.log()",
        "element [2, 3] of shape [4, 8] is NaN, 1 of 32 elements are",
    ]
    assert float(f(x, w)) == pytest.approx(float(scores(x, w)), rel=1e-5)


def test_the_call_that_captures_is_looked_at() -> None:
    x, w = good()
    with pytest.raises(NaNError, match=f"log makes NaN .* at {FILE}:{LINE}"):
        tg.compile(scores, debug=True)(with_element(x, -1.0), w)


def test_what_lies_otherwise_in_memory_is_looked_at() -> None:
    x, w = good()
    f = tg.compile(scores, debug=True)
    turned = x.t().contiguous().t()
    f(turned, w)
    bad = with_element(x, -1.0).t().contiguous().t()
    with pytest.raises(NaNError, match=r"element \[2, 3\] of shape \[4, 8\]"):
        f(bad, w)


def test_nan_that_was_given_or_written_down_is_no_fault() -> None:
    x, w = good()
    f = tg.compile(scores, debug=True)
    f(x, w)
    assert tg.isnan(f(with_element(x, NAN), w))
    g = tg.compile(lambda x: x * NAN, debug=True)
    assert all(tg.isnan(g(tg.ones(3))).all() for _ in range(2))
    h = tg.compile(lambda x: x + tg.full((3,), NAN), debug=True)
    assert all(tg.isnan(h(tg.ones(3))).all() for _ in range(2))


def test_infinite_numbers_are_no_fault_until_they_meet() -> None:
    f = tg.compile(lambda x: 1 / x, debug=True)
    g = tg.compile(lambda x: 1 / x - 2 / x, debug=True)
    for h in (f, g):
        h(tg.ones(3))
    assert f(tg.zeros(3)).tolist() == [float("inf")] * 3
    with pytest.raises(NaNError, match="sub makes NaN"):
        g(tg.zeros(3))


def test_a_backward_is_looked_at() -> None:
    f = tg.compile(lambda x: (x.sqrt() * 0).sum(), debug=True)
    f(tg.ones(3, requires_grad=True)).backward()
    with pytest.raises(NaNError, match=rf"_backward: \w+ makes NaN .* at {FILE}"):
        f(tg.tensor([1.0, 0.0, 4.0], requires_grad=True)).backward()


def test_without_debug_nothing_is_said() -> None:
    x, w = good()
    f = tg.compile(scores, wait=True)
    f(x, w)
    assert tg.isnan(f(with_element(x, -1.0), w))


def test_copies_look_too() -> None:
    x, w = good()
    for made in (copy.copy, copy.deepcopy, lambda f: pickle.loads(pickle.dumps(f))):
        f = made(tg.compile(scores, debug=True))
        f(x, w)
        with pytest.raises(NaNError):
            f(with_element(x, -1.0), w)
    f = tg.compile(debug=True)(scores)
    with pytest.raises(NaNError):
        f(with_element(x, -1.0), w)


@pytest.mark.parametrize("view", [
    lambda a: a, lambda a: a.T, lambda a: a[::-1, 1:], lambda a: a[:, ::-2], lambda a: a[:0],
    lambda a: np.broadcast_to(a[0], (3, 6)), lambda a: a[2, 3],
])  # fmt: skip
def test_inputs_are_read_where_they_lie(view: Any) -> None:
    from tracegrad.ir import dtypes
    from tracegrad.ir.graph import GraphBuilder
    from tracegrad.ir.types import TensorType

    array = np.asarray(view(np.arange(24.0).reshape(4, 6)))
    value = GraphBuilder("f").input(TensorType(array.shape, dtypes.float64))
    strides = tuple(s // 8 for s in array.strides)
    found = in_memory(value, array.ctypes.data, strides)
    np.testing.assert_array_equal(found, array)
