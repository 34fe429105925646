"""CUDA modules compiled as host C++ by `cuda_on_cpu.h`, and `CudaUnit`s run with them.

Threads of a block take turns; forward and in reverse, which shows a barrier that is missing. Arrays end
at a page that nobody may touch, outputs and the arena begin as NaN. Start reading at `run_units`.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tracegrad.codegen.cuda.plan import CudaUnit, Launch, Product

HEADER = Path(__file__).parent / "cuda_on_cpu.h"
FLAGS = ["-x", "c++", "-std=c++17", "-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-fPIC",
         "-shared", "-fvisibility=hidden", "-fno-exceptions", "-Wall", "-Wno-unknown-pragmas",
         "-Wno-unused-function"]  # fmt: skip
VISIBLE = 'extern "C" __attribute__((visibility("default")))'
ORDERS = ("forward", "reverse")
_KERNEL = re.compile(
    r'extern "C" __global__ void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\('
)
_DYNAMIC = re.compile(
    r"\bextern\s+__shared__\s+(?:__align__\(\d+\)\s+)?([\w:\s]+?)\s*(\w+)\s*\[\s*\]\s*;"
)


class LaunchError(RuntimeError):
    """A fault in a kernel: a bad access, a barrier that not all reach, a wrong mask."""


def host_source(codes: Sequence[str]) -> str:
    """Modules as one C++ source, each in a namespace of its own: `u0`, `u1`, ..."""
    parts = [f"{VISIBLE} const char* tgcpu_last_error();"]
    for k, code in enumerate(codes):
        names = _KERNEL.findall(code)
        text = _DYNAMIC.sub(r"TGCPU_EXTERN_SHARED(\1, \2);", code)
        text = text.replace('extern "C" __global__', "__global__")
        parts.append(f"namespace u{k} {{\n{text}\n}}")
        for name in names:
            parts.append(
                f"{VISIBLE} int u{k}_{name}(const unsigned *g, const unsigned *b, size_t shared, "
                f"void **p) {{ return tgcpu::launch(u{k}::{name}, g, b, shared, p); }}"
            )
    return "\n".join(parts)


def build(source: str, *extra: str) -> ctypes.CDLL:
    """Compile and load a source, which is kept for the next run under the hash of all that it is of."""
    command = [os.environ.get("CXX", "g++"), *FLAGS, *extra, "-include", str(HEADER)]
    key = "\0".join([source, HEADER.read_text(), *command])
    folder = Path(tempfile.gettempdir()) / f"tracegrad_cuda_on_cpu_{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    made = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.so"
    if not made.exists():
        fresh = made.with_suffix(f".{os.getpid()}")
        done = subprocess.run(
            [*command, "-", "-o", str(fresh)], input=source, text=True, capture_output=True
        )
        assert done.returncode == 0, done.stderr[:4000]
        os.replace(fresh, made)
    library = ctypes.CDLL(str(made))
    library.tgcpu_last_error.restype = ctypes.c_char_p
    return library


@cache
def _mprotect() -> Any:
    return ctypes.CDLL(None, use_errno=True).mprotect


def guarded(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An array of 0xff that ends at a page nobody may touch, as close as 16 bytes of alignment allow."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape))
    nbytes = count * dtype.itemsize
    room = -(-max(nbytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, room + mmap.PAGESIZE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert _mprotect()(ctypes.c_void_p(base + room), mmap.PAGESIZE, 0) == 0
    flat = np.frombuffer(memory, np.uint8, nbytes, (room - nbytes) & ~15)
    flat[:] = 0xFF
    return flat.view(dtype).reshape(shape)


def guarded_copy(array: np.ndarray) -> np.ndarray:
    """The same elements with the same strides in guarded memory."""
    if array.flags.c_contiguous:
        copy = guarded(array.shape, array.dtype)
        copy[...] = array
        return copy
    steps = [(n - 1) * s for n, s in zip(array.shape, array.strides, strict=True)]
    low, high = sum(min(s, 0) for s in steps), sum(max(s, 0) for s in steps)
    flat = guarded((high - low + array.itemsize,), np.uint8)
    view = np.ndarray(array.shape, array.dtype, flat.data, -low, array.strides)
    if 0 not in array.strides:
        view[...] = array
    else:
        first = tuple(slice(0, 1) if s == 0 else slice(None) for s in array.strides)
        view[first] = array[first]
    return view


class Emulated:
    """Some units, compiled together."""

    def __init__(self, units: Sequence[CudaUnit], *extra: str) -> None:
        self.units = units
        self.library = build(host_source([u.code for u in units]), *extra)

    def run(
        self,
        k: int,
        graph_outputs: Sequence[Any],
        arrays: Sequence[np.ndarray],
        order: str = "forward",
    ) -> tuple[list[np.ndarray], list[int]]:
        """The outputs of unit `k` (of these types), and the status."""
        unit = self.units[k]
        memory = {
            "input": [guarded_copy(a) for a in arrays],
            "output": [guarded(tuple(map(int, t.shape)), t.dtype.numpy) for t in graph_outputs],
            "status": [np.zeros(4, np.int64)],
        }
        size = -(-unit.arena_bytes // 256) * 256
        arena = guarded((size,), np.uint8)
        os.environ["TGCPU_ORDER"] = order
        for launch in unit.launches:
            addresses = [
                arena.ctypes.data + p.position if p.kind == "arena"
                else memory[p.kind][p.position].ctypes.data
                for p in launch.arguments
            ]  # fmt: skip
            if launch.product is not None:
                multiply(launch.product, addresses)
            else:
                self._launch(k, launch, addresses)
        return memory["output"], [int(n) for n in memory["status"][0]]

    def _launch(self, k: int, launch: Launch, addresses: Sequence[int]) -> None:
        grid, block = ((ctypes.c_uint * 3)(*t) for t in (launch.grid, launch.block))
        cells = [ctypes.c_int64(n) for n in launch.numbers] + [
            ctypes.c_void_p(a) for a in addresses
        ]
        pointers = (ctypes.c_void_p * len(cells))(*[ctypes.addressof(c) for c in cells])
        call = getattr(self.library, f"u{k}_{launch.kernel}")
        if call(grid, block, ctypes.c_size_t(launch.shared), pointers):
            raise LaunchError(f"{launch.kernel}: {self.library.tgcpu_last_error().decode()}")


def run_both_ways(
    emulated: Emulated, k: int, types: Sequence[Any], arrays: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], list[int]]:
    """Run a unit with threads forward and in reverse: the bits must be the same."""
    one, status = emulated.run(k, types, arrays)
    other, _ = emulated.run(k, types, arrays, "reverse")
    if not any(status):
        for a, b in zip(one, other, strict=True):
            assert a.tobytes() == b.tobytes(), "the order of threads changes the result"
    return one, status


def run_unit(
    unit: CudaUnit, types: Sequence[Any], arrays: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """The outputs of one unit, forward and in reverse the same bits, with a status of zeros."""
    outputs, status = run_both_ways(Emulated([unit]), 0, types, arrays)
    assert not any(status), status
    return outputs


def multiply(product: Product, addresses: Sequence[int]) -> None:
    """What cuBLAS would do, in double."""
    p = product
    if p.dtype == "bfloat16":
        import ml_dtypes

        dtype: Any = np.dtype(ml_dtypes.bfloat16)
    else:
        dtype = np.dtype(p.dtype)
    a, b, c = (
        _matrices(addresses[i], dtype, p, i, shape)
        for i, shape in enumerate([(p.m, p.k), (p.k, p.n), (p.m, p.n)])
    )
    c[...] = (a.astype(np.float64) @ b.astype(np.float64)).astype(dtype)


def _matrices(address: int, dtype: Any, p: Product, i: int, shape: tuple[int, int]) -> np.ndarray:
    turned = i < 2 and p.transposed[i]
    rows, columns = shape[::-1] if turned else shape
    size = p.apart[i] * (p.batch - 1) + p.leading[i] * (rows - 1) + columns
    at = address + p.offsets[i] * dtype.itemsize
    memory = (ctypes.c_char * (size * dtype.itemsize)).from_address(at)
    strides = tuple(s * dtype.itemsize for s in (p.apart[i], p.leading[i], 1))
    found = np.ndarray((p.batch, rows, columns), dtype, memory, 0, strides)
    return found.swapaxes(1, 2) if turned else found
