"""Forward mode of a `Function`: asking its `jvp` for the tangents of the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tracegrad.ir.errors import GradientError, ShapeError
from tracegrad.tracer.tensor import Tensor, literal

if TYPE_CHECKING:
    from tracegrad.tracer.function_node import FunctionNode


def tangents_of_outputs(
    node: FunctionNode, args: Sequence[Any], tangents: Sequence[Tensor | None],
    outputs: Sequence[Any],
) -> list[Tensor | None]:  # fmt: skip
    """The tangent of each output, by the `jvp` that the user wrote; None where there is none.

    `jvp` is given a tangent per argument of `forward`: zeros for tensors that do not vary (None
    after `set_materialize_grads(False)`), None for what is no tensor.

    Raises:
        NotImplementedError: there is no `jvp`.
        GradientError: it returned another number of tangents, or no tensor.
        ShapeError: a tangent has another shape than its output.
    """
    given = [
        dx if dx is not None or not node._materialize else _zeros(x)
        for x, dx in zip(args, tangents, strict=True)
    ]
    node._in_jvp = True
    try:
        result = node._function.jvp(node, *given)
    finally:
        node._in_jvp = False
    found = list(result) if isinstance(result, tuple) else [result]
    if len(found) != len(outputs):
        raise GradientError(
            "Function's jvp returned an invalid number of forward gradients "
            f"(expected {len(outputs)} but got {len(found)})"
        )
    return [_fitted(k, out, dy) for k, (out, dy) in enumerate(zip(outputs, found, strict=True))]


def _zeros(x: Any) -> Tensor | None:
    return literal(np.zeros_like(x._array)) if isinstance(x, Tensor) else None


def _fitted(number: int, out: Any, tangent: Any) -> Tensor | None:
    """One tangent, checked against its output."""
    if tangent is None:
        return None
    if not isinstance(tangent, Tensor):
        raise GradientError(
            f"expected Variable or None (got {type(tangent).__name__}) for grad output {number}."
        )
    if not isinstance(out, Tensor) or not out.dtype.is_floating_point:
        return None
    if tangent._array.shape != out._array.shape:
        raise ShapeError(
            "Trying to set a forward gradient that has a different size than that of the original "
            f"Tensor, this is not supported. Tensor is of size {list(out.shape)} while the given "
            f"forward gradient is of size {list(tangent.shape)}."
        )
    return tangent if tangent.dtype is out.dtype else tangent.to(out.dtype)
