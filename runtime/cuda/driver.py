"""The CUDA driver: the one module that touches pycuda, imported when CUDA is first asked for.

`status()` says whether CUDA can be used, and if not, why. All else raises `AcceleratorError` or
`OutOfMemoryError`. Devices are numbers. Work goes in one stream of each device, the default stream,
so whatever is asked later runs later. Start reading at `on`.

Note [Contexts]
The primary context of a device is used, which PyTorch and CuPy share. pycuda keeps a stack of
contexts for each thread, and ends the process with SIGABRT where a thread or the interpreter ends
while something lies on it. So nothing is left there: `on(device)` pushes and pops around each call.
Launches do not come here; their C (`launch.c`) looks after the context of its thread by itself.

Note [Immortal objects]
pycuda's objects destroy what they stand for when they are collected, and can do so in the thread
that made the context only. So a reference is taken from Python's count (`_keep`), and what has a
shorter life than the process is freed by name (`_drop`), in the context.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
from types import TracebackType
from typing import Any

import numpy as np

from tracegrad.ir.errors import AcceleratorError, OutOfMemoryError
from tracegrad.runtime._abi import ffi

LIBRARY = "libcuda.so.1"
SHARED_BYTES = 48 * 1024  # of a block, without asking
_OUT_OF_MEMORY = 2
_ASYNCHRONOUS = (
    "CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace "
    "below might be incorrect. For debugging consider passing CUDA_LAUNCH_BLOCKING=1."
)
_FORKED = (
    "Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, you must use "
    "the 'spawn' start method"
)


# --- whether there is CUDA ------------------------------------------------------------------------


@functools.cache
def status() -> str | None:
    """None when CUDA is usable, else one line saying why not. Never raises, makes no context."""
    try:
        import pycuda.driver as drv
    except ModuleNotFoundError as error:
        return f"pycuda is not installed ({error.name})"
    except ImportError as error:
        return f"no CUDA driver ({error})"
    try:
        drv.init()
        return None if drv.Device.count() else "no CUDA device"
    except drv.Error as error:
        return f"no CUDA device ({error})"


_pid = os.getpid()


@functools.cache
def _pycuda() -> Any:
    """The module `pycuda.driver`, initialised."""
    problem = status()
    if problem is not None:
        raise AcceleratorError(f"CUDA cannot be used: {problem}")
    import pycuda.driver as drv

    return drv


def device_count() -> int:
    """How many devices there are; 0 where CUDA cannot be used."""
    return _pycuda().Device.count() if status() is None else 0


@functools.cache
def _device(device: int) -> Any:
    drv = _pycuda()
    if not 0 <= device < drv.Device.count():
        raise AcceleratorError(
            f"CUDA error: invalid device ordinal\nThere is no device {device}; "
            f"{drv.Device.count()} can be used."
        )
    return drv.Device(device)


def name(device: int) -> str:
    """What the device calls itself."""
    return str(_device(device).name())


def capability(device: int) -> tuple[int, int]:
    """Compute capability, such as (9, 0)."""
    major, minor = _device(device).compute_capability()
    return int(major), int(minor)


def arch(device: int) -> str:
    """The architecture that kernels are compiled for, such as "sm_90"."""
    major, minor = capability(device)
    return f"sm_{major}{minor}"


def multiprocessors(device: int) -> int:
    """How many multiprocessors the device has."""
    return int(_device(device).multiprocessor_count)


def total_memory(device: int) -> int:
    """Bytes of memory on the device."""
    return int(_device(device).total_memory())


# --- contexts and errors --------------------------------------------------------------------------

_contexts: dict[int, Any] = {}
_broken: dict[int, Exception] = {}  # devices whose context could not be popped, and why
_lock = threading.Lock()


def context(device: int) -> Any:
    """The primary context, retained once and for good. See Note [Contexts]."""
    found = _contexts.get(device)
    if found is None:
        with _lock:
            if device not in _contexts:
                where, drv = _device(device), _pycuda()
                try:
                    _contexts[device] = _keep(where.retain_primary_context())
                except drv.Error as error:
                    raise translated(error, device) from None
            found = _contexts[device]
    if os.getpid() != _pid:
        raise AcceleratorError(_FORKED)
    if device in _broken:
        raise _broken[device]
    return found


def is_initialized() -> bool:
    """Whether this process has a context on some device."""
    return bool(_contexts)


class on:
    """`with on(device):` its context is current in this thread; errors of pycuda become ours."""

    __slots__ = ("device", "where")

    def __init__(self, device: int) -> None:
        self.device = device

    def __enter__(self) -> Any:
        """The module `pycuda.driver`."""
        drv = _pycuda()
        self.where = context(self.device)
        try:
            self.where.push()
        except drv.Error as error:
            raise translated(error, self.device) from None
        return drv

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        drv = _pycuda()
        try:
            drv.Context.pop()
        except drv.Error as second:  # after a fault; an invalid context leaves the stack
            error = error or second
            self.where.detach()
            _broken[self.device] = translated(second, self.device)
        if isinstance(error, drv.Error):
            raise translated(error, self.device) from None


def translated(error: Exception, device: int) -> Exception:
    """Our error for one of pycuda's."""
    text = str(error)
    if "out of memory" in text:
        return OutOfMemoryError(f"CUDA out of memory on GPU {device}: {text}")
    _, _, words = text.partition(" failed: ")
    return AcceleratorError(f"CUDA error: {words or text}\n{_ASYNCHRONOUS}")


def fault(code: int, device: int, what: str) -> Exception:
    """Our error for a result of the driver."""
    if code == _OUT_OF_MEMORY:
        return OutOfMemoryError(f"CUDA out of memory on GPU {device}, in {what}")
    words = ffi.new("char const **")
    library().cuGetErrorString(code, words)
    text = ffi.string(words[0]).decode() if words[0] != ffi.NULL else f"error {code}"
    return AcceleratorError(f"CUDA error: {text} (code {code}, in {what})\n{_ASYNCHRONOUS}")


def _keep(thing: Any) -> Any:
    """Take a reference that nobody gives back. See Note [Immortal objects]."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
    return thing


def _drop(thing: Any) -> None:
    ctypes.pythonapi.Py_DecRef(ctypes.py_object(thing))


# --- memory ---------------------------------------------------------------------------------------


class Allocation:
    """Device memory from the driver, until `free`.

    Attributes:
        address: its first byte.
        nbytes: its size.
        device: where it is.
    """

    __slots__ = ("_thing", "address", "device", "nbytes")

    def __init__(self, thing: Any, nbytes: int, device: int) -> None:
        self._thing, self.address = _keep(thing), int(thing)
        self.nbytes, self.device = nbytes, device

    def free(self) -> None:
        """Give it back, once; waits for the device."""
        with on(self.device):
            self._thing.free()
        _drop(self._thing)


def alloc(nbytes: int, device: int) -> Allocation:
    """Memory straight from the driver; `memory.allocate` is the pool.

    Raises:
        OutOfMemoryError: the device has none left.
    """
    with on(device) as drv:
        return Allocation(drv.mem_alloc(nbytes), nbytes, device)


def memory_info(device: int) -> tuple[int, int]:
    """Free and total bytes, of all processes."""
    with on(device) as drv:
        free, total = drv.mem_get_info()
    return int(free), int(total)


def _bytes(array: np.ndarray) -> np.ndarray:
    """The bytes of a contiguous array, of any dtype, without a copy."""
    if not array.flags.c_contiguous:
        raise AcceleratorError("a copy between host and device needs a contiguous array")
    return array.reshape(-1).view(np.uint8)


def to_device(address: int, array: np.ndarray, device: int, wait: bool = True) -> None:
    """Copy a contiguous array to the device, after all that was asked before.

    Args:
        wait: False for an array in pinned memory that stays as it is until the copy is made.
    """
    data = _bytes(array)
    if data.size:
        with on(device) as drv:
            (drv.memcpy_htod if wait else drv.memcpy_htod_async)(address, data)


def to_host(array: np.ndarray, address: int, device: int, wait: bool = True) -> None:
    """Fill a contiguous array from the device, after all that was asked before.

    Args:
        wait: False for an array in pinned memory; it holds the data after `synchronize`.
    """
    data = _bytes(array)
    if data.size:
        with on(device) as drv:
            (drv.memcpy_dtoh if wait else drv.memcpy_dtoh_async)(data, address)


def within_device(
    target: int, source: int, nbytes: int, device: int, source_device: int | None = None
) -> None:
    """Copy between device addresses, asynchronously; across devices, after both have finished."""
    if not nbytes:
        return
    if source_device is None or source_device == device:
        with on(device) as drv:
            drv.memcpy_dtod_async(target, source, nbytes)
        return
    synchronize(source_device)
    with on(device) as drv:
        there, here = context(source_device), context(device)
        drv.memcpy_peer(target, source, nbytes, here, there)


def fill_bytes(address: int, value: int, nbytes: int, device: int) -> None:
    """Set bytes on the device, asynchronously."""
    if nbytes:
        with on(device) as drv:
            drv.memset_d8_async(address, value, nbytes)


class Pinned:
    """Page-locked host memory, which copies can run beside; freed when it dies, after the device.

    Attributes:
        array: its bytes. Views of it must not outlive this object.
    """

    def __init__(self, nbytes: int, device: int) -> None:
        self._device = device
        with on(device) as drv:
            self.array: np.ndarray = _keep(drv.pagelocked_empty(nbytes, np.uint8))
        self._owner: Any = self.array.base

    def __del__(self) -> None:
        if hasattr(self, "_owner") and not sys.is_finalizing():
            synchronize(self._device)
            with on(self._device):
                self._owner.free()


# --- modules and launches -------------------------------------------------------------------------


@functools.cache
def library() -> Any:
    """libcuda, for what pycuda has no function for: handles and addresses that C can use."""
    _pycuda()
    return ffi.dlopen(LIBRARY, os.RTLD_NOW | os.RTLD_LOCAL)


def address_of(function: str) -> int:
    """The address of a function of the driver."""
    return int(ffi.cast("uintptr_t", ffi.addressof(library(), function)))


def load(image: bytes, device: int) -> Any:
    """A cubin as a module of pycuda, for the rest of the process; `modules.Module` is for C."""
    with on(device) as drv:
        return _keep(drv.module_from_buffer(image))


def function(module: Any, kernel: str, types: str, shared: int, device: int) -> Any:
    """A function of pycuda that `launch` calls, with arguments of `types`, as in `struct`."""
    with on(device) as drv:
        found = _keep(module.get_function(kernel))
        if shared > SHARED_BYTES:
            found.set_attribute(drv.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, shared)
    return found.prepare(types)


def launch(
    function: Any, grid: tuple[int, ...], block: tuple[int, ...], shared: int,
    arguments: tuple[int, ...],
) -> None:  # fmt: skip
    """Launch a function, within `on(device)`."""
    function.prepared_async_call(grid, block, None, *arguments, shared_size=shared)


# --- streams and events ---------------------------------------------------------------------------


def synchronize(device: int) -> None:
    """Wait for all that the device was asked to do.

    Raises:
        AcceleratorError: some of it failed.
    """
    with on(device) as drv:
        drv.Context.synchronize()


class Event:
    """A mark in the default stream of a device."""

    def __init__(self, device: int, timing: bool = True) -> None:
        self.device = device
        with on(device) as drv:
            flags = 0 if timing else drv.event_flags.DISABLE_TIMING
            self._event = _keep(drv.Event(flags))

    def record(self) -> None:
        """Set the mark behind all that was asked so far."""
        with on(self.device):
            self._event.record()

    def query(self) -> bool:
        """Whether the device has passed the mark."""
        with on(self.device):
            return bool(self._event.query())

    def synchronize(self) -> None:
        """Wait until the device has passed the mark."""
        with on(self.device):
            self._event.synchronize()

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds from this mark to another one."""
        with on(self.device):
            return float(self._event.time_till(end._event))

    def __del__(self) -> None:
        event = self.__dict__.pop("_event", None)
        if event is not None and not sys.is_finalizing():
            with on(self.device):
                _drop(event)
                del event
