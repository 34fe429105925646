"""What a module keeps by name: dictionaries that tell their module of every change.

A compiled function that used a module compares one number, the module's epoch, instead of each
weight and hook; so whatever changes here bumps it. Start reading at `Registry`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracegrad.nn.module import Module


class Registry(dict[Any, Any]):
    """A dictionary that belongs to a module and bumps the module's epoch when it changes.

    The module is referred to weakly, so that modules are freed as soon as nobody uses them.
    """

    __slots__ = ("_owner",)
    _owner: weakref.ref[Module]

    def __init__(self, owner: Module | None = None, items: Any = ()) -> None:
        super().__init__(items)
        if owner is not None:
            self._owner = weakref.ref(owner)

    def __reduce__(self) -> tuple[Any, ...]:
        # The copy of the module gives its dictionaries their new owner (`Module.__setstate__`).
        return (Registry, (), None, None, iter(self.items()))

    def _changed(self) -> None:
        owner = self._owner() if hasattr(self, "_owner") else None
        if owner is not None:
            owner._bump()

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        self._changed()

    def __delitem__(self, key: Any) -> None:
        super().__delitem__(key)
        self._changed()

    def pop(self, key: Any, *default: Any) -> Any:
        """As `dict.pop`."""
        value = super().pop(key, *default)
        self._changed()
        return value

    def popitem(self) -> tuple[Any, Any]:
        """As `dict.popitem`."""
        item = super().popitem()
        self._changed()
        return item

    def clear(self) -> None:
        """As `dict.clear`."""
        super().clear()
        self._changed()

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """As `dict.setdefault`."""
        value = super().setdefault(key, default)
        self._changed()
        return value

    def update(self, *args: Any, **kwargs: Any) -> None:
        """As `dict.update`."""
        super().update(*args, **kwargs)
        self._changed()

    def __ior__(self, other: Any) -> Registry:  # type: ignore[misc]
        self.update(other)
        return self

    def put_first(self, key: Any, value: Any) -> None:
        """Insert an item before all others."""
        rest: Iterable[tuple[Any, Any]] = list(self.items())
        super().clear()
        super().__setitem__(key, value)
        super().update(rest)
        self._changed()


class RemovableHandle:
    """What registering a hook returns: `remove()` takes the hook away; also a context manager."""

    def __init__(self, registry: Registry, hook: Any, prepend: bool = False) -> None:
        self._registry = registry
        if prepend:
            registry.put_first(self, hook)
        else:
            registry[self] = hook

    def remove(self) -> None:
        """Take the hook away; a second call does nothing."""
        if self in self._registry:
            del self._registry[self]

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()
