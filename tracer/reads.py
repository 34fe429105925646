"""From chains to guards: walk what a code object reads through the objects that are there.

`Reads` keeps every place looked at once (a dictionary key, an attribute, a cell, the elements of a
container) with its value at first sight; each becomes a guard relative to the object that holds it,
so a chain of places is sound link by link. Start reading at `Reads.resolve`, then `Reads.place`.
"""

from __future__ import annotations

import enum
import functools
import inspect
import re
import types
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tracegrad.ir.location import Location
from tracegrad.tracer.bytecode import Chain
from tracegrad.tracer.epoch import Epoch
from tracegrad.tracer.guard_text import (
    MISSING,
    Names,
    is_atom,
    kind_of,
    same,
    same_contents,
    same_epoch,
)  # fmt: skip
from tracegrad.tracer.guards import Guard, Problem, SideEffect, describe
from tracegrad.tracer.modules import is_user_class, is_user_code, is_user_module
from tracegrad.tracer.tensor import Tensor

_LARGEST, _DEEPEST, _MOST = 256, 4, 512
CONTAINERS = (list, dict, set, tuple, frozenset, deque, bytearray, types.MappingProxyType)
_UNCHANGING = (
    type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType,
    types.MethodWrapperType, types.WrapperDescriptorType, types.MethodDescriptorType,
    types.ClassMethodDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType,
    types.GenericAlias, types.CodeType, re.Pattern, np.ufunc, np.dtype, property, staticmethod,
    classmethod, functools.partial, functools.cached_property, enum.EnumMeta,
)  # fmt: skip
_METHODS = (
    types.FunctionType, property, staticmethod, classmethod, functools.cached_property,
    types.MemberDescriptorType, types.GetSetDescriptorType,
)  # fmt: skip
_STOP: Any = object()


@dataclass
class Place:
    """A guard in the making: what was seen, and what to say if the run itself changed it."""

    guard: Guard
    what: str
    exported: bool
    holder: Any
    stored: Location | None = None


@dataclass
class Value:
    """A value on the way along a chain, and how the user would write it."""

    value: Any
    name: str
    certain: bool = True  # False after "any element": not every step needs to exist


@dataclass
class Reads:
    """All places looked at in one run.

    Args:
        existed: whether an object was there before the run.
        keyed: ids of the containers among the arguments, which the caller of the function keys.
    """

    existed: Callable[[Any], bool]
    keyed: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.places: dict[tuple[Any, ...], Place] = {}
        self.problems: dict[str, Problem] = {}
        self.side_effects: dict[SideEffect, None] = {}
        self.tensors: dict[int, Tensor] = {}
        self._known: dict[int, Any] = {}
        self._names: dict[int, str] = {}  # of values from outside, which are kept alive
        self._epochs: set[int] = set()
        self._looked: dict[tuple[int, str], Any] = {}
        self._count = 0

    # ---- bookkeeping ----------------------------------------------------------------------------

    def external(self, value: Any) -> bool:
        """Whether `value` comes from outside the run."""
        return id(value) in self._known or self.existed(value)

    def know(self, value: Any) -> None:
        """Note that `value` comes from outside (and keep it, so its id stays its own)."""
        self._known[id(value)] = value

    def name_of(self, value: Any) -> str:
        """How the user first wrote `value`, or its class."""
        return self._names.get(id(value), type(value).__name__)

    def problem(self, name: str, location: Location | None, reason: str, remedy: str) -> None:
        """Note something that cannot be guarded, once per name."""
        self.problems.setdefault(name, Problem(name, location, reason, remedy))

    def side_effect(self, what: str, location: Location | None) -> None:
        """Note something that a replay would lose."""
        self.side_effects.setdefault(SideEffect(what, location))

    def _add(
        self, key: tuple[Any, ...], name: str, kind: str, what: str, location: Location | None,
        text: Callable[[Names], str], current: Callable[[Names], str], expected: str,
        holder: Any = None,
    ) -> None:  # fmt: skip
        if key in self.places:
            return
        names = Names(len(self.places))
        guard = Guard(
            name, text(names), names.bindings, location, kind, expected, current(names)
        )  # the bindings are shared: `current` adds its own
        exported = holder is None or id(holder) not in self.keyed
        self.places[key] = Place(guard, what, exported, holder)

    # ---- places ---------------------------------------------------------------------------------

    def place(
        self, holder: Any, key: tuple[Any, ...], at: Callable[[Names], str], value: Any,
        name: str, what: str, location: Location | None,
        absent: Callable[[Names], str] | None = None,
    ) -> None:  # fmt: skip
        """Guard that the place written `at` keeps `value` (or stays empty: `absent`)."""

        def text(names: Names) -> str:
            if value is MISSING:
                assert absent is not None, "a place that may be empty says how to see it"
                return absent(names)
            return same(at(names), value, names)

        expected = "absent" if value is MISSING else describe(value)
        self._add(
            (id(holder), *key), name, kind_of(value), f"{what} {name} changed", location,
            text, at, expected, holder,
        )  # fmt: skip
        self.know(holder)
        if value is not MISSING:
            self.seen(value, name, location)

    def stored(self, chain_key: tuple[Any, ...], location: Location | None) -> None:
        """Remember the line that assigns to a place."""
        place = self.places.get(chain_key)
        if place is not None and place.stored is None:
            place.stored = location

    def seen(self, value: Any, name: str, location: Location | None) -> None:
        """What a value from outside needs by being what it is, wherever it was found."""
        if is_atom(value):
            return
        self.know(value)
        self._names.setdefault(id(value), name)
        if isinstance(value, Tensor):
            self.tensors[id(value)] = value
        elif isinstance(value, Epoch):
            self._epoch(value, name, location)
        elif isinstance(value, (tuple, frozenset)):
            for i, element in enumerate(value):
                self.seen(element, f"{name}[{i}]", location)
        elif isinstance(value, types.MethodType):
            self.seen(value.__self__, name.rpartition(".")[0] or name, location)
        elif isinstance(value, types.FunctionType):
            if value.__kwdefaults__ and is_user_code(value.__code__):
                self.know(value.__kwdefaults__)
                self.contents(value.__kwdefaults__, f"{name}.__kwdefaults__", location)
        elif isinstance(value, functools.partial):
            self._partial(value, name, location)
        elif not self._guardable(value):
            self._opaque(value, name, location)

    def _partial(self, value: functools.partial[Any], name: str, location: Location | None) -> None:
        self.seen(value.func, f"{name}.func", location)
        self.seen(value.args, f"{name}.args", location)
        if value.keywords:
            self.know(value.keywords)
            self.contents(value.keywords, f"{name}.keywords", location)

    def _guardable(self, value: Any) -> bool:
        if isinstance(value, (*CONTAINERS, *_UNCHANGING)) or is_atom(value):
            return True
        return _visible(type(value))

    def _opaque(self, value: Any, name: str, location: Location | None) -> None:
        kind = type(value)
        remedy = "Pass it to the function as an argument, or compute with tensors only"
        if isinstance(value, np.ndarray):
            remedy = "Make it a tensor with tracegrad.tensor(...) and pass it as an argument"
        shown = f"{kind.__module__}.{kind.__qualname__}"
        self.problem(name, location, f"the state of a {shown} cannot be seen", remedy)

    def _epoch(self, root: Epoch, name: str, location: Location | None) -> None:
        if id(root) in self._epochs:
            return
        parts: dict[int, Epoch] = {}
        work = [root]
        while work:
            part = work.pop()
            if id(part) not in parts:
                parts[id(part)] = part
                work.extend(reversed(part._epoch_parts()))
        for part in parts.values():
            self._epochs.add(id(part))
            self.know(part)
            for tensor in part._epoch_tensors():
                self.know(tensor)
                self.tensors[id(tensor)] = tensor
        listed = [*parts.values()]
        self._add(
            ("epoch", id(root)), name, "epoch", f"attribute of {name} changed", location,
            lambda names: same_epoch(listed, names),
            lambda names: "'changed %d times' % (" + " + ".join(
                f"{names(p)}._epoch" for p in listed
            ) + f" - {sum(p._epoch for p in listed)})",
            "unchanged", root,
        )  # fmt: skip

    # ---- elements -------------------------------------------------------------------------------

    def contents(self, value: Any, name: str, location: Location | None, depth: int = 0) -> None:
        """Guard the elements of a container, and of containers in it."""
        if not isinstance(value, CONTAINERS) or not self.external(value):
            return
        if isinstance(value, CONTAINERS) and len(value) > _LARGEST:
            kind = type(value).__name__
            self.problem(
                name, location, f"a {kind} of {len(value)} elements is too large to watch",
                "Pass it to the function as an argument, or make it a tensor",
            )  # fmt: skip
            return
        if depth > _DEEPEST:
            self.problem(name, location, "containers are nested too deeply to watch",
                         "Pass what is needed of it as an argument")  # fmt: skip
            return
        if not isinstance(value, (tuple, frozenset)):
            self._snapshot(value, name, location)
        for element, label in _elements(value, name):
            self.seen(element, label, location)
            self.contents(element, label, location, depth + 1)

    def _snapshot(self, value: Any, name: str, location: Location | None) -> None:
        kind = type(value).__name__
        self._add(
            (id(value), "contents"), name, "snapshot", f"{kind} {name} changed", location,
            lambda names: same_contents(names(value), value, names),
            lambda names: names(value), describe(value), value,
        )  # fmt: skip
        self.know(value)

    def deep(self, value: Any, name: str, location: Location | None, depth: int = 0) -> None:
        """Guard everything that can be reached from a value that went where nothing is seen."""
        if isinstance(value, types.ModuleType) and is_user_module(value) and depth == 0:
            self.problem(name, location, "any variable of this module may be read here",
                         "Name the variables that are meant: module.variable")  # fmt: skip
        if is_atom(value) or isinstance(value, (Tensor, *_UNCHANGING)):
            return
        if not self.external(value) or self._looked.get((id(value), "deep")) is not None:
            return
        self._looked[id(value), "deep"] = value
        self._count += 1
        if depth > _DEEPEST or self._count > _MOST:
            self.problem(name, location, "it reaches too many objects to watch",
                         "Pass what is needed of it as an argument")  # fmt: skip
            return
        self.seen(value, name, location)
        if isinstance(value, CONTAINERS):
            self.contents(value, name, location)
            for element, label in _elements(value, name):
                self.deep(element, label, location, depth + 1)
        if isinstance(value, Epoch):
            for part in value._epoch_parts():
                self.deep(part, name, location, depth)
            for key in _class_attributes(type(value)):
                list(self._attribute(Value(value, name), key, location))
            for key, element in vars(value).items():
                if not isinstance(element, (Epoch, Tensor)) and _is_users(value, key):
                    self.deep(element, f"{name}.{key}", location, depth + 1)
        elif _visible(type(value)) and type(value).__module__ != "logging":
            self._attributes(value, name, location, depth)

    def _attributes(self, value: Any, name: str, location: Location | None, depth: int) -> None:
        if hasattr(value, "__dict__"):
            keys = [*vars(value)]
            self._add(
                (id(value), "attributes"), name, "snapshot", f"attributes of {name} changed",
                location,
                lambda names: f"[*{names(value)}.__dict__] == {names(keys)}",
                lambda names: f"[*{names(value)}.__dict__]", describe(keys), value,
            )  # fmt: skip
        for key in [*_attribute_names(value), *_class_attributes(type(value))]:
            for found in self._attribute(Value(value, name), key, location):
                self.deep(found.value, found.name, location, depth + 1)

    # ---- chains ---------------------------------------------------------------------------------

    def resolve(self, root: Value, chain: Chain, location: Location | None) -> list[Value]:
        """The values at the end of a chain that starts at `root`; guards every place on the way."""
        values = [root]
        for kind, key in chain[1:]:
            following: list[Value] = []
            for value in values:
                following.extend(self._step(value, kind, key, location))
            values = following[:_LARGEST]
        return values

    def _step(self, at: Value, kind: str, key: Any, location: Location | None) -> Iterator[Value]:
        if kind == "attr":
            yield from self._attribute(at, key, location)
        elif kind == "item":
            yield from self._item(at, key, location)
        elif kind == "type":
            yield Value(type(at.value), f"type({at.name})", at.certain)
        elif isinstance(at.value, CONTAINERS) and len(at.value) <= _LARGEST:
            for element, label in _elements(at.value, at.name):
                yield Value(element, label, False)
        elif isinstance(at.value, Epoch):
            for i, part in enumerate(at.value._epoch_parts()):
                yield Value(part, f"{at.name}[{i}]", False)

    def _attribute(self, at: Value, key: str, location: Location | None) -> Iterator[Value]:
        holder = at.value
        if isinstance(holder, Tensor) or is_atom(holder):
            method = _lookup(type(holder), key)[1]
            if callable(method):
                yield Value(method, f"{at.name}.{key}", at.certain)
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

    def _module_attribute(self, at: Value, key: str, location: Location | None) -> Any:
        module, name = at.value, f"{at.name}.{key}"
        value = vars(module).get(key, MISSING)
        if value is MISSING:
            if not is_user_module(module):
                value = getattr(module, key, MISSING)  # lazily loaded submodules
            return value
        if _is_random_module(module) and not isinstance(value, type):
            self.side_effect(f"{module.__name__}.{key}", location)
            return _STOP
        changing = isinstance(value, CONTAINERS) or not isinstance(
            value, (*_UNCHANGING, Tensor, Epoch)
        )
        if is_user_module(module) or (changing and not is_atom(value) and _visible(type(value))):
            self._slot(module, key, value, name, "global", location)
        return value

    def _class_attribute(self, at: Value, key: str, location: Location | None) -> Any:
        cls, name = at.value, f"{at.name}.{key}"
        owner, raw = _lookup(cls, key)
        if raw is MISSING or owner is None or not is_user_class(owner):
            return _STOP if raw is MISSING else raw
        if isinstance(raw, (staticmethod, classmethod)):
            self._class_slot(cls, key, raw, name, location)
            self.seen(raw.__func__, name, location)
            return getattr(cls, key)
        if isinstance(raw, property) or _has_python_get(raw):
            self._class_slot(cls, key, raw, name, location)
            return _STOP
        self._slot(cls, key, raw, name, "attribute", location)
        return raw

    def _object_attribute(self, at: Value, key: str, location: Location | None) -> Any:
        holder, name = at.value, f"{at.name}.{key}"
        owner, raw = _lookup(type(holder), key)
        users = owner is not None and is_user_class(owner)
        if isinstance(raw, property) or (
            raw is not MISSING and _is_data(raw) and _has_python_get(raw)
        ):
            if users:
                self._class_slot(type(holder), key, raw, name, location)
            return _STOP
        own = _own_attributes(holder)
        if own is not None and key in own:
            value = own[key]
        elif raw is MISSING:
            return self._absent_attribute(at, key, location)
        elif isinstance(raw, functools.cached_property):
            return self._absent_attribute(at, key, location, lazy=True)
        elif _is_data(raw):  # a slot
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
        if _has_python_get(raw):
            if users:
                self._class_slot(type(holder), key, raw, name, location)
            return _STOP
        value = getattr(holder, key)
        if users and self.external(holder):
            self._slot(holder, key, value, name, "attribute", location)
        elif users:  # made in this run: its class is from outside
            self._class_slot(type(holder), key, raw, f"{type(holder).__name__}.{key}", location)
        return value

    def _absent_attribute(
        self, at: Value, key: str, location: Location | None, lazy: bool = False
    ) -> Any:
        holder, name = at.value, f"{at.name}.{key}"
        _, dynamic = _lookup(type(holder), "__getattr__")
        if isinstance(dynamic, types.FunctionType):
            if is_user_code(dynamic.__code__):
                return _STOP  # its own reads are seen when it runs
            value = getattr(holder, key, MISSING)
            if value is not MISSING:
                if self.external(holder):
                    self.seen(value, name, location)
                return value
        if (at.certain or lazy) and self.external(holder) and not isinstance(holder, Epoch):
            if _own_attributes(holder) is not None:
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

    def _class_slot(
        self, cls: type, key: str, raw: Any, name: str, location: Location | None
    ) -> None:
        """Guard what a class holds under a name, without running its `__get__`."""
        owner, _ = _lookup(cls, key)
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
            getter = _lookup(type(holder), "__getitem__")[1]
            if isinstance(holder, Epoch) and isinstance(getter, types.FunctionType):
                if not is_user_code(getter.__code__):
                    yield Value(holder[key], name, at.certain)  # type: ignore[index]
            elif isinstance(holder, CONTAINERS):
                self.contents(holder, at.name, location)
            return
        if isinstance(_lookup(type(holder), "__getitem__")[1], types.FunctionType):
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


# ---- looking at objects without running their code ---------------------------------------------


def _elements(value: Any, name: str) -> list[tuple[Any, str]]:
    if isinstance(value, (dict, types.MappingProxyType)):
        return [(v, f"{name}[{k!r}]" if is_atom(k) else f"{name}[...]") for k, v in value.items()]
    if isinstance(value, bytearray):
        return []
    return [(v, f"{name}[{i}]") for i, v in enumerate(value)]


def _lookup(cls: type, key: str) -> tuple[type | None, Any]:
    """The class of the MRO that holds `key`, and what it holds."""
    for owner in cls.__mro__:
        if key in owner.__dict__:
            return owner, owner.__dict__[key]
    return None, MISSING


def _own_attributes(holder: Any) -> dict[str, Any] | None:
    try:
        own = object.__getattribute__(holder, "__dict__")
    except AttributeError:
        return None
    return own if isinstance(own, dict) else None


def _attribute_names(value: Any) -> list[str]:
    names = [*(_own_attributes(value) or ())]
    for cls in type(value).__mro__:
        names += [
            k for k, v in cls.__dict__.items() if inspect.ismemberdescriptor(v) and k != "__dict__"
        ]
    return names


def _class_attributes(cls: type) -> list[str]:
    """Names of what the user's classes hold besides methods."""
    return [
        key
        for owner in cls.__mro__
        if is_user_class(owner)
        for key, raw in owner.__dict__.items()
        if not key.startswith("__") and not isinstance(raw, _METHODS)
    ]


def _is_data(raw: Any) -> bool:
    return hasattr(type(raw), "__set__")


def _has_python_get(raw: Any) -> bool:
    """Whether reading this descriptor runs Python code of its own class."""
    getter = _lookup(type(raw), "__get__")[1]
    return isinstance(getter, types.FunctionType)


def _is_users(module: Epoch, key: str) -> bool:
    return not key.startswith("_")


def _is_random_module(module: types.ModuleType) -> bool:
    return module.__name__ in ("numpy.random", "secrets")


_HEAP_TYPE = 1 << 9


@functools.lru_cache(maxsize=1024)
def _visible(cls: type) -> bool:
    """Whether all state of instances lies in attributes (or in a built-in container)."""
    while cls is not object:
        base = cls.__base__
        assert base is not None, "every class but object has a base"
        if not cls.__flags__ & _HEAP_TYPE:
            return issubclass(cls, (*CONTAINERS, int, float, str, bytes, BaseException)) or (
                cls in (types.SimpleNamespace,)
            )
        slots = cls.__dict__.get("__slots__", ())
        extra = len([slots] if isinstance(slots, str) else [*slots]) + 2
        if cls.__basicsize__ - base.__basicsize__ > 8 * extra:
            return False
        cls = base
    return True
