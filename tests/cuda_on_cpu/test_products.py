"""Products on tiles, by rows and by columns, and as calls of cuBLAS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_kernels import DEVICE, NVCC, Case, case, check, compile_with_nvcc, dtype_of

from tracegrad.codegen.cuda.plan import CudaTarget

MATRICES: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((64, 48), (48, 64), {}),  # whole tiles
    ((65, 49), (49, 67), {}),  # one more than tiles
    ((9, 8), (8, 9), {}),
    ((130, 40), (40, 150), {}),  # medium tiles
    ((33, 1000), (1000, 31), {}),  # a long sum in parts
    ((300, 33), (33, 5), {}),  # tall
    ((7, 600), (600, 200), {}),  # wide
    ((1, 3000), (3000, 1), {}),
    ((200, 70), (70, 1), {}),
    ((1, 70), (70, 200), {}),
    ((3, 900), (900, 1), {}),
    ((400, 500), (500, 1), {}),
]
GEMM, BATCH = ((1,), (0,)), ((), ())


def operand(rng: np.random.Generator, shape: tuple[int, ...], name: str, turned: bool) -> Any:
    """Numbers around 0, as a transposed view where asked."""
    made = rng.standard_normal(shape[::-1] if turned else shape).astype(dtype_of(name))
    return made.T if turned else made


def cases(name: str, target: CudaTarget = DEVICE) -> list[Case]:
    """All sizes, in all four layouts."""
    rng = np.random.default_rng(3)
    return [
        case("dot_general", (operand(rng, xs, name, a), operand(rng, ys, name, b)), target,
             contract=GEMM, batch=BATCH)
        for xs, ys, _ in MATRICES for a in (False, True) for b in (False, True)
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


@pytest.mark.parametrize("name", ["float32", "float64", "float16", "bfloat16"])
def test_layouts_and_sizes(name: str) -> None:
    check(cases(name))


@pytest.mark.parametrize("name", ["float32", "float64", "float16"])
def test_batches(name: str) -> None:
    check(batches(name))


def test_large_tiles() -> None:
    rng = np.random.default_rng(5)
    x, y = (operand(rng, s, "float32", False) for s in ((260, 50), (50, 300)))
    device = CudaTarget(multiprocessors=4)
    made = [case("dot_general", pair, device, contract=GEMM, batch=BATCH)
            for pair in ((x, y), (np.asfortranarray(x), np.asfortranarray(y)))]  # fmt: skip
    assert all("[8][132]" in c.unit.code for c in made)
    check(made)


@pytest.mark.parametrize("name", ["float32", "float64", "float16"])
def test_calls_of_the_library(name: str) -> None:
    library = CudaTarget(cublas=True)
    made = [*cases(name, library), *batches(name, library)]
    check(made)
    products = [launch.product for c in made for launch in c.unit.launches]
    assert all(p is not None for p in products)
    assert max(p.batch for p in products if p) == 6


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
def test_nvcc_takes_them_and_nothing_spills(tmp_path: Path) -> None:
    made = [*cases("float32")[::3], *cases("float64")[::9], *cases("float16")[::9]]
    made += batches("float32")
    for name, (registers, _, spilled) in compile_with_nvcc(
        [c.unit for c in made], tmp_path
    ).items():
        assert spilled == 0, name
        assert registers <= 128, name
