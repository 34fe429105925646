"""What a tensor says about itself without its values.

`tracegrad.tracer.methods` attaches these functions to the class (`METHODS`, `PROPERTIES`). Start
reading at `size`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tracegrad.ir.errors import (
    DeviceError,
    DimensionError,
    DTypeError,
    OptionError,
    ShapeError,
)
from tracegrad.ir.types import contiguous_strides
from tracegrad.runtime.cuda import current, driver
from tracegrad.tracer import shapes
from tracegrad.tracer.arguments import int_argument, need_tensor
from tracegrad.tracer.device import CPU, as_device
from tracegrad.tracer.layout import (
    contiguous_format,
    layout,
    memory_format,
    strided,
)
from tracegrad.tracer.moving import in_pinned_memory, moved, moved_to_pinned
from tracegrad.tracer.once import warn_once
from tracegrad.tracer.state import state
from tracegrad.tracer.storage_view import TypedStorage, UntypedStorage, storage_of
from tracegrad.tracer.tape import scalar_type_name
from tracegrad.tracer.tensor import Tensor

# ---- meta-data ----------------------------------------------------------------------------------


def size(self: Tensor, dim: int | None = None) -> Any:
    """Shape, or one size of it.

    Raises:
        DimensionError: `dim` is out of range.
        OperandError: it is no int.
    """
    shape = self.shape
    return shape if dim is None else shape[_wrapped("size", dim, len(shape))]


def _wrapped(function: str, dim: Any, ndim: int) -> int:
    number = dim if type(dim) is int else int_argument(function, "dim", 1, dim)
    if ndim == 0:
        raise DimensionError(f"Dimension specified as {number} but tensor has no dimensions")
    return shapes.wrap_dim(number, ndim)


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
    """Steps in elements from one index to the next, per dimension, or of one dimension.

    Raises:
        DimensionError: `dim` is out of range.
        OperandError: it is no int.
    """
    array = self._array
    if array.size:
        found = tuple(s // array.itemsize for s in array.strides)
    else:  # NumPy keeps none
        found = contiguous_strides(tuple(max(n, 1) for n in array.shape))
    return found if dim is None else found[_wrapped("stride", dim, len(found))]


def storage_offset(self: Tensor) -> int:
    """Elements between the start of the base's memory and this tensor's."""
    if state.recorder is not None:
        state.recorder.note("storage_offset()")
    base = self._base
    return 0 if base is None else (self._ptr() - base._ptr()) // self._array.itemsize


def is_contiguous(self: Tensor, *, memory_format: memory_format = contiguous_format) -> bool:
    """True where the elements lie in row-major order without gaps."""
    return memory_format is contiguous_format and self._array.flags.c_contiguous


def data_ptr(self: Tensor) -> int:
    """Address of the first element; 0 where there is none."""
    if state.recorder is not None:
        state.recorder.note("data_ptr()")
    return self._ptr() if self._array.size else 0


def untyped_storage(self: Tensor) -> UntypedStorage:
    """The bytes that this tensor and its views share."""
    if state.recorder is not None:
        state.recorder.note("untyped_storage()")
    return UntypedStorage(storage_of(self).view(np.uint8))


def storage(self: Tensor) -> TypedStorage:
    """The numbers in the memory that this tensor and its views share. Deprecated, as in PyTorch."""
    if state.recorder is not None:
        state.recorder.note("storage()")
    warn_once(
        "TypedStorage is deprecated. It will be removed in the future and UntypedStorage will be "
        "the only storage class. This should only matter to you if you are using storages "
        "directly.  To access UntypedStorage directly, use tensor.untyped_storage() instead of "
        "tensor.storage()"
    )
    return TypedStorage(storage_of(self))


def is_floating_point(self: Tensor) -> bool:
    """True for floating dtypes."""
    return self.dtype.is_floating_point


def is_signed(self: Tensor) -> bool:
    """True for dtypes with negative numbers."""
    return self.dtype.is_signed


def is_same_size(self: Tensor, other: Tensor) -> bool:
    """True where `other` has the same shape.

    Raises:
        OperandError: it is no tensor.
    """
    return self._array.shape == need_tensor("is_same_size", "other", 1, other)._array.shape


def is_set_to(self: Tensor, tensor: Tensor) -> bool:
    """True where `tensor` looks at the same memory with the same shape and strides.

    Raises:
        OperandError: it is no tensor.
    """
    need_tensor("is_set_to", "tensor", 1, tensor)
    if state.recorder is not None:
        state.recorder.note("is_set_to()")
    ours, theirs = self._array, tensor._array
    return self._ptr() == tensor._ptr() and (ours.shape, ours.strides) == (
        theirs.shape, theirs.strides
    )  # fmt: skip


def get_device(self: Tensor) -> int:
    """Number of the CUDA device; -1 on the CPU."""
    index = self.device.index
    return -1 if index is None else index


def _never(name: str, what: str) -> Callable[[Tensor], bool]:
    def method(self: Tensor) -> bool:
        return False

    method.__name__ = method.__qualname__ = name
    method.__doc__ = f"False: {what}."
    return method


_NEVER = (
    _never("is_complex", "complex tensors are not supported yet"),
    _never("is_conj", "complex tensors are not supported yet"),
    _never("is_neg", "no tensor here is negated only when it is read"),
    _never("is_shared", "memory is not shared between processes"),
)


def _itself(name: str, what: str) -> Callable[..., Tensor]:
    def method(self: Tensor) -> Tensor:
        return self

    method.__name__ = method.__qualname__ = name
    method.__doc__ = f"The tensor itself: {what}."
    return method


_ITSELF = (
    _itself("conj", "it is real"), _itself("resolve_conj", "it is real"),
    _itself("resolve_neg", "nothing is left to be negated"),
)  # fmt: skip


def cpu(self: Tensor, *, memory_format: Any = None) -> Tensor:
    """The tensor in the CPU's memory: itself if it is there, else a copy."""
    return moved(self, CPU)


def cuda(
    self: Tensor, device: Any = None, non_blocking: bool = False, memory_format: Any = None
) -> Tensor:
    """The tensor on a CUDA device (the current one): itself if it is there, else a copy.

    Raises:
        DeviceError: there is no such device; the text says why.
        OptionError: the device is of another kind.
    """
    where = as_device("cuda" if device is None else device)
    if where.type != "cuda":
        raise OptionError(f"Invalid device, must be cuda device (got {where})")
    return moved(self, where, non_blocking)


def pin_memory(self: Tensor, device: Any = None) -> Tensor:
    """The tensor in page-locked memory of the host: itself if it is there, else a copy.

    Copies from there to a device can go on beside other work: `x.to("cuda", non_blocking=True)`.

    Raises:
        DeviceError: there is no CUDA device; the tensor is on one.
    """
    if driver.status() is not None:
        raise DeviceError("Cannot access accelerator device when none is available.")
    if self.device is not CPU:
        raise DeviceError(
            f"cannot pin 'torch.cuda.{scalar_type_name(self.dtype)}Tensor' only dense CPU tensors "
            "can be pinned"
        )
    return self if is_pinned(self) else moved_to_pinned(self, current.device())


def is_pinned(self: Tensor, device: Any = None) -> bool:
    """True in page-locked memory of the host; see `pin_memory`."""
    return in_pinned_memory(self._array)


# ---- properties ---------------------------------------------------------------------------------


def _of_scalar(name: str, advice: str) -> None:
    warn_once(f"Tensor.{name} is deprecated on 0-D tensors. {advice}")


_IDENTITY = "This function is the identity in these cases."
_NOT_TWO = (
    "The use of `x.T` on tensors of dimension other than 2 to reverse their shape is deprecated "
    "and it will throw an error in a future release. Consider `x.mT` to transpose batches of "
    "matrices or `x.permute(*torch.arange(x.ndim - 1, -1, -1))` to reverse the dimensions of a "
    "tensor."
)


def _reversed(self: Tensor) -> Tensor:
    if self.ndim == 0:
        _of_scalar("T", _IDENTITY)
    elif self.ndim != 2:
        warn_once(_NOT_TWO)
    return shapes.permute(self, *reversed(range(self.ndim)))


def _matrix(name: str, advice: str) -> Callable[[Tensor], Tensor]:
    def transpose(self: Tensor) -> Tensor:
        if self.ndim == 0:
            _of_scalar(name, advice)
            return self
        if self.ndim < 2:
            raise ShapeError(
                f"tensor.{name} is only supported on matrices or batches of matrices. Got "
                f"{self.ndim}-D tensor."
            )
        return shapes.transpose(self, -2, -1)

    return transpose


def _hermitian(self: Tensor) -> Tensor:
    if self.ndim not in (0, 2):
        advice = " For batches of matrices, consider using tensor.mH" if self.ndim > 2 else ""
        raise ShapeError(
            f"tensor.H is only supported on matrices (2-D tensors). Got {self.ndim}-D tensor."
            f"{advice}"
        )
    if self.ndim == 0:
        _of_scalar("H", "Consider using x.conj().")
        return self
    return shapes.transpose(self, 0, 1)


def _imaginary(self: Tensor) -> Tensor:
    raise DTypeError("imag is not implemented for tensors with non-complex dtypes.")


def _layout(self: Tensor) -> layout:
    return strided


def _no(self: Tensor) -> bool:
    return False


PROPERTIES: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "T": (_reversed, "Dimensions in reverse order; a view."),
    "mT": (_matrix("mT", _IDENTITY), "Last two dimensions exchanged; a view."),
    "H": (_hermitian, "Transpose of a matrix (the conjugate one, of a complex matrix); a view."),
    "mH": (_matrix("mH", "Consider using x.conj()."),
           "Last two dimensions exchanged (and conjugated, if complex); a view."),
    "real": (lambda self: self, "The tensor itself: it is real."),
    "imag": (_imaginary, "The imaginary part; refused, as tensors are real."),
    "layout": (_layout, "How the tensor is stored: always strided."),
    "is_cpu": (lambda self: self.device.type == "cpu", "True on the CPU."),
    "is_cuda": (lambda self: self.device.type == "cuda", "True on a CUDA device."),
    "is_sparse": (_no, "False: tensors are strided."),
    "is_quantized": (_no, "False: tensors are not quantized."),
    "is_meta": (_no, "False: tensors have memory."),
    "is_mkldnn": (_no, "False: tensors are strided."),
    "is_nested": (_no, "False: tensors are regular arrays."),
}  # fmt: skip
METHODS = (
    size, dim, numel, element_size, stride, storage_offset, is_contiguous, data_ptr,
    untyped_storage, storage, is_floating_point, is_signed, is_same_size, is_set_to,
    get_device, *_NEVER, *_ITSELF, cpu, cuda, pin_memory, is_pinned,
)  # fmt: skip
