"""What the emulation reports that a GPU would not: the tests of generated CUDA rest on it."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from emulated import ORDERS, Emulated, LaunchError, guarded

from tracegrad.codegen.cuda.plan import CudaUnit, Launch, Place
from tracegrad.ir import dtypes
from tracegrad.ir.types import TensorType

TOTAL = """
extern "C" __global__ void __launch_bounds__(64) total(const float *x, float *out)
{
    __shared__ float part[64];
    part[threadIdx.x] = x[threadIdx.x];
    BARRIER
    if (threadIdx.x == 0) {
        float sum = 0;
        for (int k = 0; k < 64; k++)
            sum += part[k];
        out[0] = sum;
    }
}
"""


def unit(code: str, name: str, block: int = 64, grid: int = 1) -> CudaUnit:
    places = (Place("input", 0), Place("output", 0))
    launch = Launch(name, places, (), (grid, 1, 1), (block, 1, 1))
    return CudaUnit(code, code, (launch,), 0, 0, False, 0, 0)


def run(code: str, name: str, order: str, size: int = 64, block: int = 64) -> np.ndarray:
    types: list[Any] = [TensorType((1,), dtypes.float32)]
    x = np.arange(size, dtype=np.float32)
    return Emulated([unit(code, name, block)]).run(0, types, [x], order)[0][0]


@pytest.mark.parametrize("order", ORDERS)
def test_a_sum_through_shared_memory(order: str) -> None:
    assert run(TOTAL.replace("BARRIER", "__syncthreads();"), "total", order)[0] == 64 * 63 / 2


def test_a_missing_barrier_shows_in_one_of_the_orders() -> None:
    code = TOTAL.replace("BARRIER", "")
    assert any(run(code, "total", order)[0] != 64 * 63 / 2 for order in ORDERS)


FAULTS = {
    "__syncthreads": "if (threadIdx.x < 40) __syncthreads(); out[0] = x[0];",
    "invalid memory access": "out[0] = x[threadIdx.x + 64];",
    "warp operation never completes": (
        "if (threadIdx.x % 32 > 7) return; out[0] = __shfl_xor_sync(0xffffffffu, x[0], 1);"
    ),
    "not in its own mask": "out[0] = __shfl_xor_sync(1u, x[0], 1);",
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_fault_ends_the_launch(message: str) -> None:
    code = f'extern "C" __global__ void f(const float *x, float *out) {{ {FAULTS[message]} }}'
    with pytest.raises(LaunchError, match=message):
        run(code, "f", "forward")


def test_parts_of_a_warp_shuffle_by_themselves() -> None:
    code = """extern "C" __global__ void f(const float *x, float *out)
    {
        if (threadIdx.x >= 8)
            return;
        float sum = x[threadIdx.x];
        for (int away = 4; away > 0; away >>= 1)
            sum += __shfl_xor_sync(0xffu, sum, away);
        out[0] = sum;
    }"""
    assert run(code, "f", "forward")[0] == 28


def test_guarded_arrays_begin_as_nan_and_end_at_a_page() -> None:
    array = guarded((5,), np.float32)
    assert np.isnan(array).all()
    assert array.ctypes.data % 16 == 0
    assert (array.ctypes.data + 32) % 4096 == 0
    assert ctypes.sizeof(ctypes.c_void_p) == 8
