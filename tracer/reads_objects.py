"""Looking at objects without running their code: where an attribute lies, what can be seen."""

from __future__ import annotations

import enum
import functools
import inspect
import re
import types
from collections import deque
from typing import Any

import numpy as np

from tracegrad.tracer.guard_text import (
    MISSING,
    is_atom,
)  # fmt: skip
from tracegrad.tracer.modules import is_user_class

CONTAINERS = (list, dict, set, tuple, frozenset, deque, bytearray, types.MappingProxyType)
UNCHANGING = (
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


def elements(value: Any, name: str) -> list[tuple[Any, str]]:
    """Each element of a container, and how it would be written."""
    if isinstance(value, (dict, types.MappingProxyType)):
        return [(v, f"{name}[{k!r}]" if is_atom(k) else f"{name}[...]") for k, v in value.items()]
    if isinstance(value, bytearray):
        return []
    return [(v, f"{name}[{i}]") for i, v in enumerate(value)]


def lookup(cls: type, key: str) -> tuple[type | None, Any]:
    """The class of the MRO that holds `key`, and what it holds."""
    for owner in cls.__mro__:
        if key in owner.__dict__:
            return owner, owner.__dict__[key]
    return None, MISSING


def own_attributes(holder: Any) -> dict[str, Any] | None:
    """The `__dict__` of an object, or None."""
    try:
        own = object.__getattribute__(holder, "__dict__")
    except AttributeError:
        return None
    return own if isinstance(own, dict) else None


def attribute_names(value: Any) -> list[str]:
    """Names of all attributes of an instance, slots included."""
    names = [*(own_attributes(value) or ())]
    for cls in type(value).__mro__:
        names += [
            k for k, v in cls.__dict__.items() if inspect.ismemberdescriptor(v) and k != "__dict__"
        ]
    return names


def class_attributes(cls: type) -> list[str]:
    """Names of what the user's classes hold besides methods."""
    return [
        key
        for owner in cls.__mro__
        if is_user_class(owner)
        for key, raw in owner.__dict__.items()
        if not key.startswith("__") and not isinstance(raw, _METHODS)
    ]


def is_data(raw: Any) -> bool:
    """Whether a descriptor comes before the attributes of the instance."""
    return hasattr(type(raw), "__set__")


def has_python_get(raw: Any) -> bool:
    """Whether reading this descriptor runs Python code of its own class."""
    getter = lookup(type(raw), "__get__")[1]
    return isinstance(getter, types.FunctionType)


def is_random_module(module: types.ModuleType) -> bool:
    """Whether the functions of a module draw random numbers."""
    return module.__name__ in ("numpy.random", "secrets")


_HEAP_TYPE = 1 << 9


def visible(cls: type) -> bool:
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


def is_full(cell: types.CellType) -> bool:
    """Whether a cell holds anything."""
    return cell_value(cell) is not MISSING


def cell_value(cell: types.CellType) -> Any:
    """What a cell holds."""
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return MISSING


def unwrap(value: Any) -> Any:
    """What a built-in iterator goes over: comprehensions are handed one."""
    for _ in range(4):
        if type(value).__name__ not in (
            "list_iterator",
            "tuple_iterator",
            "enumerate",
            "zip",
            "reversed",
        ):
            return value
        reduced = value.__reduce__()
        value = reduced[1][0] if len(reduced) > 1 and reduced[1] else value
    return value
