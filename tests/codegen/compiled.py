"""Compiled graphs against the interpreter, on the scale on which each result may round.

`assert_compiled_equals_evaluated` compiles a graph with every value as an output, and compares node
by node: the interpreter is given the compiled operands of the node, so that an error shows where it
is made and does not grow on its way to an output. Start reading there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from random_graphs import assert_same_bits

from tracegrad.codegen.unit import contiguous_inputs
from tracegrad.ir import dtypes
from tracegrad.ir.errors import DivisionByZeroError
from tracegrad.ir.evaluate import evaluate
from tracegrad.ir.graph import Graph, Node, Value
from tracegrad.ir.primitive import evaluate_primitive
from tracegrad.ir.types import Shape
from tracegrad.runtime import executable, threads
from tracegrad.runtime.kernels import pointer
from tracegrad.tracer import verification

EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
TINY = {"float64": 2.0**-1022, "float32": 2.0**-126, "float16": 2.0**-14, "bfloat16": 2.0**-126}

RANGE_OF_ULP = {"tan", "lgamma", "digamma", "polygamma", "erfc"}


def layouts(
    graph: Graph, arrays: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], dict[Value, Shape]]:
    """The arrays as a kernel may take them, and the strides (in elements) of those with gaps."""
    plain = contiguous_inputs(graph)
    fit: list[np.ndarray] = []
    strides: dict[Value, Shape] = {}
    for value, array in zip(graph.inputs, arrays, strict=True):
        whole = not any(s % array.itemsize for s in array.strides)
        if array.flags.c_contiguous or value in plain or not whole:
            fit.append(np.ascontiguousarray(array).reshape(array.shape))
            continue
        fit.append(array)
        strides[value] = tuple(s // array.itemsize for s in array.strides)
    return fit, strides


def run(graph: Graph, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The outputs of a graph computed by generated C; those that are inputs are passed on."""
    made = [n.out for n in graph.nodes]
    wanted = tuple(dict.fromkeys(v for v in graph.outputs if v in set(made)))
    known: dict[Value, np.ndarray] = dict(zip(graph.inputs, arrays, strict=True))
    if wanted:
        inner = graph.replace(outputs=wanted)
        fit, strides = layouts(inner, arrays)
        kernel = executable.build(inner, "run", strides)
        known.update(zip(wanted, kernel.call(*map(pointer, fit)), strict=True))
    return [known[v] for v in graph.outputs]


def assert_same_for_threads(
    graph: Graph, arrays: Sequence[np.ndarray], *counts: int
) -> list[np.ndarray]:
    """The outputs, which have the same bits on one thread and on each of these numbers of them."""
    before = threads.get_num_threads()
    try:
        threads.set_num_threads(1)
        one = run(graph, arrays)
        for count in counts:
            threads.set_num_threads(count)
            assert_same_bits(run(graph, arrays), one)
    finally:
        threads.set_num_threads(before)
    return one


def units(node: Node) -> int:
    """How many units in the last place a compiled node may be off: what its record states.

    Of some functions it holds in the range of the samples; near zeros and poles they lose more.
    """
    if node.primitive.name == "reduce_sum" and node.out.dtype is dtypes.float64:
        # nothing is wider: each addition rounds, in whatever order
        return max(node.primitive.ulp, node.inputs[0].type.size // max(node.out.type.size, 1))
    return 4096 if node.primitive.name in RANGE_OF_ULP else node.primitive.ulp


def scale(node: Node, operands: Sequence[Any], want: np.ndarray) -> np.ndarray:
    """The scale of rounding: of a sum, the sum of the magnitudes; else the result itself."""
    op = node.primitive
    if op.name in ("reduce_sum", "scatter_add") or op.family in ("contraction", "convolution"):
        return evaluate_primitive(
            op, [np.abs(x) if x.dtype.kind not in "biu" else x for x in operands], node.params
        )
    if op.name in RANGE_OF_ULP:
        return np.maximum(np.abs(want), 1).astype(want.dtype)
    if op.family == "window":
        return np.full_like(want, np.max(np.abs(operands[0]), initial=0))
    return want


def distance(got: np.ndarray, want: np.ndarray, size: np.ndarray) -> float:
    """The largest difference in units in the last place of `size`; infinite at a wrong NaN."""
    name = dtypes.from_numpy(want.dtype).name
    a, b = got.astype(np.float64), want.astype(np.float64)
    with np.errstate(all="ignore"):
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        magnitude = np.maximum(np.abs(size.astype(np.float64)), TINY[name])
        off = np.abs(a - b) / (EPSILON[name] * 2.0 ** np.floor(np.log2(magnitude)))
        off = np.where(np.isnan(off), np.inf, off)
    return float(np.max(np.where(same, 0.0, off), initial=0.0))


def assert_compiled_equals_evaluated(graph: Graph, arrays: Sequence[np.ndarray]) -> None:
    """Compile `graph` with every value stored and check each node; then fused, two outputs."""
    every = graph.replace(outputs=tuple(n.out for n in graph.nodes))
    try:
        reference(every, arrays)
    except DivisionByZeroError:
        with pytest.raises(DivisionByZeroError):
            run(every, arrays)
        return
    known = dict(zip(graph.inputs, arrays, strict=True))
    known.update(zip(every.outputs, run(every, arrays), strict=True))
    for node in graph.nodes:
        operands = [known[v] for v in node.inputs]
        want = evaluate_primitive(node.primitive, operands, node.params)
        assert_close(node, known[node.out], want, operands)
    last = graph.replace(outputs=graph.outputs[-2:])
    for value, got in zip(last.outputs, run(last, arrays), strict=True):
        assert_fused(graph, value, got, known[value])


def assert_close(node: Node, got: np.ndarray, want: np.ndarray, operands: Sequence[Any]) -> None:
    """One node against its eager kernel on the same operands."""
    assert (got.shape, got.dtype) == (want.shape, want.dtype), node
    if want.dtype.kind in "biu":
        assert np.array_equal(got, want), (node, node.params, operands, got, want)
        return
    off = distance(got, want, scale(node, operands, want))
    assert off <= units(node), (node, node.params, off, operands, got, want)


def assert_fused(graph: Graph, value: Value, got: np.ndarray, apart: np.ndarray) -> None:
    """An output of the fused graph against the same value computed with everything stored.

    The same bits where all that it depends on is exact. Else a libm call on a vector, or a sum in
    another order, may round otherwise: 4096 ulp on the scale of the array, and nothing is asked
    where a jump (a comparison, a `floor`) follows something inexact.
    """
    assert (got.shape, got.dtype) == (apart.shape, apart.dtype), value
    ancestors = _ancestors(graph, value)
    if not any(_inexact(n) for n in ancestors):
        assert_same_bits([got], [apart])
    elif not any(_jumps(n) for n in ancestors):
        how = verification.differs(got, apart)
        assert how is None, (str(graph), value, how)


def _ancestors(graph: Graph, value: Value) -> list[Node]:
    wanted, found = {value}, []
    for node in reversed(graph.nodes):
        if node.out in wanted:
            found.append(node)
            wanted.update(node.inputs)
    return found


def _inexact(node: Node) -> bool:
    op = node.primitive
    return op.ulp > 0 or (op.family != "pointwise" and node.out.dtype.kind == "f"
                          and op.family not in ("movement", "creation"))  # fmt: skip


def _jumps(node: Node) -> bool:
    """Whether a small error of an operand can become a large one of the result."""
    smooth = {"add", "sub", "mul", "neg", "exp", "sin", "cos", "tanh", "sqrt", "erf", "sigmoid",
              "reduce_sum", "abs", "maximum", "minimum", "constant"}  # fmt: skip
    return node.primitive.name not in smooth and node.primitive.family != "movement"


def reference(graph: Graph, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The interpreter's outputs."""
    return [np.asarray(a) for a in evaluate(graph, list(arrays))]
