"""The arguments that factories share, read and refused in PyTorch's words.

Sizes, numbers, and the keywords `dtype`, `layout`, `device`, `pin_memory`, `requires_grad`, `out`
and `memory_format`. Start reading at `Options.read`, then `size_argument`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import (
    DeviceError,
    DTypeError,
    GradientError,
    OperandError,
    ShapeError,
    UnsupportedError,
)
from tracegrad.runtime.cuda import driver
from tracegrad.tracer.device import as_device, device
from tracegrad.tracer.layout import layout, memory_format, need_format, strided
from tracegrad.tracer.profiling import now
from tracegrad.tracer.tape import scalar_type_name
from tracegrad.tracer.tensor import Tensor

_LONG = range(-(2**63), 2**63)


def type_name(x: Any) -> str:
    """The name of `x`'s type as PyTorch's messages give it."""
    kind = type(x)
    if issubclass(kind, np.generic | np.ndarray):
        return f"numpy.{kind.__name__}"
    return "torch.dtype" if kind is DType else kind.__name__


def missing(function: str, argument: str) -> OperandError:
    """The error for a call that lacks an argument."""
    return OperandError(f'{function}() missing 1 required positional arguments: "{argument}"')


def wrong_type(function: str, argument: str, position: int, wanted: str, x: Any) -> OperandError:
    """The error for an argument of the wrong type; position 0 is a keyword."""
    where = f" (position {position})" if position else ""
    return OperandError(
        f"{function}(): argument '{argument}'{where} must be {wanted}, not {type_name(x)}"
    )


def need_tensor(function: str, argument: str, position: int, x: Any) -> Tensor:
    """`x`, if it is a Tensor.

    Raises:
        OperandError: it is not.
    """
    if not isinstance(x, Tensor):
        raise wrong_type(function, argument, position, "Tensor", x)
    return x


# ---- sizes and numbers --------------------------------------------------------------------------


def is_int(x: Any) -> bool:
    """Whether `x` counts as an int: an int that is no bool, or an integer tensor of no dimension."""
    if isinstance(x, Tensor):
        return x.ndim == 0 and x.dtype.category == 1
    return isinstance(x, int | np.integer) and not isinstance(x, bool)


def size_argument(function: str, given: Sequence[Any], size: Any = None) -> tuple[int, ...]:
    """The sizes in `f(2, 3)`, `f((2, 3))` or `f(size=(2, 3))`.

    Raises:
        OperandError: they are missing, or not ints.
        ShapeError: one is negative.
    """
    if size is not None:
        if given:
            raise OperandError(f"{function}() got multiple values for argument 'size'")
        given = (size,)
    elif not given:
        raise missing(function, "size")
    plain = given[0] if len(given) == 1 and isinstance(given[0], tuple) else given
    for n in plain:
        if type(n) is not int or not 0 <= n < _MOST:
            break
    else:
        return tuple(plain)
    return _checked_sizes(function, given)


_MOST = 2**63


def _checked_sizes(function: str, given: Sequence[Any]) -> tuple[int, ...]:
    """Sizes that are not all plain ints: converted, or refused."""
    items: Sequence[Any] = given
    first = given[0]
    if len(given) == 1 and isinstance(first, tuple | list | range):
        items = first
    elif isinstance(first, tuple | list):
        raise OperandError(f"{function}() takes 1 positional argument but {len(given)} were given")
    elif not is_int(first):
        raise wrong_type(function, "size", 1, "tuple of ints", first)
    shape = tuple(_size(function, k, x) for k, x in enumerate(items))
    if any(n < 0 for n in shape):
        if function == "zeros":
            raise ShapeError(f"{function}: Dimension size must be non-negative.")
        raise ShapeError(
            f"Trying to create tensor with negative dimension {min(shape)}: {list(shape)}"
        )
    return shape


def _size(function: str, position: int, x: Any) -> int:
    if not is_int(x):
        if position == 0:
            raise OperandError(
                f"{function}(): argument 'size' (position 1) must be tuple of ints, but found "
                f"element of type {type_name(x)} at pos 0"
            )
        raise OperandError(
            f"{function}(): argument 'size' failed to unpack the object at pos {position + 1} "
            f'with error "type must be tuple of ints,but got {type_name(x)}"'
        )
    n = operator.index(x)
    if n not in _LONG:
        raise OperandError(
            f"{function}(): argument 'size' failed to unpack the object at pos {position + 1} "
            'with error "Overflow when unpacking long long"'
        )
    return n


def number_argument(function: str, argument: str, position: int, x: Any) -> bool | int | float:
    """`x` as a Python number; 0-d tensors that need no gradient and NumPy's numbers count.

    Raises:
        OperandError: it is no number.
        DTypeError: it is complex.
    """
    if isinstance(x, bool | int | float) and not isinstance(x, np.generic):
        return x
    if isinstance(x, complex | np.complexfloating):
        raise dtypes.complex_refused(f"{function}(): argument '{argument}'")
    if isinstance(x, np.bool_ | np.integer | np.floating):
        return x.item()
    if isinstance(x, Tensor) and x.ndim == 0 and not x.requires_grad:
        return x.item()
    raise wrong_type(function, argument, position, "Number", x)


def int_argument(function: str, argument: str, position: int, x: Any) -> int:
    """`x` as an int.

    Raises:
        OperandError: it is none.
    """
    if not is_int(x):
        raise wrong_type(function, argument, position, "int", x)
    return operator.index(x)


_C_NAMES = {
    "bool": "bool", "uint8": "uint8_t", "int8": "int8_t", "int16": "int16_t", "int32": "int",
    "int64": "int64_t", "float16": "c10::Half", "bfloat16": "c10::BFloat16", "float32": "float",
    "float64": "double",
}  # fmt: skip


def check_fits(value: Any, dtype: DType) -> None:
    """Refuse a number that `dtype` cannot hold (negative ones wrap around in unsigned types).

    Raises:
        DTypeError: out of range (PyTorch's text).
    """
    if not fits(value, dtype):
        name = _C_NAMES.get(dtype.name, dtype.name)
        raise DTypeError(f"value cannot be converted to type {name} without overflow")


def fits(value: Any, dtype: DType) -> bool:
    """Whether a Python number can be stored in `dtype`; infinities and NaN are for floats only."""
    if dtype.kind == "b":
        return True
    if dtype.kind == "f":
        return abs(value) <= _LARGEST[dtype.name] or (
            isinstance(value, float) and not math.isfinite(value)
        )
    low, high = limits(dtype, isinstance(value, float))
    return value == value and low <= value <= high


_LARGEST = {
    "float16": 65504.0, "bfloat16": 3.3895313892515355e38, "float32": 3.4028234663852886e38,
    "float64": 1.7976931348623157e308,
}  # fmt: skip


def limits(dtype: DType, floating: bool) -> tuple[int, int]:
    """What an integer type takes: ints may be negative in unsigned types, floats may not."""
    bits = 8 * dtype.itemsize
    if dtype.kind == "u":
        return (0 if floating else 1 - 2**bits), 2**bits - 1
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


# ---- keywords -----------------------------------------------------------------------------------


class Options(NamedTuple):
    """The keywords of one call; `dtype` and `format` are None where not given.

    `since` is the time at which they were read, for profilers; 0 where there is none. `device` is
    None where it was not given: then it is the default one, or that of the operand.
    """

    dtype: DType | None
    requires_grad: bool
    out: Tensor | None
    format: memory_format | None
    since: int = 0
    device: device | None = None

    def on(self, x: Tensor) -> Options:
        """With the device of `x`, where none was given."""
        return self if self.device is not None else self._replace(device=x.device)

    @staticmethod
    def read(function: str, given: Mapping[str, Any], *more: str) -> Options:
        """Check the keywords that every factory takes, and of the rarer ones those in `more`.

        Args:
            more: "out" or "memory_format", where the function has them.
        Raises:
            OperandError: an unknown keyword, or a value of the wrong type.
            DTypeError: the dtype is complex.
            DeviceError: the device is not the CPU.
            GradientError: `requires_grad` with a dtype that has no gradients.
        """
        since = now()
        if not given:
            return PLAIN._replace(since=since) if since else PLAIN
        dtype = given.get("dtype")
        if len(given) == 1 and type(dtype) is DType and dtype.kind != "c":
            return Options(dtype, False, None, None, since)
        for name in given:
            known = name in _EVERYWHERE or name in more
            if not known or (name == "layout" and function in _FROM_DATA):
                raise OperandError(f"{function}() got an unexpected keyword argument '{name}'")
        where = _place(function, given)
        dtype = dtype_argument(function, given.get("dtype"))
        wanted = given.get("requires_grad", False)
        if wanted is None and function != "tensor":  # as in PyTorch
            wanted = False
        needed = bool_argument(function, "requires_grad", wanted)
        out = given.get("out")
        if out is not None:
            need_tensor(function, "out", 0, out)
            _check_out(function, dtype, out)
        words = given.get("memory_format")
        if words is not None:
            need_format(function, words)
        return Options(dtype, needed, out, words, since, where)


PLAIN = Options(None, False, None, None)
_FROM_DATA = ("tensor", "new_tensor")
_EVERYWHERE = ("dtype", "layout", "device", "pin_memory", "requires_grad")


def dtype_argument(
    function: str, dtype: Any, position: int = 0, name: str = "dtype"
) -> DType | None:
    """The DType that a `dtype` argument means: one of ours, or Python's float, int or bool."""
    if dtype is None:
        return None
    if isinstance(dtype, DType) or dtype in (float, int, bool, complex):
        return dtypes.as_dtype(dtype)
    raise wrong_type(function, name, position, "torch.dtype", dtype)


def bool_argument(function: str, name: str, value: Any) -> bool:
    """`value`, if it is a bool."""
    if value is not True and value is not False:
        raise wrong_type(function, name, 0, "bool", value)
    return value


def _place(function: str, given: Mapping[str, Any]) -> device | None:
    """The device that is asked for, if one is."""
    asked = given.get("device")
    where = None if asked is None else as_device(asked)
    how = given.get("layout")
    if how is not None and how is not strided:
        if not isinstance(how, layout):
            raise wrong_type(function, "layout", 0, "torch.layout", how)
        raise UnsupportedError(f"{function}(): layout {how} is not supported; use torch.strided")
    if bool_argument(function, "pin_memory", given.get("pin_memory") or False):
        if driver.status() is None:
            raise UnsupportedError(
                f"{function}(): pin_memory=True is not supported; call pin_memory() on the result"
            )
        raise DeviceError(
            "pin_memory=True requires a CUDA or other accelerator backend; no pinned memory "
            "allocator is available on this system."
        )
    return where


def _check_out(function: str, dtype: DType | None, out: Tensor) -> None:
    if dtype is not None and dtype is not out.dtype:
        have, want = scalar_type_name(dtype), scalar_type_name(out.dtype)
        raise DTypeError(f"dtype {have} does not match dtype of out parameter ({want})")
    if out.requires_grad:
        raise GradientError(
            f"aten::{function}(): functions with out=... arguments don't support automatic "
            "differentiation, but one of the arguments requires grad."
        )
