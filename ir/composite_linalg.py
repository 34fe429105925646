"""Matrix products with PyTorch's names, shapes and messages, all made of `dot_general`.

Contracted axes are chosen so that plain products need no permute: the BLAS call takes care of a
transposed operand. Operands are NumPy arrays, IR values or Tensors. Start reading at `matmul`;
`einsum` has its own file, `tracegrad.ir.composite_einsum`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from tracegrad.ir import ops, product_dtypes
from tracegrad.ir.errors import OperandError, ShapeError
from tracegrad.ir.primitive import is_scalar
from tracegrad.ir.types import Shape, broadcast_shapes


def contract(x: Any, y: Any, x_axes: Sequence[int], y_axes: Sequence[int], n_batch: int = 0) -> Any:
    """`dot_general` over the given axis pairs, both beginning with `n_batch` batch axes."""
    leading = tuple(range(n_batch))
    return ops.dot_general(x, y, contract=(tuple(x_axes), tuple(y_axes)), batch=(leading, leading))


def _check_tensors(name: str, **operands: Any) -> None:
    for argument, x in operands.items():
        if is_scalar(x) or not hasattr(x, "shape"):
            raise OperandError(
                f"{name}(): argument '{argument}' must be Tensor, not {type(x).__name__}"
            )


def _check_mm(rows: int, inner: int, other: int, columns: int) -> None:
    if inner != other:
        raise ShapeError(
            f"mat1 and mat2 shapes cannot be multiplied ({rows}x{inner} and {other}x{columns})"
        )


def _check_mv(rows: int, inner: int, length: int) -> None:
    if inner != length:
        raise ShapeError(f"size mismatch, got input ({rows}), mat ({rows}x{inner}), vec ({length})")


def _check_bmm(batch: int, inner: int, y: Shape) -> None:
    if y[:2] != (batch, inner):
        raise ShapeError(
            f"Expected size for first two dimensions of batch2 tensor to be: "
            f"[{batch}, {inner}] but got: [{y[0]}, {y[1]}]."
        )


# ---- matmul -------------------------------------------------------------------------------------


def matmul(x: Any, y: Any) -> Any:
    """Matrix product of the last two axes; the axes before them broadcast.

    Args:
        x: shape (k,), (n, k) or (..., n, k).
        y: same dtype; shape (k,), (k, m) or (..., k, m).
    Returns:
        Shape (..., n, m); without n where x is a vector, without m where y is one.
    Raises:
        ShapeError: an operand is 0-d, or sizes do not fit (PyTorch's texts).
        DTypeError: the dtypes differ, or are bool.
        OperandError: an operand is no tensor.
    Source: PyTorch documentation, `torch.matmul`.
    Example:
        >>> import numpy as np
        >>> matmul(np.ones((2, 3)), np.ones((3, 4))).shape
        (2, 4)
    """
    _check_tensors("matmul", input=x, other=y)
    nx, ny = len(x.shape), len(y.shape)
    if nx == 0 or ny == 0:
        raise ShapeError(
            f"both arguments to matmul need to be at least 1D, but they are {nx}D and {ny}D"
        )
    if ny == 1:
        return dot(x, y) if nx == 1 else _rows_times_vector(x, y)
    if nx == 1:
        return _vector_times_matrices(x, y)
    if ny == 2:
        return _rows_times_matrix(x, y)
    return _matrices_times_matrices(x, y)


def _rows_times_vector(x: Any, y: Any, own: Any = None) -> Any:
    _check_mv(prod(x.shape[:-1]), x.shape[-1], y.shape[0])
    product_dtypes.check_mv(y if own is None else own, x, y)
    return contract(x, y, (len(x.shape) - 1,), (0,))


def _rows_times_matrix(x: Any, y: Any) -> Any:
    _check_mm(prod(x.shape[:-1]), x.shape[-1], *y.shape)
    product_dtypes.check_mm(x, y)
    return contract(x, y, (len(x.shape) - 1,), (0,))


def _vector_times_matrices(x: Any, y: Any) -> Any:
    if len(y.shape) == 2:
        _check_mm(1, x.shape[0], *y.shape)
        product_dtypes.check_mm(x, y)
    else:
        batch = prod(y.shape[:-2])
        _check_bmm(batch, x.shape[0], (batch, *y.shape[-2:]))
        product_dtypes.check_bmm(x, y)
    return contract(x, y, (0,), (len(y.shape) - 2,))


def _matrices_times_matrices(x: Any, y: Any) -> Any:
    """Both with batch axes: those of y that are all ones fold away, others are batch axes."""
    batch = broadcast_shapes(x.shape[:-2], y.shape[:-2])
    _check_bmm(prod(batch), x.shape[-1], (prod(batch), *y.shape[-2:]))
    product_dtypes.check_bmm(x, y)
    if prod(y.shape[:-2]) == 1 and len(y.shape) <= len(x.shape):
        return contract(x, ops.reshape(y, shape=y.shape[-2:]), (len(x.shape) - 1,), (0,))
    x, y = _with_batch(x, batch), _with_batch(y, batch)
    n = len(batch)
    return contract(x, y, (n + 1,), (n,), n_batch=n)


def _with_batch(x: Any, batch: Shape) -> Any:
    shape = (*batch, *x.shape[-2:])
    return x if tuple(x.shape) == shape else ops.broadcast(x, shape=shape)


# ---- products of a fixed rank -------------------------------------------------------------------


def mm(x: Any, y: Any) -> Any:
    """Product of two matrices, (n, k) and (k, m) to (n, m).

    Raises:
        ShapeError: an operand is no matrix, or the inner sizes differ.
    """
    _check_tensors("mm", input=x, mat2=y)
    if len(x.shape) != 2:
        raise ShapeError("self must be a matrix")
    if len(y.shape) != 2:
        raise ShapeError("mat2 must be a matrix")
    return _rows_times_matrix(x, y)


def bmm(x: Any, y: Any, own: Any = None) -> Any:
    """Product of matrices in pairs, (b, n, k) and (b, k, m) to (b, n, m); nothing broadcasts.

    Raises:
        ShapeError: an operand is not 3-D, or sizes differ.
        DTypeError: the dtypes differ, also from that of `own`, to which the product is added.
    """
    _check_tensors("bmm", input=x, mat2=y)
    for name, operand in (("batch1", x), ("batch2", y)):
        if len(operand.shape) != 3:
            raise ShapeError(f"{name} must be a 3D tensor")
    _check_bmm(x.shape[0], x.shape[2], tuple(y.shape))
    if own is None:
        product_dtypes.check_bmm(x, y)
    else:
        product_dtypes.check_addmm(own, x, y)
    return contract(x, y, (2,), (1,), n_batch=1)


def mv(x: Any, vec: Any, own: Any = None) -> Any:
    """Product of a matrix (n, k) and a vector (k,), shape (n,).

    Raises:
        ShapeError: the operands are not a matrix and a vector, or the sizes differ.
        DTypeError: the dtypes differ, also from that of `own`, to which the product is added.
    """
    _check_tensors("mv", input=x, vec=vec)
    if len(x.shape) != 2 or len(vec.shape) != 1:
        raise ShapeError(
            f"vector + matrix @ vector expected, got 1, {len(x.shape)}, {len(vec.shape)}"
        )
    return _rows_times_vector(x, vec, own)


def dot(x: Any, y: Any) -> Any:
    """Sum of products of two vectors of equal length, a 0-d result.

    Raises:
        ShapeError: an operand is no vector, or the lengths differ.
    """
    _check_tensors("dot", input=x, tensor=y)
    if len(x.shape) != 1 or len(y.shape) != 1:
        raise ShapeError(
            f"1D tensors expected, but got {len(x.shape)}D and {len(y.shape)}D tensors"
        )
    product_dtypes.check_dot(x, y)
    if x.shape != y.shape:
        raise ShapeError(
            f"inconsistent tensor size, expected tensor [{x.shape[0]}] and src [{y.shape[0]}] to "
            f"have the same number of elements, but got {x.shape[0]} and {y.shape[0]} elements "
            f"respectively"
        )
    return contract(x, y, (0,), (0,))


def outer(x: Any, vec2: Any) -> Any:
    """Products of all pairs of elements of two vectors, (n,) and (m,) to (n, m).

    A broadcast multiplication, so that it fuses with its neighbours; dtypes promote.

    Raises:
        ShapeError: an operand is no vector.
    """
    _check_tensors("outer", input=x, vec2=vec2)
    for name, operand in (("self", x), ("vec2", vec2)):
        if len(operand.shape) != 1:
            raise ShapeError(f"outer: Expected 1-D argument {name}, but got {len(operand.shape)}-D")
    return ops.mul(ops.reshape(x, shape=(x.shape[0], 1)), vec2)


def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """Affine map of the last axis: `x @ weight.T + bias`, without a transpose in the graph.

    Args:
        x: shape (..., in).
        weight: same dtype, shape (out, in) or (in,).
        bias: None, or of the same dtype and shape (out,), or () where the weight is a vector.
    Returns:
        Shape (..., out); (...) where the weight is a vector.
    Raises:
        ShapeError: sizes do not fit (PyTorch's texts).
        DTypeError: the dtypes differ, or are bool.
    Source: PyTorch documentation, `torch.nn.functional.linear`.
    Example:
        >>> import numpy as np
        >>> linear(np.ones((5, 3)), np.ones((2, 3)), np.zeros(2)).shape
        (5, 2)
    """
    _check_tensors("linear", input=x, weight=weight)
    if len(x.shape) == 0:
        raise ShapeError(
            f"both arguments to linear need to be at least 1D, "
            f"but they are 0D and {len(weight.shape)}D"
        )
    if len(weight.shape) not in (1, 2):
        raise ShapeError(f"linear: weight must be 1-D or 2-D, got shape {list(weight.shape)}")
    if bias is not None:
        product_dtypes.check_addmm(bias, x, weight)
    rows = prod(x.shape[:-1])
    if len(weight.shape) == 1 == len(x.shape):
        product_dtypes.check_dot(x, weight)
        _check_mv(rows, x.shape[-1], weight.shape[0])
    elif len(weight.shape) == 1:
        _check_mv(rows, x.shape[-1], weight.shape[0])
        product_dtypes.check_mv(weight, x, weight)
    else:
        _check_mm(rows, x.shape[-1], weight.shape[1], weight.shape[0])
        product_dtypes.check_mm(x, weight)
    out = contract(x, weight, (len(x.shape) - 1,), (len(weight.shape) - 1,))
    if bias is None:
        return out
    aligned = out.shape[len(out.shape) - len(bias.shape) :]
    if len(bias.shape) > len(out.shape) or any(
        b not in (1, n) for b, n in zip(bias.shape, aligned, strict=True)
    ):
        raise ShapeError(
            f"linear: bias of shape {list(bias.shape)} does not fit a result of shape "
            f"{list(out.shape)}; give it shape {list(weight.shape[:-1])}"
        )
    return ops.add(out, bias)


# ---- tensordot ----------------------------------------------------------------------------------


def tensordot(x: Any, y: Any, dims: Any = 2) -> Any:
    """Contract several axes at once.

    Args:
        x, y: tensors of one dtype.
        dims: an int n: the last n axes of x meet the first n of y; or two sequences of axes.
            Where one of two paired sizes is 1, the other axis is summed (PyTorch's rule).
    Returns:
        The free axes of x, then those of y.
    Raises:
        ShapeError: paired sizes differ, or `dims` does not fit (PyTorch's texts).
    Example:
        >>> import numpy as np
        >>> tensordot(np.ones((2, 3, 4)), np.ones((4, 3, 5)), ([1, 2], [1, 0])).shape
        (2, 5)
    """
    _check_tensors("tensordot", a=x, b=y)
    given = _tensordot_axes(x, y, dims)
    product_dtypes.check_both(x, y)
    for i, j in zip(*given, strict=True):
        if x.shape[i] != y.shape[j] and 1 not in (x.shape[i], y.shape[j]):
            raise ShapeError(
                f"contracted dimensions need to match, but first has size {x.shape[i]} in dim {i} "
                f"and second has size {y.shape[j]} in dim {j}"
            )
    x_axes = tuple(i % len(x.shape) for i in given[0])
    y_axes = tuple(j % len(y.shape) for j in given[1])
    ones = [(i, j) for i, j in zip(x_axes, y_axes, strict=True) if x.shape[i] != y.shape[j]]
    for i, j in ones:  # the side of size 1 is constant along the axis: sum the other one
        if y.shape[j] == 1:
            x = ops.reduce_sum(x, axes=(i,), keepdims=True)
        else:
            y = ops.reduce_sum(y, axes=(j,), keepdims=True)
    return contract(x, y, x_axes, y_axes)


def _tensordot_axes(x: Any, y: Any, dims: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if hasattr(dims, "__index__"):
        n = int(dims)
        if n < 0:
            raise ShapeError(f"tensordot expects dims >= 0, but got dims={n}")
        if n > min(len(x.shape), len(y.shape)):
            raise ShapeError(f"tensordot expects dims < ndim_a or ndim_b, but got dims={n}")
        return tuple(range(-n, 0)), tuple(range(n))
    first, second = (tuple(d) if hasattr(d, "__iter__") else (d,) for d in dims)
    if len(first) != len(second):
        raise ShapeError("both dimension lists should have same length")
    return first, second


def permuted(x: Any, axes: tuple[int, ...]) -> Any:
    """`x` with its axes in the order `axes`; `x` itself where that is the order it has."""
    return x if axes == tuple(range(len(axes))) else ops.permute(x, axes=axes)


def diagonal_of_pair(x: Any, first: int, second: int) -> Any:
    """Elements of x whose indices on two axes of equal size agree; the common axis comes last."""
    n, ndim = x.shape[first], len(x.shape)
    rest = tuple(a for a in range(ndim) if a not in (first, second))
    x = permuted(x, (*rest, first, second))
    kept = x.shape[:-2]
    if n == 0:
        return ops.reshape(x, shape=(*kept, 0))
    flat = ops.reshape(x, shape=(*kept, n * n))
    stop = (*kept, n * n)
    return ops.slice(flat, start=(0,) * len(stop), stop=stop, step=(1,) * len(kept) + (n + 1,))
