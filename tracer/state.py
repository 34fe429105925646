"""What the tracer keeps per thread: the grad mode and the active recorder.

One object, `state`, so that the hot path reads one thread-local. Nothing else lives here.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracegrad.tracer.capture_hook import Recorder


class _State(threading.local):
    """Class attributes are the defaults that a new thread starts with."""

    grad_enabled: bool = True
    inference: bool = False
    recorder: Recorder | None = None


state = _State()
