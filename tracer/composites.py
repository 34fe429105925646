"""Composite functions: several primitives, run and recorded eagerly as one operation.

`softmax` and the like are written with primitives, so that they can be captured, batched and
differentiated like any program. Run one by one, each primitive would cost a Tensor and a node. So
`@composite` looks at what a function does when it is called for the second time with operands of
the same types, and if it only computes, makes a `Composite` of it: a Python function that calls
the kernels one after another, and one node with one backward, with the same bits. A recorder or
profiler sees the primitives as before. Start reading at `composite`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.primitive import Primitive
from tracegrad.ir.quiet import IGNORE, QUIET
from tracegrad.tracer.capture_hook import Recorder, recording
from tracegrad.tracer.composite_plan import Composite, Program, Single, Step, owned
from tracegrad.tracer.composite_views import Viewing
from tracegrad.tracer.dispatch import planned
from tracegrad.tracer.profiling import profilers
from tracegrad.tracer.saved import pack
from tracegrad.tracer.state import state
from tracegrad.tracer.tape import OperationNode, accumulator
from tracegrad.tracer.tensor import Tensor, wrap
from tracegrad.tracer.views import refresh

F = TypeVar("F", bound=Callable[..., Any])

_PLAIN = "does more than compute: runs as it is written"
_KEPT = 4096

_known: dict[Any, Any] = {}  # what a call comes to: _PLAIN, Single, Composite or Viewing
_CONSTANTS = frozenset((int, bool, str, type(None), type(Ellipsis), DType))


def composite(function: F) -> F:
    """Make a function of tensors run as one operation where nobody watches its parts.

    The function must compute its results from its arguments with operations, and decide by types,
    shapes and Python values only; one that does anything else (reads a value, draws a random
    number, writes in place) is noticed and runs as it is written.
    """
    return _as_one(function, False)


def viewing(function: F) -> F:
    """As `composite`, for a function that returns a view where the strides of its tensor allow."""
    return _as_one(function, True)


def _as_one(function: F, by_strides: bool) -> F:

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if state.recorder is not None or profilers:
            return function(*args, **kwargs)
        key: list[Any] = [call, dtypes.get_default_dtype()]
        tensors: list[Tensor] = []
        if not _describe(args, key, tensors) or not tensors:
            return function(*args, **kwargs)
        if kwargs:
            key.extend(kwargs)
            if not _describe(kwargs.values(), key, tensors):
                return function(*args, **kwargs)
        wanted = 0
        if state.grad_enabled:
            bit = 1
            for x in tensors:
                view = x._view
                if view is not None and view.version != x._storage.version:
                    refresh(x, view)
                if x._requires_grad:
                    wanted |= bit
                bit <<= 1
        key.append(wanted)
        if by_strides:
            key.append(tensors[0]._array.strides)
        if len(tensors) > 1:
            key.extend(map(_first_place, tensors, [tensors] * len(tensors)))
        place = tuple(key)
        found = _known.get(place)
        if found.__class__ is Composite:
            return _replayed(found, tensors)
        if found.__class__ is Single:
            return found.run(tensors)
        if found.__class__ is Viewing:
            return found.run(tensors[0])
        if found is _PLAIN:
            return function(*args, **kwargs)
        watch = _Watch(tensors)
        with recording(watch):
            result = function(*args, **kwargs)
        program = watch.program(result)
        if len(_known) >= _KEPT:
            _known.clear()
        if program is None:
            _known[place] = (by_strides and watch.viewing(result)) or _PLAIN
        elif len(program.steps) == 1 and program.rebuild is None:
            _known[place] = Single(program)  # one primitive keeps its own plan and node
        else:
            plan = _known[place] = Composite(program)
            return _finished(plan, watch.operands, watch.arrays(plan))
        return result

    return call  # type: ignore[return-value]


def _first_place(x: Tensor, tensors: Sequence[Tensor]) -> int:
    """Where among `tensors` the object `x` stands first: f(x, x) is not f(x, y)."""
    return next(i for i, y in enumerate(tensors) if y is x)


def _describe(values: Any, key: list[Any], tensors: list[Tensor]) -> bool:
    """Add to `key` what a call with `values` depends on; False where that cannot be said."""
    for x in values:
        kind = x.__class__
        if isinstance(x, Tensor):
            array = x._array
            key.append(array.shape)
            key.append(array.dtype)
            tensors.append(x)
        elif kind in _CONSTANTS:
            key.append(kind)
            key.append(x)
        elif kind is float:
            key.append(kind)
            key.append(x)
            key.append(math.copysign(1.0, x))
        elif kind is slice:
            key.append(kind)
            if not _describe((x.start, x.stop, x.step), key, tensors):
                return False
        elif kind is tuple or kind is list:
            key.append(kind)
            key.append(len(x))
            if not _describe(x, key, tensors):
                return False
        else:
            return False
    return True


class _Watch(Recorder):
    """Notes the primitives that a function runs, or that it does something else."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.numbers: dict[int, int] = {}  # of the operands and of what was computed, by identity
        self.held: list[Any] = []  # keeps them, so that no identity is used twice
        self.steps: list[Step] = []
        self.constants: dict[int, np.ndarray] = {}
        self.computes = True
        self.operands = [x for i, x in enumerate(tensors) if _first_place(x, tensors) == i]
        self.places = [_first_place(x, self.operands) for x in tensors]
        for x in self.operands:
            self._number(x)

    def _number(self, x: Any) -> int:
        self.held.append(x)
        number = self.numbers[id(x)] = len(self.held) - 1
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
        self.steps.append(Step(plan, dict(params), tuple(given), self._number(out), wanted))

    def record_inplace(self, name: str, target: Tensor, value: Tensor) -> None:
        """More than computing, as are all the rest."""
        self.computes = False

    def value_read(self, tensor: Tensor, what: str) -> None:
        self.computes = False

    def constant(self, tensor: Tensor) -> None:
        self.computes = False

    def random_state(self, tensor: Tensor, generator: Any) -> None:
        self.computes = False

    def alias(self, made: Tensor, tensor: Tensor) -> None:
        self.computes = False

    def laid_over(self, taken: Any, source: Any, region: Any, params: Any) -> None:
        self.computes = False

    def check_write(self, name: str, target: Tensor, value: Tensor) -> None:
        self.computes = False

    def moves(self, name: str, tensor: Tensor) -> None:
        self.computes = False

    def function(self, node: Any, args: Any, outputs: Any) -> None:
        self.computes = False

    def note(self, what: str, tensor: Tensor | None = None) -> None:
        self.computes = False

    def arrays(self, plan: Composite) -> list[np.ndarray]:
        """What `plan.forward` would return: the results, and what is kept of the way between."""
        between = [self.held[k]._array for k in plan.between]
        given = [x._array for x in self.operands]
        results = [owned(self.held[k]._array, *given, *between) for k in plan.program.results]
        return [*results, *between]

    def viewing(self, result: Any) -> Viewing | None:
        """What was done, if it was only to look at the memory of the one operand in another way."""
        if not self.computes or len(self.operands) > 1 or not isinstance(result, Tensor):
            return None
        made = [self.held[step.out] for step in self.steps]
        before = self.operands[0]
        for step, out in zip(self.steps, made, strict=True):
            if out._view is None or len(step.inputs) > 1 or self.held[step.inputs[0]] is not before:
                return None
            before = out
        return Viewing.of(self.steps, made) if made and before is result else None

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
            steps=tuple(self.steps),
            results=tuple(results),
            name=None if node is None else type(node).__name__,
            differentiable=next((i for i, x in enumerate(outputs) if x._grad_fn is not None), 0),
            rebuild=rebuild,
        )


def _reaches_operand(x: Tensor, operands: Sequence[Tensor]) -> bool:
    """True for a view of an operand (a view of what was computed on the way is not one)."""
    return any(np.may_share_memory(x._array, y._array) for y in operands)


def _replayed(plan: Composite, tensors: Sequence[Tensor]) -> Any:
    """The results of a composite for tensors like those that it was made for."""
    operands = tensors if len(tensors) == 1 else [tensors[i] for i in plan.first]
    forward = plan.forward or plan.compiled()
    token = QUIET.set(IGNORE)
    try:
        made = forward(*[x._array for x in operands])
    finally:
        QUIET.reset(token)
    return _finished(plan, operands, made)


def _finished(plan: Composite, operands: Sequence[Tensor], made: Sequence[np.ndarray]) -> Any:
    """The function's result over the arrays that its steps made, with its node."""
    outputs = [wrap(array) for array in made[: plan.count]]
    if plan.node is not None:
        _track(plan, operands, outputs, made)
    return outputs[0] if plan.rebuild is None else plan.rebuild(outputs)


def _track(
    plan: Composite, operands: Sequence[Tensor], outputs: Sequence[Tensor],
    made: Sequence[np.ndarray],
) -> None:  # fmt: skip
    """Append the node of a composite to the tape."""
    edges = []
    for i, wanted in plan.passed:
        x = operands[i]
        node = x._grad_fn
        if not wanted:
            edges.append((None, 0))
        else:
            edges.append((node, x._output_nr) if node is not None else (accumulator(x), 0))
    saved: list[Any] = []
    for i in plan.kept_operands:
        x = operands[i]
        saved.append((x._array, x._storage, x._storage.version))
    for i in plan.kept_outputs:
        x = outputs[i]
        saved.append((x._array, x._storage, x._storage.version))
    for i in plan.kept_between:
        saved.append((made[i], None, 0))
    out = outputs[plan.differentiable]
    assert plan.node is not None, "a composite without history has nothing to track"
    out._grad_fn = node = plan.node(plan, _NO_PARAMS, tuple(edges), 1, tuple(saved))
    out._requires_grad = True
    if state.saved_hooks:
        known = [*(operands[i] for i in plan.kept_operands), *(outputs[i] for i in plan.kept_outputs),
                 *(wrap(made[i]) for i in plan.kept_between)]  # fmt: skip
        node.saved = tuple(pack(x) for x in known)


_NO_PARAMS: dict[str, Any] = {}
