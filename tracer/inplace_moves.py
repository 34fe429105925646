"""In-place methods that change how a tensor lies in its memory, not what is in it: `t_`,
`squeeze_`, `set_`, `resize_` and their like.

A moved tensor that is no view keeps, in `_moves`, the steps back to how it was: views that were
made before find their way from it by these (`views.path`). Start reading at `_move`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from tracegrad.ir import ops
from tracegrad.ir.errors import DTypeError, GradientError, OperandError, ShapeError
from tracegrad.tracer import inplace, shapes
from tracegrad.tracer.pointwise import named, need_tensor
from tracegrad.tracer.shapes import scalar_text
from tracegrad.tracer.state import state
from tracegrad.tracer.storage import Storage
from tracegrad.tracer.tensor import Tensor, wrap


def _move(name: str, label: str, target: Tensor, compute: Callable[..., Any], *args: Any) -> Tensor:
    """Give `target` the place of `compute(target, *args)`, which is a view of all its elements."""
    need_tensor(name, "input", 1, target)
    if state.recorder is not None:
        state.recorder.moves(name, target)
    inplace.check_history(target)
    inplace.check_mode(target, name)
    before = target._array
    recorded = target._grad_fn is not None if target._view is None else inplace.tracked(target)
    mode = state.grad_enabled
    state.grad_enabled = mode or recorded  # the history of a result follows its layout in any mode
    try:
        moved = compute(target, *args)
    finally:
        state.grad_enabled = mode
    target._storage.bump(name)
    view = target._view
    if moved._view is None:
        assert target._storage.inference, "only inference tensors have no views"
    elif view is None:
        back = _way_back(before, moved._view.chain[-1])
        target._moves = (back, *getattr(target, "_moves", ()))
    else:
        view.steps, view.above = moved._view.chain, None
    _place(target, moved._array)
    if recorded:  # else a view makes its history anew, for its new layout
        target._grad_fn, target._output_nr = named(moved, label)._grad_fn, 0
        if view is not None:
            view.version = target._storage.version
    return target


def _way_back(before: np.ndarray, step: Any) -> Any:
    """The step that undoes `step`, a permutation or a reshape of `before`."""
    op, params, _ = step
    if op is ops.permute:
        axes = tuple(int(a) for a in np.argsort(params["axes"]))
        return (ops.permute, {"axes": axes}, before.shape)
    return (ops.reshape, {"shape": before.shape}, before.shape)


def _place(target: Tensor, array: np.ndarray) -> None:
    target._array = array
    if hasattr(target, "_address"):
        del target._address
    if state.recorder is not None:
        state.recorder.has_moved(target)


def _dims(name: str, **dims: Any) -> None:
    for position, (argument, value) in enumerate(dims.items(), 1):
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise OperandError(
                f"{name}(): argument '{argument}' (position {position}) must be int, not "
                f"{type(value).__name__}"
            )


def t_(self: Tensor) -> Tensor:
    """Transpose a matrix in place; a vector or scalar stays as it is.

    Raises:
        ShapeError: more than two dimensions.

    Example:
        >>> import tracegrad as tg
        >>> tg.zeros(2, 3).t_().shape
        torch.Size([3, 2])
    """
    if self.ndim > 2:
        raise ShapeError(f"t_() expects a tensor with <= 2 dimensions, but self is {self.ndim}D")
    return _move("t_", "TBackward1", self, shapes.t)


def transpose_(self: Tensor, dim0: int, dim1: int) -> Tensor:
    """Exchange two dimensions in place. Raises DimensionError: one is out of range.

    Example:
        >>> import tracegrad as tg
        >>> tg.zeros(2, 3, 4).transpose_(0, 2).shape
        torch.Size([4, 3, 2])
    """
    _dims("transpose_", dim0=dim0, dim1=dim1)
    return _move("transpose_", "TransposeBackward1", self, shapes.transpose, dim0, dim1)


def squeeze_(self: Tensor, dim: Any = None) -> Tensor:
    """Drop dimensions of size 1 in place, all or those in `dim` (an int or a tuple).

    Raises:
        DimensionError: `dim` is out of range.

    Example:
        >>> import tracegrad as tg
        >>> tg.zeros(1, 2, 1).squeeze_(0).shape
        torch.Size([2, 1])
    """
    number = 3 if dim is None else 4 if isinstance(dim, int) else 5
    return _move("squeeze_", f"SqueezeBackward{number}", self, shapes.squeeze, dim)


def unsqueeze_(self: Tensor, dim: int) -> Tensor:
    """Put a dimension of size 1 at `dim`, in place. Raises DimensionError: it is out of range.

    Example:
        >>> import tracegrad as tg
        >>> tg.zeros(2).unsqueeze_(0).shape
        torch.Size([1, 2])
    """
    _dims("unsqueeze_", dim=dim)
    return _move("unsqueeze_", "UnsqueezeBackward1", self, shapes.unsqueeze, dim)


# ---- other memory -------------------------------------------------------------------------------


def set_(self: Tensor, source: Tensor | None = None) -> Tensor:
    """Look at the memory of `source` from now on; without it, at nothing (shape (0,)).

    Raises:
        GradientError: the tensor requires grad.
        DTypeError: `source` has another dtype.
        OperandError: `source` is no tensor.

    Example:
        >>> import tracegrad as tg
        >>> x, y = tg.zeros(1), tg.ones(2)
        >>> x.set_(y).data_ptr() == y.data_ptr()
        True
    """
    if source is not None and not isinstance(source, Tensor):
        raise OperandError(
            "set_() received an invalid combination of arguments - got "
            f"({type(source).__name__}), but expected () or (Tensor source)"
        )
    inplace.check_history(self)
    inplace.check_mode(self, "set_")
    if self.requires_grad:
        raise GradientError(
            "set_() cannot change the memory of a tensor that requires grad; use set_() on its "
            "detach(), or assign to .data"
        )
    if source is not None and source.dtype is not self.dtype:
        raise DTypeError(
            f"Could not set tensor of type {source.dtype.name} to a tensor of type "
            f"{self.dtype.name}"
        )
    if state.recorder is not None:
        state.recorder.moves("set_", self)
        if source is not None:
            state.recorder.check_write("set_", self, source)
    version = 0 if self._storage.inference else self._storage.version + 1
    given = wrap(np.empty_like(self._array, shape=(0,))) if source is None else source
    self._storage = Storage(given._storage.memory)
    self._storage.version = version
    self._view = None
    self._moves = ()
    _place(self, given._array)
    return self


def resize_(self: Tensor, *size: Any, memory_format: Any = None) -> Tensor:
    """Take another shape in place, of at most as many elements: the first ones, row by row.

    A tensor of no elements may grow; its new elements are zero.

    Raises:
        GradientError: the tensor requires grad.
        ShapeError: more elements than there are (PyTorch would allocate), or gaps between them.

    Example:
        >>> import tracegrad as tg
        >>> tg.arange(6).resize_(2, 2)
        tensor([[0, 1],
                [2, 3]])
    """
    if not size:
        raise OperandError('resize_() missing 1 required positional arguments: "size"')
    return _resize("resize_", self, shapes.sizes(size))


def resize_as_(self: Tensor, the_template: Tensor, *, memory_format: Any = None) -> Tensor:
    """`resize_` to the shape of `the_template`."""
    need_tensor("resize_as_", "the_template", 1, the_template)
    return _resize("resize_as_", self, tuple(the_template.shape))


def _resize(name: str, self: Tensor, size: Sequence[int]) -> Tensor:
    if self.requires_grad:
        raise GradientError("cannot resize variables that require grad")
    inplace.check_mode(self, name)
    if min(size, default=0) < 0:
        raise ShapeError(f"{name}(): sizes must not be negative, got {list(size)}")
    have, array = prod(size), self._array
    if have > array.size and array.size:
        raise ShapeError(
            f"{name}(): cannot make room for {have} elements in memory that has {array.size}, "
            "which other tensors may share; make a new tensor"
        )
    if array.size and not array.flags.c_contiguous:
        raise ShapeError(f"{name}(): {scalar_text(self)} is not contiguous in memory; clone() it")
    if state.recorder is not None:
        state.recorder.moves(name, self)
    fits = array.size > 0 or have == 0
    placed = (
        array.reshape(-1)[:have].reshape(size)
        if fits
        else np.zeros_like(array, order="C", shape=tuple(size))
    )
    self._storage.bump(name)
    self._view = None
    self._moves = ()
    _place(self, placed)
    return self


METHODS: dict[str, Callable[..., Any]] = {
    "t_": t_, "transpose_": transpose_, "swapaxes_": transpose_, "swapdims_": transpose_,
    "squeeze_": squeeze_, "unsqueeze_": unsqueeze_, "set_": set_, "resize_": resize_,
    "resize_as_": resize_as_,
}  # fmt: skip
