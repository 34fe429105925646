"""Where the first NaN comes from: what `compile(debug=True)` adds to compiled code.

Compiled code says only that there is a NaN; which operation made it is found by the interpreter, on
the same inputs. So nothing but looking at results is paid until there is one. Start reading at
`watched`; `runtime.cuda.debugging` looks behind each launch on a device.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tracegrad.ir.errors import NaNError
from tracegrad.ir.evaluate import last_uses
from tracegrad.ir.graph import Graph, Node, Value
from tracegrad.ir.primitive import evaluate_primitive
from tracegrad.ir.types import Shape


def has_nan(array: np.ndarray) -> bool:
    """Whether some element is NaN; never so for other dtypes than floating ones.

    Example:
        >>> has_nan(np.array([1.0, np.nan])), has_nan(np.array([1]))
        (True, False)
    """
    if array.dtype.kind in "biu":
        return False
    with np.errstate(all="ignore"):
        return bool(np.isnan(array).any())


def watched(
    graph: Graph, call: Callable[..., tuple[np.ndarray, ...]],
    strides: Mapping[Value, Shape] | None = None,
) -> Callable[..., tuple[np.ndarray, ...]]:  # fmt: skip
    """Compiled code in host memory whose results are looked at.

    A call raises a `NaNError` where a result has a NaN that an operation made of numbers.
    """

    def checked(*addresses: int) -> tuple[np.ndarray, ...]:
        results = call(*addresses)
        if any(map(has_nan, results)):
            arrays = [
                in_memory(v, address, (strides or {}).get(v))
                for v, address in zip(graph.inputs, addresses, strict=True)
            ]
            complain(graph, arrays)
        return results

    return checked


def in_memory(value: Value, address: int, strides: Shape | None) -> np.ndarray:
    """The array of an input at an address of the host; strides in elements."""
    shape, dtype = tuple(map(int, value.shape)), value.dtype.numpy
    if 0 in shape:
        return np.empty(shape, dtype)
    if strides is None:
        strides = tuple(s // dtype.itemsize for s in np.empty(shape, dtype).strides)
    reach = [(n - 1) * int(s) for n, s in zip(shape, strides, strict=True)]
    below = -sum(r for r in reach if r < 0)
    size = (sum(map(abs, reach)) + 1) * dtype.itemsize
    held: Any = (ctypes.c_char * size).from_address(address - below * dtype.itemsize)
    steps = tuple(int(s) * dtype.itemsize for s in strides)
    return np.ndarray(shape, dtype, held, below * dtype.itemsize, steps)


def complain(graph: Graph, arrays: Sequence[np.ndarray], behind: str = "") -> None:
    """Raise the error of the first operation that makes a NaN; nothing where there is none.

    Args:
        behind: which kernel it was seen behind.
    Raises:
        NaNError: naming the operation, its line and the element.
    """
    found = origin(graph, arrays)
    if found is None:
        return
    node, made = found
    wrong = np.isnan(made)
    at = [int(i) for i in np.argwhere(wrong)[0]]
    what = f"element {at} of shape {list(made.shape)}" if made.ndim else "its result"
    where = f" at {node.location}: {node.location.text}" if node.location else ""
    raise NaNError(
        f"{graph.name}: {node.primitive.name} makes NaN of operands without NaN{where}\n"
        f"{what} is NaN, {int(wrong.sum())} of {made.size} elements are{behind}"
    )


def origin(graph: Graph, arrays: Sequence[np.ndarray]) -> tuple[Node, np.ndarray] | None:
    """The first node with a NaN in its result and none in its operands, and that result.

    Constants do not count: they were meant. In use is the memory of the values alive at one time.
    """
    known: dict[Value, Any] = dict(zip(graph.inputs, arrays, strict=True))
    bad = {v for v, array in known.items() if has_nan(array)}
    until = last_uses(graph)
    for i, node in enumerate(graph.nodes):
        operands = tuple(known[v] for v in node.inputs)
        with np.errstate(all="ignore"):
            made = evaluate_primitive(node.primitive, operands, node.params)
        if has_nan(np.asarray(made)):
            if node.inputs and not bad & set(node.inputs):
                return node, np.asarray(made)
            bad.add(node.out)
        known[node.out] = made
        for v in {node.out, *node.inputs}:
            if until[v] == i:
                del known[v]
    return None
