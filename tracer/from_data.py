"""Tensors from data: numbers, nested sequences, NumPy arrays, buffers, DLPack, other tensors.

`tensor` copies (`tracegrad.tracer.reading` reads the data), the others share memory where they can.
Start reading at `tensor`.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import (
    CapsuleError,
    ExportError,
    OperandError,
    ParameterError,
)
from tracegrad.ir.location import user_stacklevel
from tracegrad.runtime.cuda import current, exchange
from tracegrad.tracer.arguments import (
    Options,
    bool_argument,
    dtype_argument,
    missing,
    wrong_type,
)
from tracegrad.tracer.device import as_device, device
from tracegrad.tracer.factories import ABSENT, new_leaf, placed, public
from tracegrad.tracer.moving import moved
from tracegrad.tracer.once import warn_once
from tracegrad.tracer.profiling import note_made, now, profilers
from tracegrad.tracer.reading import array_of, checked, full_name
from tracegrad.tracer.state import state
from tracegrad.tracer.symbolic import is_symbolic, number_as_tensor
from tracegrad.tracer.tape import scalar_type_name
from tracegrad.tracer.tensor import Tensor

_COPY = (
    "To copy construct from a tensor, it is recommended to use sourceTensor.detach().clone() or "
    "sourceTensor.detach().clone().requires_grad_(True), rather than {}(sourceTensor)."
)
_KEEPS_GRAD = (
    "torch.asarray: unspecified requires_grad now defaults to obj.requires_grad instead of False. "
    "Pass requires_grad=False explicitly to get the old behavior and silence this warning."
)
_READ_ONLY = (
    "The given NumPy array is not writable, and PyTorch does not support non-writable tensors. "
    "This means writing to this tensor will result in undefined behavior. You may want to copy the "
    "array to protect its data or make it writable before converting it to a tensor. This type of "
    "warning will be suppressed for the rest of this program."
)


@public
def tensor(data: Any = ABSENT, **options: Any) -> Tensor:
    """A new leaf that holds a copy of `data` (numbers, nested sequences, arrays, tensors).

    Python's floats give the default dtype, ints int64, bools bool; NumPy's arrays and numbers and
    tensors bring their own; of several the promoted one is taken.

    Args:
        options: `dtype`, `device`, `requires_grad`, `pin_memory`.
    Raises:
        ParameterError: sequences of unequal length.
        DTypeError: something that is no number, or that `dtype` cannot hold; complex numbers.
        OperandError: strings; a keyword of the wrong type.

    Example:
        >>> import tracegrad as tg
        >>> tg.tensor([1., 2.])
        tensor([1., 2.])
    """
    if data is ABSENT:
        raise missing("tensor", "data")
    read = Options.read("tensor", options)
    return made("torch.tensor", data, read.dtype, read)


def made(name: str, data: Any, dtype: DType | None, read: Options) -> Tensor:
    """A leaf with a copy of `data`; `name` is what the warning about tensors says was called."""
    requires_grad = read.requires_grad
    if isinstance(data, Tensor):
        warnings.warn(_COPY.format(name), UserWarning, stacklevel=user_stacklevel())
        copied = data.detach().clone()
        copied = copied if dtype is None else copied.to(dtype)
        copied = copied if read.device is None else moved(copied, read.device)
        return copied.requires_grad_() if requires_grad else copied
    if is_symbolic(data):
        number = number_as_tensor(data, dtype or dtypes.scalar_dtype(data))
        if number is not None:
            return number.clone().requires_grad_() if requires_grad else number.clone()
    return _copied(data, dtype, requires_grad, read.since, read.device)


def _copied(
    data: Any, dtype: DType | None, requires_grad: bool, since: int, where: device | None
) -> Tensor:
    """A leaf with a copy of `data` that are no tensor; PyTorch's profiles call that a lift."""
    out = new_leaf(placed(array_of(data, dtype), where), requires_grad)
    if profilers:
        note_made("lift_fresh", (out,), since)
    return out


# ---- sharing memory -----------------------------------------------------------------------------


@public
def as_tensor(data: Any = ABSENT, *, dtype: Any = None, device: Any = None) -> Tensor:
    """`data` as a tensor, sharing memory with arrays and tensors where no conversion is needed.

    Raises:
        ParameterError, DTypeError, OperandError: as `tensor`.
    """
    if data is ABSENT:
        raise missing("as_tensor", "data")
    since = now()
    wanted = dtype_argument("as_tensor", dtype)
    where = None if device is None and _is_placed(data) else as_device(device)
    device_memory = not isinstance(data, Tensor) and hasattr(data, "__cuda_array_interface__")
    if isinstance(data, Tensor | np.ndarray) or device_memory:
        shared = data if isinstance(data, Tensor) else _shared(data, wanted)
        assert shared is not None, "it is memory, not data to be read"
        shared = shared if wanted is None else shared.to(wanted)
        return shared if where is None else moved(shared, where)
    return _copied(data, wanted, False, since, where)


@public
def asarray(
    obj: Any = ABSENT, *, dtype: Any = None, device: Any = None, copy: bool | None = None,
    requires_grad: bool | None = None,
) -> Tensor:  # fmt: skip
    """`obj` as a tensor: shared where possible, copied where needed or told so.

    Args:
        obj: a tensor, array, object with `__dlpack__`, buffer, number or sequence.
        copy: True copies always; False raises where a copy would be needed.
        requires_grad: True or False; by default as `obj` does.
    Raises:
        ParameterError: `copy=False` and a copy is needed.
        OperandError: an argument of the wrong type.

    Example:
        >>> import numpy as np
        >>> import tracegrad as tg
        >>> a = np.zeros(2)
        >>> x = tg.asarray(a)
        >>> a[0] = 1
        >>> x
        tensor([1., 0.], dtype=torch.float64)
    """
    if obj is ABSENT:
        raise missing("asarray", "obj")
    since = now()
    wanted = dtype_argument("asarray", dtype)
    where = None if device is None and _is_placed(obj) else as_device(device)
    if requires_grad is not None:
        bool_argument("asarray", "requires_grad", requires_grad)
    shared = _shared(obj, wanted)
    if shared is None:
        if copy is False:
            raise ParameterError("can't alias arbitrary sequence into a tensor.")
        return _copied(obj, wanted, bool(requires_grad), since, where)
    out = shared if wanted is None else shared.to(wanted)
    if where is not None and where != out.device:
        if copy is False:
            raise ParameterError(
                f"can't alias tensor located in {out.device} from device '{where}'."
            )
        out = moved(out, where)
    if copy is False and out is not shared:
        have, want = scalar_type_name(shared.dtype), scalar_type_name(out.dtype)
        raise ParameterError(f"can't alias tensor with dtype '{have}' into dtype '{want}'.")
    if copy and out is shared:
        out = out.clone()
    if requires_grad:
        return out.requires_grad_()
    if requires_grad is None and out.requires_grad:
        warnings.warn(_KEEPS_GRAD, UserWarning, stacklevel=user_stacklevel())
        return out
    return out.detach() if out.requires_grad else out


def _is_placed(obj: Any) -> bool:
    """Whether an object is memory that has a device of its own."""
    return isinstance(obj, Tensor) or hasattr(obj, "__cuda_array_interface__")


def _shared(obj: Any, dtype: DType | None) -> Tensor | None:
    """A tensor over the memory of `obj`, or None where it is data to be read."""
    if isinstance(obj, Tensor):
        return obj
    if isinstance(obj, np.ndarray):
        return from_numpy(obj)
    if hasattr(obj, "__dlpack__") and not isinstance(obj, np.generic):
        return from_dlpack(obj)
    if hasattr(obj, "__cuda_array_interface__"):
        return new_leaf(exchange.seen(obj, current.device()), False)
    if isinstance(obj, bytes | bytearray | memoryview) or type(obj).__name__ == "array":
        return frombuffer(obj, dtype=dtypes.get_default_dtype() if dtype is None else dtype)
    return None


@public
def from_numpy(ndarray: Any) -> Tensor:
    """A tensor over the array's memory: writes to one are seen in the other.

    Raises:
        OperandError: not an array, or of a type that tensors lack.
        ParameterError: negative strides, or foreign byte order.
    """
    if not isinstance(ndarray, np.ndarray):
        raise OperandError(f"expected np.ndarray (got {full_name(ndarray)})")
    array = checked(ndarray)
    if any(s % array.itemsize for s in array.strides):
        raise ParameterError(
            "given numpy array strides not a multiple of the element byte size. Copy the numpy "
            "array to reallocate the memory."
        )
    if not array.flags.writeable:
        warn_once(_READ_ONLY)
    return new_leaf(array.view(), False)


@public
def frombuffer(
    buffer: Any, *, dtype: Any = ABSENT, count: int = -1, offset: int = 0,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """A 1-D tensor over the bytes of a buffer (bytearray, memoryview, array, mmap).

    Args:
        count: number of elements; -1 for as many as there are.
        offset: bytes to skip at the start.
    Raises:
        ParameterError: the buffer has not the bytes asked for.
        OperandError: no buffer, or no dtype.

    Example:
        >>> import tracegrad as tg
        >>> tg.frombuffer(bytearray([1, 0, 2, 0]), dtype=tg.int16)
        tensor([1, 2], dtype=torch.int16)
    """
    if dtype is ABSENT:
        raise missing("frombuffer", "dtype")
    wanted = dtype_argument("frombuffer", dtype)
    if wanted is None:
        raise wrong_type("frombuffer", "dtype", 0, "torch.dtype", None)
    try:
        view = memoryview(buffer)
    except TypeError:
        raise ParameterError("object does not implement Python buffer protocol.") from None
    if view.readonly:
        warnings.warn(
            "The given buffer is not writable, and PyTorch does not support non-writable tensors. "
            "This means you can write to the underlying (supposedly non-writable) buffer using the "
            "tensor. You may want to copy the buffer to protect its data or make it writable before "
            "converting it to a tensor. This type of warning will be suppressed for the rest of "
            "this program.",
            UserWarning, stacklevel=user_stacklevel(),
        )  # fmt: skip
    if state.recorder is not None:
        state.recorder.note("frombuffer()")
    number = _buffer_count(view.nbytes, wanted.itemsize, count, offset)
    array = np.frombuffer(view, wanted.numpy, number, offset)
    return new_leaf(array, bool_argument("frombuffer", "requires_grad", requires_grad))


def _buffer_count(size: int, item: int, count: int, offset: int) -> int:
    """How many elements to read."""
    if size == 0 or count == 0:
        raise ParameterError(f"both buffer length ({size}) and count ({count}) must not be 0")
    if not 0 <= offset < size:
        raise ParameterError(
            f"offset ({offset} bytes) must be non-negative and no greater than buffer length "
            f"({size} bytes) minus 1"
        )
    left = size - offset
    if count < 0:
        if left % item:
            raise ParameterError(
                f"buffer length ({left} bytes) after offset ({offset} bytes) must be a multiple of "
                f"element size ({item})"
            )
        return left // item
    if count * item > left:
        raise ParameterError(
            f"requested buffer length ({count} * {item} bytes) after offset ({offset} bytes) must "
            f"not be greater than actual buffer length ({size} bytes)"
        )
    return count


@public
def from_dlpack(ext_tensor: Any, *, device: Any = None, copy: bool | None = None) -> Tensor:
    """A tensor over the memory of an object that speaks DLPack, or of its capsule.

    Args:
        copy: True copies.
    Raises:
        CapsuleError: it does not speak DLPack.
        ExportError: it is a tensor that requires grad.
        DeviceError: its memory is neither the CPU's nor a CUDA device's.

    Example:
        >>> import numpy as np
        >>> import tracegrad as tg
        >>> tg.from_dlpack(np.arange(3))
        tensor([0, 1, 2])
    """
    if device is not None:
        return moved(from_dlpack(ext_tensor, copy=copy), as_device(device))
    if state.recorder is not None:
        state.recorder.note("from_dlpack()")
    if isinstance(ext_tensor, Tensor):
        if ext_tensor.requires_grad:
            raise ExportError("Can't export tensors that require gradient, use tensor.detach()")
        out = ext_tensor.detach()
        return out.clone() if copy else out
    if type(ext_tensor).__name__ == "PyCapsule":
        ext_tensor = _Capsule(ext_tensor)
    if not hasattr(ext_tensor, "__dlpack__"):
        raise CapsuleError(
            "from_dlpack received an invalid capsule. Note that DLTensor capsules can be consumed "
            "only once, so you might have already constructed a tensor from it once."
        )
    where = getattr(ext_tensor, "__dlpack_device__", None)
    if where is not None and not isinstance(ext_tensor, np.ndarray) and where()[0] == exchange.CUDA:
        taken = exchange.taken(ext_tensor.__dlpack__(stream=1))
        return new_leaf(taken.copy() if copy else taken, False)
    array = ext_tensor if isinstance(ext_tensor, np.ndarray) else np.from_dlpack(ext_tensor)
    if copy:
        return new_leaf(checked(np.array(array)), False)
    if not array.flags.writeable and array is not ext_tensor:
        array = np.asarray(_Writable(array))
    return new_leaf(checked(array).view(), False)


class _Writable:
    """The memory of an array that NumPy took for read-only, as an old capsule does not say."""

    def __init__(self, array: np.ndarray) -> None:
        self.owner = array
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = {**array.__array_interface__, "data": (address, False)}


class _Capsule:
    """Gives a capsule to NumPy the way it wants it: from an object."""

    def __init__(self, capsule: Any) -> None:
        self.capsule = capsule

    def __dlpack__(self, **options: Any) -> Any:
        return self.capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


@public
def to_dlpack(tensor: Tensor) -> Any:
    """The DLPack capsule of a tensor; to be consumed once.

    Raises:
        ExportError: the tensor requires grad.
    """
    return tensor.__dlpack__()
