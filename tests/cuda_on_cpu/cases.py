"""Graphs for the tests of generated CUDA, with arrays for them. Start reading at `CASES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from drawing import graph as drawn
from test_row_groups import layer_norm, softmax, total

from tracegrad.codegen.cuda.plan import CudaUnit
from tracegrad.codegen.cuda.unit import build_cuda
from tracegrad.ir import dtypes, ops
from tracegrad.ir.graph import Graph, Value
from tracegrad.ir.passes import autodiff, optimize
from tracegrad.ir.passes.sizes import with_sizes
from tracegrad.ir.sizes import Size
from tracegrad.ir.types import Shape, TensorType

FLOATS = (dtypes.float32, dtypes.float64, dtypes.float16, dtypes.bfloat16)


@dataclass(frozen=True)
class Case:
    """A graph, its unit, and arrays for its inputs."""

    graph: Graph
    unit: CudaUnit
    arrays: list[np.ndarray]


def case(graph: Graph, relaid: Callable[[np.ndarray], np.ndarray] | None = None) -> Case:
    """A case of a graph with normal numbers, laid out in memory by `relaid`."""
    rng = np.random.default_rng(len(graph.nodes))
    arrays = [_numbers(rng, v.type) for v in graph.inputs]
    strides: dict[Value, Shape] = {}
    if relaid is not None:
        arrays = [relaid(a) for a in arrays]
        for v, a in zip(graph.inputs, arrays, strict=True):
            if not a.flags.c_contiguous:
                strides[v] = tuple(s // a.itemsize for s in a.strides)
    return Case(graph, build_cuda(graph, strides=strides), arrays)


def _numbers(rng: np.random.Generator, t: TensorType) -> np.ndarray:
    shape = tuple(map(int, t.shape))
    if t.dtype.kind == "f":
        return rng.normal(size=shape).astype(t.dtype.numpy)
    return rng.integers(0, 2 if t.dtype.kind == "b" else 100, shape).astype(t.dtype.numpy)


def gradients(fn: Callable[..., Any], *shapes: Shape, dtype: Any = dtypes.float32) -> Graph:
    """The gradients of a function with respect to all of its operands."""
    graph = drawn(fn, *shapes, dtype=dtype)
    return optimize(autodiff.vjp(graph, list(range(len(shapes))), [0]))


def wave(x: Any, y: Any) -> Any:
    return ops.sin(x) * ops.exp(-x * x) + ops.tanh(y), x - y


def sums(*axes: int) -> Callable[[Any], Any]:
    def f(x: Any) -> Any:
        return (
            total(x * x, *axes, keepdims=False),
            ops.reduce_max(x, axes=axes, keepdims=False),
            ops.reduce_min(x, axes=axes, keepdims=False),
            ops.reduce_prod(x * 0.1 + 1.0, axes=axes, keepdims=False),
        )

    return f


def positions(axis: int | None) -> Callable[[Any], Any]:
    def f(x: Any) -> Any:
        return ops.argmax(x, axis=axis, keepdims=False), ops.argmin(x, axis=axis, keepdims=False)

    return f


def truths(x: Any) -> Any:
    big = x > 2.5
    return ops.reduce_any(big, axes=(1,), keepdims=False), ops.reduce_all(
        x < 3.0, axes=(0,), keepdims=False
    )


def chain(x: Any, w: Any, b: Any, v: Any) -> Any:
    return total(softmax(layer_norm(x, w, b)) * v, 0, 1, keepdims=False)


def map_and_sum(x: Any) -> Any:
    y = ops.exp(ops.sin(x))
    return y, total(y, 1, keepdims=False), total(y, 0, keepdims=False)


def many_sums(*axes: int) -> Callable[[Any], Any]:
    """As many results as one kernel has: what they share must fit in a block."""

    def f(x: Any) -> Any:
        return [total(x * (k + 0.5), *axes, keepdims=False) for k in range(32)]

    return f


def many_stages(x: Any) -> Any:
    for k in range(14):
        x = (
            ops.sin(x)
            + total(x, 1) * 0.01
            + ops.reduce_max(x, axes=(1,), keepdims=True) * (k * 0.001)
        )
    return x


def flipped(x: Any) -> Any:
    e = ops.exp(x - total(x, 1) * 0.01)
    return ops.flip(e, axes=(1,)) + total(e, 1)


def varying(graph: Graph, *axes: tuple[int, int]) -> Graph:
    """The graph with some axes (input, axis) as one size that varies."""
    size = Size.symbol("n0", graph.inputs[axes[0][0]].shape[axes[0][1]])
    shapes: dict[int, Shape] = {}
    for k, d in axes:
        shape = list(shapes.get(k, graph.inputs[k].shape))
        shape[d] = size
        shapes[k] = tuple(shape)
    return with_sizes(graph, shapes)


def reversed_rows(a: np.ndarray) -> np.ndarray:
    return np.flip(np.flip(a, 0).copy(), 0) if a.ndim else a


def one_row(a: np.ndarray) -> np.ndarray:
    return np.broadcast_to(a[:1], a.shape) if a.ndim else a


def turned(a: np.ndarray) -> np.ndarray:
    return np.asfortranarray(a)


def unaligned(a: np.ndarray) -> np.ndarray:
    """Contiguous, but one element off the alignment of vectors."""
    memory = np.empty(a.size + 1, a.dtype)
    memory[1:] = a.reshape(-1)
    return memory[1:].reshape(a.shape)


@cache
def cases() -> dict[str, Case]:
    """All cases by name."""
    found: dict[str, Case] = {}
    for shape in [(7,), (600, 250), (150_001,), (400, 400), (3, 0, 5), (1, 1)]:
        found[f"map {shape}"] = case(drawn(wave, shape, shape))
    found["map, unaligned"] = case(drawn(wave, (500, 300), (500, 300)), unaligned)
    found["map, transposed"] = case(
        drawn(lambda x, y: ops.permute(x, axes=(1, 0)) * y + ops.exp(y), (300, 500), (500, 300))
    )
    found["map, heads turned"] = case(
        drawn(lambda x: ops.permute(x, axes=(0, 3, 2, 1)) * 2.0, (3, 50, 7, 160))
    )
    found["map, one value"] = case(drawn(wave, (), ()))
    found["map, bias"] = case(drawn(wave, (512, 300), (300,)))
    found["map, turned"] = case(drawn(wave, (40, 60), (40, 60)), turned)
    found["map, negative strides"] = case(drawn(wave, (40, 60), (40, 60)), reversed_rows)
    found["map, zero strides"] = case(drawn(wave, (40, 60), (40, 60)), one_row)
    for dtype in FLOATS:
        found[f"map {dtype.name}"] = case(drawn(wave, (512, 300), (300,), dtype=dtype))
        found[f"softmax {dtype.name}"] = case(drawn(softmax, (20, 264), dtype=dtype))
        found[f"layer norm {dtype.name}"] = case(
            drawn(layer_norm, (9, 96), (96,), (96,), dtype=dtype)
        )
        found[f"sums {dtype.name}"] = case(drawn(sums(1), (9, 90), dtype=dtype))
    for dtype in (dtypes.int64, dtypes.int32, dtypes.uint8):
        found[f"map {dtype.name}"] = case(
            drawn(lambda x, y: x * y + x, (512, 400), (400,), dtype=dtype)
        )
        found[f"sums {dtype.name}"] = case(
            drawn(lambda x: (total(x, 0, keepdims=False), ops.reduce_max(x, axes=(1,), keepdims=False)),
                  (50, 70), dtype=dtype)
        )  # fmt: skip
    for axes, shape in [((0, 1), (300, 500)), ((1,), (3, 20_000)), ((1,), (5000, 6)), ((1,), (700, 100)),
                        ((0,), (20_000, 3)), ((0,), (900, 70)), ((0,), (5, 40_000)), ((0, 2), (30, 40, 50)),
                        ((1,), (30, 40, 50)), ((0,), (1,)), ((1,), (40, 1)), ((0, 1), (200, 333))]:  # fmt: skip
        found[f"sums over {axes} of {shape}"] = case(drawn(sums(*axes), shape))
    for axis, shape in [
        (None, (300, 100)),
        (0, (300, 70)),
        (1, (70, 300)),
        (None, (3,)),
        (1, (4, 9000)),
    ]:
        found[f"positions along {axis} of {shape}"] = case(drawn(positions(axis), shape))
    found["sum of nothing"] = case(drawn(lambda x: total(x, 1, keepdims=False), (5, 0)))
    for axes in ((0,), (1,), (0, 1)):
        found[f"many sums over {axes}"] = case(drawn(many_sums(*axes), (900, 70)))
    found["many stages"] = case(drawn(many_stages, (70, 3000)))
    found["gradients of many stages"] = case(gradients(many_stages, (70, 3000)))
    found["truths"] = case(drawn(truths, (90, 40)))
    found["map and sums"] = case(drawn(map_and_sum, (64, 256)))
    found["flipped rows"] = case(drawn(flipped, (40, 256)))
    for shape in [
        (3, 17),
        (70, 8),
        (5, 1000),
        (200, 64),
        (2, 40_000),
        (9, 20_000),
        (3000, 12),
        (4, 6, 40),
    ]:
        found[f"softmax {shape}"] = case(drawn(softmax, shape))
    for rows, size in [(40, 64), (300, 96), (20, 1024), (7, 33), (9, 6000)]:
        found[f"gradients of layer norm {rows, size}"] = case(
            gradients(layer_norm, (rows, size), (size,), (size,))
        )
        found[f"gradients of softmax {rows, size}"] = case(gradients(softmax, (rows, size)))
    found["chain"] = case(gradients(chain, (70, 512), (512,), (512,), (70, 512)))
    found["few long rows"] = case(gradients(softmax, (2, 20_000)))
    some = drawn(layer_norm, (50, 64), (64,), (64,))
    found["rows vary"] = case(varying(some, (0, 0)))
    found["lengths vary"] = case(varying(some, (0, 1), (1, 0), (2, 0)))
    found["gradients vary"] = case(
        varying(gradients(layer_norm, (50, 64), (64,), (64,)), (0, 0), (3, 0))
    )
    found["sums vary"] = case(varying(drawn(sums(0), (900, 70)), (0, 0)))
    found["map varies"] = case(varying(drawn(wave, (300, 500), (300, 500)), (0, 0), (1, 0)))
    return found
