"""The generated C of eight small graphs, letter for letter.

A change of the generator shows here as a diff of C. Where the new text is what you meant, write it
down with

    TRACEGRAD_GOLDEN=write python -m pytest tests/codegen/test_golden_sources.py

and commit the files of `tests/codegen/golden/` with the change.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from drawing import graph
from golden import assert_golden

from tracegrad.codegen.plan import Target
from tracegrad.codegen.unit import build
from tracegrad.ir import dtypes, ops
from tracegrad.ir.types import TensorType

GOLDEN = Path(__file__).parent / "golden"
TARGET = Target(openmp=True, vector_math=(2, 36))


def pointwise(x: Any, y: Any) -> Any:
    return ops.sin(x) * ops.exp(-x * x) + ops.tanh(y)


def full_sum(x: Any) -> Any:
    return ops.reduce_sum(x * x, axes=(0,), keepdims=False)


def row_softmax(x: Any) -> Any:
    e = ops.exp(x - ops.reduce_max(x, axes=(1,), keepdims=True))
    return e / ops.reduce_sum(e, axes=(1,), keepdims=True)


def column_sum(x: Any) -> Any:
    return ops.reduce_sum(x, axes=(0,), keepdims=False)


def linear_relu(x: Any, w: Any, b: Any) -> Any:
    product = ops.dot_general(x, w, contract=((1,), (1,)), batch=((), ()))
    return ops.maximum(product + b, 0.0)


def gather_scatter(x: Any, i: Any) -> Any:
    rows = ops.gather(x, i, axes=(0,))
    return ops.scatter_add(x, rows * 2, i, axes=(0,))


def pad_slice_concat(x: Any) -> Any:
    padded = ops.pad(x, padding=((1, 1, 0), (0, 2, 1)), value=0)
    odd = ops.slice(x, start=(1, 0), stop=(4, 6), step=(1, 2))
    return padded * 2, ops.concat(odd, odd + 1, axis=1)


def conv_pool(x: Any, w: Any) -> Any:
    y = ops.conv(x, w, stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1)
    return ops.window_max(ops.maximum(y, 0.0), window=(2, 2), stride=(2, 2), padding=((0, 0), (0, 0)),
                          dilation=(1, 1))  # fmt: skip


PICKS = TensorType((10,), dtypes.int64)
CASES: dict[str, Any] = {
    "pointwise": (pointwise, (300, 40), (300, 40)),
    "full_sum": (full_sum, (1_000_000,)),
    "row_softmax": (row_softmax, (64, 32)),
    "column_sum": (column_sum, (128, 48)),
    "linear_relu": (linear_relu, (32, 64), (48, 64), (48,)),
    "gather_scatter": (gather_scatter, (20, 6), PICKS),
    "pad_slice_concat": (pad_slice_concat, (4, 6)),
    "conv_pool": (conv_pool, (2, 3, 10, 10), (4, 3, 3, 3)),
}


@pytest.mark.parametrize("name", CASES)
def test_source_is_the_golden_one(name: str) -> None:
    fn, *shapes = CASES[name]
    made = build(graph(fn, *shapes), target=TARGET).source
    assert_golden(made, GOLDEN / f"{name}.c", __file__)


def test_golden_sources_have_no_strays() -> None:
    assert sorted(p.stem for p in GOLDEN.glob("*.c")) == sorted(CASES)
