"""`Epoch`: objects that count their own mutations, so that a guard is one integer comparison.

`nn.Module` derives from it: every attribute write, hook registration and `train()`/`eval()` bumps
`_epoch`. A compiled function that read the object compares the number instead of each attribute.
"""

from __future__ import annotations

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

    def _epoch_parts(self) -> list[Epoch]:
        """Counting objects inside this one (submodules), not their parts in turn."""
        return []

    def _epoch_tensors(self) -> list[Any]:
        """Tensors held directly by this object (parameters and buffers)."""
        return []
