"""Functions behind the modules, under PyTorch's names: `import tracegrad.nn.functional as F`.

Activations are in `tracegrad.nn.activations`, convolution and pooling in `tracegrad.nn.windows`,
`pad` in `tracegrad.nn.padding`, losses in `tracegrad.nn.costs`, normalisation of channels in
`tracegrad.nn.norms`; what is left is here. All are compositions of the table of primitives. Start
reading at `linear`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tracegrad.ir import composite, composite_linalg, dtypes, ops
from tracegrad.ir.errors import DTypeError, OperandError, ParameterError, ShapeError, of_values
from tracegrad.ir.primitives.support import nullary_like
from tracegrad.nn.activations import (
    gelu,
    leaky_relu,
    log_softmax,
    relu,
    sigmoid,
    silu,
    softmax,
    softplus,
    tanh,
)
from tracegrad.nn.costs import class_index, cross_entropy, l1_loss, mse_loss, nll_loss
from tracegrad.nn.norms import batch_norm, group_norm, instance_norm
from tracegrad.nn.padding import pad
from tracegrad.nn.windows import (
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    conv1d,
    conv2d,
    conv3d,
    max_pool1d,
    max_pool2d,
    max_pool3d,
)
from tracegrad.runtime.cuda.array import host
from tracegrad.tracer.composites import composite as as_one
from tracegrad.tracer.pointwise import apply1, apply2, named, need_tensor
from tracegrad.tracer.random import draw
from tracegrad.tracer.shapes import flatten

__all__ = [
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "batch_norm", "conv1d", "conv2d", "conv3d",
    "cross_entropy", "dropout", "flatten", "gelu", "group_norm", "instance_norm", "l1_loss",
    "layer_norm", "leaky_relu", "linear", "log_softmax", "max_pool1d", "max_pool2d", "max_pool3d",
    "mse_loss", "nll_loss", "one_hot", "pad", "relu", "sigmoid", "silu", "softmax", "softplus",
    "tanh",
]  # fmt: skip


def __dir__() -> list[str]:
    return list(__all__)


@as_one
def linear(input: Any, weight: Any, bias: Any = None) -> Any:
    """`input @ weight.T + bias`.

    Args:
        input: (..., in).
        weight: (out, in), the dtype of `input`.
        bias: (out,) or None.
    Returns:
        (..., out).
    Raises:
        ShapeError: sizes do not fit (PyTorch's texts).
    Example:
        >>> import tracegrad as tg
        >>> tg.nn.functional.linear(tg.ones(2, 3), tg.ones(4, 3)).shape
        torch.Size([2, 4])
    """
    need_tensor("linear", "input", 1, input)
    need_tensor("linear", "weight", 2, weight)
    out = composite_linalg.linear(input, weight, bias)
    if bias is None:
        if weight.ndim == 2 or input.ndim > 1:
            named(out, "MmBackward0" if weight.ndim == 2 else "MvBackward0")
    elif weight.ndim == 2 and (input.ndim == 2 or bias.ndim == 1 and input.is_contiguous()):
        named(out, "AddmmBackward0")  # else PyTorch adds the bias after the product
    return out


def dropout(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """Each element set to 0 with probability `p`, the others scaled by 1 / (1 - p).

    The bits come from the global generator (`tracegrad.manual_seed`), the same eagerly and
    compiled.

    Args:
        input: floating, any shape.
        p: in [0, 1].
        training: if False, return `input` as it is.
        inplace: write into `input`.
    Raises:
        ParameterError: `p` is out of range.
    Source: Srivastava et al., JMLR 15 (2014), 1929-1958.
    """
    need_tensor("dropout", "input", 1, input)
    check_probability(p)
    if not training or p == 0.0:
        return input
    if not input.dtype.is_floating_point:
        raise DTypeError("result type Float can't be cast to the desired output type Long")
    uniform = draw(
        "random_uniform", None, where=input.device, shape=tuple(input.shape), dtype=input.dtype
    )
    kept = ops.cast(apply2("greater_equal", uniform, float(p)), dtype=input.dtype)
    scale = apply2("mul", kept, 1.0 / (1.0 - p)) if p < 1.0 else kept
    return input.mul_(scale) if inplace else apply2("mul", input, scale)


def check_probability(p: float) -> None:
    """Raise PyTorch's error unless 0 <= p <= 1."""
    if not 0.0 <= p <= 1.0:
        raise ParameterError(f"dropout probability has to be between 0 and 1, but got {p}")


@as_one
def layer_norm(
    input: Any, normalized_shape: Sequence[int], weight: Any = None, bias: Any = None,
    eps: float = 1e-5,
) -> Any:  # fmt: skip
    """(x - mean) / sqrt(variance + eps) over the last axes, times weight, plus bias.

    Args:
        input: (..., *normalized_shape), floating; the half types are computed in float32.
        normalized_shape: sizes of the axes that are normalised together.
        weight, bias: of that shape, or None.
        eps: added to the (biased) variance.
    Returns:
        Same dtype and shape.
    Raises:
        ShapeError, OperandError: shapes that do not fit (PyTorch's texts).
    Source: Ba, Kiros and Hinton, arXiv:1607.06450.
    """
    need_tensor("layer_norm", "input", 1, input)
    axes = _normalized_axes(input, normalized_shape, weight, bias)
    dtype = input.dtype
    half = dtype.is_floating_point and dtype.itemsize == 2
    x = ops.cast(input, dtype=dtypes.float32) if half else input
    centered = apply2("sub", x, composite.reduce_mean(x, axes, True))
    variance = composite.reduce_mean(apply2("mul", centered, centered), axes, True)
    out = apply2("mul", centered, apply1("rsqrt", apply2("add", variance, float(eps))))
    if weight is not None:
        out = apply2("mul", out, weight)
    if bias is not None:
        out = apply2("add", out, bias)
    if out.dtype is not dtype:
        out = ops.cast(out, dtype=dtype)
    return named(out, "NativeLayerNormBackward0")


def _normalized_axes(input: Any, normalized_shape: Any, weight: Any, bias: Any) -> tuple[int, ...]:
    if not isinstance(normalized_shape, Sequence):
        raise OperandError(
            "layer_norm(): argument 'normalized_shape' (position 2) must be tuple of ints, "
            f"not {type(normalized_shape).__name__}"
        )
    shape = tuple(normalized_shape)
    if not shape:
        raise ShapeError(
            "Expected normalized_shape to be at least 1-dimensional, i.e., containing at least "
            "one element, but got normalized_shape = []"
        )
    for word, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ShapeError(
                f"Expected {word} to be of same shape as normalized_shape, but got {word} of "
                f"shape {list(tensor.shape)} and normalized_shape = {list(shape)}"
            )
    if tuple(input.shape[-len(shape) :]) != shape:
        wanted = ", ".join(["*", *map(str, shape)])
        raise ShapeError(
            f"Given normalized_shape={list(shape)}, expected input with shape [{wanted}], but got "
            f"input of size{list(input.shape)}"
        )
    return tuple(range(input.ndim - len(shape), input.ndim))


def one_hot(tensor: Any, num_classes: int = -1) -> Any:
    """1 at the class of each element, else 0.

    Args:
        tensor: int64, any shape, classes in [0, num_classes).
        num_classes: -1 for one more than the largest class present, which reads the values.
    Returns:
        int64, one axis of `num_classes` more, last.
    Raises:
        DTypeError: not int64.
        ShapeError: a value is no class; or no elements to find the number of classes from.
    Example:
        >>> import tracegrad as tg
        >>> tg.nn.functional.one_hot(tg.tensor([1, 0]), 3)
        tensor([[0, 1, 0],
                [1, 0, 0]])
    """
    need_tensor("one_hot", "tensor", 1, tensor)
    if tensor.dtype is not dtypes.int64:
        raise DTypeError("one_hot is only applicable to index tensor of type LongTensor.")
    if num_classes == -1:
        if tensor.numel() == 0:
            raise ShapeError("Can not infer total number of classes from empty tensor.")
        num_classes = int(tensor.max().item()) + 1
    values = host(tensor._array)
    if (values < 0).any():
        raise of_values(ShapeError("Class values must be non-negative."))
    if num_classes < 1 or (values >= num_classes).any():
        raise of_values(ShapeError("Class values must be smaller than num_classes."))
    # Rows of a unit matrix: `gather` checks the classes again when a compiled function runs.
    counters = [
        nullary_like(tensor, "iota", shape=(num_classes,) * 2, axis=axis, dtype=dtypes.int64)
        for axis in (0, 1)
    ]
    rows = ops.cast(apply2("equal", *counters), dtype=dtypes.int64)
    return ops.gather(rows, class_index(tensor, num_classes), axes=(0,))
