"""Operations whose forward and backward the user writes: `Function` and what goes with it."""

from __future__ import annotations

from tracegrad.tracer.function import Function, once_differentiable
from tracegrad.tracer.function_node import FunctionCtx

__all__ = ["Function", "FunctionCtx", "once_differentiable"]
