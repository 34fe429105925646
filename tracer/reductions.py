"""PyTorch's reductions over the table: sums, extremes, norms, variance.

`dim` is None for all dimensions, an int or a tuple. Start reading at `sum`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from math import prod as product
from typing import Any

from tracegrad.ir import dtypes, ops
from tracegrad.ir.errors import (
    DTypeError,
    OperandError,
    OptionError,
    ShapeError,
)
from tracegrad.ir.location import user_stacklevel
from tracegrad.ir.primitive import is_scalar
from tracegrad.ir.primitives.reduction import kept
from tracegrad.tracer.arguments import dtype_argument, is_int, type_name
from tracegrad.tracer.composites import composite
from tracegrad.tracer.dispatch import dispatch
from tracegrad.tracer.pointwise import apply1, apply2, named, need_tensor
from tracegrad.tracer.shapes import wrap_dim
from tracegrad.tracer.tape import scalar_type_name
from tracegrad.tracer.tensor import Tensor

FUNCTIONS: dict[str, Callable[..., Any]] = {}


def _public(function: Callable[..., Any]) -> Callable[..., Any]:
    FUNCTIONS[function.__name__] = function
    return function


def _axes(input: Any, dim: Any) -> Any:
    """Axes for a primitive: None and () mean all."""
    if dim is None or dim == () or dim == []:
        return None
    if is_int(dim):
        listed: tuple[Any, ...] = (dim,)
    elif isinstance(dim, Sequence) and not isinstance(dim, str):
        listed = tuple(dim)
    else:
        raise OperandError(f"argument 'dim' must be int or tuple of ints, not {type_name(dim)}")
    chosen = tuple(wrap_dim(d, input.ndim) for d in listed)
    for d in chosen:
        if chosen.count(d) > 1:
            raise ShapeError(f"dim {d} appears multiple times in the list of dims")
    return chosen


def _count(input: Any, dim: Any) -> int:
    axes = _axes(input, dim)
    if input.ndim == 0:
        return 1
    return product(input.shape if axes is None else (input.shape[a] for a in axes))


def _typed(function: str, input: Any, dtype: Any) -> Any:
    wanted = dtype_argument(function, dtype)
    return input if wanted is None else input.to(wanted)


def _as_asked(out: Any, x: Any, dtype: Any) -> Any:
    """A sum or product of integers in the dtype that was asked for, modulo its size."""
    return out if dtype is None or out.dtype is x.dtype else out.to(x.dtype)


def _reduced_sum(x: Any, dim: Any, keepdim: bool) -> Any:
    axes = _axes(x, dim)
    if isinstance(x, Tensor) and x.dtype.is_floating_point:  # no promotion to look into
        chosen = tuple(range(x.ndim)) if axes is None else tuple(sorted(axes)) if x.ndim else ()
        return dispatch(ops.reduce_sum, (x,), {"axes": chosen, "keepdims": kept(keepdim)})
    return ops.reduce_sum(x, axes=axes, keepdims=keepdim)


@_public
@composite
def sum(input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """Sum over `dim`; floats accumulate in float64 and round once, integers give int64."""
    need_tensor("sum", "input", 1, input)
    x = _typed("sum", input, dtype)
    out = _as_asked(_reduced_sum(x, dim, keepdim), x, dtype)
    return named(out, "SumBackward0" if dim is None else "SumBackward1")


@_public
@composite
def mean(input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """Sum divided by the number of elements; NaN for none.

    Raises:
        DTypeError: `input` is not floating.
    """
    need_tensor("mean", "input", 1, input)
    x = _typed("mean", input, dtype)
    if not x.dtype.is_floating_point:
        which = "Input" if dtype is None else "Optional"
        raise DTypeError(
            f"mean(): could not infer output dtype. {which} dtype must be either a floating point or "
            f"complex dtype. Got: {scalar_type_name(x.dtype)}"
        )
    total = _reduced_sum(_wide(x), dim, keepdim)
    out = apply2("div", total, float(_count(x, dim)))
    out = out if out.dtype is x.dtype else out.to(x.dtype)
    return named(out, "MeanBackward0" if dim is None else "MeanBackward1")


@_public
@composite
def prod(input: Any, dim: int | None = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """Product over `dim`; integers give int64."""
    need_tensor("prod", "input", 1, input)
    x = _typed("prod", input, dtype)
    out = _as_asked(ops.reduce_prod(x, axes=_axes(x, dim), keepdims=keepdim), x, dtype)
    return named(out, "ProdBackward0" if dim is None else "ProdBackward1")


@_public
@composite
def any(input: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """True where some element over `dim` is not zero."""
    need_tensor("any", "input", 1, input)
    return _as_bytes(input, ops.reduce_any(input, axes=_axes(input, dim), keepdims=keepdim))


def _as_bytes(input: Any, out: Any) -> Any:
    """Truth values of bytes are bytes, as in PyTorch."""
    return out.to(dtypes.uint8) if input.dtype is dtypes.uint8 else out


@_public
@composite
def all(input: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """True where every element over `dim` is not zero."""
    need_tensor("all", "input", 1, input)
    return _as_bytes(input, ops.reduce_all(input, axes=_axes(input, dim), keepdims=keepdim))


def take_along(input: Any, dim: int, index: Any) -> Any:
    """`out[i, j, k] = input[i, index[i, j, k], k]` for dim = 1, and so on: PyTorch's gather."""
    from tracegrad.ir.primitives.support import nullary_like

    ndim = input.ndim
    where = []
    for d in range(ndim):
        if d == dim:
            where.append(index)
            continue
        shape = tuple(index.shape[d] if i == d else 1 for i in range(ndim))
        where.append(nullary_like(input, "iota", shape=shape, axis=d, dtype=dtypes.int64))
    return ops.gather(input, *where, axes=tuple(range(ndim)))


@_public
def var(
    input: Any, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *,
    correction: float | None = None,
) -> Any:  # fmt: skip
    """Mean squared distance from the mean, divided by n - correction (default 1).

    Warns where n - correction is not positive; the result is NaN or infinite then.

    Raises:
        DTypeError: `input` is not floating.
    """
    dim, less = _degrees("var", input, dim, unbiased, correction)
    return _var(input, dim, less, keepdim)


def _degrees(name: str, input: Any, dim: Any, unbiased: Any, correction: Any) -> tuple[Any, float]:
    """The dimensions, and what is taken from the count; refuses wrong arguments."""
    need_tensor(name, "input", 1, input)
    if isinstance(dim, bool):  # var(x, unbiased)
        dim, unbiased = None, dim
    if not input.dtype.is_floating_point:
        raise DTypeError("std and var only support floating point and complex dtypes")
    if not isinstance(unbiased, bool):
        raise OperandError(f"argument 'unbiased' must be bool, not {type_name(unbiased)}")
    if correction is not None and not is_scalar(correction):
        raise OperandError(f"argument 'correction' must be Number, not {type_name(correction)}")
    less = correction if correction is not None else (1 if unbiased else 0)
    if _count(input, dim) - less <= 0:
        warnings.warn(_NO_FREEDOM.format(name), UserWarning, stacklevel=user_stacklevel())
    return dim, less


_NO_FREEDOM = (
    "{}(): degrees of freedom is <= 0. Correction should be strictly less than the reduction factor "
    "(input numel divided by output numel)."
)


def _wide(x: Any) -> Any:
    """Half types as float32, for what is computed in several steps and rounded once."""
    return x.to(dtypes.float32) if x.dtype in (dtypes.float16, dtypes.bfloat16) else x


@composite
def _var(input: Any, dim: Any, less: float, keepdim: bool) -> Any:
    wide = _wide(input)
    if wide is not input:
        return named(_var(wide, dim, less, keepdim).to(input.dtype), "VarBackward0")
    centered = apply2("sub", input, mean(input, _all(input, dim), keepdim=True))
    total = ops.reduce_sum(
        apply2("mul", centered, centered), axes=_axes(input, dim), keepdims=keepdim
    )
    left = float(builtin_max(_count(input, dim) - less, 0))
    return named(apply2("div", total, left), "VarBackward0")


def _all(input: Any, dim: Any) -> Any:
    axes = _axes(input, dim)
    return tuple(range(input.ndim)) if axes is None else axes


def builtin_max(a: float, b: float) -> float:
    """The larger of two numbers (`max` is a tensor function here)."""
    return a if a > b else b


@_public
def std(
    input: Any, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *,
    correction: float | None = None,
) -> Any:  # fmt: skip
    """Square root of `var`, with its warning; its gradient is 0 where the variance is 0."""
    dim, less = _degrees("std", input, dim, unbiased, correction)
    return _std(input, dim, less, keepdim)


@composite
def _std(input: Any, dim: Any, less: float, keepdim: bool) -> Any:
    wide = _wide(input)
    if wide is not input:
        return named(_std(wide, dim, less, keepdim).to(input.dtype), "StdBackward0")
    return named(_safe_sqrt(_var(input, dim, less, keepdim)), "StdBackward0")


def _safe_sqrt(x: Any) -> Any:
    """Square root whose gradient at 0 is 0 instead of infinite."""
    zero = apply2("equal", x, 0)
    root = apply1("sqrt", ops.where(zero, 1, x))
    return ops.where(zero, 0, root)


@_public
@composite
def norm(
    input: Any, p: Any = "fro", dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Any:
    """Vector p-norm over `dim` (all dimensions for None); "fro" is p = 2.

    The half types are computed in float32.

    Raises:
        DTypeError: `input` is not floating.
        OptionError: `p` is text other than "fro".
        OperandError: `p` is neither text nor a number.
    """
    need_tensor("norm", "input", 1, input)
    x = _typed("norm", input, dtype)
    if not x.dtype.is_floating_point:
        raise DTypeError(
            "linalg.vector_norm: Expected a floating point or complex tensor as input. "
            f"Got {scalar_type_name(x.dtype)}"
        )
    if p is None or p == "fro":
        p = 2
    if isinstance(p, str):
        raise OptionError(f"linalg.matrix_norm: Order {p} not supported. Use a number or 'fro'.")
    if not is_scalar(p):
        raise OperandError(f"norm(): argument 'p' must be Number or 'fro', not {type_name(p)}")
    half = x.dtype.itemsize == 2  # their powers overflow, and their sums lose digits
    wide = ops.cast(x, dtype=dtypes.float32) if half else x
    out = _vector_norm(wide, float(p), _axes(x, dim), keepdim)
    return named(ops.cast(out, dtype=x.dtype) if half else out, "LinalgVectorNormBackward0")


def _refuse_empty_norm(x: Any, p: float, axes: Any) -> None:
    """The norms that the extreme element gives have no value for none."""
    reason = "the operation does not have an identity"
    if axes is None:
        where = f"an empty tensor because {reason}"
    else:
        empty = [a for a in axes if x.shape[a] == 0]
        if not empty:
            return
        where = f"the dimension {empty[0]} because this dimension is empty and {reason}"
    raise OptionError(f"linalg.vector_norm cannot compute the {p:g} norm on {where}")


def _vector_norm(x: Any, p: float, axes: Any, keepdim: bool) -> Any:
    how = {"axes": axes, "keepdims": keepdim}
    if p == 2:
        return _safe_sqrt(ops.reduce_sum(apply2("mul", x, x), **how))
    size = apply1("abs", x)
    if (p < 0 or p == float("inf")) and 0 in x.shape:
        _refuse_empty_norm(x, p, axes)
    if p == float("inf"):
        return ops.reduce_max(size, **how)
    if p == float("-inf"):
        return ops.reduce_min(size, **how)
    if p == 0:  # of signs, for their history: its gradient is zeros
        ones = ops.where(apply1("isnan", x), 1, apply1("abs", apply1("sign", x)))
        return ops.reduce_sum(ones, **how)
    if p == 1:
        return ops.reduce_sum(size, **how)
    if p < 1:  # the slope at 0 is infinite, and taken to be 0
        none = apply2("equal", size, 0)
        some = apply2("pow", ops.where(none, 1, size), p)
        powers = ops.where(none, 0.0 if p > 0 else float("inf"), some)
    else:
        powers = apply2("pow", size, p)
    total = ops.reduce_sum(powers, **how)
    zero = apply2("equal", total, 0)
    return ops.where(zero, 0, apply2("pow", ops.where(zero, 1, total), 1.0 / p))


@_public
@composite
def count_nonzero(input: Any, dim: Any = None) -> Any:
    """How many elements are not zero, int64."""
    need_tensor("count_nonzero", "input", 1, input)
    return sum(apply2("not_equal", input, 0), dim)
