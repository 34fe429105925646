"""The Hessian of Rosenbrock's function of 64 variables.

Source: Rosenbrock, Computer Journal 3 (1960), 175-184; the sum over neighbours is the usual
extension to more than two variables.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.workload import Arrays, Ops, Workload

SIZE = 64


def inputs() -> Arrays:
    """A point around the minimum, which is (1, ..., 1)."""
    rng = np.random.default_rng(0)
    return [1 + np.float32(0.2) * rng.standard_normal(SIZE, dtype=np.float32)]


def expression(m: Ops, x: Any) -> Any:
    """The terms 100 (y - x^2)^2 + (1 - x)^2, where y follows x."""
    x, y = x[:-1], x[1:]
    bend, off = y - x * x, 1 - x
    return 100 * bend * bend + off * off


def closed_form(calls: int, x: np.ndarray) -> Arrays:
    """The Hessian, tridiagonal: a term has 1200 x^2 - 400 y + 2, 200, and -400 x between them."""
    matrix = np.zeros((len(x), len(x)), x.dtype)
    here = np.arange(len(x) - 1)
    matrix[here, here] = 1200 * x[:-1] ** 2 - 400 * x[1:] + 2
    matrix[here + 1, here + 1] += 200
    matrix[here, here + 1] = matrix[here + 1, here] = -400 * x[:-1]
    return [matrix]


WORKLOAD = Workload(
    name="rosenbrock",
    title="Hessian of Rosenbrock's function, n = 64",
    inputs=inputs,
    closed_form=closed_form,
    tolerance=1e-6,  # few operations per element; 1200 x^2 and 400 y cancel by one digit
    kind="hessian",
    expression=expression,
    needs=frozenset({"hessian"}),
)
