"""Modules with spatial axes: Conv1d to Conv3d, pooling. Start reading at `_Conv`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tracegrad.ir.errors import ParameterError
from tracegrad.ir.windows import tuple_of
from tracegrad.nn import functional as F
from tracegrad.nn import init
from tracegrad.nn.module import Module
from tracegrad.nn.parameter import Parameter
from tracegrad.tracer.factories import empty


class _Conv(Module):
    """Cross-correlation of (N, in_channels, *S), or without N, to (N, out_channels, *S').

    Args:
        in_channels, out_channels: numbers of channels, both divisible by `groups`.
        kernel_size, stride, dilation: an int or one per spatial axis.
        padding: likewise; or "valid" for none, "same" to keep the size (stride 1 only).
        groups: into how many independent convolutions the channels fall.
        bias: False for none.
        padding_mode: "zeros".
    Initial values: weight (out, in / groups, *kernel) and bias (out,) are both
    U(-1/sqrt(k), 1/sqrt(k)) with k = in / groups * taps.
    Raises:
        ParameterError: as PyTorch, for parameters that describe no convolution.
    """

    rank: int
    function: Callable[..., Any]
    weight: Parameter
    bias: Parameter | None

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any = 1,
        padding: Any = 0, dilation: Any = 1, groups: int = 1, bias: bool = True,
        padding_mode: str = "zeros", device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = tuple_of(kernel_size, self.rank)
        self.stride = tuple_of(stride, self.rank)
        self.padding = padding if isinstance(padding, str) else tuple_of(padding, self.rank)
        self.dilation = tuple_of(dilation, self.rank)
        self.groups = groups
        self.padding_mode = padding_mode
        self._check()
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight = Parameter(empty(shape, device=device, dtype=dtype))
        if bias:
            self.bias = Parameter(empty(out_channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def _check(self) -> None:
        if self.groups <= 0:
            raise ParameterError("groups must be a positive integer")
        for word in ("in_channels", "out_channels"):
            if getattr(self, word) % self.groups:
                raise ParameterError(f"{word} must be divisible by groups")
        if isinstance(self.padding, str):
            if self.padding not in ("same", "valid"):
                raise ParameterError(
                    f"Invalid padding string {self.padding!r}, should be one of {{'valid', 'same'}}"
                )
            if self.padding == "same" and any(s != 1 for s in self.stride):
                raise ParameterError("padding='same' is not supported for strided convolutions")
        if self.padding_mode != "zeros":
            raise ParameterError(
                f"padding_mode must be 'zeros', but got padding_mode={self.padding_mode!r}; pad "
                "the input yourself for another one"
            )

    def reset_parameters(self) -> None:
        """Draw initial values."""
        init.affine_defaults_(self.weight, self.bias)

    def forward(self, input: Any) -> Any:
        """(N, in_channels, *S), or without N, to (N, out_channels, *S')."""
        return type(self).function(
            input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )

    def extra_repr(self) -> str:
        """Channels, kernel and stride, and what differs from the defaults."""
        text = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}"
        )
        ones = (1,) * self.rank
        if self.padding != (0,) * self.rank:
            text += f", padding={self.padding}"
        if self.dilation != ones:
            text += f", dilation={self.dilation}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        return text if self.bias is not None else text + ", bias=False"


class Conv1d(_Conv):
    """Cross-correlation over one spatial axis, arguments as PyTorch's; see `nn.functional.conv1d`.

    Initial values: weight and bias U(-1/sqrt(k), 1/sqrt(k)), k = in_channels / groups * taps.
    Raises:
        ParameterError: as PyTorch, for parameters that describe no convolution.
    """

    rank, function = 1, staticmethod(F.conv1d)


class Conv2d(_Conv):
    """Cross-correlation over two spatial axes, arguments as PyTorch's; see `nn.functional.conv2d`.

    Initial values: weight and bias U(-1/sqrt(k), 1/sqrt(k)), k = in_channels / groups * taps.
    Raises:
        ParameterError: as PyTorch, for parameters that describe no convolution.
    """

    rank, function = 2, staticmethod(F.conv2d)


class Conv3d(_Conv):
    """Cross-correlation over three spatial axes, arguments as PyTorch's; see `nn.functional.conv3d`.

    Initial values: weight and bias U(-1/sqrt(k), 1/sqrt(k)), k = in_channels / groups * taps.
    Raises:
        ParameterError: as PyTorch, for parameters that describe no convolution.
    """

    rank, function = 3, staticmethod(F.conv3d)


class MaxPool2d(Module):
    """Maximum of windows of (N, C, H, W) or (C, H, W); see `nn.functional.max_pool2d`."""

    def __init__(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
        return_indices: bool = False, ceil_mode: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.dilation = dilation
        self.return_indices = return_indices
        self.ceil_mode = ceil_mode

    def forward(self, input: Any) -> Any:
        """(N, C, H, W), or without N, to (N, C, H', W')."""
        return F.max_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode,
            self.return_indices,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """The window."""
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}"
        )


class AvgPool2d(Module):
    """Mean of windows of (N, C, H, W) or (C, H, W); see `nn.functional.avg_pool2d`."""

    def __init__(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True, divisor_override: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.ceil_mode = ceil_mode
        self.count_include_pad = count_include_pad
        self.divisor_override = divisor_override

    def forward(self, input: Any) -> Any:
        """(N, C, H, W), or without N, to (N, C, H', W')."""
        return F.avg_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.ceil_mode,
            self.count_include_pad, self.divisor_override,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """The window."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
