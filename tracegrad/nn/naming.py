"""How modules and what they hold are named in messages and printed. Start at `module_text`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tracegrad.tracer.tensor import Tensor


def type_name(x: Any) -> str:
    """`torch.FloatTensor` for a tensor, else the class, with its module unless it is built in."""
    if isinstance(x, Tensor):
        return x.type()
    cls = type(x)
    return cls.__name__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__name__}"


def indented(text: str) -> str:
    """`text` with all lines but the first moved in by two columns."""
    return text.replace("\n", "\n  ")


def module_text(name: str, extra: str, parts: Sequence[tuple[str, str]]) -> str:
    """PyTorch's layout: one line where there are no submodules, else one line for each.

    Args:
        name: of the module's class.
        extra: what `extra_repr` returned.
        parts: name and printed form of each submodule.
    """
    extras = extra.split("\n") if extra else []
    lines = [f"({key}): {indented(text)}" for key, text in parts]
    if len(extras) == 1 and not lines:
        return f"{name}({extras[0]})"
    if not extras and not lines:
        return f"{name}()"
    return f"{name}(\n  " + "\n  ".join(extras + lines) + "\n)"


def runs(parts: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Equal neighbours merged, as `ModuleList` prints them: `(0-1): 2 x ReLU()`."""
    merged: list[list[Any]] = []  # first key, last key, count, text
    for key, text in parts:
        if merged and merged[-1][3] == text:
            merged[-1][1], merged[-1][2] = key, merged[-1][2] + 1
        else:
            merged.append([key, key, 1, text])
    return [
        (first, text) if count == 1 else (f"{first}-{last}", f"{count} x {text}")
        for first, last, count, text in merged
    ]
