"""Attaches operators and methods to `Tensor`: the functions of the other files, under their names,
and what only makes sense as a method (conversion, values read by Python, copying).

Importing this module completes the class. Start reading at `_attach`, at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tracegrad.ir import dtypes, ops
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import OperandError, ShapeError
from tracegrad.ir.primitive import is_scalar
from tracegrad.tracer import (
    indexing,
    inplace,
    joining,
    linalg,
    pointwise,
    protocols,
    reductions,
    regions,
    shapes,
    updates,
)
from tracegrad.tracer.device import Size, as_device, device
from tracegrad.tracer.dispatch import dispatch
from tracegrad.tracer.hooks import register_hook, register_post_accumulate_grad_hook
from tracegrad.tracer.inplace_methods import INPLACE_FUNCTIONS
from tracegrad.tracer.pointwise import apply1, apply2
from tracegrad.tracer.state import state
from tracegrad.tracer.tape import scalar_type_name
from tracegrad.tracer.tensor import Tensor

# ---- operators ----------------------------------------------------------------------------------


def _known(other: Any) -> bool:
    kinds = Tensor | np.ndarray
    return (
        isinstance(other, kinds) or is_scalar(other) or hasattr(type(other), "__tracegrad_bind__")
    )


def _forward(name: str) -> Callable[[Tensor, Any], Any]:
    def method(self: Tensor, other: Any) -> Any:
        return apply2(name, self, other) if _known(other) else NotImplemented

    return method


def _backward(name: str) -> Callable[[Tensor, Any], Any]:
    def method(self: Tensor, other: Any) -> Any:
        return apply2(name, other, self) if _known(other) else NotImplemented

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
        return apply2(primitive, x, y)

    def method(self: Tensor, other: Any) -> Any:
        if not _known(other):
            return NotImplemented
        return inplace.apply(name, self, compute, other)

    return method


# ---- meta-data ----------------------------------------------------------------------------------


def size(self: Tensor, dim: int | None = None) -> Any:
    """Shape, or one size of it."""
    shape = Size(self._array.shape)
    return shape if dim is None else shape[shapes.wrap_dim(dim, len(shape))]


def dim(self: Tensor) -> int:
    """Number of dimensions."""
    return self._array.ndim


def numel(self: Tensor) -> int:
    """Number of elements."""
    return self._array.size


def element_size(self: Tensor) -> int:
    """Bytes per element."""
    return self._array.itemsize


def stride(self: Tensor, dim: int | None = None) -> Any:
    """Steps in elements from one index to the next, per dimension."""
    found = tuple(s // self._array.itemsize for s in self._array.strides)
    return found if dim is None else found[shapes.wrap_dim(dim, len(found))]


def storage_offset(self: Tensor) -> int:
    """Elements between the start of the base's memory and this tensor's."""
    if state.recorder is not None:
        state.recorder.note("storage_offset()")
    base = self._base
    return 0 if base is None else (self._ptr() - base._ptr()) // self._array.itemsize


def is_contiguous(self: Tensor) -> bool:
    """True where the elements lie in row-major order without gaps."""
    return self._array.flags.c_contiguous


def data_ptr(self: Tensor) -> int:
    """Address of the first element."""
    if state.recorder is not None:
        state.recorder.note("data_ptr()")
    return self._ptr()


def is_floating_point(self: Tensor) -> bool:
    """True for floating dtypes."""
    return self.dtype.is_floating_point


def type_(self: Tensor, dtype: Any = None) -> Any:
    """The name of the tensor's type (`torch.FloatTensor`), or a cast to `dtype`."""
    return f"torch.{scalar_type_name(self.dtype)}Tensor" if dtype is None else to(self, dtype)


# ---- conversion ---------------------------------------------------------------------------------


def to(self: Tensor, *args: Any, dtype: Any = None, device: Any = None, copy: bool = False,
       non_blocking: bool = False) -> Tensor:  # fmt: skip
    """The tensor in another dtype or on another device; itself where nothing changes."""
    for arg in args:
        if isinstance(arg, Tensor):
            dtype = arg.dtype
        elif isinstance(arg, DType | type | np.dtype):
            dtype = arg
        elif isinstance(arg, str | device_type):
            device = arg
        elif isinstance(arg, bool):
            continue
        else:
            raise OperandError(f"to() received an invalid argument: {type(arg).__name__}")
    as_device(device)
    target = self.dtype if dtype is None else dtypes.as_dtype(dtype)
    if target is self.dtype:
        return shapes.clone(self) if copy else self
    return dispatch(ops.cast, (self,), {"dtype": target})


device_type = device


def _cast(dtype: DType) -> Callable[[Tensor], Tensor]:
    def method(self: Tensor) -> Tensor:
        return to(self, dtype)

    method.__doc__ = f"The tensor as {dtype.name}."
    return method


def cpu(self: Tensor) -> Tensor:
    """The tensor in the CPU's memory."""
    return self


def type_as(self: Tensor, other: Tensor) -> Tensor:
    """The tensor in the dtype of `other`."""
    return to(self, other.dtype)


def _new(name: str) -> Callable[..., Tensor]:
    def method(self: Tensor, *args: Any, dtype: Any = None, **options: Any) -> Tensor:
        from tracegrad.tracer.factories import FUNCTIONS

        return FUNCTIONS[name](*args, dtype=self.dtype if dtype is None else dtype, **options)

    method.__doc__ = f"`{name}` in the dtype of this tensor."
    return method


# ---- attaching ----------------------------------------------------------------------------------

_NOT_METHODS = (
    "detach", "real", "where", "cat", "concat", "concatenate", "stack", "einsum", "tensordot",
    "rsub",
)  # fmt: skip
_METHODS = (
    *protocols.METHODS, size, dim, numel, element_size,
    stride, storage_offset, is_contiguous, data_ptr, is_floating_point, to, cpu, type_as,
    register_hook, register_post_accumulate_grad_hook,
)  # fmt: skip
_CASTS = {
    "float": dtypes.float32, "double": dtypes.float64, "half": dtypes.float16,
    "bfloat16": dtypes.bfloat16, "long": dtypes.int64, "int": dtypes.int32,
    "short": dtypes.int16, "char": dtypes.int8, "byte": dtypes.uint8, "bool": dtypes.bool_,
}  # fmt: skip


def _where(self: Tensor, condition: Any, other: Any) -> Any:
    """This tensor where `condition` holds, else `other`."""
    return pointwise.where(condition, self, other)


def _attach() -> None:
    cls: Any = Tensor  # to mypy a Tensor has these already
    for dunder, name in _OPERATORS.items():
        setattr(cls, f"__{dunder}__", _forward(name))
        reflected = _forward if dunder in _COMMUTATIVE else _backward
        setattr(cls, f"__r{dunder}__", reflected(name))
        setattr(cls, f"__i{dunder}__", _augmented(f"{name}_", name))
    for dunder, name in _COMPARISONS.items():
        setattr(cls, f"__{dunder}__", _forward(name))
    cls.__hash__ = object.__hash__
    cls.__neg__ = lambda self: apply1("neg", self)
    cls.__abs__ = lambda self: apply1("abs", self)
    cls.__invert__ = lambda self: apply1("bitwise_not", self)
    cls.__matmul__ = _matmul
    cls.__rmatmul__ = _rmatmul
    cls.__getitem__ = indexing.getitem
    cls.__setitem__ = indexing.setitem
    tables = (pointwise.FUNCTIONS, reductions.FUNCTIONS, shapes.FUNCTIONS, joining.FUNCTIONS,
              linalg.FUNCTIONS, indexing.FUNCTIONS, regions.FUNCTIONS,
              updates.FUNCTIONS, INPLACE_FUNCTIONS)  # fmt: skip
    for table in tables:
        for name, function in table.items():
            if name not in _NOT_METHODS:
                setattr(cls, name, function)
    for method in _METHODS:
        setattr(cls, method.__name__, method)
    for name, dtype in _CASTS.items():
        setattr(cls, name, _cast(dtype))
    for name in ("zeros", "ones", "full", "empty", "tensor"):
        setattr(cls, f"new_{name}", _new(name))
    cls.where = _where
    cls.type = type_
    cls.T = property(_reversed, doc="Dimensions in reverse order; a view.")
    cls.H = property(_matrix_adjoint, doc="The transpose of a matrix; a view.")
    cls.mH = property(_adjoint, doc="Last two dimensions exchanged; a view.")
    cls.real = property(lambda self: self, doc="The tensor itself: complex dtypes do not exist.")
    cls.mT = property(_matrix_transpose, doc="Last two dimensions exchanged; a view.")
    cls.is_cuda = property(lambda self: False, doc="True on a CUDA device.")
    cls.nelement, cls.ndimension = numel, dim


def _matmul(self: Tensor, other: Any) -> Tensor:
    return linalg.matmul(self, other)


def _rmatmul(self: Tensor, other: Any) -> Tensor:
    return linalg.matmul(other, self)


def _matrix_adjoint(self: Tensor) -> Tensor:
    if self.ndim not in (0, 2):
        raise ShapeError(
            f"tensor.H is only supported on matrices (2-D tensors). Got {self.ndim}-D tensor."
            + (" For batches of matrices, consider using tensor.mH" if self.ndim > 2 else "")
        )
    return shapes.transpose(self, 0, 1) if self.ndim else self


def _adjoint(self: Tensor) -> Tensor:
    return shapes.transpose(self, -2, -1) if self.ndim >= 2 else _matrix_transpose(self)


def _reversed(self: Tensor) -> Tensor:
    return ops.permute(self, axes=tuple(reversed(range(self.ndim))))


def _matrix_transpose(self: Tensor) -> Tensor:
    if self.ndim == 0:
        return self
    if self.ndim < 2:
        raise ShapeError(
            "tensor.mT is only supported on matrices or batches of matrices. Got "
            f"{self.ndim}-D tensor."
        )
    return shapes.transpose(self, -2, -1)


_attach()
