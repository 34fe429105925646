"""Reverse mode: `grad`, `grad_and_value` and `vjp`. Start reading at `grad`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from tracegrad.autograd.functional_checks import gradients
from tracegrad.func.levels import (
    Chosen,
    Level,
    differentiating,
    flat_outputs,
    printed,
    recording_gradients,
    with_aux,
)  # fmt: skip
from tracegrad.ir.errors import GradientError
from tracegrad.tracer.factories import zeros_like
from tracegrad.tracer.pytree import flatten
from tracegrad.tracer.state import state
from tracegrad.tracer.tensor import Tensor

_GRAD = "grad_and_value(f)(*args)"
_VJP = "vjp(f, *primals)"


def grad(func: Callable[..., Any], argnums: Any = 0, has_aux: bool = False) -> Callable[..., Any]:
    """A function that computes the gradient of `func` with respect to chosen arguments.

    Args:
        func: returns a 0-d tensor of floating dtype (with `has_aux`, a pair of it and anything).
        argnums: number of the argument, or a tuple of numbers; chosen arguments are tensors of
            floating dtype, or nested tuples, lists and dicts of them.
        has_aux: return `(gradient, aux)`.
    Returns:
        A function of the same arguments; a gradient has the structure, shapes and dtypes of the
        arguments chosen. It is differentiable with respect to whatever requires grad outside.
    Raises:
        GradientError, ParameterError: (at a call) `argnums` or the output does not fit; `func`
            writes in place to a tensor that is neither made inside nor among the arguments.
    Source: torch.func.grad.
    Example:
        >>> import tracegrad as tg
        >>> grad(grad(lambda x: x**3))(tg.tensor(2.0))
        tensor(12.)
    """
    both = grad_and_value(func, argnums, has_aux)

    @functools.wraps(func, updated=())
    def gradient(*args: Any, **kwargs: Any) -> Any:
        found, value = both(*args, **kwargs)
        return (found, value[1]) if has_aux else found

    return gradient


def grad_and_value(
    func: Callable[..., Any], argnums: Any = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """As `grad`; the function made returns `(gradient, value)`, or `(gradient, (value, aux))`.

    Raises:
        GradientError, ParameterError: (at a call) as `grad`.
    Source: torch.func.grad_and_value.
    Example:
        >>> import tracegrad as tg
        >>> grad_and_value(lambda x: x**3)(tg.tensor(2.0))
        (tensor(12.), tensor(8.))
    """

    @functools.wraps(func, updated=())
    def both(*args: Any, **kwargs: Any) -> Any:
        level = Level()
        with recording_gradients():
            chosen = Chosen(args, argnums)
            at = level.enter(chosen.leaves)
            with differentiating(at, (args, kwargs)):
                result = func(*chosen.replaced(at), **kwargs)
            output, aux = with_aux(result, has_aux, _GRAD)
            _check_scalar(output)
            others: list[Any] = []
            flatten(aux, others)
            create_graph = level.reaches_outside([output, *others])
            found = gradients((output,), at, create_graph=create_graph)
            filled = [zeros_like(x) if g is None else g for x, g in zip(at, found, strict=True)]
            gradient = level.leave(chosen.structure.build(iter(filled)))
            value = level.leave(output)
        return (gradient, (value, level.leave(aux))) if has_aux else (gradient, value)

    return both


def _check_scalar(output: Any) -> None:
    if not isinstance(output, Tensor):
        raise GradientError(f"{_GRAD}: Expected f(*args) to return a Tensor, got {type(output)}")
    if output.ndim != 0:
        raise GradientError(
            f"{_GRAD}: Expected f(*args) to return a scalar Tensor, got tensor with {output.ndim} "
            "dims. Maybe you wanted to use the vjp or jacrev APIs instead?"
        )


def need_floating_outputs(outputs: Sequence[Tensor]) -> None:
    """Refuse to differentiate integers."""
    for x in outputs:
        if not x.dtype.is_floating_point:
            raise GradientError(
                "vjp(f, ...): All outputs of f must be floating-point or complex Tensors, got "
                f"Tensor with dtype {x.dtype}"
            )


def vjp(func: Callable[..., Any], *primals: Any, has_aux: bool = False) -> Any:
    """The output of `func` at `primals`, and a function that multiplies vectors by the Jacobian.

    Args:
        func: returns tensors of floating dtype, nested as it likes.
        primals: tensors of floating dtype, nested alike.
        has_aux: `func` returns `(output, aux)`.
    Returns:
        `(output, vjp_fn)`, with `has_aux` also aux. `vjp_fn(cotangents)` takes the structure of
        the output and returns a tuple of cotangents of the primals.
    Raises:
        GradientError: an output is no tensor of floating dtype; `vjp_fn`'s argument has another
            structure than the output; `func` writes to a tensor from outside, as for `grad`.
        ShapeError: a cotangent has another shape than its output.
        ParameterError: a primal is not a tensor.
    Source: torch.func.vjp.
    Example:
        >>> import tracegrad as tg
        >>> output, vjp_fn = vjp(lambda x: x * x, tg.tensor([1.0, 2.0]))
        >>> vjp_fn(tg.tensor([1.0, 10.0]))
        (tensor([ 2., 40.]),)
    """
    level = Level()
    with recording_gradients():
        given: list[Any] = []
        structure = flatten(primals, given)
        at = level.enter(given)
        with differentiating(at):
            result = func(*structure.build(iter(at)))
        output, aux = with_aux(result, has_aux, _VJP)
        outputs, out_structure = flat_outputs(output, _VJP)
        need_floating_outputs(outputs)
    level.finish()

    def vjp_fn(cotangents: Any, retain_graph: bool = True, create_graph: bool | None = None) -> Any:
        cts: list[Any] = []
        if flatten(cotangents, cts) != out_structure:
            raise GradientError(
                "Expected pytree structure of cotangents to be the same as pytree structure of "
                f"outputs to the function. cotangents: {printed(flatten(cotangents, []), len(cts))}"
                f", primal output: {printed(out_structure, len(outputs))}"
            )
        create = create_graph
        if create is None:
            create = state.grad_enabled and level.reaches_outside([*outputs, *cts])
        found = gradients(outputs, at, cts, create, retain_graph)
        filled = [zeros_like(x) if g is None else g for x, g in zip(at, found, strict=True)]
        return level.leave(structure.build(iter(filled)))

    results = (level.leave(output), vjp_fn)
    return (*results, level.leave(aux)) if has_aux else results
