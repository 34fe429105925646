"""One process per framework and workload, driven by the harness through pipes.

Commands are lines on standard input, answers are lines of JSON on a private copy of standard
output (whatever a framework prints goes to standard error). A process of its own keeps thread pools
apart, gives an honest first call, and lets memory be read per framework. Start reading at `main`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import PEERS
from benchmarks.workload import Prepared
from benchmarks.workloads import WORKLOADS

CHECK_CALLS = 4
"""Calls before results are compared: a program compiled behind the first call is used by then."""


def status_bytes(field: str) -> int | None:
    """`VmRSS` or `VmHWM` of this process; None where there is no /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(n.split()[1]) * 1024 for n in lines if n.startswith(field + ":")), None)


def current_bytes() -> int:
    """Resident memory now, or the peak so far where only that is known."""
    return status_bytes("VmRSS") or peak_bytes()


def peak_bytes() -> int:
    """Largest resident memory of this process. (`ru_maxrss` would count the parent's at fork.)"""
    peak = status_bytes("VmHWM")
    if peak is not None:
        return peak
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak() -> None:
    """Let the peak start from what is resident now, where the kernel offers that."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        print(f"peak memory counts from the start of the process: {error}", file=sys.stderr)


def first_results(arguments: argparse.Namespace) -> tuple[Prepared | None, dict[str, Any]]:
    """Import, prepare, call, write the results; the clock starts when imports and inputs are done."""
    peer, workload = PEERS[arguments.peer], WORKLOADS[arguments.workload]
    prepare = peer.load(arguments.threads)
    reset_peak()
    baseline = current_bytes()
    inputs = workload.inputs()
    workload = dataclasses.replace(workload, inputs=lambda: inputs)
    start = time.perf_counter()
    prepared = prepare(workload)
    if prepared is None:
        return None, {"offered": False}
    prepared.call()
    first = time.perf_counter() - start
    for _ in range(CHECK_CALLS - 1):
        prepared.call()
    warm = time.perf_counter() - start
    return prepared, {
        "offered": True,
        "version": peer.version(),
        "first": first,
        "first_calls": warm,
        "calls": CHECK_CALLS,
        "baseline": baseline,
    }


def save(prepared: Prepared, path: str) -> None:
    """Write the results of the last call for the harness to compare."""
    np.savez(path, *prepared.results())


def page_faults() -> int:
    """Pages that the kernel has mapped for this process so far without reading a file."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def timed(prepared: Prepared, calls: int) -> dict[str, float]:
    """Seconds and page faults that so many calls take, all threads together."""
    call = prepared.call
    faults, start = page_faults(), time.perf_counter()
    for _ in range(calls):
        call()
    return {"seconds": time.perf_counter() - start, "faults": page_faults() - faults}


def main() -> None:
    """Answer commands until the pipe closes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", required=True)
    parser.add_argument("--workload", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--results", required=True)
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    prepared, facts = first_results(arguments)
    if prepared is not None:
        save(prepared, arguments.results)
    answer(facts)
    for line in sys.stdin:
        command, *rest = line.split()
        assert prepared is not None, "a workload that is not offered takes no commands"
        if command == "time":
            answer(timed(prepared, int(rest[0])))
        elif command == "results":
            save(prepared, arguments.results)
            answer({})
        elif command == "memory":
            answer({"peak": peak_bytes() - facts["baseline"]})
        else:
            raise ValueError(f"unknown command {command!r}")


if __name__ == "__main__":
    main()
