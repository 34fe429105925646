"""What calls do: which built-ins and library functions are impure, and how far arguments go.

Start reading at `impure`, then `needs`.
"""

from __future__ import annotations

import builtins
import io
import random
import types
from typing import Any

from tracegrad.tracer.epoch import Epoch

IMPURE_BUILTINS = frozenset("print input open exec eval __import__ breakpoint id".split())
IMPURE_MODULES = frozenset(
    "time posix nt socket _socket select subprocess _posixsubprocess _warnings warnings logging "
    "random sys os genericpath secrets uuid tempfile shutil urllib http threading _thread "
    "multiprocessing asyncio signal gc ctypes sqlite3 mmap fcntl syslog webbrowser smtplib ftplib".split()
)
FILE_METHODS = frozenset(
    "open read_text write_text read_bytes write_bytes mkdir unlink touch rename exists stat "
    "iterdir".split()
)
STATE_OF_TRACEGRAD = {
    "tracegrad.runtime.threads": ("get_num_threads", "set_num_threads"),
    "tracegrad.tracer.printing": ("get_printoptions", "set_printoptions"),
}
_NOTHING_INSIDE = frozenset(
    "len sum any all range int float abs str bool repr hash round divmod pow bytes complex ord chr "
    "format min max sorted list tuple set frozenset dict enumerate zip reversed iter next "
    "slice".split()
)


def impure(called: Any) -> str:
    """What a built-in does that a replay would not do again, or "" where it does nothing."""
    name, module = getattr(called, "__name__", ""), getattr(called, "__module__", None) or ""
    owner = getattr(called, "__self__", None)
    if called is open:
        return "open"
    if owner is builtins:
        return name if name in IMPURE_BUILTINS or name == "globals" else ""
    if isinstance(owner, random.Random):
        return f"random.{name}"
    if isinstance(owner, io.IOBase):
        return f"{getattr(owner, 'name', 'file')} {name}"
    if isinstance(owner, type):
        clock = owner.__module__ == "datetime" and name in ("now", "today", "utcnow")
        return f"datetime.{name}" if clock else ""
    if type(owner).__module__.startswith("numpy.random"):
        return f"numpy.random {name}"
    top = module.partition(".")[0] if module else type(owner).__module__.partition(".")[0]
    return f"{top}.{name}" if top in IMPURE_MODULES else ""


def needs(callee: Any) -> str:
    """How an argument of `callee` must be looked into."""
    if isinstance(callee, types.MethodType):
        callee = callee.__func__
    if isinstance(callee, (types.FunctionType, Epoch)):
        return "read"
    if isinstance(callee, types.BuiltinFunctionType):
        return "contents" if callee.__name__ in _NOTHING_INSIDE or callee is print else "deep"
    if isinstance(callee, type):
        if callee.__module__ == "builtins":
            return "contents" if callee.__name__ in _NOTHING_INSIDE else "deep"
        made = any("__init__" in c.__dict__ for c in callee.__mro__ if c.__module__ != "builtins")
        return "read" if made else "deep"
    calls = [c.__dict__["__call__"] for c in type(callee).__mro__ if "__call__" in c.__dict__]
    return "read" if calls and isinstance(calls[0], types.FunctionType) else "deep"
