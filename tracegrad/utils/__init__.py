"""Helpers: `tracegrad.utils.checkpoint` trades time for memory, `dlpack` shares it."""

from __future__ import annotations

import importlib
from types import ModuleType

_LAZY = ("checkpoint", "dlpack")


def __getattr__(name: str) -> ModuleType:
    """The submodules, loaded when first used."""
    if name not in _LAZY:
        raise AttributeError(f"module 'tracegrad.utils' has no attribute {name!r}")
    return importlib.import_module(f"tracegrad.utils.{name}")
