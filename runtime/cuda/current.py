"""What "cuda" means without a number, thread by thread."""

from __future__ import annotations

import threading


class _Current(threading.local):
    device = 0


_current = _Current()

chosen: list[int] = []
"""Grows where a thread chooses a device. Empty, the usual case, it spares callers a look at each
thread's own choices."""


def device() -> int:
    """The number of the current device of this thread.

    Example:
        >>> device()
        0
    """
    return _current.device


def set_device(number: int) -> None:
    """Change it; the caller has seen that there is such a device.

    Example:
        >>> set_device(0)
    """
    chosen.append(number)
    _current.device = number
