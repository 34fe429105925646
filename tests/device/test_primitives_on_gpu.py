"""Every primitive of the table on a real GPU, against the eager kernel on the CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tracegrad.runtime.cuda import driver

TESTS = Path(__file__).resolve().parent.parent
sys.path.extend([str(TESTS / "cuda_on_cpu"), str(TESTS / "primitives")])

from test_compiled import CASES, EXACT_KINDS, ulp_distance  # noqa: E402
from test_every_primitive import allowed, case  # noqa: E402

from tracegrad.ir import dtypes  # noqa: E402
from tracegrad.ir.graph import GraphBuilder  # noqa: E402
from tracegrad.ir.primitive import type_of  # noqa: E402
from tracegrad.runtime.cuda import executable  # noqa: E402
from tracegrad.runtime.cuda.array import DeviceArray, DeviceDType, packed_strides  # noqa: E402

problem = driver.status()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(problem is not None, reason=f"no CUDA: {problem}"),
]
LOOSER = 4  # how many times farther CUDA's functions may be from the eager kernel than glibc's


def resident(array: np.ndarray) -> DeviceArray:
    """A copy on the device with the same strides."""
    if array.flags.c_contiguous:
        return DeviceArray.from_host(array, 0)
    span = 1 + sum((n - 1) * s // array.itemsize for n, s in zip(array.shape, array.strides))
    held = DeviceArray.empty((max(span, 1),), array.dtype, 0)
    made = held.part(0, array.shape, array.strides)
    made.write(DeviceArray.from_host(np.ascontiguousarray(array), 0))
    return made


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{o.name}-{d.name}" for o, d in CASES])
def test_the_gpu_equals_eager(number: int) -> None:
    op, dtype = CASES[number]
    c = case(op, dtype)
    builder = GraphBuilder(op.name)
    for array in c.arrays:
        builder.input(type_of(array))
    made = executable.build(builder.finish([]), "run", c.unit, outputs=c.types, device=0)
    held = [resident(a) for a in c.arrays]
    memories = made.call(*(x.address for x in held))
    for memory, type, (want, scale) in zip(memories, c.types, c.wanted, strict=True):
        kind = DeviceDType.of(type.dtype.numpy, 0)
        out = DeviceArray(memory, memory.address, tuple(type.shape), None, kind)
        got = out.to_host()
        assert got.strides == packed_strides(want.shape, want.itemsize) or not want.size
        if dtypes.from_numpy(want.dtype).kind in EXACT_KINDS:
            np.testing.assert_array_equal(got, want)
        else:
            assert ulp_distance(got, want, scale) <= LOOSER * max(1, allowed(op, dtype))
