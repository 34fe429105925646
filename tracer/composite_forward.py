"""The steps of a composite as one function of arrays, and whose memory its results have.

Start reading at `forward_of`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tracegrad.ir.graph import GraphBuilder
from tracegrad.ir.passes import optimize
from tracegrad.runtime.cuda import eager
from tracegrad.runtime.cuda.array import DeviceArray
from tracegrad.runtime.cuda.placing import resident
from tracegrad.tracer.array_rules import Lines, as_array
from tracegrad.tracer.tensor import dtype_of, type_of_array

if TYPE_CHECKING:
    from tracegrad.tracer.composite_plan import Program


def forward_of(program: Program, between: Sequence[int]) -> Callable[..., Any]:
    """The steps as a function of the operands' arrays."""
    device = eager.device_of(program.operands)
    if device == "cpu":
        return _step_by_step(program, between)
    compiled = _on_device(program, between, device)
    if any(s.plan.op.family != "pointwise" for s in program.steps):
        return compiled
    apart = _step_by_step(program, between)  # which keeps the order of dimensions in memory

    def run(*arrays: Any) -> Any:
        plain = all(x.__class__ is not DeviceArray or x.contiguous for x in arrays)
        return (compiled if plain else apart)(*arrays)

    return run


def _on_device(program: Program, between: Sequence[int], device: str) -> Callable[..., Any]:
    """The steps as one graph, compiled."""
    builder = GraphBuilder(program.name or "function")
    values = {i: builder.input(t) for i, t in enumerate(program.operands)}
    held = []
    for number, x in program.constants.items():
        array = as_array(x)
        if array.ndim:
            values[number] = builder.input(replace(type_of_array(array), device=device))
            held.append(array)
        else:
            values[number] = builder.constant(array.item(), dtype_of[array.dtype])
    for step in program.steps:
        operands = [values[k] for k in step.inputs]
        values[step.out] = builder.append(step.plan.op, operands, step.params)
    graph = builder.finish([values[k] for k in (*program.results, *between)])
    from tracegrad.runtime.cuda.programs import Program as Compiled

    compiled = Compiled(optimize(graph), device)
    constants = [resident(x, compiled.index) for x in held]
    return lambda *arrays: compiled(*arrays, *constants)


def _step_by_step(program: Program, between: Sequence[int]) -> Callable[..., Any]:
    """The steps one after another."""
    names = {i: f"x{i}" for i in range(len(program.operands))}
    last: dict[int, int] = {}
    for at, step in enumerate(program.steps):
        for k in step.inputs:
            last[k] = at
    kept = {*program.results, *between}
    lines = Lines({})
    for number, x in program.constants.items():
        names[number] = f"k{number}"
        lines.globals[f"k{number}"] = x
    own = _exact(program)
    finish = finisher(program).__name__
    for at, step in enumerate(program.steps):
        names[step.out] = f"t{step.out}"
        lines.step(step.plan.op, step.plan.types, step.params, step.plan.out_type,
                   names[step.out], [names[k] for k in step.inputs])  # fmt: skip
        gone = {k for k in (*step.inputs, step.out) if k >= len(program.operands)
                and last.get(k, at) <= at and k not in kept and k not in program.constants}  # fmt: skip
        if gone:
            lines.lines.append(f"del {', '.join(names[k] for k in sorted(gone))}")
    arguments = [f"x{i}" for i in range(len(program.operands))]
    others = ", ".join([*arguments, *(names[k] for k in between)])
    lines.globals |= {"owned": owned, "laid_out": laid_out}
    returned = [
        names[k] if k in own and finish == "owned" else f"{finish}({names[k]}, {others})"
        for k in program.results
    ]
    returned += [names[k] for k in between]
    made: Callable[..., Any] = lines.function(f"forward({', '.join(arguments)})", returned)
    return made


def _exact(program: Program) -> set[int]:
    """Values that are new memory for certain: what NumPy's own functions return."""
    return {
        s.out for s in program.steps
        if s.plan.plain
    }  # fmt: skip


def roots_of_operands(program: Program) -> dict[int, int]:
    """Values that may be views of an operand, by number: that operand."""
    roots = {i: i for i in range(len(program.operands))}
    for step in program.steps:
        may_alias = step.plan.op.family != "reduction" and not step.plan.plain
        if may_alias and step.inputs and step.inputs[0] in roots:
            roots[step.out] = roots[step.inputs[0]]
    return roots


def finisher(program: Program) -> Callable[..., np.ndarray]:
    """What results pass through: those of steps that go element by element keep their layout."""
    return owned if all(s.plan.op.family == "pointwise" for s in program.steps) else laid_out


def laid_out(array: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """As `owned`, row-major: what PyTorch makes of anything that is not element by element."""
    if not array.flags.c_contiguous:
        return array.copy()
    return owned(array, *others)


def owned(array: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """`array` in memory that none of the others has."""
    if array.base is None:
        for x in others:
            if array is x:
                return array.copy()
        return array
    if not array.flags.writeable or any(np.may_share_memory(array, x) for x in others):
        return array.copy()
    return array  # its base is one that nobody else has
