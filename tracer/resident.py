"""Arrays brought to where a compiled graph wants them: on its device, row-major."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tracegrad.ir.graph import Graph
from tracegrad.runtime.cuda.array import DeviceArray, row_major
from tracegrad.runtime.cuda.placing import device_index, resident


def on_device_of(graph: Graph, arrays: Sequence[Any]) -> list[Any]:
    """The arrays where the graph computes: numbers in host memory are copied to its device."""
    if graph.device == "cpu":
        return list(arrays)
    return [resident(a, device_index(graph.device)) for a in arrays]


def like_device(array: np.ndarray, graph: Graph) -> Any:
    """A host array, where the graph computes, in memory that is nobody else's: it may be written to."""
    if graph.device == "cpu":
        return array
    return DeviceArray.from_host(array, device_index(graph.device))


def plain_memory(array: Any) -> Any:
    """The array itself where it is row-major without gaps and aligned, else a copy that is."""
    if array.__class__ is DeviceArray:
        return row_major(array)
    return np.require(array, requirements=("C", "A"))
