"""When a profiler records, and where its trace files go.

A schedule is a function from the number of a step to a `ProfilerAction`. Start reading at
`schedule`.
"""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections.abc import Callable
from enum import Enum
from typing import Any

from tracegrad.ir.errors import ProfilerError
from tracegrad.ir.location import user_stacklevel


class ProfilerAction(Enum):
    """What a profiler does during a step. DEVICE_STOPPED is PyTorch's own; schedules may not
    return it.

    Example:
        >>> schedule(wait=1, warmup=1, active=1)(2)
        <ProfilerAction.RECORD_AND_SAVE: 3>
    """

    NONE = 0
    WARMUP = 1
    RECORD = 2
    RECORD_AND_SAVE = 3
    DEVICE_STOPPED = 4


Schedule = Callable[[int], ProfilerAction]


def schedule(
    *, wait: int, warmup: int, active: int, repeat: int = 0, skip_first: int = 0,
    skip_first_wait: int = 0,
) -> Schedule:  # fmt: skip
    """A schedule of cycles: `wait` steps off, `warmup` steps, then `active` steps recorded.

    Args:
        wait, warmup, active: steps of each part of a cycle.
        repeat: number of cycles; 0 for as many as there are.
        skip_first: steps before the first cycle.
        skip_first_wait: other than 0, the first cycle has no `wait`.
    Raises:
        AssertionError: a number is negative, or `active` is 0.
    Example:
        >>> when = schedule(wait=1, warmup=1, active=2, repeat=1)
        >>> [when(step).name for step in range(5)]
        ['NONE', 'WARMUP', 'RECORD', 'RECORD_AND_SAVE', 'NONE']
    """
    if wait < 0 or warmup < 0 or active <= 0 or repeat < 0 or skip_first < 0:
        raise AssertionError(
            f"Invalid profiler schedule arguments. Got wait={wait} (need >= 0), "
            f"warmup={warmup} (need >= 0), active={active} (need > 0), repeat={repeat} (need >= 0), "
            f"skip_first={skip_first} (need >= 0)."
        )
    if warmup == 0:
        text = "Profiler won't be using warmup, this can skew profiler results"
        warnings.warn(text, stacklevel=user_stacklevel())
    length = wait + warmup + active

    def action(step: int) -> ProfilerAction:
        if step < 0:
            raise AssertionError(f"Step must be non-negative. Got {step}.")
        step -= skip_first
        if step < 0:
            return ProfilerAction.NONE
        if skip_first_wait != 0:
            step += wait
        cycle, place = divmod(step, length)
        if (repeat > 0 and cycle >= repeat) or place < wait:
            return ProfilerAction.NONE
        if place < wait + warmup:
            return ProfilerAction.WARMUP
        last = place == length - 1
        return ProfilerAction.RECORD_AND_SAVE if last else ProfilerAction.RECORD

    return action


def always(step: int) -> ProfilerAction:
    """The schedule of a profiler that was given none."""
    return ProfilerAction.RECORD


def tensorboard_trace_handler(
    dir_name: str, worker_name: str | None = None, use_gzip: bool = False,
    use_python_export: bool = False,
) -> Callable[[Any], None]:  # fmt: skip
    """An `on_trace_ready` that writes a trace file `worker.time.pt.trace.json` into a folder.

    Args:
        dir_name: the folder; it is made where it is missing.
        worker_name: `hostname_pid` unless given.
        use_gzip: compress, and add `.gz` to the name.
        use_python_export: accepted for PyTorch's sake.
    Raises:
        RuntimeError: from the handler, where the folder cannot be made.
    Example:
        >>> import os
        >>> import tempfile
        >>> import tracegrad as tg
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     handler = tensorboard_trace_handler(folder, worker_name="w")
        ...     with tg.profiler.profile(on_trace_ready=handler):
        ...         y = tg.ones(2) * 2
        ...     [name.split(".")[0] for name in os.listdir(folder)]
        ['w']
    """

    def handler(prof: Any) -> None:
        try:
            os.makedirs(dir_name, exist_ok=True)
        except OSError as error:
            raise ProfilerError("Can't create directory: " + dir_name) from error
        worker = worker_name or f"{socket.gethostname()}_{os.getpid()}"
        name = f"{worker}.{time.time_ns()}.pt.trace.json" + (".gz" if use_gzip else "")
        prof.export_chrome_trace(os.path.join(dir_name, name))

    return handler
