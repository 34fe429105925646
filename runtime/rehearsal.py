"""Rehearsals: how a launch divides its time among the kernels of its unit, measured.

A launch is one call, so its kernels cannot be timed from outside. `rehearse` builds the same
kernels with a clock between them (`codegen.timed`) and runs them a few times on memory of its own:
inputs of the right shapes, dtypes and strides, filled with harmless numbers. Nothing of it reaches
the results of the user's function. Start reading at `rehearse`.
"""

from __future__ import annotations

import time

import numpy as np

from tracegrad.codegen.arena import ALIGN
from tracegrad.codegen.timed import timed_code
from tracegrad.ir.errors import CompileError, CompilerNotFound
from tracegrad.ir.graph import Value
from tracegrad.ir.types import Shape
from tracegrad.runtime import executable, kernels
from tracegrad.runtime._abi import ffi
from tracegrad.runtime.history import Launchable

MANY_KERNELS = 64  # compiling a unit of more once again takes longer than its figures are worth
SECONDS = 0.05  # after which no further run begins
RUNS = 10


def rehearse(what: Launchable) -> list[float] | None:
    """Nanoseconds that each kernel of a unit takes, the least of several runs.

    Returns:
        One number per kernel, in order; None where there is no compiler or no memory, there are
        many kernels, a kernel refuses the stand-in numbers, or the launch was on another device.
    """
    if what.device is not None:
        return None
    graph, strides = what.graph, what.strides
    unit = executable.generate(graph, strides)
    if not 1 <= unit.kernels <= MANY_KERNELS:
        return None
    arguments = len(graph.inputs) + len(graph.outputs) + 2 + len(unit.numbers)
    try:
        loaded = kernels.load(
            timed_code(unit.code, arguments), label=f"{graph.name}: rehearsal",
            inputs=len(graph.inputs), outputs=len(graph.outputs), ops=len(graph.nodes),
        )  # fmt: skip
        inputs = [_stand_in(v, strides.get(v)) for v in graph.inputs]
        outputs = [np.zeros(v.shape, v.dtype.numpy) for v in graph.outputs]
        arena = np.zeros(unit.arena_bytes + ALIGN, np.uint8)
    except (CompilerNotFound, CompileError, MemoryError):
        return None  # the caller has the cost model
    status, times = np.zeros(4, np.int64), np.zeros(unit.kernels + 1, np.int64)
    args = kernels.new_args(arguments + 1)
    aligned = -(-kernels.pointer(arena) // ALIGN) * ALIGN
    addresses = [*map(kernels.pointer, (*inputs, *outputs)), aligned]
    addresses += [kernels.pointer(status), *unit.numbers, kernels.pointer(times)]
    for k, address in enumerate(addresses):
        args[k] = ffi.cast("void *", address)
    return _least(loaded, args, times)


def _least(loaded: kernels.LoadedKernel, args: object, times: np.ndarray) -> list[float] | None:
    if loaded.run(args):
        return None
    best = np.full(times.size - 1, np.inf)
    until = time.perf_counter() + SECONDS
    for _ in range(RUNS):
        loaded.run(args)
        np.minimum(best, np.maximum(np.diff(times), 0), out=best)
        if time.perf_counter() > until:
            break
    return [float(t) for t in best]


def _stand_in(value: Value, strides: Shape | None) -> np.ndarray:
    """An array of a value's type and layout: ones where it is floating, else zeros.

    Zero is an index that every table has.
    """
    dtype = value.dtype.numpy
    fill = 1 if value.dtype.is_floating_point else 0
    if strides is None:
        return np.full(value.shape, fill, dtype)
    spans = [(n - 1) * s for n, s in zip(value.shape, strides, strict=True) if n > 1]
    before = -sum(s for s in spans if s < 0)
    memory = np.full(1 + sum(map(abs, spans)), fill, dtype)
    return np.lib.stride_tricks.as_strided(
        memory[before:], value.shape, [s * dtype.itemsize for s in strides]
    )
