"""Both generations of the autograd tutorial, run as they are written, eagerly and compiled.

The texts are not part of this repository; where they are not at hand these tests are skipped, and
`test_figures.py` holds the same figures.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator

import pytest
import tutorial_text
from running import differences, run
from tutorial_text import Cell, notebook_cells, page_cells

import tracegrad as tg

plt = pytest.importorskip("matplotlib.pyplot", reason="the tutorial draws")
pytestmark = pytest.mark.skipif(
    not tutorial_text.SEED.is_dir(), reason=f"the tutorial's text is not in {tutorial_text.SEED}"
)

# generation, how many cells it has, how many of them print, whether blanks inside lines were kept
GENERATIONS = [
    pytest.param(notebook_cells, 28, 24, True, id="notebook"),
    pytest.param(page_cells, 26, 22, False, id="page"),
]


@pytest.fixture(autouse=True)
def _drawing_and_numbers() -> Iterator[None]:
    backend = plt.get_backend()
    plt.switch_backend("Agg")
    tg.manual_seed(7)
    yield
    plt.close("all")
    plt.switch_backend(backend)


@pytest.mark.parametrize(("read", "count", "printing", "blanks"), GENERATIONS)
def test_all_cells_are_found(
    read: Callable[[], list[Cell]], count: int, printing: int, blanks: bool
) -> None:
    cells = read()
    assert len(cells) == count
    assert sum(bool(cell.output) for cell in cells) == printing
    assert sum("    return x + y" in cell.code for cell in cells) == 1  # indented


@pytest.mark.parametrize(("read", "count", "printing", "blanks"), GENERATIONS)
def test_prints_what_the_tutorial_prints(
    read: Callable[[], list[Cell]], count: int, printing: int, blanks: bool
) -> None:
    cells = read()
    found = []
    for cell, printed in zip(cells, run(cells), strict=True):
        found += differences(cell, printed, blanks)
    assert not found, "\n\n".join(found)


@pytest.mark.parametrize(("read", "count", "printing", "blanks"), GENERATIONS)
def test_prints_the_same_with_every_function_compiled(
    read: Callable[[], list[Cell]], count: int, printing: int, blanks: bool
) -> None:
    cells = read()
    compiled: list = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outputs = run(cells, compiled)
    found = []
    for cell, printed in zip(cells, outputs, strict=True):
        # the one name that differs on purpose: a compiled call is one node of the graph
        cell.output = [re.sub("<(Add|Mul)Backward0>", "<AnyBackward0>", x) for x in cell.output]
        printed = [re.sub("<(Add|Mul|Compiled)Backward0>", "<AnyBackward0>", x) for x in printed]
        found += differences(cell, printed, blanks)
    assert not found, "\n\n".join(found)
    replayed = {f._label for f in compiled if f.cache_info().hits}
    assert replayed >= {"TinyModel", "add_tensors1", "add_tensors2"}
    eager = {str(w.message).split()[0] for w in caught if w.category is tg.EagerWarning}
    assert eager <= {"do_some_doubling", "exp_adder"}, [str(w.message) for w in caught]


def test_a_wrong_figure_is_noticed() -> None:
    cells = notebook_cells()
    cell = next(c for c in cells if c.code == ["print(b)"])
    printed = run(cells[: cells.index(cell) + 1])[-1]
    assert differences(cell, printed, True) == []
    cell.output[2] = cell.output[2].replace("-8.7423e-08", "-8.7424e-08")
    assert len(differences(cell, printed, True)) == 1
