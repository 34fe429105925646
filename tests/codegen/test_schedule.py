"""Decisions of the schedule: how many kernels, what gets memory, what is computed again."""

from __future__ import annotations

from typing import Any

import pytest
from drawing import loops, only, plan, temporaries

from tracegrad.codegen.unit import UnitPlan
from tracegrad.ir import dtypes, ops
from tracegrad.ir.types import TensorType


def total(x: Any, *axes: int, keepdims: bool = False) -> Any:
    return ops.reduce_sum(x, axes=axes, keepdims=keepdims)


def softmax(x: Any) -> Any:
    e = ops.exp(x - ops.reduce_max(x, axes=(1,), keepdims=True))
    return e / total(e, 1, keepdims=True)


def times(text: str, unit: UnitPlan) -> int:
    return sum(str(k).count(text) for k in unit.kernels)


def product(x: Any, y: Any, contract: Any = ((1,), (0,)), batch: Any = ((), ())) -> Any:
    return ops.dot_general(x, y, contract=contract, batch=batch)


def test_a_pointwise_chain_is_one_loop() -> None:
    unit = plan(lambda x, y: ops.exp(ops.sin(x) * 2 + y) - x, (5, 7), (5, 7))
    assert loops(only(unit)) == ["i<35"]
    assert temporaries(unit) == []


def test_a_sum_of_pointwise_is_one_loop() -> None:
    unit = plan(lambda x: total(ops.sin(x) * x, 0), (25,))
    assert loops(only(unit)) == ["i<25"]


def test_softmax_computes_exp_once() -> None:
    unit = plan(softmax, (64, 32))
    assert times("expf(", unit) == 1
    assert len(unit.kernels) <= 3


def test_a_broadcast_that_feeds_a_reduction_is_not_materialised() -> None:
    unit = plan(lambda x, y: total(x.__mul__(y), 1), (100, 1), (1, 100))
    assert temporaries(unit) == []
    assert loops(only(unit)) == ["i<100", "j<100"]


def test_a_cheap_value_repeated_along_rows_is_recomputed() -> None:
    unit = plan(lambda x, y: (x + 1) * y, (16,), (32, 16))
    assert temporaries(unit) == []


def test_a_costly_value_repeated_along_rows_is_stored() -> None:
    unit = plan(lambda x, y: ops.sin(ops.exp(x)) + y, (16,), (32, 16))
    assert len(unit.kernels) == 2
    assert times("sinf(", unit) == 1
    assert loops(unit.kernels[0]) == ["i<16"]


def test_a_costly_value_repeated_along_the_inner_axis_is_hoisted() -> None:
    unit = plan(lambda x, y: ops.sin(ops.exp(x)) + y, (32, 1), (32, 16))
    kernel = only(unit)
    assert loops(kernel) == ["i<32", "j<16"]
    assert "sinf" in str(kernel.body[-1].body[0])  # in the outer loop, before the inner one


def test_several_outputs_over_one_domain_share_a_loop() -> None:
    def f(x: Any) -> Any:
        s = ops.sin(x)
        return s * 2, s + x, ops.exp(s)

    unit = plan(f, (32,))
    assert loops(only(unit)) == ["i<32"]
    assert times("sinf(", unit) == 1


def test_reductions_over_the_same_axes_share_a_loop() -> None:
    unit = plan(lambda x: (total(x * x, 0), ops.reduce_max(x, axes=(0,), keepdims=False)), (9,))
    assert loops(only(unit)) == ["i<9"]


def test_outputs_that_share_nothing_are_kernels_of_their_own() -> None:
    assert len(plan(lambda x, y: (x + 1, y + 1), (32,), (32,)).kernels) == 2


def test_a_stored_value_and_its_use_share_a_loop() -> None:
    unit = plan(lambda x: (ops.exp(x), ops.exp(x) if False else ops.sin(x) + x), (8,))
    assert loops(only(unit)) == ["i<8"]


def test_a_costly_value_of_two_domains_is_stored_once() -> None:
    def f(x: Any) -> Any:
        e = ops.exp(ops.sin(x))
        return total(e, 0), total(e, 1)

    unit = plan(f, (2000, 5))  # rows too short for one loop over rows
    assert times("expf(", unit) == 1
    assert len(temporaries(unit)) == 1


@pytest.mark.parametrize(
    ("fn", "shapes"),
    [
        (lambda x: ops.sin(ops.reshape(x, shape=(3, 8))), [(4, 6)]),
        (lambda x: ops.reshape(ops.sin(x), shape=(6, 4)), [(4, 6)]),
        (lambda x: ops.sin(ops.reshape(ops.reshape(x, shape=(24,)), shape=(2, 12))), [(4, 6)]),
    ],
)
def test_reshapes_cost_nothing(fn: Any, shapes: Any) -> None:
    kernel = only(plan(fn, *shapes))
    assert loops(kernel) == ["i<24"]
    assert "/" not in str(kernel)
    assert "%" not in str(kernel)


def test_slices_flips_and_transposes_are_indices() -> None:
    def f(x: Any) -> Any:
        y = ops.slice(x, start=(1, 0), stop=(4, 6), step=(1, 2))
        return ops.permute(ops.flip(y, axes=(0,)), axes=(1, 0)) * 2

    unit = plan(f, (4, 6))
    assert temporaries(unit) == []
    assert "in_0[" in str(only(unit))


@pytest.mark.parametrize(
    ("fn", "flags"),
    [
        (product, "0, 0"),
        (lambda x, y: product(x, ops.permute(y, axes=(1, 0)), ((1,), (1,))), "0, 1"),
        (lambda x, y: product(ops.permute(x, axes=(1, 0)), y, ((0,), (0,))), "1, 0"),
    ],
)
def test_transposes_are_folded_into_the_product(fn: Any, flags: str) -> None:
    """The flags say how the memory lies; permuting twice is as good as not at all."""
    shapes = {
        "0, 0": ((64, 32), (32, 48)),
        "0, 1": ((64, 32), (32, 48)),
        "1, 0": ((64, 32), (32, 48)),
    }
    unit = plan(fn, *shapes[flags])
    assert temporaries(unit) == []
    assert "tg_gemm_f32(0, 0, 64, 48, 32" in str(only(unit))


def test_a_transposed_operand_sets_the_flag() -> None:
    unit = plan(lambda x, y: product(x, ops.permute(y, axes=(1, 0))), (64, 32), (48, 32))
    assert "tg_gemm_f32(0, 1, 64, 48, 32, in_0, 32, in_1, 32" in str(only(unit))


def test_a_small_product_is_one_fused_loop_nest() -> None:
    unit = plan(lambda x, y: product(x, y) + 1, (2, 3), (3, 2))
    assert times("gemm", unit) == 0
    assert temporaries(plan(product, (2, 3), (3, 2))) == []
    assert len(plan(product, (2, 3), (3, 2)).kernels) == 1


def test_integer_products_are_loops() -> None:
    assert times("gemm", plan(product, (64, 32), (32, 48), dtype=dtypes.int64)) == 0


def test_a_computed_operand_of_a_product_is_stored_once() -> None:
    unit = plan(lambda x, y: product(ops.exp(x), y), (64, 32), (32, 48))
    assert len(unit.kernels) == 2
    assert temporaries(unit) == ["tmp_0"]


def test_bias_and_activation_after_a_product_are_one_kernel() -> None:
    def f(x: Any, w: Any, b: Any) -> Any:
        return ops.maximum(product(x, w) + b, 0.0)

    assert len(plan(f, (64, 32), (32, 48), (48,)).kernels) == 2


def test_a_convolution_reads_its_operands_from_memory() -> None:
    def f(x: Any, w: Any) -> Any:
        y = ops.conv(ops.exp(x), w, stride=(1, 1), padding=((0, 0), (0, 0)),
                            dilation=(1, 1), groups=1)  # fmt: skip
        return ops.maximum(y, 0.0)

    unit = plan(f, (2, 3, 8, 8), (4, 3, 3, 3))
    assert len(unit.kernels) == 3
    assert [s.name for s in unit.slots if s.name.startswith("tmp")] != []


def test_a_gather_is_fused_into_its_use() -> None:
    picks = TensorType((10,), dtypes.int64)
    unit = plan(lambda x, i: total(ops.gather(x, i, axes=(0,)) * 2, 1), (50, 8), picks)
    assert temporaries(unit) == []
    assert "tg_index" in str(only(unit))


def test_long_chains_store_a_value_now_and_then() -> None:
    def f(x: Any) -> Any:
        for _ in range(450):
            x = x * 1.5 + 0.5
        return x

    unit = plan(f, (8,))
    assert 4 <= len(temporaries(unit)) <= 10
    assert len(unit.kernels) == 1
