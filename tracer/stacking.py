"""Tensors side by side, as NumPy's `hstack` and its kin have it: 0-d and 1-d ones are raised first.

They join the table `joining.FUNCTIONS`. Start reading at `hstack`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tracegrad.ir.errors import ShapeError
from tracegrad.tracer.composites import composite
from tracegrad.tracer.joining import FUNCTIONS, _list_of_tensors, cat
from tracegrad.tracer.pointwise import need_tensor
from tracegrad.tracer.shapes import reshape, unsqueeze


def _public(function: Any) -> Any:
    FUNCTIONS[function.__name__] = function
    return function


def _raised(function: str, tensors: Any, raise_one: Any) -> list[Any]:
    if isinstance(tensors, Sequence) and not len(tensors):
        raise ShapeError(f"{function} expects a non-empty TensorList")
    return [raise_one(x) for x in _list_of_tensors(function, tensors)]


def _each(name: str, tensors: tuple[Any, ...], raise_one: Any) -> Any:
    """One tensor raised, or a tuple of them."""
    if len(tensors) == 1 and isinstance(tensors[0], list | tuple):
        tensors = tuple(tensors[0])
    elif len(tensors) == 1:
        need_tensor(name, "input", 1, tensors[0])
        return raise_one(tensors[0])
    for position, x in enumerate(tensors, 1):
        need_tensor(name, "tensors", position, x)
    return tuple(raise_one(x) for x in tensors)


def _one(x: Any) -> Any:
    return reshape(x, 1) if x.ndim == 0 else x


def _two(x: Any) -> Any:
    return x if x.ndim > 1 else unsqueeze(_one(x), 0)


def _three(x: Any) -> Any:
    return x if x.ndim > 2 else unsqueeze(_two(x), -1)


def atleast_1d(*tensors: Any) -> Any:
    """A tensor (or several) with at least one dimension: views.

    Example:
        >>> import tracegrad as tg
        >>> tg.atleast_1d(tg.tensor(3))
        tensor([3])
    """
    return _each("atleast_1d", tensors, _one)


def atleast_2d(*tensors: Any) -> Any:
    """A tensor (or several) with at least two dimensions, new ones in front: views.

    Example:
        >>> import tracegrad as tg
        >>> tg.atleast_2d(tg.tensor([1, 2]))
        tensor([[1, 2]])
    """
    return _each("atleast_2d", tensors, _two)


def atleast_3d(*tensors: Any) -> Any:
    """A tensor (or several) with at least three dimensions, the third behind: views.

    Example:
        >>> import tracegrad as tg
        >>> tg.atleast_3d(tg.tensor([1, 2])).shape
        torch.Size([1, 2, 1])
    """
    return _each("atleast_3d", tensors, _three)


@_public
@composite
def hstack(tensors: Sequence[Any]) -> Any:
    """Tensors side by side: along the second dimension, 1-d ones along their own.

    Raises:
        ShapeError: there is none, or the other sizes differ.
        OperandError: `tensors` is no sequence of tensors.

    Example:
        >>> import tracegrad as tg
        >>> tg.hstack([tg.tensor([[1], [2]]), tg.tensor([[3], [4]])])
        tensor([[1, 3],
                [2, 4]])
    """
    raised = _raised("hstack", tensors, _one)
    return cat(raised, 0 if raised[0].ndim == 1 else 1)


@_public
@composite
def vstack(tensors: Sequence[Any]) -> Any:
    """Tensors below each other, 1-d ones as rows.

    Raises:
        ShapeError: there is none, or the other sizes differ.
        OperandError: `tensors` is no sequence of tensors.

    Example:
        >>> import tracegrad as tg
        >>> tg.vstack([tg.tensor([1, 2]), tg.tensor([3, 4])])
        tensor([[1, 2],
                [3, 4]])
    """
    return cat(_raised("vstack", tensors, _two), 0)


@_public
@composite
def dstack(tensors: Sequence[Any]) -> Any:
    """Tensors behind each other, along the third dimension.

    Raises:
        ShapeError: there is none, or the other sizes differ.
        OperandError: `tensors` is no sequence of tensors.

    Example:
        >>> import tracegrad as tg
        >>> tg.dstack([tg.tensor([1, 2]), tg.tensor([3, 4])])
        tensor([[[1, 3],
                 [2, 4]]])
    """
    return cat(_raised("dstack", tensors, _three), 2)


@_public
@composite
def column_stack(tensors: Sequence[Any]) -> Any:
    """Tensors side by side, 1-d ones as columns.

    Raises:
        ShapeError: there is none, or the other sizes differ.
        OperandError: `tensors` is no sequence of tensors.

    Example:
        >>> import tracegrad as tg
        >>> tg.column_stack([tg.tensor([1, 2]), tg.tensor([3, 4])])
        tensor([[1, 3],
                [2, 4]])
    """
    columns = _raised("column_stack", tensors, lambda x: x if x.ndim > 1 else reshape(x, -1, 1))
    return cat(columns, 1)


FUNCTIONS["row_stack"] = vstack
ATLEAST = {f.__name__: f for f in (atleast_1d, atleast_2d, atleast_3d)}
"""Functions of any number of tensors, which are no methods."""
