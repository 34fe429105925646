"""A translation unit that can be called: addresses of inputs in, new arrays out.

`build(graph, ...)` generates, compiles and loads; `Executable.call` is generated Python that fills
one argument table and calls `tg_run` once. Tables and arenas are pooled, one per call in flight, so
threads do not meet. Start reading at `build`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from tracegrad.codegen.arena import ALIGN
from tracegrad.codegen.checks import STRAYED, Check
from tracegrad.codegen.launchers import executable_text
from tracegrad.codegen.plan import Target
from tracegrad.codegen.unit import Unit, UnitPlan, plan_unit, render_unit
from tracegrad.ir.errors import BoundsError, CompilerNotFound, DivisionByZeroError
from tracegrad.ir.graph import Graph, Value
from tracegrad.ir.passes.sizes import symbols
from tracegrad.ir.types import Shape, TensorType
from tracegrad.runtime import cache, debugging, history, kernels, toolchain
from tracegrad.runtime._abi import ffi

Slot = list[Any]  # table, the same as pointers, a stamp of what it holds, status, memory of them


@dataclass(frozen=True)
class Executable:
    """A compiled graph.

    Attributes:
        call: `call(*addresses)` -> tuple of new arrays, one per output that is not written where an
            input lies.
        text: the Python text of `call`.
        unit: plans and C texts.
        kernel: the loaded shared object.
        types: of the outputs, None for those.
        names: what the names in `text` stand for, for others that call the unit themselves.
        launchable: for `history.watch`.
    """

    call: Callable[..., tuple[np.ndarray, ...]]
    text: str
    unit: Unit
    kernel: kernels.LoadedKernel
    types: tuple[TensorType | None, ...] = ()
    names: Mapping[str, Any] = field(default_factory=dict)
    launchable: history.Launchable | None = None


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


def generate(
    graph: Graph, strides: Mapping[Value, Shape] | None = None, checks: Sequence[Check] = (),
    returned: int | None = None, device: str | None = None,
    inplace: Mapping[int, int] | None = None,
) -> Unit:  # fmt: skip
    """The C of a graph for the compiler at hand (or, without one, for a usual one).

    For a graph on a device, or where `device` asks for it, its CUDA.

    A unit made before, by this or another process, comes from the disk cache: scheduling and the
    template engine are then not needed.
    """
    if (device or graph.device) != "cpu":
        from tracegrad.runtime.cuda import graphs

        return graphs.generate(graph, strides, returned)  # type: ignore[return-value]
    try:
        chosen = target()
    except CompilerNotFound:
        chosen = Target()
    places = dict(inplace or {})
    key = _unit_key(graph, chosen, strides or {}, (tuple(checks), returned, places))
    kept = cache.get_text("units", key)
    if kept is not None:
        found = json.loads(kept)
        found["numbers"] = tuple(found["numbers"])
        found["inplace"] = tuple(map(tuple, found["inplace"]))
        return Unit(**found)
    unit = render_unit(plan_unit(graph, chosen, strides or {}, checks, returned, places), chosen)
    cache.put_text("units", key, json.dumps(asdict(unit)))
    return unit


def planned(
    graph: Graph, strides: Mapping[Value, Shape] | None = None, checks: Sequence[Check] = (),
    returned: int | None = None, inplace: Mapping[int, int] | None = None,
) -> UnitPlan:  # fmt: skip
    """What `generate` with the same arguments decides, in host memory."""
    try:
        chosen = target()
    except CompilerNotFound:
        chosen = Target()
    return plan_unit(graph, chosen, strides or {}, checks, returned, dict(inplace or {}))


def _unit_key(
    graph: Graph, chosen: Target, strides: Mapping[Value, Shape], checks: tuple[Any, ...]
) -> str:
    """Everything that the text of a unit depends on: graph, lines, layouts, target, generator."""
    layouts = [strides.get(v) for v in graph.inputs]
    lines = sorted({f"{n.location}: {n.location.text}" for n in graph.nodes if n.location})
    parts = (
        str(graph), "\n".join(lines), repr(layouts), repr(chosen), repr(checks), _generator_stamp(),
        repr(symbols(graph)),
    )  # fmt: skip
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@functools.lru_cache(maxsize=1)
def _generator_stamp() -> str:
    """Identity of the code generator: names, sizes and times of its files."""
    top = Path(__file__).resolve().parent.parent
    files = [p for folder in ("ir", "codegen") for p in sorted((top / folder).rglob("*.*"))]
    stats = [(p.name, p.stat()) for p in files if p.suffix in (".py", ".j2", ".c")]
    return repr([(name, s.st_size, s.st_mtime_ns) for name, s in stats])


class Strayed(Exception):
    """A check found another value than the path has.

    Attributes:
        number: of the check.
        value: the first eight bytes of what it found.
    """

    def __init__(self, number: int, value: bytes) -> None:
        super().__init__(number, value)
        self.number, self.value = number, value


def build(
    graph: Graph, name: str, strides: Mapping[Value, Shape] | None = None,
    checks: Sequence[Check] = (), returned: int | None = None, debug: bool = False,
    inplace: Mapping[int, int] | None = None,
) -> Executable:  # fmt: skip
    """Generate, compile and load a graph.

    Args:
        checks, returned: as for `codegen.unit.build`. A call raises `Strayed` where a check fails.
        inplace: as for `codegen.unit.plan_unit`, in host memory.
        debug: a call raises `NaNError` where an operation makes a NaN.
    Raises:
        CompilerNotFound: there is no compiler and the cache does not hold this graph's code.
        CompileError: the compiler refused the code.
    """
    if graph.device != "cpu":
        from tracegrad.runtime.cuda import traces

        return traces.build(graph, name, strides, checks, returned, debug)  # type: ignore[return-value]
    start = time.perf_counter()
    unit = generate(graph, strides, checks, returned, inplace=inplace)
    elapsed = (time.perf_counter() - start) * 1e3
    outputs = graph.outputs[:returned]
    kernel = kernels.load(
        unit.code, label=graph.name, listing=unit.source, codegen_ms=elapsed,
        inputs=len(graph.inputs), outputs=len(outputs), ops=len(graph.nodes),
        bytes=unit.nbytes,
    )  # fmt: skip
    replaced = dict(unit.inplace)
    types = [None if k in replaced else v.type for k, v in enumerate(outputs)]
    text = executable_text(name, len(graph.inputs), types, unit.kernels)
    slots: list[Slot] = []
    namespace: dict[str, Any] = {
        "slots": slots,
        "new_slot": lambda: _new_slot(unit, len(graph.inputs) + len(outputs)),
        "empty": np.empty,
        "buffer": ffi.from_buffer,
        "tg_run": kernel.run,  # `history.timing` may put a clock around it
        "fail": _fail,
        "record": kernel.record,
        **{f"dtype_{t.dtype.name}": t.dtype.numpy for t in types if t is not None},
    }
    names = dict(namespace)
    exec(compile(text, f"<tracegrad {graph.name}>", "exec"), namespace)
    watched = history.Launchable(kernel.run, kernel.record, graph, strides or {})
    history.watch(namespace[name], watched)
    call = namespace[name]
    if debug:
        call = debugging.watched(graph, call, strides)
    return Executable(call, text, unit, kernel, tuple(types), names, watched)


def _new_slot(unit: Unit, arguments: int) -> Slot:
    """An argument table with an arena and a status of its own."""
    table = np.zeros(arguments + 2 + len(unit.numbers), np.uintp)
    table[arguments + 2 :] = unit.numbers
    arena = np.empty(unit.arena_bytes + ALIGN, np.uint8)
    status = np.zeros(4, np.int64)
    base = kernels.pointer(arena)
    table[arguments] = -(-base // ALIGN) * ALIGN
    table[arguments + 1] = kernels.pointer(status)
    view = table.data
    return [view, ffi.from_buffer("void *[]", table), None, status, table, arena]


def _fail(slot: Slot, slots: list[Slot]) -> NoReturn:
    """Raise what the unit reported in the status, which is clean again for the next call."""
    status = slot[3]
    code, index, axis, size = (int(n) for n in status)
    value = status[2:3].tobytes()
    status[:] = 0
    slots.append(slot)
    if code == STRAYED:
        raise Strayed(index, value)
    if code == 2:
        raise DivisionByZeroError(
            "ZeroDivisionError: an integer divisor is 0; mask it, or divide floating-point numbers"
        )
    raise BoundsError(f"index {index} is out of bounds for dimension {axis} with size {size}")
