"""The version counter that all tensors over the same memory share.

Every in-place write bumps it and leaves a `Change`, so that a backward pass that finds a saved
value overwritten can say by whom. Whoever must see the memory as it was before a write, adds a
function to `before_write`; empty, the usual case, it costs a write one truth test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tracegrad.ir.errors import GradientError
from tracegrad.ir.location import Location, here
from tracegrad.tracer.state import state

_KEPT = 8


class Change(NamedTuple):
    """One in-place write: the version it made, the operation, and the user's line."""

    version: int
    name: str
    location: Location | None


before_write: list[Callable[[Storage], None]] = []
"""Called, while there are any, with the storage that is about to be written to."""


def announce(storage: Storage) -> None:
    """Tell those in `before_write` that `storage` is about to be written to."""
    for tell in tuple(before_write):
        tell(storage)


class Storage:
    """Version counter of one piece of memory, with the last few changes."""

    __slots__ = ("version", "changes", "of")

    inference = False

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


# ---- inference mode -----------------------------------------------------------------------------

inferring: list[object] = []
"""One entry per open `inference_mode()` block of any thread; empty, the usual case, it costs a new
tensor one truth test."""


class InferenceStorage(Storage):
    """Memory of tensors made in inference mode: nothing counts the writes to it.

    Raises:
        GradientError: its version is read, as saving a tensor for the backward does.
    """

    __slots__ = ()
    inference = True

    def __init__(self, of: Storage | None = None) -> None:
        self.changes = ()
        self.of = of

    @property
    def version(self) -> Any:  # type: ignore[override]
        """There is none; only what would save the tensor for a backward asks."""
        raise GradientError(
            "Inference tensors cannot be saved for backward. Please do not use Tensors created in "
            "inference mode in computation tracked by autograd. To work around this, you can make "
            "a clone to get a normal tensor and use it in autograd, or use `torch.no_grad()` "
            "instead of `torch.inference_mode()`."
        )

    def bump(self, name: str) -> None:
        """Nothing: see `inplace.check_layout`, which refuses writes outside inference mode."""


def new_storage() -> Storage:
    """The storage of a new tensor's memory: in inference mode, one that counts no writes."""
    return InferenceStorage() if inferring and state.inference else Storage()
