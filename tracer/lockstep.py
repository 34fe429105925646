"""Companions: tensors computed in step with others, as forward mode and batching need them.

A `Lockstep` is a recorder that keeps a *companion* beside some of the tensors that it sees: the
tangent of a value, or the values of a whole batch. It hears of every operation when that is done,
and at once computes the companion of the result from those of the operands. What it computes goes
through the dispatcher as everything else does, one recorder further out: so it is differentiated
by the tape, captured by `compile`, and has companions of its own in an enclosing lockstep.

A companion belongs to an array, not to a `Tensor`: the tape keeps arrays, and makes tensors over
them anew in the backward. Start reading at `Lockstep`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from tracegrad.ir.errors import UnsupportedError
from tracegrad.ir.primitive import bind
from tracegrad.tracer.capture_hook import Recorder, recording
from tracegrad.tracer.state import state
from tracegrad.tracer.tensor import Tensor
from tracegrad.tracer.views import Region

if TYPE_CHECKING:
    from tracegrad.ir.primitive import Primitive
    from tracegrad.tracer.function_node import FunctionNode
    from tracegrad.tracer.random import Generator
    from tracegrad.tracer.tape import BackwardNode


_NONE = (None, None)


class Lockstep(Recorder):
    """Base class: keeps companions, and passes what it hears on to the recorder outside.

    Attributes:
        above: the recorder outside, or None.
    """

    def __init__(self, connected: bool | None = None) -> None:
        """Make it where it will be used: it remembers its surroundings.

        Args:
            connected: whether companions get a history, whatever a backward inside does with the
                grad mode; None: as the grad mode says at each operation.
        """
        self.above = state.recorder
        self._transform = state.transform
        self._connected = connected
        self._run = state.run
        self._kept: dict[int, tuple[weakref.ref[np.ndarray], Tensor | None]] = {}

    # ---- companions -----------------------------------------------------------------------------

    def companion(self, x: Any) -> Tensor | None:
        """The companion of a tensor, or None."""
        if not isinstance(x, Tensor):
            return None
        found = self._kept.get(id(x._array))
        if found is not None:
            return found[1]
        view = x._view
        above = self._kept.get(id(view.base._array), _NONE)[1] if view is not None else None
        if view is None or above is None or not view.chain:
            return None
        with self.outside():  # the base got its companion after the view was made
            made = self.along(above, view.chain)
        self.accompany(x, made)
        return made

    def accompany(self, x: Tensor, companion: Tensor | None) -> None:
        """Give `x` a companion, for as long as its array lives; None: it has none of its own.

        Without this, a view has the companion that follows from its base's.
        """
        key, kept = id(x._array), self._kept

        def forget(_: object) -> None:
            kept.pop(key, None)

        kept[key] = (weakref.ref(x._array, forget), companion)

    def along(self, companion: Tensor, chain: Sequence[Any]) -> Tensor:
        """The companion of a view, from that of its base."""
        for op, params, _ in chain:
            companion = (
                self.region(op, companion, params)
                if isinstance(op, Region)
                else (self.moved(op, companion, params))
            )
        return companion

    def moved(self, op: Primitive, companion: Tensor, params: Mapping[str, Any]) -> Tensor:
        """The companion of a movement operation's result: of a tangent, its tangent."""
        made: Tensor = bind(op, (companion,), params)
        return made

    def region(self, region: Region, companion: Tensor, params: Mapping[str, Any]) -> Tensor:
        """The companion of a region of a tensor."""
        from tracegrad.tracer.regions import lay

        made: Tensor = lay(region, companion, dict(params))
        return made

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Compute companions: for the recorder outside, with the history that they should have."""
        before, inside = state.grad_enabled, state.transform
        state.transform = self._transform
        if self._connected is not None:
            inner_backward = state.run is not self._run
            state.grad_enabled = self._connected and (before or inner_backward)
        try:
            with recording(self.above):
                yield
        finally:
            state.grad_enabled, state.transform = before, inside

    def keep(self, out: Tensor, made: Tensor, sources: Sequence[Tensor | None]) -> None:
        """Make `made` the companion of a result: a view as the result is one, else apart."""
        if out._view is None and any(
            s is not None and np.may_share_memory(made._array, s._array) for s in sources
        ):
            made = made.clone()
        self.accompany(out, made)

    def part_of_base(self, name: str, target: Tensor, companion: Tensor) -> None:
        """Refuse a write through a view whose companion is no view of the base's.

        Raises:
            UnsupportedError: it is not.
        """
        view = target._view
        base = self.companion(view.base) if view is not None else None
        if base is not None and not np.may_share_memory(base._array, companion._array):
            raise UnsupportedError(
                f"{name}: writes through a view whose batch or tangent had to be copied, because its "
                "memory is laid out otherwise; write to the base, or clone() the view"
            )

    # ---- the protocol: all of it goes on to the recorder outside --------------------------------

    def record(
        self, op: Primitive, operands: Sequence[Any], params: Mapping[str, Any], out: Tensor
    ) -> None:
        """Pass it on."""
        if self.above is not None:
            self.above.record(op, operands, params, out)

    def record_inplace(self, name: str, target: Tensor, value: Tensor) -> None:
        """Pass it on."""
        if self.above is not None:
            self.above.record_inplace(name, target, value)

    def value_read(self, tensor: Tensor, what: str) -> None:
        """Pass it on."""
        if self.above is not None:
            self.above.value_read(tensor, what)

    def constant(self, tensor: Tensor) -> None:
        """Pass it on."""
        if self.above is not None:
            self.above.constant(tensor)

    def alias(self, made: Tensor, tensor: Tensor) -> None:
        """Pass it on, unless it stands for many; where the array is another, it gets the companion
        too.
        """
        if self.above is not None and not self.varies(tensor):
            self.above.alias(made, tensor)
        companion = self.companion(tensor)
        if companion is not None and made._array is not tensor._array:
            self.accompany(made, companion)

    def laid_over(
        self, taken: Tensor, source: Tensor, region: Region, params: Mapping[str, Any]
    ) -> None:
        """Pass it on, and lay the companion over that of the source."""
        companion = self.companion(source)
        if companion is not None:
            with self.outside():
                self.accompany(taken, self.region(region, companion, params))
        elif self.above is not None:
            self.above.laid_over(taken, source, region, params)

    def companions(self, tensor: Tensor) -> tuple[tuple[Any, Tensor], ...]:
        """This one's, and those of the recorders outside."""
        mine = self.companion(tensor)
        found = () if self.above is None else self.above.companions(tensor)
        return found if mine is None else ((self, mine), *found)

    def check_write(self, name: str, target: Tensor, value: Tensor) -> None:
        """Pass it on."""
        if self.above is not None:
            self.above.check_write(name, target, value)

    def moves(self, name: str, tensor: Tensor) -> None:
        """Refuse it for tensors with a companion, which would keep its shape.

        Raises:
            UnsupportedError: there is one.
        """
        if self.companion(tensor) is not None:
            raise UnsupportedError(
                f"{name}() changes the shape or memory of a tensor that varies inside a transform; use "
                "the function that returns a new tensor or view"
            )
        if self.above is not None:
            self.above.moves(name, tensor)

    def has_moved(self, tensor: Tensor) -> None:
        """Pass it on."""
        if self.above is not None:
            self.above.has_moved(tensor)

    def for_function(self, node: FunctionNode, args: Sequence[Any]) -> Recorder | None:
        """The recorder outside: `function` makes the companions."""
        return None if self.above is None else self.above.for_function(node, args)

    def function(self, node: FunctionNode, args: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Pass it on."""
        if self.above is not None:
            self.above.function(node, args, outputs)

    def varies(self, tensor: Tensor) -> bool:
        """As outside."""
        return self.above is not None and self.above.varies(tensor)

    def shown(self, tensor: Tensor) -> str | None:
        """As outside."""
        return None if self.above is None else self.above.shown(tensor)

    def random_state(self, tensor: Tensor, generator: Generator) -> None:
        """Pass it on."""
        if self.above is not None:
            self.above.random_state(tensor, generator)

    def backward(self, nodes: Sequence[BackwardNode | None], into_leaves: bool) -> None:
        """Pass it on."""
        if self.above is not None:
            self.above.backward(nodes, into_leaves)

    def requires_grad(self, tensor: Tensor, flag: bool) -> None:
        """Pass it on, unless it stands for many."""
        if self.above is not None and not self.varies(tensor):
            self.above.requires_grad(tensor, flag)

    def grad_read(self, tensor: Tensor) -> None:
        """Pass it on."""
        if self.above is not None:
            self.above.grad_read(tensor)

    def grad_set(self, tensor: Tensor, value: Tensor | None) -> None:
        """Pass it on."""
        if self.above is not None:
            self.above.grad_set(tensor, value)

    def note(self, what: str, tensor: Tensor | None = None) -> None:
        """Pass it on."""
        if self.above is not None:
            self.above.note(what, tensor)


def own_array(out: Tensor, operands: Sequence[Any]) -> None:
    """Tell a result by its array from an operand over the same one (`detach()` makes such)."""
    if any(isinstance(x, Tensor) and x._array is out._array for x in operands):
        out._array = out._array.view()
