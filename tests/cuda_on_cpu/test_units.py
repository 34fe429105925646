"""Units of CUDA, run on the CPU: maps, reductions and row kernels of many shapes and layouts."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest
from cases import cases, gradients, sums, varying, wave
from compiled import reference
from drawing import graph as drawn
from emulated import Emulated, run_both_ways
from test_row_groups import layer_norm

from tracegrad.codegen.cuda.plan import CudaTarget
from tracegrad.codegen.cuda.unit import build_cuda
from tracegrad.ir import dtypes, ops
from tracegrad.ir.types import TensorType
from tracegrad.tracer.verification import differs

NAMES = sorted(cases())


@cache
def compiled() -> Emulated:
    """All units, compiled together."""
    return Emulated([cases()[name].unit for name in NAMES])


@pytest.mark.parametrize("name", NAMES)
def test_unit_computes_its_graph(name: str) -> None:
    c = cases()[name]
    types = [v.type for v in c.graph.outputs]
    got, status = run_both_ways(compiled(), NAMES.index(name), types, c.arrays)
    assert not any(status)
    for value, want in zip(got, reference(c.graph, c.arrays), strict=True):
        assert differs(value, want) is None, differs(value, want)


def test_inputs_that_are_aligned_need_no_look() -> None:
    names = [
        "chain",
        "map (600, 250)",
        "map, bias",
        "sums over (1,) of (3, 20000)",
        "softmax float16",
    ]
    graphs = [cases()[name].graph for name in names]
    units = [build_cuda(graph, target=CudaTarget(aligned=True)) for graph in graphs]
    assert all("tg_fetch<true>(" in u.code and "tg_fetch(in_" not in u.code for u in units)
    emulated = Emulated(units)
    for k, name in enumerate(names):
        c = cases()[name]
        got, _ = run_both_ways(emulated, k, [v.type for v in c.graph.outputs], c.arrays)
        before, _ = run_both_ways(
            compiled(), NAMES.index(name), [v.type for v in c.graph.outputs], c.arrays
        )
        assert [a.tobytes() for a in got] == [a.tobytes() for a in before]


def test_nothing_depends_on_the_device() -> None:
    for name in ("chain", "sums over (0, 1) of (300, 500)", "map (600, 250)"):
        graph = cases()[name].graph
        made = {build_cuda(graph, target=CudaTarget(multiprocessors=n)).code for n in (1, 132)}
        assert len(made) == 1


def test_all_numbers_of_rows_have_one_text() -> None:
    texts: dict[str, set[str]] = {}
    for rows in (2, 5, 70, 1000, 90_000):
        graphs = {
            "gradients": varying(gradients(layer_norm, (rows, 64), (64,), (64,)), (0, 0), (3, 0)),
            "map": varying(drawn(wave, (rows, 48), (rows, 48)), (0, 0), (1, 0)),
            "columns": varying(drawn(sums(0), (rows, 48)), (0, 0)),
            "all": varying(drawn(sums(0, 1), (rows, 48)), (0, 0)),
        }
        for name, graph in graphs.items():
            texts.setdefault(name, set()).add(build_cuda(graph).code)
    assert {name: len(found) for name, found in texts.items()} == dict.fromkeys(texts, 1)


def test_what_is_aligned_moves_in_vectors_and_what_is_cut_is_joined() -> None:
    assert "tg_fetch(in_0_u" in cases()["map (600, 250)"].unit.code
    chain = cases()["chain"].unit
    assert [launch.kernel for launch in chain.launches][0] == "kernel_0"
    assert all(launch.kernel.startswith("kernel_0") for launch in chain.launches)
    assert len(cases()["softmax (200, 64)"].unit.launches) == 1


def test_an_output_that_nobody_asks_for_is_a_temporary() -> None:
    graph = cases()["map and sums"].graph
    unit = build_cuda(graph, returned=1)
    assert {p.kind for launch in unit.launches for p in launch.arguments} == {
        "input",
        "output",
        "arena",
    }
    assert all(p.position % 256 == 0 for launch in unit.launches for p in launch.arguments
               if p.kind == "arena")  # fmt: skip


@pytest.mark.parametrize("bad", [99, -21])
def test_an_index_out_of_bounds_goes_to_the_status(bad: int) -> None:
    picks = TensorType((10,), dtypes.int64)
    graph = drawn(lambda x, i: ops.gather(x, i, axes=(0,)), (20, 6), picks)
    x, i = np.ones((20, 6), np.float32), np.arange(10)
    i[7] = bad
    outputs, status = run_both_ways(
        Emulated([build_cuda(graph)]), 0, [v.type for v in graph.outputs], [x, i]
    )
    assert status == [1, bad, 0, 20]
    assert (outputs[0] == 1).all()


def test_an_integer_divided_by_zero_goes_to_the_status() -> None:
    graph = drawn(lambda x, y: ops.floor_divide(x, y), (300,), (300,), dtype=dtypes.int64)
    x, y = np.arange(300), np.arange(300) - 5
    _, status = run_both_ways(
        Emulated([build_cuda(graph)]), 0, [v.type for v in graph.outputs], [x, y]
    )
    assert status[0] == 2


def test_what_is_written_is_not_restrict() -> None:
    """A thread may read behind a barrier what another has written; see Note [What is restrict]."""
    for c in cases().values():
        written = re.findall(r"(?<!const )\b\w+ \*__restrict__ \w+", c.unit.code)
        assert not written
