"""Expressions and what PyTorch 2.13 answers, results and error texts alike.

`pytorch_answers.json` has one row per expression: the expression, over the names below, and the
`repr` of its value (or the built-in class and the text of its error). dtypes print under our name.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tracegrad as tg

ROWS = json.loads((Path(__file__).parent / "pytorch_answers.json").read_text())


def assigned(x: tg.Tensor, index: Any, value: Any) -> tg.Tensor:
    x = x.clone()
    x[index] = value
    return x


def gradient(function: Any, x: tg.Tensor) -> Any:
    x = x.clone().requires_grad_()
    function(x).backward()
    return x.grad


def names() -> dict[str, Any]:
    """Fresh operands: an expression may change them."""
    return {
        "tg": tg, "np": np, "setit": assigned, "grad": gradient,
        "A": tg.tensor([[1.0, 2.0, 3.0], [4.0, 0.5, 2.25]]),
        "B": tg.tensor([[2.0, 1.0, 0.5], [3.0, 3.0, 1.0]]),
        "I": tg.tensor([[1, 2, 3], [4, 5, 6]]),
        "T3": tg.arange(24).reshape(2, 3, 4),
    }  # fmt: skip


def builtin_name(error: Exception) -> str:
    return next(c.__name__ for c in type(error).__mro__ if c.__module__ == "builtins")


@pytest.mark.parametrize(("expression", "answer"), ROWS, ids=[row[0] for row in ROWS])
def test_answers_as_pytorch_does(expression: str, answer: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            got = repr(eval(expression, names()))
        except Exception as error:  # the text is compared below
            got = f"{builtin_name(error)}: {error}"
    assert got == answer
