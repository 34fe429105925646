"""A CUDA unit that can be called: device addresses of inputs in, new device memory out.

`build(graph, name, unit, ...)` compiles, loads and prepares; `CudaExecutable.call` is generated
Python that takes memory from the pool, fills a table of addresses and calls C once (`launch.c`), which
launches everything. Calls return before the device has finished, unless the unit reports a status.
Start reading at `build`.

Note [Without a C compiler]
The loop is then Python's, over prepared functions of pycuda: some microseconds more for each launch.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from tracegrad.codegen.cuda.plan import CudaUnit
from tracegrad.ir.errors import (
    AcceleratorError,
    BoundsError,
    CompilerNotFound,
    DivisionByZeroError,
)  # fmt: skip
from tracegrad.ir.graph import Graph, Value
from tracegrad.ir.types import Shape, TensorType
from tracegrad.runtime import cache, history, kernels
from tracegrad.runtime._abi import ffi
from tracegrad.runtime.cuda import cubins, cublas, driver, launches, memory, modules
from tracegrad.runtime.cuda.compilers import SOURCE
from tracegrad.runtime.cuda.events import Span
from tracegrad.runtime.cuda.launches import NUMBER, Bases
from tracegrad.runtime.cuda.memory import Memory

HEAD = 4  # of the argument table: launches, functions, status on the host, status on the device
STATUS_BYTES = 32
ORDER, LIBRARY = 65536, 32768  # how `launch.c` packs what went wrong
_FUNCTIONS = (
    "cuCtxGetCurrent", "cuCtxSetCurrent", "cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2",
    "cuLaunchKernel", "cuMemsetD8Async", "cuMemcpyDtoH_v2", "cuMemcpyDtoDAsync_v2",
)  # fmt: skip


@dataclass(frozen=True)
class CudaExecutable:
    """A compiled graph on a device.

    Attributes:
        call: `call(*addresses)` -> tuple of `Memory`, one per output.
        text: the Python text of `call`, and below it the launches.
        unit: CUDA, launches and sizes.
        record: its line in `kernel_history()`; `call` counts `record.launches`.
        key: of the cubin; 64 hexadecimal digits.
    """

    call: Callable[..., tuple[Memory, ...]]
    text: str
    unit: CudaUnit
    record: history.KernelRecord
    key: str


class Slot:
    """What one call in flight needs: the table of addresses, and a status where the unit has one."""

    __slots__ = ("numbers", "pointers", "status", "status_memory", "view")

    def __init__(self, head: Sequence[int], bases: Bases, device: int, uses_status: bool) -> None:
        self.numbers = np.zeros(HEAD + bases.count, np.uintp)
        self.numbers[: len(head)] = head
        self.status = np.zeros(4, np.int64)
        self.status_memory: Memory | None = None
        if uses_status:
            self.status_memory = memory.allocate(STATUS_BYTES, device)
            self.numbers[2] = kernels.pointer(self.status)
            self.numbers[3] = self.numbers[HEAD + bases.status] = self.status_memory.address
        self.view = self.numbers.data
        self.pointers = ffi.from_buffer("void *[]", self.numbers)


def build(
    graph: Graph, name: str, unit: CudaUnit, *, outputs: Sequence[TensorType], device: int,
    codegen_ms: float = 0.0, strides: Mapping[Value, Shape] | None = None,
) -> CudaExecutable:  # fmt: skip
    """Compile and load a unit for a device.

    Args:
        graph: what the unit computes; its name goes to the history.
        name: of the function in `text`.
        outputs: types of what a call returns.
        codegen_ms: for the history.
        strides: of inputs that are not contiguous, for rehearsals.
    Raises:
        CompilerNotFound: there is no CUDA compiler and the cache does not hold this unit.
        CompileError: the compiler refused the code.
        AcceleratorError: there is no CUDA, or it refused the machine code.
    """
    start = time.perf_counter()
    bases = Bases(len(graph.inputs), len(outputs))
    found = machine_code(unit, graph.name, device)
    run, head, keep = runner(unit, bases, found, device)
    elapsed = (time.perf_counter() - start) * 1e3
    record = history.DeviceRecord(
        found.key, graph.name, found.origin, codegen_ms, found.compile_ms, elapsed,
        unit.nbytes, bases.inputs, bases.outputs, len(graph.nodes),
        source=str(found.path.with_name(SOURCE)) if unit.code else "",
    )  # fmt: skip
    text = call_text(name, unit, bases, [int(t.nbytes) for t in outputs], device)
    namespace: dict[str, Any] = {
        "slots": [],
        "new_slot": lambda: Slot(head, bases, device, unit.uses_status),
        "allocate": memory.pool(device).allocate,
        "tg_run": run,  # `history.timing` may put a clock around it
        "fail": functools.partial(_fail, unit, device),
        "record": history.record(record),
        "keep": keep,
    }
    exec(compile(text, f"<tracegrad {graph.name}>", "exec"), namespace)
    begin = functools.partial(Span, device)
    watched = history.Launchable(run, record, graph, strides or {}, device, unit, begin)
    history.watch(namespace[name], watched)
    listing = f"{text}\n# launches\n" + "".join(
        f"# {line}\n" for line in launches.table_text(unit, bases).splitlines()
    )
    return CudaExecutable(namespace[name], listing, unit, record, found.key)


def machine_code(unit: CudaUnit, label: str, device: int) -> cubins.Cubin:
    """The compiled module of a unit."""
    if unit.code:
        return cubins.cubin(unit.code, driver.arch(device), label=label, listing=unit.source)
    key = cache.make_key({"launches": repr(unit.launches)})  # products only: nothing to compile
    return cubins.Cubin(key, b"", Path(), "memory", 0.0)


def call_text(name: str, unit: CudaUnit, bases: Bases, outputs: Sequence[int], device: int) -> str:
    """The function that calls a unit.

    Args:
        outputs: bytes of each output.
    """
    names = [f"in_{k}" for k in range(bases.inputs)]
    lines = [
        f"def {name}({', '.join(names)}):",
        f'    """Device addresses of {len(names)} inputs -> {len(outputs)} pieces of memory on '
        f'cuda:{device}; {unit.kernels} launches."""',
        *(f"    out_{k} = allocate({nbytes})" for k, nbytes in enumerate(outputs)),
    ]
    if unit.arena_bytes:
        lines.append(f"    arena = allocate({unit.arena_bytes})")
    lines += ["    try:", "        slot = slots.pop()", "    except IndexError:"]
    lines += ["        slot = new_slot()", "    args = slot.view"]
    lines += [f"    args[{HEAD + k}] = {n}" for k, n in enumerate(names)]
    start = HEAD + bases.inputs
    lines += [f"    args[{start + k}] = out_{k}.address" for k in range(len(outputs))]
    if unit.arena_bytes:
        lines.append(f"    args[{HEAD + bases.arena}] = arena.address")
    results = "".join(f"out_{k}, " for k in range(len(outputs))).strip()
    lines += [
        "    code = tg_run(slot.pointers)",
        "    if code:",
        "        fail(slot, code)",
        "    slots.append(slot)",
        "    record.launches += 1",
        f"    return ({results})",
    ]
    return "\n".join(lines) + "\n"


# --- what runs the launches -----------------------------------------------------------------------

Run = Callable[[Any], int]


def runner(
    unit: CudaUnit, bases: Bases, found: cubins.Cubin, device: int
) -> tuple[Run, list[int], tuple[Any, ...]]:
    """What runs the launches, the first words of its arguments, and what must stay alive."""
    products = any(launch.product is not None for launch in unit.launches)
    try:
        run = _launcher()
    except CompilerNotFound:
        if products:
            raise AcceleratorError("cuBLAS is called from C, and there is no C compiler") from None
        return _python_loop(unit, bases, driver.load(found.image, device), device), [], ()

    def handle(kernel: str, shared: int) -> int:
        return modules.load(found.key, found.image, device).handle(kernel, shared)

    table = np.array(launches.table(unit, bases, handle), np.int64)
    api = np.array(_api(device, products), np.uintp)
    return run, [kernels.pointer(table), kernels.pointer(api)], (table, api)


def copy_all(copies: Sequence[tuple[int, int, int]], device: int) -> None:
    """Copy within a device, asynchronously and in order: (target, source, bytes) each.

    Raises:
        AcceleratorError: the driver refuses.
    """
    try:
        run = _launcher()
    except CompilerNotFound:
        for target, source, nbytes in copies:
            driver.within_device(target, source, nbytes, device)
        return
    rows = [len(copies)]
    for copy in copies:
        rows += (2, *copy)
    table = np.array(rows, np.int64)
    head = [kernels.pointer(table), kernels.pointer(_copying(device)), 0, 0]
    code = run(ffi.from_buffer("void *[]", np.array(head, np.uintp)))
    if code:
        raise driver.fault(code % ORDER, device, "copies within the device")


@functools.cache
def _copying(device: int) -> np.ndarray:
    return np.array(_api(device, products=False), np.uintp)


def _launcher() -> Run:
    """`launch.c`, compiled."""
    source = Path(__file__).with_name("launch.c").read_text(encoding="utf-8")
    return kernels.load(source, label="launches of CUDA", listed=False).run


def _api(device: int, products: bool) -> list[int]:
    """The `api_t` of `launch.c`."""
    library = [cublas.gemm(), cublas.handle(device)] if products else [0, 0]
    functions = [driver.address_of(name) for name in _FUNCTIONS]
    context = int(ffi.cast("uintptr_t", driver.context(device)))
    return [context, *functions, *library, cublas.tf32_cell()]


def _python_loop(unit: CudaUnit, bases: Bases, module: Any, device: int) -> Run:
    """The same as `launch.c`, slower. See Note [Without a C compiler]."""
    prepared = []
    for launch in unit.launches:
        given = launches.arguments(launch, bases)
        types = "".join("q" if base == NUMBER else "P" for base, _ in given)
        function = driver.function(module, launch.kernel, types, launch.shared, device)
        prepared.append((function, launch.grid, launch.block, launch.shared, given))

    def run(pointers: Any) -> int:
        numbers = np.frombuffer(ffi.buffer(pointers), np.uintp).tolist()
        host, on_device, base = numbers[2], numbers[3], numbers[HEAD:]
        if on_device:
            driver.fill_bytes(on_device, 0, STATUS_BYTES, device)
        for function, grid, block, shared, given in prepared:
            cells = tuple(v if b == NUMBER else base[b] + v for b, v in given)
            driver.launch(function, grid, block, shared, cells, device)
        if not on_device:
            return 0
        status = np.frombuffer(ffi.buffer(ffi.cast("char *", host), STATUS_BYTES), np.int64)
        driver.to_host(status, on_device, device)
        return -1 if status[0] else 0

    return run


def _fail(unit: CudaUnit, device: int, slot: Slot, code: int) -> NoReturn:
    """Raise what a call reported. The slot of a fault is not used again."""
    if code == -1:
        kind, index, axis, size = (int(n) for n in slot.status)
        if kind == 2:
            raise DivisionByZeroError(
                "ZeroDivisionError: an integer divisor is 0; mask it, or divide floating-point "
                "numbers"
            )
        raise BoundsError(f"index {index} is out of bounds for dimension {axis} with size {size}")
    number, rest = divmod(code, ORDER)
    if rest >= LIBRARY:
        cublas.check(rest - LIBRARY, "cublasGemmStridedBatchedEx")
    what = "reading the status"
    if number <= len(unit.launches):
        launch = unit.launches[number - 1]
        what = f"launch {number} of {len(unit.launches)}, {launch.kernel or 'a product'}"
    raise driver.fault(rest, device, what)
