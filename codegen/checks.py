"""Checks: values that generated code compares with those seen at the capture, and returns where one
differs.

A path of a function holds while Python would read the same values. The entry function of a unit
checks them in order, each as soon as it and all before it are computed. Start reading at `Check`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tracegrad.codegen.lower import Buffer

STRAYED = 3
"""The status of a unit that found another value: (3, number of the check, the value's first bytes)."""


@dataclass(frozen=True)
class Check:
    """One value to compare.

    Attributes:
        kind, at: "output" or "input", and the position among the graph's.
        seen: its bytes at the capture.
        comment: the Python line that read it, and what it saw.
    """

    kind: str
    at: int
    seen: bytes
    comment: str


def check_lines(number: int, check: Check, buffer: Buffer) -> list[str]:
    """C that returns from the entry function where the value in `buffer` is not the one seen."""
    same = _same(number, check, buffer)
    lines = [same[0]] if len(same) > 1 else []
    comment = " ".join(check.comment.split())
    size = min(len(check.seen), 8)
    return [
        *lines, f"if ({same[-1]}) {{  // {comment}",
        f"    tg_strayed({number}, {buffer.name}, {size}, status);",
        f"    return {STRAYED};", "}",
    ]  # fmt: skip


def _same(number: int, check: Check, buffer: Buffer) -> Sequence[str]:
    """A condition that is true where the values differ, after a declaration that it may need."""
    array = np.frombuffer(check.seen, buffer.dtype.numpy)
    kind = buffer.dtype.numpy.kind
    if array.size == 1 and kind in "bui" and abs(int(array[0])) < 2**53:
        return [f"{buffer.name}[0] != {int(array[0])}"]
    if array.size == 1 and kind == "f" and np.isnan(array[0]) and buffer.dtype.numpy.itemsize > 2:
        return [f"{buffer.name}[0] == {buffer.name}[0]"]
    listed = ", ".join(map(str, check.seen))
    name = f"seen_{number}"
    return [
        f"static const uint8_t {name}[] = {{{listed}}};",
        f"__builtin_memcmp({buffer.name}, {name}, {len(check.seen)})",
    ]  # fmt: skip
