"""What a trace is guarded by, in a few lines: for each object that the function starts from, one.

`f.guards()` has the list. Start reading at `in_words`.
"""

from __future__ import annotations

import re
import types
from collections.abc import Sequence
from typing import Any

from tracegrad.tracer.epoch import Epoch
from tracegrad.tracer.guards import Guard, describe

NAMED = 3  # of several alike
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, type)


def in_words(guards: Sequence[Guard]) -> list[str]:
    """A line for each name that guards begin with, and one for all functions and classes.

    Example:
        >>> rate, table = 0.5, {"a": 1.0, "b": 2.0}
        >>> from tracegrad.tracer.observe import Observer
        >>> def f():
        ...     return table["a"] * rate + table["b"]
        >>> with Observer(f, ()) as observer:
        ...     y = f()
        >>> for line in in_words(observer.finish().guards):
        ...     print(line)
        functions and classes, the same ones: f; read at ...
        table: the same dict; values table['a'] = 1.0, table['b'] = 2.0; read at ...
        rate: value 0.5; read at ...
    """
    functions = [g for g in guards if _is_function(g)]
    groups: dict[str, list[Guard]] = {}
    for guard in guards:
        if not _is_function(guard):
            groups.setdefault(_root(guard.name), []).append(guard)
    lines = [f"{root}: {_about(root, group)}{_read_at(group)}" for root, group in groups.items()]
    if functions:
        names = _listed([g.name for g in functions], most=8)
        lines.insert(0, f"functions and classes, the same ones: {names}{_read_at(functions)}")
    return lines


def _root(name: str) -> str:
    found = re.match(r"[^.\[]+", name)
    return found.group() if found else name


def _value(guard: Guard) -> Any:
    """The object that an identity guard is about; None where it is not among the bindings."""
    objects = [*guard.bindings.values()]
    return next((x for x in reversed(objects) if describe(x) == guard.expected), None)


def _is_function(guard: Guard) -> bool:
    if guard.kind != "identity":
        return False
    return any(
        isinstance(x, _FUNCTIONS) and describe(x) == guard.expected for x in guard.bindings.values()
    )


def _about(root: str, guards: Sequence[Guard]) -> str:
    """What must be as it was of one object and what is reached from it."""
    parts: list[str] = []
    kinds: dict[str, list[Guard]] = {}
    for guard in guards:
        kinds.setdefault(guard.kind, []).append(guard)
    same = kinds.get("identity", [])
    if any(g.name == root for g in same):
        value = _value(next(g for g in same if g.name == root))
        parts.append(f"the same {'object' if value is None else type(value).__name__}")
    others = [g.name for g in same if g.name != root]
    if others:
        parts.append(f"{_count(len(others), 'object')} of it ({_listed(others)})")
    for guard in kinds.get("epoch", []):
        parts.append(_unchanged(guard, root))
    containers = [g.name for g in kinds.get("snapshot", [])]
    if containers:
        parts.append(f"the elements of {_listed(containers)}")
    tensors = list(dict.fromkeys(g.name for g in guards if g.kind in ("tensor", "layout")))
    if tensors == [root]:
        parts.append("the same tensor, with shape, dtype, strides and requires_grad")
    elif tensors:
        parts.append(f"{_count(len(tensors), 'tensor')} ({_listed(tensors)})")
    values = kinds.get("value", [])
    if len(values) == 1 and values[0].name == root:
        parts.append(f"value {values[0].expected}")
    elif values:
        listed = _listed([f"{g.name} = {g.expected}" for g in values], most=8)
        parts.append(f"{'value' if len(values) == 1 else 'values'} {listed}")
    return "; ".join(parts)


def _unchanged(guard: Guard, root: str) -> str:
    """Of objects that count their changes: how many tensors they have."""
    owners = [x for x in guard.bindings.values() if isinstance(x, Epoch)]
    tensors = {id(t): t for owner in owners for t in owner._epoch_tensors()}
    where = "" if guard.name == root else f" in {guard.name}"
    if not tensors:
        return f"nothing has changed{where}"
    names = [
        name for kind in ("named_parameters", "named_buffers")
        if owners and hasattr(owners[0], kind) for name, _ in getattr(owners[0], kind)()
    ]  # fmt: skip
    shown = f" ({_listed(names)})" if len(names) == len(tensors) else ""
    return f"nothing has changed{where}, with {_count(len(tensors), 'tensor')}{shown}"


def _listed(names: Sequence[str], most: int = NAMED) -> str:
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _read_at(guards: Sequence[Guard]) -> str:
    places = list(dict.fromkeys(str(g.location) for g in guards if g.location))
    return f"; read at {_listed(places)}" if places else ""
