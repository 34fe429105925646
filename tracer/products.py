"""Products of vectors and matrices beyond `matmul`.

They join the table `linalg.FUNCTIONS`. Start reading at `inner`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tracegrad.ir import ops
from tracegrad.ir.errors import ShapeError
from tracegrad.ir.product_dtypes import check_chain
from tracegrad.ir.types import broadcast_shapes
from tracegrad.tracer.arguments import int_argument
from tracegrad.tracer.composites import composite
from tracegrad.tracer.linalg import _public, dot, matmul, outer, tensordot
from tracegrad.tracer.pointwise import apply2, named, need_tensor
from tracegrad.tracer.shapes import slice_dim, wrap_dim
from tracegrad.tracer.tensor import literal


@_public
@composite
def inner(input: Any, other: Any) -> Any:
    """Sums of products over the last dimensions; the product where one of them has none.

    Raises:
        ShapeError: the last sizes differ.

    Example:
        >>> import tracegrad as tg
        >>> tg.inner(tg.tensor([1, 2]), tg.tensor([[3, 4], [5, 6]]))
        tensor([11, 17])
    """
    need_tensor("inner", "input", 1, input)
    need_tensor("inner", "other", 2, other)
    if input.ndim == 0 or other.ndim == 0:
        return apply2("mul", input, other)
    if input.shape[-1] != other.shape[-1]:
        raise ShapeError(
            "inner() the last dimension must match on both input tensors but got shapes "
            f"{list(input.shape)} and {list(other.shape)}"
        )
    return tensordot(input, other, ([-1], [-1]))


@_public
@composite
def vdot(input: Any, other: Any) -> Any:
    """`dot`; of complex vectors, were there any, with the first conjugated.

    Raises:
        ShapeError: not two vectors of one length.

    Example:
        >>> import tracegrad as tg
        >>> tg.vdot(tg.tensor([2, 3]), tg.tensor([2, 1]))
        tensor(7)
    """
    need_tensor("vdot", "input", 1, input)
    need_tensor("vdot", "other", 2, other)
    return named(dot(input, other), "VdotBackward0")


@_public
@composite
def ger(input: Any, vec2: Any) -> Any:
    """`outer` under its older name.

    Raises:
        ShapeError: not two vectors.

    Example:
        >>> import tracegrad as tg
        >>> tg.ger(tg.tensor([1, 2]), tg.tensor([3, 4]))
        tensor([[3, 4],
                [6, 8]])
    """
    return outer(input, vec2)


@_public
@composite
def kron(input: Any, other: Any) -> Any:
    """The Kronecker product: `other` scaled by each element of `input`, block by block.

    Example:
        >>> import tracegrad as tg
        >>> tg.kron(tg.tensor([1, 2]), tg.tensor([1, 10]))
        tensor([ 1, 10,  2, 20])
    """
    need_tensor("kron", "input", 1, input)
    need_tensor("kron", "other", 2, other)
    ndim = max(input.ndim, other.ndim)
    a = (1,) * (ndim - input.ndim) + tuple(input.shape)
    b = (1,) * (ndim - other.ndim) + tuple(other.shape)
    wide = ops.reshape(input, shape=tuple(n for pair in zip(a, [1] * ndim) for n in pair))
    tall = ops.reshape(other, shape=tuple(n for pair in zip([1] * ndim, b) for n in pair))
    blocks = apply2("mul", wide, tall)
    shape = tuple(m * n for m, n in zip(a, b, strict=True))
    return named(ops.reshape(blocks, shape=shape), "ReshapeAliasBackward0")


@_public
@composite
def cross(input: Any, other: Any, dim: int | None = None) -> Any:
    """Vector products along a dimension of 3 (by default the first such); the others broadcast.

    Raises:
        ShapeError: there is no such dimension, or the shapes do not broadcast.

    Example:
        >>> import tracegrad as tg
        >>> tg.cross(tg.tensor([1, 0, 0]), tg.tensor([0, 1, 0]), dim=0)
        tensor([0, 0, 1])
    """
    need_tensor("cross", "input", 1, input)
    need_tensor("cross", "other", 2, other)
    if dim is None:
        dim = next((a for a, n in enumerate(input.shape) if n == 3), None)
        if dim is None:
            raise ShapeError("no dimension of size 3 in input")
    if input.ndim != other.ndim:
        raise ShapeError("linalg.cross: inputs must have the same number of dimensions.")
    d = wrap_dim(dim, input.ndim)
    if input.shape[d] != 3 or other.shape[d] != 3:
        raise ShapeError(
            f"linalg.cross: inputs dimension {dim} must have length 3. Got {input.shape[d]} and "
            f"{other.shape[d]}"
        )
    shape = broadcast_shapes(tuple(input.shape), tuple(other.shape))
    x, y = input.broadcast_to(shape), other.broadcast_to(shape)
    a, b = ([slice_dim(v, d, k, k + 1) for k in range(3)] for v in (x, y))
    parts = [
        apply2("sub", apply2("mul", a[i], b[j]), apply2("mul", a[j], b[i]))
        for i, j in ((1, 2), (2, 0), (0, 1))
    ]
    return named(ops.concat(*parts, axis=d), "LinalgCrossBackward0")


@_public
@composite
def chain_matmul(*matrices: Any) -> Any:
    """The product of two or more matrices, in the order that needs the fewest multiplications.

    Raises:
        ShapeError: there is none, one is no matrix, or sizes do not fit.

    Example:
        >>> import tracegrad as tg
        >>> tg.chain_matmul(tg.ones(2, 3), tg.ones(3, 4), tg.ones(4, 1))
        tensor([[12.],
                [12.]])
    """
    for position, x in enumerate(matrices, 1):
        need_tensor("chain_matmul", "matrices", position, x)
        if x.ndim != 2:
            raise ShapeError(f"Tensor dimension is {x.ndim}, expected 2 instead.")
    if not matrices:
        raise ShapeError("chain_matmul(): Expected one or more matrices")
    check_chain(matrices)
    for i, (a, b) in enumerate(zip(matrices, matrices[1:])):
        if a.shape[1] != b.shape[0]:
            raise ShapeError(
                f"multi_dot(): tensors {i} and {i + 1} with shapes {list(a.shape)} and "
                f"{list(b.shape)} cannot be multiplied"
            )
    sizes = [matrices[0].shape[0], *(x.shape[1] for x in matrices)]
    return _chained(matrices, _cuts(sizes), 0, len(matrices) - 1)


def _cuts(sizes: list[int]) -> dict[tuple[int, int], int]:
    """For each run of matrices, the last one of the left factor."""
    count = len(sizes) - 1
    cost = {(i, i): 0 for i in range(count)}
    cuts = {}
    for length in range(1, count):
        for i in range(count - length):
            j = i + length
            tried = [
                (cost[i, k] + cost[k + 1, j] + sizes[i] * sizes[k + 1] * sizes[j + 1], k)
                for k in range(i, j)
            ]
            cost[i, j], cuts[i, j] = min(tried)
    return cuts


def _chained(matrices: Any, cuts: dict[tuple[int, int], int], i: int, j: int) -> Any:
    if i == j:
        return matrices[i]
    k = cuts[i, j]
    return matmul(_chained(matrices, cuts, i, k), _chained(matrices, cuts, k + 1, j))


@_public
@composite
def matrix_power(input: Any, n: int) -> Any:
    """Square matrices (..., m, m) multiplied by themselves, `n` factors, n not negative.

    Raises:
        ShapeError: they are not square, or `n` is negative (there is no inverse here).

    Example:
        >>> import tracegrad as tg
        >>> tg.matrix_power(tg.tensor([[1., 1.], [0., 1.]]), 5)
        tensor([[1., 5.],
                [0., 1.]])
    """
    need_tensor("matrix_power", "input", 1, input)
    n = int_argument("matrix_power", "n", 2, n)
    if input.ndim < 2:
        raise ShapeError("linalg.matrix_power: The input tensor A must have at least 2 dimensions.")
    if input.shape[-1] != input.shape[-2]:
        raise ShapeError(
            "linalg.matrix_power: A must be batches of square matrices, but they are "
            f"{input.shape[-2]} by {input.shape[-1]} matrices"
        )
    if n < 0:
        raise ShapeError(
            f"matrix_power(): n = {n} needs an inverse, which tracegrad has not; n >= 0"
        )
    if n == 0:
        size = input.shape[-1]
        one = ops.cast(literal(np.eye(size), input), dtype=input.dtype)
        return ops.broadcast(one, shape=tuple(input.shape)).clone()
    out, square = None, input
    while n:
        if n & 1:
            out = square if out is None else matmul(out, square)
        n >>= 1
        square = matmul(square, square) if n else square
    return out.clone() if out is input else out
