"""Arguments and results as flat lists of leaves.

Containers are tuples (named ones too), lists, dicts and dataclasses; everything else is a leaf. A
`Structure` remembers the containers and is hashable, so it can be part of a key. Start reading at
`flatten`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic

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
        if self.kind is dict:
            return dict(zip(self.keys, values, strict=True))
        if self.kind is tuple or self.kind is list:
            return self.kind(values)
        if issubclass(self.kind, tuple):
            return self.kind(*values) if hasattr(self.kind, "_fields") else self.kind(values)
        made = object.__new__(self.kind)  # not `__init__`, which may do more
        for key, value in zip(self.keys, values, strict=True):
            object.__setattr__(made, key, value)
        return made

    def names(self, prefix: str) -> Iterator[str]:
        """How each leaf would be written, given the name of the whole."""
        if self.kind is None:
            yield prefix
        record = self.kind is not None and is_record(self.kind)
        for i, part in enumerate(self.parts):
            if record:
                yield from part.names(f"{prefix}.{self.keys[i]}")
                continue
            yield from part.names(f"{prefix}[{self.keys[i] if self.keys else i!r}]")


LEAF = Structure(None)


def is_sequence(kind: type) -> bool:
    """Whether objects of a type are taken apart: tuples, named ones and shapes too, and lists."""
    return kind is tuple or kind is list or kind is Size or (
        issubclass(kind, tuple) and hasattr(kind, "_fields")
    )  # fmt: skip


def is_record(kind: type) -> bool:
    """Whether objects of a type are taken apart by the names of their fields: plain dataclasses."""
    return dataclasses.is_dataclass(kind) and all(
        base in (object, Generic) or is_record(base) for base in kind.__bases__
    )


def fields(record: Any) -> dict[str, Any]:
    """The fields of a record that have a value."""
    listed = (f.name for f in dataclasses.fields(record))
    return {name: getattr(record, name) for name in listed if hasattr(record, name)}


def leaves_of(tree: Any) -> list[Any]:
    """The leaves of `tree` alone."""
    leaves: list[Any] = []
    flatten(tree, leaves)
    return leaves


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
    if is_record(kind):
        named = fields(tree)
        return Structure(kind, tuple(named), tuple(flatten(x, leaves) for x in named.values()))
    leaves.append(tree)
    return LEAF
