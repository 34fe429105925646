"""Sizes that vary: ints with a polynomial; marking them in a graph changes no value.

The text of a size is C, so it must give the value in C's arithmetic, and arithmetic on sizes must
give the ints that arithmetic on plain ints gives.
"""

from __future__ import annotations

import copy
import math
import operator
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracegrad.ir import dtypes, ops
from tracegrad.ir.evaluate import evaluate
from tracegrad.ir.graph import Graph, GraphBuilder
from tracegrad.ir.passes.sizes import SizedNumber, symbols, with_sized_constants, with_sizes
from tracegrad.ir.sizes import Size, as_size, ceil_div
from tracegrad.ir.types import Shape, TensorType

OPERATORS = (operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod)


def in_c(text: str, values: dict[str, int]) -> int:
    """The value of an integer expression in C: division rounds to zero."""
    return int(eval(text.replace("/", "//"), dict(values)))  # of numbers that are not negative


STEPS = st.lists(
    st.tuples(st.sampled_from(OPERATORS), st.integers(0, 30), st.integers(0, 30)), max_size=12
)


@given(st.integers(1, 60), st.integers(1, 60), st.lists(st.integers(0, 9), max_size=4), STEPS)
def test_arithmetic_is_that_of_ints_and_the_text_says_how(
    m: int, n: int, plain: list[int], steps: list[tuple[Any, int, int]]
) -> None:
    values: list[int] = [Size.symbol("n0", m), Size.symbol("n1", n), *plain]
    for compute, i, j in steps:
        a, b = values[i % len(values)], values[j % len(values)]
        if compute in (operator.floordiv, operator.mod) and (int(b) <= 0 or int(a) < 0):
            continue
        made = compute(a, b)
        assert int(made) == compute(int(a), int(b))
        assert made == int(made) and hash(made) == hash(int(made))
        if isinstance(made, Size) and abs(int(made)) < 10**12 and len(str(made)) < 2000:
            if "/" not in str(made) and "%" not in str(made):
                assert in_c(str(made), {"n0": m, "n1": n}) == int(made)
            values.append(made)


def test_texts() -> None:
    n, m = Size.symbol("n0", 64), Size.symbol("n1", 10)
    texts = {
        "n0": n, "(784 * n0)": n * 784, "(n0 + 1)": 1 + n, "(n0 - 1)": n - 1, "(-n0 + 5)": 5 - n,
        "(n0 * n1)": m * n, "(n0 / 7)": n // 7, "(n0 % 7)": n % 7, "((4 * n0 + 63) / 64)": ceil_div(4 * n, 64),
        "(100 / n0)": 100 // n, "(n0 * n0 + 2 * n0 + 1)": (n + 1) * (n + 1), "(3 * (n0 / 7))": n // 7 * 3,
    }  # fmt: skip
    for text, size in texts.items():
        assert str(size) == repr(size) == f"{size}" == text
        assert isinstance(size, Size)
    for plain in (n - n, n * 0, n // n, n * 784 % 784, n * 784 % n, (n * 6) // (n * 2), 0 * n):
        assert type(plain) is int
    assert (n * 784) // 784 is not None and str((n * 784) // 784) == "n0"
    assert str(math.prod((n, 3, 4))) == "(12 * n0)" and str(sum((n, n, 3))) == "(2 * n0 + 3)"
    assert n * 0.5 == 32.0 and type(n * 0.5) is float


def test_it_is_an_int_that_can_be_copied_and_sent() -> None:
    size = Size.symbol("n0", 64) * 3
    for made in (copy.copy(size), copy.deepcopy(size), pickle.loads(pickle.dumps(size))):
        assert isinstance(made, Size) and made == 192 and str(made) == "(3 * n0)"
        assert made.symbols == {"n0": 64}
    assert as_size(size) is size and as_size(np.int64(3)) == 3
    with pytest.raises(TypeError):
        as_size(1.5)
    assert np.zeros((size, 2)).shape == (192, 2)


# ---- in graphs ----------------------------------------------------------------------------------


def graph_of(fn: Any, *shapes: Shape) -> Graph:
    builder = GraphBuilder("f")
    inputs = [builder.input(TensorType(s, dtypes.float32), f"x{k}") for k, s in enumerate(shapes)]
    with builder:
        made = fn(*inputs)
    return builder.finish([made])


def marked(fn: Any, *shapes: Shape) -> Graph:
    """The graph with all equal first sizes as one symbol."""
    graph = graph_of(fn, *shapes)
    n = Size.symbol("n0", shapes[0][0])
    return with_sizes(graph, {k: (n, *s[1:]) for k, s in enumerate(shapes) if s[0] == n})


RESHAPES = [
    ((64, 28, 28), (64, 784), "n0, 784"),
    ((64, 12), (768,), "(12 * n0)"),
    ((64, 4, 8), (256, 8), "(4 * n0), 8"),
    ((64,), (1, 64, 1), "1, n0, 1"),
    ((64, 1), (64,), "n0"),
    ((64, 6, 5), (64, 2, 3, 5), "n0, 2, 3, 5"),
    ((64, 6), (2, 32, 6), "2, (n0 / 2), 6"),
    ((64, 6), (384, 1), "(6 * n0), 1"),
]


@pytest.mark.parametrize(("source", "target", "text"), RESHAPES)
def test_reshapes(source: Shape, target: Shape, text: str) -> None:
    graph = marked(lambda x: ops.reshape(x, shape=target), source)
    assert str(graph.outputs[0].type) == f"float32[{text}]"


def test_sizes_follow_through_a_graph() -> None:
    def fn(x: Any, w: Any) -> Any:
        y = ops.dot_general(x, w, contract=((1,), (1,)), batch=((), ()))
        z = ops.concat(ops.slice(y, start=(1, 0), stop=(64, 5)), y, axis=0)
        spread = ops.broadcast(ops.reduce_sum(z, axes=(1,), keepdims=True), shape=(127, 5))
        return ops.pad(spread, padding=((2, 1), (0, 0)), value=0.0)

    graph = marked(fn, (64, 7), (5, 7))
    shown = [str(n.out.type) for n in graph.nodes]
    assert shown == [
        "float32[n0, 5]", "float32[(n0 - 1), 5]", "float32[(2 * n0 - 1), 5]",
        "float32[(2 * n0 - 1), 1]", "float32[(2 * n0 - 1), 5]", "float32[(2 * n0 + 2), 5]",
    ]  # fmt: skip
    assert symbols(graph) == {"n0": 64}
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=v.shape).astype(np.float32) for v in graph.inputs]
    plain = graph_of(fn, (64, 7), (5, 7))
    np.testing.assert_array_equal(evaluate(graph, arrays)[0], evaluate(plain, arrays)[0])


def test_an_int_that_is_the_same_for_other_sizes_does_not_vary() -> None:
    def fn(x: Any, w: Any) -> Any:
        return ops.broadcast(ops.reduce_sum(x, axes=(0, 1), keepdims=False), shape=(8, 3)) * w

    by_chance = marked(fn, (8, 2), (9, 8, 3))
    assert str(by_chance.nodes[1].out.type) == "float32[n0, 3]"
    n = Size.symbol("n0", 8)
    graph = graph_of(fn, (8, 2), (9, 8, 3))
    known = with_sizes(graph, {0: (n, 2)}, [graph_of(fn, (6, 2), (9, 8, 3))])
    assert str(known.nodes[1].out.type) == "float32[8, 3]"
    other = with_sizes(graph, {0: (n, 2)}, [graph_of(lambda x, w: x, (6, 2), (9, 8, 3))])
    assert str(other.nodes[1].out.type) == "float32[n0, 3]"


@pytest.mark.parametrize(("factor", "text"), [
    (1 / 49, "((float)1 / (float)(7 * n0))"), (1 / 48, "((float)1 / (float)(7 * n0 - 1))"),
    (49.0, "((float)(7 * n0))"), (7.0, "((float)n0)"),
    (49 / 48, "((float)((double)(7 * n0) / (double)(7 * n0 - 1)))"), (0.3, None),
])  # fmt: skip
def test_constants_that_are_made_of_a_count(factor: float, text: str | None) -> None:
    graph = marked(lambda x: ops.reduce_sum(x, axes=(0, 1), keepdims=False) * factor, (7, 7))
    found = [n.params["value"] for n in with_sized_constants(graph).nodes if "value" in n.params]
    assert found == [float(np.float32(factor))]
    assert (found[0].text if isinstance(found[0], SizedNumber) else None) == text
    assert pickle.loads(pickle.dumps(found[0])) == found[0]


def test_a_graph_without_sizes_is_itself() -> None:
    graph = graph_of(lambda x: x * 2, (3,))
    assert with_sizes(graph, {}) is graph and with_sized_constants(graph) is graph
    assert symbols(graph) == {}
