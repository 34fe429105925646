"""What a captured run reads of the state that library objects keep: settings and state of optimizers.

The observer looks at what the user's code reads; an optimizer's step reads on its own. It asks the
recorder (`Recorder.follows`) and reads through `StateReads`, which guards each thing read: lists and
dictionaries by what they hold, settings by value. A *number* is a setting that is read afresh at
each replay, so that a learning rate may change at every step. Start reading at `StateReads`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tracegrad.ir.dtypes import float64
from tracegrad.ir.location import here
from tracegrad.tracer.device import CPU
from tracegrad.tracer.guard_text import MISSING, Names, is_atom, kind_of, same
from tracegrad.tracer.guards import Guard, describe
from tracegrad.tracer.state import state
from tracegrad.tracer.tensor import Tensor, wrap

if TYPE_CHECKING:
    from tracegrad.tracer.capture import GraphRecorder

_PREFIX = "state"  # of the names that the guards bind; those of observed guards have numbers


@dataclass(frozen=True)
class Number:
    """Where a launcher finds a number: an expression over the names in `bindings`."""

    text: str
    bindings: dict[str, Any]


@dataclass(frozen=True)
class Setting(Guard):
    """The guard of an entry of a dictionary: `setting` is (its id, the key)."""

    setting: tuple[int, Any] | None = None


class StateReads:
    """Reads of one run, each with its guard.

    Attributes:
        guards: what must hold for a replay.
        tensors: those found in guarded places, whose identity is thereby guarded.
        afterwards: what each replay does once its results are there.
        changed_later: the objects that `afterwards` writes to.
        varying: (id of a dictionary, key) of settings that are to be numbers.
    """

    def __init__(self, recorder: GraphRecorder) -> None:
        self.guards: list[Guard] = []
        self.tensors: list[Tensor] = []
        self.afterwards: list[Callable[[], Any]] = []
        self.changed_later: list[Any] = []
        self.varying: set[tuple[int, str]] = set()
        self._recorder = recorder
        self._known: dict[tuple[Any, ...], Any] = {}
        self._held: list[Any] = []  # keeps ids from being reused

    def attribute(self, owner: Any, key: str, name: str) -> Any:
        """The object that is the attribute `key` of `owner`."""
        value = getattr(owner, key)
        self._guard((id(owner), key), name, value, lambda names: f"{names(owner)}.{key}")
        return value

    def contents(self, holder: Any, name: str) -> Any:
        """`holder`, a list or a dictionary with texts as keys, with all that it holds now."""
        key = (id(holder), "contents")
        if key not in self._known:
            names = self._names(key, holder)
            at = names(holder)
            keys: Any = holder if isinstance(holder, dict) else range(len(holder))
            parts = [f"len({at}) == {len(holder)}"]
            for k in keys:
                if isinstance(holder[k], Tensor):
                    self.tensors.append(holder[k])
                    self._recorder.called(holder[k], str(k))
                parts.append(same(f"{at}[{k!r}]", holder[k], names))
            self._add(Guard(
                name, " and ".join(parts), names.bindings, here(), "snapshot", describe(holder), at
            ))  # fmt: skip
        return holder

    def entry(self, holder: dict[Any, Any], key: Any, name: str) -> Any:
        """`holder[key]`, or None where it has none."""
        self._in_time(holder)
        value = holder.get(key, MISSING)
        shown = (lambda names: repr(key)) if is_atom(key) else (lambda names: names(key))
        if value is MISSING:
            place = (id(holder), "no", key if is_atom(key) else id(key))
            if place not in self._known:
                names = self._names(place, holder)
                text = f"{shown(names)} not in {names(holder)}"
                at = f"{names(holder)}[{shown(names)}]"
                self._add(Guard(name, text, names.bindings, here(), "value", "absent", at))
            return None
        self._guard(
            (id(holder), "item", key if is_atom(key) else id(key)), name, value,
            lambda names: f"{names(holder)}[{shown(names)}]",
        )  # fmt: skip
        return value

    def setting(self, holder: dict[str, Any], key: str, name: str) -> Any:
        """`holder[key]`: by value, or once it is known to vary, as `number` gives it."""
        if key != "lr" and (id(holder), key) not in self.varying:
            return self.entry(holder, key, name)
        self._in_time(holder)
        value = holder[key]
        if type(value) is tuple and value and all(type(v) in (float, int) for v in value):
            self.entry_type(holder, key, name)
            return tuple(
                self.number(holder, (key, i), v, f"{name}[{i}]") for i, v in enumerate(value)
            )
        if type(value) not in (float, int):
            return self.entry(holder, key, name)
        return self.number(holder, (key,), value, name)

    def entry_type(self, holder: dict[str, Any], key: str, name: str) -> None:
        """Guard that `holder[key]` is a tuple of as many elements."""
        place, count = (id(holder), "tuple", key), len(holder[key])
        if place not in self._known:
            names = self._names(place, holder)
            at = f"{names(holder)}[{key!r}]"
            text = f"type({at}) is tuple and len({at}) == {count}"
            self._add(Guard(name, text, names.bindings, here(), "value", f"{count} numbers", at))

    def number(self, holder: dict[str, Any], path: tuple[Any, ...], value: float, name: str) -> Any:
        """The number at `holder[path[0]]...` as a float64 tensor () that has its value at each replay.

        Zero is given as it is, and guarded: it switches things off.
        """
        place = (id(holder), "number", path)
        if place in self._known:
            return self._known[place]
        names = self._names(place, holder)
        at = names(holder) + "".join(f"[{key!r}]" for key in path)
        kinds = f"(type({at}) is float or type({at}) is int)"
        if value == 0:
            text, expected = f"{kinds} and {at} == 0", "0"
        else:
            text, expected = f"{kinds} and {at} != 0", "a number"
        self._add(Guard(name, text, names.bindings, here(), "value", expected, at))
        made: Any = value
        if value != 0:
            made = number_tensor(value)
            self._recorder.number(made, str(path[0]), Number(at, names.bindings))
        self._known[place] = made
        return made

    def postpone(self, owner: object, call: Callable[[], Any], changes: Sequence[Any]) -> None:
        """Let each replay call `call`, which `owner` asks for, after all else; it writes `changes`."""
        if not self._recorder.existed(owner):
            kind = type(owner).__name__
            self._recorder.stay_eager(f"a {kind} of its own changes what comes from outside")
        self.afterwards.append(call)
        self.changed_later += changes

    def _in_time(self, holder: Any) -> None:
        """A replay reads everything before it changes anything."""
        if any(holder is x for x in self.changed_later):
            self._recorder.stay_eager("settings are read after a schedule has changed them")

    def changed(self) -> list[Guard]:
        """What the run itself has changed."""
        return [g for g in self.guards if not g.holds()]

    def _guard(
        self, place: tuple[Any, ...], name: str, value: Any, at: Callable[[Names], str]
    ) -> None:
        if place in self._known:
            return
        names = self._names(place, value)
        text = at(names)
        if isinstance(value, Tensor):
            self.tensors.append(value)
        setting = (place[0], place[2]) if place[1] == "item" else None
        self._add(Setting(
            name, same(text, value, names), names.bindings, here(), kind_of(value),
            describe(value), text, setting=setting,
        ))  # fmt: skip

    def _names(self, place: tuple[Any, ...], held: Any) -> Names:
        self._known[place] = None
        self._held.append(held)
        return Names(f"{_PREFIX}{len(self._known)}")

    def _add(self, guard: Guard) -> None:
        self.guards.append(guard)


def number(tensor: Tensor) -> float | Tensor:
    """The value of a tensor of one element: a float, or in a captured run a float64 tensor ().

    For arithmetic that is the same on both: `1 - beta ** number(step)`. A tensor on a device stays
    there, so that nobody waits for the device.
    """
    plain = state.recorder is None and tensor.device is CPU
    return tensor.item() if plain else tensor.to(float64)


def number_tensor(value: float) -> Tensor:
    """A Python number as an input of compiled code: float64, no dimension."""
    return wrap(np.array(value, np.float64))
