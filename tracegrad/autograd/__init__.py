"""Differentiation of recorded operations: `backward`, `grad` and the grad modes."""

from __future__ import annotations

import importlib
from types import ModuleType

from tracegrad.tracer.engine import backward, grad
from tracegrad.tracer.grad_mode import enable_grad, inference_mode, no_grad, set_grad_enabled
from tracegrad.tracer.tape import BackwardNode, gradient_edge

__all__ = ["BackwardNode", "backward", "enable_grad", "grad", "gradient_edge", "inference_mode",
           "no_grad", "set_grad_enabled"]  # fmt: skip

_LAZY = ("functional", "profiler")


def __getattr__(name: str) -> ModuleType:
    """The submodules that are loaded when first used."""
    if name not in _LAZY:
        raise AttributeError(f"module 'tracegrad.autograd' has no attribute {name!r}")
    return importlib.import_module(f"tracegrad.autograd.{name}")
