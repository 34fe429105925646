"""Differentiation of recorded operations: `backward`, `grad` and the grad modes."""

from __future__ import annotations

import importlib
from types import ModuleType

from tracegrad.autograd.anomaly_mode import (
    detect_anomaly,
    is_anomaly_check_nan_enabled,
    is_anomaly_enabled,
    set_detect_anomaly,
)
from tracegrad.autograd.deprecated import backward, grad
from tracegrad.autograd.gradcheck import gradcheck, gradgradcheck
from tracegrad.tracer.function import Function
from tracegrad.tracer.grad_mode import (
    enable_grad,
    inference_mode,
    no_grad,
    set_grad_enabled,
    set_multithreading_enabled,
)
from tracegrad.tracer.tape import BackwardNode, gradient_edge

__all__ = ["BackwardNode", "Function", "backward", "detect_anomaly", "enable_grad", "grad",
           "gradcheck", "gradgradcheck", "gradient_edge", "inference_mode",
           "is_anomaly_check_nan_enabled", "is_anomaly_enabled", "no_grad",
           "set_detect_anomaly", "set_grad_enabled", "set_multithreading_enabled"]  # fmt: skip

_LAZY = (
    "anomaly_mode", "forward_ad", "function", "functional", "graph", "profiler", "profiler_util",
)  # fmt: skip


def __getattr__(name: str) -> ModuleType:
    """The submodules that are loaded when first used."""
    if name not in _LAZY:
        raise AttributeError(f"module 'tracegrad.autograd' has no attribute {name!r}")
    return importlib.import_module(f"tracegrad.autograd.{name}")
