"""The generated CUDA of a few small graphs, letter for letter.

A change of the generator shows here as a diff of CUDA. Where the new text is what you meant, write it
down with

    TRACEGRAD_GOLDEN=write python -m pytest tests/cuda_on_cpu/test_golden_cuda.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from drawing import graph
from golden import assert_golden
from test_golden_sources import pointwise
from test_row_groups import layer_norm, softmax, total

from tracegrad.codegen.cuda.unit import build_cuda
from tracegrad.ir import ops

GOLDEN = Path(__file__).parent / "golden"
CASES: dict[str, Any] = {
    "pointwise": (pointwise, (600, 400), (600, 400)),
    "full_sum": (lambda x: total(x * x, 0, keepdims=False), (1_000_000,)),
    "column_sum": (lambda x: total(x, 0, keepdims=False), (128, 48)),
    "transposed": (lambda x: ops.permute(x, axes=(1, 0)) + 1.0, (3000, 400)),
    "row_softmax": (softmax, (64, 32)),
    "layer_norm": (layer_norm, (256, 1024), (1024,), (1024,)),
}


@pytest.mark.parametrize("name", CASES)
def test_source_is_the_golden_one(name: str) -> None:
    fn, *shapes = CASES[name]
    made = build_cuda(graph(fn, *shapes)).source
    assert_golden(made, GOLDEN / f"{name}.cu", __file__)


def test_golden_sources_have_no_strays() -> None:
    assert sorted(p.stem for p in GOLDEN.glob("*.cu")) == sorted(CASES)
