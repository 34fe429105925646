"""Positions beyond 32 bits: the kernels that count in 64 bits, taken for small arrays."""

from __future__ import annotations

import pytest
import test_convolutions
import test_products
import test_scatters
import test_windows
from own_kernels import check

from tracegrad.codegen.cuda import elements


def test_positions_of_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elements, "INT_MAX", 3)
    monkeypatch.setattr(test_scatters.scatters, "FEW_UPDATES", 0)
    monkeypatch.setattr(test_scatters.scatters, "FEW_STEPS", 0)
    products = [*test_products.cases("float32", step=5), *test_products.batches("float32")]
    convolutions = test_convolutions.cases("float32", test_convolutions.GEOMETRIES[1:7])
    exact = [
        *test_windows.cases("float32", test_windows.GEOMETRIES[2:5]),
        *test_scatters.cases("scatter_add", "float32", test_scatters.SHAPES[2:4]),
    ]
    for made in (*products, *convolutions, *exact):
        assert "int64_t" in made.unit.code
    check([*products, *convolutions])
    check(exact, ulp=0)
