"""One cache folder for all tests of compiled functions; what warns once may warn in each test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from beside import fresh

import tracegrad as tg


@pytest.fixture(scope="session", autouse=True)
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = os.environ.get("TRACEGRAD_CACHE_DIR")
    os.environ["TRACEGRAD_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    fresh()
    yield
    os.environ.pop("TRACEGRAD_CACHE_DIR")
    if before is not None:
        os.environ["TRACEGRAD_CACHE_DIR"] = before
    fresh()


@pytest.fixture
def new_process(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:  # type: ignore[no-untyped-def]
    """An empty cache folder and no memory of earlier tests."""
    monkeypatch.setenv("TRACEGRAD_CACHE_DIR", str(tmp_path / "cache"))
    fresh()
    yield
    monkeypatch.undo()
    fresh()


@pytest.fixture(autouse=True)
def seeded() -> None:
    tg.manual_seed(0)
