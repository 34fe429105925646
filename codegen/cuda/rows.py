"""Row groups: the stages of a loop over rows, in one kernel.

    a team of threads has a row:
        stage: a loop along the row         a maximum, a sum, a map
        stage: ...

What a stage leaves for the next stays in registers where each thread reads what it wrote itself, else
in shared memory. Reductions over the rows accumulate in each team, over blocks of rows of fixed size;
a second kernel joins their parts in order. Start reading at `plan_rows`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

from tracegrad.codegen.cuda.device import Held, as_cuda
from tracegrad.codegen.cuda.groups import Producer, plan_group, with_scratch
from tracegrad.codegen.cuda.plan import CudaKernel, CudaTarget
from tracegrad.codegen.cuda.reductions import combine
from tracegrad.codegen.cuda.row_layout import RowLayout
from tracegrad.codegen.cuda.row_text import RowText
from tracegrad.codegen.lower import Buffer
from tracegrad.codegen.plan import Scratch
from tracegrad.codegen.row_groups import RowGroup
from tracegrad.codegen.rows import local_buffers, lower_stages, row_plan
from tracegrad.ir.graph import Value
from tracegrad.ir.sizes import Size
from tracegrad.ir.types import contiguous_strides

FEW, LONG = 64, 16384  # fewer rows than this, longer than that: one team each would leave most idle
SPARE = 256  # bytes of shared memory that are left, for the alignment of arrays


def plan_rows(
    name: str, group: RowGroup, producer: Producer, buffers: Mapping[Value, Buffer],
    target: CudaTarget,
) -> tuple[CudaKernel, ...]:  # fmt: skip
    """Decide the kernels of a row group; arguments as for `plan_group`."""
    count = prod(group.rows)
    longest = max(prod(s.domain[len(group.rows) :]) for s in group.stages)
    varies = isinstance(count, Size) or isinstance(longest, Size)
    if varies or count >= FEW or longest < LONG:
        made = _fused(name, group, producer, buffers, target)
        if made is not None:
            return made
    return one_by_one(name, group, producer, buffers, target)


def one_by_one(
    name: str, group: RowGroup, producer: Producer, buffers: Mapping[Value, Buffer],
    target: CudaTarget,
) -> tuple[CudaKernel, ...]:  # fmt: skip
    """Each stage as kernels of its own; what they leave for each other goes through memory."""
    local = [v for s in group.stages for v in s.values if v in group.local]
    known = dict(buffers)
    scratch = []
    for k, v in enumerate(local):
        known[v] = Buffer(_in_memory(name, k), v.dtype, v.shape, contiguous_strides(v.shape))
        scratch.append(Scratch(known[v].name, v.dtype.c_type, v.type.nbytes))
    kernels: list[CudaKernel] = []
    for k, stage in enumerate(group.stages):
        kernels += plan_group(f"{name}_stage_{k}", stage, producer, known, target)
    if kernels:
        kernels[0] = replace(kernels[0], scratch=(*kernels[0].scratch, *scratch))
    return tuple(kernels)


def _in_memory(name: str, k: int) -> str:
    return f"local{k}_{name.removeprefix('kernel_')}"


def _fused(
    name: str, group: RowGroup, producer: Producer, buffers: Mapping[Value, Buffer],
    target: CudaTarget,
) -> tuple[CudaKernel, ...] | None:  # fmt: skip
    """One kernel for all stages, or None where shared memory is too small for what accumulates."""
    local = local_buffers(group)
    moved: dict[Value, Scratch] = {}

    def move(v: Value) -> None:
        """Keep a local value in memory."""
        buffer = Buffer(_in_memory(name, len(moved)), v.dtype, v.shape, contiguous_strides(v.shape))
        local[v] = buffer
        moved[v] = Scratch(buffer.name, v.dtype.c_type, v.type.nbytes)

    for v, b in list(local.items()):
        if not b.scalar and isinstance(prod(v.shape[len(group.rows) :]), Size):
            move(v)  # arrays have the same size in every call
    results = _row_results(group, buffers, len(local))
    local.update(results)
    while True:
        known = {**buffers, **local}
        stages = lower_stages(group, producer, known)
        memory = {v: buffers[v] for v in results}
        layout = RowLayout(name, group, stages, known, target.aligned, memory)
        if layout.shared_bytes() <= target.shared_bytes - SPARE:
            return _planned(layout, tuple(moved.values()))
        arrays = [v for v, b in local.items() if b.local and not b.scalar]
        if not arrays:
            return None
        move(max(arrays, key=lambda v: v.type.nbytes))


def _row_results(
    group: RowGroup, buffers: Mapping[Value, Buffer], named: int
) -> dict[Value, Buffer]:
    """Variables for the results of whole rows that are outputs: later stages read those.

    Args:
        named: how many local buffers have names already.
    """
    made: dict[Value, Buffer] = {}
    if prod(group.rows) == 1:  # one row cannot be told from a reduction over the rows
        return made
    k = len(group.rows)
    for stage in group.stages:
        for v in (node.out for node in stage.reductions):
            if v not in group.local and v.shape[:k] == group.rows and prod(v.shape[k:]) == 1:
                name = f"row_{named + len(made)}"
                made[v] = replace(
                    buffers[v], name=name, strides=(0,) * len(v.shape), local=True, scalar=True
                )
    return made


def _planned(layout: RowLayout, moved: tuple[Scratch, ...]) -> tuple[CudaKernel, ...]:
    """The kernel, and where something accumulates the one that joins the parts."""
    first = RowText(layout, Held())
    first.write()
    text = RowText(layout, Held(_affordable(layout, first.held.seen)))
    text.write()
    results = [n.out for s in layout.stages if s.accumulates for n in s.group.reductions]
    written = [layout.in_memory(v).name for v in layout.group.values if v not in results]
    plan = row_plan(
        layout.name, layout.group, layout.stages, layout.buffers, (), written, text.shown,
        (*layout.memory.values(),),
    )  # fmt: skip
    teams = layout.parts if layout.accumulating else layout.count
    grid = (-(-int(teams) // layout.team.per_block), 1, 1)
    kernel = as_cuda(plan, text.items, grid, (layout.team.threads, 1, 1), layout.index)
    kernels = [with_scratch(kernel, (*moved, *(s for a in text.accumulated for s in a.scratch)))]
    for k, size in enumerate(dict.fromkeys(a.size for a in text.accumulated)):
        alike = [a for a in text.accumulated if a.size == size]
        outs = [layout.buffers[a.node.out] for a in alike]
        last = combine(
            layout.name, [(b.name, b.dtype.c_type) for b in outs], [(a.r, a.acc) for a in alike],
            [s for a in alike for s in a.scratch], layout.parts, size,
        )  # fmt: skip
        kernels.append(replace(last, name=f"{last.name}_{k}" if k else last.name))
    return tuple(kernels)


def _affordable(layout: RowLayout, seen: Mapping[Any, set[int]]) -> set[Any]:
    """The addresses that several stages read and whose elements fit into registers."""
    kept = set()
    for key, stages in sorted(seen.items(), key=str):
        words = key[2][1] * key[2][2]
        if len(stages) > 1 and layout.registers.take(min(stages), max(stages), words):
            kept.add(key)
    return kept
