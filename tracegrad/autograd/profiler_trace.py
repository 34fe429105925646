"""Trace files: events in the JSON that Perfetto and chrome://tracing open.

The format is the "Trace Event Format" of Chromium: complete events (`ph` X) with start and
duration in microseconds; `s` and `f` are the two ends of an arrow, from an operation to the
backward node that differentiates it; `b` and `e` bound blocks that overlap others, which a lane of
nested events could not show; `M` names processes and lanes. Kernels of compiled functions, and the
operations inside them, have lanes of their own, and so have those on a device. Start reading at `trace_events`.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tracegrad.autograd.profiler_events import BACKWARD, DeviceType, FunctionEvent

Event = dict[str, Any]
LANES = (
    "kernels of compiled functions", "operations inside kernels (estimated)", "kernels on the device",
    "operations inside kernels on the device (estimated)",
)  # fmt: skip


def trace_events(events: Sequence[FunctionEvent]) -> list[Event]:
    """The single events of a profile for a trace file, names of lanes first."""
    lanes = _Lanes()
    made = [piece for event in events for piece in _pieces(event, lanes)]
    return [*lanes.names(), *made, *_arrows(events, lanes)]


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write JSON, compressed where the name ends in `.gz`."""
    text = json.dumps(content)
    if os.fspath(path).endswith(".gz"):
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.write(text)
    else:
        with open(path, "w", encoding="utf-8") as plain:
            plain.write(text)


class _Lanes:
    """Gives each thread a lane, with two more where compiled functions ran in it."""

    APART = 2**23  # above the identifiers that Linux gives to threads

    def __init__(self) -> None:
        self._used: set[tuple[int, int]] = set()

    def of(self, event: FunctionEvent) -> int:
        """The `tid` of an event."""
        extra = 1 if event.activity_type == "kernel" else 2 if event.is_estimated else 0
        extra += 2 if event.device_type is not DeviceType.CPU else 0
        self._used.add((event.thread, extra))
        return event.thread + extra * self.APART

    def names(self) -> Iterator[Event]:
        """What the viewer calls the process and its lanes."""
        pid = os.getpid()
        program = os.path.basename(sys.executable) or "python"
        yield _meta("process_name", pid, 0, name=program)
        yield _meta("process_labels", pid, 0, labels="CPU")
        for place, (thread, extra) in enumerate(sorted(self._used)):
            tid = thread + extra * self.APART
            what = f": {LANES[extra - 1]}" if extra else ""
            yield _meta("thread_name", pid, tid, name=f"thread {thread}{what}")
            yield _meta("thread_sort_index", pid, tid, sort_index=place)


def _meta(kind: str, pid: int, tid: int, **args: Any) -> Event:
    return {"ph": "M", "name": kind, "ts": 0, "pid": pid, "tid": tid, "args": args}


def _pieces(event: FunctionEvent, lanes: _Lanes) -> Iterator[Event]:
    if event.trace_name is None:
        return
    start, end = event.time_range.start, event.time_range.end
    common = {
        "name": event.trace_name, "cat": event.activity_type, "pid": os.getpid(),
        "tid": lanes.of(event),
    }  # fmt: skip
    if event.is_overlapping:
        yield {**common, "ph": "b", "id": event.id, "ts": start, "args": _details(event)}
        yield {**common, "ph": "e", "id": event.id, "ts": end, "args": {}}
    else:
        yield {**common, "ph": "X", "ts": start, "dur": event.time_range.elapsed_us(),
               "args": _details(event)}  # fmt: skip


def _details(event: FunctionEvent) -> Event:
    """What a viewer shows when an event is selected."""
    found: Event = {"External id": event.id}
    if event.sequence_nr >= 0:
        found["Sequence number"] = event.sequence_nr
        found["Fwd thread id"] = event.fwd_thread
    if event.input_shapes:
        found["Input Dims"] = event.input_shapes
    if event.stack:
        found["Call stack"] = ";".join(event.stack)
    if event.self_cpu_memory_usage:
        found["Bytes"] = event.self_cpu_memory_usage
    if event.self_device_memory_usage:
        found["Bytes on the device"] = event.self_device_memory_usage
    if event.flops:
        found["FLOPs"] = event.flops
    if event.is_estimated:
        found["Estimated"] = "a share of a measured time, by the cost model"
    return found


def _arrows(events: Iterable[FunctionEvent], lanes: _Lanes) -> Iterator[Event]:
    """From each operation to the backward node with its sequence number."""
    forward: dict[int, FunctionEvent] = {}
    for event in events:
        if event.sequence_nr < 0 or event.is_overlapping:
            continue
        if event.scope != BACKWARD:
            forward.setdefault(event.sequence_nr, event)
            continue
        source = forward.get(event.sequence_nr)
        if source is None:
            continue
        for ph, end in (("s", source), ("f", event)):
            arrow: Event = {
                "ph": ph, "id": event.id, "pid": os.getpid(), "tid": lanes.of(end),
                "ts": end.time_range.start, "cat": "fwdbwd", "name": "fwdbwd",
            }  # fmt: skip
            yield arrow if ph == "s" else {**arrow, "bp": "e"}
