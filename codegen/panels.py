"""Panels: a matrix product and the loop that reads its result next, in one kernel.

    for each panel of rows, one thread each:
        the product's rows, by BLAS
        the map over these rows: a bias, an activation, an update of a weight ...

The rows are read again while they are in the cache, and one region of threads does for both. Maps that
read the product element by element can be taken; what reads it otherwise stays a kernel of its own.
Start reading at `with_panels`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod

from tracegrad.codegen.contraction import plan_contraction
from tracegrad.codegen.loops import plan_group
from tracegrad.codegen.lower import Buffer
from tracegrad.codegen.plan import KernelPlan, Line, Loop, Target
from tracegrad.codegen.schedule import Step
from tracegrad.ir.graph import Graph, Node, Value
from tracegrad.ir.sizes import Size

Producer = Callable[[Value], Node | None]


def with_panels(
    steps: Sequence[Step], graph: Graph, buffers: Mapping[Value, Buffer], target: Target
) -> list[Step]:
    """The steps with each product that can be joined to its first reader moved there.

    Args:
        buffers: of all values that steps compute or read; their names do not matter.
    """
    if not target.openmp:
        return list(steps)
    joined: dict[int, Node] = {}  # by the position of the reader
    gone: set[int] = set()
    for position, step in enumerate(steps):
        node = step.node
        if node is None or node.primitive.name != "dot_general":
            continue
        reader = _first_reader(node.out, position, steps, graph)
        if reader is None or reader in joined:
            continue
        both = Step(group=steps[reader].group, product=node)
        if plan_panels("panels", both, graph.producer, buffers, target) is not None:
            joined[reader] = node
            gone.add(position)
    return [
        replace(step, product=joined[k]) if k in joined else step
        for k, step in enumerate(steps) if k not in gone
    ]  # fmt: skip


def _first_reader(value: Value, after: int, steps: Sequence[Step], graph: Graph) -> int | None:
    """The first later step that reads a value, if that is a map; else None."""
    made = {v for step in steps for v in step.values}
    for position in range(after + 1, len(steps)):
        step = steps[position]
        if value in _read(step, made, graph):
            is_map = step.group is not None and not step.group.reductions
            return position if is_map and step.product is None else None
    return None


def _read(step: Step, made: set[Value], graph: Graph) -> set[Value]:
    """The realised values that a step reads."""
    own = set(step.values)
    found: set[Value] = set()
    seen: set[Value] = set()
    stack = [*own]
    while stack:
        v = stack.pop()
        if v in seen:
            continue
        seen.add(v)
        if v in made and v not in own:
            found.add(v)
            continue
        node = graph.producer(v)
        if node is not None:
            stack.extend(node.inputs)
    return found


def plan_panels(
    name: str, step: Step, producer: Producer, buffers: Mapping[Value, Buffer], target: Target
) -> KernelPlan | None:
    """The kernel of a product and the map behind it; None where they do not fit together."""
    assert step.product is not None and step.group is not None, "a product and a map"
    product = plan_contraction(name, step.product, producer, buffers, target)
    out = buffers[step.product.out]
    if not (len(product.body) == 1 and isinstance(product.body[0], Loop)):
        return None
    panels = product.body[0]
    if panels.variable != "row" or not panels.pragmas:
        return None  # no panels, or one thread does them all
    size = step.product.out.type.size
    rows = int(panels.stop)
    if isinstance(size, Size) or prod(step.group.domain) != size:
        return None
    after = plan_group(name, step.group, producer, buffers, replace(target, openmp=False))
    *before, loop = after.body
    if not isinstance(loop, Loop) or not all(isinstance(item, Line) for item in before):
        return None
    if after.uses_status or loop.start != "0" or loop.step != "1":
        return None
    width = size // rows
    scale = {str(size): f" * {width}", str(rows): ""}.get(loop.stop)
    if scale is None or not _reads_own_rows(after, loop, out.name, width if scale == "" else 1):
        return None
    stop = f"(row + rows){scale}" if scale else "row + rows"
    restricted = replace(loop, start=f"row{scale}", stop=stop)
    both = replace(panels, body=(*panels.body, restricted))
    mine = {p.name: p for p in product.parameters}
    others = [p for p in after.parameters if p.name not in mine or not mine[p.name].written]
    names = {p.name for p in others}
    parameters = (*(p for p in product.parameters if p.name not in names), *others)
    return replace(
        after,
        summary=(f"{product.summary[0]}, then {after.summary[0]}", *product.summary[1:],
                 *(line for line in after.summary[1:] if line not in product.summary)),
        parameters=parameters, arguments=tuple(p.name for p in parameters), body=(*before, both),
        nbytes=product.nbytes + after.nbytes, ops=product.ops + after.ops,
    )  # fmt: skip


def _reads_own_rows(plan: KernelPlan, loop: Loop, name: str, width: int) -> bool:
    """Whether the map reads the product only where its own loops stand: at the element itself."""
    variables = [loop.variable]
    if width > 1:
        inner = [item for item in loop.body if isinstance(item, Loop)]
        if len(inner) != 1 or inner[0].stop != str(width) or inner[0].start != "0":
            return False
        variables.append(inner[0].variable)
    element = variables[0] if width == 1 else f"{width} * {variables[0]} + {variables[1]}"
    text = "\n".join(_texts(plan.body))
    rest = text.replace(f"{name}[{element}]", "")
    return re.search(rf"\b{name}\b", rest) is None


def _texts(body: Sequence[Line | Loop]) -> list[str]:
    found: list[str] = []
    for item in body:
        found += _texts(item.body) if isinstance(item, Loop) else [item.text]
    return found
