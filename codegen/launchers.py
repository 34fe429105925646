"""The text of the Python functions that call kernels: straight-line code, made per trace.

`executable_text` binds addresses and calls one translation unit; `launcher_text` checks the guards
of a trace, finds its inputs and wraps its outputs. What the names in the texts mean is bound by
`runtime.executable` and `tracer.trace`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tracegrad.codegen.unit import Unit, render
from tracegrad.ir.types import TensorType


@dataclass(frozen=True)
class OutputView:
    """One array to allocate: its variable, shape, the variable of its dtype, its argument."""

    name: str
    shape: str
    dtype: str
    position: int


@dataclass(frozen=True)
class ExecutableView:
    """What `executable.py.j2` lays out."""

    name: str
    doc: str
    parameters: str
    arguments: tuple[str, ...]
    outputs: tuple[OutputView, ...]
    returns: str


@dataclass(frozen=True)
class GuardView:
    """One guard: a Python expression, what it is about, and its number."""

    text: str
    comment: str
    position: int


@dataclass(frozen=True)
class LauncherView:
    """What `launcher.py.j2` lays out."""

    doc: str
    guards: tuple[GuardView, ...]
    inputs: tuple[str, ...]
    call: str
    results: tuple[str, ...]
    returns: str


def executable_text(name: str, unit: Unit, inputs: int, outputs: Sequence[TensorType]) -> str:
    """The function that calls `unit`: input addresses in, output arrays out."""
    names = [f"in_{k}" for k in range(inputs)]
    arrays = [
        OutputView(f"out_{k}", repr(tuple(t.shape)), f"dtype_{t.dtype.name}", inputs + k)
        for k, t in enumerate(outputs)
    ]
    returned = ", ".join(a.name for a in arrays) + ("," if len(arrays) == 1 else "")
    return render("executable.py.j2", view=ExecutableView(
        name, f"Addresses of {inputs} inputs -> {len(outputs)} arrays; {len(unit.kernels)} kernels.",
        ", ".join(names), tuple(f"args[{k}] = {n}" for k, n in enumerate(names)), tuple(arrays),
        f"({returned})",
    ))  # fmt: skip


def launcher_text(view: LauncherView) -> str:
    """The launcher of a trace."""
    return render("launcher.py.j2", view=view)
