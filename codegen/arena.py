"""The arena: temporaries of a translation unit share memory by the times at which they live.

Start reading at `place`.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence

from tracegrad.codegen.lower import Buffer
from tracegrad.codegen.nest import natural
from tracegrad.codegen.plan import Scratch, Slot
from tracegrad.codegen.schedule import Step, last_uses
from tracegrad.ir.graph import Graph, Value
from tracegrad.ir.passes.sizes import symbols

ALIGN = 64  # bytes: one cache line, and the widest vector


def place(
    graph: Graph, steps: Sequence[Step], buffers: Mapping[Value, Buffer],
    scratch: Mapping[int, tuple[Scratch, ...]], returned: int, until: Mapping[Value, int],
    align: int = ALIGN,
) -> tuple[list[Slot], int, int]:  # fmt: skip
    """Give each buffer its place; temporaries share the arena by the times at which they live.

    `until` has values that are looked at after a later kernel. Places are multiples of `align` bytes.
    """
    ends = last_uses(graph, steps, set(buffers))
    begins = {v: position for position, step in enumerate(steps) for v in step.values}
    lines = {n.out: n.location for n in graph.nodes}

    def slot(kind: str, k: int, v: Value) -> Slot:
        comment = f"{v.name} {v.type}".strip()
        first = begins.get(v, -1)
        return Slot(
            f"{'in' if kind == 'input' else 'out'}_{k}", v.dtype.c_type, kind, k, v.type.nbytes, comment,
            first, max(ends.get(v, first), until.get(v, first)), v, lines.get(v),
        )  # fmt: skip

    slots = [slot("input", k, v) for k, v in enumerate(graph.inputs)]
    slots += [slot("output", k, v) for k, v in enumerate(graph.outputs[:returned])]
    wanted: list[
        tuple[str, str, int, int, int, Value | None]
    ] = []  # name, type, bytes, first, last
    for position, step in enumerate(steps):
        for v in step.values:
            if buffers[v].name.startswith("tmp_"):
                last = max(ends.get(v, position), until.get(v, position))
                wanted.append((buffers[v].name, v.dtype.c_type, v.type.nbytes, position, last, v))
        for s in scratch.get(position, ()):
            wanted.append((s.name, s.c_type, s.nbytes, position, position, None))
    placed: list[tuple[int, int, int, int]] = []  # offset, end, first, last
    for name, c_type, nbytes, first, last, value in sorted(wanted, key=lambda w: -w[2]):
        size = -(-max(int(nbytes), 1) // align) * align
        at = 0
        for start, end, starts, stops in placed:
            if starts <= last and first <= stops and at < end and start < at + size:
                at = end
        bisect.insort(placed, (at, at + size, first, last))
        line = None if value is None else lines.get(value)
        slots.append(Slot(name, c_type, "arena", at, nbytes, "", first, last, value, line))
    arena = max((end for _, end, _, _ in placed), default=0)
    if symbols(graph):  # the order does not depend on which one is larger for these sizes
        slots.sort(
            key=lambda s: (s.kind == "arena", natural(s.name) if s.kind == "arena" else ("", 0))
        )
    return slots, arena, sum(w[2] for w in wanted)
