"""How long `import tracegrad` takes beside `import numpy`. Start reading at `import_times`."""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile

from benchmarks.processes import ROOT

PROBE = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"


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
            done = subprocess.run(
                [sys.executable, "-c", PROBE.format(name)],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            )
            if turn:
                samples[name].append(float(done.stdout))
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
