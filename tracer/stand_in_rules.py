"""Whether code could tell a stand-in for a number from the number: see `tracegrad.tracer.symbolic`.

Arithmetic, comparisons and `isinstance` cannot. `type` can, and `is`; so can a function in C, which
wants a float and raises a TypeError, and what catches that error. So a function gets stand-ins only
where all that it may run is known to treat them as numbers: the user's own code without such means,
tracegrad, Python's built-in functions on numbers, `math`, NumPy's ufuncs. Nothing else is asked for
its reasons. `telling` looks at what a function may run before it does; `Watch` at what it runs.
"""

from __future__ import annotations

import builtins
import dis
import functools
import itertools
import math
import operator
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from tracegrad.tracer.modules import is_user_class, is_user_code, is_user_module
from tracegrad.tracer.tensor import Tensor

_DENIED = frozenset(
    "type id vars globals locals dir eval exec compile open memoryview bytearray bytes __import__ "
    "input breakpoint help".split()
)
_DUNDERS = frozenset(
    "__class__ __init__ __call__ __enter__ __exit__ __post_init__ __name__ __qualname__ __doc__ "
    "__dict__ __setattr__ __file__".split()
)
_C_TYPES = (
    deque, OrderedDict, defaultdict, functools.partial, itertools.count, itertools.chain,
    itertools.product, itertools.repeat, itertools.accumulate, itertools.islice, itertools.cycle,
    itertools.combinations, itertools.permutations, itertools.starmap, itertools.takewhile,
    itertools.zip_longest, types.SimpleNamespace,
)  # fmt: skip
_MODULES = (math, operator, itertools, functools, builtins)
_C_MODULES = ("math", "_operator", "_functools", "itertools", "_collections")
_OPERATOR_DENIED = ("is_", "is_not", "methodcaller", "attrgetter")
_NUMPY = frozenset("array asarray zeros ones empty full".split())
_OWNERS = (list, dict, set, frozenset, tuple, str, int, float, bool, deque, range, slice)
_ATOMS = (int, float, complex, str, bytes, bool, type(None), type(Ellipsis), type(NotImplemented))
_HARMLESS = (None, True, False, Ellipsis)  # singletons: no number is one
_CATCHES = frozenset(("CHECK_EXC_MATCH", "CHECK_EG_MATCH", "JUMP_IF_NOT_EXC_MATCH"))


def telling(fn: Any, arguments: Iterable[Any]) -> str:
    """What of the code that `fn` may run could tell stand-ins from numbers, in words; "" if nothing.

    Followed are the functions and classes that code refers to by global names and closures, and the
    methods that it names of the classes of `arguments`. What is reached otherwise, `Watch` sees.
    """
    reach = _Reach()
    for x in (fn, *arguments):
        reach.value(x)
    return reach.run()


class Watch:
    """What a run with stand-ins does, looked at as it does it.

    Attributes:
        reason: the first thing that could tell a stand-in from a number, or "".
    """

    def __init__(self) -> None:
        self.reason = ""
        self._seen: set[types.CodeType] = set()

    def call(self, frame: types.FrameType) -> None:
        """The user's code begins to run."""
        code = frame.f_code
        if self.reason or code in self._seen:
            return
        self._seen.add(code)
        values = frame.f_locals
        cells = {n: values[n] for n in code.co_freevars if n in values}
        reach = _Reach(follow=False)
        reach.code(code, frame.f_globals, cells)
        self.reason = reach.run()

    def library(self, name: str) -> None:
        """The user's code calls Python code of a library other than tracegrad."""
        self.reason = self.reason or f"{name} of a library"

    def builtin(self, called: Any) -> None:
        """The user's code calls a function in C."""
        if not self.reason and not _is_known_in_c(called):
            name = getattr(called, "__qualname__", None) or type(called).__name__
            self.reason = f"{name} in C"


class _Reach:
    """Values that code may use, looked at one after the other."""

    def __init__(self, follow: bool = True) -> None:
        self._follow = follow
        self._reason = ""
        self._codes: dict[types.CodeType, None] = {}
        self._names: set[str] = set()  # attributes that any of the code names
        self._classes: dict[type, None] = {}
        self._kept: list[Any] = []
        self._seen: set[Any] = set()

    def run(self) -> str:
        """Follow everything that was met."""
        count = -1
        while not self._reason and count != len(self._codes):
            count = len(self._codes)
            for cls in list(self._classes):
                for method in self._methods(cls):
                    self.value(method)
        return self._reason

    def _methods(self, cls: type) -> Iterator[Any]:
        for base in cls.__mro__:
            if is_user_class(base):
                for name, raw in list(vars(base).items()):
                    if name in self._names or (name[:2] == "__" and name not in ("__dict__",)):
                        found = getattr(raw, "__func__", None) or getattr(raw, "fget", None) or raw
                        if isinstance(found, types.FunctionType):
                            yield found

    def refuse(self, what: str) -> None:
        self._reason = self._reason or what

    def code(self, code: types.CodeType, names: dict[str, Any], cells: dict[str, Any]) -> None:
        """One code object, and those inside it, with the global variables it sees."""
        if code in self._codes or self._reason:
            return
        self._codes[code] = None
        if reason := code_tells(code):
            self.refuse(f"{code.co_name} {reason}")
            return
        self._names.update(code.co_names)
        for name in code.co_names:
            found = names.get(name, _Nothing)
            if found is _Nothing:
                if name in _DENIED and hasattr(builtins, name) and _loads_global(code, name):
                    self.refuse(f"{code.co_name} uses {name}")
            elif _loads_global(code, name):
                self.value(found, code)
        for found in cells.values():
            self.value(found, code)
        for inner in code.co_consts:
            if isinstance(inner, types.CodeType):
                self.code(inner, names, {})

    def value(self, x: Any, used_by: types.CodeType | None = None, depth: int = 0) -> None:
        """A value that code refers to."""
        if self._reason or type(x) in _ATOMS:
            return
        key = (id(x), id(used_by)) if isinstance(x, types.ModuleType) else id(x)
        if key in self._seen:  # of a module each code names attributes of its own
            return
        self._seen.add(key)
        self._kept.append(x)
        if isinstance(x, types.ModuleType):
            self._module(x, used_by)
        elif isinstance(x, types.FunctionType):
            self._function(x)
        elif isinstance(x, types.MethodType):
            self.value(x.__func__, used_by)
            self.value(x.__self__, used_by)
        elif isinstance(x, (types.BuiltinFunctionType, types.MethodDescriptorType)):
            if not _is_known_in_c(x):
                self.refuse(f"{x.__qualname__} in C")
        elif isinstance(x, type):
            self._class(x)
        elif isinstance(x, (list, tuple, set, frozenset, dict)):
            parts = list(x.values()) if isinstance(x, dict) else list(x)
            for part in parts if depth < 4 else ():
                self.value(part, used_by, depth + 1)
        elif isinstance(x, functools.partial):
            self.value(x.func, used_by)
        elif isinstance(x, (np.ufunc, np.ndarray, np.generic, np.dtype, Tensor, slice, range)):
            pass
        else:
            wrapped = getattr(x, "__wrapped__", None)
            if wrapped is not None:
                self.value(wrapped, used_by)
            self._class(type(x))

    def _function(self, fn: types.FunctionType) -> None:
        if _is_tracegrads(fn.__module__):
            return
        if not is_user_code(fn.__code__):
            self.refuse(f"{fn.__module__}.{fn.__qualname__} of a library")
        elif self._follow:
            cells = {}
            for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=False):
                try:
                    cells[name] = cell.cell_contents
                except ValueError:  # not yet assigned
                    continue
            self.code(fn.__code__, fn.__globals__, cells)
            for default in (*(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values()):
                self.value(default)

    def _class(self, cls: type) -> None:
        if is_user_class(cls):
            if self._follow:
                self._classes[cls] = None
        elif cls.__module__ == "builtins":
            if cls.__name__ in _DENIED:
                self.refuse(f"{cls.__name__}")
        elif not (
            _is_tracegrads(cls.__module__) or cls in _C_TYPES or issubclass(cls, BaseException)
            or issubclass(cls, (np.generic, np.ndarray, np.dtype))
        ):  # fmt: skip
            self.refuse(f"{cls.__module__}.{cls.__qualname__} of a library")

    def _module(self, module: types.ModuleType, used_by: types.CodeType | None) -> None:
        """What the code names of a module; only of some modules is it known what that does."""
        name = module.__name__
        if _is_tracegrads(name):
            return
        named = [n for n in (used_by.co_names if used_by else ()) if hasattr(module, n)]
        if name.partition(".")[0] == "numpy":
            for n in named:
                found = getattr(module, n)
                fine = isinstance(found, (np.ufunc, float, int)) or n in _NUMPY
                if not fine and not (isinstance(found, type) and issubclass(found, np.generic)):
                    self.refuse(f"numpy.{n}")
        elif module in _MODULES or getattr(module, "__file__", None) and is_user_module(module):
            for n in named:
                if module is operator and n in _OPERATOR_DENIED:
                    self.refuse(f"operator.{n}")
                self.value(getattr(module, n), used_by)
        else:
            self.refuse(f"{name}, a library")


class _Nothing:
    """No such global variable."""


def _is_tracegrads(module: Any) -> bool:
    return str(module).partition(".")[0] == "tracegrad"


def _is_known_in_c(called: Any) -> bool:
    """Whether a function in C takes stand-ins for the numbers that they are."""
    owner = getattr(called, "__self__", None)
    name = getattr(called, "__name__", "")
    if isinstance(called, types.MethodDescriptorType):
        owner = called.__objclass__
    if owner is builtins or (owner is None and called.__module__ == "builtins"):
        return name not in _DENIED
    if isinstance(owner, types.ModuleType) or owner is None:
        module = owner.__name__ if owner is not None else str(called.__module__)
        return module in _C_MODULES and name not in _OPERATOR_DENIED
    kind = owner if isinstance(owner, type) else type(owner)
    if _is_tracegrads(kind.__module__) or issubclass(kind, (Tensor, np.ndarray, np.generic)):
        return True
    return issubclass(kind, _OWNERS) or is_user_class(kind) or kind in (
        types.GeneratorType, types.CoroutineType, object, super, property,
    )  # fmt: skip


@functools.lru_cache(maxsize=4096)
def _globals_of(code: types.CodeType) -> frozenset[str]:
    loads = ("LOAD_GLOBAL", "LOAD_NAME")
    return frozenset(at.argval for at in dis.get_instructions(code) if at.opname in loads)


def _loads_global(code: types.CodeType, name: str) -> bool:
    return name in _globals_of(code)


_PUSHES = "PUSH_EXC_INFO" in dis.opmap


@functools.lru_cache(maxsize=4096)
def code_tells(code: types.CodeType) -> str:
    """What in the instructions of code could tell a stand-in from a number, in words, or ""."""
    before: dis.Instruction | None = None
    caught = 0
    instructions = list(dis.get_instructions(code))
    for k, at in enumerate(instructions):
        if at.opname in _CATCHES:
            return "catches errors"
        if at.opname == "IS_OP" and not _is_singleton(before):
            return "compares with `is`"
        if at.opname == "IMPORT_NAME" and str(at.argval).partition(".")[0] not in (
            "tracegrad", "math", "numpy", "torch",
        ):  # fmt: skip
            return f"imports {at.argval}"
        if at.opname in ("LOAD_ATTR", "LOAD_METHOD") and _is_dunder(at.argval):
            return f"reads {at.argval}"
        if at.opname == "POP_TOP" and before is not None and before.opname == "PUSH_EXC_INFO":
            return "catches errors"  # a bare `except:`
        if at.opname == "POP_EXCEPT":  # an error ends here, unless it is raised again
            after = instructions[k + 1].opname if k + 1 < len(instructions) else ""
            caught += not _PUSHES or after != "RERAISE"
        caught -= at.opname == "WITH_EXCEPT_START"
        before = at
    if caught > 0:
        return "catches errors"
    if code.co_name == "__exit__":
        return "can catch errors"
    asks = "hasattr" in code.co_names or "getattr" in code.co_names
    if asks and any(isinstance(c, str) and _is_dunder(c) for c in code.co_consts):
        return "asks for special methods"
    return ""


def _is_dunder(name: Any) -> bool:
    text = str(name)
    return text.startswith("__") and text.endswith("__") and text not in _DUNDERS


def _is_singleton(at: dis.Instruction | None) -> bool:
    return at is not None and at.opname == "LOAD_CONST" and any(at.argval is x for x in _HARMLESS)


def without_stand_ins(holder: Any, plain: Callable[[Any], Any], depth: int = 0) -> Any:
    """Replace the stand-ins in containers, dictionaries of objects and errors; in place where that
    can be.

    Args:
        plain: the number that a stand-in is; other values as they are.
    """
    if depth > 4:
        return holder
    if type(holder) is tuple:
        parts = tuple(without_stand_ins(plain(x), plain, depth + 1) for x in holder)
        return holder if all(a is b for a, b in zip(holder, parts, strict=True)) else parts
    if isinstance(holder, dict):
        entries = [(k, v, plain(k), without_stand_ins(plain(v), plain, depth + 1))
                   for k, v in list(holder.items())]  # fmt: skip
        if any(k is not new for k, _, new, _ in entries):
            holder.clear()
            holder.update((new, v) for _, _, new, v in entries)
        else:
            for k, v, _, new in entries:
                if v is not new:
                    holder[k] = new
    elif isinstance(holder, (list, deque)):
        for i, x in enumerate(holder):
            new = without_stand_ins(plain(x), plain, depth + 1)
            if new is not x:
                holder[i] = new
    elif isinstance(holder, set):
        stand_ins = [x for x in holder if plain(x) is not x]
        holder.difference_update(stand_ins)
        holder.update(map(plain, stand_ins))
    return holder
