"""The key of a call: what decides which traces may answer it.

Tensors count by shape, dtype, strides, requires_grad, alignment and class; numbers and strings by value;
modules, functions, generators, optimizers and objects of other classes by identity; containers by
their contents. Ambient state (grad
mode, default device and dtype) comes first. Start reading at `make_key`.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tracegrad.ir.dtypes import DType, default
from tracegrad.ir.errors import OperandError
from tracegrad.tracer.capture_hook import Followed
from tracegrad.tracer.device import device, places
from tracegrad.tracer.epoch import Epoch
from tracegrad.tracer.pytree import fields, is_record, is_sequence
from tracegrad.tracer.random import Generator
from tracegrad.tracer.reads_objects import CONTAINERS, visible
from tracegrad.tracer.state import state
from tracegrad.tracer.tensor import Tensor

PLAIN = (int, float, bool, str, bytes, complex, type(None), type(Ellipsis))
BY_VALUE = (DType, device)
BY_IDENTITY = (types.FunctionType, types.BuiltinFunctionType, type, Generator, Followed)


def is_object(x: Any) -> bool:
    """Whether `x` counts by identity, what is read of it being guarded: an object all of whose state
    is in attributes, or a member of an enumeration.
    """
    if isinstance(x, enum.Enum):
        return True
    kind = type(x)
    return visible(kind) and not issubclass(kind, (*CONTAINERS, int, float, str, bytes))


class Unkeyed(OperandError):
    """An argument that no key can stand for: the call runs eagerly."""


def make_key(
    label: str, args: Sequence[Any], kwargs: Mapping[str, Any], leaves: list[Any]
) -> tuple[Any, ...]:
    """What the choice of a trace depends on; fills `leaves` with the arguments' leaves.

    Args:
        label: the function's name, for messages.
    Raises:
        Unkeyed: an argument is of a type whose changes could not be seen.
    """
    parts: list[Any] = [(state.grad_enabled, state.inference, *places()), default[0]]
    if not kwargs and len(args) == 1 and args[0].__class__ is Tensor:  # as below, at once
        parts.append(_of_tensor(args[0]))
        leaves.append(args[0])
        return tuple(parts)
    containers: list[int] = []
    for i, x in enumerate(args):
        _describe(label, x, parts, leaves, i, containers)
    for name, x in kwargs.items():
        parts.append(name)
        _describe(label, x, parts, leaves, name, containers)
    if len(leaves) > 1:
        tensors = [id(x) for x in leaves if isinstance(x, Tensor)]
        if len(set(tensors)) < len(tensors):
            parts.append(tuple(tensors.index(t) for t in tensors))
    if containers and len(set(containers)) < len(containers):
        parts.append(("containers", *(containers.index(c) for c in containers)))
    return tuple(parts)


OF_TENSOR = (
    "shape", "dtype", "strides", "requires_grad", "alignment", "class", "is_inference()",
)  # fmt: skip
"""What the part of a key that stands for a tensor has in it."""


def _of_tensor(x: Tensor) -> tuple[Any, ...]:
    a = x._array
    grad = x._requires_grad if x._view is None else x.requires_grad
    return (a.shape, a.dtype, a.strides, grad, a.flags.aligned, x.__class__, x._storage.inference)


def _describe(
    label: str, x: Any, parts: list[Any], leaves: list[Any], where: Any, containers: list[int]
) -> None:
    """Append what identifies an argument; tensors by type, numbers by value."""
    if isinstance(x, Tensor):
        parts.append(_of_tensor(x))
        leaves.append(x)
    elif type(x) is float:
        parts.append((float, x if x < 0 or x > 0 else repr(x)))  # zero has a sign, nan is itself
        leaves.append(x)
    elif type(x) in PLAIN:
        parts.append((type(x), repr(x) if isinstance(x, complex) else x))
        leaves.append(x)
    elif isinstance(x, Epoch):
        parts.append(id(x))
        leaves.append(x)
    elif isinstance(x, BY_VALUE):
        parts.append((type(x), repr(x)))
        leaves.append(x)
    elif isinstance(x, np.generic):
        parts.append((type(x), repr(x)))
        leaves.append(x)
    elif isinstance(x, BY_IDENTITY):
        parts.append((type(x), id(x)))
        leaves.append(x)
    elif is_sequence(type(x)):
        parts.append((type(x), len(x)))
        containers.append(id(x))
        for i, y in enumerate(x):
            _describe(label, y, parts, leaves, f"{where}[{i}]", containers)
    elif type(x) is dict:
        parts.append((dict, tuple(x)))
        containers.append(id(x))
        for k, y in x.items():
            _describe(label, y, parts, leaves, f"{where}[{k!r}]", containers)
    elif is_record(type(x)):
        named = fields(x)
        parts.append((type(x), tuple(named)))
        containers.append(id(x))
        for k, y in named.items():
            _describe(label, y, parts, leaves, f"{where}.{k}", containers)
    elif is_object(x):
        parts.append((type(x), id(x)))
        leaves.append(x)
    else:
        raise Unkeyed(_refusal(label, x, where))


def _refusal(label: str, x: Any, where: Any) -> str:
    kind = type(x).__name__
    remedy = (
        "make it a tensor with tracegrad.from_numpy(...)" if isinstance(x, np.ndarray)
        else "pass its tensors and numbers as arguments of their own"
    )  # fmt: skip
    return (
        f"argument {where} of {label} is a {kind}, whose changes a compiled function could not see; "
        f"{remedy}"
    )


def without_values(key: Any) -> Any:
    """A key without the values of its numbers and texts: what calls have in common that differ in
    those only.
    """
    return tuple(
        part[:1] if isinstance(part, tuple) and len(part) == 2 and part[0] in _VALUES else part
        for part in key
    )


_VALUES = (int, float, complex, str, bytes)


def difference(old: Any, new: Any, names: Sequence[str]) -> str:
    """How two keys differ, in words; `names` are those of the new call's leaves."""
    if len(old) != len(new):
        return "other arguments"
    leaf = -1
    for i, (a, b) in enumerate(zip(old, new, strict=True)):
        leaf += i > 1 and _is_leaf(b)
        if a == b:
            continue
        if i == 0:
            return f"grad mode {'on' if b[0] else 'off'}"
        if not _is_leaf(b) or not isinstance(a, tuple) or not isinstance(b, tuple):
            break
        name = names[leaf] if 0 <= leaf < len(names) else f"argument {leaf}"
        if len(a) == len(b) == len(OF_TENSOR):
            words = OF_TENSOR
            changed = [f"{w} {x} -> {y}" for w, x, y in zip(words, a, b, strict=True) if x != y]
            return f"another tensor as {name}: {', '.join(changed)}"
        if len(a) == 1 and a[0] is b[0]:
            continue  # a number that the old one takes with any value
        if len(a) == len(b) == 2:
            if a[0] is b[0] and a[0] not in PLAIN and isinstance(a[1], int):  # an id
                return f"another {getattr(a[0], '__name__', a[0])} as {name}"
            return f"another {name}: {a[1]} -> {b[1]}"
        break
    return "other arguments"


def _is_leaf(part: Any) -> bool:
    """Whether a part of a key stands for a leaf of the arguments: no container, no keyword."""
    if not isinstance(part, tuple):
        return not isinstance(part, str)
    kind = part[0] if part else None
    return not isinstance(kind, type) or not (is_sequence(kind) or kind is dict or is_record(kind))
