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
        self.note(name, here())

    def note(self, name: str, location: Location | None) -> None:
        """As `bump`, for a write at a known line."""
        self.version += 1
        self.changes = (*self.changes[1 - _KEPT :], Change(self.version, name, location))

    def change_after(self, version: int) -> Change | None:
        """The earliest kept change that came after `version`."""
        return next((c for c in self.changes if c.version > version), None)


# ---- storages that know where they were made ----------------------------------------------------

marking: list[object] = []
"""One entry per open `inference_mode()` block and per open transform that differentiates, of any
thread; empty, the usual case, it costs a new tensor one truth test."""


class Transform:
    """One open `func.grad`, `vjp`, `jvp` ...: it may write to what was made inside, as in PyTorch.

    Attributes:
        outer: the transform around it, or None.
        open: whether it still runs; what it has made belongs to `outer` afterwards.
        inputs: the tensors that it differentiates by, made anew over the memory of the arguments.
        others: the memory of its other arguments, which may be written to.
    """

    __slots__ = ("outer", "open", "inputs", "others")

    def __init__(self, outer: Transform | None) -> None:
        self.outer = outer
        self.open = True
        self.inputs: tuple[Any, ...] = ()
        self.others: tuple[Storage, ...] = ()


class MarkedStorage(Storage):
    """Memory that was made inside a transform."""

    __slots__ = ("made_in",)

    def __init__(self, of: Storage | None = None) -> None:
        super().__init__(of)
        self.made_in = state.transform


def made_in(storage: Storage) -> Transform | None:
    """The open transform that the memory belongs to; None: it was made outside of all."""
    found: Transform | None = getattr(storage.memory, "made_in", None)
    while found is not None and not found.open:
        found = found.outer
    return found


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

    def note(self, name: str, location: Location | None) -> None:
        """Nothing, as `bump`."""


def new_storage() -> Storage:
    """The storage of a new tensor's memory: in inference mode, one that counts no writes."""
    if state.inference:
        return InferenceStorage()
    return Storage() if state.transform is None else MarkedStorage()
