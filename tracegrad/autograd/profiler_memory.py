"""Bytes that a profile sees allocated and freed: `MemoryWatch`, a part of the recorder."""

from __future__ import annotations

import functools
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from tracegrad.autograd.profiler_events import FunctionEvent
from tracegrad.runtime.cuda.array import DeviceArray
from tracegrad.tracer.tensor import Tensor


class MemoryWatch(ABC):
    """What a timeline knows of memory that was allocated while it ran, on the CPU and on devices."""

    events: list[FunctionEvent]
    thread: int
    _ident: int
    _running: bool

    def __init__(self) -> None:
        self._alive: dict[int, weakref.ref[Any]] = {}  # memory allocated meanwhile

    @abstractmethod
    def _freeing(self, born_ns: int) -> FunctionEvent | None:
        """The event that memory allocated at a given time is freed in at this moment."""

    def _allocated(self, event: FunctionEvent, made: Sequence[Any], given: Sequence[Any]) -> None:
        """Count memory that arrays do not share with operands; from now on its end counts."""
        old = {id(owner(x._array)) for x in given if isinstance(x, Tensor)}
        for array in made:
            memory = owner(array)
            key = id(memory)
            if key in old or key in self._alive:
                continue
            nbytes, on_device = memory.nbytes, isinstance(memory, DeviceArray)
            now = time.perf_counter_ns()
            freed = functools.partial(self._freed, key, nbytes, on_device, now)
            self._alive[key] = weakref.ref(memory, freed)
            count(event, nbytes, on_device)

    def _freed(
        self, key: int, nbytes: int, on_device: bool, born_ns: int, reference: Any
    ) -> None:  # fmt: skip
        """Memory allocated under this profile is gone: counted where that happens."""
        self._alive.pop(key, None)
        if not self._running:
            return
        around = self._freeing(born_ns) if threading.get_ident() == self._ident else None
        if around is None:
            now = time.perf_counter_ns()
            around = FunctionEvent(len(self.events), "[memory]", now, self.thread, end_ns=now)
            around.activity_type = "memory"
            self.events.append(around)
        count(around, -nbytes, on_device)


def count(event: FunctionEvent, nbytes: int, on_device: bool) -> None:
    """Add bytes to those of an event."""
    if on_device:
        event.self_device_memory_usage += nbytes
    else:
        event.self_cpu_memory_usage += nbytes


def owner(array: Any) -> Any:
    """The array whose memory `array` shows."""
    while isinstance(array.base, np.ndarray | DeviceArray):
        array = array.base
    return array
