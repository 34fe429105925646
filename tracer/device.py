"""Where a tensor lives, and the shape type that prints as PyTorch's does."""

from __future__ import annotations

from typing import Any

from tracegrad.ir.errors import DeviceError, OperandError

_KINDS = ("cpu", "cuda")


class device:
    """A device: `device("cpu")`, `device("cuda", 0)`, `device("cuda:1")`.

    Raises:
        DeviceError: the name is none of the kinds known here.
    """

    __slots__ = ("type", "index")

    def __init__(self, spec: Any = "cpu", index: int | None = None) -> None:
        if isinstance(spec, device):
            spec, index = spec.type, spec.index
        if not isinstance(spec, str):
            raise OperandError(
                f"device(): argument must be str or device, not {type(spec).__name__}"
            )
        kind, colon, number = spec.partition(":")
        if kind not in _KINDS or (colon and not number.isdigit()):
            raise DeviceError(
                f"Expected one of {', '.join(_KINDS)} device type at start of device string: {spec}"
            )
        self.type = kind
        self.index = int(number) if colon else index

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __repr__(self) -> str:
        where = "" if self.index is None else f", index={self.index}"
        return f"device(type='{self.type}'{where})"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            return str(self) == other
        return isinstance(other, device) and (self.type, self.index) == (other.type, other.index)

    def __hash__(self) -> int:
        return hash((self.type, self.index))

    def __reduce__(self) -> tuple[Any, ...]:
        return (device, (self.type, self.index))


CPU = device("cpu")


def as_device(spec: Any) -> device:
    """The device meant by None, a name or a device; refuses what eager tensors cannot live on.

    Raises:
        DeviceError: the device is not the CPU.
    """
    if spec is None:
        return CPU
    chosen = spec if isinstance(spec, device) else device(spec)
    if chosen.type != "cpu":
        raise DeviceError(
            f"device {chosen} is not available to tensors; use device 'cpu' "
            "(check cuda.is_available() first)"
        )
    return CPU


class Size(tuple[int, ...]):
    """A shape; a tuple that prints as `torch.Size([2, 3])`, the text ported code compares with."""

    __slots__ = ()

    def numel(self) -> int:
        """Number of elements of a tensor of this shape."""
        count = 1
        for n in self:
            count *= n
        return count

    def __repr__(self) -> str:
        return f"torch.Size([{', '.join(map(str, self))}])"

    def __getitem__(self, key: Any) -> Any:
        found = tuple.__getitem__(self, key)
        return Size(found) if isinstance(key, slice) else found

    def __add__(self, other: Any) -> Size:
        return Size(tuple.__add__(self, tuple(other)))

    def __reduce__(self) -> tuple[Any, ...]:
        return (Size, (tuple(self),))
