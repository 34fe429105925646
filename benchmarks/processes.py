"""The harness's side of a worker: start it, ask it, stop it. Start reading at `Worker`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import Peer
from benchmarks.workload import Arrays, Workload

ROOT = Path(__file__).resolve().parent.parent


class WorkerError(RuntimeError):
    """A framework failed; the message is the end of what its process wrote."""


def environment(threads: int, cache: Path) -> dict[str, str]:
    """Equal threads for all, and every framework's kernel cache inside `cache`."""
    number = str(threads)
    pools = ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "NUMBA", "TRACEGRAD")
    return {
        **os.environ,
        **{f"{pool}_NUM_THREADS": number for pool in pools},
        "HOME": str(cache),  # Dr.Jit keeps its kernels in ~/.drjit
        "XDG_CACHE_HOME": str(cache / "xdg"),
        "TRACEGRAD_CACHE_DIR": str(cache / "tracegrad"),
        "TRACEGRAD_WAIT": "1",  # as the others do
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "torch"),
        "JAX_COMPILATION_CACHE_DIR": str(cache / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTENSOR_FLAGS": f"base_compiledir={cache / 'pytensor'}",
        "NUMBA_CACHE_DIR": str(cache / "numba"),
    }


class Worker:
    """A process that has prepared one workload in one framework.

    Attributes:
        facts: what it said of itself: version, seconds of the first call, calls made so far.

    Raises:
        WorkerError: the framework failed before its first results.
    """

    def __init__(self, peer: Peer, workload: Workload, threads: int, cache: Path) -> None:
        self.peer = peer
        self.folder = tempfile.TemporaryDirectory(prefix="benchmark-")
        self.results_path = Path(self.folder.name) / "results.npz"
        self.log = open(Path(self.folder.name) / "log", "w+", errors="replace")
        command = [sys.executable, "-m", "benchmarks.worker"]
        command += ["--peer", peer.name, "--workload", workload.name, "--threads", str(threads)]
        self.process = subprocess.Popen(
            [*command, "--results", str(self.results_path)],
            cwd=ROOT,
            env=environment(threads, cache),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        try:
            self.facts = self._answer()
        except WorkerError:
            self.close()
            raise

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None, "started with a pipe"
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.log.seek(0)
            said = [text for text in self.log.read().splitlines() if text.strip()]
            raise WorkerError("\n".join(said[-12:]) or f"exit status {self.process.returncode}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, *words: object) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        assert self.process.stdin is not None, "started with a pipe"
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def results(self) -> Arrays:
        """What the worker last wrote."""
        with np.load(self.results_path) as archive:
            return [archive[name] for name in archive.files]

    def close(self) -> None:
        """End the process and remove its files."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.log.close()
        self.folder.cleanup()
