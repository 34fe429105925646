"""The text of the Python functions that call kernels: straight-line code, made per trace.

`executable_text` binds addresses and calls one translation unit; `launcher_text` checks the guards
of a trace, finds its inputs and wraps its outputs. What the names in the texts mean is bound by
`runtime.executable` and `tracer.trace`. Plain text, not a template: a warm process should reach its
first kernel without loading the template engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tracegrad.ir.types import TensorType

GUARD_RAISED = -2
"""The position that a launcher reports where a guard could not be evaluated."""


@dataclass(frozen=True)
class GuardLine:
    """One guard: a Python expression, what it is about, and its number."""

    text: str
    comment: str
    position: int


@dataclass(frozen=True)
class Launcher:
    """The parts of a launcher: lines of Python in order."""

    doc: str
    guards: tuple[GuardLine, ...]
    inputs: tuple[str, ...]
    call: str
    results: tuple[str, ...]
    returns: str
    undo: tuple[str, ...] = ()  # lines for a call that finds a fault in the values


def executable_text(name: str, inputs: int, outputs: Sequence[TensorType], kernels: int) -> str:
    """The function that calls a unit: input addresses in, output arrays out.

    Example:
        >>> from tracegrad.ir import dtypes
        >>> text = executable_text("forward", 1, [TensorType((3,), dtypes.float32)], 1)
        >>> text.splitlines()[0]
        'def forward(in_0):'
    """
    names = [f"in_{k}" for k in range(inputs)]
    lines = [
        f"def {name}({', '.join(names)}):",
        f'    """Addresses of {inputs} inputs -> {len(outputs)} arrays; {kernels} kernels."""',
        "    try:",
        "        slot = slots.pop()",
        "    except IndexError:",
        "        slot = new_slot()",
        "    args, pointers = slot[0], slot[1]  # one table of addresses, seen as ints and as pointers",
        *(f"    args[{k}] = {n}" for k, n in enumerate(names)),
    ]
    for k, t in enumerate(outputs):
        lines.append(f"    out_{k} = empty({tuple(map(int, t.shape))!r}, dtype_{t.dtype.name})")
        lines.append(f"    pointers[{inputs + k}] = buffer(out_{k})")
    results = "".join(f"out_{k}, " for k in range(len(outputs))).strip()
    lines += [
        "    if tg_run(pointers):",
        "        fail(slot, slots)",
        "    slots.append(slot)",
        "    record.launches += 1",
        f"    return ({results})",
    ]
    return "\n".join(lines) + "\n"


def launcher_text(launcher: Launcher) -> str:
    """The launcher of a trace: guards, inputs, the call, results.

    A guard that raises (what it read is gone) does not hold. Where the generated code finds an index
    out of bounds or a division by zero, nothing has been written yet, and eager mode tells the user.
    """
    doc = _one_line(launcher.doc).replace("\\", "\\\\").replace('"', "'")
    lines = ["def launch(leaves):", f'    """{doc}"""']
    if launcher.guards:
        lines.append("    try:")
        for guard in launcher.guards:
            lines.append(f"        if not ({guard.text}):  # {_one_line(guard.comment)}")
            lines.append(f"            return missed({guard.position})")
        lines += ["    except Exception:", f"        return missed({GUARD_RAISED})"]
    lines += [f"    {line}" for line in launcher.inputs]
    lines += ["    try:", f"        {launcher.call}", "    except Strayed as stray:"]
    lines += [f"        {line}" for line in (*launcher.undo, "return stray")]
    lines += ["    except faults:"]
    lines += [f"        {line}" for line in (*launcher.undo, "return FAULT")]
    lines += [f"    {line}" for line in launcher.results]
    lines.append(f"    return {launcher.returns}")
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    return " ".join(text.split())
