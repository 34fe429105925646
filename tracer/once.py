"""Warnings that are given once per process, as PyTorch gives them. Start reading at `warn_once`."""

from __future__ import annotations

import warnings

from tracegrad.ir.location import user_stacklevel

_given: set[str] = set()


def warn_once(text: str) -> None:
    """Warn the user, unless the same was said before."""
    if text not in _given:
        _given.add(text)
        warnings.warn(text, UserWarning, stacklevel=user_stacklevel())


def forget() -> None:
    """Give every warning once more."""
    _given.clear()
