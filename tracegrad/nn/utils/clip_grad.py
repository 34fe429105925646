"""Clipping of gradients by their norm or element by element. Start reading at `clip_grad_norm_`.

Python reads no value unless `error_if_nonfinite`, so a compiled training step clips without
leaving its trace. `foreach` is accepted and changes nothing: there is one implementation.
"""

from __future__ import annotations

import types
import warnings
from collections.abc import Iterable
from typing import Any

from tracegrad.ir.errors import GradientError, OptionError
from tracegrad.tracer.factories import zeros
from tracegrad.tracer.grad_mode import no_grad
from tracegrad.tracer.joining import stack
from tracegrad.tracer.moving import moved
from tracegrad.tracer.reductions import norm
from tracegrad.tracer.tensor import Tensor

Tensors = Tensor | Iterable[Any]

_EMPTY = "`parameters` is an empty generator, no gradient clipping will occur."


def clip_grad_norm_(
    parameters: Tensors, max_norm: float, norm_type: float = 2.0,
    error_if_nonfinite: bool = False, foreach: bool | None = None,
) -> Any:  # fmt: skip
    """Scale all gradients together, in place, so that their norm is at most `max_norm`:

        grad = grad * min(max_norm / (total_norm + 1e-6), 1)

    Args:
        parameters: tensors whose `.grad` is scaled; those without one are passed over.
        max_norm: the largest norm to leave.
        norm_type: p of the norm over all elements of all gradients; may be `inf`.
        error_if_nonfinite: raise where the norm is nan or infinite, which reads its value.
        foreach: accepted, without effect.
    Returns:
        The norm before, 0-dimensional.
    Raises:
        GradientError: the norm is not finite, where `error_if_nonfinite`.
    Source: Pascanu, Mikolov and Bengio, arXiv:1211.5063.
    Example:
        >>> import tracegrad as tg
        >>> w = tg.tensor([1.0, 1.0], requires_grad=True)
        >>> (w * tg.tensor([3.0, 4.0])).sum().backward()
        >>> tg.nn.utils.clip_grad_norm_([w], max_norm=1.0)
        tensor(5.)
        >>> w.grad
        tensor([0.6000, 0.8000])
    """
    listed = _listed(parameters)
    if not listed and isinstance(parameters, types.GeneratorType):
        warnings.warn(_EMPTY, UserWarning, stacklevel=2)
    total = get_total_norm(_gradients(listed), norm_type, error_if_nonfinite, foreach)
    clip_grads_with_norm_(listed, max_norm, total, foreach)
    return total


def get_total_norm(
    tensors: Tensors, norm_type: float = 2.0, error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Any:  # fmt: skip
    """The p-norm of the elements of all tensors together.

    Args:
        tensors: one tensor or several, floating.
        norm_type: p; may be `inf`.
        error_if_nonfinite: raise where the norm is nan or infinite, which reads its value.
        foreach: accepted, without effect.
    Returns:
        0-dimensional, of the promoted dtype; 0 for no tensors.
    Raises:
        GradientError: the norm is not finite, where `error_if_nonfinite`.
        OptionError: `norm_type` is inf and a tensor is empty.
    Example:
        >>> import tracegrad as tg
        >>> tg.nn.utils.get_total_norm([tg.tensor([3.0]), tg.tensor([-4.0])])
        tensor(5.)
    """
    p = float(norm_type)
    with no_grad():
        norms = [_norm(x, p) for x in _listed(tensors)]
        if not norms:
            return zeros(())
        total = _norm(stack([moved(x, norms[0].device) for x in norms]), p)
        if error_if_nonfinite and not total.isfinite():
            raise GradientError(
                f"The total norm of order {p} for gradients from `parameters` is non-finite, so it "
                "cannot be clipped. To disable this error and scale the gradients by the "
                "non-finite norm anyway, set `error_if_nonfinite=False`"
            )
    return total


def clip_grads_with_norm_(
    parameters: Tensors, max_norm: float, total_norm: Any, foreach: bool | None = None
) -> None:
    """The second half of `clip_grad_norm_`: scale gradients whose norm is known.

    Args:
        parameters: tensors whose `.grad` is scaled.
        max_norm: the largest norm to leave.
        total_norm: a tensor, as `get_total_norm` returns it.
        foreach: accepted, without effect.
    """
    with no_grad():
        grads = _gradients(_listed(parameters))
        if not grads:
            float(max_norm)  # refused alike, whether there are gradients or not
            return
        factor = (float(max_norm) / (total_norm + 1e-6)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(moved(factor, grad.device))


def clip_grad_value_(parameters: Tensors, clip_value: float, foreach: bool | None = None) -> None:
    """Clamp every element of every gradient to [-clip_value, clip_value], in place.

    Args:
        parameters: tensors whose `.grad` is clamped.
        clip_value: the bound.
        foreach: accepted, without effect.
    Example:
        >>> import tracegrad as tg
        >>> w = tg.tensor([1.0, 1.0], requires_grad=True)
        >>> (w * tg.tensor([3.0, -0.5])).sum().backward()
        >>> tg.nn.utils.clip_grad_value_([w], 1.0)
        >>> w.grad
        tensor([ 1.0000, -0.5000])
    """
    bound = float(clip_value)
    with no_grad():
        for grad in _gradients(_listed(parameters)):
            grad.clamp_(min=-bound, max=bound)


def _listed(tensors: Tensors) -> list[Any]:
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def _gradients(parameters: list[Any]) -> list[Any]:
    found = (p.grad for p in parameters)
    return [grad for grad in found if grad is not None]


def _norm(x: Any, p: float) -> Any:
    """The norm of one tensor."""
    if p == float("inf") and x.numel() == 0:
        raise OptionError(
            "_foreach_norm cannot compute the infinity norm on an empty tensor because the "
            "operation does not have an identity"
        )
    return norm(x, p)
