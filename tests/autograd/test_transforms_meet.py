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


CAPTURED = (
    "During a grad (vjp, jvp, grad, etc) transform, the function provided attempted to call "
    "in-place operation (aten::{}) that would mutate a captured Tensor. This is not supported; "
    "please rewrite the function being transformed to explicitly accept the mutated Tensor(s) as "
    "inputs."
)


def under_no_grad(c: torch.Tensor, a: torch.Tensor) -> None:
    with torch.no_grad():
        c.add_(a)


CAPTURED_WRITES: list[tuple[Callable[[torch.Tensor, torch.Tensor], Any], str]] = [
    (lambda c, a: c.add_(a), "add_.Tensor"),
    (lambda c, a: c.mul_(2), "mul_.Tensor"),
    (lambda c, a: c.exp_(), "exp_"),
    (lambda c, a: c.__setitem__(0, a[0]), "copy_"),
    (lambda c, a: c.__setitem__(0, 5.0), "copy_"),
    (lambda c, a: c[0].add_(1), "add_.Tensor"),
    (lambda c, a: c.view(-1).mul_(a), "mul_.Tensor"),
    (lambda c, a: c.detach().add_(1), "add_.Tensor"),
    (lambda c, a: c.data.add_(1), "add_.Tensor"),
    (lambda c, a: c.copy_(a), "copy_"),
    (lambda c, a: c.zero_(), "zero_"),
    (lambda c, a: c.normal_(), "normal_"),
    (lambda c, a: c.addcmul_(a, a), "addcmul_"),
    (lambda c, a: c.index_add_(0, torch.tensor([0]), a[:1]), "index_add_"),
    (lambda c, a: c.unsqueeze_(0), "unsqueeze_"),
    (lambda c, a: c.resize_(2), "resize_"),
    (lambda c, a: c.set_(a.detach()), "set_"),
    (lambda c, a: setattr(c, "data", a.detach()), "set_data"),
    (under_no_grad, "add_.Tensor"),
]
DIFFERENTIATING: list[Callable[..., Any]] = [
    lambda f: func.grad(f)(x()),
    lambda f: func.grad_and_value(f)(x()),
    lambda f: func.vjp(f, x()),
    lambda f: func.jvp(f, (x(),), (torch.ones(3),)),
    lambda f: func.jacrev(f)(x()),
    lambda f: func.jacfwd(f)(x()),
    lambda f: func.hessian(f)(x()),
    lambda f: func.linearize(f, x()),
    lambda f: func.grad(lambda a: func.vmap(lambda r: f(a))(torch.ones(2)).sum())(x()),
    lambda f: func.vmap(func.grad(f))(torch.ones(2, 3)),
]


@pytest.mark.parametrize("transform", DIFFERENTIATING)
@pytest.mark.parametrize(("write", "name"), CAPTURED_WRITES)
def test_a_transform_that_differentiates_writes_to_nothing_outside(
    write: Callable[..., Any], name: str, transform: Callable[..., Any]
) -> None:
    """As torch.func does, but for `linearize`, which there writes several times over."""
    outside = torch.zeros(3)

    def f(a: torch.Tensor) -> torch.Tensor:
        write(outside, a)
        return (a * a).sum()

    with pytest.raises(RuntimeError, match=re.escape(CAPTURED.format(name))):
        transform(f)
    assert outside.tolist() == [0.0, 0.0, 0.0]
    assert outside._version == 0
    outside.add_(1)  # allowed again
    assert outside.tolist() == [1.0, 1.0, 1.0]


def test_the_captured_input_itself_is_refused_and_the_argument_is_not() -> None:
    given = x()
    with pytest.raises(RuntimeError, match="would mutate a captured Tensor"):
        func.jvp(lambda a: (given[0].mul_(2), a * 1)[1], (given,), (torch.ones(3),))
    assert given.tolist() == X
    primal, tangent = func.jvp(lambda a: a.mul_(2), (given,), (torch.ones(3),))
    assert primal.tolist() == given.tolist() == [2.0, 4.0, 6.0]
    assert tangent.tolist() == [2.0, 2.0, 2.0]


INSIDE: list[tuple[Callable[..., Any], list[Any]]] = [
    (lambda: func.grad(lambda a: torch.zeros(3).add_(a).sum())(x()), [1.0, 1.0, 1.0]),
    (lambda: func.grad(lambda a, b: (b.mul_(2), (a * b).sum())[1])(x(), torch.ones(3)), [2.0] * 3),
    (lambda: func.grad(lambda a, b: (b.mul_(2), (a * b).sum())[1])(x(), b=torch.ones(3)), [2.0] * 3),
    (lambda: func.grad(lambda a: ((a * 1).data.mul_(2), a.sum())[1])(x()), [1.0, 1.0, 1.0]),
    (lambda: func.hessian(lambda a: (a * a).mul_(2).sum())(x()), np.diag([4.0] * 3).tolist()),
    (lambda: func.grad(lambda a: func.vjp(lambda b: b * b, a)[0].mul_(2).sum())(x()),
     [4.0, 8.0, 12.0]),
    (lambda: func.grad(lambda a: func.grad(cubes)(a).mul_(2).sum())(x()), [12.0, 24.0, 36.0]),
    (lambda: func.grad(lambda a: func.grad_and_value(cubes)(a)[1].mul_(2))(x()), [6.0, 24.0, 54.0]),
    (lambda: func.grad(lambda a: func.vmap(lambda r: r.mul_(2))(a * 1).sum())(x()), [2.0, 2.0, 2.0]),
    (lambda: func.vmap(func.grad(lambda a: (torch.zeros(3).add_(1) * a * a).sum()))(
        torch.ones(2, 3)), [[2.0] * 3] * 2),
]  # fmt: skip


@pytest.mark.parametrize(("act", "want"), INSIDE)
def test_what_a_transform_made_or_was_given_is_written_to(
    act: Callable[..., Any], want: Any
) -> None:
    assert act().tolist() == want


BATCHED_WRITES: list[Callable[[torch.Tensor, torch.Tensor], Any]] = [
    lambda c, a: c.detach().add_(a),
    lambda c, a: c.data.add_(a),
    lambda c, a: c.detach()[0].add_(a[0]),
    lambda c, a: c.set_(a),
    lambda c, a: setattr(c, "data", a),
]


@pytest.mark.parametrize("write", BATCHED_WRITES)
def test_vmap_writes_no_example_to_memory_outside_by_another_name(
    write: Callable[..., Any],
) -> None:
    outside = torch.zeros(2)
    with pytest.raises(
        RuntimeError, match="vmap: inplace arithmetic.self, .extra_args. is not poss"
    ):
        func.vmap(lambda a: (write(outside, a), a * outside)[1])(torch.ones(3, 2))
    assert outside.tolist() == [0.0, 0.0]
    func.vmap(lambda a: (outside.add_(1), a)[1])(torch.ones(3, 2))  # the same for all: once
    assert outside.tolist() == [1.0, 1.0]


# ---- writes inside of batches -------------------------------------------------------------------


@pytest.mark.parametrize(("name", "slope"), [
    ("sin_", lambda x: (x + 1).cos()), ("mul_", lambda x: 2 * (x + 1)), ("exp_", lambda x: (x + 1).exp()),
    ("div_", lambda x: x * 0),
])  # fmt: skip
def test_a_write_in_a_batch_leaves_what_the_backward_outside_needs(name: str, slope: Any) -> None:
    """The examples do not require grad, the batch does."""

    def f(x: Any) -> Any:
        y = x + 1
        return getattr(y, name)(y) if name in ("mul_", "div_") else getattr(y, name)()

    x = torch.arange(6.0).reshape(2, 3).requires_grad_()
    torch.vmap(f)(x).sum().backward()
    assert torch.allclose(x.grad, slope(x.detach()))
    plain = x.detach()
    assert torch.allclose(torch.func.grad(lambda a: torch.vmap(f)(a).sum())(plain), slope(plain))
    assert torch.allclose(torch.func.jacrev(torch.vmap(f))(plain).sum(dim=(0, 1)), slope(plain))


def test_memory_made_inside_two_batches_may_be_written_to() -> None:
    x = torch.arange(8.0).reshape(2, 2, 2)

    def swapped(v: Any) -> Any:
        y = torch.zeros_like(v)
        y[0] = v[1]
        return y.add_(v)

    for make in (torch.zeros_like, lambda v: v.new_zeros(2), torch.empty_like):
        assert (
            torch.vmap(torch.vmap(lambda v, make=make: make(v).copy_(v)))(x).tolist() == x.tolist()
        )
    want = [[swapped(v).tolist() for v in row] for row in x]
    assert torch.vmap(torch.vmap(swapped))(x).tolist() == want

    def h(v: Any) -> Any:
        y = torch.zeros_like(v)
        y.copy_(v)
        return y.add_(v * v).sum()

    assert torch.vmap(torch.func.hessian(h))(x[0]).tolist() == [[[2.0, 0.0], [0.0, 2.0]]] * 2


def test_a_vjp_from_outside_leaves_no_history_in_a_gradient() -> None:
    x = torch.arange(3.0)
    _, pull = torch.func.vjp(lambda x: x**3, x)
    found = torch.func.grad(lambda v: pull(v)[0].sum())(x)
    assert found.tolist() == [0.0, 3.0, 12.0] and not found.requires_grad and found.grad_fn is None


def test_jacrev_refuses_integers() -> None:
    text = "^vjp\\(f, ...\\): All outputs of f must be floating-point or complex Tensors, got Tensor with dt"
    with pytest.raises(RuntimeError, match=text):
        torch.func.jacrev(lambda x: x.long())(torch.ones(2))


def test_out_dims_are_ints() -> None:
    with pytest.raises(ValueError, match="`out_dims` must be an int, None or a python collection"):
        torch.vmap(lambda x: (x, x), out_dims=(0, "a"))(torch.ones(2))
