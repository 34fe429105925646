"""What holds for every test."""

from __future__ import annotations

import os

import pytest

from tracegrad.tracer import once

# Traces are there when a call returns; tests of background compilation ask for the other way.
os.environ["TRACEGRAD_WAIT"] = "1"


@pytest.fixture(autouse=True)
def _warnings_are_given_again() -> None:
    """A warning that is given once per process is given once per test."""
    once.forget()
