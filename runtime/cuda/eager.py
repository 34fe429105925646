"""Eager operations on a device: each is a graph of one node, compiled, and kept by types and layout.

Movement that NumPy does without copying is a view here too. Operands in host memory are numbers,
which are copied over; those that come again are kept on the device. Start reading at `bound`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tracegrad.ir.dtypes import from_numpy
from tracegrad.ir.graph import GraphBuilder
from tracegrad.ir.primitive import Primitive, get
from tracegrad.ir.types import TensorType
from tracegrad.runtime.cuda import graphs
from tracegrad.runtime.cuda.array import DeviceArray

_NUMBERS_KEPT = 4096
_numbers: dict[Any, DeviceArray] = {}
Kernel = Callable[..., DeviceArray]


class Viewer:
    """A kernel whose result may lie in the memory of its operand."""

    __slots__ = ("view",)

    def __init__(self, view: Kernel) -> None:
        self.view = view

    def __call__(self, x: DeviceArray) -> DeviceArray:
        return self.view(x)


def device_index(device: str) -> int:
    """The number of the device called `cuda:0` or so."""
    return int(device.partition(":")[2] or 0)


def device_of(types: Sequence[TensorType]) -> str:
    """The first device among types that is not the host; "cpu" where there is none."""
    return next((t.device for t in types if t.device != "cpu"), "cpu")


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


def bound(
    op: Primitive, types: Sequence[TensorType], params: Mapping[str, Any], out: TensorType
) -> Kernel:
    """The kernel of `op` for operands of `types`, its parameters filled in.

    Results are row-major, in memory of their own, but for views, `detach` and constants, which are
    made once.
    """
    if not types:
        made = resident(np.asarray(op.eager(**params), out.dtype.numpy), device_index(out.device))
        return lambda: made
    view = _VIEWS.get(op.name)
    if view is not None:
        return Viewer(lambda x: view(x, **params))
    index = device_index(out.device)
    turned: dict[tuple[int, ...], Kernel] = {}
    loaded: dict[Any, Callable[..., tuple[Any, ...]]] = {}
    shape, dtype = out.shape, out.dtype.numpy
    by_elements = op.family == "pointwise"
    plain = op.family in ("convolution", "window")  # their kernels read row-major memory

    def kernel(*arrays: Any) -> DeviceArray:
        given = [x if x.__class__ is DeviceArray else resident(x, index) for x in arrays]
        order = _common_order(given, shape) if by_elements else None
        if order is not None:  # the result lies in memory as its operands do
            if order not in turned:
                turned[order] = _turned(op, types, params, out, order)
            laid = turned[order](*[x.transpose(order) if x.ndim else x for x in given])
            return laid.transpose(tuple(order.index(d) for d in range(len(order))))
        if plain:
            given = [x if x.contiguous else x.copy() for x in given]
        layout = tuple([None if x.contiguous else x.strides for x in given])
        call = loaded.get(layout)
        if call is None:
            call = loaded[layout] = _built(op, types, params, layout, index)
        return DeviceArray.over(call(*[x.address for x in given])[0], shape, dtype)

    return kernel


def _turned(
    op: Primitive, types: Sequence[TensorType], params: Mapping[str, Any], out: TensorType,
    order: tuple[int, ...],
) -> Kernel:  # fmt: skip
    """The kernel of a pointwise operation for operands with their dimensions in another order."""

    def turn(t: TensorType) -> TensorType:
        return replace(t, shape=tuple(t.shape[d] for d in order)) if t.shape else t

    return bound(op, [turn(t) for t in types], params, turn(out))


def _common_order(arrays: Sequence[DeviceArray], shape: Any) -> tuple[int, ...] | None:
    """The order of dimensions in which all operands lie without gaps, where it is not row-major."""
    strides = None
    for x in arrays:
        if not x.ndim:
            continue
        if x.contiguous or x.shape != shape or strides not in (None, x.strides):
            return None
        strides = x.strides
    if strides is None or min(strides) < 0:
        return None
    order = tuple(sorted(range(len(strides)), key=lambda d: (-strides[d], d)))
    step = arrays[0].itemsize if arrays[0].ndim else next(x for x in arrays if x.ndim).itemsize
    for d in reversed(order):
        if strides[d] != step and shape[d] != 1:
            return None
        step *= shape[d]
    return order


def _built(
    op: Primitive, types: Sequence[TensorType], params: Mapping[str, Any],
    layout: Sequence[Any], index: int,
) -> Callable[..., tuple[Any, ...]]:  # fmt: skip
    """The launcher of a graph of one node."""
    builder = GraphBuilder(op.name)
    device = f"cuda:{index}"
    inputs = [builder.input(TensorType(t.shape, t.dtype, device)) for t in types]
    node = builder.append(op, inputs, params)
    strides = {
        v: tuple(s // v.dtype.itemsize for s in given)
        for v, given in zip(inputs, layout, strict=True) if given is not None
    }  # fmt: skip
    observer = sys.getprofile()  # of a capture: how code is made is not what it watches
    sys.setprofile(None)
    try:
        return graphs.launcher(builder.finish([node]), op.name, strides)
    finally:
        sys.setprofile(observer)


_arithmetic: dict[Any, Kernel] = {}


def arithmetic(name: str, arrays: Sequence[Any]) -> DeviceArray:
    """A pointwise operation on arrays of one dtype, or NumPy numbers, whose shapes broadcast."""
    key = (name, *((x.shape, x.dtype) for x in arrays))
    found = _arithmetic.get(key)
    if found is None:
        types = [
            TensorType(x.shape, from_numpy(x.dtype.numpy), f"cuda:{x.dtype.index}")
            if isinstance(x, DeviceArray) else TensorType(x.shape, from_numpy(x.dtype))
            for x in arrays
        ]  # fmt: skip
        op = get(name)
        found = _arithmetic[key] = bound(op, types, {}, op.infer(types, {}))
    return found(*arrays)


# ---- views --------------------------------------------------------------------------------------


def _slice(x: DeviceArray, start: Any, stop: Any, step: Any) -> DeviceArray:
    return x[tuple(slice(*bounds) for bounds in zip(start, stop, step, strict=True))]


_VIEWS: dict[str, Callable[..., DeviceArray]] = {
    "reshape": lambda x, shape: x.reshape(tuple(shape)),
    "permute": lambda x, axes: x.transpose(tuple(axes)),
    "broadcast": lambda x, shape: x.broadcast(tuple(shape)),
    "slice": _slice,
    "detach": lambda x: x,
}  # fmt: skip
