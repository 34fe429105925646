"""The paths of a compiled function: which trace to try next when one strayed.

All traces of a key belong to one function, which reads values in an order that depends on nothing
but what it read before. So a trace that got as far as predicate number n and found another value
there tells what every path through this state begins with. Start reading at `replay`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tracegrad.runtime.executable import Strayed
from tracegrad.tracer.launcher import FAULT, MISS

if TYPE_CHECKING:
    from tracegrad.tracer.trace import Trace

Launch = Callable[[Callable[..., Any], Sequence[Any]], Any]


class Outcome:
    """What trying the traces came to.

    Attributes:
        trace, result: the one that was replayed, or None.
        strayed: the last one that strayed, and where.
        fault: whether one found values with which eager mode raises an error.
    """

    __slots__ = ("trace", "result", "strayed", "fault")

    def __init__(self) -> None:
        self.trace: Trace | None = None
        self.result: Any = None
        self.strayed: tuple[Trace, Strayed] | None = None
        self.fault = False


def replay(
    traces: Sequence[Trace],
    leaves: Sequence[Any],
    launch: Launch,
    tried: tuple[Trace, Any] | None = None,
) -> Outcome:
    """Launch the first trace that fits, passing over those that begin in another way.

    Args:
        tried: a trace that has been launched, and what came of it.
    """
    outcome = Outcome()
    begins: tuple[bytes, ...] = ()
    for trace in traces:
        if begins and trace.beginning(len(begins)) != begins:
            continue
        if tried is not None and trace is tried[0]:
            result = tried[1]
        else:
            result = launch(trace.launch, leaves)
        if result is MISS:
            continue
        if result is FAULT:
            outcome.fault = True
            continue
        if type(result) is Strayed:
            outcome.strayed = trace, result
            begins = (*trace.beginning(result.number), trace.key_of(result))
            continue
        outcome.trace, outcome.result = trace, result
        break
    return outcome
