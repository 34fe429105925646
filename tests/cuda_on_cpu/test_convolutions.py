"""Convolutions and their transposes, in tiles and by direct sums."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_kernels import DEVICE, NVCC, Case, case, check, compile_with_nvcc, dtype_of

from tracegrad.codegen.cuda.plan import CudaTarget

Shape = tuple[int, ...]
GEOMETRIES: list[tuple[Shape, Shape, dict[str, Any]]] = [
    ((2, 3, 7), (4, 3, 3), {}),
    ((2, 16, 9), (16, 8, 3), {"stride": 2, "padding": 2, "dilation": 2, "groups": 2}),
    ((2, 9, 6, 7), (10, 9, 3, 3), {"padding": 1}),
    ((2, 2, 6, 5), (3, 2, 3, 2),
     {"stride": (2, 1), "padding": ((1, 0), (0, 2)), "dilation": (1, 2)}),
    ((1, 16, 5, 5), (24, 8, 1, 1), {"groups": 2}),
    ((3, 8, 9, 9), (8, 1, 3, 3), {"groups": 8, "stride": 2, "padding": 1}),
    ((1, 8, 5, 6, 4), (9, 8, 2, 3, 2), {"stride": 2, "padding": 1}),
    ((1, 2, 4, 5, 4), (3, 2, 2, 3, 2), {"stride": (1, 2, 3), "padding": 1}),
    ((2, 12, 14, 14), (40, 12, 3, 3), {"padding": 1}),
    ((2, 8, 8, 8), (8, 8, 8, 8), {}),
    ((1, 8, 3, 3), (8, 8, 3, 3), {"stride": 2}),
    ((2, 8, 10), (8, 8, 1), {"stride": 3}),
    ((40, 1, 12, 12), (2, 1, 5, 5), {}),
]  # fmt: skip


def cases(
    name: str, geometries: Any = tuple(GEOMETRIES), target: CudaTarget = DEVICE
) -> list[Case]:
    """The convolution of each geometry and its transposes."""
    rng = np.random.default_rng(6)

    def draw(shape: Shape) -> np.ndarray:
        if name[0] in "iu":
            return rng.integers(0, 100, shape).astype(dtype_of(name))
        return rng.standard_normal(shape).astype(dtype_of(name))

    found = []
    for xs, ws, given in geometries:
        x, w = draw(xs), draw(ws)
        forward = case("conv", (x, w), target, **given)
        ct, params = draw(forward.want.shape), dict(forward.graph.nodes[0].params)
        found += [
            forward,
            case("conv_input_grad", (ct, w), target, input_size=xs[2:], **params),
            case("conv_weight_grad", (x, ct), target, kernel_size=ws[2:], **params),
        ]
    return found


@pytest.mark.parametrize("name", ["float32", "float64", "float16"])
def test_all_geometries(name: str) -> None:
    check(cases(name))


@pytest.mark.parametrize("name", ["bfloat16", "int64", "int8", "uint8"])
def test_other_dtypes(name: str) -> None:
    check(cases(name, GEOMETRIES[1:7]))


def test_windows_of_one_tap_are_products_of_the_library() -> None:
    """Each group one call, its images a batch; sums over several images are no single product."""
    shapes: list[Any] = [
        ((3, 6, 5, 7), (4, 6, 1, 1), {}), ((2, 6, 9), (4, 3, 1), {"groups": 2}),
        ((1, 6, 2, 3, 2), (9, 2, 1, 1, 1), {"groups": 3}),
    ]  # fmt: skip
    made = cases("float32", shapes, CudaTarget(cublas=True))
    calls = [sum(launch.product is not None for launch in c.unit.launches) for c in made]
    assert calls == [1, 1, 0, 2, 2, 0, 3, 3, 3]
    check(made)


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
def test_nvcc_takes_them_and_nothing_spills(tmp_path: Path) -> None:
    made = [*cases("float32"), *cases("float16", GEOMETRIES[2:4])]
    for kernel, (registers, stack, spilled) in compile_with_nvcc(
        [c.unit for c in made], tmp_path
    ).items():
        assert (stack, spilled) == (0, 0), kernel
        assert registers <= 128, kernel
