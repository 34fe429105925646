"""README and CONTRIBUTING say what is so: their programs run, their links lead somewhere."""

from __future__ import annotations

import doctest
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def run(*command: object, **environment: str) -> str:
    """What a Python command prints; fails with what it wrote where it fails."""
    words = [sys.executable, *map(str, command)]
    done = subprocess.run(
        words, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_links_lead_to_files(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", document.read_text())
    local = [t for t in targets if "://" not in t]
    assert [t for t in local if not (document.parent / t).exists()] == []


def test_every_document_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    names = {p.name for p in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {name for name in names if f"({name})" not in index} == set()


@pytest.mark.parametrize(("name", "least"), [("autograd.md", 51), ("capture.md", 6)])
def test_the_examples_print_what_they_show(name: str, least: int) -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    path = ROOT / "docs" / name
    failed, tried = doctest.testfile(str(path), module_relative=False, optionflags=flags)
    assert failed == 0 and tried >= least


def test_readme_shows_the_real_output() -> None:
    assert run("docs/make_readme_parts.py", "--check").strip() == "README is true"


def marked(mark: str) -> str:
    """The code block of CONTRIBUTING that follows a mark."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    found = re.search(rf"<!-- {re.escape(mark)} -->\n```python\n(.*?)```", text, re.DOTALL)
    assert found is not None, f"CONTRIBUTING has no block marked {mark!r}"
    return found.group(1)


def test_one_row_adds_a_pointwise_operation(tmp_path: Path) -> None:
    package = tmp_path / "tracegrad"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "tracegrad", package, ignore=ignore)
    for folder in ("ir", "codegen", "runtime", "tracer"):
        shutil.copytree(ROOT / folder, package / folder, ignore=ignore)
    table = package / "ir" / "primitives" / "elementary.py"
    table.write_text(table.read_text() + "\n" + marked("row for ir/primitives/elementary.py"))
    program = tmp_path / "program.py"
    program.write_text(marked("program") + "print(tg.__file__)\n")
    said = run(program, PYTHONPATH=str(tmp_path), TRACEGRAD_CACHE_DIR=str(tmp_path / "cache"))
    assert said.strip() == str(package / "__init__.py"), "the copy was not the one imported"
