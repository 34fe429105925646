"""What eager mode answers on the CPU, it answers on a device: the programs of tests/eager, run on both."""

from __future__ import annotations

import re
import warnings

import pytest
from test_answers import ROWS, builtin_name, names

import tracegrad as tg

OF_THE_HOST = re.compile(r"\bnp\.|numpy|cpu|cuda|device|data_ptr|pin_memory|storage|dlpack|apply_")
PROGRAMS = [row[0] for row in ROWS if not OF_THE_HOST.search(row[0])]


def answer(program: str, where: str) -> str:
    """The `repr` of a program's value, without the device and the layout of lines."""
    tg.set_default_device(where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            got = repr(eval(program, names()))
    except Exception as error:
        got = f"{builtin_name(error)}: {error}"
    finally:
        tg.set_default_device("cpu")
    return " ".join(got.replace("device='cuda:0'", "").replace(", ,", ",").split()).replace(
        ", )", ")"
    )


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_gives_the_same_on_a_device(program: str, device: str) -> None:
    want, got = answer(program, "cpu"), answer(program, device)
    assert got.replace(", )", ")") == want or _close(got, want)


def _close(got: str, want: str) -> bool:
    """Whether texts differ in the last printed digit of a few numbers only."""
    number = re.compile(r"-?\d+\.\d*(?:e[-+]\d+)?")
    if number.sub("#", got) != number.sub("#", want):
        return False
    pairs = zip(number.findall(got), number.findall(want), strict=True)
    return all(abs(float(a) - float(b)) <= 2e-4 * max(1.0, abs(float(b))) for a, b in pairs)
