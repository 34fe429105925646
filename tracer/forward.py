"""Forward mode: a tangent in step with each value that depends on the inputs that vary.

`Tangents` is the lockstep whose companions are tangents; `func.jvp`, `func.jacfwd` and
`autograd.forward_ad` run functions under it. Start reading at `Tangents.record`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tracegrad.ir.errors import ShapeError, UnsupportedError
from tracegrad.ir.passes.jvp import tangent_of_result
from tracegrad.tracer import inplace, printing
from tracegrad.tracer.function_forward import tangents_of_outputs
from tracegrad.tracer.lockstep import Lockstep, own_array
from tracegrad.tracer.shapes import view_as
from tracegrad.tracer.state import state
from tracegrad.tracer.tensor import Tensor, alias, literal

if TYPE_CHECKING:
    from tracegrad.ir.primitive import Primitive
    from tracegrad.tracer.function_node import FunctionNode
    from tracegrad.tracer.views import Region


_MEMORY = ("numpy", "__array__", "__dlpack__")


class Tangents(Lockstep):
    """Carries tangents along while it is the recorder.

    A value without a companion does not vary: its tangent is zero.
    """

    def dual(self, primal: Tensor, tangent: Tensor) -> Tensor:
        """Another tensor over the memory of `primal`, which varies in direction `tangent`.

        The tangent is used as it is where it is laid out in memory as the primal, else copied.

        Raises:
            ShapeError: the tangent has another shape.
        """
        if tangent._array.shape != primal._array.shape:
            raise ShapeError(
                "Trying to set a forward gradient that has a different size than that of the "
                f"original Tensor, this is not supported. Tensor is of size {list(primal.shape)} "
                f"while the given forward gradient is of size {list(tangent.shape)}."
            )
        with self.outside():
            if tangent.dtype is not primal.dtype:
                tangent = tangent.to(primal.dtype)
            if primal._storage.inference and not state.inference:
                primal = alias(primal)
            made = view_as(primal, primal)
            tangent = laid_out_as(tangent, primal)
        self.accompany(made, tangent)
        return made

    def record(
        self, op: Primitive, operands: Sequence[Any], params: Mapping[str, Any], out: Tensor
    ) -> None:
        """Compute the tangent of a result."""
        super().record(op, operands, params, out)
        own_array(out, operands)
        tangents = [self.companion(x) for x in operands]
        if all(dx is None for dx in tangents) or not out.dtype.is_floating_point:
            return
        if state.inference and self._connected is None:  # of `forward_ad`, as in PyTorch
            return
        with self.outside():
            made = tangent_of_result(op, operands, params, out, tangents)
            if made is None and any(
                dx is not None and op.has_history(i) for i, dx in enumerate(tangents)
            ):
                made = literal(np.zeros_like(out._array))
            if made is not None:
                self.keep(out, made, tangents)

    def value_read(self, tensor: Tensor, what: str) -> None:
        """Refuse to hand out memory of a tensor that varies; numbers may be read.

        Raises:
            UnsupportedError: inside `jvp` and `jacfwd`. In a level of `forward_ad` it is allowed,
                as in PyTorch.
        """
        if self._connected is not None and what in _MEMORY and self.companion(tensor) is not None:
            raise UnsupportedError(
                f"{what}() of a tensor that varies inside jvp or jacfwd: what NumPy computes has no "
                "tangent; detach() it, or write an autograd.Function with a jvp"
            )
        super().value_read(tensor, what)

    def record_inplace(self, name: str, target: Tensor, value: Tensor) -> None:
        """Write the tangent of the value where the tangent of the target is."""
        super().record_inplace(name, target, value)
        have, new = self.companion(target), self.companion(value)
        if have is None and new is None:
            return
        with self.outside():
            if have is None:
                have = self._zero(target)
            if new is None:
                new = literal(np.zeros((), have.dtype.numpy), have).expand(have._array.shape)
            self.part_of_base(name, target, have)
            inplace.write(name, have, new)

    def _zero(self, target: Tensor) -> Tensor:
        """A tangent of zeros for a tensor that had none, and for the base of a view."""
        base = target if target._view is None else target._view.base
        self.accompany(base, literal(np.zeros_like(base._array)))
        made = self.companion(target)
        assert made is not None, "a view follows its base"
        return made

    def laid_over(
        self, taken: Tensor, source: Tensor, region: Region, params: Mapping[str, Any]
    ) -> None:
        """Lay the tangent over that of the source, and the value outside."""
        super().laid_over(taken, source, region, params)
        if self.above is not None and self.companion(source) is not None:
            self.above.laid_over(taken, source, region, params)

    def function(self, node: FunctionNode, args: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Ask a `Function` that the user wrote for the tangents of its outputs."""
        super().function(node, args, outputs)
        tangents = [self.companion(x) for x in args]
        if all(dx is None for dx in tangents):
            return
        with self.outside():
            made = tangents_of_outputs(node, args, tangents, outputs)
            for out, dy in zip(outputs, made, strict=True):
                if dy is not None:
                    self.keep(out, dy, tangents)

    def shown(self, tensor: Tensor) -> str | None:
        """With the tangent behind it."""
        tangent = self.companion(tensor)
        if tangent is None:
            return super().shown(tensor)
        with self.outside():
            return printing.text(tensor, extra=[f"tangent={tangent}"])


def laid_out_as(tangent: Tensor, primal: Tensor) -> Tensor:
    """`tangent`, or a copy of it, with the strides of `primal`: views of both then correspond."""
    have, want = tangent._array, primal._array
    if have.strides == want.strides or have.size == 0:
        return tangent
    order = sorted(range(want.ndim), key=lambda d: -abs(want.strides[d]))
    back = [order.index(d) for d in range(want.ndim)]
    return tangent.permute(*order).clone().permute(*back) if want.ndim else tangent.clone()
