"""Tensors of random numbers under PyTorch's names. Start reading at `rand`.

All take the keywords of other factories and `generator` (the global one by default). No function
here passes a gradient on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import ShapeError, UnsupportedError
from tracegrad.runtime.cuda.array import host
from tracegrad.tracer.arguments import (
    Options,
    int_argument,
    limits,
    missing,
    need_tensor,
    number_argument,
    size_argument,
    wrong_type,
)
from tracegrad.tracer.device import CPU, device
from tracegrad.tracer.factories import ABSENT, chosen, finish, new_leaf
from tracegrad.tracer.profiling import note_made, now, profilers
from tracegrad.tracer.random import Generator, draw
from tracegrad.tracer.state import state
from tracegrad.tracer.tape import scalar_type_name
from tracegrad.tracer.tensor import Tensor

FUNCTIONS: dict[str, Callable[..., Any]] = {}


def _public(function: Callable[..., Any]) -> Callable[..., Any]:
    FUNCTIONS[function.__name__] = function
    return function


def _floating(dtype: DType, kernel: str) -> DType:
    if not dtype.is_floating_point:
        raise UnsupportedError(f"\"{kernel}\" not implemented for '{scalar_type_name(dtype)}'")
    return dtype


def _finish(function: str, out: Tensor, options: Options) -> Tensor:
    if options.out is not None:
        return finish(function, out._array, options)
    if options.device is not None and options.device != out.device:
        out = out.to(options.device)
    return out.requires_grad_() if options.requires_grad else out


_DRAWS = {"rand": ("random_uniform", "check_uniform_bounds"),
          "randn": ("random_normal", "normal_kernel_cpu")}  # fmt: skip


def _drawn(
    function: str, shape: tuple[int, ...], dtype: DType, generator: Generator | None,
    where: device | None = None,
) -> Tensor:  # fmt: skip
    primitive, kernel = _DRAWS[function]
    return draw(primitive, generator, where=where, shape=shape, dtype=_floating(dtype, kernel))


@_public
def rand(
    *given: Any, size: Any = None, generator: Generator | None = None, **options: Any
) -> Tensor:
    """Uniform in [0, 1).

    Args:
        given: the sizes, as ints or one tuple; or `size=` as a tuple.
    Raises:
        OperandError: an argument of the wrong type.
        UnsupportedError: the dtype is not floating.

    Example:
        >>> import tracegrad as tg
        >>> tg.rand(2, 3).shape
        torch.Size([2, 3])
    """
    shape = size_argument("rand", given, size)
    read = Options.read("rand", options, "out")
    return _finish("rand", _drawn("rand", shape, chosen(read), generator, read.device), read)


@_public
def randn(
    *given: Any, size: Any = None, generator: Generator | None = None, **options: Any
) -> Tensor:
    """Standard normal. Arguments and errors are those of `rand`."""
    shape = size_argument("randn", given, size)
    read = Options.read("randn", options, "out")
    return _finish("randn", _drawn("randn", shape, chosen(read), generator, read.device), read)


@_public
def randint(
    low: Any = ABSENT, high: Any = ABSENT, size: Any = ABSENT, *,
    generator: Generator | None = None, **options: Any,
) -> Tensor:  # fmt: skip
    """Integers uniform in [low, high), int64 by default; `randint(high, size)` starts at 0.

    Raises:
        OperandError: an argument of the wrong type.
        ShapeError: the interval is empty, or beyond the dtype.

    Example:
        >>> import tracegrad as tg
        >>> tg.randint(3, 4, (2,))
        tensor([3, 3])
    """
    low, high, shape = _interval(low, high, size)
    read = Options.read("randint", options, "out")
    dtype = dtypes.int64 if read.dtype is None and read.out is None else chosen(read)
    out = _integers(low, high, shape, dtype, generator, read.device)
    return _finish("randint", out, read)


def _interval(low: Any, high: Any, size: Any) -> tuple[int, int, tuple[int, ...]]:
    """The arguments of `randint`, of which the first may be left out."""
    if size is ABSENT:
        if isinstance(high, tuple | list):
            low, high, size = 0, low, high
        elif high is ABSENT:
            raise missing("randint", "high" if low is ABSENT else "size")
        else:
            raise wrong_type("randint", "size", 2, "tuple of ints", high)
    elif high is ABSENT:  # randint(high, size=...), or with high= alone
        low, high = 0, low
    low = 0 if low is ABSENT else int_argument("randint", "low", 1, low)
    high = int_argument("randint", "high", 2 if low else 1, high)
    if not isinstance(size, tuple | list):
        raise wrong_type("randint", "size", 2, "tuple of ints", size)
    return low, high, size_argument("randint", (size,))


def _integers(
    low: int, high: int, shape: tuple[int, ...], dtype: DType, generator: Generator | None,
    where: device | None = None,
) -> Tensor:  # fmt: skip
    if low >= high:
        raise ShapeError(
            f"random_ expects 'from' to be less than 'to', but got from={low} >= to={high}"
        )
    if dtype.category < 2:
        least, most = (0, 1) if dtype.kind == "b" else limits(dtype, True)
        for name, bound in (("from", low), ("to - 1", high - 1)):
            if not least <= bound <= most:
                raise ShapeError(f"{name} is out of bounds for {_WORDS[dtype.name]}")
    out = draw(
        "random_randint", generator, where=where, low=low, high=high, shape=shape,
        dtype=dtypes.int64,
    )  # fmt: skip
    return out.to(dtype)


_WORDS = {"bool": "bool", "uint8": "unsigned char", "int8": "signed char", "int16": "short",
          "int32": "int", "int64": "long"}  # fmt: skip


@_public
def randperm(n: Any = ABSENT, *, generator: Generator | None = None, **options: Any) -> Tensor:
    """A random order of 0 .. n-1, int64 by default: the order of n uniform numbers.

    Raises:
        OperandError: `n` is no int.
        ShapeError: it is negative.
    """
    if n is ABSENT:
        raise missing("randperm", "n")
    count = int_argument("randperm", "n", 1, n)
    (count,) = size_argument("randperm", (count,))
    read = Options.read("randperm", options, "out")
    keys = draw("random_uniform", generator, where=CPU, shape=(count,), dtype=dtypes.float64)
    if state.recorder is not None:
        state.recorder.value_read(keys, "randperm")
    since = now()
    order = new_leaf(np.argsort(host(keys._array), kind="stable").astype(np.int64), False)
    if profilers:
        note_made("randperm", (order,), since, (keys,))
    dtype = dtypes.int64 if read.dtype is None and read.out is None else chosen(read)
    return _finish("randperm", order.to(dtype), read)


@_public
def bernoulli(input: Any, p: Any = None, *, generator: Generator | None = None) -> Tensor:
    """1 with probability `input` (or `p`), else 0; shape and dtype of `input`; no gradient.

    Raises:
        OperandError: `input` is no tensor.
        UnsupportedError: probabilities that are not floating.
        ShapeError: `p` is not in [0, 1].
    """
    need_tensor("bernoulli", "input", 1, input)
    if p is None:
        limit: Any = input.detach()
        dtype = _floating(input.dtype, "bernoulli_tensor_cpu_p_")
        if state.recorder is None and not bool(((limit >= 0) & (limit <= 1)).all()):
            raise ShapeError("Expected p_in >= 0 && p_in <= 1 to be true, but got false.")
    else:
        limit = number_argument("bernoulli", "p", 2, p)
        dtype = input.dtype if input.dtype.is_floating_point else dtypes.float32
        if not 0 <= limit <= 1:
            raise ShapeError(f"bernoulli_ expects p to be in [0, 1], but got p={limit:g}")
    chance = _drawn("rand", tuple(input.shape), dtype, generator, input.device)
    return (chance < limit).to(input.dtype)


@_public
def normal(
    mean: Any = 0.0, std: Any = 1.0, size: Any = None, *, generator: Generator | None = None,
    **options: Any,
) -> Tensor:  # fmt: skip
    """Normal with the given mean and standard deviation (numbers with `size`, or tensors).

    Raises:
        OperandError: two numbers without a size.
        ShapeError: a deviation that is negative; tensors that do not fit each other.
    """
    read = Options.read("normal", options, "out")
    tensors = [x for x in (mean, std) if isinstance(x, Tensor)]
    for position, (name, x) in enumerate((("mean", mean), ("std", std)), 1):
        if not isinstance(x, Tensor | int | float):
            raise wrong_type("normal", name, position, "Tensor or Number", x)
    if not isinstance(std, Tensor) and std < 0:
        raise ShapeError(f"normal expects std >= 0.0, but found std {std:g}")
    if not tensors:
        if size is None:
            raise missing("normal", "size")
        shape = size_argument("normal", (size,))
        noise = _drawn("randn", shape, chosen(read), generator, read.device)
        return _finish("normal", noise * std + mean, read)
    if isinstance(std, Tensor) and state.recorder is None and bool((std < 0).any()):
        raise ShapeError("normal expects all elements of std >= 0.0")
    mean, std = (x.detach() if isinstance(x, Tensor) else x for x in (mean, std))
    spread = std + mean if len(tensors) == 2 else tensors[0]  # refuses shapes that do not fit
    where = tensors[0].device
    noise = _drawn("randn", tuple(spread.shape), tensors[0].dtype, generator, where)
    return _finish("normal", noise * std + mean, read)


def _random_like(name: str) -> Callable[..., Tensor]:
    source = name[:-5]

    def function(
        input: Any = ABSENT, *, generator: Generator | None = None, **options: Any
    ) -> Tensor:
        dtype, shape, read = _as_input(name, input, options)
        return _finish(name, _drawn(source, shape, dtype, generator, read.device), read)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"""`{source}` of the shape and dtype of `input`.

    Raises:
        OperandError: `input` is no tensor.
        UnsupportedError: the dtype is not floating.
    """
    return function


def _as_input(
    function: str, input: Any, options: dict[str, Any]
) -> tuple[DType, tuple[int, ...], Options]:
    if input is ABSENT:
        raise missing(function, "input")
    need_tensor(function, "input", 1, input)
    read = Options.read(function, options, "memory_format").on(input)
    return input.dtype if read.dtype is None else read.dtype, tuple(input._array.shape), read


FUNCTIONS["rand_like"] = _random_like("rand_like")
FUNCTIONS["randn_like"] = _random_like("randn_like")


@_public
def randint_like(
    input: Any = ABSENT, low: Any = ABSENT, high: Any = ABSENT, *,
    generator: Generator | None = None, **options: Any,
) -> Tensor:  # fmt: skip
    """`randint` of the shape and dtype of `input`; `randint_like(input, high)` starts at 0.

    Raises:
        OperandError: `input` is no tensor, or a bound no int.
        ShapeError: the interval is empty.
    """
    dtype, shape, read = _as_input("randint_like", input, options)
    if high is ABSENT:
        low, high = 0, low
    if high is ABSENT:
        raise missing("randint_like", "high")
    low = 0 if low is ABSENT else int_argument("randint_like", "low", 2, low)
    high = int_argument("randint_like", "high", 3 if low else 2, high)
    return _finish("randint_like", _integers(low, high, shape, dtype, generator, read.device), read)


# ---- in place -----------------------------------------------------------------------------------


def uniform(x: Tensor, low: Any = 0.0, high: Any = 1.0, *, generator: Any = None) -> Tensor:
    """Values for `uniform_`: uniform in [low, high)."""
    dtype = _floating(x.dtype, "check_uniform_bounds")
    if low > high:
        raise ShapeError(
            f"uniform_ expects to return a [from, to) range, but found from={low:g} > to={high:g}"
        )
    return _drawn("rand", tuple(x.shape), dtype, generator, x.device) * (high - low) + low


def gaussian(x: Tensor, mean: Any = 0.0, std: Any = 1.0, *, generator: Any = None) -> Tensor:
    """Values for `normal_`."""
    dtype = _floating(x.dtype, "normal_kernel_cpu")
    if std < 0:
        raise ShapeError(f"normal expects std >= 0.0, but found std {std:g}")
    return _drawn("randn", tuple(x.shape), dtype, generator, x.device) * std + mean


def flips(x: Tensor, p: Any = 0.5, *, generator: Any = None) -> Tensor:
    """Values for `bernoulli_`: 1 with probability `p`, a number or a tensor of probabilities."""
    if isinstance(p, Tensor):
        return bernoulli(p.expand(x.shape), generator=generator).to(x.dtype)
    return bernoulli(x, p, generator=generator)


def integers(x: Tensor, low: Any = 0, high: Any = None, *, generator: Any = None) -> Tensor:
    """Values for `random_`: integers in [low, high), or all that the dtype can count without gaps."""
    if high is None:
        low, high = (0, _COUNTS.get(x.dtype.name, 2**53)) if low == 0 else (0, low)
    return _integers(int(low), int(high), tuple(x.shape), x.dtype, generator, x.device)


_COUNTS = {"bool": 2, "uint8": 2**8, "int8": 2**7, "int16": 2**15, "int32": 2**31, "int64": 2**62,
           "float16": 2**11 + 1, "bfloat16": 2**8 + 1, "float32": 2**24 + 1}  # fmt: skip


def waits(x: Tensor, lambd: Any = 1.0, *, generator: Any = None) -> Tensor:
    """Values for `exponential_`: density `lambd * exp(-lambd * x)`."""
    dtype = _floating(x.dtype, "exponential_kernel_cpu")
    if lambd <= 0:
        raise ShapeError(f"exponential_ expects lambda > 0.0, but found lambda={lambd:g}")
    return -(-_drawn("rand", tuple(x.shape), dtype, generator, x.device)).log1p() / lambd


FILLS: dict[str, Callable[..., Tensor]] = {
    "uniform_": uniform, "normal_": gaussian, "bernoulli_": flips, "random_": integers,
    "exponential_": waits,
}  # fmt: skip
