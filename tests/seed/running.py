"""Runs tutorial cells as a notebook would, in tracegrad, and compares what they print.

Changed in the code before it runs: the import, the drawing backend's magic line, and, for the
compiled run, a decorator on each function and `compile` around the model. Code outside of functions
runs eagerly in both runs. What cannot agree is listed in `RANDOM_CELLS`, `canonical` and
`ONE_NODE_CELL`; all else is compared to the letter. Start at `run`.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
from typing import Any

from tutorial_text import Cell

import tracegrad

# Cells that print random data, by a fragment of their code. In their output every number with four
# decimals other than 0.0000 is masked: shapes, suffixes, exact zeros and the 3. of a derivative
# still have to agree, as the data is drawn anew on each run of the tutorial.
RANDOM_CELLS = (
    "print(model.layer2.weight",    # weights drawn by Linear, gradients on random data
    "print(loss)",                  # the loss on random data
    "x = torch.rand(5,",            # the data itself
    "x = torch.randn(3,",           # the data, doubled
    "y.backward(v)",                # powers of two: how many doublings depends on the data
    "inputs = (torch.rand(",        # the data, and 2 exp(x)
    "inputs = torch.randn(3)",      # the data, doubled
)  # fmt: skip
PROFILER_CELL = "autograd.profiler"  # times, and a table that the generations lay out differently
ONE_NODE_CELL = "c1 = add_tensors1(a, b)"  # the only one that prints a called function's node
REFUSED_CELL = "torch.sin_(a)"
REFUSAL = "RuntimeError: a leaf Variable that requires grad is being used in an in-place operation."

NUMBER = re.compile(r"-?(?!0\.0000\b)\d+\.\d{4}(e[+-]\d\d)?")


def canonical(text: str) -> str:
    """One line without what differs between runs and releases, none of it tracegrad's choice."""
    text = re.sub(r"0x[0-9a-f]+", "0x", text)  # addresses
    text = text.replace("Line2D at 0x", "Line2D object at 0x")  # matplotlib's repr before 3.5
    return text.replace("<SliceBackward>", "<SliceBackward0>")  # PyTorch's names before 1.10


def _letters(lines: list[str], random: bool, blanks: bool) -> list[str]:
    """The printed lines in the form in which they are compared.

    With `blanks`, those inside a line count, and empty lines too. Random numbers differ in width,
    so line breaks and blanks move: such a cell is compared as one line without blanks.
    """
    kept = [canonical(line).rstrip() for line in lines if blanks or line.strip()]
    if random:
        return [re.sub(r"\s+", "", NUMBER.sub("#", " ".join(kept)))]
    return kept if blanks else [" ".join(line.split()).replace("[ ", "[") for line in kept]


def differences(cell: Cell, printed: list[str], blanks: bool, compiled: bool = False) -> list[str]:
    """What a cell should have printed and did not, in words; empty where all is well.

    Args:
        cell: code, and what the tutorial says it prints.
        printed: what it printed.
        blanks: whether the tutorial's text still has its blanks and empty lines.
        compiled: whether `printed` is of the compiled run, where a call is one node of the graph.
    """
    code = "\n".join(cell.code)
    if PROFILER_CELL in code:
        return _profile_differences(cell.output, printed, blanks)
    if REFUSED_CELL in code:  # a notebook prints the traceback, of which the last line is compared
        expected = [line for line in cell.output if line.strip()][-1:] or [REFUSAL]
        return [] if expected == printed else [f"expected {expected}, got {printed}"]
    output = cell.output
    if compiled and ONE_NODE_CELL in code:
        output = [line.replace("<AddBackward0>", "<CompiledBackward0>") for line in output]
    random = any(fragment in code for fragment in RANDOM_CELLS)
    shown = code.rstrip().splitlines()[-1]
    if "functional." in shown:  # a notebook breaks a displayed tuple between its elements
        random = True
    expected, actual = (_letters(x, random, blanks) for x in (output, printed))
    return [] if expected == actual else [f"in\n{code}\nexpected {expected}\ngot      {actual}"]


TIMES = r"( +\d+\.\d\d% +\d+\.\d{3}(us|ms|s))"  # a share and a time
TABLE_ROW = re.compile(rf" +aten::(mul|div){TIMES}{{2}} +\d+\.\d{{3}}us +1000  ")
TABLE_NAMES = {"aten::div", "aten::mul"}
TABLE_TITLES = [
    "Name", "Self CPU %", "Self CPU", "CPU total %", "CPU total", "CPU time avg", "# of Calls",
]  # fmt: skip
TABLE_TOTAL = re.compile(r"Self CPU time total: \d+\.\d{3}(us|ms|s)")


def _profile_differences(expected: list[str], printed: list[str], blanks: bool) -> list[str]:
    """Both print the same lines in the same order: rules, titles, 1000 divisions and products.

    What is in a line is compared to PyTorch's present layout, which neither generation has; lines
    about a GPU are left out. Which of the two rows comes first is a matter of time, so it is the
    order by time that is compared.
    """

    def kinds(lines: list[str]) -> list[str]:
        found = [_table_line(line) for line in lines if blanks or line.strip()]
        return [kind for kind in found if kind != "gpu"]

    if kinds(expected) != kinds(printed):
        return [f"lines {kinds(expected)} are expected, got {kinds(printed)}"]
    of_kind = {kind: [x for x in printed if _table_line(x) == kind] for kind in kinds(printed)}
    rows, (titles,), (total,) = of_kind["1000 calls"], of_kind["titles"], of_kind["total"]
    rule = "  ".join(["-" * 13] + ["-" * 12] * 6) + "  "
    found = []
    if not all(map(TABLE_ROW.fullmatch, rows)) or {x.split()[0] for x in rows} != TABLE_NAMES:
        found.append(f"unexpected rows {rows}")
    elif rows != sorted(rows, key=lambda row: -float(row.split()[1].rstrip("%"))):
        found.append(f"rows are not sorted by time: {rows}")
    if re.split(r"  +", titles.strip()) != TABLE_TITLES:
        found.append(f"unexpected columns {titles}")
    if set(of_kind["rule"]) != {rule} or {len(x) for x in (titles, *rows)} != {len(rule)}:
        found.append(f"lines are not as wide as their rules: {printed}")
    if not TABLE_TOTAL.fullmatch(total):
        found.append(f"malformed total {total}")
    return found


def _table_line(line: str) -> str:
    """What a line of a profiler's table is, in words; the line itself where that is unknown."""
    if re.match(r"\s*cuda|Self CUDA", line):
        return "gpu"
    if re.match(r"\s*(aten::)?(mul|div)\s.*\s1000\s*$", line):
        return "1000 calls"
    if line.lstrip().startswith("Name "):
        return "titles"
    if line.startswith("Self CPU time total: "):
        return "total"
    return "rule" if line.strip() and not line.strip("- ") else line


# ---- running ------------------------------------------------------------------------------------


class _Compiler(ast.NodeTransformer):
    """Puts `_compiled` on every function, and around every model that is made."""

    def __init__(self) -> None:
        self.classes: set[str] = set()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.decorator_list.insert(0, ast.Name("_compiled", ast.Load()))
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.classes.add(node.name)
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        called = node.value.func if isinstance(node.value, ast.Call) else None
        if isinstance(called, ast.Name) and called.id in self.classes:
            node.value = ast.Call(ast.Name("_model", ast.Load()), [node.value], [])
        return node


def run(cells: list[Cell], compiled: list[Any] | None = None) -> list[list[str]]:
    """Execute the cells in one namespace; the printed lines of each.

    Args:
        cells: the tutorial.
        compiled: None runs it as it is; a list makes every function and model compiled, and is
            filled with what was compiled. A function is called three times for each call that is
            written, so that a replay gives the result.
    """
    space: dict[str, Any] = {"__name__": "tutorial"}
    if compiled is not None:
        space["_compiled"] = lambda function: _thrice(function, compiled)
        space["_model"] = lambda model: compiled.append(tracegrad.compile(model)) or compiled[-1]
    return [
        _execute(cell, number, space, compiled is not None) for number, cell in enumerate(cells)
    ]


def _thrice(function: Any, compiled: list[Any]) -> Any:
    made = tracegrad.compile(function)
    compiled.append(made)

    def call(*args: Any) -> Any:
        made(*args)
        made(*args)
        return made(*args)

    return call


def _execute(cell: Cell, number: int, space: dict[str, Any], compiling: bool) -> list[str]:
    """Run one cell; what it prints, then the value of its last line where that is an expression."""
    lines = [line for line in cell.code if not line.startswith("%")]
    source = "\n".join(lines).replace("import torch", "import tracegrad as torch")
    name = f"<cell {number}>"
    tree = ast.parse(source, name)
    if compiling:
        tree = ast.fix_missing_locations(_Compiler().visit(tree))
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, name, "exec"), space)
        try:
            if last is not None:
                value = eval(compile(ast.Expression(last.value), name, "eval"), space)
                if value is not None:
                    print(value)
        except RuntimeError as error:
            if REFUSED_CELL not in source:
                raise
            print(f"RuntimeError: {error}")
        else:
            assert REFUSED_CELL not in source, "an in-place operation on a leaf was not refused"
    return printed.getvalue().splitlines()
