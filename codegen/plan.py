"""Plans: every decision about a kernel, in frozen dataclasses that print as pseudo-code.

A `KernelPlan` is a function with parameters and a tree of lines and loops. The planners decide;
the templates lay the tree out; nothing is computed after this. `Target` says what the C compiler
at hand can do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tracegrad.ir.graph import Value
from tracegrad.ir.location import Location

PARALLEL = "omp parallel for schedule(static) num_threads(*tg_threads)"
"""The pragma of a loop whose iterations are shared among threads."""


@dataclass(frozen=True)
class Target:
    """What generated C may rely on.

    Attributes:
        openmp: threads by `#pragma omp parallel`.
        vector_math: the glibc version as (major, minor) whose libmvec may be used, or None.
    """

    openmp: bool = True
    vector_math: tuple[int, int] | None = (2, 36)


@dataclass(frozen=True)
class Line:
    """One statement of C, with the Python line it came from."""

    text: str
    comment: str = ""
    is_loop: bool = field(default=False, init=False)


@dataclass(frozen=True)
class Loop:
    """`for (int64_t variable = start; variable < stop; variable += step)`.

    `pragmas` are lines before the loop, without `#pragma`. `condition` replaces `variable < stop`
    where the end is not a number.
    """

    variable: str
    stop: str
    body: tuple[Line | Loop, ...]
    start: str = "0"
    step: str = "1"
    pragmas: tuple[str, ...] = ()
    comment: str = ""
    is_loop: bool = field(default=True, init=False)

    @property
    def increment(self) -> str:
        """The third clause of the `for`."""
        return f"{self.variable}++" if self.step == "1" else f"{self.variable} += {self.step}"


@dataclass(frozen=True)
class Parameter:
    """A pointer parameter of a kernel."""

    name: str
    c_type: str
    written: bool
    comment: str = ""

    @property
    def declaration(self) -> str:
        """The parameter in C."""
        const = "" if self.written else "const "
        return f"{const}{self.c_type} *restrict {self.name}"


@dataclass(frozen=True)
class Scratch:
    """Memory that a kernel needs while it runs: a name in the translation unit, and its size."""

    name: str
    c_type: str
    nbytes: int


@dataclass(frozen=True)
class KernelPlan:
    """One C function.

    Attributes:
        name: its name in C.
        summary: comment lines above it: what it computes, and the Python lines.
        parameters: its buffers.
        body: lines and loops.
        arguments: names of the buffers passed, one per parameter.
        nbytes: bytes read and written, each once; ops: operations, about.
        uses_status: whether it takes the status as its last parameter.
        names: (name in the plan, name of the user's variable), for the text that people read.
        scratch: what it needs beside its values; passed where `arguments` says.
    """

    name: str
    summary: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    body: tuple[Line | Loop, ...]
    arguments: tuple[str, ...]
    nbytes: int = 0
    ops: int = 0
    uses_status: bool = False
    names: tuple[tuple[str, str], ...] = ()
    scratch: tuple[Scratch, ...] = ()

    def __str__(self) -> str:
        head = f"{self.name}({', '.join(p.name for p in self.parameters)}):"
        return "\n".join([head, *_pseudo(self.body, 1)])


def _pseudo(body: tuple[Line | Loop, ...], depth: int) -> Iterator[str]:
    pad = "    " * depth
    for item in body:
        if isinstance(item, Line):
            yield pad + item.text
        else:
            marks = f"  [{', '.join(item.pragmas)}]" if item.pragmas else ""
            yield f"{pad}for {item.variable} in {item.start}..{item.stop}:{marks}"
            yield from _pseudo(item.body, depth + 1)


@dataclass(frozen=True)
class Slot:
    """A buffer of the translation unit.

    `kind` is "input", "output" or "arena"; `position` is the index among the inputs or outputs,
    or the byte offset in the arena. `first` and `last` are the kernels between which it holds what it
    is for; `value` is what that is (none for scratch), `location` the line that computes it.
    """

    name: str
    c_type: str
    kind: str
    position: int
    nbytes: int
    comment: str = ""
    first: int = -1
    last: int = -1
    value: Value | None = None
    location: Location | None = None
