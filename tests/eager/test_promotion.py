"""Result dtypes: PyTorch's documented table, and the ranks of tensors, 0-d tensors and numbers."""

from __future__ import annotations

from typing import Any

import pytest

import tracegrad as tg

ORDER = "u8 i8 i16 i32 i64 f16 bf16 f32 f64 bool".split()
DTYPES = dict(
    zip(ORDER, (tg.uint8, tg.int8, tg.int16, tg.int32, tg.int64, tg.float16, tg.bfloat16,
                tg.float32, tg.float64, tg.bool), strict=True)
)  # fmt: skip
TABLE = """
u8    u8   i16  i16  i32  i64  f16  bf16 f32  f64  u8
i8    i16  i8   i16  i32  i64  f16  bf16 f32  f64  i8
i16   i16  i16  i16  i32  i64  f16  bf16 f32  f64  i16
i32   i32  i32  i32  i32  i64  f16  bf16 f32  f64  i32
i64   i64  i64  i64  i64  i64  f16  bf16 f32  f64  i64
f16   f16  f16  f16  f16  f16  f16  f32  f32  f64  f16
bf16  bf16 bf16 bf16 bf16 bf16 f32  bf16 f32  f64  bf16
f32   f32  f32  f32  f32  f32  f32  f32  f32  f64  f32
f64   f64  f64  f64  f64  f64  f64  f64  f64  f64  f64
bool  u8   i8   i16  i32  i64  f16  bf16 f32  f64  bool
"""
PAIRS = [
    (row.split()[0], ORDER[i], cell)
    for row in TABLE.strip().splitlines()
    for i, cell in enumerate(row.split()[1:])
]


@pytest.mark.parametrize(("a", "b", "result"), PAIRS)
def test_two_tensors_promote_as_documented(a: str, b: str, result: str) -> None:
    x, y = tg.ones(2, dtype=DTYPES[a]), tg.ones(2, dtype=DTYPES[b])
    assert tg.promote_types(DTYPES[a], DTYPES[b]) is DTYPES[result]
    assert (x * y).dtype is DTYPES[result]
    scalar_wins = DTYPES[b].category > DTYPES[a].category
    expected = DTYPES[result] if scalar_wins else DTYPES[a]
    if not scalar_wins or a == "bool" or DTYPES[b].is_floating_point:
        assert (x * y[0]).dtype is expected, "a 0-d tensor counts only by its category"


@pytest.mark.parametrize(
    ("dtype", "number", "result"),
    [
        (tg.uint8, 3, tg.uint8), (tg.int8, True, tg.int8), (tg.int32, 1.5, tg.float32),
        (tg.float16, 2, tg.float16), (tg.float16, 2.5, tg.float16), (tg.float32, 1e300, tg.float32),
        (tg.bfloat16, 2.5, tg.bfloat16), (tg.float64, 1, tg.float64), (tg.bool, 3, tg.int64),
        (tg.bool, 1.5, tg.float32), (tg.bool, True, tg.bool),
    ],
)  # fmt: skip
def test_numbers_lift_the_category_but_not_the_width(dtype: Any, number: Any, result: Any) -> None:
    x = tg.ones(2, dtype=dtype)
    for out in (x * number, number * x, (x[0] * number)):
        assert out.dtype is result


def test_division_and_functions_of_integers_give_the_default_float() -> None:
    i = tg.tensor([1, 2])
    assert (i / 2).dtype is tg.float32 and tg.sin(i).dtype is tg.float32
    assert (i // 2).dtype is tg.int64
    tg.set_default_dtype(tg.float64)
    try:
        assert (i / 2).dtype is tg.float64
        assert tg.ones(1).dtype is tg.tensor([1.5]).dtype is tg.float64
    finally:
        tg.set_default_dtype(tg.float32)


def test_sums_of_integers_and_bools_are_int64() -> None:
    assert tg.ones(2, dtype=tg.int8).sum().dtype is tg.int64
    assert tg.ones(2, dtype=tg.bool).sum().dtype is tg.int64
    assert tg.ones(2, dtype=tg.float16).sum().dtype is tg.float16


def test_integer_that_does_not_fit_is_refused() -> None:
    with pytest.raises(RuntimeError, match="cannot be converted to type .* without overflow: 300"):
        tg.ones(2, dtype=tg.uint8) + 300
