"""`graph.allow_mutation_on_saved_tensors`: the backward uses the values as they were saved.

PyTorch: saved tensors are cloned on mutation; backward outside is an AssertionError, nesting a
RuntimeError.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import tracegrad as tg
from tracegrad.autograd.graph import (
    allow_mutation_on_saved_tensors,
    disable_saved_tensors_hooks,
    saved_tensors_hooks,
)
from tracegrad.tracer.storage import before_write

_OUTSIDE = (
    "^Trying to backward outside of the 'allow_mutation_on_saved_tensors' contextin which the "
    "graph was originally recorded.$"
)


def leaf() -> Any:
    return tg.tensor([1.0, 2.0], dtype=tg.float64, requires_grad=True)


WRITES: dict[str, Callable[[Any], Any]] = {
    "directly": lambda b: b.mul_(3.0),
    "recorded": lambda b: b.sin_(),
    "view": lambda b: b[0].zero_(),
    "reshaped": lambda b: b.view(2, 1).exp_(),
    "data": lambda b: b.data.zero_(),
    "detached": lambda b: b.detach().mul_(9.0),
    "item": lambda b: b.__setitem__(0, 5.0),
    "fill": lambda b: b.fill_(3.0),
    "copy": lambda b: b.copy_(b * 7),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_a_write_by_any_alias_leaves_the_gradient_as_it_was(write: Callable[[Any], Any]) -> None:
    a = leaf()
    with allow_mutation_on_saved_tensors():
        b = a.clone()
        loss = (b**2).sum() + (b[1:] ** 3).sum()
        write(b)
        loss.backward()
    assert a.grad.tolist() == [2.0, 4.0 + 12.0]


def test_each_version_that_was_saved_is_kept() -> None:
    """In PyTorch too: squares of b, then of 3b, then of zero."""
    a = leaf()
    with allow_mutation_on_saved_tensors():
        b = a.clone()
        first = (b**2).sum()
        b.mul_(3)
        second = (b**2).sum()
        b.zero_()
        (first + second).backward()
    assert a.grad.tolist() == [2.0 + 18.0, 4.0 + 36.0]


def test_higher_derivatives_and_functions() -> None:
    class Square(tg.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            return 2 * ctx.saved_tensors[0] * grad

    a = leaf()
    with allow_mutation_on_saved_tensors():
        b = a.clone()
        loss = (Square.apply(b) * b).sum()
        b.zero_()
        (g,) = tg.autograd.grad(loss, a, create_graph=True)
        (h,) = tg.autograd.grad(g.sum(), a)
    assert g.tolist() == [3.0, 12.0] and h.tolist() == [6.0, 12.0]


def test_a_gradient_added_to_in_place_is_a_write_too() -> None:
    a, w = leaf(), leaf()
    with allow_mutation_on_saved_tensors():
        a.sum().backward()
        loss = (w * a.grad).sum()
        a.sum().backward()
        loss.backward()
    assert w.grad.tolist() == [1.0, 1.0] and a.grad.tolist() == [2.0, 2.0]


def test_a_leaf_overwritten_without_recording() -> None:
    a = leaf()
    with allow_mutation_on_saved_tensors():
        loss = (a**2).sum()
        with tg.no_grad():
            a.zero_()
        loss.backward()
    assert a.grad.tolist() == [2.0, 4.0]


def test_the_backward_must_run_inside() -> None:
    """Outside, in another block, or after `clear()`; PyTorch raises AssertionError."""
    with allow_mutation_on_saved_tensors() as saved:
        loss = (leaf().clone() ** 2).sum()
        cleared = (leaf().clone() ** 2).sum()
        b = leaf().clone()
        copied = (b**2).sum()
        b.zero_()
        saved.clear()
        for graph in (cleared, copied):
            with pytest.raises(AssertionError, match=_OUTSIDE):
                graph.backward()
    with pytest.raises(AssertionError, match=_OUTSIDE):
        loss.backward()
    with allow_mutation_on_saved_tensors(), pytest.raises(AssertionError, match=_OUTSIDE):
        loss.backward()


def test_blocks_cannot_be_nested_and_the_outer_one_goes_on() -> None:
    a = leaf()
    with allow_mutation_on_saved_tensors():
        b = a.clone()
        loss = (b**2).sum()
        with pytest.raises(
            RuntimeError, match="^allow_mutation_on_saved_tensors contexts cannot be nested$"
        ):
            with allow_mutation_on_saved_tensors():
                pass
        b.zero_()
        loss.backward()
    assert a.grad.tolist() == [2.0, 4.0]


def test_refused_where_saved_tensors_hooks_are_disabled() -> None:
    with disable_saved_tensors_hooks("not here"):
        with pytest.raises(RuntimeError, match="^not here$"):
            with allow_mutation_on_saved_tensors():
                pass
    with allow_mutation_on_saved_tensors():  # nothing was left behind
        pass
    assert not before_write


def test_the_innermost_hooks_count() -> None:
    """Hooks that return the tensor itself see the write, as in PyTorch."""
    a = leaf()
    with allow_mutation_on_saved_tensors():
        b = a.clone()
        with saved_tensors_hooks(lambda t: t.detach(), lambda t: t):
            loss = (b**2).sum()
        b.zero_()
        loss.backward()
    assert a.grad.tolist() == [0.0, 0.0]


def test_a_released_graph_is_not_copied_and_leaves_no_memory() -> None:
    with allow_mutation_on_saved_tensors() as saved:
        b = leaf().clone()
        loss = (b**2).sum()
        loss.backward()
        array = weakref.ref(b._array)
        b.sin_()
        del b, loss
        gc.collect()
        assert array() is None
        assert not saved._sharing and not saved._all
    assert not before_write


def test_an_exception_closes_the_block() -> None:
    with pytest.raises(KeyError, match="mine"):
        with allow_mutation_on_saved_tensors():
            raise KeyError("mine")
    b = leaf().clone()
    loss = (b**2).sum()
    b.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_compiled_function_called_inside_is_right() -> None:
    f = tg.compile(lambda x: (x * x).sum())
    for _ in range(3):
        a = leaf()
        with allow_mutation_on_saved_tensors():
            b = a.clone()
            loss = f(b)
            b.zero_()
            loss.backward()
        assert a.grad.tolist() == [2.0, 4.0]
