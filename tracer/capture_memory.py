"""What a captured run writes to memory that several tensors look at, or that is not its own.

The graph knows values, not memory. So each piece of memory has a *root*, the tensor that has all of
it as far as the run knows, and the value of the root now. A write through a view makes a new value
of the root (`put`); the others that look at the memory take theirs anew from it (`taken`). What the
root of an input holds at the end is written back by the launcher. Start reading at `Memory`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.graph import GraphBuilder, Value
from tracegrad.ir.location import Location
from tracegrad.ir.primitive import TABLE, Primitive
from tracegrad.runtime.cuda.array import DeviceArray, all_apart, host
from tracegrad.tracer.inplace import check_layout
from tracegrad.tracer.storage import announce as announce_storage
from tracegrad.tracer.storage import before_write
from tracegrad.tracer.tensor import Tensor

Step = tuple[Any, Any, tuple[int, ...]]  # operation, parameters, shape: of a view's chain


@dataclass
class Memory:
    """One piece of memory in a captured run.

    Attributes:
        root: the tensor that has all of it.
        value: what `root` holds now.
        source: number of the input that it is; None where the run made it.
        shared: several inputs look at it.
        tracked: a tensor that looks at it has required grad.
        writes: how many writes there were; a tensor's value is stale when it is from before one.
        noted: (operation, line) of the writes that count in the version of `root`.
        through_view: it was written to through another tensor than `root`.
    """

    root: Tensor
    value: Value
    source: int | None = None
    shared: bool = False
    tracked: bool = False
    writes: int = 0
    noted: list[tuple[str, Location | None]] = field(default_factory=list)
    through_view: bool = False


@dataclass(frozen=True)
class WriteBack:
    """An input whose memory holds another value after a replay.

    Attributes:
        source: number of the input.
        kind, at: ("output", k) or ("input", k): where the value is.
        noted: (operation, line) of each write, for the version counter.
    """

    source: int
    kind: str
    at: int
    noted: tuple[tuple[str, Location | None], ...]


def path(root: Tensor, tensor: Tensor) -> Sequence[Step] | None:
    """The movement operations that lead from `root` to `tensor`; None where that is not known."""
    a, b = root._array, tensor._array
    if tensor is root or (
        a.shape == b.shape and a.strides == b.strides and root._ptr() == tensor._ptr()
    ):
        return ()
    view = tensor._view
    if view is None:
        return None
    above = root._view
    if view.base is root:
        return tuple(view.chain)
    if above is not None and view.base is above.base:
        n = len(above.chain)
        if len(view.chain) >= n and all(p is q for p, q in zip(above.chain, view.chain)):
            return tuple(view.chain[n:])
    base = view.base  # another object over all of the memory, as `x.data` is
    if base._view is None and base._array.shape == a.shape and base._ptr() == root._ptr():
        return tuple(view.chain) if base._array.strides == a.strides else None
    return None


def taken(builder: GraphBuilder, value: Value, steps: Sequence[Step], line: Any) -> Value | None:
    """What a view shows of `value`; None where a step is no primitive."""
    for op, params, _ in steps:
        if not isinstance(op, Primitive):
            return None
        value = builder.append(op, [value], params, location=line)
    return value


def put(
    builder: GraphBuilder, value: Value, steps: Sequence[Step], part: Value, line: Any
) -> Value | None:
    """`value` with `part` where the view shows it; None where a step cannot be undone."""
    if not steps:
        return part
    op, params, _ = steps[0]
    if not isinstance(op, Primitive):
        return None
    inner = builder.append(op, [value], params, location=line)
    whole = put(builder, inner, steps[1:], part, line)
    if whole is None:
        return None

    def append(name: str, operands: Sequence[Any], **given: Any) -> Value:
        return builder.append(TABLE[name], operands, given, location=line)

    if op.name == "reshape":
        return append("reshape", [whole], shape=value.shape)
    if op.name == "permute":
        axes = params["axes"]
        back = tuple(sorted(range(len(axes)), key=axes.__getitem__))
        return append("permute", [whole], axes=back)
    if op.name == "flip":
        return append("flip", [whole], **params)
    if op.name == "detach":
        return whole
    if op.name != "slice":
        return None
    padding = []
    for start, by, n, size in zip(params["start"], params["step"], whole.shape, value.shape):
        covered = (n - 1) * by + 1 if n else 0
        padding.append((start, size - start - covered, by - 1))
    if not any(any(p) for p in padding):
        return whole
    zero = False if value.dtype is dtypes.bool_ else 0
    spread = append("pad", [whole], padding=tuple(padding), value=zero)
    inside = append("broadcast", [append("constant", [], value=True, dtype=dtypes.bool_)],
                    shape=whole.shape)  # fmt: skip
    mask = append("pad", [inside], padding=tuple(padding), value=False)
    return append("where", [mask, spread, value])


def with_strides(array: Any) -> Any:
    """A copy that lies in memory as the array does."""
    if array.flags.c_contiguous or array.size == 0:
        return array.copy()
    size = array.itemsize
    span = 1 + sum(s // size * (n - 1) for s, n in zip(array.strides, array.shape))
    if array.__class__ is DeviceArray:
        held = DeviceArray.empty((span,), array.dtype.numpy, array.index)
        twin = held.part(0, array.shape, array.strides)
        twin.write(array)
        return twin
    made = np.lib.stride_tricks.as_strided(np.zeros(span, array.dtype), array.shape, array.strides)
    made[...] = array
    return made


# ---- at a replay --------------------------------------------------------------------------------


def apart(written: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether no tensor that is written to shares memory with another input, nor is refused."""
    for x in written:
        check_layout(x)
    if all_apart([x._array for x in written], [x._array for x in others]):
        return True
    for x in written:
        array, token = x._array, x._storage.memory
        for y in (*written, *others):
            if y is not x and (y._storage.memory is token or np.may_share_memory(array, y._array)):
                return False
    return True


def write_all(writes: Sequence[tuple[Tensor, Any, Sequence[tuple[str, Location | None]]]]) -> None:
    """As `write_back`, for several inputs; plain copies within a device are asked for together."""
    copies: list[tuple[int, int, int]] = []
    index = 0
    for tensor, array, noted in writes:
        own: Any = tensor._array
        plain = own.__class__ is DeviceArray and array.__class__ is DeviceArray
        if not (plain and own.contiguous and array.contiguous and own.dtype is array.dtype):
            write_back(tensor, array, noted)
            continue
        announce(tensor)
        index = own.index
        if own.size:
            copies.append((own.address, array.address, own.nbytes))
        note(tensor, noted)
    if copies:
        from tracegrad.runtime.cuda import executable

        executable.copy_all(copies, index)


def write_back(tensor: Tensor, array: Any, noted: Sequence[tuple[str, Location | None]]) -> None:
    """Put what a replay computed into the memory of an input, as the writes it stands for did."""
    announce(tensor)
    if tensor._array.__class__ is not DeviceArray:
        array = host(array)
    tensor._array[...] = array
    note(tensor, noted)


def announce(tensor: Tensor) -> None:
    """Tell those who must see the memory as it was before a replay writes to it."""
    if before_write:
        announce_storage(tensor._storage)


def note(tensor: Tensor, noted: Sequence[tuple[str, Location | None]]) -> None:
    """Count the writes that a replay stands for."""
    for name, location in noted:
        tensor._storage.note(name, location)
