"""Marks in the stream of a device, and the time between them."""

from __future__ import annotations

import contextlib
import sys

from tracegrad.ir.errors import AcceleratorError
from tracegrad.runtime._abi import ffi
from tracegrad.runtime.cuda import driver

_NOT_READY = 600  # of CUresult
_NO_TIMING = 2  # CU_EVENT_DISABLE_TIMING


class Event:
    """A mark in the default stream of a device."""

    def __init__(self, device: int, timing: bool = True) -> None:
        self.device, cell = device, ffi.new("void **")
        driver.ask(device, "cuEventCreate", cell, 0 if timing else _NO_TIMING)
        self._event = cell[0]

    def record(self) -> None:
        """Set the mark behind all that was asked so far."""
        driver.ask(self.device, "cuEventRecord", self._event, driver.stream())

    def query(self) -> bool:
        """Whether the device has passed the mark."""
        with driver.on(self.device) as cuda:
            code = cuda.cuEventQuery(self._event)
        if code not in (0, _NOT_READY):
            raise driver.fault(code, self.device, "cuEventQuery")
        return bool(code == 0)

    def synchronize(self) -> None:
        """Wait until the device has passed the mark."""
        driver.ask(self.device, "cuEventSynchronize", self._event)

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds from this mark to another one."""
        found = ffi.new("float *")
        driver.ask(self.device, "cuEventElapsedTime", found, self._event, end._event)
        return float(found[0])

    def __del__(self) -> None:
        if hasattr(self, "_event") and not sys.is_finalizing():
            with contextlib.suppress(AcceleratorError), driver.on(self.device) as cuda:
                cuda.cuEventDestroy_v2(self._event)


class Span:
    """Two marks in the stream of a device; the first is set at once, the second by `end`."""

    __slots__ = ("after", "before")

    def __init__(self, device: int) -> None:
        self.before, self.after = Event(device), Event(device)
        self.before.record()

    def end(self) -> None:
        """Set the second mark behind all that was asked so far."""
        self.after.record()

    def milliseconds(self) -> float:
        """From mark to mark; waits for the second one."""
        self.after.synchronize()
        return self.before.elapsed_time(self.after)
