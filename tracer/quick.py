"""Calls like the last one: recognised without making a key.

A key is made of every argument and looked up. Most calls are like the one before, so the last key
that was answered becomes a generated Python function that compares a call with it. It knows calls with
tensors and plain values, without keywords; others take the long way. Start reading at `Quick`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tracegrad.ir.dtypes import default
from tracegrad.runtime.cuda.current import chosen
from tracegrad.tracer.state import state
from tracegrad.tracer.storage import marking
from tracegrad.tracer.tensor import Tensor
from tracegrad.tracer.trace import Trace

MANY = 64  # keys of one function
_CONSTANTS = (int, bool, str, bytes, type(None))


def _nothing() -> None:
    """Stands for the reference to an array, where there is none yet."""


class SeenLayout:
    """The layout of an argument, and the last array that had it, which is not kept alive.

    The library gives a tensor a new array where its layout changes, so the same array has the same
    layout.
    """

    __slots__ = ("array", "shape", "dtype", "strides", "aligned")

    def __init__(self, part: tuple[Any, ...]) -> None:
        self.array: Callable[[], Any] = _nothing
        self.shape, self.dtype, self.strides, _, self.aligned, _, _ = part

    def like(self, x: Any) -> bool:
        """Whether `x` is a tensor of this layout."""
        if not isinstance(x, Tensor):
            return False
        a = x._array
        if (
            a.shape != self.shape or a.strides != self.strides or a.dtype != self.dtype
            or a.flags.aligned is not self.aligned
        ):  # fmt: skip
            return False
        if not isinstance(a, np.generic):  # NumPy's scalars cannot be referred to
            self.array = weakref.ref(a)
        return True


class Quick:
    """What answers calls like one that was replayed.

    Attributes:
        fits: whether positional arguments are like those of that call, and the modes are the same.
        text: its Python.
        trace: the trace to launch.
    """

    __slots__ = ("fits", "text", "trace")

    def __init__(self, fits: Callable[[tuple[Any, ...]], bool], text: str, trace: Trace) -> None:
        self.fits, self.text, self.trace = fits, text, trace


class Quicks:
    """One `Quick` for each key of a compiled function that can have one."""

    def __init__(self) -> None:
        self._made: dict[Any, Quick | None] = {}

    def entry(self, key: tuple[Any, ...], trace: Trace, args: tuple[Any, ...]) -> Quick | None:
        """What answers further calls with a key that `trace` has answered; None: nothing does."""
        try:
            found = self._made[key]
        except KeyError:
            if len(self._made) >= MANY:
                self._made.clear()
            found = self._made[key] = _made(key, trace, args)
        if found is not None:
            found.trace = trace
        return found

    def drop(self, key: tuple[Any, ...]) -> None:
        """Forget a key whose traces are gone."""
        self._made.pop(key, None)


def _made(key: tuple[Any, ...], trace: Trace, args: Sequence[Any]) -> Quick | None:
    """The `Quick` of a key as `keys.make_key` makes it; None where it has parts of other kinds."""
    (grad, inference, *place), dtype, *parts = key
    if inference or place != [None, 0] or len(parts) != len(args):
        return None
    names = [f"arg_{k}" for k in range(len(args))]
    space: dict[str, Any] = {
        "state": state, "default": default, "dtype": dtype, "chosen": chosen, "marking": marking,
    }  # fmt: skip
    tests = [f"state.grad_enabled is {grad} and default[0] is dtype and not chosen and not marking"]
    tensors = []
    for k, (name, part, value) in enumerate(zip(names, parts, args, strict=True)):
        if isinstance(value, Tensor):
            if value._view is not None:
                return None
            tensors.append(name)
            space[f"seen_{k}"] = SeenLayout(part)
            test = f"({name}._array is seen_{k}.array() or seen_{k}.like({name}))"
            space[f"class_{k}"] = part[5]
            test += f" and {name}.__class__ is class_{k} and {name}._requires_grad is {part[3]}"
            test += f" and {name}._view is None and {name}._storage.inference is {part[6]}"
        elif part == (float,) or part == (int,):  # any number of the type
            test = f"{name}.__class__ is {part[0].__name__}"
        elif part == (type(value), value) and type(value) in (*_CONSTANTS, float):
            if type(value) is float and value == 0:  # it has a sign
                return None
            space[f"value_{k}"], space[f"type_{k}"] = value, type(value)
            test = f"{name}.__class__ is type_{k} and {name} == value_{k}"
        elif part == id(value) or (type(part) is tuple and part[1:] == (id(value),)):
            space[f"value_{k}"] = value
            test = f"{name} is value_{k}"
        else:
            return None
        tests.append(test)
    if len(tensors) > 3:
        tests.append(f"len({{{', '.join(f'id({t})' for t in tensors)}}}) == {len(tensors)}")
    tests += [
        f"{a} is not {b}" for i, a in enumerate(tensors) for b in tensors[:i] if len(tensors) <= 3
    ]
    lines = [
        "def fits(args):",
        '    """Whether a call is like the one for which this was made."""',
        f"    if len(args) != {len(args)}:",
        "        return False",
    ]
    if names:
        lines.append(f"    {', '.join(names)}, = args")
    lines += ["    try:", "        return (", f"            {tests[0]}"]
    lines += [f"            and {test}" for test in tests[1:]]
    lines += [
        "        )",
        "    except AttributeError:  # an argument is no tensor",
        "        return False",
    ]
    text = "\n".join(lines) + "\n"
    exec(compile(text, f"<tracegrad calls of {trace.name}>", "exec"), space)
    return Quick(space["fits"], text, trace)
