"""Functions that make tensors from sizes and numbers. Start reading at `finish`, then `full`.

All take PyTorch's keywords `dtype`, `layout`, `device`, `pin_memory` and `requires_grad`
(`tracegrad.tracer.arguments` reads and refuses them); those with a size also `out`.
Data become tensors in `tracegrad.tracer.from_data`, ranges are in `tracegrad.tracer.ranges`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import GradientError, ShapeError
from tracegrad.runtime.cuda.array import DeviceArray, host
from tracegrad.tracer.arguments import (
    Options,
    check_fits,
    missing,
    need_tensor,
    number_argument,
    size_argument,
    wrong_type,
)
from tracegrad.tracer.device import default, device
from tracegrad.tracer.layout import contiguous_format
from tracegrad.tracer.profiling import note_made, profilers
from tracegrad.tracer.state import state
from tracegrad.tracer.symbolic import is_symbolic, number_as_tensor
from tracegrad.tracer.tensor import Tensor, wrap

FUNCTIONS: dict[str, Callable[..., Any]] = {}
ABSENT: Any = object()
"""The default of arguments that must be given: their absence is refused in PyTorch's words."""


def public(function: Callable[..., Any]) -> Callable[..., Any]:
    """Enter a function into the table of public ones."""
    FUNCTIONS[function.__name__] = function
    return function


def new_leaf(array: Any, requires_grad: bool) -> Tensor:
    """A new leaf over `array`, told to the recorder.

    Raises:
        GradientError: it is to require grad, and is not floating.
    """
    out = wrap(array)
    if requires_grad and not out.dtype.is_floating_point:
        raise GradientError(
            "Only Tensors of floating point and complex dtype can require gradients"
        )
    if state.recorder is not None:
        state.recorder.constant(out)
    if requires_grad:
        out.requires_grad = True
    return out


def finish(function: str, array: np.ndarray, options: Options, *like: Tensor) -> Tensor:
    """The result of a factory: a new leaf, or what `out` now holds; `like` are its operands."""
    out = options.out
    if out is None:
        made = new_leaf(placed(array, options.device), options.requires_grad)
        if profilers:
            note_made(function, (made,), options.since, like)
        return made
    if state.recorder is not None:
        state.recorder.note(f"{function}(out=...)")
    with np.errstate(all="ignore"):
        array = placed(host(array).astype(out.dtype.numpy), out.device)
    if out._array.shape == array.shape:
        like = (out,)  # whose memory is not new
        out._array[...] = array
    else:  # as PyTorch resizes it
        out._array = array
        out._view = None
        if hasattr(out, "_address"):
            del out._address
    out._storage.bump(function)
    if profilers:
        note_made(function, (out,), options.since, like)
    return out.requires_grad_() if options.requires_grad else out


def placed(array: Any, where: device | None) -> Any:
    """The array on a device (None: the default one), copied there if it lies elsewhere."""
    index = (default.where if where is None else where).index
    if array.__class__ is DeviceArray:
        if index == array.index or (where is None and index is None):
            return array
        array = array.to_host()
    return array if index is None else DeviceArray.from_host(array, index)


def allocate(make: Callable[..., np.ndarray], shape: tuple[int, ...], *args: Any) -> np.ndarray:
    """`make(shape, *args)`; a size beyond any memory is a ShapeError."""
    try:
        return make(shape, *args)
    except ValueError:
        raise ShapeError(f"Storage size calculation overflowed with sizes={list(shape)}") from None


def chosen(options: Options) -> DType:
    """The dtype of a result: as given, that of `out`, or the default one."""
    if options.dtype is not None:
        return options.dtype
    return dtypes.get_default_dtype() if options.out is None else options.out.dtype


# ---- constant values ----------------------------------------------------------------------------


def filled(shape: tuple[int, ...], value: Any, dtype: DType) -> np.ndarray:
    """An array full of a number that `dtype` must hold."""
    zero = type(value) in (int, bool) and value == 0  # -0.0 is another number
    if zero:
        return allocate(np.zeros, shape, dtype.numpy)
    check_fits(value, dtype)
    return allocate(np.full, shape, one(value, dtype))


def one(value: Any, dtype: DType) -> np.ndarray:
    """A number, which fits, as an array of no dimension."""
    if dtype.kind == "f":
        return np.array(value, dtype.numpy)
    return np.array(bool(value) if dtype.kind == "b" else int(value)).astype(dtype.numpy)


@public
def full(size: Any = ABSENT, fill_value: Any = ABSENT, **options: Any) -> Tensor:
    """A tensor of `size` that holds `fill_value` everywhere; its type gives the dtype.

    Args:
        size: a tuple of ints.
        fill_value: a number or 0-d tensor: bool gives bool, int int64, float the default dtype.
        options: `out`, `dtype`, `layout`, `device`, `pin_memory`, `requires_grad`.
    Raises:
        OperandError: an argument of the wrong type.
        DTypeError: `dtype` cannot hold the number.

    Example:
        >>> import tracegrad as tg
        >>> tg.full((2,), 7)
        tensor([7, 7])
    """
    _check_full("full", size, fill_value)
    shape = size_argument("full", (size,))
    read = Options.read("full", options, "out")
    if (
        is_symbolic(fill_value)
        and read.out is None
        and (read.dtype or isinstance(fill_value, float))
    ):
        number = number_as_tensor(fill_value, chosen(read))
        if number is not None:
            made = number.expand(shape).clone()
            return made.requires_grad_() if read.requires_grad else made
    value = number_argument("full", "fill_value", 2, fill_value)
    if read.dtype is not None or read.out is not None:
        dtype = chosen(read)
        value = int(value) if read.out is not None and dtype.category == 1 else value
    else:
        dtype = dtypes.scalar_dtype(value)
    return finish("full", filled(shape, value, dtype), read)


def _check_full(function: str, size: Any, fill_value: Any) -> None:
    if size is ABSENT:
        raise missing(function, "size")
    if not isinstance(size, tuple | list):
        raise wrong_type(function, "size", 1, "tuple of ints", size)
    if fill_value is ABSENT:
        raise missing(function, "fill_value")


def _constant(name: str, value: int) -> Callable[..., Tensor]:
    def function(*given: Any, size: Any = None, **options: Any) -> Tensor:
        shape = size_argument(name, given, size)
        read = Options.read(name, options, "out")
        return finish(name, filled(shape, value, chosen(read)), read)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"""A tensor full of {value}s, in the default dtype.

    Args:
        given: the sizes, as ints or one tuple; or `size=` as a tuple.
        options: `out`, `dtype`, `layout`, `device`, `pin_memory`, `requires_grad`.
    Raises:
        OperandError: an argument of the wrong type.
        ShapeError: a negative size.

    Example:
        >>> import tracegrad as tg
        >>> tg.{name}(2, dtype=tg.int64)
        tensor([{value}, {value}])
    """
    return function


zeros = FUNCTIONS["zeros"] = _constant("zeros", 0)
ones = FUNCTIONS["ones"] = _constant("ones", 1)


@public
def empty(*given: Any, size: Any = None, **options: Any) -> Tensor:
    """A tensor of the given size whose values are whatever the memory held.

    Args and errors are those of `zeros`; `memory_format` may be given too.
    """
    shape = size_argument("empty", given, size)
    read = Options.read("empty", options, "out", "memory_format")
    return finish("empty", allocate(np.empty, shape, chosen(read).numpy), read)


@public
def empty_strided(size: Sequence[int], stride: Sequence[int], **options: Any) -> Tensor:
    """`empty` with the given steps (in elements) between neighbours, per dimension.

    Raises:
        ShapeError: `size` and `stride` are not of one length, or a stride is negative.

    Example:
        >>> import tracegrad as tg
        >>> tg.empty_strided((2, 3), (1, 2)).stride()
        (1, 2)
    """
    shape = size_argument("empty_strided", (tuple(size),))
    steps = size_argument("empty_strided", (tuple(stride),))
    if len(shape) != len(steps):
        raise ShapeError(
            f"dimensionality of sizes ({len(shape)}) must match dimensionality of strides "
            f"({len(steps)})"
        )
    read = Options.read("empty_strided", options)
    dtype = chosen(read).numpy
    span = 1 + sum((n - 1) * s for n, s in zip(shape, steps, strict=True))
    memory = allocate(np.empty, (max(span, 0) if 0 not in shape else 0,), dtype)
    strides = [s * dtype.itemsize for s in steps]
    return finish("empty_strided", np.ndarray(shape, dtype, memory, 0, strides), read)


# ---- like another tensor ------------------------------------------------------------------------


def like(function: str, input: Any, options: dict[str, Any]) -> tuple[np.ndarray, Options]:
    """Memory in the shape and (unless told otherwise) the dtype and layout of `input`."""
    if input is ABSENT:
        raise missing(function, "input")
    need_tensor(function, "input", 1, input)
    read = Options.read(function, options, "memory_format").on(input)
    dtype = input.dtype if read.dtype is None else read.dtype
    order: Any = "C" if read.format is contiguous_format else "K"
    return np.empty_like(input._array, dtype.numpy, order, subok=False), read


def _like(name: str, value: int | None) -> Callable[..., Tensor]:
    def function(input: Any = ABSENT, **options: Any) -> Tensor:
        array, read = like(name, input, options)
        if value is not None:
            array.fill(value)
        return finish(name, array, read, input)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"""`{name[:-5]}` in the shape, dtype and order of dimensions of `input`.

    Args:
        options: `dtype`, `layout`, `device`, `pin_memory`, `requires_grad`, `memory_format`.
    Raises:
        OperandError: `input` is no tensor, or a keyword of the wrong type.
    """
    return function


zeros_like = FUNCTIONS["zeros_like"] = _like("zeros_like", 0)
ones_like = FUNCTIONS["ones_like"] = _like("ones_like", 1)
empty_like = FUNCTIONS["empty_like"] = _like("empty_like", None)


@public
def full_like(input: Any = ABSENT, fill_value: Any = ABSENT, **options: Any) -> Tensor:
    """`fill_value` in the shape, dtype and order of dimensions of `input`.

    Raises:
        OperandError: `input` is no tensor, or `fill_value` no number.
        DTypeError: the dtype cannot hold the number.
    """
    array, read = like("full_like", input, options)
    if fill_value is ABSENT:
        raise missing("full_like", "fill_value")
    value = number_argument("full_like", "fill_value", 2, fill_value)
    dtype = input.dtype if read.dtype is None else read.dtype
    check_fits(value, dtype)
    array[...] = one(value, dtype)
    return finish("full_like", array, read, input)


@public
def scalar_tensor(s: Any, **options: Any) -> Tensor:
    """The number `s` as a 0-d tensor of the default dtype.

    Raises:
        OperandError: `s` is no number.
    """
    value = number_argument("scalar_tensor", "s", 1, s)
    read = Options.read("scalar_tensor", options)
    return finish("scalar_tensor", filled((), value, chosen(read)), read)


# ---- as methods ---------------------------------------------------------------------------------


def _new(name: str, value: int | None) -> Callable[..., Tensor]:
    def method(self: Tensor, *given: Any, size: Any = None, **options: Any) -> Tensor:
        shape = size_argument(name, given, size)
        read = Options.read(name, options).on(self)
        dtype = self.dtype if read.dtype is None else read.dtype
        array = allocate(np.empty, shape, dtype.numpy)
        if value is not None:
            array.fill(value)
        return finish(name, array, read, self)

    method.__name__ = method.__qualname__ = name
    method.__doc__ = f"`{name[4:]}` in the dtype of this tensor."
    return method


def new_full(self: Tensor, size: Any = ABSENT, fill_value: Any = ABSENT, **options: Any) -> Tensor:
    """`full` in the dtype of this tensor."""
    _check_full("new_full", size, fill_value)
    shape = size_argument("new_full", (size,))
    value = number_argument("new_full", "fill_value", 2, fill_value)
    read = Options.read("new_full", options).on(self)
    dtype = self.dtype if read.dtype is None else read.dtype
    return finish("new_full", filled(shape, value, dtype), read, self)


NEW_METHODS: dict[str, Callable[..., Tensor]] = {
    "new_zeros": _new("new_zeros", 0), "new_ones": _new("new_ones", 1),
    "new_empty": _new("new_empty", None), "new_full": new_full,
}  # fmt: skip
