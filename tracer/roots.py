"""Where a backward starts and ends: outputs with their cotangents, and the inputs asked for.

Both may be given as tensors or as `GradientEdge`s, which name a place in the tape without holding
a tensor. Start reading at `roots_of`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tracegrad.ir.errors import GradientError, OperandError, ParameterError, ShapeError
from tracegrad.ir.types import TensorType
from tracegrad.tracer.array_rules import ones_of
from tracegrad.tracer.device import Size, as_device
from tracegrad.tracer.moving import moved
from tracegrad.tracer.tape import AccumulateGrad, BackwardNode, Edge, gradient_edge
from tracegrad.tracer.tensor import Tensor, literal

_BATCH = (
    "If `is_grads_batched=True`, we interpret the first dimension of each grad_output as the batch "
    "dimension. The sizes of the remaining dimensions are expected to match the shape of "
    "corresponding output, but a mismatch was detected: grad_output[{i}] has a shape of {given} "
    "and output[{i}] has a shape of {wanted}. If you only want some tensors in `grad_output` to be "
    "considered batched, consider using vmap."
)
Root = tuple[Edge, Tensor]  # where a backward starts, and with which cotangent


class GradientEdge(NamedTuple):
    """A place in the tape: output `output_nr` of `node`. See `get_gradient_edge`.

    Example:
        >>> import tracegrad as tg
        >>> from tracegrad.autograd.graph import get_gradient_edge
        >>> edge = get_gradient_edge(tg.ones(2, requires_grad=True) * 2)
        >>> edge.node.name(), edge.output_nr
        ('MulBackward0', 0)
    """

    node: BackwardNode
    output_nr: int
    ownership_token: Any = None


def type_at(place: Tensor | GradientEdge) -> TensorType:
    """Shape and dtype of the value at a place."""
    if isinstance(place, Tensor):
        return place.type_info
    if isinstance(place.node, AccumulateGrad):
        return place.node.variable.type_info
    return place.node.types[place.output_nr]


def many(things: Any) -> tuple[Any, ...]:
    """One tensor or edge, or a sequence of them, as a tuple."""
    return (things,) if isinstance(things, Tensor | GradientEdge) else tuple(things)


def target_edge(target: Any, *, accumulates: bool = False) -> Edge:
    """Where the cotangent of an input arrives; `accumulates` if it is then added to its `.grad`.

    Raises:
        GradientError: not a tensor or edge, or it does not require grad.
    """
    if isinstance(target, GradientEdge):
        return (target.node, target.output_nr)
    if not isinstance(target, Tensor):
        raise GradientError(
            f"all inputs have to be Tensors or GradientEdges, but got {type(target).__name__}"
        )
    if not target.requires_grad:
        if accumulates:
            raise GradientError("can't retain_grad on Tensor that has requires_grad=False")
        raise GradientError("One of the differentiated Tensors does not require grad")
    return gradient_edge(target)


def roots_of(tensors: Any, grads: Any, batched: bool = False) -> list[Root]:
    """The outputs' edges with their cotangents (with a batch dimension in front if `batched`).

    In PyTorch's order: each cotangent beside its output, then how many there are, then whether the
    outputs have a history.

    Raises:
        GradientError: no cotangent for several elements, not one for each output, or no history.
        ShapeError: a cotangent does not have its output's shape.
        OperandError: a cotangent is no tensor.
    """
    outputs = many(tensors)
    given = _as_list(grads, len(outputs))
    pairs = zip(outputs, given, strict=False)
    cotangents = [_cotangent(i, out, ct, batched) for i, (out, ct) in enumerate(pairs)]
    if len(given) != len(outputs):
        raise GradientError(f"got {len(outputs)} tensors and {len(given)} gradients")
    return [_root(i, o, ct) for i, (o, ct) in enumerate(zip(outputs, cotangents, strict=True))]


def _as_list(grads: Any, count: int) -> Sequence[Any]:
    if grads is None:
        return [None] * count
    if isinstance(grads, Tensor):
        return [grads]
    try:
        return list(grads)
    except TypeError:
        return [grads]


def seed(i: int, out: Tensor, given: Any) -> Tensor:
    """The cotangent of output number `i`: the given one, checked, or 1 for a single element.

    Raises: as `roots_of`.
    """
    return _root(i, out, _cotangent(i, out, given, False))[1]


def _root(i: int, out: Tensor | GradientEdge, ct: Tensor | None) -> Root:
    edge = gradient_edge(out) if isinstance(out, Tensor) else (out.node, out.output_nr)
    if ct is None or edge[0] is None:
        raise GradientError(
            f"element {i} of tensors does not require grad and does not have a grad_fn"
        )
    return edge, ct


def _cotangent(i: int, out: Any, given: Any, batched: bool) -> Tensor | None:
    """The cotangent of one output; None where none is given and the output requires no grad."""
    if not isinstance(out, Tensor | GradientEdge):
        raise AssertionError("Expected output to be a torch.Tensor")
    if given is None and isinstance(out, Tensor) and not out.requires_grad:
        return None
    return _given(i, type_at(out), given, batched)


def _given(i: int, type: TensorType, given: Any, batched: bool) -> Tensor:
    if given is None:
        if batched:
            raise ParameterError(
                f"grad: is_grads_batched=True needs grad_outputs[{i}], with the batch as its first "
                "dimension, but it is None"
            )
        if type.shape and any(n != 1 for n in type.shape):
            raise GradientError("grad can be implicitly created only for scalar outputs")
        return literal(ones_of(type))
    if not isinstance(given, Tensor):
        raise OperandError(
            f"gradients can be either Tensors or None, but got {given.__class__.__name__}"
        )
    shape = given._array.shape
    if batched and (not shape or shape[1:] != type.shape):
        raise ShapeError(
            _BATCH.format(i=i, given=repr(Size(shape[1:])), wanted=repr(Size(type.shape)))
        )
    if not batched and shape != type.shape:
        raise ShapeError(
            f"Mismatch in shape: grad_output[{i}] has a shape of {Size(shape)!r} and "
            f"output[{i}] has a shape of {Size(type.shape)!r}."
        )
    given = brought(i, given, type)
    return given if given.dtype is type.dtype else given.to(type.dtype)


def brought(i: int, given: Tensor, type: TensorType, name: str = "") -> Tensor:
    """A gradient on the device of what it is the gradient of: numbers move there.

    Raises:
        GradientError: it is on another device.
    """
    if given.type_info.device == type.device:
        return given
    if not given._array.shape:
        return moved(given, as_device(type.device))
    raise GradientError(
        f"{name}invalid gradient at index {i} - expected device {type.device} but got {given.device}"
    )
