"""The memory of a translation unit in words: each buffer, how long it lives, and where it comes from.

Start reading at `MemoryPlan`.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from tracegrad.codegen.plan import Slot
from tracegrad.codegen.unit import UnitPlan


@dataclass(frozen=True)
class PlannedBuffer:
    """One buffer of a unit.

    Attributes:
        name: in the generated C.
        kind: "input", "output", "residual" (kept for the backward), "in place" (an output that is
            written where an input lies), "temporary", or "scratch" (what one kernel needs while it runs).
        nbytes: its size.
        type: dtype and shape, "" of scratch memory.
        offset: of temporaries and scratch, in the arena; None of others.
        first, last: numbers of the kernels between which it lives; -1 is before the first kernel.
        user_name: the variable of the user's that it is, or "".
        line: the Python line that computes it, or "".
    """

    name: str
    kind: str
    nbytes: int
    type: str
    offset: int | None
    first: int
    last: int
    user_name: str
    line: str


@dataclass(frozen=True)
class MemoryPlan:
    """The buffers of one pass of a trace; prints as a table.

    Attributes:
        title: which pass of which function.
        buffers: inputs, outputs, then temporaries by their place.
        arena_bytes: the size of the arena: the temporaries that live at the same time.
        side_by_side: what the temporaries would take without sharing.
        kernels: how many there are.
    """

    title: str
    buffers: tuple[PlannedBuffer, ...]
    arena_bytes: int
    side_by_side: int
    kernels: int

    @property
    def residual_bytes(self) -> int:
        """What the pass keeps for the backward beside inputs and results."""
        return sum(b.nbytes for b in self.buffers if b.kind == "residual")

    def __str__(self) -> str:
        rows = [("buffer", "kind", "bytes", "arena", "kernels", "holds")]
        for b in self.buffers:
            alive = "" if b.first < 0 and b.last < 0 else f"{max(b.first, 0)} to {b.last}"
            holds = " ".join(
                part for part in (b.user_name, b.type, b.line and f"at {b.line}") if part
            )
            place = "" if b.offset is None else f"{b.offset:,}"
            rows.append((b.name, b.kind, f"{b.nbytes:,}", place, alive, holds))
        widths = [max(len(row[k]) for row in rows) for k in range(5)]
        right = (2, 3)
        lines = [
            "  ".join(
                cell.rjust(w) if k in right else cell.ljust(w)
                for k, (cell, w) in enumerate(zip(row, (*widths, 0), strict=True))
            ).rstrip()
            for row in rows
        ]
        kept = self.residual_bytes
        after = f"; {kept:,} bytes are kept for the backward" if kept else ""
        head = (
            f"{self.title}: {self.kernels} kernel(s); arena of {self.arena_bytes:,} bytes, "
            f"{self.side_by_side:,} side by side{after}"
        )
        return "\n".join([head, *(f"  {line}" for line in lines)])


class MemoryPlans(tuple[MemoryPlan, ...]):
    """The plans of all passes of a trace; prints as their tables, one below the other."""

    __slots__ = ()

    def __str__(self) -> str:
        return "\n\n".join(map(str, self))

    __repr__ = __str__


def memory_plan(title: str, unit: UnitPlan, residuals: Container[int] = ()) -> MemoryPlan:
    """The plan of a unit's memory.

    Args:
        title: which pass it is.
        residuals: numbers of the outputs that are kept for the backward.
    """
    order = {"input": 0, "output": 1, "arena": 2}
    slots = sorted(unit.slots, key=lambda s: (order[s.kind], s.position, s.first))
    buffers = tuple(_buffer(s, unit, residuals) for s in slots)
    arena, apart = int(unit.arena_bytes), int(unit.temporaries)
    return MemoryPlan(title, buffers, arena, apart, len(unit.kernels))


def _buffer(s: Slot, unit: UnitPlan, residuals: Container[int]) -> PlannedBuffer:
    kind, name, offset = s.kind, s.name, None
    if kind == "arena":
        kind, offset = ("scratch" if s.value is None else "temporary"), int(s.position)
    elif kind == "output" and s.position in unit.inplace:
        kind, name = "in place", f"in_{unit.inplace[s.position]}"
    elif kind == "output" and s.position in residuals:
        kind = "residual"
    return PlannedBuffer(
        name, kind, int(s.nbytes), "" if s.value is None else str(s.value.type), offset, s.first, s.last,
        "" if s.value is None else s.value.name, "" if s.location is None else str(s.location),
    )  # fmt: skip
