"""Losses of `nn.functional`. Start reading at `cross_entropy`.

Note [Picking a class]: the log-probability of the target class is read by `gather`, which refuses
an index that is out of range also in generated code. Two things need care. Ignored targets are
replaced by class 0 before and masked after. Negative targets, which `gather` would count from the
end, are replaced by the number of classes, so that they are refused too.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracegrad.ir import composite, dtypes, ops
from tracegrad.ir.dtypes import torch_name
from tracegrad.ir.errors import DimensionError, DTypeError, ParameterError, ShapeError, of_values
from tracegrad.runtime.cuda.array import host
from tracegrad.tracer import linalg, reductions
from tracegrad.tracer.composites import composite as as_one
from tracegrad.tracer.pointwise import apply1, apply2, named, need_tensor
from tracegrad.tracer.pointwise_checks import need_floating

_TARGET_DTYPES = (dtypes.int64, dtypes.uint8)


def mse_loss(input: Any, target: Any, reduction: str = "mean") -> Any:
    """Squared differences, averaged, summed, or one by one.

    Args:
        input, target: one shape (others broadcast, with a warning).
        reduction: "mean", "sum" or "none".
    Returns:
        0-d; the common shape for "none".
    Raises:
        ParameterError: another reduction.
        KernelError: both are integers.
    Example:
        >>> import tracegrad as tg
        >>> tg.nn.functional.mse_loss(tg.tensor([1.0, 3.0]), tg.tensor([1.0, 1.0]))
        tensor(2.)
    """
    _check_pair("mse_loss", input, target)
    _check_reduction(reduction)
    if not target.dtype.is_floating_point:
        need_floating("mse_cpu", input)
        target = target.to(input.dtype)
    elif not input.dtype.is_floating_point:
        input = input.to(target.dtype)
    return _mse(input, target, reduction)


@as_one
def _mse(input: Any, target: Any, reduction: str) -> Any:
    difference = apply2("sub", input, target)
    return _reduced(apply2("mul", difference, difference), reduction, "MseLossBackward0")


def l1_loss(input: Any, target: Any, reduction: str = "mean") -> Any:
    """Absolute differences; else as `mse_loss`."""
    _check_pair("l1_loss", input, target)
    _check_reduction(reduction)
    losses = apply1("abs", apply2("sub", input, target))
    if reduction == "none":
        return losses
    return reductions.mean(losses) if reduction == "mean" else reductions.sum(losses)


def _check_pair(name: str, input: Any, target: Any) -> None:
    need_tensor(name, "input", 1, input)
    need_tensor(name, "target", 2, target)
    if input.shape != target.shape:
        warnings.warn(
            f"Using a target size ({target.shape!r}) that is different to the input size "
            f"({input.shape!r}). This will likely lead to incorrect results due to broadcasting. "
            "Please ensure they have the same size.",
            UserWarning,
            stacklevel=3,
        )


def _check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ParameterError(f"{reduction} is not a valid value for reduction")


def check_retired(size_average: Any, reduce: Any) -> None:
    """Refuse the two arguments that PyTorch keeps for old programs.

    Raises:
        ParameterError: one is given.
    """
    if size_average is not None or reduce is not None:
        raise ParameterError("size_average and reduce are no longer used; pass reduction=")


def _reduced(losses: Any, reduction: str, name: str) -> Any:
    if reduction == "none":
        return named(losses, name) if name else losses
    reduce = composite.reduce_mean if reduction == "mean" else ops.reduce_sum
    out = reduce(losses, axes=None, keepdims=False)
    return named(out, name) if name else out


def nll_loss(
    input: Any, target: Any, weight: Any = None, ignore_index: int = -100, reduction: str = "mean"
) -> Any:
    """Negative log-likelihood: `-weight[t] * input[t]` for the target class t.

    Args:
        input: log-probabilities, (C,), (N, C) or (N, C, d1, ...).
        target: class indices, int64 or uint8: (), (N,) or (N, d1, ...).
        weight: (C,), a factor per class.
        ignore_index: targets of this value count for nothing.
        reduction: "mean" (over the weights of the targets), "sum" or "none".
    Returns:
        0-d; the shape of `target` for "none". NaN for a mean over nothing.
    Raises:
        DimensionError: a target is no class.
        ShapeError, DTypeError, ParameterError: arguments that do not fit (PyTorch's texts).
    """
    need_tensor("nll_loss_nd", "input", 1, input)
    need_tensor("nll_loss_nd", "target", 2, target)
    _check_reduction(reduction)
    axis = _check_classes(input, target, weight)
    _check_range(target, input.shape[axis], ignore_index)
    return _nll(input, target, weight, ignore_index, reduction)


@as_one
def _nll(input: Any, target: Any, weight: Any, ignore_index: int, reduction: str) -> Any:
    """`nll_loss` of targets that are classes."""
    classes = _classes(input, target, weight, ignore_index)
    losses = _picked(input, classes, weight)
    out = _weighted(losses, classes.factor, reduction)
    return named(out, "NllLossBackward0" if target.ndim < 2 else "NllLoss2DBackward0")


def cross_entropy(
    input: Any, target: Any, weight: Any = None, size_average: None = None,
    ignore_index: int = -100, reduce: None = None, reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:  # fmt: skip
    """Cross entropy of the softmax of `input` against classes or class probabilities.

    Args:
        input: unnormalised log-probabilities, (C,), (N, C) or (N, C, d1, ...).
        target: class indices, int64 or uint8: (), (N,) or (N, d1, ...); or probabilities,
            floating, of the shape of `input`.
        weight: (C,), a factor per class.
        size_average, reduce: no longer used; must be None.
        ignore_index: targets of this value count for nothing (indices only).
        reduction: "mean" (over the weights of the targets; for probabilities over the batch),
            "sum" or "none".
        label_smoothing: in [0, 1], how much of the target is spread evenly over the classes.
    Returns:
        0-d; for "none" the shape of `input` without the class axis.
    Raises:
        DimensionError: a target is no class.
        ShapeError, DTypeError, ParameterError: arguments that do not fit (PyTorch's texts).
    Source: PyTorch documentation, `torch.nn.CrossEntropyLoss`; label smoothing: Szegedy et al.,
        arXiv:1512.00567.
    Example:
        >>> import tracegrad as tg
        >>> tg.nn.functional.cross_entropy(tg.zeros(1, 4), tg.tensor([2]))
        tensor(1.3863)
    """
    need_tensor("cross_entropy_loss", "input", 1, input)
    need_tensor("cross_entropy_loss", "target", 2, target)
    check_retired(size_average, reduce)
    _check_reduction(reduction)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ShapeError(f"label_smoothing must be between 0.0 and 1.0. Got: {label_smoothing}")
    if target.shape == input.shape:
        return _soft(input, target, weight, ignore_index, reduction, label_smoothing)
    axis = _check_classes(input, target, weight)
    _check_range(target, input.shape[axis], ignore_index)
    logp = linalg.log_softmax(input, axis)
    if not label_smoothing:
        return _nll(logp, target, weight, ignore_index, reduction)
    classes = _classes(input, target, weight, ignore_index)
    losses = _picked(logp, classes, weight)
    even = apply1("neg", _class_sum(logp, weight, classes.axis))
    even = ops.where(classes.valid, even, 0)
    even = apply2("mul", even, label_smoothing / input.shape[classes.axis])
    losses = apply2("add", apply2("mul", losses, 1.0 - label_smoothing), even)
    out = _weighted(losses, classes.factor, reduction)
    return named(out, "NllLossBackward0" if target.ndim < 2 else "NllLoss2DBackward0")


def _soft(
    input: Any, target: Any, weight: Any, ignore_index: int, reduction: str, smoothing: float
) -> Any:
    """Cross entropy against class probabilities."""
    if not target.dtype.is_floating_point:
        raise DTypeError(
            "Expected floating point type for target with class probabilities, got "
            f"{torch_name(target.dtype)}"
        )
    if ignore_index >= 0:
        raise ParameterError("ignore_index is not supported for floating point target")
    axis = 0 if input.ndim == 1 else 1
    _check_weight(weight, input.shape[axis])
    if smoothing:
        target = apply2("mul", target, 1.0 - smoothing)
        target = apply2("add", target, smoothing / input.shape[axis])
    logp = linalg.log_softmax(input, axis)
    losses = apply1("neg", _class_sum(apply2("mul", logp, target), weight, axis))
    if reduction == "none":
        return losses
    total = ops.reduce_sum(losses, axes=None, keepdims=False)
    if reduction == "sum":
        return total
    return named(apply2("div", total, float(losses.numel())), "DivBackward1")


def _class_sum(x: Any, weight: Any, axis: int) -> Any:
    """Sum over the classes, each with its weight."""
    if weight is not None:
        shape = tuple(n if d == axis else 1 for d, n in enumerate(x.shape))
        x = apply2("mul", x, ops.reshape(weight, shape=shape))
    return ops.reduce_sum(x, axes=(axis,), keepdims=False)


# ---- classes ------------------------------------------------------------------------------------


def _check_classes(input: Any, target: Any, weight: Any) -> int:
    """The axis of the classes; refuses shapes and dtypes that do not fit."""
    if target.dtype not in _TARGET_DTYPES:
        raise DTypeError(
            f"expected target dtype to be Long or Byte, but got {torch_name(target.dtype)}"
        )
    if input.ndim == 0:
        raise ShapeError("input tensor should be 1D or 2D")
    if input.ndim == 1:
        if target.ndim != 0:
            raise ShapeError("0D or 1D target tensor expected, multi-target not supported")
        axis = 0
    else:
        _check_batch(input, target)
        axis = 1
    _check_weight(weight, input.shape[axis])
    return axis


def _check_batch(input: Any, target: Any) -> None:
    if input.ndim == 2 and target.ndim != 1:
        raise ShapeError("0D or 1D target tensor expected, multi-target not supported")
    if target.ndim == 0 or input.shape[0] != target.shape[0]:
        got = target.shape[0] if target.ndim else "none"
        raise ParameterError(
            f"Expected input batch_size ({input.shape[0]}) to match target batch_size ({got})."
        )
    expected = (input.shape[0], *input.shape[2:])
    if tuple(target.shape) != expected:
        raise ShapeError(f"Expected target size {list(expected)}, got {list(target.shape)}")


def _check_weight(weight: Any, classes: int) -> None:
    if weight is not None and tuple(weight.shape) != (classes,):
        raise ShapeError(
            f"weight tensor should be defined either for all {classes} classes or no classes but "
            f"got weight tensor of shape: {list(weight.shape)}"
        )


def _check_range(target: Any, classes: int, ignore_index: int | None) -> None:
    """Refuse targets that are no class, by name; `gather` does so again in a replay."""
    values = host(target._array)
    wrong = (values < 0) | (values >= classes)
    if ignore_index is not None:
        wrong &= values != ignore_index
    if wrong.any():
        worst = values[np.nonzero(wrong)][0]
        raise of_values(DimensionError(f"Target {worst} is out of bounds."))


def class_index(target: Any, classes: int, ignore_index: int | None = None) -> Any:
    """`target` as an index that `gather` takes or refuses; see Note [Picking a class].

    Raises:
        DimensionError: a target is no class.
    """
    _check_range(target, classes, ignore_index)
    index = ops.where(apply2("less", target, 0), classes, target)
    if ignore_index is None:
        return index
    return ops.where(apply2("equal", target, int(ignore_index)), 0, index)


@dataclass(frozen=True)
class _Classes:
    """Targets made ready: class indices, 0 where ignored; which count; by how much; the axis."""

    index: Any
    valid: Any
    factor: Any
    axis: int


def _classes(input: Any, target: Any, weight: Any, ignore_index: int) -> _Classes:
    axis = _check_classes(input, target, weight)
    if target.dtype is not dtypes.int64:
        target = ops.cast(target, dtype=dtypes.int64)
    index = class_index(target, input.shape[axis], ignore_index)
    valid = apply2("not_equal", target, int(ignore_index))
    if weight is None:
        return _Classes(index, valid, ops.cast(valid, dtype=input.dtype), axis)
    return _Classes(index, valid, ops.where(valid, ops.gather(weight, index, axes=(0,)), 0), axis)


def _picked(logp: Any, classes: _Classes, weight: Any) -> Any:
    """`-weight[t] * logp[t]`, and 0 for targets that do not count."""
    at = composite.expand_dims(classes.index, classes.axis)
    taken = composite.take_along_axis(logp, at, classes.axis)
    taken = apply1("neg", ops.reshape(taken, shape=tuple(classes.index.shape)))
    if weight is not None:
        taken = apply2("mul", taken, classes.factor)
    return ops.where(classes.valid, taken, 0)


def _weighted(losses: Any, factor: Any, reduction: str) -> Any:
    if reduction == "none":
        return losses
    total = ops.reduce_sum(losses, axes=None, keepdims=False)
    if reduction == "sum":
        return total
    return apply2("div", total, ops.reduce_sum(factor, axes=None, keepdims=False))
