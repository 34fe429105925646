"""Products summed over axes: `dot_general`, from which matmul, einsum and tensordot are made.

The result's axes are the batch axes, then the free axes of x, then the free axes of y, each in
the order they have in the operand (batch axes in the order given). Start at `dot_general`; the
functions with PyTorch's names are in `tracegrad.ir.composite_linalg`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod
from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import DimensionError, DTypeError, KernelError, ShapeError
from tracegrad.ir.primitive import (
    LINEAR,
    NO_PROMOTION,
    Refusal,
    Sample,
    draw,
    primitive,
    strided,
)
from tracegrad.ir.primitives.movement import permute
from tracegrad.ir.types import Shape, TensorType

Axes = tuple[int, ...]
AxisPairs = tuple[Axes, Axes]
"""Axes of x and the axes of y that they meet, position by position."""


def free_axes(ndim: int, contract: Axes, batch: Axes) -> Axes:
    """The axes that are neither contracted nor batch axes, in ascending order."""
    taken = {*contract, *batch}
    return tuple(a for a in range(ndim) if a not in taken)


def normalize_dot(types: Sequence[TensorType], params: Mapping[str, Any]) -> dict[str, Any]:
    """Count axes from 0 and check that each is used once.

    Raises:
        DimensionError: an axis is out of range, used twice, or has no partner.
    """
    pairs: dict[str, AxisPairs] = {}
    for name in ("contract", "batch"):
        sides = tuple(params.get(name, ((), ())))
        if len(sides) != 2 or len(sides[0]) != len(sides[1]):
            raise DimensionError(
                f"dot_general: {name} must pair each axis of x with one of y, got {sides}"
            )
        pairs[name] = (
            tuple(_axis(name, a, types[0].ndim) for a in sides[0]),
            tuple(_axis(name, a, types[1].ndim) for a in sides[1]),
        )
    for side, which in enumerate(("x", "y")):
        used = pairs["contract"][side] + pairs["batch"][side]
        if len(set(used)) != len(used):
            raise DimensionError(f"dot_general: an axis of {which} is used twice: {used}")
    return dict(pairs)


def _axis(name: str, axis: int, ndim: int) -> int:
    if not -ndim <= axis < ndim:
        raise DimensionError(
            f"dot_general: {name} axis {axis} is out of range for an operand with {ndim} dimensions"
        )
    return int(axis) % ndim


def dot_shape(x: TensorType, y: TensorType, *, contract: AxisPairs, batch: AxisPairs) -> Shape:
    """Batch sizes, free sizes of x, free sizes of y."""
    for name, (xs, ys) in (("contract", contract), ("batch", batch)):
        for i, j in zip(xs, ys, strict=True):
            if x.shape[i] != y.shape[j]:
                raise ShapeError(
                    f"dot_general: {name} axes must have equal sizes; axis {i} of x has size "
                    f"{x.shape[i]} and axis {j} of y has size {y.shape[j]} "
                    f"(x {list(x.shape)}, y {list(y.shape)})"
                )
    return (
        *(x.shape[a] for a in batch[0]),
        *(x.shape[a] for a in free_axes(x.ndim, contract[0], batch[0])),
        *(y.shape[a] for a in free_axes(y.ndim, contract[1], batch[1])),
    )


_C_NAMES = {
    "float64": "double", "float32": "float", "float16": "c10::Half", "bfloat16": "c10::BFloat16",
    "int64": "long int", "int32": "int", "int16": "short int", "int8": "signed char",
    "uint8": "unsigned char", "bool": "bool",
}  # fmt: skip


def c10_name(dtype: DType) -> str:
    """The name that PyTorch's messages give a dtype."""
    return _C_NAMES.get(dtype.name, dtype.name)


def _dot_dtype(x: TensorType, y: TensorType, **params: Any) -> DType:
    if x.dtype is not y.dtype:
        raise DTypeError(
            f"expected m1 and m2 to have the same dtype, but got: "
            f"{c10_name(x.dtype)} != {c10_name(y.dtype)}"
        )
    return x.dtype


def wide(x: np.ndarray) -> np.ndarray:
    """Half types as float32, in which their products are summed; other arrays as they are."""
    return x.astype(np.float32) if x.dtype.itemsize == 2 and x.dtype.kind not in "iu" else x


@dataclass(frozen=True, slots=True)
class _Layout:
    """How operands become stacks of matrices; None where they are that already.

    x goes to (batch, free, contracted), y to (batch, contracted, free).
    """

    x_axes: Axes | None
    x_shape: Shape | None
    y_axes: Axes | None
    y_shape: Shape | None
    out_shape: Shape | None


@lru_cache(maxsize=4096)
def _layout(x: Shape, y: Shape, contract: AxisPairs, batch: AxisPairs) -> _Layout:
    free_x = free_axes(len(x), contract[0], batch[0])
    free_y = free_axes(len(y), contract[1], batch[1])
    stack = tuple(x[a] for a in batch[0])
    rows, columns = tuple(x[a] for a in free_x), tuple(y[a] for a in free_y)
    length = prod(x[a] for a in contract[0])
    x_axes, y_axes = batch[0] + free_x + contract[0], batch[1] + contract[1] + free_y
    left, right = (*stack, prod(rows), length), (*stack, length, prod(columns))
    out = stack + rows + columns
    return _Layout(
        None if x_axes == tuple(range(len(x))) else x_axes,
        None if tuple(x[a] for a in x_axes) == left else left,
        None if y_axes == tuple(range(len(y))) else y_axes,
        None if tuple(y[a] for a in y_axes) == right else right,
        None if out == (*stack, prod(rows), prod(columns)) else out,
    )


MATRIX_PRODUCT: Callable[..., Any] = np.ndarray.dot  # of two matrices: half the cost of matmul
_ROWS_COLUMNS: AxisPairs = ((1,), (0,))


def _eager_dot(
    x: np.ndarray, y: np.ndarray, *, contract: AxisPairs, batch: AxisPairs
) -> np.ndarray:
    """Bring both operands into stacks of matrices, and multiply these."""
    if contract == _ROWS_COLUMNS and x.ndim == 2 == y.ndim and x.dtype.itemsize > 2:
        return MATRIX_PRODUCT(x, y)
    layout = _layout(x.shape, y.shape, contract, batch)
    left, right = wide(x), wide(y)
    if layout.x_axes is not None:
        left = left.transpose(layout.x_axes)
    if layout.x_shape is not None:
        left = left.reshape(layout.x_shape)
    if layout.y_axes is not None:
        right = right.transpose(layout.y_axes)
    if layout.y_shape is not None:
        right = right.reshape(layout.y_shape)
    product = np.matmul(left, right)
    if layout.out_shape is not None:
        product = product.reshape(layout.out_shape)
    return product.astype(x.dtype, copy=False)


def _bound_dot(types: Sequence[TensorType], params: Mapping[str, Any]) -> Callable[..., Any]:
    two = len(types[0].shape) == 2 == len(types[1].shape) and types[0].dtype.itemsize > 2
    if two and params["contract"] == _ROWS_COLUMNS:
        return MATRIX_PRODUCT
    return partial(_eager_dot, **params)


_eager_dot.bind = _bound_dot  # type: ignore[attr-defined]

# ---- derivatives --------------------------------------------------------------------------------


def _permuted(x: Any, axes: Axes) -> Any:
    return x if axes == tuple(range(len(axes))) else permute(x, axes=axes)


def _cotangent(
    ct: Any, x: Any, y: Any, contract: AxisPairs, batch: AxisPairs, ct_free: Axes, other_free: Axes
) -> Any:
    """Cotangent of x: `ct` contracted with y over y's free axes, axes in x's order.

    `ct_free` are the axes of ct that are free axes of x, `other_free` those that are y's. Of the
    two operand orders the one that needs no permute is taken, where there is one.
    """
    n_batch = len(batch[0])
    y_free = free_axes(len(y.shape), contract[1], batch[1])
    ct_batch = tuple(range(n_batch))
    # Axes of x in the order in which they come out: batch, free, then contracted (in y's order).
    partner = dict(zip(contract[1], contract[0], strict=True))
    x_free = free_axes(len(x.shape), contract[0], batch[0])
    x_contract = tuple(partner[a] for a in sorted(contract[1]))
    ct_first = batch[0] + x_free + x_contract
    y_first = batch[0] + x_contract + x_free
    if y_first == tuple(range(len(y_first))) != ct_first:
        return dot_general(y, ct, contract=(y_free, other_free), batch=(batch[1], ct_batch))
    made = dot_general(ct, y, contract=(other_free, y_free), batch=(ct_batch, batch[1]))
    return _permuted(made, tuple(ct_first.index(a) for a in range(len(ct_first))))


def _vjp_x(ct: Any, out: Any, x: Any, y: Any, *, contract: AxisPairs, batch: AxisPairs) -> Any:
    ct_x, ct_y = _split_axes(x, y, contract, batch)
    return _cotangent(ct, x, y, contract, batch, ct_x, ct_y)


def _vjp_y(ct: Any, out: Any, x: Any, y: Any, *, contract: AxisPairs, batch: AxisPairs) -> Any:
    ct_x, ct_y = _split_axes(x, y, contract, batch)
    return _cotangent(ct, y, x, contract[::-1], batch[::-1], ct_y, ct_x)


def _split_axes(x: Any, y: Any, contract: AxisPairs, batch: AxisPairs) -> tuple[Axes, Axes]:
    """Axes of the result that are free axes of x, and those that are free axes of y."""
    first = len(batch[0])
    middle = first + len(x.shape) - len(contract[0]) - first
    last = middle + len(y.shape) - len(contract[1]) - first
    return tuple(range(first, middle)), tuple(range(middle, last))


def _batch_dot(
    size: int, batched: tuple[bool, ...], x: Any, y: Any, *, contract: AxisPairs, batch: AxisPairs
) -> Any:
    """Both batched: one more batch axis. One batched: one more free axis, brought to the front."""

    def shifted(axes: Axes, by: bool) -> Axes:
        return tuple(a + by for a in axes)

    contract = (shifted(contract[0], batched[0]), shifted(contract[1], batched[1]))
    batch = (shifted(batch[0], batched[0]), shifted(batch[1], batched[1]))
    if all(batched):
        return dot_general(x, y, contract=contract, batch=((0, *batch[0]), (0, *batch[1])))
    out = dot_general(x, y, contract=contract, batch=batch)
    at = len(batch[0])
    if batched[1]:
        at += len(free_axes(len(x.shape), contract[0], batch[0]))
    rest = tuple(a for a in range(len(out.shape)) if a != at)
    return _permuted(out, (at, *rest))


# ---- the record ---------------------------------------------------------------------------------


def _samples(rng: np.random.Generator, dtype: DType) -> Iterator[Sample]:
    def case(
        xs: Shape, ys: Shape, contract: AxisPairs, batch: AxisPairs = ((), ()), kind: str = "plain"
    ) -> Sample:
        x, y = draw(rng, dtype, xs), draw(rng, dtype, ys)
        if kind == "strided":
            x, y = strided(x), strided(y)
        return Sample((x, y), {"contract": contract, "batch": batch}, kind)

    yield case((3, 4), (4, 5), ((1,), (0,)))
    yield case((3, 4), (5, 4), ((1,), (1,)))
    yield case((4, 3), (4, 5), ((0,), (0,)), kind="strided")
    yield case((4,), (4,), ((0,), (0,)))
    yield case((3,), (4,), ((), ()))
    yield case((2, 3, 4), (2, 4, 5), ((2,), (1,)), ((0,), (0,)))
    yield case((3, 2, 4), (4, 5, 2), ((2,), (0,)), ((1,), (2,)), "strided")
    yield case((2, 3, 4), (4, 3), ((2, 1), (0, 1)))
    yield case((2, 3), (2, 3), ((), ()), ((0, 1), (0, 1)))
    yield case((), (3,), ((), ()), kind="scalar")
    yield case((), (), ((), ()), kind="scalar")
    yield case((3, 0), (0, 5), ((1,), (0,)), kind="empty")
    yield case((0, 3), (3, 5), ((1,), (0,)), kind="empty")
    yield case((70, 90), (90, 50), ((1,), (0,)), kind="large")


def _backward_name(params: Mapping[str, Any]) -> str:
    """PyTorch's node of the same product; vectors and matrices are told apart by their axes."""
    if params["batch"] != ((), ()):
        return "BmmBackward0"
    if params["contract"] == ((), ()):
        return "MulBackward0"
    return "DotBackward0" if params["contract"] == ((0,), (0,)) else "MmBackward0"


_Z23, _Z45 = np.zeros((2, 3)), np.zeros((4, 5))

dot_general = primitive(
    "dot_general", args=("x", "y"), params=("contract", "batch"), family="contraction",
    doc="Sum of products over `contract` axis pairs, for each index of the `batch` axis pairs.\n\n"
        "    `contract=((1,), (0,)), batch=((), ())` is the matrix product. Half types accumulate\n"
        "    in float32; integers wrap.",
    shape=dot_shape, dtype=_dot_dtype, normalize=normalize_dot, promotion=NO_PROMOTION,
    dtypes=dtypes.INTEGERS + dtypes.FLOATS, eager=_eager_dot,
    vjp=(_vjp_x, _vjp_y), jvp=(LINEAR, LINEAR), batch=_batch_dot, samples=_samples,
    refusals=(
        Refusal((_Z23, _Z45), {"contract": ((1,), (0,))}, ShapeError, "axis 1 of x has size 3"),
        Refusal((_Z23, _Z45), {"contract": ((2,), (0,))}, DimensionError, "contract axis 2 is out"),
        Refusal((_Z23, _Z23), {"contract": ((0, 0), (0, 1))}, DimensionError, "used twice"),
        Refusal((_Z23, _Z23), {"contract": ((0, 1), (0,))}, DimensionError, "must pair each axis"),
        Refusal((_Z23, _Z23.astype(np.float32)), {"contract": ((0,), (0,))}, DTypeError,
                "expected m1 and m2 to have the same dtype, but got: double != float"),
        Refusal((_Z23 > 0, _Z23 > 0), {"contract": ((0,), (0,))}, KernelError,
                "\"addmm_impl_cpu_\" not implemented for 'Bool'"),
    ),
    cost=2, ulp=64, backward_name=_backward_name, kernel="addmm_impl_cpu_",
    source="definition; BLAS xGEMM (Dongarra et al., ACM TOMS 16 (1990), 1-17)",
)  # fmt: skip
