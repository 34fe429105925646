"""Derivatives of functions of tensors: Jacobians, Hessians, and their products with vectors.

PyTorch's `torch.autograd.functional`. The matrices are in `tracegrad.autograd.jacobians`; here are
the products. Compiled functions are differentiated as eager ones are. Start reading at `vjp`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tracegrad.autograd import functional_checks as checks
from tracegrad.autograd.jacobians import hessian, jacobian
from tracegrad.ir.errors import GradientError
from tracegrad.tracer.factories import zeros_like
from tracegrad.tracer.grad_mode import enable_grad

__all__ = ["hessian", "hvp", "jacobian", "jvp", "vhp", "vjp"]


def vjp(
    func: Callable[..., Any], inputs: Any, v: Any = None, create_graph: bool = False,
    strict: bool = False,
) -> tuple[Any, Any]:  # fmt: skip
    """A vector times the Jacobian of `func` at `inputs`, v^T J, in one backward pass.

    Args:
        func: takes the inputs, returns a tensor or a tuple of tensors.
        inputs: a tensor, or a tuple of tensors, of floating dtype.
        v: tensors of the shapes of the outputs; may be left out for one output of one element.
        create_graph: make outputs and product differentiable.
        strict: refuse an input that the outputs do not depend on, instead of giving zeros.
    Returns:
        `(outputs, product)`; the product has the shapes and dtypes of the inputs.
    Raises:
        OperandError: inputs, outputs or `v` are not tensors.
        ShapeError: `v` does not have the outputs' shapes.
        GradientError: `v` is needed, or strict mode found an independence.
    Source: torch.autograd.functional.vjp.
    Example:
        >>> import tracegrad as tg
        >>> vjp(lambda x: x * x, tg.tensor([1.0, 2.0]), tg.tensor([1.0, 10.0]))
        (tensor([1., 4.]), tensor([ 2., 40.]))
    """
    with enable_grad():
        in_tuple, given = checks.as_tensors(inputs, "inputs", "vjp")
        at = checks.fresh(given, create_graph)
        out_tuple, outputs = checks.as_tensors(func(*at), checks.OUTPUTS, "vjp")
        if strict:
            checks.require_history(outputs, checks.NO_HISTORY)
        seeds = None
        if v is not None:
            _, vector = checks.as_tensors(v, "v", "vjp")
            checks.check_vector(vector, outputs, out_tuple)
            seeds = checks.fresh(vector, create_graph, requires_grad=False)
        elif len(outputs) != 1 or outputs[0].numel() != 1:
            raise GradientError(
                "The vector v can only be None if the user-provided function returns a single "
                "Tensor with a single element."
            )
        found = checks.gradients(outputs, at, seeds, create_graph)
        product = checks.filled(found, at, strict, create_graph, checks.BACK)
    return (
        checks.finished(outputs, out_tuple, create_graph),
        checks.finished(product, in_tuple, create_graph),
    )


def jvp(
    func: Callable[..., Any], inputs: Any, v: Any = None, create_graph: bool = False,
    strict: bool = False,
) -> tuple[Any, Any]:  # fmt: skip
    """The Jacobian of `func` at `inputs` times a vector, J v.

    The product u^T J is linear in u, and its derivative with respect to u in direction v is J v:
    two backward passes and no forward-mode rule.

    Args:
        func: takes the inputs, returns a tensor or a tuple of tensors.
        inputs: a tensor, or a tuple of tensors, of floating dtype.
        v: tensors of the shapes of the inputs; may be left out for one input of one element.
        create_graph: make outputs and product differentiable.
        strict: refuse outputs that do not depend on the inputs, instead of giving zeros.
    Returns:
        `(outputs, product)`; the product has the shapes and dtypes of the outputs.
    Raises:
        OperandError: inputs, outputs or `v` are not tensors.
        ShapeError: `v` does not have the inputs' shapes.
        GradientError: `v` is needed, or strict mode found an independence.
    Source: torch.autograd.functional.jvp; J. Townsend, "A new trick for calculating Jacobian
        vector products", 2017.
    Example:
        >>> import tracegrad as tg
        >>> jvp(lambda x: (x * x).sum(), tg.tensor([1.0, 2.0]), tg.tensor([1.0, 10.0]))
        (tensor(5.), tensor(42.))
    """
    with enable_grad():
        in_tuple, given = checks.as_tensors(inputs, "inputs", "jvp")
        at = checks.fresh(given, create_graph)
        vector = checks.input_vector(v, at, in_tuple, "jvp", create_graph)
        out_tuple, outputs = checks.as_tensors(func(*at), checks.OUTPUTS, "jvp")
        if strict:
            checks.require_history(outputs, checks.NO_HISTORY)
        seeds = tuple(zeros_like(x, requires_grad=True) for x in outputs)
        reverse = checks.gradients(outputs, at, seeds, create_graph=True)
        if strict:
            checks.require_history(reverse, checks.CONSTANT_GRADIENT)
        found = checks.gradients(reverse, seeds, vector, create_graph)
        product = checks.filled(found, outputs, strict, create_graph, checks.BACK_TRICK)
    return (
        checks.finished(outputs, out_tuple, create_graph),
        checks.finished(product, out_tuple, create_graph),
    )


def vhp(
    func: Callable[..., Any], inputs: Any, v: Any = None, create_graph: bool = False,
    strict: bool = False,
) -> tuple[Any, Any]:  # fmt: skip
    """A vector times the Hessian of `func` at `inputs`, v^T H; cheaper than `hvp`.

    Args:
        func: takes the inputs, returns one tensor of one element.
        inputs: a tensor, or a tuple of tensors, of floating dtype.
        v: tensors of the shapes of the inputs; may be left out for one input of one element.
        create_graph: make output and product differentiable.
        strict: refuse independence of the inputs, instead of giving zeros.
    Returns:
        `(output, product)`; the product has the shapes and dtypes of the inputs.
    Raises:
        OperandError: inputs, output or `v` are not tensors.
        ShapeError: `v` does not have the inputs' shapes.
        GradientError: the output is not a single element, `v` is needed, or strict mode found an
            independence.
    Source: torch.autograd.functional.vhp.
    Example:
        >>> import tracegrad as tg
        >>> vhp(lambda x: (x**3).sum(), tg.tensor([1.0, 2.0]), tg.tensor([1.0, 10.0]))
        (tensor(9.), tensor([  6., 120.]))
    """
    with enable_grad():
        in_tuple, given = checks.as_tensors(inputs, "inputs", "vhp")
        at = checks.fresh(given, create_graph)
        vector = checks.input_vector(v, at, in_tuple, "vhp", create_graph)
        output = checks.single_output(func(*at), "vhp", strict)
        first = checks.gradients((output,), at, create_graph=True)
        if strict:
            checks.require_history(first, checks.CONSTANT_JACOBIAN)
        found = checks.gradients(first, at, vector, create_graph)
        product = checks.filled(found, at, strict, create_graph, checks.DOUBLE_BACK)
    return (
        checks.finished((output,), False, create_graph),
        checks.finished(product, in_tuple, create_graph),
    )


def hvp(
    func: Callable[..., Any], inputs: Any, v: Any = None, create_graph: bool = False,
    strict: bool = False,
) -> tuple[Any, Any]:  # fmt: skip
    """The Hessian of `func` at `inputs` times a vector, H v; equals `vhp` where H is symmetric.

    It takes three backward passes. `vhp` takes two, and is the same where `func` is twice
    continuously differentiable.

    Args:
        func: takes the inputs, returns one tensor of one element.
        inputs: a tensor, or a tuple of tensors, of floating dtype.
        v: tensors of the shapes of the inputs; may be left out for one input of one element.
        create_graph: make output and product differentiable.
        strict: refuse independence of the inputs, instead of giving zeros.
    Returns:
        `(output, product)`; the product has the shapes and dtypes of the inputs.
    Raises:
        OperandError, ShapeError, GradientError: as `vhp`.
    Source: torch.autograd.functional.hvp.
    Example:
        >>> import tracegrad as tg
        >>> hvp(lambda x: (x**3).sum(), tg.tensor([1.0, 2.0]), tg.tensor([1.0, 10.0]))
        (tensor(9.), tensor([  6., 120.]))
    """
    with enable_grad():
        in_tuple, given = checks.as_tensors(inputs, "inputs", "hvp")
        at = checks.fresh(given, create_graph)
        vector = checks.input_vector(v, at, in_tuple, "hvp", create_graph)
        output = checks.single_output(func(*at), "hvp", strict)
        first = checks.gradients((output,), at, create_graph=True)
        if strict:
            checks.require_history(first, checks.CONSTANT_JACOBIAN)
        seeds = tuple(zeros_like(x, requires_grad=True) for x in at)
        reverse = checks.gradients(first, at, seeds, create_graph=True)
        found = checks.gradients(reverse, seeds, vector, create_graph)
        product = checks.filled(found, at, strict, create_graph, checks.DOUBLE_BACK_TRICK)
    return (
        checks.finished((output,), False, create_graph),
        checks.finished(product, in_tuple, create_graph),
    )
