"""The stream of a device, and marks in it."""

from __future__ import annotations

from typing import Any

from tracegrad.cuda.devices import checked, device, is_available
from tracegrad.ir.errors import AcceleratorError, DeviceError, ParameterError
from tracegrad.runtime.cuda import driver, events
from tracegrad.tracer.device import device as _Device

__all__ = ["Event", "Stream", "current_stream", "default_stream", "is_available", "stream"]


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
        self.device_index = checked(device)
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
