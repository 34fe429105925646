"""tracegrad.func: transforms against closed forms, nested, with pytrees, and what they refuse.

Mirrors torch.func: results nest as outputs and arguments do, transforms compose, and a result is
differentiable exactly with respect to what requires grad outside of the transform.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tracegrad as torch
from tracegrad import func

X, V = np.array([0.3, -1.2, 0.7]), np.array([1.0, -2.0, 0.5])


def double(values: Any, requires_grad: bool = False) -> torch.Tensor:
    return torch.tensor(np.asarray(values).tolist(), dtype=torch.float64,
                        requires_grad=requires_grad)  # fmt: skip


def close(found: torch.Tensor, expected: Any) -> None:
    # a few roundings of float64
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-13, atol=1e-13)


def cubes(x: torch.Tensor) -> torch.Tensor:
    return (x**3).sum()


# ---- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("prepare", [lambda f: f, torch.compile], ids=["eager", "compiled"])
def test_every_transform_of_one_function(prepare: Callable[..., Any]) -> None:
    f, x = prepare(cubes), double(X)
    close(func.grad(f)(x), 3 * X**2)
    gradient, value = func.grad_and_value(f)(x)
    close(gradient, 3 * X**2)
    close(value, (X**3).sum())
    close(func.jacrev(f)(x), 3 * X**2)
    close(func.jacfwd(f)(x), 3 * X**2)
    close(func.hessian(f)(x), np.diag(6 * X))
    close(func.jvp(f, (x,), (double(V),))[1], 3 * X**2 @ V)
    close(func.vjp(f, x)[1](double(2.0))[0], 6 * X**2)
    close(func.linearize(f, x)[1](double(V)), 3 * X**2 @ V)


@pytest.mark.parametrize("matrix", [func.jacrev, func.jacfwd])
def test_transforms_nest_in_any_order(matrix: Callable[..., Any]) -> None:
    x = double(X)
    close(matrix(func.grad(cubes))(x), np.diag(6 * X))
    close(matrix(matrix(lambda x: x**3))(x).sum(), (6 * X).sum())
    close(func.grad(lambda x: matrix(lambda y: y**4)(x).sum())(x), 12 * X**2)
    close(func.jvp(func.grad(cubes), (x,), (double(V),))[1], 6 * X * V)
    close(func.grad(lambda x: func.jvp(cubes, (x,), (double(V),))[1])(x), 6 * X * V)
    close(func.grad(lambda x: func.vjp(torch.sin, x)[1](double(V))[0].sum())(x), -np.sin(X) * V)
    third = func.grad(func.grad(func.grad(lambda x: x**4)))
    close(third(double(2.0)), 48.0)


def test_perturbations_are_not_confused() -> None:
    # Siskind and Pearlmutter, "Nesting forward-mode AD in a functional framework", 2008, §2
    def inner_forward(x: torch.Tensor) -> torch.Tensor:
        return x * func.jvp(lambda y: x + y, (double(1.0),), (double(1.0),))[1]

    def inner_reverse(x: torch.Tensor) -> torch.Tensor:
        return x * func.grad(lambda y: x + y)(double(1.0))

    for f in (inner_forward, inner_reverse):
        close(func.grad(f)(double(3.0)), 1.0)
        close(func.jvp(f, (double(3.0),), (double(1.0),))[1], 1.0)


def test_argnums_and_pytrees() -> None:
    def f(weights: dict[str, Any], x: torch.Tensor) -> torch.Tensor:
        return (weights["a"] * x).sum() + (weights["rest"][0] ** 2).sum()

    weights, x = {"a": double(X), "rest": [double(V)]}, double(X + 1)
    found = func.grad(f)(weights, x)
    close(found["a"], X + 1)
    close(found["rest"][0], 2 * V)
    both = func.grad(f, argnums=(1, 0))(weights, x)
    close(both[0], X)
    close(both[1]["a"], X + 1)
    assert isinstance(func.grad(f, argnums=(-1,))(weights, x), tuple)


@pytest.mark.parametrize("matrix", [func.jacrev, func.jacfwd])
def test_jacobians_nest_as_output_then_as_arguments(matrix: Callable[..., Any]) -> None:
    def f(w: dict[str, torch.Tensor], x: torch.Tensor) -> Any:
        return (w["a"] * x, {"s": x.sum()})

    found = matrix(f, argnums=(0, 1))({"a": double(V)}, double(X))
    close(found[0][0]["a"], np.diag(X))
    close(found[0][1], np.diag(V))
    close(found[1]["s"][0]["a"], np.zeros(3))
    close(found[1]["s"][1], np.ones(3))


def test_vjp_and_jvp_keep_the_structure_of_outputs() -> None:
    def f(x: torch.Tensor, y: torch.Tensor) -> Any:
        return {"p": x * y, "q": (x.sum(),)}

    x, y = double(X), double(V)
    output, vjp_fn = func.vjp(f, x, y)
    close(output["p"], X * V)
    ct = {"p": double(np.ones(3)), "q": (double(2.0),)}
    for _ in range(2):  # the graph is kept
        dx, dy = vjp_fn(ct)
        close(dx, V + 2)
        close(dy, X)
    output, tangent = func.jvp(f, (x, y), (y, x))
    close(tangent["p"], V * V + X * X)
    close(tangent["q"][0], V.sum())


def test_aux_is_returned_and_not_differentiated() -> None:
    def f(x: torch.Tensor) -> Any:
        return cubes(x), {"twice": x * 2, "name": "f"}

    x = double(X)
    gradient, aux = func.grad(f, has_aux=True)(x)
    close(gradient, 3 * X**2)
    assert aux["name"] == "f" and not aux["twice"].requires_grad
    _, (value, _) = func.grad_and_value(f, has_aux=True)(x)
    close(value, (X**3).sum())
    assert len(func.vjp(f, x, has_aux=True)) == 3
    assert len(func.jvp(f, (x,), (x,), has_aux=True)) == 3
    assert func.jacrev(f, has_aux=True)(x)[1]["name"] == "f"
    assert func.jacfwd(f, has_aux=True)(x)[1]["name"] == "f"


# ---- what a result is connected to --------------------------------------------------------------


def test_results_are_plain_where_nothing_outside_requires_grad() -> None:
    x = double(X)
    for found in (func.grad(cubes)(x), func.grad_and_value(cubes)(x)[1], func.vjp(cubes, x)[0],
                  func.jvp(cubes, (x,), (x,))[1], func.hessian(cubes)(x)):  # fmt: skip
        assert not found.requires_grad and found.is_leaf


@pytest.mark.parametrize(
    "derivative",
    [func.grad(cubes), lambda x: func.vjp(cubes, x)[1](double(1.0))[0], func.jacrev(cubes),
     func.jacfwd(cubes), lambda x: func.grad_and_value(cubes)(x)[0]],
)  # fmt: skip
def test_results_are_differentiable_to_inputs_and_captured_tensors(
    derivative: Callable[..., Any],
) -> None:
    x = double(X, requires_grad=True)
    derivative(x).sum().backward()
    close(x.grad, 6 * X)
    w = double(V, requires_grad=True)
    derivative(double(X) * w).sum().backward()
    close(w.grad, 6 * X * X * V)


def test_gradient_flows_to_a_captured_weight() -> None:
    w = double(V, requires_grad=True)
    found = func.grad(lambda x: (w * x**2).sum())(double(X))
    close(found, 2 * V * X)
    found.sum().backward()
    close(w.grad, 2 * X)


def test_no_grad_outside_is_ignored_inside_and_inside_is_respected() -> None:
    x = double(X, requires_grad=True)
    with torch.no_grad():
        found = func.grad(cubes)(x)
    close(found, 3 * X**2)
    assert not found.requires_grad

    def f(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            c = x.sum()
        return (x**2).sum() * c

    close(func.grad(f)(x), 2 * X * X.sum())


def test_unused_argument_has_zero_gradient() -> None:
    close(func.grad(lambda x, y: x.sum(), argnums=1)(double(X), double(V)), np.zeros(3))


# ---- refusals -----------------------------------------------------------------------------------

_GRAD = "grad_and_value(f)(*args): "
_JVP = "jvp(f, primals, tangents): "
REFUSED: list[tuple[Callable[[torch.Tensor], Any], type[Exception], str]] = [
    (lambda x: func.grad(torch.sin)(x), RuntimeError, _GRAD + "Expected f(*args) to return a "
     "scalar Tensor, got tensor with 1 dims. Maybe you wanted to use the vjp or jacrev APIs "
     "instead?"),
    (lambda x: func.grad(lambda x: 1.0)(x), RuntimeError,
     _GRAD + "Expected f(*args) to return a Tensor, got <class 'float'>"),
    (lambda x: func.grad_and_value(cubes, has_aux=True)(x), RuntimeError,
     _GRAD + "output of function f should be a tuple: (output, aux) if has_aux is True"),
    (lambda x: func.grad(cubes)(1.0), ValueError,
     "Thing passed to transform API must be Tensor, got <class 'float'>"),
    (lambda x: func.grad(cubes, argnums=1)(x), RuntimeError,
     "Got argnum=1, but only 1 positional inputs"),
    (lambda x: func.grad(cubes, argnums=())(x), RuntimeError, "argnums must be non-empty"),
    (lambda x: func.grad(cubes, argnums=(0, 0))(x), RuntimeError,
     "argnums elements must be unique, got (0, 0)"),
    (lambda x: func.hessian(cubes, argnums="a")(x), RuntimeError,
     "argnums must be int or Tuple[int, ...], got: <class 'str'>"),
    (lambda x: func.jacrev(lambda x: 1)(x), RuntimeError,
     "vjp(f, *primals): expected f(*primals) to return only tensors, got unsupported type "
     "<class 'int'>"),
    (lambda x: func.jacrev(cubes, chunk_size=0), ValueError,
     "jacrev: `chunk_size` should be greater than 0."),
    (lambda x: func.jacfwd(cubes, randomness="x"), RuntimeError,
     "Only allowed values for randomness are 'error', 'different', or 'same'. Got x"),
    (lambda x: func.vjp(lambda x: None, x), RuntimeError, "vjp(f, *primals): Expected f to be a "
     "function that has non-empty output (got output = [None])"),
    (lambda x: func.vjp(torch.sin, x)[1]((x, x)), RuntimeError,
     "Expected pytree structure of cotangents to be the same as pytree structure of outputs to "
     "the function. cotangents: (*, *), primal output: *"),
    (lambda x: func.vjp(torch.sin, x)[1](x[:2]), RuntimeError,
     "Mismatch in shape: grad_output[0] has a shape of torch.Size([2]) and output[0] has a shape "
     "of torch.Size([3])."),
    (lambda x: func.jvp(torch.sin, x, x), RuntimeError, _JVP + "Expected primals to be a tuple. "
     "E.g. it should be valid to call f(*primals)."),
    (lambda x: func.jvp(torch.sin, (1.0,), (x,)), RuntimeError,
     _JVP + "Expected primals to only contain Tensors, got <class 'float'>"),
    (lambda x: func.jvp(torch.sin, (x,), (x[:2],)), RuntimeError,
     "Trying to set a forward gradient that has a different size than that of the original "
     "Tensor, this is not supported. Tensor is of size [3] while the given forward gradient is of "
     "size [2]."),
    (lambda x: func.jvp(lambda x: double(1.0), (x,), (x,),
                        strict=True), RuntimeError,
     "jvp(f, primals, tangents, strict=True): The output of f is independent of the inputs. This "
     "is not allowed with strict=True."),
    (lambda x: func.linearize(torch.sin, x)[1](x[:2]), RuntimeError,
     "tangent:0 with shape torch.Size([2]) in flattened pytree doesn't match the shape "
     "torch.Size([3]) of the corresponding primal."),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "text"), REFUSED, ids=range(len(REFUSED)))
def test_refusals(call: Callable[[torch.Tensor], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        call(double(X))
    assert torch.is_grad_enabled()


def test_integer_inputs_and_outputs_are_refused() -> None:
    x = torch.tensor([1, 2])
    with pytest.raises(RuntimeError, match="only Tensors of floating point .*dtype can require"):
        func.grad(torch.sum)(x)
    with pytest.raises(ValueError, match="Expected primal to be floating point or complex"):
        func.jvp(torch.sin, (x,), (torch.ones(2),))
    with pytest.raises(RuntimeError, match="All outputs of f must be floating-point or complex"):
        func.vjp(lambda x: x > 0, double(X))


def test_reached_through_the_package_without_another_import() -> None:
    close(torch.func.grad(cubes)(double(X)), 3 * X**2)
