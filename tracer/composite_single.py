"""A function of one primitive, ready to run: what the dispatcher would look up is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tracegrad.ir.quiet import IGNORE, QUIET
from tracegrad.tracer.composite_plan import Program, owned
from tracegrad.tracer.tape import NO_EDGE, Edge, accumulator, node_class
from tracegrad.tracer.tensor import wrap

if TYPE_CHECKING:
    from tracegrad.tracer.tensor import Tensor


class Single:
    """A program of one primitive, ready to run: the primitive's own plan and node are used.

    Attributes:
        kernel: of the operands; `exact` if it is known to make new memory of the right dtype.
        tensors: 1 or 2 where these are the tensors given, in order; 0 else.
        inputs: for each operand, which of the tensors given it is, or (None and) the number.
        node: class of the node; None where nothing is recorded.
        edges: which of the tensors given each edge is of; None for no edge.
        kept: which of the tensors given the node keeps, -1 for the result, or a number it keeps.
    """

    __slots__ = (
        "kernel",
        "plan",
        "params",
        "inputs",
        "node",
        "edges",
        "kept",
        "wanted",
        "exact",
        "tensors",
    )

    def __init__(self, program: Program) -> None:
        (step,) = program.steps
        self.plan = step.plan
        self.kernel = step.plan.kernel
        self.exact = step.plan.plain
        self.params = step.params
        self.wanted = step.wanted
        places = [None if k in program.constants else program.places.index(k) for k in step.inputs]
        self.inputs = tuple((at, program.constants.get(k)) for at, k in zip(places, step.inputs))
        self.node: Any = None if program.name is None else node_class(program.name)
        self.edges = tuple(at if step.wanted >> j & 1 else None for j, at in enumerate(places))
        kept = step.plan.kept(step.wanted) if self.node is not None else ()
        self.kept = tuple((-1, None) if j == len(places) else self.inputs[j] for j in kept)
        counted = self.inputs in (((0, None),), ((0, None), (1, None)))
        self.tensors = len(self.inputs) if counted else 0

    def run(self, tensors: Sequence[Tensor]) -> Tensor:
        """The function's result for tensors like those that the program was made for."""
        token = QUIET.set(IGNORE)
        try:
            if self.tensors == 1:
                made = self.kernel(tensors[0]._array)
            elif self.tensors == 2:
                made = self.kernel(tensors[0]._array, tensors[1]._array)
            else:
                made = self.kernel(
                    *[x if at is None else tensors[at]._array for at, x in self.inputs]
                )
            if not self.exact:
                made = np.asarray(made, self.plan.dtype)
        finally:
            QUIET.reset(token)
        if not self.exact:
            made = owned(made, *[x._array for x in tensors])
        out = wrap(made)
        if self.node is not None:
            self._track(tensors, out)
        return out

    def _track(self, tensors: Sequence[Tensor], out: Tensor) -> None:
        """Append the node to the tape."""
        edges: list[Edge] = []
        for at in self.edges:
            if at is None:
                edges.append(NO_EDGE)
            else:
                x = tensors[at]
                node = x._grad_fn
                edges.append((node, x._output_nr) if node is not None else (accumulator(x), 0))
        saved: list[Any] = []
        for at, number in self.kept:
            if at is None:
                saved.append((number, None, 0))
            else:
                x = out if at < 0 else tensors[at]
                saved.append((x._array, x._storage, x._storage.version))
        out._grad_fn = self.node(self.plan, self.params, tuple(edges), self.wanted, tuple(saved))
        out._requires_grad = True
