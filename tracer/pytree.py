"""Arguments and results as flat lists of leaves.

Containers are tuples (named ones too), lists and dicts; everything else is a leaf. A `Structure`
remembers the containers and is hashable, so it can be part of a key. Start reading at `flatten`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tracegrad.tracer.device import Size


@dataclass(frozen=True)
class Structure:
    """How leaves are nested: `kind` is the container's type, or None for a leaf."""

    kind: type | None
    keys: tuple[Any, ...] = ()
    parts: tuple[Structure, ...] = ()

    def build(self, leaves: Iterator[Any]) -> Any:
        """Put leaves back into containers."""
        if self.kind is None:
            return next(leaves)
        values = [p.build(leaves) for p in self.parts]
        if self.keys:
            return self.kind(zip(self.keys, values, strict=True))
        if issubclass(self.kind, tuple) and hasattr(self.kind, "_fields"):
            return self.kind(*values)
        return self.kind(values)

    def names(self, prefix: str) -> Iterator[str]:
        """How each leaf would be written, given the name of the whole."""
        if self.kind is None:
            yield prefix
        for i, part in enumerate(self.parts):
            yield from part.names(f"{prefix}[{self.keys[i] if self.keys else i!r}]")


LEAF = Structure(None)


def is_sequence(kind: type) -> bool:
    """Whether objects of a type are taken apart: tuples, named ones and shapes too, and lists."""
    return kind is tuple or kind is list or kind is Size or (
        issubclass(kind, tuple) and hasattr(kind, "_fields")
    )  # fmt: skip


def flatten(tree: Any, leaves: list[Any]) -> Structure:
    """Append the leaves of `tree` to `leaves`; returns the structure.

    Example:
        >>> leaves = []
        >>> structure = flatten((1, [2, {"a": 3}]), leaves)
        >>> leaves, structure.build(iter(leaves))
        ([1, 2, 3], (1, [2, {'a': 3}]))
    """
    kind = type(tree)
    if is_sequence(kind):
        return Structure(kind, (), tuple(flatten(x, leaves) for x in tree))
    if kind is dict:
        return Structure(kind, tuple(tree), tuple(flatten(x, leaves) for x in tree.values()))
    leaves.append(tree)
    return LEAF
