"""What the frame of one call reads: its variables, and the chains that start at them.

Start reading at `Frames.look`.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any

from tracegrad.ir.location import Location
from tracegrad.tracer.bytecode import analyse
from tracegrad.tracer.bytecode_chains import Chain, Use
from tracegrad.tracer.epoch import Epoch
from tracegrad.tracer.guard_text import MISSING, Names, is_atom
from tracegrad.tracer.observe_calls import needs
from tracegrad.tracer.reads import Reads, Value
from tracegrad.tracer.reads_objects import CONTAINERS, cell_value, is_full, lookup, unwrap
from tracegrad.tracer.tensor import Tensor


class Frames:
    """Turns the uses of chains by a code object into guards, for the values that it meets.

    Args:
        reads: where places are noted.
        arguments: the arguments of the observed call, which its caller keys.
    """

    def __init__(self, reads: Reads, arguments: Sequence[object]) -> None:
        self._reads = reads
        self._arguments = arguments
        self._late: list[tuple[Use, types.CodeType]] = []
        self._seen_through: dict[
            tuple[int, str], list[types.FunctionType]
        ] = {}  # by inner code and name

    def look(
        self, frame: types.FrameType, values: dict[str, Any], functions: list[types.FunctionType]
    ) -> None:
        """Guard what a frame is about to read.

        Args:
            frame: a call that has just begun.
            values: its variables.
            functions: functions from before the run that this may be a call of.
        """
        code = frame.f_code
        self._own_class(code, values)
        self._passed_on(code, functions)
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

    def finish(self) -> None:
        """Look at modules that were imported during the run."""
        for use, code in self._late:
            location = Location(code.co_filename, use.line, code.co_name)
            module = sys.modules.get(use.chain[0][1])
            if module is not None:
                self._apply(use, Value(module, use.chain[0][1]), {}, location)

    def _passed_on(self, code: types.CodeType, functions: Sequence[types.FunctionType]) -> None:
        """Note whose cells the functions and comprehensions in this one see through it.

        Those are made during the run, and have no cells from before it.
        """
        for inner in code.co_consts:
            if isinstance(inner, types.CodeType):
                for name in {*inner.co_freevars} & {*code.co_freevars}:
                    known = self._seen_through.setdefault((id(inner), name), [])
                    above = functions or self._seen_through.get((id(code), name), ())
                    known += [f for f in above if all(f is not g for g in known)]

    def _owners(
        self, name: str, frame: types.FrameType, functions: Sequence[types.FunctionType]
    ) -> list[types.FunctionType]:
        """The functions from before the run in whose cell a free variable of a frame lies."""
        if functions:
            return list(functions)
        value = frame.f_locals.get(name, MISSING)
        return [
            f for f in self._seen_through.get((id(frame.f_code), name), ())
            if cell_value(_cell(f, name)) is value
        ]  # fmt: skip

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
        elif kind == "free" and (owners := self._owners(name, frame, functions)):
            for function in owners:
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
        cell = _cell(function, name)
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
        for function in self._owners(name, frame, functions) if kind == "free" else ():
            list(self._free(function, name, location))
            self._reads.stored((id(_cell(function, name)), "cell"), location)

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
        """A place that is assigned or deleted: noted with its value before that."""
        if len(use.chain) == 1:
            return
        key = use.chain[-1][1]
        for holder in self._reads.resolve(root, use.chain[:-1], location):
            owner = holder.value
            told = isinstance(owner, Tensor) and lookup(type(owner), key)[1] is not MISSING
            if self._reads.external(owner) and not told:  # those of tensors: the recorder is told
                self._store_attribute(holder, key, location)

    def _store_attribute(self, holder: Value, key: str, location: Location) -> None:
        owner = holder.value
        if hasattr(owner, "__dict__"):
            current = owner.__dict__.get(key, MISSING)
        else:
            current = getattr(owner, key, MISSING)

        def at(names: Names) -> str:
            return f"{names(owner)}.{key}"

        def absent(names: Names) -> str:
            if hasattr(owner, "__dict__"):
                return f"{key!r} not in {names(owner)}.__dict__"
            return f"not {names(hasattr)}({names(owner)}, {key!r})"

        name = f"{holder.name}.{key}"
        self._reads.place(
            owner, ("stored", key), at, current, name, "attribute", location, absent
        )  # fmt: skip
        self._reads.stored((id(owner), "attr", key), location)

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


def _cell(function: types.FunctionType, name: str) -> types.CellType:
    """The cell of a free variable."""
    assert function.__closure__ is not None, "a function with free variables has cells"
    return function.__closure__[function.__code__.co_freevars.index(name)]
