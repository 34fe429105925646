"""The command line: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import calls, eager, harness, machine, report, startup, targets
from benchmarks.peers import PEERS
from benchmarks.processes import ROOT
from benchmarks.workloads import WORKLOADS

BUSY = 0.5  # running processes besides ours, above which a measurement is doubtful


def chosen(text: str | None, table: Mapping[str, object], what: str) -> list[str]:
    """The names in a comma-separated list; all of them for None.

    Raises:
        SystemExit: a name is unknown.
    """
    names = list(table) if text is None else [name for name in text.split(",") if name]
    unknown = [name for name in names if name not in table]
    if unknown:
        known = ", ".join(table)
        raise SystemExit(f"benchmarks: no {what} named {', '.join(unknown)}; there are: {known}")
    return names


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure tracegrad against installed frameworks on the same work.",
    )
    made.add_argument("--peers", help=f"comma-separated, of: {', '.join(PEERS)}")
    made.add_argument("--workloads", help=f"comma-separated, of: {', '.join(WORKLOADS)}")
    made.add_argument("--threads", type=int, default=2, help="for every framework (default 2)")
    made.add_argument("--rounds", type=int, default=15, help="batches per peer (default 15)")
    made.add_argument("--quick", action="store_true", help="3 short rounds, empty caches only")
    made.add_argument("--json", type=Path, help="where to write the measurement")
    made.add_argument("--show", type=Path, help="print the tables of a written measurement")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; status 1 when tracegrad failed or was wrong."""
    options = parser().parse_args(arguments)
    if options.show is not None:
        report.terminal(json.loads(options.show.read_text()))
        return 0
    peers = [PEERS[name] for name in chosen(options.peers, PEERS, "peer")]
    absent = [peer.name for peer in peers if not peer.installed()]
    if absent:
        print(f"not installed, left out: {', '.join(absent)}", file=sys.stderr)
        if options.peers is not None:
            return 2
    peers = [peer for peer in peers if peer.installed()]
    document: dict[str, Any] = {"format": 1, "machine": machine.describe()}
    if document["machine"]["load"] > BUSY:
        print(
            f"the machine is busy (load {document['machine']['load']:.1f}): threads that wait by "
            "spinning, OpenMP's above all, will look slower than they are",
            file=sys.stderr,
        )
    settings = harness.Settings(options.threads, options.rounds)
    if options.quick:
        settings = harness.Settings(options.threads, 3, 0.01, warm_cache=False)
    document["settings"] = asdict(settings)
    document["versions"] = {peer.package: peer.version() for peer in peers}
    document["workloads"] = []
    for name in chosen(options.workloads, WORKLOADS, "workload"):
        rows = harness.run(WORKLOADS[name], peers, settings)
        document["workloads"].append(
            {"name": name, "title": WORKLOADS[name].title, "rows": [row.as_dict() for row in rows]}
        )
    document["startup"] = startup.startup_times(3 if options.quick else 10)
    document["eager"] = eager.eager_times(1 if options.quick else 5)
    document["calls"] = calls.call_times(1 if options.quick else 5, options.threads)
    path = options.json or ROOT / time.strftime("benchmarks/results/run-%Y%m%d-%H%M%S.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    report.terminal(document)
    print(f"written: {path}")
    ours = [r for w in document["workloads"] for r in w["rows"] if r["peer"] == targets.OURS]
    return int(any(not row["samples"] for row in ours))


if __name__ == "__main__":
    sys.exit(main())
