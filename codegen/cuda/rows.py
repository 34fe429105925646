"""Row groups: the stages of a loop over rows, in one kernel. Start reading at `plan_rows`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tracegrad.codegen.cuda.groups import Producer, plan_group
from tracegrad.codegen.cuda.plan import CudaKernel, CudaTarget
from tracegrad.codegen.lower import Buffer
from tracegrad.codegen.plan import Scratch
from tracegrad.codegen.row_groups import RowGroup
from tracegrad.ir.graph import Value
from tracegrad.ir.types import contiguous_strides


def plan_rows(
    name: str, group: RowGroup, producer: Producer, buffers: Mapping[Value, Buffer],
    target: CudaTarget,
) -> tuple[CudaKernel, ...]:  # fmt: skip
    """Decide the kernels of a row group; arguments as for `plan_group`."""
    return one_by_one(name, group, producer, buffers, target)


def one_by_one(
    name: str, group: RowGroup, producer: Producer, buffers: Mapping[Value, Buffer],
    target: CudaTarget,
) -> tuple[CudaKernel, ...]:  # fmt: skip
    """Each stage as kernels of its own; what they leave for each other goes through memory."""
    local = [v for s in group.stages for v in s.values if v in group.local]
    step = name.removeprefix("kernel_")
    scratch = {
        v: Scratch(f"local{k}_{step}", v.dtype.c_type, v.type.nbytes) for k, v in enumerate(local)
    }
    known = dict(buffers)
    for v, s in scratch.items():
        known[v] = Buffer(s.name, v.dtype, v.shape, contiguous_strides(v.shape))
    kernels: list[CudaKernel] = []
    for k, stage in enumerate(group.stages):
        kernels += plan_group(f"{name}_stage_{k}", stage, producer, known, target)
    kernels[0] = replace(kernels[0], scratch=kernels[0].scratch + tuple(scratch.values()))
    return tuple(kernels)
