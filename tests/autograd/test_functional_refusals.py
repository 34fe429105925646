"""autograd.functional: every text and class that PyTorch documents for what it refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

import tracegrad as torch
from tracegrad.autograd.functional import hessian, hvp, jacobian, jvp, vhp, vjp

X = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
TWO = torch.tensor([1.0, 2.0], dtype=torch.float64)
ALL = [jacobian, hessian, vjp, jvp, vhp, hvp]
STRICT = " This is not allowed in strict mode."


def refused(error: type[Exception], text: str, call: Callable[..., Any], *args: Any,
            **options: Any) -> None:  # fmt: skip
    """`call` must raise `error` with exactly `text`."""
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        call(*args, **options)


def square(x: torch.Tensor) -> torch.Tensor:
    return x * x


def total(x: torch.Tensor) -> torch.Tensor:
    return (x * x).sum()


@pytest.mark.parametrize("function", ALL)
def test_inputs_must_be_tensors(function: Callable[..., Any]) -> None:
    must = (f"The inputs given to {function.__name__} must be either a Tensor or a tuple of "
            "Tensors but the ")  # fmt: skip
    refused(TypeError, must + "given inputs has type <class 'float'>.", function, total, 1.0)
    refused(TypeError, must + "given inputs has type <class 'list'>.", function, total, [X])
    refused(TypeError, must + "value at index 1 has type <class 'int'>.", function, total, (X, 2))


@pytest.mark.parametrize("function", ALL)
def test_outputs_must_be_tensors(function: Callable[..., Any]) -> None:
    what = "outputs of the user-provided function"
    must = (f"The {what} given to {function.__name__} must be either a Tensor or a tuple of "
            "Tensors but the ")  # fmt: skip
    vector = () if function in (jacobian, hessian) else (X,)
    refused(TypeError, f"{must}given {what} has type <class 'int'>.",
            function, lambda x: 1, X, *vector)  # fmt: skip
    refused(TypeError, f"{must}value at index 1 has type <class 'NoneType'>.",
            function, lambda x: (x, None), X, *vector)  # fmt: skip


@pytest.mark.parametrize("function", ALL)
def test_inputs_must_be_of_floating_dtype(function: Callable[..., Any]) -> None:
    with pytest.raises(RuntimeError, match="only Tensors of floating point .*dtype can require"):
        function(total, torch.tensor([1, 2]))


@pytest.mark.parametrize("function", [vhp, hvp, hessian])
def test_second_derivatives_need_one_output_element(function: Callable[..., Any]) -> None:
    name = function.__name__
    vector = () if function is hessian else (X,)
    refused(RuntimeError, f"The function given to {name} should return a single Tensor",
            function, lambda x: (total(x),), X, *vector)  # fmt: skip
    refused(RuntimeError, f"The Tensor returned by the function given to {name} should contain a "
            "single element", function, square, X, *vector)  # fmt: skip


@pytest.mark.parametrize("function", [vjp, jvp, vhp, hvp])
def test_vector_must_fit(function: Callable[..., Any]) -> None:
    f = total if function in (vhp, hvp) else square
    name = function.__name__
    refused(RuntimeError, "v has invalid size: should be torch.Size([3]) but got torch.Size([2]).",
            function, f, X, TWO)  # fmt: skip
    refused(RuntimeError, "The given v should contain a single Tensor.", function, f, X, (X, X))
    refused(TypeError, f"The v given to {name} must be either a Tensor or a tuple of Tensors but "
            "the given v has type <class 'float'>.", function, f, X, 1.0)  # fmt: skip


def test_vector_must_fit_tuples() -> None:
    def pair(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x * 2, y * 2

    for function in (vjp, jvp):
        refused(RuntimeError, "v is a tuple of invalid length: should be 2 but got 1.",
                function, pair, (X, TWO), X)  # fmt: skip
        refused(RuntimeError, "Entry 1 in v has invalid size: should be torch.Size([2]) but got "
                "torch.Size([3]).", function, pair, (X, TWO), (X, X))  # fmt: skip


@pytest.mark.parametrize("function", [jvp, vhp, hvp])
def test_vector_is_needed_for_several_input_elements(function: Callable[..., Any]) -> None:
    refused(RuntimeError, "The vector v can only be None if the input to the user-provided "
            "function is a single Tensor with a single element.", function, total, X)  # fmt: skip


def test_vector_is_needed_for_several_output_elements() -> None:
    refused(RuntimeError, "The vector v can only be None if the user-provided function returns a "
            "single Tensor with a single element.", vjp, square, X)  # fmt: skip


# ---- strategies ---------------------------------------------------------------------------------


def test_unknown_strategies() -> None:
    text = 'Expected strategy to be either "forward-mode" or "reverse-mode".'
    refused(AssertionError, f'{text} Hint: If your function has more outputs than inputs, '
            '"forward-mode" tends to be more performant. Otherwise, prefer to use "reverse-mode".',
            jacobian, square, X, strategy="forward")  # fmt: skip
    refused(AssertionError, text, hessian, total, X, outer_jacobian_strategy="forward")


def test_forward_mode_goes_with_vectorize_only() -> None:
    here = "torch.autograd.functional.jacobian: "
    either = (' and `strategy="forward-mode"` are not supported together (yet). Please either set '
              '`{}=False` or `strategy="reverse-mode"`.')  # fmt: skip
    refused(NotImplementedError, "Computing Jacobian using forward-AD or forward-over-reverse "
            "Hessian isonly implemented for `vectorize=True`.",
            jacobian, square, X, strategy="forward-mode")  # fmt: skip
    refused(NotImplementedError, f"{here}`create_graph=True`{either.format('create_graph')}",
            jacobian, square, X, create_graph=True, strategy="forward-mode")  # fmt: skip
    refused(RuntimeError, f"{here}`strict=True`{either.format('strict')}",
            jacobian, square, X, strict=True, strategy="forward-mode")  # fmt: skip


@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
def test_a_list_of_inputs_is_refused_by_every_strategy(strategy: str, vectorize: bool) -> None:
    text = ("The inputs given to jacobian must be either a Tensor or a tuple of Tensors but the "
            "given inputs has type <class 'list'>.")  # fmt: skip
    refused(TypeError, text, jacobian, square, [X], strategy=strategy, vectorize=vectorize)


def test_strict_does_not_go_with_vectorize() -> None:
    refused(RuntimeError, "torch.autograd.functional.jacobian: `strict=True` and "
            "`vectorized=True` are not supported together. Please either set `strict=False` or "
            "`vectorize=False`.", jacobian, square, X, strict=True, vectorize=True)  # fmt: skip


# ---- strict mode --------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ALL)
def test_strict_output_without_history(function: Callable[..., Any]) -> None:
    def constant(x: torch.Tensor) -> torch.Tensor:
        return torch.ones(1, dtype=torch.float64)

    one = torch.ones(1, dtype=torch.float64)
    refused(RuntimeError, "Output 0 of the user-provided function does not require gradients. The "
            "outputs must be computed in a differentiable manner from the input when running in "
            "strict mode.", function, constant, one, strict=True)  # fmt: skip


def test_strict_jacobian_of_unused_input() -> None:
    refused(RuntimeError, "Output 0 of the user-provided function is independent of input 1."
            + STRICT, jacobian, lambda x, y: x * 2, (X, TWO), strict=True)  # fmt: skip


def test_strict_jacobian_that_is_constant() -> None:
    text = "The jacobian of the user-provided function is independent of input {}. This is not "
    text += "allowed in strict mode when create_graph=True."
    jacobian(lambda x: x * 2, X, strict=True)
    refused(RuntimeError, text.format(0), jacobian, lambda x: x * 2, X, create_graph=True,
            strict=True)  # fmt: skip
    refused(RuntimeError, text.format(0), vjp, lambda x: x.sum(), X, create_graph=True,
            strict=True)  # fmt: skip
    # PyTorch prints the number of the output here; the input is meant
    refused(RuntimeError, text.format(1), jacobian, lambda x, y: (x * x).sum() + y.sum(), (X, TWO),
            create_graph=True, strict=True)  # fmt: skip


def test_strict_vjp_and_jvp_of_unused_input() -> None:
    text = "The output of the user-provided function is independent of input 1." + STRICT
    for function, v in ((vjp, X), (jvp, (X, TWO))):
        refused(RuntimeError, text, function, lambda x, y: x * x, (X, TWO), v, strict=True)


def test_strict_second_derivatives_of_linear_function() -> None:
    text = (
        "While computing the hessian, found that the jacobian of the user-provided function with "
        "respect to input 0 is independent of the input. This is not allowed in strict mode. You "
        "should ensure that your function is twice differentiable and that the jacobian depends "
        "on the inputs (this would be violated by a linear function for example)."
    )
    for function, v in ((hessian, ()), (vhp, (X,)), (hvp, (X,))):
        refused(RuntimeError, text, function, lambda x: x.sum(), X, *v, strict=True)


def test_strict_hessian_that_is_constant() -> None:
    text = ("The hessian of the user-provided function is independent of input 0. This is not "
            "allowed in strict mode when create_graph=True.")  # fmt: skip
    for function in (vhp, hvp):
        function(total, X, X, strict=True)
        refused(RuntimeError, text, function, total, X, X, create_graph=True, strict=True)


def test_a_refused_call_leaves_modes_and_inputs_as_they_were() -> None:
    x = X.clone().requires_grad_()
    for call in (lambda: vjp(square, x), lambda: jacobian(lambda y: 1, x)):
        with torch.no_grad(), pytest.raises((RuntimeError, TypeError)):
            call()
        assert torch.is_grad_enabled() and x.grad is None and x.requires_grad and x.is_leaf
