"""In-place operations: versions, views that share history, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tracegrad as tg


def leaf(*values: float) -> tg.Tensor:
    return tg.tensor(list(values), dtype=tg.float64, requires_grad=True)


def gradient(function: Any, *values: float) -> list[float]:
    x = leaf(*values)
    function(x).backward()
    return x.grad.tolist()


def numeric(function: Any, *values: float) -> list[float]:
    """Central differences of a function of a vector."""
    step, result = 1e-6, []
    for i in range(len(values)):
        ends = []
        for sign in (1, -1):
            moved = list(values)
            moved[i] += sign * step
            ends.append(function(leaf(*moved)).item())
        result.append((ends[0] - ends[1]) / (2 * step))
    return result


def write_part(x: tg.Tensor) -> tg.Tensor:
    y = x * 1
    y[0] = 5.0
    y[1:] *= y[2] + x[0]
    return (y * x).sum()


def write_through_reshaped_view(x: tg.Tensor) -> tg.Tensor:
    y = x * 2
    y.view(3, 1).mul_(x.reshape(3, 1))
    return (y * y).sum()


def fill_rows(x: tg.Tensor) -> tg.Tensor:
    y = tg.zeros(2, 3, dtype=tg.float64)
    y[0] = x
    y[1] = x * x
    return y.T[1:].pow(2).sum()


def repeated_in_place(x: tg.Tensor) -> tg.Tensor:
    y = x.clone()
    y.pow_(3)
    y.sqrt_()
    y += x
    return (y * y).sum()


def write_by_index_arrays(x: tg.Tensor) -> tg.Tensor:
    y = x * 1
    y[[0, 2]] = x[:2] * 3
    y[y > 8] = 0.0
    return (y * y).sum()


def overlapping_views(x: tg.Tensor) -> tg.Tensor:
    b = tg.zeros(3, 3, dtype=tg.float64)
    column, part = b.t()[1], b[:, 0:2]
    column.add_(x)
    part.mul_(3)
    return (b * b).sum() + (column * x).sum()


def write_to_constant(x: tg.Tensor) -> tg.Tensor:
    y = tg.full((3,), 2.0, dtype=tg.float64)
    y *= x
    y.mul_(x)
    return y.sum()


def earlier_view_sees_later_write(x: tg.Tensor) -> tg.Tensor:
    y = x * 1
    head = y[:2]
    y.mul_(x)
    return (head * head).sum()


@pytest.mark.parametrize(
    "function",
    [write_part, write_through_reshaped_view, fill_rows, repeated_in_place, write_by_index_arrays,
     overlapping_views, write_to_constant, earlier_view_sees_later_write],
)  # fmt: skip
def test_gradients_through_in_place_writes(function: Any) -> None:
    values = (2.0, 1.0, 4.0)
    assert gradient(function, *values) == pytest.approx(numeric(function, *values), rel=1e-6)


def test_second_derivative_through_a_written_view() -> None:
    x = leaf(2.0, 3.0)
    y = tg.zeros(2, dtype=tg.float64)
    y[1:] = x[:1] ** 3
    (first,) = tg.autograd.grad((y * x).sum(), x, create_graph=True)
    (second,) = tg.autograd.grad(first.sum(), x)
    # y.x = x0^3 x1: gradient (3 x0^2 x1, x0^3); its sum has gradient (6 x0 x1 + 3 x0^2, 3 x0^2)
    assert second.tolist() == [6 * 2 * 3 + 3 * 4, 3 * 4]


def test_versions_are_shared_by_views_and_detached_tensors() -> None:
    x = tg.zeros(4)
    view, detached, data = x[:2], x.detach(), x.data
    view.add_(1)
    detached[3] = 7.0
    x += 1
    assert x._version == view._version == detached._version == 3
    data.zero_()
    assert x._version == 3 and data._version == 1
    assert x.tolist() == [0.0] * 4
    assert view._base is x and view._is_view() and not detached._is_view()


def test_overwritten_saved_value_is_named_with_the_culprit() -> None:
    a = tg.linspace(0, 1, 25, requires_grad=True)
    b = a.sin()
    c = b.sin()
    b.add_(1)
    text = (
        r"one of the variables needed for gradient computation has been modified by an inplace "
        r"operation: \[torch.FloatTensor \[25\]\], which is output 0 of SinBackward0, is at "
        r"version 1; expected version 0 instead. Hint: enable anomaly detection to find the "
        r"operation that failed to compute its gradient, with "
        r"torch.autograd.set_detect_anomaly\(True\)."
    )
    with pytest.raises(RuntimeError, match=text) as caught:
        c.sum().backward()
    assert "modified by add_ at test_inplace.py:" in str(caught.value)
    assert "b.add_(1)" in str(caught.value)


def test_write_through_a_detached_alias_is_noticed() -> None:
    x = leaf(1.0, 2.0)
    y = x * 2
    z = y * y
    y.detach().zero_()
    with pytest.raises(RuntimeError, match="is at version 1; expected version 0"):
        z.sum().backward()


def test_write_that_kills_nothing_saved_is_fine() -> None:
    x = leaf(1.0, 2.0)
    y = x * 2
    z = y + 1
    y.zero_()
    z.sum().backward()
    assert x.grad.tolist() == [2.0, 2.0]


def test_no_grad_allows_writes_to_leaves_and_bumps() -> None:
    x = leaf(1.0, 2.0)
    with tg.no_grad():
        x -= 0.5
        x[0] = 9.0
        x.mul_(2)
    assert x.tolist() == [18.0, 3.0] and x._version == 3
    assert x.is_leaf and x.requires_grad


def test_plain_arithmetic_writes_into_the_same_memory() -> None:
    x, y = tg.ones(3), tg.ones(3)
    address = x.data_ptr()
    for other in (y, 2, 0.5):
        x.add_(other)
        x /= other
    assert x.data_ptr() == address and x._version == 6


def test_requires_grad_comes_in_with_a_written_value() -> None:
    x = leaf(1.0, 2.0)
    y = tg.zeros(2, 2, dtype=tg.float64)
    row = y[0]
    assert not row.requires_grad
    y[0] = x
    assert y.requires_grad and row.requires_grad
    assert y.grad_fn.name() == "torch::autograd::CopySlices"


def test_copying_a_leaf_sends_the_gradient_to_the_leaf() -> None:
    x = leaf(1.0, 2.0)
    y = tg.zeros(2, dtype=tg.float64).copy_(x)
    assert not y.is_leaf
    (y * y).sum().backward()
    assert x.grad.tolist() == [2.0, 4.0]
    filled = tg.zeros(3, dtype=tg.float64).fill_(x[0])
    filled.sum().backward()
    assert x.grad.tolist() == [5.0, 4.0]


def test_operand_that_is_the_target() -> None:
    x = leaf(1.0, 3.0)
    y = x * 1
    y.mul_(y)
    y += y
    y.sum().backward()
    assert x.grad.tolist() == [4.0, 12.0]


@pytest.mark.parametrize(
    ("act", "error", "text"),
    [
        (lambda x: tg.sin_(x), RuntimeError,
         "^a leaf Variable that requires grad is being used in an in-place operation.$"),
        (lambda x: x[0].sin_(), RuntimeError,
         "^a view of a leaf Variable that requires grad is being used in an in-place operation.$"),
        (lambda x: x.__setitem__(0, 1.0), RuntimeError, "a view of a leaf Variable"),
        (lambda x: x.__setitem__(x > 0, 1.0), RuntimeError, "^a leaf Variable"),
        (lambda x: tg.ones(2, dtype=tg.int64).add_(1.5), RuntimeError,
         "result type Float can't be cast to the desired output type Long"),
        (lambda x: tg.ones(3).expand(2, 3).add_(1), RuntimeError,
         "more than one element of the written-to tensor refers to a single memory location"),
        (lambda x: tg.ones(2).add_(tg.ones(2, 2)), RuntimeError,
         r"output with shape \[2\] doesn't match the broadcast shape \[2, 2\]"),
        (lambda x: (x * 1)[:1].detach_(), RuntimeError, "Can't detach views in-place"),
    ],
)  # fmt: skip
def test_refusals(act: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        act(leaf(1.0, 2.0))


def test_view_made_without_grad_is_not_written_with_grad() -> None:
    y = leaf(1.0, 2.0) * 1
    with tg.no_grad():
        view = y[:1]
    with pytest.raises(RuntimeError, match="A view was created in no_grad mode"):
        view.mul_(2)


def test_failed_write_changes_nothing() -> None:
    x = tg.ones(2)
    with pytest.raises(RuntimeError):
        x.add_(tg.ones(3))
    assert x._version == 0 and x.tolist() == [1.0, 1.0]


def test_views_share_memory_and_copies_do_not() -> None:
    x = tg.arange(24).reshape(2, 3, 4)
    views = [x.T if x.ndim < 3 else x.permute(2, 0, 1), x[0], x[:, 1:, ::2], x.unsqueeze(1),
             x.view(6, 4), x.expand(2, 2, 3, 4), x.select(1, 0), x.flatten(), x[...],
             x[:]]  # fmt: skip
    for view in views:
        assert view._is_view() and np.shares_memory(view._array, x._array)
    copies = [
        x.flip(0),
        x.clone(),
        x[[0, 1]],
        x.permute(2, 0, 1).reshape(-1),
        x + 0,
        x.repeat(1, 1, 1),
    ]
    for copy in copies:
        assert not np.shares_memory(copy._array, x._array)
