"""Modules that normalise channels: BatchNorm, InstanceNorm, GroupNorm. Start at `NormBase`.

The functions are in `tracegrad.nn.norms`; `LayerNorm` is in `tracegrad.nn.layers`.
"""

from __future__ import annotations

import warnings
from typing import Any

from tracegrad.ir import dtypes
from tracegrad.ir.errors import ParameterError
from tracegrad.nn import init
from tracegrad.nn.module import Module
from tracegrad.nn.norms import batch_norm, group_norm, instance_norm
from tracegrad.nn.parameter import Parameter
from tracegrad.tracer.factories import ones, zeros
from tracegrad.tracer.tensor import Tensor


class NormBase(Module):
    """Weights and running statistics that BatchNorm and InstanceNorm share.

    Attributes:
        weight, bias: (C,), ones and zeros at first; None without `affine` (or `bias`).
        running_mean, running_var: (C,), zeros and ones at first; buffers.
        num_batches_tracked: int64, how many batches they are made of.
    """

    _version = 2  # 2: has num_batches_tracked

    weight: Parameter | None
    bias: Parameter | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    dimensions: tuple[int, ...] = ()  # that an input may have

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1,
        affine: bool = True, track_running_stats: bool = True, device: Any = None,
        dtype: Any = None, *, bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        how = {"device": device, "dtype": dtype}
        _affine_parameters(self, num_features, affine, bias, how)
        tracks = track_running_stats
        self.register_buffer("running_mean", zeros(num_features, **how) if tracks else None)
        self.register_buffer("running_var", ones(num_features, **how) if tracks else None)
        counter = zeros((), dtype=dtypes.int64, device=device) if tracks else None
        self.register_buffer("num_batches_tracked", counter)

    def reset_running_stats(self) -> None:
        """Forget all batches."""
        for buffer, value in (
            (self.running_mean, 0), (self.running_var, 1), (self.num_batches_tracked, 0),
        ):  # fmt: skip
            if buffer is not None:
                init.constant_(buffer, value)

    def reset_parameters(self) -> None:
        """Forget all batches; ones and zeros for weights."""
        self.reset_running_stats()
        _reset_affine(self)

    def _check_dimensions(self, input: Any) -> None:
        if input.ndim not in self.dimensions:
            wanted = " or ".join(f"{d}D" for d in self.dimensions)
            raise ParameterError(f"expected {wanted} input (got {input.ndim}D input)")

    def _optional_keys(self, version: int | None) -> tuple[str, ...]:
        return ("num_batches_tracked",) if version is None or version < 2 else ()

    def extra_repr(self) -> str:
        """The settings."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={self.affine}, bias={self.bias is not None}, "
            f"track_running_stats={self.track_running_stats}"
        )


def _affine_parameters(module: Any, size: int, affine: bool, bias: bool, how: Any) -> None:
    weight = Parameter(ones(size, **how)) if affine else None
    module.register_parameter("weight", weight)
    module.register_parameter("bias", Parameter(zeros(size, **how)) if affine and bias else None)


def _reset_affine(module: Any) -> None:
    for parameter, value in ((module.weight, 1), (module.bias, 0)):
        if parameter is not None:
            init.constant_(parameter, value)


# ---- batches ------------------------------------------------------------------------------------


class BatchNorm(NormBase):
    """What BatchNorm1d, 2d and 3d share; they differ in the inputs that they take."""

    def forward(self, input: Any) -> Any:
        """Statistics of the batch while training (and without running ones), else the running."""
        self._check_dimensions(input)
        momentum: Any = self.momentum
        tracks = self.training and self.track_running_stats
        if tracks and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        if momentum is None:  # the mean of all batches; the counter's value is not read
            counter = self.num_batches_tracked if tracks else None
            momentum = 0.0 if counter is None else 1.0 / counter.to(dtypes.float64)
        own = self.training or (self.running_mean is None and self.running_var is None)
        known = not self.training or self.track_running_stats
        return batch_norm(
            input, self.running_mean if known else None, self.running_var if known else None,
            self.weight, self.bias, own, momentum, self.eps,
        )  # fmt: skip


class BatchNorm1d(BatchNorm):
    """Mean 0 and variance 1 of each channel over the batch, then `weight` and `bias`.

    While training, the statistics of the batch are used and mixed into the running ones (with the
    unbiased variance), which `eval()` uses.

    Args:
        num_features: C of an input (N, C) or (N, C, L).
        eps: added to the variance.
        momentum: share of a new batch in the running statistics; None for the mean of all batches.
        affine: False for neither weight nor bias.
        track_running_stats: False to use the batch's statistics always.
        bias: False for no bias.
    Raises:
        ParameterError: an input of another number of dimensions, or of one value per channel while
            training.
        ShapeError: an input of another number of channels.
    Source: Ioffe and Szegedy, arXiv:1502.03167.
    Example:
        >>> import tracegrad as tg
        >>> norm = tg.nn.BatchNorm1d(1)
        >>> norm(tg.tensor([[1.0], [3.0]])).tolist() == norm(tg.tensor([[5.0], [7.0]])).tolist()
        True
        >>> norm.num_batches_tracked
        tensor(2)
    """

    dimensions = (2, 3)


class BatchNorm2d(BatchNorm):
    """`BatchNorm1d` for an input (N, C, H, W)."""

    dimensions = (4,)


class BatchNorm3d(BatchNorm):
    """`BatchNorm1d` for an input (N, C, D, H, W)."""

    dimensions = (5,)


# ---- instances ----------------------------------------------------------------------------------


class InstanceNorm(NormBase):
    """What InstanceNorm1d, 2d and 3d share; they differ in the inputs that they take."""

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1,
        affine: bool = False, track_running_stats: bool = False, device: Any = None,
        dtype: Any = None, *, bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias
        )

    def forward(self, input: Any) -> Any:
        """Statistics of each sample while training or without running ones, else the running."""
        self._check_dimensions(input)
        alone = input.ndim == self.dimensions[0]
        self._check_channels(input.shape[0 if alone else 1], 0 if alone else 1)
        out = instance_norm(
            input.unsqueeze(0) if alone else input, self.running_mean, self.running_var,
            self.weight, self.bias, self.training or not self.track_running_stats,
            0.0 if self.momentum is None else self.momentum, self.eps,
        )  # fmt: skip
        return out.squeeze(0) if alone else out

    def _check_channels(self, size: int, dim: int) -> None:
        if size == self.num_features:
            return
        if self.affine:
            raise ParameterError(
                f"expected input's size at dim={dim} to match num_features "
                f"({self.num_features}), but got: {size}."
            )
        warnings.warn(
            f"input's size at dim={dim} does not match num_features. You can silence this warning "
            "by not passing in num_features, which is not used because affine=False",
            UserWarning,
            stacklevel=4,
        )


class InstanceNorm1d(InstanceNorm):
    """Mean 0 and variance 1 of each channel of each sample, then `weight` and `bias`.

    Args:
        num_features: C of an input (N, C, L) or (C, L).
        eps, momentum, bias: as for `BatchNorm1d`.
        affine: True for weight and bias.
        track_running_stats: True to keep running statistics, which `eval()` uses.
    Raises:
        ParameterError: an input of another number of dimensions, of one element per channel while
            training, or of another number of channels.
    Source: Ulyanov, Vedaldi and Lempitsky, arXiv:1607.08022.
    Example:
        >>> import tracegrad as tg
        >>> tg.nn.InstanceNorm1d(1)(tg.tensor([[[10.0, 30.0]]]))
        tensor([[[-1.,  1.]]])
    """

    dimensions = (2, 3)


class InstanceNorm2d(InstanceNorm):
    """`InstanceNorm1d` for an input (N, C, H, W) or (C, H, W)."""

    dimensions = (3, 4)


class InstanceNorm3d(InstanceNorm):
    """`InstanceNorm1d` for an input (N, C, D, H, W) or (C, D, H, W)."""

    dimensions = (4, 5)


# ---- groups -------------------------------------------------------------------------------------


class GroupNorm(Module):
    """Mean 0 and variance 1 of each group of channels of each sample, then `weight` and `bias`.

    Args:
        num_groups: divides `num_channels`.
        num_channels: C of an input (N, C, ...).
        eps: added to the variance.
        affine: False for neither weight nor bias.
        bias: False for no bias.
    Raises:
        ParameterError: the groups do not come out even.
    Source: Wu and He, arXiv:1803.08494.
    Example:
        >>> import tracegrad as tg
        >>> tg.nn.GroupNorm(2, 4)
        GroupNorm(2, 4, eps=1e-05, affine=True, bias=True)
    """

    weight: Parameter | None
    bias: Parameter | None

    def __init__(
        self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True,
        device: Any = None, dtype: Any = None, *, bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        if num_channels % num_groups:
            raise ParameterError(
                f"num_channels ({num_channels}) must be divisible by num_groups ({num_groups})"
            )
        self.num_groups = num_groups
        self.num_channels = num_channels
        self.eps = eps
        self.affine = affine
        how = {"device": device, "dtype": dtype}
        _affine_parameters(self, num_channels, affine, bias, how)

    def reset_parameters(self) -> None:
        """One and zero."""
        _reset_affine(self)

    def forward(self, input: Any) -> Any:
        """(N, C, ...) to the same shape."""
        return group_norm(input, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """The settings."""
        return (
            f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}, "
            f"bias={self.bias is not None}"
        )
