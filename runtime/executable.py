"""A translation unit that can be called: addresses of inputs in, new arrays out.

`build(graph, ...)` generates, compiles and loads; `Executable.call` is generated Python that fills
one argument table and calls `tg_run` once. Tables and arenas are pooled, one per call in flight, so
threads do not meet. Start reading at `build`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from tracegrad.codegen.launchers import executable_text
from tracegrad.codegen.plan import Target
from tracegrad.codegen.unit import ALIGN, Unit
from tracegrad.codegen.unit import build as build_unit
from tracegrad.ir.errors import DimensionError
from tracegrad.ir.graph import Graph, Value
from tracegrad.ir.types import Shape
from tracegrad.runtime import kernels, toolchain
from tracegrad.runtime._abi import ffi

Slot = tuple[Any, Any, np.ndarray, np.ndarray, np.ndarray]  # table, pointers, then their memory


@dataclass(frozen=True)
class Executable:
    """A compiled graph.

    Attributes:
        call: `call(*addresses)` -> tuple of new arrays, one per output.
        text: the Python text of `call`.
        unit: plans and C texts.
        kernel: the loaded shared object.
    """

    call: Callable[..., tuple[np.ndarray, ...]]
    text: str
    unit: Unit
    kernel: kernels.LoadedKernel


def target() -> Target:
    """What the compiler of this process can do.

    Raises:
        CompilerNotFound: there is none.
    """
    tool = toolchain.find()
    version = None
    if tool.libc.startswith("glibc") and tool.target.startswith("x86_64") and "gcc" in tool.version:
        digits = tool.libc.replace("glibc", "").strip(" -").split(".")
        version = (int(digits[0]), int(digits[1]))
    return Target(tool.openmp, version)


def generate(graph: Graph, strides: Mapping[Value, Shape] | None = None) -> Unit:
    """The C of a graph for the compiler at hand (or, without one, for a usual one)."""
    from tracegrad.ir.errors import CompilerNotFound

    try:
        chosen = target()
    except CompilerNotFound:
        chosen = Target()
    return build_unit(graph, target=chosen, strides=strides)


def build(graph: Graph, name: str, strides: Mapping[Value, Shape] | None = None) -> Executable:
    """Generate, compile and load a graph.

    Raises:
        CompilerNotFound: there is no compiler and the cache does not hold this graph's code.
        CompileError: the compiler refused the code.
    """
    start = time.perf_counter()
    unit = build_unit(graph, target=target(), strides=strides)
    elapsed = (time.perf_counter() - start) * 1e3
    kernel = kernels.load(
        unit.code, label=graph.name, listing=unit.source, codegen_ms=elapsed,
        inputs=len(graph.inputs), outputs=len(graph.outputs), ops=len(graph.nodes),
        bytes=unit.nbytes,
    )  # fmt: skip
    types = [v.type for v in graph.outputs]
    text = executable_text(name, unit, len(graph.inputs), types)
    slots: list[Slot] = []
    namespace: dict[str, Any] = {
        "slots": slots,
        "new_slot": lambda: _new_slot(unit, len(graph.inputs) + len(graph.outputs)),
        "empty": np.empty,
        "address": kernels.pointer,
        "tg_run": kernel.run,
        "fail": _fail,
        "record": kernel.record,
        **{f"dtype_{t.dtype.name}": t.dtype.numpy for t in types},
    }
    exec(compile(text, f"<tracegrad {graph.name}>", "exec"), namespace)
    return Executable(namespace[name], text, unit, kernel)


def _new_slot(unit: Unit, arguments: int) -> Slot:
    """An argument table with an arena and a status of its own."""
    table = np.zeros(arguments + 2, np.uintp)
    arena = np.empty(unit.arena_bytes + ALIGN, np.uint8)
    status = np.zeros(4, np.int64)
    base = kernels.pointer(arena)
    table[arguments] = -(-base // ALIGN) * ALIGN
    table[arguments + 1] = kernels.pointer(status)
    view = memoryview(table)
    return (view, ffi.from_buffer("void *[]", table), table, arena, status)


def _fail(slot: Slot) -> NoReturn:
    """Raise what the kernel reported in the status."""
    code, index, axis, size = (int(n) for n in slot[4])
    slot[4][:] = 0
    if code == 2:
        raise ZeroDivisionError("ZeroDivisionError")
    raise DimensionError(f"index {index} is out of bounds for dimension {axis} with size {size}")
