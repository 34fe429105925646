"""Convolution and pooling of `nn.functional`, over the window primitives of the table.

Inputs are batched (N, C, *S) or unbatched (C, *S). Start reading at `_conv`, then `_pooled`.
"""

from __future__ import annotations

from typing import Any

from tracegrad.ir import dtypes, ops
from tracegrad.ir.errors import DTypeError, ParameterError, ShapeError
from tracegrad.ir.primitives.contraction import c10_name
from tracegrad.ir.primitives.support import filled_like
from tracegrad.ir.windows import Pairs, tuple_of
from tracegrad.tracer.composites import composite
from tracegrad.tracer.pointwise import apply2, named, need_tensor
from tracegrad.tracer.pointwise_checks import need_floating

# ---- convolution --------------------------------------------------------------------------------


def conv1d(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Any:  # fmt: skip
    """Cross-correlation over one spatial axis; see `conv2d`."""
    return _conv("conv1d", 1, input, weight, bias, stride, padding, dilation, groups)


def conv2d(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Any:  # fmt: skip
    """Cross-correlation over two spatial axes.

    Args:
        input: (N, C, H, W) or (C, H, W).
        weight: (O, C / groups, kH, kW), the dtype of `input`.
        bias: (O,) or None.
        stride, dilation: an int or one per spatial axis.
        padding: likewise; or "valid" for none, "same" to keep the size (stride 1 only).
        groups: into how many independent convolutions the channels fall.
    Returns:
        (N, O, H', W') or (O, H', W').
    Raises:
        ShapeError, ParameterError: shapes or parameters that do not fit (PyTorch's texts).
        DTypeError: `input` and `weight` differ in dtype.
    Source: Dumoulin and Visin, arXiv:1603.07285.
    Example:
        >>> import tracegrad as tg
        >>> tg.nn.functional.conv2d(tg.ones(1, 1, 3, 3), tg.ones(1, 1, 2, 2)).shape
        torch.Size([1, 1, 2, 2])
    """
    return _conv("conv2d", 2, input, weight, bias, stride, padding, dilation, groups)


def conv3d(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Any:  # fmt: skip
    """Cross-correlation over three spatial axes; see `conv2d`."""
    return _conv("conv3d", 3, input, weight, bias, stride, padding, dilation, groups)


def _conv(
    name: str, rank: int, input: Any, weight: Any, bias: Any, stride: Any, padding: Any,
    dilation: Any, groups: int,
) -> Any:  # fmt: skip
    need_tensor(name, "input", 1, input)
    need_tensor(name, "weight", 2, weight)
    if input.ndim not in (rank + 1, rank + 2):
        raise ShapeError(
            f"Expected {rank + 1}D (unbatched) or {rank + 2}D (batched) input to {name}, "
            f"but got input of size: {list(input.shape)}"
        )
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ShapeError(
            f"Given weight of size {list(weight.shape)}, expected bias to be 1-dimensional with "
            f"{weight.shape[0]} elements, but got bias of size {list(bias.shape)} instead"
        )
    x, unbatched = _batched(input, rank)
    strides, dilations = _per_axis(stride, rank), _per_axis(dilation, rank)
    if isinstance(padding, str):
        padding = padding_of(padding, weight.shape[2:], strides, dilations)
    else:
        padding = tuple((p, p) for p in _per_axis(padding, rank))
    out = ops.conv(
        x, weight, stride=strides, padding=padding, dilation=dilations, groups=int(groups)
    )
    if bias is not None:
        if bias.dtype is not input.dtype:
            raise DTypeError(
                f"Input type ({c10_name(input.dtype)}) and bias type ({c10_name(bias.dtype)}) "
                "should be the same"
            )
        out = apply2("add", out, ops.reshape(bias, shape=(bias.shape[0], *(1,) * rank)))
        named(out, "ConvolutionBackward0")
    return _unbatched(out, unbatched)


def _per_axis(value: Any, rank: int) -> tuple[int, ...]:
    """One value per spatial axis; a sequence of one serves all axes."""
    values = tuple_of(value, rank)
    return values * rank if len(values) == 1 else values


def padding_of(
    word: str, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> Pairs:
    """(before, after) per axis for "valid" and "same"; an odd total has one more after.

    Raises:
        ShapeError: another word, or "same" with a stride.
    """
    if word == "valid":
        return ((0, 0),) * len(kernel)
    if word != "same":
        raise ShapeError(f"Invalid padding string: '{word}'")
    if any(s != 1 for s in stride):
        raise ShapeError("padding='same' is not supported for strided convolutions")
    totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    return tuple((total // 2, total - total // 2) for total in totals)


def _batched(x: Any, rank: int) -> tuple[Any, bool]:
    if x.ndim == rank + 1:
        return ops.reshape(x, shape=(1, *x.shape)), True
    return x, False


def _unbatched(x: Any, unbatched: bool) -> Any:
    return ops.reshape(x, shape=x.shape[1:]) if unbatched else x


# ---- pooling ------------------------------------------------------------------------------------


def max_pool1d(
    input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> Any:  # fmt: skip
    """Maximum of windows over one spatial axis; see `max_pool2d`."""
    return _max_pool(1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool2d(
    input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> Any:  # fmt: skip
    """Maximum of each window; of equal ones the first receives the gradient. NaN wins.

    Args:
        input: (N, C, H, W) or (C, H, W).
        kernel_size, stride, padding, dilation: an int or one per axis; the stride defaults to the
            kernel size; padding counts as -inf.
        ceil_mode: keep a last window that reaches past the end.
        return_indices: also return where the maxima are, in the flattened spatial axes, int64.
    Returns:
        (N, C, H', W') or (C, H', W'); or a pair of such tensors.
    Raises:
        ShapeError: shapes or parameters that do not fit (PyTorch's texts).
    Example:
        >>> import tracegrad as tg
        >>> tg.nn.functional.max_pool2d(tg.arange(4.0).reshape(1, 1, 2, 2), 2)
        tensor([[[[3.]]]])
    """
    return _max_pool(2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool3d(
    input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> Any:  # fmt: skip
    """Maximum of windows over three spatial axes; see `max_pool2d`."""
    return _max_pool(3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def _max_pool(
    rank: int, input: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any,
    ceil_mode: bool, return_indices: bool,
) -> Any:  # fmt: skip
    x, unbatched, window = _pooled(f"max_pool{rank}d", rank, input, kernel_size, stride, padding)
    if rank == 1 and not return_indices:
        need_floating("max_pool1d_impl", x)
    window["dilation"] = _per_axis(dilation, rank)
    if ceil_mode:
        window["padding"] = _ceiled(x.shape[2:], **window)
    values = _unbatched(ops.window_max(x, **window), unbatched)
    if not return_indices:
        return values
    return values, _unbatched(ops.window_argmax(x, **window), unbatched)


def avg_pool1d(
    input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Any:  # fmt: skip
    """Mean of windows over one spatial axis; see `avg_pool2d`."""
    return _avg_pool(1, input, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


def avg_pool2d(
    input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> Any:  # fmt: skip
    """Mean of each window.

    Args:
        input: (N, C, H, W) or (C, H, W).
        kernel_size, stride, padding: an int or one per axis; the stride defaults to the kernel
            size; padding counts as zero.
        ceil_mode: keep a last window that reaches past the end.
        count_include_pad: divide by the elements of the window that lie in the padded input;
            otherwise by those that lie in the input.
        divisor_override: divide by this number instead.
    Returns:
        (N, C, H', W') or (C, H', W').
    Raises:
        ShapeError: shapes or parameters that do not fit (PyTorch's texts).
    Example:
        >>> import tracegrad as tg
        >>> tg.nn.functional.avg_pool2d(tg.arange(4.0).reshape(1, 1, 2, 2), 2)
        tensor([[[[1.5000]]]])
    """
    return _avg_pool(
        2, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


def avg_pool3d(
    input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> Any:  # fmt: skip
    """Mean of windows over three spatial axes; see `avg_pool2d`."""
    return _avg_pool(
        3, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


@composite
def _avg_pool(
    rank: int, input: Any, kernel_size: Any, stride: Any, padding: Any, ceil_mode: bool,
    count_include_pad: bool, divisor: int | None,
) -> Any:  # fmt: skip
    if divisor == 0:
        raise ShapeError("divisor must be not zero")
    x, unbatched, window = _pooled(f"avg_pool{rank}d", rank, input, kernel_size, stride, padding)
    if x.dtype is not dtypes.int64:
        need_floating("avg_pool3d_out_frame" if rank == 3 else "avg_pool2d", x)
    given = window["padding"]
    if ceil_mode:
        window["padding"] = _ceiled(x.shape[2:], **window)
    total = ops.window_sum(x, **window)
    if divisor is not None:
        count: Any = float(divisor)
    elif window["padding"] == given and (count_include_pad or not any(p for p, _ in given)):
        count = 1.0
        for k in window["window"]:
            count *= k
    else:
        count = _counts(x, window, given if count_include_pad else None)
    mean = apply2("div", total, count)
    if x.dtype is dtypes.int64:  # as PyTorch: towards zero
        mean = mean.to(dtypes.int64)
    out = named(mean, f"AvgPool{rank}DBackward0")
    return _unbatched(out, unbatched)


def _counts(x: Any, window: dict[str, Any], counted: Pairs | None) -> Any:
    """How many elements of the input, or of it and its padding `counted`, each window holds."""
    sizes, padding = x.shape[2:], window["padding"]
    if counted is not None:
        sizes = tuple(n + low + high for n, (low, high) in zip(sizes, counted, strict=True))
        padding = tuple((0, high - c) for (_, high), (_, c) in zip(padding, counted, strict=True))
    ones = filled_like(x, 1, (1, 1, *sizes))
    return ops.window_sum(ones, **{**window, "padding": padding})


def _pooled(
    name: str, rank: int, input: Any, kernel_size: Any, stride: Any, padding: Any
) -> tuple[Any, bool, dict[str, Any]]:
    """The batched input, whether it was unbatched, and the parameters of the window."""
    need_tensor(name, "input", 1, input)
    if input.ndim not in (rank + 1, rank + 2):
        raise ShapeError(
            f"non-empty {rank + 1}D or {rank + 2}D (batch mode) tensor expected for input"
        )
    x, unbatched = _batched(input, rank)
    kernel = _per_axis(kernel_size, rank)
    sides = _per_axis(padding, rank)
    if len(kernel) != rank or len(sides) != rank:
        raise ParameterError(
            f"{name}: kernel_size and padding must be a single int, or a tuple of {rank} ints"
        )
    return x, unbatched, {
        "window": kernel,
        "stride": kernel if stride is None or stride == () else _per_axis(stride, rank),
        "padding": tuple((p, p) for p in sides),
        "dilation": (1,) * rank,
    }  # fmt: skip


def _ceiled(
    sizes: tuple[int, ...], window: Any, stride: Any, padding: Pairs, dilation: Any
) -> Pairs:
    """Padding that lets the last window reach past the end (PyTorch's `ceil_mode`).

    A window that would start in the padding after the input is left out.
    """
    made = []
    for n, k, s, (low, high), d in zip(sizes, window, stride, padding, dilation, strict=True):
        extent = d * (k - 1) + 1
        if s <= 0:
            raise ShapeError("stride should not be zero")
        out = -(-(n + low + high - extent) // s) + 1
        if (out - 1) * s >= n + low:
            out -= 1
        made.append((low, max(high, (out - 1) * s + extent - n - low)))
    return tuple(made)
