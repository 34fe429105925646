"""The errors that tracegrad raises on purpose; see `tracegrad.ir.errors` for causes and cures."""

from __future__ import annotations

from tracegrad.ir import errors as _errors
from tracegrad.ir.errors import *  # noqa: F403  (the whole of it)

__all__ = [n for n, x in vars(_errors).items() if isinstance(x, type)]
