"""Page-locked memory of the host, which copies to and from a device can run beside."""

from __future__ import annotations

import contextlib
import sys

from tracegrad.ir.errors import AcceleratorError
from tracegrad.runtime.cuda import driver

_PORTABLE = 1  # CU_MEMHOSTALLOC_PORTABLE


class Pinned:
    """Page-locked host memory, which copies can run beside; freed with the last array made of it.

    Example, on a device: `np.asarray(Pinned(4096, 0))` has 4096 bytes.
    """

    def __init__(self, nbytes: int, device: int) -> None:
        self._device, self._address = device, driver.ffi().new("void **")
        driver.ask(device, "cuMemHostAlloc", self._address, nbytes, _PORTABLE)
        place = int(driver.ffi().cast("uintptr_t", self._address[0]))
        self.__array_interface__ = {
            "shape": (nbytes,), "typestr": "|u1", "data": (place, False), "version": 3,
        }  # fmt: skip

    def __del__(self) -> None:
        if hasattr(self, "__array_interface__") and not sys.is_finalizing():
            with contextlib.suppress(AcceleratorError):  # after a fault nothing can be freed
                driver.synchronize(self._device)
                driver.ask(self._device, "cuMemFreeHost", self._address[0])
