"""Where an operation was written: the user's file, line and function.

`here()` walks out of tracegrad's own frames to the first frame of the user; `user_stacklevel()` is
the way there for a warning.
"""

from __future__ import annotations

import contextlib
import linecache
import os
import sys
from dataclasses import dataclass
from types import FrameType


@dataclass(frozen=True, slots=True)
class Location:
    """A line of Python; prints as `train.py:41`.

    `labels` are those of the profiler's blocks around it, the outermost first. What a checkpoint runs has
    its number in `region`: such values are computed again in the backward, not kept for it.
    """

    file: str
    line: int
    function: str = ""
    labels: tuple[str, ...] = ()
    region: int = 0

    def __str__(self) -> str:
        return f"{os.path.basename(self.file)}:{self.line}"

    @property
    def text(self) -> str:
        """The source line itself, stripped; empty where the file cannot be read."""
        return linecache.getline(self.file, self.line).strip()


_FOLDERS = ("ir", "codegen", "runtime", "tracer", "tracegrad")
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def is_internal(filename: str) -> bool:
    """True for files of tracegrad itself (installed or in a checkout) and texts it generated."""
    if filename.startswith("<tracegrad "):
        return True
    if not filename.startswith(_ROOT):
        return False
    first = filename[len(_ROOT) + 1 :].split(os.sep, 1)[0]
    return first in _FOLDERS or os.path.basename(_ROOT) == "tracegrad"


_internal_cache: dict[str, bool] = {}
_BETWEEN = contextlib.__file__  # its frames lie between the two halves of our `with` blocks


def here() -> Location | None:
    """The innermost line outside tracegrad, or None where there is none."""
    frame = user_frame()
    if frame is None:
        return None
    return Location(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


def user_frame() -> FrameType | None:
    """The innermost frame outside tracegrad, or None where there is none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        filename = frame.f_code.co_filename
        internal = _internal_cache.get(filename)  # not _is_ours: every write in place comes here
        if internal is None:
            internal = _internal_cache[filename] = is_internal(filename)
        if not internal:
            return frame
        frame = frame.f_back
    return None


def user_stacklevel() -> int:
    """The `stacklevel` with which a warning shows the innermost line outside tracegrad.

    Call it in the arguments of `warnings.warn`; where every frame is of tracegrad, it is the
    outermost one's.
    """
    frame: FrameType | None = sys._getframe(1)
    level = 1
    while frame is not None and (_is_ours(frame) or frame.f_code.co_filename == _BETWEEN):
        frame = frame.f_back
        level += frame is not None
    return level


def _is_ours(frame: FrameType) -> bool:
    filename = frame.f_code.co_filename
    internal = _internal_cache.get(filename)
    if internal is None:
        internal = _internal_cache[filename] = is_internal(filename)
    return internal
