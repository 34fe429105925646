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
    call: tuple[str, ...]
    results: tuple[str, ...]
    returns: str
    undo: tuple[str, ...] = ()  # lines for a call that finds a fault in the values
    keep: tuple[str, ...] = ()  # lines that write the addresses which stay in a table


def run_lines(
    addresses: Sequence[str | None], outputs: Sequence[TensorType | None], failed: Sequence[str],
    kept: str = "", prefix: str = "out",
) -> list[str]:  # fmt: skip
    """Lines that call a unit: addresses of its inputs in, new arrays `out_0`, `out_1` ... out.

    Args:
        addresses: an expression each; None for one that the table holds already.
        outputs: their types; None for one that is written where an input lies.
        failed: what to do where the unit reports a failure.
        kept: the line that writes those addresses where one of them is another.
        prefix: of the names of the arrays.
    """
    lines = [
        "try:",
        "    slot = slots.pop()",
        "except IndexError:",
        "    slot = new_slot()",
        "args, pointers = slot[0], slot[1]  # one table of addresses, seen as ints and as pointers",
    ]
    if kept:
        lines.append(kept)
    lines += [f"args[{k}] = {a}" for k, a in enumerate(addresses) if a is not None]
    for k, t in enumerate(outputs):
        if t is None:
            continue
        lines.append(f"{prefix}_{k} = empty({tuple(map(int, t.shape))!r}, dtype_{t.dtype.name})")
        lines.append(f"pointers[{len(addresses) + k}] = buffer({prefix}_{k})")
    lines.append("if tg_run(pointers):")
    lines += [f"    {line}" for line in failed]
    return [*lines, "slots.append(slot)", "record.launches += 1"]


def executable_text(
    name: str, inputs: int, outputs: Sequence[TensorType | None], kernels: int
) -> str:
    """The function that calls a unit: input addresses in, output arrays out.

    Outputs of which the type is None are written where an input lies, and not returned.

    Example:
        >>> from tracegrad.ir import dtypes
        >>> text = executable_text("forward", 1, [TensorType((3,), dtypes.float32)], 1)
        >>> text.splitlines()[0]
        'def forward(in_0):'
    """
    names = [f"in_{k}" for k in range(inputs)]
    made = sum(t is not None for t in outputs)
    lines = [
        f"def {name}({', '.join(names)}):",
        f'    """Addresses of {inputs} inputs -> {made} arrays; {kernels} kernels."""',
        *(f"    {line}" for line in run_lines(names, outputs, ["fail(slot, slots)"])),
    ]
    results = "".join(f"out_{k}, " for k, t in enumerate(outputs) if t is not None).strip()
    lines.append(f"    return ({results})")
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
    lines += [f"    {line}" for line in launcher.call]
    lines += [f"    {line}" for line in launcher.results]
    lines.append(f"    return {launcher.returns}")
    if launcher.keep:
        lines += [
            "",
            "",
            "def keep(slot):",
            '    """Write the addresses that stay until a tensor moves."""',
        ]
        lines += [f"    {line}" for line in launcher.keep]
    return "\n".join(lines) + "\n"


def caught(attempt: Sequence[str], undo: Sequence[str]) -> list[str]:
    """Lines that call a unit, and what they return where it finds other values, or a fault in them."""
    return [
        "try:", *(f"    {line}" for line in attempt),
        "except Strayed as stray:", *(f"    {line}" for line in (*undo, "return stray")),
        "except faults:", *(f"    {line}" for line in (*undo, "return FAULT")),
    ]  # fmt: skip


def _one_line(text: str) -> str:
    return " ".join(text.split())
