"""Windows and their transposes: the same bits as eager mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated import Emulated, run_both_ways
from own_kernels import DEVICE, NVCC, Case, case, check, compile_with_nvcc, dtype_of

from tracegrad.codegen.cuda.unit import build_cuda
from tracegrad.ir import ops
from tracegrad.ir.evaluate import evaluate
from tracegrad.ir.graph import GraphBuilder
from tracegrad.ir.ops import TABLE
from tracegrad.ir.primitive import evaluate_primitive, type_of

GEOMETRIES: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 11), {"window": 3, "stride": 2}),
    ((1, 1, 9), {"window": 4, "stride": 1, "padding": 2}),
    ((3, 2, 8, 8), {"window": 2}),
    ((2, 3, 9, 7), {"window": (3, 2), "stride": (2, 1), "padding": 1}),
    ((1, 2, 10, 9), {"window": 3, "stride": 1, "padding": ((1, 0), (0, 2)), "dilation": 2}),
    ((2, 1, 5, 6, 7), {"window": (2, 3, 2), "stride": (2, 1, 3), "padding": 1}),
    ((2, 2, 6, 6), {"window": 1, "stride": 2}),
    ((2, 2, 4, 1), {"window": (2, 1), "stride": (1, 1)}),
    ((2, 2, 5, 5), {"window": 5}),
    ((1, 2, 80, 60), {"window": 3, "stride": 2, "padding": 1}),
]
NAMES = ["float32", "float64", "float16", "bfloat16", "int64", "int8", "uint8"]


def draw(rng: np.random.Generator, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Few different numbers, so that maxima are shared; some NaN."""
    made = rng.integers(-4, 5, shape) if name[0] != "u" else rng.integers(0, 9, shape)
    array = (made * (0.37 if "float" in name else 1)).astype(dtype_of(name))
    if "float" in name:
        array[rng.random(shape) < 0.03] = np.nan
    return array


def cases(name: str, geometries: Any = tuple(GEOMETRIES)) -> list[Case]:
    """All geometries, all six operations."""
    rng = np.random.default_rng(1)
    found = []
    for shape, given in geometries:
        x = draw(rng, shape, name)
        found += [case(op, (x,), **given) for op in ("window_max", "window_argmax", "window_sum")]
        index, sums = found[-2], found[-1]
        ct = np.nan_to_num(draw(rng, sums.want.shape, name))
        params = dict(sums.graph.nodes[0].params)
        found += [
            case("window_spread", (ct,), input_size=shape[2:], **params),
            case("window_gather", (x, index.want)),
            case("window_scatter_add", (ct, index.want), input_size=shape[2:]),
        ]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_same_bits_as_eager(name: str) -> None:
    check(cases(name), ulp=0)


def test_scatter_into_windows_that_the_graph_knows() -> None:
    """The gradient of a maximum: its indices come from a node, so that inputs find their windows."""
    rng = np.random.default_rng(2)
    graphs, arrays = [], []
    for shape, given in GEOMETRIES:
        x = draw(rng, shape, "float32")
        params = TABLE["window_argmax"].normalize((type_of(x),), given)  # type: ignore[misc]
        index = evaluate_primitive(TABLE["window_argmax"], (x,), params)
        ct = rng.standard_normal(index.shape).astype(np.float32)
        builder = GraphBuilder("gradient")
        a, b = builder.input(type_of(x), "x"), builder.input(type_of(ct), "ct")
        with builder:
            out = ops.window_scatter_add(b, ops.window_argmax(a, **params), input_size=shape[2:])
        graphs.append(builder.finish([out]))
        arrays.append([x, ct])
    emulated = Emulated([build_cuda(g, target=DEVICE) for g in graphs])
    for k, (graph, given) in enumerate(zip(graphs, arrays, strict=True)):
        (got,), _ = run_both_ways(emulated, k, [v.type for v in graph.outputs], given)
        np.testing.assert_array_equal(got, np.asarray(evaluate(graph, given)[0]))


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.parametrize("name", ["float32", "float16", "int8"])
def test_nvcc_takes_them_and_nothing_spills(name: str, tmp_path: Path) -> None:
    units = [c.unit for c in cases(name)][:: 1 if name == "float32" else 7]
    for kernel, (registers, stack, spilled) in compile_with_nvcc(units, tmp_path).items():
        assert (stack, spilled) == (0, 0), kernel
        assert registers <= 64, kernel
