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


def small_inputs(name: str) -> list[np.ndarray]:
    """Inputs of a workload in its own form, made small where that matters."""
    from benchmarks.workloads import WORKLOADS, gpt_block, layer_norm, lenet

    if name == "layer_norm":
        return layer_norm.inputs(rows=6, columns=10)
    if name == "gpt_block":
        return gpt_block.inputs(batch=2, sequence=5, width=16)
    if name == "lenet":
        return lenet.inputs(batch=3)
    inputs = WORKLOADS[name].inputs()
    elementwise = name in ("chain", "pointwise", "black_scholes", "pairwise")
    return [a[:50] for a in inputs] if elementwise else inputs


def doubled(inputs: list[np.ndarray]) -> list[np.ndarray]:
    """In float64, except labels."""
    return [a.astype(np.float64) if a.dtype.kind == "f" else a for a in inputs]


@pytest.mark.parametrize(
    "name", ["chain", "pointwise", "black_scholes", "pairwise", "layer_norm", "gpt_block"]
)
def test_closed_form_gradients_agree_with_differences(benchmarks: object, name: str) -> None:
    from benchmarks.workloads import WORKLOADS

    workload = WORKLOADS[name]
    inputs = doubled(small_inputs(name))
    gradients = workload.closed_form(1, *inputs)[-len(inputs) :]
    rng = np.random.default_rng(0)
    for i, gradient in enumerate(gradients):
        assert gradient.shape == inputs[i].shape
        direction = rng.standard_normal(inputs[i].shape)
        step = 1e-5
        moved = [[*inputs[:i], inputs[i] + s * direction, *inputs[i + 1 :]] for s in (-step, step)]
        low, high = (workload.closed_form(1, *m)[0] for m in moved)
        # Central difference: error about step**2 times the third derivative; rounding of the sums.
        slope = np.vdot(gradient, direction)
        assert (high - low) / (2 * step) == pytest.approx(slope, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("name", ["tiny_model", "mlp", "lenet"])
def test_a_training_step_follows_the_gradient_of_every_weight(
    benchmarks: object, name: str
) -> None:
    from benchmarks.workloads import WORKLOADS

    workload = WORKLOADS[name]
    inputs = doubled(small_inputs(name))
    data, weights = inputs[: workload.data], inputs[workload.data :]
    updated = workload.closed_form(1, *data, *weights)[1:]
    for i, (w, u) in enumerate(zip(weights, updated, strict=True)):
        gradient = (w - u) / workload.rate
        # Along the gradient the slope is largest; a short step passes few kinks of the rectifiers.
        direction = gradient / np.linalg.norm(gradient)
        moved = [[*weights[:i], w + s * direction, *weights[i + 1 :]] for s in (-1e-6, 1e-6)]
        low, high = (workload.closed_form(1, *data, *m)[0] for m in moved)
        assert (high - low) / 2e-6 == pytest.approx(np.linalg.norm(gradient), rel=1e-4)


def test_rosenbrock_hessian_agrees_with_differences_of_its_gradient(benchmarks: object) -> None:
    from benchmarks.workloads import rosenbrock

    (x,) = doubled(rosenbrock.inputs())

    def gradient(x: np.ndarray) -> np.ndarray:
        bend = x[1:] - x[:-1] ** 2
        found = np.zeros_like(x)
        found[:-1] = -400 * x[:-1] * bend - 2 * (1 - x[:-1])
        found[1:] += 200 * bend
        return found

    step = 1e-5
    columns = [(gradient(x + e) - gradient(x - e)) / (2 * step) for e in step * np.eye(len(x))]
    (matrix,) = rosenbrock.closed_form(1, x)
    np.testing.assert_allclose(matrix, np.stack(columns, axis=1), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("pairwise", "compiled"),
        ("layer_norm", "compiled"),
        ("gpt_block", "eager"),
        ("lenet", "eager"),
        ("tiny_model", "compiled"),
        ("rosenbrock", "compiled"),
    ],
)
def test_tracegrad_agrees_with_the_closed_form(
    benchmarks: object, monkeypatch: pytest.MonkeyPatch, name: str, how: str
) -> None:
    import dataclasses

    import tracegrad as tg
    from benchmarks.adapters import tensors
    from benchmarks.workload import relative_error
    from benchmarks.workloads import WORKLOADS

    monkeypatch.setenv("TRACEGRAD_WAIT", "1")
    inputs = small_inputs(name)
    workload = dataclasses.replace(WORKLOADS[name], inputs=lambda: inputs)
    prepared = tensors.load(f"tracegrad {how}", tg.get_num_threads())(workload)
    for _ in range(3):
        prepared.call()
    wanted = [np.asarray(a) for a in workload.closed_form(3, *doubled(inputs))]
    assert relative_error(prepared.results(), wanted) < workload.tolerance


def test_a_peer_is_not_offered_what_it_lacks(benchmarks: object) -> None:
    from benchmarks.adapters import drjit_llvm, pytensor_function
    from benchmarks.workloads import WORKLOADS

    for name in ("gpt_block", "lenet", "rosenbrock"):
        assert drjit_llvm.prepare(WORKLOADS[name]) is None
    for name in ("gpt_block", "lenet"):
        assert pytensor_function.prepare(WORKLOADS[name], {}) is None


def test_relative_error_sees_what_is_wrong(benchmarks: object) -> None:
    from benchmarks.workload import relative_error

    right = [np.array([1.0, -4.0]), np.array(2.0)]
    assert relative_error([np.array([1.0, -4.4]), np.array(2.0)], right) == pytest.approx(0.1)
    assert relative_error([np.array([1.0, np.nan]), np.array(2.0)], right) == float("inf")
    with pytest.raises(ValueError, match="1 results, expected 2"):
        relative_error(right[:1], right)
    with pytest.raises(ValueError, match=r"result 1 has shape \(1,\), expected \(\)"):
        relative_error([right[0], np.array([2.0])], right)


def test_page_faults_count_memory_that_a_call_gives_back(benchmarks: object) -> None:
    import mmap

    from benchmarks.worker import timed
    from benchmarks.workload import Prepared

    pages = 200

    def fresh() -> None:
        with mmap.mmap(-1, pages * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE) as block:
            for i in range(pages):
                block[i * mmap.PAGESIZE] = 1

    kept = np.ones(pages * mmap.PAGESIZE, np.uint8)
    kept_faults = timed(Prepared(lambda: kept.fill(2), list), 10)["faults"]
    fresh_faults = timed(Prepared(fresh, list), 10)["faults"]
    assert fresh_faults - kept_faults > 9 * pages


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
        assert row["faults"] >= 0
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


def measured(name: str, **medians: float | None) -> dict[str, object]:
    """A workload of a document; the minima are half the medians, None is a peer that failed."""
    rows = [
        {
            "peer": peer.replace("_", "."),
            "median": median,
            "minimum": median and median / 2,
            "samples": [median] if median else [],
        }
        for peer, median in medians.items()
    ]
    return {"name": name, "title": name.upper(), "rows": rows}


def test_targets_are_judged_by_the_nearest_peer_and_stay_open_where_one_is_missing(
    benchmarks: object,
) -> None:
    from benchmarks.targets import judge

    work = [
        measured("chain", tracegrad=4e-6, jax=3e-6),
        measured("pointwise", tracegrad=1.0, drjit=2.0, torch=9.0, torch_compile=8.5, jax=None),
        measured("mlp", tracegrad=2.0, jax=3.0, torch=2.5),
        measured("lenet", tracegrad=None, torch=1.0),
    ]
    calls = {
        "tracegrad": {"doubling loop": {"median": 1.0, "minimum": 1.0}},
        "torch": {"doubling loop": {"median": 9.0, "minimum": 11.0}},
    }
    found = {
        (j.target.work, j.target.seconds, j.target.ratio): j
        for j in judge({"workloads": work, "calls": calls})
    }
    absolute = found["chain", 5e-6, 1.0]
    assert absolute.met is True and (absolute.median, absolute.minimum) == (4e-6, 2e-6)
    assert found["chain", None, 1.0].met is False
    assert found["pointwise", None, 2].met is True
    others = found["pointwise", None, 8]
    assert others.nearest == "torch.compile" and others.median == 8.5 and others.met is None
    assert others.missing == ("jax", "pytensor", "pytensor-c")
    nearest = found["mlp", None, 1.0]
    assert nearest.met is True and nearest.nearest == "torch" and nearest.median == 1.25
    failed = found["lenet", None, 2]
    assert failed.met is None and failed.median is None and failed.missing == ("tracegrad",)
    loop = found["doubling loop", None, 10]
    assert loop.met is False and (loop.median, loop.minimum) == (9.0, 11.0)
    assert found["gpt_block", None, 1.0].missing == ("tracegrad", "torch.compile")


def test_every_target_names_work_and_peers_that_exist(benchmarks: object) -> None:
    from benchmarks.calls import TITLES
    from benchmarks.peers import PEERS
    from benchmarks.targets import TARGETS
    from benchmarks.workloads import WORKLOADS

    for target in TARGETS:
        assert target.work in (TITLES if target.call else WORKLOADS)
        assert set(target.peers) <= set(PEERS) and bool(target.peers) != bool(target.seconds)


def test_targets_table_shows_ratio_and_verdict(
    benchmarks: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import report

    monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: None)  # without rich
    work = [measured("mlp", tracegrad=2.0, jax=3.0, torch=2.5), measured("pairwise", jax=1.0)]
    report.targets_table({"workloads": work})
    lines = capsys.readouterr().out.splitlines()
    (mlp,) = (line for line in lines if line.startswith("MLP "))
    assert mlp.split() == ["MLP", "ahead", "torch", "1.25", "1.25", "met"]
    (pairwise,) = (line for line in lines if line.startswith("PAIRWISE "))
    assert pairwise.split() == ["PAIRWISE", ">=", "10", "jax", "-", "-", "open", "tracegrad"]
