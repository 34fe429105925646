"""Partition: what the forward keeps for the backward.

The joint graph of values and gradients is cut in two. The cut is a minimum cut: it costs the bytes
that it stores, and everything on the backward side of it is recomputed there, which is allowed for
pointwise, movement and creation operations only. Inputs are there anyway and cost nearly nothing.
What a checkpoint has run (`Location.region`) is recomputed, whatever the operation, and not stored; what
others use of it is stored, and not recomputed. Start reading at `partition`.

Note [What is cut]
Each primal value v is an edge v_in -> v_out whose capacity is what storing v costs. Values that
must not be recomputed hang on the source, values that the backward reads hang on the sink, and an
operand's out leads to its user's in without limit. A cut edge is a stored value; paths that are
not cut do not exist, so all that the backward reads is stored or follows from what is stored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from tracegrad.ir.graph import Graph, Node, Value
from tracegrad.ir.passes.dce import eliminate_dead_nodes

RECOMPUTED = {"pointwise", "movement", "creation"}
UNLIMITED = 1 << 60


@dataclass(frozen=True)
class Partition:
    """The two halves of a joint graph.

    Attributes:
        forward: primal inputs -> primal outputs, then residuals that are not inputs.
        backward: residuals (inputs among them), then cotangents -> gradients.
        residuals: the values kept, in the order in which `backward` takes them.
        stored_bytes: of those that are neither inputs nor outputs.
    """

    forward: Graph
    backward: Graph
    residuals: tuple[Value, ...]
    stored_bytes: int = 0


def partition(
    whole: Graph, primal_inputs: int, primal_outputs: int, budget: int | None = None
) -> Partition:
    """Cut a joint graph (see `autodiff.joint`) into a forward and a backward graph.

    Args:
        budget: bytes that may be kept beside inputs and outputs. Where the minimum cut keeps more, the
            backward computes again what saves least work for its bytes: reductions and products, too.
        whole: inputs are the primal inputs, then cotangents; outputs the primal outputs, then
            gradients.
        primal_inputs, primal_outputs: how many there are.
    """
    inputs, cotangents = whole.inputs[:primal_inputs], whole.inputs[primal_inputs:]
    outputs, gradients = whole.outputs[:primal_outputs], whole.outputs[primal_outputs:]
    after = set(cotangents)
    for node in whole.nodes:
        if any(v in after for v in node.inputs):
            after.add(node.out)
    needed = _needed(whole, gradients, after)
    kept = _minimum_cut(whole, inputs, outputs, needed, after)
    if budget is not None:
        primal = [n for n in whole.nodes if n.out not in after]
        kept = _within(budget, kept, primal, inputs, outputs, needed)
    order = [v for v in (*inputs, *(n.out for n in whole.nodes)) if v in kept]
    stored = [v for v in order if v not in inputs and v not in outputs]
    forward = eliminate_dead_nodes(whole.replace(inputs=tuple(inputs), outputs=(*outputs, *stored)))
    backward = eliminate_dead_nodes(Graph(
        (*order, *cotangents), tuple(n for n in whole.nodes if n.out not in kept), tuple(gradients),
        f"{whole.name}_backward",
    ))  # fmt: skip
    stored_bytes = sum(int(v.type.nbytes) for v in stored)
    return Partition(forward, backward, tuple(order), stored_bytes)


def _within(
    budget: int, kept: set[Value], primal: Sequence[Node], inputs: Sequence[Value],
    outputs: Sequence[Value], needed: set[Value],
) -> set[Value]:  # fmt: skip
    """As much of a cut as a budget has room for, and the inputs from which the rest follows."""
    there = {*inputs, *outputs}
    stored = [n.out for n in primal if n.out in kept and n.out not in there]
    if sum(int(v.type.nbytes) for v in stored) <= budget:
        return kept
    work = _work_to_recompute(primal, kept)
    chosen = {v for v in kept if v in there and v not in inputs}
    left = budget
    for v in sorted(stored, key=lambda v: -work[v] / max(int(v.type.nbytes), 1)):
        if int(v.type.nbytes) <= left:
            chosen.add(v)
            left -= int(v.type.nbytes)
    nodes = {n.out: n for n in primal}
    stack, seen = [*needed], set[Value]()
    while stack:
        v = stack.pop()
        if v not in seen:
            seen.add(v)
            if v in nodes and v not in chosen:
                stack.extend(nodes[v].inputs)
    return chosen & seen | {v for v in inputs if v in seen}


def _work_to_recompute(primal: Sequence[Node], kept: set[Value]) -> dict[Value, float]:
    """About how many operations computing each value again takes, from values that are kept."""
    work: dict[Value, float] = {}
    for node in primal:
        size = float(max([int(v.type.size) for v in (*node.inputs, node.out)]))
        if node.primitive.family == "contraction":
            x = node.inputs[0]
            size = float(node.out.type.size)
            for axis in node.params["contract"][0]:
                size *= float(x.shape[axis])
        own = size * max(node.primitive.cost, 1)
        work[node.out] = own + sum(0.0 if v in kept else work.get(v, 0.0) for v in node.inputs)
    return work


def _needed(whole: Graph, gradients: Sequence[Value], after: set[Value]) -> set[Value]:
    """Primal values that the backward reads directly."""
    live = set(gradients)
    read = {v for v in gradients if v not in after}
    for node in reversed(whole.nodes):
        if node.out in live and node.out in after:
            live.update(node.inputs)
            read.update(v for v in node.inputs if v not in after)
    return read


def _cost(value: Value, is_input: bool, is_output: bool) -> int:
    """What storing a value costs: written and read again; inputs and outputs exist anyway."""
    nbytes = value.type.nbytes
    return 1 + (0 if is_input else nbytes if is_output else 2 * nbytes)


def _minimum_cut(
    whole: Graph, inputs: Sequence[Value], outputs: Sequence[Value], needed: set[Value],
    after: set[Value],
) -> set[Value]:  # fmt: skip
    """The primal values to store so that all `needed` ones follow from them."""
    primal = [n for n in whole.nodes if n.out not in after]
    given, results = set(inputs), set(outputs)
    regions = _Regions(primal, results)
    relevant = _ancestors(primal, needed, regions)
    flow = _Network()
    for v in inputs:
        if v in relevant:
            flow.add("source", ("in", v), UNLIMITED)
            flow.add(("in", v), ("out", v), _cost(v, True, v in results))
    for node in primal:
        v = node.out
        if v not in relevant:
            continue
        free = node.primitive.family == "creation" and not node.inputs
        if not regions.recomputed(node):
            flow.add("source", ("in", v), UNLIMITED)
        if not free:
            cost = UNLIMITED if v in regions.inside else _cost(v, v in given, v in results)
            flow.add(("in", v), ("out", v), cost)
        for operand in node.inputs:
            if regions.recomputed(node):
                flow.add(("out", operand), ("in", v), UNLIMITED)
    for v in needed:
        flow.add(("out", v), "sink", UNLIMITED)
    reached = flow.source_side()
    return {v for v in relevant if ("in", v) in reached and ("out", v) not in reached}


def _ancestors(primal: Sequence[Node], needed: set[Value], regions: _Regions) -> set[Value]:
    """What the needed values are computed from, through operations that may be recomputed."""
    relevant = set(needed)
    for node in reversed(primal):
        if node.out in relevant and regions.recomputed(node):
            relevant.update(node.inputs)
    return relevant


class _Regions:
    """What checkpoints have run.

    Attributes:
        inside: the values that nobody outside of their checkpoint uses.
        shown: the others.
    """

    def __init__(self, primal: Sequence[Node], results: set[Value]) -> None:
        regions = {n.out: _region(n) for n in primal if _region(n)}
        self.shown = {
            v for n in primal for v in n.inputs if regions.get(v, _region(n)) != _region(n)
        }
        self.shown |= {v for v in regions if v in results}
        self.inside = regions.keys() - self.shown

    def recomputed(self, node: Node) -> bool:
        """Whether the backward may do it again."""
        if _region(node):
            return node.out in self.inside
        return node.primitive.family in RECOMPUTED


def _region(node: Node) -> int:
    return node.location.region if node.location is not None else 0


class _Network:
    """A flow network; `source_side` saturates it (Dinic) and returns the minimum cut's near side."""

    def __init__(self) -> None:
        self.capacity: dict[object, dict[object, int]] = {"source": {}, "sink": {}}

    def add(self, tail: object, head: object, capacity: int) -> None:
        """An edge, with its reverse of capacity 0."""
        edges = self.capacity.setdefault(tail, {})
        edges[head] = min(UNLIMITED, edges.get(head, 0) + capacity)
        self.capacity.setdefault(head, {}).setdefault(tail, 0)

    def source_side(self) -> set[object]:
        """The nodes that the source still reaches when no more can flow."""
        while True:
            level = self._levels()
            if "sink" not in level:
                return set(level)
            edges = {v: list(heads) for v, heads in self.capacity.items()}
            while self._augment(level, edges):
                pass

    def _levels(self) -> dict[object, int]:
        level: dict[object, int] = {"source": 0}
        queue: deque[object] = deque(["source"])
        while queue:
            tail = queue.popleft()
            for head, left in self.capacity[tail].items():
                if left > 0 and head not in level:
                    level[head] = level[tail] + 1
                    queue.append(head)
        return level

    def _augment(self, level: dict[object, int], edges: dict[object, list[object]]) -> bool:
        """Push flow along one path of the level graph, found without recursion."""
        path: list[object] = ["source"]
        while path[-1] != "sink":
            tail = path[-1]
            while edges[tail]:
                head = edges[tail][-1]
                if self.capacity[tail][head] > 0 and level.get(head, -1) == level[tail] + 1:
                    path.append(head)
                    break
                edges[tail].pop()
            else:
                path.pop()
                if not path:
                    return False
                edges[path[-1]].pop()
        steps = list(zip(path, path[1:], strict=False))
        amount = min(self.capacity[t][h] for t, h in steps)
        for t, h in steps:
            self.capacity[t][h] -= amount
            self.capacity[h][t] += amount
        return True
