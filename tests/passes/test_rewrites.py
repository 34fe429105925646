"""Every row of the table of rewrites fires and keeps every bit; tempting neighbours stay out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from random_graphs import assert_same_bits

from tracegrad.ir import dtypes, ops
from tracegrad.ir.dtypes import DType
from tracegrad.ir.evaluate import evaluate
from tracegrad.ir.graph import Graph, GraphBuilder, Value
from tracegrad.ir.location import Location
from tracegrad.ir.passes import optimize
from tracegrad.ir.passes.patterns import Application, Row, parse
from tracegrad.ir.passes.rewrites import ROWS
from tracegrad.ir.passes.simplify import simplify
from tracegrad.ir.primitive import TABLE
from tracegrad.ir.types import TensorType
from tracegrad.ir.verify import verify

SPECIAL = {
    "f": [0.0, -0.0, 1.0, -1.5, np.inf, -np.inf, np.nan, 5e-324, -1e-45, 1.7, 3e38, -7e4],
    "i": [0, 1, -1, 2, -128, 127, 5, -6, 64, 33, -100, 9],
    "u": [0, 1, 2, 255, 128, 127, 5, 250, 64, 33, 100, 9],
    "b": [True, False] * 6,
}
SHAPE = (2, 3, 2)
OF_KIND = {
    "f": (dtypes.float32, dtypes.float64, dtypes.float16, dtypes.bfloat16),
    "i": (dtypes.int8, dtypes.int64),
    "u": (dtypes.uint8,),
    "b": (dtypes.bool_,),
}

# What is left of a pattern, by its text: names of nodes; nothing where not listed.
LEFT: dict[str, list[str]] = {
    "sub(-0.0, x)": ["neg"], "sub(0, x)": ["neg"], "mul(x, -1)": ["neg"], "div(x, -1)": ["neg"],
    "sub(x, x)": ["constant", "broadcast"], "mul(x, 0)": ["constant", "broadcast"],
    "pow(x, 0)": ["constant", "broadcast"], "pow(x, 2)": ["mul"],
    "logical_and(x, False)": ["constant", "broadcast"],
    "logical_or(x, True)": ["constant", "broadcast"],
    "reduce_sum(x)": ["constant", "broadcast"],
    "add(x, neg(y))": ["sub"], "sub(x, neg(y))": ["add"],
    "mul(neg(x), neg(y))": ["mul"], "div(neg(x), neg(y))": ["div"],
    "abs(neg(x))": ["abs"], "abs(abs(x))": ["abs"],
    "where(logical_not(c), x, y)": ["where"], "detach(detach(x))": ["detach"],
    "cast(cast(x, dtype=wide), dtype=d)": ["cast"],
    "reshape(reshape(x), shape=s)": ["reshape"],
    "permute(permute(x, axes=a), axes=b)": ["permute"],
    "broadcast(broadcast(x), shape=s)": ["broadcast"],
    "broadcast(reshape(x, shape=s), shape=t)": ["broadcast"],
}  # fmt: skip

# Parameters by primitive, innermost application first.
PARAMS: dict[str, list[dict[str, Any]]] = {
    "cast(x, dtype=d)": [{"dtype": None}],  # None: the dtype of x
    "cast(cast(x, dtype=wide), dtype=d)": [{"dtype": dtypes.float64}, {"dtype": dtypes.float32}],
    "reshape(x, shape=s)": [{"shape": SHAPE}],
    "reshape(reshape(x), shape=s)": [{"shape": (6, 2)}, {"shape": (4, 3)}],
    "permute(x, axes=a)": [{"axes": (0, 1, 2)}],
    "permute(permute(x, axes=a), axes=b)": [{"axes": (1, 2, 0)}, {"axes": (0, 2, 1)}],
    "broadcast(x, shape=s)": [{"shape": SHAPE}],
    "broadcast(broadcast(x), shape=s)": [{"shape": (1, *SHAPE)}, {"shape": (2, 5, *SHAPE)}],
    "broadcast(reshape(x, shape=s), shape=t)": [{"shape": (1, *SHAPE)}, {"shape": (4, *SHAPE)}],
    "slice(x, start=a, stop=b, step=c)": [{"start": (0, 0, 0), "stop": SHAPE}],
    "pad(x, padding=p)": [{"padding": ((0, 0, 0),) * 3}],
    "flip(x, axes=())": [{"axes": ()}],
    "flip(flip(x, axes=a), axes=a)": [{"axes": (0, 2)}, {"axes": (0, 2)}],
    "concat(x)": [{"axis": 0}], "reduce_sum(x)": [{"axes": (1,), "keepdims": False}],
    **{f"reduce_{name}(x, axes=())": [{"axes": (), "keepdims": False}]
       for name in ("sum", "prod", "max", "min", "any", "all")},
}  # fmt: skip

EMPTY = {"reduce_sum(x)": (2, 0, 3)}  # shapes of operands, where not SHAPE


def data(dtype: DType, turn: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    with np.errstate(over="ignore"):
        array = np.roll(np.asarray(SPECIAL[dtype.kind]), turn).astype(dtype.numpy)
    return array[: math.prod(shape)].reshape(shape)


class Case:
    """The graph of a pattern: captures are inputs, numbers constants."""

    def __init__(self, row: Row, dtype: DType) -> None:
        self.builder = GraphBuilder("case")
        self.dtype = dtype
        self.shape = EMPTY.get(row.pattern, SHAPE)
        self.params = [dict(p) for p in PARAMS.get(row.pattern, [])]
        self.values: dict[str, Value] = {}
        self.arrays: list[np.ndarray] = []
        with self.builder:
            self.builder.location = Location("case.py", 7)
            out = self.build(row.root)
        self.graph = self.builder.finish([out])

    def build(self, pattern: Any) -> Any:
        if isinstance(pattern, Application):
            operands = [self.build(p) for p in pattern.operands]
            return TABLE[pattern.name](*operands, **self.next_params(pattern))
        if isinstance(pattern, str):
            return self.values.get(pattern) or self.add_input(pattern)
        dtype = dtypes.bool_ if isinstance(pattern, bool) else self.dtype
        return self.builder.constant(pattern, dtype)

    def next_params(self, pattern: Application) -> dict[str, Any]:
        if not TABLE[pattern.name].params:
            return {}
        return {k: self.dtype if v is None else v for k, v in self.params.pop(0).items()}

    def add_input(self, name: str) -> Value:
        dtype = dtypes.bool_ if name == "c" else self.dtype
        self.arrays.append(data(dtype, len(self.arrays), self.shape))
        self.values[name] = self.builder.input(TensorType(self.shape, dtype), name)
        return self.values[name]


def cases() -> list[Any]:
    """Each row with each dtype whose kind it names and that its primitives accept."""
    found = []
    for row in ROWS:
        for dtype in (d for kind in "fiub" for d in OF_KIND[kind]):
            accepted = accepts(row.root, dtype) and dtype.kind in row.kinds
            if row.pattern.startswith(("logical", "reduce_any", "reduce_all")) or row.kinds == "b":
                accepted = dtype is dtypes.bool_
            if row.pattern.startswith("cast(cast"):
                accepted = dtype in (dtypes.float16, dtypes.float32, dtypes.int8, dtypes.bool_)
            if row.pattern == "reduce_sum(x, axes=())":
                accepted = dtype.category < 2  # `kinds` speaks of the result, which is int64
            if accepted:
                found.append(pytest.param(row, dtype, id=f"{row.pattern} {dtype.name}"))
    return found


def accepts(pattern: Any, dtype: DType) -> bool:
    if not isinstance(pattern, Application) or pattern.name == "where":
        return True
    op = TABLE[pattern.name]
    floats_only = op.promotion == "float" and dtype.kind != "f"
    refused = dtype not in op.dtypes or dtype.name in op.refused or floats_only
    return not refused and all(accepts(p, dtype) for p in pattern.operands)


@pytest.mark.parametrize(("row", "dtype"), cases())
def test_row_fires_and_keeps_every_bit(row: Row, dtype: DType) -> None:
    case = Case(row, dtype)
    left = verify(optimize(case.graph, check=True))
    names = [n.primitive.name for n in left.nodes]
    expected = LEFT.get(row.pattern, [])
    if row.pattern.startswith("cast(cast") and dtype is dtypes.float32:
        expected = []  # there and back
    ones = ("reduce_sum(x, axes=())", "reduce_prod(x, axes=())")
    if row.pattern in ones and dtype.category < 2:
        expected = [] if dtype is dtypes.int64 else ["cast"]
    assert names == expected
    assert all(str(n.location) == "case.py:7" for n in left.nodes)
    assert_same_bits(evaluate(left, case.arrays), evaluate(case.graph, case.arrays))


def test_every_row_has_a_case_and_a_reason() -> None:
    tested = {case.values[0].pattern for case in cases()}  # type: ignore[attr-defined]
    assert tested == {row.pattern for row in ROWS}
    assert all(row.reason for row in ROWS)
    assert set(LEFT) | set(PARAMS) <= tested


@pytest.mark.parametrize("pattern", ["mul(x, 1)", "add(x, -0.0)", "where(c, x, x)"])
def test_row_fires_in_either_order_and_broadcasts(pattern: str) -> None:
    row = next(r for r in ROWS if r.pattern == pattern)
    builder = GraphBuilder("case")
    x = builder.input(TensorType((3,), dtypes.float32), "x")
    wide = builder.input(TensorType((2, 1), dtypes.bool_), "c")
    with builder:
        number = next((p for p in row.root.operands if not isinstance(p, str)), None)
        if number is None:
            out = ops.where(wide, x, x)
        else:
            constant = builder.constant(number, dtypes.float32)
            out = TABLE[row.root.name](ops.broadcast(constant, shape=(2, 3)), x)
    graph = optimize(builder.finish([out]), check=True)
    assert [n.primitive.name for n in graph.nodes] == ["broadcast"]
    arrays = [np.array([1, -0.0, np.nan], np.float32), np.array([[True], [False]])]
    assert_same_bits(evaluate(graph, arrays), [np.broadcast_to(arrays[0], (2, 3))])


# ---- what must not fire -------------------------------------------------------------------------

F, D, I8, U8, B = dtypes.float32, dtypes.float64, dtypes.int8, dtypes.uint8, dtypes.bool_
STAY: list[tuple[str, DType, Callable[[Value, Value], Value]]] = [
    ("x + 0.0", F, lambda x, y: x + 0.0),
    ("0.0 - x", F, lambda x, y: 0.0 - x),
    ("x - -0.0", F, lambda x, y: ops.sub(x, -0.0)),
    ("x * 0.0", F, lambda x, y: x * 0.0),
    ("x - x", F, lambda x, y: x - x),
    ("x / x", F, lambda x, y: x / x),
    ("x / 3", F, lambda x, y: x / 3.0),
    ("pow(x, 0.5)", F, lambda x, y: ops.pow(x, 0.5)),
    ("pow(x, 3)", F, lambda x, y: ops.pow(x, 3.0)),
    ("-(x - y)", F, lambda x, y: ops.neg(ops.sub(x, y))),
    ("abs(-x) unsigned", U8, lambda x, y: ops.abs(ops.neg(x))),
    ("float to int8 and back", F, lambda x, y: ops.cast(ops.cast(x, dtype=I8), dtype=F)),
    ("double to float and back", D, lambda x, y: ops.cast(ops.cast(x, dtype=F), dtype=D)),
    ("uint8 to int8 and back to int8", I8, lambda x, y: ops.cast(ops.cast(x, dtype=U8), dtype=F)),
    ("int8 to float to uint8", I8, lambda x, y: ops.cast(ops.cast(x, dtype=F), dtype=U8)),
    ("not not of a float", F, lambda x, y: ops.logical_not(ops.logical_not(x))),
    ("not (x < y)", F, lambda x, y: ops.logical_not(ops.less(x, y))),
    ("and of a float with True", F, lambda x, y: ops.logical_and(x, True)),
    ("maximum of two", F, lambda x, y: ops.maximum(x, y)),
    ("a reshape by a trailing one, broadcast", F, lambda x, y: ops.broadcast(
        ops.reshape(x, shape=(*SHAPE, 1)), shape=(*SHAPE, 4))),
    ("a slice that cuts", F, lambda x, y: ops.slice(x, start=(0, 1, 0), stop=SHAPE)),
    ("a slice that steps", F,
     lambda x, y: ops.slice(x, start=(0, 0, 0), stop=SHAPE, step=(1, 1, 2))),
    ("flips of two axes", F, lambda x, y: ops.flip(ops.flip(x, axes=(0,)), axes=(1,))),
    ("reshape back through permute", F,
     lambda x, y: ops.reshape(ops.permute(x, axes=(1, 2, 0)), shape=SHAPE)),
    ("a float sum over no axis", F, lambda x, y: ops.reduce_sum(x, axes=())),
    ("a sum over an axis", F, lambda x, y: ops.reduce_sum(x, axes=(1,), keepdims=True)),
    ("a pad that adds", F, lambda x, y: ops.pad(x, padding=((0, 0, 0), (0, 0, 1), (0, 0, 0)))),
    ("floor of a float", F, lambda x, y: ops.floor(x)),
]  # fmt: skip


def graph_of(build: Callable[..., Any], dtype: DType) -> Graph:
    builder = GraphBuilder("stay")
    x, y = (builder.input(TensorType(SHAPE, dtype), name) for name in "xy")
    with builder:
        out = build(x, y)
    return builder.finish([out])


@pytest.mark.parametrize(("dtype", "build"), [s[1:] for s in STAY], ids=[s[0] for s in STAY])
def test_inexact_neighbour_stays(dtype: DType, build: Callable[..., Any]) -> None:
    graph = graph_of(build, dtype)
    assert simplify(graph) is graph


# ---- constant folding ---------------------------------------------------------------------------


def test_constants_fold_to_what_the_eager_kernel_gives() -> None:
    builder = GraphBuilder("fold")
    x = builder.input(TensorType((3,), F), "x")
    with builder:
        out = x * ops.sin(ops.exp(builder.constant(2, F)))
    folded = optimize(builder.finish([out]), check=True)
    assert [n.primitive.name for n in folded.nodes] == ["constant", "mul"]
    expected = ops.sin(ops.exp(np.asarray(2, np.float32)))
    assert folded.nodes[0].params == {"value": expected.item(), "dtype": F}


def test_repeated_numbers_fold_where_the_kernel_is_exact() -> None:
    def build(x: Value, y: Value) -> Value:
        ones = ops.broadcast(GraphBuilder.current().constant(1, F), shape=(2, 3))
        return ops.permute(ops.add(ones, ops.reshape(ones, shape=(1, 2, 3))), axes=(2, 0, 1))

    graph = optimize(graph_of(build, F), check=True)
    assert [n.primitive.name for n in graph.nodes] == ["constant", "broadcast"]
    assert graph.nodes[0].params["value"] == 2 and graph.outputs[0].shape == (3, 1, 2)


def test_division_by_a_constant_zero_is_left_to_run_time() -> None:
    def build(x: Value, y: Value) -> Value:
        b = GraphBuilder.current()
        return ops.floor_divide(b.constant(1, I8), b.constant(0, I8))

    graph = graph_of(build, I8)
    assert simplify(graph) is graph


def test_replacement_keeps_the_name_of_what_it_replaces() -> None:
    builder = GraphBuilder("names")
    x = builder.input(TensorType((3,), F), "x")
    with builder:
        hidden = builder.append(TABLE["neg"], [x], {}, name="hidden")
        loss = builder.append(TABLE["add"], [x, hidden], {}, name="loss")
    graph = optimize(builder.finish([loss]))
    assert [(n.primitive.name, n.out.name) for n in graph.nodes] == [("sub", "loss")]
    assert graph.outputs == (loss,)


# ---- the language of patterns -------------------------------------------------------------------


@pytest.mark.parametrize("text", ["mul(x, y + 1)", "f.g(x)", "mul(x, [y])"])
def test_text_outside_the_language_is_refused(text: str) -> None:
    with pytest.raises(TypeError, match="is no pattern"):
        parse(text)


def test_a_row_is_about_a_primitive() -> None:
    with pytest.raises(TypeError, match="must be the application of a primitive"):
        Row("x", lambda x: x, "")
