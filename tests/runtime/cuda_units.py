"""Small CUDA units, written by hand, for the tests of the runtime."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from tracegrad.codegen.cuda.plan import CudaUnit, Launch, Place, Product
from tracegrad.ir import dtypes
from tracegrad.ir.types import TensorType
from tracegrad.runtime.cuda import driver, executable, memory

SCALE = """\
extern "C" __global__ void scale(long long n, const float *__restrict__ x, float *__restrict__ y) {
    long long i = blockIdx.x * 256LL + threadIdx.x;
    if (i < n) y[i] = x[i] * 2.0f + 1.0f;
}
"""
TAKE = """\
extern "C" __global__ void take(long long n, long long size, const long long *__restrict__ index,
                                const float *__restrict__ x, float *__restrict__ y, long long *status) {
    long long i = blockIdx.x * 256LL + threadIdx.x;
    if (i >= n) return;
    long long k = index[i];
    if (k == -99) {
        status[0] = 2;
    } else if (k < 0 || k >= size) {
        status[1] = k; status[2] = 0; status[3] = size; status[0] = 1;
    } else y[i] = x[k];
}
"""
FAULT = """\
extern "C" __global__ void fault(float *y) { *(volatile float *)16 = y[0]; }
"""
REVERSE = """\
extern "C" __global__ void reverse(const float *__restrict__ x, float *__restrict__ y) {
    extern __shared__ float held[];
    for (int i = threadIdx.x; i < 16384; i += 256) held[i] = x[i];
    __syncthreads();
    for (int i = threadIdx.x; i < 16384; i += 256) y[i] = held[16383 - i];
}
"""

HEAD = """\
import sys, threading
import numpy as np
from cuda_units import *
from tracegrad.ir.errors import *
from tracegrad.runtime.cuda import driver, events, memory
from tracegrad.runtime.cuda.pinned import Pinned
"""
FAULTY = """
    from tracegrad.codegen.cuda.plan import Launch, Place
    made = build(unit(FAULT, [Launch("fault", (Place("output"),))]), 0, floats(1))
    kept = put(np.zeros(5))
    (result,) = made.call()  # the device has not said anything yet
    for _ in range(2):
        try:
            driver.synchronize(0)
        except AcceleratorError as error:
            print(str(error).splitlines()[0])
    for ask in (lambda: get(kept, (5,), np.float64), lambda: memory.allocate(64 << 20, 0), made.call):
        try:
            ask()
        except AcceleratorError as error:
            print(str(error).splitlines()[0])
"""


def unit(
    code: str, launches: Sequence[Launch], arena: int = 0, uses_status: bool = False
) -> CudaUnit:
    return CudaUnit(code, code, tuple(launches), arena, arena, uses_status, 0, 0)


def scale_unit(n: int) -> CudaUnit:
    """Two launches: y = 2 (2 x + 1) + 1, through the arena."""
    grid, block, middle = (-(-n // 256), 1, 1), (256, 1, 1), Place("arena", 512)
    first = Launch("scale", (Place("input", 0), middle), (n,), grid, block)
    second = Launch("scale", (middle, Place("output", 0)), (n,), grid, block)
    return unit(SCALE, [first, second], 512 + 4 * n)


def take_unit(n: int, size: int) -> CudaUnit:
    places = (Place("input", 0), Place("input", 1), Place("output", 0), Place("status"))
    launch = Launch("take", places, (n, size), (-(-n // 256), 1, 1), (256, 1, 1))
    return unit(TAKE, [launch], 0, True)


def product_unit(product: Product) -> CudaUnit:
    places = (Place("input", 0), Place("input", 1), Place("output", 0))
    return unit("", [Launch("", places, product=product)])


def build(made: CudaUnit, inputs: int, *outputs: TensorType, device: int = 0) -> Any:
    graph: Any = SimpleNamespace(name="f", inputs=(None,) * inputs, nodes=(None,))
    return executable.build(graph, "forward", made, outputs=outputs, device=device)


def floats(*shape: int) -> TensorType:
    return TensorType(shape, dtypes.float32)


def put(array: np.ndarray, device: int = 0) -> memory.Memory:
    """An array on the device."""
    there = memory.allocate(array.nbytes, device)
    driver.to_device(there.address, np.ascontiguousarray(array), device)
    return there


def get(there: memory.Memory, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """What a piece of device memory holds."""
    array = np.empty(shape, dtype)
    driver.to_host(array, there.address, there.device)
    return array


def call(made: Any, *arrays: np.ndarray) -> memory.Memory:
    """The one result of an executable; what it was called with lives until then."""
    held = [put(array) for array in arrays]
    (result,) = made.call(*(there.address for there in held))
    return result
