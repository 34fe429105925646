"""Reading and writing by index, against NumPy, with gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tracegrad as tg

SHAPE = (4, 3, 5)
_ = slice(None)
MASK = np.random.default_rng(0).random(SHAPE) < 0.4
INDICES: list[Any] = [
    0, -1, (1, 2), (1, 2, 3), (..., 0), (0, ...), (0, ..., 1), _, (_, _, 2), slice(1, 3),
    slice(None, None, 2), (slice(3, 1), 0), (_, slice(-2, None)), (slice(10), slice(1, 99, 2)),
    None, (None, 0), (0, None, 1), (..., None), (_, None, _, None), True,
    [0, 2], [3, 0, 0], (_, [0, 2]), (..., [4, 1]), ([0, 1], [1, 2]), ([0, 1], _, [1, 2]),
    (_, [0, 1], [1, 2]), (0, _, [1, 2]), ([0, 1], 0), ([[0], [1]], [1, 2]), (None, [1, 2], 0),
    (slice(1, 3), [0, 2], slice(None, None, 2)), ([-1, -4], ..., [0]), np.array([1, 3]),
    np.array([[1, 0], [2, 3]]), MASK, MASK[:, 0, 0], (_, MASK[0, :, 0]), (MASK[:, :, 0], 1),
    (MASK[:, 0, 0], _, [0]), (0, MASK[0]), [], np.zeros((0,), np.int64),
]  # fmt: skip
IDS = [f"array{i.shape}{i.dtype}" if isinstance(i, np.ndarray) else str(i) for i in INDICES]


def for_numpy(index: Any) -> Any:
    """NumPy's own reading: its slot for an int beside arrays is that of a 0-d array."""
    return np.asarray(index, np.int64) if isinstance(index, list) and not index else index


def source() -> np.ndarray:
    return np.random.default_rng(1).standard_normal(SHAPE)


def expected(array: np.ndarray, index: Any) -> np.ndarray:
    """NumPy's result, with integers applied first as views, which is PyTorch's order."""
    if isinstance(index, tuple) and any(isinstance(i, list | np.ndarray) for i in index):
        whole = _without_ellipsis(index, array.ndim)
        axis = 0
        rest = []
        for i in whole:
            if isinstance(i, int) and not isinstance(i, bool):
                array = array.take(i, axis)
                continue
            axis += 1 if not (isinstance(i, np.ndarray) and i.dtype == bool) else i.ndim
            rest.append(i)
            if i is None:
                array = np.expand_dims(array, axis - 1)
                rest[-1] = _
        return array[tuple(rest)]
    return array[for_numpy(index)]


def _without_ellipsis(index: tuple[Any, ...], ndim: int) -> list[Any]:
    used = sum(
        0 if i is None or i is Ellipsis
        else i.ndim if isinstance(i, np.ndarray) and i.dtype == bool else 1
        for i in index
    )  # fmt: skip
    result: list[Any] = []
    for i in index:
        result.extend([_] * (ndim - used) if i is Ellipsis else [i])
    return result


@pytest.mark.parametrize("index", INDICES, ids=IDS)
def test_reading_equals_numpy_and_gradient_counts_the_reads(index: Any) -> None:
    array = source()
    x = tg.tensor(array, requires_grad=True)
    got = x[index]
    want = expected(array, index)
    assert tuple(got.shape) == want.shape
    np.testing.assert_array_equal(got.detach().numpy(), want)
    weight = np.random.default_rng(2).standard_normal(want.shape)
    (got * tg.tensor(weight)).sum().backward()
    positions = expected(np.arange(array.size).reshape(SHAPE), index)
    gradient = np.zeros(array.size)
    np.add.at(gradient, positions.ravel(), weight.ravel())
    np.testing.assert_allclose(x.grad.numpy(), gradient.reshape(SHAPE), rtol=0, atol=1e-15)


@pytest.mark.parametrize("index", INDICES, ids=IDS)
def test_writing_equals_numpy_and_cuts_the_gradient(index: Any) -> None:
    array = source()
    positions = expected(np.arange(array.size).reshape(SHAPE), index)
    if len(np.unique(positions)) != positions.size:
        pytest.skip("repeated positions: which write wins is not NumPy's promise")
    value = np.random.default_rng(3).standard_normal(positions.shape)
    x = tg.tensor(array, requires_grad=True)
    v = tg.tensor(value, requires_grad=True)
    y = x * 1
    y[index] = v
    want = array.copy()
    want.ravel()[positions.ravel()] = value.ravel()
    np.testing.assert_array_equal(y.detach().numpy(), want)
    (y * y).sum().backward()
    kept = np.ones(array.size)
    kept[positions.ravel()] = 0
    np.testing.assert_allclose(x.grad.numpy(), 2 * array * kept.reshape(SHAPE), rtol=1e-14)
    np.testing.assert_allclose(v.grad.numpy(), 2 * value, rtol=1e-14)


def test_last_of_repeated_writes_gets_the_gradient() -> None:
    v = tg.tensor([1.0, 2.0, 3.0], requires_grad=True)
    y = tg.zeros(2)
    y[[0, 1, 0]] = v
    assert y.tolist() == [3.0, 2.0]
    y.sum().backward()
    assert v.grad.tolist() == [0.0, 1.0, 1.0]


def test_index_put_accumulates_repeats() -> None:
    y = tg.zeros(3).index_put_((tg.tensor([0, 0, 2]),), tg.tensor([1.0, 2.0, 4.0]), accumulate=True)
    assert y.tolist() == [3.0, 0.0, 4.0]


def test_scatter_and_gather_undo_each_other() -> None:
    x = tg.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], requires_grad=True)
    order = tg.tensor([[2, 0, 1], [1, 2, 0]])
    back = tg.zeros(2, 3).scatter(1, order, x.gather(1, order))
    assert back.tolist() == x.tolist()
    (back * back).sum().backward()
    assert x.grad.tolist() == (2 * x).tolist()


@pytest.mark.parametrize(
    ("index", "error", "text"),
    [
        (slice(None, None, -1), ValueError, "step must be greater than zero"),
        (4, IndexError, "index 4 is out of bounds for dimension 0 with size 4"),
        ((0, 0, 7), IndexError, "index 7 is out of bounds for dimension 2 with size 5"),
        ((0, 0, 0, 0), IndexError, "too many indices for tensor of dimension 3"),
        ([7], IndexError, "index 7 is out of bounds for dimension 0 with size 4"),
        (1.5, IndexError, "only integers, slices"),
        ((..., ..., 0), IndexError, "Dimension out of range .* but got 4"),
        (np.zeros(3, bool), IndexError, r"The shape of the mask \[3\] at index 0 does not match"),
        (([0, 1], [0, 1, 2]), IndexError, "could not be broadcast together with shapes"),
    ],
)  # fmt: skip
def test_refused_indices(index: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        tg.zeros(SHAPE)[index]


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (tg.ones(2), RuntimeError, r"The expanded size of the tensor \(5\) must match"),
        (tg.ones(2, 3, 5), RuntimeError, r"the number of sizes provided \(2\) must be greater"),
        ("a", TypeError, "can't assign a str to a torch.FloatTensor"),
    ],
)
def test_refused_values(value: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        tg.zeros(SHAPE)[0] = value
