"""Whether the inputs that a replay writes to share memory with others; such calls run eagerly.

Of the tensors from outside this is known until one of them moves (`known_layout.moves`); arguments are
looked at in each call. Two inputs are apart if the extents of their memory do not meet and they do not
share a version counter. Start reading at `Apart`.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from tracegrad.tracer.inplace import check_layout, check_mode
from tracegrad.tracer.known_layout import moves
from tracegrad.tracer.storage import Storage, marking
from tracegrad.tracer.tensor import Tensor

Extent = tuple[int, int]
"""The addresses of the first byte of an array and of the one behind the last."""


def extent(tensor: Tensor) -> Extent:
    """Where the memory of a tensor lies; two equal addresses where it has none."""
    array, first = tensor._array, tensor._ptr()
    if array.flags.c_contiguous or not array.size:
        return first, first + array.nbytes
    reach = [(n - 1) * step for n, step in zip(array.shape, array.strides, strict=True)]
    low = first + sum(r for r in reach if r < 0)
    return low, first + sum(r for r in reach if r > 0) + array.itemsize


class Apart:
    """The check of one trace, in host memory.

    Args:
        written, others: its inputs from outside: those that it writes to, and the rest.
    """

    def __init__(self, written: Sequence[Tensor], others: Sequence[Tensor]) -> None:
        self._written, self._others = tuple(written), tuple(others)
        self._stamp: object = None  # of the last look at them
        self._fine = False
        self._unusual = False  # some may only be written to in some modes
        self._extents: list[Extent] = []  # of those that are written to, sorted
        self._elsewhere: list[Extent] = []  # of the rest
        self._tokens: dict[int, Storage] = {}

    def __call__(self, written: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
        """Whether all are apart, these other inputs included.

        Raises:
            GradientError, ShapeError: one that is written to must not be; see `check_layout`.
        """
        if self._stamp is not moves[0]:
            self._look()
        if marking or self._unusual:
            for x in self._written:
                check_mode(x)
        if not self._fine:
            return False
        if not written:
            return all(self._is_free(x, self._extents) for x in others)
        for x in written:
            check_layout(x)
        extents = sorted([*self._extents, *map(extent, written)])
        tokens = [*self._tokens, *(id(x._storage.memory) for x in written)]
        return (
            _disjoint(extents) and len(set(tokens)) == len(tokens)
            and all(_is_clear(e, extents) for e in self._elsewhere)
            and all(id(x._storage.memory) not in tokens for x in (*self._others, *others))
            and all(_is_clear(extent(x), extents) for x in others)
        )  # fmt: skip

    def _is_free(self, x: Tensor, extents: Sequence[Extent]) -> bool:
        return id(x._storage.memory) not in self._tokens and _is_clear(extent(x), extents)

    def _look(self) -> None:
        """Look at the tensors from outside."""
        stamp = moves[0]  # first: what moves meanwhile is looked at again
        for x in self._written:
            check_layout(x)
        self._unusual = any(x._storage.inference for x in self._written)
        self._extents = sorted(map(extent, self._written))
        self._elsewhere = [*map(extent, self._others)]
        self._tokens = {id(x._storage.memory): x._storage.memory for x in self._written}
        self._fine = (
            len(self._tokens) == len(self._written) and _disjoint(self._extents)
            and all(self._is_free(x, self._extents) for x in self._others)
        )  # fmt: skip
        self._stamp = stamp


def _disjoint(extents: Sequence[Extent]) -> bool:
    """Whether sorted extents do not meet."""
    return all(a[1] <= b[0] for a, b in zip(extents, extents[1:], strict=False))


def _is_clear(one: Extent, extents: Sequence[Extent]) -> bool:
    """Whether an extent meets none of some that are sorted and disjoint."""
    low, high = one
    if low == high:
        return True
    k = bisect.bisect_left(extents, (high, 0))
    return k == 0 or extents[k - 1][1] <= low
