"""Initial values of weights, written in place without history. Start reading at `kaiming_uniform_`.

Random numbers come from `generator`, or from the global one (`tracegrad.manual_seed`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

from tracegrad.ir.errors import ParameterError
from tracegrad.tracer.grad_mode import no_grad
from tracegrad.tracer.tensor import Tensor

_GAINS = {"linear": 1.0, "sigmoid": 1.0, "conv1d": 1.0, "conv2d": 1.0, "conv3d": 1.0,
          "tanh": 5.0 / 3, "relu": math.sqrt(2.0), "selu": 3.0 / 4}  # fmt: skip


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor that keeps the variance through a nonlinearity.

    Args:
        nonlinearity: "linear", "sigmoid", "tanh", "relu", "leaky_relu", "selu" or a convolution.
        param: the negative slope of "leaky_relu" (default 0.01).
    Raises:
        ParameterError: another name, or a slope that is no number.
    Source: He et al., arXiv:1502.01852.
    """
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else param
        if isinstance(slope, bool) or not isinstance(slope, int | float):
            raise ParameterError(f"negative_slope {slope} not a valid number")
        return math.sqrt(2.0 / (1 + slope**2))
    if nonlinearity not in _GAINS:
        raise ParameterError(f"Unsupported nonlinearity {nonlinearity}")
    return _GAINS[nonlinearity]


def fans(tensor: Tensor) -> tuple[int, int]:
    """(fan in, fan out) of a weight (out, in, *kernel).

    Raises:
        ParameterError: fewer than two dimensions.
    """
    if tensor.ndim < 2:
        raise ParameterError(
            "Fan in and fan out can not be computed for tensor with fewer than 2 dimensions"
        )
    taps = math.prod(tensor.shape[2:])
    return tensor.shape[1] * taps, tensor.shape[0] * taps


def uniform_(tensor: Any, a: float = 0.0, b: float = 1.0, generator: Any = None) -> Any:
    """Uniform in [a, b)."""
    with no_grad():
        return tensor.uniform_(a, b, generator=generator)


def normal_(tensor: Any, mean: float = 0.0, std: float = 1.0, generator: Any = None) -> Any:
    """Normal with the given mean and standard deviation."""
    with no_grad():
        return tensor.normal_(mean, std, generator=generator)


def constant_(tensor: Any, val: float) -> Any:
    """`val` everywhere."""
    with no_grad():
        return tensor.fill_(val)


def zeros_(tensor: Any) -> Any:
    """0 everywhere."""
    return constant_(tensor, 0)


def ones_(tensor: Any) -> Any:
    """1 everywhere."""
    return constant_(tensor, 1)


def xavier_uniform_(tensor: Any, gain: float = 1.0, generator: Any = None) -> Any:
    """Uniform of standard deviation gain * sqrt(2 / (fan in + fan out)).

    Raises:
        ParameterError: fewer than two dimensions.
    Source: Glorot and Bengio, AISTATS 2010.
    """
    bound = math.sqrt(3.0) * gain * math.sqrt(2.0 / sum(fans(tensor)))
    return uniform_(tensor, -bound, bound, generator)


def xavier_normal_(tensor: Any, gain: float = 1.0, generator: Any = None) -> Any:
    """Normal of standard deviation gain * sqrt(2 / (fan in + fan out)).

    Raises:
        ParameterError: fewer than two dimensions.
    Source: Glorot and Bengio, AISTATS 2010.
    """
    return normal_(tensor, 0.0, gain * math.sqrt(2.0 / sum(fans(tensor))), generator)


def _kaiming_std(tensor: Any, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ParameterError(f"Mode {mode} not supported, please use one of ['fan_in', 'fan_out']")
    fan = fans(tensor)[mode == "fan_out"]
    return calculate_gain(nonlinearity, a) / math.sqrt(fan)


def kaiming_uniform_(
    tensor: Any, a: float = 0, mode: str = "fan_in", nonlinearity: str = "leaky_relu",
    generator: Any = None,
) -> Any:  # fmt: skip
    """Uniform of standard deviation gain / sqrt(fan).

    Args:
        tensor: a weight of two or more dimensions; one without elements is left alone, with a
            warning.
        a: the negative slope of leaky_relu.
        mode: "fan_in" or "fan_out".
        nonlinearity: see `calculate_gain`.
    Raises:
        ParameterError: another mode or nonlinearity, or fewer than two dimensions.
    Source: He et al., arXiv:1502.01852.
    Example:
        >>> import tracegrad as tg
        >>> w = tg.nn.init.kaiming_uniform_(tg.empty(4, 6), a=5 ** 0.5)
        >>> bool((w.abs() <= 6 ** -0.5).all())
        True
    """
    if _is_empty(tensor.shape):
        return tensor
    bound = math.sqrt(3.0) * _kaiming_std(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(
    tensor: Any, a: float = 0, mode: str = "fan_in", nonlinearity: str = "leaky_relu",
    generator: Any = None,
) -> Any:  # fmt: skip
    """Normal of standard deviation gain / sqrt(fan); else as `kaiming_uniform_`."""
    if _is_empty(tensor.shape):
        return tensor
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity), generator)


def _is_empty(shape: Sequence[int]) -> bool:
    if 0 in shape:
        warnings.warn("Initializing zero-element tensors is a no-op", UserWarning, stacklevel=3)
        return True
    return False


def affine_defaults_(weight: Any, bias: Any) -> None:
    """PyTorch's default for linear and convolution layers: U(-1/sqrt(fan in), 1/sqrt(fan in))."""
    kaiming_uniform_(weight, a=math.sqrt(5))  # gain sqrt(1/3): the bound is 1/sqrt(fan in)
    if bias is not None:
        fan_in = fans(weight)[0]
        bound = 1 / math.sqrt(fan_in) if fan_in else 0.0
        uniform_(bias, -bound, bound)
