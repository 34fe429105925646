"""Groups of values with one domain: maps, and reductions. Start reading at `plan_group`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod

from tracegrad.codegen.affine import Index
from tracegrad.codegen.cuda.device import DeviceBody, Items, as_cuda, index_type
from tracegrad.codegen.cuda.plan import CudaKernel, CudaTarget, Dim3
from tracegrad.codegen.lower import Buffer, Lowering, SplitRequest
from tracegrad.codegen.nest import (
    Axis,
    Group,
    Lowered,
    Merges,
    domain_loops,
    kernel_plan,
    nest_summary,
)
from tracegrad.codegen.plan import Parameter, Scratch
from tracegrad.ir.graph import Node, Value

Producer = Callable[[Value], Node | None]


def plan_group(
    name: str, group: Group, producer: Producer, buffers: Mapping[Value, Buffer], target: CudaTarget
) -> tuple[CudaKernel, ...]:
    """Decide the kernels of a group: none where there is nothing to compute.

    Args:
        name: the name of the first kernel.
        group: what they compute.
        producer: the node that yields a value.
        buffers: of everything in memory, the group's own values included.
        target: the device.
    """
    from tracegrad.codegen.cuda.maps import plan_map
    from tracegrad.codegen.cuda.reductions import plan_empty, plan_reductions

    if not group.values:
        return ()
    splits: dict[str, int] = {}
    while True:
        axes, index = domain_loops(group.domain, group.reduced, splits)
        try:
            nest = GroupNest(name, group, axes, index, producer, buffers, target)
            break
        except SplitRequest as request:
            splits[request.variable] = request.divisor
    if 0 in group.domain:
        return plan_empty(nest)
    return plan_reductions(nest) if group.reductions else plan_map(nest)


class GroupNest:
    """The loops and terms of a group, before anything is decided about threads.

    Attributes:
        kept, inner: loops that are kept and loops that are reduced.
        index: the type of indices.
        cost: operations for one element, about.
    """

    def __init__(
        self, name: str, group: Group, axes: list[Axis], index: Index, producer: Producer,
        buffers: Mapping[Value, Buffer], target: CudaTarget,
    ) -> None:  # fmt: skip
        self.name, self.group, self.buffers, self.target = name, group, buffers, target
        own = dict.fromkeys(group.stores, index)
        self.lowering = Lowering(producer, buffers, {a.variable: a.extent for a in axes}, own)
        self.lowered = Lowered(group, index, self.lowering)
        self.terms = self.lowered.terms()
        self.stored, self.reduced = self.lowered.stored, self.lowered.reduced
        merges = Merges()
        self.axes = merges.merge(axes, self.lowered.affines())
        merges.rename(self.axes)
        self.affine = merges.affine
        self.kept = [a for a in self.axes if not a.reduced]
        self.inner = [a for a in self.axes if a.reduced]
        extents = {a.variable: a.extent for a in self.axes}
        symbols = {s: n for s, n in self.lowering.extents.items() if s in self.lowering.symbols}
        affines = [self.affine(a) for a in self.lowered.affines()]
        self.index = index_type(affines, extents, symbols)
        self.cost = sum(t.cost for t in self.terms if t.kind == "apply")

    def body(self, depths: Mapping[str, int], **how: object) -> DeviceBody:
        """An empty body with loops at these levels."""
        extents = {a.variable: a.extent for a in self.axes}
        return DeviceBody(
            self.lowering, self.affine, depths, extents, index=self.index,
            aligned=self.target.aligned, **how  # type: ignore[arg-type]
        )  # fmt: skip

    def widest(self) -> int:
        """Bytes of the largest element that is read or written."""
        sizes = [t.dtype.itemsize for t in self.terms if t.kind == "load"]
        return max([*sizes, *(v.dtype.itemsize for v in self.group.values)])

    def kernel(
        self, items: Items, grid: Dim3, threads: int, shown: Mapping[str, str],
        written: Sequence[str] | None = None, scratch: Iterable[Scratch] = (),
    ) -> CudaKernel:  # fmt: skip
        """The kernel of all loads of the group; `scratch` is written beside `written`."""
        empty = 0 in self.group.domain
        read = [] if empty else [t.template for t in self.terms if t.kind == "load"]
        if written is None:
            written = [self.buffers[v].name for v in self.group.values]
        plan = kernel_plan(
            self.name, nest_summary(self.group, self.lowered), (), read, written, self.buffers.values(),
            ops=prod(self.group.domain) * self.cost,
            uses_status=self.lowering.uses_status and not empty, names=tuple(shown.items()),
        )  # fmt: skip
        return with_scratch(as_cuda(plan, items, grid, (threads, 1, 1), self.index), scratch)


def with_scratch(kernel: CudaKernel, scratch: Iterable[Scratch]) -> CudaKernel:
    """A kernel that also writes to memory of its step."""
    from dataclasses import replace

    scratch = tuple(scratch)
    passed = tuple(Parameter(s.name, s.c_type, True, "one part a block") for s in scratch)
    return replace(
        kernel, parameters=kernel.parameters + passed, scratch=scratch,
        arguments=kernel.arguments + tuple(s.name for s in scratch),
        nbytes=kernel.nbytes + sum(s.nbytes for s in scratch),
    )  # fmt: skip
