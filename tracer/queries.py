"""Questions about tensors and dtypes that are answered at once, without recording anything new."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType, promote, promote_pair, scalar_dtype
from tracegrad.ir.errors import OperandError
from tracegrad.ir.location import user_stacklevel
from tracegrad.ir.primitive import is_scalar
from tracegrad.tracer.arguments import missing, need_tensor, type_name, wrong_type
from tracegrad.tracer.pointwise_composed import isclose
from tracegrad.tracer.storage_view import UntypedStorage
from tracegrad.tracer.tensor import Tensor

_ABSENT: Any = object()


def is_tensor(obj: Any) -> bool:
    """True for Tensors."""
    return isinstance(obj, Tensor)


def is_storage(obj: Any) -> bool:
    """True for what `untyped_storage()` and `storage()` return."""
    return isinstance(obj, UntypedStorage)


def typename(obj: Any) -> str:
    """The name of an object's type: `torch.FloatTensor`, or module and class."""
    if isinstance(obj, Tensor):
        from tracegrad.tracer.conversion import type_text

        return type_text(obj)
    kind = type(obj)
    return kind.__qualname__ if kind.__module__ == "builtins" else (
        f"{kind.__module__}.{kind.__qualname__}"
    )  # fmt: skip


def _of_tensor(name: str, text: str) -> Callable[[Any], Any]:
    def function(input: Any) -> Any:
        return getattr(need_tensor(name, "input", 1, input), name)()

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"{text}\n\n    Raises:\n        OperandError: `input` is no tensor.\n    "
    return function


def is_nonzero(input: Any) -> bool:
    """True where the one element is not 0.

    Raises:
        OperandError: `input` is no tensor.
        ShapeError: it has not exactly one element.
    """
    return bool(need_tensor("is_nonzero", "input", 1, input))


def is_same_size(input: Any, other: Any) -> bool:
    """True where both have the same shape.

    Raises:
        OperandError: one is no tensor.
    """
    need_tensor("is_same_size", "input", 1, input)
    return input.is_same_size(need_tensor("is_same_size", "other", 2, other))


def result_type(tensor1: Any, tensor2: Any) -> DType:
    """The dtype that an operation on the two operands would promote them to.

    Raises:
        OperandError: an operand is neither a tensor nor a number.

    Example:
        >>> import tracegrad as tg
        >>> tg.result_type(tg.ones(2, dtype=tg.int8), 1.5)
        torch.float32
    """
    for x in (tensor1, tensor2):
        if not isinstance(x, Tensor) and not is_scalar(x):
            got = f"{type_name(tensor1)}, {type_name(tensor2)}"
            raise OperandError(
                f"result_type() received an invalid combination of arguments - got ({got}), but "
                "expected tensors and numbers"
            )
    return promote(
        (x.dtype, x.ndim) if isinstance(x, Tensor) else (scalar_dtype(x), None)
        for x in (tensor1, tensor2)
    )


def _two_dtypes(function: str, names: tuple[str, str], given: tuple[Any, Any]) -> None:
    for k, (name, x) in enumerate(zip(names, given, strict=True)):
        if x is _ABSENT:
            raise missing(function, name)
        if not isinstance(x, DType):
            raise wrong_type(function, name, k + 1, "torch.dtype", x)
        dtypes.as_dtype(x)


def promote_types(type1: Any = _ABSENT, type2: Any = _ABSENT) -> DType:
    """The smallest dtype that holds both (PyTorch's table).

    Raises:
        OperandError: an argument is no dtype.

    Example:
        >>> import tracegrad as tg
        >>> tg.promote_types(tg.uint8, tg.int8)
        torch.int16
    """
    _two_dtypes("promote_types", ("type1", "type2"), (type1, type2))
    return promote_pair(type1, type2)


def can_cast(from_: Any = _ABSENT, to: Any = _ABSENT) -> bool:
    """Whether results of dtype `from_` may be stored as `to`: not to a lower category.

    Raises:
        OperandError: an argument is no dtype.

    Example:
        >>> import tracegrad as tg
        >>> tg.can_cast(tg.float64, tg.float32), tg.can_cast(tg.float32, tg.int64)
        (True, False)
    """
    _two_dtypes("can_cast", ("from_", "to"), (from_, to))
    return from_.category <= to.category


def equal(input: Any, other: Any) -> bool:
    """True where both have the same shape and equal elements.

    Raises:
        OperandError: one is no tensor.
    """
    need_tensor("equal", "input", 1, input)
    need_tensor("equal", "other", 2, other)
    return input.shape == other.shape and bool(input.eq(other).all())


def allclose(
    input: Any, other: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> bool:
    """True where all elements are close: `|input - other| <= atol + rtol * |other|`.

    Raises:
        OperandError: one is no tensor.
        DTypeError: they are of different dtypes.
    """
    need_tensor("allclose", "input", 1, input)
    need_tensor("allclose", "other", 2, other)
    return bool(isclose(input, other, rtol, atol, equal_nan).all())


def set_default_tensor_type(t: Any) -> None:
    """Set the default dtype by a type (`DoubleTensor`) or its name. Deprecated, as in PyTorch.

    Raises:
        OperandError: no floating type.
        ParameterError: no type by that name.
    """
    from tracegrad.tracer.conversion import named_type

    warnings.warn(
        "torch.set_default_tensor_type() is deprecated as of PyTorch 2.1, please use "
        "torch.set_default_dtype() and torch.set_default_device() as alternatives.",
        UserWarning, stacklevel=user_stacklevel(),
    )  # fmt: skip
    found = named_type(t) if isinstance(t, str) else getattr(t, "dtype", None)
    if not isinstance(found, DType):
        raise OperandError(
            "invalid type object: only floating-point types are supported as the default type"
        )
    dtypes.set_default_dtype(found)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (
        is_tensor, is_storage, typename, is_nonzero, is_same_size, result_type, promote_types,
        can_cast, equal, allclose, set_default_tensor_type,
        _of_tensor("is_floating_point", "True for tensors of floating dtype."),
        _of_tensor("is_signed", "True for tensors of a dtype with negative numbers."),
        _of_tensor("is_complex", "False: complex tensors are not supported yet."),
        _of_tensor("is_conj", "False: complex tensors are not supported yet."),
        _of_tensor("is_neg", "False: no tensor here is negated only when it is read."),
        _of_tensor("is_inference", "True for tensors made in inference mode, and views of them."),
        _of_tensor("numel", "Number of elements."),
    )
}  # fmt: skip
