"""What is made of a recording when it has ended: a tree of events, in the order of their starts.

Events are nested by their times; operations are merged into the public function of the same name
around them; backward nodes are given the lines of the operations that they differentiate; and
compiled calls what they did inside. Start reading at `finished`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tracegrad.autograd.profiler_events import BACKWARD, FunctionEvent
from tracegrad.autograd.profiler_kernels import events_of_launch

if TYPE_CHECKING:
    from tracegrad.autograd.profiler_timeline import Timeline

MERGED = "merged"  # the kind of an event that is now part of its parent


def finished(timeline: Timeline) -> list[FunctionEvent]:
    """The events of a timeline that was stopped: as a tree, in the order of their starts."""
    events = timeline.events
    for event in events:
        event.start_ns -= timeline.origin_ns
        event.end_ns -= timeline.origin_ns
    events.sort(key=lambda e: (e.start_ns, -e.end_ns))
    nest(events)
    events[:] = merged(events)
    follow_forward(events)
    for around, what, start_ns, end_ns in timeline.launches:
        span = (start_ns - timeline.origin_ns, end_ns - timeline.origin_ns)
        events.extend(events_of_launch(around, what, span, timeline))
    if timeline.calls:
        from tracegrad.autograd.profiler_device import device_events

        events.extend(device_events(timeline.calls, timeline))
    events.sort(key=lambda e: (e.start_ns, -e.end_ns))
    for number, event in enumerate(events):
        event.id, event.use_device = number, timeline.device
    timeline.launches.clear()
    timeline.calls.clear()
    return events


def nest(events: Sequence[FunctionEvent]) -> None:
    """Make each event a child of the innermost one whose time contains its own.

    Of two that overlap otherwise, neither is the other's parent (as in PyTorch).
    Args:
        events: of one thread, sorted by start, the longer first.
    """
    around: list[FunctionEvent] = []
    for event in events:
        if event.activity_type == "memory":
            continue  # freed outside all others, seen when the next one was
        while around:
            parent = around[-1]
            if event.start_ns < parent.end_ns and event.end_ns <= parent.end_ns:
                event.cpu_parent = parent
                parent.cpu_children.append(event)
                break
            event.is_overlapping |= event.start_ns < parent.end_ns
            around.pop()
        around.append(event)


def merged(events: Sequence[FunctionEvent]) -> list[FunctionEvent]:
    """The events, with operations merged into the public function around that has their name."""
    kept = []
    for event in events:
        around = event.cpu_parent
        if around is None or around.activity_type != "composite" or around.name != event.name:
            kept.append(event)
            continue
        around.cpu_children.remove(event)
        around.self_cpu_memory_usage += event.self_cpu_memory_usage
        around.flops += event.flops
        around.self_device_memory_usage += event.self_device_memory_usage
        event.activity_type = MERGED
        around.sequence_nr = max(around.sequence_nr, event.sequence_nr)
    for event in kept:
        if event.activity_type == "composite":
            event.activity_type = "cpu_op"
    return kept


def follow_forward(events: Sequence[FunctionEvent]) -> None:
    """Give backward nodes the thread and lines of the operation that they differentiate.

    What runs inside such a node has its lines too: those that a user would want to change.
    """
    forward: dict[int, FunctionEvent] = {}
    for event in events:
        if event.scope != BACKWARD and event.sequence_nr >= 0:
            forward.setdefault(event.sequence_nr, event)
    inside: dict[int, list[str]] = {}  # id of event -> lines of the backward node around it
    for event in events:
        if event.scope == BACKWARD:
            source = forward.get(event.sequence_nr)
            event.fwd_thread = 0 if source is None else source.thread
            event.stack = [] if source is None else source.stack
            inside[id(event)] = event.stack
        elif event.cpu_parent is not None and id(event.cpu_parent) in inside:
            event.stack = inside[id(event)] = inside[id(event.cpu_parent)]
