"""Every primitive of the table as CUDA, run on the CPU, against the eager kernel.

One unit per primitive and dtype holds all its samples, as in the test of C. Many units are compiled
together, since a C++ compiler takes its time to start. Start reading at `test_cuda_equals_eager`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
from emulated import Emulated, run_both_ways
from test_compiled import CASES, assert_wanted, together

from tracegrad.codegen.cuda.plan import CudaUnit
from tracegrad.codegen.cuda.unit import build_cuda
from tracegrad.ir import dtypes
from tracegrad.ir.primitive import Primitive

TOGETHER = 48  # units in one compilation


@dataclass(frozen=True)
class Case:
    """One primitive and dtype: its unit, and what the unit should give."""

    unit: CudaUnit
    types: list[Any]
    arrays: list[np.ndarray]
    wanted: list[tuple[np.ndarray, np.ndarray]]


@cache
def case(op: Primitive, dtype: dtypes.DType) -> Case:
    """All samples of a primitive and dtype in one unit."""
    graph, strides, arrays, wanted = together(op, dtype)
    unit = build_cuda(graph, strides=strides)
    return Case(unit, [v.type for v in graph.outputs], arrays, wanted)


@cache
def compiled(part: int) -> tuple[Emulated, dict[Any, int]]:
    """The units of some cases, compiled together, and where each of them is."""
    units, places = [], {}
    for key in CASES[part * TOGETHER : (part + 1) * TOGETHER]:
        try:
            units.append(case(*key).unit)
        except AssertionError:  # its own test shows that
            continue
        places[key] = len(units) - 1
    return Emulated(units), places


def allowed(op: Primitive, dtype: dtypes.DType) -> int:
    """Units in the last place: what the record states, but for sums of doubles.

    Nothing is wider than double: each addition rounds, and threads add in an order of their own.
    """
    return op.ulp + 1 if (op.name, dtype.name) == ("reduce_sum", "float64") else op.ulp


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{o.name}-{d.name}" for o, d in CASES])
def test_cuda_equals_eager(number: int) -> None:
    op, dtype = CASES[number]
    c = case(op, dtype)
    emulated, places = compiled(number // TOGETHER)
    results, status = run_both_ways(emulated, places[op, dtype], c.types, c.arrays)
    assert not any(status)
    assert_wanted(results, c.wanted, allowed(op, dtype))
