"""Tensors of evenly spaced numbers, and the unit matrix. Start reading at `arange`.

All take the keywords `out`, `dtype`, `layout`, `device`, `pin_memory` and `requires_grad`.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import OperandError, ParameterError, ShapeError, UnsupportedError
from tracegrad.ir.location import user_stacklevel
from tracegrad.tracer.arguments import (
    Options,
    check_fits,
    int_argument,
    missing,
    number_argument,
)
from tracegrad.tracer.factories import ABSENT, FUNCTIONS, chosen, finish, new_leaf, placed, public
from tracegrad.tracer.profiling import profilers
from tracegrad.tracer.tensor import Tensor

_MANY = 2**40  # more elements than any memory holds
_BAD_DIRECTION = "upper bound and lower bound inconsistent with step sign"


@public
def arange(*given: Any, **options: Any) -> Tensor:
    """`start`, `start + step`, ... below `end`: `arange(end)`, `arange(start, end, step=1)`.

    int64 where all three are integers, else the default dtype. For an integer dtype that is asked
    for, the three are converted to it first.

    Raises:
        OperandError: an argument is no number.
        ShapeError: `step` is 0 or points away from `end`, or the range is not finite.
        ParameterError: `step` is a fraction, and 0 in the integer dtype asked for.

    Example:
        >>> import tracegrad as tg
        >>> tg.arange(1, 2.5, 0.5)
        tensor([1.0000, 1.5000, 2.0000])
    """
    simple = len(given) == 1 and not options and not profilers
    if simple and type(given[0]) is int and 0 <= given[0] < _MANY:
        return new_leaf(placed(np.arange(given[0]), None), False)
    names = ("end",) if len(given) == 1 and "end" not in options else ("start", "end", "step")
    if len(given) > 3:
        raise OperandError(
            f"arange() takes from 1 to 3 positional arguments but {len(given)} were given"
        )
    bounds: dict[str, Any] = dict(zip(names, given, strict=False))
    for name in ("start", "end", "step"):
        if name in options:
            if name in bounds:
                raise OperandError(f"arange() got multiple values for argument '{name}'")
            bounds[name] = options.pop(name)
    if "end" not in bounds:
        raise missing("arange", "end")
    places = {name: k + 1 for k, name in enumerate(names)}
    start, end, step = (
        number_argument("arange", name, places.get(name, 0), bounds.get(name, default))
        for name, default in (("start", 0), ("end", None), ("step", 1))
    )
    read = Options.read("arange", options, "out")
    if read.dtype is None and read.out is None:
        whole = not any(isinstance(x, float) for x in (start, end, step))
        dtype = dtypes.int64 if whole else dtypes.get_default_dtype()
    else:
        dtype = chosen(read)
    return finish("arange", _steps(dtype, start, end, step), read)


def _steps(dtype: DType, start: Any, end: Any, step: Any) -> np.ndarray:
    if dtype.kind == "b":
        raise UnsupportedError("\"arange_cpu\" not implemented for 'Bool'")
    if not all(math.isfinite(x) for x in (start, end)):
        raise ShapeError(f"unsupported range: {start:g} -> {end:g}")
    if step == 0:
        raise ShapeError("step must be nonzero")
    if dtype is dtypes.int64:
        for x in (start, end, step):
            check_fits(x, dtype)
        start, end, step = int(start), int(end), int(step)
        if step == 0:
            raise ParameterError("step must be nonzero")
    if (end - start) * step < 0:
        raise ShapeError(_BAD_DIRECTION)
    if dtype is dtypes.int64:
        count = -((start - end) // step)
    else:
        count = math.ceil((float(end) - float(start)) / float(step))
    if count >= _MANY:
        raise ShapeError("invalid size, possible overflow?")
    index = np.arange(count)
    if dtype.kind == "f":
        return np.asarray(float(start) + index * float(step)).astype(dtype.numpy)
    return np.asarray(int(start) + index * int(step)).astype(dtype.numpy)


@public
def range(start: Any = ABSENT, end: Any = ABSENT, step: Any = 1, **options: Any) -> Tensor:
    """`arange` that includes `end`, in the default dtype. Deprecated, as in PyTorch.

    Raises:
        OperandError: an argument is no number.
        ShapeError: `step` is 0, or points away from `end`.
    """
    if end is ABSENT:
        raise missing("range", "end")
    warnings.warn(
        "torch.range is deprecated and will be removed in a future release because its behavior is "
        "inconsistent with Python's range builtin. Instead, use torch.arange, which produces values "
        "in [start, end).",
        UserWarning,
        stacklevel=user_stacklevel(),
    )
    values = ((start, "start", 1), (end, "end", 2), (step, "step", 3))
    low, high, by = (float(number_argument("range", name, k, x)) for x, name, k in values)
    read = Options.read("range", options, "out")
    if by == 0:
        raise ShapeError("step must be nonzero")
    if (high - low) * by < 0:
        raise ShapeError(_BAD_DIRECTION)
    index = np.arange(math.floor((high - low) / by) + 1)
    return finish("range", np.asarray(low + index * by).astype(chosen(read).numpy), read)


def _end(function: str, name: str, position: int, x: Any) -> bool | int | float:
    """An end of an interval; tensors that require grad count, their gradient is not followed."""
    if isinstance(x, Tensor):
        if x.ndim:
            raise ShapeError(
                f"{function} only supports 0-dimensional start and end tensors, but got {name} "
                f"with {x.ndim} dimension(s)."
            )
        x = x.detach()
    return number_argument(function, name, position, x)


def _interval(
    function: str, start: Any, end: Any, steps: Any, options: dict[str, Any]
) -> tuple[Any, Any, int, Options]:
    """The arguments that `linspace` and `logspace` share."""
    for name, x in (("start", start), ("end", end), ("steps", steps)):
        if x is ABSENT:
            raise missing(function, name)
    low, high = _end(function, "start", 1, start), _end(function, "end", 2, end)
    count = int_argument(function, "steps", 3, steps)
    if count < 0:
        raise ShapeError("number of steps must be non-negative")
    read = Options.read(function, options, "out")
    if chosen(read).kind == "b":
        raise UnsupportedError(f"\"{function}_cpu\" not implemented for 'Bool'")
    return low, high, count, read


@public
def linspace(start: Any = ABSENT, end: Any = ABSENT, steps: Any = ABSENT, **options: Any) -> Tensor:
    """`steps` values from `start` to `end`, both included, computed in the result's dtype.

    The first half counts up from `start`, the second down from `end`, so both ends are exact; each
    value is rounded once, as by a fused multiply-add.

    Raises:
        OperandError: an argument of the wrong type.
        ShapeError: `steps` is negative, or an end has dimensions.

    Example:
        >>> import tracegrad as tg
        >>> tg.linspace(0, 1, 5)
        tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000])
    """
    low, high, count, read = _interval("linspace", start, end, steps, options)
    return finish("linspace", _spaced(chosen(read), low, high, count), read)


def _spaced(dtype: DType, start: Any, end: Any, steps: int) -> np.ndarray:
    real = dtype.numpy.type if dtype.is_floating_point else np.float64
    wide = np.longdouble if dtype.numpy.itemsize == 8 else np.float64
    with np.errstate(all="ignore"):
        low, high = real(start), real(end)
        if steps == 1:
            return np.full((1,), low).astype(dtype.numpy)
        gap = wide(real((high - low) / real(max(steps - 1, 1))))
        index: Any = np.arange(steps).astype(wide)
        values = np.where(index < steps // 2, low + gap * index, high - gap * (steps - 1 - index))
        return np.asarray(values).astype(dtype.numpy)


@public
def logspace(
    start: Any = ABSENT, end: Any = ABSENT, steps: Any = ABSENT, base: Any = 10.0, **options: Any
) -> Tensor:
    """`base` to the powers `linspace(start, end, steps)`.

    Raises:
        OperandError: an argument of the wrong type.
        ShapeError: `steps` is negative, or an end has dimensions.
    """
    low, high, count, read = _interval("logspace", start, end, steps, options)
    power = float(number_argument("logspace", "base", 4, base))
    if not chosen(read).is_floating_point:
        low, high = int(low), int(high)
    exponents = _spaced(dtypes.float64, low, high, count)
    with np.errstate(all="ignore"):
        return finish("logspace", (power**exponents).astype(chosen(read).numpy), read)


@public
def eye(n: Any = ABSENT, m: Any = None, **options: Any) -> Tensor:
    """Ones on the diagonal of an n x m matrix (m = n by default), zeros elsewhere.

    Raises:
        OperandError: an argument of the wrong type.
        ShapeError: a size is negative.
    """
    if n is ABSENT:
        raise missing("eye", "n")
    rows = int_argument("eye", "n", 1, n)
    columns = rows if m is None else int_argument("eye", "m", 2, m)
    for name, size in (("n", rows), ("m", columns)):
        if size < 0:
            raise ShapeError(f"{name} must be greater or equal to 0, got {size}")
    read = Options.read("eye", options, "out")
    return finish("eye", np.eye(rows, columns, dtype=chosen(read).numpy), read)


assert FUNCTIONS["arange"] is arange, "importing this module enters its functions into the table"
