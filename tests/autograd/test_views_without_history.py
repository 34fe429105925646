"""Views made while nothing is recorded: they require grad as their base does, and lead nowhere.

PyTorch's `requires_grad` of a view is true where that of its base is; but a view made under
`no_grad()` has no node, and no place where a gradient could arrive, until `requires_grad_()` makes
it a leaf of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tracegrad as tg

VIEWS: dict[str, Callable[[Any], Any]] = {
    "x[0]": lambda x: x[0], "x[:1]": lambda x: x[:1], "x[...]": lambda x: x[...],
    "t": lambda x: x.t(), "T": lambda x: x.T, "transpose": lambda x: x.transpose(0, 1),
    "permute": lambda x: x.permute(1, 0), "movedim": lambda x: x.movedim(0, 1),
    "view": lambda x: x.view(-1), "reshape": lambda x: x.reshape(-1),
    "flatten": lambda x: x.flatten(), "view_as": lambda x: x.view_as(x),
    "unsqueeze": lambda x: x.unsqueeze(0), "squeeze": lambda x: x.squeeze(),
    "expand": lambda x: x[None].expand(2, 2, 3), "narrow": lambda x: x.narrow(0, 0, 1),
    "select": lambda x: x.select(0, 0), "diagonal": lambda x: x.diagonal(),
    "unfold": lambda x: x.unfold(0, 1, 1), "unbind": lambda x: x.unbind()[0],
    "split": lambda x: x.split(1)[0], "chunk": lambda x: x.chunk(2)[0],
    "iteration": lambda x: next(iter(x)), "twice": lambda x: x[0][0],
}  # fmt: skip
MODES = [tg.no_grad, tg.inference_mode]
modes = pytest.mark.parametrize("mode", MODES, ids=["no_grad", "inference_mode"])
sources = pytest.mark.parametrize("leaf", [True, False], ids=["of a leaf", "of a result"])
NO_HISTORY = "element 0 of tensors does not require grad and does not have a grad_fn"


def source(leaf: bool) -> Any:
    x = tg.ones(2, 3, requires_grad=True)
    return x if leaf else x * 1


@sources
@modes
@pytest.mark.parametrize("name", VIEWS)
def test_a_view_requires_grad_as_its_base_does_and_leads_nowhere(
    name: str, mode: Any, leaf: bool
) -> None:
    """PyTorch: `requires_grad` is True, `grad_fn` None; nodes made of it have an edge to nowhere."""
    x = source(leaf)
    with mode():
        view = VIEWS[name](x)
    assert view.requires_grad and view.is_leaf and view.grad_fn is None and view._base is x
    y = view * 2
    assert y.requires_grad and y.grad_fn.next_functions == ((None, 0), (None, 0))
    y.sum().backward()
    assert view.grad is None
    assert tg.autograd.grad((view * 2).sum(), view, allow_unused=True) == (None,)
    with pytest.raises(RuntimeError, match=f"^{NO_HISTORY}$"):
        view.backward(tg.ones(view.shape))


@sources
@modes
def test_a_view_of_such_a_view_has_a_node_that_leads_nowhere(mode: Any, leaf: bool) -> None:
    """A recorded view has a node, as other operations do."""
    x = source(leaf)
    with mode():
        view = x[0]
    inner = view[0]
    assert not inner.is_leaf and inner.grad_fn.next_functions == ((None, 0),)
    inner.backward()
    assert view.grad is None
    with pytest.raises(RuntimeError, match="is being modified inplace"):
        view.mul_(2)


@sources
@modes
def test_requires_grad_makes_it_a_leaf_of_its_own(mode: Any, leaf: bool) -> None:
    """From then on gradients arrive, and hooks registered before are called; it stays so."""
    x = source(leaf)
    with mode():
        view = x[0]
    seen: list[Any] = []
    view.register_hook(lambda g: seen.append(g.tolist()))
    before = view * 2
    view.requires_grad_()
    before.sum().backward()
    assert view.grad is None and not seen
    (view * 2).sum().backward()
    assert view.grad.tolist() == [2.0] * 3 and seen == [[2.0] * 3]
    view.requires_grad_(False)
    assert view.requires_grad
    (view * 2).sum().backward()
    assert view.grad.tolist() == [2.0] * 3


def test_there_is_no_gradient_edge_of_it() -> None:
    """PyTorch's words."""
    x = source(True)
    with tg.no_grad():
        view = x[0]
    with pytest.raises(AssertionError, match="^Expected gradient function to be set$"):
        tg.autograd.graph.get_gradient_edge(view)


@modes
def test_numpy_refuses_tensors_that_require_grad_under_grad_mode_only(mode: Any) -> None:
    """`Tensor.numpy()` and `np.asarray` look at the grad mode first."""
    x = source(True)
    y = x * 2
    with mode():
        assert x.numpy().shape == (2, 3) and x[0].numpy().tolist() == [1.0] * 3
        assert np.asarray(y)[0].tolist() == [2.0] * 3
    for tensor in (x, y):
        with pytest.raises(RuntimeError, match="Can't call numpy.. on Tensor that requires grad"):
            tensor.numpy()


def test_views_in_the_forward_of_a_function() -> None:
    """Grad mode is off in `forward`: values may be read, and views lead nowhere."""
    seen: list[Any] = []

    class Read(tg.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            row = x[0]
            with tg.enable_grad():
                made = row * 2
            seen.extend([row.requires_grad, row.is_leaf, made.grad_fn.next_functions[0][0]])
            return tg.from_numpy(x.numpy() * x[0].numpy())

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            return grad

    x = source(True)
    Read.apply(x).sum().backward()
    assert seen == [True, True, None]
    assert x.grad.tolist() == [[1.0] * 3] * 2


@pytest.mark.filterwarnings("ignore::tracegrad.EagerWarning")
@pytest.mark.parametrize("given", ["argument", "captured", "made inside"])
def test_compiled_functions_treat_them_as_eager_mode_does(given: str) -> None:
    """A result requires grad, and no gradient arrives, however often the function has run."""
    x = source(True)
    with tg.no_grad():
        outside = x[0]

    def inside() -> Any:
        with tg.no_grad():
            return x[0]

    f = tg.compile(
        {"argument": lambda v: v * 2, "captured": lambda v: outside * 2 + 0 * v.detach(),
         "made inside": lambda v: inside() * 2 + 0 * v.detach()}[given]
    )  # fmt: skip
    for _ in range(4):
        y = f(outside)
        assert y.requires_grad
        y.sum().backward()
        assert outside.grad is None and x.grad is None
