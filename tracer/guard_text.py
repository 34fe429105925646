"""The text of guards: Python expressions that are true while a value is what it was.

`Names` gives out binding names; `same` compares one value, `same_contents` the elements of a
container, `same_epoch` a tree of counting objects. All of it is straight-line Python that never
calls `==` before the type is known, so tensors and arrays are never compared by element.
"""

from __future__ import annotations

import enum
import types
from collections import deque
from typing import Any

from tracegrad.ir.dtypes import DType
from tracegrad.tracer.epoch import Counts, Epoch
from tracegrad.tracer.tensor import Tensor

MISSING: Any = type("Missing", (), {"__repr__": lambda self: "nothing"})()

_SINGLETONS = (None, True, False, ..., NotImplemented)
_BY_EQUALITY = (int, str, bytes)
# Immutable classes of the standard library, tracegrad and NumPy, compared by type and repr.
_BY_REPR = frozenset({
    ("decimal", "Decimal"), ("fractions", "Fraction"), ("datetime", "date"), ("datetime", "time"),
    ("datetime", "datetime"), ("datetime", "timedelta"), ("datetime", "timezone"),
    ("uuid", "UUID"), ("pathlib", "PosixPath"), ("pathlib", "WindowsPath"),
    ("pathlib", "PurePosixPath"), ("pathlib", "PureWindowsPath"), ("pathlib._local", "PosixPath"),
    ("builtins", "range"), ("builtins", "slice"), ("builtins", "complex"),
    ("tracegrad.tracer.device", "device"), ("tracegrad.tracer.device", "Size"),
})  # fmt: skip


class Names:
    """Binding names `g3_0`, `g3_1` ... of guard "3", and the objects they stand for."""

    def __init__(self, number: int | str) -> None:
        self.bindings: dict[str, Any] = {}
        self._number = number
        self._known: dict[int, str] = {}

    def __call__(self, value: Any) -> str:
        """The name of `value`, the same name for the same object."""
        name = self._known.get(id(value))
        if name is None:
            name = f"g{self._number}_{len(self.bindings)}"
            self._known[id(value)] = name
            self.bindings[name] = value
        return name


def is_atom(value: Any) -> bool:
    """True for immutables that are guarded by type and value."""
    kind = type(value)
    if kind in (int, float, str, bytes, bool, complex, type(None), type(...), type(NotImplemented)):
        return True
    return isinstance(value, (DType, enum.Enum)) or _by_repr(kind) or _is_numpy_scalar(value)


def _by_repr(kind: type) -> bool:
    return (kind.__module__, kind.__qualname__) in _BY_REPR


def _is_numpy_scalar(value: Any) -> bool:
    if type(value).__module__ != "numpy":
        return False
    import numpy as np

    return isinstance(value, np.generic) and not isinstance(value, (np.void, np.object_))


def kind_of(value: Any) -> str:
    """The kind of a guard on a slot that holds `value`."""
    if isinstance(value, Tensor):
        return "tensor"
    if value is MISSING or is_atom(value):
        return "value"
    if isinstance(value, (tuple, frozenset)) and all(kind_of(v) == "value" for v in value):
        return "value"
    return "identity"


def same(at: str, value: Any, name: Names) -> str:
    """An expression that is true while the expression `at` yields `value`.

    Immutables compare by exact type and value (NaN equals NaN, -0.0 differs from 0.0), tuples by
    element, functions by identity of object, code and defaults, everything else by identity.
    """
    kind = type(value)
    if any(value is single for single in _SINGLETONS):
        return f"{at} is {value!r}"
    if kind is float:
        return f"type({at}) is float and {_same_float(at, value)}"
    if kind in _BY_EQUALITY:
        shown = repr(value) if len(repr(value)) < 60 else name(value)
        return f"type({at}) is {kind.__name__} and {at} == {shown}"
    if isinstance(value, (DType, enum.Enum)):
        return f"{at} is {name(value)}"
    if _by_repr(kind):
        return f"type({at}) is {name(kind)} and repr({at}) == {name(repr(value))}"
    if _is_numpy_scalar(value):
        return f"type({at}) is {name(kind)} and {at}.tobytes() == {value.tobytes()!r}"
    if kind is tuple or (isinstance(value, tuple) and hasattr(kind, "_fields")):
        return _same_tuple(at, value, name)
    if kind is frozenset and kind_of(value) == "value":
        return f"type({at}) is frozenset and {_same_values(at, value, name)}"
    if isinstance(value, types.FunctionType):
        return _same_function(at, value, name)
    if isinstance(value, types.MethodType):
        return (
            f"{at}.__self__ is {name(value.__self__)} and "
            f"{same(f'{at}.__func__', value.__func__, name)}"
        )
    return f"{at} is {name(value)}"


def _same_float(at: str, value: float) -> str:
    if value != value:
        return f"{at} != {at}"
    if value == 0.0:
        return f"{at}.hex() == {value.hex()!r}"
    return f"{at} == {value!r}" if abs(value) != float("inf") else f"{at} == float('{value}')"


def _same_tuple(at: str, value: tuple[Any, ...], name: Names) -> str:
    if type(value) is tuple and value and all(_plain(v) for v in value):
        return f"type({at}) is tuple and {_same_values(at, value, name)}"
    parts = [f"type({at}) is {name(type(value)) if type(value) is not tuple else 'tuple'}",
             f"len({at}) == {len(value)}"]  # fmt: skip
    parts += [same(f"{at}[{i}]", v, name) for i, v in enumerate(value)]
    return " and ".join(parts)


def _plain(value: Any) -> bool:
    """True where `==` and the type together decide."""
    kind = type(value)
    return kind in (int, str, bytes, bool, type(None)) or (
        kind is float and value == value and value != 0.0
    )


def _same_values(at: str, values: Any, name: Names) -> str:
    kinds = name([type(v) for v in values])
    whole = at if at.startswith("[*") else f"[*{at}]"
    return f"[*map(type, {at})] == {kinds} and {whole} == {name([*values])}"


def _same_function(at: str, value: types.FunctionType, name: Names) -> str:
    text = f"{at} is {name(value)} and {name(value)}.__code__ is {name(value.__code__)}"
    if value.__defaults__ is not None:
        text += f" and {name(value)}.__defaults__ is {name(value.__defaults__)}"
    if value.__kwdefaults__:
        text += f" and {name(value)}.__kwdefaults__ is {name(value.__kwdefaults__)}"
    return text


def same_contents(at: str, value: Any, name: Names) -> str:
    """An expression that is true while the container at `at` has the elements it has now.

    Elements that are not immutable compare by identity; dicts and sets in order of iteration.
    """
    if isinstance(value, (bytearray, memoryview)):
        return f"bytes({at}) == {bytes(value)!r}"
    if isinstance(value, (dict, types.MappingProxyType)):
        return _same_dict(at, value, name)
    if isinstance(value, (list, tuple)):
        return _same_elements(at, [*value], name)
    assert isinstance(value, (set, frozenset, deque)), f"not a container: {type(value)}"
    return _same_elements(f"[*{at}]", [*value], name)


def _same_elements(at: str, values: list[Any], name: Names) -> str:
    if all(_plain(v) for v in values):
        return _same_values(at, values, name)
    each = [same(f"{at}[{i}]", v, name) for i, v in enumerate(values)]
    return " and ".join([f"len({at}) == {len(values)}", *each])


def _same_dict(at: str, value: Any, name: Names) -> str:
    keys = [*value.keys()]
    values = [value[k] for k in keys] if type(value) is not dict else [*value.values()]
    ordered = _same_elements(f"[*{at}]", keys, name)
    if all(_plain(v) for v in values):
        return f"{ordered} and {_same_values(f'{at}.values()', values, name)}"
    each = [
        same(f"{at}[{k!r}]" if type(k) in (str, int) else f"{at}[{name(k)}]", v, name)
        for k, v in zip(keys, values, strict=True)
    ]
    return " and ".join([ordered, *each])


def same_epoch(parts: list[Epoch], name: Names) -> str:
    """An expression that is true while `parts` hold what they hold now."""
    counts = name(Counts(parts))
    listed = ", ".join(f"{name(part)}._epoch" for part in parts)
    return f"([{listed}] == {counts}.seen or {counts}.again())"
