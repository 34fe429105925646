"""Widening: what is another in each call becomes an input of the traces, or of their code.

The key of a call has the values of its numbers and the sizes of its tensors. Once a number differs
from the one at the first capture of its kind of call, the next capture replaces it by a
`SymbolicNumber`, and the key no longer has its value; unless Python read the number as such, for then
the trace is for that value. A call looks for a trace of its own values first (`Widening`).

Each size keeps a trace of its own. Once a size has varied it is marked in the graph, so that the
generated code takes it as an argument and the same code serves other sizes (`Sizes`).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

from tracegrad.ir.graph import Graph
from tracegrad.ir.sizes import Size
from tracegrad.ir.types import Shape, contiguous_strides
from tracegrad.tracer.keys import OF_TENSOR, without_values
from tracegrad.tracer.pytree import flatten
from tracegrad.tracer.stand_in_rules import telling
from tracegrad.tracer.symbolic import NUMBERS, NumberReads
from tracegrad.tracer.tensor import Tensor

FIRST_SIZES = 4  # of one kind of call that are captured when they are first seen
MANY_ONCE = 4096  # keys


class Widening:
    """What is known of the numbers among the arguments of one function.

    A number is named by which one of the numbers in the key it is. A kind is a key without values.
    """

    def __init__(self) -> None:
        self._first: dict[Any, list[Any]] = {}  # by kind: the numbers of the first capture
        self._varying: dict[Any, frozenset[int]] = {}  # by kind, where there are any
        self._kept: dict[Any, frozenset[int]] = {}
        self._patterns: dict[tuple[int, ...], None] = {}  # where those stand in keys
        self._used: set[Any] = set()  # the reduced keys of captures
        self._refused: set[Any] = set()
        self._stopped = self._asked = False
        self.reason = ""  # why no numbers are replaced, in words

    def __bool__(self) -> bool:
        return bool(self._varying)

    def reduced(self, key: Any) -> Any:
        """The key without the values of the numbers that vary in calls of its kind."""
        for places in self._patterns:  # most calls are like earlier ones
            if places[-1] < len(key):
                parts = list(key)
                for i in places:
                    parts[i] = parts[i][:1] if parts[i].__class__ is tuple else None
                found = tuple(parts)
                if found in self._used:
                    return found
        varying = self._varying.get(without_values(key))
        return key if varying is None else without_numbers(key, varying)

    def varying(self, key: Any, replaceable: frozenset[int]) -> frozenset[int]:
        """The numbers to replace in a capture of a call with this key, whose numbers are noted."""
        if self._stopped:
            return frozenset()
        kind = without_values(key)
        numbers = [key[i] for i in _places(key)]
        first = self._first.setdefault(kind, numbers)
        differ = {k for k, (a, b) in enumerate(zip(first, numbers, strict=True)) if a != b}
        found = (self._varying.get(kind, frozenset()) | differ) & replaceable
        found -= self._kept.get(kind, frozenset())
        if found:
            self._varying[kind] = found
        return found

    def captured(self, key: Any, replaced: frozenset[int]) -> Any:
        """A run was captured with these numbers replaced and not pinned: the key of its trace."""
        if not replaced:
            return key
        places = _places(key)
        reduced = without_numbers(key, replaced)
        self._patterns[tuple(places[k] for k in sorted(replaced))] = None
        self._used.add(reduced)
        return reduced

    def refuse(self, key: Any) -> None:
        """A run of this kind could not be replayed: further ones are given plain numbers, which the
        effects that they have may leave somewhere.
        """
        self._refused.add(without_values(key))

    def refused(self, key: Any) -> bool:
        """Whether a run of this kind could not be replayed."""
        return without_values(key) in self._refused

    def keep(self, key: Any, numbers: frozenset[int]) -> None:
        """Do not replace these numbers again in calls of this kind: it did not go well."""
        kind = without_values(key)
        self._kept[kind] = self._kept.get(kind, frozenset()) | numbers
        self._varying.pop(kind, None)
        self._used.clear()

    def telling(self, fn: Any, arguments: Sequence[Any]) -> bool:
        """Whether `fn` could tell a stand-in from a number; then no more numbers are replaced."""
        if not self._asked:
            self._asked = True
            reason = telling(fn, arguments)
            if reason:
                self.stop(reason)
        return self._stopped

    def stop(self, reason: str) -> None:
        """Replace no numbers from now on."""
        self._stopped, self.reason = True, reason
        self._varying.clear()
        self._used.clear()


class Sizes:
    """Which sizes of the tensors among the arguments of one function vary, by kind of call.

    A kind is a key without the shapes of contiguous tensors. Each size has a trace of its own; what
    they share is the code, in which the sizes that vary are arguments.
    """

    def __init__(self) -> None:
        self._first: dict[Any, list[Shape]] = {}
        self._varying: dict[Any, set[tuple[int, int]]] = {}  # (tensor, dimension)
        self._graphs: dict[Any, deque[Graph]] = {}  # of the last traces
        self._captured: Counter[Any] = Counter()
        self._once: set[Any] = set()  # keys of calls that were let pass

    def passes(self, key: Any) -> bool:
        """Whether to let a call with new sizes pass: once some have been captured, a capture is for
        sizes that come back, for it takes longer than the call itself.
        """
        if self._captured[_without_shapes(key)] < FIRST_SIZES or key in self._once:
            self._once.discard(key)
            return False
        if len(self._once) >= MANY_ONCE:
            self._once.clear()
        self._once.add(key)
        return True

    def marked(self, key: Any, leaves: Sequence[Any]) -> tuple[dict[int, Shape], Sequence[Graph]]:
        """The shapes of arguments, by position, that have sizes which vary; the call is noted.

        Dimensions whose sizes have been equal so far have one symbol. Further the graphs of the last
        traces, for other sizes.
        """
        kind = _without_shapes(key)
        self._captured[kind] += 1
        shapes = [part[0] for part in key if _is_tensor(part)]
        first = self._first.setdefault(kind, shapes)
        varying = self._varying.setdefault(kind, set())
        for k, (old, new) in enumerate(zip(first, shapes, strict=True)):
            varying.update((k, d) for d, (m, n) in enumerate(zip(old, new, strict=True)) if m != n)
        names: dict[tuple[int, int], str] = {}  # by first and present size
        positions = [p for p, x in enumerate(leaves) if isinstance(x, Tensor)]
        found: dict[int, Shape] = {}
        for k, d in sorted(varying):
            pair = first[k][d], shapes[k][d]
            name = names.setdefault(pair, f"n{len(names)}")
            shape = list(found.get(positions[k], shapes[k]))
            shape[d] = Size.symbol(name, shapes[k][d])
            found[positions[k]] = tuple(shape)
        return found, tuple(self._graphs.get(kind, ()))

    def keep(self, key: Any, graph: Graph) -> None:
        """The graph of a trace, for those with other sizes to come."""
        self._graphs.setdefault(_without_shapes(key), deque(maxlen=4)).appendleft(graph)


def _without_shapes(key: Any) -> Any:
    return tuple(_without_shape(part) if _is_tensor(part) else part for part in key)


def _is_tensor(part: Any) -> bool:
    """Whether a part of a key stands for a tensor."""
    return part.__class__ is tuple and len(part) == len(OF_TENSOR) and part[0].__class__ is tuple


def _without_shape(part: Any) -> Any:
    """A tensor's part of a key, its shape only counted where it is contiguous."""
    shape, dtype, strides, *rest = part
    if strides != tuple(s * dtype.itemsize for s in contiguous_strides(shape)):
        return part
    return (len(shape), dtype, *rest)


class Arguments:
    """The arguments of a call, some of whose numbers one captured run finds replaced.

    Attributes:
        replaceable: which of the numbers in the key are arguments themselves, not in containers.
    """

    def __init__(self, args: Sequence[Any], kwargs: dict[str, Any], names: Sequence[str]) -> None:
        self.args, self.kwargs, self._names = args, kwargs, names
        self._at: dict[int, tuple[Any, int]] = {}  # by number: where it is given, and which leaf
        self._numbers: dict[int, int] = {}  # by leaf
        position = number = 0
        for place, x in (*enumerate(args), *kwargs.items()):
            leaves: list[Any] = []
            flatten(x, leaves)
            for leaf in leaves:
                if type(leaf) in NUMBERS:
                    if leaf is x and leaf == leaf:  # `in` finds a nan by its identity
                        self._at[number] = place, position
                        self._numbers[position] = number
                    number += 1
                position += 1
        self.replaceable = frozenset(self._at)

    def replaced(
        self, reads: NumberReads, numbers: frozenset[int]
    ) -> tuple[Sequence[Any], dict[str, Any]]:
        """The arguments with symbolic numbers among them."""
        args, kwargs = list(self.args), dict(self.kwargs)
        for number in numbers:
            place, position = self._at[number]
            target: Any = kwargs if isinstance(place, str) else args
            target[place] = reads.stand_in(position, target[place], self._names[position])
        return args, kwargs

    def pinned(self, reads: NumberReads) -> frozenset[int]:
        """The numbers that the run pinned."""
        return frozenset(self._numbers[p] for p in reads.pinned)


def _places(key: Any) -> list[int]:
    """Where the numbers stand in a key."""
    return [
        i for i, part in enumerate(key)
        if part.__class__ is tuple and part and (part[0] is float or part[0] is int)
    ]  # fmt: skip


def without_numbers(key: Any, numbers: frozenset[int]) -> Any:
    """A key without the values of some of its numbers."""
    parts = list(key)
    for k, i in enumerate(_places(key)):
        if k in numbers:
            parts[i] = parts[i][:1]
    return tuple(parts)
