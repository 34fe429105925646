"""Matrix products under PyTorch's names; the mathematics is in `tracegrad.ir.composite_linalg`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tracegrad.ir import composite as formulas
from tracegrad.ir import composite_einsum, composite_linalg, ops
from tracegrad.ir.product_dtypes import check_addmm, check_baddbmm
from tracegrad.tracer.arguments import bool_argument, dtype_argument, int_argument
from tracegrad.tracer.composites import composite
from tracegrad.tracer.dispatch import dispatch2
from tracegrad.tracer.pointwise import FLOAT32, FLOAT64, apply2, named, need_tensor
from tracegrad.tracer.shapes import wrap_dim
from tracegrad.tracer.tensor import Tensor

FUNCTIONS: dict[str, Callable[..., Any]] = {}


def _public(function: Callable[..., Any]) -> Callable[..., Any]:
    FUNCTIONS[function.__name__] = function
    return function


_MATRICES = {"contract": ((1,), (0,)), "batch": ((), ())}


@_public
def matmul(input: Any, other: Any) -> Any:
    """Matrix product of vectors, matrices or batches of matrices (`@`)."""
    if isinstance(input, Tensor) and isinstance(other, Tensor):
        x, y = input._array, other._array
        dtype = x.dtype
        if (dtype is FLOAT32 or dtype is FLOAT64) and y.dtype is dtype:
            if x.ndim == 2 == y.ndim and x.shape[1] == y.shape[0]:
                return dispatch2(ops.dot_general, input, other, _MATRICES)
    return _product(input, other)


@composite
def _product(input: Any, other: Any) -> Any:
    need_tensor("matmul", "input", 1, input)
    need_tensor("matmul", "other", 2, other)
    out = composite_linalg.matmul(input, other)
    if other.ndim == 1 < input.ndim:
        return named(out, "MvBackward0")
    return named(out, "MmBackward0") if input.ndim == 1 and other.ndim == 2 else out


@_public
@composite
def mm(input: Any, mat2: Any) -> Any:
    """Product of two matrices."""
    return composite_linalg.mm(input, mat2)


@_public
@composite
def mv(input: Any, vec: Any) -> Any:
    """Matrix times vector."""
    return named(composite_linalg.mv(input, vec), "MvBackward0")


@_public
@composite
def dot(input: Any, tensor: Any) -> Any:
    """Inner product of two vectors."""
    return composite_linalg.dot(input, tensor)


@_public
@composite
def bmm(input: Any, mat2: Any) -> Any:
    """Products of two batches of matrices, (b, n, m) and (b, m, p)."""
    return composite_linalg.bmm(input, mat2)


@_public
@composite
def outer(input: Any, vec2: Any) -> Any:
    """Outer product of two vectors."""
    return composite_linalg.outer(input, vec2)


@_public
@composite
def tensordot(a: Any, b: Any, dims: Any = 2) -> Any:
    """Sum of products over paired dimensions."""
    return composite_linalg.tensordot(a, b, dims)


@_public
@composite
def einsum(equation: str, *operands: Any) -> Any:
    """Sum of products in Einstein's notation."""
    for position, operand in enumerate(operands, 2):
        if not isinstance(operand, list | tuple):  # operands may come as one list
            need_tensor("einsum", "operands", position, operand)
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    return composite_einsum.einsum(equation, *operands)


@_public
@composite
def addmm(input: Any, mat1: Any, mat2: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    """`beta * input + alpha * (mat1 @ mat2)`."""
    need_tensor("addmm", "input", 1, input)
    need_tensor("addmm", "mat1", 2, mat1)
    need_tensor("addmm", "mat2", 3, mat2)
    check_addmm(input, mat1, mat2)
    product = mm(mat1, mat2)
    product = product if alpha == 1 else apply2("mul", product, alpha)
    scaled = input if beta == 1 else apply2("mul", input, beta)
    return named(apply2("add", product, scaled), "AddmmBackward0")


@_public
@composite
def baddbmm(input: Any, batch1: Any, batch2: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    """`beta * input + alpha * bmm(batch1, batch2)`."""
    need_tensor("baddbmm", "input", 1, input)
    need_tensor("baddbmm", "batch1", 2, batch1)
    need_tensor("baddbmm", "batch2", 3, batch2)
    check_baddbmm(input, batch1, batch2)
    product = bmm(batch1, batch2)
    product = product if alpha == 1 else apply2("mul", product, alpha)
    scaled = input if beta == 1 else apply2("mul", input, beta)
    return named(apply2("add", product, scaled), "BaddbmmBackward0")


def _as_wanted(function: str, input: Any, dim: Any, dtype: Any) -> Any:
    """`input` in the dtype asked for; `dim` and `dtype` are refused where they are none."""
    int_argument(function, "dim", 2, dim)
    wanted = dtype_argument(function, dtype)
    return input if wanted is None else input.to(wanted)


@_public
@composite
def softmax(input: Any, dim: int, dtype: Any = None) -> Any:
    """`exp(x)` divided by its sum along `dim`, without overflow."""
    need_tensor("softmax", "input", 1, input)
    x = _as_wanted("softmax", input, dim, dtype)
    return named(formulas.softmax(x, dim), "SoftmaxBackward0")


@_public
@composite
def log_softmax(input: Any, dim: int, dtype: Any = None) -> Any:
    """Logarithm of `softmax`, without overflow."""
    need_tensor("log_softmax", "input", 1, input)
    x = _as_wanted("log_softmax", input, dim, dtype)
    return named(formulas.log_softmax(x, dim), "LogSoftmaxBackward0")


@_public
@composite
def logsumexp(input: Any, dim: Any, keepdim: bool = False) -> Any:
    """Logarithm of the sum of exponentials along `dim`, without overflow."""
    need_tensor("logsumexp", "input", 1, input)
    bool_argument("logsumexp", "keepdim", keepdim)
    dims = dim if isinstance(dim, tuple | list) else (dim,)
    dim = tuple(wrap_dim(d, input.ndim) for d in dims)
    return named(formulas.logsumexp(input, dim, keepdim), "LogsumexpBackward0")
