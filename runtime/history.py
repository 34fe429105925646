"""What was loaded and how long it took: one `KernelRecord` per kernel handed out.

`kernel_history()` returns the records, oldest first. Each is also one line of the logger
`tracegrad` at level info: `launch 3f9a1c (in=2, out=1, ops=5): cache miss, codegen 0.4 ms, build 61
ms`. `timing(True)`, or `TRACEGRAD_TIMING=1` in the environment, adds up what the launches take;
`listen` tells a profiler of every launch. Both are off unless asked for, and then
launches call the kernel bare.

Launches on a device are timed by marks in its stream, before and after: its own time, for which no
call waits. It is read where somebody looks at `run_ms`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

from tracegrad.ir.errors import AcceleratorError

if TYPE_CHECKING:
    from tracegrad.ir.graph import Graph, Value
    from tracegrad.ir.types import Shape

logger = logging.getLogger("tracegrad")
LIMIT = 10_000
_OUTCOME = {"memory": "cache hit", "disk": "disk hit", "built": "cache miss"}


@dataclass
class KernelRecord:
    """One kernel handed out by `runtime.kernels.load`.

    Attributes:
        key: 64 hexadecimal digits.
        label: the name of the user's function.
        cache: `"memory"`, `"disk"` or `"built"`.
        codegen_ms: scheduling and rendering.
        compile_ms: the C compiler; 0 unless built.
        load_ms: everything inside `load`, the compiler included.
        bytes: memory that one launch moves, as planned.
        inputs, outputs, ops: of the graph.
        launches: calls so far; the launcher counts them.
        timed: how many of them were made while `timing` was on.
        run_ms: the total time of those, on a device the device's; 0 unless timing was on.
        source: path of the C file.
    """

    where = ""  # for `str`, behind the time

    key: str
    label: str
    cache: str
    codegen_ms: float = 0.0
    compile_ms: float = 0.0
    load_ms: float = 0.0
    bytes: int = 0
    inputs: int = 0
    outputs: int = 0
    ops: int = 0
    launches: int = 0
    timed: int = 0
    run_ms: float = 0.0
    source: str = ""

    def __str__(self) -> str:
        text = (
            f"launch {self.key[:6]} (in={self.inputs}, out={self.outputs}, ops={self.ops}): "
            f"{_OUTCOME[self.cache]}"
        )
        if self.codegen_ms:
            text += f", codegen {self.codegen_ms:.1f} ms"
        if self.cache == "built":
            text += f", build {self.compile_ms:.0f} ms"
        if self.timed:
            text += f", {self.timed} timed launches {self.run_ms:.3f} ms{self.where}"
        return text


class Span(Protocol):
    """Two marks in the stream of a device."""

    def end(self) -> None:
        """Set the second mark."""

    def milliseconds(self) -> float:
        """From mark to mark; waits for the second one."""


class DeviceRecord(KernelRecord):
    """The record of a kernel on a device. Who reads `run_ms` waits for the launches that it times.

    Attributes:
        spans: launches that were timed and not yet added up.
    """

    where = " on the device"
    MOST = 512  # spans kept

    def __init__(self, *values: Any, **named: Any) -> None:
        self.spans: deque[Span] = deque()
        self._added = 0.0
        super().__init__(*values, **named)

    def timed_by(self, span: Span) -> None:
        """Count a launch; the oldest of many are added up, for which the device is long past them."""
        self.timed += 1
        self.spans.append(span)
        if len(self.spans) > self.MOST:
            self._add(self.MOST // 2)

    def _add(self, count: int) -> None:
        for _ in range(count):
            with contextlib.suppress(IndexError, AcceleratorError):  # a device that broke meanwhile
                self._added += self.spans.popleft().milliseconds()

    @property
    def run_ms(self) -> float:
        """The time of the timed launches."""
        self._add(len(self.spans))
        return self._added

    @run_ms.setter
    def run_ms(self, value: float) -> None:
        self._added = value


_records: deque[KernelRecord] = deque(maxlen=LIMIT)
_lock = threading.Lock()


def record(entry: KernelRecord) -> KernelRecord:
    """Append a record and log it; past `LIMIT` records the oldest goes."""
    with _lock:
        _records.append(entry)
    logger.info("%s", entry)
    for listener in _listeners:
        listener.loaded(entry)
    return entry


def kernel_history() -> list[KernelRecord]:
    """The records of this process, oldest first (at most 10,000).

    Example:
        >>> clear_history()
        >>> kernel_history()
        []
    """
    with _lock:
        return list(_records)


def clear_history() -> None:
    """Forget all records; the kernels stay loaded."""
    with _lock:
        _records.clear()


# --- timing of launches ---------------------------------------------------------------------------

Run = Callable[[Any], int]


@dataclass(frozen=True, eq=False)
class Launchable:
    """A loaded graph whose launches can be timed.

    Attributes:
        run: `tg_run`, bare.
        entry: its record.
        graph: what was compiled; strides: of its inputs that are not contiguous, in elements.
        device: the number of the device, None for the CPU; unit: what is launched there.
        begin: marks the stream of the device.
    """

    run: Run
    entry: KernelRecord
    graph: Graph
    strides: Mapping[Value, Shape]
    device: int | None = None
    unit: Any = None
    begin: Callable[[], Span] | None = None


class Listener:
    """Base of who wants to hear of launches and loads, in the threads in which they happen."""

    def launched(
        self, what: Launchable, start_ns: int, end_ns: int, span: Span | None = None
    ) -> None:
        """A launch has returned; times are those of `time.perf_counter_ns`.

        Args:
            span: on a device, which may still be at work.
        """
        raise NotImplementedError

    def loaded(self, entry: KernelRecord) -> None:
        """A kernel was handed out just now; the record says how long that took."""
        raise NotImplementedError


_timing = os.environ.get("TRACEGRAD_TIMING", "") not in ("", "0")
_listeners: tuple[Listener, ...] = ()
_watched: WeakKeyDictionary[Callable[..., Any], Launchable] = WeakKeyDictionary()


def timing(on: bool) -> None:
    """Time every launch from now on, of kernels loaded before too, or stop timing.

    A launch costs about 0.3 microseconds more while it is on, and nothing while it is off.

    Example:
        >>> timing(True)
        >>> timing(False)
    """
    global _timing
    with _lock:
        _timing = bool(on)
        _bind_all()


def listen(listener: Listener) -> None:
    """Tell `listener` of every launch and load, of any thread, until `unlisten`."""
    global _listeners
    with _lock:
        _listeners = (*_listeners, listener)
        _bind_all()


def unlisten(listener: Listener) -> None:
    """Stop what `listen` began; without listeners and timing, launches are bare again."""
    global _listeners
    with _lock:
        _listeners = tuple(x for x in _listeners if x is not listener)
        _bind_all()


def watch(call: Callable[..., Any], launchable: Launchable) -> None:
    """Let `timing` and `listen` decide whether the generated function `call` runs bare or timed."""
    with _lock:
        _watched[call] = launchable
        _bind(call)


def _bind_all() -> None:
    for call in list(_watched):
        _bind(call)


def _bind(call: Callable[..., Any]) -> None:
    """Set the global `tg_run` of a generated function, whose globals are its own."""
    watched = _watched[call]
    timed = _timing or _listeners
    call.__globals__["tg_run"] = _timed(watched) if timed else watched.run


def _timed(watched: Launchable) -> Run:
    run, entry, clock = watched.run, watched.entry, time.perf_counter_ns
    if watched.begin is not None:
        return _timed_on_device(watched, watched.begin)

    def tg_run(args: Any) -> int:
        start = clock()
        status = run(args)
        end = clock()
        if _timing:
            with _lock:
                entry.timed += 1
                entry.run_ms += (end - start) / 1e6
        for listener in _listeners:
            listener.launched(watched, start, end)
        return status

    return tg_run


def _timed_on_device(watched: Launchable, begin: Callable[[], Span]) -> Run:
    run, entry, clock = watched.run, watched.entry, time.perf_counter_ns

    def tg_run(args: Any) -> int:
        span = begin()
        start = clock()
        status = run(args)
        end = clock()
        if status > 0:  # a fault, which the caller names
            return status
        span.end()
        if _timing and isinstance(entry, DeviceRecord):
            with _lock:
                entry.timed_by(span)
        for listener in _listeners:
            listener.launched(watched, start, end, span)
        return status

    return tg_run
