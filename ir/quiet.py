"""NumPy without warnings of overflow and the like, at the price of a context variable.

`np.errstate(all="ignore")` builds a new state at each use, which takes as long as a small kernel.
Here the state is built once: `token = QUIET.set(IGNORE)` before a kernel and `QUIET.reset(token)`
after it. NumPy keeps its state so since version 2; for older ones `errstate` is used.
"""

from __future__ import annotations

from typing import Any

import numpy as np


class _Errstate:
    """The same two methods over `np.errstate`."""

    def set(self, state: Any) -> Any:
        """Begin; the result is for `reset`."""
        context = np.errstate(all="ignore")
        context.__enter__()
        return context

    def reset(self, token: Any) -> None:
        """End."""
        token.__exit__(None, None, None)


def _found() -> tuple[Any, Any]:
    try:
        from numpy._core.umath import _extobj_contextvar, _make_extobj
    except ImportError:
        return _Errstate(), None
    return _extobj_contextvar, _make_extobj(all="ignore")


QUIET, IGNORE = _found()
