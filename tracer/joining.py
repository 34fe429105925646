"""PyTorch's functions that split tensors, join them and repeat them. Start reading at `cat`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tracegrad.ir import ops
from tracegrad.ir.errors import OperandError, ParameterError, ShapeError
from tracegrad.tracer.arguments import int_argument, is_int, missing, wrong_type
from tracegrad.tracer.composites import composite
from tracegrad.tracer.pointwise import named, need_tensor
from tracegrad.tracer.shapes import clone, narrow, reshape, sizes, slice_dim, unsqueeze, wrap_dim
from tracegrad.tracer.tensor import Tensor
from tracegrad.tracer.views import (
    SeveralViews,
    SplitBackward0,
    SplitWithSizesBackward0,
    share_node,
)

FUNCTIONS: dict[str, Callable[..., Any]] = {}


def _public(function: Callable[..., Any]) -> Callable[..., Any]:
    FUNCTIONS[function.__name__] = function
    return function


@_public
def split(input: Any, split_size_or_sections: Any, dim: int = 0) -> tuple[Any, ...]:
    """Views of `split_size` elements along `dim` each (the last may be smaller), or of given sizes.

    Raises:
        ShapeError: the sizes do not add up to the dimension.
    """
    need_tensor("split", "tensor", 1, input)
    if input.ndim == 0:
        raise ShapeError("split expects at least a 1-dimensional tensor")
    d = wrap_dim(dim, input.ndim)
    size = input.shape[d]
    node: type[SeveralViews] = SplitBackward0
    if isinstance(split_size_or_sections, int):
        each = split_size_or_sections
        if each < 0:
            raise ShapeError(f"split expects split_size be non-negative, but got split_size={each}")
        if each == 0 and size:
            raise ShapeError(
                f"split_size can only be 0 if dimension size is 0, but got dimension size of {size}"
            )
        bounds = list(range(0, max(size, 1), max(each, 1)))
        lengths = [min(each, size - b) for b in bounds]
    else:
        node = SplitWithSizesBackward0
        lengths = _sections(split_size_or_sections)
        if min(lengths, default=0) < 0:
            raise ShapeError(
                "split_with_sizes expects split_sizes have only non-negative entries, but got "
                f"split_sizes={lengths}"
            )
        if sum(lengths) != size:
            raise ShapeError(
                f"split_with_sizes expects split_sizes to sum exactly to {size} (input tensor's "
                f"size at dimension {d}), but got split_sizes={lengths}"
            )
    parts, at = [], 0
    for n in lengths:
        parts.append(narrow(input, d, at, n))
        at += n
    return share_node(node, input, tuple(parts), d)


def _sections(given: Any) -> list[int]:
    try:
        return [operator.index(n) for n in given]
    except TypeError:
        raise OperandError(
            "split_with_sizes(): argument 'split_sizes' (position 2) must be tuple of ints, not "
            f"{type(given).__name__}"
        ) from None


@_public
def split_with_sizes(input: Any, split_sizes: Sequence[int], dim: int = 0) -> tuple[Any, ...]:
    """`split` into parts of the given sizes."""
    return split(input, list(split_sizes), dim)


@_public
def tensor_split(input: Any, indices_or_sections: Any, dim: int = 0) -> tuple[Any, ...]:
    """Views of `input` along `dim`: so many of nearly equal size, or cut at the given indices.

    Unlike the parts of `split`, they may be written to under autograd.

    Raises:
        ShapeError: a 0-d tensor, or fewer than one section.

    Example:
        >>> import tracegrad as tg
        >>> tg.tensor_split(tg.arange(5), 2)
        (tensor([0, 1, 2]), tensor([3, 4]))
    """
    need_tensor("tensor_split", "input", 1, input)
    if input.ndim == 0:
        raise ShapeError(
            "tensor_split expected at least a 1-dimensional tensor, but got a tensor with 0 dims"
        )
    d = wrap_dim(dim, input.ndim)
    size = input.shape[d]
    if isinstance(indices_or_sections, int):
        count = indices_or_sections
        if count <= 0:
            raise ShapeError(f"number of sections must be larger than 0, got {count}")
        each, more = divmod(size, count)
        cuts = [i * each + min(i, more) for i in range(count + 1)]
        bounds = list(zip(cuts, cuts[1:]))
    else:
        cuts = [slice(None, i).indices(size)[1] for i in indices_or_sections]
        bounds = [(a, max(a, b)) for a, b in zip([0, *cuts], [*cuts, size])]
    return tuple(slice_dim(input, d, a, b) for a, b in bounds)


@_public
def chunk(input: Any, chunks: int, dim: int = 0) -> tuple[Any, ...]:
    """At most `chunks` views of equal size along `dim` (the last may be smaller)."""
    need_tensor("chunk", "input", 1, input)
    if input.ndim == 0:
        raise ShapeError("chunk expects at least a 1-dimensional tensor")
    chunks = int_argument("chunk", "chunks", 2, chunks)
    if chunks <= 0:
        raise ShapeError(f"chunk expects `chunks` to be greater than 0, got: {chunks}")
    size = input.shape[wrap_dim(dim, input.ndim)]
    if size == 0:  # as many parts of nothing as were asked for
        return split(input, [0] * chunks, dim)
    return split(input, -(-size // chunks), dim)


@_public
@composite
def cat(tensors: Sequence[Any], dim: int = 0) -> Any:
    """Tensors one after another along `dim`; dtypes are promoted.

    Raises:
        OperandError: `tensors` is not a sequence of tensors.
        ShapeError: other sizes differ.
    """
    listed = _list_of_tensors("cat", tensors)
    kept = [x for x in listed if x.shape != (0,)] or listed[:1]  # PyTorch skips 1-D empties
    return ops.concat(*kept, axis=dim)


def _list_of_tensors(function: str, tensors: Any) -> list[Any]:
    if isinstance(tensors, Tensor) or not isinstance(tensors, Sequence):
        raise OperandError(
            f"{function}(): argument 'tensors' (position 1) must be tuple of Tensors, "
            f"not {type(tensors).__name__}"
        )
    for i, x in enumerate(tensors):
        if not hasattr(type(x), "__tracegrad_bind__"):
            raise OperandError(
                f"expected Tensor as element {i} in argument 0, but got {type(x).__name__}"
            )
    if not tensors and function == "stack":
        raise ShapeError("stack expects a non-empty TensorList")
    if not tensors:
        name = "torch.cat" if function == "cat" else function
        kind = ParameterError if function == "cat" else ShapeError
        raise kind(f"{name}(): expected a non-empty list of Tensors")
    return list(tensors)


@_public
@composite
def stack(tensors: Sequence[Any], dim: int = 0) -> Any:
    """Tensors of one shape along a new dimension `dim`."""
    listed = _list_of_tensors("stack", tensors)
    for i, x in enumerate(listed):
        if x.shape != listed[0].shape:
            raise ShapeError(
                f"stack expects each tensor to be equal size, but got {list(listed[0].shape)} at "
                f"entry 0 and {list(x.shape)} at entry {i}"
            )
    d = wrap_dim(dim, listed[0].ndim, 1)
    return named(ops.concat(*(unsqueeze(x, d) for x in listed), axis=d), "StackBackward0")


@_public
@composite
def flip(input: Any, *dims: Any) -> Any:
    """Elements in reverse order along `dims`; a copy."""
    need_tensor("flip", "input", 1, input)
    if not dims:
        raise missing("flip", "dims")
    return ops.flip(input, axes=tuple(wrap_dim(d, input.ndim) for d in sizes(dims)))


@_public
@composite
def repeat(input: Any, *repeats: Any) -> Any:
    """`input` tiled `repeats[i]` times along dimension i (new ones in front)."""
    need_tensor("repeat", "input", 1, input)
    counts = sizes(repeats)
    if len(counts) < input.ndim:
        raise ShapeError(
            "Number of dimensions of repeat dims can not be smaller than number of dimensions of "
            "tensor"
        )
    shape = (1,) * (len(counts) - input.ndim) + tuple(input.shape)
    paired = tuple(n for row in ((1, n) for n in shape) for n in row)
    spread = tuple(n for row in zip(counts, shape, strict=True) for n in row)
    whole = tuple(c * n for c, n in zip(counts, shape, strict=True))
    if any(n < 0 for n in (*counts, *whole)):
        low = min(n for n in (*whole, *counts))
        raise ShapeError(f"Trying to create tensor with negative dimension {low}: {list(whole)}")
    tiled = ops.broadcast(ops.reshape(input, shape=paired), shape=spread)
    return named(contiguous_copy(ops.reshape(tiled, shape=whole), input), "RepeatBackward0")


def contiguous_copy(out: Any, source: Any) -> Any:
    """`out` itself, or a copy where it shares the memory of `source`."""
    shared = isinstance(out, Tensor) and np.may_share_memory(out._array, source._array)
    return out.clone() if shared else out


@_public
@composite
def tile(input: Any, *dims: Any) -> Any:
    """`repeat` that pads `dims` with ones in front."""
    need_tensor("tile", "input", 1, input)
    if not dims:
        raise missing("tile", "dims")
    counts = sizes(dims)
    return repeat(input, (1,) * (input.ndim - len(counts)) + counts)


@_public
@composite
def roll(input: Any, shifts: Any, dims: Any = None) -> Any:
    """Elements moved along `dims` by `shifts`, round the end."""
    need_tensor("roll", "input", 1, input)
    if dims is None:
        flat = roll(reshape(input, -1), shifts, 0)
        return named(flat.reshape(input.shape), "RollBackward0")
    moves, along = (
        [x] if is_int(x) else list(x) if isinstance(x, tuple | list) else None
        for x in (shifts, dims)
    )
    for name, position, x in (("shifts", 2, moves), ("dims", 3, along)):
        if x is None or not all(map(is_int, x)):
            given = shifts if position == 2 else dims
            raise wrong_type("roll", name, position, "tuple of ints", given)
    assert moves is not None and along is not None, "checked above"
    if len(moves) != len(along):
        raise ShapeError(
            f"shifts and dimensions must align. shifts: {len(moves)}, dims:{len(along)}"
        )
    out = input
    for shift, dim in zip(moves, along, strict=True):
        d = wrap_dim(dim, input.ndim)
        size = input.shape[d]
        k = shift % size if size else 0
        if k:
            parts = (slice_dim(out, d, size - k, size), slice_dim(out, d, 0, size - k))
            out = ops.concat(*parts, axis=d)
    return named(clone(input) if out is input else out, "RollBackward0")


FUNCTIONS.update(concat=cat, concatenate=cat)
