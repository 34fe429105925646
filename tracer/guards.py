"""Guards: what a function read from outside itself, each as a Python expression.

A `Guard` is True while the world is as it was when the function was captured. Its text is
straight-line Python over the objects in `bindings`, so that a launcher can paste it. What cannot be
guarded is a `Problem`; what a replay would lose is a `SideEffect`. `tracegrad.tracer.observe` finds
all three. Start reading at `Guard`, then `same` (the text that compares one value).
"""

from __future__ import annotations

import enum
import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tracegrad.ir.dtypes import DType
from tracegrad.ir.location import Location

if TYPE_CHECKING:
    from tracegrad.tracer.tensor import Tensor


@dataclass(frozen=True)
class Guard:
    """One condition under which a trace may be reused.

    Attributes:
        name: what is guarded, as the user would write it: `"scale"`, `"self.cfg.lr"`.
        text: a Python expression over the names in `bindings`. It is true while the guard holds;
            an exception raised by it (a deleted global, say) means that it does not hold.
        bindings: the objects that `text` speaks of; the names are unique in one `Observation`.
        location: the line that reads it, or None.
        kind: `"value"` (an immutable, by type and value), `"identity"` (this very object),
            `"tensor"` (this very tensor), `"layout"` (its meta-data), `"epoch"` (an object
            that counts its mutations), `"snapshot"` (the elements of a container).
        expected: what was there at the capture, in words.
        current: an expression for what is there now.
    """

    name: str
    text: str
    bindings: dict[str, Any]
    location: Location | None
    kind: str
    expected: str = ""
    current: str = ""
    _code: list[Any] = field(default_factory=list, repr=False, compare=False)

    def holds(self) -> bool:
        """Whether the condition is true now."""
        if not self._code:
            self._code.append(compile(self.text, f"<guard {self.name}>", "eval"))
        try:
            return bool(eval(self._code[0], dict(self.bindings)))  # the text is our own
        except Exception:  # a name, key or attribute that is gone: the world has changed
            return False

    def explain(self) -> str:
        """In words: the name, what was expected, what is there now, and the line that reads it."""
        where = f"; read at {self.location}" if self.location else ""
        if self.location and self.location.text:
            where += f": {self.location.text}"
        if self.holds():
            return f"{self.name} is {self.expected}, as at the capture{where}"
        return f"{self.name} was {self.expected}, now it is {self._seen()}{where}"

    def _seen(self) -> str:
        try:
            value = eval(self.current, dict(self.bindings))
        except Exception:
            return "gone"
        return value if self.kind in ("epoch", "layout") else describe(value)


@dataclass(frozen=True)
class Problem:
    """Something read that no guard can cover: the capture must be refused.

    `reason` says why, `remedy` what the user can do.
    """

    name: str
    location: Location | None
    reason: str
    remedy: str

    def __str__(self) -> str:
        where = f" (read at {self.location}: {self.location.text})" if self.location else ""
        return f"{self.name}: {self.reason}{where}. {self.remedy}"


@dataclass(frozen=True)
class SideEffect:
    """Something that a replay of the trace would not do again.

    `what` is `"print"`, `"random.random"`, `"global counter changed"`, ...
    """

    what: str
    location: Location | None

    def __str__(self) -> str:
        where = f" at {self.location} ({self.location.text})" if self.location else ""
        return f"{self.what}{where}"

    @property
    def reason(self) -> str:
        """Why it cannot be replayed: `depends on the clock: time.time`, `side effect: print`."""
        name = self.what.rpartition(".")[2].rpartition(" ")[2]
        top = self.what.partition(".")[0].partition(" ")[0]
        if self.what.endswith("changed") or name.startswith(("set", "seed", "put", "unset")):
            return f"side effect: {self.what}"
        if top in ("time", "datetime") and name != "sleep":
            return f"depends on the clock: {self.what}"
        if top in ("random", "secrets", "uuid") or self.what.startswith("numpy.random"):
            return f"depends on random numbers: {self.what}"
        if self.what == "id":
            return "depends on the address of an object: id"
        if top in ("sys", "tracegrad") or name.startswith("get"):
            return f"depends on the state of the process: {self.what}"
        return f"side effect: {self.what}"


@dataclass(frozen=True)
class Observation:
    """All that one run read from outside.

    `tensors` are those whose identity is guarded, directly or through an epoch.
    """

    guards: tuple[Guard, ...]
    tensors: tuple[Tensor, ...]
    problems: tuple[Problem, ...]
    side_effects: tuple[SideEffect, ...]
    holders: tuple[Any, ...]  # for each guard the object that holds what it is about, or None
    changed: tuple[Any, ...] = ()  # objects that the run itself changed

    def reads_of(self, objects: Sequence[object]) -> list[Guard]:
        """The guards on what one of `objects` holds."""
        ids = set(map(id, objects))
        return [g for g, h in zip(self.guards, self.holders, strict=True) if id(h) in ids]


_PLAIN = (int, float, bool, str, bytes, complex, type(None), type(...))
_BRACKETS: dict[type, str] = {list: "[]", tuple: "()", set: "{}", frozenset: "{}", dict: "{}"}


def layout_of(tensor: Tensor) -> str:
    """The meta-data of a tensor in words: `float32[2, 3], strides (12, 4), requires_grad`."""
    grad = ", requires_grad" if tensor.requires_grad else ""
    return f"{tensor.type_info}, strides {tensor._array.strides}{grad}"


def describe(value: Any) -> str:
    """A value in a few words. Runs no `__repr__` of the user's, nor one that reads a tensor."""
    text = _text(value, 3)
    return text if len(text) <= 80 else text[:77] + "..."


def _text(value: Any, depth: int) -> str:
    kind = type(value)
    if kind in _PLAIN:
        return repr(value)
    if kind in _BRACKETS:
        return (
            _inside(value, depth)
            if depth and len(value) <= 8
            else f"a {kind.__name__} of {len(value)}"
        )
    if isinstance(value, (types.FunctionType, types.BuiltinFunctionType, type)):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, types.MethodType):
        return f"method {value.__qualname__}"
    if isinstance(value, types.ModuleType):
        return f"module {value.__name__}"
    if isinstance(value, enum.Enum):
        return f"{kind.__qualname__}.{value.name}"
    if is_printable(kind):
        return repr(value)
    return f"{kind.__qualname__} object at {id(value):#x}"


def _inside(value: Any, depth: int) -> str:
    left, right = tuple(_BRACKETS[type(value)])
    if isinstance(value, dict):
        parts = [f"{_text(k, depth - 1)}: {_text(v, depth - 1)}" for k, v in value.items()]
    else:
        parts = [_text(v, depth - 1) for v in value]
    if isinstance(value, (set, frozenset)) and not value:
        return f"{type(value).__name__}()"
    comma = "," if isinstance(value, tuple) and len(value) == 1 else ""
    return f"{left}{', '.join(parts)}{comma}{right}"


def is_printable(kind: type) -> bool:
    """Whether `repr` of instances is short, and runs no code but that of NumPy and tracegrad."""
    return issubclass(kind, (np.generic, np.dtype, DType))
