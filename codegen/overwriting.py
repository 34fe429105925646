"""Outputs that are written where an input lies, which they replace: `w - rate * g` into `w`.

The caller names the outputs whose only use is to replace an input. A kernel may write one in place if
nothing reads the input after it: no later kernel, and in its own loop only the statement that writes the
element, or those before it. That is looked up in the finished plans. Start reading at `unsafe`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tracegrad.codegen.plan import KernelPlan, Line, Loop

_Items = Sequence[Any]  # Line or Loop


def unsafe(
    kernels: Sequence[KernelPlan], opaque: Mapping[int, Any], may_stop: bool,
    inplace: Mapping[int, int],
) -> set[int]:  # fmt: skip
    """Those of the outputs in `inplace` (output: input) that must have memory of their own.

    Args:
        kernels: planned as if all could be written in place.
        opaque: positions of the kernels whose text is not in their plan.
        may_stop: whether the unit can end before all its kernels have run: what it was to
            replace must then be as it was.
    """
    if may_stop:
        return set(inplace)
    return {out for out, k in inplace.items() if not _is_safe(kernels, opaque, f"in_{k}")}


def _is_safe(kernels: Sequence[KernelPlan], opaque: Mapping[int, Any], name: str) -> bool:
    users = [p for p, kernel in enumerate(kernels) if name in kernel.arguments]
    writers = [p for p in users if any(q.name == name and q.written for q in kernels[p].parameters)]
    if len(writers) != 1 or writers[0] != users[-1] or writers[0] in opaque:
        return False
    return _last_in_its_loop(kernels[writers[0]].body, name)


def _last_in_its_loop(body: _Items, name: str) -> bool:
    """Whether one loop has all statements with the buffer, all at one element, and writes it last."""
    word = re.compile(rf"\b{name}\b")
    found = [(items, line) for items, line in _lines(body) if word.search(line.text)]
    if not found or any(items is not found[0][0] for items, _ in found):
        return False
    store = re.match(rf"{name}\[([^\[\]]*)\] = ", found[-1][1].text)
    if store is None:
        return False
    element = f"{name}[{store.group(1)}]"
    rests = [line.text for _, line in found[:-1]] + [found[-1][1].text[store.end() :]]
    return not any(word.search(rest.replace(element, "")) for rest in rests)


def _lines(body: _Items) -> Iterator[tuple[_Items, Line]]:
    """All statements, in order, with the list in which each stands."""
    for item in body:
        if isinstance(item, Loop):
            yield from _lines(item.body)
        else:
            yield body, item
