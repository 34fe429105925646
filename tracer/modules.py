"""Whose code is it: the user's, or that of tracegrad, NumPy, SciPy and the standard library.

Everything that is not one of these four is the user's, packages of others included.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import types
from functools import lru_cache

import numpy as np

from tracegrad.ir.location import is_internal

_STANDARD = tuple(
    os.path.join(os.path.realpath(path), "") for path in {
        sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["platstdlib"],
        os.path.dirname(os.__file__),
    }
)  # fmt: skip
_ARRAYS = tuple(
    os.path.join(os.path.dirname(os.path.dirname(np.__file__)), name, "")
    for name in ("numpy", "scipy")
)
_LIBRARIES = ("tracegrad", "numpy", "scipy")


@lru_cache(maxsize=4096)
def is_user_file(filename: str) -> bool:
    """Whether a source file is the user's."""
    if filename.startswith("<frozen ") or is_internal(filename):
        return False
    if filename.startswith("<"):
        return not filename.startswith("<__array_function__")
    if filename.startswith(_ARRAYS):
        return False
    real = os.path.realpath(filename)
    standard = real.startswith(_STANDARD) and "-packages" + os.sep not in real
    return not standard


def is_user_code(code: types.CodeType) -> bool:
    """Whether a code object is the user's."""
    return is_user_file(code.co_filename)


def is_user_frame(frame: types.FrameType) -> bool:
    """Whether a frame runs the user's code; text made by `exec` belongs to its module."""
    filename = frame.f_code.co_filename
    if not is_user_file(filename):
        return False
    if filename != "<string>":
        return True
    name = str(frame.f_globals.get("__name__", ""))
    of_named_tuple = name.startswith("namedtuple_")  # what the standard library writes for one
    return not (of_named_tuple or _is_library_name(name))


def is_user_module(module: types.ModuleType) -> bool:
    """Whether the variables of a module are the user's to change."""
    filename = getattr(module, "__file__", None)
    if filename is not None:
        return is_user_file(filename)
    return not _is_library_name(module.__name__)


def is_user_class(cls: type) -> bool:
    """Whether a class was written by the user."""
    if cls.__module__ == "builtins":
        return False
    if _is_library_name(cls.__module__):
        return False
    module = sys.modules.get(cls.__module__)
    return module is None or is_user_module(module)


def _is_library_name(name: str) -> bool:
    top = name.partition(".")[0]
    return top in _LIBRARIES or (top in sys.stdlib_module_names and top != "__main__")
