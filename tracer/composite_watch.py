"""What a function of tensors does, noted down while it runs once. Start reading at `Watch`."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tracegrad.ir.primitive import Primitive
from tracegrad.tracer.capture_hook import Recorder
from tracegrad.tracer.composite_forward import finisher
from tracegrad.tracer.composite_plan import Composite, Program, Step
from tracegrad.tracer.composite_views import Viewing
from tracegrad.tracer.dispatch import planned
from tracegrad.tracer.saved import Packed
from tracegrad.tracer.tape import OperationNode
from tracegrad.tracer.tensor import Tensor

_LARGEST_CONSTANT = 65536  # bytes; larger ones are made anew each time


def first_place(x: Tensor, tensors: Sequence[Tensor]) -> int:
    """Where among `tensors` the object `x` stands first: f(x, x) is not f(x, y)."""
    return next(i for i, y in enumerate(tensors) if y is x)


class Watch(Recorder):
    """Notes the primitives that a function runs, or that it does something else."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.numbers: dict[int, int] = {}  # of what is alive of the values, by identity
        self.held: dict[int, Any] = {}  # operands, numbers and views, by number
        self.steps: list[Step] = []
        self.nodes: list[Any] = []  # of the steps: what a backward needs is kept there
        self._counted = 0
        self._endings: list[weakref.ref[Tensor]] = []
        self.constants: dict[int, np.ndarray] = {}
        self.computes = True
        self.operands = [x for i, x in enumerate(tensors) if first_place(x, tensors) == i]
        self.places = [first_place(x, self.operands) for x in tensors]
        for x in self.operands:
            self._number(x)

    def _number(self, x: Any) -> int:
        number = self.numbers[id(x)] = self._counted
        self._counted += 1
        self.held[number] = x
        return number

    def _computed(self, out: Tensor) -> int:
        """The number of what a step made; its memory is let go when the function lets go of it."""
        number = self._number(out)
        if out._view is None:
            del self.held[number]
            place, numbers = id(out), self.numbers
            self._endings.append(weakref.ref(out, lambda _: numbers.pop(place, None)))
        return number

    def record(
        self, op: Primitive, operands: Sequence[Any], params: Mapping[str, Any], out: Tensor
    ) -> None:
        """A step."""
        given = []
        for x in operands:
            number = self.numbers.get(id(x)) if isinstance(x, Tensor) else None
            if number is None:
                if isinstance(x, Tensor):  # from elsewhere: it may be another one next time
                    self.computes = False
                number = self._number(x)
                self.constants[number] = x
            given.append(number)
        node = out._grad_fn
        wanted = node.wanted if isinstance(node, OperationNode) else 0
        plan = planned(op, [x._array if isinstance(x, Tensor) else x for x in operands], params)
        self.steps.append(Step(plan, dict(params), tuple(given), self._computed(out), wanted))
        self.nodes.append(node)

    def _more(self, *what: Any) -> None:
        """The function does more than compute."""
        self.computes = False

    record_inplace: Any = _more
    value_read: Any = _more
    random_state: Any = _more
    alias: Any = _more
    laid_over: Any = _more
    check_write: Any = _more
    moves: Any = _more
    function: Any = _more
    note: Any = _more

    def constant(self, tensor: Tensor) -> None:
        """A mask or positions that the function made of its arguments: the same next time."""
        if tensor._array.nbytes > _LARGEST_CONSTANT:
            self.computes = False
        self.constants[self._number(tensor)] = tensor._array

    def arrays(self, plan: Composite, result: Any) -> list[np.ndarray] | None:
        """What `plan.forward` would return: the results, and what is kept of the way between.

        None where something to be kept is gone.
        """
        kept: dict[int, np.ndarray] = {}
        for step, node in zip(self.steps, self.nodes, strict=True):
            if isinstance(node, OperationNode) and node.saved:
                for at, saved in zip(step.plan.kept(step.wanted), node.saved, strict=True):
                    assert not isinstance(saved, Packed), "composites know of no hooks"
                    number = step.out if at == len(step.inputs) else step.inputs[at]
                    kept[number] = saved[0]
        if any(k not in kept for k in plan.between):
            return None
        between = [kept[k] for k in plan.between]
        given = [x._array for x in self.operands]
        finish = finisher(plan.program)
        outputs = result if isinstance(result, tuple) else (result,)
        return [*(finish(x._array, *given, *between) for x in outputs), *between]

    def viewing(self, result: Any) -> Viewing | None:
        """What was done, if it was only to look at the memory of the one operand in another way."""
        if not self.computes or len(self.operands) > 1 or not isinstance(result, Tensor):
            return None
        made = []
        before = 0  # the number of the operand
        for step in self.steps:
            if step.out not in self.held or step.inputs != (before,):
                return None
            before = step.out
            made.append(self.held[before])
        return Viewing.of(self.steps, made) if made and made[-1] is result else None

    def program(self, result: Any) -> Program | None:
        """What was done, if it was only to compute `result`."""
        several = isinstance(result, tuple)
        outputs = result if several else (result,)
        if not self.computes or not self.steps:
            return None
        results = []
        computed = {step.out for step in self.steps}
        node = None
        for x in outputs:
            number = self.numbers.get(id(x)) if isinstance(x, Tensor) else None
            if number not in computed or number in results or _reaches_operand(x, self.operands):
                return None
            results.append(number)
            if x._grad_fn is not None:
                if node is not None:  # one node has one cotangent here
                    return None
                node = x._grad_fn
        if node is not None and not isinstance(node, OperationNode):
            return None
        rebuild = None
        if several:
            rebuild = tuple if type(result) is tuple else type(result)._make
        return Program(
            operands=tuple(x.type_info for x in self.operands),
            places=tuple(self.places),
            constants={n: x for n, x in self.constants.items() if not isinstance(x, Tensor)},
            steps=_leading_to(results, self.steps),
            results=tuple(results),
            name=None if node is None else type(node).__name__,
            differentiable=next((i for i, x in enumerate(outputs) if x._grad_fn is not None), 0),
            rebuild=rebuild,
        )


def _reaches_operand(x: Tensor, operands: Sequence[Tensor]) -> bool:
    """True for a view of an operand (a view of what was computed on the way is not one)."""
    for y in operands:
        above = y if y._view is None else y._view.base
        if x._view is not None and x._view.base is above:
            return True  # also where there are no elements
        if np.may_share_memory(x._array, y._array):
            return True
    return False


def _leading_to(results: Sequence[int], steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps that the results depend on."""
    needed, found = set(results), []
    for step in reversed(steps):
        if step.out in needed:
            needed.update(step.inputs)
            found.append(step)
    return tuple(reversed(found))
