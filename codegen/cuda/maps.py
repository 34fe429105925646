"""Maps: each element of a domain is computed by itself.

One loop over the whole domain, its steps shared by all threads of the grid (a *grid-stride loop*):
neighbouring threads take neighbouring elements of the last axis, so that what is stored goes out in
whole cache lines. Where all that is read moves with the last axis by one element or not at all, each
thread takes several neighbours at once. Start reading at `plan_map`.
"""

from __future__ import annotations

from math import prod

from tracegrad.codegen.cuda.device import THREADS, Span, takes_lanes, used
from tracegrad.codegen.cuda.groups import GroupNest
from tracegrad.codegen.cuda.plan import CudaKernel
from tracegrad.codegen.cuda.turned import plan_turned, turned_axis
from tracegrad.codegen.plan import Loop
from tracegrad.ir.sizes import Size

FEWEST = 2**17  # elements for which threads take several each: fewer would leave the device idle
BLOCKS = 16  # of threads, for each multiprocessor; more only start later


def plan_map(nest: GroupNest) -> tuple[CudaKernel, ...]:
    """The kernel of a group without reductions."""
    if not nest.axes:
        body = nest.body({})
        for value, at, term in nest.stored:
            body.store(0, nest.buffers[value], at, term)
        return (nest.kernel(body.statements[0], (1, 1, 1), 1, body.shown),)
    axis = turned_axis(nest)
    if axis is not None and prod(nest.group.domain) >= FEWEST:
        return (plan_turned(nest, axis),)
    span = Span.over(nest.axes, "e", map_lanes(nest))
    rest = f"{span.size} - {span.counter}" if span.has_rest else ""
    body = nest.body(
        dict.fromkeys((a.variable for a in nest.axes), 1), lanes=span.lanes,
        along=nest.axes[-1].variable, count=rest,
    )  # fmt: skip
    depth = 1 if span.lanes == 1 else 2
    for value, at, term in nest.stored:
        body.store(depth, nest.buffers[value], at, term)
    inside = body.inside(1)
    wide = "(int64_t)" if nest.index == "int64_t" else ""
    start = span.counted(f"{wide}blockIdx.x * blockDim.x + threadIdx.x")
    step = span.counted(f"{wide}gridDim.x * blockDim.x")
    loop = Loop(
        span.counter, str(span.stop), (*used(span.definitions(), nest.index, inside), *inside),
        start=start, step=step,
    )  # fmt: skip
    blocks = min(-(-span.parts // THREADS), BLOCKS * nest.target.multiprocessors)
    return (nest.kernel([*body.statements[0], loop], (blocks, 1, 1), THREADS, body.shown),)


def map_lanes(nest: GroupNest) -> int:
    """How many neighbours along the last axis a thread takes at once."""
    last = nest.axes[-1]
    size = Span(tuple(nest.axes), "").size
    if not isinstance(size, Size) and size < FEWEST:
        return 1
    if not takes_lanes(nest.terms, nest.affine, last.variable):
        return 1
    lanes = 4 if nest.cost > 32 else max(4, min(8, 16 // nest.widest()))
    rest = last.extent % lanes
    whole = not isinstance(rest, Size) and rest == 0
    if len(nest.axes) > 1 or nest.lowering.uses_status:
        return lanes if whole else 1
    return lanes
