"""Where a tensor lives, and the shape type that prints as PyTorch's does."""

from __future__ import annotations

import functools
import operator
import threading
from typing import Any

from tracegrad.ir.errors import DeviceError, OperandError
from tracegrad.runtime.cuda import current, driver

_KINDS = (
    "cpu", "cuda", "ipu", "xpu", "mkldnn", "opengl", "opencl", "ideep", "hip", "ve", "fpga", "maia",
    "xla", "lazy", "vulkan", "mps", "meta", "hpu", "mtia", "privateuseone",
)  # fmt: skip
_NO_ACCELERATOR = "Cannot access accelerator device when none is available."


class device:
    """A device: `device("cpu")`, `device("cuda", 0)`, `device("cuda:1")`.

    All of PyTorch's kinds have a name; tensors live on the CPU and on CUDA devices, and asking for
    them elsewhere is refused. As a context manager it is the default device of the block.

    Raises:
        OperandError: an argument of the wrong type.
        DeviceError: the name is no device.

    Example:
        >>> import tracegrad as tg
        >>> tg.device("cuda:1").index
        1
    """

    __slots__ = ("type", "index")
    type: str
    index: int | None

    def __init__(self, type: Any = None, index: Any = None, *, device: Any = None) -> None:
        kind, number = _device(device if type is None else type, index)
        object.__setattr__(self, "type", kind)
        object.__setattr__(self, "index", number)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in device.__slots__:
            raise AttributeError(f"attribute '{name}' of 'torch.device' objects is not writable")
        raise AttributeError(f"'torch.device' object has no attribute '{name}'")

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __repr__(self) -> str:
        where = "" if self.index is None else f", index={self.index}"
        return f"device(type='{self.type}'{where})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, device) and (self.type, self.index) == (other.type, other.index)

    def __hash__(self) -> int:
        return hash((self.type, self.index))

    def __reduce__(self) -> tuple[Any, ...]:
        return (device, (self.type, self.index))

    def __copy__(self) -> device:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> device:
        return self

    def __enter__(self) -> device:
        where = as_device(self)
        default.entered.append(default.where)
        _choose(where)
        return self

    def __exit__(self, *error: object) -> None:
        default.where = default.entered.pop()


def _device(spec: Any, index: Any) -> tuple[str, int | None]:
    """Kind and number of the device that the arguments of `device` mean."""
    if isinstance(spec, bytes):
        spec = spec.decode()
    if isinstance(spec, device):
        if index is not None:
            raise OperandError(
                "device(): argument 'type' (position 1) must be str, not torch.device"
            )
        return spec.type, spec.index
    if isinstance(spec, int) and not isinstance(spec, bool):
        if spec < 0:
            raise DeviceError("Device index must not be negative")
        if driver.status() is not None:
            raise DeviceError(_NO_ACCELERATOR)
        return "cuda", spec
    if not isinstance(spec, str):
        raise OperandError(
            f"device(): argument 'device' must be a device, its name or number, not "
            f"{spec.__class__.__name__}"
        )
    if not spec:
        raise DeviceError("Device string must not be empty")
    kind, colon, number = spec.partition(":")
    if not kind.isidentifier() or (kind.lower() == kind and any(c.isdigit() for c in kind)):
        raise DeviceError(f"Invalid device string: '{spec}'")
    plain = number.isdecimal() and (number == "0" or number[0] != "0")
    if colon and not plain:
        raise DeviceError(f"Invalid device string: '{spec}'")
    if kind not in _KINDS:
        raise DeviceError(
            f"Expected one of {', '.join(_KINDS)} device type at start of device string: {kind}"
        )
    if index is None:
        return kind, int(number) if colon else None
    if colon:
        raise DeviceError(
            "type (string) must not include an index because index was passed explicitly: " + spec
        )
    if isinstance(index, bool) or not isinstance(index, int):
        raise OperandError(
            f"device(): argument 'index' (position 2) must be int, not {index.__class__.__name__}"
        )
    if index < 0:
        raise DeviceError("Device index must not be negative")
    return kind, index


CPU = device("cpu")


class _Default(threading.local):
    """Where factories of a thread make tensors."""

    where: device = CPU

    def __init__(self) -> None:
        self.entered: list[device] = []  # the defaults around open `with device(...)` blocks


default = _Default()


@functools.cache
def cuda_device(index: int) -> device:
    """`device("cuda", index)`, one object for each."""
    return device("cuda", index)


def as_device(spec: Any) -> device:
    """The device meant by a name, a number, a device, or None (the default one), with its number.

    Raises:
        DeviceError: tensors cannot live there; the text says why.
    """
    if spec is None:
        return default.where
    chosen = spec if isinstance(spec, device) else device(spec)
    if chosen.type == "cpu":
        return CPU
    if chosen.type != "cuda":
        raise DeviceError(f"device {chosen} is not available to tensors; use device 'cpu'")
    problem = driver.status()
    if problem is not None:
        raise DeviceError(
            f"device {chosen} is not available to tensors: {problem}; use device 'cpu' (check "
            "cuda.is_available() first)"
        )
    index = current.device() if chosen.index is None else chosen.index
    if index >= driver.device_count():
        raise DeviceError(
            "CUDA error: invalid device ordinal\n"
            f"cuda:{index} is asked for, and there are {driver.device_count()} device(s)"
        )
    return cuda_device(index)


def set_default_device(device: Any) -> None:
    """Set where this thread's factories make tensors; None means the CPU.

    Raises:
        DeviceError: tensors cannot live there.
    """
    _choose(CPU if device is None else as_device(device))


def _choose(where: device) -> None:
    if where.index is not None:
        current.chosen.append(where.index)
    default.where = where


def get_default_device() -> device:
    """Where factories make tensors."""
    return default.where


def places() -> tuple[int | None, int]:
    """The number of the default device, None on the CPU, and the one that "cuda" means."""
    return default.where.index, current.device()


class Size(tuple[int, ...]):
    """A shape; a tuple that prints as `torch.Size([2, 3])`, the text ported code compares with."""

    __slots__ = ()

    def __new__(cls, sizes: Any = ()) -> Size:
        """The sizes, which must be whole numbers."""
        made = tuple.__new__(cls, sizes)
        for k, n in enumerate(made):
            if type(n) is not int:
                return _whole_sizes(made, k)
        return made

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

    def __add__(self, other: Any) -> Any:
        if isinstance(other, tuple):
            return Size(tuple.__add__(self, other))
        kind = type(other).__name__
        raise OperandError(f"can only concatenate tuple (not {kind}) to torch.Size")

    def __radd__(self, other: Any) -> Any:
        return Size(other + tuple(self)) if isinstance(other, tuple) else NotImplemented

    def __mul__(self, count: Any) -> Any:
        return Size(tuple.__mul__(self, count))

    __rmul__ = __mul__

    def __reduce__(self) -> tuple[Any, ...]:
        return (Size, (tuple(self),))


def _whole_sizes(sizes: tuple[Any, ...], first: int) -> Size:
    """The sizes as ints, from the `first` on that is none.

    Raises:
        OperandError: one is not a whole number.
    """
    found = list(sizes)
    for k in range(first, len(found)):
        try:
            found[k] = operator.index(found[k])
        except TypeError:
            raise OperandError(
                f"torch.Size() takes an iterable of 'int' (item {k} is '{type(found[k]).__name__}')"
            ) from None
    return Size(found)
