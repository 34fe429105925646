"""What a captured run does to `.grad` of tensors from outside. Start reading at `Gradient`."""

from __future__ import annotations

from dataclasses import dataclass

from tracegrad.tracer.tensor import Tensor


@dataclass
class Gradient:
    """The `.grad` of a leaf from outside, as far as a run has to do with it.

    Attributes:
        leaf: the tensor, input number `source`.
        initial: its gradient before the run.
        read: whether the run depends on what it was.
    """

    leaf: Tensor
    source: int
    initial: Tensor | None
    read: bool


@dataclass(frozen=True)
class GradientChange:
    """What `.grad` of input number `source` is after a replay.

    `kind` is "none", "output" or "input", `at` the number of the output or input.
    """

    source: int
    kind: str
    at: int = 0


def unhooked(leaf: Tensor) -> bool:
    """Whether no hook waits for the gradient of a leaf."""
    node = leaf._accumulator() if leaf._accumulator is not None else None
    return node is None or node.hooks is None
