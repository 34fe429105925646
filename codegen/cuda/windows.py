"""Windowed reductions and their transposes: one thread for each element of the result.

No thread adds to what another one writes, so there are no atomics, and sums run in double (integers in
uint64_t) in the order in which the eager kernels add: the results have the same bits. The transposes
are turned around: an input looks for the windows that hold it. Where those are not known, because
`window_scatter_add` got indices from elsewhere, a warp takes a part of a plane into shared memory and goes
through all windows in order. Start reading at `plan_window`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from tracegrad.codegen.cuda.elements import (
    INT_MAX,
    Element,
    ceil_div,
    described,
    element,
    index_type,
    own_kernel,
    parts_of,
    plain,
    reach,
    summary_of,
)
from tracegrad.codegen.cuda.plan import WARP, CudaKernel, CudaTarget
from tracegrad.codegen.cuda.spatial import Space, space
from tracegrad.codegen.lower import Buffer, same_memory
from tracegrad.ir.graph import Node, Value
from tracegrad.ir.windows import window_axes

THREADS = 256
PLANE_PART = 2048  # sums that a warp holds in shared memory
_TITLES = {
    "window_max": "Maximum of each window; a NaN wins.",
    "window_argmax": "Index of each window's maximum: the first of equals, or the last NaN.",
    "window_sum": "Sum of each window.",
    "window_spread": "Transpose of window sums: each input gets the sum of ct over its windows.",
    "window_gather": "Elements at the indices that window_argmax gave.",
    "window_scatter_add": "Sums of ct at the indices that window_argmax gave.",
}
_OPERANDS = {
    "window_max": ("x",), "window_argmax": ("x",), "window_sum": ("x",), "window_spread": ("ct",),
    "window_gather": ("x", "index"), "window_scatter_add": ("ct", "index"),
}  # fmt: skip


@dataclass(frozen=True)
class WindowPlan:
    """What the template `windows.cu.j2` lays out.

    Attributes:
        op: the primitive's name. element: its types. out: those of the result.
        size: elements of the result. index: the C type of positions.
        space: the spatial axes, where they are known.
        planes, in_plane, out_plane: images times channels; elements of a plane of the image, and
            of the windows.
        parts: lines that take the position of the result's element apart.
        part: how many sums a warp holds, of `plane_parts` parts of a plane.
    """

    op: str
    element: Element
    size: int
    index: str
    space: Space
    planes: int
    in_plane: int
    out_plane: int
    parts: tuple[str, ...]
    part: int = 0
    plane_parts: int = 0


def plan_window(
    name: str, node: Node, producer: Callable[[Value], Node | None],
    buffers: Mapping[Value, Buffer], target: CudaTarget,
) -> tuple[CudaKernel, ...]:  # fmt: skip
    """The kernel of one of the window operations; its operands are contiguous."""
    op, out = node.primitive.name, buffers[node.out]
    size = prod(plain(node.out.shape))
    if size == 0:
        return ()
    operands = [buffers[v if v in buffers else same_memory(v, producer)] for v in node.inputs]
    scatters = op in ("window_spread", "window_scatter_add")
    image, windows = plain(node.inputs[0].shape), plain(node.out.shape)
    if op == "window_gather":
        windows = plain(node.inputs[1].shape)
    if scatters:
        image, windows = windows, image
    params = _windows(node, image, producer)
    texts = space(window_axes(image[2:], *params) if params else ())
    in_plane, out_plane = prod(image[2:]), prod(windows[2:])
    assert max(in_plane, out_plane) <= INT_MAX, f"{op}: planes beyond 32 bits have no CUDA kernel"
    index = index_type(size, *(reach(b) for b in operands))
    plane = in_plane if scatters else out_plane
    known = "inputs" if scatters else "outputs"
    parts = [*parts_of("at", [("plane", size // plane), ("place", plane)], index)]
    parts += parts_of("place" if size > plane else "at", texts.sizes(known))
    plan = WindowPlan(
        op, element(node.inputs[0].dtype), size, index, texts, size // plane, in_plane, out_plane,
        tuple(parts),
    )  # fmt: skip
    names = _OPERANDS[op]
    parameters = tuple(described(n, b) for n, b in zip(names, operands, strict=True))
    kernel = CudaKernel(
        name, summary_of(node, _TITLES[op]), (*parameters, described("out", out, True)),
        arguments=(*(b.name for b in operands), out.name), grid=(ceil_div(size, THREADS), 1, 1),
        block=(THREADS, 1, 1), nbytes=sum(int(v.type.nbytes) for v in (*node.inputs, node.out)),
        ops=prod(windows) * texts.taps,
    )  # fmt: skip
    if op == "window_scatter_add" and not params:
        return (_through_all_windows(kernel, plan),)
    return (own_kernel("windows.cu.j2", kernel, plan=plan),)


def _windows(
    node: Node, image: tuple[int, ...], producer: Callable[[Value], Node | None]
) -> tuple[Any, ...] | None:
    """Window, stride, padding and dilation: the node's, or those that made its indices."""
    names = ("window", "stride", "padding", "dilation")
    if "window" in node.params:
        return tuple(node.params[p] for p in names)
    if node.primitive.name == "window_gather":
        return None
    source = producer(node.inputs[1])
    if source is None or source.primitive.name != "window_argmax":
        return None
    if plain(source.inputs[0].shape) != image:
        return None
    return tuple(source.params[p] for p in names)


def _through_all_windows(kernel: CudaKernel, plan: WindowPlan) -> CudaKernel:
    """The kernel of a scatter whose windows are not known: a warp for each part of a plane."""
    from dataclasses import replace

    parts = ceil_div(plan.in_plane, PLANE_PART)
    part = ceil_div(plan.in_plane, parts)
    parts = ceil_div(plan.in_plane, part)
    kernel = replace(
        kernel, grid=(plan.planes * parts, 1, 1), block=(WARP, 1, 1), ops=plan.size * parts
    )
    return own_kernel(
        "window_scatter.cu.j2", kernel, plan=replace(plan, part=part, plane_parts=parts)
    )
