"""The cost model of kernels, and the variant of a unit that times them."""

from __future__ import annotations

from collections import Counter

import numpy as np
from drawing import graph
from hypothesis import HealthCheck, given, settings
from random_graphs import graphs

from tracegrad.codegen.costs import kernel_costs
from tracegrad.codegen.plan import Target
from tracegrad.codegen.timed import CLOCK, timed_code
from tracegrad.codegen.unit import build, plan_unit, prepared
from tracegrad.ir import dtypes, ops
from tracegrad.ir.graph import Graph, GraphBuilder
from tracegrad.ir.passes.dce import eliminate_dead_nodes
from tracegrad.ir.types import TensorType
from tracegrad.runtime import executable, history, rehearsal

PLAIN = Target(openmp=False, vector_math=None)


def works(drawn: Graph) -> list[dict[str, float]]:
    return [
        {op.node.primitive.name: op.work for op in cost.operations}
        for cost in kernel_costs(drawn, PLAIN, {})
    ]


def test_work_is_cost_times_elements() -> None:
    drawn = graph(lambda x: ops.sin(x) + ops.reduce_sum(x, axes=(0,), keepdims=True), (50, 4))
    assert works(drawn) == [{"reduce_sum": 200.0}, {"sin": 4000.0, "add": 200.0}]


def test_every_kernel_is_listed_in_order() -> None:
    def program(x, w):
        h = ops.exp(x - ops.reduce_max(x, axes=(1,), keepdims=True))
        product = ops.dot_general(h, w, contract=((1,), (0,)), batch=((), ()))
        return ops.tanh(product), ops.reduce_sum(h, axes=(0, 1), keepdims=False)

    drawn = graph(program, (20, 30), (30, 40))
    costs = kernel_costs(drawn, PLAIN, {})
    plans = plan_unit(drawn, PLAIN, {}).kernels
    assert [c.name for c in costs] == [p.name for p in plans]
    assert all(c.seconds > 0 and c.operations for c in costs)
    named = {op.node.primitive.name for c in costs for op in c.operations}
    assert named == {"sub", "exp", "reduce_max", "dot_general", "tanh", "reduce_sum"}


def test_movements_are_free_beside_computation_and_all_there_is_without() -> None:
    turned = graph(lambda x: ops.neg(ops.permute(x, axes=(1, 0))), (3, 5))
    assert works(turned) == [{"neg": 15.0}]
    copied = graph(lambda x, y: ops.concat(x, y, axis=0), (3, 5), (2, 5))
    assert works(copied) == [{"concat": 25.0}]


def test_products_too_small_for_blas_are_what_they_become() -> None:
    drawn = graph(
        lambda x, y: ops.dot_general(x, y, contract=((1,), (0,)), batch=((), ())), (3, 4), (4, 2)
    )
    assert works(drawn) == [{"mul": 24.0, "reduce_sum": 24.0}]


def test_a_value_used_by_two_kernels_is_listed_in_both() -> None:
    def program(x):
        y = x + 1  # cheap: computed again where it is used
        return ops.reduce_sum(y, axes=(0,), keepdims=False), ops.reduce_sum(
            ops.permute(y, axes=(1, 0)), axes=(0,), keepdims=False
        )

    found = works(graph(program, (6, 8)))
    assert sum("add" in kernel for kernel in found) == len(found) == 2


@given(graphs())
@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_operation_that_takes_time_is_in_a_kernel(drawn: tuple[Graph, list]) -> None:
    whole = eliminate_dead_nodes(drawn[0])
    wanted = tuple(dict.fromkeys(v for v in whole.outputs if v not in whole.inputs))
    if not wanted:
        return
    made = whole.replace(outputs=wanted)
    costs = kernel_costs(made, PLAIN, {})
    listed = Counter(
        (op.node.primitive.name, op.node.out.type) for c in costs for op in c.operations
    )
    working = Counter(
        (n.primitive.name, n.out.type) for n in eliminate_dead_nodes(prepared(made, {})).nodes
        if n.primitive.cost and n.out.type.size and all(v.type.size for v in n.inputs)
    )  # fmt: skip
    assert all(listed[key] >= count for key, count in working.items())
    assert all(op.work > 0 or not op.node.out.type.size for c in costs for op in c.operations)


# ---- timed units --------------------------------------------------------------------------------


def test_timed_code_differs_only_in_the_clock() -> None:
    drawn = graph(lambda x: ops.sin(x) / ops.reduce_sum(x, axes=(0,), keepdims=True), (50, 4))
    code = build(drawn, target=PLAIN).code
    timed = timed_code(code, 4)
    assert timed.count("tg_nanoseconds();") == 3  # the start, and two kernels
    lines = [line for line in timed.replace(CLOCK, "").splitlines(True) if "tg_times" not in line]
    assert "".join(lines) == code


def launchable(drawn: Graph, strides=None) -> history.Launchable:
    made = executable.build(drawn, "forward", strides)
    return history.Launchable(made.kernel.run, made.kernel.record, drawn, strides or {})


def test_rehearsal_times_each_kernel() -> None:
    """Of two kernels, the one that computes a thousand times as many sines takes longer."""

    def program(x, y):
        return ops.reduce_sum(ops.sin(x), axes=(0,)), ops.reduce_sum(ops.sin(y), axes=(0,))

    found = rehearsal.rehearse(launchable(graph(program, (100_000,), (100,))))
    assert found is not None and len(found) == 2 and min(found) >= 0 and found[0] > found[1]


def test_rehearsal_reads_strided_inputs_and_tables() -> None:
    """Stand-in inputs have the layout that the kernels were made for; zero is in every table."""
    builder = GraphBuilder("g")
    x = builder.input(TensorType((6, 5), dtypes.float64), "x")
    i = builder.input(TensorType((3,), dtypes.int64), "i")
    with builder:
        rows = ops.gather(x, i, axes=(0,))
        out = ops.reduce_sum(rows, axes=(0, 1), keepdims=False), ops.exp(x)
    made = builder.finish(list(out))
    strides = {x: (-1, 6)}
    stand_in = rehearsal._stand_in(x, strides[x])
    assert stand_in.strides == (-8, 48) and float(stand_in.sum()) == 30.0
    found = rehearsal.rehearse(launchable(made, strides))
    assert found is not None and len(found) == 2


def test_rehearsal_of_refused_numbers_gives_nothing() -> None:
    """Integers are zeros, so an integer division fails; the caller then has the cost model."""
    drawn = graph(lambda x, y: ops.floor_divide(x, y), (4,), (4,), dtype=dtypes.int32)
    assert rehearsal.rehearse(launchable(drawn)) is None


def test_empty_inputs_have_stand_ins() -> None:
    builder = GraphBuilder("g")
    x = builder.input(TensorType((0, 3), dtypes.float32), "x")
    assert rehearsal._stand_in(x, (3, 1)).shape == (0, 3)
    assert np.all(rehearsal._stand_in(x, None) == 1)
