"""`set_printoptions` checks all that it is given before it sets any of it.

torch 2.13 takes anything and fails, or prints otherwise than asked, at the next `repr`; what it prints
with options that it means is compared to the letter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tracegrad as tg
from tracegrad.tracer.printing import get_printoptions

LONG = tg.tensor([1.23456, 2.0] * 600)


@pytest.fixture(autouse=True)
def defaults() -> Iterator[None]:
    yield
    tg.set_printoptions(profile="default")


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"precision": "a"}, TypeError, "precision must be an int, not str"),
        ({"precision": 1.5}, TypeError, "precision must be an int, not float"),
        ({"precision": True}, TypeError, "precision must be an int, not bool"),
        ({"precision": -1}, ValueError, "precision must not be negative, got -1"),
        ({"threshold": "a"}, TypeError, "threshold must be a number, not str"),
        ({"threshold": float("nan")}, ValueError, "threshold must be a number, got nan"),
        ({"edgeitems": 1.5}, TypeError, "edgeitems must be an int, not float"),
        ({"edgeitems": -1}, ValueError, "edgeitems must not be negative, got -1"),
        ({"linewidth": "a"}, TypeError, "linewidth must be a number, not str"),
        ({"linewidth": float("inf")}, ValueError, "linewidth must be finite, got inf"),
        ({"profile": "x"}, ValueError, "profile must be one of default, short, full, got 'x'"),
        ({"profile": 3}, TypeError, "profile must be text, not int"),
        ({"profile": ["short"]}, TypeError, "profile must be text, not list"),
        ({"sci_mode": 3}, TypeError, "sci_mode must be True, False or None, not int"),
    ],
)
def test_refused_options_change_nothing(
    given: dict[str, Any], error: type[Exception], text: str
) -> None:
    tg.set_printoptions(precision=3, edgeitems=1)
    before, shown = get_printoptions(), repr(LONG)
    with pytest.raises(error, match=f"^set_printoptions: {text}$"):
        tg.set_printoptions(**{"precision": 2, "linewidth": 40, "profile": "short", **given})
    assert get_printoptions() == before
    assert repr(LONG) == shown


def test_numbers_of_numpy_and_fractions_of_a_line() -> None:
    tg.set_printoptions(precision=np.int64(2), threshold=2.5, edgeitems=np.int32(1), linewidth=40.5)
    assert repr(LONG) == "tensor([1.23,  ..., 2.00])"
    assert get_printoptions()["linewidth"] == 40


def test_no_edge_items_leave_the_size() -> None:
    tg.set_printoptions(edgeitems=0, threshold=5)
    assert repr(LONG) == "tensor([...], size=(1200,))"
    assert repr(tg.ones(2)) == "tensor([1., 1.], size=(2,))"
    assert (
        repr(tg.ones(2, 3, dtype=tg.float64)) == "tensor([...], size=(2, 3), dtype=torch.float64)"
    )


# The default line holds (80 - indent) // (width of a number + 2) numbers, and a suffix stays in it
# where the text, its ")" and one column more are at most 80 wide. All as torch 2.13 prints it.
HALVES = ", ".join(["0.5000"] * 9)
TENS = ", ".join(["10."] * 10)


@pytest.mark.parametrize(
    ("shape", "shown"),
    [
        ((9,), f"tensor([{HALVES}])"),  # 7 + 9 * 8 = 79
        ((1, 9), f"tensor([[{HALVES}]])"),  # 80
        ((1, 1, 9), f"tensor([[[{HALVES[:-8]},\n          0.5000]]])"),  # would be 81
    ],
)
def test_numbers_fill_a_line_of_eighty(shape: tuple[int, ...], shown: str) -> None:
    assert repr(tg.full(shape, 0.5)) == shown


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"requires_grad": True}, f"tensor([{TENS}], requires_grad=True)"),  # 79
        ({"dtype": tg.float64}, f"tensor([{TENS}], dtype=torch.float64)"),  # 80
        ({"dtype": tg.bfloat16}, f"tensor([{TENS}],\n       dtype=torch.bfloat16)"),  # would be 81
    ],
)
def test_suffixes_fill_a_line_of_eighty(options: dict[str, Any], shown: str) -> None:
    assert repr(tg.full((10,), 10.0, **options)) == shown
