"""Directional derivatives from two backward passes.

u^T J is linear in u, so its derivative with respect to u, in direction v, is J v. The first pass is
run once; each direction costs one more pass. Start reading at `Pushforward`.
"""

from __future__ import annotations

from collections.abc import Sequence

from tracegrad.autograd import functional_checks as checks
from tracegrad.autograd.functional_checks import Tensors
from tracegrad.tracer.factories import zeros_like
from tracegrad.tracer.tensor import Tensor


class Pushforward:
    """The map from tangents of `inputs` to tangents of `outputs`, which were computed from them.

    Attributes:
        seeds: the u of the first pass, one per output that varies.
    Source: J. Townsend, "A new trick for calculating Jacobian vector products", 2017.
    """

    def __init__(self, outputs: Tensors, inputs: Tensors) -> None:
        self.outputs = outputs
        self._varying = tuple(i for i, x in enumerate(outputs) if x.requires_grad)
        chosen = tuple(outputs[i] for i in self._varying)
        self.seeds = tuple(zeros_like(x, requires_grad=True) for x in chosen)
        self._reverse = checks.gradients(chosen, inputs, self.seeds, create_graph=True)

    def __call__(
        self, tangents: Sequence[Tensor | None], create_graph: bool = False
    ) -> checks.Gradients:
        """The tangent of each output, of its shape and dtype; None where it is zero.

        Args:
            tangents: one per input, of its shape; None means zero.
        """
        pairs = [(r, t) for r, t in zip(self._reverse, tangents, strict=True) if t is not None]
        found = checks.gradients(
            tuple(r for r, _ in pairs), self.seeds, [t for _, t in pairs], create_graph,
            retain_graph=True,
        )  # fmt: skip
        result: list[Tensor | None] = [None] * len(self.outputs)
        for i, tangent in zip(self._varying, found, strict=True):
            result[i] = tangent
        return tuple(result)
