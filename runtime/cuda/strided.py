"""Copies between layouts on a device. Start reading at `copy_strided`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracegrad.codegen.cuda.plan import CudaUnit, Launch, Place
from tracegrad.ir import dtypes
from tracegrad.ir.errors import UnsupportedError
from tracegrad.ir.graph import GraphBuilder
from tracegrad.ir.types import TensorType
from tracegrad.runtime.cuda import executable
from tracegrad.runtime.unwatched import unwatched

if TYPE_CHECKING:
    from tracegrad.runtime.cuda.array import DeviceArray

AXES = 6  # that the kernels have; as in strided.cu
THREADS = 256
MOST_BLOCKS = 4096

_ELEMENT = {1: "unsigned char", 2: "unsigned short", 4: "unsigned int", 8: "unsigned long long"}
_ANY = {1: dtypes.uint8, 2: dtypes.int16, 4: dtypes.int32, 8: dtypes.int64}

Axis = tuple[int, int, int]  # size, and strides in elements of the target and of the source


def copy_strided(target: DeviceArray, source: DeviceArray) -> None:
    """Write the elements of `source` to `target`, of the same shape and dtype; no memory in common.

    Raises:
        UnsupportedError: a layout of more than six axes that cannot be joined.
    """
    axes = joined(
        target.shape, _elements(target.strides, target), _elements(source.strides, source)
    )
    if len(axes) > AXES:
        raise UnsupportedError(
            f"a copy between layouts of {len(axes)} axes on a device; at most {AXES} are supported, "
            "after joining those that lie one in the other: make one of the two contiguous()"
        )
    _copier(axes, target.itemsize, target.index)(source.address, target.address)


def _elements(strides: tuple[int, ...], array: DeviceArray) -> tuple[int, ...]:
    return tuple(s // array.itemsize for s in strides)


def joined(shape: tuple[int, ...], to: tuple[int, ...], of: tuple[int, ...]) -> tuple[Axis, ...]:
    """Axes from the target's outermost in, adjacent ones made one where both layouts allow it.

    Example:
        >>> joined((2, 3, 4), (12, 4, 1), (1, 8, 2))
        ((2, 12, 1), (12, 1, 2))
    """
    axes = [a for a in zip(shape, to, of, strict=True) if a[0] != 1]
    axes.sort(key=lambda a: -abs(a[1]))
    made: list[Axis] = []
    for n, t, s in axes:
        if made and made[-1][1] == n * t and made[-1][2] == n * s:
            made[-1] = (made[-1][0] * n, t, s)
        else:
            made.append((n, t, s))
    return tuple(made)


@functools.lru_cache(maxsize=4096)
def _copier(axes: tuple[Axis, ...], itemsize: int, index: int) -> Callable[..., Any]:
    """The launch for one layout, as a function of the addresses of source and target."""
    count = prod(n for n, _, _ in axes)
    padded = ((1, 0, 0),) * (AXES - len(axes)) + axes
    sizes, to, of = zip(*padded, strict=True)
    launch = Launch(
        "strided_copy", (Place("input", 0), Place("input", 1)), (count, *sizes, *to, *of),
        grid=(min(-(-count // THREADS), MOST_BLOCKS), 1, 1), block=(THREADS, 1, 1),
    )  # fmt: skip
    kernel = Path(__file__).with_name("strided.cu").read_text(encoding="utf-8")
    text = f"typedef long long int64;\ntypedef {_ELEMENT[itemsize]} element;\n\n{kernel}"
    unit = CudaUnit(text, text, (launch,), 0, 0, False, 2 * count * itemsize, 0)
    builder = GraphBuilder("copy")
    kind = TensorType((count,), _ANY[itemsize], f"cuda:{index}")
    for _ in range(2):
        builder.input(kind)
    graph = builder.finish([])
    with unwatched():
        return executable.build(graph, "copy", unit, outputs=[], device=index).call
