"""`nn.functional.pad`: constants around a tensor, or its own elements repeated. Start at `pad`."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from tracegrad.ir import ops
from tracegrad.ir.errors import OperandError, ShapeError, UnsupportedError
from tracegrad.tracer.gathering import index_select
from tracegrad.tracer.pointwise import named, need_tensor
from tracegrad.tracer.shapes import narrow
from tracegrad.tracer.tensor import literal

Row = tuple[int, int]
_REPEATING = {"reflect": "ReflectionPad", "replicate": "ReplicationPad", "circular": "CircularPad"}


def pad(input: Any, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    """Elements put around `input`, or taken off where an entry of `pad` is negative.

    Args:
        input: any dtype and shape (..., n2, n1).
        pad: (before, after) of the last axis, then of the one before it, and so on.
        mode: "constant"; or "reflect" (without the edge), "replicate" (the edge) or "circular"
            (from the other end), for 1 to 3 axes after one or two that are not padded.
        value: the constant, by default 0.
    Returns:
        The dtype of `input`, a copy; each padded axis grows by before + after.
    Raises:
        ShapeError: `pad` does not fit the shape (PyTorch's texts).
        UnsupportedError: an unknown mode, or one that does not pad so many axes.
    Source: definition.
    Example:
        >>> import tracegrad as tg
        >>> tg.nn.functional.pad(tg.tensor([1, 2, 3]), (1, -1), value=7)
        tensor([7, 1, 2])
    """
    need_tensor("pad", "input", 1, input)
    rows = _rows(input, pad)
    if mode == "constant":
        return _constant(input, rows, 0 if value is None else value)
    if value:
        raise ShapeError(f'Padding mode "{mode}" doesn\'t take in value argument')
    if mode not in _REPEATING:
        raise UnsupportedError(
            f"Unrecognised padding mode {mode}; the modes are 'constant', 'reflect', 'replicate' "
            "and 'circular'"
        )
    if not 1 <= len(rows) <= 3 or input.ndim - len(rows) not in (1, 2):
        raise UnsupportedError(
            f"Padding size {2 * len(rows)} is not supported for {input.ndim}D input tensor."
        )
    shape = tuple(input.shape)
    for k, row in enumerate(rows):
        axis = input.ndim - 1 - k
        positions = literal(_positions(mode, shape, axis, row), input)
        input = index_select(input, axis, positions)
    return named(input, f"{_REPEATING[mode]}{len(rows)}DBackward0")


def _rows(input: Any, given: Any) -> list[Row]:
    """`pad` as (before, after) per axis, the last axis first."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise OperandError(
            f"pad(): argument 'pad' (position 2) must be tuple of ints, not {type(given).__name__}"
        )
    ends = []
    for i, n in enumerate(given):
        try:
            ends.append(operator.index(n))
        except TypeError:
            raise OperandError(
                "pad(): argument 'pad' (position 2) must be tuple of ints, but found element of "
                f"type {type(n).__name__} at pos {i}"
            ) from None
    if len(ends) % 2:
        raise ShapeError("Padding length must be divisible by 2")
    if len(ends) > 2 * input.ndim:
        raise ShapeError(
            "Padding length should be less than or equal to two times the input dimension but got "
            f"padding length {len(ends)} and input of dimension {input.ndim}"
        )
    return list(zip(ends[::2], ends[1::2], strict=True))


def _constant(x: Any, rows: list[Row], value: float) -> Any:
    for k, (before, after) in enumerate(rows):
        axis = x.ndim - 1 - k
        cut = max(-before, 0), max(-after, 0)
        if any(cut):
            x = narrow(x, axis, min(cut[0], x.shape[axis]), x.shape[axis] - sum(cut))
    around = [(max(before, 0), max(after, 0)) for before, after in reversed(rows)]
    untouched = [(0, 0)] * (x.ndim - len(rows))
    return ops.pad(x, padding=(*untouched, *around), value=value)


def _positions(mode: str, shape: tuple[int, ...], axis: int, row: Row) -> np.ndarray:
    """Where along `axis` of `shape` each element of the padded axis comes from.

    Raises:
        ShapeError: the axis is too short.
    """
    size = shape[axis]
    most, longer = max(row), size + sum(row)
    if longer < (0 if mode == "circular" else 1) and size:
        raise ShapeError(
            f"input (size {size} at dimension {axis}) is too small. Calculated output size: "
            f"{longer}"
        )
    kept = size + min(row[0], 0) + min(row[1], 0)
    if mode == "circular" and (most > size or (kept <= 0 and most > 0)):
        raise ShapeError("Padding value causes wrapping around more than once.")
    if not size and mode != "circular":
        raise ShapeError(
            f"pad(): mode '{mode}' needs elements to repeat, but dimension {axis} of the input "
            f"{list(shape)} is empty"
        )
    if mode == "reflect" and most >= size:
        raise ShapeError(
            "Padding size should be less than the corresponding input dimension, but got: "
            f"padding ({row[0]}, {row[1]}) at dimension {axis} of input {list(shape)}"
        )
    if mode == "circular":  # as PyTorch: cropped first, then what is left goes round
        at = np.arange(-max(row[0], 0), kept + max(row[1], 0))
        return at % max(kept, 1) - min(row[0], 0)
    at = np.arange(-row[0], size + row[1])
    if mode == "replicate":
        return at.clip(0, size - 1)
    folded = np.abs(at)
    return np.where(folded >= size, 2 * (size - 1) - folded, folded)
