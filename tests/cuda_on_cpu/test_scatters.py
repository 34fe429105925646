"""Scatters: updates in their order, the same bits as eager mode; indices out of bounds are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated import Emulated
from own_kernels import NVCC, Case, case, check, compile_with_nvcc, dtype_of

from tracegrad.codegen.cuda import scatters
from tracegrad.codegen.cuda.unit import build_cuda
from tracegrad.ir import dtypes, ops
from tracegrad.ir.evaluate import evaluate
from tracegrad.ir.graph import GraphBuilder
from tracegrad.ir.types import TensorType

Shape = tuple[int, ...]
SHAPES: list[tuple[Shape, tuple[Shape, ...], tuple[int, ...]]] = [
    ((5, 3), ((4,),), (0,)),
    ((5, 3), ((2, 40),), (1,)),
    ((4, 3, 5), ((2, 1), (3,)), (0, 2)),
    ((4, 3), ((60,), (60,)), (0, 1)),
    ((5,), ((),), (0,)),
    ((5, 3), ((0,),), (0,)),
    ((1, 3), ((7,),), (0,)),
    ((300, 5), ((700,),), (0,)),
    ((5, 300), ((20, 35),), (1,)),
    ((70, 7, 9), ((600,), (600,)), (0, 1)),
]
NAMES = ["scatter_add", "scatter_set", "scatter_max", "scatter_min", "scatter_mul"]
DTYPES = ["float32", "float64", "float16", "bfloat16", "int64", "int8", "uint8", "bool"]


def draw(rng: np.random.Generator, shape: Shape, name: str) -> np.ndarray:
    """Numbers whose sums depend on their order."""
    if "float" in name:
        return (rng.standard_normal(shape) * 2.0 ** rng.integers(-3, 4, shape)).astype(
            dtype_of(name)
        )
    return np.asarray(rng.integers(0, 2 if name == "bool" else 100, shape)).astype(dtype_of(name))


def cases(op: str, name: str, shapes: Any = tuple(SHAPES)) -> list[Case]:
    """All shapes; indices repeat, and some count from the end."""
    rng = np.random.default_rng(8)
    found = []
    for shape, index_shapes, axes in shapes:
        indices = [
            np.asarray(rng.integers(-shape[a], shape[a], s))
            for s, a in zip(index_shapes, axes, strict=True)
        ]
        common = np.broadcast_shapes(*index_shapes)
        rest = tuple(n for a, n in enumerate(shape) if a not in axes)
        operands = (draw(rng, shape, name), draw(rng, (*common, *rest), name), *indices)
        found.append(case(op, operands, axes=axes))
    return found


@pytest.fixture
def always_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small scatters sort too."""
    monkeypatch.setattr(scatters, "FEW_UPDATES", 0)
    monkeypatch.setattr(scatters, "FEW_STEPS", 0)


@pytest.mark.parametrize("op", NAMES)
def test_looking_through_all_updates(op: str) -> None:
    names = DTYPES if op in ("scatter_add", "scatter_min") else ["float16", "uint8", "bool"]
    check([c for name in names for c in cases(op, name)], ulp=0)


@pytest.mark.parametrize("op", NAMES)
@pytest.mark.usefixtures("always_sorted")
def test_sorted_updates(op: str) -> None:
    made = cases(op, "float16", SHAPES[-2:])
    check([*made, *cases(op, "float32")] if op == "scatter_add" else made, ulp=0)


@pytest.mark.usefixtures("always_sorted")
def test_many_rows_and_many_blocks() -> None:
    """Two passes; more shares than one round of the scan takes; all updates in one row."""
    shapes = [
        ((70000, 2), ((3000,),), (0,)),
        ((3,), ((70000,),), (0,)),
        ((40, 30), ((900,), (900,)), (0, 1)),
    ]
    made = cases("scatter_add", "float32", shapes)
    rng = np.random.default_rng(1)
    one = np.full(2000, 300)
    made.append(
        case(
            "scatter_add",
            (draw(rng, (400, 3), "float32"), draw(rng, (2000, 3), "float32"), one),
            axes=(0,),
        )
    )
    check(made, ulp=0)


def test_operands_that_have_no_memory() -> None:
    """A gradient of an embedding: zeros, and updates that are computed where they are used."""
    rng = np.random.default_rng(9)
    arrays = [rng.standard_normal((50, 8)).astype(np.float32), rng.integers(-30, 30, (50,))]
    builder = GraphBuilder("embedding")
    ct = builder.input(TensorType((50, 8), dtypes.float32), "ct")
    index = builder.input(TensorType((50,), dtypes.int64), "index")
    with builder:
        zero = ops.constant(value=0.0, dtype=dtypes.float32)
        zeros = ops.broadcast(zero, shape=(30, 8))
        out = ops.scatter_add(zeros, ct * 2.0, ops.abs(index) - 30, axes=(0,))
    graph = builder.finish([out])
    unit = build_cuda(graph)
    got, status = Emulated([unit]).run(0, [v.type for v in graph.outputs], arrays)
    assert not any(status)
    np.testing.assert_array_equal(got[0], np.asarray(evaluate(graph, arrays)[0]))


def test_out_of_bounds() -> None:
    """The index, the axis and its size are told."""
    for wrong in (5, -6):
        made = case(
            "scatter_add", (np.zeros((5, 2)), np.zeros((3, 2)), np.array([0, 1, 4])), axes=(0,)
        )
        arrays = [*made.arrays[:2], np.array([0, wrong, 1])]
        _, status = Emulated([made.unit]).run(0, [v.type for v in made.graph.outputs], arrays)
        assert status == [1, wrong, 0, 5]


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.usefixtures("always_sorted")
def test_nvcc_takes_them_and_nothing_spills(tmp_path: Path) -> None:
    made = [*cases("scatter_add", "float32"), *cases("scatter_max", "float16", SHAPES[-2:])]
    found = compile_with_nvcc([c.unit for c in made], tmp_path)
    for kernel, (registers, stack, spilled) in found.items():
        assert (stack, spilled) == (0, 0), kernel
        assert registers <= 64, kernel
