"""Compiling beside eager calls: the first calls are eager, later ones compiled, all are right."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from beside import fresh

import tracegrad as tg
from tracegrad import nn, optim
from tracegrad.runtime import background


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One empty cache and one worker for all tests, so each compiles a function of its own."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("background")
        patch.setenv("TRACEGRAD_CACHE_DIR", str(path))
        fresh()
        yield path
        background.dismiss()
    fresh()


def compiled(fn: Any, **options: Any) -> Any:
    return tg.compile(fn, wait=False, **options)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Inside, the worker finishes nothing."""
    f = compiled(lambda x: x * 2)
    f(tg.ones(2))
    f.wait()
    background.submit(f.graph())  # so that there is a worker where all came from the cache
    assert background._worker is not None
    number = background._worker._process.pid
    os.kill(number, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(number, signal.SIGCONT)


def test_the_first_calls_are_eager_and_later_ones_replay() -> None:
    f = compiled(lambda x: (x.sin() * x).sum())
    x = tg.linspace(0, 1, 5)
    want = float((x.sin() * x).sum())
    with held():
        assert float(f(x)) == want
        assert f.cache_info() == (0, 1, 0, 0) and "1 being compiled" in repr(f)
        assert float(f(x)) == want
        assert f.cache_info() == (0, 1, 0, 1)
        assert not f.wait(0.1)
    assert f.wait()
    assert float(f(x)) == pytest.approx(want, rel=1e-6)
    assert f.cache_info() == (1, 1, 1, 1) and "compiled" not in repr(f).partition(":")[2]


def test_calls_find_out_by_themselves() -> None:
    f = compiled(lambda x: x * 3)
    end = time.monotonic() + 60
    while not f.cache_info().hits and time.monotonic() < end:
        assert f(tg.ones(2)).tolist() == [3.0, 3.0]
        time.sleep(0.01)
    assert f.cache_info().hits == 1 and f.cache_info().misses == 1


def test_the_worker_compiles_and_this_process_does_not() -> None:
    f = compiled(lambda x: x.exp() - 1)
    f(tg.ones(3))
    f.wait()
    f(tg.ones(3))
    assert {r.cache for r in tg.kernel_history() if r.label == "<lambda>"} == {"disk"}


@pytest.mark.parametrize(("wish", "variable", "waits"), [
    (None, "1", True), (None, "0", False), (True, "0", True), (False, "1", False),
])  # fmt: skip
def test_who_decides(
    wish: bool | None, variable: str, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACEGRAD_WAIT", variable)
    f = tg.compile(lambda x: x - 3, wait=wish)
    f(tg.ones(3))
    assert (f.cache_info().traces == 1) is waits


def test_looking_inside_waits() -> None:
    f = compiled(lambda x: x.cos() + 3)
    f(tg.ones(3))
    assert "cos" in f.source()
    g = compiled(lambda x: x.cos() + 4)
    g(tg.ones(3))
    assert "1 trace(s)" in g.explain()


def test_writes_between_the_calls_are_no_difference() -> None:
    """The first compiled result is compared with the inputs and results of the captured call."""
    state = tg.zeros(3)

    def f(x: Any) -> Any:
        state.add_(x)
        return x * state

    run = compiled(f)
    x = tg.ones(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = run(x)
        x.mul_(5)
        first.zero_()
        run.wait()
        assert run(x).tolist() == [30.0] * 3 and state.tolist() == [6.0] * 3
    assert run.cache_info().hits == 1


def test_the_backward_is_interpreted_until_it_is_compiled() -> None:
    f = compiled(lambda x: (x.sin() * x.exp()).sum())
    x = tg.linspace(0, 1, 7, requires_grad=True)
    f(x).backward()
    want = x.grad.tolist()
    f.wait()
    launches = []
    for _ in range(2):
        x.grad = None
        f(x).backward()
        np.testing.assert_allclose(x.grad.tolist(), want, rtol=1e-5)
        launches.append(sum(r.launches for r in tg.kernel_history()))
        f.wait()
    x.grad = None
    f(x).backward()
    np.testing.assert_allclose(x.grad.tolist(), want, rtol=1e-5)
    after = sum(r.launches for r in tg.kernel_history())
    assert after - launches[1] > launches[1] - launches[0] - 1 >= 1


def test_a_training_step() -> None:
    losses = []
    for way in (None, True, False):
        tg.manual_seed(0)
        draws = tg.Generator().manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
        optimizer = optim.AdamW(model.parameters(), lr=0.01)

        def step(x: Any, model: Any = model, optimizer: Any = optimizer) -> Any:
            optimizer.zero_grad()
            loss = model(x).pow(2).mean()
            loss.backward()
            optimizer.step()
            return loss.detach()

        run = step if way is None else tg.compile(step, wait=way)
        row = []
        for k in range(12):
            optimizer.param_groups[0]["lr"] = 0.01 / (k + 1)
            row.append(float(run(tg.randn(6, 4, generator=draws))))
            if way is False and k % 3 == 2:
                run.wait()  # type: ignore[attr-defined]
        losses.append(row)
        if way is False:
            assert run.cache_info().hits > 0  # type: ignore[attr-defined]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(losses[2], losses[0], rtol=1e-4, atol=1e-6)


def test_paths_are_compiled_one_after_another() -> None:
    def halved(x: Any) -> Any:
        while x.norm() > 1:
            x = x / 2
        return x

    f = compiled(halved)
    for value in (1.0, 8.0, 1.0, 8.0, 64.0, 64.0):
        x = tg.ones(2) * value
        assert f(x).tolist() == halved(x).tolist()
        f.wait()
    assert f.cache_info() == (3, 3, 3, 0)


def test_who_waits_for_a_worker_without_time_compiles_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others that keep all processors busy would keep a worker of the idle class from working."""
    monkeypatch.setattr(background, "PATIENCE_S", 0.1)
    monkeypatch.setattr(background, "_starved", False)
    background.dismiss()
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    f = compiled(lambda x: x * 14)
    f(tg.ones(2))
    worker = background._worker
    assert worker is not None and worker.idle
    os.kill(worker._process.pid, signal.SIGSTOP)
    monkeypatch.setattr(os, "getloadavg", lambda: (64.0, 64.0, 64.0))
    assert f.wait()
    assert f(tg.ones(2)).tolist() == [14.0, 14.0] and f.cache_info().hits == 1
    assert background._starved and not background.idle_class()
    g = compiled(lambda x: x * 15)
    g(tg.ones(2))
    assert background._worker is not None and not background._worker.idle
    assert g.wait()


def test_large_graphs_do_not_wait_for_a_worker_that_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than a pipe takes is sent in a file, which the worker removes."""
    monkeypatch.setattr(background.tempfile, "tempdir", str(tmp_path))
    made = []
    with held():
        for k in range(6):
            f = compiled(lambda x, k=k: sum((x * n).sin() for n in range(1, 120 + k)))
            f(tg.ones(2))
            made.append(f)
        assert len([*tmp_path.glob("tracegrad-job-*")]) == 6
    for k, f in enumerate(made):
        assert f.wait(120.0)
        want = sum(np.sin(n) for n in range(1, 120 + k))
        np.testing.assert_allclose(f(tg.ones(2)).tolist(), [want] * 2, rtol=1e-4, atol=1e-4)
        assert f.cache_info().hits == 1
    assert not [*tmp_path.glob("tracegrad-job-*")]


class Pool:
    """Stands for a BLAS library."""

    def __init__(self, count: int) -> None:
        self.count = count

    def get_num_threads(self) -> int:
        return self.count

    def set_num_threads(self, count: int) -> None:
        self.count = count


def test_blas_leaves_a_processor_and_gets_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "processors", lambda: 4)
    full, single, changed = Pool(4), Pool(1), Pool(4)
    room = background.Room()
    room._controller = types.SimpleNamespace(lib_controllers=[full, single, changed])
    room.leave()
    assert (full.count, single.count, changed.count) == (3, 1, 3)
    changed.count = 2  # the user's wish
    room.take_back()
    assert (full.count, single.count, changed.count) == (4, 1, 2)
    full.count = 3  # the user's wish, too: nothing is given back twice
    room.take_back()
    assert full.count == 3


def test_the_interpreter_is_given_back_soon() -> None:
    before = sys.getswitchinterval()
    with background.quick_turns():
        assert sys.getswitchinterval() == pytest.approx(background.TURN_S)
    assert sys.getswitchinterval() == before


def test_a_worker_without_jobs_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "IDLE_S", 0.05)
    ours, theirs = background.Pipe()
    started = time.monotonic()
    background.main(os.dup(theirs.fileno()))
    assert time.monotonic() - started > 0.04
    ours.close()
    theirs.close()


def test_a_worker_that_dies_costs_nothing_but_time() -> None:
    f = compiled(lambda x: x.tanh() * 7)
    x = tg.ones(3)
    want = f(x).tolist()
    assert background._worker is not None
    os.kill(background._worker._process.pid, signal.SIGKILL)
    assert f.wait(60.0)
    np.testing.assert_allclose(f(x).tolist(), want, rtol=1e-6)
    assert f.cache_info().hits == 1
    g = compiled(lambda x: x.tanh() * 8)  # with a new worker
    g(x)
    assert g.wait(60.0) and g.cache_info().traces == 1


def test_a_graph_that_cannot_be_sent_is_compiled_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> bytes:
        raise background.pickle.PicklingError("no")

    monkeypatch.setattr(background.pickle, "dumps", refuse)
    f = compiled(lambda x: x * 9)
    f(tg.ones(2))
    assert f.cache_info().traces == 1


@pytest.mark.parametrize("way", ["frozen", "no interpreter", "no program of that name"])
def test_where_no_worker_can_be_started_it_is_compiled_here(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    background.dismiss()
    if way == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    else:
        found = None if way == "no interpreter" else "/nonexistent/python"
        monkeypatch.setattr(background.spawn, "get_executable", lambda: found)
    f = compiled(lambda x: x * 13)
    f(tg.ones(2))
    assert f.cache_info().traces == 1 and background._worker is None


def test_code_that_the_compiler_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The worker meets it first; the user hears of it when the job is found finished."""
    from tracegrad.runtime import executable

    f = compiled(lambda x: x * 10)
    f(tg.ones(2))

    def refuse(*args: object) -> None:
        raise tg.errors.CompileError("refused")

    monkeypatch.setattr(executable, "build", refuse)
    with pytest.warns(UserWarning, match="runs eagerly: refused"):
        f.wait()
    assert f(tg.ones(2)).tolist() == [10.0, 10.0]
    assert f.cache_info() == (0, 1, 0, 1)


def test_the_worker_says_why_it_could_not() -> None:
    job = background.submit(object())  # type: ignore[arg-type]
    assert job is not None and job.wait(60.0)
    assert job.problem.startswith("AttributeError")


def test_without_a_compiler_nothing_is_pending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/nonexistent/cc")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        f = compiled(lambda x: x * 11)
        assert f(tg.ones(2)).tolist() == f(tg.ones(2)).tolist() == [11.0, 11.0]
    assert f.cache_info() == (0, 1, 0, 1) and "being compiled" not in repr(f)


def test_threads_share_one_trace() -> None:
    f = compiled(lambda x: (x * x).sum().exp())
    x = tg.linspace(-1, 1, 6)
    want = float((x * x).sum().exp())
    wrong: list[float] = []

    def calls() -> None:
        end = time.monotonic() + 60
        for k in range(10_000):
            got = float(f(x))
            if abs(got - want) > 1e-5:
                wrong.append(got)
            if (k >= 20 and f.cache_info().hits > 50) or time.monotonic() > end:
                return

    threads = [threading.Thread(target=calls) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong and f.cache_info().traces == f.cache_info().misses == 1


PROGRAM = """
import os, sys, time
import tracegrad as tg
f = tg.compile(lambda x: x * 12)
f(tg.ones(2))
assert "being compiled" in repr(f)
"""

FORK = """
child = os.fork()
if child == 0:
    assert f.wait() and f(tg.ones(2)).tolist() == [12.0, 12.0]
    os._exit(0 if f.cache_info().hits == 1 else 3)
assert os.waitpid(child, 0)[1] == 0
assert f.wait() and f(tg.ones(2)).tolist() == [12.0, 12.0]
"""


def run(program: str) -> None:
    environment = {**os.environ, "TRACEGRAD_WAIT": "0"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], env=environment, capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_a_program_that_ends_leaves_its_kernel_to_the_next(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACEGRAD_CACHE_DIR", str(tmp_path))
    run(PROGRAM)
    end = time.monotonic() + 60
    while not [*tmp_path.rglob("kernel-*.so")] and time.monotonic() < end:
        time.sleep(0.05)
    f = tg.compile(lambda x: x * 12, wait=True)
    f(tg.ones(2))
    assert [r.cache for r in tg.kernel_history()][-1] == "disk"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.3])
def test_a_forked_child_has_no_part_in_the_worker(delay: float) -> None:
    """Whatever the thread that listens to the worker is doing at that moment."""
    run(f"{PROGRAM}\ntime.sleep({delay})\n{FORK}")
