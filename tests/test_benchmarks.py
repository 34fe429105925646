"""The benchmarks: closed forms agree with differences, wrong results are found, the harness runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def benchmarks() -> object:
    sys.path.insert(0, str(ROOT))
    try:
        import benchmarks.report
        import benchmarks.workloads
    finally:
        sys.path.remove(str(ROOT))
    return benchmarks


@pytest.mark.parametrize("name", ["chain", "pointwise", "black_scholes"])
def test_closed_form_gradients_agree_with_differences(benchmarks: object, name: str) -> None:
    from benchmarks.workloads import WORKLOADS

    workload = WORKLOADS[name]
    inputs = [a[:50].astype(np.float64) for a in workload.inputs()]
    gradients = workload.closed_form(1, *inputs)[-len(inputs) :]
    rng = np.random.default_rng(0)
    for i, gradient in enumerate(gradients):
        direction = rng.standard_normal(inputs[i].shape)
        step = 1e-5
        moved = [[*inputs[:i], inputs[i] + s * direction, *inputs[i + 1 :]] for s in (-step, step)]
        low, high = (workload.closed_form(1, *m)[0] for m in moved)
        # Central difference: error about step**2 times the third derivative.
        assert (high - low) / (2 * step) == pytest.approx(np.vdot(gradient, direction), rel=1e-6)


def test_mlp_step_lowers_the_loss_along_its_gradient(benchmarks: object) -> None:
    from benchmarks.workloads import mlp

    x, labels, *weights = (a.astype(np.float64) if a.dtype.kind == "f" else a for a in mlp.inputs())
    loss, updated = mlp.step(x, labels, weights)
    slope = sum(np.sum((w - u) ** 2) for w, u in zip(weights, updated, strict=True)) / mlp.RATE
    tiny = 1e-4
    nudged = [w + tiny * (u - w) for w, u in zip(weights, updated, strict=True)]
    moved, _ = mlp.step(x, labels, nudged)
    # First order in `tiny`; the curvature along the step adds about tiny relative.
    assert (loss - moved) / tiny == pytest.approx(slope, rel=1e-2)


def test_relative_error_sees_what_is_wrong(benchmarks: object) -> None:
    from benchmarks.workload import relative_error

    right = [np.array([1.0, -4.0]), np.array(2.0)]
    assert relative_error([np.array([1.0, -4.4]), np.array(2.0)], right) == pytest.approx(0.1)
    assert relative_error([np.array([1.0, np.nan]), np.array(2.0)], right) == float("inf")
    with pytest.raises(ValueError, match="1 results, expected 2"):
        relative_error(right[:1], right)
    with pytest.raises(ValueError, match=r"result 1 has shape \(1,\), expected \(\)"):
        relative_error([right[0], np.array([2.0])], right)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line from the top of the repository."""
    words = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(words, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True)


def test_quick_run_measures_checks_and_writes(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    done = command("--quick", "--peers", "numpy", "--workloads", "chain,mlp", "--json", str(path))
    assert done.returncode == 0, done.stderr
    document = json.loads(path.read_text())
    assert [w["name"] for w in document["workloads"]] == ["chain", "mlp"]
    for workload in document["workloads"]:
        (row,) = workload["rows"]
        assert row["peer"] == "numpy" and len(row["samples"]) == 3 and min(row["samples"]) > 0
        assert 0 < row["error"] < 1e-5 and row["first_cold"] > 0 and row["peak"] >= 0
    assert document["startup"]["numpy"]["median"] > 0
    assert 0 < document["startup"]["first call, warm"]["median"] < 60
    assert "first call, warm" in done.stdout and "import tracegrad" in done.stdout
    assert "numpy" in done.stdout and "1.00" in done.stdout
    assert command("--show", str(path)).stdout.splitlines()[0] == done.stdout.splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--peers", "nump"), "no peer named nump"), (("--workloads", "x"), "no workload named x")],
)
def test_unknown_names_are_refused(arguments: tuple[str, ...], message: str) -> None:
    done = command(*arguments)
    assert done.returncode == 1 and message in done.stderr


def test_readme_table_has_a_row_per_workload_and_a_dash_where_nothing_was_measured(
    benchmarks: object,
) -> None:
    from benchmarks.report import markdown

    def row(peer: str, median: float | None) -> dict[str, object]:
        return {"peer": peer, "median": median}

    work = [
        {"title": "A", "rows": [row("tracegrad", 3.1e-6), row("jax", 7.94e-6)]},
        {"title": "B", "rows": [row("tracegrad", 0.0025), row("jax", None)]},
    ]
    document = {
        "workloads": work,
        "machine": {"processor": "P", "python": "3", "compiler": "cc"},
        "settings": {"threads": 2},
        "versions": {"jax": "1"},
    }
    lines = markdown(document).splitlines()
    assert lines[0] == "| work | tracegrad | jax |"
    assert lines[2:4] == ["| A | 3.1 µs | 7.94 µs |", "| B | 2.5 ms | - |"]
