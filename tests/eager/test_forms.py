"""Every function here has the in-place form and the `out=` that PyTorch 2.13 has of it.

`pytorch_forms.json` lists PyTorch's in-place methods and the functions that document `out`.
"""

from __future__ import annotations

import json
from pathlib import Path

import tracegrad as tg
from tracegrad.tracer.out import NAMES

FORMS = json.loads((Path(__file__).parent / "pytorch_forms.json").read_text())
FACTORIES = {
    "arange", "empty", "eye", "full", "linspace", "logspace", "ones", "rand", "randint", "randn",
    "normal", "randperm", "range", "zeros",
}  # fmt: skip
"""They read `out` themselves (see `test_out.py`)."""
PAIRS = {"std_mean", "var_mean"}  # their `out` is documented, and refused by PyTorch
LIKE = {
    "empty_like", "empty_strided", "ones_like", "rand_like", "randn_like", "zeros_like",
}  # fmt: skip
"""PyTorch's texts name `out`, and its functions refuse it."""


def test_in_place_forms() -> None:
    functions = {n for n in FORMS["in place"] if hasattr(tg, n[:-1]) or hasattr(tg.Tensor, n[:-1])}
    assert len(functions) > 120
    assert {n for n in functions if not hasattr(tg.Tensor, n)} == set()


def test_out() -> None:
    functions = {n for n in FORMS["out"] if hasattr(tg, n)}
    assert len(functions) > 130
    assert functions - NAMES - FACTORIES - PAIRS - LIKE == set()
