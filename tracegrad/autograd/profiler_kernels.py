"""Rows for what happens inside compiled functions: kernels, and the operations fused into them.

A compiled function, or its backward, calls its translation unit once, and that call is measured.
The unit runs kernels one after the other, and each kernel computes many operations at once, element
by element, so their times cannot be read from a clock. They are shares:

- a kernel that is alone in its unit has the time of the call; several share it in the proportion
  in which they shared a rehearsal (`runtime.rehearsal`: the same kernels, timed one by one), or,
  where none can be had, that of the operations and bytes in their plans (`codegen.costs`). Those
  are marked as estimates;
- the operations fused into a kernel share its time by `Primitive.cost` times elements, and are
  always marked as estimates.

The shares are laid end to end, so self times add up to what was measured. Start reading at
`events_of_launch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from tracegrad.autograd.profiler_events import BACKWARD, LABEL, FunctionEvent
from tracegrad.autograd.profiler_names import aten_name, flops, users_operands
from tracegrad.codegen.costs import FusedOperation, KernelCost, kernel_costs
from tracegrad.codegen.plan import Target
from tracegrad.ir.errors import CompilerNotFound
from tracegrad.runtime import executable
from tracegrad.runtime.history import Launchable
from tracegrad.runtime.rehearsal import rehearse

if TYPE_CHECKING:
    from tracegrad.autograd.profiler_timeline import Timeline

NOTE = """\
(est.): part of one measured call of a compiled function. Its kernels share the time as they did in
a rehearsal, timed one by one; the operations in a kernel share its time by the cost model."""
"""What a table with estimates says below."""

Division = tuple[tuple[KernelCost, ...], list[float]]
"""The kernels of a unit, and what each takes in proportion to the others."""

_divisions: WeakKeyDictionary[Launchable, Division] = WeakKeyDictionary()


def division(what: Launchable) -> Division:
    """How the time of a launch is divided; found once for each unit."""
    found = _divisions.get(what)
    if found is None:
        try:
            target = executable.target()
        except CompilerNotFound:
            target = Target()
        costs = kernel_costs(what.graph, target, what.strides)
        weights = rehearse(what) if len(costs) > 1 else None
        found = _divisions[what] = (costs, weights or [cost.seconds for cost in costs])
    return found


def events_of_launch(
    around: FunctionEvent, what: Launchable, span: tuple[int, int], timeline: Timeline
) -> list[FunctionEvent]:
    """The events of one call of a unit: each kernel, followed by its operations.

    Args:
        around: the event in which it was called; it becomes the kernels' parent.
        span: start and end of the call, nanoseconds.
        timeline: says whether shapes, lines and operations were to be recorded.
    """
    costs, weights = division(what)
    events: list[FunctionEvent] = []
    for cost, (start, end) in zip(costs, shared(span, weights), strict=True):
        kernel = _event(f"{what.graph.name}: {cost.name}", start, end, around)
        kernel.activity_type, kernel.stack = "kernel", around.stack
        kernel.is_estimated = len(costs) > 1
        events.append(kernel)
        depth = -1 if around.scope == BACKWARD else 0  # eager backward nodes have no labels either
        fill(kernel, cost.operations, depth, timeline, events)
    return events


def fill(
    parent: FunctionEvent, operations: Sequence[FusedOperation], depth: int, timeline: Timeline,
    events: list[FunctionEvent],
) -> None:  # fmt: skip
    """Share the time of a kernel, or of a label in it, among operations and the labels around them.

    Args:
        depth: how many labels `parent` is inside; negative to leave them out.
        events: where the new ones are appended.
    """
    groups: dict[Any, list[FusedOperation]] = {}
    for op in operations:
        labels = op.node.location.labels if op.node.location is not None and depth >= 0 else ()
        key = labels[depth] if len(labels) > depth >= 0 else op
        groups.setdefault(key, []).append(op)
    span = (parent.start_ns, parent.end_ns)
    parts = shared(span, [sum(op.work for op in group) for group in groups.values()])
    for (key, group), (start, end) in zip(groups.items(), parts, strict=True):
        if isinstance(key, FusedOperation):
            events.append(_operation(key, start, end, parent, timeline))
            continue
        label = _event(key, start, end, parent)
        label.scope, label.activity_type, label.is_estimated = LABEL, "user_annotation", True
        label.stack = parent.stack
        events.append(label)
        fill(label, group, depth + 1, timeline, events)


def _operation(
    op: FusedOperation, start: int, end: int, parent: FunctionEvent, timeline: Timeline
) -> FunctionEvent:
    node = op.node
    event = _event(aten_name(node.primitive), start, end, parent)
    event.is_estimated = True
    if timeline.shapes:
        event.input_shapes = [list(v.shape) for v in users_operands(node.primitive, node.inputs)]
    if timeline.flops:
        event.flops = flops(node.primitive, node.inputs, node.params, node.out.type.size)
    if timeline.stacks:
        at = node.location
        own = [] if at is None else [f"{at.file}({at.line}): {at.function}"]
        event.stack = own + parent.stack
    return event


def _event(name: str, start: int, end: int, parent: FunctionEvent) -> FunctionEvent:
    event = FunctionEvent(0, name, start, parent.thread, parent, end)
    parent.cpu_children.append(event)
    return event


def shared(span: tuple[int, int], weights: Sequence[float]) -> list[tuple[int, int]]:
    """A stretch of time cut into parts in proportion to `weights`, none of it lost.

    Example:
        >>> shared((100, 200), [3.0, 1.0, 0.0])
        [(100, 175), (175, 200), (200, 200)]
        >>> shared((0, 9), [0.0, 0.0])
        [(0, 4), (4, 9)]
    """
    start, end = span
    total = sum(weights)
    if total <= 0:
        weights, total = [1.0] * len(weights), float(len(weights))
    cuts, below = [start], 0.0
    for weight in weights:
        below += weight
        cuts.append(start + round((end - start) * (below / total)))
    if weights:
        cuts[-1] = end
    return list(zip(cuts, cuts[1:], strict=False))
