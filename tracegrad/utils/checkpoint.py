"""Checkpointing: keep no intermediate values of a function; compute them again in the backward.

While the function runs, a placeholder is kept for each value that the tape would keep. The first
placeholder that the backward needs has the function run once more, up to the last of them, and the
values that the tape would keep are matched to the placeholders in order. Start reading at
`checkpoint`, then `_Frame`.
"""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable
from typing import Any

from tracegrad.autograd.graph import saved_tensors_hooks
from tracegrad.ir.errors import GradientError
from tracegrad.tracer import tape
from tracegrad.tracer.grad_mode import enable_grad
from tracegrad.tracer.pytree import flatten
from tracegrad.tracer.random import default_generator
from tracegrad.tracer.state import state
from tracegrad.tracer.tensor import Tensor

__all__ = ["CheckpointError", "checkpoint"]

_NOT_PASSED = (
    "torch.utils.checkpoint: the use_reentrant parameter should be passed explicitly. tracegrad "
    "has the variant that use_reentrant=False names, and uses it."
)
_COUNT = (
    "torch.utils.checkpoint: A different number of tensors was saved during the original forward "
    "and recomputation.\nNumber of tensors saved during forward: {old}\nNumber of tensors saved "
    "during recomputation: {new}.\n"
)
_META = (
    "torch.utils.checkpoint: Recomputed values for the following tensors have different metadata "
    "than during the forward pass.\n{lines}.\n"
)
Contexts = tuple[contextlib.AbstractContextManager[Any], contextlib.AbstractContextManager[Any]]


class CheckpointError(GradientError):
    """A checkpointed function did something else when it ran again. Cure: make it repeatable."""


def _no_contexts() -> Contexts:
    return contextlib.nullcontext(), contextlib.nullcontext()


def checkpoint(
    function: Callable[..., Any],
    *args: Any,
    use_reentrant: bool | None = None,
    context_fn: Callable[[], Contexts] = _no_contexts,
    determinism_check: str = "default",
    preserve_rng_state: bool = True,
    early_stop: bool = True,
    **kwargs: Any,
) -> Any:
    """Call `function(*args, **kwargs)` without keeping its intermediate values for the backward.

    The backward runs the function again, so it must do the same again; random numbers of the
    global generator are the same ones. Inside a compiled function the run stays eager.

    Args:
        use_reentrant: False; PyTorch's older variant (True) is not there.
        context_fn: makes two contexts, for the first run and for the second.
        determinism_check: "default" compares shapes and dtypes of the two runs, "none" does not.
        preserve_rng_state: run again with the random numbers of the first run.
        early_stop: end the second run when the last value needed is there.
    Returns:
        What the function returns.
    Raises:
        ValueError: another `determinism_check`.
        NotImplementedError: `use_reentrant=True`.
        CheckpointError: (in the backward) the second run differs from the first.
        GradientError: (in the backward) an argument was overwritten.
    Example:
        >>> import tracegrad as tg
        >>> from tracegrad.utils.checkpoint import checkpoint
        >>> x = tg.tensor([1.0, 2.0], requires_grad=True)
        >>> checkpoint(lambda x: (x * x) * x, x, use_reentrant=False).sum().backward()
        >>> x.grad
        tensor([ 3., 12.])
    """
    if use_reentrant:
        raise NotImplementedError(
            "checkpoint: use_reentrant=True is not supported; pass use_reentrant=False"
        )
    if determinism_check not in ("default", "none"):
        raise ValueError(
            f"determinism_check should be one of ['default', 'none'], but got {determinism_check}"
        )
    if use_reentrant is None:
        warnings.warn(_NOT_PASSED, UserWarning, stacklevel=2)
    if state.recorder is not None:
        state.recorder.note("checkpoint")
    first, second = context_fn()
    if not state.grad_enabled:
        with first:
            return function(*args, **kwargs)
    frame = _Frame(function, args, kwargs, second)
    frame.checked, frame.early_stop = determinism_check == "default", early_stop
    if preserve_rng_state:
        frame.random = default_generator.get_state()
    with frame.first_run(), first:
        return function(*args, **kwargs)


class _Stop(Exception):
    """Ends the second run."""


class _Place:
    """Stands for one value that the tape would have kept; has it again during a backward."""

    __slots__ = ("frame", "number", "values", "__weakref__")

    def __init__(self, frame: _Frame, number: int) -> None:
        self.frame = frame
        self.number = number
        self.values: Any = weakref.WeakKeyDictionary()  # by backward, gone with it


class _Frame:
    """One call of a checkpointed function: how to run it again, and its places."""

    def __init__(
        self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], context: Any
    ) -> None:
        self.function, self.args, self.kwargs, self.context = function, args, kwargs, context
        leaves: list[Any] = []
        flatten((list(args), dict(kwargs)), leaves)
        self.versions = [(x, x._storage.version) for x in leaves if isinstance(x, Tensor)]
        self.places: list[weakref.ref[_Place]] = []
        self.kinds: list[Any] = []
        self.checked = self.early_stop = True
        self.random: Tensor | None = None

    def first_run(self) -> saved_tensors_hooks:
        """Hooks that keep places only."""

        def pack(tensor: Tensor) -> _Place:
            place = _Place(self, len(self.places))
            self.places.append(weakref.ref(place))
            self.kinds.append(_kind(tensor))
            return place

        return saved_tensors_hooks(pack, _value)

    def values(self) -> list[Tensor]:
        """Run the function again, for the values that the tape would keep."""
        for tensor, version in self.versions:
            storage = tensor._storage
            if storage.version != version:
                edge = tape.gradient_edge(tensor)
                raise GradientError(tape._overwritten(storage, version, edge, tensor.type_info))
        found: list[Tensor] = []

        def pack(tensor: Tensor) -> Tensor:
            found.append(tensor.detach())
            if self.early_stop and len(found) == len(self.places):
                raise _Stop
            return found[-1]

        now = default_generator.get_state()
        if self.random is not None:
            default_generator.set_state(self.random)
        try:
            with enable_grad(), saved_tensors_hooks(pack, lambda t: t), self.context:
                self.function(*self.args, **self.kwargs)
        except _Stop:
            pass
        finally:
            if self.random is not None:
                default_generator.set_state(now)
        self._check(found)
        return found

    def _check(self, found: list[Tensor]) -> None:
        if len(found) != len(self.places):
            raise CheckpointError(_COUNT.format(old=len(self.places), new=len(found)))
        lines = [
            f"tensor at position {k}:\nsaved metadata: {old}\nrecomputed metadata: {_kind(new)}"
            for k, (old, new) in enumerate(zip(self.kinds, found, strict=True))
            if old != _kind(new)
        ]
        if self.checked and lines:
            raise CheckpointError(_META.format(lines="\n".join(lines)))


def _kind(tensor: Tensor) -> dict[str, Any]:
    return {"shape": tensor.shape, "dtype": tensor.dtype, "device": tensor.device}


def _value(place: _Place) -> Tensor:
    """What a place stands for; the first place asked for in a backward fills all others."""
    run = state.run
    if run is None:  # outside a backward nothing says how long to keep the others
        return place.frame.values()[place.number]
    found: Tensor | None = place.values.get(run)
    if found is None:
        for reference, value in zip(place.frame.places, place.frame.values(), strict=True):
            other = reference()
            if other is not None:
                other.values[run] = value
        found = place.values[run]
    return found
