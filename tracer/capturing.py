"""Capturing: a call of a compiled function that no trace answers becomes a trace, or stays eager.

The function runs eagerly while a recorder and an observer watch; what they saw must be all that a
replay needs. Limits keep a function that never settles from being captured for ever. Start reading at
`Capturing._capture`.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import os
import threading
import traceback
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import (
    CaptureError,
    CompileError,
    CompilerNotFound,
    NaNError,
    refusals,
)
from tracegrad.ir.location import Location, user_stacklevel
from tracegrad.runtime.executable import Strayed
from tracegrad.tracer import tape, verification
from tracegrad.tracer.capture import Capture, GraphRecorder, Reason
from tracegrad.tracer.capture_hook import recording
from tracegrad.tracer.capture_state import Setting
from tracegrad.tracer.device import device
from tracegrad.tracer.epoch import Epoch
from tracegrad.tracer.guards import Observation
from tracegrad.tracer.inspection import Inspection
from tracegrad.tracer.kept_by_tape import Kept, Saved, saved_by
from tracegrad.tracer.keys import (
    BY_IDENTITY,
    PLAIN,
    Unkeyed,
    difference,
    is_object,
    without_values,
)
from tracegrad.tracer.paths import Outcome, replay
from tracegrad.tracer.pending import Pending, first_results, waits
from tracegrad.tracer.profiling import profilers
from tracegrad.tracer.pytree import flatten, leaves_of
from tracegrad.tracer.quick import Quick, Quicks
from tracegrad.tracer.stand_in_rules import Watch, without_stand_ins
from tracegrad.tracer.state import state
from tracegrad.tracer.symbolic import plain_number
from tracegrad.tracer.tensor import Tensor
from tracegrad.tracer.trace import Trace
from tracegrad.tracer.verification import EagerWarning
from tracegrad.tracer.widening import Arguments, Sizes, Widening, without_numbers

Stray = tuple[Location | None, bool]  # where a value was read that differed, and if it is a number
MANY_TRACES = 8
MANY_PATHS = 64  # of one key
MANY_VALUES = 8  # captures in a row because one number that Python read was another
MANY_CAPTURES = 64  # of calls that differ in numbers and texts only, or in what guards look at
MANY_SIZES = 256  # traces that differ from others in sizes only
MANY_OBJECTS = 64  # that stand in keys by their identity
MANY_FIRST = 3  # runs that may make state, such as an optimizer's first step
_RETURNED = (Tensor, Epoch, DType, device, np.generic)


class RecaptureWarning(UserWarning):
    """A compiled function was captured many times; the message says what keeps changing."""


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector from running finalisers of others in the midst of a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Capturing(Inspection):
    """The traces of a function, and how it gets new ones; `CompiledFunction` adds the calls."""

    def __init__(
        self, fn: Callable[..., Any], backend: str, verify: str, strict: bool, side_effects: str,
        wait: bool | None = None, debug: bool = False, residual_budget: int | None = None,
    ) -> None:  # fmt: skip
        self._fn = fn
        self._backend = backend
        self._verify = verify
        self._options = (backend, verify, strict, side_effects, wait, debug, residual_budget)
        self._budget = residual_budget
        self._waits = True if debug else wait
        self._debug = debug
        self._strict = strict
        self._drops_effects = side_effects == "drop"
        self._label = getattr(fn, "__name__", type(fn).__name__)
        self._traces: dict[Any, list[Trace]] = {}
        self._order: list[Trace] = []
        self._quicks = Quicks()
        self._quick: Quick | None = None  # of the last call that was replayed
        self._eager_keys: dict[Any, tuple[Reason, ...]] = {}
        self._pending: dict[Any, Pending] = {}  # captured, and compiled by the worker
        self._widening = Widening()
        self._sizes = Sizes()
        self._codes: set[str] = set()  # of forwards
        self._sized: deque[Any] = deque()  # keys of traces that share code with others
        self._held: list[Any] = []  # objects whose id is part of a key
        self._varying: set[tuple[int, Any]] = set()  # settings that have changed, by their guards
        self._unsettled: Counter[Any] = Counter()
        self._captures: Counter[Any] = Counter()  # by the key without its numbers and texts
        self._misses = 0
        self._eager_calls = 0
        self._warned: set[str] = set()
        self._lock = threading.RLock()
        self._order_lock = threading.Lock()
        self._strays: dict[Any, list[Stray]] = {}  # the predicates that led to a capture, by key

    def _replay(
        self, key: Any, leaves: list[Any], tried: tuple[Trace, Any] | None = None
    ) -> Outcome:
        """Try the traces of a key; the one that fits is the first to be tried next time."""
        traces = self._traces.get(key, [])
        if not profilers or state.profiler is None:
            outcome = replay(traces, leaves, lambda launch, given: launch(given), tried)
        else:
            outcome = replay(traces, leaves, partial(state.profiler.launch, self._label))
        found = outcome.trace
        if found is not None and found is not traces[0]:
            with self._order_lock:
                others = [t for t in self._traces[key] if t is not found]
                self._traces[key] = [found, *others]
        return outcome

    # ---- capture --------------------------------------------------------------------------------

    def _capture(self, full: Any, args: Any, kwargs: dict[str, Any], leaves: list[Any]) -> Any:
        """Run eagerly with the recorder on; compile what was recorded.

        Args:
            full: the key with the values of all numbers.
        """
        names = self._leaf_names(args, kwargs)
        arguments = Arguments(args, kwargs, names)
        varying = self._widening.varying(full, arguments.replaceable)
        key = without_numbers(full, varying)
        outcome = self._replay(key, leaves)  # another thread may have captured it meanwhile
        if outcome.trace is not None:
            return outcome.trace.rebuild(outcome.result)
        if outcome.fault or any(k in self._eager_keys or k in self._pending for k in (key, full)):
            return self._fn(*args, **kwargs)
        objects = [x for x in leaves if not isinstance(x, Tensor) and is_object(x)]
        if objects and len(self._held) >= MANY_OBJECTS:
            kind = type(objects[0]).__name__
            text = f"it is called with more than {MANY_OBJECTS} objects, the last one a {kind}"
            return self._unkeyed(Unkeyed(text), args, kwargs)
        why = self._why(full, key, outcome, names)
        for trace in self._traces.get(key, ()):
            guard = trace.guard_that_failed()
            if isinstance(guard, Setting) and guard.setting is not None:
                self._varying.add(guard.setting)
        if outcome.strayed is not None and self._wanders(key, *outcome.strayed):
            return self._fn(*args, **kwargs)
        if self._overruns(key, why):
            return self._fn(*args, **kwargs)
        self._misses += 1
        recorder = GraphRecorder(self._label)
        for position, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor) and not recorder.knows(leaf):
                recorder.argument(leaf, position, names[position])
        replaced = frozenset() if self._widening.refused(full) else varying
        if replaced and self._widening.telling(self._fn, (*args, *kwargs.values())):
            replaced = varying = frozenset()
        begun = tape.next_sequence()
        run = self._watched(recorder, arguments, replaced, leaves)
        if run is None:
            self._misses -= 1
            self._widening.keep(full, varying)
            return self._capture(full, args, kwargs, leaves)
        result, observation = run
        results: list[Any] = []
        structure = flatten(result, results)
        if replaced:
            free = varying - arguments.pinned(recorder.numbers)
            key = self._widening.captured(full, free)
        tensors = [t for t in results if isinstance(t, Tensor)]
        recorder.reasons += self._reasons(observation, recorder, results)
        kept = Kept(tensors, begun)
        if kept.overwritten is not None:
            what, line = kept.overwritten
            text = f"a backward through its result finds a value that {what} has overwritten"
            recorder.reasons.append(Reason(text, line))
        capture = recorder.finish(tensors)
        given = [leaves[s.position] if s.kind == "argument" else s.tensor for s in capture.sources]
        if any(capture.differentiable) and any(
            t is not None and t._storage.inference for t in given
        ):
            recorder.reasons.append(Reason("it differentiates beside inference tensors", None))
            capture = replace(capture, reasons=tuple(recorder.reasons))
        self._held.extend(x for x in leaves if isinstance(x, (Epoch, *BY_IDENTITY)))
        self._held.extend(objects)
        changed = recorder.states.changed()
        if changed and not capture.reasons and self._settles(key):
            return result  # state that is there from now on: the next run may be replayed
        unsettled = (Reason(f"it changes {g.name} at each call", g.location) for g in changed)
        covered = (*observation.tensors, *recorder.states.tensors)
        reasons = (*capture.reasons, *unsettled, *self._uncovered(capture, covered))
        if reasons:
            self._widening.refuse(full)
            self._stay_eager(key, reasons)
            return result
        if not replaced:
            key = full
        same = [
            (p, x) for p, x in enumerate(leaves)
            if isinstance(x, Tensor) and any(x is t for t in observation.tensors)
        ]  # fmt: skip
        with self._own_faults(key):
            guards = (*observation.guards, *recorder.states.guards)
            if self._drops_effects:  # what the run itself changes is as it was at the capture
                guards = tuple(g for g in guards if g.holds())
            sizes, earlier = self._sizes.marked(key, leaves)
            trace = Trace(
                self._label, capture, guards, why, self._verify, same, sizes, earlier, self._debug,
                self._budget, self._saved(capture, tensors, given, begun),
            )  # fmt: skip
            self._sizes.keep(key, trace.graph)
            trace.remember_results(structure, results)
            first = first_results(trace, tensors, recorder.lying)
            pending = None if waits(self._waits) else Pending.begin(trace, recorder.arrays, first)
            if pending is not None:
                self._pending[key] = pending
            else:
                self._build(key, trace, recorder.arrays, first)
        return result

    @staticmethod
    def _saved(
        capture: Capture, tensors: Sequence[Tensor], given: Sequence[Any], begun: int
    ) -> list[Saved]:
        """What the tape of the captured run has saved of what others can write to."""
        places = zip(capture.returns, tensors, strict=True)
        returned = [(k, t) for (kind, k), t in places if kind == "output"]
        of_output = dict(reversed(returned))
        wanted = [k for k, flag in enumerate(capture.differentiable) if flag]
        results = [of_output[k] for k in wanted if k in of_output]
        return saved_by(results, begun, given, returned) if len(results) == len(wanted) else []

    def _watched(
        self, recorder: GraphRecorder, arguments: Arguments, varying: frozenset[int],
        leaves: Sequence[Any],
    ) -> tuple[Any, Observation] | None:  # fmt: skip
        """Run the function once under watch: its result, and what it read and did outside.

        Returns:
            None where the run is to begin anew with plain numbers, nothing being changed so far:
            a function in C has refused a symbolic one, or code could tell it from a number.
        """
        from tracegrad.tracer.observe import Observer

        watch = Watch() if varying else None
        observer = Observer(self._fn, (arguments.args, arguments.kwargs, *leaves), watch)
        recorder.existed = observer.existed
        recorder.states.varying = self._varying
        before = (state.grad_enabled, state.inference, dtypes.get_default_dtype())
        refused = refusals()
        try:
            with _no_collection(), observer, recording(recorder):
                args, kwargs = arguments.replaced(recorder.numbers, varying)
                result = self._fn(*args, **kwargs)
        except Exception as error:
            recorder.numbers.close()
            without_stand_ins(vars(error), plain_number)
            error.args = without_stand_ins(error.args, plain_number)
            doubtful = isinstance(error, TypeError) or (watch is not None and watch.reason)
            if watch is None or not doubtful:
                raise
            self._widening.stop(watch.reason or str(error))
            if recorder.has_changed() or observer.finish().side_effects:
                raise
            return None
        if watch is not None:
            result = plain_number(without_stand_ins(result, plain_number))
        recorder.gather(result, observer.external, observer.keyed)
        recorder.numbers.close()
        for x in leaves_of(result):
            if isinstance(x, Epoch) and not observer.existed(x):
                what = f"it returns a {type(x).__name__} that it has made"
                recorder.reasons.append(Reason(what, None))
        computed_with = [
            leaves[s.position] if s.kind == "argument" else s.tensor for s in recorder.sources
        ]
        observation = observer.finish([t for t in computed_with if t is not None])
        if watch is not None:
            for holder in observation.changed:
                without_stand_ins(holder, plain_number)
                without_stand_ins(getattr(holder, "__dict__", {}), plain_number)
        if watch is not None and watch.reason:
            self._widening.stop(watch.reason)
            if recorder.has_changed() or observation.side_effects:
                raise CaptureError(
                    f"{self._label} was run with stand-ins for the numbers among its arguments, and "
                    f"could tell them from numbers: {watch.reason}, which it came to for the first "
                    "time; call it with tracegrad.eager() to go on"
                )
            return None
        if refusals() != refused:
            recorder.reasons.append(Reason("it catches an error that depends on values", None))
        if before != (state.grad_enabled, state.inference, dtypes.get_default_dtype()):
            recorder.reasons.append(Reason("it changes the grad mode or default dtype", None))
        return result, observation

    def _reasons(
        self, observation: Observation, recorder: GraphRecorder, results: Sequence[Any]
    ) -> Iterator[Reason]:
        """What was observed of a run, or returned by it, that keeps it from being replayed."""
        for p in observation.problems:
            what = f"changes of {p.name} could go unseen, because {p.reason} ({p.remedy})"
            yield Reason(what, p.location)
        if not self._drops_effects:
            for effect in observation.side_effects:
                yield Reason(effect.reason, effect.location)
        for late in observation.reads_of(recorder.states.changed_later):
            yield Reason(f"{late.name} is read and changed by a schedule", late.location)
        for x in results:
            if not isinstance(x, _RETURNED) and type(x) not in PLAIN:
                yield Reason(f"it returns a {type(x).__name__}", None)

    def _finish(self, key: Any, pending: Pending) -> None:
        """Keep a trace that the worker has compiled."""
        with self._lock:
            if self._pending.get(key) is not pending:
                return  # another thread did
            del self._pending[key]
            if pending.checked:
                self._keep(key, pending.trace)
                return
            with self._own_faults(key):
                self._build(key, pending.trace, pending.arrays, pending.results)

    def _unkeyed(self, error: Unkeyed, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run as it is; one entry for all such calls tells of them."""
        if Unkeyed not in self._eager_keys:
            self._stay_eager(Unkeyed, (Reason(str(error), None),))
        self._eager_calls += 1
        return self._fn(*args, **kwargs)

    def _wanders(self, key: Any, trace: Trace, stray: Strayed) -> bool:
        """Whether the paths of a key have become too many: it stays eager where none fits."""
        predicate = trace.predicates[stray.number]
        strays = self._strays.setdefault(key, [])
        strays.append((predicate.location, predicate.is_number))
        alike = strays[-MANY_VALUES:]
        if predicate.is_number and len(alike) == MANY_VALUES and len(set(alike)) == 1:
            what = (
                f"Python reads a value that keeps changing ({predicate.what}); return the tensor and "
                "read it outside"
            )
        elif len(strays) >= MANY_PATHS:
            what = (
                f"the values that Python reads ({predicate.what}) lead to over {MANY_PATHS} paths"
            )
        else:
            return False
        self._stay_eager(key, (Reason(what, predicate.location),))
        return True

    def _overruns(self, key: Any, why: str) -> bool:
        """Whether calls of a kind have been captured too often: it stays eager where no trace fits."""
        kind = without_values(key)
        self._captures[kind] += 1
        if self._captures[kind] <= MANY_CAPTURES:
            return False
        what = (
            f"it has been captured {MANY_CAPTURES} times, the last time because {why}; pass what keeps "
            "changing as a tensor, tracegrad.tensor(...)"
        )
        if kind not in self._eager_keys:
            self._stay_eager(kind, (Reason(what, None),))
        self._eager_calls += 1
        return True

    def _settles(self, key: Any) -> bool:
        """Whether a run that changed what a library object keeps may have been one of the first."""
        self._unsettled[key] += 1
        return self._unsettled[key] <= MANY_FIRST

    @contextlib.contextmanager
    def _own_faults(self, key: Any) -> Iterator[None]:
        """A fault of the compiler itself costs speed, not the result: said loudly, then eager."""
        try:
            yield
        except (Warning, CaptureError, NaNError):  # warnings made errors, `strict`, `debug`
            raise
        except Exception as error:
            fault = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{os.path.basename(fault.filename)}:{fault.lineno}"
            what = f"{type(error).__name__} in {where}: {error}"
            self._stay_eager(
                key, (Reason(f"tracegrad failed on it ({what}); please report", None),)
            )

    def _build(
        self, key: Any, trace: Trace, arrays: Sequence[np.ndarray],
        results: Sequence[np.ndarray | None],
    ) -> None:  # fmt: skip
        """Compile a trace and keep it, unless the toolchain or the first result is at fault."""
        try:
            trace.compile()
        except CompilerNotFound as error:
            self._stay_eager(key, (Reason(str(error), None),), warn=False)
            return
        except CompileError as error:
            self._stay_eager(key, (Reason(str(error), None),))
            return
        for _ in range(1 + len(trace.predicates)):
            try:
                right = verification.check_forward(trace, arrays, results)
            except Strayed as stray:
                if not trace.adopt(stray):
                    return  # rounding took compiled code elsewhere: no path for this state
                trace.compile()
            else:
                break
        if not right:
            self._stay_eager(
                key, (Reason("its first compiled result was wrong", None),), warn=False
            )
            return
        self._keep(key, trace)

    def _keep(self, key: Any, trace: Trace) -> None:
        """From now on calls replay a trace."""
        self._unsettled.pop(key, None)
        with self._order_lock:
            self._traces[key] = [trace, *self._traces.get(key, ())]
        self._order.append(trace)
        self._share(key, trace)
        others = sum(map(len, self._strays.values())) + len(self._sized)
        if len(self._order) - others == MANY_TRACES + 1:
            pinned = "".join(f"; Python reads {n} at {where}" for n, where in trace.capture.pinned)
            self._warn(RecaptureWarning,
                       f"{self._label} has been captured {len(self._order)} times; {trace.why}{pinned}. "
                       "See its .explain().")  # fmt: skip

    def _share(self, key: Any, trace: Trace) -> None:
        """Note a trace that only has other sizes than one before; the oldest of many are let go."""
        code = trace.executable.unit.code if trace.executable is not None else ""
        if trace.sizes and code in self._codes:
            self._sized.append(key)
        self._codes.add(code)
        if len(self._sized) > MANY_SIZES:
            old = self._sized.popleft()
            with self._order_lock:
                gone = self._traces.pop(old, [])
                self._quicks.drop(old)
                self._quick = None
            self._order[:] = [t for t in self._order if t not in gone]

    def _uncovered(self, capture: Capture, covered: Sequence[Tensor]) -> Iterator[Reason]:
        """Tensors that came from where no guard looks."""
        for source in capture.sources:
            if source.kind == "captured" and not any(source.tensor is t for t in covered):
                user = next((n for n in capture.graph.nodes if source.value in n.inputs), None)
                yield Reason(
                    f"it reads a tensor of type {source.value.type} that reached it neither as an "
                    "argument nor through a variable that can be guarded (pass it as an argument)",
                    user.location if user else None,
                )

    def _stay_eager(self, key: Any, reasons: tuple[Reason, ...], warn: bool = True) -> None:
        if self._strict and warn:
            listed = "".join(f"\n  {reason}" for reason in reasons)
            raise CaptureError(
                f"{self._label} was run, but cannot be replayed, and strict=True asks for that:{listed}"
            )
        self._eager_keys[key] = reasons
        if warn:
            self._warn(EagerWarning, f"{self._label} runs eagerly: {reasons[0]}")

    def _warn(self, category: type[Warning], text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(text, category, stacklevel=user_stacklevel())

    def _why(self, full: Any, key: Any, outcome: Outcome, names: Sequence[str]) -> str:
        """Why a capture is needed, in words."""
        if outcome.strayed is not None:
            trace, stray = outcome.strayed
            return trace.explain_stray(stray)
        tried = self._traces.get(key, ())
        failed = [t for t in tried if t.failed_guard is not None]
        if failed:
            return failed[-1].explain_miss()
        keys = [*self._traces, *self._pending]
        if not keys:
            return "it was called for the first time"
        return "it was called with " + difference(keys[-1], full, names)

    def _leaf_names(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[str]:
        """How the user would write each leaf of the arguments."""
        try:
            parameters = list(inspect.signature(self._fn).parameters.values())
        except (TypeError, ValueError):
            parameters = []
        names: list[str] = []
        for i, x in enumerate(args):
            fixed = i < len(parameters) and parameters[i].kind != inspect.Parameter.VAR_POSITIONAL
            name = parameters[i].name if fixed else f"args[{i}]"
            names.extend(flatten(x, []).names(name))
        for name, x in kwargs.items():
            names.extend(flatten(x, []).names(name))
        return names
