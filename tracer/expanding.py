"""More of a tensor without a copy: `expand` and its other names.

They join the table `shapes.FUNCTIONS`. Start reading at `expand`.
"""

from __future__ import annotations

from typing import Any

from tracegrad.ir.errors import ShapeError
from tracegrad.tracer.composites import viewing
from tracegrad.tracer.pointwise import need_tensor
from tracegrad.tracer.shapes import _public, moved, scalar_text, sizes


@_public
@viewing
def expand(input: Any, *shape: Any) -> Any:
    """Repeat dimensions of size 1 without copying; -1 keeps a size; a view."""
    need_tensor("expand", "input", 1, input)
    wanted = list(sizes(shape))
    offset = len(wanted) - input.ndim
    if offset < 0:
        raise ShapeError(
            f"expand({scalar_text(input)}{{{list(input.shape)}}}, size={wanted}): the number of "
            f"sizes provided ({len(wanted)}) must be greater or equal to the number of dimensions "
            f"in the tensor ({input.ndim})"
        )
    for i in reversed(range(len(wanted))):
        n = wanted[i]
        have = input.shape[i - offset] if i >= offset else None
        if n == -1:
            if have is None:
                raise ShapeError(
                    "The expanded size of the tensor (-1) isn't allowed in a leading, "
                    f"non-existing dimension {i}"
                )
            wanted[i] = have
        elif have is not None and have not in (1, n):
            raise ShapeError(
                f"The expanded size of the tensor ({n}) must match the existing size ({have}) at "
                f"non-singleton dimension {i}.  Target sizes: {list(wanted)}.  "
                f"Tensor sizes: {list(input.shape)}"
            )
    return moved("broadcast", input, shape=tuple(wanted))


@_public
@viewing
def expand_as(input: Any, other: Any) -> Any:
    """`input.expand(other.shape)`."""
    need_tensor("expand_as", "input", 1, input)
    need_tensor("expand_as", "other", 1, other)
    return expand(input, other.shape)


@_public
@viewing
def broadcast_to(input: Any, *shape: Any) -> Any:
    """`expand` under its other name."""
    return expand(input, *shape)
