"""`gradcheck` and `gradgradcheck`: what they accept, what they find, with PyTorch's messages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tracegrad as tg
from tracegrad.autograd import Function, gradcheck, gradgradcheck
from tracegrad.autograd.gradcheck import GradcheckError


def point(*shape: int) -> Any:
    data = np.random.default_rng(0).uniform(0.5, 1.5, shape)
    return tg.from_numpy(np.asarray(data)).requires_grad_()


def wrong(backward: Any, forward: Any = lambda ctx, x: x * 2) -> Any:
    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type("Wrong", (Function,), members).apply


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("mode", [lambda f: f, tg.compile], ids=["eager", "compiled"])
def test_right_gradients_pass(fast: bool, mode: Any) -> None:
    for f, shapes in (
        (lambda x, y: tg.sin(x) @ y, [(2, 3), (3, 2)]),
        (lambda x: (x.sum(), tg.exp(x) * x, x > 1), [(3,)]),
        (lambda x: x.prod(), [(4,)]),
        (lambda x: x * 2, [()]),
    ):
        inputs = [point(*s) for s in shapes]
        g = mode(f)
        assert gradcheck(g, inputs, fast_mode=fast, check_batched_grad=True)
        assert gradgradcheck(g, inputs, fast_mode=fast)


@pytest.mark.parametrize("fast", [False, True])
def test_a_wrong_gradient_is_shown(fast: bool) -> None:
    f = wrong(lambda ctx, g: g * 3)
    x = tg.ones(2, dtype=tg.float64, requires_grad=True)
    with pytest.raises(
        GradcheckError, match="^Jacobian mismatch for output 0 with respect to input 0,\nnumerical:"
    ) as error:
        gradcheck(f, (x,), fast_mode=fast)
    text = str(error.value)
    if fast:
        assert "Below, we recompute numerical and analytical jacobians in slow mode" in text
    assert "tensor([[3., 0.],\n        [0., 3.]], dtype=torch.float64)" in text
    assert gradcheck(f, (x,), fast_mode=fast, raise_exception=False) is False


def test_a_wrong_second_derivative_is_found() -> None:
    class Half(Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.x = x.detach()
            return x**3

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            return grad * 3 * ctx.x**2  # hidden from the tape

    x = point(2)
    assert gradcheck(Half.apply, (x,))
    with pytest.raises(GradcheckError, match="Jacobian mismatch for output 0 with respect to inp"):
        gradgradcheck(Half.apply, (x,))


def test_given_and_strided_cotangents() -> None:
    x = point(3)
    assert gradgradcheck(lambda x: x**3, x, point(3))
    assert gradgradcheck(lambda x: x**3, x, gen_non_contig_grad_outputs=True)


def test_results_without_gradient_must_be_constant() -> None:
    x = point(2)
    assert gradcheck(lambda x: x > 5, (x,))
    with pytest.raises(GradcheckError, match="Numerical gradient for function expected to be zero"):
        gradcheck(lambda x: x.detach() * 2, (x,))


def test_a_backward_that_ignores_its_argument_is_found() -> None:
    f = wrong(lambda ctx, g: tg.full((1,), 2.0, dtype=tg.float64))
    with pytest.raises(GradcheckError, match="backward not multiplied by grad_output"):
        gradcheck(f, (point(1),))


def test_a_backward_that_is_not_deterministic_is_found() -> None:
    calls: list[int] = []
    f = wrong(lambda ctx, g: calls.append(1) or g * (2 + 1e-9 * len(calls)))
    with pytest.raises(GradcheckError, match="Backward is not reentrant, i.e., running backward"):
        gradcheck(f, (point(2),))
    assert gradcheck(f, (point(2),), nondet_tol=1e-6)


def test_a_backward_that_cannot_do_without_a_cotangent_is_found() -> None:
    def forward(ctx: Any, x: Any) -> Any:
        ctx.set_materialize_grads(False)
        return x * 2, x * 3

    f = wrong(lambda ctx, a, b: a * 2 + b * 3, forward)
    # each Jacobian is taken with one cotangent missing
    with pytest.raises(TypeError):
        gradcheck(f, (point(2),))
    g = wrong(lambda ctx, a, b: (0 if a is None else a * 2) + (0 if b is None else b * 3), forward)
    assert gradcheck(g, (point(2),))


def test_inputs_are_checked() -> None:
    with pytest.raises(ValueError, match="^gradcheck expects at least one input tensor to require"):
        gradcheck(tg.sin, tg.ones(2))
    with pytest.raises(RuntimeError, match="^The 0th input has a dimension with stride 0"):
        gradcheck(tg.sin, point(1).expand(3))
    with pytest.warns(UserWarning, match="^Input #0 requires gradient and is not a double"):
        gradcheck(tg.sin, tg.ones(2, requires_grad=True), atol=0.1)
    with pytest.raises(AssertionError, match="Expected at least one of check_forward_ad or"):
        gradcheck(tg.sin, point(2), check_backward_ad=False)
    with pytest.raises(AssertionError, match="check_batched_forward_grad=True requires check_forw"):
        gradcheck(tg.sin, point(2), check_batched_forward_grad=True)
    with pytest.raises(
        AssertionError, match="check_undefined_grad=True requires check_rev_over_rev"
    ):
        gradgradcheck(tg.sin, point(2), check_fwd_over_rev=True, check_rev_over_rev=False)
    with pytest.raises(AssertionError, match="Expected at least one of check_fwd_over_rev or"):
        gradgradcheck(tg.sin, point(2), check_rev_over_rev=False)
    with pytest.raises(TypeError, match="its output 0 is a int"):
        gradcheck(lambda x: (3,), point(2))


# ---- forward mode -------------------------------------------------------------------------------


class WrongTangent(tg.autograd.Function):
    """x**2 with a right backward and a jvp that is half too large."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return x**2

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        return g * 2 * ctx.saved_tensors[0]

    @staticmethod
    def jvp(ctx: Any, dx: Any) -> Any:
        return dx * 3 * ctx.saved_tensors[0]


@pytest.mark.parametrize("fast_mode", [False, True])
def test_forward_mode_is_checked(fast_mode: bool) -> None:
    """As torch 2.13: tangents beside differences, alone or with the gradients."""
    options = {"check_forward_ad": True, "fast_mode": fast_mode}

    def two(x: Any, y: Any) -> Any:
        return tg.sin(x) @ y, x * y

    given = (point(3), point(3))
    assert gradcheck(two, given, check_batched_forward_grad=True, **options)
    assert gradcheck(two, given, check_backward_ad=False, **options)
    assert gradgradcheck(tg.sin, point(2), check_fwd_over_rev=True, fast_mode=fast_mode)
    assert gradcheck(WrongTangent.apply, point(2), fast_mode=fast_mode)
    with pytest.raises(GradcheckError, match="^Jacobian computed with forward mode mismatch for "):
        gradcheck(WrongTangent.apply, point(2), **options)
    assert not gradcheck(WrongTangent.apply, point(2), raise_exception=False, **options)


class DoubledInBatches(tg.autograd.Function):
    """x, but for a batch rule that doubles it: a wrong tangent of batches alone."""

    @staticmethod
    def forward(x: Any) -> Any:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        return g

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Any) -> Any:
        return x * 2, in_dims[0]


class Copied(tg.autograd.Function):
    """x, whose tangent goes through `DoubledInBatches`."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        return g

    @staticmethod
    def jvp(ctx: Any, dx: Any) -> Any:
        return DoubledInBatches.apply(dx)


def test_batched_tangents_are_checked() -> None:
    """As torch 2.13: right tangents, of which those of a batch are wrong."""
    options = {"check_forward_ad": True, "check_backward_ad": False}
    assert gradcheck(Copied.apply, point(2), **options)
    with pytest.raises(GradcheckError, match="batched gradient computation with forward-mode AD"):
        gradcheck(Copied.apply, point(2), check_batched_forward_grad=True, **options)


def cubes(x: Any) -> Any:
    """The Jacobian of x**3 by a batch of cotangents."""
    seeds = tg.eye(2, dtype=tg.float64)
    return tg.autograd.grad(x**3, x, seeds, is_grads_batched=True, create_graph=True)[0]


def test_batched_gradients_inside_functional() -> None:
    """As torch 2.13: row i of `cubes(x)` is 3 x_i^2 in place i, which is differentiated again."""
    from tracegrad.autograd import functional

    x = tg.tensor([1.0, 2.0], dtype=tg.float64)
    slopes = np.zeros((2, 2, 2))
    slopes[0, 0, 0], slopes[1, 1, 1] = 6, 12
    for options in ({}, {"vectorize": True}, {"create_graph": True}):
        np.testing.assert_array_equal(functional.jacobian(cubes, x, **options).detach(), slopes)
    for options in ({}, {"vectorize": True}):
        found = functional.hessian(lambda x: (cubes(x) ** 2).sum(), x, **options)
        assert found.tolist() == [[108.0, 0.0], [0.0, 432.0]]
    ones = tg.ones(2, dtype=tg.float64)
    _, found = functional.vjp(cubes, x, tg.ones(2, 2, dtype=tg.float64))
    assert found.tolist() == [6.0, 12.0]
    _, found = functional.jvp(cubes, x, ones)
    assert found.tolist() == [[6.0, 0.0], [0.0, 12.0]]
    for product in (functional.hvp, functional.vhp):
        assert product(lambda x: (cubes(x) ** 2).sum(), x, ones)[1].tolist() == [108.0, 432.0]
