"""Dual numbers: forward-mode derivatives of eager code, PyTorch's `torch.autograd.forward_ad`.

Inside `dual_level()` a tensor made by `make_dual` carries a tangent, and so does everything that is
computed from it. There is one level at a time; for derivatives of derivatives use `func.jvp`, which
nests. Compiled functions called inside run eagerly. Start reading at `dual_level`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from tracegrad.ir.errors import GradientError, OperandError, ParameterError
from tracegrad.tracer.forward import Tangents
from tracegrad.tracer.shapes import view_as
from tracegrad.tracer.state import state, watching
from tracegrad.tracer.tensor import Tensor

__all__ = [
    "UnpackedDualTensor", "dual_level", "enter_dual_level", "exit_dual_level", "make_dual",
    "unpack_dual",
]  # fmt: skip

_NO_LEVEL = (
    "Trying to create a dual Tensor for forward AD but no level exists, make sure to "
    "enter_dual_level() first."
)
_ALREADY = (
    "Making a dual Tensor based on a Tensor that already has a forward gradient at the same level 0 "
    "is not supported."
)
_NOT_LAST = (
    "Trying to exit a forward AD level that was not the last one that was created. This is not "
    "supported."
)


class UnpackedDualTensor(NamedTuple):
    """What `unpack_dual` returns: the value, and its tangent or None.

    Example:
        >>> import tracegrad as tg
        >>> import tracegrad.autograd.forward_ad as fwAD
        >>> fwAD.unpack_dual(tg.ones(2)).tangent is None
        True
    """

    primal: Tensor
    tangent: Tensor | None


def enter_dual_level() -> int:
    """Open the level in which dual tensors can be made; returns its number, 0.

    Raises:
        GradientError: a level is open already in this thread.
    Example:
        >>> import tracegrad.autograd.forward_ad as fwAD
        >>> fwAD.enter_dual_level()
        0
        >>> fwAD.exit_dual_level()
    """
    if state.dual_level is not None:
        raise GradientError("Nested forward mode AD is not supported at the moment")
    if state.recorder is not None:
        state.recorder.note("dual_level()")
    level = Tangents()
    watching.append(level)
    state.dual_level = state.recorder = level
    return 0


def exit_dual_level(*, level: int | None = None) -> None:
    """Close the level; its tangents are gone, the values stay.

    Raises:
        GradientError: no level is open, or `level` is not the one opened last.
    Example:
        >>> import tracegrad as tg
        >>> import tracegrad.autograd.forward_ad as fwAD
        >>> level = fwAD.enter_dual_level()
        >>> x = fwAD.make_dual(tg.ones(1), tg.ones(1))
        >>> fwAD.exit_dual_level(level=level)
        >>> fwAD.unpack_dual(x)
        UnpackedDualTensor(primal=tensor([1.]), tangent=None)
    """
    if state.dual_level is None:
        raise GradientError("Dual level must be a positive number.")
    if level not in (None, 0) or state.recorder is not state.dual_level:
        raise GradientError(_NOT_LAST)
    watching.remove(state.dual_level)
    state.recorder = state.dual_level.above
    state.dual_level = None


class dual_level:
    """A block (or a decorated function) in which tensors can carry tangents.

    Example:
        >>> import tracegrad as tg
        >>> import tracegrad.autograd.forward_ad as fwAD
        >>> with fwAD.dual_level():
        ...     x = fwAD.make_dual(tg.tensor([1.0, 2.0]), tg.tensor([1.0, 10.0]))
        ...     fwAD.unpack_dual(x * x)
        UnpackedDualTensor(primal=tensor([1., 4.]), tangent=tensor([ 2., 40.]))
    """

    def __enter__(self) -> int:
        return enter_dual_level()

    def __exit__(self, *error: object) -> None:
        exit_dual_level()

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Run `function` in a level of its own."""

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with dual_level():
                return function(*args, **kwargs)

        return wrapper


def make_dual(tensor: Tensor, tangent: Tensor, *, level: int | None = None) -> Tensor:
    """A view of `tensor` that varies in the direction `tangent`.

    Args:
        tensor: of floating dtype.
        tangent: of floating dtype and the same shape; used as it is where it is laid out in
            memory as `tensor` is and has its dtype, else copied. Writes in place to the dual
            tensor write to it.
        level: None, or 0 for the one level there is.
    Returns:
        A tensor over the memory of `tensor`. It is differentiable in reverse mode with respect
        to both.
    Raises:
        GradientError: no level is open, or `tensor` has a tangent already.
        OperandError: one of them is not a tensor.
        ParameterError: one of them is not of floating dtype.
        ShapeError: the shapes differ.
    Source: torch.autograd.forward_ad.make_dual.
    Example:
        >>> import tracegrad as tg
        >>> with dual_level():
        ...     print(make_dual(tg.ones(2), tg.tensor([3.0, 4.0])))
        tensor([1., 1.], tangent=tensor([3., 4.]))
    """
    open_level = _level(level)
    for name, x in (("tensor", tensor), ("tangent", tangent)):
        if not isinstance(x, Tensor):
            raise OperandError(f"make_dual(): {name} must be a Tensor, not {type(x).__name__}")
    if open_level is None:
        raise GradientError(_NO_LEVEL)
    for name, x in (("primal", tensor), ("tangent", tangent)):
        if not x.dtype.is_floating_point:
            raise ParameterError(
                f"Expected {name} to be floating point or complex, but got: {x.dtype}"
            )
    if open_level.companion(tensor) is not None:
        raise GradientError(_ALREADY)
    return open_level.dual(tensor, tangent)


def unpack_dual(tensor: Tensor, *, level: int | None = None) -> UnpackedDualTensor:
    """The value of a tensor as a view without tangent, and its tangent.

    Returns:
        `UnpackedDualTensor(primal, tangent)`; the tangent is None where the tensor does not
        depend on a dual tensor, and after the level was closed.
    Raises:
        OperandError: `tensor` is not a tensor.
    Source: torch.autograd.forward_ad.unpack_dual.
    Example:
        >>> import tracegrad as tg
        >>> import tracegrad.autograd.forward_ad as fwAD
        >>> with fwAD.dual_level():
        ...     x = fwAD.make_dual(tg.tensor([2.0]), tg.tensor([1.0]))
        ...     fwAD.unpack_dual(x**3)
        UnpackedDualTensor(primal=tensor([8.]), tangent=tensor([12.]))
    """
    if not isinstance(tensor, Tensor):
        raise OperandError(f"unpack_dual(): tensor must be a Tensor, not {type(tensor).__name__}")
    open_level = _level(level)
    if open_level is None:
        return UnpackedDualTensor(tensor, None)
    with open_level.outside():
        primal = view_as(tensor, tensor)
    open_level.accompany(primal, None)
    return UnpackedDualTensor(primal, open_level.companion(tensor))


def _level(number: int | None) -> Tangents | None:
    """The open level.

    Raises:
        GradientError: another number than 0, or a transform was started inside the level.
    """
    if number is not None and (number != 0 or state.dual_level is None):
        raise GradientError(f"forward AD level {number} does not exist; there is one level, 0")
    if state.dual_level is not None and state.recorder is not state.dual_level:
        raise GradientError(
            "a dual tensor of a level outside cannot be made or unpacked inside a transform (vmap, "
            "jvp ...); do so outside of the transform, or open the level inside"
        )
    return state.dual_level
