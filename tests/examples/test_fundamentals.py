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
    assert [title[0] for title in titles] == list("123456789")
    files = {p.name: p for p in (tmp_path / "out").iterdir()}
    assert set(files) == {"fundamentals.png", "fundamentals_trace.json", "fundamentals.c"}
    assert files["fundamentals.png"].read_bytes().startswith(b"\x89PNG")
    trace = json.loads(files["fundamentals_trace.json"].read_text())
    names = {event["name"] for event in trace["traceEvents"]}
    assert {"wave", "aten::exp", "ExpBackward0"} <= names
    assert "cos" in files["fundamentals.c"].read_text()
    for path in files.values():
        assert str(path) in printed


TREE = """\
MulBackward0
  ExpBackward0
    DivBackward0
      NegBackward0
        torch::autograd::AccumulateGrad
  CosBackward0
    MulBackward0
      torch::autograd::AccumulateGrad
"""


def test_first_chapter_shows_both_branches_and_the_digits_of_float32(walk, capsys) -> None:
    walk.tensors_and_the_tape()
    printed = capsys.readouterr().out
    assert TREE in printed
    assert "tensor([ 0.0000e+00,  1.0000e+00, -8.7423e-08, -1.0000e+00,  1.7485e-07])" in printed
    assert "pi minus its float32:   -8.7423e-08" in printed


def test_second_chapter_warns_before_it_retains(walk, capsys) -> None:
    walk.gradients(walk.tensors_and_the_tape())
    printed = capsys.readouterr().out
    assert "swing.grad:  None\nUserWarning: The .grad attribute of a Tensor that is not" in printed
    fade = tg.exp(-tg.linspace(0.0, 6.0, steps=7) / 3)
    assert f"retain_grad: {fade}\n" in printed


def test_loop_leaves_a_node_for_each_round(walk, capsys) -> None:
    gradient, refusal = walk.a_loop_that_the_data_decides()
    assert capsys.readouterr().out.count("DivBackward0\n") == 5  # 20 / 2^5 is below 1
    assert refusal == "grad can be implicitly created only for scalar outputs"
    assert gradient.tolist() == [1 / 32, 10 / 32, 100 / 32]


def test_notes_are_taken_where_the_tape_is_on(walk, capsys) -> None:
    walk.without_the_tape()
    lines = dict(x.split(":", 1) for x in capsys.readouterr().out.splitlines() if "tensor(" in x)
    noted = [name for name, shown in lines.items() if "grad_fn=<MulBackward0>" in shown]
    assert noted == ["outside", "on again inside"] and len(lines) == 6


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


def test_derivatives_of_polar_coordinates(walk) -> None:
    jacobian, row, column, hessian = (x.numpy() for x in walk.jacobians_and_hessians().values())
    c, s = np.cos(np.pi / 6), np.sin(np.pi / 6)
    expected = np.array([[c, -2 * s], [s, 2 * c]])
    # float32: a few operations of one rounding each
    np.testing.assert_allclose(jacobian, expected, rtol=1e-6)
    np.testing.assert_allclose(row, expected[0], rtol=1e-6)
    np.testing.assert_allclose(column, expected[:, 0], rtol=1e-6)
    mixed = -4 * 2 * c * s  # of r^2 cos^2(angle), at r = 2
    second = [[2 * c * c, mixed], [mixed, -2 * 4 * (c * c - s * s)]]
    np.testing.assert_allclose(hessian, second, rtol=1e-6)


def test_compiled_function_is_replayed(walk, tmp_path) -> None:
    assert walk.compiling(tmp_path / "c.c").cache_info().hits == 2


def test_wrong_options_are_refused(walk, capsys) -> None:
    with pytest.raises(SystemExit):
        walk.main(["--steps", "0"])
    assert "--steps must be positive" in capsys.readouterr().err
