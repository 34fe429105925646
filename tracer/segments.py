"""The compiled segments of a trace in whose backward functions of the user's are called.

A `Segment` is differentiated, cut into forward and backward, and compiled as a whole trace is: it has
what `tracer.compiled_backward` asks of one. `Segmented` has them all, and the forward graph with what
they keep among its outputs. Start reading at `Segmented`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from tracegrad.ir.errors import NotDifferentiableError
from tracegrad.ir.graph import Graph, GraphBuilder, Value
from tracegrad.ir.passes import autodiff, optimize
from tracegrad.ir.passes.dce import eliminate_dead_nodes
from tracegrad.ir.passes.partition import Partition, partition
from tracegrad.ir.passes.sizes import with_sizes
from tracegrad.ir.types import Shape
from tracegrad.tracer.compiled_backward import Backward
from tracegrad.tracer.cutting import Cut, End, Stretch
from tracegrad.tracer.user_tape import Place, UserTape

if TYPE_CHECKING:
    from tracegrad.tracer.trace import Trace


class Segment:
    """One segment: cotangents of its outputs in, cotangents of its inputs `wrt` out.

    Attributes:
        level: how many of the user's nodes are older.
        inputs: which inputs of the cut graph its own are.
        captured: as it was captured; `graph`: simplified, with the sizes that vary.
    """

    copied: set[int]
    mode = None  # a segment is no loss: forward and backward are separate

    def __init__(
        self, trace: Trace, number: int, stretch: Stretch, shapes: Mapping[int, Shape],
        contiguous: Sequence[bool], budget: int | None,
    ) -> None:  # fmt: skip
        self._trace = trace
        self.level = stretch.level
        self.name = f"segment {number} of {trace.name}"
        self.debug, self.verify, self.place = trace.debug, trace.verify, None
        live = eliminate_dead_nodes(stretch.graph)
        read = {v for n in live.nodes for v in n.inputs} | set(live.outputs)
        kept = [k for k, v in enumerate(live.inputs) if v in read or k in stretch.wrt]
        self.inputs = tuple(kept)
        self.captured = live.replace(inputs=tuple(live.inputs[k] for k in kept), name=self.name)
        mine = {i: shapes[k] for i, k in enumerate(kept) if k in shapes}
        self.graph = with_sizes(optimize(self.captured), mine)
        self.wrt = tuple(kept.index(k) for k in stretch.wrt)
        self.abroad = ()
        self.result_types = tuple(v.type for v in self.captured.outputs)
        self.result_orders: list[tuple[int, ...] | None] = [None] * len(self.result_types)
        self.strides: dict[Value, Shape] = {}
        self.copied = {i for i, k in enumerate(kept) if not contiguous[k]}
        self.cut: Partition | None = None
        self.backward_error: NotDifferentiableError | None = None
        try:
            whole = autodiff.joint(self.graph, self.wrt, range(len(self.graph.outputs)))
            self.cut = partition(whole, len(self.graph.inputs), len(self.graph.outputs), budget)
        except NotDifferentiableError as error:
            self.backward_error = error  # raised by the backward, as in eager mode
        self._backwards: dict[tuple[bool, ...], Backward] = {}
        self._histories: dict[tuple[bool, ...], tuple[Graph, tuple[int, ...]]] = {}

    @property
    def apart(self) -> bool:
        """Whether the worker compiles for it."""
        return self._trace.apart

    def backward(self, present: tuple[bool, ...]) -> Backward:
        """The backward for cotangents of some of the outputs; generated at first use."""
        if self.backward_error is not None:
            raise self.backward_error
        found = self._backwards.get(present)
        if found is None:
            found = self._backwards[present] = Backward(cast("Trace", self), present)
        return found

    def backwards(self) -> tuple[Backward, ...]:
        """Those that were asked for so far."""
        return tuple(self._backwards.values())

    def full_backward(self) -> Backward:
        """The backward for cotangents of all outputs."""
        return self.backward((True,) * len(self.result_types))

    def _connected(self, present: tuple[bool, ...]) -> tuple[list[int], tuple[int, ...]]:
        outputs = [k for k, here in enumerate(present) if here]
        return outputs, autodiff.connected_inputs(self.captured, self.wrt, outputs)

    def vjp_graph(self, present: tuple[bool, ...]) -> tuple[Graph, tuple[int, ...]]:
        """Inputs and present cotangents -> gradients of the inputs that they reach."""
        outputs, wrt = self._connected(present)
        return optimize(autodiff.vjp(self.graph, wrt, outputs)), wrt

    def history_graph(self, present: tuple[bool, ...]) -> tuple[Graph, tuple[int, ...]]:
        """As `vjp_graph`, not simplified: for gradients that are differentiated again."""
        found = self._histories.get(present)
        if found is None:
            outputs, wrt = self._connected(present)
            found = autodiff.vjp(self.captured, wrt, outputs), wrt
            self._histories[present] = found
        return found

    @property
    def residuals(self) -> tuple[Value, ...]:
        """What the forward keeps for it; inputs of its graph among them."""
        return () if self.cut is None else self.cut.residuals


class Segmented:
    """All segments of a trace, and where cotangents go between them and the user's nodes.

    Attributes:
        forward: the outputs of the trace's graph, then what the segments keep and is no input.
        takes: for each user node, where the cotangents of its edges go.
        slots: likewise for the tensors that the nodes hold.
        given_by, given: of the inputs of segments after those of the trace: (user node, output), and
            the place of its value.
        results: where those of the results go: (position among the results, end).
        kept: for each segment by number, the places of its residuals in `forward`.
    """

    def __init__(
        self, trace: Trace, tape: UserTape, sizes: Mapping[int, Shape], graph: Graph,
        contiguous: Sequence[bool],
    ) -> None:  # fmt: skip
        self.tape = tape
        cut = tape.cut()
        self.takes = [
            [_end(cut, tape.taken(cut, node, i)) for i in range(len(node.takes))]
            for node in tape.nodes
        ]
        self.slots = [
            None if s.takes is None else cut.end(cut.as_used(tape.value(s.takes)))
            for s in tape.slots
        ]
        self.results = [(k, cut.end(cut.as_used(tape.value(p)))) for k, p in tape.results]
        self.given_by = cut.given
        self.given: list[Place] = []  # the values that the nodes give, as inputs of segments
        for at, number in cut.given:
            place = tape.nodes[at].gives[number]
            assert place is not None and place[0] == "output", "given by a node, not from outside"
            self.given.append(place)
        shapes = dict(sizes)
        if sizes:
            shapes.update(
                (cut.whole + i, graph.outputs[k].shape) for i, (_, k) in enumerate(self.given)
            )
        plain = (*contiguous, *(True for _ in self.given))
        self.segments: list[Segment] = []
        left = trace.budget
        for k, stretch in enumerate(cut.stretches()):
            made = Segment(trace, k, stretch, shapes, plain, left)
            self.segments.append(made)
            if left is not None and made.cut is not None:
                left -= made.cut.stored_bytes
        self.kept: list[list[Place]] = []
        self.forward = self._forward(graph, cut)

    def _forward(self, graph: Graph, cut: Cut) -> Graph:
        """The graph of the trace, followed by what computes the residuals."""
        builder = GraphBuilder(graph.name)
        inputs = [builder.input(v.type, v.name) for v in graph.inputs]
        outputs = _appended(builder, graph, inputs)
        values = [*inputs, *(outputs[k] for _, k in self.given)]
        for segment in self.segments:
            mine = [values[k] for k in segment.inputs]
            places: list[Place] = []
            if segment.cut is not None:
                forward = segment.cut.forward
                stored = dict(zip(forward.inputs, segment.inputs, strict=True))
                made = _appended(builder, forward, mine)
                for v in segment.residuals:
                    k = stored.get(v)
                    if k is not None:
                        whole = k < cut.whole
                        places.append(("input", k) if whole else self.given[k - cut.whole])
                        continue
                    places.append(("output", len(outputs)))
                    outputs.append(made[forward.outputs.index(v)])
            self.kept.append(places)
        return builder.finish(outputs)


def _end(cut: Cut, value: Value | None) -> End | None:
    return None if value is None else cut.end(value)


def _appended(builder: GraphBuilder, graph: Graph, inputs: Sequence[Value]) -> list[Value]:
    """The outputs of `graph`, whose nodes are appended."""
    made = dict(zip(graph.inputs, inputs, strict=True))
    for node in graph.nodes:
        made[node.out] = builder.append(
            node.primitive, [made[v] for v in node.inputs], node.params, location=node.location,
            name=node.out.name,
        )  # fmt: skip
    return [made[v] for v in graph.outputs]
