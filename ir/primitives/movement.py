"""Operations that move elements and compute nothing: index maps in generated code.

Here: `reshape`, `permute`, `broadcast` and the driver's `unbroadcast`. Parts of an operand and
their opposites (`slice`, `pad`, `flip`, `concat`) stand in `slicing.py`. Read `movement` first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import DimensionError, ShapeError
from tracegrad.ir.primitive import (
    LINEAR,
    NO_PROMOTION,
    Primitive,
    Refusal,
    Sample,
    draw,
    primitive,
    same_dtype,
    strided,
)
from tracegrad.ir.primitives.support import normal_axis
from tracegrad.ir.sizes import Size
from tracegrad.ir.types import Shape, TensorType, broadcast_shapes


def movement(name: str, *, vjp: Any, samples: Any, **record: Any) -> Primitive:
    """Declare a movement primitive of one operand: linear, dtype kept, cost nothing."""
    record.setdefault("jvp", (LINEAR,))
    return primitive(
        name, args=("x",), family="movement", dtype=same_dtype(0), promotion=NO_PROMOTION,
        vjp=(vjp,), samples=samples, cost=0, source="definition", **record,
    )  # fmt: skip


def movement_samples(*rows: tuple[Shape, Mapping[str, Any]]) -> Any:
    """Samples of one operand: shape and parameters per row, contiguous and strided."""

    def samples(rng: np.random.Generator, dtype: DType) -> Iterator[Sample]:
        for shape, params in rows:
            kind = "scalar" if shape == () else "empty" if 0 in shape else "plain"
            kind = "large" if prod(shape) > 1000 else kind
            x = draw(rng, dtype, shape)
            yield Sample((x,), params, kind)
            if kind == "plain":
                yield Sample((strided(x),), params, "strided")

    return samples


# ---- reshape ------------------------------------------------------------------------------------


def _reshape_shape(x: TensorType, *, shape: Shape) -> Shape:
    if prod(shape) != x.size:
        raise ShapeError(f"shape '{list(shape)}' is invalid for input of size {x.size}")
    return tuple(shape)


def _normalize_reshape(types: Sequence[TensorType], params: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the one size given as -1."""
    shape = tuple(n if isinstance(n, Size) else int(n) for n in params["shape"])
    if shape.count(-1) > 1:
        raise ShapeError("only one dimension can be inferred")
    for i, n in enumerate(shape):
        if n < -1:
            raise ShapeError(f"invalid shape dimension {n} at index {i} of shape {list(shape)}")
    if -1 in shape:
        known = prod(n for n in shape if n != -1)
        if known == 0 and types[0].size == 0:
            raise ShapeError(
                f"cannot reshape tensor of 0 elements into shape {list(shape)} because the "
                "unspecified dimension size -1 can be any value and is ambiguous"
            )
        if known == 0 or types[0].size % known:
            raise ShapeError(f"shape '{list(shape)}' is invalid for input of size {types[0].size}")
        shape = tuple(types[0].size // known if n == -1 else n for n in shape)
    return {"shape": shape}


def _batch_reshape(size: int, batched: tuple[bool, ...], x: Any, *, shape: Shape) -> Any:
    return reshape(x, shape=(size, *shape))


def _eager_reshape(x: np.ndarray, *, shape: Shape) -> np.ndarray:
    return x.reshape(shape)


def _bound_reshape(types: Sequence[TensorType], params: Mapping[str, Any]) -> Callable[..., Any]:
    shape = params["shape"]
    return lambda x: x.reshape(shape)


_eager_reshape.bind = _bound_reshape  # type: ignore[attr-defined]

reshape: Primitive = movement(
    "reshape", params=("shape",), shape=_reshape_shape, normalize=_normalize_reshape,
    doc="The same elements in row-major order under another shape; one size may be -1.",
    eager=_eager_reshape,
    vjp=lambda ct, out, x, *, shape: reshape(ct, shape=x.shape), batch=_batch_reshape,
    samples=movement_samples(
        ((3, 4), {"shape": (2, 6)}), ((), {"shape": (1, 1)}), ((0, 3), {"shape": (3, 0)}),
        ((2, 3, 4), {"shape": (6, 4)}), ((6, 4), {"shape": (2, 3, 4)}), ((3, 4), {"shape": (-1,)}),
        ((70, 150), {"shape": (150, 70)}),
    ),
    refusals=(Refusal((np.zeros((2, 3)),), {"shape": (4, 2)}, ShapeError,
                      r"shape '\[4, 2\]' is invalid for input of size 6"),
              Refusal((np.zeros((2, 3)),), {"shape": (-1, -1)}, ShapeError, "only one dimension"),
              Refusal((np.zeros((2, 3)),), {"shape": (-2, 3)}, ShapeError, "dimension -2"),
              Refusal((np.zeros((0, 3)),), {"shape": (-1, 0)}, ShapeError, "is ambiguous")),
    backward_name="ViewBackward0",
)  # fmt: skip

# ---- permute ------------------------------------------------------------------------------------


def _normalize_permute(types: Sequence[TensorType], params: Mapping[str, Any]) -> dict[str, Any]:
    ndim = types[0].ndim
    axes = tuple(params["axes"])
    if len(axes) != ndim:
        raise ShapeError(
            "permute(sparse_coo): number of dimensions in the tensor input does not match the "
            f"length of the desired ordering of dimensions i.e. input.dim() = {ndim} is not equal "
            f"to len(dims) = {len(axes)}"
        )
    return {"axes": tuple(normal_axis(a, ndim) for a in axes)}


def _permute_shape(x: TensorType, *, axes: tuple[int, ...]) -> Shape:
    if sorted(axes) != list(range(x.ndim)):
        raise ShapeError(f"permute(): duplicate dims are not allowed. Got {axes}")
    return tuple(x.shape[a] for a in axes)


def inverse(axes: tuple[int, ...]) -> tuple[int, ...]:
    """The permutation that undoes `axes`."""
    return tuple(sorted(range(len(axes)), key=axes.__getitem__))


permute: Primitive = movement(
    "permute", params=("axes",), shape=_permute_shape,
    doc="Axes in another order: axis i of the result is axis `axes[i]` of the operand.",
    normalize=_normalize_permute,
    eager=lambda x, *, axes: x.transpose(axes),
    vjp=lambda ct, out, x, *, axes: permute(ct, axes=inverse(axes)),
    batch=lambda size, batched, x, *, axes: permute(x, axes=(0, *(a + 1 for a in axes))),
    samples=movement_samples(
        ((3, 4), {"axes": (1, 0)}), ((2, 3, 4), {"axes": (2, 0, 1)}), ((0, 3), {"axes": (1, 0)}),
        ((), {"axes": ()}), ((2, 3, 4), {"axes": (0, -1, 1)}), ((70, 150), {"axes": (1, 0)}),
    ),
    refusals=(Refusal((np.zeros((2, 3)),), {"axes": (0, 0)}, ShapeError, "duplicate dims"),
              Refusal((np.zeros((2, 3)),), {"axes": (0,)}, ShapeError, "number of dimensions"),
              Refusal((np.zeros((2, 3)),), {"axes": (0, 2)}, DimensionError, "out of range")),
)  # fmt: skip

# ---- broadcast ----------------------------------------------------------------------------------


def _broadcast_shape(x: TensorType, *, shape: Shape) -> Shape:
    if len(shape) < x.ndim or broadcast_shapes(x.shape, shape) != tuple(shape):
        raise ShapeError(f"broadcast: {x.shape} does not broadcast to {tuple(shape)}")
    return tuple(shape)


def unbroadcast(ct: Any, shape: Shape) -> Any:
    """Sum `ct` over the axes along which a value of `shape` was broadcast."""
    if ct.shape == shape:
        return ct
    from tracegrad.ir.primitives.reduction import reduce_sum

    extra = len(ct.shape) - len(shape)
    ones = tuple(extra + i for i, n in enumerate(shape) if n == 1 and ct.shape[extra + i] != 1)
    summed = reduce_sum(ct, axes=tuple(range(extra)) + ones, keepdims=False)
    return summed if summed.shape == shape else reshape(summed, shape=shape)


def _batch_broadcast(size: int, batched: tuple[bool, ...], x: Any, *, shape: Shape) -> Any:
    ones = (1,) * (len(shape) - (len(x.shape) - 1))
    return broadcast(reshape(x, shape=(size, *ones, *x.shape[1:])), shape=(size, *shape))


broadcast: Primitive = movement(
    "broadcast", params=("shape",), shape=_broadcast_shape,
    doc="Repeat along new leading axes and axes of size 1 until the shape is `shape`.",
    eager=lambda x, *, shape: np.broadcast_to(x, shape),
    vjp=lambda ct, out, x, *, shape: unbroadcast(ct, x.shape), batch=_batch_broadcast,
    samples=movement_samples(
        ((3, 1), {"shape": (2, 3, 4)}), ((), {"shape": (3,)}), ((4,), {"shape": (3, 4)}),
        ((1, 3), {"shape": (0, 3)}), ((2, 1, 4), {"shape": (2, 3, 4)}), ((0, 1), {"shape": (0, 2)}),
        ((1, 1500), {"shape": (7, 1500)}),
    ),
    refusals=(Refusal((np.zeros((2, 3)),), {"shape": (2, 4)}, ShapeError, "size of tensor"),),
    backward_name="ExpandBackward0",
)  # fmt: skip
