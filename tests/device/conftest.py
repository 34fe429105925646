"""Tests of tensors on a device: a real one (or an emulated driver) where there is one, else the double."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tracegrad.runtime.cuda import driver

TESTS = Path(__file__).resolve().parent.parent
sys.path.extend([str(TESTS), str(TESTS / "eager")])

from doubles import doubled  # noqa: E402


@pytest.fixture(autouse=True)
def device() -> Iterator[str]:
    """The name of a device that tensors can live on."""
    if driver.status() is None:
        yield "cuda:0"
    else:
        with doubled():
            yield "cuda:0"
