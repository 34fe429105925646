"""Checkpointing: keep no intermediate values of a function; compute them again in the backward.

While the function runs, a placeholder is kept for each value that the tape would keep. The first
placeholder that the backward needs has the function run once more, up to the last of them, and the
values that the tape would keep are matched to the placeholders in order. Start reading at
`checkpoint`, then `_Frame`.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tracegrad.autograd.graph import saved_tensors_hooks
from tracegrad.ir.errors import GradientError, ParameterError, UnsupportedError
from tracegrad.tracer import tape
from tracegrad.tracer.function_node import _with_history
from tracegrad.tracer.grad_mode import enable_grad
from tracegrad.tracer.pytree import flatten
from tracegrad.tracer.random import Generator, default_generator
from tracegrad.tracer.saved import Recomputed, pack
from tracegrad.tracer.state import state
from tracegrad.tracer.tensor import Tensor
from tracegrad.utils.checkpoint_reentrant import CheckpointFunction

__all__ = ["CheckpointError", "checkpoint", "checkpoint_sequential", "noop_context_fn",
           "set_checkpoint_early_stop"]  # fmt: skip

_NOT_PASSED = (
    "torch.utils.checkpoint: the use_reentrant parameter should be passed explicitly. Starting in "
    "PyTorch 2.9, calling checkpoint without use_reentrant will raise an exception. "
    "use_reentrant=False is recommended, but if you need to preserve the current default behavior, "
    "you can pass use_reentrant=True. Refer to docs for more details on the differences between "
    "the two variants."
)
_NOT_PASSED_ON = (
    "torch.utils.checkpoint.checkpoint_sequential: the use_reentrant parameter should be passed "
    "explicitly. In version 2.9 we will raise an exception if use_reentrant is not passed. "
    "use_reentrant=False is recommended, but if you need to preserve the current default behavior, "
    "you can pass use_reentrant=True. Refer to docs for more details on the differences between "
    "the two variants."
)
_NOT_REENTRANT = "Passing `context_fn` or `debug` is only supported when use_reentrant=False."
_COUNT = (
    "torch.utils.checkpoint: A different number of tensors was saved during the original forward "
    "and recomputation.\nNumber of tensors saved during forward: {old}\nNumber of tensors saved "
    "during recomputation: {new}.\n"
)
_META = (
    "torch.utils.checkpoint: Recomputed values for the following tensors have different metadata "
    "than during the forward pass.\n{lines}\n.\n"
)
_MORE = (
    "torch.utils.checkpoint: trying to save more tensors during recomputation than during the "
    "original forward pass.\n"
)
Contexts = tuple[contextlib.AbstractContextManager[Any], contextlib.AbstractContextManager[Any]]


class CheckpointError(GradientError):
    """A checkpointed function did something else when it ran again. Cure: make it repeatable.

    Example:
        >>> import tracegrad as tg
        >>> runs = []
        >>> def changing(x):
        ...     runs.append(None)
        ...     return x.exp() if len(runs) == 1 else x + 1
        >>> x = tg.ones(2, requires_grad=True)
        >>> checkpoint(changing, x, use_reentrant=False).sum().backward()
        Traceback (most recent call last):
        tracegrad.utils.checkpoint.CheckpointError: torch.utils.checkpoint: A different number of ...
    """


def noop_context_fn() -> Contexts:
    """Two contexts that do nothing: the default of `context_fn`.

    Example:
        >>> first, second = noop_context_fn()
        >>> with first:
        ...     pass
    """
    return contextlib.nullcontext(), contextlib.nullcontext()


def checkpoint(
    function: Callable[..., Any],
    *args: Any,
    use_reentrant: bool | None = None,
    context_fn: Callable[[], Contexts] = noop_context_fn,
    determinism_check: str = "default",
    debug: bool = False,
    early_stop: bool = True,
    preserve_rng_state: bool = True,
    **kwargs: Any,
) -> Any:
    """Call `function(*args, **kwargs)` without keeping its intermediate values for the backward.

    The backward runs the function again, so it must do the same again; random numbers of the
    global generator are the same ones. Inside `saved_tensors_hooks`, the hooks keep the tensors among
    `args` until then. In a compiled function the compiled backward computes the values again, from what
    the forward had; with `context_fn` or `use_reentrant=True`, and where the second run would do more
    than compute, it runs eagerly.

    Args:
        use_reentrant: False is the better choice. True, PyTorch's older variant, runs the function
            without recording and calls `backward` inside the backward: it works with `backward()`
            without `inputs` only, takes no keywords, sees no tensors inside containers, and needs
            an argument and a result that require grad. Pass it: None warns, and means True.
        context_fn: makes two contexts, for the first run and for the second.
        determinism_check: "default" compares shapes and dtypes of the two runs, "none" does not.
        debug: only False is there.
        early_stop: end the second run when the last value needed is there.
        preserve_rng_state: run again with the random numbers of the first run.
    Returns:
        What the function returns.
    Raises:
        ValueError: another `determinism_check`; keywords or `context_fn` with `use_reentrant=True`.
        NotImplementedError: `debug=True`.
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
    if use_reentrant is None:
        warnings.warn(_NOT_PASSED, UserWarning, stacklevel=2)
        use_reentrant = True
    if use_reentrant:
        if kwargs:
            raise ParameterError("Unexpected keyword arguments: " + ",".join(kwargs))
        if context_fn is not noop_context_fn or debug:
            raise ParameterError(_NOT_REENTRANT)
        _noted()
        return CheckpointFunction.apply(function, preserve_rng_state, *args)
    if debug:
        raise UnsupportedError("checkpoint: debug=True is not supported; leave it out")
    if determinism_check not in ("default", "none"):
        raise ParameterError(
            f"determinism_check should be one of ['default', 'none'], but got {determinism_check}"
        )
    region: Any = None
    others = any(unpack is not _value for _, unpack in state.saved_hooks)
    if state.recorder is not None and context_fn is noop_context_fn and not others:
        region = state.recorder.checkpoint(preserve_rng_state)
    else:
        _noted()
    first, second = context_fn()
    if not state.grad_enabled:
        with first:
            return function(*args, **kwargs)
    frame = _Frame(function, args, kwargs, second)
    frame.checked = determinism_check == "default"
    frame.early_stop = early_stop if _early_stop is None else _early_stop
    if preserve_rng_state:
        frame.random = default_generator.clone_state()
    with region or contextlib.nullcontext(), frame.first_run(), first:
        return function(*args, **kwargs)


def _noted() -> None:
    if state.recorder is not None:
        state.recorder.note("checkpoint")


_early_stop: bool | None = None


@contextlib.contextmanager
def set_checkpoint_early_stop(enable: bool) -> Iterator[None]:
    """Inside the block, `checkpoint` is called as with `early_stop=enable`, whatever it was given.

    Example:
        >>> from tracegrad.utils.checkpoint import set_checkpoint_early_stop
        >>> with set_checkpoint_early_stop(False):
        ...     pass
    """
    global _early_stop
    before = _early_stop
    _early_stop = enable
    try:
        yield
    finally:
        _early_stop = before


def checkpoint_sequential(
    functions: Any,
    segments: int,
    input: Any,
    use_reentrant: bool | None = None,
    *,
    preserve_rng_state: bool = True,
    **kwargs: Any,
) -> Any:
    """Apply functions one after the other, checkpointing all but the last of some segments.

    Args:
        functions: an `nn.Sequential`, or a list of functions of one argument.
        segments: into how many parts of `len(functions) // segments` functions to cut them; the
            last part takes the rest and is not checkpointed.
        input: what the first function is called with.
        use_reentrant, preserve_rng_state: as for `checkpoint`.
    Returns:
        What the last function returns.
    Raises:
        ValueError: other keywords; more segments than functions.
    Example:
        >>> import tracegrad as tg
        >>> from tracegrad.utils.checkpoint import checkpoint_sequential
        >>> x = tg.tensor([1.0, 2.0], requires_grad=True)
        >>> y = checkpoint_sequential([tg.neg, tg.square, tg.square], 2, x, use_reentrant=False)
        >>> y.sum().backward()
        >>> x.grad
        tensor([ 4., 32.])
    """
    if use_reentrant is None:
        warnings.warn(_NOT_PASSED_ON, UserWarning, stacklevel=2)
        use_reentrant = True
    if kwargs:
        raise ParameterError("Unexpected keyword arguments: " + ",".join(kwargs))
    chain = list(functions.children() if hasattr(functions, "children") else functions)
    size = len(chain) // segments
    if segments > 1 and size == 0:
        raise ParameterError(
            f"checkpoint_sequential: {segments} segments of {len(chain)} functions would have no "
            f"functions each; segments must be at most {len(chain)}"
        )
    for start in range(0, size * (segments - 1), size or 1):
        part = functools.partial(_one_after_the_other, chain[start : start + size])
        input = checkpoint(
            part, input, use_reentrant=use_reentrant, preserve_rng_state=preserve_rng_state
        )
    return _one_after_the_other(chain[size * (segments - 1) :], input)


def _one_after_the_other(functions: Sequence[Callable[[Any], Any]], x: Any) -> Any:
    for function in functions:
        x = function(x)
    return x


class _Stop(Exception):
    """Ends the second run."""


class _Place(Recomputed):
    """Stands for one value that the tape would have kept; has it again during a backward."""

    __slots__ = ("frame", "number", "values", "__weakref__")

    def __init__(self, frame: _Frame, number: int) -> None:
        self.frame = frame
        self.number = number
        self.values: Any = weakref.WeakKeyDictionary()  # by backward, gone with it


class _Held:
    """A tensor among the arguments that the hooks around the call keep, as PyTorch's do."""

    __slots__ = ("packed", "edge")

    def __init__(self, tensor: Tensor) -> None:
        self.edge = tape.gradient_edge(tensor)
        self.packed = pack(tensor)

    def restored(self) -> Tensor:
        """The tensor again, with its history."""
        return _with_history(self.packed.unpack(), self.edge)


class _Frame:
    """One call of a checkpointed function: how to run it again, and its places."""

    def __init__(
        self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], context: Any
    ) -> None:
        self.function, self.kwargs, self.context = function, kwargs, context
        self.args = args
        if state.saved_hooks:
            self.args = tuple(_Held(x) if isinstance(x, Tensor) else x for x in args)
        leaves: list[Any] = []
        flatten((list(self.args), dict(kwargs)), leaves)
        self.versions = [(x, x._storage.version) for x in leaves if isinstance(x, Tensor)]
        self.places: list[weakref.ref[_Place]] = []
        self.kinds: list[Any] = []
        self.checked = self.early_stop = True
        self.random: Generator | None = None

    def first_run(self) -> saved_tensors_hooks:
        """Hooks that keep places only."""

        def stand_in(tensor: Tensor) -> _Place:
            place = _Place(self, len(self.places))
            self.places.append(weakref.ref(place))
            self.kinds.append(_kind(tensor))
            if state.recorder is not None:
                state.recorder.recomputed(place, tensor)
            return place

        return saved_tensors_hooks(stand_in, _value)

    def values(self) -> list[Tensor]:
        """Run the function again, for the values that the tape would keep."""
        if state.recorder is not None:
            state.recorder.note("a checkpoint, whose backward runs inside, too,")
        for tensor, version in self.versions:
            storage = tensor._storage
            if storage.version != version:
                edge = tape.gradient_edge(tensor)
                raise GradientError(tape._overwritten(storage, version, edge, tensor.type_info))
        args = [x.restored() if isinstance(x, _Held) else x for x in self.args]
        found: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            if len(found) == len(self.places):
                raise CheckpointError(_MORE)
            found.append(tensor.detach())
            if self.early_stop and len(found) == len(self.places):
                raise _Stop
            return found[-1]

        now = default_generator.get_state()
        if self.random is not None:
            default_generator.set_state(self.random.get_state())
        try:
            with enable_grad(), saved_tensors_hooks(keep, lambda t: t), self.context:
                self.function(*args, **self.kwargs)
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
