"""Wrong arguments of pointwise functions, reductions and factories: class and text as torch 2.13's.

Each row was run in torch 2.13, which gave the class and the text; what tracegrad adds follows the
text. `f` is a float32 matrix (2, 3), `i` an int64 and `b` a bool one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

import tracegrad as torch
from tracegrad.errors import TracegradError

Call = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Any]


def kernel(name: str, dtype: str) -> str:
    return f"\"{name}\" not implemented for '{dtype}'"


MODE = "div expected rounding_mode to be one of None, 'trunc', or 'floor' but found 'q'"
LIMITS = "torch.clamp: At least one of 'min' or 'max' must not be None"
AND, SHIFT = kernel("bitwise_and_cpu", "Float"), kernel("lshift_cpu", "Float")
FLOOR, REST = kernel("div_floor_cpu", "Bool"), kernel("remainder_cpu", "Bool")
STD = "std and var only support floating point and complex dtypes"
EMPTY = ("Expected reduction dim to be specified for input.numel() == 0. Specify the reduction dim "
         "with the 'dim' argument.")  # fmt: skip
NOTHING = torch.zeros(0)
HALVES = torch.ones(2, 3, dtype=torch.float64)

RUNTIME: list[tuple[Call, str]] = [
    (lambda f, i, b: torch.div(f, f, rounding_mode="q"), MODE),
    (lambda f, i, b: f.div_(f, rounding_mode="q"), MODE),
    (lambda f, i, b: torch.clamp(f), LIMITS),
    (lambda f, i, b: f.clamp_(), LIMITS),
    (lambda f, i, b: torch.clip(f), LIMITS),
    (lambda f, i, b: torch.positive(b), "The `+` operator, on a bool tensor is not supported."),
    (lambda f, i, b: torch.lerp(f, i, 0.5), "expected dtype float for `end` but got dtype long int"),
    (lambda f, i, b: torch.lerp(f, f, HALVES),
     "expected dtype float for `weight` but got dtype double"),
    (lambda f, i, b: torch.addcdiv(f, i, i), "Integer division with addcdiv is no longer supported"),
    (lambda f, i, b: torch.where(i, f, f),
     "where expected condition to be a boolean tensor, but got a tensor with dtype Long"),
    (lambda f, i, b: torch.mean(f, dtype=torch.int64),
     "mean(): could not infer output dtype. Optional dtype must be either"),
    (lambda f, i, b: torch.argmax(b), "argmax(): does not support bool input"),
    (lambda f, i, b: torch.argmin(b), "argmin(): does not support bool input"),
    (lambda f, i, b: torch.var(i), STD),
    (lambda f, i, b: torch.std(b), STD),
    (lambda f, i, b: torch.norm(f, "a"), "linalg.matrix_norm: Order a not supported."),
    (lambda f, i, b: torch.norm(NOTHING, float("inf")),
     "linalg.vector_norm cannot compute the inf norm on an empty tensor because the operation does"),
    (lambda f, i, b: torch.norm(NOTHING, float("-inf"), 0),
     "linalg.vector_norm cannot compute the -inf norm on the dimension 0"),
    (lambda f, i, b: torch.amax(NOTHING), f"amax(): {EMPTY}"),
    (lambda f, i, b: torch.amin(NOTHING), f"amin(): {EMPTY}"),
    (lambda f, i, b: torch.empty_strided((2,), (1, 1)),
     "dimensionality of sizes (1) must match dimensionality of strides (2)"),
    (lambda f, i, b: torch.stack([]), "stack expects a non-empty TensorList"),
    (lambda f, i, b: torch.masked_select(f, f), "masked_select: expected BoolTensor for mask"),
    (lambda f, i, b: torch.roll(f, 1, (0, 1)),
     "shifts and dimensions must align. shifts: 1, dims:2"),
    (lambda f, i, b: torch.tile(f, (-1,)),
     "Trying to create tensor with negative dimension -3: [2, -3]"),
    (lambda f, i, b: torch.movedim(f, (0, 0), (0, 1)), "movedim: repeated dim in `source` ([0, 0])"),
]  # fmt: skip
MISSING: list[tuple[Call, str]] = [
    (lambda f, i, b: f & f, AND),
    (lambda f, i, b: 1 & f, AND),
    (lambda f, i, b: i & 1.5, AND),
    (lambda f, i, b: f.bitwise_and_(f), AND),
    (lambda f, i, b: f.__iand__(f), AND),
    (lambda f, i, b: f | i, kernel("bitwise_or_cpu", "Float")),
    (lambda f, i, b: f ^ f, kernel("bitwise_xor_cpu", "Float")),
    (lambda f, i, b: torch.bitwise_not(f), kernel("bitwise_not_cpu", "Float")),
    (lambda f, i, b: f << 1, SHIFT),
    (lambda f, i, b: i << 1.5, SHIFT),
    (lambda f, i, b: f >> f, kernel("rshift_cpu", "Float")),
    (lambda f, i, b: b << b, kernel("lshift_cpu", "Bool")),
    (lambda f, i, b: b // b, FLOOR),
    (lambda f, i, b: True // b, FLOOR),
    (lambda f, i, b: b.floor_divide_(b), FLOOR),
    (lambda f, i, b: torch.div(b, b, rounding_mode="floor"), FLOOR),
    (lambda f, i, b: torch.div(b, b, rounding_mode="trunc"), kernel("div_trunc_cpu", "Bool")),
    (lambda f, i, b: b % b, REST),
    (lambda f, i, b: b.remainder_(b), REST),
    (lambda f, i, b: torch.fmod(b, b), kernel("fmod_cpu", "Bool")),
    (lambda f, i, b: abs(b), kernel("abs_cpu", "Bool")),
    (lambda f, i, b: b**b, kernel("pow", "Bool")),
    (lambda f, i, b: torch.floor(b), kernel("floor_vml_cpu", "Bool")),
    (lambda f, i, b: torch.ceil(b), kernel("ceil_vml_cpu", "Bool")),
    (lambda f, i, b: torch.trunc(b), kernel("trunc_vml_cpu", "Bool")),
    (lambda f, i, b: torch.round(b), kernel("round_vml_cpu", "Bool")),
    (lambda f, i, b: torch.round(i, decimals=1), kernel("round_cpu", "Long")),
    (lambda f, i, b: torch.frac(i), kernel("frac_cpu", "Long")),
    (lambda f, i, b: torch.hypot(i, i), kernel("hypot_cpu", "Long")),
    (lambda f, i, b: torch.lerp(i, i, 0.5), kernel("lerp_kernel_scalar", "Long")),
    (lambda f, i, b: torch.lerp(i, i, i), kernel("lerp_kernel_tensor", "Long")),
    (lambda f, i, b: torch.softmax(i, 0), kernel("softmax_kernel_impl", "Long")),
    (lambda f, i, b: torch.softmax(i, 1), kernel("softmax_lastdim_kernel_impl", "Long")),
    (lambda f, i, b: torch.log_softmax(i, 0), kernel("log_softmax_kernel_impl", "Long")),
    (lambda f, i, b: torch.matmul(b.T, b), kernel("addmm_impl_cpu_", "Bool")),
]
TYPES: list[tuple[Call, str]] = [
    (lambda f, i, b: ~f, "~ (operator.invert) is only implemented on integer and Boolean-type"),
    (lambda f, i, b: torch.add(f, f, alpha="a"), "add(): argument 'alpha' must be Number, not str"),
    (lambda f, i, b: f.sub(f, alpha=None), "sub(): argument 'alpha' must be Number, not NoneType"),
    (lambda f, i, b: torch.addcmul(f, f, f, value="a"),
     "addcmul(): argument 'value' must be Number, not str"),
    (lambda f, i, b: torch.addcmul(f, f, 2),
     "addcmul(): argument 'tensor2' (position 3) must be Tensor, not int"),
    (lambda f, i, b: torch.logit(f, eps="a"), "logit(): argument 'eps' must be float, not str"),
    (lambda f, i, b: torch.nan_to_num(f, nan="a"),
     "nan_to_num(): argument 'nan' must be float, not str"),
    (lambda f, i, b: torch.softmax(f, "a"), "softmax(): argument 'dim' (position 2) must be int, not str"),
    (lambda f, i, b: torch.softmax(f, 0, dtype="a"),
     "softmax(): argument 'dtype' must be torch.dtype, not str"),
    (lambda f, i, b: torch.sum(f, 0, dtype="a"), "sum(): argument 'dtype' must be torch.dtype, not str"),
    (lambda f, i, b: torch.argmax(f, (0, 1)),
     "argmax(): argument 'dim' (position 2) must be int, not tuple"),
    (lambda f, i, b: torch.cumsum(f, "a"), "cumsum(): argument 'dim' (position 2) must be int, not str"),
    (lambda f, i, b: torch.cumprod(f, 0, dtype="a"),
     "cumprod(): argument 'dtype' must be torch.dtype, not str"),
    (lambda f, i, b: torch.count_nonzero(1),
     "count_nonzero(): argument 'input' (position 1) must be Tensor, not int"),
    (lambda f, i, b: torch.roll(f, "a"),
     "roll(): argument 'shifts' (position 2) must be tuple of ints, not str"),
    (lambda f, i, b: torch.split(f, "a"),
     "split_with_sizes(): argument 'split_sizes' (position 2) must be tuple of ints, not str"),
    (lambda f, i, b: f.expand_as(1), "expand_as(): argument 'other' (position 1) must be Tensor, not int"),
    (lambda f, i, b: torch.nonzero(f, as_tuple="a"),
     "nonzero(): argument 'as_tuple' must be bool, not str"),
    # here PyTorch lists all its signatures; these say what is wrong
    (lambda f, i, b: f.div(f, rounding_mode=3), "div() received an invalid combination of arguments"),
    (lambda f, i, b: torch.round(f, decimals=1.5), "round() received an invalid combination of"),
    (lambda f, i, b: torch.lerp(f, f, "a"),
     "lerp() received an invalid combination of arguments - got (Tensor, Tensor, str), but expected"),
    (lambda f, i, b: torch.clamp_min(f, None),
     "clamp_min() received an invalid combination of arguments - got (Tensor, NoneType), but expected"),
    (lambda f, i, b: torch.sum(f, "a"), "sum() received an invalid combination of arguments - got (Ten"),
    (lambda f, i, b: torch.amax(f, 1.5),
     "amax(): argument 'dim' (position 2) must be tuple of ints, not float"),
    (lambda f, i, b: torch.sum(f, (0, "a")),
     "sum(): argument 'dim' failed to unpack the object at pos 2 with error"),
    (lambda f, i, b: torch.transpose(f, "a", 1),
     "transpose(): argument 'dim0' (position 2) must be int, not str"),
    (lambda f, i, b: torch.sum(f, 0, "a"),
     "sum(): argument 'keepdim' (position 3) must be bool, not str"),
    (lambda f, i, b: torch.prod(f, 0, "a"),
     "prod(): argument 'keepdim' (position 3) must be bool, not str"),
    (lambda f, i, b: torch.max(f, 0, "a"), "max() received an invalid combination of arguments - got"),
    (lambda f, i, b: torch.std(f, 0, "a"), "std() received an invalid combination of arguments - got"),
    (lambda f, i, b: torch.var(f, correction="a"), "var() received an invalid combination of arguments"),
    (lambda f, i, b: torch.norm(f, [1]), "norm(): argument 'p' must be Number or 'fro', not list"),
    (lambda f, i, b: torch.normal("a", 1.0, (2,)),
     "normal(): argument 'mean' (position 1) must be Tensor or Number, not str"),
]  # fmt: skip
ROWS = [
    (call, error, text)
    for error, rows in ((RuntimeError, RUNTIME), (NotImplementedError, MISSING), (TypeError, TYPES))
    for call, text in rows
]


@pytest.mark.parametrize(("call", "error", "text"), ROWS)
def test_wrong_arguments(call: Call, error: type[Exception], text: str) -> None:
    given = (
        torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
        torch.tensor([[1, 2, 3], [4, 5, 6]]),
        torch.tensor([[True, False, True]] * 2),
    )
    before = [(x.tolist(), x._version) for x in given]
    with pytest.raises(error, match=re.escape(text)) as caught:
        call(*given)
    assert isinstance(caught.value, TracegradError)
    assert isinstance(caught.value, NotImplementedError) is (error is NotImplementedError)
    assert [(x.tolist(), x._version) for x in given] == before


@pytest.mark.parametrize("other", [2, "a", None])
def test_products_of_matrices_leave_the_refusal_to_python(other: Any) -> None:
    with pytest.raises(TypeError, match="unsupported operand type.s. for @: 'Tensor' and"):
        torch.ones(2, 2) @ other
    with pytest.raises(TypeError, match="unsupported operand type.s. for @: .* and 'Tensor'"):
        other @ torch.ones(2, 2)


def test_what_pytorch_takes_is_taken() -> None:
    b, i = torch.tensor([True, False]), torch.tensor([1, -2])
    assert torch.sign(b).tolist() == [True, False]
    assert torch.sign(b).dtype is torch.bool
    copied = torch.nan_to_num(i)
    assert copied.tolist() == [1, -2]
    copied[0] = 5
    assert i.tolist() == [1, -2]
    assert torch.add(1, 2).item() == 3
    assert (
        torch.lerp(torch.zeros(2), torch.ones(2), torch.tensor(0.5, dtype=torch.float64)).sum() == 1
    )


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("error", [RuntimeError, IndexError])
def test_indices_out_of_bounds_are_errors_of_both_classes(
    error: type[Exception], compiled: bool
) -> None:
    """torch 2.13: a RuntimeError of `gather` and `scatter`, an IndexError of `x[index]`."""
    x = torch.tensor([1.0, 2.0, 3.0])
    far = torch.tensor([5])
    text = "index 5 is out of bounds for dimension 0 with size 3"
    for f in (
        lambda i: torch.gather(x, 0, i) * 1,
        lambda i: torch.scatter(x, 0, i, x) * 1,
        lambda i: x[i] * 1,
    ):
        run = torch.compile(f) if compiled else f
        for _ in range(2 if compiled else 0):
            run(torch.tensor([1]))
        with pytest.raises(error, match=text):
            run(far)
