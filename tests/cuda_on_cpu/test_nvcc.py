"""The modules of the other tests through nvcc: no warnings, no registers that go to memory."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from cases import cases
from test_compiled import CASES
from test_every_primitive import case

FLAGS = ["-cubin", "-arch=sm_90", "-Werror", "all-warnings", "-fmad=false", "-Xptxas", "-v"]
NVCC = shutil.which("nvcc")

pytestmark = pytest.mark.skipif(NVCC is None, reason="there is no nvcc")


def together(codes: Sequence[str]) -> str:
    """Modules as one, each in a namespace of its own."""
    plain = [code.replace('extern "C" __global__', "__global__") for code in codes]
    return "\n".join(f"namespace u{k} {{\n{code}\n}}" for k, code in enumerate(plain))


def report(code: str, folder: Path) -> str:
    """What ptxas says of a module."""
    assert NVCC is not None
    source = folder / "module.cu"
    source.write_text(code)
    done = subprocess.run(
        [NVCC, *FLAGS, str(source), "-o", str(folder / "module.cubin")],
        capture_output=True,
        text=True,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[:3000]
    return said


def spilled(said: str) -> list[str]:
    """The lines that tell of registers kept in memory."""
    return [
        line
        for line in re.findall(r".*spill stores.*", said)
        if " 0 bytes spill stores" not in line
    ]


def test_units_compile_and_spill_nothing(tmp_path: Path) -> None:
    said = report(together([c.unit.code for c in cases().values()]), tmp_path)
    assert spilled(said) == []


def test_the_chain_fits_many_threads(tmp_path: Path) -> None:
    """layer_norm, softmax and dot with all their gradients, rows of 512, in one kernel."""
    said = report(cases()["chain"].unit.code, tmp_path)
    assert max(map(int, re.findall(r"Used (\d+) registers", said))) <= 128


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "uint8", "bool"])
def test_every_primitive_compiles(dtype: str, tmp_path: Path) -> None:
    codes = []
    for op, chosen in CASES:
        if chosen.name == dtype:
            try:
                codes.append(case(op, chosen).unit.code)
            except AssertionError:  # its own test shows that
                continue
    assert spilled(report(together(codes), tmp_path)) == []
