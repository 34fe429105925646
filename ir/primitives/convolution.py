"""Convolution of 1 to 3 spatial axes and its two transposes.

With P the output positions and K the kernel taps, all three are one trilinear form,
`sum of ct[n, o, p] * w[o, c, k] * x[n, c, p*stride + k*dilation - low]`, differentiated in one of
its three operands; so the derivative of each is made of the other two. Start at `conv`.

The NumPy kernels are in `convolution_eager`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import DTypeError, ShapeError
from tracegrad.ir.primitive import (
    LINEAR,
    NO_PROMOTION,
    Refusal,
    Sample,
    draw,
    primitive,
    strided,
)
from tracegrad.ir.primitives.contraction import c10_name
from tracegrad.ir.primitives.convolution_eager import (
    eager_conv,
    eager_input_grad,
    eager_weight_grad,
)
from tracegrad.ir.primitives.movement import broadcast, permute, reshape
from tracegrad.ir.types import Shape, TensorType
from tracegrad.ir.windows import Pairs, WindowAxis, pairs_of, tuple_of, window_axes

Ints = tuple[int, ...]

# ---- parameters and shapes ----------------------------------------------------------------------


def check_geometry(rank: int, stride: Ints, padding: Pairs, dilation: Ints, groups: int) -> None:
    """Refuse parameters that describe no convolution (PyTorch's texts).

    Raises:
        ShapeError: a wrong number of values, or a value out of its range.
    """
    for name, values in (("stride", stride), ("padding", padding), ("dilation", dilation)):
        if len(values) != rank:
            shown = [v[0] if isinstance(v, tuple) else v for v in values]
            raise ShapeError(
                f"expected {name} to be a single integer value or a list of {rank} values to "
                f"match the convolution dimensions, but got {name}={shown}"
            )
    if min(stride) <= 0:
        raise ShapeError("non-positive stride is not supported")
    if min(min(p) for p in padding) < 0:
        raise ShapeError("negative padding is not supported")
    if min(dilation) <= 0:
        raise ShapeError(f"dilation should be greater than zero, but got {list(dilation)}")
    if groups <= 0:
        raise ShapeError("non-positive groups is not supported")


def _normalize(types: Sequence[TensorType], params: Mapping[str, Any]) -> dict[str, Any]:
    """Tuples for `stride` and `dilation`, pairs for `padding`; what is left out is 1, 0, 1, 1."""
    rank = types[0].ndim - 2
    if not 1 <= rank <= 3:
        raise ShapeError(
            f"conv: operands must have shape (batch, channels, 1 to 3 spatial sizes), "
            f"got {list(types[0].shape)}; add a batch axis with unsqueeze(0)"
        )
    normal = dict(params)
    normal["stride"] = tuple_of(params.get("stride", 1), rank)
    normal["padding"] = pairs_of(params.get("padding", 0), rank)
    normal["dilation"] = tuple_of(params.get("dilation", 1), rank)
    normal["groups"] = int(params.get("groups", 1))
    return normal


def conv_axes(
    sizes: Shape, kernel: Shape, stride: Ints, padding: Pairs, dilation: Ints
) -> tuple[WindowAxis, ...]:
    """The spatial geometry.

    Raises:
        ShapeError: the kernel is larger than the padded input (PyTorch's text).
    """
    axes = window_axes(sizes, kernel, stride, padding, dilation)
    if any(a.out < 1 for a in axes):
        padded = " x ".join(str(a.size + a.low + a.high) for a in axes)
        extent = " x ".join(str(a.extent) for a in axes)
        raise ShapeError(
            f"Calculated padded input size per channel: ({padded}). Kernel size: ({extent}). "
            f"Kernel size can't be greater than actual input size"
        )
    return axes


def conv_shape(
    x: TensorType, w: TensorType, *, stride: Ints, padding: Pairs, dilation: Ints, groups: int
) -> Shape:
    """(batch, output channels, output sizes)."""
    rank = x.ndim - 2
    check_geometry(rank, stride, padding, dilation, groups)
    if w.ndim != x.ndim:
        raise ShapeError(
            f"Expected {w.ndim}-dimensional input for {w.ndim}-dimensional weight "
            f"{list(w.shape)}, but got {x.ndim}-dimensional input of size {list(x.shape)} instead"
        )
    if w.shape[0] < groups:
        raise ShapeError(
            f"Given groups={groups}, expected weight to be at least {groups} at dimension 0, "
            f"but got weight of size {list(w.shape)} instead"
        )
    if w.shape[0] % groups:
        raise ShapeError(
            f"Given groups={groups}, expected weight to be divisible by {groups} at dimension 0, "
            f"but got weight of size [{list(w.shape)}] instead"
        )
    if x.shape[1] != w.shape[1] * groups:
        raise ShapeError(
            f"Given groups={groups}, weight of size {list(w.shape)}, expected input"
            f"{list(x.shape)} to have {w.shape[1] * groups} channels, but got {x.shape[1]} "
            f"channels instead"
        )
    axes = conv_axes(x.shape[2:], w.shape[2:], stride, padding, dilation)
    return (x.shape[0], w.shape[0], *(a.out for a in axes))


def _conv_dtype(x: TensorType, w: TensorType, **params: Any) -> DType:
    if x.dtype is not w.dtype:
        raise DTypeError(
            f"Input type ({c10_name(x.dtype)}) and weight type ({c10_name(w.dtype)}) "
            f"should be the same"
        )
    return x.dtype


def _input_grad_shape(
    ct: TensorType, w: TensorType, *, input_size: Shape, groups: int, **params: Any
) -> Shape:
    shape = (ct.shape[0], w.shape[1] * groups, *input_size)
    _check_cotangent(ct, conv_shape(TensorType(shape, ct.dtype), w, groups=groups, **params))
    return shape


def _weight_grad_shape(
    x: TensorType, ct: TensorType, *, kernel_size: Shape, groups: int, **params: Any
) -> Shape:
    check_geometry(x.ndim - 2, params["stride"], params["padding"], params["dilation"], groups)
    if x.shape[1] % groups:
        raise ShapeError(
            f"conv_weight_grad: {x.shape[1]} channels do not divide into {groups} groups"
        )
    shape = (ct.shape[1], x.shape[1] // groups, *kernel_size)
    _check_cotangent(ct, conv_shape(x, TensorType(shape, x.dtype), groups=groups, **params))
    return shape


def _check_cotangent(ct: TensorType, expected: Shape) -> None:
    if ct.shape != expected:
        raise ShapeError(
            f"convolution transpose: ct must have the shape of the convolution's result, "
            f"{list(expected)}, got {list(ct.shape)}"
        )


# ---- batch rules --------------------------------------------------------------------------------


def _with_axis(x: Any, size: int, batched: bool) -> Any:
    return x if batched else broadcast(x, shape=(size, *x.shape))


def _images_first(x: Any) -> Any:
    """(b, n, c, *s) -> (b*n, c, *s): the new axis joins the images."""
    return reshape(x, shape=(x.shape[0] * x.shape[1], *x.shape[2:]))


def _into_channels(x: Any) -> Any:
    """(b, n, c, *s) -> (n, b*c, *s): the new axis joins the channels, outermost."""
    moved = permute(x, axes=(1, 0, *range(2, len(x.shape))))
    return reshape(moved, shape=(x.shape[1], x.shape[0] * x.shape[2], *x.shape[3:]))


def _from_channels(x: Any, size: int) -> Any:
    """(n, b*c, *s) -> (b, n, c, *s)."""
    split = reshape(x, shape=(x.shape[0], size, x.shape[1] // size, *x.shape[2:]))
    return permute(split, axes=(1, 0, *range(2, len(split.shape))))


def _batch_over_weight(op: Callable[..., Any]) -> Callable[..., Any]:
    """Batch rule of `op(images, w)`: shared weights see more images, else there are more groups."""

    def rule(size: int, batched: tuple[bool, ...], images: Any, w: Any, **params: Any) -> Any:
        if not batched[1]:
            out = op(_images_first(images), w, **params)
            return reshape(out, shape=(size, out.shape[0] // size, *out.shape[1:]))
        images = _into_channels(_with_axis(images, size, batched[0]))
        params["groups"] *= size
        return _from_channels(op(images, _images_first(w), **params), size)

    return rule


def _batch_weight_grad(size: int, batched: tuple[bool, ...], x: Any, ct: Any, **params: Any) -> Any:
    x = _into_channels(_with_axis(x, size, batched[0]))
    ct = _into_channels(_with_axis(ct, size, batched[1]))
    params["groups"] *= size
    out = conv_weight_grad(x, ct, **params)
    return reshape(out, shape=(size, out.shape[0] // size, *out.shape[1:]))


# ---- samples ------------------------------------------------------------------------------------

_GEOMETRIES: tuple[tuple[Shape, Shape, dict[str, Any]], ...] = (
    ((2, 3, 7), (4, 3, 3), {}),
    ((2, 2, 9), (4, 1, 3), {"stride": 2, "padding": 2, "dilation": 2, "groups": 2}),
    ((2, 3, 5, 6), (4, 3, 3, 3), {"padding": 1}),
    (
        (2, 2, 6, 5),
        (3, 2, 3, 2),
        {"stride": (2, 1), "padding": ((1, 0), (0, 2)), "dilation": (1, 2)},
    ),
    ((1, 4, 5, 5), (6, 2, 1, 1), {"groups": 2}),
    ((1, 4, 5, 5), (4, 1, 3, 3), {"groups": 4, "stride": 2, "padding": 1}),
    ((1, 2, 4, 5, 4), (3, 2, 2, 3, 2), {"stride": 2, "padding": 1}),
)
_EMPTY: tuple[Shape, Shape, dict[str, Any]] = ((0, 3, 5, 5), (2, 3, 3, 3), {})
_NO_CHANNELS: tuple[Shape, Shape, dict[str, Any]] = ((2, 0, 4, 5), (4, 0, 3, 3), {"groups": 2})
_LARGE: tuple[Shape, Shape, dict[str, Any]] = ((4, 8, 20, 20), (16, 8, 3, 3), {"padding": 1})
_KINDS = [(g, "plain") for g in _GEOMETRIES] + [
    (_GEOMETRIES[2], "strided"), (_EMPTY, "empty"), (_NO_CHANNELS, "empty"), (_LARGE, "large"),
]  # fmt: skip


def _sampled(pick: Callable[..., tuple[Shape, Shape, dict[str, Any]]]) -> Any:
    """Samples over the geometries; `pick` turns (x, w, out shapes, params) into a case."""

    def samples(rng: np.random.Generator, dtype: DType) -> Iterator[Sample]:
        for (xs, ws, given), kind in _KINDS:
            x, w = TensorType(xs, dtype), TensorType(ws, dtype)
            params = _normalize((x, w), given)
            first, second, more = pick(xs, ws, conv_shape(x, w, **params))
            operands = draw(rng, dtype, first), draw(rng, dtype, second)
            if kind == "strided":
                operands = strided(operands[0]), strided(operands[1])
            yield Sample(operands, {**params, **more}, kind)

    return samples


# ---- the records --------------------------------------------------------------------------------

_PARAMS = ("stride", "padding", "dilation", "groups")
_COMMON: dict[str, Any] = {
    "family": "convolution",
    "dtype": _conv_dtype,
    "normalize": _normalize,
    "promotion": NO_PROMOTION,
    "dtypes": dtypes.INTEGERS + dtypes.FLOATS,
    "jvp": (LINEAR, LINEAR),
    "cost": 2,
    "ulp": 64,
    "backward_name": "ConvolutionBackward0",
    "source": "V. Dumoulin and F. Visin, A guide to convolution arithmetic, arXiv:1603.07285",
}
_X, _W = np.zeros((1, 4, 5, 5)), np.zeros((4, 4, 3, 3))
_GIVEN: dict[str, Any] = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}


def _refused(
    x: np.ndarray, w: np.ndarray, match: str, error: type[Exception] = ShapeError, **params: Any
) -> Refusal:
    return Refusal((x, w), {**_GIVEN, **params}, error, match)


conv = primitive(
    "conv", args=("x", "w"), params=_PARAMS, shape=conv_shape, eager=eager_conv,
    doc="Cross-correlation of x (N, C, *S) with w (O, C/groups, *K): result (N, O, *P).\n\n"
        "    `stride` and `dilation` are ints per spatial axis, `padding` (before, after) pairs.",
    vjp=(
        lambda ct, out, x, w, **p: conv_input_grad(ct, w, input_size=tuple(x.shape[2:]), **p),
        lambda ct, out, x, w, **p: conv_weight_grad(x, ct, kernel_size=tuple(w.shape[2:]), **p),
    ),
    batch=_batch_over_weight(lambda x, w, **p: conv(x, w, **p)),
    samples=_sampled(lambda xs, ws, out: (xs, ws, {})),
    refusals=(
        _refused(_X, np.zeros((4, 3, 3, 3)),
                 r"Given groups=1, weight of size \[4, 3, 3, 3\], expected input\[1, 4, 5, 5\] to "
                 r"have 3 channels, but got 4 channels instead"),
        _refused(_X[:, :, :2, :2], _W,
                 r"Calculated padded input size per channel: \(2 x 2\). Kernel size: \(3 x 3\). "
                 r"Kernel size can't be greater than actual input size"),
        _refused(_X, np.zeros((3, 2, 3, 3)), "expected weight to be divisible by 2 at dimension 0",
                 groups=2),
        _refused(_X, _W[:1], "expected weight to be at least 2 at dimension 0", groups=2),
        _refused(_X, _W[:, :, 0], "Expected 3-dimensional input for 3-dimensional weight"),
        _refused(_X[0, 0], _W, "1 to 3 spatial sizes"),
        _refused(_X, _W, "non-positive stride is not supported", stride=0),
        _refused(_X, _W, "negative padding is not supported", padding=-1),
        _refused(_X, _W, r"dilation should be greater than zero, but got \[0, 0\]", dilation=0),
        _refused(_X, _W, "non-positive groups is not supported", groups=0),
        _refused(_X, _W, r"list of 2 values to match .* but got stride=\[1, 1, 1\]",
                 stride=(1, 1, 1)),
        _refused(_X, _W.astype(np.float32), r"Input type \(double\) and weight type \(float\)",
                 DTypeError),
    ),
    **_COMMON,
)  # fmt: skip

conv_input_grad = primitive(
    "conv_input_grad", args=("ct", "w"), params=("input_size", *_PARAMS),
    doc="Transpose of `conv` in x: ct (N, O, *P) and w (O, C/groups, *K) give (N, C, *input_size).",
    shape=_input_grad_shape, eager=eager_input_grad,
    vjp=(
        lambda g, out, ct, w, input_size, **p: conv(g, w, **p),
        lambda g, out, ct, w, input_size, **p: conv_weight_grad(
            g, ct, kernel_size=tuple(w.shape[2:]), **p),
    ),
    batch=_batch_over_weight(lambda ct, w, **p: conv_input_grad(ct, w, **p)),
    samples=_sampled(lambda xs, ws, out: (out, ws, {"input_size": xs[2:]})),
    refusals=(_refused(np.zeros((1, 4, 2, 3)), _W, r"ct must have the shape of the convolution's "
                       r"result, \[1, 4, 3, 3\], got \[1, 4, 2, 3\]", input_size=(5, 5)),),
    **_COMMON,
)  # fmt: skip

conv_weight_grad = primitive(
    "conv_weight_grad", args=("x", "ct"), params=("kernel_size", *_PARAMS),
    doc="Transpose of `conv` in w: x (N, C, *S), ct (N, O, *P) to (O, C/groups, *kernel_size).",
    shape=_weight_grad_shape, eager=eager_weight_grad,
    vjp=(
        lambda g, out, x, ct, kernel_size, **p: conv_input_grad(
            ct, g, input_size=tuple(x.shape[2:]), **p),
        lambda g, out, x, ct, kernel_size, **p: conv(x, g, **p),
    ),
    batch=_batch_weight_grad,
    samples=_sampled(lambda xs, ws, out: (xs, out, {"kernel_size": ws[2:]})),
    refusals=(
        _refused(_X, np.zeros((1, 4, 2, 3)), "ct must have the shape", kernel_size=(3, 3)),
        _refused(_X, np.zeros((1, 4, 3, 3)), "4 channels do not divide into 3 groups",
                 kernel_size=(3, 3), groups=3),
    ),
    **_COMMON,
)  # fmt: skip
