"""What Python asks of a tensor: its values as numbers and arrays, iteration, text, copies.

Each look at values is told to the recorder. `tracegrad.tracer.methods` attaches these functions to
the class (`METHODS`). Start reading at `item`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tracegrad.ir.errors import (
    ElementError,
    ExportError,
    GradientError,
    OperandError,
    ParameterError,
    ShapeError,
    UnsupportedError,
)
from tracegrad.ir.primitive import is_scalar
from tracegrad.runtime.cuda import exchange
from tracegrad.runtime.cuda.array import DeviceArray, host
from tracegrad.tracer import from_data, inplace, joining, printing, reductions, shapes
from tracegrad.tracer.arguments import bool_argument
from tracegrad.tracer.once import warn_once
from tracegrad.tracer.pointwise import apply2, need_tensor
from tracegrad.tracer.profiling import note_made, now, profilers
from tracegrad.tracer.reading import WITH_GRAD
from tracegrad.tracer.state import state
from tracegrad.tracer.tensor import Tensor, address_of, wrap

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
    return _plain(host(self._array).reshape(()))


def _plain(array: np.ndarray) -> Any:
    return float(array) if array.dtype.kind not in "biu" else array.item()


def _one(x: Tensor, what: str) -> Any:
    """The value of a one-element tensor, for Python's conversions."""
    if x._array.size != 1:
        raise ParameterError("only one element tensors can be converted to Python scalars")
    if x.requires_grad and what != "int":  # as in PyTorch
        warn_once(WITH_GRAD)
    _read(x, what)
    return _plain(host(x._array).reshape(()))


def tolist(self: Tensor) -> Any:
    """The values as nested lists of Python numbers."""
    _read(self, "tolist")
    values = host(self._array)
    wide = values if values.dtype.kind in "biuf" else values.astype(np.float64)
    return wide.tolist()


def numpy(self: Tensor, *, force: bool = False) -> np.ndarray:
    """The memory as a NumPy array, shared (bfloat16 as that of the package ml_dtypes).

    Raises:
        GradientError: the tensor requires grad (and not `force`), under grad mode.
        OperandError: `force` is no bool; the tensor is on a CUDA device (and not `force`).
    """
    bool_argument("numpy", "force", force)
    if state.grad_enabled and self.requires_grad and not force:
        raise GradientError(
            "Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead."
        )
    if self._array.__class__ is DeviceArray and not force:
        raise OperandError(
            f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy the "
            "tensor to host memory first."
        )
    _read(self, "numpy")
    return host(self._array).view()  # of its own: a new shape for it is none for the tensor


def __array__(self: Tensor, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    array = numpy(self)
    if dtype is not None and np.dtype(dtype) != array.dtype:
        if copy is False:
            raise ParameterError(
                f"Unable to avoid copy while creating an array of {np.dtype(dtype)} from a tensor "
                f"of {self.dtype}; use np.asarray(x, dtype), which copies where it must"
            )
        return array.astype(dtype)
    return array.copy() if copy else array


def __array_wrap__(
    self: Tensor, array: Any, context: Any = None, return_scalar: bool = False
) -> Tensor:
    """The result of a NumPy function as a tensor; bools become uint8, as in PyTorch."""
    array = np.asarray(array)
    return from_data.from_numpy(array.astype(np.uint8) if array.dtype == np.bool_ else array)


def __dlpack__(self: Tensor, **options: Any) -> Any:
    """The memory as a DLPack capsule.

    Raises:
        ExportError: the tensor requires grad, or has a dtype that NumPy cannot export.
    """
    if self.requires_grad:
        raise ExportError("Can't export tensors that require gradient, use tensor.detach()")
    _read(self, "__dlpack__")
    if self._array.__class__ is DeviceArray:
        return _device_capsule(self._array, **options)
    try:
        return self._array.__dlpack__(**options)
    except BufferError as error:
        raise ExportError(f"__dlpack__: {self.dtype} tensor: {error}") from None


def _device_capsule(
    array: DeviceArray, *, stream: Any = None, max_version: Any = None, dl_device: Any = None,
    copy: bool | None = None,
) -> Any:  # fmt: skip
    """The capsule of memory on a device; of a copy where one is asked for, on the host too."""
    where = None if dl_device is None else tuple(dl_device)
    if where == (1, 0) and copy is not False:
        return array.to_host().__dlpack__(max_version=max_version)
    if where not in (None, (exchange.CUDA, array.index)):
        raise ExportError(
            f"__dlpack__: a tensor on cuda:{array.index} cannot be given to device {where}"
            + (" without a copy" if copy is False else "")
        )
    return exchange.export(array.copy() if copy else array, stream)


def __dlpack_device__(self: Tensor) -> tuple[int, int]:
    """Kind and number of the device: (1, 0) is the CPU, (2, 0) the first CUDA device."""
    if self._array.__class__ is DeviceArray:
        return exchange.CUDA, self._array.index
    return self._array.__dlpack_device__()


def cuda_array_interface(self: Tensor) -> dict[str, Any]:
    """The memory as CuPy, Numba and PyTorch understand it, for a tensor on a CUDA device.

    Raises:
        AttributeError: the tensor is not on one.
        ExportError: it requires grad, or is of dtype bfloat16.
    """
    if self._array.__class__ is not DeviceArray:
        raise AttributeError(
            f"Can't get __cuda_array_interface__ on non-CUDA tensor type: {self.type()} If CUDA data "
            "is required use tensor.cuda() to copy tensor to device memory."
        )
    if self.requires_grad:
        raise ExportError(
            "Can't get __cuda_array_interface__ on Variable that requires grad. If gradients aren't "
            "required, use var.detach() to get Variable that doesn't require grad."
        )
    _read(self, "__cuda_array_interface__")
    return exchange.interface(self._array)


def __bool__(self: Tensor) -> bool:
    size = self._array.size
    if size == 0:
        raise ShapeError("Boolean value of Tensor with no values is ambiguous")
    if size > 1:
        raise ShapeError("Boolean value of Tensor with more than one value is ambiguous")
    _read(self, "bool")
    return bool(host(self._array).reshape(())[()])


def __float__(self: Tensor) -> float:
    return float(_one(self, "float"))


def __int__(self: Tensor) -> int:
    return int(_one(self, "int"))


def __complex__(self: Tensor) -> complex:
    return complex(_one(self, "complex"))


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
    raise ElementError(
        f"Tensor.__contains__ only supports Tensor or scalar, but you passed in a {type(element)}."
    )


def __reversed__(self: Tensor) -> Tensor:
    return joining.flip(self, 0) if self._array.ndim else self


def __delitem__(self: Tensor, index: Any) -> None:
    raise OperandError("Tensor does not support deleting items")


def __format__(self: Tensor, spec: str) -> str:
    if self._array.ndim == 0 and type(self) is Tensor:
        return format(item(self), spec)
    return object.__format__(self, spec)


def __repr__(self: Tensor, *, tensor_contents: str | None = None) -> str:
    shown = None if state.recorder is None else state.recorder.shown(self)
    if shown is not None:
        return shown
    _read(self, "repr")
    return printing.text(self, contents=tensor_contents)


# ---- copying ------------------------------------------------------------------------------------


def _refuse_in_transforms(x: Tensor, what: str) -> None:
    """Copies that are no operations would not vary with what they copy."""
    varies = x.requires_grad or (state.recorder is not None and state.recorder.companions(x))
    if state.transforms and varies:
        raise UnsupportedError(
            f"{what} of a tensor inside a transform (vmap, grad, jvp ...) would lose what the "
            "transform follows; use clone()"
        )


def __deepcopy__(self: Tensor, memo: dict[int, Any]) -> Tensor:
    _refuse_in_transforms(self, "deepcopy()")
    _read(self, "deepcopy")
    if self.grad_fn is not None:
        raise GradientError(
            "Only Tensors created explicitly by the user (graph leaves) support the deepcopy "
            "protocol at the moment.  If you were attempting to deepcopy a module, this may be "
            "because of a torch.nn.utils.weight_norm usage, see "
            "https://github.com/pytorch/pytorch/pull/103001"
        )
    if id(self) in memo:
        return memo[id(self)]
    since = now()
    twin, offset, strides = _twin(self, memo)
    made = _rebuild(type(self), twin, offset, self._array.shape, strides, self._requires_grad, None)
    memo[id(self)] = made
    if profilers:
        note_made("clone", (made,), since, (self,))
    if self._grad is not None:
        made._grad = __deepcopy__(self._grad, memo)
    if hasattr(self, "__dict__"):
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
    return made


def _twin(x: Tensor, memo: dict[Any, Any]) -> tuple[np.ndarray, int, tuple[int, ...]]:
    """Copied memory for the copy of `x`; the memo keeps it for what shares memory with `x`."""
    array, token = x._array, ("memory", id(x._storage.memory))
    memory, twin = memo.get(token, (None, None))
    if memory is not None and twin.dtype == array.dtype and array.size:
        start = (x._ptr() - address_of(memory)) // array.itemsize
        strides = tuple(s // array.itemsize for s in array.strides)
        last = start + sum((n - 1) * s for n, s in zip(array.shape, strides, strict=True))
        if 0 <= start <= last < memory.size:
            return twin, start, strides
    memory, offset, strides = _memory(x)
    twin = memory.copy()
    memo[token] = (memory, twin)
    return twin, offset, strides


def _memory(x: Tensor) -> tuple[np.ndarray, int, tuple[int, ...]]:
    """What a copy is made from: memory without gaps, and where in it `x` lies (in elements).

    Views share that of their base, so that their copies share memory too.
    """
    array = x._array
    base = array if x._view is None else x._view.base._array
    item = array.itemsize
    if base.flags.c_contiguous and array.size:
        return base, (x._ptr() - address_of(base)) // item, tuple(s // item for s in array.strides)
    memory = array.copy(order="K")
    flat = memory.T if memory.flags.f_contiguous else memory
    return flat, 0, tuple(s // item for s in memory.strides)


def _part(memory: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
    """A view of memory, from `offset` bytes on."""
    if memory.__class__ is DeviceArray:
        return memory.part(offset, shape, strides)
    return np.ndarray(shape, memory.dtype, memory, offset, strides)


def _rebuild(
    cls: type[Tensor], memory: np.ndarray, offset: int, shape: tuple[int, ...],
    strides: tuple[int, ...], requires_grad: bool, extra: dict[str, Any] | None,
) -> Tensor:  # fmt: skip
    item = memory.itemsize
    made = wrap(_part(memory, offset * item, tuple(shape), tuple(s * item for s in strides)))
    if cls is not Tensor:
        made = cls.__new__(cls, made)
    made._requires_grad = requires_grad
    if extra:
        made.__dict__.update(extra)
    return made


def __reduce_ex__(self: Tensor, protocol: int) -> tuple[Any, ...]:
    _refuse_in_transforms(self, "a copy() or pickle")
    _read(self, "pickle")
    extra = dict(self.__dict__) if hasattr(self, "__dict__") else None
    return (
        _rebuild,
        (type(self), *_placed(self), self.requires_grad, extra),
    )


def _placed(x: Tensor) -> tuple[np.ndarray, int, tuple[int, ...], tuple[int, ...]]:
    memory, offset, strides = _memory(x)
    return memory, offset, tuple(x._array.shape), strides


def apply_(self: Tensor, callable: Callable[[Any], Any]) -> Tensor:
    """Replace each element by what a Python function makes of it; slow. Returns the tensor.

    Raises:
        GradientError: the tensor requires grad.
        OperandError: the function is none, or gives no number.
    """
    if self.requires_grad:
        raise GradientError(
            "Can't call apply_() on Variable that requires grad. Use var.detach().apply_() instead."
        )
    _read(self, "apply_")
    inplace.check_writable(self, name="apply_")
    try:
        values = [callable(x) for x in tolist(self.reshape(-1))]
        new = np.array(values, np.float64 if self.dtype.is_floating_point else np.int64)
    except (TypeError, ValueError) as error:
        raise OperandError(str(error)) from None
    self._array[...] = new.reshape(self._array.shape)
    self._storage.bump("apply_")
    return self


def map_(self: Tensor, other: Tensor, callable: Callable[[Any, Any], Any]) -> Tensor:
    """Replace each element by `callable(element, element of other)`; slow. Returns the tensor.

    Raises:
        GradientError: a tensor requires grad.
        OperandError: `other` is no tensor, or the function is none, or gives no number.
        ShapeError: `other` does not broadcast to this tensor.

    Example:
        >>> import tracegrad as tg
        >>> tg.tensor([1., 2.]).map_(tg.tensor([3., 4.]), lambda a, b: a * b)
        tensor([3., 8.])
    """
    return _mapped("map_", self, (other,), callable)


def map2_(self: Tensor, x: Tensor, y: Tensor, callable: Callable[[Any, Any, Any], Any]) -> Tensor:
    """Replace each element by `callable(element, element of x, element of y)`; slow.

    Raises:
        GradientError: a tensor requires grad.
        OperandError: `x` or `y` is no tensor, or the function is none, or gives no number.
        ShapeError: they do not broadcast to this tensor.

    Example:
        >>> import tracegrad as tg
        >>> one = tg.tensor([1., 2.])
        >>> tg.zeros(2).map2_(one, one, lambda a, b, c: a + b + c)
        tensor([2., 4.])
    """
    return _mapped("map2_", self, (x, y), callable)


def _mapped(
    name: str, self: Tensor, others: tuple[Tensor, ...], callable: Callable[..., Any]
) -> Tensor:
    for position, other in enumerate(others, 1):
        need_tensor(name, "xy"[position - 1] if len(others) > 1 else "other", position, other)
    if self.requires_grad or any(x.requires_grad for x in others):
        raise GradientError(
            f"Can't call {name}() on Variable that requires grad. Use var.detach().{name}() instead."
        )
    for other in (self, *others):
        _read(other, name)
    inplace.check_writable(self, name=name)
    wide = [tolist(x.expand(self.shape).reshape(-1)) for x in others]
    try:
        values = [callable(*row) for row in zip(tolist(self.reshape(-1)), *wide, strict=True)]
        new = np.array(values, np.float64 if self.dtype.is_floating_point else np.int64)
    except (TypeError, ValueError) as error:
        raise OperandError(str(error)) from None
    self._array[...] = new.reshape(self._array.shape)
    self._storage.bump(name)
    return self


METHODS = (
    item,
    apply_,
    map_,
    map2_,
    tolist,
    numpy,
    __array__,
    __array_wrap__,
    __dlpack__,
    __dlpack_device__,
    __bool__,
    __float__,
    __int__,
    __complex__,
    __index__,
    __len__,
    __iter__,
    __contains__,
    __delitem__,
    __reversed__,
    __format__,
    __repr__,
    __deepcopy__,
    __reduce_ex__,
)
