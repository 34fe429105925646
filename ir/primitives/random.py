"""Random numbers as pure functions of a state: int64 (2,), the generator's seed and a counter.

The generator hands each operation its own counter, so no two draw the same bits, and an operation
run again on the same state gives the same numbers. Element i in row-major order takes its bits as
`tracegrad.ir.primitives.philox` says; generated code calls `codegen/templates/prelude_random.c`,
which agrees with it bit for bit. Start reading at `random_uniform`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import DTypeError, ParameterError, ShapeError
from tracegrad.ir.primitive import (
    NO_PROMOTION,
    NUMERIC,
    ZERO,
    Primitive,
    Refusal,
    Sample,
    draw,
    primitive,
    strided,
)
from tracegrad.ir.primitives import philox
from tracegrad.ir.sizes import as_size
from tracegrad.ir.types import Shape, TensorType

DIGITS = {dtypes.float16: 11, dtypes.bfloat16: 8, dtypes.float32: 24, dtypes.float64: 53}
"""Bits of a floating significand: the resolution of uniform numbers in [0, 1)."""

_SOURCE = "Salmon, Moraes, Dror and Shaw, SC 2011 (Philox4x32-10)"
_NO_BATCH = (
    "a state is one seed and one counter, and the bits of an element depend on its index in the "
    "whole result; draw the numbers of all examples outside, with one state"
)


def _seed_and_counter(state: np.ndarray) -> tuple[int, int]:
    return int(state[0]), int(state[1])


def _check_state(name: str, state: TensorType) -> None:
    if state.dtype is not dtypes.int64:
        raise DTypeError(f"{name}: state must be int64 (seed, counter), got {state.dtype.name}")
    if state.shape != (2,):
        raise ShapeError(f"{name}: state must have shape (2,), seed and counter; got {state.shape}")


def _normal_shape(types: Sequence[TensorType], params: Mapping[str, Any]) -> dict[str, Any]:
    return {**params, "shape": tuple(map(as_size, params["shape"]))}


def _shape_rule(name: str) -> Callable[..., Shape]:
    def rule(state: TensorType, *, shape: Shape, **params: Any) -> Shape:
        _check_state(name, state)
        if any(n < 0 for n in shape):
            raise ShapeError(f"{name}: sizes must not be negative, got {shape}")
        return tuple(shape)

    return rule


def _floating(name: str) -> Callable[..., DType]:
    def rule(state: TensorType, *, shape: Shape, dtype: DType) -> DType:
        if dtype not in DIGITS:
            known = ", ".join(d.name for d in DIGITS)
            raise DTypeError(f'"{name}" not implemented for {dtype.name}; it accepts {known}')
        return dtype

    return rule


def _samples(accepts: Callable[[DType], bool], **more: Any) -> Callable[..., Iterator[Sample]]:
    """States and shapes; numbers large enough to reach both halves of seed and counter."""

    def samples(rng: np.random.Generator, dtype: DType) -> Iterator[Sample]:
        if not accepts(dtype):
            return
        given = {**more, "dtype": dtype} if dtype is not dtypes.uint32 else more
        for kind, shape in (("plain", (3, 5)), ("scalar", ()), ("empty", (0, 3)),
                            ("strided", (7,)), ("large", (70, 150))):  # fmt: skip
            state = rng.integers(-(2**63), 2**63 - 1, 2)
            yield Sample((strided(state) if kind == "strided" else state,),
                         {"shape": shape, **given}, kind)  # fmt: skip

    return samples


_STATE = np.array([1, 2])
_STATE_REFUSALS: tuple[tuple[Any, type[Exception], str], ...] = (
    (
        np.array([1, 2, 3]),
        ShapeError,
        r"state must have shape \(2,\), seed and counter; got \(3,\)",
    ),
    (np.array([1.0, 2.0]), DTypeError, "state must be int64 .* got float64"),
)


def drawn(
    name: str, params: Mapping[str, Any], *, refused: tuple[Refusal, ...] = (), **record: Any
) -> Primitive:
    """Declare a primitive that draws a `shape` from a state; `params` are good ones, for tests."""
    refusals = tuple(Refusal((s,), params, e, match) for s, e, match in _STATE_REFUSALS)
    negative = Refusal((_STATE,), {**params, "shape": (2, -1)}, ShapeError,
                       r"sizes must not be negative, got \(2, -1\)")  # fmt: skip
    return primitive(
        name, args=("state",), params=tuple(params), family="random", shape=_shape_rule(name),
        normalize=record.pop("normalize", _normal_shape), promotion=NO_PROMOTION,
        vjp=(None,), jvp=(None,), batch=_NO_BATCH, cost=40,
        refusals=(*refusals, negative, *refused), **record,
    )  # fmt: skip


# ---- bits and floating numbers ------------------------------------------------------------------


def _eager_bits(state: np.ndarray, *, shape: Shape) -> np.ndarray:
    return philox.words32(*_seed_and_counter(state), prod(shape)).reshape(shape)


def _eager_uniform(state: np.ndarray, *, shape: Shape, dtype: DType) -> np.ndarray:
    numbers = philox.uniform(*_seed_and_counter(state), prod(shape), DIGITS[dtype])
    return numbers.reshape(shape).astype(dtype.numpy)


def _eager_normal(state: np.ndarray, *, shape: Shape, dtype: DType) -> np.ndarray:
    seed, counter = _seed_and_counter(state)
    if dtype is dtypes.float64:
        return philox.normal64(seed, counter, prod(shape)).reshape(shape)
    # The narrow types are rounded from float32, as generated code does.
    single = philox.normal32(seed, counter, prod(shape)).astype(np.float32)
    return single.reshape(shape).astype(dtype.numpy)


random_bits = drawn(
    "random_bits", {"shape": (3,)}, doc="32 random bits per element, as uint32.",
    dtype=lambda state, *, shape: dtypes.uint32, eager=_eager_bits,
    samples=_samples(lambda d: d is dtypes.uint32), source=_SOURCE,
)  # fmt: skip

_FLOAT_PARAMS = {"shape": (3,), "dtype": dtypes.float32}

random_uniform = drawn(
    "random_uniform", _FLOAT_PARAMS, dtype=_floating("random_uniform"), eager=_eager_uniform,
    doc="Uniform numbers in [0, 1): multiples of 2^-24 (float32), 2^-53, 2^-11, 2^-8.",
    samples=_samples(lambda d: d in DIGITS), source=_SOURCE,
    refused=(Refusal((_STATE,), {"shape": (3,), "dtype": dtypes.int64}, DTypeError,
                     '"random_uniform" not implemented for int64'),),
)  # fmt: skip

random_normal = drawn(
    "random_normal", _FLOAT_PARAMS, dtype=_floating("random_normal"), eager=_eager_normal,
    doc="Normal numbers of mean 0 and variance 1, computed in float64 and rounded once "
        "(float16 and bfloat16: from float32). Their magnitude is at most 6.8, in float64 8.6.",
    samples=_samples(lambda d: d in DIGITS),
    source="Box and Muller, Annals of Mathematical Statistics 29 (1958); " + _SOURCE,
    refused=(Refusal((_STATE,), {"shape": (3,), "dtype": dtypes.bool_}, DTypeError,
                     '"random_normal" not implemented for bool'),),
)  # fmt: skip

# ---- integers -----------------------------------------------------------------------------------


def _range_of(dtype: DType) -> tuple[int, int]:
    """The least and the largest integer such that `dtype` holds all between."""
    if dtype.kind == "f":
        return -(2 ** DIGITS[dtype]), 2 ** DIGITS[dtype]
    if dtype.kind == "b":
        return 0, 1
    bits = 8 * dtype.itemsize
    return (0, 2**bits - 1) if dtype.kind == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _normalize_randint(types: Sequence[TensorType], params: Mapping[str, Any]) -> dict[str, Any]:
    low, high = operator.index(params["low"]), operator.index(params["high"])
    if low >= high:
        raise ParameterError(
            f"random_ expects 'from' to be less than 'to', but got from={low} >= to={high}"
        )
    if high >= 2**63:
        raise ParameterError(f"random_ expects 'to' to be less than 2**63, but got to={high}")
    least, largest = _range_of(params["dtype"])
    for word, bound in (("from", low), ("to - 1", high - 1)):
        if not least <= bound <= largest:
            raise ParameterError(
                f"{word} is out of bounds for {params['dtype'].name}: {bound} is not in "
                f"[{least}, {largest}]"
            )
    return {**_normal_shape(types, params), "low": low, "high": high}


def _eager_randint(
    state: np.ndarray, *, shape: Shape, low: int, high: int, dtype: DType
) -> np.ndarray:
    seed, counter = _seed_and_counter(state)
    numbers = philox.integers(seed, counter, prod(shape), low, high)
    return numbers.reshape(shape).astype(dtype.numpy)


_INT_PARAMS = {"shape": (3,), "low": 0, "high": 9, "dtype": dtypes.int64}

random_randint = drawn(
    "random_randint", _INT_PARAMS, normalize=_normalize_randint,
    doc="Integers in [low, high), each with probability 1 / (high - low) to within 2^-64.",
    dtype=lambda state, *, shape, low, high, dtype: dtype, eager=_eager_randint,
    samples=_samples(lambda d: d.kind != "b" and d is not dtypes.uint32, low=2, high=101),
    source="Lemire, ACM TOMACS 29 (2019), without rejection; " + _SOURCE,
    refused=(
        Refusal((_STATE,), {**_INT_PARAMS, "high": 0}, ParameterError,
                "random_ expects 'from' to be less than 'to', but got from=0 >= to=0"),
        Refusal((_STATE,), {**_INT_PARAMS, "high": 257, "dtype": dtypes.uint8}, ParameterError,
                r"to - 1 is out of bounds for uint8: 256 is not in \[0, 255\]"),
        Refusal((_STATE,), {**_INT_PARAMS, "low": -1, "dtype": dtypes.uint8}, ParameterError,
                "from is out of bounds for uint8"),
        Refusal((_STATE,), {**_INT_PARAMS, "high": 2**63}, ParameterError,
                r"random_ expects 'to' to be less than 2\*\*63"),
    ),
)  # fmt: skip

# ---- bernoulli ----------------------------------------------------------------------------------


def _bernoulli_shape(p: TensorType, state: TensorType) -> Shape:
    _check_state("random_bernoulli", state)
    return p.shape


def _eager_bernoulli(p: np.ndarray, state: np.ndarray) -> np.ndarray:
    p = np.asarray(p)
    hit = philox.bernoulli(*_seed_and_counter(state), p).astype(p.dtype)
    is_probability = (p >= 0) & (p <= 1)
    return np.where(is_probability, hit, np.asarray(np.nan, p.dtype))


def _bernoulli_samples(rng: np.random.Generator, dtype: DType) -> Iterator[Sample]:
    if dtype not in DIGITS:
        return
    for kind, shape in (("plain", (3, 5)), ("scalar", ()), ("empty", (0, 3)), ("strided", (3, 4)),
                        ("large", (70, 150))):  # fmt: skip
        p = draw(rng, dtype, shape, 0.0, 1.0)
        state = rng.integers(-(2**63), 2**63 - 1, 2)
        yield Sample((strided(p) if kind == "strided" else p, state), {}, kind)


random_bernoulli = primitive(
    "random_bernoulli", args=("p", "state"), family="random", shape=_bernoulli_shape,
    doc="1 with probability `p` (rounded up to a multiple of 2^-32), else 0, in the dtype of `p`; "
        "NaN where `p` is outside [0, 1]. No gradient flows to `p`.",
    dtype=lambda p, state: p.dtype, eager=_eager_bernoulli, vjp=(ZERO, None), jvp=(ZERO, None),
    batch=_NO_BATCH, promote=("p",), promotion=NUMERIC, dtypes=dtypes.FLOATS, cost=40,
    samples=_bernoulli_samples, source=_SOURCE,
    refusals=tuple(Refusal((np.zeros(3), s), {}, e, match) for s, e, match in _STATE_REFUSALS) + (
        Refusal((np.zeros(3, np.int64), _STATE), {}, DTypeError,
                "\"random_bernoulli_cpu\" not implemented for 'Long'"),
    ),
)  # fmt: skip
