"""What holds for every test."""

from __future__ import annotations

import pytest

from tracegrad.tracer import once


@pytest.fixture(autouse=True)
def _warnings_are_given_again() -> None:
    """A warning that is given once per process is given once per test."""
    once.forget()
