"""The protocol between the eager dispatcher and whoever records what it does.

While a `Recorder` is installed in a thread, every eager operation of that thread tells it what
happened. The dispatcher reads `active()` once per operation; None, the normal case, costs nothing
more. Start reading at `Recorder`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from tracegrad.tracer.state import state, watching

if TYPE_CHECKING:
    from tracegrad.ir.primitive import Primitive
    from tracegrad.tracer.callbacks import Callback
    from tracegrad.tracer.capture_state import StateReads
    from tracegrad.tracer.function_node import FunctionNode
    from tracegrad.tracer.random import Generator
    from tracegrad.tracer.saved import Recomputed
    from tracegrad.tracer.tape import BackwardNode
    from tracegrad.tracer.tensor import Tensor
    from tracegrad.tracer.views import Region


class Recorder:
    """Base class of recorders; each method is called after the fact, in program order.

    An in-place operation arrives as the functional operations that compute the new value (through
    `record`), followed by one `record_inplace` that says where the value was written. `labels` are
    the names of the profiler's blocks that are open.
    """

    labels: tuple[str, ...] = ()

    def record(
        self, op: Primitive, operands: Sequence[Any], params: Mapping[str, Any], out: Tensor
    ) -> None:
        """`out = op(*operands, **params)` was computed; operands are Tensors or NumPy scalars."""
        raise NotImplementedError

    def record_inplace(self, name: str, target: Tensor, value: Tensor) -> None:
        """`target`'s memory now holds `value` (same shape and dtype), written by `name`.

        Where `target` is a view, `target._view` has the base and the chain of movement operations
        that lead from the base to it.
        """
        raise NotImplementedError

    def value_read(self, tensor: Tensor, what: str) -> None:
        """Python looked at the values of `tensor`; `what` is "item", "bool", "numpy" and so on."""
        raise NotImplementedError

    def constant(self, tensor: Tensor) -> None:
        """`tensor` was made from data that no recorded operation computed."""
        raise NotImplementedError

    def random_state(self, tensor: Tensor, generator: Generator) -> None:
        """`tensor`, int64[2] (seed, counter), was drawn from `generator`, whose counter moved."""
        raise NotImplementedError

    def recorded(self) -> int:
        """How many operations have been recorded."""
        return 0

    def by_elements(self, first: int) -> bool:
        """Whether all operations from number `first` on go element by element."""
        return True

    def alias(self, made: Tensor, tensor: Tensor) -> None:
        """`made` is another object with the value of `tensor`: no operation, no cut of history."""

    def laid_over(
        self, taken: Tensor, source: Tensor, region: Region, params: Mapping[str, Any]
    ) -> None:
        """`taken`, which recorded operations took of `source`, is a view of it from now on."""

    def companions(self, tensor: Tensor) -> tuple[tuple[Any, Tensor], ...]:
        """What goes in step with `tensor`: pairs of a lockstep and the companion it keeps."""
        return ()

    def check_write(self, name: str, target: Tensor, value: Tensor) -> None:
        """`name` is about to write `value` to `target`: refuse what could not be followed."""

    def moves(self, name: str, tensor: Tensor) -> None:
        """`name` is about to change shape or memory of `tensor` in place."""
        self.note(f"{name}()", tensor)

    def has_moved(self, tensor: Tensor) -> None:
        """`tensor` has another shape or memory now."""

    def for_function(self, node: FunctionNode, args: Sequence[Any]) -> Recorder | None:
        """Who records the body of the `forward` that a user's `Function` is about to run."""
        return self

    def function(self, node: FunctionNode, args: Sequence[Any], outputs: Sequence[Any]) -> None:
        """A `Function` that the user wrote has run: `outputs` are what its caller gets."""

    def checkpoint(self, repeatable: bool) -> AbstractContextManager[None] | None:
        """A function is about to run of which a checkpoint keeps nothing for the backward.

        Args:
            repeatable: run again, it draws the random numbers of the global generator once more.
        Returns:
            The block in which to run it, whose values a replay computes again; None where it is noted.
        """
        self.note("checkpoint")
        return None

    def recomputed(self, place: Recomputed, tensor: Tensor) -> None:
        """`place` is kept by a node in place of `tensor`."""

    def varies(self, tensor: Tensor) -> bool:
        """Whether `tensor` stands for several values, so that Python must not read it as one."""
        return False

    def shown(self, tensor: Tensor) -> str | None:
        """What `repr(tensor)` should be, where it is not that of its values."""
        return None

    def backward(self, nodes: Sequence[BackwardNode | None], into_leaves: bool) -> None:
        """A backward from `nodes` is about to run; `into_leaves` if it changes `.grad`."""
        self.note("backward")

    def requires_grad(self, tensor: Tensor, flag: bool) -> None:
        """`tensor.requires_grad` is about to change to `flag`."""
        self.note("requires_grad_", tensor)

    def grad_read(self, tensor: Tensor) -> None:
        """Something depends on the `.grad` that `tensor` has now, or on its not having one."""
        self.note(".grad", tensor)

    def grad_set(self, tensor: Tensor, value: Tensor | None) -> None:
        """`tensor.grad` is about to be `value`."""
        self.note(".grad", tensor)

    def callback(self, what: str, callback: Callback, tensors: Sequence[Tensor]) -> None:
        """`callback` is about to be called with `tensors`, by the user's wish in every replay."""
        self.note(f"{what}() in a transform", None)

    def follows(self, owner: object, what: str) -> StateReads | None:
        """Who reads for `what`, a function of the library, what its object `owner` keeps.

        None where `what` may read on its own: each run of it makes `owner` anew, or is eager.
        """
        self.note(what)
        return None

    def note(self, what: str, tensor: Tensor | None = None) -> None:
        """Something else worth knowing happened: "backward", ".grad", "requires_grad_"."""
        raise NotImplementedError


class Followed:
    """Base of the library's objects that read what they keep through the recorder (`follows`).

    A compiled function takes one as an argument, by identity. Its methods in `followed` may be
    called in compiled functions; what others would read or change goes unseen.
    """

    followed: ClassVar[frozenset[str]] = frozenset()


def active() -> Recorder | None:
    """The recorder of this thread, or None."""
    return state.recorder


@contextmanager
def recording(recorder: Recorder | None) -> Iterator[Recorder | None]:
    """Install `recorder` in this thread for the length of a `with` block (None: pause)."""
    before = state.recorder
    token = object()
    watching.append(token)
    state.recorder = recorder
    try:
        yield recorder
    finally:
        state.recorder = before
        watching.remove(token)
