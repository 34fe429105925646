"""Products on tiles, by rows and by columns, and as calls of cuBLAS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compiled import assert_compiled_equals_evaluated
from emulated import run_unit
from own_kernels import DEVICE, NVCC, Case, case, check, compile_with_nvcc, dtype_of

from tracegrad.codegen.cuda import products, tiles
from tracegrad.codegen.cuda.plan import CudaTarget
from tracegrad.codegen.cuda.unit import build_cuda
from tracegrad.ir import dtypes, ops
from tracegrad.ir.evaluate import evaluate
from tracegrad.ir.graph import GraphBuilder
from tracegrad.ir.types import TensorType

MATRICES = [
    ((64, 48), (48, 64)),  # whole tiles
    ((65, 49), (49, 67)),  # one more than tiles
    ((9, 8), (8, 9)),
    ((130, 40), (40, 150)),  # medium tiles
    ((33, 1000), (1000, 31)),  # a long sum in parts
    ((300, 33), (33, 5)),  # tall
    ((7, 600), (600, 200)),  # wide
    ((1, 3000), (3000, 1)),
    ((200, 70), (70, 1)),
    ((1, 70), (70, 200)),
    ((3, 900), (900, 1)),
    ((400, 500), (500, 1)),
]
GEMM, BATCH = ((1,), (0,)), ((), ())


def operand(rng: np.random.Generator, shape: tuple[int, ...], name: str, turned: bool) -> Any:
    """Numbers around 0, as a transposed view where asked."""
    made = rng.standard_normal(shape[::-1] if turned else shape).astype(dtype_of(name))
    return made.T if turned else made


def cases(name: str, target: CudaTarget = DEVICE, step: int = 1) -> list[Case]:
    """All sizes, in all four layouts; or every `step`th of these."""
    rng = np.random.default_rng(3)
    every = [(xs, ys, a, b) for xs, ys in MATRICES for a in (False, True) for b in (False, True)]
    return [
        case("dot_general", (operand(rng, xs, name, a), operand(rng, ys, name, b)), target,
             contract=GEMM, batch=BATCH)
        for xs, ys, a, b in every[::step]
    ]  # fmt: skip


def batches(name: str, target: CudaTarget = DEVICE) -> list[Case]:
    """Batches: one axis, two, permuted, shared by one operand, and of vectors."""
    rng = np.random.default_rng(4)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype_of(name))

    def dot(x: np.ndarray, y: np.ndarray, contract: Any, batch: Any) -> Case:
        return case("dot_general", (x, y), target, contract=contract, batch=batch)

    one = ((2,), (1,)), ((0,), (0,))
    return [
        dot(draw(5, 34, 20), draw(5, 20, 33), *one),
        dot(draw(5, 20, 34).transpose(0, 2, 1), draw(20, 5, 33).transpose(1, 0, 2), *one),
        dot(draw(3, 2, 17, 40), draw(3, 2, 40, 19), ((3,), (2,)), ((0, 1), (0, 1))),
        dot(draw(2, 3, 17, 40).transpose(1, 0, 2, 3), draw(3, 2, 40, 19), ((3,), (2,)),
            ((0, 1), (0, 1))),
        dot(draw(4, 9, 300), draw(4, 300), ((2,), (1,)), ((0,), (0,))),
        dot(draw(4, 300), draw(4, 300, 9), ((1,), (1,)), ((0,), (0,))),
        dot(draw(40, 3, 50), draw(3, 50, 20), ((1, 2), (0, 1)), BATCH),
        dot(draw(2, 33, 700), draw(2, 700, 32), *one),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "step"), [("float32", 1), ("float64", 3), ("float16", 3), ("bfloat16", 7)]
)
def test_layouts_and_sizes(name: str, step: int) -> None:
    check(cases(name, step=step))


@pytest.mark.parametrize("name", ["float32", "float64", "float16"])
def test_batches(name: str) -> None:
    check(batches(name))


def test_every_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each shape of tiles at its edges, operands lying along both axes, whole sums and parts."""
    rng = np.random.default_rng(5)
    made = []
    for name, table in (("float32", "_TILES"), ("float64", "_WIDE_TYPE_TILES")):
        for tile in getattr(tiles, table):
            with monkeypatch.context() as patch:
                patch.setattr(tiles, table, (tile,))
                for turned, target in (
                    (False, CudaTarget()),
                    (True, CudaTarget(multiprocessors=1)),
                ):
                    x = operand(rng, (tile.rows + 3, 300), name, turned)
                    y = operand(rng, (300, 2 * tile.columns), name, turned)
                    made.append(case("dot_general", (x, y), target, contract=GEMM, batch=BATCH))
                    text = f"Tiles of {tile.rows} x {tile.columns}"
                    assert text in made[-1].unit.source
    check(made)
    assert any(len(c.unit.launches) == 2 for c in made)


def test_an_operand_that_is_repeated_between_its_rows() -> None:
    """Rows of a broadcast do not lie evenly: (8, 1, 64) as (8, 4, 64) is no matrix of 32 rows."""
    rng = np.random.default_rng(6)
    builder = GraphBuilder("repeated")
    x = builder.input(TensorType((8, 1, 64), dtypes.float32), "x")
    y = builder.input(TensorType((64, 32), dtypes.float32), "y")
    with builder:
        out = ops.dot_general(
            ops.broadcast(x, shape=(8, 4, 64)), y, contract=((2,), (0,)), batch=BATCH
        )
    graph = builder.finish([out])
    arrays = [rng.standard_normal(v.shape).astype(np.float32) for v in graph.inputs]
    (want,) = evaluate(graph, arrays)
    got = run_unit(build_cuda(graph), [v.type for v in graph.outputs], arrays)
    np.testing.assert_allclose(got[0], np.asarray(want), rtol=1e-4, atol=1e-4)
    assert_compiled_equals_evaluated(graph, arrays)


@pytest.mark.parametrize("name", ["float32", "float64", "float16"])
def test_calls_of_the_library(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "LEAST_OPS", dict.fromkeys((2, 4, 8), 0))
    library = CudaTarget(cublas=True)
    made = [*cases(name, library), *batches(name, library)]
    check(made)
    calls = [launch.product for c in made for launch in c.unit.launches]
    assert all(p is not None for p in calls)
    assert max(p.batch for p in calls if p) == 6


def test_small_products_are_no_calls() -> None:
    """A call of the library costs the host several launches."""

    def launches(m: int, n: int, k: int) -> list[bool]:
        builder = GraphBuilder("product")
        x = builder.input(TensorType((m, k), dtypes.float32), "x")
        y = builder.input(TensorType((k, n), dtypes.float32), "y")
        with builder:
            out = ops.dot_general(x, y, contract=GEMM, batch=BATCH)
        unit = build_cuda(builder.finish([out]), target=CudaTarget(cublas=True))
        return [launch.product is not None for launch in unit.launches]

    assert launches(512, 512, 512) == [True]
    assert not any(launches(256, 10, 512))


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
def test_nvcc_takes_them_and_nothing_spills(tmp_path: Path) -> None:
    made = [*cases("float32", step=3), *cases("float64", step=9), *cases("float16", step=9)]
    made += batches("float32")
    for name, (registers, _, spilled) in compile_with_nvcc(
        [c.unit for c in made], tmp_path
    ).items():
        assert spilled == 0, name
        assert registers <= 128, name
