"""Row groups: which loop nests become one loop over rows, and that their results are the same.

Random programs of row operations keep few outputs, so that what is between them stays in buffers of
one row; each is compared with the interpreter, with everything stored, and over numbers of threads.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from compiled import assert_compiled_equals_evaluated, assert_same_for_threads, reference, run
from drawing import graph as drawn_graph
from drawing import only, plan, temporaries
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from random_graphs import assert_same_bits

from tracegrad.codegen import row_groups
from tracegrad.codegen.unit import build
from tracegrad.ir import dtypes, ops
from tracegrad.ir.graph import Graph
from tracegrad.ir.passes import autodiff, optimize
from tracegrad.ir.passes.sizes import with_sizes
from tracegrad.ir.sizes import Size
from tracegrad.ir.types import TensorType


def total(x: Any, *axes: int, keepdims: bool = True) -> Any:
    return ops.reduce_sum(x, axes=axes, keepdims=keepdims)


def greatest(x: Any, *axes: int) -> Any:
    return ops.reduce_max(x, axes=axes, keepdims=True)


def softmax(x: Any) -> Any:
    e = ops.exp(x - greatest(x, x.ndim - 1))
    return e / total(e, x.ndim - 1)


def layer_norm(x: Any, w: Any, b: Any) -> Any:
    n = float(x.shape[-1])
    centred = x - total(x, 1) / n
    return centred * ops.rsqrt(total(centred * centred, 1) / n + 1e-5) * w + b


def normal(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(dtype)


# ---- decisions ----------------------------------------------------------------------------------


def test_softmax_is_one_loop_over_rows() -> None:
    unit = plan(softmax, (64, 32))
    assert temporaries(unit) == []
    assert str(only(unit)) == (
        "kernel_0(in_0, out_0):\n"
        "    for i in 0..64:\n"
        "        float acc0 = -TG_INF;\n"
        "        int acc0_nan = 0;\n"
        "        for j in 0..32:  [omp simd reduction(max: acc0) reduction(|: acc0_nan)]\n"
        "            const float acc0_next = in_0[32 * i + j];\n"
        "            acc0 = acc0_next > acc0 ? acc0_next : acc0;\n"
        "            acc0_nan |= acc0_next != acc0_next;\n"
        "        const float row_0 = (acc0_nan ? TG_NAN : acc0);\n"
        "        float row_1[32];\n"
        "        double acc1 = 0;\n"
        "        for j in 0..32:  [omp simd reduction(+: acc1)]\n"
        "            const float t0 = expf(in_0[32 * i + j] - row_0);\n"
        "            row_1[j] = t0;\n"
        "            acc1 += t0;\n"
        "        const float row_2 = (float)acc1;\n"
        "        for j in 0..32:  [omp simd]\n"
        "            out_0[32 * i + j] = row_1[j] / row_2;"
    )


def test_a_large_softmax_shares_its_rows_among_threads() -> None:
    assert str(only(plan(softmax, (4096, 512)))).count("omp parallel for") == 1


def test_a_layer_norm_and_its_gradients_are_one_loop() -> None:
    graph = drawn_graph(layer_norm, (256, 64), (64,), (64,))
    backward = optimize(autodiff.vjp(graph, [0, 1, 2], [0]))
    unit = plan_of(backward)
    assert len(unit.kernels) == 1
    made = str(unit.kernels[0])
    assert "for block in 0..32" in made  # the gradients of weight and bias accumulate over rows
    assert made.count("partial") >= 2


def plan_of(graph: Graph) -> Any:
    from tracegrad.codegen.plan import Target
    from tracegrad.codegen.unit import plan_unit

    return plan_unit(graph, Target(vector_math=None), {})


def test_rows_of_several_axes_are_one_loop_where_they_lie_so() -> None:
    made = str(only(plan(softmax, (8, 16, 64))))
    assert "for i in 0..128:" in made


def test_a_value_of_another_row_starts_a_kernel() -> None:
    def f(x: Any) -> Any:
        e = ops.exp(x - greatest(x, 1))
        return ops.flip(e, axes=(0,)) / total(e, 1)

    unit = plan(f, (64, 32))
    assert len(unit.kernels) == 2
    assert len(temporaries(unit)) == 2


def test_a_finished_reduction_over_rows_starts_a_kernel() -> None:
    def standardised(x: Any) -> Any:
        centred = x - total(x, 0) / 64.0
        return centred / total(centred * centred, 0)

    made = plan(standardised, (64, 32)).kernels
    assert len(made) == 4  # sum, mean, sum of squares, quotient
    assert not any("stages" in k.summary[0] for k in made)


def test_few_long_rows_are_loops_of_their_own() -> None:
    assert len(plan(softmax, (2, 100_000)).kernels) == 3


def test_rows_too_long_for_the_stack_lie_in_the_arena() -> None:
    unit = plan(softmax, (64, 20_000))
    assert len(unit.kernels) == 1
    assert len(temporaries(unit)) == 1
    assert "tmp_0[" in str(only(unit))


def test_short_rows_are_loops_of_their_own() -> None:
    assert len(plan(softmax, (10_000, 3)).kernels) == 3


def test_what_only_its_own_loop_reads_is_not_stored() -> None:
    def f(x: Any) -> Any:
        e = ops.exp(ops.sin(x))
        return total(e, 0, keepdims=False), total(e * e, 1, keepdims=False)

    made = "\n".join(map(str, plan(f, (20, 30)).kernels))
    assert made.count("expf(") == 1
    assert made.count("row_0[") == 3  # declared, written, read


def test_all_numbers_of_rows_have_one_text() -> None:
    texts = set()
    for rows in (2, 5, 70, 1000, 90_000):
        forward = drawn_graph(layer_norm, (rows, 64), (64,), (64,))
        graph = optimize(autodiff.vjp(forward, [0, 1, 2], [0]))
        size = Size.symbol("n0", rows)
        marked = with_sizes(graph, {0: (size, 64), 3: (size, 64)})
        unit = build(marked)
        assert unit.kernels == 1
        texts.add(unit.code)
    assert len(texts) == 1


def test_a_row_kernel_names_its_values_and_lines() -> None:
    source = build(drawn_graph(softmax, (64, 32))).source
    assert "64 rows, each in 3 stages, with reduce_max and reduce_sum." in source


def test_accumulators_do_not_fill_the_stack() -> None:
    """Each of 40 sums over rows would take 32 KB of the stack in one kernel."""

    def f(x: Any) -> Any:
        wave = ops.exp(x - greatest(x, 1))
        return [total(wave * float(k), 0, keepdims=False) for k in range(40)] + [wave]

    made = [str(k) for k in plan(f, (100, 4096)).kernels]
    for kernel in made:
        sizes = [int(n) for n in re.findall(r"double acc\d+\[(\d+)\]", kernel)]
        assert 8 * sum(sizes) <= row_groups.ALL_LOCAL_BYTES, kernel


# ---- results ------------------------------------------------------------------------------------


def check(graph: Graph, arrays: list[np.ndarray]) -> None:
    assert_compiled_equals_evaluated(graph, arrays)


@pytest.mark.parametrize("shape", [(5, 9), (64, 33), (1, 40), (3, 4, 17), (200, 1000), (9, 20_000)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_softmax(shape: tuple[int, ...], dtype: str) -> None:
    chosen = dtypes.by_name(dtype)
    x = normal(*shape).astype(chosen.numpy)
    graph = drawn_graph(softmax, shape, dtype=chosen)
    (got,) = run(graph, [x])
    e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True).astype(np.float64))
    digits = {"float32": 1e-6, "float64": 1e-14, "float16": 3e-3, "bfloat16": 3e-2}[dtype]
    np.testing.assert_allclose(got.astype(np.float64), e / e.sum(-1, keepdims=True), rtol=digits,
                               atol=1e-7)  # fmt: skip


@pytest.mark.parametrize("where", [0, 7, 30, 31])
@pytest.mark.parametrize("reduce", [ops.reduce_max, ops.reduce_min])
def test_nan_wins_in_its_row_only(where: int, reduce: Callable[..., Any]) -> None:
    x = normal(40, 32)
    x[3, where] = np.nan
    x[4] = np.inf
    x[5] = -np.inf
    graph = drawn_graph(lambda x: reduce(x, axes=(1,), keepdims=True) + total(x * 0, 1), (40, 32))
    with np.errstate(all="ignore"):
        assert_same_bits(run(graph, [x]), reference(graph, [x]))
    plain = drawn_graph(lambda x: reduce(x, axes=(1,), keepdims=False), (40, 32))
    assert_same_bits(run(plain, [x]), reference(plain, [x]))


STEPS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "softmax": lambda x, row, column: softmax(x),
    "centre": lambda x, row, column: x - total(x, 1) * 0.01,
    "by greatest": lambda x, row, column: x * 0.5 + greatest(x, 1) * 0.1,
    "weight": lambda x, row, column: x * row,
    "shift": lambda x, row, column: ops.sin(x) + column,
    "reverse": lambda x, row, column: ops.flip(x, axes=(1,)),
    "reverse rows": lambda x, row, column: ops.flip(x, axes=(0,)),
    "pieces": lambda x, row, column: pieces(x),
    "padded": lambda x, row, column: padded(x),
    "of columns": lambda x, row, column: x + total(x, 0) * 0.01,
    "of everything": lambda x, row, column: x + total(x, 0, 1) * 0.001,
    "turned": lambda x, row, column: turned(x),
    "rows of all": lambda x, row, column: x + ops.reshape(total(ops.sin(x), 1) * 0.1, shape=(1, -1))
    if x.shape[0] == x.shape[1] else ops.tanh(x),
    "first": lambda x, row, column: x + ops.slice(x, start=(0, 0), stop=(x.shape[0], 1), step=(1, 1)),
}  # fmt: skip


def pieces(x: Any) -> Any:
    """Each row in two halves, each with its own sum."""
    rows, size = x.shape
    if size % 2:
        return x * x
    halves = ops.reshape(x, shape=(rows, 2, size // 2))
    return ops.reshape(ops.sin(halves) + total(halves, 2) * 0.1, shape=(rows, size))


def padded(x: Any) -> Any:
    rows, size = x.shape
    wide = ops.pad(x, padding=((0, 0, 0), (1, 1, 0)), value=0.5)
    return x + ops.slice(wide, start=(0, 0), stop=(rows, size), step=(1, 1))


def turned(x: Any) -> Any:
    """Through rows of another shape."""
    rows, size = x.shape
    if rows % 2:
        return x
    pairs = ops.reshape(x, shape=(2, rows // 2, size))
    return ops.reshape(pairs - greatest(pairs, 2) * 0.1, shape=(rows, size))


@pytest.mark.parametrize("pick", [ops.argmax, ops.argmin])
@pytest.mark.parametrize("axis", [0, 1, None])
def test_positions_beside_other_stages(pick: Any, axis: int | None) -> None:
    def f(x: Any) -> Any:
        wave = softmax(x * 2.0)
        return pick(wave, axis=axis, keepdims=False), total(wave, 0, keepdims=False)

    graph = drawn_graph(f, (90, 40))
    x = np.random.default_rng(3).normal(size=(90, 40)).astype(np.float32)
    assert_compiled_equals_evaluated(graph, [x])
    got = run(graph, [x])
    want = reference(graph, [x])
    np.testing.assert_array_equal(got[0], want[0])


@st.composite
def programs(draw: Any) -> tuple[Graph, list[np.ndarray], int]:
    """A chain of row operations and its gradients; few of its values are outputs."""
    rows = draw(st.sampled_from([1, 2, 8, 12, 70]))
    size = draw(st.sampled_from([8, 12, 33, rows]))
    names = draw(st.lists(st.sampled_from(sorted(STEPS)), min_size=2, max_size=6))
    ends = draw(st.sampled_from(["rows", "columns", "all", "itself"]))
    note(f"{rows} x {size}: {names}, {ends}")

    def f(x: Any, row: Any, column: Any) -> Any:
        early = x
        for k, name in enumerate(names):
            x = STEPS[name](x, row, column)
            early = x if k == 0 else early
        last = {"rows": lambda: total(x, 1), "columns": lambda: total(x, 0),
                "all": lambda: total(x * x, 0, 1), "itself": lambda: x}[ends]()  # fmt: skip
        return [total(early, 1, keepdims=False), last]

    graph = drawn_graph(f, (rows, size), (size,), (rows, 1))
    graph = graph.replace(outputs=tuple(dict.fromkeys(graph.outputs)))
    arrays = [normal(*v.shape) for v in graph.inputs]
    return optimize(graph), arrays, draw(st.integers(0, 3))


FEW = settings(max_examples=80, derandomize=True, deadline=None,
               suppress_health_check=list(HealthCheck))  # fmt: skip


def check_program(drawn: tuple[Graph, list[np.ndarray], int]) -> None:
    graph, arrays, how = drawn
    graph = graph.replace(outputs=tuple(v for v in graph.outputs if v not in graph.inputs))
    if how == 1:  # the gradients
        wrt = list(autodiff.connected_inputs(graph, [0, 1, 2], [len(graph.outputs) - 1]))
        graph = optimize(autodiff.vjp(graph, wrt, [len(graph.outputs) - 1]))
        arrays = [*arrays, *(np.ones(v.shape, np.float32) for v in graph.inputs[len(arrays) :])]
    if how == 2:  # sizes that vary
        rows, size = Size.symbol("n0", arrays[0].shape[0]), arrays[0].shape[1]
        if rows > 1 and rows != size:
            graph = with_sizes(graph, {0: (rows, size), 2: (rows, 1)})
    assert_compiled_equals_evaluated(graph, arrays)
    outputs = tuple(v for v in dict.fromkeys(graph.outputs) if v not in graph.inputs)
    whole = graph.replace(outputs=outputs)
    if not outputs:
        return
    want = reference(whole, arrays) if how != 2 else None
    one = assert_same_for_threads(whole, arrays, 5)
    for got, exact in zip(one, want or one, strict=True):
        np.testing.assert_allclose(got, exact, rtol=2e-3, atol=2e-4 * max(1.0, np.abs(exact).max()))


@FEW
@given(programs())
def test_random_row_programs(drawn: tuple[Graph, list[np.ndarray], int]) -> None:
    check_program(drawn)


@pytest.mark.slow
@settings(FEW, max_examples=1500, derandomize=False)
@given(programs())
def test_many_random_row_programs(drawn: tuple[Graph, list[np.ndarray], int]) -> None:
    check_program(drawn)


@pytest.mark.parametrize("count", [2, 7])
def test_any_number_of_threads_gives_the_same_bits(count: int) -> None:
    forward = drawn_graph(layer_norm, (3000, 300), (300,), (300,))
    graph = optimize(autodiff.vjp(forward, [0, 1, 2], [0]))
    arrays = [normal(*v.shape) for v in graph.inputs]
    assert_same_for_threads(graph, arrays, count)


def test_the_rows_of_a_reading_are_checked_again_when_the_kernel_is_planned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wrong rule of `row_groups` is an error, not a wrong result."""
    honest = row_groups._operands

    def careless(node: Any, prefix: Any) -> Any:
        if node.primitive.name == "flip":
            return [(node.inputs[0], prefix)]
        return honest(node, prefix)

    monkeypatch.setattr(row_groups, "_operands", careless)
    with pytest.raises(AssertionError, match="another row than its own"):
        plan(lambda x: ops.flip(total(ops.exp(x), 1), axes=(0,)) + x, (64, 32))


def test_types() -> None:
    """Reductions of integers and conditions inside a row."""

    def f(x: Any) -> Any:
        most = greatest(x, 1)
        hits = ops.equal(x, most)
        some = ops.reduce_any(hits, axes=(1,), keepdims=True)
        counted = total(ops.cast(hits, dtype=dtypes.int64), 1)
        return ops.where(some, x * counted, most)

    for dtype in (dtypes.int32, dtypes.int8, dtypes.uint8, dtypes.int64):
        graph = drawn_graph(f, TensorType((24, 16), dtype))
        x = np.random.default_rng(1).integers(0, 9, (24, 16)).astype(dtype.numpy)
        assert_same_bits(run(graph, [x]), reference(graph, [x]))


# ---- kernels that are alike ---------------------------------------------------------------------


def test_kernels_that_are_alike_are_one_function() -> None:
    def f(x: Any, w: Any) -> Any:
        for _ in range(5):
            x = softmax(ops.dot_general(x, w, contract=((1,), (0,)), batch=((), ())))
        return x

    graph = drawn_graph(f, (64, 64), (64, 64))
    unit = build(graph)
    assert unit.kernels == 10
    assert unit.source.count("static void kernel_") == 2
    calls = [line for line in unit.source.splitlines() if line.startswith("    kernel_")]
    assert len(calls) == 10
    assert len({call.partition("(")[0] for call in calls}) == 2
    x, w = normal(64, 64), normal(64, 64) * 0.1
    want = x
    for _ in range(5):
        e = np.exp(want @ w - (want @ w).max(1, keepdims=True))
        want = e / e.sum(1, keepdims=True)
    np.testing.assert_allclose(run(graph, [x, w])[0], want, rtol=1e-5)


def test_kernels_that_differ_in_a_number_or_a_type_are_not_one_function() -> None:
    def f(x: Any) -> Any:
        y = total(ops.sin(x * 2.0), 0, 1, keepdims=False)
        return y, total(ops.sin(x * 3.0) + y, 0, 1, keepdims=False)

    unit = build(drawn_graph(f, (64, 64)))
    assert unit.source.count("static void kernel_") == unit.kernels


# ---- found by trying to break it ------------------------------------------------------------------


def test_rows_divided_in_two_ways() -> None:
    def f(x: Any, a: Any, b: Any) -> Any:
        y = softmax(x)
        parts = []
        for w in (a, b):
            cut = ops.reshape(y, shape=(*w.shape[:2], 40)) * w
            parts.append(ops.reshape(cut, shape=x.shape))
        return parts[0] + parts[1]

    for rows, left, right in [(6, (3, 2, 1), (2, 3, 1)), (60, (12, 5, 1), (10, 6, 1))]:
        graph = drawn_graph(f, (rows, 40), left, right)
        arrays = [normal(*v.shape) for v in graph.inputs]
        np.testing.assert_allclose(run(graph, arrays)[0], reference(graph, arrays)[0], rtol=1e-5)


@pytest.mark.parametrize("sums", [False, True])
def test_a_convolution_reads_a_reshape_that_is_a_result(sums: bool) -> None:
    """Neither is what it reads local to a row group, nor is its place taken while it is read."""

    def f(x: Any, w: Any) -> Any:
        h = total(x, 1, keepdims=False) if sums else softmax(x)
        v = ops.reshape(h, shape=(16, 4, 8, 8))
        y = ops.conv(v, w, stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1)
        return v, total(ops.exp(y * 0.01), 0, keepdims=False)

    shape = (16, 5, 256) if sums else (16, 256)
    graph = drawn_graph(f, shape, (3, 4, 3, 3))
    arrays = [normal(*v.shape) for v in graph.inputs]
    for got, want in zip(run(graph, arrays), reference(graph, arrays), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4)


def test_a_kernel_that_gcc_has_got_wrong() -> None:
    """gcc 12.2 at -O3 with AVX-512 lost stores to the buffers of a row (see runtime/toolchain.py)."""
    import tracegrad as tg

    F = tg.nn.functional
    rng = np.random.default_rng(1)

    def f(z: Any, w: Any, g: Any, b: Any) -> Any:
        v = F.relu(F.layer_norm(z @ w, (256,), g, b)).reshape(16, 4, 8, 8)
        return F.max_pool2d(v, 2) * F.avg_pool2d(v * v, 2)

    inputs = [
        tg.tensor(rng.standard_normal(s).astype(np.float32)).requires_grad_()
        for s in ((16, 10), (10, 256), (256,), (256,))
    ]
    compiled = tg.compile(f, wait=True, verify="off")
    for _ in range(3):
        found = tg.autograd.grad((compiled(*inputs) ** 2).sum(), inputs)
    exact = tg.autograd.grad((f(*inputs) ** 2).sum(), inputs)
    for a, b in zip(found, exact, strict=True):
        size = float(b.abs().max())
        assert float((a - b).abs().max()) <= 1e-4 * size
