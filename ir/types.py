"""The type of a value: shape, dtype, device. Start reading at `TensorType`."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import ShapeError

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorType:
    """Shape, dtype and device of a value; prints as `float32[32, 10]`."""

    shape: Shape
    dtype: DType
    device: str = "cpu"

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements, stored contiguously."""
        return int(self.size) * self.dtype.itemsize

    def __str__(self) -> str:
        where = "" if self.device == "cpu" else f"@{self.device}"
        return f"{self.dtype.name}[{', '.join(map(str, self.shape))}]{where}"


def broadcast_shapes(*shapes: Shape) -> Shape:
    """The common shape under NumPy's broadcasting rules.

    Raises:
        ShapeError: two sizes differ and neither is 1 (PyTorch's text).
    """
    ndim = max((len(s) for s in shapes), default=0)
    result = [1] * ndim
    for shape in shapes:
        offset = ndim - len(shape)
        for axis in reversed(range(len(shape))):
            seen, size = result[offset + axis], shape[axis]
            if seen == 1:
                result[offset + axis] = size
            elif size != 1 and size != seen:
                raise ShapeError(
                    f"The size of tensor a ({seen}) must match the size of tensor b ({size}) "
                    f"at non-singleton dimension {offset + axis}"
                )
    return tuple(result)


def contiguous_strides(shape: Shape) -> Shape:
    """Row-major strides of `shape`, in elements."""
    strides = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))
