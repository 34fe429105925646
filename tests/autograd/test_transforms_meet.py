"""Transforms and forward mode where they meet other parts: saved-tensor hooks, checkpoints, inference
mode, aliases, copies, writes in place, tensors from outside.

Each case is a place where a tangent, a batch or a history could be lost without a word. torch 2.13
gives the values here, or refuses.
"""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tracegrad as torch
import tracegrad.autograd.forward_ad as fwad
from tracegrad import func
from tracegrad.autograd.graph import saved_tensors_hooks
from tracegrad.utils.checkpoint import checkpoint

X = [1.0, 2.0, 3.0]
DIAGONAL = np.diag([6.0, 12.0, 18.0]).tolist()


def x() -> torch.Tensor:
    return torch.tensor(X)


def cubes(a: torch.Tensor) -> torch.Tensor:
    return (a**3).sum()


def kept_less(a: torch.Tensor) -> Any:
    return checkpoint(cubes, a, use_reentrant=False)


def through_numpy() -> saved_tensors_hooks:
    return saved_tensors_hooks(lambda t: t.detach().numpy().copy(), torch.from_numpy)


HOOKS = [
    lambda: saved_tensors_hooks(lambda t: t.detach(), lambda t: t),
    lambda: saved_tensors_hooks(lambda t: t.clone(), lambda t: t),
]


@pytest.mark.parametrize("hooks", [*HOOKS, through_numpy])
def test_packed_values_keep_their_tangents(hooks: Callable[[], Any]) -> None:
    with fwad.dual_level(), hooks():
        dual = fwad.make_dual(x().requires_grad_(), torch.ones(3))
        for f, want in (((lambda a: a**3), [6.0, 12.0, 18.0]), (torch.exp, np.exp(X))):
            (gradient,) = torch.autograd.grad(f(dual).sum(), dual)
            np.testing.assert_allclose(fwad.unpack_dual(gradient).tangent.numpy(), want, rtol=1e-6)


@pytest.mark.parametrize("hooks", HOOKS)
def test_hessians_under_saved_tensor_hooks(hooks: Callable[[], Any]) -> None:
    with hooks():
        assert func.hessian(cubes)(x()).tolist() == DIAGONAL
        found = func.hessian(lambda a: a.exp().sum())(x())
    np.testing.assert_allclose(found.detach().numpy(), np.diag(np.exp(X)), rtol=1e-6)


def test_forward_over_reverse_through_a_checkpoint() -> None:
    assert func.hessian(kept_less)(x()).tolist() == DIAGONAL
    functional = torch.autograd.functional.hessian
    options = {"vectorize": True, "outer_jacobian_strategy": "forward-mode"}
    assert functional(kept_less, x(), **options).tolist() == DIAGONAL
    slope = func.jvp(func.grad(kept_less), (x(),), (torch.ones(3),))[1]
    assert slope.tolist() == [6.0, 12.0, 18.0]


def test_transforms_inside_inference_mode() -> None:
    with torch.inference_mode():
        made = x()
        assert func.jvp(lambda a: a * a, (made,), (torch.ones(3),))[1].tolist() == [2.0, 4.0, 6.0]
        assert func.hessian(cubes)(made).tolist() == DIAGONAL
        assert func.jacfwd(lambda a: a**2)(made).tolist() == np.diag([2.0, 4.0, 6.0]).tolist()
        rows = func.vmap(func.grad(cubes))(torch.ones(2, 2))
        assert rows.tolist() == [[3.0, 3.0], [3.0, 3.0]]
        assert torch.is_inference_mode_enabled()
        with torch.enable_grad():  # as in PyTorch, nothing is recorded in inference mode
            w = torch.ones(2, requires_grad=True)
            assert not (w * 3).requires_grad


def test_memory_seen_through_detach_stays_that_of_inference_tensors() -> None:
    with torch.inference_mode():
        made = torch.ones(3)
    assert made.detach().is_inference() and made.data.is_inference()
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        torch.ones(3, requires_grad=True) * made.detach()


def by_detach(a: torch.Tensor) -> torch.Tensor:
    y = a.clone()
    y.detach().add_(1)
    return y


def by_view_of_detach(a: torch.Tensor) -> torch.Tensor:
    y = a.clone()
    y.detach()[1:].add_(1)
    y[:1].detach().mul_(5)
    return y


def seen_by_detach(a: torch.Tensor) -> torch.Tensor:
    y = a.clone()
    seen = y.detach()
    y.add_(1)
    return seen


def by_data(a: torch.Tensor) -> torch.Tensor:
    y = a.clone()
    y.data[0] = 9
    return y


@pytest.mark.parametrize("f", [by_detach, by_view_of_detach, seen_by_detach, by_data])
def test_writes_through_aliases_reach_the_whole_batch(f: Callable[..., Any]) -> None:
    rows = torch.arange(6.0).reshape(2, 3)
    assert func.vmap(f)(rows).tolist() == [f(row).tolist() for row in rows]


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, copy.copy, lambda a: pickle.loads(pickle.dumps(a))]
)
def test_copies_that_are_no_operations_are_refused_in_transforms(copied: Any) -> None:
    for transformed in (
        lambda: func.vmap(copied)(torch.ones(2, 3)),
        lambda: func.jvp(lambda a: copied(a) * 2, (x(),), (x(),)),
        lambda: func.grad(lambda a: (copied(a) * 2).sum())(x()),
    ):
        with pytest.raises(NotImplementedError, match="inside a transform .* use clone"):
            transformed()
    outside = x()
    assert func.grad(lambda a: (a * copied(outside)).sum())(x()).tolist() == X


def resized(a: torch.Tensor) -> torch.Tensor:
    y = a.clone()
    y.resize_(2)
    return y * 1


def turned(a: torch.Tensor) -> torch.Tensor:
    y = a.clone()
    y.unsqueeze_(0)
    return y * 1


@pytest.mark.parametrize("f", [resized, turned])
def test_tensors_that_vary_keep_their_shape(f: Callable[..., Any]) -> None:
    with pytest.raises(
        NotImplementedError, match="changes the shape or memory of a tensor that va"
    ):
        func.jvp(f, (x(),), (x(),))
    with pytest.raises(
        NotImplementedError, match="changes the shape or memory of a tensor that va"
    ):
        func.vmap(f)(torch.ones(2, 3))


def test_numpy_inside_jvp_is_refused_and_numbers_are_not() -> None:
    def by_numpy(a: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(a.numpy() * 2) * a

    with pytest.raises(NotImplementedError, match="numpy.* of a tensor that varies inside jvp"):
        func.jvp(by_numpy, (x(),), (x(),))
    found = func.jvp(lambda a: a * a.sum().item(), (x(),), (torch.ones(3),))[1]
    assert found.tolist() == [6.0, 6.0, 6.0]


WRITES: list[Callable[[torch.Tensor, torch.Tensor], Any]] = [
    lambda c, a: c.add_(a.sum()),
    lambda c, a: c.__setitem__(0, a[0]),
    lambda c, a: c[0].add_(a[0]),
    lambda c, a: torch.add(a, 1, out=c),
]


@pytest.mark.parametrize("write", WRITES)
def test_a_refused_write_to_a_tensor_outside_leaves_it_alone(write: Callable[..., Any]) -> None:
    outside = torch.zeros(2)
    with pytest.raises(
        RuntimeError, match=re.escape("vmap: inplace arithmetic(self, *extra_args)")
    ):
        func.vmap(lambda a: write(outside, a))(torch.ones(3, 2))
    assert outside.tolist() == [0.0, 0.0]
    assert outside._version == 0


@pytest.mark.parametrize("f", [cubes, lambda a: a.exp().sum(), lambda a: (a.sin() * a).sum()])
def test_results_have_no_history_of_the_inside(f: Callable[..., Any]) -> None:
    for found in (
        func.hessian(f)(x()),
        func.jacrev(func.grad(f))(x()),
        func.jvp(func.grad(f), (x(),), (x(),))[1],
        func.jvp(lambda a: a * func.grad(f)(a), (x(),), (x(),))[1],
        func.vmap(func.hessian(f))(torch.ones(2, 3)),
    ):
        assert not found.requires_grad
        found.numpy()


def test_the_first_gradient_of_a_leaf_has_the_leafs_layout() -> None:
    """As AccumulateGrad of PyTorch: the strides of a dense leaf, else row by row."""
    leaf = torch.ones(2, 3, requires_grad=True)
    leaf.t().mul(2).sum().backward()
    assert leaf.grad.stride() == (3, 1)
    turned = torch.ones(2, 3).t().requires_grad_()
    (turned.t().contiguous() * 2).sum().backward()
    assert turned.grad.stride() == turned.stride() == (1, 3)
    gaps = torch.ones(4, 6)[::2, ::2].requires_grad_()
    (gaps * 2).sum().backward()
    assert gaps.grad.stride() == (3, 1)


MOVED: list[Callable[[torch.Tensor], torch.Tensor]] = [
    lambda y: y.unsqueeze_(0).transpose(0, 1),
    lambda y: torch.cat([y.unsqueeze_(-1), y], 1),
    lambda y: y.unsqueeze_(0)[0],
    lambda y: y.unsqueeze_(1).t_() * 2,
    lambda y: y.detach().clone().resize_(2) * 2,
]


@pytest.mark.parametrize("f", MOVED)
@pytest.mark.filterwarnings("ignore::tracegrad.tracer.verification.EagerWarning")
def test_compiled_functions_that_move_a_tensor_in_place_run_eagerly(f: Callable[..., Any]) -> None:
    compiled = torch.compile(lambda a: f(a * 1))
    for _ in range(2):
        assert compiled(x()).tolist() == f(x() * 1).tolist()
    assert "_()" in compiled.explain()
