"""Graphs of one node each, compiled together, run both ways and compared with the interpreter.

For the tests of the nodes that have kernels of their own. Start reading at `check`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from compiled import distance, scale
from emulated import Emulated, run_both_ways

from tracegrad.codegen.cuda.plan import CudaTarget, CudaUnit
from tracegrad.codegen.cuda.unit import build_cuda
from tracegrad.codegen.unit import contiguous_inputs
from tracegrad.ir import dtypes
from tracegrad.ir.graph import Graph, GraphBuilder
from tracegrad.ir.ops import TABLE
from tracegrad.ir.primitive import bind, evaluate_primitive, type_of

NVCC = shutil.which("nvcc")
DEVICE = CudaTarget(multiprocessors=8)  # few, so that small results fill it


@dataclass(frozen=True)
class Case:
    """One node: its graph and unit, its operands, and what it should give."""

    graph: Graph
    unit: CudaUnit
    arrays: list[np.ndarray]
    want: np.ndarray


def case(
    name: str, operands: Sequence[np.ndarray], target: CudaTarget = DEVICE, **params: Any
) -> Case:
    """A case of the primitive `name`; operands that are no contiguous arrays keep their strides."""
    op = TABLE[name]
    builder = GraphBuilder(name)
    values = tuple(builder.input(type_of(x), f"x{k}") for k, x in enumerate(operands))
    if op.normalize is not None:
        params = dict(op.normalize([v.type for v in values], params))
    with builder:
        out = bind(op, values, params)
    graph = builder.finish([out])
    plain = contiguous_inputs(graph)
    arrays, strides = [], {}
    for value, array in zip(values, operands, strict=True):
        if array.flags.c_contiguous or value in plain:
            array = np.ascontiguousarray(array)
        else:
            strides[value] = tuple(s // array.itemsize for s in array.strides)
        arrays.append(array)
    unit = build_cuda(graph, target=target, strides=strides)
    return Case(graph, unit, arrays, evaluate_primitive(op, list(operands), params))


def check(cases: Sequence[Case], ulp: int | None = None) -> None:
    """Run all cases, compiled together, and compare each with the interpreter.

    Args:
        ulp: how many units in the last place the results may be off, if not what the record says;
            0: the same bits.
    """
    emulated = Emulated([c.unit for c in cases])
    for k, c in enumerate(cases):
        (got,), status = run_both_ways(emulated, k, [v.type for v in c.graph.outputs], c.arrays)
        assert not any(status), (str(c.graph), status)
        node = c.graph.nodes[-1]
        assert (got.shape, got.dtype) == (c.want.shape, c.want.dtype), str(c.graph)
        if ulp == 0 or c.want.dtype.kind in "biu":
            exact = (a if a.dtype.kind in "biu" else a.astype(np.float64) for a in (got, c.want))
            np.testing.assert_array_equal(*exact, err_msg=str(c.graph))
            continue
        off = distance(got, c.want, scale(node, c.arrays, c.want))
        assert off <= (ulp or node.primitive.ulp), (str(c.graph), off)


def compile_with_nvcc(units: Sequence[CudaUnit], folder: Path) -> dict[str, tuple[int, int, int]]:
    """Registers, bytes of stack and spilled bytes of each kernel; warnings are errors."""
    assert NVCC is not None
    parts = [
        f"namespace u{k} {{\n{re.sub(r'kernel_(?=[0-9])', f'u{k}_kernel_', unit.code)}\n}}"
        for k, unit in enumerate(units)
    ]
    source = folder / "units.cu"
    source.write_text("\n".join(parts))
    done = subprocess.run(
        [NVCC, "-cubin", "-arch=sm_90", "-fmad=false", "-Werror", "all-warnings", "-Xptxas", "-v",
         str(source), "-o", str(folder / "units.cubin")], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[:4000]
    pattern = (
        r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores.*?"
        r"Used (\d+) registers"
    )
    return {
        name: (int(registers), int(stack), int(spilled))
        for name, stack, spilled, registers in re.findall(pattern, done.stderr, re.DOTALL)
    }


def dtype_of(name: str) -> np.dtype[Any]:
    """The NumPy dtype of a name."""
    return dtypes.by_name(name).numpy
