"""Outputs that replace an input: written where it lies if nothing reads the input after that."""

from __future__ import annotations

import numpy as np
import pytest

from tests.codegen.drawing import BARE, graph
from tracegrad.codegen.unit import plan_unit
from tracegrad.ir import dtypes, ops
from tracegrad.ir.evaluate import evaluate
from tracegrad.runtime import executable
from tracegrad.runtime.kernels import pointer


def rows_sum(x):
    return ops.broadcast(ops.reduce_sum(x, axes=(1,), keepdims=True), shape=x.shape)


def updated(w, g):
    return w - 0.1 * g


def read_twice(w, g):
    return w * w + w * g


def momentum(w, g):
    """Two outputs: a buffer that keeps, and a weight that the buffer changes."""
    kept = 0.9 * g + w
    return kept, w - 0.1 * kept


def shifted(w, g):
    return ops.flip(w, axes=(0,)) + g


def by_its_sum(w, g):
    return w / rows_sum(w) + g


def softmax(w, g):
    e = ops.exp(w - ops.broadcast(ops.reduce_max(w, axes=(1,), keepdims=True), shape=w.shape))
    return e / rows_sum(e) * g


def another_reads_after(w, g):
    new = w - g
    return new, ops.reduce_sum(ops.sin(w) * rows_sum(new), axes=(0, 1), keepdims=False)


def product(w, g):
    return ops.dot_general(w, g, contract=((1,), (0,)), batch=((), ()))


def the_old_one_too(w, g):
    return w - g, w * 2


SHAPE = (6, 6)
CASES = {
    updated: ({0: 0}, {0: 0}),
    read_twice: ({0: 0}, {0: 0}),
    momentum: ({0: 1, 1: 0}, {0: 1}),  # the weight is read by both statements
    shifted: ({0: 0}, {}),
    by_its_sum: ({0: 0}, None),  # where the sum is a kernel of its own, before
    softmax: ({0: 0}, None),
    another_reads_after: ({0: 0}, {}),
    product: ({0: 0}, {}),
    the_old_one_too: ({0: 0}, None),  # as the statements happen to be ordered
}


@pytest.mark.parametrize("function", CASES, ids=lambda f: f.__name__)
def test_what_is_written_in_place(function) -> None:
    drawn = graph(function, SHAPE, SHAPE)
    wanted, expected = CASES[function]
    plan = plan_unit(drawn, BARE, {}, inplace=wanted)
    if expected is not None:
        assert set(plan.inplace.items()) >= set(expected.items())
        assert set(plan.inplace.items()) <= set(wanted.items())
        if not expected:
            assert not plan.inplace


@pytest.mark.parametrize("function", CASES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("shape", [SHAPE, (1, 1), (130, 130)], ids=str)
def test_values_are_those_of_the_interpreter(function, shape) -> None:
    """Be they made in new memory or in that of an input; inputs that stay are not touched."""
    drawn = graph(function, shape, shape)
    rng = np.random.default_rng(0)
    given = [rng.uniform(0.5, 1.5, shape).astype(np.float32) for _ in range(2)]
    want = evaluate(drawn, [a.copy() for a in given])
    made = executable.build(drawn, "forward", inplace=CASES[function][0])
    arrays = [a.copy() for a in given]
    new = iter(made.call(*(pointer(a) for a in arrays)))
    replaced = dict(made.unit.inplace)
    for k, expected in enumerate(want):
        got = arrays[replaced[k]] if k in replaced else next(new)
        np.testing.assert_allclose(got, expected, rtol=1e-5)
    for k, (a, b) in enumerate(zip(arrays, given, strict=True)):
        assert k in replaced.values() or np.array_equal(a, b)


def test_nothing_is_replaced_where_the_code_may_stop() -> None:
    """An index out of bounds is found by a later kernel: eager mode must find the input as it was."""

    def picked(w, g):
        at = ops.cast(g, dtype=dtypes.int64)
        return w - g, ops.gather(w, at, axes=(0,))

    drawn = graph(picked, (6,), (6,))
    assert not plan_unit(drawn, BARE, {}, inplace={0: 0}).inplace
