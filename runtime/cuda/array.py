"""`DeviceArray`: what an ndarray is to the CPU, for the memory of a CUDA device.

It has the attributes that the tracer reads of an ndarray (shape, strides, base, flags ...), makes
views as NumPy does, and copies to and from the host. It computes nothing: kernels are made in
`tracegrad.runtime.cuda.eager`. Its `dtype` is a `DeviceDType`, equal to no NumPy dtype, so that
whatever is remembered by the dtypes of operands is remembered for each device apart. Nothing reads
device memory by accident: NumPy is refused (`__array__`), and there is no `__array_interface__`.
Start reading at `DeviceArray`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from tracegrad.ir.errors import OperandError
from tracegrad.ir.types import Shape
from tracegrad.runtime.cuda import driver, memory
from tracegrad.runtime.layouts import (
    forward_order,
    inverse,
    is_packed,
    memory_order,
    packed_strides,
    reshaped_strides,
)

STAGED = 1 << 16  # bytes up to which a copy to the device does not wait for it


class DeviceDType:
    """A NumPy dtype on a device: one object for each pair.

    Attributes:
        numpy: the element type.
        index: the number of the device.
    """

    __slots__ = ("numpy", "index", "kind", "itemsize", "name")
    _made: dict[tuple[np.dtype[Any], int], DeviceDType] = {}

    def __init__(self, numpy: np.dtype[Any], index: int) -> None:
        self.numpy, self.index = numpy, index
        self.kind, self.itemsize, self.name = numpy.kind, numpy.itemsize, numpy.name

    @classmethod
    def of(cls, numpy: Any, index: int) -> DeviceDType:
        """The one object for a NumPy dtype on device `index`."""
        key = (np.dtype(numpy), index)
        found = cls._made.get(key)
        if found is None:
            found = cls._made.setdefault(key, cls(*key))
        return found

    def __reduce__(self) -> Any:
        return DeviceDType.of, (self.numpy, self.index)

    def __repr__(self) -> str:
        return f"{self.name}@cuda:{self.index}"


class _Flags:
    """What is asked of `ndarray.flags`."""

    __slots__ = ("array", "writeable")
    aligned = True

    def __init__(self, array: DeviceArray) -> None:
        self.array = array
        self.writeable = True

    @property
    def c_contiguous(self) -> bool:
        """Row-major without gaps."""
        return self.array.contiguous

    @property
    def f_contiguous(self) -> bool:
        """Column-major without gaps."""
        x = self.array
        return is_packed(x.shape[::-1], x.strides[::-1], x.itemsize)

    @property
    def owndata(self) -> bool:
        """Whether it is nobody's view."""
        return self.array.base is None


class DeviceArray:
    """Elements in the memory of a CUDA device: a shape, strides in bytes and an address.

    Attributes:
        memory: what holds the memory; it goes back to the pool with the last array over it.
        address: of the first element, on the device.
        shape, strides, ndim, size, itemsize, nbytes: as of an ndarray.
        dtype: a `DeviceDType`.
        base: the array whose memory it is, or None where it is its own.
        contiguous: whether the elements lie in row-major order without gaps.
    """

    __slots__ = ("memory", "address", "shape", "strides", "dtype", "base", "ndim", "size",
                 "contiguous", "__weakref__")  # fmt: skip
    __array_priority__ = 1000

    def __init__(
        self, memory: Any, address: int, shape: Shape, strides: Shape | None, dtype: DeviceDType,
        base: DeviceArray | None = None,
    ) -> None:  # fmt: skip
        self.memory, self.address, self.shape, self.dtype = memory, address, shape, dtype
        self.base = base
        self.ndim = len(shape)
        self.size = prod(shape)
        if strides is None:
            self.strides = packed_strides(shape, dtype.itemsize)
            self.contiguous = True
        else:
            self.strides = strides
            self.contiguous = is_packed(shape, strides, dtype.itemsize)

    # ---- making and copying ---------------------------------------------------------------------

    @classmethod
    def empty(cls, shape: Sequence[int], numpy: Any, index: int) -> DeviceArray:
        """Memory of its own, not initialised."""
        dtype = DeviceDType.of(numpy, index)
        sizes = tuple(map(int, shape))
        held = memory.allocate(prod(sizes) * dtype.itemsize, index)
        return cls(held, held.address, sizes, None, dtype)

    @classmethod
    def maker(cls, shape: Shape, numpy: Any, index: int) -> Callable[[Any], DeviceArray]:
        """A function from memory that a kernel has filled to row-major arrays of one kind."""
        dtype = DeviceDType.of(numpy, index)
        strides, ndim, size = packed_strides(shape, dtype.itemsize), len(shape), prod(shape)
        new = cls.__new__

        def make(held: Any) -> DeviceArray:
            made = new(cls)
            made.memory, made.address = held, held.address
            made.shape, made.strides, made.dtype = shape, strides, dtype
            made.base, made.contiguous = None, True
            made.ndim, made.size = ndim, size
            return made

        return make

    @classmethod
    def from_host(cls, array: np.ndarray[Any, Any], index: int, wait: bool = True) -> DeviceArray:
        """A copy of a host array on device `index`, its dimensions in the same order in memory.

        Args:
            wait: False for pinned memory that stays as it is until the copy is made.
        """
        order = None if array.flags.c_contiguous else forward_order(array)
        if order is not None:
            turned = cls.from_host(np.ascontiguousarray(array.transpose(order)), index, wait)
            return turned.transpose(inverse(order))
        made = cls.empty(array.shape, array.dtype, index)
        if made.nbytes > STAGED:
            packed = np.ascontiguousarray(array)
            driver.to_device(made.address, packed, index, wait or packed is not array)
        elif made.size:  # a copy of our own, which the driver stages at once: nobody waits
            driver.to_device(made.address, np.array(array, order="C"), index, wait=False)
        return made

    @classmethod
    def zeros(cls, shape: Sequence[int], numpy: Any, index: int) -> DeviceArray:
        """Memory of its own, all bits zero."""
        made = cls.empty(shape, numpy, index)
        if made.size:
            driver.fill_bytes(made.address, 0, made.nbytes, index)
        return made

    def to_host(self) -> np.ndarray[Any, Any]:
        """A copy in host memory, with its dimensions in the same order; waits for the device."""
        order = None if self.contiguous else forward_order(self)
        if order is not None:
            return self.transpose(order).to_host().transpose(inverse(order))
        out = np.empty(self.shape, self.dtype.numpy)
        if self.size:
            source = self if self.contiguous else self.copy()
            driver.to_host(out, source.address, self.index)
        return out

    def copy(self, order: str = "C") -> DeviceArray:
        """The elements in memory of their own: row-major, or with "K" in the order they have."""
        made = _empty_like(self, order=order)
        made.write(self)
        return made

    def write(self, source: DeviceArray) -> None:
        """Take over the elements of `source`, of the same dtype and a shape that broadcasts."""
        if self.size == 0:
            return
        if source.dtype is not self.dtype:
            raise OperandError(f"cannot copy {source.dtype!r} to {self.dtype!r} without a cast")
        if source.shape != self.shape:
            source = source.broadcast(self.shape)
        if _may_share_memory(self, source):
            if (source.address, source.strides) == (self.address, self.strides):
                return
            source = source.copy()
        if self.contiguous and source.contiguous:
            driver.within_device(self.address, source.address, self.nbytes, self.index)
            return
        from tracegrad.runtime.cuda.strided import copy_strided

        copy_strided(self, source)

    # ---- what an ndarray tells ------------------------------------------------------------------

    @property
    def index(self) -> int:
        """The number of the device."""
        return self.dtype.index

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.dtype.itemsize

    @property
    def flags(self) -> _Flags:
        """Contiguity and ownership."""
        return _Flags(self)

    def item(self) -> Any:
        """The only element, as a Python number; waits for the device."""
        return self.to_host().item()

    def tolist(self) -> Any:
        """The elements as nested lists; waits for the device."""
        return self.to_host().tolist()

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<DeviceArray {self.dtype!r}{list(self.shape)}>"

    # ---- views ----------------------------------------------------------------------------------

    def _ghost(self) -> np.ndarray[Any, Any]:
        """An ndarray with the same address and layout, to ask for layouts of views; never read."""
        reach = sum((n - 1) * abs(s) for n, s in zip(self.shape, self.strides)) + self.itemsize
        if not self.size:
            return np.empty(self.shape, self.dtype.numpy)
        below = sum((n - 1) * -s for n, s in zip(self.shape, self.strides) if s < 0)
        held: Any = (ctypes.c_char * reach).from_address(self.address - below)
        return np.ndarray(self.shape, self.dtype.numpy, held, below, self.strides)

    def _seen(self, ghost: np.ndarray[Any, Any]) -> DeviceArray:
        """The view that lies where `ghost`, a view of `_ghost()`, lies."""
        at = ghost.__array_interface__["data"][0] if self.size else self.address
        base = self if self.base is None else self.base
        dtype = DeviceDType.of(ghost.dtype, self.index)
        return DeviceArray(self.memory, at, ghost.shape, ghost.strides, dtype, base)

    def view(self, dtype: Any = None) -> DeviceArray:
        """The same memory, as another dtype where one is given."""
        ghost = self._ghost()
        return self._seen(ghost.view() if dtype is None else ghost.view(np.dtype(dtype)))

    def __getitem__(self, key: Any) -> DeviceArray:
        """A view by numbers and slices (basic indexing only)."""
        keys = key if isinstance(key, tuple) else (key,)
        if not all(k is None or k is Ellipsis or isinstance(k, int | slice) for k in keys):
            raise OperandError("arrays on a device are indexed by numbers and slices only")
        ghost = self._ghost()
        return self._seen(ghost[key if Ellipsis in keys else (*keys, Ellipsis)])

    def __setitem__(self, key: Any, value: Any) -> None:
        """Write to a view: elements of the device, or of the host, which are copied over."""
        place = self if key is Ellipsis else self[key]
        if not isinstance(value, DeviceArray):
            value = DeviceArray.from_host(np.asarray(value, self.dtype.numpy), self.index)
        place.write(value)

    def fill(self, value: Any) -> None:
        """Write one number everywhere."""
        self[...] = np.asarray(value, self.dtype.numpy)

    def part(self, offset: int, shape: Shape, strides: Shape) -> DeviceArray:
        """A view from `offset` bytes behind the first element on, with strides in bytes."""
        base = self if self.base is None else self.base
        return DeviceArray(self.memory, self.address + offset, shape, strides, self.dtype, base)

    def __reduce__(self) -> Any:
        return _restored, (self.to_host(), self.index)

    def broadcast(self, shape: Shape) -> DeviceArray:
        """A view of `shape`, along whose new or longer axes nothing moves."""
        return self._seen(np.broadcast_to(self._ghost(), shape))

    def transpose(self, *axes: Any) -> DeviceArray:
        """A view with the axes in another order."""
        return self._seen(self._ghost().transpose(*axes))

    @property
    def T(self) -> DeviceArray:
        """A view with the axes in reverse order."""
        return self.transpose()

    def reshape(self, *shape: Any) -> DeviceArray:
        """A view of another shape where the strides allow one, else a copy."""
        given = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        sizes = tuple(map(int, given))
        if -1 in sizes:
            rest = prod(n for n in sizes if n != -1)
            sizes = tuple(self.size // max(rest, 1) if n == -1 else n for n in sizes)
        if prod(sizes) != self.size:
            raise ValueError(f"cannot reshape array of size {self.size} into shape {sizes}")
        strides = reshaped_strides(self.shape, self.strides, sizes, self.itemsize)
        if strides is None:
            return self.copy().reshape(sizes)
        return self.part(0, sizes, strides)

    def astype(self, dtype: Any, **options: Any) -> DeviceArray:
        """Refused: casts are operations."""
        raise OperandError(f"{self!r} is cast to {dtype} by an operation only")

    def __eq__(self, other: object) -> Any:
        return self.__array__()

    __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__
    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        return self.__array__()

    # ---- NumPy's functions of arrays ------------------------------------------------------------

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            f"can't convert cuda:{self.index} device type tensor to numpy. Use Tensor.cpu() to "
            "copy the tensor to host memory first."
        )

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        found = _FUNCTIONS.get(function)
        if found is None:
            return self.__array__()
        return found(*args, **kwargs)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """`out[...] = a + b` and the like, where all three are on the device; no other."""
        name, out = _ARITHMETIC.get(ufunc), kwargs.pop("out", (None,))[0]
        if name is None or method != "__call__" or kwargs or not isinstance(out, DeviceArray):
            return self.__array__()
        from tracegrad.runtime.cuda.eager import arithmetic

        out.write(arithmetic(name, inputs))
        return out


def _bounds(array: DeviceArray) -> tuple[int, int]:
    low = high = array.address
    for n, s in zip(array.shape, array.strides, strict=True):
        if s < 0:
            low += (n - 1) * s
        else:
            high += (n - 1) * s
    return low, high + array.itemsize


def _may_share_memory(a: Any, b: Any, max_work: Any = None) -> bool:
    """Whether two arrays reach over common memory; one on a device and one on the host never do."""
    if not (isinstance(a, DeviceArray) and isinstance(b, DeviceArray)):
        return False
    if a.index != b.index or not (a.size and b.size):
        return False
    (low, high), (start, end) = _bounds(a), _bounds(b)
    return low < end and start < high


def _zeros_like(
    a: DeviceArray, dtype: Any = None, order: str = "K", subok: bool = True, shape: Any = None
) -> DeviceArray:
    sizes = a.shape if shape is None else shape
    return DeviceArray.zeros(sizes, a.dtype.numpy if dtype is None else dtype, a.index)


def _ones_like(a: DeviceArray, dtype: Any = None, **options: Any) -> DeviceArray:
    numpy = a.dtype.numpy if dtype is None else np.dtype(dtype)
    return filled(a.shape, np.ones((), numpy), a.index)


def _empty_like(
    a: DeviceArray, dtype: Any = None, order: str = "K", subok: bool = True, shape: Any = None
) -> DeviceArray:
    sizes = a.shape if shape is None else shape
    made = DeviceArray.empty(sizes, a.dtype.numpy if dtype is None else dtype, a.index)
    if shape is not None:
        return made
    axes = None if order == "C" else memory_order(a)
    if axes is None:
        return made
    inner = tuple(made.shape[d] for d in axes)  # in the order of memory, as NumPy's "K"
    return DeviceArray(made.memory, made.address, inner, None, made.dtype).transpose(inverse(axes))


def _copyto(dst: DeviceArray, src: Any, **options: Any) -> None:
    dst[...] = src


_ARITHMETIC = {np.add: "add", np.subtract: "sub", np.multiply: "mul", np.divide: "div"}

_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.may_share_memory: _may_share_memory, np.shares_memory: _may_share_memory,
    np.zeros_like: _zeros_like, np.ones_like: _ones_like, np.empty_like: _empty_like,
    np.copyto: _copyto, np.diagonal: lambda a, *how: a._seen(np.diagonal(a._ghost(), *how)),
}  # fmt: skip


def all_apart(written: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether the arrays of the first kind are known to share no memory with any other.

    So they are where each has a piece of the pool's for itself. False says nothing.
    """
    pieces = set()
    for x in written:
        if x.__class__ is not DeviceArray or x.memory.__class__ is not memory.Memory:
            return False
        pieces.add(id(x.memory))
    if len(pieces) < len(written):
        return False
    for x in others:
        if x.__class__ is DeviceArray:
            if x.memory.__class__ is not memory.Memory or id(x.memory) in pieces:
                return False
    return True


def filled(shape: Sequence[int], value: np.ndarray[Any, Any], index: int) -> DeviceArray:
    """Memory of its own that holds one number everywhere."""
    made = DeviceArray.empty(shape, value.dtype, index)
    if made.size:
        made.write(DeviceArray.from_host(value.reshape(()), index))
    return made


def strided_view(array: Any, shape: Shape, strides: Shape) -> Any:
    """A view from the first element on, with any shape and strides in bytes that stay inside."""
    if isinstance(array, DeviceArray):
        return array.part(0, shape, strides)
    return np.lib.stride_tricks.as_strided(array, shape, strides)


def row_major(array: Any) -> Any:
    """The array itself where its elements lie in row-major order without gaps, else a copy."""
    return array if array.flags.c_contiguous else array.copy()


def _restored(array: np.ndarray[Any, Any], index: int) -> DeviceArray:
    """A pickled array, on its device again."""
    return DeviceArray.from_host(array, index)


def host(array: Any) -> np.ndarray[Any, Any]:
    """The array in host memory: itself, or a copy of what is on a device."""
    return array.to_host() if isinstance(array, DeviceArray) else array
