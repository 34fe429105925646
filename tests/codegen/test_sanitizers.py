"""Generated units as programs of their own under the address and undefined-behaviour sanitizers.

Inputs, outputs and the arena are separate heap blocks of exactly their size, so an access outside
any of them stops the program. Start reading at `sanitized`.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compiled import layouts
from drawing import graph as drawn_graph
from drawing import with_some_sizes
from hypothesis import HealthCheck, Phase, given, settings
from random_graphs import graphs
from test_golden_sources import CASES

from tracegrad.codegen.unit import build
from tracegrad.ir.graph import Graph, Value
from tracegrad.ir.types import Shape
from tracegrad.runtime import executable, toolchain

FLAGS = ["-O1", "-g", "-w", "-std=gnu11", "-fwrapv", "-ffp-contract=off", "-fopenmp",
         "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]  # fmt: skip

MAIN = """
#include <stdio.h>
#include <stdlib.h>
#include <stdint.h>
int tg_run(void **args);
__attribute__((weak)) void tg_init_threads(const int *count);
static const size_t sizes[] = { %(sizes)s };
static const int64_t numbers[] = { %(numbers)s };
static const size_t starts[] = { %(starts)s };  // where element 0 lies: strides may be negative
int main(int argc, char **argv)
{
    const int inputs = %(inputs)d, count = %(count)d;
    const int more = sizeof numbers / sizeof *numbers;
    void *blocks[count + 3], *args[count + 3 + more];
    FILE *file = fopen(argv[1], "rb");
    for (int k = 0; k < count; k++) {
        blocks[k] = malloc(sizes[k]);
        args[k] = (char *)blocks[k] + (k < inputs ? starts[k] : 0);
        if (k < inputs && fread(blocks[k], 1, sizes[k], file) != sizes[k])
            return 3;
    }
    args[count] = blocks[count] = aligned_alloc(64, %(arena)d);
    args[count + 1] = blocks[count + 1] = calloc(4, 8);
    for (int k = 0; k < more; k++)
        args[count + 2 + k] = (void *)(intptr_t)numbers[k];
    const int threads = 2;
    if (tg_init_threads)
        tg_init_threads(&threads);
    int code = tg_run(args);
    for (int k = 0; k < count + 2; k++)
        free(blocks[k]);
    return code ? 40 + code : 0;
}
"""


def block(array: np.ndarray) -> tuple[bytes, int]:
    """The memory that a strided array spans, and where in it element 0 lies."""
    if array.size == 0:
        return b"", 0
    low = sum(min(0, s * (n - 1)) for s, n in zip(array.strides, array.shape))
    high = sum(max(0, s * (n - 1)) for s, n in zip(array.strides, array.shape)) + array.itemsize
    first = array.__array_interface__["data"][0] + low
    import ctypes

    return ctypes.string_at(first, high - low), -low


def sanitized(
    graph: Graph, arrays: Sequence[np.ndarray], strides: dict[Value, Shape], folder: Path
) -> int:
    """Build a graph's unit with the sanitizers and run it; returns the exit status."""
    unit = build(graph, target=executable.target(), strides=strides)
    blocks = [block(a) for a in arrays]
    sizes = [len(b) for b, _ in blocks] + [v.type.nbytes for v in graph.outputs]
    (folder / "unit.c").write_text(unit.source)
    (folder / "main.c").write_text(MAIN % {
        "sizes": ", ".join(map(str, sizes)), "starts": ", ".join(str(s) for _, s in blocks) or "0",
        "inputs": len(arrays), "count": len(sizes), "arena": max(unit.arena_bytes, 64),
        "numbers": ", ".join(map(str, map(int, unit.numbers))) or "0",
    })  # fmt: skip
    (folder / "inputs").write_bytes(b"".join(b for b, _ in blocks))
    command = [*toolchain.find().command, *FLAGS, str(folder / "unit.c"), str(folder / "main.c"),
               "-o", str(folder / "program"), "-lm"]  # fmt: skip
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[:3000]
    done = subprocess.run(
        [str(folder / "program"), str(folder / "inputs")], capture_output=True, text=True
    )
    assert "Sanitizer" not in done.stderr, (str(graph), done.stderr[:4000])
    assert "runtime error" not in done.stderr, (str(graph), done.stderr[:4000])
    return done.returncode


@pytest.fixture(scope="module", autouse=True)
def sanitizers(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("probe")
    (folder / "t.c").write_text("int main(void) { return 0; }")
    command = [*toolchain.find().command, *FLAGS, str(folder / "t.c"), "-o", str(folder / "t")]
    tried = subprocess.run(command, capture_output=True)
    if tried.returncode or subprocess.run([str(folder / "t")], capture_output=True).returncode:
        pytest.skip("the compiler has no address and undefined-behaviour sanitizers")


def test_the_sanitizers_see_an_access_outside(tmp_path: Path) -> None:
    fn, *shapes = CASES["pointwise"]
    made = drawn_graph(fn, *shapes)
    short = [np.zeros((3, 4), np.float32) for _ in made.inputs]
    with pytest.raises(AssertionError, match="heap-buffer-overflow"):
        sanitized(made, short, {}, tmp_path)


@pytest.mark.parametrize("name", ["gather_scatter", "pad_slice_concat", "conv_pool", "full_sum"])
def test_golden_units(name: str, tmp_path: Path) -> None:
    fn, *shapes = CASES[name]
    made = drawn_graph(fn, *shapes)
    rng = np.random.default_rng(0)
    arrays = [np.asarray(rng.integers(-5, 5, v.shape)).astype(v.dtype.numpy) for v in made.inputs]
    assert sanitized(made, arrays, {}, tmp_path) == 0
    assert sanitized(with_some_sizes(made, rng), arrays, {}, tmp_path) == 0


def check(drawn: tuple[Graph, list[np.ndarray]]) -> None:
    graph, arrays = drawn
    every = graph.replace(outputs=tuple(n.out for n in graph.nodes))
    if not every.outputs:
        return
    for outputs in (every.outputs, every.outputs[-1:]):
        one = graph.replace(outputs=outputs)
        fit, strides = layouts(one, arrays)
        with tempfile.TemporaryDirectory() as folder:
            code = sanitized(one, fit, strides, Path(folder))
        assert code in (0, 42), code  # 42: a division by zero, reported as such


QUIET: Any = {"deadline": None, "suppress_health_check": list(HealthCheck),
              "phases": [Phase.explicit, Phase.generate]}  # fmt: skip


@settings(max_examples=4, derandomize=True, **QUIET)
@given(graphs(nodes=20))
def test_random_units(drawn: tuple[Graph, list[np.ndarray]]) -> None:
    check(drawn)


@settings(max_examples=4, derandomize=True, **QUIET)
@given(graphs(nodes=20))
def test_random_units_with_sizes_that_vary(drawn: tuple[Graph, list[np.ndarray]]) -> None:
    check((with_some_sizes(drawn[0], np.random.default_rng(0)), drawn[1]))


@pytest.mark.slow
@settings(max_examples=100, **QUIET)
@given(graphs(nodes=25))
def test_many_random_units(drawn: tuple[Graph, list[np.ndarray]]) -> None:
    check(drawn)
