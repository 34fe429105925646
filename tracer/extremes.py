"""PyTorch's largest and smallest elements: their values, and where they are.

They join the table `reductions.FUNCTIONS`. Start reading at `_extreme`, which makes `max` and `min`.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any

from tracegrad.ir import dtypes, ops
from tracegrad.ir.errors import (
    DimensionError,
    DTypeError,
    OperandError,
    ShapeError,
)
from tracegrad.ir.primitives.reduction import kept
from tracegrad.tracer import shapes
from tracegrad.tracer.arguments import int_argument, is_int
from tracegrad.tracer.composites import composite
from tracegrad.tracer.pointwise import apply2, named, need_tensor
from tracegrad.tracer.reductions import FUNCTIONS, _axes, _public, take_along
from tracegrad.tracer.shapes import wrap_dim


def _need_elements(function: str, input: Any, dim: Any) -> None:
    """Refuse the extreme of nothing; the primitives would name `max` and `min`."""
    need_tensor(function, "input", 1, input)
    axes = _axes(input, dim)
    if axes is None and 0 in input.shape:
        raise ShapeError(
            f"{function}(): Expected reduction dim to be specified for input.numel() == 0. "
            "Specify the reduction dim with the 'dim' argument."
        )
    for a in axes or () if input.ndim else ():
        if input.shape[a] == 0:
            raise DimensionError(f"{function}(): Expected reduction dim {a} to have non-zero size.")


@_public
@composite
def amax(input: Any, dim: Any = (), keepdim: bool = False) -> Any:
    """Largest element over `dim`; equal extremes share the gradient."""
    _need_elements("amax", input, dim)
    return ops.reduce_max(input, axes=_axes(input, dim), keepdims=keepdim)


@_public
@composite
def amin(input: Any, dim: Any = (), keepdim: bool = False) -> Any:
    """Smallest element over `dim`; equal extremes share the gradient."""
    _need_elements("amin", input, dim)
    return ops.reduce_min(input, axes=_axes(input, dim), keepdims=keepdim)


def _check_search(function: str, input: Any, dim: Any, keepdim: Any) -> None:
    need_tensor(function, "input", 1, input)
    if input.dtype is dtypes.bool_:
        raise DTypeError(f"{function}(): does not support bool input")
    if dim is not None:
        int_argument(function, "dim", 2, dim)
    kept(keepdim)


@_public
@composite
def argmax(input: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    """Position (int64) of the first largest element; in the flattened tensor without `dim`."""
    _check_search("argmax", input, dim, keepdim)
    return ops.argmax(input, axis=dim, keepdims=keepdim)


@_public
@composite
def argmin(input: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    """Position (int64) of the first smallest element; in the flattened tensor without `dim`."""
    _check_search("argmin", input, dim, keepdim)
    return ops.argmin(input, axis=dim, keepdims=keepdim)


def _pair(which: str) -> Any:
    """The named tuple that `max(x, dim)` returns, printing as PyTorch's."""

    class Pair(namedtuple(which, ("values", "indices"))):  # type: ignore[misc]
        __slots__ = ()

        def __repr__(self) -> str:
            rows = ",\n".join(f"{k}={v!r}" for k, v in self._asdict().items())
            return f"torch.return_types.{which}(\n{rows})"

    Pair.__name__ = Pair.__qualname__ = which
    return Pair


def _extreme(which: str) -> Callable[..., Any]:
    Pair = _pair(which)
    search = "argmax" if which == "max" else "argmin"
    pairwise = "maximum" if which == "max" else "minimum"

    def function(input: Any, dim: Any = None, keepdim: bool = False, *, other: Any = None) -> Any:
        need_tensor(which, "input", 1, input)
        if other is not None or hasattr(type(dim), "__tracegrad_bind__"):
            if keepdim is not False:
                raise OperandError(f"{which}() takes 2 positional arguments but 3 were given")
            return apply2(pairwise, input, dim if other is None else other)
        if dim is None:
            whole = getattr(ops, f"reduce_{which}")(input, axes=None, keepdims=False)
            return named(whole, f"{which.capitalize()}Backward1")
        if not is_int(dim):
            raise OperandError(f"{which}(): argument 'dim' must be int, not {type(dim).__name__}")
        kept(keepdim)
        d = wrap_dim(dim, input.ndim)
        if input.ndim and input.shape[d] == 0:
            raise DimensionError(f"{which}(): Expected reduction dim {d} to have non-zero size.")
        indices = getattr(ops, search)(input, axis=d, keepdims=True)
        values = shapes.clone(input) if input.ndim == 0 else take_along(input, d, indices)
        if not keepdim and input.ndim:
            shape = (*input.shape[:d], *input.shape[d + 1 :])
            values, indices = (ops.reshape(v, shape=shape) for v in (values, indices))
        return Pair(named(values, f"{which.capitalize()}Backward0"), indices)

    function.__name__ = function.__qualname__ = which
    function.__doc__ = (
        f"`{which}(x)`: the extreme of all elements. `{which}(x, dim)`: named tuple (values, "
        f"indices), the gradient going to the first extreme. `{which}(x, y)`: `{pairwise}`."
    )
    return composite(function)


max = FUNCTIONS["max"] = _extreme("max")


min = FUNCTIONS["min"] = _extreme("min")
