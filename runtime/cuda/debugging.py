"""Launches one by one, each looked at before the next: `compile(debug=True)` on a device.

After a launch the host waits for the device, so that a fault is told where it happens; and the
results of each step of the schedule are copied to the host and searched for NaN. An error names the
launch and the Python lines that it computes; of a NaN, the operation, which the interpreter finds on
the same inputs. Start reading at `checked`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tracegrad.codegen.cuda.costs import launch_costs
from tracegrad.codegen.cuda.unit import plan_cuda, scheduled
from tracegrad.codegen.unit import name_buffers
from tracegrad.ir.errors import AcceleratorError, BoundsError, DivisionByZeroError, NaNError
from tracegrad.ir.graph import Graph, Value
from tracegrad.ir.types import Shape
from tracegrad.runtime._abi import ffi
from tracegrad.runtime.cuda import driver, executable, graphs, memory
from tracegrad.runtime.cuda.array import DeviceArray, DeviceDType
from tracegrad.runtime.cuda.executable import CudaExecutable
from tracegrad.runtime.cuda.launches import Bases
from tracegrad.runtime.cuda.memory import Memory
from tracegrad.runtime.debugging import complain, has_nan

FAULTS = (AcceleratorError, BoundsError, DivisionByZeroError)


@dataclass(frozen=True)
class Seen:
    """A result of a step: its value, and where it lies as a base address and bytes from there."""

    value: Value
    base: int
    start: int


@dataclass(frozen=True)
class Stop:
    """One launch.

    Attributes:
        run: launches it; head: the first words of its arguments; keep: what must stay alive.
        words: which launch it is, and its lines.
        results: what is looked at behind it: those of its step, where it is the last of one.
    """

    run: Callable[[Any], int]
    head: Sequence[int]
    keep: Any
    words: str
    results: tuple[Seen, ...]


def checked(
    graph: Graph, made: CudaExecutable, strides: Mapping[Value, Shape], device: int
) -> Callable[..., tuple[Memory, ...]]:
    """What `made.call` does, with a look behind each launch.

    A call raises what a launch does wrong, and a `NaNError` where one makes a NaN of numbers.
    """
    bases = Bases(len(graph.inputs), len(graph.outputs))
    stops = _stops(graph, made, strides, bases, device)
    unit = made.unit

    def call(*addresses: int) -> tuple[Memory, ...]:
        outputs = [memory.allocate(int(v.type.nbytes), device) for v in graph.outputs]
        arena = memory.allocate(max(unit.arena_bytes, 1), device)
        slot = executable.Slot((), bases, device, unit.uses_status)
        status = slot.status_memory.address if slot.status_memory is not None else 0
        there = [*addresses, *(m.address for m in outputs), arena.address, status]
        slot.numbers[executable.HEAD :] = there
        given: list[np.ndarray] | None = None
        for stop in stops:
            slot.numbers[: len(stop.head)] = stop.head
            try:
                code = stop.run(ffi.from_buffer("void *[]", slot.numbers))
                if code:
                    executable._fail(unit, device, slot, code)
                driver.synchronize(device)
            except FAULTS as error:
                raise type(error)(f"{error}\nThe host waited: it is {stop.words}") from None
            for seen in stop.results:
                found = np.empty(tuple(map(int, seen.value.shape)), seen.value.dtype.numpy)
                if found.size:
                    driver.to_host(found, there[seen.base] + seen.start, device)
                if has_nan(found):
                    given = given or _inputs(graph, addresses, strides, device)
                    complain(graph, given, f", behind {stop.words}")
                    if not any(map(has_nan, given)):  # the interpreter makes none
                        raise NaNError(f"{graph.name}: a NaN behind {stop.words}")
        made.record.launches += 1
        return tuple(outputs)

    return call


def _stops(
    graph: Graph, made: CudaExecutable, strides: Mapping[Value, Shape], bases: Bases, device: int
) -> list[Stop]:
    target, unit = graphs.target(device), made.unit
    plan = plan_cuda(graph, target, strides)
    costs = launch_costs(graph, target, strides)
    prepared, steps = scheduled(graph, strides)
    buffers = name_buffers(prepared, steps, strides, len(prepared.outputs))
    places = {s.name: s for s in plan.slots}
    found = executable.machine_code(unit, graph.name, device)
    last = {step: k for k, step in enumerate(plan.steps)}
    stops = []
    for k, (launch, step) in enumerate(zip(unit.launches, plan.steps, strict=True)):
        alone = replace(unit, launches=(launch,))
        run, head, keep = executable.runner(alone, bases, found, device)
        results: list[Seen] = []
        for v in steps[step].values if last[step] == k else ():
            slot = places.get(buffers[v].name)
            if slot is not None and v.dtype.is_floating_point:
                base = {"input": 0, "output": bases.inputs, "arena": bases.arena}[slot.kind]
                index, start = (0, slot.position) if slot.kind == "arena" else (slot.position, 0)
                results.append(Seen(v, base + int(index), int(start)))
        lines = ", ".join(f"{at}: {at.text}" if at.text else str(at) for at in costs[k].lines)
        name = costs[k].kernel
        words = f"launch {k + 1} of {len(unit.launches)}, {name}" + (f" ({lines})" if lines else "")
        stops.append(Stop(run, head, keep, words, tuple(results)))
    return stops


def _inputs(
    graph: Graph, addresses: Sequence[int], strides: Mapping[Value, Shape], device: int
) -> list[np.ndarray]:
    """The inputs of a call, in host memory."""
    arrays = []
    for v, address in zip(graph.inputs, addresses, strict=True):
        shape, size = tuple(map(int, v.shape)), v.dtype.itemsize
        own = strides.get(v)
        steps = None if own is None else tuple(int(s) * size for s in own)
        dtype = DeviceDType.of(v.dtype.numpy, device)
        arrays.append(DeviceArray(None, address, shape, steps, dtype).to_host())
    return arrays
