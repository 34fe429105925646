"""Rehearsals on a device: how long each launch of a unit takes, by events, on stand-in data.

The launches run in their order on memory of their own, each many times in a row, so that what is
measured is the device and not the host. Start reading at `rehearse`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from tracegrad.codegen.cuda.plan import CudaUnit
from tracegrad.ir.graph import Graph, Value
from tracegrad.ir.types import Shape
from tracegrad.runtime._abi import ffi
from tracegrad.runtime.cuda import driver, executable, memory
from tracegrad.runtime.cuda.array import DeviceArray
from tracegrad.runtime.cuda.events import Event
from tracegrad.runtime.cuda.executable import HEAD, STATUS_BYTES
from tracegrad.runtime.cuda.launches import Bases

RUNS = 3
IN_A_ROW = 20


def rehearse(
    graph: Graph, unit: CudaUnit, device: int, strides: Mapping[Value, Shape] | None = None
) -> list[float]:
    """Nanoseconds of each launch, the least of several runs.

    A kernel that is shorter than its launch (2 to 4 microseconds) counts as long as that.
    """
    bases = Bases(len(graph.inputs), len(graph.outputs))
    held = [_stand_in(v, (strides or {}).get(v), device) for v in graph.inputs]
    addresses = [x.address for x in held]
    parts = [memory.allocate(v.type.nbytes, device) for v in graph.outputs]
    arena = memory.allocate(max(unit.arena_bytes, 1), device)
    status = memory.allocate(STATUS_BYTES, device)
    addresses += [*(m.address for m in parts), arena.address, status.address]
    found = executable.machine_code(unit, "rehearsal", device)
    calls = []
    for launch in unit.launches:
        alone = replace(unit, launches=(launch,) * IN_A_ROW)
        run, head, keep = executable.runner(alone, bases, found, device)
        numbers = np.zeros(HEAD + bases.count, np.uintp)
        numbers[: len(head)] = head
        numbers[HEAD:] = addresses
        calls.append((run, ffi.from_buffer("void *[]", numbers), numbers, keep))
    best = [float("inf")] * len(calls)
    for _ in range(RUNS):
        driver.fill_bytes(status.address, 0, STATUS_BYTES, device)
        for k, (run, pointers, _, _) in enumerate(calls):
            before, after = Event(device), Event(device)
            before.record()
            run(pointers)
            after.record()
            after.synchronize()
            best[k] = min(best[k], before.elapsed_time(after) * 1e6 / IN_A_ROW)
    return best


def _stand_in(value: Value, strides: Shape | None, device: int) -> DeviceArray:
    """An array of a value's type and layout: small random numbers where it is floating, else zeros.

    Zero is an index that every table has.
    """
    numpy = value.dtype.numpy
    shape = tuple(map(int, value.shape))
    span = int(np.prod(shape))
    if strides is not None:
        span = 1 + sum((n - 1) * abs(s) for n, s in zip(shape, strides, strict=True))
    if value.dtype.is_floating_point:
        data = np.random.default_rng(0).uniform(0.1, 1.0, span).astype(numpy)
    else:
        data = np.zeros(span, numpy)
    array = DeviceArray.from_host(data, device)
    if strides is None:
        return array.reshape(shape)
    below = -sum((n - 1) * s for n, s in zip(shape, strides, strict=True) if s < 0)
    size = numpy.itemsize
    return array.part(below * size, shape, tuple(s * size for s in strides))
