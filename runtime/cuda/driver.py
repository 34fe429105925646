"""The CUDA driver: the one module that touches pycuda, imported when CUDA is first asked for.

`status()` says whether CUDA can be used, and if not, why. All else raises `AcceleratorError` or
`OutOfMemoryError`. Devices are numbers. Work goes in one stream of each device, the default stream,
so whatever is asked later runs later. Start reading at `on`.

Note [Contexts]
The primary context of a device is used, which PyTorch and CuPy share. pycuda keeps a stack of
contexts for each thread, and ends the process with SIGABRT where a thread or the interpreter ends
while something lies on it; daemon threads end so anywhere. So nothing is put there: `on(device)`
makes the context current by the driver's own functions. Where a thread has none, ours stays; where
it has another one, that comes back. `launch.c` does the same.

Note [What pycuda does]
It finds the driver and starts it, knows the devices and holds the context; and it launches where
there is no C compiler. All that may wait is called through cffi, whose calls a daemon thread may end
in: pycuda's are C++ and end the process then. Part of pycuda is Python: captures do not look there.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
import warnings
from typing import Any

import numpy as np

from tracegrad.ir.errors import AcceleratorError, OutOfMemoryError
from tracegrad.runtime.unwatched import hidden

LIBRARY = "libcuda.so.1"
SHARED_BYTES = 48 * 1024  # of a block, without asking
_OUT_OF_MEMORY = 2  # of CUresult
_ASYNCHRONOUS = (
    "CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace "
    "below might be incorrect. For debugging consider passing CUDA_LAUNCH_BLOCKING=1."
)
_FORKED = (
    "Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, you must use "
    "the 'spawn' start method"
)


# --- whether there is CUDA ------------------------------------------------------------------------


# The process that started the driver: a child that is forked after that cannot use it.
_started: list[int] = []


@functools.cache
@hidden
def status() -> str | None:
    """None when CUDA is usable, else one line saying why not. Never raises, makes no context."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the answer says the same
            import pycuda.driver as drv
    except ModuleNotFoundError as error:
        return f"pycuda is not installed ({error.name})"
    except ImportError as error:
        if "undefined symbol" in str(error):
            return f"pycuda was built for a newer CUDA driver ({error})"
        return f"no CUDA driver ({error})"
    _started.append(os.getpid())
    try:
        drv.init()
        return None if drv.Device.count() else "no CUDA device"
    except drv.Error as error:
        return f"no CUDA device ({error})"


@functools.cache
def _pycuda() -> Any:
    """The module `pycuda.driver`, initialised."""
    problem = status()
    if problem is not None:
        raise AcceleratorError(f"CUDA cannot be used: {problem}")
    import pycuda.driver as drv

    return drv


@hidden
def device_count() -> int:
    """How many devices there are; 0 where CUDA cannot be used."""
    return _pycuda().Device.count() if status() is None else 0


@functools.cache
@hidden
def _device(device: int) -> Any:
    drv = _pycuda()
    if not 0 <= device < drv.Device.count():
        raise AcceleratorError(
            f"CUDA error: invalid device ordinal\nThere is no device {device}; "
            f"{drv.Device.count()} can be used."
        )
    return drv.Device(device)


@hidden
def name(device: int) -> str:
    """What the device calls itself."""
    return str(_device(device).name())


@hidden
def capability(device: int) -> tuple[int, int]:
    """Compute capability, such as (9, 0)."""
    major, minor = _device(device).compute_capability()
    return int(major), int(minor)


def arch(device: int) -> str:
    """The architecture that kernels are compiled for, such as "sm_90"."""
    major, minor = capability(device)
    return f"sm_{major}{minor}"


@hidden
def multiprocessors(device: int) -> int:
    """How many multiprocessors the device has."""
    return int(_device(device).multiprocessor_count)


@hidden
def total_memory(device: int) -> int:
    """Bytes of memory on the device."""
    return int(_device(device).total_memory())


@functools.cache
def ffi() -> Any:
    """What builds C values for the driver; loaded here, as `import tracegrad` needs none."""
    from tracegrad.runtime import _abi

    return _abi.ffi


def stream() -> Any:
    """The default stream."""
    return ffi().NULL


# --- contexts and errors --------------------------------------------------------------------------

_contexts: dict[int, tuple[Any, Any]] = {}  # pycuda's object, and the handle
_lock = threading.Lock()


@functools.cache
def library() -> Any:
    """libcuda."""
    _pycuda()
    return ffi().dlopen(LIBRARY, os.RTLD_NOW | os.RTLD_LOCAL)


def address_of(function: str) -> int:
    """The address of a function of the driver."""
    return int(ffi().cast("uintptr_t", ffi().addressof(library(), function)))


def context(device: int) -> Any:
    """The handle of the primary context, retained once and for good. See Note [Contexts]."""
    if _started and _started[-1] != os.getpid():
        raise AcceleratorError(_FORKED)
    found = _contexts.get(device)
    if found is None:
        with _lock:
            if device not in _contexts:
                _contexts[device] = _retained(device)
            found = _contexts[device]
    return found[1]


@hidden
def _retained(device: int) -> tuple[Any, Any]:
    where, drv = _device(device), _pycuda()
    try:
        made = where.retain_primary_context()
    except drv.Error as error:
        raise _translated(error, device) from None
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(made))  # never released, in whatever order we end
    return made, ffi().cast("void *", made.handle)


def is_initialized() -> bool:
    """Whether this process has a context on some device."""
    return bool(_contexts)


class on:
    """`with on(device):` its context is current in this thread. See Note [Contexts]."""

    __slots__ = ("_pushed", "device")

    def __init__(self, device: int) -> None:
        self.device = device

    def __enter__(self) -> Any:
        """The library."""
        ours, cuda = context(self.device), library()
        current = ffi().new("void **")
        code = cuda.cuCtxGetCurrent(current)
        self._pushed = current[0] != ffi().NULL and current[0] != ours
        if self._pushed:
            code = code or cuda.cuCtxPushCurrent_v2(ours)
        elif current[0] == ffi().NULL:
            code = code or cuda.cuCtxSetCurrent(ours)
        if code:
            raise fault(code, self.device, "making a context current")
        return cuda

    def __exit__(self, *error: object) -> None:
        if self._pushed:
            library().cuCtxPopCurrent_v2(ffi().new("void **"))


def ask(device: int, function: str, *arguments: Any) -> None:
    """Call a function of the driver, in the context of a device.

    Raises:
        OutOfMemoryError, AcceleratorError: it does not give 0.
    """
    with on(device) as cuda:
        code = getattr(cuda, function)(*arguments)
    if code:
        raise fault(code, device, function)


def fault(code: int, device: int, what: str) -> Exception:
    """Our error for a result of the driver."""
    if code == _OUT_OF_MEMORY:
        return OutOfMemoryError(f"CUDA out of memory on GPU {device}, in {what}")
    words = ffi().new("char const **")
    library().cuGetErrorString(code, words)
    text = ffi().string(words[0]).decode() if words[0] != ffi().NULL else "unrecognized error code"
    return AcceleratorError(f"CUDA error: {text} (code {code}, in {what})\n{_ASYNCHRONOUS}")


def _translated(error: Exception, device: int) -> Exception:
    """Our error for one of pycuda's."""
    text = str(error)
    if "out of memory" in text:
        return OutOfMemoryError(f"CUDA out of memory on GPU {device}: {text}")
    _, _, words = text.partition(" failed: ")
    return AcceleratorError(f"CUDA error: {words or text}\n{_ASYNCHRONOUS}")


# --- memory ---------------------------------------------------------------------------------------


class Allocation:
    """Device memory from the driver, until `free`.

    Attributes:
        address: its first byte.
        nbytes: its size.
        device: where it is.
    """

    __slots__ = ("address", "device", "nbytes")

    def __init__(self, address: int, nbytes: int, device: int) -> None:
        self.address, self.nbytes, self.device = address, nbytes, device

    def free(self) -> None:
        """Give it back, once; waits for the device."""
        ask(self.device, "cuMemFree_v2", self.address)


def alloc(nbytes: int, device: int) -> Allocation:
    """Memory straight from the driver; `memory.allocate` is the pool.

    Raises:
        OutOfMemoryError: the device has none left.
    """
    address = ffi().new("uintptr_t *")
    ask(device, "cuMemAlloc_v2", address, nbytes)
    return Allocation(int(address[0]), nbytes, device)


def memory_info(device: int) -> tuple[int, int]:
    """Free and total bytes, of all processes."""
    free, total = ffi().new("size_t *"), ffi().new("size_t *")
    ask(device, "cuMemGetInfo_v2", free, total)
    return int(free[0]), int(total[0])


def _pointer(array: np.ndarray) -> Any:
    """Where a contiguous array lies on the host."""
    if not array.flags.c_contiguous:
        raise AcceleratorError("a copy between host and device needs a contiguous array")
    return ffi().cast("void *", array.__array_interface__["data"][0])


def to_device(address: int, array: np.ndarray, device: int, wait: bool = True) -> None:
    """Copy a contiguous array to the device, after all that was asked before.

    Args:
        wait: False for an array in pinned memory that stays as it is until the copy is made.
    """
    source = _pointer(array)
    if not array.nbytes:
        return
    if wait:
        ask(device, "cuMemcpyHtoD_v2", address, source, array.nbytes)
    else:
        ask(device, "cuMemcpyHtoDAsync_v2", address, source, array.nbytes, stream())


def to_host(array: np.ndarray, address: int, device: int, wait: bool = True) -> None:
    """Fill a contiguous array from the device, after all that was asked before.

    Args:
        wait: False for an array in pinned memory; it holds the data after `synchronize`.
    """
    target = _pointer(array)
    if not array.nbytes:
        return
    if wait:
        ask(device, "cuMemcpyDtoH_v2", target, address, array.nbytes)
    else:
        ask(device, "cuMemcpyDtoHAsync_v2", target, address, array.nbytes, stream())


def within_device(
    target: int, source: int, nbytes: int, device: int, source_device: int | None = None
) -> None:
    """Copy between device addresses, asynchronously; from another device, after both are done."""
    if not nbytes:
        return
    if source_device is None or source_device == device:
        ask(device, "cuMemcpyDtoDAsync_v2", target, source, nbytes, stream())
        return
    synchronize(source_device)
    contexts = context(device), context(source_device)
    ask(device, "cuMemcpyPeer", target, contexts[0], source, contexts[1], nbytes)
    synchronize(device)


def fill_bytes(address: int, value: int, nbytes: int, device: int) -> None:
    """Set bytes on the device, asynchronously."""
    if nbytes:
        ask(device, "cuMemsetD8Async", address, value, nbytes, stream())


# --- launches by pycuda ---------------------------------------------------------------------------


@hidden
def load(image: bytes, device: int) -> Any:
    """A cubin as a module of pycuda, for the rest of the process; `modules.Module` is for C."""
    drv, where = _pycuda(), context(device) and _contexts[device][0]
    where.push()
    try:
        made = drv.module_from_buffer(image)
    except drv.Error as error:
        raise _translated(error, device) from None
    finally:
        drv.Context.pop()
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(made))
    return made


@hidden
def function(module: Any, kernel: str, types: str, shared: int, device: int) -> Any:
    """A function of pycuda that `launch` calls, with arguments of `types`, as in `struct`."""
    drv = _pycuda()
    with on(device):
        try:
            found = module.get_function(kernel)
            if shared > SHARED_BYTES:
                found.set_attribute(drv.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, shared)
        except drv.Error as error:
            raise _translated(error, device) from None
    return found.prepare(types)


@hidden
def launch(
    function: Any, grid: tuple[int, ...], block: tuple[int, ...], shared: int,
    arguments: tuple[int, ...], device: int,
) -> None:  # fmt: skip
    """Launch a function."""
    with on(device):
        try:
            function.prepared_async_call(grid, block, None, *arguments, shared_size=shared)
        except _pycuda().Error as error:
            raise _translated(error, device) from None


# --- the stream -----------------------------------------------------------------------------------


def synchronize(device: int) -> None:
    """Wait for all that the device was asked to do.

    Raises:
        AcceleratorError: some of it failed.
    """
    ask(device, "cuCtxSynchronize")
