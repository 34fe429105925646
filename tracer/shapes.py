"""PyTorch's functions that move the elements of one tensor: reshape, permute, slice, copy.

Views share memory with their operand, as in PyTorch: the eager kernels of movement primitives
return NumPy views. Start reading at `reshape`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from tracegrad.ir import ops
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import DimensionError, OperandError, ShapeError, UnsupportedError
from tracegrad.ir.primitive import TABLE
from tracegrad.runtime.cuda.array import row_major
from tracegrad.tracer.arguments import int_argument, is_int
from tracegrad.tracer.composites import viewing
from tracegrad.tracer.dispatch import dispatch
from tracegrad.tracer.layout import contiguous_format, need_format
from tracegrad.tracer.once import warn_once
from tracegrad.tracer.pointwise import named, need_tensor
from tracegrad.tracer.state import state
from tracegrad.tracer.tensor import Tensor, wrap
from tracegrad.tracer.views import UnbindBackward0, as_one, share_node

FUNCTIONS: dict[str, Callable[..., Any]] = {}


def _public(function: Callable[..., Any]) -> Callable[..., Any]:
    FUNCTIONS[function.__name__] = function
    return function


def moved(name: str, x: Any, **params: Any) -> Any:
    """Movement primitive `name`, whose parameters are canonical already, of `x`."""
    if isinstance(x, Tensor):
        return dispatch(TABLE[name], (x,), params)
    return TABLE[name](x, **params)


def sizes(given: Sequence[Any]) -> tuple[int, ...]:
    """Sizes given as `f(2, 3)`, `f((2, 3))` or a Size."""
    if len(given) == 1 and isinstance(given[0], Sequence):
        given = given[0]
    if all(map(is_int, given)):
        return tuple(map(operator.index, given))
    raise OperandError(f"sizes must be a tuple of ints, got {tuple(given)}")


def wrap_dim(dim: int, ndim: int, extra: int = 0) -> int:
    """`dim` counted from 0.

    Raises:
        OperandError: it is no int.
        DimensionError: out of range (PyTorch's text).
    """
    if type(dim) is not int:
        dim = _as_dim(dim)
    reach = max(ndim + extra, 1)
    if not -reach <= dim < reach:
        raise DimensionError(
            f"Dimension out of range (expected to be in range of [{-reach}, {reach - 1}], "
            f"but got {dim})"
        )
    return dim % reach


def _as_dim(dim: Any) -> int:
    if is_int(dim):
        return operator.index(dim)
    raise OperandError(f"argument 'dim' must be int, not {type(dim).__name__}")


@_public
@viewing
def reshape(input: Any, *shape: Any) -> Any:
    """The same elements under another shape (one size may be -1); a view where strides allow."""
    need_tensor("reshape", "input", 1, input)
    return ops.reshape(input, shape=sizes(shape))


@_public
@viewing
def view(input: Any, *shape: Any) -> Any:
    """`reshape` that never copies.

    Raises:
        ShapeError: the strides do not allow a view.
    """
    need_tensor("view", "input", 1, input)
    if len(shape) == 1 and isinstance(shape[0], DType):
        if shape[0] is not input.dtype:
            raise UnsupportedError(
                f"view(dtype): reading {input.dtype} as {shape[0]} is not supported; use to(dtype)"
            )
        shape = tuple(input.shape)
    out = ops.reshape(input, shape=sizes(shape))
    shares = out._array.size == 0 or np.may_share_memory(out._array, input._array)
    if not shares:
        raise ShapeError(
            "view size is not compatible with input tensor's size and stride (at least one "
            "dimension spans across two contiguous subspaces). Use .reshape(...) instead."
        )
    return out


@_public
@viewing
def view_as(input: Any, other: Any) -> Any:
    """`input.view(other.shape)`."""
    need_tensor("view_as", "other", 1, other)
    return view(input, other.shape)


@_public
@viewing
def reshape_as(input: Any, other: Any) -> Any:
    """`input.reshape(other.shape)`."""
    need_tensor("reshape_as", "input", 1, input)
    need_tensor("reshape_as", "other", 1, other)
    return reshape(input, other.shape)


@_public
@viewing
def flatten(input: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    """Merge the dimensions from `start_dim` to `end_dim` into one."""
    need_tensor("flatten", "input", 1, input)
    first, last = wrap_dim(start_dim, input.ndim), wrap_dim(end_dim, input.ndim)
    if first > last:
        raise ShapeError("flatten() has invalid args: start_dim cannot come after end_dim")
    if input.ndim == 0:
        return reshape(input, 1)
    if first == last:
        return input
    merged = prod(input.shape[first : last + 1])
    return ops.reshape(input, shape=(*input.shape[:first], merged, *input.shape[last + 1 :]))


@_public
@viewing
def unflatten(input: Any, dim: int, sizes: Sequence[int]) -> Any:
    """Split dimension `dim` into `sizes`."""
    need_tensor("unflatten", "input", 1, input)
    d = wrap_dim(dim, input.ndim)
    rest = list(sizes)
    if -1 in rest:
        known = prod(n for n in rest if n != -1)
        rest[rest.index(-1)] = input.shape[d] // known
    return ops.reshape(input, shape=(*input.shape[:d], *rest, *input.shape[d + 1 :]))


@_public
@viewing
def ravel(input: Any) -> Any:
    """All elements in one dimension."""
    return reshape(input, -1)


@_public
@viewing
def permute(input: Any, *dims: Any) -> Any:
    """Dimensions in another order; a view."""
    need_tensor("permute", "input", 1, input)
    order = tuple(wrap_dim(d, input.ndim) for d in sizes(dims))
    if len(order) != input.ndim:
        raise ShapeError(
            "permute(sparse_coo): number of dimensions in the tensor input does not match the "
            f"length of the desired ordering of dimensions i.e. input.dim() = {input.ndim} is not "
            f"equal to len(dims) = {len(order)}"
        )
    if len(set(order)) != len(order):
        raise ShapeError("permute(): duplicate dims are not allowed.")
    return ops.permute(input, axes=order)


@_public
@viewing
def transpose(input: Any, dim0: int, dim1: int) -> Any:
    """Two dimensions exchanged; a view."""
    need_tensor("transpose", "input", 1, input)
    a, b = wrap_dim(dim0, input.ndim), wrap_dim(dim1, input.ndim)
    order = list(range(input.ndim))
    if order:
        order[a], order[b] = order[b], order[a]
    return named(moved("permute", input, axes=tuple(order)), "TransposeBackward0")


@_public
@viewing
def t(input: Any) -> Any:
    """Transpose of a matrix; a vector or scalar is returned as it is.

    Raises:
        ShapeError: more than two dimensions.
    """
    need_tensor("t", "input", 1, input)
    if input.ndim > 2:
        raise ShapeError(f"t() expects a tensor with <= 2 dimensions, but self is {input.ndim}D")
    axes = tuple(reversed(range(input.ndim)))
    return named(moved("permute", input, axes=axes), "TBackward0")


@_public
@viewing
def movedim(input: Any, source: Any, destination: Any) -> Any:
    """Dimensions `source` moved to positions `destination`."""
    need_tensor("movedim", "input", 1, input)
    src = [source] if is_int(source) else list(source)
    dst = [destination] if is_int(destination) else list(destination)
    if len(src) != len(dst):
        raise ShapeError(
            "movedim: Invalid source or destination dims: source "
            f"({src} dims) should contain the same number of dims as destination ({dst} dims)"
        )
    src = [wrap_dim(d, input.ndim) for d in src]
    dst = [wrap_dim(d, input.ndim) for d in dst]
    for name, dims in (("source", src), ("destination", dst)):
        if len(set(dims)) != len(dims):
            given = source if name == "source" else destination
            raise ShapeError(f"movedim: repeated dim in `{name}` ({list(given)})")
    rest = iter(d for d in range(input.ndim) if d not in src)
    order = [src[dst.index(i)] if i in dst else next(rest) for i in range(input.ndim)]
    return permute(input, order)


def scalar_text(x: Tensor) -> str:
    """`torch.FloatTensor`, for messages."""
    from tracegrad.tracer.tape import scalar_type_name

    return f"torch.{scalar_type_name(x.dtype)}Tensor"


@_public
@viewing
def squeeze(input: Any, dim: Any = None) -> Any:
    """Drop dimensions of size 1 (all, or those in `dim`); a view."""
    need_tensor("squeeze", "input", 1, input)
    if dim is None:
        chosen = set(range(input.ndim))
    else:
        chosen = {
            wrap_dim(d, input.ndim) for d in (dim if isinstance(dim, tuple | list) else (dim,))
        }
    shape = tuple(n for i, n in enumerate(input.shape) if not (i in chosen and n == 1))
    number = 0 if dim is None else 2 if isinstance(dim, tuple | list) else 1
    name = f"SqueezeBackward{number}"
    return named(ops.reshape(input, shape=shape), name)


@_public
@viewing
def unsqueeze(input: Any, dim: int) -> Any:
    """A new dimension of size 1 at `dim`; a view."""
    need_tensor("unsqueeze", "input", 1, input)
    d = wrap_dim(dim, input.ndim, 1)
    shape = (*input.shape[:d], 1, *input.shape[d:])
    return named(moved("reshape", input, shape=shape), "UnsqueezeBackward0")


def slice_dim(input: Any, dim: int, start: int, stop: int, step: int = 1) -> Any:
    """`input[..., start:stop:step, ...]` along `dim`, with 0 <= start <= stop <= size."""
    shape = input._array.shape if isinstance(input, Tensor) else input.shape
    low, high, by = [0] * len(shape), list(shape), [1] * len(shape)
    low[dim], high[dim], by[dim] = start, stop, step
    return moved("slice", input, start=tuple(low), stop=tuple(high), step=tuple(by))


@_public
@viewing
def narrow(input: Any, dim: int, start: int, length: int) -> Any:
    """`length` elements along `dim` from `start` on; a view."""
    need_tensor("narrow", "input", 1, input)
    if input.ndim == 0:
        raise ShapeError("narrow() cannot be applied to a 0-dim tensor.")
    d = wrap_dim(dim, input.ndim)
    size = input.shape[d]
    start = int_argument("narrow", "start", 3, start)
    length = int_argument("narrow", "length", 4, length)
    if not -size <= start <= size:
        raise DimensionError(
            f"start out of range (expected to be in range of [{-size}, {size}], but got {start})"
        )
    start = start + size if start < 0 else start
    if length < 0:
        raise ShapeError("narrow(): length must be non-negative.")
    if start + length > size:
        raise ShapeError(f"start ({start}) + length ({length}) exceeds dimension size ({size}).")
    return slice_dim(input, d, start, start + length)


@_public
@viewing
def select(input: Any, dim: int, index: int) -> Any:
    """Element `index` along `dim`, which disappears; a view."""
    need_tensor("select", "input", 1, input)
    if input.ndim == 0:
        raise DimensionError("select() cannot be applied to a 0-dim tensor.")
    d = wrap_dim(dim, input.ndim)
    size = input.shape[d]
    index = int_argument("select", "index", 3, index)
    if not -size <= index < size:
        raise DimensionError(
            f"select(): index {index} out of range for tensor of size {list(input.shape)} at "
            f"dimension {d}"
        )
    return _select(input, d, index % size)


def _select(input: Any, d: int, i: int) -> Any:
    part = slice_dim(input, d, i, i + 1)
    shape = input._array.shape if isinstance(input, Tensor) else input.shape
    out = moved("reshape", part, shape=(*shape[:d], *shape[d + 1 :]))
    return as_one(out, input, "SelectBackward0", 2)


@_public
def unbind(input: Any, dim: int = 0) -> tuple[Any, ...]:
    """The elements along `dim`, as a tuple of views."""
    need_tensor("unbind", "input", 1, input)
    if input.ndim == 0:
        raise DimensionError("Dimension specified as 0 but tensor has no dimensions")
    d = wrap_dim(dim, input.ndim)
    parts = tuple(_select(input, d, i) for i in range(input.shape[d]))
    return share_node(UnbindBackward0, input, parts, d)


@_public
def contiguous(input: Any, *, memory_format: Any = contiguous_format) -> Any:
    """`input` itself where it is row-major already, else a row-major copy.

    Raises:
        OperandError: `memory_format` is none.
        UnsupportedError: it is one that tensors do not have.
    """
    need_tensor("contiguous", "input", 1, input)
    need_format("contiguous", memory_format)
    if memory_format is not contiguous_format or input.is_contiguous():
        return input
    out = clone(input)
    if not out._array.flags.c_contiguous:
        made = wrap(out._array)
        out._array = row_major(out._array)  # nobody else has seen the copy yet
        if state.recorder is not None:
            state.recorder.alias(out, made)
    return out


@_public
def clone(input: Any, *, memory_format: Any = None) -> Any:
    """A copy with memory of its own, through which gradients flow.

    Args:
        memory_format: `contiguous_format` for a row-major copy; by default in the order of `input`.
    Raises:
        OperandError: `memory_format` is none.
        UnsupportedError: it is one that tensors do not have.
    """
    need_tensor("clone", "input", 1, input)
    if memory_format is not None:
        need_format("clone", memory_format)
        if memory_format is contiguous_format and not input.is_contiguous():
            return contiguous(input)
    return named(ops.cast(input, dtype=input.dtype), "CloneBackward0")


@_public
def detach(input: Any) -> Any:
    """The same memory without history; writes through either are seen by both."""
    need_tensor("detach", "input", 1, input)
    return input.detach()


@_public
def real(input: Any) -> Any:
    """The real part of a tensor, which is the tensor itself: complex dtypes do not exist here."""
    need_tensor("real", "input", 1, input)
    return input


@_public
@viewing
def adjoint(input: Any) -> Any:
    """Last two dimensions exchanged (and conjugated, were there complex dtypes); a view.

    Of a tensor without dimensions it is the tensor itself, and deprecated.

    Raises:
        ShapeError: one dimension.
    """
    need_tensor("adjoint", "input", 1, input)
    if input.ndim == 0:
        warn_once("adjoint() is deprecated on 0-D tensors. Consider using x.conj().")
        return input
    if input.ndim < 2:
        raise ShapeError(
            "tensor.adjoint() is only supported on matrices or batches of matrices. Got "
            f"{input.ndim}-D tensor."
        )
    return transpose(input, -2, -1)


FUNCTIONS.update(swapaxes=transpose, swapdims=transpose, moveaxis=movedim)
