"""`print` and `debug_callback`: side effects that compiled functions repeat, with values of each call.

A captured run keeps what is to be called, and with which values of the graph; each replay calls it
after the computation, in order. Start reading at `debug_callback`.
"""

from __future__ import annotations

import builtins
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tracegrad.ir.errors import OperandError, UnsupportedError
from tracegrad.runtime.unwatched import unwatched
from tracegrad.tracer.capture_hook import recording
from tracegrad.tracer.pytree import Structure, flatten
from tracegrad.tracer.state import state
from tracegrad.tracer.symbolic import plain_number
from tracegrad.tracer.tensor import Tensor, wrap

_BATCHED = (
    "{what}: inside vmap a tensor stands for many values, and the function runs once for all of them. "
    "Call it on the results outside, or loop over the batch"
)


@dataclass(frozen=True)
class Callback:
    """A call that each replay repeats.

    Attributes:
        fn: what is called.
        structure, leaves: its arguments; None stands for a tensor.
        tensors: ("output", k) or ("input", k) for each tensor, once the capture is finished.
    """

    fn: Callable[..., Any]
    structure: Structure
    leaves: tuple[tuple[Any] | None, ...]
    tensors: tuple[tuple[str, int], ...] = ()

    def __call__(self, *tensors: Tensor) -> None:
        """Call it with the values of this replay."""
        given = iter(tensors)
        leaves = [next(given) if x is None else x[0] for x in self.leaves]
        self.fn(*self.structure.build(iter(leaves)))


def debug_callback(fn: Callable[..., Any], *args: Any) -> None:
    """Call `fn(*args)`, also in every replay of a compiled function, with the values of that call.

    Args:
        fn: any function; what it returns is dropped. In a replay it is called after the
            computation, in the order of the program.
        args: tensors, numbers, texts, and tuples, lists and dicts of them. `fn` gets tensors of its
            own, without history.
    Raises:
        OperandError: `fn` is not callable.
        UnsupportedError: an argument is batched by `vmap`.
    Example:
        >>> import tracegrad as tg
        >>> seen = []
        >>> @tg.compile
        ... def f(x):
        ...     tg.debug_callback(lambda y: seen.append(y.tolist()), x * 2)
        ...     return x + 1
        >>> for k in (1.0, 2.0, 3.0):
        ...     y = f(tg.tensor([k]))
        >>> seen
        [[2.0], [4.0], [6.0]]
    """
    if not callable(fn):
        raise OperandError(f"debug_callback: fn must be callable, got {type(fn).__name__}")
    _call("debug_callback", fn, args)


def print(
    *args: Any, sep: str = " ", end: str = "\n", file: Any = None, flush: bool = False
) -> None:
    """`builtins.print`, also in every replay of a compiled function, with the values of that call.

    Args:
        args: as for `debug_callback`; a tensor inside an f-string is a value that Python reads.
        sep, end, file, flush: as of `builtins.print`.
    Raises:
        UnsupportedError: an argument is batched by `vmap`.
    Example:
        >>> import tracegrad as tg
        >>> f = tg.compile(lambda x: tg.print("x is", x) or x * 2)
        >>> y = f(tg.tensor([1.0]))
        x is tensor([1.])
        >>> y = f(tg.tensor([5.0]))
        x is tensor([5.])
    """
    _call(
        "print", functools.partial(builtins.print, sep=sep, end=end, file=file, flush=flush), args
    )


def _call(what: str, fn: Callable[..., Any], args: Sequence[Any]) -> None:
    leaves: list[Any] = []
    structure = flatten(tuple(args), leaves)
    leaves = [plain_number(x) for x in leaves]  # `fn` is the user's, and looks at them
    recorder = state.recorder
    if recorder is not None:
        if any(isinstance(x, Tensor) and recorder.varies(x) for x in leaves):
            raise UnsupportedError(_BATCHED.format(what=what))
        kept = tuple(None if isinstance(x, Tensor) else (x,) for x in leaves)
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        recorder.callback(what, Callback(fn, structure, kept), tensors)
    shown = [wrap(x._array.copy()) if isinstance(x, Tensor) else x for x in leaves]
    if recorder is None:
        fn(*structure.build(iter(shown)))
        return
    with unwatched(), recording(None):  # what `fn` does is repeated: nobody need look at it
        fn(*structure.build(iter(shown)))
