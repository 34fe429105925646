"""Device memory handed to other libraries and taken from them, without a copy.

Two protocols: DLPack capsules (the ABI of DLPack 0.8, which all libraries read), and the
`__cuda_array_interface__` of version 3. All work of ours is in the legacy default stream. Start reading
at `export` and `taken`.
"""

from __future__ import annotations

import ctypes
import itertools
from typing import Any

import numpy as np

from tracegrad.ir.dtypes import bfloat16, from_numpy
from tracegrad.ir.errors import CapsuleError, DTypeError, ExportError, OperandError
from tracegrad.runtime.cuda import driver
from tracegrad.runtime.cuda.array import DeviceArray, DeviceDType
from tracegrad.runtime.layouts import packed_strides

CUDA = 2  # kDLCUDA
_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}
_BFLOAT = 4
_NAME, _USED = b"dltensor", b"used_dltensor"


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int), ("device_id", ctypes.c_int),
        ("ndim", ctypes.c_int), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64),
    )  # fmt: skip


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))
_Destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

_capsule_new = ctypes.pythonapi.PyCapsule_New
_capsule_new.restype = ctypes.py_object
_capsule_new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, _Destructor]
_capsule_valid = ctypes.pythonapi.PyCapsule_IsValid
_capsule_valid.restype = ctypes.c_int
_capsule_valid.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype = ctypes.c_void_p
_capsule_pointer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
_capsule_rename = ctypes.pythonapi.PyCapsule_SetName
_capsule_rename.restype = ctypes.c_int
_capsule_rename.argtypes = [ctypes.c_void_p, ctypes.c_char_p]

_lent: dict[int, Any] = {}  # what capsules that are out keep alive, by `context`
_numbers = itertools.count(1)


@_Deleter
def _returned(managed: Any) -> None:
    """Another library needs the memory no longer."""
    _lent.pop(managed.contents.context, None)


@_Destructor
def _dropped(capsule: int) -> None:
    """A capsule dies; if nobody took the memory, it is ours again."""
    try:
        ours = _capsule_valid(capsule, _NAME)
    except ctypes.ArgumentError:  # an error is on its way, and ends here: the first call sees it
        ours = _capsule_valid(capsule, _NAME)
    if ours:
        pointer = _capsule_pointer(capsule, _NAME)
        managed = ctypes.cast(pointer, ctypes.POINTER(_Managed))
        _lent.pop(managed.contents.context, None)


def export(array: DeviceArray, stream: Any = None) -> Any:
    """The memory of an array as a DLPack capsule.

    Args:
        stream: the consumer's, as its `__dlpack__` call says it: None or 1 mean the legacy default
            one, -1 that it waits for nothing; for any other the device is waited for.
    """
    if stream not in (None, -1, 0, 1):
        driver.synchronize(array.index)
    dtype = from_numpy(array.dtype.numpy)
    sizes = ctypes.c_int64 * max(array.ndim, 1)
    shape = sizes(*array.shape)
    strides = sizes(*(s // array.itemsize for s in array.strides))
    code = _BFLOAT if dtype is bfloat16 else _CODES[dtype.kind]
    tensor = _Tensor(
        array.address, CUDA, array.index, array.ndim, code, 8 * array.itemsize, 1, shape, strides, 0
    )
    number = next(_numbers)
    managed = _Managed(tensor, number, _returned)
    _lent[number] = (array, shape, strides, managed)
    return _capsule_new(ctypes.addressof(managed), _NAME, _dropped)


class _Borrowed:
    """Memory of another library's, given back with the last array over it."""

    def __init__(self, managed: Any, device: int) -> None:
        self.managed, self.device = managed, device

    def __del__(self) -> None:
        if self.managed.contents.deleter:
            self.managed.contents.deleter(self.managed)


def taken(capsule: Any) -> DeviceArray:
    """The array over the memory of a DLPack capsule.

    Raises:
        CapsuleError: it was taken before, or is none.
        ExportError: its memory is not on a CUDA device, or of a dtype that tensors lack.
    """
    handle = id(capsule)  # CPython: the address of the object
    if type(capsule).__name__ != "PyCapsule" or not _capsule_valid(handle, _NAME):
        raise CapsuleError(
            "from_dlpack received an invalid capsule. Note that DLTensor capsules can be consumed "
            "only once, so you might have already constructed a tensor from it once."
        )
    pointer = _capsule_pointer(handle, _NAME)
    managed = ctypes.cast(pointer, ctypes.POINTER(_Managed))
    t = managed.contents.tensor
    if t.device_type != CUDA:
        raise ExportError(f"from_dlpack: device type {t.device_type} is not CUDA's ({CUDA})")
    numpy = _numpy_dtype(t.code, t.bits, t.lanes)
    shape = tuple(t.shape[k] for k in range(t.ndim))
    strides = packed_strides(shape, numpy.itemsize)
    if t.strides:
        strides = tuple(t.strides[k] * numpy.itemsize for k in range(t.ndim))
    _capsule_rename(handle, _USED)
    held = _Borrowed(managed, t.device_id)
    dtype = DeviceDType.of(numpy, t.device_id)
    return DeviceArray(held, (t.data or 0) + t.byte_offset, shape, strides, dtype)


def _numpy_dtype(code: int, bits: int, lanes: int) -> np.dtype[Any]:
    letter = {number: kind for kind, number in _CODES.items()}.get(code)
    if lanes == 1 and code == _BFLOAT and bits == 16:
        return bfloat16.numpy
    if lanes == 1 and letter is not None and bits in (8, 16, 32, 64):
        try:
            return from_numpy(np.dtype(f"{letter}{bits // 8}")).numpy
        except OperandError:
            pass
    raise ExportError(f"from_dlpack: no dtype for code {code} with {bits} bits and {lanes} lanes")


# ---- the CUDA array interface -------------------------------------------------------------------


def interface(array: DeviceArray) -> dict[str, Any]:
    """What `__cuda_array_interface__` of an array is.

    Raises:
        ExportError: bfloat16, for which the interface has no name.
    """
    dtype = array.dtype.numpy
    if dtype == bfloat16.numpy:
        raise ExportError("__cuda_array_interface__ has no bfloat16; use DLPack")
    strides = None if array.contiguous else array.strides
    address = array.address if array.size else 0
    return {
        "shape": array.shape, "typestr": dtype.str, "strides": strides, "data": (address, False),
        "version": 3, "stream": 1,
    }  # fmt: skip


class _Owner:
    """Keeps the object alive whose memory is borrowed."""

    def __init__(self, owner: Any, device: int) -> None:
        self.owner, self.device = owner, device


def seen(owner: Any, device: int) -> DeviceArray:
    """The array over the memory of an object with a `__cuda_array_interface__`.

    Args:
        device: where the memory is if the object's own `device` (as PyTorch, CuPy and Numba have
            it) does not say: the interface has no place for that.
    Raises:
        ExportError: a dtype that tensors lack.
    """
    found = owner.__cuda_array_interface__
    where = getattr(owner, "device", None)
    named = (getattr(where, "index", None), getattr(where, "id", None))
    device = next((k for k in named if type(k) is int), device)
    stream = found.get("stream")
    if stream not in (None, 1):
        driver.synchronize(device)
    try:
        numpy = from_numpy(np.dtype(found["typestr"])).numpy
    except (DTypeError, OperandError) as error:
        raise ExportError(f"__cuda_array_interface__: {found['typestr']}: {error}") from None
    shape = tuple(found["shape"])
    strides = found.get("strides")
    dtype = DeviceDType.of(numpy, device)
    return DeviceArray(
        _Owner(owner, device), found["data"][0], shape,
        packed_strides(shape, numpy.itemsize) if strides is None else tuple(strides), dtype,
    )  # fmt: skip
