"""Measure the peers on one workload after another. Start reading at `run`.

Results are held against a float64 reference before anything is timed, and again afterwards. Rounds
are interleaved (A B C, B C A, ...), so that a disturbance of the machine hits every peer alike.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.peers import Peer
from benchmarks.processes import Worker, WorkerError
from benchmarks.workload import Arrays, Workload, relative_error


@dataclass(frozen=True)
class Settings:
    """How long to measure, and with how many threads.

    Attributes:
        threads: for every framework; its process is bound to as many processors.
        rounds: batches per peer; medians and minima are over these.
        batch_seconds: calls are repeated until a batch takes about this long.
        warm_cache: also start each peer a second time, with the kernels of the first.
    """

    threads: int = 2
    rounds: int = 15
    batch_seconds: float = 0.05
    warm_cache: bool = True


@dataclass
class Row:
    """One peer on one workload; times in seconds, memory in bytes.

    Attributes:
        error: largest relative difference from the float64 reference.
        first_cold, first_warm: build and first call, with an empty cache and a filled one.
        peak: largest memory beyond what imports took.
        faults: page faults per repeated call, the median over the rounds. A call that takes memory
            from the operating system and gives it back has one for every 4 KiB of it.
        samples: seconds per call, one per round.
        problem: why there are no samples; empty where there are.
    """

    peer: str
    version: str = ""
    error: float | None = None
    first_cold: float | None = None
    first_warm: float | None = None
    first_calls: float | None = None
    peak: int | None = None
    faults: float | None = None
    calls_per_batch: int = 0
    samples: list[float] = field(default_factory=list)
    problem: str = ""

    @property
    def median(self) -> float | None:
        """Median seconds per call."""
        return statistics.median(self.samples) if self.samples else None

    @property
    def minimum(self) -> float | None:
        """Least seconds per call."""
        return min(self.samples) if self.samples else None

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {**asdict(self), "median": self.median, "minimum": self.minimum}


def reference(workload: Workload, calls: int) -> Arrays:
    """The closed form in float64."""
    inputs = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in workload.inputs()]
    return [np.asarray(a) for a in workload.closed_form(calls, *inputs)]


def run(workload: Workload, peers: list[Peer], settings: Settings) -> list[Row]:
    """Measure every peer on `workload`, in one interleaved run."""
    rows, active = [], []
    expected: dict[int, Arrays] = {}
    for peer in peers:
        print(f"  {workload.name}: preparing {peer.name}", file=sys.stderr, flush=True)
        row = Row(peer.name)
        rows.append(row)
        worker = prepare(row, peer, workload, settings)
        if worker is not None and check(row, worker, workload, expected):
            active.append((row, worker))
        elif worker is not None:
            worker.close()
    try:
        measure(active, settings)
        for row, worker in active:
            finish(row, worker, workload, expected)
    finally:
        for _, worker in active:
            worker.close()
    return rows


def prepare(row: Row, peer: Peer, workload: Workload, settings: Settings) -> Worker | None:
    """Start the peer with an empty cache and, if so set, again with the cache this filled."""
    with tempfile.TemporaryDirectory(prefix="benchmark-cache-", ignore_cleanup_errors=True) as name:
        try:
            worker = Worker(peer, workload, settings.threads, Path(name))
            if not worker.facts["offered"]:
                worker.close()
                row.problem = "not offered"
                return None
            row.first_cold = worker.facts["first"]
            if settings.warm_cache:
                worker.close()
                worker = Worker(peer, workload, settings.threads, Path(name))
                row.first_warm = worker.facts["first"]
        except WorkerError as error:
            row.problem = f"failed: {error}"
            return None
    row.version, row.first_calls = worker.facts["version"], worker.facts["first_calls"]
    return worker


def check(row: Row, worker: Worker, workload: Workload, expected: dict[int, Arrays]) -> bool:
    """Whether the results are right; the error goes into the row, the reason into `problem`."""
    calls = worker.facts["calls"]
    if calls not in expected:
        expected[calls] = reference(workload, calls)
    try:
        row.error = max(row.error or 0.0, relative_error(worker.results(), expected[calls]))
    except ValueError as error:
        row.problem = f"wrong: {error}"
        return False
    if not row.error <= workload.tolerance:
        row.problem = f"wrong: relative error {row.error:.1e}, accepted {workload.tolerance:.0e}"
        return False
    return True


def measure(active: list[tuple[Row, Worker]], settings: Settings) -> None:
    """Fill samples and faults, one batch of every peer per round, each round starting at the next."""
    for row, worker in active:
        row.calls_per_batch = batch_size(worker, settings.batch_seconds)
    faults: dict[str, list[float]] = {row.peer: [] for row, _ in active}
    for turn in range(settings.rounds):
        shift = turn % max(len(active), 1)
        for row, worker in active[shift:] + active[:shift]:
            took = worker.ask("time", row.calls_per_batch)
            row.samples.append(took["seconds"] / row.calls_per_batch)
            faults[row.peer].append(took["faults"] / row.calls_per_batch)
    for row, _ in active:
        row.faults = statistics.median(faults[row.peer]) if faults[row.peer] else None


def batch_size(worker: Worker, target: float) -> int:
    """Calls that take about `target` seconds, found by doubling so that warm-up does not mislead."""
    calls = 1
    while True:
        seconds = worker.ask("time", calls)["seconds"]
        if seconds >= target / 2:
            return max(1, round(calls * target / seconds))
        calls *= max(2, min(16, math.ceil(target / max(seconds, 1e-7) / 2)))


def finish(row: Row, worker: Worker, workload: Workload, expected: dict[int, Arrays]) -> None:
    """Read the peak memory, and check once more what does not change from call to call."""
    row.peak = worker.ask("memory")["peak"]
    if workload.kind == "training":
        return
    worker.ask("results")
    if not check(row, worker, workload, expected):
        row.samples.clear()
