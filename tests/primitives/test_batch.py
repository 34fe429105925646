"""Batch rules, from the table: one batched call equals the loop over its slices."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from harness import arrays, cases, graph_of, is_floating, samples, widest

from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import NotBatchableError, ParameterError
from tracegrad.ir.evaluate import evaluate
from tracegrad.ir.graph import Graph, GraphBuilder
from tracegrad.ir.ops import TABLE
from tracegrad.ir.passes.batch import batch
from tracegrad.ir.primitive import Primitive, type_of
from tracegrad.ir.verify import verify

SIZE = 3
CASES = [
    case
    for op in TABLE.values()
    if callable(op.batch) and op.args
    for case in cases((widest(op),), only=("plain", "scalar", "empty", "broadcast"),
                      where=lambda other, op=op: other is op)
]  # fmt: skip


@pytest.mark.parametrize(("op", "dtype", "kind"), CASES)
def test_batch_rule_is_the_loop_over_slices(op: Primitive, dtype: DType, kind: str) -> None:
    """Each operand batched or shared, in every combination but none."""
    streams = [samples(op, dtype, stream) for stream in range(SIZE)]
    for examples in zip(*streams, strict=True):
        if examples[0].kind != kind:
            continue
        assert all(e.params == examples[0].params for e in examples)
        graph = graph_of(op, examples[0])
        values = [arrays(e) for e in examples]
        for flags in product((True, False), repeat=len(values[0])):
            if any(flags):
                check(graph, values, flags)


def check(graph: Graph, values: list[tuple[np.ndarray, ...]], flags: tuple[bool, ...]) -> None:
    where = [i for i, flag in enumerate(flags) if flag]
    stacked = [
        np.stack([v[i] for v in values]) if flag else values[0][i] for i, flag in enumerate(flags)
    ]
    (got,) = evaluate(verify(batch(graph, where, SIZE)), stacked)
    loop = [
        evaluate(graph, [v[i] if flag else values[0][i] for i, flag in enumerate(flags)])[0]
        for v in values
    ]
    expected = np.stack(loop)
    assert got.shape == expected.shape
    if is_floating(got):
        # Sums may be taken in another order: 64 terms at most, each rounded.
        scale = np.max(np.abs(expected), initial=0.0)
        np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-14 * scale)
    else:
        np.testing.assert_array_equal(got, expected)


UNBATCHED = [op for op in TABLE.values() if isinstance(op.batch, str)]


@pytest.mark.parametrize("op", UNBATCHED, ids=lambda op: op.name)
def test_primitive_without_batch_rule_says_why(op: Primitive) -> None:
    dtype = widest(op)
    graph = graph_of(op, samples(op, dtype)[0])
    with pytest.raises(NotBatchableError, match=f"^{op.name}: has no batch rule: "):
        batch(graph, [0], SIZE)


def _double() -> Graph:
    builder = GraphBuilder("double")
    x = builder.input(type_of(np.zeros(2)), "x")
    with builder:
        y = TABLE["add"](x, x)
    return builder.finish([y])


def test_shared_output_is_broadcast() -> None:
    builder = GraphBuilder("two")
    x, w = (builder.input(type_of(np.zeros(2)), n) for n in "xw")
    with builder:
        outputs = [TABLE["add"](x, x), TABLE["mul"](w, w)]
    both = batch(builder.finish(outputs), [0], SIZE)
    assert [v.shape for v in both.outputs] == [(SIZE, 2), (SIZE, 2)]
    _, shared = evaluate(both, [np.ones((SIZE, 2)), np.array([1.0, 3.0])])
    np.testing.assert_array_equal(shared, [[1.0, 9.0]] * SIZE)


def test_batch_refuses_unknown_input_and_negative_size() -> None:
    with pytest.raises(ParameterError, match=r"there is no input 1; double has 1 input"):
        batch(_double(), [1], SIZE)
    with pytest.raises(ParameterError, match=r"size must be at least 0, got -1"):
        batch(_double(), [0], -1)
