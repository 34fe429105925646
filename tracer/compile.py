"""`compile`: a function that replays its captured runs as generated C.

A call looks up a *key* (types of the arguments, values of the numbers among them, grad mode); each
key has traces, tried in turn; a trace whose guards fail passes the call on; where none is left the
function runs eagerly, is captured, and compiled. What cannot be replayed soundly stays eager and
says so once. Start reading at `CompiledFunction.__call__`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import os
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from tracegrad.ir.errors import (
    OperandError,
    ParameterError,
)
from tracegrad.tracer.anomaly import anomaly
from tracegrad.tracer.capturing import Capturing
from tracegrad.tracer.keys import (
    Unkeyed,
    make_key,
)
from tracegrad.tracer.profiling import profilers
from tracegrad.tracer.state import state, watching

BACKENDS = ("c", "eager")
VERIFY = ("first", "always", "off")
SIDE_EFFECTS = ("eager", "drop")


class _Eager(threading.local):
    depth: int = 0


_eager = _Eager()
_eager_everywhere = os.environ.get("TRACEGRAD_EAGER", "") not in ("", "0")


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Run compiled functions eagerly inside the `with` block, to step through them with a debugger.

    Applies to this thread. `TRACEGRAD_EAGER=1` in the environment does it for the whole process.

    Example:
        >>> import tracegrad as tg
        >>> f = tg.compile(lambda x: x * 2)
        >>> with tg.eager():
        ...     f(tg.tensor([1.0]))
        tensor([2.])
    """
    token = object()
    _eager.depth += 1
    watching.append(token)
    try:
        yield
    finally:
        watching.remove(token)
        _eager.depth -= 1


class CompiledFunction(Capturing):
    """A function together with its traces; made by `compile`."""

    def __init__(self, fn: Callable[..., Any], *options: Any) -> None:
        super().__init__(fn, *options)
        functools.update_wrapper(self, fn, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Replay a trace whose key and guards fit; else run eagerly and capture."""
        quick, tried = self._quick, None
        if (
            quick is not None and not kwargs and not watching and not profilers
            and not anomaly.enabled and quick.fits(args)
        ):  # fmt: skip
            trace = quick.trace
            result = trace.launch(args)
            if result.__class__ is tuple:
                return result[0] if trace.single else trace.rebuild(result)
            tried = (trace, result)
        if (
            self._backend == "eager" or _eager_everywhere or _eager.depth
            or state.recorder is not None or state.saved_hooks or anomaly.enabled
        ):  # fmt: skip
            return self._fn(*args, **kwargs)
        leaves: list[Any] = []
        try:
            key = make_key(self._label, args, kwargs, leaves)
        except Unkeyed as error:
            return self._unkeyed(error, args, kwargs)
        traces, full = self._traces.get(key), key
        if (
            traces is None
            and self._widening
            and not (key in self._pending or key in self._eager_keys)
        ):
            key = self._widening.reduced(key)
            traces = self._traces.get(key)
        if traces and not profilers and tried is None:  # as `_replay`: usually the first one fits
            first = traces[0]
            result = first.launch(leaves)
            if type(result) is tuple:
                if not kwargs:
                    self._quick = self._quicks.entry(key, first, args)
                return first.rebuild(result)
            tried = (first, result)
        outcome = self._replay(key, leaves, tried)
        if outcome.trace is not None:
            if not kwargs:
                self._quick = self._quicks.entry(key, outcome.trace, args)
            return outcome.trace.rebuild(outcome.result)
        if outcome.fault:
            return self._fn(*args, **kwargs)  # raises the error that eager mode raises
        pending = self._pending.get(key)
        if key in self._eager_keys or (pending is not None and not pending.ready):
            self._eager_calls += 1
            return self._fn(*args, **kwargs)
        if pending is not None:
            self._finish(key, pending)
            return self(*args, **kwargs)
        if not traces and self._sizes.passes(key):
            self._eager_calls += 1
            return self._fn(*args, **kwargs)
        with self._lock:
            if profilers and state.profiler is not None:
                return state.profiler.capture(
                    self._label, self._capture, full, args, kwargs, leaves
                )
            return self._capture(full, args, kwargs, leaves)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_fn" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._fn, name)

    def __copy__(self) -> CompiledFunction:
        return CompiledFunction(self._fn, *self._options)

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledFunction:
        made = CompiledFunction(copy.deepcopy(self._fn, memo), *self._options)
        memo[id(self)] = made
        return made

    def __reduce__(self) -> Any:
        """By name where the name leads here; else what is compiled and how, without the traces."""
        found: Any = sys.modules.get(getattr(self, "__module__", ""))
        for part in getattr(self, "__qualname__", "").split("."):
            found = getattr(found, part, None)
        if found is self:
            return self.__qualname__
        return (CompiledFunction, (self._fn, *self._options))

    def __repr__(self) -> str:
        coming = f", {len(self._pending)} being compiled" if self._pending else ""
        return f"<compiled {self._label}: {len(self._order)} trace(s){coming}>"

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all that was captured is compiled: by default that goes on beside eager calls.

        Args:
            timeout: seconds after which to give up; None for never.
        Returns:
            Whether all of it is compiled.

        Example:
            >>> import tracegrad as tg
            >>> f = tg.compile(lambda x: x * 2)
            >>> f(tg.tensor([1.0]))
            tensor([2.])
            >>> f.wait()
            True
        """
        end = None if timeout is None else time.monotonic() + timeout
        waited = [*self._pending.items()]  # those that others begin meanwhile are theirs
        jobs: list[Any] = [pending for _, pending in waited]
        jobs += [b for t in self._order for b in t.backwards() if b.pending is not None]
        jobs += [job for t in self._order for job in t.mode.jobs()]
        for job in jobs:
            left = None if end is None else max(0.0, end - time.monotonic())
            if not job.wait(left):
                return False
        for key, pending in waited:
            self._finish(key, pending)
        return True


def compile(
    fn: Callable[..., Any] | None = None, *, backend: str = "c", verify: str = "first",
    strict: bool = False, side_effects: str = "eager", wait: bool | None = None,
    debug: bool = False, residual_budget: int | None = None,
) -> Any:  # fmt: skip
    """Compile a function or module: each kind of call is captured once, then replayed as C.

    Args:
        fn: a function of tensors (also in tuples, lists and dicts), numbers and modules; or an
            `nn.Module`. Without it, `compile` is a decorator with options.
        backend: "c", or "eager" to run `fn` as it is.
        verify: compare compiled results with the interpreter's: "first" (the first result of each
            trace), "always", or "off".
        strict: where a run cannot be replayed, raise a `CaptureError` with the reasons, instead of
            a warning and eager calls.
        side_effects: what to do about effects that a replay would lose (`print`, files, the clock,
            `random`, changes of lists, attributes and globals): "eager", run as it is; or "drop",
            replay without them. With "drop", what `fn` reads of what it changes itself is as it
            was at the capture.
        wait: True: a call that captures waits until its trace is compiled. False: a worker process
            compiles, and calls run eagerly until it has. By default False, or True where the
            environment has `TRACEGRAD_WAIT=1`.
        debug: raise a `NaNError` (a FloatingPointError) where an operation makes a NaN of operands
            without NaN, naming its line. On the CPU results are looked at; on a device what each
            kernel computes, one launch after the other, and what the device reports is told with
            the lines of the kernel. Much slower; calls that capture wait.
        residual_budget: bytes that a call may keep for its backward beside its inputs and results;
            what does not fit is computed again there, reductions and products too. None: what costs
            least time. `.memory_plan()` shows what is kept. What the functions of yours that are
            called in the backward keep is not counted.
    Returns:
        A `CompiledFunction`: call it like `fn`; `.explain()`, `.graph()`, `.source()` show what
        became of it. Results are differentiable as eager ones are.
    Raises:
        ParameterError: an unknown backend, verify or side_effects; a residual_budget that is no
            number of bytes.
        OperandError: `fn` is not callable, or a generator or coroutine function.
        CaptureError: (at a call) `strict` is set and the run cannot be replayed.
        NaNError: (at a call, or in a backward) `debug` is set and there is a NaN.
    Example:
        >>> import tracegrad as tg
        >>> @tg.compile
        ... def f(x):
        ...     return (x * x).sum()
        >>> x = tg.tensor([1.0, 2.0], requires_grad=True)
        >>> f(x).backward()
        >>> x.grad
        tensor([2., 4.])
    """
    for name, value, known in (
        ("backend", backend, BACKENDS), ("verify", verify, VERIFY),
        ("side_effects", side_effects, SIDE_EFFECTS),
    ):  # fmt: skip
        if value not in known:
            raise ParameterError(f"compile: {name} must be one of {known}, got {value!r}")
    if residual_budget is not None and (
        isinstance(residual_budget, bool) or not isinstance(residual_budget, int)
        or residual_budget < 0
    ):  # fmt: skip
        raise ParameterError(
            "compile: residual_budget must be None or a number of bytes, an int of at least 0, got "
            f"{residual_budget!r}"
        )
    if fn is None:
        return lambda function: compile(
            function, backend=backend, verify=verify, strict=strict, side_effects=side_effects,
            wait=wait, debug=debug, residual_budget=residual_budget,
        )  # fmt: skip
    if not callable(fn):
        raise OperandError(f"compile: expected a function or module, got {type(fn).__name__}")
    inner = fn.func if isinstance(fn, partial) else fn
    for test, kind in (
        (inspect.isgeneratorfunction, "a generator"), (inspect.iscoroutinefunction, "a coroutine"),
        (inspect.isasyncgenfunction, "an asynchronous generator"),
    ):  # fmt: skip
        if test(inner):
            raise OperandError(
                f"compile: {getattr(inner, '__name__', inner)} is {kind} function, which runs in "
                "pieces; compile the function that one piece calls"
            )
    return CompiledFunction(fn, backend, verify, strict, side_effects, wait, debug, residual_budget)
