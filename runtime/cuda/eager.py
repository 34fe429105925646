"""Eager operations on a device: each is a graph of one node, compiled, and kept by types and layout.

Movement that NumPy does without copying is a view here too. Start reading at `bound`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tracegrad.ir.dtypes import from_numpy
from tracegrad.ir.graph import GraphBuilder
from tracegrad.ir.primitive import Primitive, get
from tracegrad.ir.sizes import Size
from tracegrad.ir.types import TensorType
from tracegrad.runtime.cuda.array import DeviceArray
from tracegrad.runtime.cuda.placing import device_index, resident
from tracegrad.runtime.layouts import forward_order, inverse

if TYPE_CHECKING:
    from tracegrad.runtime.cuda.programs import Program

Kernel = Callable[..., DeviceArray]


class Viewer:
    """A kernel whose result may lie in the memory of its operand."""

    __slots__ = ("view",)

    def __init__(self, view: Kernel) -> None:
        self.view = view

    def __call__(self, x: DeviceArray) -> DeviceArray:
        """The view."""
        return self.view(x)


def device_of(types: Sequence[TensorType]) -> str:
    """The first device among types that is not the host; "cpu" where there is none."""
    return next((t.device for t in types if t.device != "cpu"), "cpu")


def bound(
    op: Primitive, types: Sequence[TensorType], params: Mapping[str, Any], out: TensorType
) -> Kernel:
    """The kernel of `op` for operands of `types`, its parameters filled in.

    Results are row-major, in memory of their own, but for views and `detach`.
    """
    if not types:
        made = resident(np.asarray(op.eager(**params), out.dtype.numpy), device_index(out.device))
        return made.copy  # results may be written to
    view = VIEWS.get(op.name)
    if view is not None:
        return Viewer(lambda x: view(x, **params))
    turned: dict[tuple[int, ...], Kernel] = {}
    builder = GraphBuilder(op.name)
    inputs = [builder.input(replace(t, device=out.device)) for t in types]
    # Code generation is loaded with the first kernel, not by `import tracegrad`.
    from tracegrad.runtime.cuda.programs import Program

    program = Program(builder.finish([builder.append(op, inputs, params)]), out.device)
    if op.family != "pointwise":
        return lambda *arrays: program.computed(arrays)[0]
    shape, index = out.shape, program.index
    flat = _flat(op, types, params, out)

    def kernel(*arrays: Any) -> DeviceArray:
        given = [x if x.__class__ is DeviceArray else resident(x, index) for x in arrays]
        order = _common_order(given, shape)
        if order is None and flat is not None and all(x.contiguous for x in given):
            return flat.computed(given)[0]
        if order is None:
            return program.computed(given)[0]
        if order not in turned:  # the result lies in memory as its operands do
            turned[order] = _turned(op, types, params, out, order)
        laid = turned[order](
            *[_padded(x, len(order)).transpose(order) if x.ndim else x for x in given]
        )
        return laid.transpose(inverse(order))

    return kernel


def _flat(
    op: Primitive, types: Sequence[TensorType], params: Mapping[str, Any], out: TensorType
) -> Program | None:
    """The operation over elements in one row, of any number: one code for all sizes.

    None where operands broadcast.
    """
    if out.size < 2 or any(t.shape not in ((), out.shape) for t in types):
        return None
    row = (Size.symbol("n0", out.size),)
    builder = GraphBuilder(op.name)
    inputs = [
        builder.input(replace(t, shape=row if t.shape else (), device=out.device)) for t in types
    ]
    # Code generation is loaded with the first kernel, not by `import tracegrad`.
    from tracegrad.runtime.cuda.programs import Program

    program = Program(builder.finish([builder.append(op, inputs, params)]), out.device)
    program.makers = [DeviceArray.maker(out.shape, out.dtype.numpy, program.index)]
    return program


def _turned(
    op: Primitive, types: Sequence[TensorType], params: Mapping[str, Any], out: TensorType,
    order: tuple[int, ...],
) -> Kernel:  # fmt: skip
    """The kernel of a pointwise operation for operands with their dimensions in another order."""

    def turn(t: TensorType) -> TensorType:
        sizes = (1,) * (len(order) - len(t.shape)) + tuple(t.shape)
        return replace(t, shape=tuple(sizes[d] for d in order)) if t.shape else t

    return bound(op, [turn(t) for t in types], params, turn(out))


def _padded(x: DeviceArray, ndim: int) -> DeviceArray:
    """The array with `ndim` dimensions: of size 1 in front."""
    return x if x.ndim == ndim else x.reshape((1,) * (ndim - x.ndim) + x.shape)


def _common_order(arrays: Sequence[DeviceArray], shape: Any) -> tuple[int, ...] | None:
    """The order of dimensions in which all operands lie in memory, where it is not row-major.

    Numbers, and what broadcasts along all dimensions but one, go with any order.
    """
    common = None
    for x in arrays:
        if x.shape != shape and x.size == max(x.shape, default=1):
            continue
        order = None if x.contiguous or x.shape != shape else forward_order(x)
        if order is None or common not in (None, order):
            return None
        common = order
    return common


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


VIEWS: dict[str, Callable[..., DeviceArray]] = {
    "reshape": lambda x, shape: x.reshape(tuple(shape)),
    "permute": lambda x, axes: x.transpose(tuple(axes)),
    "broadcast": lambda x, shape: x.broadcast(tuple(shape)),
    "slice": _slice,
    "detach": lambda x: x,
}  # fmt: skip
