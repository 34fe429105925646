"""The memory under a tensor, as PyTorch's `untyped_storage()` and `storage()` show it.

Start reading at `storage_of`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tracegrad.ir.errors import DimensionError
from tracegrad.runtime.cuda.array import DeviceArray
from tracegrad.tracer.device import CPU, cuda_device, device
from tracegrad.tracer.tensor import Tensor, address_of, dtype_of


class UntypedStorage:
    """The bytes that a tensor and its views share.

    Example:
        >>> import tracegrad as tg
        >>> tg.zeros(2, 3)[1].untyped_storage().nbytes()
        24
    """

    _word = "UntypedStorage"

    def __init__(self, array: np.ndarray) -> None:
        self._array = array  # one dimension, over all of the memory

    def nbytes(self) -> int:
        """Number of bytes."""
        return self._array.nbytes

    def size(self) -> int:
        """Number of elements: of bytes, or of numbers for a typed storage."""
        return self._array.size

    def __len__(self) -> int:
        return self._array.size

    def data_ptr(self) -> int:
        """Address of the first byte."""
        return address_of(self._array) if self._array.size else 0

    def element_size(self) -> int:
        """Bytes per element."""
        return self._array.itemsize

    @property
    def device(self) -> device:
        """The device of the memory."""
        array: Any = self._array
        return cuda_device(array.index) if array.__class__ is DeviceArray else CPU

    def tolist(self) -> list[Any]:
        """The elements as Python numbers."""
        return self._array.tolist()

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return type(self)(self._array[index])
        if not -self._array.size <= index < self._array.size:
            raise DimensionError(f"index {index} out of range for storage of size {len(self)}")
        return self._array[index].item()

    def _what(self) -> str:
        return ""

    def __repr__(self) -> str:
        lines = "".join(f" {x}\n" for x in self.tolist())
        return f"{lines}[torch.storage.{self._word}({self._what()}device=cpu) of size {len(self)}]"


class TypedStorage(UntypedStorage):
    """The same memory as numbers of the tensor's dtype."""

    _word = "TypedStorage"

    def _what(self) -> str:
        return f"dtype={dtype_of[self._array.dtype]}, "

    def untyped(self) -> UntypedStorage:
        """The same memory as bytes."""
        return UntypedStorage(self._array.view(np.uint8))


def storage_of(tensor: Tensor) -> Any:
    """All of the memory that a tensor and its views share, as numbers in one dimension."""
    base = tensor._array if tensor._view is None else tensor._view.base._array
    if base.size == 0:
        return np.empty_like(base, shape=(0,))
    span = 1 + sum((n - 1) * (s // base.itemsize) for n, s in zip(base.shape, base.strides))
    if base.__class__ is DeviceArray:
        return base.part(0, (span,), (base.itemsize,))
    return np.lib.stride_tricks.as_strided(base, (span,), (base.itemsize,), writeable=False)
