"""Reductions that pass over NaN, and pairs of a spread and its mean.

They join the table `reductions.FUNCTIONS`. Start reading at `nanmean`.
"""

from __future__ import annotations

from typing import Any

from tracegrad.ir.errors import DTypeError
from tracegrad.tracer.composites import composite
from tracegrad.tracer.pointwise import apply1, apply2, named, need_tensor
from tracegrad.tracer.pointwise_composed import where
from tracegrad.tracer.reductions import _public, mean, std, sum, var
from tracegrad.tracer.tape import scalar_type_name


@_public
@composite
def nansum(input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """`sum` that takes NaN for 0.

    Example:
        >>> import tracegrad as tg
        >>> tg.nansum(tg.tensor([1., tg.nan, 2.]))
        tensor(3.)
    """
    need_tensor("nansum", "input", 1, input)
    if not input.dtype.is_floating_point:
        return sum(input, dim, keepdim, dtype=dtype)
    known = where(apply1("isnan", input), 0.0, input)
    return named(sum(known, dim, keepdim, dtype=dtype), "NansumBackward0")


@_public
@composite
def nanmean(input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """`mean` of the elements that are not NaN; NaN where there are none.

    Raises:
        DTypeError: `input` is not floating.

    Example:
        >>> import tracegrad as tg
        >>> tg.nanmean(tg.tensor([1., tg.nan, 2.]))
        tensor(1.5000)
    """
    need_tensor("nanmean", "input", 1, input)
    if not input.dtype.is_floating_point:
        raise DTypeError(
            "nanmean(): expected input to have floating point or complex dtype but got "
            f"{scalar_type_name(input.dtype)}"
        )
    known = apply1("logical_not", apply1("isnan", input.detach()))
    total = nansum(input, dim, keepdim, dtype=dtype)
    return apply2("div", total, sum(known, dim, keepdim))


@_public
def std_mean(
    input: Any, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *,
    correction: float | None = None,
) -> tuple[Any, Any]:  # fmt: skip
    """`std` and `mean` of the same elements.

    Raises:
        DTypeError: `input` is not floating.

    Example:
        >>> import tracegrad as tg
        >>> tg.std_mean(tg.tensor([1., 3.]))
        (tensor(1.4142), tensor(2.))
    """
    _need_floating("std_mean", input)
    return (std(input, dim, unbiased, keepdim, correction=correction), _mean(input, dim, keepdim))


@_public
def var_mean(
    input: Any, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *,
    correction: float | None = None,
) -> tuple[Any, Any]:  # fmt: skip
    """`var` and `mean` of the same elements.

    Raises:
        DTypeError: `input` is not floating.

    Example:
        >>> import tracegrad as tg
        >>> tg.var_mean(tg.tensor([1., 3.]))
        (tensor(2.), tensor(2.))
    """
    _need_floating("var_mean", input)
    return (var(input, dim, unbiased, keepdim, correction=correction), _mean(input, dim, keepdim))


def _need_floating(name: str, input: Any) -> None:
    need_tensor(name, "input", 1, input)
    if not input.dtype.is_floating_point:
        raise DTypeError(f"{name} only support floating point and complex dtypes")


def _mean(input: Any, dim: Any, keepdim: bool) -> Any:
    if dim is None or isinstance(dim, bool):
        return mean(input, tuple(range(input.ndim)), keepdim) if keepdim else mean(input)
    return mean(input, dim, keepdim)
