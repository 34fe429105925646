"""Every public function of the tables refuses operands that are no tensors, by a TypeError that names
the argument or what was given, and leaves the other operands as they were. Mirrors PyTorch, whose
argument parser does so.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

import tracegrad as tg
from tracegrad.errors import TracegradError

FOLDER = Path(__file__).resolve().parents[1] / "compile"


def rows() -> dict[str, Any]:
    """How each public function is called: the rows of the compiled comparison."""
    sys.path.insert(0, str(FOLDER))
    try:
        module: Any = importlib.import_module("test_public_functions")
    finally:
        sys.path.remove(str(FOLDER))
    return {name: (f, module.ROWS.get(name), module.arguments) for name, f in module.PUBLIC.items()}


def with_text(value: Any) -> tuple[Any, bool]:
    """The argument with text in place of its tensors, and whether there were any."""
    if isinstance(value, tg.Tensor):
        return "text", True
    if isinstance(value, list | tuple):
        parts = [with_text(v) for v in value]
        return type(value)(p for p, _ in parts), any(found for _, found in parts)
    return value, False


ROWS = rows()


@pytest.mark.parametrize("name", [n for n, (_, row, _) in ROWS.items() if row is not None])
def test_text_in_place_of_a_tensor_is_refused(name: str) -> None:
    function, row, arguments = ROWS[name]
    calls: list[tuple[Any, Any]] = []

    def spy(*args: Any, **options: Any) -> tg.Tensor:
        calls.append((args, options))
        return tg.ones(3, 3)

    row(spy, *arguments())
    args, options = calls[0]
    refused = 0
    for position, value in enumerate(args):
        changed, found = with_text(value)
        if not found:
            continue
        given = [*args[:position], changed, *args[position + 1 :]]
        kept = [(x, x.tolist(), x._version) for x in given if isinstance(x, tg.Tensor)]
        with pytest.raises(TypeError) as caught:
            function(*given, **options)
        assert isinstance(caught.value, TracegradError), f"{name}: an error of Python's own"
        assert "str" in str(caught.value) or "text" in str(caught.value)
        assert all((x.tolist(), x._version) == (v, n) for x, v, n in kept)
        refused += 1
    assert refused
