"""`backward` and `grad` with the arguments that PyTorch still takes and warns of.

`grad_variables` is an old name of `grad_tensors`; `only_inputs` has no meaning any more. Both are
positional parameters in PyTorch, so the ones after them have the same places here. What computes
is `tracegrad.tracer.engine`. Start reading at `grad`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from tracegrad.ir.errors import GradientError
from tracegrad.ir.location import user_stacklevel
from tracegrad.tracer import engine
from tracegrad.tracer.tensor import Tensor

_RENAMED = "`grad_variables` is deprecated. Use `grad_tensors` instead."
_BOTH = (
    "`grad_tensors` and `grad_variables` (deprecated) arguments both passed to `backward()`. Please "
    "only use `grad_tensors`."
)
_ONLY_INPUTS = (
    "only_inputs argument is deprecated and is ignored now (defaults to True). To accumulate "
    "gradient for other parts of the graph, please use torch.autograd.backward."
)


def backward(
    tensors: Tensor | Sequence[Tensor],
    grad_tensors: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    grad_variables: Any = None,
    inputs: Any = None,
) -> None:
    """Add the gradients of `tensors` to the `.grad` of the leaves that they depend on.

    Args:
        tensors: a tensor, a gradient edge or a sequence of them: floating, with a history.
        grad_tensors: a cotangent per output, of its shape; None where an output has one element.
        retain_graph: keep what the graph saved (default: `create_graph`).
        create_graph: make the gradients differentiable.
        grad_variables: the old name of `grad_tensors`; warns.
        inputs: accumulate into these tensors only: one, a sequence, or a dict of them.
    Raises:
        GradientError: an output has no history, no cotangent, or its graph was freed; inside a
            transform of `func`; both `grad_tensors` and `grad_variables`.
        ShapeError: a cotangent does not have its output's shape.
    Example:
        >>> import tracegrad as tg
        >>> x = tg.tensor([1.0, 2.0], requires_grad=True)
        >>> tg.autograd.backward(x * x, tg.tensor([1.0, 10.0]))
        >>> x.grad
        tensor([ 2., 40.])
    """
    if grad_variables is not None:
        warnings.warn(_RENAMED, FutureWarning, stacklevel=user_stacklevel())
        if grad_tensors is not None:
            raise GradientError(_BOTH)
        grad_tensors = grad_variables
    if isinstance(inputs, dict):
        inputs = tuple(inputs.values())
    engine.backward(tensors, grad_tensors, retain_graph, create_graph, inputs=inputs)


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Any,
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    only_inputs: bool = True,
    allow_unused: bool | None = None,
    is_grads_batched: bool = False,
    materialize_grads: bool = False,
) -> Any:
    """The gradients of `outputs` with respect to `inputs`, leaving `.grad` alone.

    Args:
        outputs: tensors or gradient edges: floating, with a history.
        inputs: tensors or gradient edges that require grad: one, a sequence, or a dict of them.
        grad_outputs: a cotangent per output, of its shape; None where an output has one element.
        retain_graph, create_graph: as for `backward`.
        only_inputs: has no effect; anything but True warns.
        allow_unused: return None for inputs that the outputs do not depend on.
        is_grads_batched: each cotangent has a batch dimension in front, and so have the results.
        materialize_grads: return zeros for those instead.
    Returns:
        A tuple of one tensor per input, of its shape and dtype; for a dict, a dict of its keys.
    Raises:
        GradientError: an input was not used and `allow_unused` is not set; no inputs; and as
            `backward`.
        ShapeError: a cotangent does not have its output's shape.
    Example:
        >>> import tracegrad as tg
        >>> x = tg.tensor([1.0, 2.0], requires_grad=True)
        >>> tg.autograd.grad((x**3).sum(), x)
        (tensor([ 3., 12.]),)
        >>> tg.autograd.grad((x**3).sum(), {"x": x})
        {'x': tensor([ 3., 12.])}
    """
    if not only_inputs:
        warnings.warn(_ONLY_INPUTS, FutureWarning, stacklevel=user_stacklevel())
    places = tuple(inputs.values()) if isinstance(inputs, dict) else inputs
    found = engine.grad(
        outputs, places, grad_outputs, retain_graph, create_graph, allow_unused,
        is_grads_batched, materialize_grads,
    )  # fmt: skip
    return dict(zip(inputs, found, strict=True)) if isinstance(inputs, dict) else found
