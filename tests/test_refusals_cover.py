"""Every public function and method of a tensor has a test of a refused input.

A call counts where it stands in the body of a `pytest.raises`, or is the first call of a program or
of a function in a list of cases that name an error (rows of answers, tuples with an exception).
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import tracegrad as tg

HERE = Path(__file__).parent
ERRORS = re.compile(r"^(\w*Error|\w*Refus\w*|TYPES|RUNTIME|MISSING|CANNOT|KERNELS)$")


def called(tree: ast.AST) -> set[str]:
    """Names of what is called, or taken as an attribute, anywhere in a piece of code."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Name):
            found.add(node.id)
    return found


def refused_in(path: Path) -> set[str]:
    """Names that a test file has in places where an error is expected."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.With):
            if any("raises" in called(item.context_expr) for item in node.items):
                for statement in node.body:
                    found |= called(statement)
        elif isinstance(node, ast.Tuple | ast.List):
            names = [n.id for n in ast.walk(node) if isinstance(n, ast.Name)]
            if any(ERRORS.match(n) for n in names):
                found |= called(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if node.value and any(ERRORS.match(getattr(t, "id", "")) for t in targets):
                found |= called(node.value)
    return found


def refused() -> set[str]:
    found: set[str] = set()
    for path in HERE.rglob("test_*.py"):
        if path != Path(__file__):
            found |= refused_in(path)
    for path in (HERE / "eager").rglob("*.json"):
        for program, answer, *_ in json.loads(path.read_text()):
            if isinstance(answer, str) and re.match(r"^\w*(Error|Exception): ", answer):
                found |= called(ast.parse(program))
    return found


def public() -> tuple[set[str], set[str]]:
    functions = {
        name
        for name in tg.__all__
        if callable(getattr(tg, name)) and not isinstance(getattr(tg, name), type)
    }
    methods = {
        name
        for name in dir(tg.Tensor)
        if not name.startswith("_") and callable(getattr(tg.Tensor, name))
    }
    return functions, methods


def test_every_public_function_has_a_refused_input() -> None:
    functions, _ = public()
    missing = functions - refused()
    assert not missing, sorted(missing)


def test_every_method_has_a_refused_input() -> None:
    _, methods = public()
    missing = methods - refused()
    assert not missing, sorted(missing)
