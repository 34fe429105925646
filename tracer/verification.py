"""Checking the first result of compiled code against the interpreter of the same graph.

A result that differs by more than rounding can explain is traced to the first node whose value
differs, reported with its Python line, and the function goes on without that code.
Start reading at `first_difference`.

Note [Tolerance]
Eager and compiled code round differently in the vector functions of libm (a few ulp, stated per
primitive) and in the order of sums. Errors of one ulp in an intermediate can grow through
cancellation, so elements are compared on the scale of their array: the largest magnitude among the
finite values. 4096 ulp on that scale is far below what a wrong index or a missing term does.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.evaluate import evaluate
from tracegrad.ir.graph import Graph, Node, Value
from tracegrad.ir.types import Shape
from tracegrad.runtime import executable
from tracegrad.runtime.kernels import pointer

if TYPE_CHECKING:
    from tracegrad.tracer.trace import Backward, Trace

ULPS = 4096


class EagerWarning(UserWarning):
    """A compiled function runs eagerly; the message says why and where."""


class VerificationWarning(UserWarning):
    """Compiled code gave another result than eager code; the eager result is used.

    This is a defect of tracegrad or of the C compiler: please report it with the message.
    """


def differs(got: np.ndarray, want: np.ndarray) -> str | None:
    """How two results differ beyond rounding, in words; None where they agree."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"{got.dtype}{got.shape} instead of {want.dtype}{want.shape}"
    dtype = dtypes.from_numpy(want.dtype)
    if not dtype.is_floating_point:
        wrong = got != want
    else:
        a, b = got.astype(np.float64), want.astype(np.float64)
        finite = np.isfinite(b)
        with np.errstate(all="ignore"):
            scale = np.max(np.abs(b), initial=0.0, where=finite)
            close = np.abs(a - b) <= ULPS * epsilon(dtype) * scale
        wrong = np.where(finite, ~close, ~((a == b) | (np.isnan(a) & np.isnan(b))))
    if not wrong.any():
        return None
    at = tuple(int(i) for i in np.argwhere(wrong)[0])
    return (
        f"{int(wrong.sum())} of {wrong.size} elements; the first at {list(at)}: "
        f"{got[at]} compiled, {want[at]} eager"
    )


def epsilon(dtype: dtypes.DType) -> float:
    """The distance from 1 to the next number of a floating dtype."""
    digits = {"float64": 52, "float32": 23, "float16": 10, "bfloat16": 7}
    return float(2.0 ** -digits[dtype.name])


def first_difference(
    graph: Graph, arrays: Sequence[Any], strides: dict[Value, Shape]
) -> tuple[Node, str] | None:
    """The first node whose compiled value differs from the interpreter's, and how.

    Compiles the graph once more with every intermediate as an output.
    """
    nodes = [n for n in graph.nodes if n.out not in graph.inputs]
    every = graph.replace(outputs=tuple(n.out for n in nodes))
    want = evaluate(every, list(arrays))
    got = executable.build(every, "every", strides).call(*(pointer(np.asarray(a)) for a in arrays))
    for node, a, b in zip(nodes, got, want, strict=True):
        how = differs(a, np.asarray(b))
        if how is not None:
            return node, how
    return None


def report(
    name: str, graph: Graph, arrays: Sequence[Any], strides: dict[Value, Shape], how: str
) -> None:
    """Warn about a wrong result, naming the node and the Python line it came from."""
    found = first_difference(graph, arrays, strides)
    if found is None:
        place = "no single operation differs when all intermediates are kept, so fusion is at fault"
    else:
        node, detail = found
        line = f" at {node.location} ({node.location.text})" if node.location else ""
        place = f"the first operation that differs is {node.primitive.name}{line}: {detail}"
    warnings.warn(
        f"{name}: the compiled result differs from the eager one ({how}); {place}. "
        "The eager result is used from now on.",
        VerificationWarning, stacklevel=4,
    )  # fmt: skip


def check_forward(
    trace: Trace, arrays: Sequence[np.ndarray], results: Sequence[np.ndarray | None]
) -> bool:
    """Compare the first replay with the eager run it was captured from.

    Args:
        arrays: the inputs of the graph.
        results: what the eager run gave for each output of the captured graph.
    Returns:
        Whether they agree; a warning says where they do not.
    """
    if trace.verify == "off" or trace.executable is None:
        return True
    graph = trace.kernel_graph()
    made = trace.run_forward(arrays)
    want = [np.asarray(a) for a in evaluate(graph, list(arrays))]
    for place, result in zip(trace.places, results, strict=False):
        if place[0] == "array" and result is not None:
            want[place[1]] = result
    for a, b in zip(made, want, strict=True):
        how = differs(a, b)
        if how is not None:
            report(trace.name, graph, arrays, trace.strides, how)
            return False
    return True


def verified(
    trace: Trace, arrays: Sequence[np.ndarray], made: Sequence[np.ndarray]
) -> Sequence[np.ndarray]:
    """The results of a replay where they agree with the interpreter's, else the latter."""
    graph = trace.kernel_graph()
    want = [np.array(a) for a in evaluate(graph, list(arrays))]
    for a, b in zip(made, want, strict=True):
        how = differs(a, b)
        if how is not None:
            report(trace.name, graph, arrays, trace.strides, how)
            return want
    return made


def check_backward(
    backward: Backward, arrays: Sequence[np.ndarray], made: Sequence[np.ndarray]
) -> None:
    """Compare the first gradients; on a difference the backward is interpreted from now on."""
    if backward.trace.verify == "off":
        return
    graph = backward.kernel_graph()
    want = evaluate(graph, list(arrays))
    for a, b in zip(made, want, strict=True):
        how = differs(a, np.asarray(b))
        if how is not None:
            backward.interpreted = True
            report(f"backward of {backward.trace.name}", graph, arrays, backward.strides, how)
            return
