"""Row groups: loop nests that run one after the other over the same rows become one loop over rows.

A softmax is a maximum, a sum and a quotient of each row. As three kernels it goes through memory
three times; as one loop over rows, whose body has three *stages*, once: what a stage leaves for the
next lies in the first cache, in a *local* buffer of one row, and never gets memory of its own.
Reductions over the rows themselves (the gradient of a weight that all rows share) *accumulate*
beside it, and are finished behind the loop.

A group may join where all that it reads of the row group's values is of its own row. Start reading
at `fuse_rows`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod

from tracegrad.codegen.nest import Group
from tracegrad.ir.graph import Graph, Node, Value
from tracegrad.ir.sizes import Size
from tracegrad.ir.types import Shape

LOCAL_BYTES = 32 * 1024  # of one row of one value: more does not stay in the first cache
ALL_LOCAL_BYTES = 128 * 1024  # of one row of all values, and of accumulators: both on the stack
ACCUMULATED = 4096  # elements that accumulate over the rows, in each block of rows
FEWEST_ROWS = 8  # below, threads would have too little to share
SHORTEST = 8  # elements of a row; shorter ones vectorise better along the rows
SMALL = 16384  # elements of a domain below which threads gain nothing
MOST_STAGES = 48

Prefix = int | None
"""How many leading axes of a value count the rows; None where its index is not that of the row."""


@dataclass(frozen=True)
class RowGroup:
    """Groups that run as the stages of one loop over rows.

    Attributes:
        rows: the leading axes that the domains of all stages share.
        stages: in order.
        local: values of which only later stages read their own row: they get no memory.
    """

    rows: Shape
    stages: tuple[Group, ...]
    local: frozenset[Value]

    @property
    def values(self) -> tuple[Value, ...]:
        """The values that get memory."""
        return tuple(v for s in self.stages for v in s.values if v not in self.local)


def accumulates(group: Group, rows: int) -> bool:
    """Whether the reductions of a stage run over the rows, which are its first axes."""
    return bool(group.reduced) and group.reduced[0] < rows


@dataclass
class _Draft:
    """A row group under construction."""

    rows: Shape
    stages: list[Group]


def fuse_rows(
    groups: Iterable[Group | Node], graph: Graph, realised: set[Value], kept: set[Value]
) -> list[Group | RowGroup | Node]:
    """Join groups into row groups where that saves going through memory.

    Args:
        groups: loop nests, and nodes with kernels of their own, in an order in which each finds
            its inputs ready.
        graph: where they come from.
        realised: the values that the groups compute into buffers.
        kept: those that are stored though only their own group reads them.
    """
    return _Fusion(graph, realised, kept).run(list(groups))


class _Fusion:
    def __init__(self, graph: Graph, realised: set[Value], kept: set[Value]) -> None:
        self.graph, self.realised, self.kept = graph, realised, kept
        self.reads_of: dict[tuple[Group, int], dict[Value, bool]] = {}

    def run(self, steps: list[Group | Node]) -> list[Group | RowGroup | Node]:
        drafts: list[_Draft | Node] = []
        place: dict[Value, int] = {}
        for step in steps:
            at = len(drafts)
            if isinstance(step, Node):
                drafts.append(step)
                place[step.out] = at
                continue
            joined = self._joined(step, drafts, place)
            if joined is None:
                drafts.append(_Draft(_rows(step), [step]))
            else:
                at, drafts[at] = joined
            place.update(dict.fromkeys(step.values, at))
        return self._finished(drafts)

    def _own_reads(self, group: Group, rows: int) -> set[Value]:
        return {v for v, own in self._reads(group, rows).items() if own}

    # ---- joining --------------------------------------------------------------------------------

    def _joined(
        self, group: Group, drafts: list[_Draft | Node], place: Mapping[Value, int]
    ) -> tuple[int, _Draft] | None:
        """The last draft that a group can join, with the group in it, and its position."""
        if not _is_candidate(group):
            return None
        earliest = max((place[v] for v in self._reads(group, 0) if v in place), default=0)
        for at in range(len(drafts) - 1, earliest - 1, -1):
            draft = drafts[at]
            if isinstance(draft, Node) or not all(map(_is_candidate, draft.stages)):
                continue
            found = self._with(draft, group)
            if found is not None:
                return at, found
        return None

    def _with(self, draft: _Draft, group: Group) -> _Draft | None:
        """The draft with one more stage, over as many rows as allow it."""
        if len(draft.stages) >= MOST_STAGES:
            return None
        stages = [*draft.stages, group]
        most = min(len(draft.rows), len(group.domain))
        for k in range(most, 0, -1):
            rows = draft.rows[:k]
            if group.domain[:k] != rows or not all(_fits(s, k) for s in stages):
                continue
            if k < len(draft.rows) and not _worth_fewer_rows(stages, k):
                break
            if not _worth_rows(stages, k) or not self._reads_own_rows(stages, k):
                continue
            before = {v for s in draft.stages for v in (*s.values, *self._own_reads(s, k))}
            if any(v in before and v.type.size > 1 for v in self._own_reads(group, k)):
                return _Draft(rows, stages)
        return None

    def _reads_own_rows(self, stages: list[Group], k: int) -> bool:
        """Whether each stage reads of earlier stages what is of its row and finished."""
        made: dict[Value, bool] = {}  # whether its rows are finished one by one
        for stage in stages:
            for v, own in self._reads(stage, k).items():
                if v in made and not (own and made[v]):
                    return False
            made.update(dict.fromkeys(stage.stores, True))
            made.update((n.out, not accumulates(stage, k)) for n in stage.reductions)
        return True

    # ---- what is read at which index ---------------------------------------------------------------

    def _reads(self, group: Group, rows: int) -> dict[Value, bool]:
        """The values in memory that a group reads: whether all of it is of the group's own row."""
        found = self.reads_of.get((group, rows))
        if found is None:
            found = self.reads_of[group, rows] = {}
            seen: set[tuple[Value, Prefix]] = set()
            stack: list[tuple[Value, Prefix]] = []
            own = set(group.stores)
            roots = [*group.stores, *(n.inputs[0] for n in group.reductions)]
            for root in roots:
                if root in own:
                    node = self.graph.producer(root)
                    assert node is not None
                    stack += _operands(node, rows)
                else:
                    stack.append((root, rows))
            while stack:
                v, prefix = stack.pop()
                if (v, prefix) in seen or v in own:
                    continue
                seen.add((v, prefix))
                node = self.graph.producer(v)
                if node is None or v in self.realised:
                    found[v] = found.get(v, True) and prefix is not None
                else:
                    stack += _operands(node, prefix)
        return found

    # ---- the result -----------------------------------------------------------------------------

    def _finished(self, drafts: list[_Draft | Node]) -> list[Group | RowGroup | Node]:
        readers: dict[Value, set[int]] = {v: {-1} for v in self.graph.outputs}
        for at, draft in enumerate(drafts):
            if isinstance(draft, Node):
                found = self._read_by(draft)
            else:
                found = {v for s in draft.stages for v in self._reads(s, 0)}
            for v in found:
                readers.setdefault(v, set()).add(at)
        result: list[Group | RowGroup | Node] = []
        for at, draft in enumerate(drafts):
            if isinstance(draft, Node):
                result.append(draft)
                continue
            # what only its own stage reads is not stored
            stages = [
                replace(s, stores=tuple(v for v in s.stores if v in readers or v in self.kept))
                for s in draft.stages
            ]
            if len(stages) == 1:
                result.append(stages[0])
                continue
            inside = [
                v for s in stages for v in s.values
                if readers.get(v, {at}) == {at} and (v in s.stores or not accumulates(s, len(draft.rows)))
            ]  # fmt: skip
            result.append(RowGroup(draft.rows, tuple(stages), _that_fit(inside, draft.rows)))
        return result

    def _read_by(self, node: Node) -> set[Value]:
        """The values in memory that a node with a kernel of its own reads."""
        reads: set[Value] = set()
        stack = list(node.inputs)
        seen: set[Value] = set()
        while stack:
            v = stack.pop()
            if v in seen:
                continue
            seen.add(v)
            inner = self.graph.producer(v)
            if inner is None or v in self.realised:
                reads.add(v)
            else:
                stack.extend(inner.inputs)
        return reads


def _that_fit(values: list[Value], rows: Shape) -> frozenset[Value]:
    """The values of which one row fits on the stack, as long as all of them do."""
    taken, total = set(), 0
    for v in values:
        nbytes = v.type.nbytes // prod(rows)
        if isinstance(nbytes, Size) or nbytes > LOCAL_BYTES or total + nbytes > ALL_LOCAL_BYTES:
            continue
        taken.add(v)
        total += nbytes
    return frozenset(taken)


# ---- which groups, over which rows --------------------------------------------------------------


def _is_candidate(group: Group) -> bool:
    return len(group.domain) > 0 and 0 not in group.domain


def _rows(group: Group) -> Shape:
    """The rows that a group asks for by itself: its axes before those that it reduces."""
    if not group.domain:
        return ()
    if not group.reduced:
        return group.domain[: max(len(group.domain) - 1, 1)]
    if group.reduced[0] > 0:
        return group.domain[: group.reduced[0]]
    k = 0
    while k < len(group.reduced) and group.reduced[k] == k:
        k += 1
    return group.domain[: max(min(k, len(group.domain) - 1), 1)]


def _fits(group: Group, rows: int) -> bool:
    """Whether a group can be a stage over so many leading axes."""
    if len(group.domain) < rows:
        return False
    if not group.reduced:
        return True
    inner = [d for d in range(rows, len(group.domain)) if group.domain[d] > 1]
    reduced = set(group.reduced)
    if group.reduced[0] >= rows:  # each row is reduced: along its last axes
        kept = [d for d in inner if d not in reduced]
        return not kept or max(kept) < min(d for d in (*reduced, len(group.domain)))
    if not set(range(rows)) <= reduced:
        return False
    if any(n.primitive.name in ("argmax", "argmin") for n in group.reductions):
        return False  # an array of accumulators holds no positions
    kept = [d for d in inner if d not in reduced]
    if kept and len(kept) < len(inner):
        return False
    size = prod(group.domain[d] for d in kept)
    return size <= ACCUMULATED and not isinstance(size, Size)


def _worth_rows(stages: list[Group], rows: int) -> bool:
    """Whether a loop over rows is no slower than loops of their own."""
    lengths = [prod(s.domain[rows:]) for s in stages]
    count = prod(stages[0].domain[:rows])
    if not any(isinstance(n, Size) for n in lengths) and max(lengths) < SHORTEST:
        return False
    gathering = [s for s in stages if accumulates(s, rows)]
    if count == 1 and gathering:
        return False
    if 8 * sum(n.out.type.size for s in gathering for n in s.reductions) > ALL_LOCAL_BYTES:
        return False
    varies = any(isinstance(n, Size) for n in (count, *lengths))  # then the kernel is for all sizes
    return varies or count >= FEWEST_ROWS or count * max(lengths) <= SMALL


def _worth_fewer_rows(stages: list[Group], rows: int) -> bool:
    """Whether to give up rows that earlier stages had, so that a further stage can join."""
    row = max(prod(s.domain[rows:]) for s in stages)
    return not isinstance(row, Size) and row * 8 <= LOCAL_BYTES


# ---- indices ------------------------------------------------------------------------------------


def _operands(node: Node, prefix: Prefix) -> list[tuple[Value, Prefix]]:
    """The operands of a node that is computed where it is read, with their prefixes."""
    name, family, shape, p = node.primitive.name, node.primitive.family, node.out.shape, node.params
    if prefix is None or family == "creation":
        return [(v, None) for v in node.inputs]
    k = prefix

    def same(v: Value) -> Prefix:
        return k if v.ndim == len(shape) and v.shape[:k] == shape[:k] else None

    if name == "reshape":
        return [(node.inputs[0], _reshaped(node.inputs[0].shape, prod(shape[:k])))]
    if name == "permute":
        return [(node.inputs[0], k if tuple(p["axes"][:k]) == tuple(range(k)) else None)]
    if name == "slice":
        whole = node.inputs[0].shape[:k] == shape[:k] and all(
            p["start"][d] == 0 and p["step"][d] == 1 for d in range(k)
        )
        return [(node.inputs[0], k if whole else None)]
    if name == "flip":
        return [(node.inputs[0], k if min(p["axes"], default=k) >= k else None)]
    if name == "pad":
        whole = all(tuple(sides) == (0, 0, 0) for sides in p["padding"][:k])
        return [(node.inputs[0], k if whole else None)]
    if name == "concat":
        return [(v, k if p["axis"] >= k else None) for v in node.inputs]
    if name == "gather":
        picks = node.inputs[1:]
        lead = max(v.ndim for v in picks)
        own = [k if k <= lead == v.ndim and v.shape[:k] == shape[:k] else None for v in picks]
        return [(node.inputs[0], None), *zip(picks, own, strict=True)]
    if family in ("pointwise", "movement", "random"):  # movement: broadcast
        return [(v, same(v)) for v in node.inputs]
    raise AssertionError(f"no rule for the rows of {name}")


def _reshaped(source: Shape, rows: int) -> Prefix:
    """The leading axes of `source` that count as many rows."""
    total = 1
    for k, n in enumerate(source):
        if total == rows and k:
            return k
        total *= n
    return len(source) if total == rows and source else None
