"""Where the outputs of a graph are found once its kernels have run. Start reading at `passed_through`."""

from __future__ import annotations

from collections.abc import Container, Sequence

from tracegrad.ir.graph import Graph, Value

Place = tuple[str, int]
"""("array", k): the k-th array that a launch makes; ("input", i): the graph's i-th input."""


def passed_through(graph: Graph) -> tuple[tuple[Value, ...], list[Place]]:
    """The distinct computed outputs, and the place of each output."""
    inputs = {v: k for k, v in enumerate(graph.inputs)}
    distinct: list[Value] = []
    places: list[Place] = []
    for v in graph.outputs:
        if v in inputs:
            places.append(("input", inputs[v]))
            continue
        if v not in distinct:
            distinct.append(v)
        places.append(("array", distinct.index(v)))
    return tuple(distinct), places


def put_last(
    distinct: Sequence[Value], places: Sequence[Place], kept: Container[int]
) -> tuple[tuple[Value, ...], list[Place], int]:
    """Put the arrays that nobody keeps behind the others: they are only checked.

    Args:
        kept: numbers of the outputs that somebody keeps.
    Returns:
        As `passed_through`, and how many arrays are kept.
    """
    first = {at for k, (kind, at) in enumerate(places) if kind == "array" and k in kept}
    order = [*sorted(first), *(k for k in range(len(distinct)) if k not in first)]
    new = {old: k for k, old in enumerate(order)}
    moved = [(kind, new[at] if kind == "array" else at) for kind, at in places]
    return tuple(distinct[k] for k in order), moved, len(first)
