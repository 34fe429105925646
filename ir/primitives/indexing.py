"""Indexing by integer arrays: `gather` reads, `scatter_add` and `scatter_set` write.

k integer arrays that broadcast to a shape B index the k axes `axes` (sorted, distinct) of x. An
indexed part has shape B + the remaining axes of x in order; the front end permutes it as NumPy's
rules want. Negative indices count from the end. Start reading at `gather`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import BoundsError, DimensionError, DTypeError, ShapeError, of_values
from tracegrad.ir.primitive import (
    NO_PROMOTION,
    Primitive,
    Refusal,
    Sample,
    draw,
    get,
    primitive,
    same_dtype,
    strided,
    type_of,
)
from tracegrad.ir.primitives.movement import broadcast, permute, reshape
from tracegrad.ir.primitives.support import filled_like, normal_axes, nullary_like
from tracegrad.ir.types import Shape, TensorType, broadcast_shapes

Axes = tuple[int, ...]


def _normalize(types: Sequence[TensorType], params: Mapping[str, Any]) -> dict[str, Any]:
    return {"axes": normal_axes(params["axes"], types[0].ndim)}


def _indexed_shape(x: TensorType, indices: Sequence[TensorType], axes: Axes) -> Shape:
    """B + the axes of `x` that are not indexed."""
    if len(indices) > x.ndim:
        raise DimensionError(f"too many indices for tensor of dimension {x.ndim}")
    if len(axes) != len(indices) or not indices:
        raise ShapeError(
            f"indexing needs one index array per axis; got {len(indices)} for axes {axes}"
        )
    for t in indices:
        if t.dtype.category != 1:
            raise DimensionError(
                "tensors used as indices must be long, int, byte or bool tensors; "
                f"got {dtypes.torch_name(t.dtype)} (a bool mask goes through nonzero() first)"
            )
    try:
        common = broadcast_shapes(*(t.shape for t in indices))
    except ShapeError:
        shapes = ", ".join(str(list(t.shape)) for t in indices)
        raise DimensionError(
            f"shape mismatch: indexing tensors could not be broadcast together with shapes {shapes}"
        ) from None
    return (*common, *_rest(x.shape, axes))


def _rest(shape: Shape, axes: Axes) -> Shape:
    return tuple(n for i, n in enumerate(shape) if i not in axes)


def _rows(shape: Shape, indices: Sequence[np.ndarray], axes: Axes) -> np.ndarray:
    """The index arrays as one array of row numbers into the indexed axes, flattened row-major.

    Raises:
        BoundsError: an index is out of bounds (PyTorch's text).
    """
    positions = []
    for axis, index in zip(axes, indices, strict=True):
        size = shape[axis]
        wide = np.asarray(index).astype(np.int64)
        outside = (wide < -size) | (wide >= size)
        if outside.any():
            raise of_values(BoundsError(
                f"index {wide[outside].flat[0]} is out of bounds for dimension {axis} "
                f"with size {size}"
            ))  # fmt: skip
        positions.append(np.where(wide < 0, wide + size, wide))
    number: Any = np.int64(0)
    for axis, position in zip(axes, positions, strict=True):
        number = number * shape[axis] + position
    return np.ravel(number)


def _by_rows(x: np.ndarray, axes: Axes) -> np.ndarray:
    """`x` as a matrix: the indexed axes are its rows, the others its columns."""
    rest = tuple(i for i in range(x.ndim) if i not in axes)
    rows = prod(x.shape[a] for a in axes)
    return x.transpose(axes + rest).reshape(rows, prod(x.shape[i] for i in rest))


def _from_rows(matrix: np.ndarray, shape: Shape, axes: Axes) -> np.ndarray:
    order = axes + tuple(i for i in range(len(shape)) if i not in axes)
    inverse = tuple(sorted(range(len(order)), key=order.__getitem__))
    return matrix.reshape(tuple(shape[i] for i in order)).transpose(inverse)


def _aligned(size: int, batched: Sequence[bool], indices: Sequence[Any]) -> list[Any]:
    """Index arrays whose batched members carry the new axis in front of the common shape B."""
    ndim = _common_ndim(batched, indices)
    return [
        reshape(a, shape=(size, *(1,) * (ndim + 1 - len(a.shape)), *a.shape[1:])) if b else a
        for a, b in zip(indices, batched, strict=True)
    ]


def _counter(x: Any, size: int, ndim: int) -> Any:
    """0 .. size-1 along the first of `ndim` axes, at the layer of `x`."""
    return nullary_like(x, "iota", shape=(size, *(1,) * (ndim - 1)), axis=0, dtype=dtypes.int64)


def _common_ndim(batched: Sequence[bool], indices: Sequence[Any]) -> int:
    return max(len(a.shape) - b for a, b in zip(indices, batched, strict=True))


def _index_array(rng: np.random.Generator, shape: Shape, size: int) -> np.ndarray:
    return rng.integers(-size, size, shape)


_CASES: tuple[tuple[str, Shape, tuple[Shape, ...], Axes], ...] = (
    ("plain", (5, 3), ((4,),), (0,)), ("plain", (5, 3), ((2, 4),), (1,)),
    ("plain", (4, 3, 5), ((2, 1), (3,)), (0, 2)), ("plain", (4, 3), ((6,), (6,)), (0, 1)),
    ("scalar", (5,), ((),), (0,)), ("empty", (5, 3), ((0,),), (0,)),
    ("empty", (0, 3), ((2,),), (1,)),
    ("strided", (5, 3), ((4,),), (0,)), ("large", (70, 150), ((200,),), (0,)),
    ("large", (70, 150), ((5000,), (5000,)), (0, 1)),
)  # fmt: skip

_X = np.zeros((3, 2))
_ONE = np.array([1])
_BOUNDS = "index {} is out of bounds for dimension 0 with size 3"
_BAD_INDICES: tuple[tuple[tuple[np.ndarray, ...], Axes, type[Exception], str], ...] = (
    ((np.array([5]),), (0,), BoundsError, _BOUNDS.format(5)),
    ((np.array([-4]),), (0,), BoundsError, _BOUNDS.format(-4)),
    ((np.array([1.0]),), (0,), DimensionError, "tensors used as indices must be long, int, byte"),
    ((np.array([0, 1]), np.array([0, 1, 2])), (0, 1), DimensionError, "could not be broadcast"),
    ((_ONE, _ONE, _ONE), (0, 1), DimensionError, "too many indices for tensor of dimension 2"),
    ((_ONE,), (0, 1), ShapeError, "one index array per axis"),
    ((_ONE,), (2,), DimensionError, "Dimension out of range"),
)  # fmt: skip

_LEADING = tuple(tuple(range(n)) for n in range(65))  # NumPy has at most 64 axes

# ---- gather -------------------------------------------------------------------------------------


def _eager_gather(x: np.ndarray, *indices: np.ndarray, axes: Axes) -> np.ndarray:
    if axes == _LEADING[len(axes)]:  # NumPy's own indexing puts the result's axes as we do
        try:
            return np.asarray(x[indices])
        except IndexError:
            pass  # `_rows` says which index it was, in PyTorch's words
    rest = tuple(i for i in range(x.ndim) if i not in axes)
    common = np.broadcast_shapes(*(np.shape(i) for i in indices))
    taken = _by_rows(x, axes)[_rows(x.shape, indices, axes)]
    return taken.reshape(common + tuple(x.shape[i] for i in rest))


def _gather_cotangent(i: int, ct: Any, out: Any, x: Any, *indices: Any, axes: Axes) -> Any:
    return None if i else scatter_add(filled_like(ct, 0, x.shape), ct, *indices, axes=axes)


def _gather_tangent(i: int, dx: Any, out: Any, x: Any, *indices: Any, axes: Axes) -> Any:
    return None if i else gather(dx, *indices, axes=axes)


def _batch_gather(size: int, batched: tuple[bool, ...], x: Any, *indices: Any, axes: Axes) -> Any:
    ndim = _common_ndim(batched[1:], indices)
    later = tuple(a + 1 for a in axes)
    if not any(batched[1:]):  # the new axis of x is the first of the remaining ones
        out = gather(x, *indices, axes=later)
        order = (ndim, *range(ndim), *range(ndim + 1, len(out.shape)))
        return permute(out, axes=order)
    aligned = _aligned(size, batched[1:], indices)
    if not batched[0]:
        return gather(x, *aligned, axes=axes)
    return gather(x, _counter(x, size, ndim + 1), *aligned, axes=(0, *later))


def _gather_samples(rng: np.random.Generator, dtype: DType) -> Iterator[Sample]:
    for kind, shape, index_shapes, axes in _CASES:
        x = draw(rng, dtype, shape)
        indices = [_index_array(rng, s, shape[a]) for s, a in zip(index_shapes, axes, strict=True)]
        if kind == "strided":
            x, indices = strided(x), [strided(i) for i in indices]
        yield Sample((x, *indices), {"axes": axes}, kind)


gather = primitive(
    "gather", args=("x", "indices"), variadic=True, params=("axes",), family="indexing",
    doc="x at positions given by integer arrays along `axes`: shape B + the remaining axes.",
    shape=lambda x, *indices, axes: _indexed_shape(x, indices, axes), dtype=same_dtype(0),
    normalize=_normalize, promotion=NO_PROMOTION, eager=_eager_gather,
    vjp=_gather_cotangent, jvp=_gather_tangent, batch=_batch_gather, samples=_gather_samples,
    refusals=tuple(Refusal((_X, *i), {"axes": a}, e, m) for i, a, e, m in _BAD_INDICES),
    backward_name="IndexBackward0", cost=2, source="NumPy's integer array indexing",
)  # fmt: skip

# ---- scatter ------------------------------------------------------------------------------------


def _scatter_shape(x: TensorType, updates: TensorType, *indices: TensorType, axes: Axes) -> Shape:
    expected = _indexed_shape(x, indices, axes)
    if updates.shape != expected:
        raise ShapeError(
            f"shape mismatch: value tensor of shape {list(updates.shape)} cannot be broadcast to "
            f"indexing result of shape {list(expected)}"
        )
    if updates.dtype is not x.dtype:
        raise DTypeError(
            "Index put requires the source and destination dtypes match, got "
            f"{dtypes.torch_name(x.dtype)} for the destination and {dtypes.torch_name(updates.dtype)} "
            "for the source."
        )
    return x.shape


def _eager_scatter(
    x: np.ndarray, updates: np.ndarray, indices: Sequence[np.ndarray], axes: Axes, joined: Any
) -> np.ndarray:
    """Write row after row in row-major order of the indices: deterministic."""
    matrix = np.array(_by_rows(x, axes), order="C")
    rows = _rows(x.shape, indices, axes)
    flat = np.ascontiguousarray(updates).reshape(len(rows), matrix.shape[1])
    if joined is not None:
        joined.at(matrix, rows, flat)
    else:
        matrix[rows] = flat
    return _from_rows(matrix, x.shape, axes)


def _batch_scatter(
    op: Primitive, size: int, batched: tuple[bool, ...], args: Sequence[Any], axes: Axes
) -> Any:
    x, updates = (
        a if b else broadcast(a, shape=(size, *a.shape))
        for a, b in zip(args[:2], batched[:2], strict=True)
    )
    counter = _counter(x, size, _common_ndim(batched[2:], args[2:]) + 1)
    aligned = _aligned(size, batched[2:], args[2:])
    return op(x, updates, counter, *aligned, axes=(0, *(a + 1 for a in axes)))


def _scatter_samples(rng: np.random.Generator, dtype: DType) -> Iterator[Sample]:
    for gathered in _gather_samples(rng, dtype):
        x, *indices = gathered.operands
        axes = gathered.params["axes"]
        common = np.broadcast_shapes(*(i.shape for i in indices))
        updates = draw(rng, dtype, (*common, *_rest(x.shape, axes)))
        yield Sample((x, strided(updates) if gathered.kind == "strided" else updates, *indices),
                     gathered.params, gathered.kind)  # fmt: skip


def _winners(updates: Any, indices: Sequence[Any], x: Any, axes: Axes) -> Any:
    """1 where an update is the last one written to its place, else 0; dtype of `updates`."""
    common = broadcast_shapes(*(i.shape for i in indices))
    count = nullary_like(updates, "iota", shape=(prod(common),), axis=0, dtype=dtypes.int64)
    order = reshape(count, shape=common)
    table = filled_like(order, 0, tuple(x.shape[a] for a in axes))
    every = tuple(range(len(axes)))
    last = gather(scatter_set(table, order, *indices, axes=every), *indices, axes=every)
    wins = get("cast")(get("equal")(last, order), dtype=type_of(updates).dtype)
    return reshape(wins, shape=(*common, *(1 for _ in updates.shape[len(common) :])))


def _add_cotangent(
    i: int, ct: Any, out: Any, x: Any, updates: Any, *indices: Any, axes: Axes
) -> Any:
    return ct if i == 0 else gather(ct, *indices, axes=axes) if i == 1 else None


def _add_tangent(i: int, dx: Any, out: Any, x: Any, updates: Any, *indices: Any, axes: Axes) -> Any:
    if i == 0:
        return dx
    return scatter_add(filled_like(dx, 0, x.shape), dx, *indices, axes=axes) if i == 1 else None


def _set_cotangent(
    i: int, ct: Any, out: Any, x: Any, updates: Any, *indices: Any, axes: Axes
) -> Any:
    if i == 0:
        return scatter_set(ct, filled_like(ct, 0, updates.shape), *indices, axes=axes)
    if i > 1:
        return None
    taken = gather(ct, *indices, axes=axes)
    return get("mul")(taken, _winners(taken, indices, x, axes))


def _set_tangent(i: int, dx: Any, out: Any, x: Any, updates: Any, *indices: Any, axes: Axes) -> Any:
    if i == 0:
        return scatter_set(dx, filled_like(dx, 0, updates.shape), *indices, axes=axes)
    return scatter_set(filled_like(dx, 0, x.shape), dx, *indices, axes=axes) if i == 1 else None


_SCATTER_REFUSALS = (
    *(Refusal((_X, np.zeros((1, 2)), *i), {"axes": a}, e, m) for i, a, e, m in _BAD_INDICES),
    Refusal((_X, np.zeros((2, 2)), _ONE), {"axes": (0,)}, ShapeError,
            r"shape \[2, 2\] cannot be broadcast to indexing result of shape \[1, 2\]"),
    Refusal((_X.astype(np.float32), np.zeros((1, 2)), _ONE), {"axes": (0,)}, DTypeError,
            "got Float for the destination and Double for the source"),
)  # fmt: skip


def _scatter(name: str, joined: Any, **record: Any) -> Primitive:
    """Declare a scatter; `joined` is the ufunc that joins an update with what is there, or None."""
    made: Primitive
    made = primitive(
        name, args=("x", "updates", "indices"), variadic=True, params=("axes",), family="indexing",
        shape=_scatter_shape, dtype=same_dtype(0), normalize=_normalize, promotion=NO_PROMOTION,
        eager=lambda x, updates, *indices, axes: _eager_scatter(x, updates, indices, axes, joined),
        batch=lambda size, batched, *args, axes: _batch_scatter(made, size, batched, args, axes),
        samples=_scatter_samples, refusals=_SCATTER_REFUSALS, backward_name="IndexPutBackward0",
        cost=2, source="NumPy's integer array indexing", **record,
    )  # fmt: skip
    return made


scatter_add = _scatter(
    "scatter_add", np.add, vjp=_add_cotangent, jvp=_add_tangent,
    doc="x with `updates` added at the indexed positions; repeats add up, in row-major order.",
)  # fmt: skip
scatter_set = _scatter(
    "scatter_set", None, vjp=_set_cotangent, jvp=_set_tangent,
    doc="x with `updates` put at the indexed positions; of repeats the last wins (row-major).",
)  # fmt: skip

# ---- scatter of extremes and products -----------------------------------------------------------


def _shares(out: Any, x: Any, updates: Any, indices: Sequence[Any], axes: Axes) -> tuple[Any, Any]:
    """Derivatives of an extreme by `x` and `updates`: equal ones share it."""
    cast, equal = get("cast"), get("equal")
    dtype = type_of(out).dtype
    kept = cast(equal(x, out), dtype=dtype)
    taken = cast(equal(updates, gather(out, *indices, axes=axes)), dtype=dtype)
    count = scatter_add(kept, taken, *indices, axes=axes)
    count = get("maximum")(count, filled_like(count, 1, count.shape))  # none of a NaN
    div = get("div")
    return div(kept, count), div(taken, gather(count, *indices, axes=axes))


def _others(out: Any, x: Any, updates: Any, indices: Sequence[Any], axes: Axes) -> tuple[Any, Any]:
    """Derivatives of a product by `x` and `updates`: the product of the other factors."""
    equal, where, div = get("equal"), get("where"), get("div")
    dtype = type_of(out).dtype
    none = equal(updates, 0)
    one_x, one = filled_like(x, 1, x.shape), filled_like(updates, 1, updates.shape)
    by_x = scatter_mul(one_x, updates, *indices, axes=axes)
    nothing = filled_like(out, 0, out.shape)
    zeros = scatter_add(nothing, get("cast")(none, dtype=dtype), *indices, axes=axes)
    rest = scatter_mul(x, where(none, one, updates), *indices, axes=axes)
    single = gather(where(equal(zeros, 1), rest, nothing), *indices, axes=axes)
    quotient = div(gather(out, *indices, axes=axes), where(none, one, updates))
    by_updates = where(none, single, quotient)
    return by_x, by_updates


def _joined_cotangent(parts: Any) -> Any:
    def rule(i: int, ct: Any, out: Any, x: Any, updates: Any, *indices: Any, axes: Axes) -> Any:
        if i > 1:
            return None
        by_x, by_updates = parts(out, x, updates, indices, axes)
        if i == 0:
            return get("mul")(ct, by_x)
        return get("mul")(gather(ct, *indices, axes=axes), by_updates)

    return rule


def _joined_tangent(parts: Any) -> Any:
    def rule(i: int, dx: Any, out: Any, x: Any, updates: Any, *indices: Any, axes: Axes) -> Any:
        if i > 1:
            return None
        by_x, by_updates = parts(out, x, updates, indices, axes)
        if i == 0:
            return get("mul")(dx, by_x)
        moved = get("mul")(dx, by_updates)
        return scatter_add(filled_like(out, 0, x.shape), moved, *indices, axes=axes)

    return rule


scatter_max = _scatter(
    "scatter_max", np.maximum, vjp=_joined_cotangent(_shares), jvp=_joined_tangent(_shares),
    doc="The largest of x and of the `updates` at the indexed positions; NaN wins.",
)  # fmt: skip
scatter_min = _scatter(
    "scatter_min", np.minimum, vjp=_joined_cotangent(_shares), jvp=_joined_tangent(_shares),
    doc="The smallest of x and of the `updates` at the indexed positions; NaN wins.",
)  # fmt: skip
scatter_mul = _scatter(
    "scatter_mul", np.multiply, vjp=_joined_cotangent(_others), jvp=_joined_tangent(_others),
    doc="x times the `updates` at the indexed positions, in row-major order.",
)  # fmt: skip
