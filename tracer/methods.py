"""Attaches operators and methods to `Tensor`: the functions of the other files, under their names,
and what only makes sense as a method (conversion, values read by Python, copying).

Importing this module completes the class. Start reading at `_attach`, at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.errors import DTypeError, OperandError
from tracegrad.ir.primitive import is_scalar
from tracegrad.tracer import (
    conversion,
    factories,
    from_data,
    gathering,
    indexing,
    inplace,
    joining,
    linalg,
    metadata,
    pointwise,
    pointwise_composed,
    protocols,
    queries,
    reductions,
    regions,
    shapes,
    typed,
    updates,
)
from tracegrad.tracer.arguments import Options
from tracegrad.tracer.dispatch import dispatch2
from tracegrad.tracer.hooks import register_hook, register_post_accumulate_grad_hook
from tracegrad.tracer.inplace_methods import INPLACE_FUNCTIONS
from tracegrad.tracer.pointwise import FLOAT32, FLOAT64, SAFE, apply1, apply2, direct
from tracegrad.tracer.signatures import as_method, takes_more
from tracegrad.tracer.tensor import Tensor

# ---- operators ----------------------------------------------------------------------------------


def _known(other: Any) -> bool:
    return (
        isinstance(other, Tensor | np.ndarray) or is_scalar(other)
        or hasattr(type(other), "__tracegrad_bind__")
    )  # fmt: skip


def _forward(name: str) -> Callable[[Tensor, Any], Any]:
    def method(self: Tensor, other: Any) -> Any:
        kind = other.__class__
        if kind is Tensor:
            dtype = self._array.dtype
            if dtype is other._array.dtype and (dtype is FLOAT32 or dtype is FLOAT64):
                op = direct[name]
                if op is not None:  # what `apply2` comes to, one call shorter
                    return dispatch2(op, self, other)
        if kind is Tensor or kind is float or kind is int or _known(other):
            return apply2(name, self, other)
        return NotImplemented

    return method


def _backward(name: str) -> Callable[[Tensor, Any], Any]:
    def method(self: Tensor, other: Any) -> Any:
        kind = type(other)
        if kind is float or kind is int:
            dtype = self._array.dtype
            if (dtype is FLOAT32 or dtype is FLOAT64) and -SAFE < other < SAFE:
                op = direct[name]
                if op is not None:  # what `apply2` comes to, one call shorter
                    return dispatch2(op, dtype.type(other), self)
        if kind is float or kind is int or _known(other):
            return apply2(name, other, self)
        return NotImplemented

    return method


def _swapped(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda x, y: function(y, x)


def _checked(function: Callable[[Any, Any], Any]) -> Callable[[Tensor, Any], Any]:
    """An operator that runs a function of the public ones, for its node's name."""

    def method(self: Tensor, other: Any) -> Any:
        return function(self, other) if _known(other) else NotImplemented

    return method


_OPERATORS = {
    "add": "add", "sub": "sub", "mul": "mul", "truediv": "div", "floordiv": "floor_divide",
    "mod": "remainder", "pow": "pow", "and": "bitwise_and", "or": "bitwise_or",
    "xor": "bitwise_xor", "lshift": "bitwise_left_shift", "rshift": "bitwise_right_shift",
}  # fmt: skip
_COMMUTATIVE = ("add", "mul", "and", "or", "xor")  # reflected, they list the tensor first
_COMPARISONS = {
    "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal",
    "ne": "not_equal",
}  # fmt: skip


def _augmented(name: str, primitive: str) -> Callable[[Tensor, Any], Any]:
    def compute(x: Any, y: Any) -> Any:
        return pointwise.pow(x, y) if primitive == "pow" else apply2(primitive, x, y)

    def method(self: Tensor, other: Any) -> Any:
        if not _known(other):
            return NotImplemented
        return inplace.apply(name, self, compute, other)

    return method


def _new_tensor(self: Tensor, data: Any, **options: Any) -> Tensor:
    """`tensor` in the dtype of this tensor."""
    read = Options.read("new_tensor", options).on(self)
    dtype = self.dtype if read.dtype is None else read.dtype
    return from_data.made("tensor.new_tensor", data, dtype, read)


def _new_legacy(self: Tensor, *given: Any, **options: Any) -> Tensor:
    """A tensor of this dtype from sizes or data; prefer `new_empty` and `new_tensor`."""
    return typed.made(self.dtype, given, {"device": self.device, **options})


# ---- attaching ----------------------------------------------------------------------------------

_NOT_METHODS = (
    "detach", "real", "where", "cat", "concat", "concatenate", "stack", "einsum", "tensordot",
    "rsub", "polygamma", "hstack", "vstack", "dstack", "row_stack", "column_stack", "chain_matmul",
    "std_mean", "var_mean",
)  # fmt: skip
_METHODS = (
    *protocols.METHODS, *metadata.METHODS, conversion.to, conversion.type_as, register_hook,
    register_post_accumulate_grad_hook,
)  # fmt: skip
_CASTS = {
    "float": dtypes.float32, "double": dtypes.float64, "half": dtypes.float16,
    "bfloat16": dtypes.bfloat16, "long": dtypes.int64, "int": dtypes.int32,
    "short": dtypes.int16, "char": dtypes.int8, "byte": dtypes.uint8, "bool": dtypes.bool_,
    "chalf": dtypes.complex32, "cfloat": dtypes.complex64, "cdouble": dtypes.complex128,
}  # fmt: skip


def _where(self: Tensor, condition: Any, other: Any) -> Any:
    """This tensor where `condition` holds, else `other`."""
    return pointwise_composed.where(condition, self, other)


def _polygamma(self: Tensor, n: int) -> Tensor:
    """The derivative of order `n` of `digamma`."""
    return pointwise.FUNCTIONS["polygamma"](n, self)


def _inverted(self: Tensor) -> Any:
    if self.dtype.is_floating_point:
        raise OperandError(
            "~ (operator.invert) is only implemented on integer and Boolean-type tensors"
        )
    return apply1("bitwise_not", self)


def _positive(self: Tensor) -> Any:
    if self.dtype is dtypes.bool_:
        raise DTypeError("The `+` operator, on a bool tensor is not supported.")
    return pointwise.positive(self)


def _attach() -> None:
    cls: Any = Tensor  # to mypy a Tensor has these already
    for dunder, name in _OPERATORS.items():
        setattr(cls, f"__{dunder}__", _forward(name))
        reflected = _forward if dunder in _COMMUTATIVE else _backward
        setattr(cls, f"__r{dunder}__", reflected(name))
        setattr(cls, f"__i{dunder}__", _augmented(f"{name}_", name))
    for dunder, name in _COMPARISONS.items():
        setattr(cls, f"__{dunder}__", _forward(name))
    for dunder, function in {"pow": pointwise.pow, "mod": pointwise.remainder}.items():
        setattr(cls, f"__{dunder}__", _checked(function))
        setattr(cls, f"__r{dunder}__", _checked(_swapped(function)))
    cls.__rsub__ = _checked(pointwise.rsub)
    cls.__hash__ = object.__hash__
    cls.__neg__ = lambda self: apply1("neg", self)
    cls.__abs__ = lambda self: apply1("abs", self)
    cls.__invert__ = _inverted
    cls.__pos__ = _positive
    cls.__matmul__ = _matmul
    cls.__rmatmul__ = _rmatmul
    cls.__getitem__ = indexing.getitem
    cls.__setitem__ = indexing.setitem
    tables = (pointwise.FUNCTIONS, reductions.FUNCTIONS, shapes.FUNCTIONS, joining.FUNCTIONS,
              linalg.FUNCTIONS, gathering.FUNCTIONS, regions.FUNCTIONS,
              updates.FUNCTIONS, INPLACE_FUNCTIONS)  # fmt: skip
    for table in tables:
        for name, function in table.items():
            if name not in _NOT_METHODS:
                method = as_method(name, function) if takes_more(function) else function
                setattr(cls, name, method)
    for method in _METHODS:
        setattr(cls, method.__name__, method)
    for name, dtype in _CASTS.items():
        setattr(cls, name, conversion.cast(name, dtype))
    for name, method in factories.NEW_METHODS.items():
        setattr(cls, name, method)
    cls.new_tensor, cls.new = _new_tensor, _new_legacy
    cls.where = as_method("where", _where)
    cls.polygamma = as_method("polygamma", _polygamma)
    cls.type, cls.view = conversion.type_, conversion.view
    for query in (queries.allclose, queries.equal):
        setattr(cls, query.__name__, as_method(query.__name__, query))
    cls.is_nonzero = queries.is_nonzero
    Tensor.__cuda_array_interface__ = property(  # type: ignore[attr-defined]
        protocols.cuda_array_interface, doc=protocols.cuda_array_interface.__doc__
    )
    for name, (compute, text) in metadata.PROPERTIES.items():
        setattr(cls, name, property(compute, doc=text))
    cls.nelement, cls.ndimension = metadata.numel, metadata.dim


def _matmul(self: Tensor, other: Any) -> Tensor:
    if not isinstance(other, Tensor):
        return NotImplemented  # Python then says which operands `@` cannot combine
    return linalg.matmul(self, other)


def _rmatmul(self: Tensor, other: Any) -> Tensor:
    if not isinstance(other, Tensor):
        return NotImplemented
    return linalg.matmul(other, self)


_attach()
