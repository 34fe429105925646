"""PyTorch's older checkpointing (`use_reentrant=True`): a `Function` that runs the function again.

The forward runs without recording and keeps the arguments; the backward runs the function once more
with recording and calls `backward` on what it returned, inside the backward that is going on. So
gradients reach the arguments themselves, `.grad` of whatever else the function uses, and nothing
inside containers. Start reading at
`CheckpointFunction`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from tracegrad.ir.errors import GradientError
from tracegrad.ir.location import user_stacklevel
from tracegrad.tracer.engine import backward
from tracegrad.tracer.function import Function
from tracegrad.tracer.grad_mode import enable_grad
from tracegrad.tracer.random import default_generator
from tracegrad.tracer.state import state
from tracegrad.tracer.tensor import Tensor

_NO_INPUT = "None of the inputs have requires_grad=True. Gradients will be None"
_NO_OUTPUT = "none of output has requires_grad=True, this checkpoint() is not necessary"
_WITH_INPUTS = (
    "When use_reentrant=True, torch.utils.checkpoint is incompatible with .grad() or passing an "
    "`inputs` parameter to .backward(). To resolve this error, you can either set "
    "use_reentrant=False, or call .backward() without passing the `inputs` argument."
)


class CheckpointFunction(Function):
    """One call of a function whose intermediate values are not kept."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        """Run the function; keep its arguments and, if asked for, the state of the generator."""
        if not any(isinstance(x, Tensor) and x.requires_grad for x in args):
            warnings.warn(_NO_INPUT, UserWarning, stacklevel=user_stacklevel())
        ctx.function = function
        ctx.random = default_generator.get_state() if preserve else None
        ctx.others = [None if isinstance(x, Tensor) else x for x in args]
        ctx.places = [i for i, x in enumerate(args) if isinstance(x, Tensor)]
        ctx.save_for_backward(*(args[i] for i in ctx.places))
        return function(*args)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        """Run the function again, and the backward of that run.

        Raises:
            GradientError: not a plain `backward()`; or nothing in the second run requires grad.
        """
        assert state.run is not None, "a node is run by a backward"
        if state.run.selective:
            raise GradientError(_WITH_INPUTS)
        args = list(ctx.others)
        for i, tensor in zip(ctx.places, ctx.saved_tensors, strict=True):
            args[i] = tensor.detach()
            args[i].requires_grad = tensor.requires_grad
        outputs = _again(ctx.function, args, ctx.random)
        pairs = [
            (out, ct) for out, ct in zip(outputs, cotangents, strict=True)
            if isinstance(out, Tensor) and out.requires_grad
        ]  # fmt: skip
        if not pairs:
            raise GradientError(_NO_OUTPUT)
        backward([out for out, _ in pairs], [ct for _, ct in pairs])
        return (None, None, *(x._grad if isinstance(x, Tensor) else None for x in args))


def _again(function: Callable[..., Any], args: list[Any], random: Tensor | None) -> tuple[Any, ...]:
    now = default_generator.get_state()
    if random is not None:
        default_generator.set_state(random)
    try:
        with enable_grad():
            outputs = function(*args)
    finally:
        if random is not None:
            default_generator.set_state(now)
    return outputs if isinstance(outputs, tuple) else (outputs,)
