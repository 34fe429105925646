"""Products of operands of two dtypes are refused in the words of the kernel PyTorch 2.13 calls."""

from __future__ import annotations

from typing import Any

import pytest

import tracegrad as tg

linear = tg.nn.functional.linear


def i(*shape: int) -> Any:
    return tg.ones(shape, dtype=tg.int32)


def f(*shape: int) -> Any:
    return tg.ones(shape)


MM = "expected m1 and m2 to have the same dtype, but got: int != float"
MV = "addmv input tensors must have the same dtype, but got Float, Int, and Float"
DOT = "dot : expected both vectors to have same dtype, but found Int and Float"
BMM = "expected scalar type Int but found Float"
MAT1 = "mat1 and mat2 must have the same dtype, but got Int and Float"
SELF = "self and mat2 must have the same dtype, but got Int and Float"
BOTH = "both inputs should have same dtype"
CASES: list[tuple[Any, str]] = [
    (lambda: tg.mm(i(2, 3), f(3, 4)), MM),
    (lambda: i(2, 3) @ f(3, 4), MM),
    (lambda: i(3) @ f(3, 4), MM),
    (lambda: i(5, 2, 3) @ f(3, 4), MM),
    (lambda: tg.mv(i(2, 3), f(3)), MV),
    (lambda: i(2, 3) @ f(3), MV),
    (lambda: i(5, 2, 3) @ f(3), MV),
    (lambda: tg.dot(i(3), f(3)), DOT),
    (lambda: tg.vdot(i(3), f(3)), DOT),
    (lambda: i(3) @ f(3), DOT),
    (lambda: tg.bmm(i(5, 2, 3), f(5, 3, 4)), BMM),
    (lambda: i(5, 2, 3) @ f(5, 3, 4), BMM),
    (lambda: i(5, 2, 3) @ f(1, 3, 4), BMM),
    (lambda: i(2, 3) @ f(5, 3, 4), BMM),
    (lambda: i(3) @ f(5, 3, 4), BMM),
    (lambda: tg.einsum("ij,jk->ik", i(2, 3), f(3, 4)), BMM),
    (lambda: tg.einsum("i,i->", i(3), f(3)), BMM),
    (lambda: tg.inner(i(3), f(3)), BOTH),
    (lambda: tg.tensordot(i(2, 3), f(3, 4), 1), BOTH),
    (lambda: tg.chain_matmul(i(2, 3), i(3, 3), f(3, 4)),
     "multi_dot(): all tensors must have be the same dtype but tensor 0 is int and tensor 2 float"),
    (lambda: tg.addmm(f(2, 4), i(2, 3), f(3, 4)), MAT1),
    (lambda: tg.addmm(i(2, 4), f(2, 3), f(3, 4)), SELF),
    (lambda: tg.addbmm(f(2, 4), i(5, 2, 3), f(5, 3, 4)), MAT1),
    (lambda: tg.addbmm(i(2, 4), f(5, 2, 3), f(5, 3, 4)), SELF),
    (lambda: tg.addmv(i(2), i(2, 3), f(3)),
     "addmv input tensors must have the same dtype, but got Int, Int, and Float"),
    (lambda: tg.baddbmm(i(5, 2, 4), i(5, 2, 3), f(5, 3, 4)), BMM),
    (lambda: tg.baddbmm(i(5, 2, 4), f(5, 2, 3), f(5, 3, 4)),
     "Input dtypes must be the same, got: input int, batch1: float, batch2: float"),
    (lambda: linear(i(2, 3), f(4, 3)), MM),
    (lambda: linear(i(2, 3), f(3)), MV),
    (lambda: linear(i(3), f(3)), DOT),
    (lambda: linear(i(2, 3), f(4, 3), f(4)), MAT1),
    (lambda: linear(f(2, 3), f(4, 3), i(4)), SELF),
    # two faults: which one is told
    (lambda: i(2, 3) @ f(2, 4), "mat1 and mat2 shapes cannot be multiplied (2x3 and 2x4)"),
    (lambda: tg.mv(i(2, 3), f(2)), "size mismatch, got input (2), mat (2x3), vec (2)"),
    (lambda: tg.dot(i(2), f(3)), DOT),
    (lambda: tg.bmm(i(5, 2, 3), f(5, 2, 4)),
     "Expected size for first two dimensions of batch2 tensor to be: [5, 3] but got: [5, 2]."),
    (lambda: linear(i(2, 3), f(4, 2), f(4)), MAT1),
    (lambda: tg.addmm(i(2, 4), f(3), f(3, 4)), SELF),
    (lambda: tg.tensordot(i(2, 3), f(2, 3), 1), BOTH),
]  # fmt: skip


@pytest.mark.parametrize(("call", "text"), CASES)
def test_two_dtypes_are_refused_in_the_words_of_the_kernel(call: Any, text: str) -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError) as told:
            call()
        assert str(told.value) == text


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(tg.int32, "Int"), (tg.int64, "Long"), (tg.float64, "Double"), (tg.float16, "Half"),
     (tg.bool, "Bool"), (tg.uint8, "Byte")],
)  # fmt: skip
def test_a_layer_names_the_dtype_of_its_input(dtype: Any, name: str) -> None:
    text = f"^mat1 and mat2 must have the same dtype, but got {name} and Float$"
    with pytest.raises(RuntimeError, match=text):
        tg.nn.Linear(3, 2)(tg.ones(2, 3).to(dtype))


def test_products_without_a_sum_promote() -> None:
    assert tg.outer(i(3), f(3)).dtype is tg.float32
    assert tg.inner(i(), f(3)).dtype is tg.float32
    assert tg.einsum("i,j->ij", i(3), f(3)).dtype is tg.float32
    assert tg.addr(i(2, 4), i(2), f(4)).dtype is tg.float32
