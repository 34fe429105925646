"""From chains to guards: walk what a code object reads through the objects that are there.

`Reads.resolve` follows a chain from its root and notes every place on the way
(`tracegrad.tracer.reads_places`). Start reading there.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracegrad.ir.location import Location
from tracegrad.tracer.bytecode_chains import Chain
from tracegrad.tracer.epoch import Epoch
from tracegrad.tracer.guard_text import MISSING, Names, is_atom, kind_of, same
from tracegrad.tracer.guards import describe
from tracegrad.tracer.modules import is_user_class, is_user_code, is_user_module
from tracegrad.tracer.reads_objects import (
    CONTAINERS,
    UNCHANGING,
    elements,
    has_python_get,
    is_data,
    is_random_module,
    lookup,
    own_attributes,
    visible,
)
from tracegrad.tracer.reads_places import LARGEST, Places
from tracegrad.tracer.tensor import Tensor

_STOP: Any = object()


@dataclass
class Value:
    """A value on the way along a chain, and how the user would write it."""

    value: Any
    name: str
    certain: bool = True  # False after "any element": not every step needs to exist


class Reads(Places):
    """All places looked at in one run, and the way to them."""

    def read_attribute(
        self, holder: Any, name: str, key: str, location: Location | None
    ) -> list[tuple[Any, str]]:
        """Guard one attribute; its value and how it is written, where there is one."""
        return [(v.value, v.name) for v in self._attribute(Value(holder, name), key, location)]

    # ---- chains ---------------------------------------------------------------------------------

    def resolve(self, root: Value, chain: Chain, location: Location | None) -> list[Value]:
        """The values at the end of a chain that starts at `root`; guards every place on the way."""
        values = [root]
        for kind, key in chain[1:]:
            following: list[Value] = []
            for value in values:
                following.extend(self._step(value, kind, key, location))
            values = following[:LARGEST]
        return values

    def _step(self, at: Value, kind: str, key: Any, location: Location | None) -> Iterator[Value]:
        if kind == "attr":
            yield from self._attribute(at, key, location)
        elif kind == "item":
            yield from self._item(at, key, location)
        elif kind == "type":
            yield Value(type(at.value), f"type({at.name})", at.certain)
        elif isinstance(at.value, CONTAINERS) and len(at.value) <= LARGEST:
            for element, label in elements(at.value, at.name):
                yield Value(element, label, False)
        elif isinstance(at.value, Epoch):
            for i, part in enumerate(at.value._epoch_parts()):
                yield Value(part, f"{at.name}[{i}]", False)

    def _attribute(self, at: Value, key: str, location: Location | None) -> Iterator[Value]:
        holder = at.value
        if isinstance(holder, Tensor) or is_atom(holder):
            method = lookup(type(holder), key)[1]
            if callable(method):
                yield Value(method, f"{at.name}.{key}", at.certain)
            elif method is MISSING and own_attributes(holder) is not None:
                yield from self._own_attribute(at, key, location)
            return
        if isinstance(holder, types.ModuleType):
            found = self._module_attribute(at, key, location)
        elif isinstance(holder, type):
            found = self._class_attribute(at, key, location)
        elif isinstance(holder, Epoch) or self._guardable(holder):
            found = self._object_attribute(at, key, location)
        else:
            return
        if found is not _STOP and found is not MISSING:
            yield Value(found, f"{at.name}.{key}", at.certain)

    def of_parameter(self, tensor: Tensor, key: str) -> None:
        """Guard an attribute that is the user's own, if the class has none of that name."""
        if lookup(type(tensor), key)[1] is MISSING:
            at = Value(tensor, self.name_of(tensor))
            for _ in self._own_attribute(at, key, None):
                pass

    def _own_attribute(self, at: Value, key: str, location: Location | None) -> Iterator[Value]:
        """What the user has put on a parameter: there, or not there, as at the capture."""
        holder, name = at.value, f"{at.name}.{key}"
        value = (own_attributes(holder) or {}).get(key, MISSING)
        if id(holder) in self.keyed:  # another call may bring another one
            self.problem(
                name, location, "it is an attribute of a tensor among the arguments",
                "Pass its value as an argument of its own",
            )  # fmt: skip
        elif self.external(holder):
            self._slot(holder, key, value, name, "attribute", location)
            if value is not MISSING:
                yield Value(value, name, at.certain)

    def _module_attribute(self, at: Value, key: str, location: Location | None) -> Any:
        module, name = at.value, f"{at.name}.{key}"
        users = is_user_module(module)
        value = vars(module).get(key, MISSING)
        if value is MISSING and not users:
            value = getattr(module, key, MISSING)  # lazily loaded submodules
            if value is not MISSING and key not in vars(module):
                self._library_slot(module, key, MISSING, name, location)
                return value
        if value is MISSING:
            return value
        if is_random_module(module) and not isinstance(value, type):
            self.side_effect(f"{module.__name__}.{key}", location)
            return _STOP
        if users or self._is_looked_into(value):
            self._slot(module, key, value, name, "global", location)
        else:
            self._library_slot(module, key, value, name, location)
        return value

    def _is_looked_into(self, value: Any) -> bool:
        """Whether what a library's module holds has a state of its own, or is the user's."""
        if isinstance(value, (Tensor, Epoch, np.ndarray, *CONTAINERS)):
            return True
        if isinstance(value, types.FunctionType):
            return is_user_code(value.__code__)
        return not isinstance(value, UNCHANGING) and not is_atom(value) and visible(type(value))

    def _library_slot(
        self, module: Any, key: str, value: Any, name: str, location: Location | None
    ) -> None:
        """Guard a function, class or constant of a library, which someone may replace."""

        def at(names: Names) -> str:
            return f"{names(module)}.{key}"

        def text(names: Names) -> str:
            if value is MISSING:
                return f"{key!r} not in {names(module)}.__dict__"
            return (
                same(at(names), value, names)
                if is_atom(value)
                else f"{at(names)} is {names(value)}"
            )

        self._add(
            (id(module), "attr", key), name, kind_of(value), f"global {name} changed", location,
            text, at, "absent" if value is MISSING else describe(value), module,
        )  # fmt: skip

    def _class_attribute(self, at: Value, key: str, location: Location | None) -> Any:
        cls, name = at.value, f"{at.name}.{key}"
        owner, raw = lookup(cls, key)
        if raw is MISSING or owner is None or not is_user_class(owner):
            return _STOP if raw is MISSING else raw
        if isinstance(raw, (staticmethod, classmethod)):
            self.class_slot(cls, key, raw, name, location)
            self.seen(raw.__func__, name, location)
            return getattr(cls, key)
        if isinstance(raw, property) or has_python_get(raw):
            self.class_slot(cls, key, raw, name, location)
            return _STOP
        self._slot(cls, key, raw, name, "attribute", location)
        return raw

    def _object_attribute(self, at: Value, key: str, location: Location | None) -> Any:
        holder, name = at.value, f"{at.name}.{key}"
        owner, raw = lookup(type(holder), key)
        users = owner is not None and is_user_class(owner)
        if isinstance(raw, property) or (
            raw is not MISSING and is_data(raw) and has_python_get(raw)
        ):
            if users:
                self.class_slot(type(holder), key, raw, name, location)
            return _STOP
        own = own_attributes(holder)
        if own is not None and key in own:
            value = own[key]
        elif raw is MISSING:
            return self._absent_attribute(at, key, location)
        elif isinstance(raw, functools.cached_property):
            return self._absent_attribute(at, key, location, lazy=True)
        elif is_data(raw):  # a slot
            value = getattr(holder, key, MISSING)
        else:
            return self._method(at, key, raw, users, location)
        if isinstance(holder, Epoch):
            if self.external(holder):
                self.seen(value, name, location)
            return value
        if self.external(holder):
            self._slot(holder, key, value, name, "attribute", location)
        return value

    def _method(self, at: Value, key: str, raw: Any, users: bool, location: Location | None) -> Any:
        """An attribute found on the class."""
        holder, name = at.value, f"{at.name}.{key}"
        if has_python_get(raw):
            if users:
                self.class_slot(type(holder), key, raw, name, location)
            return _STOP
        value = getattr(holder, key)
        if users and self.external(holder):
            self._slot(holder, key, value, name, "attribute", location)
        elif users:  # made in this run: its class is from outside
            self.class_slot(type(holder), key, raw, f"{type(holder).__name__}.{key}", location)
        return value

    def _absent_attribute(
        self, at: Value, key: str, location: Location | None, lazy: bool = False
    ) -> Any:
        holder, name = at.value, f"{at.name}.{key}"
        _, dynamic = lookup(type(holder), "__getattr__")
        if isinstance(dynamic, types.FunctionType):
            if is_user_code(dynamic.__code__):
                return _STOP  # its own reads are seen when it runs
            value = getattr(holder, key, MISSING)
            if value is not MISSING:
                if self.external(holder):
                    self.seen(value, name, location)
                return value
        if (at.certain or lazy) and self.external(holder) and not isinstance(holder, Epoch):
            if own_attributes(holder) is not None:
                self._slot(holder, key, MISSING, name, "attribute", location)
        return _STOP

    def _slot(
        self, holder: Any, key: str, value: Any, name: str, what: str, location: Location | None
    ) -> None:
        if isinstance(value, types.BuiltinMethodType) and not isinstance(holder, types.ModuleType):
            self.seen(value, name, location)
            return  # a method of a built-in class, bound anew each time
        if isinstance(value, types.MethodWrapperType):
            return
        self.place(
            holder, ("attr", key), lambda names: f"{names(holder)}.{key}", value, name, what,
            location, lambda names: f"{key!r} not in {names(holder)}.__dict__",
        )  # fmt: skip

    def class_slot(
        self, cls: type, key: str, raw: Any, name: str, location: Location | None
    ) -> None:
        """Guard what a class holds under a name, without running its `__get__`."""
        owner, _ = lookup(cls, key)
        if raw is not MISSING and owner is not None:
            direct = isinstance(raw, types.FunctionType)
            written = f".{key}" if direct else f".__dict__[{key!r}]"
            self.place(
                owner, ("raw", key), lambda names: names(owner) + written, raw, name, "attribute",
                location,
            )  # fmt: skip

    def _item(self, at: Value, key: Any, location: Location | None) -> Iterator[Value]:
        holder, name = at.value, f"{at.name}[{key!r}]"
        if isinstance(holder, Epoch) or not isinstance(
            holder, (dict, list, tuple, types.MappingProxyType)
        ):
            getter = lookup(type(holder), "__getitem__")[1]
            if isinstance(holder, Epoch) and isinstance(getter, types.FunctionType):
                if not is_user_code(getter.__code__):
                    yield Value(holder[key], name, at.certain)  # type: ignore[index]
            elif isinstance(holder, CONTAINERS):
                self.contents(holder, at.name, location)
            return
        if isinstance(lookup(type(holder), "__getitem__")[1], types.FunctionType):
            return
        try:
            value = holder[key]
        except (KeyError, IndexError, TypeError):
            self.contents(holder, at.name, location)
            return
        if isinstance(holder, dict) and key not in holder:  # defaultdict: it was just made
            return
        if self.external(holder) and not isinstance(holder, tuple):
            shown = key if type(key) in (str, int) else None
            self.place(
                holder, ("item", type(key), key),
                lambda names: f"{names(holder)}[{shown!r}]" if shown is not None
                else f"{names(holder)}[{names(key)}]",
                value, name, f"{type(holder).__name__} item", location,
            )  # fmt: skip
        yield Value(value, name, at.certain)
