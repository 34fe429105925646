"""Every primitive of the table as a function: `from tracegrad.ir import ops; ops.sin(x)`.

What rules, passes and printed graphs call. The functions take NumPy arrays, IR values or Tensors.
"""

from __future__ import annotations

from typing import Any

import tracegrad.ir.primitives  # noqa: F401  (fills the table)
from tracegrad.ir.primitive import TABLE
from tracegrad.ir.primitives.movement import unbroadcast

__all__ = ["unbroadcast", *TABLE]

globals().update(TABLE)  # a plain name is found faster than through `__getattr__`


def __getattr__(name: str) -> Any:
    try:
        return TABLE[name]
    except KeyError:
        raise AttributeError(f"there is no primitive {name!r}") from None
