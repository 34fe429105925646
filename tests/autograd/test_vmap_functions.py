"""`autograd.Function` under transforms: `vmap`, `generate_vmap_rule`, `jvp`, and all of them nested.

Mirrors torch 2.13. The derivative that the functions here state is not that of their forward, so
that a derivative taken through the forward would be seen.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import tracegrad as torch
from tracegrad.func import grad, jacfwd, jacrev, jvp, vmap

X = np.array([[0.5, -1.0], [2.0, 0.25], [1.5, 3.0]])


def double(values: Any) -> torch.Tensor:
    return torch.tensor(np.asarray(values).tolist(), dtype=torch.float64)


def close(found: torch.Tensor, expected: Any) -> None:
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-12, atol=1e-12)


class Stated(torch.autograd.Function):
    """x**2 whose stated derivative is 3 * x."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x**2

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return g * 3 * ctx.saved_tensors[0]

    @staticmethod
    def jvp(ctx: Any, dx: torch.Tensor) -> torch.Tensor:
        return dx * 3 * ctx.saved_tensors[0]


class ByHand(Stated):
    """The same, for the whole batch in NumPy: it could not be traced."""

    generate_vmap_rule = False
    calls: list[Any] = []

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.asarray(x.detach().numpy() ** 2))

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: torch.Tensor) -> Any:
        ByHand.calls.append((info.batch_size, info.randomness, in_dims))
        return ByHand.apply(x), in_dims[0]


def total(f: Any) -> Any:
    return lambda a: f(a).sum()


@pytest.mark.parametrize("function", [Stated, ByHand])
def test_values_and_stated_derivatives_in_every_nesting(function: Any) -> None:
    x, apply = double(X), function.apply
    close(vmap(apply)(x), X**2)
    close(vmap(vmap(apply))(x), X**2)
    close(grad(total(vmap(apply)))(x), 3 * X)
    close(vmap(grad(total(apply)))(x), 3 * X)
    close(grad(lambda a: grad(total(vmap(apply)))(a).pow(2).sum())(x), 18 * X)
    close(grad(lambda a: vmap(grad(total(apply)))(a).pow(2).sum())(x), 18 * X)
    leaf = x.clone().requires_grad_()
    vmap(apply)(leaf).sum().backward()
    close(leaf.grad, 3 * X)


def test_forward_mode_in_every_nesting() -> None:
    x, apply = double(X), Stated.apply
    close(jvp(apply, (x,), (x,))[1], 3 * X**2)
    close(vmap(lambda a: jvp(apply, (a,), (a,))[1])(x), 3 * X**2)
    close(jvp(lambda a: jvp(apply, (a,), (x,))[1], (x,), (x,))[1], 3 * X**2)
    close(grad(lambda a: jvp(apply, (a,), (x,))[1].sum())(x), 3 * X)
    close(jacfwd(apply)(x[0]), np.diag(3 * X[0]))
    close(jacrev(apply)(x[0]), np.diag(3 * X[0]))


def test_vmap_method_is_told_of_the_batch() -> None:
    ByHand.calls.clear()
    vmap(ByHand.apply, randomness="same")(double(X))
    assert ByHand.calls == [(3, "same", (0,))]
    vmap(lambda a: a + ByHand.apply(double([1.0])))(double(X))  # nothing batched goes in
    assert len(ByHand.calls) == 1


def test_traced_function_saves_tensors_of_the_example_and_attributes() -> None:
    class Kept(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor) -> Any:
            ctx.doubled = x * 2
            ctx.save_for_backward(w)
            assert ctx.needs_input_grad == (True, False)
            return (x * w).sum(), (x > 0)

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor, unused: Any) -> Any:
            (w,) = ctx.saved_tensors
            return g * w * ctx.doubled, None

    w = double([1.0, 10.0])
    leaf = double(X).requires_grad_()
    value, mask = vmap(Kept.apply, in_dims=(0, None))(leaf, w)
    close(value, (X * w.numpy()).sum(1))
    assert mask.tolist() == (X > 0).tolist() and not mask.requires_grad
    (found,) = torch.autograd.grad(value.sum(), leaf)
    close(found, 2 * X * w.numpy())


def with_vmap(result: Any) -> Any:
    class Wrong(Stated):
        generate_vmap_rule = False

        @staticmethod
        def vmap(info: Any, in_dims: Any, x: torch.Tensor) -> Any:
            return result

    return Wrong


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (double(X), "Expected the vmap staticmethod to have two returns"),
        ((double(X), 0, 0), "Expected the vmap staticmethod to have two returns"),
        ((double(X), (0, 0)), "returned an incompatible (output, out_dims) tuple. Expected "
                              "out_dims=(0, 0)"),
    ],
)  # fmt: skip
def test_wrong_results_of_vmap_are_refused(result: Any, text: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(text)):
        vmap(with_vmap(result).apply)(double(X))


def test_neither_and_both_are_refused() -> None:
    class Neither(Stated):
        generate_vmap_rule = False

    class Both(ByHand):
        generate_vmap_rule = True

    with pytest.raises(RuntimeError, match="You tried to vmap over Neither, but it does not have"):
        vmap(Neither.apply)(double(X))
    with pytest.raises(RuntimeError, match="You tried to vmap over Both, but it has both"):
        vmap(Both.apply)(double(X))
    assert torch.is_grad_enabled()
    close(Neither.apply(double(X)), X**2)  # outside of vmap it needs neither
