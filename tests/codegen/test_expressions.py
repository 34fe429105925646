"""The printer of C expressions: parentheses where C needs them; literals that mean the number."""

from __future__ import annotations

import ctypes
import itertools
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tracegrad.codegen.expressions import TERNARY, UNARY, Expr, fill, number
from tracegrad.codegen.plan import Target
from tracegrad.codegen.prelude import prelude
from tracegrad.ir import dtypes
from tracegrad.runtime import toolchain

A, B, C = Expr("a"), Expr("b"), Expr("c")


def two(template: str, x: Expr, y: Expr) -> Expr:
    return fill(template, {"x": x, "y": y})


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        (two("{x} * {y}", two("{x} + {y}", A, B), C), "(a + b) * c"),
        (two("{x} + {y}", two("{x} * {y}", A, B), C), "a * b + c"),
        (two("{x} - {y}", A, two("{x} - {y}", B, C)), "a - (b - c)"),
        (two("{x} - {y}", two("{x} - {y}", A, B), C), "a - b - c"),
        (two("{x} / {y}", A, two("{x} * {y}", B, C)), "a / (b * c)"),
        (fill("-{x}", {"x": fill("-{x}", {"x": A})}), "-(-a)"),
        (fill("-{x}", {"x": Expr("-1.0f", UNARY)}), "-(-1.0f)"),
        (fill("(float){x}", {"x": two("{x} + {y}", A, B)}), "(float)(a + b)"),
        (fill("sinf({x})", {"x": two("{x} + {y}", A, B)}), "sinf(a + b)"),
        (two("{x} + {y}", Expr("a ? b : c", TERNARY), B), "(a ? b : c) + b"),
        (two("{x} < {y}", two("{x} < {y}", A, B), C), "a < b < c"),
        (two("{x} ? {y} : 0", Expr("a ? b : c", TERNARY), B), "(a ? b : c) ? b : 0"),
        (fill("!{x}", {"x": two("{x} && {y}", A, B)}), "!(a && b)"),
        (two("{x} & {y}", two("{x} == {y}", A, B), C), "a == b & c"),
    ],
)  # fmt: skip
def test_parentheses(expression: Expr, text: str) -> None:
    assert expression.text.replace(" ", "") == text.replace(" ", "")


OPERATIONS = ("{x} + {y}", "{x} - {y}", "{x} * {y}", "{x} / {y}", "{x} % {y}", "{x} << {y}",
              "{x} & {y}", "{x} | {y}", "{x} ^ {y}", "{x} < {y}", "{x} == {y}", "{x} && {y}",
              "{x} || {y}", "{x} ? {y} : 5", "-{x} + {y}", "~{x} * {y}", "!{x} - {y}",
              "{x} + (int){y}", "pick({x}, {y})", "({x}) * ({y})")  # fmt: skip


def test_nested_expressions_mean_what_full_parentheses_mean(tmp_path: Path) -> None:
    """Every pair of templates, nested on either side, compiled beside its bracketed twin."""
    lines = []
    bare, wrapped = [], []
    for outer, inner, left in itertools.product(OPERATIONS, OPERATIONS, (True, False)):
        inside = two(inner, A, B)
        pair = (inside, C) if left else (C, inside)
        bare.append(two(outer, *pair).text)
        safe = tuple(Expr(f"({e.text})") for e in pair)
        wrapped.append(two(outer, *safe).text)
    for k, (x, y) in enumerate(zip(bare, wrapped, strict=True)):
        lines.append(f"bad += ({x}) != ({y}) ? (first = first < 0 ? {k} : first, 1) : 0;")
    source = "static int pick(int x, int y) { return 3 * x + y; }\nint run(int a, int b, int c) {\n" \
             "int bad = 0, first = -1;\n" + "\n".join(lines) + "\nreturn first; }"  # fmt: skip
    file, library = tmp_path / "t.c", tmp_path / "t.so"
    file.write_text(source)
    subprocess.run(
        [*_compiler(), "-O0", "-w", "-shared", "-fPIC", str(file), "-o", str(library)], check=True
    )
    run = ctypes.CDLL(str(library)).run
    for a, b, c in [(7, 2, 3), (5, 3, 1), (6, 4, 2), (9, 1, 5)]:
        first = run(a, b, c)
        assert first < 0, (bare[first], wrapped[first], (a, b, c))


def _compiler() -> list[str]:
    return list(toolchain.find().command)


@pytest.mark.parametrize(
    ("value", "dtype", "text"),
    [
        (2, dtypes.float32, "2.0f"),
        (0.1, dtypes.float32, "0.1f"),
        (0.1, dtypes.float64, "0.1"),
        (-0.0, dtypes.float64, "-0.0"),
        (1e30, dtypes.float32, "1e+30f"),
        (float("nan"), dtypes.float32, "TG_NAN"),
        (float("-inf"), dtypes.float64, "-TG_INF"),
        (True, dtypes.bool_, "1"),
        (-5, dtypes.int64, "-5"),
        (2**40, dtypes.int64, "1099511627776LL"),
        (-(2**63), dtypes.int64, "INT64_MIN"),
        (2**32 - 1, dtypes.uint32, "4294967295LL"),
    ],
)
def test_literals(value: Any, dtype: dtypes.DType, text: str) -> None:
    assert number(value, dtype).text == text


def test_float_literals_keep_every_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    singles = rng.integers(0, 2**32, 300, np.uint32).view(np.float32)
    doubles = rng.integers(0, 2**63, 300, np.int64).view(np.float64)
    singles, doubles = singles[np.isfinite(singles)], doubles[np.isfinite(doubles)]
    f = ", ".join(number(float(v), dtypes.float32).text for v in singles)
    d = ", ".join(number(float(v), dtypes.float64).text for v in doubles)
    body = f"float singles[] = {{{f}}};\ndouble doubles[] = {{{d}}};\n"
    file, library = tmp_path / "t.c", tmp_path / "t.so"
    file.write_text(prelude(body, Target(False, None)) + "\n" + body)
    subprocess.run([*_compiler(), "-shared", "-fPIC", str(file), "-o", str(library)], check=True)
    made = ctypes.CDLL(str(library))
    got_f = np.array((ctypes.c_float * len(singles)).in_dll(made, "singles"), np.float32)
    got_d = np.array((ctypes.c_double * len(doubles)).in_dll(made, "doubles"), np.float64)
    assert got_f.tobytes() == singles.tobytes()
    assert got_d.tobytes() == doubles.tobytes()
