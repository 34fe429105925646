"""Affine index expressions: `const + sum(coefficient * symbol)`.

A symbol is a loop variable or the name of an integer computed in the kernel. All movement
operations become arithmetic on these. Start reading at `Affine`, then `reshaped`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tracegrad.ir.types import Shape


@dataclass(frozen=True, slots=True)
class Affine:
    """`const + sum(c * s for s, c in terms)`, terms in the order in which they were added.

    Example:
        >>> (Affine.symbol("i") * 8 + Affine.symbol("j") + 3).text()
        '8 * i + j + 3'
    """

    const: int = 0
    terms: tuple[tuple[str, int], ...] = ()

    @staticmethod
    def symbol(name: str) -> Affine:
        """The expression that is one symbol."""
        return Affine(0, ((name, 1),))

    def __add__(self, other: Affine | int) -> Affine:
        if isinstance(other, int):
            return Affine(self.const + other, self.terms)
        merged = dict(self.terms)
        for name, c in other.terms:
            merged[name] = merged.get(name, 0) + c
        terms = tuple((n, c) for n, c in merged.items() if c)
        return Affine(self.const + other.const, terms)

    def __mul__(self, factor: int) -> Affine:
        if factor == 0:
            return Affine()
        return Affine(self.const * factor, tuple((n, c * factor) for n, c in self.terms))

    def coefficient(self, name: str) -> int:
        """The factor of one symbol; 0 where it does not occur."""
        return dict(self.terms).get(name, 0)

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbols that occur."""
        return tuple(n for n, _ in self.terms)

    def bounds(self, extents: Mapping[str, int]) -> tuple[int, int] | None:
        """Least and greatest value, each symbol running over [0, extent); None where unknown."""
        low = high = self.const
        for name, c in self.terms:
            if name not in extents:
                return None
            reach = c * (extents[name] - 1)
            low, high = low + min(reach, 0), high + max(reach, 0)
        return low, high

    def divmod(self, divisor: int, extents: Mapping[str, int]) -> tuple[Affine, Affine] | None:
        """Quotient and remainder where both are affine; None where they are not."""
        quotient = Affine(self.const // divisor)
        remainder = Affine(self.const % divisor)
        for name, c in self.terms:
            if c % divisor == 0:
                quotient += Affine(0, ((name, c // divisor),))
            else:
                remainder += Affine(0, ((name, c),))
        reach = remainder.bounds(extents)
        if reach is None or reach[0] < 0 or reach[1] >= divisor:
            return None
        return quotient, remainder

    def merged(self, outer: str, inner: str, into: str) -> Affine:
        """Two symbols as one: `outer * extent + inner` is called `into` (the caller checked)."""
        c = self.coefficient(inner)
        rest = tuple((n, k) for n, k in self.terms if n not in (outer, inner))
        return Affine(self.const, (((into, c),) if c else ()) + rest)

    def text(self) -> str:
        """The expression in C."""
        parts = [(n if c == 1 else f"{c} * {n}" if c > 0 else f"{-c} * {n}" if c != -1 else n, c > 0)
                 for n, c in self.terms]  # fmt: skip
        if not parts:
            return str(self.const)
        parts.sort(key=lambda p: not p[1])  # positive terms first, so no leading minus
        out = parts[0][0] if parts[0][1] else f"{self.const} - {parts[0][0]}"
        rest = self.const if parts[0][1] else 0
        for text, positive in parts[1:]:
            out += f" {'+' if positive else '-'} {text}"
        if rest:
            out += f" {'+' if rest > 0 else '-'} {abs(rest)}"
        return out


Index = tuple[Affine, ...]
DivMod = Callable[[Affine, int], tuple[Affine, Affine]]


def offset(index: Sequence[Affine], strides: Sequence[int]) -> Affine:
    """Position in a buffer of the element at `index`."""
    total = Affine()
    for component, stride in zip(index, strides, strict=True):
        total += component * stride
    return total


def reshaped(index: Index, shape: Shape, source: Shape, divmod_: DivMod) -> Index:
    """The index into a value of shape `source` that was reshaped to `shape`.

    Runs of dimensions with equal products are matched, so that only sizes that are really merged
    or split need arithmetic; `divmod_(expression, divisor)` gives quotient and remainder.
    """
    result: list[Affine] = []
    out = 0
    at = 0
    while at < len(source):
        # The smallest run source[at:stop] whose product is that of a run of `shape`.
        stop, last = at + 1, out
        have, want = source[at], 1
        linear = Affine()
        while last < len(shape) and (
            want < have or (shape[last] == 1 and want == have and have == 1)
        ):
            linear = linear * shape[last] + index[last]
            want *= shape[last]
            last += 1
            while have < want:
                have *= source[stop]
                stop += 1
        out = last
        parts: list[Affine] = []
        for size in reversed(source[at + 1 : stop]):
            linear, remainder = divmod_(linear, size)
            parts.append(remainder)
        result.extend([linear, *reversed(parts)])
        at = stop
    return tuple(result)
