"""The cost model of kernels, and the variant of a unit that times them."""

from __future__ import annotations

import numpy as np

from tracegrad.codegen.costs import kernel_costs
from tracegrad.codegen.plan import Target
from tracegrad.codegen.timed import CLOCK, timed_code
from tracegrad.codegen.unit import build, plan_unit
from tracegrad.ir import dtypes, ops
from tracegrad.ir.graph import Graph, GraphBuilder
from tracegrad.ir.types import TensorType
from tracegrad.runtime import executable, history, rehearsal

PLAIN = Target(openmp=False, vector_math=None)


def graph_of(function, *shapes: tuple[int, ...], dtype=dtypes.float32) -> Graph:
    builder = GraphBuilder("g")
    inputs = [builder.input(TensorType(s, dtype), f"x{k}") for k, s in enumerate(shapes)]
    with builder:
        out = function(*inputs)
    return builder.finish(list(out) if isinstance(out, tuple) else [out])


def works(graph: Graph) -> list[dict[str, float]]:
    return [
        {op.node.primitive.name: op.work for op in cost.operations}
        for cost in kernel_costs(graph, PLAIN, {})
    ]


def test_work_is_cost_times_elements() -> None:
    graph = graph_of(lambda x: ops.sin(x) + ops.reduce_sum(x, axes=(0,), keepdims=True), (50, 4))
    assert works(graph) == [{"reduce_sum": 200.0}, {"sin": 4000.0, "add": 200.0}]


def test_every_kernel_is_listed_in_order() -> None:
    def program(x, w):
        h = ops.exp(x - ops.reduce_max(x, axes=(1,), keepdims=True))
        product = ops.dot_general(h, w, contract=((1,), (0,)), batch=((), ()))
        return ops.tanh(product), ops.reduce_sum(h, axes=(0, 1), keepdims=False)

    graph = graph_of(program, (20, 30), (30, 40))
    costs = kernel_costs(graph, PLAIN, {})
    plans = plan_unit(graph, PLAIN, {}).kernels
    assert [c.name for c in costs] == [p.name for p in plans]
    assert all(c.seconds > 0 and c.operations for c in costs)
    named = {op.node.primitive.name for c in costs for op in c.operations}
    assert named == {"sub", "exp", "reduce_max", "dot_general", "tanh", "reduce_sum"}


def test_movements_are_free_beside_computation_and_all_there_is_without() -> None:
    turned = graph_of(lambda x: ops.neg(ops.permute(x, axes=(1, 0))), (3, 5))
    assert works(turned) == [{"neg": 15.0}]
    copied = graph_of(lambda x, y: ops.concat(x, y, axis=0), (3, 5), (2, 5))
    assert works(copied) == [{"concat": 25.0}]


def test_products_too_small_for_blas_are_what_they_become() -> None:
    graph = graph_of(
        lambda x, y: ops.dot_general(x, y, contract=((1,), (0,)), batch=((), ())), (3, 4), (4, 2)
    )
    assert works(graph) == [{"mul": 24.0, "reduce_sum": 24.0}]


def test_a_value_used_by_two_kernels_is_listed_in_both() -> None:
    def program(x):
        y = x + 1  # cheap: computed again where it is used
        return ops.reduce_sum(y, axes=(0,), keepdims=False), ops.reduce_sum(
            ops.permute(y, axes=(1, 0)), axes=(0,), keepdims=False
        )

    found = works(graph_of(program, (6, 8)))
    assert sum("add" in kernel for kernel in found) == len(found) == 2


# ---- timed units --------------------------------------------------------------------------------


def test_timed_code_differs_only_in_the_clock() -> None:
    graph = graph_of(lambda x: ops.sin(x) / ops.reduce_sum(x, axes=(0,), keepdims=True), (50, 4))
    code = build(graph, target=PLAIN).code
    timed = timed_code(code, 4)
    assert timed.count("tg_nanoseconds();") == 3  # the start, and two kernels
    lines = [line for line in timed.replace(CLOCK, "").splitlines(True) if "tg_times" not in line]
    assert "".join(lines) == code


def launchable(graph: Graph, strides=None) -> history.Launchable:
    made = executable.build(graph, "forward", strides)
    return history.Launchable(made.kernel.run, made.kernel.record, graph, strides or {})


def test_rehearsal_times_each_kernel() -> None:
    """Of two kernels, the one that computes a thousand times as many sines takes longer."""

    def program(x, y):
        return ops.reduce_sum(ops.sin(x), axes=(0,)), ops.reduce_sum(ops.sin(y), axes=(0,))

    found = rehearsal.rehearse(launchable(graph_of(program, (100_000,), (100,))))
    assert found is not None and len(found) == 2 and min(found) >= 0 and found[0] > found[1]


def test_rehearsal_reads_strided_inputs_and_tables() -> None:
    """Stand-in inputs have the layout that the kernels were made for; zero is in every table."""
    builder = GraphBuilder("g")
    x = builder.input(TensorType((6, 5), dtypes.float64), "x")
    i = builder.input(TensorType((3,), dtypes.int64), "i")
    with builder:
        rows = ops.gather(x, i, axes=(0,))
        out = ops.reduce_sum(rows, axes=(0, 1), keepdims=False), ops.exp(x)
    graph = builder.finish(list(out))
    strides = {x: (-1, 6)}
    stand_in = rehearsal._stand_in(x, strides[x])
    assert stand_in.strides == (-8, 48) and float(stand_in.sum()) == 30.0
    found = rehearsal.rehearse(launchable(graph, strides))
    assert found is not None and len(found) == 2


def test_rehearsal_of_refused_numbers_gives_nothing() -> None:
    """Integers are zeros, so an integer division fails; the caller then has the cost model."""
    graph = graph_of(lambda x, y: ops.floor_divide(x, y), (4,), (4,), dtype=dtypes.int32)
    assert rehearsal.rehearse(launchable(graph)) is None


def test_empty_inputs_have_stand_ins() -> None:
    builder = GraphBuilder("g")
    x = builder.input(TensorType((0, 3), dtypes.float32), "x")
    assert rehearsal._stand_in(x, (3, 1)).shape == (0, 3)
    assert np.all(rehearsal._stand_in(x, None) == 1)
