"""Where arrays lie: the number of a device, and arrays brought to it. Compiles nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from tracegrad.runtime.cuda.array import DeviceArray

_NUMBERS_KEPT = 4096
_numbers: dict[Any, DeviceArray] = {}


def device_index(device: str) -> int:
    """The number of the device called `cuda:0` or so."""
    return int(device.partition(":")[2] or 0)


def resident(array: Any, index: int) -> DeviceArray:
    """The array on device `index`: itself, or a copy; copies of numbers are kept."""
    if isinstance(array, DeviceArray):
        return array
    if array.ndim:
        return DeviceArray.from_host(array, index)
    key = (array.dtype, array.tobytes(), index)
    found = _numbers.get(key)
    if found is None:
        if len(_numbers) >= _NUMBERS_KEPT:
            _numbers.clear()
        found = _numbers[key] = DeviceArray.from_host(np.asarray(array), index)
    return found
