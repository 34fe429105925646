"""The schedule: which values get memory, and which are computed together.

1. *Realised* values get a buffer: outputs, results of reductions and of operations with a kernel of
   their own, operands of the latter, and values that are costly and wanted by several kernels or
   repeated by a broadcast. All others are recomputed where they are used, which is what fusion is.
2. *Groups*: realised values over one domain whose inputs are ready share a loop nest.
3. *Row groups*: loop nests over the same rows become one (`codegen.row_groups`).

The first two are decided together until nothing changes. Start reading at `schedule`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tracegrad.codegen.contraction import realised_operand
from tracegrad.codegen.lower import same_memory
from tracegrad.codegen.nest import Group
from tracegrad.codegen.row_groups import RowGroup, fuse_rows
from tracegrad.ir.graph import Graph, Node, Value
from tracegrad.ir.types import Shape

SHARED_COST = 10  # operations above which a value used by two kernels is stored
DEEP = 100  # operations in a row after which a value is stored, so that no recursion is deep
MOST = 32  # results of one loop nest, past which more registers and compile time cost than is saved
REPEATED_COST = 4  # operations above which a value repeated along outer axes is stored

INLINE = {"pointwise", "movement", "creation", "random"}


@dataclass(frozen=True)
class Step:
    """One kernel to come: a loop nest, a loop over rows, or a node with a kernel of its own.

    A loop nest may have a matrix product before it, see `codegen.panels`.
    """

    group: Group | None = None
    rows: RowGroup | None = None
    node: Node | None = None
    product: Node | None = None

    @property
    def values(self) -> tuple[Value, ...]:
        """The values it computes into buffers."""
        if self.group is not None:
            before = () if self.product is None else (self.product.out,)
            return (*before, *self.group.values)
        if self.rows is not None:
            return self.rows.values
        assert self.node is not None
        return (self.node.out,)


def is_inline(node: Node) -> bool:
    """Whether a node's elements can be computed where they are used."""
    return node.primitive.family in INLINE or node.primitive.name == "gather"


@dataclass
class _Draft:
    """A group under construction; its position in the list is its place in time."""

    domain: Shape
    reduced: tuple[int, ...] = ()
    stores: list[Value] = field(default_factory=list)
    reductions: list[Node] = field(default_factory=list)
    node: Node | None = None
    reads: set[Value] = field(default_factory=set)  # everything visited, to see shared work

    def finished(self) -> Group | Node:
        if self.node is not None:
            return self.node
        return Group(self.domain, self.reduced, tuple(self.stores), tuple(self.reductions))


class Scheduler:
    """Decides realised values and groups for one graph.

    Args:
        graph: outputs must be distinct and none an input.
    """

    def __init__(self, graph: Graph, strides: Mapping[Value, Shape]) -> None:
        self.graph = graph
        self.nodes = {n.out: n for n in graph.nodes}
        self.realised: set[Value] = set(graph.outputs)
        self.deep: set[Value] = set()
        for node in graph.nodes:
            if not is_inline(node):
                self.realised.add(node.out)
            if node.primitive.name == "dot_general":
                for side in (0, 1):
                    found = realised_operand(node, side, graph.producer, strides)
                    assert found is not None, "canonical_operands() must run before the schedule"
                    self.realised.add(found)
            elif needs_buffers(node):
                self.realised.update(same_memory(v, graph.producer) for v in node.inputs)
        self.realised = {v for v in self.realised if v in self.nodes}
        self._realise_repeated()
        self._realise_deep()

    # ---- costs ----------------------------------------------------------------------------------

    def _costs(self) -> dict[Value, int]:
        """Operations per element to recompute each value from buffers."""
        costs: dict[Value, int] = {}
        for node in self.graph.nodes:
            inside = sum(0 if v in self.realised else costs.get(v, 0) for v in node.inputs)
            costs[node.out] = min(node.primitive.cost + inside, 10**6)
        return costs

    def _realise_repeated(self) -> None:
        """Store what a broadcast along outer axes would compute again for every row."""
        costs = self._costs()
        for node in self.graph.nodes:
            for v in node.inputs:
                if v in self.nodes and v not in self.realised and costs[v] >= REPEATED_COST:
                    if v.type.size > 1 and _repeats(v.shape, node.out.shape, node):
                        self.realised.add(v)
                        costs = self._costs()

    def _realise_deep(self) -> None:
        """Store a value now and then in a long chain: kernels are planned by recursion."""
        depths: dict[Value, int] = {}
        for node in self.graph.nodes:
            inside = [depths.get(v, 0) for v in node.inputs if v not in self.realised]
            depths[node.out] = 1 + max(inside, default=0)
            if depths[node.out] > DEEP:
                self.realised.add(node.out)
                self.deep.add(node.out)

    # ---- groups ---------------------------------------------------------------------------------

    def run(self) -> list[Step]:
        """The kernels in order."""
        while True:
            drafts, visitors = self._group()
            costs = self._costs()
            shared = [
                v for v, where in visitors.items()
                if len(where) > 1 and v in self.nodes and v not in self.realised
                and costs[v] >= SHARED_COST and v.type.size > 1
            ]  # fmt: skip
            # Only the last value of a shared chain: its operands are then not shared any more.
            last = set(shared) - {
                v for s in shared for v in self.nodes[s].inputs
                if visitors.get(v, set()) <= visitors[s]
            }  # fmt: skip
            if not last:
                return list(map(_step, self._fused(drafts)))
            self.realised |= last

    def _fused(self, drafts: list[_Draft]) -> list[Group | RowGroup | Node]:
        return fuse_rows([d.finished() for d in drafts], self.graph, self.realised, self.deep)

    def _group(self) -> tuple[list[_Draft], dict[Value, set[int]]]:
        drafts: list[_Draft] = []
        place: dict[Value, int] = {}
        visitors: dict[Value, set[int]] = {}
        for node in self.graph.nodes:
            if node.out not in self.realised:
                continue
            if not is_inline(node) and node.primitive.family != "reduction":
                at = len(drafts)
                drafts.append(_Draft((), node=node))
                for v in node.inputs:
                    for seen in self._visit(v, node.out.shape)[1]:
                        visitors.setdefault(seen, set()).add(at)
            else:
                at = self._place(node, drafts, place, visitors)
            place[node.out] = at
        return drafts, visitors

    def _place(
        self,
        node: Node,
        drafts: list[_Draft],
        place: dict[Value, int],
        visitors: dict[Value, set[int]],
    ) -> int:
        """Put a root into the first group that fits, or a new one; returns its position."""
        reduction = node.primitive.family == "reduction"
        root = node.inputs[0] if reduction else node.out
        domain = root.shape
        reduced = _reduced_axes(node) if reduction else ()
        reads, visited = self._visit(root, domain, expand=not reduction)
        earliest = 0
        fused: set[int] = set()  # groups that compute one of our operands at our own index
        for v, same_index in reads.items():
            if v not in place:
                continue
            at = place[v]
            draft = drafts[at]
            if same_index and draft.node is None and v in draft.stores and draft.domain == domain:
                fused.add(at)
                earliest = max(earliest, at)
            else:
                earliest = max(earliest, at + 1)
        for at in range(earliest, len(drafts)):
            d = drafts[at]
            if d.node is not None or d.domain != domain:
                continue
            if reduction and d.reductions and d.reduced != reduced:
                continue
            if len(d.stores) + len(d.reductions) >= MOST:
                continue
            single = not reduction and not d.reductions and domain == ()
            if at not in fused and not single and not (visited & d.reads):
                continue
            break
        else:
            at = len(drafts)
            drafts.append(_Draft(domain))
        d = drafts[at]
        if reduction:
            d.reductions.append(node)
            d.reduced = reduced
        else:
            d.stores.append(node.out)
        d.reads |= visited
        for v in visited:
            visitors.setdefault(v, set()).add(at)
        return at

    def _visit(
        self, root: Value, domain: Shape, expand: bool = False
    ) -> tuple[dict[Value, bool], set[Value]]:
        """What computing `root` over `domain` reads.

        Returns:
            For each realised value read, whether it is read at the domain's own index only; and
            all values visited, inputs and inline ones included (constants left out).
        """
        reads: dict[Value, bool] = {}
        visited: set[Value] = set()
        stack = [(root, True, expand)]
        seen: set[tuple[Value, bool]] = set()
        while stack:
            v, same, force = stack.pop()
            if (v, same) in seen:
                continue
            seen.add((v, same))
            node = self.nodes.get(v)
            if node is None or (v in self.realised and not force):
                reads[v] = reads.get(v, True) and same
                visited.add(v)
                continue
            if v.type.size > 1 or node.inputs:
                visited.add(v)
            straight = node.primitive.family == "pointwise"
            for operand in node.inputs:
                stack.append((operand, same and straight and operand.shape == domain, False))
        return reads, visited


def _step(kernel: Group | RowGroup | Node) -> Step:
    if isinstance(kernel, Group):
        return Step(group=kernel)
    return Step(rows=kernel) if isinstance(kernel, RowGroup) else Step(node=kernel)


def _reduced_axes(node: Node) -> tuple[int, ...]:
    if "axes" in node.params:
        return tuple(node.params["axes"])
    axis, ndim = node.params["axis"], node.inputs[0].ndim
    return tuple(range(ndim)) if axis is None or ndim == 0 else (axis,)


def _repeats(shape: Shape, out: Shape, node: Node) -> bool:
    """Whether a pointwise or broadcast use repeats a value along an axis outside its own."""
    if node.primitive.family != "pointwise" and node.primitive.name != "broadcast":
        return node.primitive.name == "gather" and shape is node.inputs[0].shape
    lead = len(out) - len(shape)
    own = [lead + i for i, n in enumerate(shape) if n > 1]
    if not own:
        return False
    return any(out[d] > 1 and (d < lead or shape[d - lead] == 1) for d in range(max(own)))


def needs_buffers(node: Node) -> bool:
    """Whether a node's kernel reads its operands from contiguous memory."""
    return node.primitive.family in ("convolution", "window")


def schedule(graph: Graph, strides: Mapping[Value, Shape]) -> list[Step]:
    """Decide the kernels of a graph, in an order in which each finds its inputs ready.

    Args:
        graph: outputs distinct, none of them an input; products too small for BLAS expanded and
            the operands of the others canonical (`codegen.contraction`).
        strides: of the inputs that are not contiguous, in elements.
    """
    return Scheduler(graph, strides).run()


def last_uses(graph: Graph, steps: Sequence[Step], realised: set[Value]) -> dict[Value, int]:
    """For each realised value, the position of the last step that may read it."""
    nodes = {n.out: n for n in graph.nodes}
    last: dict[Value, int] = {}
    for position, step in enumerate(steps):
        stack = list(step.values)
        seen: set[Value] = set()
        first = set(step.values)
        while stack:
            v = stack.pop()
            if v in seen:
                continue
            seen.add(v)
            if v in realised:
                last[v] = position
                if v not in first:
                    continue
            if v in nodes:
                stack.extend(nodes[v].inputs)
    return last
