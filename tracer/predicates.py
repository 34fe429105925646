"""Predicates: values that Python read during a captured run, on which its path may depend.

A trace is one path through the function. It holds while Python would read the same values again, so
the generated code compares each with what was seen (`tracegrad.codegen.checks`) and returns at the
first that differs; `tracegrad.tracer.paths` then looks for the path that goes on with that value.
Start reading at `Predicate`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tracegrad.ir.graph import Value
from tracegrad.ir.location import Location

PREDICATES = frozenset({
    "item", "bool", "int", "float", "index", "complex", "tolist", "mask index", "nonzero",
    "masked_scatter", "tensor()",
})  # fmt: skip
"""How values are read as numbers; other ways show memory, or a text that is for people."""

LARGEST = 4096
"""Bytes of the largest tensor whose values are compared."""

ULPS = 64
"""How far a compiled number may be from the one that the eager run read: both round."""


@dataclass(frozen=True)
class Read:
    """One read during a run: of `value`, which was `seen`, by `what` at a line."""

    value: Value
    seen: np.ndarray
    what: str
    location: Location | None

    def predicate(self, at: int) -> Predicate:
        """The predicate, given the graph's output that is the value."""
        return Predicate(at, self.seen, self.what, self.location)


@dataclass(frozen=True)
class Predicate:
    """Output `at` of the captured graph must be `seen`; Python reads it by `what` at a line."""

    at: int
    seen: np.ndarray
    what: str
    location: Location | None

    @property
    def key(self) -> bytes:
        """What two paths are told apart by: the first bytes, all of them for a number."""
        return self.seen.tobytes()[:8]

    @property
    def is_number(self) -> bool:
        """Whether it is one number of many (not a bool)."""
        return self.seen.size == 1 and self.seen.dtype.kind != "b"

    def adopted(self, value: bytes) -> Predicate | None:
        """This predicate with the number that compiled code computes, if it is as good as equal."""
        size = self.seen.dtype.itemsize
        if self.seen.size != 1 or self.seen.dtype.kind != "f" or size < 4:
            return None
        found = np.frombuffer(value[:size], self.seen.dtype).reshape(self.seen.shape)
        a, b = float(found.reshape(())), float(self.seen.reshape(()))
        if not abs(a - b) <= ULPS * float(np.finfo(self.seen.dtype).eps) * max(abs(a), abs(b)):
            return None
        return replace(self, seen=found.copy())

    def as_number(self, value: bytes) -> str:
        """Another value of the same type in words, given its first bytes."""
        if self.seen.size != 1:
            return "another value"
        found = np.frombuffer(value[: self.seen.dtype.itemsize], self.seen.dtype)
        return str(found.tolist()[0])

    @property
    def place(self) -> str:
        """The line and how it reads."""
        return f"{self.location}: {self.location.text}: {self.what}" if self.location else self.what

    @property
    def shown(self) -> str:
        """The value in words."""
        return str(self.seen.tolist()) if self.seen.size <= 8 else f"{self.seen.size} values"

    def __str__(self) -> str:
        return f"{self.place} saw {self.shown}"


def in_words(predicates: Sequence[Predicate]) -> list[str]:
    """A line for each place that reads, with what it saw: `demo.py:5: if x: bool saw True (9 times)`."""
    lines = []
    for place, reads in itertools.groupby(predicates, lambda p: p.place):
        seen = []
        for shown, same in itertools.groupby(p.shown for p in reads):
            times = len(list(same))
            seen.append(shown if times == 1 else f"{shown} ({times} times)")
        more = f", and {len(seen) - 8} more" if len(seen) > 8 else ""
        lines.append(f"{place} saw {', '.join(seen[:8])}{more}")
    return lines
