"""Cubins on a device, and their kernels as handles that C can launch.

pycuda does not tell the handles of its functions, so modules are loaded beside it. Start reading at `load`.
"""

from __future__ import annotations

import threading

from tracegrad.runtime._abi import ffi
from tracegrad.runtime.cuda import driver

_SHARED_ATTRIBUTE = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


class Module:
    """A cubin on a device, for the rest of the process.

    Attributes:
        image: the cubin.
        device: where it is loaded.
    """

    def __init__(self, image: bytes, device: int) -> None:
        self.image, self.device = image, device
        self._handle = ffi.new("void **")
        driver.ask(device, "cuModuleLoadData", self._handle, image)

    def handle(self, kernel: str, shared: int = 0) -> int:
        """The CUfunction of a kernel that is launched with `shared` bytes of dynamic memory.

        Raises:
            AcceleratorError: there is no such kernel, or the device has not so much memory.
        """
        found = ffi.new("void **")
        with driver.on(self.device) as cuda:
            code = cuda.cuModuleGetFunction(found, self._handle[0], kernel.encode())
            what = f"cuModuleGetFunction of {kernel}"
            if code == 0 and shared > driver.SHARED_BYTES:
                code = cuda.cuFuncSetAttribute(found[0], _SHARED_ATTRIBUTE, shared)
                what = f"cuFuncSetAttribute of {kernel}: {shared} bytes of shared memory"
        if code:
            raise driver.fault(code, self.device, what)
        return int(ffi.cast("uintptr_t", found[0]))


_modules: dict[tuple[str, int], Module] = {}
_lock = threading.Lock()


def load(key: str, image: bytes, device: int) -> Module:
    """The module of a cubin on a device, loaded once.

    Raises:
        AcceleratorError: the driver does not take it.
    """
    with _lock:
        found = _modules.get((key, device))
        if found is None:
            found = _modules[key, device] = Module(image, device)
        return found
