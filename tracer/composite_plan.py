"""What a composite function comes to: its forward and backward as functions of arrays, its node.

The steps that a composite runs are written down as the text of a Python function that calls their
kernels; its backward is what the engine would do with a node per step, in the same order, written
down likewise. Where the backward must itself be recorded, the node lays down the nodes of its steps
after all. Start reading at `Composite`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tracegrad.ir import ops
from tracegrad.ir.errors import GradientError
from tracegrad.ir.graph import GraphBuilder, Value
from tracegrad.ir.primitive import bind
from tracegrad.ir.primitives.support import filled_like
from tracegrad.ir.quiet import IGNORE, QUIET
from tracegrad.ir.types import TensorType
from tracegrad.tracer.array_rules import ArrayRule, Lines, as_array, rule_of
from tracegrad.tracer.composite_forward import forward_of, roots_of_operands
from tracegrad.tracer.composite_keep import thrifty
from tracegrad.tracer.dispatch import dispatch
from tracegrad.tracer.tape import (
    FREED,
    NO_EDGE,
    Edge,
    OperationNode,
    Plan,
    beyond,
    gradient_edge,
    leaf_edge,
    numbers_abroad,
    placed,
    stand_in,
)
from tracegrad.tracer.tensor import type_of_array, wrap

if TYPE_CHECKING:
    from tracegrad.tracer.tensor import Tensor


@dataclass(frozen=True, slots=True)
class Step:
    """One primitive of a composite.

    Attributes:
        inputs, out: numbers of the values that it takes and makes.
        wanted: bit set of the inputs that a gradient goes on to.
    """

    plan: Plan
    params: Mapping[str, Any]
    inputs: tuple[int, ...]
    out: int
    wanted: int


@dataclass(frozen=True, slots=True)
class Program:
    """What a composite function does for operands of given types.

    Attributes:
        operands: types of the tensors given, each once; their numbers are 0, 1, ...
        places: for each tensor given, which operand it is.
        constants: the numbers among the inputs of steps, by number of value.
        results: numbers of what is returned; `rebuild` makes the function's result of several.
        name: of the node, None where nothing is recorded.
        differentiable: which result has a gradient.
    """

    operands: tuple[TensorType, ...]
    places: tuple[int, ...]
    constants: Mapping[int, Any]
    steps: tuple[Step, ...]
    results: tuple[int, ...]
    name: str | None
    differentiable: int
    rebuild: Callable[[Any], Any] | None


class Composite(Plan):
    """A program made ready to run: what `Plan` is to one primitive.

    Attributes:
        forward: from the operands' arrays to the results and what is kept of the way between; None
            until a second call makes it worth compiling.
        between: numbers of the values on the way that are kept.
        count: how many results.
        first: for each operand, where among the tensors given it stands first.
        passed: operands that have an edge, and whether a gradient is wanted.
        recorded: class of the node; None where nothing is recorded.
        again: numbers of the values that the backward makes again.
        kept_operands, kept_outputs, kept_between: what the backward reads: which operands, which
            results, and which entries of what `forward` returned, with the operand whose memory
            each may be.
    """

    __slots__ = ("forward", "between", "count", "first", "passed", "kept_operands", "kept_outputs",
                 "kept_between", "rebuild", "differentiable", "program", "recorded", "edge_at",
                 "again", "_numbers", "_places", "_path")  # fmt: skip

    def __init__(self, program: Program) -> None:
        self.program = program
        self.types = program.operands
        self.rebuild = program.rebuild
        self.differentiable = program.differentiable
        self.count = len(program.results)
        self.first = tuple(program.places.index(i) for i in range(len(program.operands)))
        self._path, needed = _backward_of(program)
        types = dict(enumerate(program.operands)) | {s.out: s.plan.out_type for s in program.steps}
        reads, self.again = thrifty(program.steps, types, program.results, needed)
        n = len(program.operands)
        result = program.results[program.differentiable]
        self.kept_operands = tuple(i for i in range(n) if i in reads)
        self.kept_outputs = tuple(i for i, number in enumerate(program.results) if number in reads)
        self.between = between = tuple(
            s.out for s in program.steps if s.out in reads and s.out not in program.results
        )
        roots = roots_of_operands(program)
        self.kept_between = tuple((self.count + i, roots.get(k)) for i, k in enumerate(between))
        self._numbers = (
            *self.kept_operands, *(program.results[i] for i in self.kept_outputs), *between
        )  # fmt: skip
        places = [n if k == result else k if k < n else n + 1 + k for k in self._numbers]
        self._places = tuple(places)
        self.forward: Callable[..., Any] | None = None
        self.out_type = types[result]
        self.out_types = (self.out_type,)
        self.all_types = dict(enumerate(program.operands)) | {n: self.out_type}  # type: ignore[assignment]
        for number, place in zip(self._numbers, places, strict=True):
            if place > n:
                self.all_types[place] = types[number]  # type: ignore[index]
        listed = [i for i, t in enumerate(program.operands) if t.dtype.is_floating_point]
        self.passed = tuple((i, i in self._path) for i in listed)
        self.edge_at = {i: j for j, i in enumerate(listed)}
        self.abroad = numbers_abroad([self.types[i] for i in listed], self.out_type.device)
        self.recorded = None if program.name is None else composite_class(program.name)
        self._rules = {}

    def run(self, tensors: Sequence[Tensor]) -> Any:
        """The function's result for tensors like those that the program was made for."""
        operands = tensors if len(tensors) == 1 else [tensors[i] for i in self.first]
        forward = self.forward or self.compiled()
        token = QUIET.set(IGNORE)
        try:
            made = forward(*[x._array for x in operands])
        finally:
            QUIET.reset(token)
        return self.finished(operands, made)

    def finished(self, operands: Sequence[Tensor], made: Sequence[np.ndarray]) -> Any:
        """The function's result over the arrays that its steps made, with its node."""
        outputs = [wrap(array) for array in made[: self.count]]
        if self.recorded is not None:
            self._track(operands, outputs, made)
        return outputs[0] if self.rebuild is None else self.rebuild(outputs)

    def _track(
        self, operands: Sequence[Tensor], outputs: Sequence[Tensor], made: Sequence[np.ndarray]
    ) -> None:
        """Append the node to the tape."""
        edges: list[Edge] = []
        for i, wanted in self.passed:
            x = operands[i]
            node = x._grad_fn
            if not wanted:
                edges.append(NO_EDGE)
            else:
                edges.append((node, x._output_nr) if node is not None else leaf_edge(x))
        kept = [operands[i] for i in self.kept_operands]
        kept += [outputs[i] for i in self.kept_outputs]
        saved: list[Any] = [(x._array, x._storage, x._storage.version) for x in kept]
        for i, root in self.kept_between:
            array = made[i]
            if root is not None and np.may_share_memory(array, operands[root]._array):
                storage = operands[root]._storage  # writes to the operand are writes to this
                saved.append((array, storage, storage.version))
            else:
                saved.append((array, None, 0))
        out = outputs[self.differentiable]
        assert self.recorded is not None, "there is something to track"
        out._grad_fn = self.recorded(self, _NO_PARAMS, tuple(edges), 1, tuple(saved))
        out._requires_grad = True

    def compiled(self) -> Callable[..., Any]:
        """`forward`, compiled now."""
        self.forward = forward_of(self.program, self.between)
        return self.forward

    def kept(self, wanted: int) -> tuple[int, ...]:
        """Places of what is kept, in order: operands, then the result, then what lies between."""
        return self._places

    def rule(self, wanted: int) -> ArrayRule:
        """The backward on arrays: what the engine would do, step by step."""
        found = self._rules.get(wanted)
        if found is None:
            found = self._rules[wanted] = self._backward()
        return found

    def _backward(self) -> ArrayRule:
        program = self.program
        builder = GraphBuilder()
        values = {i: builder.input(t) for i, t in enumerate(program.operands)}
        for number, x in program.constants.items():
            values[number] = builder.input(type_of_array(x))
        ct = builder.input(self.out_type)
        with builder:
            for step in program.steps:
                if step.out in self.again:
                    given = tuple(values[k] for k in step.inputs)
                    values[step.out] = bind(step.plan.op, given, step.params)
                else:
                    values[step.out] = builder.input(step.plan.out_type)
            parts = pulled_back(self, values, ct)
        names: dict[Value, str] = {ct: "ct"}
        names |= {values[k]: f"x{i}" for i, k in enumerate(self._numbers)}
        lines = Lines(names)
        for number, x in program.constants.items():
            lines.names[values[number]] = f"k{number}"
            lines.globals[f"k{number}"] = as_array(x)
        arguments = [f"x{i}" for i in range(len(self._numbers))]
        return rule_of(builder.nodes, parts, lines, arguments, {})

    def values(self, node: CompositeNode, create_graph: bool) -> dict[int, Any]:
        """What was kept, as tensors, and stand-ins for the rest.

        With `create_graph` they have a history: that of the operands, and nodes of the steps laid
        down now for what lies between.
        """
        saved = node.saved  # read once: another thread may release the node
        if saved is None:
            raise GradientError(FREED)
        program = self.program
        values: dict[int, Any] = {}
        for number, place, entry in zip(self._numbers, self._places, saved, strict=True):
            edge = node.edge(place)
            values[number] = node._unpack(entry, edge, self.all_types[place], create_graph)
        for number, x in program.constants.items():
            values[number] = wrap(as_array(x))
        edges: dict[int, Edge] = {i: beyond(node.edges[j]) for i, j in self.edge_at.items()}
        result = program.results[self.differentiable]
        for step in program.steps:
            if step.out in self.again:
                given = [values[k] for k in step.inputs]
                values[step.out] = dispatch(step.plan.op, given, step.params)
                edges[step.out] = gradient_edge(values[step.out])
            elif create_graph and step.wanted and step.out in self._path and step.out != result:
                inner = _laid_down(step, values, edges)
                edges[step.out] = (inner, 0)
                if step.out in values:
                    placed(values[step.out], (inner, 0))
        for i, type in enumerate(program.operands):
            if i not in values:
                values[i] = stand_in(program.steps[0].plan.op, type)
        for step in program.steps:
            if step.out not in values:
                values[step.out] = stand_in(step.plan.op, step.plan.out_type)
        return values


_NO_PARAMS: dict[str, Any] = {}


def _laid_down(step: Step, values: Mapping[int, Any], edges: Mapping[int, Edge]) -> OperationNode:
    """The node of a step, as if it had been recorded when it ran."""
    saved = []
    for i in step.plan.kept(step.wanted):
        x = values[step.out if i == len(step.inputs) else step.inputs[i]]
        saved.append((x._array, x._storage, x._storage.version))
    to = tuple(edges[k] if step.wanted >> j & 1 else NO_EDGE for j, k in enumerate(step.inputs))
    return step.plan.node(step.plan, step.params, to, step.wanted, tuple(saved))


def _backward_of(program: Program) -> tuple[set[int], set[int]]:
    """Numbers of the values that cotangents reach, and of those whose data the backward reads."""
    if program.name is None:
        return set(), set()
    path = {program.results[program.differentiable]}
    reads: set[int] = set()
    for step in reversed(program.steps):
        if step.out not in path or not step.wanted:
            continue
        for i in step.plan.kept(step.wanted):
            reads.add(step.out if i == len(step.inputs) else step.inputs[i])
        path.update(k for j, k in enumerate(step.inputs) if step.wanted >> j & 1)
    return path, reads - set(program.constants)


def pulled_back(plan: Composite, values: Mapping[int, Any], ct: Any) -> list[Any]:
    """Cotangents of the operands that have an edge, from that of the result.

    Runs the vjp rules of the steps from the last to the first and adds up what arrives at a value,
    as the engine does. On Tensors it computes (and records, in grad mode); on IR values it builds.
    """
    program = plan.program
    arrived = {program.results[program.differentiable]: ct}
    for step in reversed(program.steps):
        ct = arrived.pop(step.out, None)
        if ct is None or not step.wanted:
            continue
        args = [values[k] for k in step.inputs]
        for j, k in enumerate(step.inputs):
            if not step.wanted >> j & 1:
                continue
            part = step.plan.op.cotangent(j, ct, values[step.out], args, step.params)
            if part is None:  # the derivative is zero everywhere
                part = filled_like(ct, 0, step.plan.types[j].shape)
            if tuple(part.shape) != step.plan.types[j].shape:
                part = ops.unbroadcast(part, step.plan.types[j].shape)
            have = arrived.get(k)
            arrived[k] = part if have is None else ops.add(have, part)
    return [arrived.get(i) for i, _ in plan.passed]


class CompositeNode(OperationNode):
    """The backward of a composite."""

    __slots__ = ()
    plan: Composite

    def rename(self, name: str) -> None:
        """As of one primitive."""
        self.__class__ = composite_class(name)

    @property
    def shown(self) -> Sequence[int]:
        """All: only operands that can have a gradient have an edge."""
        return range(len(self.edges))

    def edge(self, place: int) -> Edge:
        """Where the gradient of what is kept at `place` goes."""
        if place == len(self.plan.types):
            return (self, 0)
        at = self.plan.edge_at.get(place)
        return NO_EDGE if at is None else beyond(self.edges[at])

    def parts(self, ct: Tensor) -> list[tuple[Tensor, bool] | None] | None:
        """As of one primitive, once the forward is compiled too: not for what is used once."""
        return None if self.plan.forward is None else super().parts(ct)

    def apply(self, cotangents: list[Tensor | None], create_graph: bool) -> list[Tensor | None]:
        """Run the vjp rules of the steps."""
        plan = self.plan
        values = plan.values(self, create_graph)
        return pulled_back(plan, values, cotangents[0])


def composite_class(name: str) -> type[CompositeNode]:
    """The class of composite nodes called `name`, made on first use."""
    found = _classes.get(name)
    if found is None:
        found = _classes[name] = type(name, (CompositeNode,), {"__slots__": ()})
    return found


_classes: dict[str, type[CompositeNode]] = {}
