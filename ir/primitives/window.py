"""Windowed reductions (pooling) over the spatial axes of (N, C, *S), and their transposes.

`window_max` and `window_argmax` ignore padding; `window_sum` counts it as zero. The derivative of
a maximum goes to the position `window_argmax` names: `window_scatter_add` puts it there, and its
transpose is `window_gather`. The transpose of `window_sum` is `window_spread`. So first and higher
derivatives of pooling stay inside this file. The NumPy kernels are in
`window_eager`. Start at `window_max`.

Ties go to the first element in row-major order; a NaN beats every number, and a later NaN an
earlier one (PyTorch's rule).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import DimensionError, DTypeError, ShapeError
from tracegrad.ir.primitive import (
    LINEAR,
    NO_PROMOTION,
    ZERO,
    Refusal,
    Sample,
    always,
    draw,
    primitive,
    same_dtype,
    strided,
)
from tracegrad.ir.primitives.movement import broadcast, reshape
from tracegrad.ir.primitives.window_eager import (
    eager_argmax,
    eager_gather,
    eager_max,
    eager_scatter_add,
    eager_spread,
    eager_sum,
)
from tracegrad.ir.types import Shape, TensorType
from tracegrad.ir.windows import Pairs, WindowAxis, pairs_of, tuple_of, window_axes

Ints = tuple[int, ...]

# ---- parameters and shapes ----------------------------------------------------------------------


def _normalize(types: Sequence[TensorType], params: Mapping[str, Any]) -> dict[str, Any]:
    """Tuples and pairs; the stride defaults to the window, padding to 0, dilation to 1."""
    rank = _spatial_rank(types[0])
    window = tuple_of(params["window"], rank)
    stride = params.get("stride")
    normal = dict(params)
    normal["window"] = window
    normal["stride"] = window if stride is None else tuple_of(stride, rank)
    normal["padding"] = pairs_of(params.get("padding", 0), rank)
    normal["dilation"] = tuple_of(params.get("dilation", 1), rank)
    return normal


def _spatial_rank(x: TensorType) -> int:
    if x.ndim < 3:
        raise ShapeError(
            f"pooling: operand must have shape (batch, channels, *spatial sizes), "
            f"got {list(x.shape)}; add a batch axis with unsqueeze(0)"
        )
    return x.ndim - 2


def check_window(rank: int, window: Ints, stride: Ints, padding: Pairs, dilation: Ints) -> None:
    """Refuse parameters that describe no window (PyTorch's texts where it has one).

    Raises:
        ShapeError: a wrong number of values, or a value out of its range.
    """
    for name, values in (
        ("kernel_size", window),
        ("stride", stride),
        ("padding", padding),
        ("dilation", dilation),
    ):
        if len(values) != rank:
            raise ShapeError(
                f"pool{rank}d: {name} must either be a single int, or a tuple of {rank} ints; "
                f"got {values}"
            )
    if min(window) <= 0:
        raise ShapeError(f"kernel size should be greater than zero, but got {list(window)}")
    if min(stride) <= 0:
        raise ShapeError(
            "stride should not be zero" if 0 in stride
            else f"stride should be greater than zero, but got {list(stride)}"
        )  # fmt: skip
    if min(dilation) <= 0:
        raise ShapeError(f"dilation should be greater than zero, but got {list(dilation)}")
    for (low, high), k, d in zip(padding, window, dilation, strict=True):
        if min(low, high) < 0:
            raise ShapeError(f"pad must be non-negative, but got pad: {min(low, high)}")
        if low > (d * (k - 1) + 1) // 2:
            raise ShapeError(
                f"pad should be at most half of effective kernel size, but got pad={low}, "
                f"kernel_size={k} and dilation={d}"
            )


def _axes(
    x: TensorType, sizes: Shape, window: Ints, stride: Ints, padding: Pairs, dilation: Ints
) -> tuple[WindowAxis, ...]:
    check_window(x.ndim - 2, window, stride, padding, dilation)
    axes = window_axes(sizes, window, stride, padding, dilation)
    if any(a.out < 1 for a in axes):
        given = "x".join(map(str, (x.shape[1], *sizes)))
        made = "x".join(map(str, (x.shape[1], *(max(a.out, 0) for a in axes))))
        raise ShapeError(
            f"Given input size: ({given}). Calculated output size: ({made}). "
            f"Output size is too small"
        )
    return axes


def window_shape(
    x: TensorType, *, window: Ints, stride: Ints, padding: Pairs, dilation: Ints
) -> Shape:
    """(N, C, number of windows along each axis)."""
    axes = _axes(x, x.shape[2:], window, stride, padding, dilation)
    return (*x.shape[:2], *(a.out for a in axes))


def _selecting_shape(x: TensorType, **params: Any) -> Shape:
    """`window_shape`, each window holding an element to select."""
    shape = window_shape(x, **params)
    axes = window_axes(x.shape[2:], *(params[p] for p in _PARAMS))
    for a in axes:
        if not a.every_window_meets_input():
            raise ShapeError(
                f"pooling: a window lies wholly in the padding and has no maximum: size {a.size}, "
                f"padding {(a.low, a.high)}, kernel_size={a.kernel}, stride={a.stride}"
            )
    return shape


def _spread_shape(ct: TensorType, *, input_size: Shape, **params: Any) -> Shape:
    axes = _axes(ct, input_size, **params)
    expected = (*ct.shape[:2], *(a.out for a in axes))
    if ct.shape != expected:
        raise ShapeError(
            f"window_spread: ct must have the shape of the sums, {list(expected)}, "
            f"got {list(ct.shape)}"
        )
    return (*ct.shape[:2], *input_size)


# ---- batch rules --------------------------------------------------------------------------------


def _batch_images(op: Callable[..., Any]) -> Callable[..., Any]:
    """The new axis joins the images: (b, n, c, *s) is handled as (b*n, c, *s)."""

    def rule(size: int, batched: tuple[bool, ...], *args: Any, **params: Any) -> Any:
        whole = [
            x if b else broadcast(x, shape=(size, *x.shape))
            for x, b in zip(args, batched, strict=True)
        ]
        images = whole[0].shape[1]
        out = op(*(reshape(x, shape=(size * images, *x.shape[2:])) for x in whole), **params)
        return reshape(out, shape=(size, images, *out.shape[1:]))

    return rule


# ---- samples ------------------------------------------------------------------------------------

_GEOMETRIES: tuple[tuple[Shape, dict[str, Any], str], ...] = (
    ((2, 3, 7), {"window": 3, "stride": 2}, "plain"),
    ((2, 3, 6, 8), {"window": 2}, "plain"),
    ((2, 3, 6, 8), {"window": 2}, "strided"),
    ((1, 2, 7, 6), {"window": (3, 2), "stride": (2, 1), "padding": 1}, "plain"),
    ((1, 2, 8, 9), {"window": 3, "stride": 1, "padding": ((1, 0), (0, 2)), "dilation": 2}, "plain"),
    ((1, 2, 5, 4, 4), {"window": (2, 3, 2), "stride": 2, "padding": 1}, "plain"),
    ((0, 2, 5, 5), {"window": 3}, "empty"),
    ((4, 8, 24, 24), {"window": 3, "stride": 2, "padding": 1}, "large"),
)


def _samples(pick: Callable[..., tuple[Shape, dict[str, Any]]]) -> Any:
    """Samples over the geometries; `pick` turns input and output shape into operand, params."""

    def samples(rng: np.random.Generator, dtype: DType) -> Iterator[Sample]:
        for shape, given, kind in _GEOMETRIES:
            x = TensorType(shape, dtype)
            params = _normalize((x,), given)
            operand, more = pick(shape, window_shape(x, **params))
            array = draw(rng, dtype, operand)
            array = strided(array) if kind == "strided" else array
            yield Sample((array,), {**params, **more}, kind)

    return samples


def _index_samples(gather: bool) -> Any:
    """Samples of the indexed pair: the indices are those of a maximum."""

    def samples(rng: np.random.Generator, dtype: DType) -> Iterator[Sample]:
        for shape, given, kind in _GEOMETRIES:
            params = _normalize((TensorType(shape, dtype),), given)
            index = eager_argmax(rng.random(shape), **params)
            operand = draw(rng, dtype, shape if gather else index.shape)
            operands = (operand, index)
            if kind == "strided":
                operands = (strided(operand), strided(index))
            yield Sample(operands, {} if gather else {"input_size": shape[2:]}, kind)

    return samples


# ---- the records --------------------------------------------------------------------------------


def _pool_name(name: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda params: name.format(len(params["window"]))


_PARAMS = ("window", "stride", "padding", "dilation")
_COMMON: dict[str, Any] = {
    "family": "window",
    "promotion": NO_PROMOTION,
    "dtypes": dtypes.INTEGERS + dtypes.FLOATS,
}
_X = np.zeros((1, 1, 5, 5))
_GIVEN: dict[str, Any] = {"window": 3, "stride": None, "padding": 0, "dilation": 1}


def _refused(x: np.ndarray, match: str, **params: Any) -> Refusal:
    return Refusal((x,), {**_GIVEN, **params}, ShapeError, match)


_REFUSALS = (
    _refused(_X, "pad should be at most half of effective kernel size, but got pad=2, "
             "kernel_size=3 and dilation=1", padding=2),
    _refused(_X, "pad must be non-negative, but got pad: -1", padding=-1),
    _refused(_X, "stride should not be zero", stride=0),
    _refused(_X, "dilation should be greater than zero", dilation=0),
    _refused(_X, "kernel size should be greater than zero", window=0),
    _refused(_X, "kernel_size must either be a single int, or a tuple of 2 ints", window=(3, 3, 3)),
    _refused(_X[:, :, :2, :2], r"Given input size: \(1x2x2\). Calculated output size: \(1x0x0\). "
             "Output size is too small"),
    _refused(_X[0, 0], "operand must have shape"),
)  # fmt: skip

window_max = primitive(
    "window_max", args=("x",), params=_PARAMS, shape=_selecting_shape, dtype=same_dtype(0),
    doc="Maximum of each window of x (N, C, *S); padding counts as -inf, NaN wins.",
    normalize=_normalize, eager=eager_max,
    vjp=(lambda ct, out, x, **p: window_scatter_add(
        ct, window_argmax(x, **p), input_size=tuple(x.shape[2:])),),
    jvp=(lambda dx, out, x, **p: window_gather(dx, window_argmax(x, **p)),),
    batch=_batch_images(lambda x, **p: window_max(x, **p)),
    samples=_samples(lambda x, out: (x, {})),
    refusals=(*_REFUSALS, _refused(_X, "a window lies wholly in the padding",
                                   padding=((0, 9), (0, 0)))),
    cost=9, backward_name=_pool_name("MaxPool{}DWithIndicesBackward0"), source="definition",
    **_COMMON,
)  # fmt: skip

window_argmax = primitive(
    "window_argmax", args=("x",), params=_PARAMS, shape=_selecting_shape,
    doc="Row-major index into the spatial axes of each window's maximum, int64.",
    dtype=always(dtypes.int64), normalize=_normalize, eager=eager_argmax, vjp=ZERO, jvp=ZERO,
    batch=_batch_images(lambda x, **p: window_argmax(x, **p)),
    samples=_samples(lambda x, out: (x, {})), refusals=_REFUSALS, cost=9, source="definition",
    **_COMMON,
)  # fmt: skip

window_sum = primitive(
    "window_sum", args=("x",), params=_PARAMS, shape=window_shape, dtype=same_dtype(0),
    doc="Sum of each window of x (N, C, *S), in float64; padding counts as zero.",
    normalize=_normalize, eager=eager_sum,
    vjp=(lambda ct, out, x, **p: window_spread(ct, input_size=tuple(x.shape[2:]), **p),),
    jvp=(LINEAR,), batch=_batch_images(lambda x, **p: window_sum(x, **p)),
    samples=_samples(lambda x, out: (x, {})), refusals=_REFUSALS, cost=9,
    backward_name=_pool_name("AvgPool{}DBackward0"), source="definition", **_COMMON,
)  # fmt: skip

window_spread = primitive(
    "window_spread", args=("ct",), params=("input_size", *_PARAMS), shape=_spread_shape,
    doc="Transpose of `window_sum`: each input receives the sum of `ct` over its windows.",
    dtype=same_dtype(0), normalize=_normalize, eager=eager_spread,
    vjp=(lambda g, out, ct, *, input_size, **p: window_sum(g, **p),), jvp=(LINEAR,),
    batch=_batch_images(lambda ct, **p: window_spread(ct, **p)),
    samples=_samples(lambda x, out: (out, {"input_size": x[2:]})),
    refusals=(_refused(np.zeros((1, 1, 2, 2)), input_size=(5, 5),
                       match=r"ct must have the shape of the sums, \[1, 1, 1, 1\]"),),
    cost=9, backward_name=_pool_name("AvgPool{}DBackwardBackward0"), source="definition", **_COMMON,
)  # fmt: skip


def _check_images(name: str, x: TensorType, index: TensorType) -> None:
    if index.dtype is not dtypes.int64:
        raise DTypeError(f"{name}: index must be int64, got {index.dtype.name}")
    if _spatial_rank(x) and x.shape[:2] != index.shape[:2]:
        raise ShapeError(
            f"{name}: operand and index must agree in batch and channels, "
            f"got {list(x.shape)} and {list(index.shape)}"
        )


def _gather_shape(x: TensorType, index: TensorType) -> Shape:
    _check_images("window_gather", x, index)
    return index.shape


def _scatter_shape(ct: TensorType, index: TensorType, *, input_size: Shape) -> Shape:
    _check_images("window_scatter_add", ct, index)
    if ct.shape != index.shape:
        raise ShapeError(
            f"window_scatter_add: ct and index must have one shape, "
            f"got {list(ct.shape)} and {list(index.shape)}"
        )
    return (*ct.shape[:2], *input_size)


_INDEX = np.zeros((1, 1, 2, 2), np.int64)

window_gather = primitive(
    "window_gather", args=("x", "index"), shape=_gather_shape, dtype=same_dtype(0),
    doc="Elements of x (N, C, *S) at row-major spatial positions `index` (N, C, *P), int64.",
    eager=eager_gather, promote=("x",),
    vjp=(lambda ct, out, x, index: window_scatter_add(
        ct, index, input_size=tuple(x.shape[2:])), None),
    jvp=(LINEAR, None), batch=_batch_images(lambda x, index: window_gather(x, index)),
    samples=_index_samples(gather=True),
    refusals=(
        Refusal((_X, _INDEX.astype(np.int32)), {}, DTypeError, "index must be int64, got int32"),
        Refusal((np.zeros((1, 2, 5, 5)), _INDEX), {}, ShapeError, "must agree in batch"),
        Refusal((_X, _INDEX + 25), {}, DimensionError, "index 25 is out of range for 25 spatial"),
    ),
    source="definition", **_COMMON,
)  # fmt: skip

window_scatter_add = primitive(
    "window_scatter_add", args=("ct", "index"), params=("input_size",), shape=_scatter_shape,
    doc="Transpose of `window_gather`: sums of `ct` (N, C, *P) at spatial positions `index`.",
    dtype=same_dtype(0), eager=eager_scatter_add, promote=("ct",),
    vjp=(lambda g, out, ct, index, *, input_size: window_gather(g, index), None),
    jvp=(LINEAR, None),
    batch=_batch_images(lambda ct, index, **p: window_scatter_add(ct, index, **p)),
    samples=_index_samples(gather=False),
    refusals=(
        Refusal((np.zeros((1, 1, 2, 3)), _INDEX), {"input_size": (5, 5)}, ShapeError,
                "ct and index must have one shape"),
        Refusal((np.zeros((1, 1, 2, 2)), _INDEX - 1), {"input_size": (5, 5)}, DimensionError,
                "index -1 is out of range for 25 spatial"),
    ),
    source="definition", **_COMMON,
)  # fmt: skip
