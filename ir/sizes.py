"""Sizes that vary: ints that remember how they follow from the sizes of inputs.

A graph is of fixed shapes; its ints are plain. Where a dimension has been seen to vary from call to
call, its size is a `Size`: an int, with the value that it has in this graph, and a polynomial in
symbols such as `n0`. Arithmetic keeps the polynomial, so code generation can print `784 * n0` where it
would print `50176`, and the text is the same for other sizes. A size that is lost on the way (by
`range`, by NumPy) is only printed as a number: the code is right, but for this size alone.
Start reading at `Size`.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

Monomial = tuple[str, ...]  # sorted factors; an atom is a symbol or C text in parentheses
Polynomial = Mapping[Monomial, int]


class Size(int):
    """An int that is a polynomial of symbols. Prints as that, in C; compares and hashes as an int.

    Example:
        >>> n = Size.symbol("n0", 64)
        >>> n * 784 + 1, (n * 784 + 1) > 50000, n * 784 // 784, n // 7
        ((784 * n0 + 1), True, n0, (n0 / 7))
    """

    terms: Polynomial
    symbols: Mapping[str, int]

    def __new__(cls, value: int, terms: Polynomial, symbols: Mapping[str, int]) -> Size:
        """A number, what it is, and the values of the symbols in that; see `symbol`."""
        made = int.__new__(cls, value)
        made.terms, made.symbols = terms, symbols
        return made

    @classmethod
    def symbol(cls, name: str, value: int) -> Size:
        """The size `name`, which is `value` here."""
        return cls(value, {(name,): 1}, {name: value})

    def __reduce__(self) -> Any:
        return Size, (int(self), self.terms, self.symbols)

    def __deepcopy__(self, memo: Any) -> Size:
        return self

    # ---- text -----------------------------------------------------------------------------------

    def __str__(self) -> str:
        parts = []
        for monomial, c in sorted(
            self.terms.items(), key=lambda t: (not t[0], t[1] < 0, -len(t[0]), t[0])
        ):
            factors = [str(abs(c))] if abs(c) != 1 or not monomial else []
            parts.append(("- " if c < 0 else "+ ") + " * ".join([*factors, *monomial]))
        text = " ".join(parts)
        text = text[2:] if text.startswith("+") else "-" + text[2:]
        return (
            text if text.isidentifier() or text.startswith("(") and len(parts) == 1 else f"({text})"
        )

    __repr__ = __str__

    def __format__(self, how: str) -> str:
        return format(str(self), how)

    # ---- arithmetic -----------------------------------------------------------------------------

    def __add__(self, other: Any) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        terms = dict(self.terms)
        for monomial, c in _terms(other).items():
            terms[monomial] = terms.get(monomial, 0) + c
        return self._made(int(self) + int(other), terms, other)

    __radd__ = __add__

    def __neg__(self) -> Any:
        return self._made(-int(self), {m: -c for m, c in self.terms.items()}, 0)

    def __sub__(self, other: Any) -> Any:
        return self + -other if isinstance(other, int) else NotImplemented

    def __rsub__(self, other: Any) -> Any:
        return -self + other if isinstance(other, int) else NotImplemented

    def __mul__(self, other: Any) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        terms: dict[Monomial, int] = {}
        for left, c in self.terms.items():
            for right, d in _terms(other).items():
                monomial = tuple(sorted((*left, *right)))
                terms[monomial] = terms.get(monomial, 0) + c * d
        return self._made(int(self) * int(other), terms, other)

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        value = int(self) // int(other)
        exact = _quotient(self.terms, _terms(other))
        if exact is not None:
            return self._made(value, exact, other)
        if int(self) < 0 or int(other) < 0:
            return value  # C rounds to zero
        return self._made(value, {(f"({self} / {other})",): 1}, other)

    def __mod__(self, other: Any) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        value = int(self) % int(other)
        if _quotient(self.terms, _terms(other)) is not None:
            return 0
        if int(self) < 0 or int(other) < 0:
            return value
        return self._made(value, {(f"({self} % {other})",): 1}, other)

    def __rfloordiv__(self, other: Any) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        value = int(other) // int(self)
        return (
            value
            if int(self) < 0 or other < 0
            else self._made(value, {(f"({other} / {self})",): 1}, 0)
        )

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __abs__(self) -> Any:
        return -self if int(self) < 0 else self

    def _made(self, value: int, terms: Mapping[Monomial, int], other: int) -> int:
        """A Size, or a plain int where no symbol is left."""
        kept = {m: c for m, c in terms.items() if c}
        if not any(kept):
            return value
        also = other.symbols if isinstance(other, Size) else {}
        return Size(value, kept, {**self.symbols, **also} if also else self.symbols)


def ceil_div(a: int, b: int) -> int:
    """`a / b` rounded up, of sizes: `a` not negative, `b` positive."""
    return (a + b - 1) // b


def as_size(n: Any) -> int:
    """`n`, which can be an index, as an int; a `Size` as it is.

    Raises:
        TypeError: it is no integer.
    """
    return n if isinstance(n, Size) else operator.index(n)


def _terms(x: int) -> Polynomial:
    return x.terms if isinstance(x, Size) else {(): int(x)}


def _quotient(terms: Polynomial, divisor: Polynomial) -> Polynomial | None:
    """The polynomial by one of a single term, where that divides each of its terms."""
    if len(divisor) != 1:
        return {(): 1} if terms == divisor else None
    ((factors, d),) = divisor.items()
    if d == 0:
        return None
    result: dict[Monomial, int] = {}
    for monomial, c in terms.items():
        rest = list(monomial)
        for factor in factors:
            if factor not in rest:
                return None
            rest.remove(factor)
        if c % d:
            return None
        result[tuple(rest)] = c // d
    return result
