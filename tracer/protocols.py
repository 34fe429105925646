"""What Python asks of a tensor: its values as numbers and arrays, iteration, text, copies.

Each look at values is told to the recorder. `tracegrad.tracer.methods` attaches these functions to
the class (`METHODS`). Start reading at `item`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tracegrad.ir.errors import GradientError, OperandError, ShapeError
from tracegrad.ir.primitive import is_scalar
from tracegrad.tracer import printing, reductions, shapes
from tracegrad.tracer.pointwise import apply2
from tracegrad.tracer.state import state
from tracegrad.tracer.tensor import Tensor, wrap

# ---- values read by Python ----------------------------------------------------------------------


def _read(x: Tensor, what: str) -> None:
    if state.recorder is not None:
        state.recorder.value_read(x, what)


def item(self: Tensor) -> Any:
    """The value of a one-element tensor as a Python number.

    Raises:
        ShapeError: there is not exactly one element.
    """
    _read(self, "item")
    if self._array.size != 1:
        raise ShapeError(f"a Tensor with {self._array.size} elements cannot be converted to Scalar")
    return _plain(self._array.reshape(()))


def _plain(array: np.ndarray) -> Any:
    return float(array) if array.dtype.kind not in "biu" else array.item()


def tolist(self: Tensor) -> Any:
    """The values as nested lists of Python numbers."""
    _read(self, "tolist")
    wide = self._array if self._array.dtype.kind in "biuf" else self._array.astype(np.float64)
    return wide.tolist()


def numpy(self: Tensor, *, force: bool = False) -> np.ndarray:
    """The memory as a NumPy array, shared.

    Raises:
        GradientError: the tensor requires grad (and not `force`).
    """
    if self.requires_grad and not force:
        raise GradientError(
            "Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead."
        )
    _read(self, "numpy")
    return self._array


def __array__(self: Tensor, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    array = numpy(self)
    if dtype is not None and np.dtype(dtype) != array.dtype:
        return array.astype(dtype)
    return array.copy() if copy else array


def __bool__(self: Tensor) -> bool:
    size = self._array.size
    if size == 0:
        raise ShapeError("Boolean value of Tensor with no values is ambiguous")
    if size > 1:
        raise ShapeError("Boolean value of Tensor with more than one value is ambiguous")
    _read(self, "bool")
    return bool(self._array.reshape(())[()])


def __float__(self: Tensor) -> float:
    return float(item(self))


def __int__(self: Tensor) -> int:
    return int(item(self))


def __index__(self: Tensor) -> int:
    if self.dtype.is_floating_point or self._array.size != 1:
        raise OperandError("only integer tensors of a single element can be converted to an index")
    return int(item(self))


def __len__(self: Tensor) -> int:
    if self._array.ndim == 0:
        raise OperandError("len() of a 0-d tensor")
    return self._array.shape[0]


def __iter__(self: Tensor) -> Iterator[Tensor]:
    if self._array.ndim == 0:
        raise OperandError("iteration over a 0-d tensor")
    return iter(shapes.unbind(self, 0))


def __contains__(self: Tensor, element: Any) -> bool:
    if isinstance(element, Tensor) or is_scalar(element):
        return bool(reductions.any(apply2("equal", self, element)))
    raise OperandError(
        "Tensor.__contains__ only supports Tensor or scalar, but you passed in a "
        f"{type(element).__name__}."
    )


def __format__(self: Tensor, spec: str) -> str:
    if self._array.ndim == 0 and spec:
        return format(item(self), spec)
    return object.__format__(self, spec) if spec else repr(self)


def __repr__(self: Tensor) -> str:
    shown = None if state.recorder is None else state.recorder.shown(self)
    if shown is not None:
        return shown
    _read(self, "repr")
    return printing.text(self)


# ---- copying ------------------------------------------------------------------------------------


def __deepcopy__(self: Tensor, memo: dict[int, Any]) -> Tensor:
    if self.grad_fn is not None:
        raise GradientError(
            "Only Tensors created explicitly by the user (graph leaves) support the deepcopy "
            "protocol at the moment.  If you were attempting to deepcopy a module, this may be "
            "because of a torch.nn.utils.weight_norm usage, see "
            "https://github.com/pytorch/pytorch/pull/103001"
        )
    if id(self) in memo:
        return memo[id(self)]
    made = _rebuild(type(self), self._array.copy(order="K"), self._requires_grad, None)
    memo[id(self)] = made
    if self._grad is not None:
        made._grad = __deepcopy__(self._grad, memo)
    _copy_attributes(self, made)
    return made


def _copy_attributes(source: Tensor, made: Tensor) -> None:
    if hasattr(source, "__dict__"):
        made.__dict__.update(source.__dict__)


def _rebuild(
    cls: type[Tensor], array: np.ndarray, requires_grad: bool, extra: dict[str, Any] | None
) -> Tensor:
    made = wrap(array)
    if cls is not Tensor:
        made = cls.__new__(cls, made)
    made._requires_grad = requires_grad
    if extra:
        made.__dict__.update(extra)
    return made


def __reduce_ex__(self: Tensor, protocol: int) -> tuple[Any, ...]:
    if self.grad_fn is not None:
        raise GradientError(
            "cannot pickle a non-leaf tensor that requires grad; pickle its detach()"
        )
    extra = dict(self.__dict__) if hasattr(self, "__dict__") else None
    array = np.ascontiguousarray(self._array).reshape(self._array.shape)
    return (_rebuild, (type(self), array, self._requires_grad, extra))


METHODS = (
    item,
    tolist,
    numpy,
    __array__,
    __bool__,
    __float__,
    __int__,
    __index__,
    __len__,
    __iter__,
    __contains__,
    __format__,
    __repr__,
    __deepcopy__,
    __reduce_ex__,
)
