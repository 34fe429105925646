"""The version counter that all tensors over the same memory share.

Every in-place write bumps it and leaves a `Change`, so that a backward pass that finds a saved
value overwritten can say by whom.
"""

from __future__ import annotations

from typing import NamedTuple

from tracegrad.ir.location import Location, here

_KEPT = 8


class Change(NamedTuple):
    """One in-place write: the version it made, the operation, and the user's line."""

    version: int
    name: str
    location: Location | None


class Storage:
    """Version counter of one piece of memory, with the last few changes."""

    __slots__ = ("version", "changes", "of")

    def __init__(self, of: Storage | None = None) -> None:
        self.version = 0
        self.changes: tuple[Change, ...] = ()
        self.of = of  # the storage whose memory it has, with another counter

    @property
    def memory(self) -> Storage:
        """A token shared by all storages over the same memory: `x.data` has a version counter of
        its own, as in PyTorch, but the memory of `x`.
        """
        return self if self.of is None else self.of

    def bump(self, name: str) -> None:
        """Note that operation `name` wrote to the memory."""
        self.version += 1
        self.changes = (*self.changes[1 - _KEPT :], Change(self.version, name, here()))

    def change_after(self, version: int) -> Change | None:
        """The earliest kept change that came after `version`."""
        return next((c for c in self.changes if c.version > version), None)
