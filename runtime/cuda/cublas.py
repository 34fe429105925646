"""cuBLAS, found at run time: one handle for each device, and the function that C calls.

TF32 is off unless `allow_tf32(True)`: float32 products have float32's precision. Halves accumulate
in float. A handle works in the default stream with a workspace of its own, so results do not depend
on what ran before. Start reading at `cublas_available`.
"""

from __future__ import annotations

import functools
import threading
from typing import Any

from tracegrad.ir.errors import AcceleratorError
from tracegrad.runtime._abi import ffi
from tracegrad.runtime.cuda import driver, libraries

TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}  # cudaDataType
_WORKSPACE = 32 << 20  # what cuBLAS advises for Hopper
_FULL_REDUCTION = 16  # CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION

_tf32 = ffi.new("int *", 0)


def allow_tf32(flag: bool | None = None) -> bool:
    """Whether products of float32 may be rounded to 11 bits first; a flag sets it.

    Example:
        >>> allow_tf32()
        False
    """
    if flag is not None:
        _tf32[0] = bool(flag)
    return bool(_tf32[0])


def tf32_cell() -> int:
    """The address of the int that C reads."""
    return int(ffi.cast("uintptr_t", _tf32))


@functools.cache
def library() -> Any:
    """The library, or None."""
    return libraries.open_library("libcublas.so", ("libcublasLt.so.*",))


def cublas_available() -> bool:
    """Whether products can be left to cuBLAS."""
    return driver.status() is None and library() is not None


def gemm() -> int:
    """The address of `cublasGemmStridedBatchedEx`."""
    return int(ffi.cast("uintptr_t", ffi.addressof(library(), "cublasGemmStridedBatchedEx")))


_handles: dict[int, Any] = {}
_lock = threading.Lock()


def handle(device: int) -> int:
    """The handle of a device, made at the first call.

    Raises:
        AcceleratorError: there is no cuBLAS, or it refuses.
    """
    with _lock:
        if device not in _handles:
            _handles[device] = _new_handle(device)
        return int(ffi.cast("uintptr_t", _handles[device][0]))


def _new_handle(device: int) -> Any:
    cublas = library()
    if cublas is None:
        raise AcceleratorError("CUDA: libcublas was not found; pip install nvidia-cublas")
    new = ffi.new("void **")
    with driver.on(device):
        check(cublas.cublasCreate_v2(new), "cublasCreate")
        check(cublas.cublasSetMathMode(new[0], _FULL_REDUCTION), "cublasSetMathMode")
        space = driver.alloc(_WORKSPACE, device)  # for the rest of the process, as the handle is
        address = ffi.cast("void *", space.address)
        check(cublas.cublasSetWorkspace_v2(new[0], address, _WORKSPACE), "cublasSetWorkspace")
    return new


def check(code: int, what: str) -> None:
    """Raise what a number that is not 0 stands for."""
    if code:
        words = _STATUS.get(code, f"status {code}")
        raise AcceleratorError(f"CUDA error: {words} when calling `{what}`")


_STATUS = {
    1: "CUBLAS_STATUS_NOT_INITIALIZED", 3: "CUBLAS_STATUS_ALLOC_FAILED",
    7: "CUBLAS_STATUS_INVALID_VALUE", 8: "CUBLAS_STATUS_ARCH_MISMATCH",
    11: "CUBLAS_STATUS_MAPPING_ERROR", 13: "CUBLAS_STATUS_EXECUTION_FAILED",
    14: "CUBLAS_STATUS_INTERNAL_ERROR", 15: "CUBLAS_STATUS_NOT_SUPPORTED",
}  # fmt: skip
