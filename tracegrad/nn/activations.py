"""Element-by-element functions of `nn.functional`, and softmax. Start reading at `gelu`.

Each is a composition of primitives, so it can be captured, fused and differentiated again.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

from tracegrad.ir import ops
from tracegrad.ir.errors import OptionError
from tracegrad.tracer import linalg, pointwise
from tracegrad.tracer.composites import composite
from tracegrad.tracer.pointwise import apply1, apply2, named, need_tensor
from tracegrad.tracer.pointwise_checks import need_floating


def relu(input: Any, inplace: bool = False) -> Any:
    """max(x, 0), the gradient 0 at 0; NaN stays NaN.

    Example:
        >>> import tracegrad as tg
        >>> tg.nn.functional.relu(tg.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """
    need_tensor("relu", "input", 1, input)
    return input.relu_() if inplace else pointwise.relu(input)


@composite
def leaky_relu(input: Any, negative_slope: float = 0.01, inplace: bool = False) -> Any:
    """x where x > 0, else `negative_slope * x`.

    Args:
        input: floating, any shape.
    """
    need_tensor("leaky_relu", "input", 1, input)
    need_floating("leaky_relu_cpu", input)
    scaled = apply2("mul", input, float(negative_slope))
    out = ops.where(apply2("greater", input, 0), input, scaled)
    return input.copy_(out) if inplace else named(out, "LeakyReluBackward0")


def tanh(input: Any) -> Any:
    """Hyperbolic tangent of every element."""
    return pointwise.FUNCTIONS["tanh"](input)


def sigmoid(input: Any) -> Any:
    """1 / (1 + exp(-x)), without overflow in value or gradient."""
    return pointwise.FUNCTIONS["sigmoid"](input)


@composite
def silu(input: Any, inplace: bool = False) -> Any:
    """x * sigmoid(x).

    Source: Hendrycks and Gimpel, arXiv:1606.08415.
    """
    need_tensor("silu", "input", 1, input)
    need_floating("silu_cpu", input)
    out = apply2("mul", input, apply1("sigmoid", input))
    return input.copy_(out) if inplace else named(out, "SiluBackward0")


@composite
def softplus(input: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
    """log(1 + exp(beta x)) / beta; x itself where beta x > `threshold`."""
    need_tensor("softplus", "input", 1, input)
    need_floating("softplus_cpu", input)
    scaled = apply2("mul", input, float(beta))
    linear = apply2("greater", scaled, float(threshold))
    safe = ops.where(linear, 0, scaled)  # no overflow, and no NaN gradient, where x is taken
    soft = apply2("div", apply1("log1p", apply1("exp", safe)), float(beta))
    return named(ops.where(linear, input, soft), "SoftplusBackward0")


@composite
def gelu(input: Any, approximate: str = "none") -> Any:
    """x * Phi(x), Phi the normal distribution function.

    Args:
        input: floating, any shape.
        approximate: "none": x/2 (1 + erf(x/sqrt 2)); "tanh":
            x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
    Returns:
        Same dtype and shape.
    Raises:
        OptionError: another `approximate`.
        KernelError: not floating.
    Source: Hendrycks and Gimpel, arXiv:1606.08415.
    Example:
        >>> import tracegrad as tg
        >>> tg.nn.functional.gelu(tg.tensor([0.0, 1.0]))
        tensor([0.0000, 0.8413])
    """
    need_tensor("gelu", "input", 1, input)
    need_floating("GeluKernelImpl", input)
    if approximate == "none":
        inner = apply1("erf", apply2("mul", input, math.sqrt(0.5)))
    elif approximate == "tanh":
        cubic = apply2("mul", apply2("mul", apply2("mul", input, input), input), 0.044715)
        inner = apply1("tanh", apply2("mul", apply2("add", input, cubic), math.sqrt(2 / math.pi)))
    else:
        raise OptionError("approximate argument must be either none or tanh.")
    half = apply2("mul", input, 0.5)
    return named(apply2("mul", half, apply2("add", inner, 1)), "GeluBackward0")


def softmax(input: Any, dim: int | None = None, dtype: Any = None) -> Any:
    """exp(x) divided by its sum along `dim`, computed after subtracting the maximum.

    Args:
        input: floating, any shape; cast to `dtype` first where one is given.
        dim: without it, 0 for 0, 1 or 3 dimensions, else 1, with a warning (PyTorch's old rule).
    Returns:
        Same dtype and shape.
    Raises:
        DTypeError: not floating.
        DimensionError: `dim` is out of range.
    """
    need_tensor("softmax", "input", 1, input)
    return linalg.softmax(input, _dim("softmax", dim, input.ndim), dtype)


def log_softmax(input: Any, dim: int | None = None, dtype: Any = None) -> Any:
    """Logarithm of `softmax`, exact also where softmax underflows.

    Args:
        input: floating, any shape; cast to `dtype` first where one is given.
        dim: without it, 0 for 0, 1 or 3 dimensions, else 1, with a warning (PyTorch's old rule).
    Returns:
        Same dtype and shape.
    Raises:
        DTypeError: not floating.
        DimensionError: `dim` is out of range.
    """
    need_tensor("log_softmax", "input", 1, input)
    return linalg.log_softmax(input, _dim("log_softmax", dim, input.ndim), dtype)


def _dim(name: str, dim: int | None, ndim: int) -> int:
    if dim is not None:
        return dim
    warnings.warn(
        f"Implicit dimension choice for {name} has been deprecated. Change the call to include "
        "dim=X as an argument.",
        UserWarning,
        stacklevel=3,
    )
    return 0 if ndim in (0, 1, 3) else 1
