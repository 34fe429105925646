"""The profiler as today's PyTorch names it: `profile` with a schedule of steps, and trace files.

    from tracegrad.profiler import profile, record_function, schedule
    with profile(schedule=schedule(wait=1, warmup=1, active=3), on_trace_ready=report) as prof:
        for batch in batches:
            train(batch)
            prof.step()

Events, tables and files are those of `tracegrad.autograd.profiler`.
"""

from __future__ import annotations

from tracegrad.autograd.profiler import record_function
from tracegrad.autograd.profiler_util import DeviceType
from tracegrad.profiler.profiler import (
    ProfilerActivity,
    kineto_available,
    profile,
    supported_activities,
)
from tracegrad.profiler.scheduling import ProfilerAction, schedule, tensorboard_trace_handler

__all__ = ["DeviceType", "ProfilerAction", "ProfilerActivity", "kineto_available", "profile",
           "record_function", "schedule", "supported_activities",
           "tensorboard_trace_handler"]  # fmt: skip
