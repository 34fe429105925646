"""A CUDA device that is none: host memory in the place of the device's, graphs run by the interpreter.

For tests of what lies above the runtime: tensors, the tape, capture. Addresses of the double are
those of pages that nobody may touch, so that code which reads device memory from the host crashes
here as it would on a GPU. Kernels themselves are tested in `tests/cuda_on_cpu`.
"""

from __future__ import annotations

import contextlib
import ctypes
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tracegrad.ir.evaluate import evaluate
from tracegrad.ir.graph import Graph, Value
from tracegrad.runtime.cuda import driver, executable, graphs, memory, strided
from tracegrad.tracer import device

SPAN = 1 << 32  # bytes of address space

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_READ_WRITE, _PRIVATE_ANONYMOUS_NORESERVE = 3, 0x4022


def _mapped(protection: int) -> int:
    found = _libc.mmap(None, SPAN, protection, _PRIVATE_ANONYMOUS_NORESERVE, -1, 0)
    assert found not in (None, ctypes.c_void_p(-1).value), "no address space"
    return int(found)


class Memory:
    """Memory of the double; free again with the last reference."""

    def __init__(self, double: Double, address: int, nbytes: int) -> None:
        self.double, self.address, self.nbytes, self.device = double, address, nbytes, 0

    def __del__(self) -> None:
        self.double.free.setdefault(self.nbytes, []).append(self.address)
        self.double.used -= self.nbytes


class Double:
    """The device's memory, and what ran on it.

    Attributes:
        launched: names of the graphs that ran, in order.
    """

    def __init__(self) -> None:
        self.seen = _mapped(0)  # the addresses that the library knows
        self.held = _mapped(_READ_WRITE)  # where the bytes are
        self.free: dict[int, list[int]] = {}
        self.top = self.seen + 256
        self.used = 0
        self.launched: list[str] = []

    def allocate(self, nbytes: int, index: int = 0) -> Memory:
        """Memory full of 0xff, which is NaN for floats."""
        size = -(-max(nbytes, 1) // 256) * 256
        spare = self.free.get(size)
        if spare:
            address = spare.pop()
        else:
            address, self.top = self.top, self.top + size
            assert self.top < self.seen + SPAN, "the double has no more memory"
        self.used += size
        self.bytes(address, size)[:] = 0xFF
        return Memory(self, address, size)

    def bytes(self, address: int, nbytes: int) -> np.ndarray:
        """The bytes at an address of the device."""
        at = address - self.seen + self.held
        return np.frombuffer((ctypes.c_char * nbytes).from_address(at), np.uint8)

    def array(self, address: int, shape: Any, dtype: np.dtype, strides: Any = None) -> np.ndarray:
        """Elements at an address of the device; strides in bytes."""
        base = np.zeros(shape, dtype)
        if strides is None:
            strides = base.strides
        if not base.size:
            return base
        reach = [(n - 1) * s for n, s in zip(shape, strides, strict=True)]
        low = sum(r for r in reach if r < 0)
        nbytes = sum(map(abs, reach)) + dtype.itemsize
        held = (ctypes.c_char * nbytes).from_address(address + low - self.seen + self.held)
        return np.ndarray(shape, dtype, held, -low, strides)

    def of(self, x: Any) -> np.ndarray:
        """The elements of a DeviceArray."""
        return self.array(x.address, x.shape, x.dtype.numpy, x.strides)

    # ---- what stands in the place of the runtime ------------------------------------------------

    def to_device(self, address: int, array: np.ndarray, index: int = 0, wait: bool = True) -> None:
        self.array(address, array.shape, array.dtype)[...] = array

    def to_host(self, array: np.ndarray, address: int, index: int = 0, wait: bool = True) -> None:
        array[...] = self.array(address, array.shape, array.dtype)

    def copy(
        self, target: int, source: int, nbytes: int, index: int = 0, other: Any = None
    ) -> None:
        self.bytes(target, nbytes)[:] = self.bytes(source, nbytes).copy()

    def memset(self, address: int, value: int, nbytes: int, index: int = 0) -> None:
        self.bytes(address, nbytes)[:] = value

    def copy_all(self, copies: Any, index: int = 0) -> None:
        for copy in copies:
            self.copy(*copy)

    def copy_strided(self, target: Any, source: Any) -> None:
        self.of(target)[...] = self.of(source).copy()

    def build(
        self, graph: Graph, name: str, strides: Mapping[Value, Any] | None = None,
        returned: int | None = None, device: int | None = None,
    ) -> Any:  # fmt: skip
        """What `graphs.build` gives; a call interprets the graph."""

        def call(*addresses: int) -> tuple[Memory, ...]:
            arrays = []
            for v, address in zip(graph.inputs, addresses, strict=True):
                given = (strides or {}).get(v)
                steps = None if given is None else tuple(s * v.dtype.itemsize for s in given)
                shape = tuple(map(int, v.shape))
                arrays.append(self.array(address, shape, v.dtype.numpy, steps))
            self.launched.append(name)
            results = []
            for x in evaluate(graph, arrays)[:returned]:
                made = self.allocate(x.nbytes)
                self.array(made.address, x.shape, x.dtype)[...] = x
                results.append(made)
            return tuple(results)

        unit = types.SimpleNamespace(kernels=len(graph.nodes), source="", code="", arena_bytes=0)
        record = types.SimpleNamespace(launches=0)
        return types.SimpleNamespace(call=call, unit=unit, text="", record=record)


_double: list[Double] = []  # its address space is reserved once


@contextlib.contextmanager
def doubled() -> Iterator[Double]:
    """A block in which `cuda:0` is the double."""
    if not _double:
        _double.append(Double())
    double = _double[0]
    double.launched.clear()
    replaced = [
        (driver, "status", lambda: None), (driver, "device_count", lambda: 1),
        (driver, "to_device", double.to_device),
        (driver, "to_host", double.to_host), (driver, "within_device", double.copy),
        (driver, "fill_bytes", double.memset), (memory, "allocate", double.allocate),
        (graphs, "build", double.build), (strided, "copy_strided", double.copy_strided),
        (executable, "copy_all", double.copy_all),
    ]  # fmt: skip
    before = [(module, name, getattr(module, name, None)) for module, name, _ in replaced]
    for module, name, value in replaced:
        setattr(module, name, value)
    default = device.default.where
    try:
        yield double
    finally:
        device.default.where = default
        for module, name, value in before:
            setattr(module, name, value)
