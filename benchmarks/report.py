"""Tables of a measurement, for the terminal and for README. Start reading at `terminal`.

Both read the document that is written as JSON, so a table can be printed again from the file.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from benchmarks.calls import TARGETS, TITLES
from benchmarks.targets import OURS, Judgement, judge

Document = dict[str, Any]

HEADINGS = ("peer", "median", "min", "x median", "x min", "first, cold", "first, warm", "peak",
            "faults", "error")  # fmt: skip


def duration(seconds: float | None) -> str:
    """Three digits with a unit."""
    if seconds is None:
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}" if seconds < 999.5 * size else f"{seconds:.0f} s"
    return f"{seconds / 1e-9:.3g} ns"


def memory(size: int | None) -> str:
    """Mebibytes."""
    return "-" if size is None else f"{size / 2**20:.0f} MiB"


def yardstick(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The row that ratios refer to: ours where it was measured, else the fastest."""
    measured = [row for row in rows if row["samples"]]
    ours = [row for row in measured if row["peer"] == OURS]
    return next(iter(ours or sorted(measured, key=lambda row: row["median"])), None)


def cells(row: dict[str, Any], base: dict[str, Any] | None) -> list[str]:
    """One row of the terminal's table."""
    if not row["samples"]:
        return [row["peer"], row["problem"].split(":")[0], *[""] * (len(HEADINGS) - 2)]
    assert base is not None, "a measured row has a yardstick"
    return [
        row["peer"],
        duration(row["median"]),
        duration(row["minimum"]),
        f"{row['median'] / base['median']:.2f}",
        f"{row['minimum'] / base['minimum']:.2f}",
        duration(row["first_cold"]),
        duration(row["first_warm"]),
        memory(row["peak"]),
        "-" if row.get("faults") is None else f"{row['faults']:.3g}",
        f"{row['error']:.0e}",
    ]


def terminal(document: Document) -> None:
    """Print every table, with rich where it is installed."""
    for workload in document["workloads"]:
        base = yardstick(workload["rows"])
        lines = [cells(row, base) for row in workload["rows"]]
        unit = f"; x = time / {base['peer']}'s" if base else ""
        draw(f"{workload['title']}{unit}", list(HEADINGS), lines)
        for row in workload["rows"]:
            if ":" in row["problem"]:
                print(f"{row['peer']}: {row['problem'].splitlines()[-1]}")
    startup = document.get("startup") or {}
    lines = [
        [
            name if " " in name else f"import {name}",
            duration(times["median"]),
            duration(times["minimum"]),
        ]
        for name, times in startup.items()
        if name != "ratio"
    ]
    if "ratio" in startup:
        lines.append(["ratio"] + [f"{startup['ratio'][k]:.2f}" for k in ("median", "minimum")])
    if lines:
        draw("Start-up", ["", "median", "min"], lines)
    eager_table(document.get("eager") or {})
    calls_table(document.get("calls") or {})
    targets_table(document)
    print(provenance(document))


def eager_table(eager: dict[str, Any]) -> None:
    """What eager mode costs, columns per library; of tracegrad also what it adds to NumPy's time."""
    if not eager:
        return
    names = list(eager)
    entries = list(next(iter(eager.values()))["seconds"])
    lines = []
    for entry in entries:
        found = [eager[n]["seconds"].get(entry) for n in names]
        times = [duration(f[k] if f else None) for f in found for k in ("median", "minimum")]
        plain = eager.get("numpy", {}).get("seconds", {}).get(entry)
        own = eager["tracegrad"]["seconds"][entry]
        above = duration(max(0.0, own["minimum"] - plain["minimum"])) if plain else ""
        lines.append([entry, *times, above])
    peaks = [eager[n]["peak of 50 layers"] for n in names]
    shown = [c for p in peaks for c in (memory(p and int(p)), "")]
    lines.append(["peak memory of 50 layers", *shown, ""])
    headings = ["", *(h for n in names for h in (n, "min")), "above numpy"]
    draw("Eager: 10 elements with graph recording unless said otherwise", headings, lines)


def calls_table(calls: dict[str, Any]) -> None:
    """What calls cost, columns per library."""
    if not calls:
        return
    lines = []
    for entry, title in TITLES.items():
        times = [calls[n].get(entry) for n in calls]
        if any(times):
            shown = [duration(t[k] if t else None) for t in times for k in ("median", "minimum")]
            lines.append([title, *shown, duration(TARGETS[entry]) if entry in TARGETS else ""])
    headings = ["", *(h for n in calls for h in (n, "min")), "target"]
    draw("Calls", headings, lines)


def targets_table(document: Document) -> None:
    """Every target, what was measured, and whether it is met."""
    titles = {w["name"]: w["title"] for w in document["workloads"]}
    lines = []
    for found in judge(document):
        work = found.target.work
        title = TITLES[work] if found.target.call else titles.get(work, work)
        lines.append([title, *judgement_cells(found)])
    headings = ["", "target", "against", "median", "min", "", "not measured"]
    draw("Targets: a peer's time / tracegrad's", headings, lines)


def judgement_cells(found: Judgement) -> list[str]:
    """Target, nearest peer, ratios of medians and of minima (or times), verdict, what is missing."""
    target = found.target
    verdict = {True: "met", False: "not met", None: "open"}[found.met]
    if target.seconds is not None:
        shown = [duration(t) for t in (found.median, found.minimum)]
        asked = f"<= {duration(target.seconds)}"
    else:
        shown = ["-" if r is None else f"{r:.2f}" for r in (found.median, found.minimum)]
        asked = "ahead" if target.ratio == 1 else f">= {target.ratio:g}"
    against = found.nearest or ", ".join(target.peers)
    return [asked, against, *shown, verdict, ", ".join(found.missing)]


def draw(title: str, headings: list[str], lines: list[list[str]]) -> None:
    """One table on the terminal, as wide as it must be to show every cell."""
    widths = [max(len(line[i]) for line in [headings, *lines]) for i in range(len(headings))]
    if importlib.util.find_spec("rich") is not None:
        from rich.console import Console
        from rich.table import Table

        table = Table(title=title, title_justify="left")
        for i, heading in enumerate(headings):
            table.add_column(heading, justify="right" if i else "left", no_wrap=True)
        for line in lines:
            table.add_row(*line)
        console = Console()
        Console(width=max(console.width, sum(widths) + 3 * len(widths) + 1)).print(table)
        return
    print(f"\n{title}")
    for line in [headings, *lines]:
        print("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())


def provenance(document: Document) -> str:
    """One sentence on machine, threads and versions."""
    machine, settings = document["machine"], document["settings"]
    versions = ", ".join(f"{name} {v}" for name, v in document["versions"].items())
    return (
        f"{machine['processor']}, {settings['threads']} threads, float32, "
        f"Python {machine['python']}, {machine['compiler']}; {versions}."
    )


def markdown(document: Document) -> str:
    """The medians of all workloads as one table for README; ours in the first column."""
    names = list(dict.fromkeys(r["peer"] for w in document["workloads"] for r in w["rows"]))
    lines = ["| work | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for workload in document["workloads"]:
        medians = {row["peer"]: row["median"] for row in workload["rows"]}
        found = [duration(medians.get(name)) for name in names]
        lines.append(f"| {workload['title']} | " + " | ".join(found) + " |")
    return "\n".join([*lines, "", f"Medians. {provenance(document)}"])
