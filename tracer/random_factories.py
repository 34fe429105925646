"""Tensors of random numbers under PyTorch's names. Start reading at `rand`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import DTypeError, ShapeError
from tracegrad.tracer.device import as_device
from tracegrad.tracer.factories import chosen_dtype, new_leaf
from tracegrad.tracer.random import Generator, draw
from tracegrad.tracer.shapes import sizes
from tracegrad.tracer.state import state
from tracegrad.tracer.tensor import Tensor

FUNCTIONS: dict[str, Callable[..., Any]] = {}


def _public(function: Callable[..., Any]) -> Callable[..., Any]:
    FUNCTIONS[function.__name__] = function
    return function


def _floating(function: str, dtype: Any) -> DType:
    chosen = chosen_dtype(dtype)
    if not chosen.is_floating_point:
        raise DTypeError(f'"{function}" not implemented for {chosen.name}; it makes floats')
    return chosen


def _finish(out: Tensor, requires_grad: bool) -> Tensor:
    return out.requires_grad_() if requires_grad else out


@_public
def rand(
    *size: Any, generator: Generator | None = None, dtype: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Uniform in [0, 1)."""
    as_device(device)
    chosen = _floating("rand", dtype)
    return _finish(
        draw("random_uniform", generator, shape=sizes(size), dtype=chosen), requires_grad
    )


@_public
def randn(
    *size: Any, generator: Generator | None = None, dtype: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Standard normal."""
    as_device(device)
    chosen = _floating("randn", dtype)
    return _finish(draw("random_normal", generator, shape=sizes(size), dtype=chosen), requires_grad)


@_public
def randint(
    low: int, high: Any = None, size: Any = None, *, generator: Generator | None = None,
    dtype: Any = None, device: Any = None, requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Integers uniform in [low, high), int64 by default; `randint(high, size)` starts at 0.

    Raises:
        ShapeError: the interval is empty.
    """
    if size is None:
        low, high, size = 0, low, high
    if low >= high:
        raise ShapeError(
            f"random_ expects 'from' to be less than 'to', but got from={low} >= to={high}"
        )
    as_device(device)
    chosen = dtypes.int64 if dtype is None else chosen_dtype(dtype)
    out = draw("random_randint", generator, low=int(low), high=int(high), shape=sizes((size,)),
               dtype=dtypes.int64)  # fmt: skip
    return _finish(out.to(chosen), requires_grad)


@_public
def randperm(
    n: int, *, generator: Generator | None = None, dtype: Any = None, device: Any = None
) -> Tensor:
    """A random order of 0 .. n-1: the order of n uniform numbers."""
    as_device(device)
    keys = draw("random_uniform", generator, shape=(n,), dtype=dtypes.float64)
    if state.recorder is not None:
        state.recorder.value_read(keys, "randperm")
    order = np.argsort(keys._array, kind="stable").astype(np.int64)
    return new_leaf(order, False).to(dtypes.int64 if dtype is None else chosen_dtype(dtype))


@_public
def bernoulli(input: Tensor, p: Any = None, *, generator: Generator | None = None) -> Tensor:
    """1 with probability `input` (or `p`), else 0; shape and dtype of `input`; no gradient."""
    chance = rand(tuple(input.shape), generator=generator, dtype=input.dtype)
    limit = input.detach() if p is None else p
    return (chance < limit).to(input.dtype)


@_public
def normal(
    mean: Any, std: Any = 1.0, size: Any = None, *, generator: Generator | None = None,
    dtype: Any = None,
) -> Tensor:  # fmt: skip
    """Normal with the given mean and standard deviation (numbers with `size`, or tensors)."""
    if size is None:
        like = mean if isinstance(mean, Tensor) else std
        size = np.broadcast_shapes(*(tuple(x.shape) for x in (mean, std) if isinstance(x, Tensor)))
        dtype = like.dtype if dtype is None else dtype
    return randn(sizes((size,)), generator=generator, dtype=dtype) * std + mean


def _random_like(name: str, source: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def function(input: Tensor, *args: Any, dtype: Any = None, **options: Any) -> Tensor:
        chosen = input.dtype if dtype is None else dtype
        shape = tuple(input.shape)
        if source is randint:
            bounds = args if len(args) == 2 else (0, *args)
            return source(*bounds, shape, dtype=chosen, **options)
        return source(shape, dtype=chosen, **options)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"`{name[:-5]}` of the shape and dtype of `input`."
    return function


for _name, _source in (("rand_like", rand), ("randn_like", randn), ("randint_like", randint)):
    FUNCTIONS[_name] = _random_like(_name, _source)
