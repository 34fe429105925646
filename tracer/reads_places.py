"""Places: what was looked at once, with its value at first sight, each a guard in the making.

A place is a dictionary key, an attribute, a cell, the elements of a container; its guard is relative
to the object that holds it, so that a chain of places is sound link by link.
Start reading at `Places.place`, then `Places.seen`.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tracegrad.ir.location import Location
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
from tracegrad.tracer.guards import Guard, Problem, SideEffect, describe, layout_of
from tracegrad.tracer.known_layout import KnownLayout
from tracegrad.tracer.modules import is_user_code, is_user_module
from tracegrad.tracer.reads_objects import (
    CONTAINERS,
    UNCHANGING,
    attribute_names,
    class_attributes,
    elements,
    visible,
)
from tracegrad.tracer.tensor import Tensor

LARGEST, _DEEPEST, _MOST = 256, 4, 512


@dataclass
class Place:
    """A guard in the making: what was seen, and what to say if the run itself changed it."""

    guard: Guard
    what: str
    exported: bool
    holder: Any
    stored: Location | None = None


@dataclass
class Places:
    """All places looked at in one run.

    Args:
        existed: whether an object was there before the run.
        keyed: ids of the tensors and containers among the arguments, which the caller keys.
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
            self._found(holder, value, name, location)

    def _found(self, holder: Any, value: Any, name: str, location: Location | None) -> None:
        """Look at what a holder holds; leaves and containers of the arguments are keyed."""
        if id(value) not in self.keyed:
            self.seen(value, name, location)
        elif id(holder) in self.keyed:
            self._names.setdefault(id(value), name)
        elif isinstance(value, (list, dict)):
            self.side_effect(f"{name}, which is also an argument, is read from outside", location)
        else:
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
            self._layout(value, name, location)
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

    def _layout(self, tensor: Tensor, name: str, location: Location | None) -> None:
        """Guard the meta-data of a tensor, which `.data = ...` changes; arguments are keyed."""
        if id(tensor) in self.keyed:
            return
        known = KnownLayout(tensor)
        self._add(
            ("layout", id(tensor)), name, "layout", f"tensor {name} changed", location,
            lambda names: known.guard(names(tensor), names(known)),
            lambda names: f"{names(layout_of)}({names(tensor)})", layout_of(tensor), tensor,
        )  # fmt: skip

    def _partial(self, value: functools.partial[Any], name: str, location: Location | None) -> None:
        self.seen(value.func, f"{name}.func", location)
        self.seen(value.args, f"{name}.args", location)
        if value.keywords:
            self.know(value.keywords)
            self.contents(value.keywords, f"{name}.keywords", location)

    def _guardable(self, value: Any) -> bool:
        if isinstance(value, (*CONTAINERS, *UNCHANGING)) or is_atom(value):
            return True
        return visible(type(value))

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
        if isinstance(value, CONTAINERS) and len(value) > LARGEST:
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
        for element, label in elements(value, name):
            self._found(value, element, label, location)
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
        if is_atom(value) or isinstance(value, (Tensor, *UNCHANGING)):
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
            for element, label in elements(value, name):
                self.deep(element, label, location, depth + 1)
        if isinstance(value, Epoch):
            for part in value._epoch_parts():
                self.deep(part, name, location, depth)
            for key in class_attributes(type(value)):
                self.read_attribute(value, name, key, location)
            for key, element in vars(value).items():
                if not isinstance(element, (Epoch, Tensor)) and not key.startswith("_"):
                    self.deep(element, f"{name}.{key}", location, depth + 1)
        elif visible(type(value)) and type(value).__module__ != "logging":
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
        for key in [*attribute_names(value), *class_attributes(type(value))]:
            for found, label in self.read_attribute(value, name, key, location):
                self.deep(found, label, location, depth + 1)

    def read_attribute(
        self, holder: Any, name: str, key: str, location: Location | None
    ) -> list[tuple[Any, str]]:
        """Guard one attribute; its value and how it is written, where there is one."""
        raise NotImplementedError  # `Reads` knows how attributes are found
