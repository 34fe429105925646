"""Running sums and products: in blocks, and then over the blocks' totals.

They join the table `updates.FUNCTIONS`. Start reading at `_prefixes`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tracegrad.ir import dtypes, ops
from tracegrad.ir.errors import KernelError
from tracegrad.tracer.arguments import dtype_argument, int_argument
from tracegrad.tracer.composites import composite
from tracegrad.tracer.pointwise import apply2, named, need_tensor
from tracegrad.tracer.shapes import slice_dim, wrap_dim
from tracegrad.tracer.tensor import Tensor, literal
from tracegrad.tracer.updates import _public

_BLOCK = 16


def _running(name: str, input: Any, dim: int, dtype: Any) -> Any:
    need_tensor(name, "input", 1, input)
    d = wrap_dim(int_argument(name, "dim", 2, dim), input.ndim)
    wanted = dtype_argument(name, dtype)
    if wanted is dtypes.bool_:
        raise KernelError(f"\"{name}_out_cpu\" not implemented for 'Bool'")
    if wanted is not None:
        input = input.to(wanted)
    elif not input.dtype.is_floating_point:
        input = input.to(dtypes.int64)
    label = f"{name.title()}Backward0"
    if input.ndim == 0 or input.shape[d] < 2:
        return named(input.clone(), label)
    axes = (*(i for i in range(input.ndim) if i != d), d)
    out = _prefixes(ops.permute(input, axes=axes), name == "cumsum")
    back = tuple(sorted(range(len(axes)), key=axes.__getitem__))
    out = ops.permute(out, axes=back)
    return named(out.clone() if out.dtype is input.dtype else out.to(input.dtype), label)


def _prefixes(x: Any, add: bool) -> Any:
    """Running sums (products) along the last axis, in blocks; then those of the blocks' totals.

    Reductions of masked elements, never products with zeros: an infinity stays where it is.
    """
    *rest, size = x.shape
    width = min(size, _BLOCK)
    count = -(-size // width)
    if count * width > size:
        shape = (*rest, count * width - size)
        x = ops.concat(x, _neutral(shape, x, add), axis=len(rest))
    blocks = ops.reshape(x, shape=(*rest, count, 1, width))
    kept = literal(np.tril(np.ones((width, width), np.bool_)), x)
    masked = ops.where(kept, blocks, 0 if add else 1)
    reduce = ops.reduce_sum if add else ops.reduce_prod
    inside = reduce(masked, axes=(len(rest) + 2,), keepdims=False)
    if count > 1:
        totals = slice_dim(inside, len(rest) + 1, width - 1, width)
        so_far = _prefixes(ops.reshape(totals, shape=(*rest, count)), add)
        before = slice_dim(so_far, len(rest), 0, count - 1)
        before = ops.concat(_neutral((*rest, 1), x, add), before, axis=len(rest))
        before = ops.reshape(before, shape=(*rest, count, 1))
        inside = apply2("add" if add else "mul", inside, before)
    flat = ops.reshape(inside, shape=(*rest, count * width))
    return slice_dim(flat, len(rest), 0, size)


def _neutral(shape: tuple[int, ...], x: Any, add: bool) -> Tensor:
    return literal(np.full(shape, 0 if add else 1, x.dtype.numpy), x)


@_public
@composite
def cumsum(input: Any, dim: int, *, dtype: Any = None) -> Any:
    """Sum of the elements up to each along `dim`, same shape; integers and bool give int64.

    Raises:
        DimensionError: `dim` is out of range.

    Example:
        >>> import tracegrad as tg
        >>> tg.cumsum(tg.tensor([1., 2., 3.]), 0)
        tensor([1., 3., 6.])
    """
    return _running("cumsum", input, dim, dtype)


@_public
@composite
def cumprod(input: Any, dim: int, *, dtype: Any = None) -> Any:
    """Product of the elements up to each along `dim`, same shape; integers and bool give int64.

    The gradient is right at zeros too. Raises DimensionError: `dim` is out of range.

    Example:
        >>> import tracegrad as tg
        >>> tg.cumprod(tg.tensor([1., 2., 3.]), 0)
        tensor([1., 2., 6.])
    """
    return _running("cumprod", input, dim, dtype)
