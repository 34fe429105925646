"""Result dtypes: PyTorch's documented table, and the ranks of tensors, 0-d tensors and numbers."""

from __future__ import annotations

import json
import operator
from pathlib import Path
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


def test_integer_operands_wrap_around_and_fills_are_refused() -> None:
    """Beside a tensor an int is cast to its dtype, as a 0-d tensor would be; a fill is checked."""
    x = tg.tensor([2, 255], dtype=tg.uint8)
    assert (x + 300).tolist() == [46, 43] and (x * -1).tolist() == [254, 1]
    assert (x == -1).tolist() == [False, True]
    assert (tg.ones(1, dtype=tg.int32) + 2**40).tolist() == [1]
    for act in (lambda: x.fill_(300), lambda: tg.full((2,), 300, dtype=tg.uint8),
                lambda: tg.clamp(x, max=300)):  # fmt: skip
        with pytest.raises(RuntimeError, match="cannot be converted to type uint8_t without over"):
            act()
    assert x.tolist() == [2, 255]


def test_alpha_keeps_the_dtype_of_the_sum() -> None:
    small, yes = tg.ones(2, dtype=tg.uint8), tg.tensor([True, False])
    assert tg.add(small, yes, alpha=2).tolist() == [3, 1]
    assert tg.add(small, yes, alpha=2).dtype is tg.uint8
    assert tg.add(yes, yes, alpha=2).dtype is tg.bool
    assert tg.sub(tg.ones(2), small, alpha=0.5).tolist() == [0.5, 0.5]
    with pytest.raises(RuntimeError, match="argument alpha must not be a floating point number"):
        tg.add(small, small, alpha=0.5)
    with pytest.raises(RuntimeError, match="Boolean alpha only supported for Boolean results"):
        tg.add(tg.ones(2), small, alpha=True)


def test_subtracting_a_bool_is_refused() -> None:
    yes = tg.tensor([True, False])
    for act in (lambda: tg.ones(2) - yes, lambda: yes - 1, lambda: tg.tensor([1]) - True):
        with pytest.raises(RuntimeError, match="with a bool tensor is not supported"):
            act()


ANSWERS = json.loads((Path(__file__).parent / "answers" / "promotion.json").read_text())


@pytest.mark.parametrize("name", ANSWERS)
def test_result_dtypes_of_every_pair(name: str) -> None:
    """Each operation's dtypes for all pairs of dtypes; `x` where PyTorch refuses the pair.

    (`bool ** True`, which PyTorch gives and we refuse, is an `x` too.)

    The second operand is a tensor of one dimension (rows 0-9), of none (10-19), or a number
    (20-23: 2, 2.5, True, 2 ** 40); the columns are the dtypes of the first operand, in `ORDER`.
    """
    operation = OPERATIONS[name]
    dtypes = list(DTYPES.values())
    flat, point = ([tg.tensor(data).to(d) for d in dtypes] for data in ([2, 1], 2))
    for row, others in zip(ANSWERS[name], [*flat, *point, 2, 2.5, True, 2**40], strict=True):
        for x, expected in zip(flat, row.split(), strict=True):
            if expected != "x":
                assert operation(x, others).dtype is DTYPES[expected], (name, x, others)


OPERATIONS = {
    "add": operator.add, "mul": operator.mul, "div": operator.truediv, "sub": operator.sub,
    "floor_divide": operator.floordiv, "remainder": operator.mod, "pow": operator.pow,
    "less": operator.lt, "equal": operator.eq, "and": operator.and_, "lshift": operator.lshift,
    "where": lambda x, y: tg.where(tg.tensor([True, False]), x, y),
    "cat": lambda x, y: tg.cat([x, y]), "stack": lambda x, y: tg.stack([x, y]),
    "maximum": tg.maximum, "atan2": tg.atan2, "clamp": lambda x, y: tg.clamp(x, min=y),
    "add alpha": lambda x, y: tg.add(x, y, alpha=2), "fmod": tg.fmod,
}  # fmt: skip


@pytest.mark.parametrize("a", DTYPES.values(), ids=ORDER)
def test_can_cast_looks_at_the_category_only(a: Any) -> None:
    for b in DTYPES.values():
        assert tg.can_cast(a, b) is (a.category <= b.category)


@pytest.mark.parametrize(
    ("act", "error", "text"),
    [
        (lambda: tg.can_cast(3, tg.int8), TypeError, "'from_' .* must be torch.dtype, not int"),
        (lambda: tg.promote_types(tg.int8), TypeError, 'missing 1 required .* "type2"'),
        (lambda: tg.promote_types(tg.int8, "a"), TypeError, "'type2' .* must be torch.dtype"),
        (lambda: tg.promote_types(tg.int8, tg.cfloat), RuntimeError, "complex tensors are not"),
        (lambda: tg.result_type("a", 1), TypeError, "got \\(str, int\\)"),
        (lambda: tg.set_default_dtype("a"), TypeError, "invalid dtype object: only floating-point"),
        (lambda: tg.set_default_dtype(tg.int8), TypeError, "^only floating-point types are"),
        (lambda: tg.set_default_dtype(tg.complex64), TypeError, "^only floating-point types are"),
    ],
)
def test_refusals_of_dtype_functions(act: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        act()
