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
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tracegrad.ir.location import Location
from tracegrad.tracer.capture_hook import Followed
from tracegrad.tracer.guard_text import MISSING, is_atom
from tracegrad.tracer.guards import Observation
from tracegrad.tracer.modules import is_user_frame
from tracegrad.tracer.observe_calls import (
    FILE_METHODS,
    IMPURE_MODULES,
    STATE_OF_TRACEGRAD,
    impure,
)
from tracegrad.tracer.observe_frames import Frames
from tracegrad.tracer.pytree import fields, is_record
from tracegrad.tracer.reads import Reads
from tracegrad.tracer.reads_objects import cell_value, own_attributes, unwrap
from tracegrad.tracer.stand_in_rules import Watch
from tracegrad.tracer.tensor import Tensor

MUTABLE = (list, dict, set, deque, bytearray)
Profiler = Callable[[types.FrameType, str, Any], Any]


class Before:
    """The objects that exist when a run begins; there may be millions, so what is made of them is
    made when it is first asked for.
    """

    def __init__(self) -> None:
        self._objects = gc.get_objects()
        self._ids: np.ndarray | None = None  # sorted
        self._by_code: dict[int, list[types.FunctionType]] | None = None

    def holds(self, value: object) -> bool:
        """Whether `value`, which the garbage collector tracks, was there."""
        if self._ids is None:
            self._ids = np.fromiter(map(id, self._objects), np.int64, len(self._objects))
            self._ids.sort()
        k = int(np.searchsorted(self._ids, id(value)))
        return k < len(self._ids) and int(self._ids[k]) == id(value)

    def close(self) -> None:
        """Let go of all: the list holds this object too, and the observer."""
        self._objects, self._ids, self._by_code = [], None, None

    def functions(self, code: types.CodeType) -> Sequence[types.FunctionType]:
        """The functions made of `code`."""
        if self._by_code is None:
            self._by_code = {}
            for f in [x for x in self._objects if type(x) is types.FunctionType]:
                self._by_code.setdefault(id(f.__code__), []).append(f)
        return self._by_code.get(id(code), ())


_IMPORTING = "<frozen importlib"  # begins the file names of what runs imports


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

    def __init__(
        self, fn: Callable[..., Any], arguments: Sequence[object], watch: Watch | None = None
    ) -> None:
        self._fn = fn
        self._watch = watch  # where some of the arguments are stand-ins
        self._arguments = arguments
        self._before: Before | None = None
        self._done: dict[tuple[Any, ...], Any] = {}
        self._users: dict[int, bool] = {}
        self._codes: list[types.CodeType] = []  # keeps the ids in `_users` their own
        self._base: types.FrameType | None = None
        self._previous: Any = None
        self._importing: types.FrameType | None = None
        self._reads = Reads(self.existed)
        self._frames = Frames(self._reads, arguments)

    # ---- the with block -------------------------------------------------------------------------

    def __enter__(self) -> Observer:
        self._before = Before()
        for argument in self._arguments:
            self._argument(argument)
        name = getattr(self._fn, "__qualname__", type(self._fn).__name__).rpartition(".")[2]
        self._start(self._fn, name)
        self._base = sys._getframe(1)
        self._previous = sys.getprofile()
        sys.setprofile(self._hook())
        return self

    def existed(self, value: object) -> bool:
        """Whether an object that the garbage collector tracks was there before the run."""
        return self._before is not None and self._before.holds(value)

    def external(self, value: object) -> bool:
        """Whether an object was there before the run, or was read from outside."""
        return self._reads.external(value)

    @property
    def keyed(self) -> set[int]:
        """Ids of the tensors and containers among the arguments."""
        return self._reads.keyed

    def _functions(self, code: types.CodeType) -> Sequence[types.FunctionType]:
        return () if self._before is None else self._before.functions(code)

    def _forget(self) -> None:
        if self._before is not None:
            self._before.close()
            self._before = None

    def __exit__(self, *error: object) -> None:
        if self._previous is None or callable(self._previous):
            sys.setprofile(self._previous)
        else:  # cProfile's, which is switched on in its own way
            self._previous.enable()
        if error[0] is not None:  # nobody will ask `finish`
            self._forget()
        self._base = None

    def _argument(self, value: Any) -> None:
        if isinstance(value, (list, tuple, dict)) or is_record(type(value)):
            self._reads.keyed.add(id(value))
            self._reads.know(value)
            if is_record(type(value)):
                value = fields(value)
            for element in value.values() if isinstance(value, dict) else value:
                self._argument(element)
        elif not is_atom(value):
            self._reads.know(value)
            if isinstance(value, Tensor):
                self._reads.keyed.add(id(value))

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

    def finish(self, tensors: Sequence[Tensor] = ()) -> Observation:
        """The guards, problems and side effects of the run; lets go of everything held.

        Args:
            tensors: those from outside that the run computed with.
        """
        reads = self._reads
        self._attributes(tensors)
        self._frames.finish()
        changed = self._changes()
        self._forget()
        self._users.clear()
        self._codes.clear()
        self._done.clear()
        exported = [place for place in reads.places.values() if place.exported]
        return Observation(
            tuple(place.guard for place in exported),
            tuple(reads.tensors.values()),
            tuple(reads.problems.values()),
            tuple(reads.side_effects),
            tuple(place.holder for place in exported),
            tuple(changed),
        )

    def _attributes(self, tensors: Sequence[Tensor]) -> None:
        """Guard what the user has put on parameters, where code that ran names it.

        However the code came to the parameter: by iterating over those of a module, for example. That
        an attribute is not there counts where code asks with `getattr` or `hasattr`.
        """
        codes = [c for c in self._codes if self._users.get(id(c))]
        named = {name for code in codes for name in code.co_names}
        asked = {
            text for code in codes if {"getattr", "hasattr"} & set(code.co_names)
            for text in code.co_consts if isinstance(text, str) and text.isidentifier()
        }  # fmt: skip
        for tensor in {id(t): t for t in (*tensors, *self._reads.tensors.values())}.values():
            own = own_attributes(tensor)
            if own is None or not self._reads.external(tensor):
                continue
            for name in sorted(named & own.keys() | asked):
                self._reads.of_parameter(tensor, name)

    def _changes(self) -> list[Any]:
        """Note what the run changed as side effects; returns the objects that hold it."""
        changed = [p for p in self._reads.places.values() if not p.guard.holds()]
        for place in changed:
            others = any(p.holder is place.holder and p is not place for p in changed)
            if not (place.guard.kind == "epoch" and others):
                self._reads.side_effect(place.what, place.stored or place.guard.location)
        return [p.holder for p in changed]

    # ---- events ---------------------------------------------------------------------------------

    def _hook(self) -> Profiler:
        """What `sys.setprofile` calls; events inside libraries leave it as early as can be."""
        users, event_of_user = self._users, self._event
        previous = self._previous if callable(self._previous) else None

        def hook(frame: types.FrameType, event: str, arg: Any) -> None:
            if previous is not None:
                previous(frame, event, arg)
            if self._importing is not None:  # what a module does as it is imported, it does once
                if event == "return" and frame is self._importing:
                    self._importing = None
                return
            if users.get(id(frame.f_code)) is False:
                if event != "call":
                    return
                caller = frame.f_back
                if caller is None or users.get(id(caller.f_code)) is False:
                    return
            event_of_user(frame, event, arg)

        return hook

    def _event(self, frame: types.FrameType, event: str, arg: Any) -> None:
        try:
            user = self._is_user(frame)
            if event == "call" and frame.f_code.co_filename.startswith(_IMPORTING):
                self._importing = frame
            elif event == "call":
                if user:
                    if self._watch is not None:
                        self._watch.call(frame)
                    self._call(frame)
                elif frame.f_back is not None and self._is_user(frame.f_back):
                    self._library(frame, frame.f_back)
            elif not user or frame is self._base:
                pass
            elif event == "c_call":
                self._builtin(frame, arg)
            elif event == "return" and arg is not None:
                self._returned(frame, arg)
        except Exception as error:  # an object that resists being looked at: refuse the capture
            self._reads.problem(
                frame.f_code.co_name, _line(frame),
                f"what it reads cannot be found out ({type(error).__name__}: {error})",
                'Use backend="eager" for this function, and report this',
            )  # fmt: skip

    def _is_user(self, frame: types.FrameType) -> bool:
        """Whether the code is the user's; asked at every event, so remembered by id."""
        code = frame.f_code
        known = self._users.get(id(code))
        if known is None:
            self._codes.append(code)
            known = self._users[id(code)] = is_user_frame(frame)
        return known

    def _call(self, frame: types.FrameType) -> None:
        code = frame.f_code
        if code.co_name == "<module>":
            return  # text given to exec
        values = frame.f_locals
        for function in self._functions(code):
            for default in function.__defaults__ or ():
                self._reads.know(default)
        functions = self._closures(frame, values)
        count = code.co_argcount + code.co_kwonlyargcount + 2
        outside = [
            values[n] for n in (*code.co_varnames[:count], *code.co_freevars)
            if n in values and not is_atom(values[n]) and self._reads.external(values[n])
        ]  # fmt: skip
        key = (id(code), id(frame.f_globals), *map(id, functions), *map(id, outside))
        if key not in self._done:
            self._done[key] = (code, outside, functions)
            self._frames.look(frame, values, functions)

    def _closures(self, frame: types.FrameType, values: dict[str, Any]) -> list[types.FunctionType]:
        """Functions from before the run whose cells hold what this frame sees."""
        names = frame.f_code.co_freevars
        if not names:
            return []
        return [
            f for f in self._functions(frame.f_code)
            if f.__closure__ is not None
            and all(cell_value(c) is values.get(n, MISSING) for n, c in zip(names, f.__closure__))
        ]  # fmt: skip

    # ---- what calls and returns show ------------------------------------------------------------

    def _library(self, frame: types.FrameType, caller: types.FrameType) -> None:
        """Code of a library, called from the user's: is it impure, and what is it given?"""
        if caller is self._base:
            return
        module = str(frame.f_globals.get("__name__", ""))
        name = frame.f_code.co_name
        if self._watch is not None and module.partition(".")[0] != "tracegrad":
            self._watch.library(f"{module}.{name}")
        if module.partition(".")[0] in IMPURE_MODULES and not name.startswith("<"):
            self._reads.side_effect(f"{module}.{name}", _line(caller))
        if name in STATE_OF_TRACEGRAD.get(module, ()):
            self._reads.side_effect(f"tracegrad.{name}", _line(caller))
        if module.partition(".")[0] == "pathlib" and name in FILE_METHODS:
            self._reads.side_effect(f"pathlib.{name}", _line(caller))
        owner = frame.f_locals.get("self")
        if isinstance(owner, Followed) and name not in owner.followed and self.existed(owner):
            self._reads.side_effect(f"tracegrad.{type(owner).__name__}.{name}", _line(caller))
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
        if self._watch is not None:
            self._watch.builtin(called)
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
