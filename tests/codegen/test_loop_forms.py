"""The forms of a loop nest, as pseudo-code; and plans that are equal where nothing differs."""

from __future__ import annotations

from typing import Any

import pytest
from drawing import loops, only, plan

from tracegrad.codegen.plan import KernelPlan, Line, Loop
from tracegrad.ir import dtypes, ops


def total(x: Any, *axes: int) -> Any:
    return ops.reduce_sum(x, axes=axes, keepdims=False)


def text(fn: Any, *shapes: Any, **kwargs: Any) -> str:
    return str(only(plan(fn, *shapes, **kwargs)))


def test_map() -> None:
    assert text(lambda x: x * 2, (4, 6)) == (
        "kernel_0(in_0, out_0):\n"
        "    for i in 0..24:  [omp simd]\n"
        "        out_0[i] = in_0[i] * 2.0f;"
    )


def test_a_large_map_runs_on_threads_in_blocks() -> None:
    made = text(lambda x: ops.exp(x), (1 << 20,))
    assert "omp parallel for" in made
    assert "omp simd" in made


def test_rows() -> None:
    assert text(lambda x: total(x, 1), (4, 6)) == (
        "kernel_0(in_0, out_0):\n"
        "    for i in 0..4:\n"
        "        double acc0 = 0;\n"
        "        for j in 0..6:  [omp simd reduction(+: acc0)]\n"
        "            acc0 += in_0[6 * i + j];\n"
        "        out_0[i] = (float)acc0;"
    )


def test_columns() -> None:
    assert text(lambda x: total(x, 0), (4, 6)) == (
        "kernel_0(in_0, out_0):\n"
        "    double acc0[6];\n"
        "    for j in 0..6:\n"
        "        acc0[j] = 0;\n"
        "    for i in 0..4:\n"
        "        for j in 0..6:  [omp simd]\n"
        "            acc0[j] += in_0[6 * i + j];\n"
        "    for j in 0..6:\n"
        "        out_0[j] = (float)acc0[j];"
    )


def test_many_columns_go_in_blocks() -> None:
    made = text(lambda x: total(x, 0), (40, 3000))
    assert "double acc0[512];" in made
    assert "for j0 in 0..3000:" in made


def test_a_full_reduction_goes_in_blocks_added_in_order() -> None:
    kernel = only(plan(lambda x: total(x * x, 0), (1 << 20,)))
    assert loops(kernel)[0] == "block<256"
    assert "partial0[block] = acc0;" in str(kernel)
    assert str(kernel).rstrip().endswith("out_0[0] = (float)total0;")


def test_a_small_full_reduction_is_one_loop() -> None:
    assert "partial" not in text(lambda x: total(x, 0, 1), (4, 6))


def test_a_middle_axis() -> None:
    assert loops(only(plan(lambda x: total(x, 1), (3, 4, 5)))) == [
        "i<3",
        "k<5",
        "j<4",
        "k<5",
        "k<5",
    ]


def test_reduced_axes_that_lie_together_are_one_loop() -> None:
    assert loops(only(plan(lambda x: total(x, 1, 2), (3, 4, 5)))) == ["i<3", "j<20"]


def test_a_computed_index_that_is_divided_again_is_divided_at_run_time() -> None:
    def f(x: Any) -> Any:
        y = ops.slice(x, start=(0, 0, 0), stop=(4, 5, 5), step=(1, 2, 2))
        return ops.floor(ops.reshape(y, shape=(3, 3, 4)))

    made = text(f, (4, 5, 5))
    assert "/" in made
    assert "%" in made


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_to_reduce_stores_the_identity(shape: Any) -> None:
    assert "out_0" in text(lambda x: total(x, 1), shape)


def test_a_maximum_lets_nan_win() -> None:
    made = text(lambda x: ops.reduce_max(x, axes=(0,), keepdims=False), (8,))
    assert "acc0_nan |= acc0_next != acc0_next;" in made
    assert "out_0[0] = (acc0_nan ? TG_NAN : acc0);" in made
    columns = text(lambda x: ops.reduce_max(x, axes=(0,), keepdims=False), (8, 4))
    assert "> acc0[j] || acc0_next != acc0_next ? acc0_next : acc0[j]" in columns
    exact = text(lambda x: ops.reduce_max(x, axes=(0,), keepdims=False), (8,), dtype=dtypes.int64)
    assert "!=" not in exact


def test_index_checks_are_not_vectorised() -> None:
    from tracegrad.ir.types import TensorType

    made = text(lambda x, i: ops.gather(x, i, axes=(0,)), (9,), TensorType((4,), dtypes.int64))
    assert "simd" not in made
    assert "tg_index(in_1[i], 9, 0, status)" in made


def test_plans_are_plain_data() -> None:
    def f(x: Any, y: Any) -> Any:
        return total(x * y, 0), x + y

    assert plan(f, (8,), (8,)).kernels == plan(f, (8,), (8,)).kernels
    assert plan(f, (8,), (8,)).kernels != plan(f, (9,), (9,)).kernels


def test_pseudo_code() -> None:
    kernel = KernelPlan(
        "k", (), (), (Loop("i", "4", (Line("a();"),), pragmas=("omp simd",)), Line("b();")), ()
    )
    assert str(kernel) == "k():\n    for i in 0..4:  [omp simd]\n        a();\n    b();"
