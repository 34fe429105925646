"""Generated source that is kept letter for letter, beside the tests that generate it."""

from __future__ import annotations

import difflib
import os
from pathlib import Path


def assert_golden(made: str, path: Path, test: str) -> None:
    """The text is that of the file; with TRACEGRAD_GOLDEN=write it becomes so.

    Args:
        test: the file of the test, whose head says what to do about a difference.
    """
    if os.environ.get("TRACEGRAD_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(made)
    kept = path.read_text() if path.exists() else ""
    diff = "".join(
        difflib.unified_diff(kept.splitlines(True), made.splitlines(True), str(path), "generated")
    )
    assert made == kept, f"{diff}\nIf this is meant: see the head of {Path(test).name}"
