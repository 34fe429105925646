"""What the tracer keeps per thread: the grad mode, the active recorder and profiler.

One object, `state`, so that the hot path reads one thread-local. Nothing else lives here.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracegrad.tracer.capture_hook import Recorder
    from tracegrad.tracer.engine import Run
    from tracegrad.tracer.forward import Tangents
    from tracegrad.tracer.hooks import Hook
    from tracegrad.tracer.profiling import Profiler
    from tracegrad.tracer.storage import Transform


class _State(threading.local):
    """Class attributes are the defaults that a new thread starts with."""

    grad_enabled: bool = True
    inference: bool = False
    recorder: Recorder | None = None
    saved_hooks: tuple[tuple[Hook, Hook], ...] = ()  # (pack, unpack), the innermost last
    saved_hooks_disabled: str | None = None  # the message, where they are
    run: Run | None = None  # the backward that is running, the innermost
    profiler: Profiler | None = None
    dual_level: Tangents | None = None  # of autograd.forward_ad
    transform: Transform | None = None  # the innermost of them that differentiates
    place: int | None = None  # the device where operations without operands put their result
    transforms: int = 0  # how many of func's transforms (vmap, grad ...) run the user's code


state = _State()

watching: list[object] = []
"""One entry per recorder, pair of hooks on saved tensors and profiler that is installed in any thread.
Empty, the usual case, it costs an operation one truth test, not several looks at `state`."""
