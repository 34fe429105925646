"""Rows for what runs on a device: its kernels, and the operations fused into them.

Each call of a translation unit is measured by two marks in the stream of the device. A unit of one
launch has that time; several share it in the proportion in which they shared a rehearsal
(`runtime.cuda.rehearsal`), or, where none can be had, that of their plans, and are marked as
estimates. Operations fused into a kernel of a compiled function share its time as they do on the
CPU. On an idle device the time of a launch includes what passes from the mark to the kernel's start,
some microseconds. Start reading at `device_events`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from tracegrad.autograd.profiler_events import BACKWARD, DeviceType, FunctionEvent, Kernel
from tracegrad.autograd.profiler_kernels import fill, shared
from tracegrad.autograd.profiler_tree import MERGED
from tracegrad.codegen.costs import FusedOperation
from tracegrad.codegen.cuda.costs import LIBRARY, launch_costs
from tracegrad.ir.errors import AcceleratorError, CompilerNotFound, OutOfMemoryError
from tracegrad.runtime.cuda import graphs
from tracegrad.runtime.cuda.events import Event, Span
from tracegrad.runtime.cuda.rehearsal import rehearse
from tracegrad.runtime.history import Launchable

if TYPE_CHECKING:
    from tracegrad.autograd.profiler_timeline import Timeline

Part = tuple[str, tuple[FusedOperation, ...], float]
"""A launch of a unit: its name, what it computes, and its weight among the others."""

Call = tuple[FunctionEvent | None, Launchable, int, Span]
"""A call on a device: the event it was made in, what was called, when, and its marks."""

_parts: WeakKeyDictionary[Launchable, tuple[Part, ...]] = WeakKeyDictionary()


def parts(what: Launchable) -> tuple[Part, ...]:
    """How the time of a call is divided among the launches; found once for each unit."""
    found = _parts.get(what)
    if found is None:
        found = _parts[what] = _divided(what)
    return found


def _divided(what: Launchable) -> tuple[Part, ...]:
    launches, index = what.unit.launches, what.device or 0
    names = [launch.kernel or LIBRARY for launch in launches]
    inside: list[tuple[FusedOperation, ...]] = [()] * len(names)
    weights = [1.0] * len(names)
    if what.graph.outputs:  # or it is a unit written by hand
        costs = launch_costs(what.graph, graphs.target(index), what.strides)
        if [c.kernel for c in costs] == names:
            inside, weights = [c.operations for c in costs], [c.seconds for c in costs]
            if len(names) > 1:
                weights = _rehearsed(what, index) or weights
    return tuple(zip(names, inside, weights, strict=True))


def _rehearsed(what: Launchable, index: int) -> list[float] | None:
    try:
        return rehearse(what.graph, what.unit, index, what.strides)
    except (OutOfMemoryError, AcceleratorError, CompilerNotFound):
        return None  # the plans say something


def device_events(calls: Sequence[Call], timeline: Timeline) -> list[FunctionEvent]:
    """The events of calls on devices; the events in which they were made list their kernels.

    Args:
        calls: in their order. The first one on each device tells how its clock and ours compare.
        timeline: says what was to be recorded, and since when.
    """
    anchors: dict[int, tuple[Event, int]] = {}
    events: list[FunctionEvent] = []
    for around, what, asked_ns, span in calls:
        index = what.device or 0
        anchor, at = anchors.setdefault(index, (span.before, asked_ns))
        length = round(span.milliseconds() * 1e6)
        since = 0.0 if anchor is span.before else anchor.elapsed_time(span.before)
        start = max(at + round(since * 1e6), asked_ns) - timeline.origin_ns
        events += _of_call(around, what, (start, start + length), timeline)
    return events


def _of_call(
    around: FunctionEvent | None, what: Launchable, span: tuple[int, int], timeline: Timeline
) -> list[FunctionEvent]:
    """The events of one call: each kernel, followed by its operations."""
    found = parts(what)
    events: list[FunctionEvent] = []
    if around is not None and around.activity_type == MERGED:
        around = around.cpu_parent
    compiled = around is not None and (
        around.activity_type == "compiled_call" or around.scope == BACKWARD
    )
    times = shared(span, [weight for _, _, weight in found])
    for (name, operations, _), (start, end) in zip(found, times, strict=True):
        kernel = FunctionEvent(
            0, f"{what.graph.name}: {name}", start, timeline.thread, end_ns=end,
            activity_type="kernel", is_estimated=len(found) > 1,
        )  # fmt: skip
        own = [kernel]
        if around is not None:
            kernel.stack = around.stack
            duration = (end - start) / 1e3
            around.kernels.append(Kernel(kernel.name, what.device or 0, duration))
        if compiled and operations:
            assert around is not None
            fill(kernel, operations, -1 if around.scope == BACKWARD else 0, timeline, own)
        for event in own:
            event.device_type, event.device_index = DeviceType.CUDA, what.device or 0
        events += own
    return events
