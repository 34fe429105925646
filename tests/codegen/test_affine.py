"""Index arithmetic: sums, quotients, bounds, and reshapes checked against NumPy."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracegrad.codegen.affine import Affine, offset, reshaped
from tracegrad.ir.types import contiguous_strides

I, J = Affine.symbol("i"), Affine.symbol("j")
EXTENTS = {"i": 4, "j": 8}


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        (Affine(), "0"),
        (Affine(-3), "-3"),
        (I, "i"),
        (I * 8 + J + 3, "8 * i + j + 3"),
        (I * -1 + 7, "7 - i"),
        (I * -2 + J + -1, "j - 2 * i - 1"),
        (I * -1 + J * -3, "0 - i - 3 * j"),
        (I + I * -1, "0"),
        (I * 0 + 2, "2"),
    ],
)
def test_text(expression: Affine, text: str) -> None:
    assert expression.text() == text


small = st.integers(-9, 9)
affines = st.builds(lambda a, b, c: I * a + J * b + c, small, small, small)


def value(expression: Affine, i: int, j: int) -> int:
    return int(eval(expression.text(), {"i": i, "j": j}))


@given(affines, affines, small, st.integers(0, 3), st.integers(0, 7))
def test_arithmetic_is_that_of_numbers(a: Affine, b: Affine, k: int, i: int, j: int) -> None:
    assert value(a + b, i, j) == value(a, i, j) + value(b, i, j)
    assert value(a * k, i, j) == value(a, i, j) * k
    assert value(a + k, i, j) == value(a, i, j) + k


@given(affines)
def test_bounds_are_reached_and_not_passed(a: Affine) -> None:
    values = [value(a, i, j) for i in range(4) for j in range(8)]
    assert a.bounds(EXTENTS) == (min(values), max(values))


def test_bounds_of_an_unknown_symbol_are_unknown() -> None:
    assert (I + Affine.symbol("k")).bounds(EXTENTS) is None


@given(affines, st.integers(1, 20))
def test_divmod_is_exact_where_it_is_affine(a: Affine, divisor: int) -> None:
    found = a.divmod(divisor, EXTENTS)
    if found is None:
        return
    for i in range(4):
        for j in range(8):
            assert (value(found[0], i, j), value(found[1], i, j)) == divmod(value(a, i, j), divisor)


def test_divmod_finds_the_row_and_the_column() -> None:
    assert (I * 8 + J).divmod(8, EXTENTS) == (I, J)
    assert (I * 8 + J).divmod(4, EXTENTS) is None


def test_merged_symbols() -> None:
    assert (I * 8 + J + 1).merged("i", "j", "k") == Affine.symbol("k") + 1


SHAPES = [(6,), (2, 3), (3, 2), (1, 6), (6, 1), (2, 1, 3), (1, 2, 3, 1), (3, 1, 2), (1, 1, 6)]
FOURS = [(4, 6), (24,), (2, 2, 6), (4, 2, 3), (2, 12), (8, 3), (1, 24, 1), (2, 2, 2, 3), (4, 1, 6)]
SCALARS: list[Any] = [(), (1,), (1, 1)]


@pytest.mark.parametrize(
    ("shape", "source"),
    [(a, b) for family in (SHAPES, FOURS, SCALARS) for a in family for b in family],
)
def test_reshaped_indices_are_those_of_numpy(shape: Any, source: Any) -> None:
    names = [f"d{k}" for k in range(len(shape))]
    index = tuple(Affine() if n == 1 else Affine.symbol(s) for s, n in zip(names, shape))
    divided: list[Any] = []

    def split(e: Affine, divisor: int) -> tuple[Affine, Affine]:
        if divisor == 1:
            return e, Affine()
        found = e.divmod(divisor, dict(zip(names, shape)))
        if found is not None:
            return found
        divided.append((e, divisor))
        k = len(divided)
        return Affine.symbol(f"q{k}"), Affine.symbol(f"r{k}")

    at = reshaped(index, shape, source, split)
    assert len(at) == len(source)
    flat = np.arange(prod(shape)).reshape(source)
    for where in np.ndindex(*shape):
        env = dict(zip(names, where))
        for k, (e, divisor) in enumerate(divided):
            n = eval(e.text(), env)
            env[f"q{k + 1}"], env[f"r{k + 1}"] = divmod(n, divisor)
        position = tuple(eval(e.text(), {}, env) for e in at)
        assert flat[position] == np.ravel_multi_index(where, shape) if shape else True


def test_only_sizes_that_change_need_division() -> None:
    def never(e: Affine, divisor: int) -> Any:
        assert divisor == 1
        return e, Affine()

    index = tuple(Affine.symbol(s) for s in "abc")
    assert reshaped(index, (5, 7, 3), (5, 21), never)[0] == Affine.symbol("a")


def test_offset() -> None:
    assert offset((I, J), contiguous_strides((4, 8))) == I * 8 + J
