"""Tensors moved from one device to another. Start reading at `moved`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tracegrad.ir.types import TensorType
from tracegrad.runtime.cuda.array import DeviceArray, host
from tracegrad.runtime.cuda.pinned import Pinned
from tracegrad.tracer import tape
from tracegrad.tracer.device import CPU, device
from tracegrad.tracer.state import state
from tracegrad.tracer.tensor import Tensor, wrap


class ToCopyBackward0(tape.BackwardNode):
    """The backward of a move: the cotangent moves back."""

    __slots__ = ("source",)

    def __init__(self, edge: tape.Edge, type: TensorType, source: device) -> None:
        super().__init__((edge,), (type,))
        self.source = source

    def apply(self, cotangents: list[Tensor | None], create_graph: bool) -> Sequence[Tensor | None]:
        """The cotangent on the device that the operand was on."""
        ct = cotangents[0]
        return [None if ct is None else moved(ct, self.source)]


class Homeward(ToCopyBackward0):
    """A move that nobody asked for: the gradient of a number in host memory goes back to it."""

    __slots__ = ()
    homeward = True


Homeward.__name__ = ToCopyBackward0.__name__


def on_device(array: Any, where: device, wait: bool = True) -> Any:
    """The array on a device: itself, or a copy.

    Args:
        wait: False: a copy from pinned memory need not be finished at the end.
    """
    if array.__class__ is DeviceArray and array.index == where.index:
        return array
    if where.index is None:
        return host(array)
    source = host(array)
    return DeviceArray.from_host(source, where.index, wait or not in_pinned_memory(source))


def in_pinned_memory(array: Any) -> bool:
    """Whether an array lies in page-locked memory of ours."""
    while array is not None and not isinstance(array, Pinned):
        array = getattr(array, "base", None)
    return array is not None


def moved_to_pinned(x: Tensor, index: int) -> Tensor:
    """A copy in page-locked memory, differentiably."""
    array = np.ascontiguousarray(x._array)
    held = np.asarray(Pinned(max(array.nbytes, 1), index))[: array.nbytes]
    pinned = held.view(array.dtype).reshape(array.shape)
    pinned[...] = array
    return _moved(x, pinned, "pin_memory()", lambda y: moved_to_pinned(y, index))


def moved(x: Tensor, where: device, non_blocking: bool = False) -> Tensor:
    """The tensor on a device: itself if it is there, else a copy, differentiably."""
    if x.device == where:
        return x
    array = on_device(x._array, where, not non_blocking)
    return _moved(x, array, f"to({str(where)!r})", lambda y: moved(y, where, non_blocking))


def _moved(x: Tensor, array: Any, what: str, move: Callable[[Tensor], Tensor]) -> Tensor:
    """The tensor whose elements were copied to `array`, and all that goes along with it.

    Args:
        what: names the move for a capture, which does not contain it.
        move: moves another tensor likewise: a tangent, or the batch that `x` is an example of.
    """
    out = wrap(array)
    if state.recorder is not None:
        state.recorder.note(what)
        for lockstep, companion in state.recorder.companions(x):
            with lockstep.outside():
                lockstep.accompany(out, move(companion))
    if state.grad_enabled and x.requires_grad:
        tape.attach(ToCopyBackward0(tape.gradient_edge(x), out.type_info, x.device), (out,))
    return out


def homeward(edges: Sequence[tape.Edge], abroad: tape.Abroad) -> tuple[tape.Edge, ...]:
    """Edges at whose places `abroad` a gradient that is made on a device moves to the host."""
    made = list(edges)
    for place, type in abroad:
        if made[place][0] is not None:
            made[place] = (Homeward(made[place], type, CPU), 0)
    return tuple(made)
