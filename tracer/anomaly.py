"""Anomaly mode: which line of the forward a failing step of the backward belongs to.

While it is on, each new node of the tape keeps the traceback of its making, and the engine, when a
node raises or yields NaN, says which node it was and shows that traceback. Compiled functions run
eagerly meanwhile, so that every operation has its own node. Start reading at `explain`.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tracegrad.ir.errors import GradientError
from tracegrad.ir.location import Location, here, is_internal, user_stacklevel
from tracegrad.runtime.cuda.array import host
from tracegrad.tracer.state import state

if TYPE_CHECKING:
    from tracegrad.tracer.tape import BackwardNode
    from tracegrad.tracer.tensor import Tensor


class _Anomaly:
    """The mode, of the whole process as in PyTorch: backwards may run in other threads."""

    enabled: bool = False
    check_nan: bool = True


anomaly = _Anomaly()


def set_mode(enabled: bool, check_nan: bool) -> None:
    """Switch the mode, telling a recorder."""
    if state.recorder is not None:
        state.recorder.note("anomaly mode")
    anomaly.enabled, anomaly.check_nan = bool(enabled), bool(check_nan)


def remember(node: BackwardNode) -> None:
    """Keep with a new node where it was made, and the node whose backward made it."""
    frames = traceback.extract_stack(sys._getframe(1))
    kept = [f for f in frames if not is_internal(f.filename)]
    node.metadata["traceback_"] = traceback.format_list(kept)
    node.metadata["location_"] = here()
    if state.run is not None and state.run.node is not None:
        node.metadata["parent_"] = state.run.node


def check(node: BackwardNode, parts: Sequence[Tensor | None]) -> None:
    """Refuse NaN among a node's results.

    Raises:
        GradientError: there is one.
    """
    if not anomaly.check_nan:
        return
    for k, part in enumerate(parts):
        if part is not None and part.dtype.is_floating_point and np.isnan(host(part._array)).any():
            place: Location | None = node.metadata.get("location_")
            where = f" Recorded at {place} ({place.text})." if place is not None else ""
            raise GradientError(
                f"Function '{node.name()}' returned nan values in its {k}th output.{where}"
            )


def explain(node: BackwardNode) -> None:
    """Warn with the traceback of the forward call that made `node`, and of those behind it."""
    lines: Any = node.metadata.get("traceback_")
    if lines is None:
        warnings.warn(
            f"Error detected in {node.name()}. No forward pass information available. Enable "
            "detect anomaly during forward pass for more information.",
            UserWarning, stacklevel=user_stacklevel(),
        )  # fmt: skip
        return
    warnings.warn(
        f"Error detected in {node.name()}. Traceback of forward call that caused the error:\n"
        + "".join(lines), UserWarning, stacklevel=user_stacklevel(),
    )  # fmt: skip
    parent = node.metadata.get("parent_")
    while parent is not None:
        lines = parent.metadata.get("traceback_")
        if lines is None:
            text = (
                f"Previous calculation was induced by {parent.name()}. No forward pass information "
                "available. Enable detect anomaly during forward pass for more information."
            )
        else:
            text = (
                f"\n\nPrevious calculation was induced by {parent.name()}. Traceback of forward "
                "call that induced the previous calculation:\n" + "".join(lines)
            )
        warnings.warn(text, UserWarning, stacklevel=user_stacklevel())
        parent = parent.metadata.get("parent_")
