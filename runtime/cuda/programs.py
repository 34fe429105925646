"""Several operations as one launch list: graphs on a device, run eagerly on arrays of any layout.

A graph is compiled when it is first called with a layout of its operands, and kept. Start reading at
`Program`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tracegrad.codegen.unit import contiguous_inputs
from tracegrad.ir.graph import Graph, Value
from tracegrad.runtime.cuda import graphs
from tracegrad.runtime.cuda.array import DeviceArray
from tracegrad.runtime.cuda.placing import device_index, resident
from tracegrad.runtime.unwatched import unwatched


class Program:
    """A graph on a device as a function of arrays.

    Operands in host memory are copied over. Each result is row-major, in memory of its own.

    Args:
        graph: with at least one output; outputs may be inputs, or the same value twice.
        device: where it computes, such as "cuda:0".
    """

    def __init__(self, graph: Graph, device: str) -> None:
        self.index = device_index(device)
        inputs = {v: k for k, v in enumerate(graph.inputs)}
        computed = tuple(dict.fromkeys(v for v in graph.outputs if v not in inputs))
        self.graph = graph.replace(outputs=computed)
        self.places = [
            (True, inputs[v]) if v in inputs else (False, computed.index(v)) for v in graph.outputs
        ]
        self.makers = [
            DeviceArray.maker(tuple(map(int, v.shape)), v.dtype.numpy, self.index)
            for v in computed
        ]  # fmt: skip
        plain = contiguous_inputs(self.graph)
        self.plain = tuple(k for k, v in enumerate(graph.inputs) if v in plain)
        self.loaded: dict[Any, Callable[..., tuple[Any, ...]]] = {}

    def __call__(self, *arrays: Any) -> tuple[DeviceArray, ...]:
        """The results for operands of the graph's types."""
        made = self.computed(arrays)
        results: list[DeviceArray] = []
        for given, at in self.places:
            array = resident(arrays[at], self.index) if given else made[at]
            fresh = not given and all(array is not x for x in results)
            results.append(array if fresh else array.copy())
        return tuple(results)

    def computed(self, arrays: Sequence[Any]) -> list[DeviceArray]:
        """The distinct results that are no operands."""
        if not self.makers:
            return []
        index = self.index
        given = [x if x.__class__ is DeviceArray else resident(x, index) for x in arrays]
        for k in self.plain:
            if not given[k].contiguous:
                given[k] = given[k].copy()
        layout = tuple([None if x.contiguous else x.strides for x in given])
        call = self.loaded.get(layout)
        if call is None:
            call = self.loaded[layout] = self._built(layout)
        held = call(*[x.address for x in given])
        return [make(m) for make, m in zip(self.makers, held)]

    def _built(self, layout: Sequence[Any]) -> Callable[..., tuple[Any, ...]]:
        """The launches for operands of one layout."""
        strides: dict[Value, tuple[int, ...]] = {
            v: tuple(s // v.dtype.itemsize for s in given)
            for v, given in zip(self.graph.inputs, layout, strict=True) if given is not None
        }  # fmt: skip
        with unwatched():
            return graphs.launcher(self.graph, self.graph.name, strides, device=self.index)
