"""Settings that choose among PyTorch's implementations of one rule. Start at `implementation`."""

from __future__ import annotations

from typing import Any

from tracegrad.ir.errors import OptionError, ParameterError, UnsupportedError
from tracegrad.tracer.tensor import Tensor


def implementation(rule: str, **settings: Any) -> dict[str, Any]:
    """The settings as an optimizer keeps them, for the same `state_dict` as PyTorch's.

    There is one implementation here, whose results are those of all of PyTorch's: `foreach`,
    `fused` and `capturable` are accepted and change nothing.

    Args:
        rule: name of the optimizer, for messages.
        settings: `foreach`, `fused`, `capturable` and `differentiable`, as far as the rule has them.
    Raises:
        OptionError: two of them exclude each other (PyTorch's texts).
        UnsupportedError: `differentiable` is set.
    """
    if settings.get("fused"):
        if settings.get("differentiable"):
            raise OptionError("`fused` does not support `differentiable`")
        if settings.get("foreach"):
            raise OptionError("`fused` and `foreach` cannot be `True` together.")
    if settings.get("differentiable"):
        raise UnsupportedError(
            f"{rule}: differentiable=True is not supported: step() writes parameters without "
            "recording. To differentiate through steps, compute new parameters from old ones and "
            "call the model with tracegrad.func.functional_call."
        )
    return settings


def check_lr(lr: Any) -> None:
    """Raise PyTorch's errors for a learning rate that is negative or a tensor of many elements."""
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ParameterError("Tensor lr must be 1-element")
    if not lr >= 0.0:
        raise ParameterError(f"Invalid learning rate: {lr}")
