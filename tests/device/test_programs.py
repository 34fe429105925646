"""Whole programs on a device: the tutorial, unchanged, and the example of handwritten digits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tracegrad as tg
from tracegrad.runtime.cuda import driver

TESTS = Path(__file__).resolve().parent.parent
sys.path.append(str(TESTS / "seed"))

import tutorial_text  # noqa: E402
from running import differences, run  # noqa: E402
from tutorial_text import notebook_cells  # noqa: E402


@pytest.mark.skipif(
    not tutorial_text.SEED.is_dir(), reason=f"the tutorial's text is not in {tutorial_text.SEED}"
)
def test_the_tutorial_runs_where_there_is_a_device(device: str) -> None:
    """It takes the device that it finds for the profile alone; all else prints as ever."""
    plt = pytest.importorskip("matplotlib.pyplot", reason="the tutorial draws")
    backend = plt.get_backend()
    plt.switch_backend("Agg")
    try:
        tg.manual_seed(7)
        cells = notebook_cells()
        assert tg.cuda.is_available() and any("is_available" in "".join(c.code) for c in cells)
        for cell, printed in zip(cells, run(cells), strict=True):
            if "is_available" not in "".join(cell.code):
                assert differences(cell, printed, True) == [], cell.code
    finally:
        plt.close("all")
        plt.switch_backend(backend)


@pytest.mark.gpu
@pytest.mark.skipif(driver.status() is not None, reason=f"no CUDA: {driver.status()}")
def test_the_digits_are_learnt_on_a_device(tmp_path: Path) -> None:
    program = TESTS.parent / "examples" / "digits.py"
    done = subprocess.run(
        [sys.executable, str(program), "--quick", "--device", "cuda", "--out", str(tmp_path)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
