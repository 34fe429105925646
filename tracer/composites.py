"""Composite functions: several primitives, run and recorded eagerly as one operation.

`softmax` and the like are written with primitives, so that they can be captured, batched and
differentiated like any program. Run one by one, each primitive would cost a Tensor and a node. So
`@composite` looks at what a function does when it is first called with operands of given types, and
if it only computes, makes a `Composite` of it: one node instead of many, and from the second call
on a Python function that calls the kernels one after another, with the same bits. A recorder, a
profiler and hooks on saved tensors see the primitives. Start reading at `composite`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tracegrad.ir.dtypes import DType, default
from tracegrad.runtime.cuda.array import row_major
from tracegrad.tracer.capture_hook import Recorder, recording
from tracegrad.tracer.composite_plan import Composite
from tracegrad.tracer.composite_single import Single
from tracegrad.tracer.composite_watch import Watch, first_place
from tracegrad.tracer.profiling import profilers
from tracegrad.tracer.state import state, watching
from tracegrad.tracer.tensor import Tensor
from tracegrad.tracer.views import refresh

F = TypeVar("F", bound=Callable[..., Any])

_known: dict[Any, Any] = {}  # by key of a call: Single, Composite, Viewing, or _PLAIN
_KEPT = 4096
_PLAIN = "does more than compute: runs as it is written"
_BOUNDS = frozenset((int, type(None)))
_CONSTANTS = frozenset((int, bool, str, type(None), type(Ellipsis), DType))


def composite(function: F) -> F:
    """Make a function of tensors run as one operation where nobody watches its parts.

    The function must compute its results from its arguments with operations, and decide by types,
    shapes and Python values only; one that does anything else (reads a value, draws a random
    number, writes in place) is noticed and runs as it is written. It must not warn: it would once.
    """
    return _as_one(function, by_strides=False)


def viewing(function: F) -> F:
    """As `composite`, for a function that returns a view where the strides of its tensor allow."""
    return _as_one(function, by_strides=True)


def _as_one(
    function: F, by_strides: bool, known_as: Any = None, told: Callable[..., Any] | None = None
) -> F:
    """The function as one operation.

    Args:
        known_as: by what its programs are known; the same for all forms of a function.
        told: what to ask about a call that was refused: it raises in better words, gives keywords
            to try again with, or None.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            if watching and state.recorder is not None:
                return _recorded(state.recorder, function, args, kwargs)
            if watching and (state.saved_hooks or profilers):
                return function(*args, **kwargs)
            first: Any = args[0] if args else None
            count = len(args)
            tensors: Any = None
            strides: Any = by_strides
            if first.__class__ is Tensor and count < 4 and not kwargs:  # as `_key`, for usual cases
                second: Any = args[1] if count > 1 else None
                kind = second.__class__
                about: tuple[Any, ...] = ()
                if count == 1:
                    tensors = args
                elif count == 3:
                    if kind is int and args[2].__class__ is int:  # reshape(2, 3), transpose(0, 1)
                        tensors, about = args[:1], args[1:]
                elif kind in _CONSTANTS:
                    tensors, about = args[:1], (kind, second)
                elif kind is slice and _is_plain(second):
                    tensors, about = args[:1], (second.start, second.stop, second.step)
                    strides = True
                elif kind is Tensor:
                    y = second._array
                    tensors, about = args, (y.shape, y.dtype, first is second)
            if tensors is None:
                tensors = []
                key = _key(identity, args, kwargs, tensors, by_strides)
                if key is None:
                    return function(*args, **kwargs)
            else:
                x = first._array
                wanted: Any = 0
                if len(tensors) == 2:
                    wanted = _wanted(tensors)
                elif state.grad_enabled:
                    wanted = _wanted1(first)
                key = (identity, default[0], x.shape, x.dtype, about, wanted)
                if strides:
                    key += (x.strides,)
            found = _known.get(key)
            if found is None:
                return _learned(function, args, kwargs, key, tensors, by_strides)
            if found is _PLAIN:
                return function(*args, **kwargs)
            return found.run(tensors)
        except Exception:
            again = None if told is None else told(args, kwargs)
            if again is None:
                raise
        return call(*args, **again)

    identity: Any = known_as or call
    _forms[call] = lambda told: _as_one(function, by_strides, identity, told)
    return call  # type: ignore[return-value]


_forms: dict[Any, Callable[[Callable[..., Any]], Any]] = {}


def retold(function: F, told: Callable[..., Any]) -> F | None:
    """A composite function in a form that asks `told` about calls that it refuses.

    None where the function is no composite.
    """
    form = _forms.get(function)
    return None if form is None else form(told)


def _recorded(recorder: Recorder, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Run the function step by step; results lie in memory as if it were one operation."""
    before = recorder.recorded()
    result = function(*args, **kwargs)
    results = result if isinstance(result, tuple | list) else (result,)
    for x in results:
        if type(x) is Tensor and x._view is None and not x._array.flags.c_contiguous:
            if not any(x is a for a in args) and not recorder.by_elements(before):
                x._array = row_major(x._array)
    return result


def _learned(
    function: Callable[..., Any], args: Any, kwargs: Any, key: Any, tensors: Sequence[Tensor],
    by_strides: bool,
) -> Any:  # fmt: skip
    """Run the function and see what it does."""
    watch = Watch(tensors)
    with recording(watch):
        result = function(*args, **kwargs)
    if len(_known) >= _KEPT:
        _known.clear()
    program = watch.program(result)
    if program is None:
        _known[key] = (by_strides and watch.viewing(result)) or _PLAIN
    elif len(program.steps) == 1 and program.rebuild is None:
        _known[key] = Single(program)  # one primitive keeps its own plan and node
    else:
        plan = _known[key] = Composite(program)
        made = watch.arrays(plan, result)
        return plan.run(tensors) if made is None else plan.finished(watch.operands, made)
    return result


# ---- what a call depends on ---------------------------------------------------------------------


def _key(
    call: Any, args: Any, kwargs: Any, tensors: list[Tensor], by_strides: bool
) -> tuple[Any, ...] | None:
    """What the program of a call depends on; None where that cannot be said. Fills `tensors`."""
    key: list[Any] = [call, default[0]]
    if not _describe(args, key, tensors):
        return None
    if kwargs:
        key.extend(kwargs)
        if not _describe(kwargs.values(), key, tensors):
            return None
    if not tensors:
        return None
    key.append(_wanted(tensors))
    if len(tensors) == 2:
        key.append(tensors[0] is tensors[1])  # f(x, x) is not f(x, y)
    elif len(tensors) > 2:
        key.extend([first_place(x, tensors) for x in tensors])
    if by_strides:
        key.append(tensors[0]._array.strides)
    return tuple(key)


def _describe(values: Any, key: list[Any], tensors: list[Tensor]) -> bool:
    """Add to `key` what a call with `values` depends on; False where that cannot be said."""
    for x in values:
        kind = x.__class__
        if kind in _CONSTANTS:
            key += (kind, x)
        elif kind is Tensor or isinstance(x, Tensor):
            array = x._array
            key += (array.shape, array.dtype)
            tensors.append(x)
        elif kind is float:
            key += (kind, x, math.copysign(1.0, x))
        elif kind is slice:
            key.append(kind)
            if not _describe((x.start, x.stop, x.step), key, tensors):
                return False
        elif kind is tuple or kind is list:
            key += (kind, len(x))
            if not _describe(x, key, tensors):
                return False
        else:
            return False
    return True


def _is_plain(s: slice) -> bool:
    """Whether a slice is of ints: 2.0 is refused, though it equals 2."""
    return (
        s.start.__class__ in _BOUNDS and s.stop.__class__ in _BOUNDS and s.step.__class__ in _BOUNDS
    )


def _wanted(tensors: Sequence[Tensor]) -> int:
    """Bit set of the tensors whose gradients are recorded; brings the history of views up to date."""
    wanted = 0
    if state.grad_enabled:
        bit = 1
        for x in tensors:
            if _wanted1(x):
                wanted |= bit
            bit <<= 1
    return wanted


def _wanted1(x: Tensor) -> bool:
    view = x._view
    if view is not None and view.version != x._storage.version:
        refresh(x, view)
    return x._requires_grad
