"""What tracegrad means to reach, and whether a measurement shows it. Start reading at `judge`.

A target is a ratio: a peer's time divided by tracegrad's, of the same row of the same run. Times of
two runs are not compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

OURS = "tracegrad"
COMPILERS = ("torch", "torch.compile", "jax", "pytensor", "pytensor-c")
"""The peers that differentiate and are not Dr.Jit; NumPy's derivatives are written by hand."""


@dataclass(frozen=True)
class Target:
    """One line of the list.

    Attributes:
        work: a workload's name, or with `call` an entry of "Calls".
        peers: those that are meant; the nearest decides. Empty where `seconds` are the target.
        ratio: the least accepted time of a peer divided by tracegrad's; 1 is "ahead of".
        seconds: the largest accepted time of tracegrad.
    """

    work: str
    peers: tuple[str, ...] = ()
    ratio: float = 1.0
    seconds: float | None = None
    call: bool = False


TARGETS = (
    Target("chain", seconds=5e-6),
    Target("chain", ("jax",)),
    Target("pointwise", ("drjit",), 2),
    Target("pointwise", COMPILERS, 8),
    Target("black_scholes", ("drjit",), 2),
    Target("pairwise", ("jax",), 10),
    Target("layer_norm", ("torch",), 2),
    Target("tiny_model", ("jax",), 2),
    Target("mlp", ("jax", "torch")),
    Target("gpt_block", ("torch.compile",)),
    Target("lenet", ("torch",), 2),
    Target("rosenbrock", ("jax",)),
    Target("doubling loop", ("torch",), 10, call=True),
)


@dataclass(frozen=True)
class Judgement:
    """A target beside what was measured.

    Attributes:
        nearest: the peer with the smallest ratio of medians; empty where none was measured.
        median, minimum: that ratio, and the ratio of the minima; tracegrad's seconds where these
            are the target. None where it was not measured.
        missing: what was not measured of what the target names.
    """

    target: Target
    nearest: str
    median: float | None
    minimum: float | None
    missing: tuple[str, ...]

    @property
    def met(self) -> bool | None:
        """By the medians; None where what is missing could change the answer."""
        if self.median is None:
            return None
        if self.target.seconds is not None:
            return self.median <= self.target.seconds
        if self.median < self.target.ratio:
            return False
        return None if self.missing else True


def times(document: dict[str, Any], target: Target) -> dict[str, tuple[float, float]]:
    """Median and least seconds per peer of the target's work, where they were measured."""
    if target.call:
        calls = document.get("calls") or {}
        entries = {peer: found.get(target.work) for peer, found in calls.items()}
    else:
        rows = [w["rows"] for w in document["workloads"] if w["name"] == target.work]
        entries = {row["peer"]: row for row in (rows[0] if rows else []) if row["samples"]}
    return {peer: (e["median"], e["minimum"]) for peer, e in entries.items() if e}


def judge(document: dict[str, Any]) -> list[Judgement]:
    """Hold every target against a measurement."""
    return [judgement(target, times(document, target)) for target in TARGETS]


def judgement(target: Target, found: dict[str, tuple[float, float]]) -> Judgement:
    """One target against the median and least seconds of the peers."""
    missing = tuple(name for name in (OURS, *target.peers) if name not in found)
    if OURS in missing:
        return Judgement(target, "", None, None, missing)
    ours = found[OURS]
    if target.seconds is not None:
        return Judgement(target, "", *ours, missing)
    ratios = [
        (found[name][0] / ours[0], found[name][1] / ours[1], name)
        for name in target.peers
        if name in found
    ]
    if not ratios:
        return Judgement(target, "", None, None, missing)
    median, minimum, nearest = min(ratios)
    return Judgement(target, nearest, median, minimum, missing)
