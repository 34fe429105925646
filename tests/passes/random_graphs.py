"""Random well-typed graphs over the whole table, as a hypothesis strategy; and bitwise equality.

Pointwise, reduction and movement nodes read earlier values, with parameters drawn to fit. The other
families have shapes that seldom fit by chance: their operands and parameters are a sample of the
record, and come in as further graph inputs. Start reading at `graphs`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tracegrad.ir import dtypes, ops  # noqa: F401  (fills the table)
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import TracegradError
from tracegrad.ir.graph import Graph, GraphBuilder, Value
from tracegrad.ir.primitive import TABLE, Primitive
from tracegrad.ir.types import Shape, TensorType

DTYPES = (dtypes.float32, dtypes.float64, dtypes.int64, dtypes.uint8, dtypes.bool_)
SHAPES: tuple[Shape, ...] = ((), (3,), (2, 3), (1, 3), (2, 1), (0, 3), (2, 1, 3))
SPECIAL = (0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 5e-324, 1e300)
NUMBERS = (0, 1, -1, 2, 0.5, -0.0, True, False)
CONNECTED = tuple(
    op for op in TABLE.values() if op.family in ("pointwise", "movement", "reduction")
)
SAMPLED = tuple(
    op for op in TABLE.values()
    if op not in CONNECTED and op.family != "creation"
)  # fmt: skip


@dataclass
class Drawn:
    """A graph under construction and the arrays that its inputs will take."""

    rng: np.random.Generator
    builder: GraphBuilder = field(default_factory=lambda: GraphBuilder("drawn"))
    arrays: list[np.ndarray] = field(default_factory=list)
    pool: list[Value] = field(default_factory=list)

    def input(self, array: np.ndarray) -> Value:
        array = np.asarray(array)
        self.arrays.append(array)
        kind = TensorType(array.shape, dtypes.from_numpy(array.dtype))
        return self.builder.input(kind, f"in{len(self.arrays)}")

    def value(self) -> Value:
        """An earlier value, often one of the last two: chains are what rewrites look for."""
        recent = self.rng.random() < 0.5
        return self.choose(self.pool[-2:] if recent else self.pool)

    def choose(self, options: Sequence[Any]) -> Any:
        return options[int(self.rng.integers(len(options)))]


def operand(rng: np.random.Generator, shape: Shape, dtype: DType) -> np.ndarray:
    """Values of which one in four is special: zeros of both signs, infinities, NaN, ends."""
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    if dtype.kind in "iu":
        info = np.iinfo(dtype.numpy)
        values = rng.integers(-4 if dtype.kind == "i" else 0, 5, shape)
        ends = rng.choice([info.min, info.max], shape)
        return np.where(rng.random(shape) < 0.1, ends, values).astype(dtype.numpy)
    special = rng.choice(np.asarray(SPECIAL), shape)
    values = np.where(rng.random(shape) < 0.25, special, rng.normal(size=shape) * 2)
    with np.errstate(over="ignore", under="ignore"):
        return values.astype(dtype.numpy)


# ---- parameters that fit one operand, by primitive ----------------------------------------------


def _axes(d: Drawn, x: Value) -> tuple[int, ...]:
    return tuple(a for a in range(x.ndim) if d.rng.random() < 0.5)


def _another_shape(d: Drawn, x: Value) -> Shape:
    size = prod(x.shape)
    return d.choose([(size,), (1, size), (*x.shape, 1), tuple(reversed(x.shape)), x.shape])


def _cut(d: Drawn, x: Value) -> dict[str, Any]:
    start = tuple(int(d.rng.integers(0, n + 1)) if d.rng.random() < 0.4 else 0 for n in x.shape)
    return {"start": start, "stop": x.shape, "step": tuple(d.choose((1, 1, 2)) for _ in x.shape)}


def _padding(d: Drawn, x: Value) -> dict[str, Any]:
    rows = tuple(d.choose([(0, 0, 0), (1, 0, 0), (0, 2, 1)]) for _ in x.shape)
    return {"padding": rows, "value": d.choose((0, 1))}


def _reduced(d: Drawn, x: Value) -> dict[str, Any]:
    return {"axes": _axes(d, x), "keepdims": bool(d.rng.random() < 0.5)}


def _searched(d: Drawn, x: Value) -> dict[str, Any]:
    return {"axis": int(d.rng.integers(max(x.ndim, 1))), "keepdims": bool(d.rng.random() < 0.5)}


PARAMS: dict[str, Callable[[Drawn, Value], dict[str, Any]]] = {
    "reshape": lambda d, x: {"shape": _another_shape(d, x)},
    "permute": lambda d, x: {"axes": tuple(int(a) for a in d.rng.permutation(x.ndim))},
    "broadcast": lambda d, x: {"shape": d.choose([x.shape, (2, *x.shape)])},
    "slice": _cut,
    "pad": _padding,
    "flip": lambda d, x: {"axes": _axes(d, x)},
    "concat": lambda d, x: {"axis": int(d.rng.integers(max(x.ndim, 1)))},
    "cast": lambda d, x: {"dtype": d.choose(dtypes.ALL)},
    "polygamma": lambda d, x: {"order": 1},
    "argmax": _searched,
    "argmin": _searched,
    "reduce_sum": _reduced,
    "reduce_prod": _reduced,
    "reduce_max": _reduced,
    "reduce_min": _reduced,
    "reduce_any": _reduced,
    "reduce_all": _reduced,
}


def _append_connected(d: Drawn, op: Primitive) -> Value:
    """A node that reads earlier values; its operands are twice the same now and then."""
    count = int(d.rng.integers(1, 3)) if op.variadic else len(op.args)
    operands: list[Any] = [d.value() for _ in range(count)]
    if count > 1 and d.rng.random() < 0.4 and op.name not in ("where", "concat"):
        operands[int(d.rng.integers(count))] = d.choose(NUMBERS)
    if count > 1 and d.rng.random() < 0.2:
        operands[0] = operands[1]
    if not any(isinstance(x, Value) for x in operands):
        operands[-1] = d.value()
    first = next(x for x in operands if isinstance(x, Value))
    params = PARAMS[op.name](d, first) if op.params else {}
    result: Value = op(*operands, **params)
    return result


def _append_sample(d: Drawn, op: Primitive) -> Value | None:
    dtype = d.choose((*DTYPES, dtypes.uint32))
    samples = [s for s in op.samples(d.rng, dtype) if s.kind != "large"]
    if not samples:
        return None
    sample = d.choose(samples)
    result: Value = op(*map(d.input, sample.operands), **sample.params)
    return result


@st.composite
def graphs(draw: st.DrawFn, nodes: int = 25) -> tuple[Graph, list[np.ndarray]]:
    """A graph of about `nodes` nodes, repeated and dead ones among them, and its input arrays."""
    d = Drawn(np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed")))
    main = d.choose(DTYPES)  # two inputs share a dtype, or casts would stand everywhere
    for shape, dtype in ((d.choose(SHAPES), main), ((2, 3), main), ((3,), d.choose(DTYPES))):
        d.pool.append(d.input(operand(d.rng, shape, dtype)))
    with d.builder:
        d.pool.append(d.builder.constant(d.choose((0, 1, 2)), d.choose(DTYPES)))
        for _ in range(draw(st.integers(1, nodes), label="nodes")):
            # Half of the nodes come from the primitives that the rewrites speak of.
            op = d.choose(d.choose((CONNECTED, REWRITTEN, REWRITTEN, SAMPLED)))
            try:
                made = _append_sample(d, op) if op in SAMPLED else _append_connected(d, op)
            except TracegradError:
                continue  # operands that do not fit: the graph goes on without this node
            if made is not None and made.type.size <= 600:
                d.pool.append(made)
    outputs = [d.choose(d.pool) for _ in range(len(d.pool) // 2)] + [d.pool[-1]]
    return d.builder.finish(outputs), d.arrays


REWRITTEN = tuple(
    TABLE[name]
    for name in (
        "add", "sub", "mul", "div", "neg", "abs", "pow", "maximum", "where", "cast", "detach",
        "logical_not", "logical_and", "bitwise_not", "reshape", "permute", "broadcast", "slice",
        "flip", "reduce_sum", "reduce_max", "floor",
    )
)  # fmt: skip


def assert_same_bits(found: Sequence[Any], expected: Sequence[Any]) -> None:
    """Equal dtypes, shapes and bits; a NaN equals any NaN."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if a.dtype.kind not in "biu":
            assert np.array_equal(np.isnan(a), np.isnan(b)), (a, b)
            a, b = (
                np.where(np.isnan(a), a.dtype.type(0), a),
                np.where(np.isnan(b), a.dtype.type(0), b),
            )
        assert a.tobytes() == b.tobytes(), (a, b)
