"""The layout of a tensor that a trace reads from outside: checked at each call in one comparison.

A tensor's array is an object that users never hold, and the library gives a tensor a new one where
its layout changes: while it is the same object, shape, strides, dtype and address are the same.
Start reading at `KnownLayout`.
"""

from __future__ import annotations

from tracegrad.tracer.tensor import Tensor

moves: list[object] = [object()]
"""One object, another one after any tensor has moved: addresses written down under it are valid."""


class KnownLayout:
    """What a tensor's meta-data was, and its array as last seen.

    Attributes:
        tensor: whose layout it is.
        array: the tensor's array; held, so that no other object is taken for it.
        address: of the array's first element.
    """

    __slots__ = (
        "address", "array", "dtype", "requires_grad", "shape", "strides", "tensor", "whole",
    )  # fmt: skip

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.array = tensor._array
        self.address = tensor._ptr()
        self.shape, self.strides = self.array.shape, self.array.strides
        self.dtype = self.array.dtype
        self.requires_grad = tensor.requires_grad
        self.whole = tensor._view is None  # a view asks its base whether it requires grad

    def guard(self, at: str, known: str) -> str:
        """An expression that is true while the tensor at `at` has this layout, bound as `known`."""
        flag = f"{at}._requires_grad" if self.whole else f"{at}.requires_grad"
        return f"({at}._array is {known}.array or {known}.moved({at})) and {flag} is {self.requires_grad}"

    def moved(self, tensor: Tensor) -> bool:
        """Whether the tensor has the same layout in other memory, which is known from now on."""
        array = tensor._array
        if (array.shape, array.strides, array.dtype) != (self.shape, self.strides, self.dtype):
            return False
        if (tensor._view is None) != self.whole:
            return False
        self.address = tensor._ptr()
        moves[0] = object()  # before `array`, which lets other threads pass
        self.array = array
        return True
