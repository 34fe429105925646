"""Units of CUDA, run on the CPU: maps, reductions and row kernels of many shapes and layouts."""

from __future__ import annotations

from functools import cache

import pytest
from cases import cases, gradients, sums, varying, wave
from compiled import reference
from drawing import graph as drawn
from emulated import Emulated, run_both_ways
from test_row_groups import layer_norm

from tracegrad.codegen.cuda.plan import CudaTarget
from tracegrad.codegen.cuda.unit import build_cuda
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
