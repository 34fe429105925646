"""Reads the two generations of the autograd tutorial into cells: code, and the lines it printed.

The notebook has its cells between fences and their output indented below, empty lines that were
printed too. The other generation is text taken from a web page, which lost all indentation, empty
lines and repeated blanks: the indentation of code is put back from the notebook cell that shares
most of its lines. Start reading at `notebook_cells`.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path

SEED = Path(__file__).resolve().parents[3] / "shared" / "seed"
NOTEBOOK = SEED / "autograd_tutorial_notebook.md"
PAGE = SEED / "autograd_tutorial_html.txt"
IMAGE = re.compile(r"^ {4}\n!\[png\].*\n {4}\n", re.MULTILINE)  # its blank lines are not printed


@dataclass
class Cell:
    """Code, the lines printed below it, and whether it is only shown (never run in a notebook)."""

    code: list[str]
    output: list[str] = field(default_factory=list)
    shown_only: bool = False


def notebook_cells() -> list[Cell]:
    """The cells of the notebook generation, in order."""
    cells: list[Cell] = []
    fence = False
    listening = False  # between a cell and the next prose: indented lines are its output
    for line in IMAGE.sub("", NOTEBOOK.read_text(encoding="utf-8")).splitlines():
        if line.startswith("```"):
            fence = not fence
            if fence:
                cells.append(Cell([], shown_only=not line.startswith("```python")))
            listening = not fence
        elif fence:
            cells[-1].code.append(line)
        elif listening and line.startswith("    "):
            cells[-1].output.append(line[4:])
        elif line.strip():
            listening = False
    return cells


def page_cells() -> list[Cell]:
    """The cells of the web page's generation; outputs have single blanks, as the page has."""
    known = notebook_cells()
    cells: list[Cell] = []
    for block in _blocks(PAGE.read_text(encoding="utf-8")):
        source = max(known, key=lambda cell: _shared(block, cell))
        if 2 * _shared(block, source) >= len(block):
            cells.append(Cell(_indented(block, source.code), shown_only=source.shown_only))
        else:
            cells[-1].output.extend(block)
    return cells


def _blocks(text: str) -> list[list[str]]:
    """What stands between fences, blank lines left out."""
    blocks: list[list[str]] = []
    for number, part in enumerate(text.split("\n```\n")):
        if number % 2:
            blocks.append([line for line in part.splitlines() if line.strip()])
    return blocks


def _shared(block: list[str], cell: Cell) -> int:
    """How many lines of `block` the cell's code has, apart from indentation."""
    code = {line.strip() for line in cell.code}
    return sum(line.strip() in code for line in block)


def _indented(block: list[str], source: list[str]) -> list[str]:
    """`block` with the indentation of `source`; a line that is not there follows the one before."""
    bare = [line.strip() for line in source]
    widths = [len(line) - len(line.lstrip()) for line in source]
    indents: list[int | None] = [None] * len(block)
    matcher = difflib.SequenceMatcher(None, [b.strip() for b in block], bare, autojunk=False)
    for start, other, size in matcher.get_matching_blocks():
        for k in range(size):
            indents[start + k] = widths[other + k]
    lines, current = [], 0
    for line, indent in zip(block, indents, strict=True):
        current = current if indent is None else indent
        lines.append(" " * current + line.strip())
    return lines
