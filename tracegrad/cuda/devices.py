"""Which CUDA devices there are, and which one is current in a thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tracegrad.ir.errors import AcceleratorError, DeviceError, ParameterError
from tracegrad.runtime.cuda import current, driver
from tracegrad.tracer.device import device as _Device


def is_available() -> bool:
    """True where there is a CUDA device that can be used.

    Example:
        >>> is_available() == (device_count() > 0)
        True
    """
    return driver.device_count() > 0


def device_count() -> int:
    """Number of CUDA devices; 0 where CUDA cannot be used.

    Example:
        >>> device_count() >= 0
        True
    """
    return driver.device_count()


def init() -> None:
    """Take hold of the current device. Other functions do so when they need it.

    Raises:
        AcceleratorError: a RuntimeError; CUDA cannot be used, and the text says why.

    Example:
        >>> if is_available():
        ...     init()
    """
    need_cuda()
    driver.context(current.device())


def is_initialized() -> bool:
    """Whether this process has taken hold of a device.

    Example:
        >>> is_initialized() and not is_available()
        False
    """
    return driver.is_initialized()


def need_cuda() -> None:
    """Raise an error that says what is missing, where CUDA cannot be used."""
    problem = driver.status()
    if problem is None:
        return
    if problem.startswith("pycuda was built"):
        raise AcceleratorError(
            f"The NVIDIA driver on your system is too old: {problem}. Update it, or build pycuda with "
            "the headers of the CUDA toolkit that the driver is for."
        )
    if problem.startswith("pycuda"):
        raise AcceleratorError(
            f"tracegrad has no CUDA here: {problem}. `pip install pycuda` beside a CUDA toolkit, or "
            "use the device 'cpu'."
        )
    if problem.startswith("no CUDA driver"):
        raise AcceleratorError(
            "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and "
            f"installed a driver from http://www.nvidia.com/Download/index.aspx ({problem})"
        )
    raise AcceleratorError(f"No CUDA GPUs are available ({problem})")


def index_of(spec: Any, optional: bool = True) -> int:
    """The number of a device that an argument means: None, an int, a name or a `device`."""
    if spec is None and optional:
        return current.device()
    if isinstance(spec, int) and not isinstance(spec, bool):
        return spec
    found = spec if isinstance(spec, _Device) else _Device(spec)
    if found.type != "cuda":
        raise ParameterError(f"Expected a cuda device, but got: {found}")
    if found.index is None and not optional:
        raise ParameterError(
            f'Expected a torch.device with a specified index or an integer, but got:"{found}"'
        )
    return current.device() if found.index is None else found.index


def checked(spec: Any) -> int:
    """As `index_of`, for a device that must be there."""
    need_cuda()
    number = index_of(spec)
    if not 0 <= number < driver.device_count():
        raise DeviceError(
            "CUDA error: invalid device ordinal\n"
            f"There is no device {number}; {driver.device_count()} can be used."
        )
    return number


def current_device() -> int:
    """The number of the device that "cuda" means in this thread.

    Example:
        >>> current_device() if is_available() else 0
        0
    """
    need_cuda()
    return current.device()


def set_device(device: Any) -> None:
    """Let "cuda" mean this device from now on, in this thread. A negative number changes nothing.

    Example:
        >>> set_device(-1)
    """
    if index_of(device) >= 0:
        current.set_device(checked(device))


class device:
    """Let "cuda" mean a device inside a `with` block, in this thread. A negative number: no change.

    Example:
        >>> with device(-1):
        ...     pass
    """

    def __init__(self, device: Any) -> None:
        self.idx = index_of(device)
        self.prev_idx = -1

    def __enter__(self) -> None:
        if self.idx >= 0:
            self.prev_idx = current.device()
            current.set_device(checked(self.idx))

    def __exit__(self, *error: object) -> None:
        if self.idx >= 0:
            current.set_device(self.prev_idx)


def get_device_name(device: Any = None) -> str:
    """What a device calls itself.

    Example:
        >>> name = get_device_name() if is_available() else "no GPU"
    """
    return driver.name(checked(device))


def get_device_capability(device: Any = None) -> tuple[int, int]:
    """Major and minor number of a device's compute capability.

    Example:
        >>> new = is_available() and get_device_capability() >= (9, 0)
    """
    return driver.capability(checked(device))


@dataclass(frozen=True)
class _CudaDeviceProperties:
    """What `get_device_properties` tells."""

    name: str
    major: int
    minor: int
    total_memory: int
    multi_processor_count: int


def get_device_properties(device: Any = None) -> _CudaDeviceProperties:
    """Name, compute capability, memory and multiprocessors of a device.

    Example:
        >>> total = get_device_properties().total_memory if is_available() else 0
    """
    number = checked(device)
    return _CudaDeviceProperties(
        driver.name(number), *driver.capability(number), driver.total_memory(number),
        driver.multiprocessors(number),
    )  # fmt: skip


def synchronize(device: Any = None) -> None:
    """Wait until a device has done all that it was asked to do.

    Raises:
        AcceleratorError: some of it failed, or there is no CUDA.

    Example:
        >>> if is_available():
        ...     synchronize()
    """
    driver.synchronize(checked(device))
