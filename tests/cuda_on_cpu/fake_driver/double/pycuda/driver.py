"""The part of `pycuda.driver` that tracegrad calls, on the emulated driver, by ctypes."""

from __future__ import annotations

import ctypes
from typing import Any

try:
    _cuda = ctypes.CDLL("libcuda.so.1")
except OSError as error:  # as an extension module that needs it says
    raise ImportError(str(error)) from None


class Error(Exception):
    """As pycuda's: no RuntimeError."""


class function_attribute:
    MAX_DYNAMIC_SHARED_SIZE_BYTES = 8


def _ask(name: str, *arguments: Any) -> None:
    code = getattr(_cuda, name)(*arguments)
    if code:
        words = ctypes.c_char_p()
        _cuda.cuGetErrorString(code, ctypes.byref(words))
        raise Error(f"{name} failed: {(words.value or b'').decode()}")


def init() -> None:
    _ask("cuInit", 0)


class Context:
    def __init__(self, handle: int) -> None:
        self.handle = handle

    def push(self) -> None:
        _ask("cuCtxPushCurrent_v2", ctypes.c_void_p(self.handle))

    @staticmethod
    def pop() -> None:
        _ask("cuCtxPopCurrent_v2", None)


class Device:
    multiprocessor_count = 4

    def __init__(self, number: int) -> None:
        self.number = number

    @staticmethod
    def count() -> int:
        found = ctypes.c_int()
        _ask("cuDeviceGetCount", ctypes.byref(found))
        return found.value

    def name(self) -> str:
        text = ctypes.create_string_buffer(100)
        _ask("cuDeviceGetName", text, 100, self.number)
        return text.value.decode()

    def compute_capability(self) -> tuple[int, int]:
        major, minor = ctypes.c_int(), ctypes.c_int()
        _ask("cuDeviceComputeCapability", ctypes.byref(major), ctypes.byref(minor), self.number)
        return major.value, minor.value

    def total_memory(self) -> int:
        found = ctypes.c_size_t()
        _ask("cuDeviceTotalMem_v2", ctypes.byref(found), self.number)
        return found.value

    def retain_primary_context(self) -> Context:
        handle = ctypes.c_void_p()
        _ask("cuDevicePrimaryCtxRetain", ctypes.byref(handle), self.number)
        return Context(handle.value or 0)


class Function:
    def __init__(self, handle: Any) -> None:
        self.handle, self.types = handle, ""

    def set_attribute(self, attribute: int, value: int) -> None:
        _ask("cuFuncSetAttribute", self.handle, attribute, value)

    def prepare(self, types: str) -> Function:
        self.types = types
        return self

    def prepared_async_call(
        self, grid: Any, block: Any, stream: Any, *values: int, shared_size: int = 0
    ) -> None:
        assert len(values) == len(self.types)
        cells = [ctypes.c_uint64(v & (1 << 64) - 1) for v in values]
        pointers = (ctypes.c_void_p * max(1, len(cells)))(*map(ctypes.addressof, cells))
        shape = [ctypes.c_uint(n) for n in (*grid, *block, shared_size)]
        _ask("cuLaunchKernel", self.handle, *shape, None, pointers, None)


class Module:
    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def get_function(self, name: str) -> Function:
        found = ctypes.c_void_p()
        _ask("cuModuleGetFunction", ctypes.byref(found), self.handle, name.encode())
        return Function(found)


def module_from_buffer(image: bytes) -> Module:
    found = ctypes.c_void_p()
    _ask("cuModuleLoadData", ctypes.byref(found), image)
    return Module(found)
