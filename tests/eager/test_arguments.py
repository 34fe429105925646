"""Wrong, missing and surplus arguments of every function and method: class and text as torch 2.13's.

The rows were run in torch, with its name for `tg`; the first line of its message is compared (the
lists of parameters that may follow are ours to print). `x` is a float32 matrix (2, 3).
"""

from __future__ import annotations

import pytest
from describing import answer, rows

import tracegrad as tg
from tracegrad.tracer.signatures import explained, table

ROWS = rows("arguments")


@pytest.mark.parametrize(("program", "expected"), ROWS, ids=[row[0] for row in ROWS])
def test_refused_as_pytorch_does(program: str, expected: str) -> None:
    given = f"x = tg.tensor([[1., 2., 3.], [4., 5., 6.]])\n{program}"
    assert answer(given).partition("\n")[0] == expected


def test_most_functions_of_the_table_have_a_row() -> None:
    """Not those that take a tensor alone as methods: Python refuses what is too much for them."""
    tried = {program.partition("(")[0] for program, _ in ROWS}
    functions, _ = table()
    known = {f"tg.{name}" for name in functions if hasattr(tg, name)}
    missing = {name for name in known - tried if name not in ("tg.numel",)}
    assert len(missing) <= 12, sorted(missing)


def test_right_arguments_are_not_explained() -> None:
    x = tg.ones(2, 3)
    assert explained("sum", True, (x, (0, 1)), {"keepdim": True}) is None
    assert explained("sum", False, (x,), {"axis": 0}) is None
    assert explained("no_such_function", False, (x,), {}) is None
    assert explained("permute", True, (x, 1, 0), {}) is None
    assert explained("add", False, (2, x), {"alpha": 3}) is None


def test_names_that_numpy_has_are_understood() -> None:
    """As torch 2.13: `axis`, `keepdims`."""
    x = tg.ones(2, 3)
    assert tg.sum(x, axis=1, keepdims=True).tolist() == [[3.0], [3.0]]
    assert x.amax(axis=0).shape == tg.unsqueeze(x[0], axis=0)[0].shape == (3,)
    with pytest.raises(TypeError, match=r"got \(Tensor, axes=int\), but expected one of"):
        tg.sum(x, axes=1)


def test_errors_of_the_users_own_pass() -> None:
    class Mine(Exception):
        pass

    def pack(x: tg.Tensor) -> tg.Tensor:
        raise Mine

    x = tg.ones(2, requires_grad=True)
    with tg.autograd.graph.saved_tensors_hooks(pack, lambda x: x), pytest.raises(Mine):
        x.softmax(0)


@pytest.mark.parametrize("f", [tg.sum, tg.unsqueeze, tg.transpose, tg.flatten, tg.cumsum, tg.amax])
def test_bools_are_no_dimensions(f: object) -> None:
    """Also at the first call with such arguments, before anything is known of it."""
    x = tg.ones(2, 2, 3)
    given = (False, True) if f is tg.transpose else (True,)
    for _ in range(2):
        with pytest.raises(TypeError, match="bool"):
            f(x, *given)  # type: ignore[operator]
