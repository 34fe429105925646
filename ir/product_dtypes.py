"""The operands of a product have one dtype: PyTorch's checks, each with the text of its kernel.

PyTorch's functions of the family end in few kernels (mm, mv, dot, bmm, addmm, baddbmm), and the
kernel words the refusal. Operands are NumPy arrays, IR values or Tensors. Start reading at
`check_mm`; who calls what is in `tracegrad.ir.composite_linalg`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tracegrad.ir.dtypes import torch_name
from tracegrad.ir.errors import DTypeError
from tracegrad.ir.primitive import type_of
from tracegrad.ir.primitives.contraction import c10_name


def _names(*operands: Any) -> list[str]:
    """What PyTorch calls their dtypes: `Int`, `Float`."""
    return [torch_name(type_of(x).dtype) for x in operands]


def _c_names(*operands: Any) -> list[str]:
    """The same as types of C++: `int`, `c10::Half`."""
    return [c10_name(type_of(x).dtype) for x in operands]


def check_mm(x: Any, y: Any) -> None:
    """Of two matrices."""
    if x.dtype != y.dtype:
        text = "expected m1 and m2 to have the same dtype, but got: {} != {}"
        raise DTypeError(text.format(*_c_names(x, y)))


def check_mv(own: Any, mat: Any, vec: Any) -> None:
    """Of a matrix and a vector, added to `own` (for `mv` that is of the vector's dtype)."""
    if not own.dtype == mat.dtype == vec.dtype:
        text = "addmv input tensors must have the same dtype, but got {}, {}, and {}"
        raise DTypeError(text.format(*_names(own, mat, vec)))


def check_dot(x: Any, y: Any) -> None:
    """Of two vectors."""
    if x.dtype != y.dtype:
        text = "dot : expected both vectors to have same dtype, but found {} and {}"
        raise DTypeError(text.format(*_names(x, y)))


def check_bmm(x: Any, y: Any) -> None:
    """Of batches of matrices, and of what `einsum` makes of its operands."""
    if x.dtype != y.dtype:
        raise DTypeError("expected scalar type {} but found {}".format(*_names(x, y)))


def check_both(x: Any, y: Any) -> None:
    """Of `inner` and `tensordot`."""
    if x.dtype != y.dtype:
        raise DTypeError("both inputs should have same dtype")


def check_addmm(own: Any, mat1: Any, mat2: Any) -> None:
    """Of two matrices and of what their product is added to, also the bias of `linear`."""
    for name, x in (("self", own), ("mat1", mat1)):
        if x.dtype != mat2.dtype:
            text = "{} and mat2 must have the same dtype, but got {} and {}"
            raise DTypeError(text.format(name, *_names(x, mat2)))


def check_baddbmm(own: Any, batch1: Any, batch2: Any) -> None:
    """Of two batches of matrices and of what their products are added to."""
    if own.dtype != batch1.dtype:
        text = "Input dtypes must be the same, got: input {}, batch1: {}, batch2: {}"
        raise DTypeError(text.format(*_c_names(own, batch1, batch2)))


def check_chain(matrices: Sequence[Any]) -> None:
    """Of all factors of `chain_matmul`."""
    for i, x in enumerate(matrices):
        if x.dtype != matrices[0].dtype:
            first, other = _c_names(matrices[0], x)
            raise DTypeError(
                "multi_dot(): all tensors must have be the same dtype but tensor 0 is "
                f"{first} and tensor {i} {other}"
            )
