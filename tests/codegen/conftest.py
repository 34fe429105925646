"""The random graphs of the pass tests serve here too; the long runs need `-m slow`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "passes"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the long runs over random graphs unless they are asked for."""
    if "slow" in str(config.getoption("markexpr")):
        return
    here = str(Path(__file__).resolve().parent)
    for item in items:
        if item.get_closest_marker("slow") and str(item.path).startswith(here):
            item.add_marker(pytest.mark.skip(reason="a long run; ask for it with -m slow"))
