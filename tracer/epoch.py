"""`Epoch`: objects that count their own mutations, so that a guard is one integer comparison.

`nn.Module` derives from it: every attribute write, hook registration and `train()`/`eval()` bumps
`_epoch`. A compiled function that read the object compares the number instead of each attribute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Epoch:
    """Base of objects that count mutations.

    Subclasses that change in ways other than attribute writes (dictionaries of parameters, hooks)
    call `_bump()` themselves, and yield in `_epoch_parts()` the objects inside them that count on
    their own.
    """

    _epoch: int = 0

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        self._bump()

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        self._bump()

    def _bump(self) -> None:
        """Note a mutation."""
        object.__setattr__(self, "_epoch", self._epoch + 1)

    def _epoch_state(self) -> list[tuple[Any, Any]]:
        """Names and values of all that is counted."""
        return [(k, v) for k, v in vars(self).items() if k != "_epoch"]

    def _epoch_parts(self) -> list[Epoch]:
        """Counting objects inside this one (submodules), not their parts in turn."""
        return []

    def _epoch_tensors(self) -> list[Any]:
        """Tensors held directly by this object (parameters and buffers)."""
        return []


class Counts:
    """The counters of some objects, and what these hold while the counters stand so.

    Where a counter has moved on, `again` looks whether the object holds the same again, as a module
    does after `eval()` and `train()`.
    """

    def __init__(self, parts: Sequence[Epoch]) -> None:
        self.seen = [part._epoch for part in parts]
        self._parts = tuple(parts)
        self._states = [part._epoch_state() for part in parts]

    def again(self) -> bool:
        """Whether every object holds what it held; counts from here on then."""
        now = [part._epoch for part in self._parts]
        for k, part in enumerate(self._parts):
            if now[k] != self.seen[k] and not _equal(part._epoch_state(), self._states[k]):
                return False
        self.seen = now
        return True


def _equal(a: list[tuple[Any, Any]], b: list[tuple[Any, Any]]) -> bool:
    """Whether two states have the same objects, numbers and texts under the same names."""
    return len(a) == len(b) and all(
        k == j and (v is w or (type(v) is type(w) and _same_value(v, w)))
        for (k, v), (j, w) in zip(a, b, strict=True)
    )


def _same_value(v: Any, w: Any) -> bool:
    return v.hex() == w.hex() if type(v) is float else type(v) in (int, bool, str) and v == w
