"""From a graph to the text of one CUDA module and its launches.

Rewrites and schedule are those of C; each step of the schedule becomes the kernels of one planner, and
temporaries share one arena. As for C there are two texts: `source`, with the Python lines and the
user's names, to read; and `code`, without comments, to compile. Start reading at `build_cuda`.

Note [What is restrict]
Only what a kernel reads alone. In a row kernel one thread writes what another reads behind a barrier.
If that pointer is restrict, the compiler may take nobody else to write to it, and read it before the
barrier where it is not this thread that writes: nvcc and NVRTC 13.0 do so (seen on an H200 as NaN).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from tracegrad.codegen.arena import place
from tracegrad.codegen.cuda.groups import plan_group
from tracegrad.codegen.cuda.opaque import plan_node
from tracegrad.codegen.cuda.plan import Block, CudaKernel, CudaTarget, CudaUnit, Launch, Place
from tracegrad.codegen.cuda.prelude import prelude
from tracegrad.codegen.cuda.rows import plan_rows
from tracegrad.codegen.plan import Line, Loop, Parameter, Scratch, Slot
from tracegrad.codegen.schedule import Step, schedule
from tracegrad.codegen.unit import (
    first_alike,
    name_buffers,
    prepared,
    render,
    signature,
    strip_comments,
    with_names,
    words,
)
from tracegrad.ir.graph import Graph, Value
from tracegrad.ir.passes.sizes import symbols, with_sized_constants
from tracegrad.ir.types import Shape

ALIGN = 256  # bytes, as cuMemAlloc aligns
PRODUCTS = ("float32", "float64", "float16", "bfloat16")  # dtypes whose products have kernels


@dataclass(frozen=True)
class ParameterView:
    """One line of a kernel's parameters, and what follows it."""

    declaration: str
    mark: str
    comment: str


@dataclass(frozen=True)
class KernelView:
    """What the template `kernel.cu.j2` lays out."""

    name: str
    summary: tuple[str, ...]
    threads: int
    parameters: tuple[ParameterView, ...]
    index: str
    body: tuple[Line | Loop | Block, ...]


@dataclass(frozen=True)
class UnitView:
    """What the template `unit.cu.j2` lays out."""

    title: tuple[str, ...]
    prelude: str
    kernels: tuple[str, ...]


@dataclass(frozen=True)
class CudaPlan:
    """Everything that is decided about a module.

    Attributes:
        title: the name of the graph and its types.
        kernels: in the order in which they run.
        slots: every buffer, with its place.
        arena_bytes, temporaries: see `CudaUnit`.
        sizes: the sizes that vary, by the name of an argument.
        steps: of the schedule that each kernel belongs to.
    """

    title: str
    kernels: tuple[CudaKernel, ...]
    slots: tuple[Slot, ...]
    arena_bytes: int
    temporaries: int
    sizes: Mapping[str, int]
    steps: tuple[int, ...]


def build_cuda(
    graph: Graph, *, target: CudaTarget | None = None, strides: Mapping[Value, Shape] | None = None,
    returned: int | None = None,
) -> CudaUnit:  # fmt: skip
    """Generate CUDA for a graph: `plan_cuda`, then `render_cuda`.

    Args:
        graph: its outputs must be distinct values and none of them an input.
        target: the device.
        strides: of inputs that are not contiguous, in elements; not for `contiguous_inputs`.
        returned: how many of the outputs the caller gets; the others are temporaries.
    Returns:
        The unit: the text of its module, and its launches.
    Example:
        >>> from tracegrad.ir import dtypes, ops
        >>> from tracegrad.ir.graph import GraphBuilder
        >>> from tracegrad.ir.types import TensorType
        >>> builder = GraphBuilder("double")
        >>> x = builder.input(TensorType((4,), dtypes.float32), "x")
        >>> with builder:
        ...     y = x * 2
        >>> unit = build_cuda(builder.finish([y]))
        >>> "out_0[i] = in_0[i] * 2.0f" in unit.source, unit.launches[0].grid
        (True, (1, 1, 1))
    """
    return render_cuda(plan_cuda(graph, target or CudaTarget(), strides or {}, returned))


def plan_cuda(
    graph: Graph, target: CudaTarget, strides: Mapping[Value, Shape], returned: int | None = None
) -> CudaPlan:
    """Decide the kernels of a graph and the places of its buffers; arguments as for `build_cuda`."""
    returned = len(graph.outputs) if returned is None else returned
    assert len(set(graph.outputs)) == len(graph.outputs), "outputs must be distinct"
    assert not set(graph.outputs) & set(graph.inputs), "an output must not be an input"
    title = f"{graph.name}: {signature(graph, returned)}"
    sizes = symbols(graph)
    graph, steps = scheduled(graph, strides)
    buffers = name_buffers(graph, steps, strides, returned)
    made = [_plan_step(f"kernel_{k}", step, graph, buffers, target) for k, step in enumerate(steps)]
    scratch = {k: _scratch(kernels) for k, kernels in enumerate(made)}
    until = dict.fromkeys(graph.outputs[returned:], len(steps))
    slots, arena, temporaries = place(graph, steps, buffers, scratch, returned, until, ALIGN)
    kernels = tuple(k for kernels in made for k in kernels)
    of = tuple(k for k, found in enumerate(made) for _ in found)
    return CudaPlan(title, kernels, tuple(slots), arena, temporaries, sizes, of)


def scheduled(graph: Graph, strides: Mapping[Value, Shape]) -> tuple[Graph, Sequence[Step]]:
    """The graph as it is computed, and the steps in which that is done."""
    sized = symbols(graph)
    graph = prepared(graph, strides, PRODUCTS)
    graph = with_sized_constants(graph) if sized else graph
    return graph, schedule(graph, strides)


def _plan_step(
    name: str, step: Step, graph: Graph, buffers: Mapping[Value, object], target: CudaTarget
) -> tuple[CudaKernel, ...]:
    if step.group is not None:
        return plan_group(name, step.group, graph.producer, buffers, target)  # type: ignore[arg-type]
    if step.rows is not None:
        return plan_rows(name, step.rows, graph.producer, buffers, target)  # type: ignore[arg-type]
    assert step.node is not None
    return plan_node(name, step.node, graph.producer, buffers, target)  # type: ignore[arg-type]


def _scratch(kernels: Sequence[CudaKernel]) -> tuple[Scratch, ...]:
    """What the kernels of one step need beside their values, each once."""
    return tuple({s.name: s for k in kernels for s in k.scratch}.values())


# ---- rendering ----------------------------------------------------------------------------------


def render_cuda(plan: CudaPlan) -> CudaUnit:
    """Lay a plan out as CUDA: once to read, with the user's names and lines, once to compile."""
    texts = ["" if k.product else _text(k, plan.sizes) for k in plan.kernels]
    numbers = [sorted(words(t) & plan.sizes.keys()) for t in texts]
    own: dict[str, int] = {}
    firsts = first_alike(plan.kernels, texts)
    for k, first in enumerate(firsts):
        if k == first and texts[k]:
            own[plan.kernels[k].name] = k
    shown = tuple(with_names(texts[k], plan.kernels[k].names) for k in own.values())
    plain = tuple(texts[k] for k in own.values())
    view = (plan.title, "Generated by tracegrad.")
    launches = tuple(
        _launch(kernel, plan.kernels[first].name, numbers[k], plan)
        for k, (kernel, first) in enumerate(zip(plan.kernels, firsts, strict=True))
    )
    head = prelude("\n".join(plain))
    code = strip_comments(render("unit.cu.j2", unit=UnitView(view, head, plain))) if own else ""
    return CudaUnit(
        render("unit.cu.j2", unit=UnitView(view, head, shown)), code, launches, plan.arena_bytes,
        plan.temporaries, any(k.uses_status for k in plan.kernels),
        sum(k.nbytes for k in plan.kernels), sum(k.ops for k in plan.kernels),
    )  # fmt: skip


def _text(kernel: CudaKernel, sizes: Mapping[str, int]) -> str:
    """The text of one kernel, sizes that vary among its parameters."""
    if kernel.text:
        return _with_sizes(kernel.text, kernel.name, sizes)
    bare = KernelView("", (), 0, (), kernel.index, kernel.body)
    taken = sorted(words(render("kernel.cu.j2", plan=bare)) & sizes.keys())
    lines = [(f"const int64_t {n}", "") for n in taken]
    lines += [(_declared(p), p.comment) for p in kernel.parameters]
    lines += [("int64_t *status", "")] if kernel.uses_status else []
    parameters = tuple(
        ParameterView(text, ")" if k == len(lines) - 1 else ",", comment)
        for k, (text, comment) in enumerate(lines)
    )
    return render("kernel.cu.j2", plan=KernelView(
        kernel.name, kernel.summary, prod(kernel.block), parameters, kernel.index, kernel.body
    )).strip()  # fmt: skip


def _with_sizes(text: str, name: str, sizes: Mapping[str, int]) -> str:
    """A kernel's own text with the sizes that it uses before its buffers."""
    taken = "".join(f"\n    const int64_t {size}," for size in sorted(words(text) & sizes.keys()))
    if not taken:
        return text
    assert f" {name}(" in text, f"{name} begins in another way"
    return text.replace(f" {name}(", f" {name}({taken}", 1)


def _declared(parameter: Parameter) -> str:
    """A parameter in CUDA; see Note [What is restrict]."""
    if parameter.written:
        return f"{parameter.c_type} *{parameter.name}"
    return f"const {parameter.c_type} *__restrict__ {parameter.name}"


def _launch(kernel: CudaKernel, name: str, numbers: Sequence[str], plan: CudaPlan) -> Launch:
    places = {s.name: Place(s.kind, int(s.position)) for s in plan.slots}
    arguments = [places[a] for a in kernel.arguments if a != "status"]
    if kernel.uses_status and not kernel.product:
        arguments.append(Place("status"))
    return Launch(
        "" if kernel.product else name, tuple(arguments),
        tuple(int(plan.sizes[n]) for n in numbers), kernel.grid, kernel.block, kernel.shared,
        kernel.product,
    )  # fmt: skip
