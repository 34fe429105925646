"""Making, reading, writing, printing and converting tensors: what PyTorch 2.13 answers.

The answers were written down from PyTorch by the same descriptions (`describing.py`).
"""

from __future__ import annotations

import pytest
from describing import answer, rows

TOPICS = ("factories", "data", "indexing", "printing", "protocols", "functions")
CASES = [
    pytest.param(program, expected, id=f"{topic}-{k}")
    for topic in TOPICS
    for k, (program, expected) in enumerate(rows(topic))
]


@pytest.mark.parametrize(("program", "expected"), CASES)
def test_answers_as_pytorch_does(program: str, expected: str) -> None:
    assert answer(program) == expected, program
