"""Checking the first result of compiled code against the interpreter of the same graph.

A result that differs by more than rounding can explain is traced to the first node whose value
differs, reported with its Python line, and the function goes on without that code.
Start reading at `first_difference`.

Note [Tolerance]
Eager and compiled code round differently in the vector functions of libm (a few ulp, stated per
primitive) and in the order of sums. Errors of one ulp in an intermediate can grow through
cancellation, so elements are compared on the scale of their array: the largest magnitude among the
finite values. 4096 ulp on that scale is far below what a wrong index or a missing term does.

Note [Conditioning]
A sum that cancels to nothing, or a comparison of nearly equal numbers, amplifies rounding without
limit, and then no scale taken from the result is right. So a difference is held against a second
measure before it counts: how far the eager result itself moves when the inputs move by a few units
in the last place. A difference of that order is the problem's, not the code's. A whole number
without dimension stays where it is: moved, an exponent would make powers of negative numbers NaN.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.evaluate import evaluate
from tracegrad.ir.graph import Graph, Node, Value
from tracegrad.ir.location import user_stacklevel
from tracegrad.ir.types import Shape
from tracegrad.runtime import executable
from tracegrad.runtime.cuda.array import host
from tracegrad.runtime.kernels import pointer
from tracegrad.tracer.array_rules import as_array
from tracegrad.tracer.resident import like_device, on_device_of

if TYPE_CHECKING:
    from tracegrad.tracer.compiled_backward import Backward
    from tracegrad.tracer.trace import Trace

ULPS = 4096
NUDGE = 8  # units in the last place by which the inputs are moved, see Note [Conditioning]
TRIALS = 4
AMPLIFIED = 64  # a difference of up to so many times the movement is rounding


class EagerWarning(UserWarning):
    """A compiled function runs eagerly; the message says why and where."""


class VerificationWarning(UserWarning):
    """Compiled code gave another result than eager code; the eager result is used.

    This is a defect of tracegrad or of the C compiler: please report it with the message.
    """


def differs(got: np.ndarray, want: np.ndarray, moved: Sequence[np.ndarray] = ()) -> str | None:
    """How two results differ beyond rounding, in words; None where they agree.

    Args:
        moved: the wanted result for slightly other inputs, see Note [Conditioning].
    """
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"{got.dtype}{got.shape} instead of {want.dtype}{want.shape}"
    dtype = dtypes.from_numpy(want.dtype)
    if not dtype.is_floating_point:
        wrong = got != want
        if any(int((m != want).sum()) >= int(wrong.sum()) for m in moved):
            return None
    else:
        a, b = got.astype(np.float64), want.astype(np.float64)
        finite = np.isfinite(b)
        with np.errstate(all="ignore"):
            scale = np.max(np.abs(b), initial=0.0, where=finite)
            reach = max((_movement(m, b) for m in moved), default=0.0)
            close = np.abs(a - b) <= ULPS * epsilon(dtype) * scale + AMPLIFIED * reach
        wrong = np.where(finite, ~close, ~((a == b) | (np.isnan(a) & np.isnan(b))))
    if not wrong.any():
        return None
    at = tuple(int(i) for i in np.argwhere(wrong)[0])
    return (
        f"{int(wrong.sum())} of {wrong.size} elements; the first at {list(at)}: "
        f"{got[at]} compiled, {want[at]} eager"
    )


def _movement(moved: np.ndarray, base: np.ndarray) -> float:
    """The largest finite distance between two results."""
    distance = np.abs(moved.astype(np.float64) - base)
    return float(np.max(distance, initial=0.0, where=np.isfinite(distance)))


def nudged(graph: Graph, arrays: Sequence[Any]) -> list[list[np.ndarray]]:
    """For each output of a graph, its values for inputs moved by a few units in the last place."""
    rng = np.random.default_rng(0)
    trials: list[list[np.ndarray]] = [[] for _ in graph.outputs]
    for _ in range(TRIALS):
        inputs = []
        for array in map(host, arrays):
            dtype = dtypes.from_numpy(array.dtype)
            if dtype.is_floating_point and not (array.ndim == 0 and array == np.floor(array)):
                sign = np.where(rng.random(array.shape) < 0.5, -1.0, 1.0)
                factor = 1.0 + NUDGE * epsilon(dtype) * sign
                array = np.asarray(array * factor).astype(array.dtype)
            inputs.append(array)
        for k, result in enumerate(evaluate(graph, inputs)):
            trials[k].append(np.asarray(result))
    return trials


def mismatch(
    graph: Graph, arrays: Sequence[Any], got: Sequence[np.ndarray], want: Sequence[np.ndarray]
) -> tuple[int, str] | None:
    """The first output that differs beyond rounding, and how; None where all agree."""
    got = [host(a) for a in got]
    suspects = [k for k, (a, b) in enumerate(zip(got, want, strict=True)) if differs(a, b)]
    if not suspects:
        return None
    moved = nudged(graph, arrays)
    for k in suspects:
        how = differs(got[k], want[k], moved[k])
        if how is not None:
            return k, how
    return None


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
    want = [np.asarray(a) for a in evaluate(every, [host(a) for a in arrays])]
    given = on_device_of(every, [as_array(a) for a in arrays])
    got = executable.build(every, "every", strides).call(*(pointer(a) for a in given))
    got = tuple(map(host, got))
    found = mismatch(every, arrays, got, want)
    return None if found is None else (nodes[found[0]], found[1])


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
        VerificationWarning, stacklevel=user_stacklevel(),
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
    found = first_mismatch(trace, arrays, results)
    if found is not None:
        report(trace.name, trace.returned_graph(), arrays, trace.strides, found[1])
    return found is None


def first_mismatch(
    trace: Trace, arrays: Sequence[np.ndarray], results: Sequence[np.ndarray | None]
) -> tuple[int, str] | None:
    """As `check_forward`, without a warning: which output differs first, and how.

    Raises:
        Strayed: rounding led compiled code to another path.
    """
    if trace.verify == "off" or trace.executable is None:
        return None
    graph = trace.returned_graph()
    made = trace.run_forward(arrays)
    want = [np.asarray(a) for a in evaluate(graph, [host(a) for a in arrays])]
    for place, result in zip(trace.places, results, strict=False):
        if place[0] == "array" and place[1] < len(want) and result is not None:
            want[place[1]] = host(result)
    return mismatch(graph, arrays, made, want)


def verified(
    trace: Trace, arrays: Sequence[np.ndarray], made: Sequence[np.ndarray]
) -> Sequence[np.ndarray]:
    """The results of a replay where they agree with the interpreter's, else the latter."""
    graph = trace.returned_graph()
    want = [np.array(a) for a in evaluate(graph, [host(a) for a in arrays])]
    found = mismatch(graph, arrays, made, want)
    if found is None:
        return made
    report(trace.name, graph, arrays, trace.strides, found[1])
    return [like_device(a, graph) for a in want]


def check_backward(
    backward: Backward, arrays: Sequence[np.ndarray], made: Sequence[np.ndarray]
) -> None:
    """Compare the first gradients; on a difference the backward is interpreted from now on."""
    if backward.trace.verify == "off":
        return
    graph = backward.kernel_graph()
    want = [np.asarray(a) for a in evaluate(graph, [host(a) for a in arrays])]
    found = mismatch(graph, arrays, made, want)
    if found is not None:
        backward.interpreted = True
        report(f"backward of {backward.trace.name}", graph, arrays, backward.strides, found[1])
