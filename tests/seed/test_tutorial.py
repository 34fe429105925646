"""Both generations of the autograd tutorial, run as they are written, eagerly and compiled.

In the compiled run every function and the model are compiled; code outside of functions cannot be.
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
        found += differences(cell, printed, blanks, compiled=True)
    assert not found, "\n\n".join(found)
    replayed = {f._label for f in compiled if f.cache_info().hits}
    assert replayed >= {"TinyModel", "add_tensors1", "add_tensors2"}
    eager = {str(w.message).split()[0] for w in caught if w.category is tg.EagerWarning}
    assert eager <= {"do_some_doubling", "exp_adder"}, [str(w.message) for w in caught]


def printed_by(fragment: str) -> tuple[Cell, list[str]]:
    """The notebook's cell with this code, and what it prints after those before it."""
    cells = notebook_cells()
    number = next(k for k, cell in enumerate(cells) if fragment in "\n".join(cell.code))
    return cells[number], run(cells[: number + 1])[-1]


def test_a_wrong_figure_is_noticed() -> None:
    cell, printed = printed_by("print(b)")
    assert differences(cell, printed, True) == []
    cell.output[2] = cell.output[2].replace("-8.7423e-08", "-8.7424e-08")
    assert len(differences(cell, printed, True)) == 1


def test_a_missing_empty_line_is_noticed() -> None:
    cell, printed = printed_by("print('d:')")
    assert printed.count("") == 3 and differences(cell, printed, True) == []
    printed.remove("")
    assert len(differences(cell, printed, True)) == 1
    assert differences(cell, printed, False) == []


def test_only_the_result_of_a_function_has_another_node_when_compiled() -> None:
    for fragment, expected in (("c1 = add_tensors1(a, b)", 0), ("c1 = a + b", 1)):
        cell, printed = printed_by(fragment)
        renamed = [x.replace("AddBackward0", "CompiledBackward0") for x in printed]
        assert len(differences(cell, renamed, True, compiled=True)) == expected
        assert len(differences(cell, printed, True, compiled=True)) == 1 - expected


def with_share(row: str, share: str) -> str:
    """A row of a profiler's table with another share in its second column, as wide as before."""
    return re.sub(r" *\d+\.\d\d%", lambda old: share.rjust(len(old[0])), row, count=1)


def test_faults_in_a_table_are_noticed() -> None:
    cell, table = printed_by("autograd.profiler")
    assert differences(cell, table, True) == []
    rule, titles, _, first, second, _, total, _ = table
    # the two times may be as close, or as far apart, as they like
    wide = with_share(first, "60.000%")
    first, second = with_share(first, "60.00%"), with_share(second, "40.00%")
    foreign = first.replace("us ", "xs ", 1)
    faulty = [
        [rule, titles, rule, second, first, rule, total, ""],
        [rule, titles, rule, first, second, total, rule, ""],
        [rule, titles, rule, first, second, rule, total],
        [rule, titles, rule, first, second, first, rule, total, ""],
        [rule, titles, rule, first, first, rule, total, ""],
        [rule, titles, rule, first, second, rule, "more", total, ""],
        [rule[1:], titles, rule, first, second, rule, total, ""],
        [rule[1:], titles, rule[1:], first, second, rule[1:], total, ""],
        [rule, titles[1:], rule, first, second, rule, total, ""],
        [rule, titles.replace("avg", "Avg"), rule, first, second, rule, total, ""],
        [rule, titles, rule, wide, second, rule, total, ""],
        [rule, titles, rule, foreign, second, rule, total, ""],
        [rule, titles, rule, first, second, rule, total.replace(".", ""), ""],
    ]
    sound = [rule, titles, rule, first, second, rule, total, ""]
    assert differences(cell, sound, True) == []
    unnoticed = [lines for lines in faulty if not differences(cell, lines, True)]
    assert not unnoticed, "\n\n".join("\n".join(lines) for lines in unnoticed)
