"""The newcomer's walk runs, shows what it says, and leaves its files."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import tracegrad as tg

pytest.importorskip("matplotlib", reason="the example draws")

FILE = Path(__file__).parents[2] / "examples" / "fundamentals.py"


@pytest.fixture(scope="module")
def walk() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fundamentals_example", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_chapters_run_and_leave_their_files(walk, tmp_path, capsys) -> None:
    assert walk.main(["--out", str(tmp_path / "out"), "--steps", "40"]) == 0
    printed = capsys.readouterr().out
    titles = [line for line in printed.splitlines() if line[:1].isdigit() and line[1:3] == ". "]
    assert [title[0] for title in titles] == list("12345678")
    files = {p.name: p for p in (tmp_path / "out").iterdir()}
    assert set(files) == {"fundamentals.png", "fundamentals_trace.json", "fundamentals.c"}
    assert files["fundamentals.png"].read_bytes().startswith(b"\x89PNG")
    trace = json.loads(files["fundamentals_trace.json"].read_text())
    names = {event["name"] for event in trace["traceEvents"]}
    assert {"wave", "aten::exp", "ExpBackward0"} <= names
    assert "cos" in files["fundamentals.c"].read_text()
    for path in files.values():
        assert str(path) in printed


def test_gradient_is_the_one_by_hand(walk) -> None:
    t = walk.tensors_and_the_tape()
    by_hand = walk.gradients(t)
    assert t.grad is None
    walk.damped(t).sum().backward()
    # float32: five operations of one rounding each, on values up to 3
    np.testing.assert_allclose(t.grad.numpy(), by_hand.numpy(), atol=3e-6)


def test_training_learns(walk) -> None:
    tg.manual_seed(0)
    losses = walk.training(150)
    assert losses[-1] < losses[0] / 10


def test_both_in_place_mistakes_are_refused(walk) -> None:
    leaf, saved = walk.in_place()
    assert leaf.startswith("a leaf Variable that requires grad")
    assert saved.startswith("one of the variables needed for gradient computation has been modif")


def test_jacobian_of_polar_coordinates(walk) -> None:
    matrix, product = walk.jacobians()
    c, s = np.cos(np.pi / 6), np.sin(np.pi / 6)
    np.testing.assert_allclose(matrix.numpy(), [[c, -2 * s], [s, 2 * c]], rtol=1e-6)
    np.testing.assert_allclose(product.numpy(), [c, -2 * s], rtol=1e-6)


def test_compiled_function_is_replayed(walk, tmp_path) -> None:
    assert walk.compiling(tmp_path / "c.c").cache_info().hits == 2


def test_wrong_options_are_refused(walk, capsys) -> None:
    with pytest.raises(SystemExit):
        walk.main(["--steps", "0"])
    assert "--steps must be positive" in capsys.readouterr().err
