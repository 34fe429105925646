"""autograd.functional: products and matrices against closed forms, and their tuple structure.

Mirrors torch.autograd.functional: shapes and nesting of results, dtypes, create_graph, strategies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tracegrad as torch
from tracegrad.autograd.functional import hessian, hvp, jacobian, jvp, vhp, vjp

RNG = np.random.default_rng(7)
A = RNG.normal(size=(3, 2))
FORWARD = {"vectorize": True, "strategy": "forward-mode"}
OUTER_FORWARD = {"vectorize": True, "outer_jacobian_strategy": "forward-mode"}
EXACT: dict[str, float] = {"rtol": 1e-13, "atol": 1e-13}  # a few roundings of float64


def double(values: Any, requires_grad: bool = False) -> torch.Tensor:
    return torch.tensor(np.asarray(values).tolist(), dtype=torch.float64,
                        requires_grad=requires_grad)  # fmt: skip


def close(found: torch.Tensor, expected: Any) -> None:
    np.testing.assert_allclose(found.detach().numpy(), expected, **EXACT)


@pytest.fixture(params=["eager", "compiled"])
def prepare(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Functions are differentiated as they are, and compiled."""
    return torch.compile if request.param == "compiled" else lambda f: f


def mixed(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x.sin() * y.sum(), (x * x).sum() * y


def scalar(x: torch.Tensor) -> torch.Tensor:
    return (x**3).sum() + x[0] * x[1] * x[1]


def scalar_hessian(x: np.ndarray) -> np.ndarray:
    h = np.diag(6 * x)
    h[0, 1] += 2 * x[1]
    h[1, 0] += 2 * x[1]
    h[1, 1] += 2 * x[0]
    return h


X, Y, V = np.array([0.3, -1.2, 0.7]), np.array([1.5, -0.4]), np.array([1.0, -2.0, 0.5])


def mixed_jacobian() -> list[list[np.ndarray]]:
    return [
        [np.diag(np.cos(X)) * Y.sum(), np.outer(np.sin(X), np.ones(2))],
        [np.outer(Y, 2 * X), np.eye(2) * (X * X).sum()],
    ]


@pytest.mark.parametrize("options", [{}, {"vectorize": True}, FORWARD, {"create_graph": True}])
def test_jacobian_nests_outputs_then_inputs(
    prepare: Callable[..., Any], options: dict[str, Any]
) -> None:
    found = jacobian(prepare(mixed), (double(X), double(Y)), **options)
    assert isinstance(found, tuple) and all(isinstance(row, tuple) for row in found)
    for row, expected in zip(found, mixed_jacobian(), strict=True):
        for block, value in zip(row, expected, strict=True):
            assert block.dtype is torch.float64
            close(block, value)


def test_jacobian_structure_follows_what_is_a_tuple() -> None:
    x = double(X)
    assert isinstance(jacobian(lambda x: x * 2, x), torch.Tensor)
    by_input = jacobian(lambda x: x * 2, (x,))
    assert isinstance(by_input, tuple) and isinstance(by_input[0], torch.Tensor)
    by_output = jacobian(lambda x: (x * 2,), x)
    assert isinstance(by_output, tuple) and isinstance(by_output[0], torch.Tensor)
    both = jacobian(lambda x: (x * 2,), (x,))
    assert isinstance(both[0], tuple) and both[0][0].shape == (3, 3)


@pytest.mark.parametrize("options", [{}, FORWARD])
def test_jacobian_shape_is_output_shape_then_input_shape(options: dict[str, Any]) -> None:
    x = double(RNG.normal(size=(4, 2)))
    found = jacobian(lambda x: x @ double(A).T, x, **options)
    assert found.shape == torch.Size([4, 3, 4, 2])
    close(found, np.einsum("ik,ab->aibk", A, np.eye(4)).transpose(0, 1, 2, 3))


@pytest.mark.parametrize("options", [{}, FORWARD])
def test_jacobian_of_independent_output_is_zero(options: dict[str, Any]) -> None:
    found = jacobian(lambda x, y: (x * 2, torch.ones(2)), (double(X), double(Y)), **options)
    close(found[0][1], np.zeros((3, 2)))
    assert found[1][0].shape == (2, 3) and not found[1][0].any()


@pytest.mark.parametrize("options", [{}, FORWARD])
def test_jacobian_of_empty_tensors_is_empty(options: dict[str, Any]) -> None:
    # PyTorch stops at "stack expects a non-empty TensorList"
    assert jacobian(lambda x: x[:0], double(X), **options).shape == (0, 3)
    assert jacobian(lambda x: x.sum() + torch.ones(2), double([]), **options).shape == (2, 0)


def test_jacobian_dtype_is_the_inputs_in_reverse_and_the_outputs_in_forward_mode() -> None:
    x = torch.tensor([1.0, 2.0])
    assert jacobian(lambda x: x.double() * 2, x).dtype is torch.float32
    assert jacobian(lambda x: x.double() * 2, x, **FORWARD).dtype is torch.float64


def test_jacobian_with_create_graph_is_differentiable_to_the_inputs() -> None:
    x = double(X, requires_grad=True)
    jacobian(lambda x: x**3, x, create_graph=True).sum().backward()
    close(x.grad, 6 * X)
    assert not jacobian(lambda x: x**3, x).requires_grad


def test_captured_input_is_told_from_the_argument() -> None:
    # pytorch#32576: x reaches the function as an argument and as a captured tensor
    x = double(X, requires_grad=True)
    close(jacobian(lambda y: y * x, x), np.diag(X))


@pytest.mark.parametrize("options", [{}, OUTER_FORWARD, {"vectorize": True}])
def test_hessian(prepare: Callable[..., Any], options: dict[str, Any]) -> None:
    close(hessian(prepare(scalar), double(X), **options), scalar_hessian(X))


@pytest.mark.parametrize("options", [{}, OUTER_FORWARD])
def test_hessian_of_tuple_is_a_tuple_of_tuples(options: dict[str, Any]) -> None:
    def f(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x * x).sum() * y.sum()

    found = hessian(f, (double(X), double(Y)), **options)
    close(found[0][0], 2 * Y.sum() * np.eye(3))
    close(found[0][1], np.outer(2 * X, np.ones(2)))
    close(found[1][0], np.outer(np.ones(2), 2 * X))
    close(found[1][1], np.zeros((2, 2)))


def test_hessian_with_create_graph_gives_third_derivatives() -> None:
    x = double(X, requires_grad=True)
    hessian(lambda x: (x**4).sum(), x, create_graph=True).sum().backward()
    close(x.grad, 24 * X)


def test_hessian_of_one_element_output_of_any_shape() -> None:
    close(hessian(lambda x: (x**3).sum().reshape(1, 1), double(X)), np.diag(6 * X))


def test_vjp_and_jvp(prepare: Callable[..., Any]) -> None:
    f, inputs = prepare(mixed), (double(X), double(Y))
    j = mixed_jacobian()
    outputs, product = vjp(f, inputs, (double(V), double(Y)))
    close(outputs[0], np.sin(X) * Y.sum())
    close(outputs[1], (X * X).sum() * Y)
    close(product[0], V @ j[0][0] + Y @ j[1][0])
    close(product[1], V @ j[0][1] + Y @ j[1][1])
    outputs, product = jvp(f, inputs, (double(V), double(Y)))
    close(outputs[1], (X * X).sum() * Y)
    close(product[0], j[0][0] @ V + j[0][1] @ Y)
    close(product[1], j[1][0] @ V + j[1][1] @ Y)


@pytest.mark.parametrize("product", [vhp, hvp])
def test_hessian_products(prepare: Callable[..., Any], product: Callable[..., Any]) -> None:
    output, found = product(prepare(scalar), double(X), double(V))
    close(output, (X**3).sum() + X[0] * X[1] ** 2)
    close(found, scalar_hessian(X) @ V)
    assert not output.requires_grad and not found.requires_grad


@pytest.mark.parametrize("product", [vjp, jvp, vhp, hvp])
def test_vector_may_be_left_out_for_one_element(product: Callable[..., Any]) -> None:
    expected = 12.0 if product in (vjp, jvp) else 12.0
    output, found = product(lambda x: x**3, double(2.0))
    assert output.item() == 8.0 and found.item() == expected


@pytest.mark.parametrize(("product", "third"), [(vjp, 6 * X), (vhp, 6 * V), (hvp, 6 * V)])
def test_products_with_create_graph(product: Callable[..., Any], third: np.ndarray) -> None:
    x = double(X, requires_grad=True)
    vector = () if product is vjp else (double(V),)
    _, found = product(lambda x: (x**3).sum(), x, *vector, create_graph=True)
    found.sum().backward()
    close(x.grad, third)


def test_jvp_with_create_graph_reaches_inputs_and_vector() -> None:
    x, v = double(X, requires_grad=True), double(V, requires_grad=True)
    outputs, found = jvp(lambda x: x.sin(), x, v, create_graph=True)
    assert outputs.requires_grad
    found.sum().backward()
    close(x.grad, -np.sin(X) * V)
    close(v.grad, np.cos(X))


def test_identity_and_constant_functions() -> None:
    x, v = double(X), double(V)
    for product in (vjp, jvp):
        close(product(lambda x: x, x, v)[1], V)
        close(product(lambda x: double(Y[0] * np.ones(3)), x, v)[1], np.zeros(3))


def test_derivatives_are_taken_inside_no_grad() -> None:
    with torch.no_grad():
        close(jacobian(lambda x: x * x, double(X)), np.diag(2 * X))
        assert not torch.is_grad_enabled()


def test_inputs_and_their_gradients_are_left_alone() -> None:
    x = double(X, requires_grad=True)
    for f in (lambda: jacobian(scalar, x), lambda: hvp(scalar, x, double(V))):
        f()
        assert x.grad is None and x.is_leaf and x.requires_grad


def test_reached_through_the_package_without_another_import() -> None:
    close(torch.autograd.functional.jacobian(lambda x: x * x, double(X)), np.diag(2 * X))
