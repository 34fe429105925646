"""What was loaded and how long it took: one `KernelRecord` per kernel handed out.

`kernel_history()` returns the records, oldest first. Each is also one line of the logger
`tracegrad` at level info: `launch 3f9a1c (in=2, out=1, ops=5): cache miss, codegen 0.4 ms, build 61
ms`. `timing(True)`, or `TRACEGRAD_TIMING=1` in the environment, adds up what the launches take;
`listen` tells a profiler of every launch. Both are off unless asked for, and then
launches call the kernel bare.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

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
        run_ms: the total time of those; 0 unless timing was on.
        source: path of the C file.
    """

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
            text += f", {self.timed} timed launches {self.run_ms:.3f} ms"
        return text


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
        finish: waits for a device that goes on after `run`; None for kernels of the CPU.
    """

    run: Run
    entry: KernelRecord
    graph: Graph
    strides: Mapping[Value, Shape]
    finish: Callable[[], None] | None = None


class Listener:
    """Base of who wants to hear of launches and loads, in the threads in which they happen."""

    def launched(self, what: Launchable, start_ns: int, end_ns: int) -> None:
        """A launch has returned; times are those of `time.perf_counter_ns`."""
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
    finish = watched.finish

    def tg_run(args: Any) -> int:
        start = clock()
        status = run(args)
        if finish is not None:
            finish()
        end = clock()
        if _timing:
            with _lock:
                entry.timed += 1
                entry.run_ms += (end - start) / 1e6
        for listener in _listeners:
            listener.launched(watched, start, end)
        return status

    return tg_run
