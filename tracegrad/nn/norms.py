"""Normalisation over batches, groups and instances. Start reading at `batch_norm`.

Statistics are taken over some axes, and the result is scaled and shifted channel by channel. The
half types are computed in float32. Running statistics are written in place, without history; the
momentum may be a tensor, so that a compiled step need not read a counter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tracegrad.ir import composite, dtypes, ops
from tracegrad.ir.errors import (
    DTypeError,
    KernelError,
    OptionError,
    ParameterError,
    ShapeError,
)
from tracegrad.tracer.composites import composite as as_one
from tracegrad.tracer.grad_mode import no_grad
from tracegrad.tracer.pointwise import apply1, apply2, named, need_tensor
from tracegrad.tracer.tape import scalar_type_name


def batch_norm(
    input: Any, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
    training: bool = False, momentum: Any = 0.1, eps: float = 1e-5,
) -> Any:  # fmt: skip
    """(x - mean) / sqrt(variance + eps) for each channel, times weight, plus bias.

    While training, mean and (biased) variance are those of the batch, and the running statistics
    become (1 - momentum) * old + momentum * new, with the unbiased variance. Else the running
    statistics are taken.

    Args:
        input: (N, C, ...), floating.
        running_mean, running_var: (C,), or None while training.
        weight, bias: (C,) or None.
        training: take the statistics of the batch.
        momentum: a number, or a tensor of no dimension.
        eps: added to the variance.
    Returns:
        Same dtype and shape as `input`.
    Raises:
        ParameterError, OptionError, ShapeError, DTypeError, KernelError: PyTorch's texts.
    Source: Ioffe and Szegedy, arXiv:1502.03167.
    Example:
        >>> import tracegrad as tg
        >>> x = tg.tensor([[1.0, 2.0], [3.0, 6.0]])
        >>> tg.nn.functional.batch_norm(x, tg.zeros(2), tg.ones(2), training=True, eps=0.5)
        tensor([[-0.8165, -0.9428],
                [ 0.8165,  0.9428]])
    """
    need_tensor("batch_norm", "input", 1, input)
    if training:
        _need_several("value per channel", input.shape[:1] + input.shape[2:], input.shape)
    if training and eps <= 0.0:
        raise ParameterError(f"batch_norm eps must be positive during training, but got {eps}")
    if eps < 0.0:
        raise ParameterError(f"batch_norm eps must be non-negative, but got {eps}")
    _check_statistics(training, running_mean, running_var)
    channels = input.shape[1] if input.ndim > 1 else 0
    _check_sizes(channels, running_mean, running_var, weight, bias)
    _check_dtypes("batch_norm", input, weight, bias, running_mean, running_var)
    if not training:
        return _with_given(input, running_mean, running_var, weight, bias, float(eps))
    axes = (0, *range(2, input.ndim))
    out, mean, variance = _with_own(input, weight, bias, axes, float(eps))
    if running_mean is not None and input.numel():
        _update(running_mean, running_var, mean, variance, momentum, input.numel() // channels)
    return out


def instance_norm(
    input: Any, running_mean: Any = None, running_var: Any = None, weight: Any = None,
    bias: Any = None, use_input_stats: bool = True, momentum: Any = 0.1, eps: float = 1e-5,
) -> Any:  # fmt: skip
    """`batch_norm` with statistics of each sample by itself; the running ones are of their means.

    Args:
        input: (N, C, *spatial), floating.
        running_mean, running_var, weight, bias: (C,) or None.
        use_input_stats: False to take the running statistics.
        momentum, eps: as for `batch_norm`.
    Returns:
        Same dtype and shape as `input`.
    Raises:
        ParameterError, OptionError, ShapeError, DTypeError, KernelError: PyTorch's texts.
    Source: Ulyanov, Vedaldi and Lempitsky, arXiv:1607.08022.
    """
    need_tensor("instance_norm", "input", 1, input)
    if not use_input_stats:
        if running_mean is None or running_var is None:
            raise OptionError(
                "Expected running_mean and running_var to be defined when use_input_stats is false"
            )
        return batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    _need_several("spatial element", input.shape[2:], input.shape)
    if eps <= 0.0:
        raise ParameterError(f"instance_norm eps must be positive, but got {eps}")
    _check_statistics(True, running_mean, running_var)
    _check_sizes(input.shape[1], running_mean, running_var, weight, bias)
    _check_dtypes("batch_norm", input, weight, bias, running_mean, running_var)
    axes = tuple(range(2, input.ndim))
    out, mean, variance = _with_own(input, weight, bias, axes, float(eps))
    if running_mean is not None and input.numel():
        count = math.prod(input.shape[2:])
        mean, variance = (composite.reduce_mean(s, 0, True) for s in (mean, variance))
        _update(running_mean, running_var, mean, variance, momentum, count)
    return out


@as_one
def group_norm(
    input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    """Mean 0 and variance 1 over each group of channels of each sample, then weight and bias.

    Args:
        input: (N, C, ...), floating.
        num_groups: divides C.
        weight, bias: (C,) or None.
        eps: added to the (biased) variance.
    Returns:
        Same dtype and shape as `input`.
    Raises:
        ShapeError, ParameterError, DTypeError, KernelError: PyTorch's texts.
    Source: Wu and He, arXiv:1803.08494.
    Example:
        >>> import tracegrad as tg
        >>> tg.nn.functional.group_norm(tg.tensor([[1.0, 3.0, 5.0, 9.0]]), 2, eps=0.0)
        tensor([[-1.,  1., -1.,  1.]])
    """
    need_tensor("group_norm", "input", 1, input)
    shape = tuple(input.shape)
    if len(shape) < 2:
        raise ShapeError(
            f"Expected at least 2 dimensions for input tensor but received {len(shape)}"
        )
    n, channels, *spatial = shape
    each = [n * channels // num_groups, num_groups, *spatial]
    _need_several("value per channel", (each[0], *spatial), each)
    _check_groups(num_groups, shape, weight, bias)
    _check_dtypes("GroupNormKernelImpl", input, weight, bias)
    if input.numel() == 0:
        return apply2("mul", input, 1)
    grouped = ops.reshape(
        _wide(input), shape=(n, num_groups, channels // num_groups * math.prod(spatial))
    )
    normal, _, _ = _normal(grouped, (2,), float(eps))
    out = _scaled(ops.reshape(normal, shape=shape), weight, bias)
    return named(_narrow(out, input), "NativeGroupNormBackward0")


# ---- the formula --------------------------------------------------------------------------------


@as_one
def _with_own(
    input: Any, weight: Any, bias: Any, axes: tuple[int, ...], eps: float
) -> tuple[Any, Any, Any]:
    """Normalised by its own statistics; mean and biased variance."""
    normal, mean, variance = _normal(_wide(input), axes, eps)
    out = _narrow(_scaled(normal, weight, bias), input)
    return named(out, "NativeBatchNormBackward0"), mean, variance


@as_one
def _with_given(input: Any, mean: Any, variance: Any, weight: Any, bias: Any, eps: float) -> Any:
    """Normalised by the statistics given, (C,)."""
    x = _wide(input)
    mean, variance = (_along_channels(_wide(s), x.ndim) for s in (mean, variance))
    normal = apply2("mul", apply2("sub", x, mean), apply1("rsqrt", apply2("add", variance, eps)))
    return named(_narrow(_scaled(normal, weight, bias), input), "NativeBatchNormBackward0")


def _normal(x: Any, axes: tuple[int, ...], eps: float) -> tuple[Any, Any, Any]:
    mean = composite.reduce_mean(x, axes, True)
    centered = apply2("sub", x, mean)
    variance = composite.reduce_mean(apply2("mul", centered, centered), axes, True)
    normal = apply2("mul", centered, apply1("rsqrt", apply2("add", variance, eps)))
    return normal, mean, variance


def _scaled(x: Any, weight: Any, bias: Any) -> Any:
    if weight is not None:
        x = apply2("mul", x, _along_channels(_wide(weight), x.ndim))
    if bias is not None:
        x = apply2("add", x, _along_channels(_wide(bias), x.ndim))
    return x


def _along_channels(x: Any, ndim: int) -> Any:
    return ops.reshape(x, shape=(1, x.shape[0], *(1 for _ in range(ndim - 2))))


def _wide(x: Any) -> Any:
    half = x.dtype.is_floating_point and x.dtype.itemsize == 2
    return ops.cast(x, dtype=dtypes.float32) if half else x


def _narrow(x: Any, like: Any) -> Any:
    return x if x.dtype is like.dtype else ops.cast(x, dtype=like.dtype)


def _update(
    running_mean: Any, running_var: Any, mean: Any, variance: Any, momentum: Any, count: int
) -> None:
    """Mix new statistics into the running ones; `count` elements gave each variance."""
    unbiased = count / (count - 1)
    with no_grad():
        for kept, new in ((running_mean, mean), (running_var, variance * unbiased)):
            kept.mul_(1 - momentum).add_(new.detach().reshape(-1) * momentum)


# ---- refusals -----------------------------------------------------------------------------------


def _need_several(what: str, counted: Sequence[int], shape: Any) -> None:
    if math.prod(counted) == 1:
        raise ParameterError(f"Expected more than 1 {what} when training, got input size {shape}")


def _check_statistics(training: bool, running_mean: Any, running_var: Any) -> None:
    for name, given in (("running_mean", running_mean), ("running_var", running_var)):
        if given is None and not training:
            raise OptionError(f"{name} must be defined in evaluation mode")
        if given is not None and training and given.requires_grad:
            raise OptionError(
                "The function 'native_batch_norm' is not differentiable with respect to argument "
                f"'{name}'. This input cannot have requires_grad True."
            )
    if (running_mean is None) != (running_var is None):
        raise ParameterError(
            "running_mean and running_var must either both be None or neither be None"
        )


def _check_sizes(channels: int, *given: Any) -> None:
    for name, x in zip(("running_mean", "running_var", "weight", "bias"), given, strict=True):
        if x is not None and x.numel() != channels:
            raise ShapeError(f"{name} should contain {channels} elements not {x.numel()}")


def _check_groups(groups: int, shape: tuple[int, ...], weight: Any, bias: Any) -> None:
    if groups <= 0:
        raise ShapeError(f"Expected num groups to be greater than 0, got {groups}")
    if shape[1] % groups:
        raise ShapeError(
            "Expected number of channels in input to be divisible by num_groups, but got input of "
            f"shape {list(shape)} and num_groups={groups}"
        )
    for name, x in (("weight", weight), ("bias", bias)):
        if x is not None and tuple(x.shape) != (shape[1],):
            raise ShapeError(
                f"Expected {name} to be a vector of size equal to the number of channels in input, "
                f"but got {name} of shape {list(x.shape)} and input of shape {list(shape)}"
            )


def _check_dtypes(kernel: str, input: Any, *given: Any) -> None:
    """Parameters have the dtype of `input`; beside the half types they may all be float32."""
    dtype = input.dtype
    if not dtype.is_floating_point:
        raise KernelError(f"\"{kernel}\" not implemented for '{scalar_type_name(dtype)}'")
    kinds = [x.dtype for x in given if x is not None]
    if not kinds or all(kind is dtype for kind in kinds):
        return
    if dtype.itemsize != 2:
        if kinds[0].itemsize == 2:
            raise DTypeError("mixed dtype (CPU): expect parameter to have scalar type of Float")
        raise DTypeError("mixed dtype (CPU): all inputs must share same datatype.")
    if any(kind is not dtypes.float32 for kind in kinds):
        raise DTypeError("mixed dtype (CPU): expect parameter to have scalar type of Float")
