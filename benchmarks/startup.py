"""How long a process takes to start: `import tracegrad` beside `import numpy`, and the first
compiled call where the cache holds its kernel. Start reading at `startup_times`.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile

from benchmarks.processes import ROOT

PROBE = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
BEST = """
import time

def best(call, calls, batches=30):
    for _ in range(5):
        call()
    least = 1e9
    for _ in range(batches):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        least = min(least, (time.perf_counter() - start) / calls)
    return least
"""
"""Program text: the least seconds per call, over batches."""

FIRST_CALL = """
import time
import tracegrad as tg

def energy(x):
    return (tg.sin(x) * tg.exp(-x * x) + tg.tanh(x)).sum()

x, f = tg.ones(1000, requires_grad=True), tg.compile(energy, wait=True)
start = time.perf_counter()
f(x).backward()
print(time.perf_counter() - start, *{r.cache for r in tg.kernel_history()})
"""


def startup_times(rounds: int) -> dict[str, object]:
    """`import_times`, and where tracegrad is installed `first_call_times`, as "first call, warm"."""
    found = import_times(rounds)
    if importlib.util.find_spec("tracegrad") is not None:
        found["first call, warm"] = first_call_times(rounds)
    return found


def first_call_times(rounds: int) -> dict[str, object]:
    """Seconds of the first compiled call with its backward in fresh processes that compile nothing.

    One more process before them fills a cache folder of its own.

    Raises:
        RuntimeError: a process compiled although the cache held its kernels, or ran eagerly.
    """
    times = []
    with tempfile.TemporaryDirectory(prefix="benchmark-cache-") as folder:
        environment = {**os.environ, "TRACEGRAD_CACHE_DIR": folder}
        environment.pop("TRACEGRAD_EAGER", None)
        for turn in range(rounds + 1):
            seconds, *origins = ran(FIRST_CALL, environment).split()
            if origins != ["disk" if turn else "built"]:
                raise RuntimeError(f"process {turn}: kernels came from {origins}")
            if turn:
                times.append(float(seconds))
    return {"median": statistics.median(times), "minimum": min(times), "samples": times}


def ran(program: str, environment: dict[str, str]) -> str:
    """What a program prints in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def import_times(rounds: int, names: tuple[str, ...] = ("numpy", "tracegrad")) -> dict[str, object]:
    """Seconds of each import in fresh interpreters, in turn, and the last one's ratio to the first.

    Args:
        rounds: interpreters started per name; one more of each compiles the modules.
        names: modules; those that are not installed are left out.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-bytecode-") as folder:
        return measured(rounds, names, folder)


def measured(rounds: int, names: tuple[str, ...], bytecode: str) -> dict[str, object]:
    """`import_times`, with compiled modules kept in the folder `bytecode` (as an install has)."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    present = [name for name in names if importlib.util.find_spec(name) is not None]
    samples: dict[str, list[float]] = {name: [] for name in present}
    for turn in range(rounds + 1):
        for name in present:
            seconds = float(ran(PROBE.format(name), environment))
            if turn:
                samples[name].append(seconds)
    found: dict[str, object] = {
        name: {"median": statistics.median(times), "minimum": min(times), "samples": times}
        for name, times in samples.items()
    }
    if len(present) == len(names):
        last, first = samples[names[-1]], samples[names[0]]
        found["ratio"] = {
            "median": statistics.median(last) / statistics.median(first),
            "minimum": min(last) / min(first),
        }
    return found
