"""Parameters as one vector and back. Start reading at `parameters_to_vector`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from tracegrad.ir.errors import OperandError
from tracegrad.nn.naming import type_name
from tracegrad.tracer.joining import cat
from tracegrad.tracer.tensor import Tensor


def parameters_to_vector(parameters: Iterable[Any]) -> Any:
    """All elements of all tensors, one after another.

    Args:
        parameters: contiguous tensors on one device.
    Returns:
        1-dimensional, of the promoted dtype; gradients flow to the parameters.
    Raises:
        ParameterError: there are none.
        OperandError: they are on different devices.
    Example:
        >>> import tracegrad as tg
        >>> tg.nn.utils.parameters_to_vector([tg.ones(2, 1), tg.zeros(1)])
        tensor([1., 1., 0.])
    """
    return cat([p.view(-1) for p in _on_one_device(parameters)])


def vector_to_parameters(vec: Any, parameters: Iterable[Any]) -> None:
    """Give each parameter its part of `vec` as `.data`; nothing is copied.

    Args:
        vec: 1-dimensional, in the order of `parameters_to_vector`; elements too many are ignored.
        parameters: tensors on one device; they take over the dtype of `vec`.
    Raises:
        OperandError: `vec` is no tensor, or the parameters are on different devices.
        ShapeError: `vec` has too few elements.
    Example:
        >>> import tracegrad as tg
        >>> layer = tg.nn.Linear(2, 1)
        >>> tg.nn.utils.vector_to_parameters(tg.arange(3.0), layer.parameters())
        >>> layer.weight.tolist(), layer.bias.tolist()
        ([[0.0, 1.0]], [2.0])
    """
    if not isinstance(vec, Tensor):
        raise OperandError(f"expected torch.Tensor, but got: {type_name(vec)}")
    parts, start = [], 0
    for p in _on_one_device(parameters):
        end = start + p.numel()
        parts.append((p, vec[start:end].view_as(p).data))
        start = end
    for p, part in parts:  # only where all fit
        p.data = part


def _on_one_device(parameters: Iterable[Any]) -> Iterator[Any]:
    first = None
    for p in parameters:
        first = p if first is None else first
        if p.device != first.device:
            raise OperandError(
                "Found two parameters on different devices, this is currently not supported."
            )
        yield p
