"""Parts of an operand and their opposites: `slice`, `pad`, `flip`, `concat`.

`slice` and `pad` are transposes of each other, because padding may also go between the elements
(`interior`): the vjp of a slice with steps is one pad, the vjp of a pad is one slice.
All four move elements and compute nothing. Start reading at Note [Interior padding].
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import DimensionError, DTypeError, ParameterError, ShapeError
from tracegrad.ir.primitive import (
    NUMERIC,
    Primitive,
    Refusal,
    Sample,
    draw,
    exact_scalar,
    get,
    primitive,
    same_dtype,
    strided,
)
from tracegrad.ir.primitives.movement import movement, movement_samples
from tracegrad.ir.primitives.support import normal_axes, normal_axis
from tracegrad.ir.sizes import as_size
from tracegrad.ir.types import Shape, TensorType

Padding = tuple[tuple[int, int, int], ...]

# Note [Interior padding]: pad (a, b, c) with lo=1, hi=2, interior=1 gives (0, a, 0, b, 0, c, 0, 0).
# The slice with start 1, stop 6, step 2 takes (a, b, c) out again.

# ---- slice --------------------------------------------------------------------------------------


def _normalize_slice(types: Sequence[TensorType], params: Mapping[str, Any]) -> dict[str, Any]:
    step = params.get("step")
    given = {
        "start": params["start"],
        "stop": params["stop"],
        "step": (1,) * types[0].ndim if step is None else step,
    }
    return {name: tuple(map(as_size, row)) for name, row in given.items()}


def _slice_shape(x: TensorType, *, start: Shape, stop: Shape, step: Shape) -> Shape:
    if not len(start) == len(stop) == len(step) == x.ndim:
        raise ParameterError(
            f"slice: start, stop and step need one entry per axis; got {start}, {stop} and {step} "
            f"for shape {x.shape}"
        )
    for axis, (a, b, by, size) in enumerate(zip(start, stop, step, x.shape, strict=True)):
        if not (0 <= a <= b <= size and by >= 1):
            raise ParameterError(
                f"slice: axis {axis} of size {size} needs 0 <= start <= stop <= {size} and "
                f"step >= 1; got start {a}, stop {b}, step {by}"
            )
    return tuple(-(-(b - a) // by) for a, b, by in zip(start, stop, step, strict=True))


def _slice_cotangent(ct: Any, out: Any, x: Any, *, start: Shape, stop: Shape, step: Shape) -> Any:
    padding = []
    for a, by, taken, size in zip(start, step, ct.shape, x.shape, strict=True):
        covered = (taken - 1) * by + 1 if taken else 0
        padding.append((a, size - a - covered, by - 1))
    return pad(ct, padding=tuple(padding), value=0)


def _batch_slice(
    size: int, batched: tuple[bool, ...], x: Any, *, start: Shape, stop: Shape, step: Shape
) -> Any:
    return slice(x, start=(0, *start), stop=(size, *stop), step=(1, *step))


def _cut(start: Shape, stop: Shape, step: Shape) -> dict[str, Shape]:
    return {"start": start, "stop": stop, "step": step}


_MATRIX = (np.zeros((2, 3)),)


def _eager_slice(x: np.ndarray, *, start: Shape, stop: Shape, step: Shape) -> np.ndarray:
    return x[tuple(map(builtins.slice, start, stop, step))]


def _bound_slice(types: Sequence[TensorType], params: Mapping[str, Any]) -> Callable[..., Any]:
    index = tuple(map(builtins.slice, params["start"], params["stop"], params["step"]))
    return lambda x: x[index]


_eager_slice.bind = _bound_slice  # type: ignore[attr-defined]

slice: Primitive = movement(
    "slice", params=("start", "stop", "step"), shape=_slice_shape, normalize=_normalize_slice,
    doc="Elements start, start+step, ... below stop, per axis; 0 <= start <= stop <= size.",
    eager=_eager_slice,
    vjp=_slice_cotangent, batch=_batch_slice,
    samples=movement_samples(
        ((5, 6), _cut((1, 0), (4, 6), (1, 1))), ((7, 6), _cut((1, 1), (7, 5), (3, 2))),
        ((5, 6), _cut((2, 3), (2, 3), (1, 1))), ((2, 3, 4), _cut((0, 2, 1), (2, 3, 4), (2, 5, 2))),
        ((), _cut((), (), ())), ((0, 3), _cut((0, 0), (0, 3), (1, 2))),
        ((70, 150), _cut((3, 1), (67, 149), (2, 3))),
    ),
    refusals=(
        Refusal(_MATRIX, _cut((0, 2), (2, 4), (1, 1)), ParameterError, "axis 1 of size 3 needs"),
        Refusal(_MATRIX, _cut((0, 0), (2, 3), (1, 0)), ParameterError, "step >= 1"),
        Refusal(_MATRIX, _cut((0,), (2,), (1,)), ParameterError, "one entry per axis"),
    ),
    backward_name="SliceBackward0",
)  # fmt: skip

# ---- pad ----------------------------------------------------------------------------------------


def _as_value(value: Any, dtype: DType) -> bool | int | float:
    """The padding number as it will stand in memory."""
    try:
        return exact_scalar(value, dtype).item()
    except (ValueError, DTypeError):
        raise DTypeError(
            f"pad: value cannot be converted to type {dtypes.torch_name(dtype)} without overflow: {value}"
        ) from None


def _normalize_pad(types: Sequence[TensorType], params: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in an interior of 0 where a row has two entries; hold the value to the dtype."""
    rows = [tuple(map(as_size, row)) for row in params["padding"]]
    padding = tuple((*row, 0) if len(row) == 2 else row for row in rows)
    return {"padding": padding, "value": _as_value(params.get("value", 0), types[0].dtype)}


def _padded(size: int, lo: int, hi: int, interior: int) -> int:
    return lo + size + max(size - 1, 0) * interior + hi


def _pad_shape(x: TensorType, *, padding: Padding, value: Any) -> Shape:
    if len(padding) != x.ndim or any(len(row) != 3 for row in padding):
        raise ParameterError(
            f"pad: padding needs one (lo, hi, interior) per axis; got {padding} for shape {x.shape}"
        )
    if any(n < 0 for row in padding for n in row):
        raise ParameterError(f"pad: sizes must not be negative, got {padding}; slice to crop")
    return tuple(_padded(n, *row) for n, row in zip(x.shape, padding, strict=True))


def _own_places(shape: Shape, padding: Padding) -> dict[str, Shape]:
    """Parameters of the slice that takes an operand of `shape` out of its padded form."""
    rows = tuple(zip(shape, padding, strict=True))
    return {
        "start": tuple(lo for _, (lo, _, _) in rows),
        "stop": tuple(_padded(n, lo, 0, interior) for n, (lo, _, interior) in rows),
        "step": tuple(interior + 1 for _, (_, _, interior) in rows),
    }


def _eager_pad(x: np.ndarray, *, padding: Padding, value: bool | int | float) -> np.ndarray:
    shape = tuple(_padded(n, *row) for n, row in zip(x.shape, padding, strict=True))
    result = np.full(shape, value, x.dtype)
    places = _own_places(x.shape, padding)
    result[tuple(map(builtins.slice, places["start"], places["stop"], places["step"]))] = x
    return result


def _pad_params(*padding: tuple[int, int, int], value: float = 0) -> dict[str, Any]:
    return {"padding": padding, "value": value}


pad: Primitive = movement(
    "pad", params=("padding", "value"), shape=_pad_shape, normalize=_normalize_pad,
    doc="Put `value` around and between the elements: (lo, hi, interior) per axis, none negative.",
    eager=_eager_pad,
    vjp=lambda ct, out, x, *, padding, value: slice(ct, **_own_places(x.shape, padding)),
    jvp=(lambda dx, out, x, *, padding, value: pad(dx, padding=padding, value=0),),
    batch=lambda size, batched, x, *, padding, value: pad(
        x, padding=((0, 0, 0), *padding), value=value),
    samples=movement_samples(
        ((2, 3), _pad_params((1, 0, 0), (0, 2, 0))), ((2, 3), _pad_params((0, 1, 2), (3, 0, 1))),
        ((2, 3), _pad_params((1, 1, 0), (0, 0, 1), value=2)),
        ((1, 3), _pad_params((0, 0, 4), (0, 0, 0))),
        ((), _pad_params()), ((0, 3), _pad_params((1, 2, 3), (0, 1, 0), value=1)),
        ((70, 150), _pad_params((2, 3, 1), (1, 0, 0))),
    ),
    refusals=(
        Refusal(_MATRIX, _pad_params((0, 0, 0)), ParameterError, r"one \(lo, hi, interior\)"),
        Refusal(_MATRIX, _pad_params((0, -1, 0), (0, 0, 0)), ParameterError, "slice to crop"),
        Refusal((np.zeros((2,), np.uint8),), _pad_params((1, 1, 0), value=-1), DTypeError,
                "cannot be converted to type Byte without overflow: -1"),
    ),
    backward_name="ConstantPadNdBackward0",
)  # fmt: skip

# ---- flip ---------------------------------------------------------------------------------------

flip: Primitive = movement(
    "flip", params=("axes",), shape=lambda x, *, axes: x.shape,
    normalize=lambda types, p: {"axes": normal_axes(p["axes"], types[0].ndim)},
    doc="Elements in reverse order along `axes`.",
    eager=lambda x, *, axes: np.flip(x, axes),
    vjp=lambda ct, out, x, *, axes: flip(ct, axes=axes),
    batch=lambda size, batched, x, *, axes: flip(x, axes=tuple(a + 1 for a in axes)),
    samples=movement_samples(
        ((3, 4), {"axes": (1,)}), ((2, 3, 4), {"axes": (0, 2)}), ((3, 4), {"axes": ()}),
        ((), {"axes": ()}), ((0, 3), {"axes": (0, 1)}), ((70, 150), {"axes": (0,)}),
    ),
    refusals=(
        Refusal(_MATRIX, {"axes": (2,)}, DimensionError, "Dimension out of range"),
        Refusal(_MATRIX, {"axes": (0, -2)}, ShapeError, "dim 0 appears multiple times"),
    ),
    backward_name="FlipBackward0",
)  # fmt: skip

# ---- concat -------------------------------------------------------------------------------------


def _normalize_concat(types: Sequence[TensorType], params: Mapping[str, Any]) -> dict[str, Any]:
    if not types:
        raise ParameterError("cat(): expected a non-empty list of Tensors")
    return {"axis": normal_axis(params.get("axis", 0), types[0].ndim)}


def _concat_shape(*types: TensorType, axis: int) -> Shape:
    first = types[0].shape
    for i, t in enumerate(types):
        if t.ndim == 0:
            raise ShapeError(f"zero-dimensional tensor (at position {i}) cannot be concatenated")
        if t.ndim != len(first):
            raise ShapeError(
                f"Tensors must have same number of dimensions: got {len(first)} and {t.ndim}"
            )
        for d, (expected, got) in enumerate(zip(first, t.shape, strict=True)):
            if d != axis and expected != got:
                raise ShapeError(
                    f"Sizes of tensors must match except in dimension {axis}. Expected size "
                    f"{expected} but got size {got} for tensor number {i} in the list."
                )
    return (*first[:axis], sum(t.shape[axis] for t in types), *first[axis + 1 :])


def _offset(i: int, args: Sequence[Any], axis: int) -> int:
    return sum(a.shape[axis] for a in args[:i])


def _concat_cotangent(i: int, ct: Any, out: Any, *args: Any, axis: int) -> Any:
    start, stop = [0] * len(ct.shape), list(ct.shape)
    start[axis] = _offset(i, args, axis)
    stop[axis] = start[axis] + args[i].shape[axis]
    return slice(ct, start=tuple(start), stop=tuple(stop))


def _concat_tangent(i: int, dx: Any, out: Any, *args: Any, axis: int) -> Any:
    before = _offset(i, args, axis)
    after = _offset(len(args), args, axis) - before - dx.shape[axis]
    rows = ((before, after, 0) if d == axis else (0, 0, 0) for d in range(len(dx.shape)))
    return pad(dx, padding=tuple(rows), value=0)


def _batch_concat(size: int, batched: tuple[bool, ...], *args: Any, axis: int) -> Any:
    whole = [
        a if b else get("broadcast")(a, shape=(size, *a.shape))
        for a, b in zip(args, batched, strict=True)
    ]
    return concat(*whole, axis=axis + 1)


def _concat_samples(rng: np.random.Generator, dtype: DType) -> Iterator[Sample]:
    rows: tuple[tuple[str, int, tuple[Shape, ...]], ...] = (
        ("plain", 0, ((2, 3), (1, 3), (4, 3))), ("plain", 1, ((2, 3), (2, 1))),
        ("plain", 2, ((2, 3, 1), (2, 3, 4))), ("plain", 0, ((3,),)),
        ("strided", 1, ((3, 2), (3, 5))),
        ("empty", 0, ((0, 3), (2, 3), (0, 3))), ("empty", 1, ((0, 3), (0, 2))),
        ("large", 0, ((70, 150), (30, 150))), ("large", 1, ((70, 150), (70, 9))),
    )  # fmt: skip
    for kind, axis, shapes in rows:
        xs = tuple(draw(rng, dtype, s) for s in shapes)
        yield Sample(tuple(map(strided, xs)) if kind == "strided" else xs, {"axis": axis}, kind)


concat: Primitive = primitive(
    "concat", args=("xs",), variadic=True, params=("axis",), family="movement",
    doc="Operands one after another along `axis`; their other sizes agree, dtypes are promoted.",
    shape=_concat_shape, dtype=same_dtype(0), normalize=_normalize_concat, promotion=NUMERIC,
    eager=lambda *xs, axis: np.concatenate(xs, axis), vjp=_concat_cotangent, jvp=_concat_tangent,
    batch=_batch_concat, samples=_concat_samples, cost=0, source="definition",
    refusals=(
        Refusal((), {"axis": 0}, ParameterError, "expected a non-empty list"),
        Refusal((np.zeros(()), np.zeros(())), {"axis": 0}, ShapeError,
                r"zero-dimensional tensor \(at position 0\)"),
        Refusal((np.zeros((2, 3)), np.zeros((3,))), {"axis": 0}, ShapeError,
                "same number of dimensions: got 2 and 1"),
        Refusal((np.zeros((2, 3)), np.zeros((2, 4))), {"axis": 0}, ShapeError,
                "Expected size 3 but got size 4 for tensor number 1 in the list"),
        Refusal((np.zeros((2, 3)),), {"axis": 2}, DimensionError, "Dimension out of range"),
    ),
    backward_name="CatBackward0",
)  # fmt: skip
