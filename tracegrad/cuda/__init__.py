"""CUDA devices, under the names of `torch.cuda`.

Everything can be imported and asked where there is no CUDA: `is_available()` is then False, and what
needs a device raises a RuntimeError that says what is missing. There is one stream for each device.

Example:
    >>> import tracegrad as tg
    >>> isinstance(tg.cuda.is_available(), bool)
    True
    >>> device = "cuda" if tg.cuda.is_available() else "cpu"
"""

from __future__ import annotations

from tracegrad.cuda.devices import (
    current_device,
    device,
    device_count,
    get_device_capability,
    get_device_name,
    get_device_properties,
    init,
    is_available,
    is_initialized,
    set_device,
    synchronize,
)  # fmt: skip
from tracegrad.cuda.memory import (
    empty_cache,
    max_memory_allocated,
    max_memory_reserved,
    mem_get_info,
    memory_allocated,
    memory_reserved,
    memory_stats,
    reset_peak_memory_stats,
)  # fmt: skip
from tracegrad.cuda.random import manual_seed, manual_seed_all
from tracegrad.cuda.streams import Event, Stream, current_stream, default_stream, stream
from tracegrad.cuda.times import KernelTime, KernelTimes, kernel_times
from tracegrad.ir.errors import AcceleratorError, OutOfMemoryError

__all__ = [
    "AcceleratorError", "Event", "KernelTime", "KernelTimes", "OutOfMemoryError", "Stream",
    "current_device", "current_stream", "default_stream", "device", "device_count", "empty_cache",
    "get_device_capability", "get_device_name", "get_device_properties", "init", "is_available",
    "is_initialized", "kernel_times", "manual_seed", "manual_seed_all", "max_memory_allocated",
    "max_memory_reserved", "mem_get_info", "memory_allocated", "memory_reserved", "memory_stats",
    "reset_peak_memory_stats", "set_device", "stream", "synchronize",
]  # fmt: skip
