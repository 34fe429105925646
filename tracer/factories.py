"""Functions that make tensors from data, numbers or nothing. Start reading at `tensor`.

All take `dtype`, `device` and `requires_grad`, as PyTorch's do.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import OperandError, ParameterError, ShapeError
from tracegrad.ir.location import user_stacklevel
from tracegrad.tracer.device import as_device
from tracegrad.tracer.shapes import sizes
from tracegrad.tracer.state import state
from tracegrad.tracer.tensor import Tensor, dtype_of, wrap

FUNCTIONS: dict[str, Callable[..., Any]] = {}


def _public(function: Callable[..., Any]) -> Callable[..., Any]:
    FUNCTIONS[function.__name__] = function
    return function


def new_leaf(array: np.ndarray, requires_grad: bool, device: Any = None) -> Tensor:
    """A new leaf over `array`, told to the recorder."""
    as_device(device)
    out = wrap(array)
    if state.recorder is not None:
        state.recorder.constant(out)
    if requires_grad:
        out.requires_grad = True
    return out


def chosen_dtype(dtype: Any) -> DType:
    """The DType meant by the `dtype` argument of a factory; None is the default."""
    if dtype is None:
        return dtypes.get_default_dtype()
    if not isinstance(dtype, DType | type | np.dtype):
        raise OperandError(f"dtype must be a tracegrad dtype, got {dtype!r}")
    return dtypes.as_dtype(dtype)


def _native(array: np.ndarray) -> np.ndarray:
    """The array in the machine's byte order, of a dtype that exists here."""
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    dtype_of[array.dtype]
    return array


@_public
def tensor(
    data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """A new leaf that holds a copy of `data` (numbers, nested sequences, arrays, tensors).

    Floats get the default dtype, ints int64, bools bool; arrays keep their dtype.

    Raises:
        ParameterError: sequences of unequal length, or something that is no number.

    Example:
        >>> import tracegrad as tg
        >>> tg.tensor([1., 2.])
        tensor([1., 2.])
    """
    if isinstance(data, Tensor):
        warnings.warn(
            "To copy construct from a tensor, it is recommended to use "
            "sourceTensor.detach().clone() or "
            "sourceTensor.detach().clone().requires_grad_(True), rather than "
            "torch.tensor(sourceTensor).",
            UserWarning,
            stacklevel=user_stacklevel(),
        )
        copied = data.detach().clone()
        copied = copied if dtype is None else copied.to(chosen_dtype(dtype))
        return copied.requires_grad_() if requires_grad else copied
    array = _array_from(data, None if dtype is None else chosen_dtype(dtype))
    return new_leaf(np.array(array, copy=True, order="C"), requires_grad, device)


def _array_from(data: Any, dtype: DType | None) -> np.ndarray:
    if isinstance(data, np.ndarray | np.generic):
        array = _native(np.asarray(data))
        return array if dtype is None else array.astype(dtype.numpy)
    plain = _plain(data)
    try:
        array = np.array(plain)
    except ValueError:
        raise _ragged(data) from None
    if array.dtype == object or array.dtype.kind in "US":
        raise _ragged(data)
    dtype_of[array.dtype]  # raises for foreign dtypes, complex among them
    if dtype is None:
        empty = array.size == 0 and array.dtype.kind == "f"
        inferred = {"b": dtypes.bool_, "i": dtypes.int64, "u": dtypes.int64}.get(array.dtype.kind)
        dtype = dtypes.get_default_dtype() if inferred is None or empty else inferred
        if array.dtype.kind == "f" and _all_numpy(data, array):
            dtype = dtype_of[array.dtype]
    with np.errstate(all="ignore"):
        return array.astype(dtype.numpy)


def _all_numpy(data: Any, array: np.ndarray) -> bool:
    """True for a list of NumPy arrays of one floating dtype, which keeps that dtype."""
    return (
        isinstance(data, Sequence) and bool(data) and all(isinstance(x, np.ndarray) for x in data)
    )


def _plain(data: Any) -> Any:
    """Nested sequences with tensors replaced by their arrays."""
    if isinstance(data, Tensor):
        if state.recorder is not None:
            state.recorder.value_read(data, "tensor()")
        return data._array
    if isinstance(data, list | tuple):
        return [_plain(x) for x in data]
    return data


def _leaves(data: Any) -> Any:
    """The innermost elements of nested sequences."""
    if isinstance(data, list | tuple):
        for x in data:
            yield from _leaves(x)
    else:
        yield data


def _ragged(data: Any) -> Exception:
    """The error that data which is no regular array of numbers deserves."""
    level, where = data, 0
    while isinstance(level, list | tuple) and level:
        lengths = [len(x) if isinstance(x, list | tuple) else None for x in level]
        odd = next((i for i, n in enumerate(lengths) if n != lengths[0]), None)
        if odd is not None and None not in (lengths[0], lengths[odd]):
            return ParameterError(
                f"expected sequence of length {lengths[0]} at dim {where + 1} (got {lengths[odd]})"
            )
        if odd is not None:
            return OperandError(f"not a sequence at dim {where + 1}: {level[odd]!r}")
        level, where = level[0], where + 1
    odd = next((x for x in _leaves(data) if not isinstance(x, bool | int | float)), level)
    kind = type(odd).__name__
    if isinstance(odd, str):
        return OperandError(f"new(): invalid data type '{kind}'")
    return OperandError(f"Could not infer dtype of {kind}")


@_public
def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
    """`data` as a tensor, sharing memory with arrays and tensors where no conversion is needed."""
    as_device(device)
    if isinstance(data, Tensor):
        return data if dtype is None else data.to(chosen_dtype(dtype))
    if isinstance(data, np.ndarray):
        shared = from_numpy(data)
        return shared if dtype is None else shared.to(chosen_dtype(dtype))
    return tensor(data, dtype=dtype, device=device)


@_public
def asarray(
    obj: Any, *, dtype: Any = None, device: Any = None, copy: bool | None = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """`as_tensor` that can be told to copy."""
    out = as_tensor(obj, dtype, device)
    out = out.detach().clone() if copy else out
    return out.requires_grad_() if requires_grad else out


@_public
def from_numpy(ndarray: Any) -> Tensor:
    """A tensor over the array's memory: writes to one are seen in the other."""
    if not isinstance(ndarray, np.ndarray):
        raise OperandError(f"expected np.ndarray (got {type(ndarray).__name__})")
    if min(ndarray.strides, default=0) < 0:
        raise ParameterError(
            "At least one stride in the given numpy array is negative, and tensors with negative "
            "strides are not currently supported. (You can probably work around this by making a "
            "copy of your array  with array.copy().) "
        )
    if not ndarray.dtype.isnative:
        raise ParameterError(
            "given numpy array has byte order different from the native byte order. "
            "Conversion between byte orders is currently not supported."
        )
    dtype_of[ndarray.dtype]
    return new_leaf(ndarray.view(np.ndarray), False)


# ---- constant values ----------------------------------------------------------------------------


@_public
def full(
    size: Sequence[int], fill_value: Any, *, dtype: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """A tensor of `size` that holds `fill_value` everywhere; its type gives the dtype."""
    chosen = dtypes.scalar_dtype(fill_value) if dtype is None else chosen_dtype(dtype)
    return _filled(sizes((size,)), fill_value, chosen, requires_grad, device)


def _filled(
    shape: tuple[int, ...], value: Any, dtype: DType, requires_grad: bool, device: Any
) -> Tensor:
    if any(n < 0 for n in shape):
        raise ShapeError(
            f"Trying to create tensor with negative dimension {min(shape)}: {list(shape)}"
        )
    zero = type(value) in (int, bool) and value == 0  # -0.0 is another number
    make = np.zeros(shape, dtype.numpy) if zero else np.full(shape, value, dtype.numpy)
    return new_leaf(make, requires_grad, device)


def _constant(name: str, value: int) -> Callable[..., Tensor]:
    def function(
        *size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False
    ) -> Tensor:
        return _filled(sizes(size), value, chosen_dtype(dtype), requires_grad, device)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"A tensor of the given size full of {value}s, in the default dtype."
    return function


zeros = FUNCTIONS["zeros"] = _constant("zeros", 0)
ones = FUNCTIONS["ones"] = _constant("ones", 1)


@_public
def empty(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor of the given size whose values are whatever the memory held."""
    return new_leaf(np.empty(sizes(size), chosen_dtype(dtype).numpy), requires_grad, device)


def _like(name: str, value: int | None) -> Callable[..., Tensor]:
    def function(
        input: Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
    ) -> Tensor:
        chosen = input.dtype if dtype is None else chosen_dtype(dtype)
        return _filled(tuple(input.shape), value or 0, chosen, requires_grad, device)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"{name[:-5]} of the shape and dtype of `input`."
    return function


zeros_like = FUNCTIONS["zeros_like"] = _like("zeros_like", 0)
ones_like = FUNCTIONS["ones_like"] = _like("ones_like", 1)
empty_like = FUNCTIONS["empty_like"] = _like("empty_like", None)


@_public
def full_like(
    input: Tensor, fill_value: Any, *, dtype: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """`fill_value` in the shape and dtype of `input`."""
    chosen = input.dtype if dtype is None else chosen_dtype(dtype)
    return _filled(tuple(input.shape), fill_value, chosen, requires_grad, device)


@_public
def scalar_tensor(s: Any, *, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """The number `s` as a 0-d tensor of the default dtype."""
    return _filled((), s, chosen_dtype(dtype), requires_grad, None)


# ---- ranges -------------------------------------------------------------------------------------


@_public
def arange(
    start: Any, end: Any = None, step: Any = 1, *, dtype: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """`start`, `start + step`, ... below `end`; int64 where all three are integers.

    Raises:
        ParameterError: `step` is 0 or points away from `end`.
    """
    if end is None:
        start, end = 0, start
    if step == 0:
        raise ShapeError("step must be nonzero")
    if (end - start) * step < 0:
        raise ShapeError("upper bound and lower bound inconsistent with step sign")
    if dtype is None:
        whole = all(isinstance(n, int | np.integer) for n in (start, end, step))
        dtype = dtypes.int64 if whole else dtypes.get_default_dtype()
    kind = chosen_dtype(dtype).numpy
    count = max(math.ceil((end - start) / step), 0)
    index = np.arange(count)
    values = start + index * step if kind.kind != "f" else float(start) + index * float(step)
    return new_leaf(np.asarray(values).astype(kind), requires_grad, device)


@_public
def linspace(
    start: float, end: float, steps: int, *, dtype: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """`steps` values from `start` to `end`, both included, computed in the result's dtype.

    The first half counts up from `start`, the second down from `end`, so both ends are exact; each
    value is rounded once, as by a fused multiply-add.

    Raises:
        ShapeError: `steps` is negative.
    """
    if steps < 0:
        raise ShapeError("number of steps must be non-negative")
    chosen = chosen_dtype(dtype)
    real = chosen.numpy.type if chosen.is_floating_point else np.float64
    wide = np.longdouble if chosen.numpy.itemsize == 8 else np.float64
    low, high = real(start), real(end)
    if steps == 1:
        return new_leaf(np.full((1,), low).astype(chosen.numpy), requires_grad, device)
    gap = wide(real((high - low) / real(max(steps - 1, 1))))
    index: Any = np.arange(steps).astype(wide)
    values = np.where(index < steps // 2, low + gap * index, high - gap * (steps - 1 - index))
    return new_leaf(np.asarray(values).astype(chosen.numpy), requires_grad, device)


@_public
def logspace(
    start: float, end: float, steps: int, base: float = 10.0, *, dtype: Any = None,
    device: Any = None, requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """`base` to the powers `linspace(start, end, steps)`."""
    chosen = chosen_dtype(dtype)
    exponents = linspace(start, end, steps, dtype=dtypes.float64)._array
    return new_leaf((base**exponents).astype(chosen.numpy), requires_grad, device)


@_public
def eye(
    n: int, m: int | None = None, *, dtype: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Ones on the diagonal of an n x m matrix (m = n by default), zeros elsewhere."""
    return new_leaf(np.eye(n, m, dtype=chosen_dtype(dtype).numpy), requires_grad, device)
