"""Every primitive of the table on a CUDA device, through the whole runtime, against the eager kernel.

The cases are those of `test_every_primitive.py`. Without a GPU a few of them run on the emulated driver,
started by `tests/runtime/test_cuda_emulated.py`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_compiled import CASES, assert_wanted
from test_every_primitive import Case, allowed, case

from tracegrad.runtime.cuda import driver, executable, memory

problem = driver.status()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(problem is not None, reason=f"no CUDA: {problem}"),
]


def put(array: np.ndarray) -> tuple[memory.Memory, int]:
    """An array on the device with its strides: its memory, and where its first element is."""
    if array.flags.c_contiguous:
        there = memory.allocate(array.nbytes, 0)
        driver.to_device(there.address, array, 0)
        return there, there.address
    steps = [(n - 1) * s for n, s in zip(array.shape, array.strides, strict=True) if n > 1]
    low, high = sum(min(s, 0) for s in steps), sum(max(s, 0) for s in steps)
    flat = np.zeros(high - low + array.itemsize, np.uint8)
    view = np.ndarray(array.shape, array.dtype, flat.data, -low, array.strides)
    first = tuple(slice(0, 1) if s == 0 else slice(None) for s in array.strides)
    view[first] = array[first]
    there = memory.allocate(flat.nbytes, 0)
    driver.to_device(there.address, flat, 0)
    return there, there.address - low


def run(c: Case, name: str) -> list[np.ndarray]:
    """What the device gives for a case."""
    graph: Any = SimpleNamespace(name=name, inputs=c.arrays, nodes=())
    made = executable.build(graph, "forward", c.unit, outputs=c.types, device=0)
    held = [put(array) for array in c.arrays]
    results = []
    for there, t in zip(made.call(*(address for _, address in held)), c.types, strict=True):
        results.append(np.empty(tuple(map(int, t.shape)), t.dtype.numpy))
        driver.to_host(results[-1], there.address, 0)
    return results


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{o.name}-{d.name}" for o, d in CASES])
def test_a_device_equals_eager(number: int) -> None:
    op, dtype = CASES[number]
    c = case(op, dtype)
    assert_wanted(run(c, op.name), c.wanted, allowed(op, dtype))
