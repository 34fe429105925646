"""Objects that a captured run made and that its backward will use, made anew by each replay.

A hook is often a lambda that sees variables of the run; a `Function` keeps what it likes on `ctx`. A
later run would make its own, around its own tensors. `Describer` takes such an object apart into a
table of `Part`s; `Making` builds it again around the tensors of a replay. Objects from before the run
are themselves; numbers and texts are what they were, for all that decides them is guarded.

    y.register_hook(lambda g: g * scale + x)      # made by the run: a new function each time,
                                                  # whose cell of `x` holds the tensor of this call

Start reading at `Describer.describe`.
"""

from __future__ import annotations

import enum
import functools
import gc
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tracegrad.tracer.device import Size
from tracegrad.tracer.hooks import RemovableHandle
from tracegrad.tracer.keys import BY_VALUE, PLAIN
from tracegrad.tracer.pytree import fields, is_record
from tracegrad.tracer.symbolic import is_symbolic, plain_number
from tracegrad.tracer.tensor import Tensor

_MUTABLE = (list, dict, set)
_ATOMS = (*BY_VALUE, np.generic, enum.Enum, types.ModuleType, types.CodeType)


class NotRemade(Exception):
    """An object has no description; the text says what it is. Never leaves a capture."""


@dataclass(frozen=True)
class Part:
    """How to make one object: `kind` says by which method of `Making`, out of which other parts."""

    kind: str
    parts: tuple[int | None, ...] = ()
    data: Any = field(default=None, repr=False)


class Describer:
    """Takes objects of one captured run apart.

    Args:
        external: whether an object is from before the run, or was read from outside.
        keyed: ids of the containers among the arguments, another object at each call.
        tensor: the number of a tensor that the run knows.
        handle: where a hook stands that the run has registered: (node, hook); None if nowhere.
    """

    def __init__(
        self, external: Callable[[Any], bool], keyed: set[int], tensor: Callable[[Tensor], int],
        handle: Callable[[RemovableHandle], tuple[int, int] | None],
    ) -> None:  # fmt: skip
        self.parts: list[Part | None] = []
        self._external, self._keyed, self._tensor, self._handle = external, keyed, tensor, handle
        self._numbers: dict[int, int] = {}
        self._alive: list[Any] = []
        self._returned: set[int] = set()

    def returned(self, result: Any) -> None:
        """Note the containers that the caller gets: it may change them later."""
        if isinstance(result, (*_MUTABLE, tuple)) or is_record(type(result)):
            self._returned.add(id(result))
            for x in _elements(result):
                self.returned(x)

    def is_external(self, x: Any) -> bool:
        """Whether an object is from before the run."""
        return self._external(x)

    def describe(self, x: Any) -> int:
        """The number of the part that makes `x`.

        Raises:
            NotRemade: what it is made of cannot be seen, or a replay could not give it the same place.
        """
        if is_symbolic(x):
            x = plain_number(x)
        known = self._numbers.get(id(x))
        if known is not None:
            return known
        number = self._numbers[id(x)] = len(self.parts)
        self._alive.append(x)
        self.parts.append(None)  # a function may be found in a cell of its own
        self.parts[number] = self._part(x)
        return number

    def _part(self, x: Any) -> Part:
        kind = type(x)
        if isinstance(x, Tensor):
            return Part("tensor", data=self._tensor(x))
        if kind in (*PLAIN, range, type(NotImplemented)) or isinstance(x, _ATOMS):
            return Part("same", data=x)
        if kind is tuple or kind is Size or (isinstance(x, tuple) and hasattr(kind, "_fields")):
            return Part("tuple", self._all(x), kind)
        if isinstance(x, RemovableHandle):
            place = self._handle(x)
            if place is not None:
                return Part("handle", data=place)
        if self._external(x):
            if id(x) in self._keyed:
                raise NotRemade(f"a {kind.__name__} among the arguments")
            return Part("same", data=x)
        if id(x) in self._returned:
            raise NotRemade(f"a {kind.__name__} that the function returns, too")
        return self._made(x, kind)

    def _made(self, x: Any, kind: type) -> Part:
        """Of an object that the run has made."""
        if kind is list:
            return Part("list", self._all(x))
        if kind is dict and gc.is_tracked(x):  # of others nobody knows since when they are there
            return Part("dict", (*self._all(x.keys()), *self._all(x.values())))
        if is_record(kind):
            named = fields(x)
            return Part("record", self._all(named.values()), (kind, tuple(named)))
        if kind is types.CellType:
            try:
                held = x.cell_contents
            except ValueError:  # a variable without a value
                return Part("cell", (None,))
            if is_symbolic(held):
                held = x.cell_contents = plain_number(held)
            return Part("cell", (self.describe(held),))
        if kind is types.FunctionType:
            if x.__defaults__ and any(map(is_symbolic, x.__defaults__)):
                x.__defaults__ = tuple(map(plain_number, x.__defaults__))
            extra = (x.__defaults__, x.__kwdefaults__, x.__closure__)
            parts = [None if e is None else self.values(e) for e in extra]
            named = x.__dict__
            inner = self.values(named) if named else None
            return Part(
                "function", (*parts, inner), (x.__code__, x.__globals__, x.__name__, x.__qualname__)
            )
        if kind is types.MethodType:
            return Part("method", (self.describe(x.__func__), self.describe(x.__self__)))
        if kind is functools.partial:
            return Part(
                "partial", (self.describe(x.func), self.values(x.args), self.values(x.keywords))
            )
        if kind is types.BuiltinFunctionType:
            if x.__self__ is None or isinstance(x.__self__, types.ModuleType):
                return Part("same", data=x)
            return Part("builtin", (self.describe(x.__self__),), x.__name__)
        raise NotRemade(f"a {kind.__name__} that the function makes")

    def values(self, x: Any) -> int:
        """As `describe`, of a dict or tuple that belongs to one object and that nobody else sees."""
        number = len(self.parts)
        self._alive.append(x)
        self.parts.append(None)
        if isinstance(x, dict):
            self.parts[number] = Part("dict", (*self._all(x.keys()), *self._all(x.values())))
        else:
            self.parts[number] = Part("tuple", self._all(x), tuple)
        return number

    def _all(self, xs: Any) -> tuple[int, ...]:
        return tuple(self.describe(x) for x in list(xs))


def _elements(x: Any) -> Iterator[Any]:
    if isinstance(x, dict):
        yield from x.values()
    elif is_record(type(x)):
        yield from fields(x).values()
    else:
        yield from x


class Making:
    """The objects of one replay.

    Args:
        parts: the table of a `Describer`.
        tensor: the tensor of a number.
        handle: the handle at a place.
    """

    def __init__(
        self, parts: Sequence[Part | None], tensor: Callable[[int], Tensor],
        handle: Callable[[tuple[int, int]], RemovableHandle],
    ) -> None:  # fmt: skip
        self._parts, self._tensor, self._handle = parts, tensor, handle
        self._made: dict[int, Any] = {}

    def make(self, number: int | None) -> Any:
        """The object of a number, the same one each time."""
        if number is None:
            return None
        if number in self._made:
            return self._made[number]
        part = self._parts[number]
        assert part is not None, "described to the end"
        made = _MAKERS[part.kind](self, part, number)
        self._made[number] = made
        return made

    def _all(self, numbers: Any) -> list[Any]:
        return [self.make(n) for n in numbers]

    # ---- one method per kind --------------------------------------------------------------------

    def _tuple(self, part: Part, number: int) -> Any:
        values = self._all(part.parts)
        return part.data(*values) if hasattr(part.data, "_fields") else part.data(values)

    def _list(self, part: Part, number: int) -> Any:
        made: list[Any] = []
        self._made[number] = made  # before its elements: it may be among them
        made.extend(self._all(part.parts))
        return made

    def _dict(self, part: Part, number: int) -> Any:
        made: dict[Any, Any] = {}
        self._made[number] = made
        half = len(part.parts) // 2
        made.update(zip(self._all(part.parts[:half]), self._all(part.parts[half:]), strict=True))
        return made

    def _record(self, part: Part, number: int) -> Any:
        kind, names = part.data
        made = object.__new__(kind)  # not `__init__`, which may do more
        self._made[number] = made
        for name, value in zip(names, self._all(part.parts), strict=True):
            object.__setattr__(made, name, value)
        return made

    def _cell(self, part: Part, number: int) -> Any:
        made = types.CellType()
        self._made[number] = made
        if part.parts[0] is not None:
            made.cell_contents = self.make(part.parts[0])
        return made

    def _function(self, part: Part, number: int) -> Any:
        code, names, name, qualname = part.data
        defaults, keywords, closure, attributes = part.parts
        cells = self.make(closure)
        if number in self._made:  # a cell of its own has asked for it meanwhile
            return self._made[number]
        made = types.FunctionType(code, names, name, self.make(defaults), cells)
        self._made[number] = made
        made.__qualname__ = qualname
        made.__kwdefaults__ = self.make(keywords)
        if attributes is not None:
            made.__dict__.update(self.make(attributes))
        return made

    def _method(self, part: Part, number: int) -> Any:
        return types.MethodType(*self._all(part.parts))

    def _partial(self, part: Part, number: int) -> Any:
        function, args, keywords = self._all(part.parts)
        return functools.partial(function, *args, **keywords)

    def _builtin(self, part: Part, number: int) -> Any:
        return getattr(self.make(part.parts[0]), part.data)


_MAKERS: dict[str, Callable[[Making, Part, int], Any]] = {
    "same": lambda making, part, number: part.data,
    "tensor": lambda making, part, number: making._tensor(part.data),
    "handle": lambda making, part, number: making._handle(part.data),
    "tuple": Making._tuple, "list": Making._list, "dict": Making._dict, "record": Making._record,
    "cell": Making._cell, "function": Making._function, "method": Making._method,
    "partial": Making._partial, "builtin": Making._builtin,
}  # fmt: skip
