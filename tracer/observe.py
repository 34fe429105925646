"""Observing one run: what a function reads from outside, and what it does to the outside.

A `sys.setprofile` hook looks at every call of a user's code object: which chains it reads
(`tracegrad.tracer.bytecode`), what they stand for now (`tracegrad.tracer.reads`), and which impure
built-ins and library functions it calls (`tracegrad.tracer.observe_calls`). After the run every
place is looked at again: what differs was changed by the run itself.
Start reading at `Observer`.

Note [Objects made during the run]
An object that the function made needs no guard: a replay makes it again. To tell these from objects
that were there before, `Observer` holds on to all objects known to the garbage collector when it
starts; so no id can be reused until it ends. Dictionaries of plain values are unknown to the
collector, but each of them is found through an object that it knows.
"""

from __future__ import annotations

import gc
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tracegrad.ir.location import Location
from tracegrad.tracer.bytecode import analyse
from tracegrad.tracer.bytecode_chains import Chain, Use
from tracegrad.tracer.epoch import Epoch
from tracegrad.tracer.guard_text import MISSING, Names, is_atom
from tracegrad.tracer.guards import Observation
from tracegrad.tracer.modules import is_user_frame
from tracegrad.tracer.observe_calls import FILE_METHODS, IMPURE_MODULES, impure, needs
from tracegrad.tracer.reads import Reads, Value
from tracegrad.tracer.reads_objects import CONTAINERS, cell_value, is_full, unwrap
from tracegrad.tracer.tensor import Tensor

MUTABLE = (list, dict, set, deque, bytearray)
Profiler = Callable[[types.FrameType, str, Any], Any]


class Observer:
    """Watch one call of `fn` in this thread; `finish()` gives what it read from outside.

    Args:
        fn: the function about to be called, once, inside the `with` block.
        arguments: the objects passed by the caller. Tensors, numbers, strings, None and containers
            of those are keyed by the caller of this class, as is the identity of other objects;
            attributes read from those other objects are guarded here.

    Example:
        >>> scale = 2.0
        >>> def f(x):
        ...     return x * scale
        >>> with Observer(f, (3.0,)) as observer:
        ...     result = f(3.0)
        >>> [(g.name, g.kind, g.holds()) for g in observer.finish().guards]
        [('f', 'identity', True), ('scale', 'value', True)]
    """

    def __init__(self, fn: Callable[..., Any], arguments: Sequence[object]) -> None:
        self._fn = fn
        self._arguments = arguments
        self._alive: list[Any] = []
        self._ids: frozenset[int] = frozenset()
        self._functions: dict[int, list[types.FunctionType]] = {}
        self._done: dict[tuple[Any, ...], Any] = {}
        self._late: list[tuple[Use, types.CodeType]] = []
        self._previous: Profiler | None = None
        self._reads = Reads(lambda value: id(value) in self._ids)

    # ---- the with block -------------------------------------------------------------------------

    def __enter__(self) -> Observer:
        self._alive = gc.get_objects()
        self._ids = frozenset(map(id, self._alive))
        for value in self._alive:
            if type(value) is types.FunctionType:
                self._functions.setdefault(id(value.__code__), []).append(value)
        for argument in self._arguments:
            self._argument(argument)
        name = getattr(self._fn, "__qualname__", type(self._fn).__name__).rpartition(".")[2]
        self._start(self._fn, name)
        self._previous = sys.getprofile()
        sys.setprofile(self._event)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(self._previous)

    def _argument(self, value: Any) -> None:
        if isinstance(value, (list, tuple, dict)):
            self._reads.keyed.add(id(value))
            self._reads.know(value)
            for element in value.values() if isinstance(value, dict) else value:
                self._argument(element)
        elif not is_atom(value):
            self._reads.know(value)

    def _start(self, fn: Any, name: str) -> None:
        """What the function is made of."""
        reads = self._reads
        if isinstance(fn, types.MethodType):
            reads.seen(fn.__self__, "self", None)
            self._start(fn.__func__, name)
        elif isinstance(fn, types.FunctionType):
            code = fn.__code__
            where = Location(code.co_filename, code.co_firstlineno, fn.__name__)
            reads.place(
                self, ("fn", id(fn)), lambda names: names(fn), fn, name, "function", where
            )  # fmt: skip
        else:
            reads.seen(fn, name, None)
            if hasattr(fn, "func") and callable(fn.func):
                self._start(fn.func, getattr(fn.func, "__name__", name))

    def finish(self) -> Observation:
        """The guards, problems and side effects of the run; lets go of everything held."""
        reads = self._reads
        for use, code in self._late:
            location = Location(code.co_filename, use.line, code.co_name)
            module = sys.modules.get(use.chain[0][1])
            if module is not None:
                self._apply(use, Value(module, use.chain[0][1]), {}, location)
        self._changes()
        self._alive, self._ids = [], frozenset()
        self._functions.clear()
        self._done.clear()
        guards = [place.guard for place in reads.places.values() if place.exported]
        return Observation(
            tuple(guards),
            tuple(reads.tensors.values()),
            tuple(reads.problems.values()),
            tuple(reads.side_effects),
        )

    def _changes(self) -> None:
        changed = [p for p in self._reads.places.values() if not p.guard.holds()]
        for place in changed:
            others = any(p.holder is place.holder and p is not place for p in changed)
            if not (place.guard.kind == "epoch" and others):
                self._reads.side_effect(place.what, place.stored or place.guard.location)

    # ---- events ---------------------------------------------------------------------------------

    def _event(self, frame: types.FrameType, event: str, arg: Any) -> None:
        if self._previous is not None:
            self._previous(frame, event, arg)
        try:
            if event == "call":
                self._call(frame)
            elif event == "c_call" and is_user_frame(frame):
                self._builtin(frame, arg)
            elif event == "return" and arg is not None and is_user_frame(frame):
                self._returned(frame, arg)
        except Exception as error:  # an object that resists being looked at: refuse the capture
            self._reads.problem(
                frame.f_code.co_name, _line(frame),
                f"what it reads cannot be found out ({type(error).__name__}: {error})",
                'Use backend="eager" for this function, and report this',
            )  # fmt: skip

    def _call(self, frame: types.FrameType) -> None:
        code = frame.f_code
        if not is_user_frame(frame):
            self._library(frame)
            return
        if code.co_name == "<module>":
            return  # an import: its code runs once, compiled or not
        values = frame.f_locals
        for function in self._functions.get(id(code), ()):
            for default in function.__defaults__ or ():
                self._reads.know(default)
        functions = self._closures(frame, values)
        count = code.co_argcount + code.co_kwonlyargcount + 2
        outside = [
            values[n] for n in (*code.co_varnames[:count], *code.co_freevars)
            if n in values and not is_atom(values[n]) and self._reads.external(values[n])
        ]  # fmt: skip
        key = (code, id(frame.f_globals), *map(id, functions), *map(id, outside))
        if key not in self._done:
            self._done[key] = (outside, functions)
            self._frame(frame, values, functions)

    def _closures(self, frame: types.FrameType, values: dict[str, Any]) -> list[types.FunctionType]:
        """Functions from before the run whose cells hold what this frame sees."""
        names = frame.f_code.co_freevars
        if not names:
            return []
        return [
            f for f in self._functions.get(id(frame.f_code), ())
            if f.__closure__ is not None
            and all(cell_value(c) is values.get(n, MISSING) for n, c in zip(names, f.__closure__))
        ]  # fmt: skip

    def _frame(
        self, frame: types.FrameType, values: dict[str, Any], functions: list[types.FunctionType]
    ) -> None:
        code = frame.f_code
        self._own_class(code, values)
        roots: dict[Chain, list[Value]] = {}
        for use in analyse(code):
            location = Location(code.co_filename, use.line, code.co_name)
            root = use.chain[:1]
            if root not in roots:
                roots[root] = list(self._roots(root[0], frame, values, functions, location))
            for value in roots[root]:
                self._apply(use, value, roots, location)
            if use.how == "store" and len(use.chain) == 1:
                self._store_root(root[0], frame, functions, location)
            if root[0][0] == "import" and not roots[root]:
                self._late.append((use, code))

    def _own_class(self, code: types.CodeType, values: dict[str, Any]) -> None:
        """A method: guard that the class still has it under its name."""
        if not code.co_argcount or code.co_varnames[0] not in values:
            return
        first = values[code.co_varnames[0]]
        cls = first if isinstance(first, type) else type(first)
        for owner in cls.__mro__:
            raw = owner.__dict__.get(code.co_name)
            if getattr(raw, "__code__", None) is code and self._reads.external(owner):
                name = f"{owner.__name__}.{code.co_name}"
                where = Location(code.co_filename, code.co_firstlineno, code.co_name)
                self._reads.class_slot(owner, code.co_name, raw, name, where)

    # ---- roots ----------------------------------------------------------------------------------

    def _roots(
        self, root: tuple[str, Any], frame: types.FrameType, values: dict[str, Any],
        functions: list[types.FunctionType], location: Location,
    ) -> Iterator[Value]:  # fmt: skip
        kind, name = root
        if kind == "global":
            yield from self._global(frame, name, location)
        elif kind == "free" and functions:
            for function in functions:
                yield from self._free(function, name, location)
        elif kind in ("free", "local"):
            if name in values:
                value = unwrap(values[name])
                yield Value(value, self._reads.name_of(value) if name == ".0" else name)
        elif kind == "import":
            full = name.lstrip(".")
            if full != name:
                package = frame.f_globals.get("__package__") or ""
                base = package.rsplit(".", len(name) - len(full) - 1)[0]
                full = f"{base}.{full}" if full else base
            if full in sys.modules:
                yield Value(sys.modules[full], full)

    def _global(self, frame: types.FrameType, name: str, location: Location) -> Iterator[Value]:
        scope = frame.f_globals
        own = scope.get(name, MISSING)
        if own is MISSING and frame.f_code.co_flags & 0x01 == 0 and name in frame.f_locals:
            return  # the body of a class: its own name
        value = own if own is not MISSING else frame.f_builtins.get(name, MISSING)

        def at(names: Names) -> str:
            return f"{names(scope)}[{name!r}]"

        if own is not MISSING:
            self._reads.place(scope, ("item", str, name), at, own, name, "global", location)
        else:
            inner = frame.f_builtins

            def absent(names: Names) -> str:
                text = f"{name!r} not in {names(scope)}"
                if value is MISSING:
                    return f"{text} and {name!r} not in {names(inner)}"
                return f"{text} and {names(inner)}[{name!r}] is {names(value)}"

            self._reads.place(
                scope, ("item", str, name), at, MISSING, name, "global", location, absent
            )
        if value is not MISSING:
            yield Value(value, name)

    def _free(self, function: types.FunctionType, name: str, location: Location) -> Iterator[Value]:
        assert function.__closure__ is not None, "a function with free variables has cells"
        cell = function.__closure__[function.__code__.co_freevars.index(name)]
        value = cell_value(cell)
        self._reads.place(
            cell, ("cell",), lambda names: f"{names(cell)}.cell_contents", value, name,
            "nonlocal", location, lambda names: "not " + f"{names(is_full)}({names(cell)})",
        )  # fmt: skip
        if value is not MISSING:
            yield Value(value, name)

    def _store_root(
        self, root: tuple[str, Any], frame: types.FrameType,
        functions: list[types.FunctionType], location: Location,
    ) -> None:  # fmt: skip
        kind, name = root
        if kind == "global":
            list(self._global(frame, name, location))
            self._reads.stored((id(frame.f_globals), "item", str, name), location)
        for function in functions if kind == "free" else ():
            list(self._free(function, name, location))
            cell = (function.__closure__ or ())[function.__code__.co_freevars.index(name)]
            self._reads.stored((id(cell), "cell"), location)

    # ---- uses -----------------------------------------------------------------------------------

    def _apply(
        self, use: Use, root: Value, roots: dict[Chain, list[Value]], location: Location
    ) -> None:
        reads = self._reads
        if use.how == "store":
            self._store(use, root, location)
            return
        for found in reads.resolve(root, use.chain, location):
            if not reads.external(found.value):
                continue
            if use.how == "read" and len(use.chain) == 1 and use.chain[0][0] in ("local", "free"):
                self._handed_in(found, location)
            how = use.how
            if how == "argument":
                how = self._passed(use, roots, location)
            if how == "operate":
                how = "deep" if isinstance(found.value, CONTAINERS) else "read"
            if how == "contents":
                reads.contents(found.value, found.name, location)
            elif how == "deep":
                reads.deep(found.value, found.name, location)

    def _handed_in(self, found: Value, location: Location) -> None:
        """An object that reached a frame as a variable; tensors come guarded, or are arguments."""
        value = found.value
        given = id(value) in self._reads.keyed or any(value is a for a in self._arguments)
        if isinstance(value, Epoch) or not (given or isinstance(value, Tensor) or is_atom(value)):
            self._reads.seen(value, found.name, location)

    def _store(self, use: Use, root: Value, location: Location) -> None:
        if len(use.chain) == 1:
            return
        key = use.chain[-1][1]
        for holder in self._reads.resolve(root, use.chain[:-1], location):
            value = holder.value
            if not self._reads.external(value) or isinstance(value, Tensor):
                continue  # attributes of tensors are the recorder's
            own = getattr(value, "__dict__", {})
            current = own.get(key, MISSING) if key in own or hasattr(value, "__dict__") \
                else getattr(value, key, MISSING)  # fmt: skip
            self._reads.place(
                value, ("stored", key), lambda names, v=value: f"{names(v)}.{key}", current,
                f"{holder.name}.{key}", "attribute", location,
                lambda names, v=value: f"{key!r} not in {names(v)}.__dict__",
            )  # fmt: skip
            self._reads.stored((id(value), "attr", key), location)

    def _passed(self, use: Use, roots: dict[Chain, list[Value]], location: Location) -> str:
        """How far an argument must be looked into: not at all where the callee is seen."""
        if not use.callees:
            return "deep"
        worst, found = "read", False
        for chain in use.callees:
            for root in roots.get(chain[:1], ()):
                for callee in self._reads.resolve(root, chain, location):
                    how, found = needs(callee.value), True
                    worst = max(worst, how, key=("read", "contents", "deep").index)
            if chain[:1] not in roots:
                return "deep"
        return worst if found else "deep"

    # ---- what calls and returns show ------------------------------------------------------------

    def _library(self, frame: types.FrameType) -> None:
        caller = frame.f_back
        if caller is None or not is_user_frame(caller):
            return
        module = str(frame.f_globals.get("__name__", ""))
        name = frame.f_code.co_name
        if module.partition(".")[0] in IMPURE_MODULES and not name.startswith("<"):
            self._reads.side_effect(f"{module}.{name}", _line(caller))
        if module.partition(".")[0] == "pathlib" and name in FILE_METHODS:
            self._reads.side_effect(f"pathlib.{name}", _line(caller))
        code = frame.f_code
        for argument in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + 2]:
            value = frame.f_locals.get(argument)
            if value is not None and not is_atom(value) and module.split(".")[0] != "logging":
                self._handed_over(value, _line(caller), module.startswith("tracegrad"))

    def _handed_over(
        self, value: Any, where: Location | None, to_tracegrad: bool, depth: int = 0
    ) -> None:
        """An argument of a library function; `*args` and `**kwargs` are looked into."""
        reads = self._reads
        if is_atom(value) or isinstance(value, (Tensor, types.ModuleType)):
            return
        if id(value) in reads.keyed:
            return
        if not reads.external(value):
            if isinstance(value, (list, tuple, dict)) and depth < 3 and len(value) <= 256:
                for element in value.values() if isinstance(value, dict) else value:
                    self._handed_over(element, where, to_tracegrad, depth + 1)
            return
        name = reads.name_of(value)
        if to_tracegrad:
            reads.contents(value, name, where)
        else:
            reads.deep(value, name, where)

    def _returned(self, frame: types.FrameType, value: Any, depth: int = 0) -> None:
        value = unwrap(value)
        if is_atom(value) or id(value) in self._reads.keyed:
            return
        if self._reads.external(value):
            if frame.f_back is not None and depth == 0 and self._is_outermost(frame):
                return
            self._reads.deep(value, self._reads.name_of(value), _line(frame))
        elif isinstance(value, (list, tuple, dict, set)) and depth < 3 and len(value) <= 256:
            for element in value.values() if isinstance(value, dict) else value:
                self._returned(frame, element, depth + 1)

    def _is_outermost(self, frame: types.FrameType) -> bool:
        fn = getattr(self._fn, "__func__", self._fn)
        return frame.f_code is getattr(fn, "__code__", None)

    def _builtin(self, frame: types.FrameType, called: Any) -> None:
        what = impure(called)
        if what == "globals":
            self._reads.problem(
                "globals()", _line(frame), "any global variable may be read through it",
                "Name the variables that are meant",
            )  # fmt: skip
        elif what:
            self._reads.side_effect(what, _line(frame))
        owner = getattr(called, "__self__", None)
        if isinstance(owner, MUTABLE) and self._reads.external(owner):
            self._reads.contents(owner, self._reads.name_of(owner), _line(frame))


def _line(frame: types.FrameType) -> Location:
    return Location(frame.f_code.co_filename, frame.f_lineno or 0, frame.f_code.co_name)
