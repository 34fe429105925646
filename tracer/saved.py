"""What the user's hooks make of the tensors that the tape keeps.

Between `saved_tensors_hooks(pack, unpack)` each tensor that a node would keep is given to `pack`;
the node keeps what that returns, and gives it to `unpack` when its backward needs the tensor.
Start reading at `pack`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tracegrad.ir.errors import GradientError, OperandError
from tracegrad.tracer.state import state

if TYPE_CHECKING:
    from tracegrad.tracer.hooks import Hook
    from tracegrad.tracer.tensor import Tensor

_WRITTEN = (
    "A saved tensor pack hook is modifying its input in place. Tensors provided as input to pack "
    "hook cannot be modified by in-place operations as this can lead to unexpected side-effects. "
    "Please open an issue if you need to perform in-place operations on the input to a pack hook."
)


Companions = tuple[tuple[Any, Any], ...]  # a `Lockstep` and the companion it had for the tensor


class Recomputed:
    """What a pack hook returns that stands for a value which the backward computes again."""

    __slots__ = ()


class Packed:
    """What a pack hook returned for one tensor, and the hook that undoes it."""

    __slots__ = ("value", "hook", "companions")

    def __init__(self, value: Any, hook: Hook) -> None:
        self.value = value
        self.hook = hook
        self.companions: Companions = ()

    def unpack(self) -> Tensor:
        """The tensor again.

        Raises:
            OperandError: the hook returned something else.
        """
        from tracegrad.tracer.tensor import Tensor

        found = self.hook(self.value)
        if not isinstance(found, Tensor):
            raise OperandError(
                "Output of saved tensor unpack_hook expected to be a Tensor but got result of type "
                f"{type(found).__name__}"
            )
        for lockstep, companion in self.companions:  # hooks see values: tangents and batches stay
            lockstep.accompany(found, companion)
        return found


def pack(tensor: Tensor) -> Packed:
    """Give a tensor to the innermost pack hook: see `pack_with`."""
    return pack_with(tensor, *state.saved_hooks[-1])


def pack_with(tensor: Tensor, hook: Hook, unpack: Hook) -> Packed:
    """Give a tensor to a pack hook, with grad mode off.

    Raises:
        GradientError: the hook wrote to it.
    """
    version = tensor._storage.version
    before = state.grad_enabled
    state.grad_enabled = False
    try:
        value = hook(tensor)
    finally:
        state.grad_enabled = before
    if tensor._storage.version != version:
        raise GradientError(_WRITTEN)
    made = Packed(value, unpack)
    if state.recorder is not None:
        made.companions = state.recorder.companions(tensor)
    return made
