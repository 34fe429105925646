"""The main example runs, agrees with itself, and leaves its files."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn holds the digits")
pytest.importorskip("matplotlib", reason="the example draws")
pytest.importorskip("rich", reason="the example shows its progress")

FILE = Path(__file__).parents[2] / "examples" / "digits.py"


@pytest.fixture(scope="module")
def digits():
    spec = importlib.util.spec_from_file_location("digits_example", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_both_runs_agree_and_read_the_digits(digits, tmp_path, capsys, dtype):
    status = digits.main(["--quick", "--dtype", dtype, "--out", str(tmp_path / "out")])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    written = {p.name: p for p in (tmp_path / "out").iterdir()}
    assert set(written) == {"digits_loss.png", "digits_forward.c", "digits_backward.c"}
    assert written["digits_loss.png"].read_bytes().startswith(b"\x89PNG")
    for name in ("digits_forward.c", "digits_backward.c"):
        text = written[name].read_text()
        assert "{" in text and {"float32": "float", "float64": "double"}[dtype] in text
        assert str(written[name]) in printed.out


def made_run(digits, losses, accuracy):
    return digits.Run("made", losses=losses, accuracy=accuracy)


def test_faults_are_named(digits):
    options = digits.parse(["--dtype", "float32"])
    good = made_run(digits, [1.0] * 30, 0.99)
    bad = made_run(digits, [1.0, 1.0 + 1e-4] + [1.0] * 28, 0.5)
    apart = digits.differences(good, bad)
    np.testing.assert_allclose(apart.max(), 1e-4, rtol=1e-6)
    assert digits.faults(good, good, 0.0, options) == []
    loss, reading = digits.faults(good, bad, apart.max(), options)
    assert "differ by up to 1.0e-04 (relative); the limit for float32 is 1e-05" in loss
    assert "reads only 50.00% of the test digits; 97% are required" in reading
    assert digits.faults(good, good, float("nan"), options)  # a NaN loss is a fault


def test_wrong_options_are_refused(digits, capsys):
    with pytest.raises(SystemExit):
        digits.parse(["--epochs", "0"])
    assert "--epochs and --batch-size must be positive" in capsys.readouterr().err
