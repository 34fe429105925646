"""Views that are no movement primitive: `diagonal` and `unfold`.

Each is computed by a gather, which is what the tape, a recorder and compiled code see, and then
laid over the memory of its source, so that writes go through. Start reading at `diagonal`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tracegrad.ir import ops
from tracegrad.ir.errors import ShapeError
from tracegrad.runtime.cuda.array import strided_view
from tracegrad.tracer import tape
from tracegrad.tracer.arguments import int_argument
from tracegrad.tracer.dispatch import make_view
from tracegrad.tracer.pointwise import need_tensor
from tracegrad.tracer.shapes import slice_dim, wrap_dim
from tracegrad.tracer.state import state
from tracegrad.tracer.tensor import Tensor, literal
from tracegrad.tracer.views import Region, class_of_views

FUNCTIONS: dict[str, Callable[..., Any]] = {}


def _public(function: Callable[..., Any]) -> Callable[..., Any]:
    FUNCTIONS[function.__name__] = function
    return function


def lay(region: Region, source: Any, params: dict[str, Any]) -> Any:
    """A region of `source` as a view of it."""
    taken = region.apply(source, **params)
    if not isinstance(source, Tensor):  # a value of the IR
        return taken
    seen = make_view(source, region.eager(source._array, **params), region, params)
    assert seen._array.shape == taken._array.shape, f"{region.name}: eager and apply differ"
    if taken._grad_fn is not None:
        assert seen._view is not None, "make_view made it"
        edge = tape.gradient_edge(source)
        name = f"{region.name.title()}Backward0"
        node = class_of_views(name)(source, edge, seen._view.chain[-1:])
        taken._grad_fn, taken._output_nr = node, 0
    elif seen._requires_grad:
        taken._requires_grad = True
    taken._array, taken._storage, taken._view = seen._array, seen._storage, seen._view
    if state.recorder is not None:  # it now shares memory, which the recorder has to know
        state.recorder.laid_over(taken, source, region, params)
    return taken


def _spread(ct: Any, shape: tuple[int, ...], arrays: tuple[Any, ...], axes: Any) -> Any:
    """The cotangent of an operand of `shape`, given that of what a gather took of it."""
    zeros = literal(np.zeros(shape, ct.dtype.numpy), ct)
    return ops.scatter_add(zeros, ct, *arrays, axes=axes)


# ---- diagonal -----------------------------------------------------------------------------------


def _places(x: Any, shape: Any, offset: int, a: int, b: int) -> tuple[Any, Any]:
    n, m = shape[a], shape[b]
    length = max(min(n - max(-offset, 0), m - max(offset, 0)), 0)
    rows = np.arange(length) + max(-offset, 0)
    columns = np.arange(length) + max(offset, 0)
    first, second = (rows, columns) if a < b else (columns, rows)
    return literal(first, x), literal(second, x)


def _take_diagonal(x: Any, *, offset: int, axis1: int, axis2: int) -> Any:
    axes = (min(axis1, axis2), max(axis1, axis2))
    taken = ops.gather(x, *_places(x, x.shape, offset, axis1, axis2), axes=axes)
    return ops.permute(taken, axes=(*range(1, taken.ndim), 0))


def _see_diagonal(x: np.ndarray, *, offset: int, axis1: int, axis2: int) -> np.ndarray:
    seen = np.diagonal(x, offset, axis1, axis2)
    if x.flags.writeable:
        seen.flags.writeable = True
    return seen


def _spread_diagonal(ct: Any, shape: Any, *, offset: int, axis1: int, axis2: int) -> Any:
    first = ops.permute(ct, axes=(ct.ndim - 1, *range(ct.ndim - 1)))
    axes = (min(axis1, axis2), max(axis1, axis2))
    return _spread(first, shape, _places(ct, shape, offset, axis1, axis2), axes)


_DIAGONAL = Region("diagonal", _see_diagonal, _take_diagonal, _spread_diagonal)


@_public
def diagonal(input: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    """The diagonal over two dimensions, as the last dimension of the result; a view.

    Args:
        offset: which diagonal: above the main one where positive, below it where negative.
    Raises:
        ShapeError: `dim1` and `dim2` are one dimension.
        DimensionError: a dimension is out of range.

    Example:
        >>> import tracegrad as tg
        >>> x = tg.zeros(2, 2)
        >>> x.diagonal().fill_(1)
        tensor([1., 1.])
        >>> x
        tensor([[1., 0.],
                [0., 1.]])
    """
    need_tensor("diagonal", "input", 1, input)
    a, b = wrap_dim(dim1, input.ndim), wrap_dim(dim2, input.ndim)
    if a == b:
        raise ShapeError(f"diagonal dimensions cannot be identical {dim1}, {dim2}")
    params = {"offset": int_argument("diagonal", "offset", 2, offset), "axis1": a, "axis2": b}
    return lay(_DIAGONAL, input, params)


# ---- unfold -------------------------------------------------------------------------------------


def _windows(x: Any, shape: Any, axis: int, size: int, step: int) -> Any:
    starts = np.arange(0, shape[axis] - size + 1, step)
    return literal(starts[:, None] + np.arange(size)[None, :], x)


def _take_windows(x: Any, *, axis: int, size: int, step: int) -> Any:
    taken = ops.gather(x, _windows(x, x.shape, axis, size, step), axes=(axis,))
    rest = range(2, taken.ndim)  # gather puts the number of the window and the place in it first
    return ops.permute(taken, axes=(*rest[:axis], 0, *rest[axis:], 1))


def _see_windows(x: np.ndarray, *, axis: int, size: int, step: int) -> np.ndarray:
    count = (x.shape[axis] - size) // step + 1
    shape = (*x.shape[:axis], count, *x.shape[axis + 1 :], size)
    stride = x.strides[axis]
    strides = (*x.strides[:axis], stride * step, *x.strides[axis + 1 :], stride)
    return strided_view(x, shape, strides)


def _spread_windows(ct: Any, shape: Any, *, axis: int, size: int, step: int) -> Any:
    rest = [i for i in range(ct.ndim - 1) if i != axis]
    first = ops.permute(ct, axes=(axis, ct.ndim - 1, *rest))
    return _spread(first, shape, (_windows(ct, shape, axis, size, step),), (axis,))


_WINDOWS = Region("unfold", _see_windows, _take_windows, _spread_windows)


@_public
def unfold(input: Any, dimension: int, size: int, step: int) -> Any:
    """All windows of `size` elements along `dimension`, `step` apart; a view.

    The dimension counts the windows; the elements of each are the new last dimension.

    Raises:
        ShapeError: `size` is larger than the dimension or negative, or `step` is not positive.

    Example:
        >>> import tracegrad as tg
        >>> tg.arange(5).unfold(0, 3, 2)
        tensor([[0, 1, 2],
                [2, 3, 4]])
    """
    need_tensor("unfold", "input", 1, input)
    axis = wrap_dim(dimension, input.ndim)
    reach = input.shape[axis] if input.ndim else 1
    if size < 0:
        raise ShapeError(f"size is {size} but must be >= 0")
    if size > reach:
        raise ShapeError(
            f"maximum size for tensor at dimension {axis} is {reach} but size is {size}"
        )
    if step <= 0:
        raise ShapeError(f"step is {step} but must be > 0")
    if input.ndim == 0:
        return ops.reshape(input, shape=(1,)) if size else slice_dim(input[None], 0, 0, 0)
    params = {"axis": axis, "size": int(size), "step": int(step)}
    return lay(_WINDOWS, input, params)
