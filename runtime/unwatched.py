"""Calls that a capture does not look into.

A capture watches, by `sys.setprofile`, all Python code that is not tracegrad's, NumPy's or the standard
library's. What tracegrad itself calls elsewhere is no part of the user's function: pycuda, which is
partly Python, compilers, and callbacks that a replay repeats.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def unwatched() -> Iterator[None]:
    """A block that no capture of this thread looks into."""
    observer = sys.getprofile()
    sys.setprofile(None)
    try:
        yield
    finally:
        sys.setprofile(observer)


def hidden(function: Callable[P, R]) -> Callable[P, R]:
    """The function, whose calls no capture looks into."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if sys.getprofile() is None:
            return function(*args, **kwargs)
        with unwatched():
            return function(*args, **kwargs)

    return call
