"""Views: what they share with their base, their nodes, and which of them may be written to."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

import tracegrad as tg

VIEWS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "select": (lambda b: b[0], "SelectBackward0"),
    "slice": (lambda b: b[:, 1:], "SliceBackward0"),
    "all": (lambda b: b[:], "SliceBackward0"),
    "ellipsis": (lambda b: b[...], "AliasBackward0"),
    "new axis": (lambda b: b[None], "UnsqueezeBackward0"),
    "view": (lambda b: b.view(4, 3), "ViewBackward0"),
    "reshape": (lambda b: b.reshape(-1), "ViewBackward0"),
    "view_as": (lambda b: b.view_as(tg.zeros(2, 6)), "ViewBackward0"),
    "t": (lambda b: b.t(), "TBackward0"),
    "T": (lambda b: b.T, "PermuteBackward0"),
    "mT": (lambda b: b.mT, "TransposeBackward0"),
    "H": (lambda b: b.H, "TransposeBackward0"),
    "transpose": (lambda b: b.transpose(0, 1), "TransposeBackward0"),
    "permute": (lambda b: b.permute(1, 0), "PermuteBackward0"),
    "movedim": (lambda b: b.movedim(0, 1), "PermuteBackward0"),
    "swapaxes": (lambda b: b.swapaxes(0, 1), "TransposeBackward0"),
    "expand": (lambda b: b.expand(2, 3, 4), "ExpandBackward0"),
    "narrow": (lambda b: b.narrow(1, 1, 2), "SliceBackward0"),
    "squeeze": (lambda b: b[:1].squeeze(0), "SqueezeBackward1"),
    "unsqueeze": (lambda b: b.unsqueeze(1), "UnsqueezeBackward0"),
    "diagonal": (lambda b: b.diagonal(1), "DiagonalBackward0"),
    "unfold": (lambda b: b.unfold(1, 2, 2), "UnfoldBackward0"),
    "tensor_split": (lambda b: b.tensor_split(2)[1], "SliceBackward0"),
    "split": (lambda b: b.split(2)[1], "SplitBackward0"),
    "split_with_sizes": (lambda b: b.split([1, 2])[1], "SplitWithSizesBackward0"),
    "chunk": (lambda b: b.chunk(2, 1)[0], "SplitBackward0"),
    "unbind": (lambda b: b.unbind(1)[2], "UnbindBackward0"),
}
SEVERAL = ("split", "split_with_sizes", "chunk", "unbind")


def leaf() -> Any:
    return tg.arange(12, dtype=tg.float64).reshape(3, 4).clone().requires_grad_()


@pytest.mark.parametrize("name", VIEWS)
def test_view_shares_memory_version_and_base(name: str) -> None:
    base = leaf() * 1
    view, node = VIEWS[name][0](base), VIEWS[name][1]
    assert view._is_view() and view._base is base and not view.is_leaf
    assert view.grad_fn.name() == node
    inner = view[..., 0] if view.ndim > 1 else view[:1]
    assert inner._base is base  # always the outermost one
    with tg.no_grad():
        base.add_(1)
    assert view._version == inner._version == base._version == 1
    assert view.detach().sum().item() == VIEWS[name][0](base.detach()).sum().item()


@pytest.mark.parametrize("name", [n for n in VIEWS if n not in (*SEVERAL, "expand")])
def test_gradients_of_writes_through_a_view(name: str) -> None:
    make = VIEWS[name][0]
    x = leaf()
    base = x * 1
    early, view = base[1], make(base)
    view.mul_(3)
    late = make(base)
    assert (
        base.grad_fn.name() == "torch::autograd::CopySlices"
        and view.grad_fn.name() == "AsStridedBackward0"
    )
    (base.sum() + 10 * early.sum() + 100 * view.sum() + 1000 * late.sum()).backward()
    region = tg.zeros(3, 4, dtype=tg.float64)
    make(region).fill_(1)
    row = tg.zeros(3, 4, dtype=tg.float64)
    row[1] = 1
    want = (1 + 2 * region) * (1 + 10 * row + 1100 * region)
    assert x.grad.tolist() == want.tolist()


def test_split_is_one_node_with_an_output_per_part() -> None:
    x = leaf()
    parts = (x * 1).split(1)
    assert len({id(p.grad_fn) for p in parts}) == 1
    assert [p.output_nr for p in parts] == [0, 1, 2]
    (parts[0].sum() + (parts[2] * 2).sum()).backward()  # the part in between gets zeros
    assert x.grad.tolist() == [[1.0] * 4, [0.0] * 4, [2.0] * 4]
    rows = list(leaf() * 1)
    assert rows[1].grad_fn.name() == "UnbindBackward0"


_SEVERAL = (
    " This view is the output of a function that returns multiple views. Such functions do not "
    "allow the output views to be modified inplace. You should replace the inplace operation by an "
    "out-of-place one."
)
_MODE = (
    " Given that this use case is ambiguous and error-prone, it is forbidden. You can clarify your "
    "code by moving both the view and the inplace either both inside the {} block (if you don't "
    "want the inplace to be tracked) or both outside (if you want the inplace to be tracked)."
)


@pytest.mark.parametrize("name", SEVERAL)
def test_one_of_several_views_is_not_written_to(name: str) -> None:
    base = leaf() * 1
    view = VIEWS[name][0](base)
    node, number = view.grad_fn.name(), view.output_nr
    text = f"Output {number} of {node} is a view and is being modified inplace.{_SEVERAL}"
    with pytest.raises(RuntimeError, match=f"^{re.escape(text)}$"):
        view.mul_(2)
    inner = view[:1]
    text = f"Output 0 of SliceBackward0 is a view and is being modified inplace.{_SEVERAL}"
    with pytest.raises(RuntimeError, match=f"^{re.escape(text)}$"):
        inner.mul_(2)
    assert base._version == 0
    base.mul_(2)
    text = (
        f"Output {number} of {node} is a view and its base or another view of its base has been "
        f"modified inplace.{_SEVERAL}"
    )
    for use in (lambda: view.grad_fn, lambda: view + 1):
        with pytest.raises(RuntimeError, match=f"^{re.escape(text)}$"):
            use()
    assert view.requires_grad


def test_several_views_of_a_constant_are_written_to_freely() -> None:
    x = tg.ones(2, 3)
    first, _ = x.unbind()
    first.mul_(2)
    assert x.tolist() == [[2.0] * 3, [1.0] * 3]
    text = "A view was created in no_grad mode and is being modified inplace with grad mode enabled"
    with pytest.raises(RuntimeError, match=text + re.escape("." + _SEVERAL)):
        first.mul_(tg.ones(3, requires_grad=True))
    assert first._version == 1


@pytest.mark.parametrize(
    ("mode", "made", "when", "block"),
    [(tg.no_grad, "no_grad mode", " with grad mode enabled", "no_grad"),
     (tg.inference_mode, "inference mode", " in normal mode", "inference_mode")],
)  # fmt: skip
def test_views_made_in_another_mode(mode: Any, made: str, when: str, block: str) -> None:
    base = leaf() * 1
    with mode():
        view = base[0]
        view.mul_(2)  # there it is fine
    assert view.requires_grad and view._base is base and base._version == 1
    rest = _MODE.format(block)
    text = f"A view was created in {made} and is being modified inplace{when}.{rest}"
    with pytest.raises(RuntimeError, match=f"^{re.escape(text)}$"):
        view.add_(1)
    text = (
        f"A view was created in {made} and its base or another view of its base has been modified "
        f"inplace{when}.{rest}"
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(text)}$"):
        view * 2
    assert base._version == 1


def test_no_gradient_arrives_at_a_view_made_under_no_grad() -> None:
    x = leaf()
    with tg.no_grad():
        view = x[0]
    assert view.requires_grad and view.is_leaf and view._base is x
    (view * 2).sum().backward()
    assert view.grad is None and x.grad is None


def test_view_of_a_detached_tensor_has_it_as_base() -> None:
    x = leaf()
    y = x * 1
    detached = y.detach()
    assert not detached._is_view() and detached._base is None
    view = detached[0]
    view.mul_(x[0])
    assert view._base is detached
    assert (
        detached.grad_fn.name() == "torch::autograd::CopySlices"
        and y.grad_fn.name() == "MulBackward0"
    )
    assert y._version == 1


def test_base_detached_after_a_write_leaves_the_views_right() -> None:
    x = leaf()
    y = x * 1
    view = y.reshape(-1)
    view.mul_(5)
    y.detach_()
    view.sum().backward()
    assert x.grad.tolist() == [[5.0] * 4] * 3


def test_moves_in_place_keep_the_history_of_views_that_were_made_before() -> None:
    x = leaf()
    y = x * 1
    view = y[0]
    y.t_().unsqueeze_(0)
    assert y.shape == (1, 4, 3) and y._version == 2 and not y._is_view()
    view.mul_(3)
    assert y[0, :, 0].tolist() == [0.0, 3.0, 6.0, 9.0]
    (y.sum() + view.sum()).backward()
    assert x.grad.tolist() == [[6.0] * 4, [1.0] * 4, [1.0] * 4]


def test_view_moved_in_place_stays_a_view() -> None:
    x = leaf()
    y = x * 1
    part, other = y[0:1], y[:, 2:]
    part.t_()
    assert part.shape == (4, 1) and part._base is y and part.grad_fn.name() == "TBackward1"
    part.mul_(2)
    other.mul_(10)
    assert y[0].tolist() == [0.0, 2.0, 40.0, 60.0]
    y.sum().backward()
    assert x.grad.tolist() == [[2.0, 2.0, 20.0, 20.0]] + [[1.0, 1.0, 10.0, 10.0]] * 2


def test_moves_in_place_on_leaves() -> None:
    x = leaf()
    text = "a leaf Variable that requires grad is being used in an in-place operation."
    with pytest.raises(RuntimeError, match=f"^{re.escape(text)}$"):
        x.t_()
    with tg.no_grad():
        x.t_()
    assert x.shape == (4, 3) and x.is_leaf
    (x * 2).sum().backward()
    assert x.grad.shape == (4, 3)


@pytest.mark.parametrize(
    ("act", "error", "text"),
    [
        (lambda x: x.split(-1), RuntimeError, "split expects split_size be non-negative, but got "
         "split_size=-1"),
        (lambda x: x.split(0), RuntimeError, "split_size can only be 0 if dimension size is 0, but "
         "got dimension size of 3"),
        (lambda x: x.split([4, -1]), RuntimeError, "split_with_sizes expects split_sizes have only "
         "non-negative entries, but got split_sizes=[4, -1]"),
        (lambda x: x.split(1.5), TypeError, "split_with_sizes(): argument 'split_sizes' (position "
         "2) must be tuple of ints, not float"),
        (lambda x: x.sum().split(1), RuntimeError, "split expects at least a 1-dimensional tensor"),
        (lambda x: x.chunk("a"), TypeError, "chunk(): argument 'chunks' (position 1) must be int, "
         "not str"),
        (lambda x: x.diagonal(0, 1, 1), RuntimeError, "diagonal dimensions cannot be identical 1, 1"),
        (lambda x: x.unfold(0, 4, 1), RuntimeError, "maximum size for tensor at dimension 0 is 3 "
         "but size is 4"),
        (lambda x: x.unfold(0, 1, 0), RuntimeError, "step is 0 but must be > 0"),
        (lambda x: x.unsqueeze(0).H, RuntimeError, "tensor.H is only supported on matrices (2-D "
         "tensors). Got 3-D tensor. For batches of matrices, consider using tensor.mH"),
        (lambda x: x.view_as(3), TypeError, "view_as(): argument 'other' (position 1) must be "
         "Tensor, not int"),
        (lambda x: x.expand(-1, 3, 4), RuntimeError, "The expanded size of the tensor (-1) isn't "
         "allowed in a leading, non-existing dimension 0"),
        (lambda x: x.unsqueeze(0).t_(), RuntimeError, "t_() expects a tensor with <= 2 dimensions, "
         "but self is 3D"),
        (lambda x: x.detach().transpose_(0, "a"), TypeError, "transpose_(): argument 'dim1' "
         "(position 2) must be int, not str"),
        (lambda x: x.resize_(2), RuntimeError, "cannot resize variables that require grad"),
        (lambda x: x.detach().resize_(5, 5), RuntimeError, "cannot make room for 25 elements"),
        (lambda x: x.detach().set_(tg.ones(2)), RuntimeError, "Could not set tensor of type"),
        (lambda x: x[0].detach_(), RuntimeError, "Can't detach views in-place."),
        (lambda x: setattr(x, "data", tg.ones(2, dtype=tg.int64)), RuntimeError, "data set to a "
         "tensor that requires gradients must be floating point or complex dtype"),
        (lambda x: setattr(x, "data", 3), TypeError, "Variable data has to be a tensor, but got int"),
        (lambda x: x.requires_grad_("a"), TypeError, "requires_grad_(): argument 'requires_grad' "
         "(position 1) must be bool, not str"),
        (lambda x: setattr(x, "requires_grad", 1), RuntimeError, "requires_grad must be a bool"),
    ],
)  # fmt: skip
def test_refusals(act: Any, error: type[Exception], text: str) -> None:
    x = leaf()
    values = x.tolist()
    with pytest.raises(error, match=re.escape(text)):
        act(x)
    assert x._version == 0 and x.is_leaf and x.requires_grad and x.tolist() == values


def test_resize_and_set() -> None:
    x = tg.arange(6)
    assert x.resize_(2, 2).tolist() == [[0, 1], [2, 3]] and x._version == 1
    empty = tg.empty(0)
    assert empty.resize_(3).shape == (3,)
    y = tg.ones(2)
    z = tg.zeros(1).set_(y)
    y.add_(1)
    assert z.tolist() == [2.0, 2.0] and z._version == 1
