"""From a graph to the text of one C translation unit.

`build(graph, ...)` runs the rewrites that prepare a graph for C, schedules it, plans each kernel,
places temporaries in one arena, and renders everything through the templates. The result carries
two texts: `source`, with the Python lines in comments, to read; and `code`, without comments, which
is what is compiled and what the disk cache is keyed by. Start reading at `build`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from tracegrad.codegen import contraction
from tracegrad.codegen.arena import place
from tracegrad.codegen.checks import Check, check_lines
from tracegrad.codegen.loops import plan_group
from tracegrad.codegen.lower import Buffer, same_memory
from tracegrad.codegen.opaque import plan_opaque
from tracegrad.codegen.overwriting import unsafe
from tracegrad.codegen.panels import plan_panels, with_panels
from tracegrad.codegen.plan import KernelPlan, Parameter, Scratch, Slot, Target
from tracegrad.codegen.prelude import prelude, without_comments
from tracegrad.codegen.rows import plan_rows
from tracegrad.codegen.scatter import plan_scatter
from tracegrad.codegen.schedule import (
    Step,
    needs_buffers,
    schedule,
)
from tracegrad.codegen.small_axes import unrolled
from tracegrad.ir.graph import Graph, Value
from tracegrad.ir.passes.attached import without_detach
from tracegrad.ir.passes.sizes import symbols, with_sized_constants
from tracegrad.ir.types import Shape, contiguous_strides

if TYPE_CHECKING:
    import jinja2


@dataclass(frozen=True)
class Unit:
    """The text of a translation unit and what its caller must know; plain data, so it can be kept.

    Attributes:
        source: C with comments, for people.
        code: C without comments, for the compiler and the cache key.
        kernels: how many loop nests and calls there are.
        arena_bytes: size of the temporaries; `temporaries` is what they would take side by side.
        uses_status: whether the last argument is a status of four int64.
        nbytes: bytes moved, each kernel's buffers counted once.
        ops: operations, about.
        inplace: pairs (output, input): outputs that are written where that input lies; what the table
            holds for them is not used.
        numbers: what the table of arguments holds behind the status: sizes that vary, and the
            offsets of temporaries in the arena. Other sizes may have the same `code`.
    """

    source: str
    code: str
    kernels: int
    arena_bytes: int
    temporaries: int
    uses_status: bool
    nbytes: int
    ops: int
    numbers: tuple[int, ...] = ()
    inplace: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class UnitPlan:
    """Everything that is decided about a translation unit.

    Attributes:
        title: the name of the graph and its types.
        kernels: the plans, in the order in which they run.
        texts: kernels rendered by planners of their own, by position.
        slots: every buffer, with its place.
        inputs, outputs: how many arguments come before the arena.
        arena_bytes, temporaries: see `Unit`.
        checks: lines of C after the kernel at a position.
        sizes: the sizes that vary, by the name of an argument.
        inplace: see `Unit`.
    """

    title: str
    kernels: tuple[KernelPlan, ...]
    texts: Mapping[int, str]
    slots: tuple[Slot, ...]
    inputs: int
    outputs: int
    arena_bytes: int
    temporaries: int
    checks: Mapping[int, Sequence[str]]
    sizes: Mapping[str, int] = field(default_factory=dict)
    inplace: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class UnitView:
    """What the template `unit.c.j2` lays out."""

    title: tuple[str, ...]
    prelude: str
    kernels: tuple[str, ...]
    bindings: tuple[str, ...]
    calls: tuple[str, ...]
    status: str


def contiguous_inputs(graph: Graph) -> set[Value]:
    """The inputs that kernels read as plain memory, so that they must come contiguous."""
    return {
        same_memory(v, graph.producer)
        for node in graph.nodes if needs_buffers(node) for v in node.inputs
    } & set(graph.inputs)  # fmt: skip


def build(
    graph: Graph, *, target: Target | None = None, strides: Mapping[Value, Shape] | None = None,
    checks: Sequence[Check] = (), returned: int | None = None,
) -> Unit:  # fmt: skip
    """Generate C for a graph: `plan_unit`, then `render_unit`.

    Args:
        graph: its outputs must be distinct values and none of them an input.
        target: what the compiler can do.
        strides: of inputs that are not contiguous, in elements; not for `contiguous_inputs`.
        checks: outputs that must have the values seen, in order.
        returned: how many of the outputs the caller gets; the others are only checked.
    Returns:
        The unit. `tg_run` takes pointers to the inputs, the outputs, the arena and the status.
    Example:
        >>> from tracegrad.ir import dtypes, ops
        >>> from tracegrad.ir.graph import GraphBuilder
        >>> from tracegrad.ir.types import TensorType
        >>> builder = GraphBuilder("double")
        >>> x = builder.input(TensorType((4,), dtypes.float32), "x")
        >>> with builder:
        ...     y = x * 2
        >>> "out_0[i] = in_0[i] * 2.0f" in build(builder.finish([y])).source
        True
    """
    target = target or Target()
    plan = plan_unit(graph, target, strides or {}, checks, returned)
    return render_unit(plan, target)


def plan_unit(
    graph: Graph, target: Target, strides: Mapping[Value, Shape], checks: Sequence[Check] = (),
    returned: int | None = None, inplace: Mapping[int, int] | None = None,
) -> UnitPlan:  # fmt: skip
    """Decide the kernels of a graph and the places of its buffers; arguments as for `build`.

    Args:
        inplace: outputs that only replace an input of the same type, with the number of that input;
            it must be contiguous. Those that can be written in place are in the plan's `inplace`.
    """
    wanted = dict(inplace or {})
    while True:
        plan = _plan(graph, target, strides, checks, returned, wanted)
        may_stop = bool(checks) or any(k.uses_status for k in plan.kernels)
        refused = unsafe(plan.kernels, plan.texts, may_stop, wanted)
        if not refused:
            return plan
        wanted = {out: k for out, k in wanted.items() if out not in refused}


def _plan(
    graph: Graph, target: Target, strides: Mapping[Value, Shape], checks: Sequence[Check],
    returned: int | None, inplace: Mapping[int, int],
) -> UnitPlan:  # fmt: skip
    """As `plan_unit`, with all of `inplace` written in place."""
    returned = len(graph.outputs) if returned is None else returned
    assert len(set(graph.outputs)) == len(graph.outputs), "outputs must be distinct"
    assert not set(graph.outputs) & set(graph.inputs), "an output must not be an input"
    title = f"{graph.name}: {signature(graph, returned)}"
    sizes = symbols(graph)
    graph = prepared(graph, strides)
    graph = with_sized_constants(graph) if sizes else graph
    steps = scheduled(graph, strides, target)
    buffers = name_buffers(graph, steps, strides, returned, inplace)
    checked = _check_positions(graph, steps, checks)
    kernels: list[KernelPlan] = []
    texts: dict[int, str] = {}
    scratch: dict[int, tuple[Scratch, ...]] = {}
    for position, step in enumerate(steps):
        name, node = f"kernel_{position}", step.node
        if step.product is not None:
            joined = plan_panels(name, step, graph.producer, buffers, target)
            assert joined is not None, "they fitted with other names"
            kernels.append(joined)
            continue
        if step.group is not None:
            kernels.append(plan_group(name, step.group, graph.producer, buffers, target))
            continue
        if step.rows is not None:
            kernels.append(plan_rows(name, step.rows, graph.producer, buffers, target))
            scratch[position] = kernels[-1].scratch
            continue
        assert node is not None
        if node.primitive.name == "dot_general":
            kernels.append(
                contraction.plan_contraction(name, node, graph.producer, buffers, target)
            )
        elif node.primitive.family == "indexing":
            kernels.append(plan_scatter(name, node, graph.producer, buffers))
        else:
            operands = [
                buffers[v if v in buffers else same_memory(v, graph.producer)] for v in node.inputs
            ]
            plan, texts[position], nbytes = plan_opaque(
                name, node, operands, buffers[node.out], f"scratch_{position}", target
            )
            scratch[position] = (Scratch(f"scratch_{position}", "char", nbytes),) if nbytes else ()
            kernels.append(plan)
    values = [(graph.outputs if c.kind == "output" else graph.inputs)[c.at] for c in checks]
    until = dict(zip(values, checked, strict=True))
    slots, arena, temporaries = place(graph, steps, buffers, scratch, returned, until)
    lines: dict[int, list[str]] = {}
    for number, (check, v, at) in enumerate(zip(checks, values, checked, strict=True)):
        lines.setdefault(at, []).extend(check_lines(number, check, buffers[v]))
    return UnitPlan(
        title, tuple(kernels), texts, tuple(slots), len(graph.inputs), returned, arena,
        temporaries, lines, sizes, inplace,
    )  # fmt: skip


def scheduled(graph: Graph, strides: Mapping[Value, Shape], target: Target) -> list[Step]:
    """The steps of a prepared graph as they become kernels of C."""
    steps = schedule(graph, strides)
    buffers = name_buffers(graph, steps, strides, len(graph.outputs))
    return with_panels(steps, graph, buffers, target)


def _check_positions(graph: Graph, steps: Sequence[Step], checks: Sequence[Check]) -> list[int]:
    """For each check the kernel after which its value and those before it are known, or -1."""
    made = {v: position for position, step in enumerate(steps) for v in step.values}
    positions: list[int] = []
    for check in checks:
        at = made[graph.outputs[check.at]] if check.kind == "output" else -1
        positions.append(max(at, positions[-1]) if positions else at)
    return positions


def prepared(
    graph: Graph, strides: Mapping[Value, Shape], floats: Collection[str] = contraction.BLAS_FLOATS
) -> Graph:
    """The graph as it is scheduled: small products, products of other dtypes than `floats`, and
    small axes of sums written out, operands of the other products canonical.
    """
    expanded = unrolled(contraction.expand_small(without_detach(graph), floats))
    return contraction.canonical_operands(expanded, strides)


def name_buffers(
    graph: Graph, steps: Sequence[Step], strides: Mapping[Value, Shape], returned: int,
    inplace: Mapping[int, int] | None = None,
) -> dict[Value, Buffer]:  # fmt: skip
    """The buffers of all that the steps read and write; outputs in `inplace` have that of an input."""
    buffers: dict[Value, Buffer] = {}

    def add(value: Value, name: str) -> None:
        own = strides.get(value, contiguous_strides(value.shape))
        buffers[value] = Buffer(name, value.dtype, value.shape, own)

    for k, v in enumerate(graph.inputs):
        add(v, f"in_{k}")
    for k, v in enumerate(graph.outputs[:returned]):
        add(v, f"in_{inplace[k]}" if inplace and k in inplace else f"out_{k}")
    temporaries = [v for step in steps for v in step.values if v not in buffers]
    for k, v in enumerate(temporaries):
        add(v, f"tmp_{k}")
    return buffers


# ---- rendering ----------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def environment() -> jinja2.Environment:
    """The template engine; undefined names are errors."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("tracegrad.codegen", "templates"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )


def render(template: str, **variables: Any) -> str:
    """One template with its variables."""
    return environment().get_template(template).render(**variables)


def render_unit(plan: UnitPlan, target: Target) -> Unit:
    """Lay a plan out as C: once to read, with the user's names and lines, once to compile."""
    rendered = [
        plan.texts[k] if k in plan.texts else render("kernel.c.j2", plan=kernel).strip()
        for k, kernel in enumerate(plan.kernels)
    ]
    sizes = [words(t) & plan.sizes.keys() for t in rendered]
    rendered = [_with_sizes(t, k.name, used) for t, k, used in zip(rendered, plan.kernels, sizes)]
    uses_status = bool(plan.checks) or any(k.uses_status for k in plan.kernels)
    firsts = first_alike(plan.kernels, rendered)
    calls = [*plan.checks.get(-1, ())]
    for position, k in enumerate(plan.kernels):
        arguments = (
            *sorted(sizes[position]),
            *k.arguments,
            *(("status",) if k.uses_status else ()),
        )
        name = plan.kernels[firsts[position]].name
        call = f"{name}({', '.join(arguments)});"
        if firsts[position] != position:
            call += f"  // {', '.join(line.partition(': ')[0] for line in k.summary[1:])}"
        calls += [call.rstrip(" /"), *plan.checks.get(position, ())]
    own = [k for k, first in enumerate(firsts) if k == first]
    view = UnitView(
        (plan.title, "Generated by tracegrad."), prelude("\n".join([*rendered, *calls]), target),
        tuple(rendered[k] for k in own), tuple(_bindings(plan, uses_status)), tuple(calls),
        "(int)status[0]" if uses_status else "0",
    )  # fmt: skip
    shown = tuple(with_names(rendered[k], plan.kernels[k].names) for k in own)
    return Unit(
        render("unit.c.j2", unit=replace(view, kernels=shown)),
        strip_comments(render("unit.c.j2", unit=view)),
        len(plan.kernels), plan.arena_bytes, plan.temporaries, uses_status,
        sum(k.nbytes for k in plan.kernels), sum(k.ops for k in plan.kernels), _numbers(plan),
        tuple(plan.inplace.items()),
    )  # fmt: skip


class Named(Protocol):
    """A kernel as `first_alike` needs it."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def parameters(self) -> tuple[Parameter, ...]: ...  # noqa: D102


def first_alike(kernels: Sequence[Named], texts: Sequence[str]) -> list[int]:
    """For each kernel the first one with the same code, be it for other buffers: one function does."""
    seen: dict[str, int] = {}
    firsts = []
    for position, (kernel, text) in enumerate(zip(kernels, texts, strict=True)):
        places = {p.name: f"@{k}" for k, p in enumerate(kernel.parameters)} | {kernel.name: "@"}
        parts = _WORD.split(without_comments(text))
        words = _WORD.findall(without_comments(text))
        code = "".join(
            part + places.get(word, word)
            for part, word in itertools.zip_longest(parts, words, fillvalue="")
        )
        firsts.append(seen.setdefault(code, position))
    return firsts


def words(text: str) -> set[str]:
    """The names in C text."""
    return set(_WORD.findall(without_comments(text)))


def _with_sizes(text: str, name: str, sizes: Iterable[str]) -> str:
    """A kernel that takes sizes before its buffers."""
    head = f"static void {name}("
    assert head in text, f"{name} begins in another way"
    taken = "".join(f"\n    const int64_t {size}," for size in sorted(sizes))
    return text.replace(head, head + taken, 1)


def _numbers(plan: UnitPlan) -> tuple[int, ...]:
    """See `Unit.numbers`: sizes by name, then the offsets of temporaries in the order of `slots`."""
    if not plan.sizes:
        return ()
    offsets = [int(s.position) for s in plan.slots if s.kind == "arena"]
    return (*plan.sizes.values(), *offsets)


_WORD = re.compile(r"\b[A-Za-z_]\w*\b")
_KEYWORDS = frozenset(
    "auto break case char const continue default do double else enum extern float for goto if "
    "inline int long register restrict return short signed sizeof static struct switch typedef "
    "union unsigned void volatile while".split()
)


def with_names(text: str, names: Sequence[tuple[str, str]]) -> str:
    """C text with variables under the user's names, where nothing else is called so.

    Example:
        >>> with_names("const float t0 = in_0[i]; t1 = t0;", [("t0", "speed"), ("t1", "i")])
        'const float speed = in_0[i]; t1 = speed;'
    """
    taken = words(text) | _KEYWORDS
    chosen = {old: new for old, new in names if new not in taken}
    lines = []
    for line in text.split("\n"):
        code, mark, comment = line.partition("  //")
        code = _WORD.sub(lambda m: chosen.get(m.group(), m.group()), code)
        lines.append(code + mark + comment)
    return "\n".join(lines)


def _bindings(plan: UnitPlan, uses_status: bool) -> list[str]:
    """The lines of `tg_run` that name its arguments; buffers that no kernel reads are left out."""
    used = {a for k in plan.kernels for a in k.arguments}
    replaced = {f"in_{k}" for k in plan.inplace.values()}
    status = plan.inputs + plan.outputs + 1
    used.update(_WORD.findall("\n".join(line for lines in plan.checks.values() for line in lines)))
    last = plan.inputs + plan.outputs
    lines = []
    for k, (name, size) in enumerate(plan.sizes.items()):
        lines.append(f"const int64_t {name} = (intptr_t)args[{status + 1 + k}];  // {size} here")
    offset = status + 1 + len(plan.sizes)
    for s in plan.slots:
        at = offset
        offset += s.kind == "arena"
        if s.name not in used:
            continue
        const = "const " if s.kind == "input" and s.name not in replaced else ""
        if s.kind == "arena" and plan.sizes:
            place = f"(void *)((char *)args[{last}] + (intptr_t)args[{at}])"
        elif s.kind == "arena" and s.position:
            place = f"(void *)((char *)args[{last}] + {s.position})"
        elif s.kind == "arena":
            place = f"args[{last}]"
        else:
            place = f"args[{s.position + (plan.inputs if s.kind == 'output' else 0)}]"
        comment = f"  // {s.comment}" if s.comment else ""
        if s.name in replaced:
            comment += ", written in place"
        lines.append(f"{const}{s.c_type} *{s.name} = {place};{comment}")
    if uses_status:
        lines.append(f"int64_t *status = args[{status}];")
    return lines


def signature(graph: Graph, returned: int) -> str:
    """The types of a graph, for the head of its source."""
    inputs = ", ".join(f"{v.name} {v.type}".strip() for v in graph.inputs)
    outputs = ", ".join(str(v.type) for v in graph.outputs[:returned])
    return f"({inputs}) -> ({outputs})"


def strip_comments(source: str) -> str:
    """The source without comments and blank lines: names and line numbers do not reach the key."""
    lines = (line.rstrip() for line in without_comments(source).split("\n"))
    return "\n".join(line for line in lines if line) + "\n"
