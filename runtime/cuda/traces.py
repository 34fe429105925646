"""Traces on a device: what `runtime.executable` is for those in host memory.

A call takes addresses on the device and gives DeviceArrays. Values that must be as they were at the
capture are compared by the host, once all kernels have run: they write to nothing but results.
Start reading at `build`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracegrad.codegen.checks import Check
from tracegrad.ir.graph import Graph, Value
from tracegrad.ir.types import Shape
from tracegrad.runtime.cuda import graphs
from tracegrad.runtime.cuda.array import DeviceArray, DeviceDType


@dataclass(frozen=True)
class DeviceTrace:
    """A compiled graph on a device.

    Attributes:
        call: `call(*addresses)` -> tuple of new arrays on the device.
        text, unit: the Python text of the launcher, and the CUDA with its launches.
    """

    call: Callable[..., tuple[DeviceArray, ...]]
    text: str
    unit: Any


def build(
    graph: Graph, name: str, strides: Mapping[Value, Shape] | None = None,
    checks: Sequence[Check] = (), returned: int | None = None, debug: bool = False,
) -> DeviceTrace:  # fmt: skip
    """Generate, compile and load a graph; arguments and errors as of `runtime.executable.build`."""
    made = graphs.build(graph, name, strides)
    shown = len(graph.outputs) if returned is None else returned
    index = int(graph.device.partition(":")[2] or 0)
    makers = [
        DeviceArray.maker(tuple(map(int, v.shape)), v.dtype.numpy, index) for v in graph.outputs
    ]
    launch = made.call
    if debug:
        from tracegrad.runtime.cuda import debugging

        launch = debugging.checked(graph, made, strides or {}, index)

    def call(*addresses: int) -> tuple[DeviceArray, ...]:
        return tuple([make(m) for make, m in zip(makers, launch(*addresses))])

    def checked(*addresses: int) -> tuple[DeviceArray, ...]:
        arrays = call(*addresses)
        _compare(graph, checks, addresses, arrays, strides or {})
        return arrays[:shown]

    return DeviceTrace(checked if checks else call, made.text, made.unit)


def _compare(
    graph: Graph, checks: Sequence[Check], addresses: Sequence[int], arrays: Sequence[DeviceArray],
    strides: Mapping[Value, Shape],
) -> None:  # fmt: skip
    """Find the first value that is not as it was seen.

    Raises:
        Strayed: there is one.
    """
    from tracegrad.runtime.executable import Strayed

    index = int(graph.device.partition(":")[2] or 0)
    for number, check in enumerate(checks):
        if check.kind == "output":
            found = arrays[check.at].to_host()
        else:
            found = _read(graph.inputs[check.at], addresses[check.at], strides, index)
        same = found.tobytes() == check.seen
        if found.dtype.kind == "f" and found.size == 1 and not same:  # any NaN is NaN
            same = bool(
                np.isnan(found).all() and np.isnan(np.frombuffer(check.seen, found.dtype)).all()
            )
        if not same:
            raise Strayed(number, found.tobytes()[:8].ljust(8, b"\0"))


def _read(
    value: Value, address: int, strides: Mapping[Value, Shape], index: int
) -> np.ndarray[Any, Any]:
    """The elements of an input, wherever they lie."""
    size = value.dtype.itemsize
    steps = tuple(s * size for s in strides[value]) if value in strides else None
    shape = tuple(map(int, value.shape))
    dtype = DeviceDType.of(value.dtype.numpy, index)
    return DeviceArray(None, address, shape, steps, dtype).to_host()
