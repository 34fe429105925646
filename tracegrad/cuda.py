"""CUDA devices, under the names of `torch.cuda`.

Everything can be imported and asked where there is no CUDA: `is_available()` is then False, and what
needs a device raises a RuntimeError that says what is missing. There is one stream for each device.

Example:
    >>> import tracegrad as tg
    >>> isinstance(tg.cuda.is_available(), bool)
    True
    >>> device = "cuda" if tg.cuda.is_available() else "cpu"
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tracegrad.ir.errors import AcceleratorError, DeviceError, OutOfMemoryError, ParameterError
from tracegrad.runtime.cuda import current, driver, events, memory
from tracegrad.tracer.device import device as _Device

__all__ = [
    "AcceleratorError", "Event", "OutOfMemoryError", "Stream", "current_device", "current_stream",
    "default_stream", "device", "device_count", "empty_cache", "get_device_capability",
    "get_device_name", "get_device_properties", "init", "is_available", "is_initialized",
    "manual_seed", "manual_seed_all", "max_memory_allocated", "max_memory_reserved", "mem_get_info",
    "memory_allocated", "memory_reserved", "memory_stats", "reset_peak_memory_stats", "set_device",
    "stream", "synchronize",
]  # fmt: skip


# --- devices --------------------------------------------------------------------------------------


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
    _need_cuda()
    driver.context(current.device())


def is_initialized() -> bool:
    """Whether this process has taken hold of a device.

    Example:
        >>> is_initialized() and not is_available()
        False
    """
    return driver.is_initialized()


def _need_cuda() -> None:
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


def _index(spec: Any, optional: bool = True) -> int:
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


def _checked(spec: Any) -> int:
    """As `_index`, for a device that must be there."""
    _need_cuda()
    number = _index(spec)
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
    _need_cuda()
    return current.device()


def set_device(device: Any) -> None:
    """Let "cuda" mean this device from now on, in this thread. A negative number changes nothing.

    Example:
        >>> set_device(-1)
    """
    if _index(device) >= 0:
        current.set_device(_checked(device))


class device:
    """Let "cuda" mean a device inside a `with` block, in this thread. A negative number: no change.

    Example:
        >>> with device(-1):
        ...     pass
    """

    def __init__(self, device: Any) -> None:
        self.idx = _index(device)
        self.prev_idx = -1

    def __enter__(self) -> None:
        if self.idx >= 0:
            self.prev_idx = current.device()
            current.set_device(_checked(self.idx))

    def __exit__(self, *error: object) -> None:
        if self.idx >= 0:
            current.set_device(self.prev_idx)


def get_device_name(device: Any = None) -> str:
    """What a device calls itself.

    Example:
        >>> name = get_device_name() if is_available() else "no GPU"
    """
    return driver.name(_checked(device))


def get_device_capability(device: Any = None) -> tuple[int, int]:
    """Major and minor number of a device's compute capability.

    Example:
        >>> new = is_available() and get_device_capability() >= (9, 0)
    """
    return driver.capability(_checked(device))


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
    number = _checked(device)
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
    driver.synchronize(_checked(device))


# --- memory ---------------------------------------------------------------------------------------


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """Free and total bytes of a device, as the driver sees them.

    Example:
        >>> free, total = mem_get_info() if is_available() else (0, 0)
    """
    return driver.memory_info(_checked(device))


def memory_allocated(device: Any = None) -> int:
    """Bytes of a device that tensors occupy now; 0 where there is no CUDA.

    Example:
        >>> memory_allocated() >= 0
        True
    """
    return memory.memory_allocated(_index(device))


def max_memory_allocated(device: Any = None) -> int:
    """The most bytes that tensors occupied, since the start or `reset_peak_memory_stats`.

    Example:
        >>> max_memory_allocated() >= memory_allocated()
        True
    """
    return memory.max_memory_allocated(_index(device))


def memory_reserved(device: Any = None) -> int:
    """Bytes that the pool holds, for tensors and for later.

    Example:
        >>> memory_reserved() >= memory_allocated()
        True
    """
    return memory.memory_reserved(_index(device))


def max_memory_reserved(device: Any = None) -> int:
    """The most bytes that the pool held, since the start or `reset_peak_memory_stats`.

    Example:
        >>> max_memory_reserved() >= memory_reserved()
        True
    """
    return memory.max_memory_reserved(_index(device))


def reset_peak_memory_stats(device: Any = None) -> None:
    """Let the peaks be what is there now.

    Example:
        >>> reset_peak_memory_stats()
        >>> max_memory_allocated() == memory_allocated()
        True
    """
    memory.reset_peak_memory_stats(_index(device))


def memory_stats(device: Any = None) -> dict[str, int]:
    """Counters of the pool, by PyTorch's names.

    Example:
        >>> memory_stats()["num_ooms"]
        0
    """
    return memory.memory_stats(_index(device))


def empty_cache() -> None:
    """Give the driver back what the pool holds for later.

    Example:
        >>> empty_cache()
    """
    memory.empty_cache()


# --- streams and events ---------------------------------------------------------------------------


class Stream:
    """The stream of a device. There is one, so all streams of a device are equal.

    Example:
        >>> if is_available():
        ...     with stream(Stream()):
        ...         current_stream().synchronize()
    """

    cuda_stream = 0
    stream_id = 0
    priority = 0

    def __init__(self, device: Any = None, priority: int = 0, **kwargs: Any) -> None:
        self.device_index = _checked(device)
        self.device = _Device("cuda", self.device_index)

    def synchronize(self) -> None:
        """Wait for all that was asked of the device."""
        driver.synchronize(self.device_index)

    def query(self) -> bool:
        """Whether the device has done all that it was asked to do."""
        mark = events.Event(self.device_index, timing=False)
        mark.record()
        return mark.query()

    def record_event(self, event: Event | None = None) -> Event:
        """Set a mark behind all that was asked so far."""
        mark = Event() if event is None else event
        mark.record(self)
        return mark

    def wait_event(self, event: Event) -> None:
        """Let later work begin after a mark."""
        event.wait(self)

    def wait_stream(self, stream: Stream) -> None:
        """Let later work begin after what another stream was asked."""
        if stream.device_index != self.device_index:
            stream.synchronize()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other.device_index == self.device_index

    def __hash__(self) -> int:
        return hash((self.cuda_stream, self.device_index))

    def __repr__(self) -> str:
        return f"<torch.cuda.Stream device={self.device} cuda_stream=0x0>"


class Event:
    """A mark in a stream, and the time between two of them.

    Args:
        enable_timing: whether `elapsed_time` may be asked.
        blocking, interprocess: as in PyTorch; nothing depends on the first, the second is refused.

    Example:
        >>> start, end = Event(enable_timing=True), Event(enable_timing=True)
        >>> if is_available():
        ...     start.record()
        ...     end.record()
        ...     end.synchronize()
        ...     milliseconds = start.elapsed_time(end)
    """

    def __init__(
        self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False
    ) -> None:
        if interprocess:
            raise ParameterError("Event(): events are not shared between processes")
        self._timing = bool(enable_timing)
        self._mark: events.Event | None = None

    def record(self, stream: Stream | None = None) -> None:
        """Set the mark behind all that was asked of the stream so far."""
        where = current_stream().device_index if stream is None else stream.device_index
        if self._mark is None:
            self._mark = events.Event(where, self._timing)
        elif self._mark.device != where:
            raise DeviceError(
                f"Event device {self._mark.device} does not match recording stream's device {where}."
            )
        self._mark.record()

    def wait(self, stream: Stream | None = None) -> None:
        """Let later work of a stream begin after the mark."""
        where = current_stream().device_index if stream is None else stream.device_index
        if self._mark is not None and self._mark.device != where:
            self._mark.synchronize()

    def query(self) -> bool:
        """Whether the device has passed the mark; True where none was set."""
        return self._mark is None or self._mark.query()

    def synchronize(self) -> None:
        """Wait until the device has passed the mark."""
        if self._mark is not None:
            self._mark.synchronize()

    def elapsed_time(self, end_event: Event) -> float:
        """Milliseconds from this mark to another one."""
        if not (self._timing and end_event._timing):
            raise AcceleratorError(
                "Both events must be created with argument 'enable_timing=True'."
            )
        if self._mark is None or end_event._mark is None:
            raise AcceleratorError("Both events must be recorded before calculating elapsed time.")
        return self._mark.elapsed_time(end_event._mark)

    def __repr__(self) -> str:
        return f"<torch.cuda.Event {'uninitialized' if self._mark is None else 'recorded'}>"


def current_stream(device: Any = None) -> Stream:
    """The stream of a device.

    Example:
        >>> number = current_stream().cuda_stream if is_available() else 0
    """
    return Stream(device)


def default_stream(device: Any = None) -> Stream:
    """The stream of a device, which is the current one too.

    Example:
        >>> same = not is_available() or default_stream() == current_stream()
    """
    return Stream(device)


class stream:
    """Work in a stream, and on its device, inside a `with` block. None changes nothing.

    Example:
        >>> with stream(None):
        ...     pass
    """

    def __init__(self, stream: Stream | None) -> None:
        self.stream = stream
        self._device = device(-1 if stream is None else stream.device_index)

    def __enter__(self) -> Stream | None:
        self._device.__enter__()
        return self.stream

    def __exit__(self, *error: object) -> None:
        self._device.__exit__()


# --- random numbers -------------------------------------------------------------------------------


def manual_seed(seed: int) -> None:
    """Let draws on the current device start from a seed. Without CUDA it is remembered.

    Example:
        >>> manual_seed(0)
    """
    current.seeds[current.device()] = int(seed)


def manual_seed_all(seed: int) -> None:
    """Let draws on all devices start from a seed. Without CUDA it is remembered.

    Example:
        >>> manual_seed_all(0)
    """
    for number in range(max(1, driver.device_count())):
        current.seeds[number] = int(seed)
