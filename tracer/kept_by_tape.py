"""What the tape of a captured run has saved: the memory that eager mode wants unchanged until the backward.

Compiled code keeps other values, so a replay would not notice a write that eager mode refuses. What
was overwritten within the run is refused by each backward in eager mode: such runs are not replayed. What
comes from outside or is returned is watched by the node that a replay leaves. Start reading at `Kept`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from tracegrad.ir.location import Location
from tracegrad.tracer.function_node import FunctionNode
from tracegrad.tracer.saved import Packed
from tracegrad.tracer.storage import Storage
from tracegrad.tracer.tape import BackwardNode, OperationNode
from tracegrad.tracer.tensor import Tensor

Saved = tuple[str, int, tuple[int, ...]]
"""("input" or "output", position, numbers of the differentiable results that need it)."""


class Kept:
    """What lies saved between some tensors and the beginning of the run.

    Args:
        results: the tensors from which a backward can start.
        first: nodes with smaller numbers are from before the run.

    Attributes:
        overwritten: one that a later write has changed: the operation that wrote, and its line.
    """

    def __init__(self, results: Iterable[Tensor], first: int) -> None:
        self.overwritten: tuple[str, Location | None] | None = None
        self._storages: dict[int, Storage] = {}
        for storage, version in _saved(_nodes(results, first)):
            if storage.inference:
                continue
            if storage.version == version:
                self._storages[id(storage)] = storage
            elif self.overwritten is None:
                change = storage.change_after(version)
                name = "an operation" if change is None else change.name
                self.overwritten = name, None if change is None else change.location

    def has(self, tensor: Tensor | None) -> bool:
        """Whether the memory of a tensor is saved."""
        return tensor is not None and id(tensor._storage) in self._storages


def saved_by(
    results: Sequence[Tensor], first: int, given: Sequence[Tensor | None],
    returned: Sequence[tuple[int, Tensor]],
) -> list[Saved]:  # fmt: skip
    """Which inputs and outputs of a run the backward of each of its results has saved.

    Args:
        results: the differentiable ones, in order; first: as for `Kept`.
        given: the inputs; returned: outputs that the caller gets, with their positions.
    """
    by: dict[tuple[str, int], list[int]] = {}
    for number, result in enumerate(results):
        kept = Kept([result], first)
        for k, tensor in enumerate(given):
            if kept.has(tensor):
                by.setdefault(("input", k), []).append(number)
        for k, tensor in returned:
            if kept.has(tensor):
                by.setdefault(("output", k), []).append(number)
    return [(kind, k, tuple(numbers)) for (kind, k), numbers in by.items()]


def _nodes(results: Iterable[Tensor], first: int) -> Iterator[BackwardNode]:
    stack = [t._grad_fn for t in results]
    seen: set[int] = set()
    while stack:
        node = stack.pop()
        if node is None or id(node) in seen or node.sequence < first:
            continue
        seen.add(id(node))
        yield node
        stack.extend(n for n, _ in node.edges)


def _saved(nodes: Iterable[BackwardNode]) -> Iterator[tuple[Storage, int]]:
    for node in nodes:
        if isinstance(node, OperationNode):
            for saved in node.saved or ():
                if not isinstance(saved, Packed) and saved[1] is not None:
                    yield saved[1], saved[2]
        elif isinstance(node, FunctionNode):
            for entry in node._saved or ():
                if entry is None:
                    continue
                if isinstance(entry[0], Tensor):
                    yield entry[0]._storage, entry[1]
                elif not isinstance(entry[0], Packed):
                    yield entry[1], entry[2]
