"""What a composite keeps for its backward, and what its backward makes again instead.

The vjp rules of its steps read values on the way. Where it takes fewer bytes to keep what those
were made of, and they are cheap to make (element by element, or another look at memory), they are
made again: `gelu` keeps its operand, as in PyTorch, not three arrays of its size. The same kernels
run on the same values, so no bit changes. Start reading at `thrifty`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from tracegrad.ir.types import TensorType

if TYPE_CHECKING:
    from tracegrad.tracer.composite_plan import Step

_CHEAP = frozenset(("pointwise", "movement"))


def thrifty(
    steps: Sequence[Step], types: Mapping[int, TensorType], results: Collection[int],
    reads: Collection[int],
) -> tuple[set[int], set[int]]:  # fmt: skip
    """Numbers of the values to keep, and of those to make again from them.

    Args:
        types: of all values that are no constants, by number.
        results: numbers of the values that the caller has anyway.
        reads: what the backward reads.
    """
    makers = {step.out: step for step in steps}
    sources: set[int] = set()
    again: set[int] = set()
    waiting = list(reads)
    while waiting:
        k = waiting.pop()
        if k in again or k in sources or k not in types:
            continue
        step = makers.get(k)
        if step is None or k in results or step.plan.op.family not in _CHEAP:
            sources.add(k)
        else:
            again.add(k)
            waiting += step.inputs
    if _bytes(sources, makers, types) < _bytes(reads, makers, types):
        return sources, again
    return set(reads), set()


def _bytes(
    kept: Collection[int], makers: Mapping[int, Step], types: Mapping[int, TensorType]
) -> int:
    """What the values take; another look at the memory of one takes nothing more."""
    owners = set()
    for k in kept:
        step = makers.get(k)
        while step is not None and step.plan.op.family == "movement":
            k = step.inputs[0]
            step = makers.get(k)
        owners.add(k)
    return sum(types[k].size * types[k].dtype.itemsize for k in owners if k in types)
