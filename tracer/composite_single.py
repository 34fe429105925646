"""A function of one primitive, ready to run: what the dispatcher would look up is written down.

Start reading at `Single`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tracegrad.ir.quiet import IGNORE, QUIET
from tracegrad.tracer.array_rules import as_array_of, function_of
from tracegrad.tracer.composite_forward import finisher, laid_out, owned
from tracegrad.tracer.composite_plan import Program, Step
from tracegrad.tracer.tape import NO_EDGE, leaf_edge, node_class
from tracegrad.tracer.tensor import wrap

if TYPE_CHECKING:
    from tracegrad.tracer.tensor import Tensor


class Single:
    """A program of one primitive; the primitive's own plan and node are used.

    Attributes:
        run: from the tensors given, like those that the program was made for, to the result.
        text: the source of `run`, for example of `x.sum()`::

            def run(tensors):
                a = tensors[0]
                token = quiet(IGNORE)
                try:
                    array = as_array(kernel(a._array), dtype)
                finally:
                    loud(token)
                out = wrap(array)
                node = a._grad_fn
                to_a = (node, a._output_nr) if node is not None else leaf_edge(a)
                out._grad_fn = Node(plan, params, (to_a,), 1, ())
                out._requires_grad = True
                return out
    """

    __slots__ = ("run", "text")

    def __init__(self, program: Program) -> None:
        (step,) = program.steps
        plan = step.plan
        names: dict[int, str] = {}  # of the operands, by number
        known: dict[str, Any] = {
            "quiet": QUIET.set, "loud": QUIET.reset, "IGNORE": IGNORE, "kernel": plan.kernel,
            "as_array": as_array_of(plan.out_type), "dtype": plan.dtype, "owned": owned, "laid_out": laid_out,
            "wrap": wrap, "plan": plan,
            "params": step.params, "leaf_edge": leaf_edge, "NO_EDGE": NO_EDGE,
        }  # fmt: skip
        body: list[str] = []
        for k in dict.fromkeys(step.inputs):
            if k in program.constants:
                names[k] = f"number_{len(names)}"
                known[names[k]] = program.constants[k]
            else:
                names[k] = chr(ord("a") + len(body)) if len(body) < 26 else f"x{len(body)}"
                body.append(f"{names[k]} = tensors[{program.places.index(k)}]")
        arrays = {k: n if k in program.constants else f"{n}._array" for k, n in names.items()}
        call = f"kernel({', '.join(arrays[k] for k in step.inputs)})"
        result = "array"
        if not plan.plain:
            call = f"as_array({call}, dtype)"
            number = (
                plan.op.family == "reduction" and plan.types[0].shape and not plan.out_type.shape
            )
            if not number:  # an array, which may lie in an operand's memory
                finish = finisher(program).__name__
                result = f"{finish}(array, {', '.join(a for a in arrays.values() if '.' in a)})"
        body += ["token = quiet(IGNORE)", "try:", f"    array = {call}",
                 "finally:", "    loud(token)", f"out = wrap({result})"]  # fmt: skip
        if program.name is not None:
            known["Node"] = node_class(program.name)
            body += _recording(step, names, frozenset(program.constants))
        self.text = "\n    ".join(["def run(tensors):", *body, "return out"])
        self.run: Callable[[Sequence[Tensor]], Tensor] = function_of(self.text, known, "run")


def _recording(step: Step, names: dict[int, str], constants: frozenset[int]) -> list[str]:
    """Lines that append the node to the tape."""
    lines = []
    for k, name in names.items():
        if any(i == k and step.wanted >> j & 1 for j, i in enumerate(step.inputs)):
            lines.append(f"node = {name}._grad_fn")
            lines.append(
                f"to_{name} = (node, {name}._output_nr) if node is not None else leaf_edge({name})"
            )
    edges = [
        f"to_{names[k]}" if step.wanted >> j & 1 else "NO_EDGE" for j, k in enumerate(step.inputs)
    ]
    saved = []
    for i in step.plan.kept(step.wanted):
        if i < len(step.inputs) and step.inputs[i] in constants:
            saved.append(f"({names[step.inputs[i]]}, None, 0)")
        else:
            kept = names[step.inputs[i]] if i < len(step.inputs) else "out"
            saved.append(f"({kept}._array, {kept}._storage, {kept}._storage.version)")
    lines.append(
        f"out._grad_fn = Node(plan, params, {_tuple(edges)}, {step.wanted}, {_tuple(saved)})"
    )
    return [*lines, "out._requires_grad = True"]


def _tuple(parts: Sequence[str]) -> str:
    return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
