"""The recorder of one profile: writes events down while the tracer runs operations.

`Timeline` is the `Profiler` that the tracer's hot paths meet (`tracer/profiling.py`). While it
records it only appends; `profiler_tree.finished` puts the events into order when it has ended.
Start reading at `Timeline.operation`.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tracegrad.autograd.profiler_events import BACKWARD, LABEL, FunctionEvent
from tracegrad.autograd.profiler_memory import MemoryWatch
from tracegrad.autograd.profiler_names import aten_name, flops, public_call, users_operands
from tracegrad.ir.errors import ProfilerError
from tracegrad.ir.primitive import Primitive
from tracegrad.runtime import history
from tracegrad.tracer.function_node import FunctionNode
from tracegrad.tracer.modules import is_user_frame
from tracegrad.tracer.profiling import ACCUMULATE, Profiler, profilers
from tracegrad.tracer.state import state, watching
from tracegrad.tracer.tape import BackwardNode
from tracegrad.tracer.tensor import Tensor

STEP = "ProfilerStep#"  # the labels of `profiler.profile.step`; they are one row of the table

_LOADS = {"built": "compile", "disk": "load from disk", "memory": "load"}

Launch = tuple[FunctionEvent, history.Launchable, int, int]
"""A call of a translation unit: the event it ran in, what was called, start and end."""


class Timeline(MemoryWatch, Profiler, history.Listener):
    """Writes down what one thread runs, with the clock read right before and after.

    Attributes:
        events: in the order in which they started, on the clock of `time.perf_counter_ns`.
        launches: the calls of compiled code on the CPU; calls: those on devices.
        device: "cuda" where devices are measured too.
        origin_ns, epoch_ns: when it was started, on that clock and since 1970.
        owner: returns the profiler that it belongs to; None when that is gone.
    """

    def __init__(
        self, shapes: bool, stacks: bool, flops: bool, memory: bool, owner: Callable[[], Any],
        device: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.events: list[FunctionEvent] = []
        self.launches: list[Launch] = []
        self.calls: list[Any] = []  # see `profiler_device.Call`
        self.device = device
        self.shapes, self.stacks, self.flops, self.memory = shapes, stacks, flops, memory
        self.owner = owner
        self.thread = threading.get_native_id()
        self._ident = threading.get_ident()
        self.origin_ns = self.epoch_ns = self._began_ns = 0
        self._open: list[FunctionEvent] = []
        self._call: tuple[FrameType, FunctionEvent | None] | None = None  # see `_in_call`
        self._ending: FunctionEvent | None = None  # of a public function whose frame is let go of
        self._running = self._froze = False

    def start(self) -> None:
        """Listen to this thread."""
        profilers.append(self)
        watching.append(self)
        history.listen(self)
        if not gc.get_freeze_count():  # or a pause of the collector, which looks at all objects
            gc.freeze()  # there are, would count as time of the operation that it falls into
            self._froze = True
        self._running = True
        state.profiler = self
        self.origin_ns = self._began_ns = time.perf_counter_ns()
        self.epoch_ns = time.time_ns()

    def stop(self) -> None:
        """Listen no more, and end whatever is still open.

        Raises:
            ProfilerError: this is another thread than the one that is listened to.
        """
        if threading.get_ident() != self._ident:
            raise ProfilerError(
                "a profiler must be stopped in the thread in which it was started; it goes on there"
            )
        now = time.perf_counter_ns()
        self._end_call()
        self._running = False
        if state.profiler is self:
            state.profiler = None
        profilers.remove(self)
        watching.remove(self)
        history.unlisten(self)
        if self._froze:
            gc.unfreeze()
            self._froze = False
        for event in self._open:
            event.end_ns = now
        self._open.clear()
        self._alive.clear()

    def listen(self, on: bool) -> None:
        """Pause, or go on after a pause."""
        if threading.get_ident() == self._ident and state.profiler in (None, self):
            state.profiler = self if on else None

    # ---- events ---------------------------------------------------------------------------------

    def _enter(self, name: str, operands: Sequence[Any] = (), **more: Any) -> FunctionEvent:
        event = FunctionEvent(len(self.events), name, 0, self.thread, **more)
        self._describe(event, operands)
        self.events.append(event)
        self._open.append(event)
        event.start_ns = time.perf_counter_ns()
        return event

    def _describe(self, event: FunctionEvent, operands: Sequence[Any]) -> None:
        """Add the shapes and lines that were asked for."""
        if self.shapes:
            event.input_shapes = [list(getattr(x, "shape", ())) for x in operands]
        if self.stacks:
            event.stack = user_stack()

    def _leave(self, event: FunctionEvent) -> None:
        """Close `event`; blocks of coroutines may close before those that they began in."""
        now = time.perf_counter_ns()
        if event.end_ns:
            return  # by `stop`
        event.end_ns = now
        if self._open[-1] is event:
            self._open.pop()
        else:
            self._open.remove(event)

    @contextmanager
    def _around(self, name: str, operands: Sequence[Any] = (), **more: Any) -> Iterator[Any]:
        """An event inside which others are listed."""
        self._end_call()
        event = self._enter(name, operands, **more)
        try:
            yield event
        finally:
            self._end_call()
            self._leave(event)

    @contextmanager
    def block(self, name: str) -> Iterator[FunctionEvent]:
        """An event around a `with` block; what runs inside belongs to it."""
        with self._around(name, scope=LABEL, activity_type="user_annotation") as event:
            if name.startswith(STEP):
                event.name, event.shown_name = STEP[:-1] + "*", name
            yield event

    def _alone(self, event: FunctionEvent, run: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        """Run something as one event: operations inside it are not listed."""
        state.profiler = None
        try:
            return run(*args, **kw)
        finally:
            self._leave(event)
            state.profiler = self

    def _operation(self, name: str, operands: Sequence[Any]) -> FunctionEvent:
        """The event of an operation, inside that of the public function that is composed of it."""
        self._in_call(name)
        return self._enter(name, operands)

    def _in_call(self, name: str, since: int = 0) -> None:
        """See which public function the operation `name` is part of, and list its call.

        The frame of the call is kept until the next operation, so that two calls can be told apart.
        The call began with the operation: now, or at `since`.
        """
        found = public_call(sys._getframe(3))
        if found is None:
            self._end_call()
            return
        label, frame = found
        if self._call is not None and self._call[0] is frame:
            return
        self._end_call()
        if label == name:  # it is the operation itself, perhaps followed by others
            self._call = (frame, None)
            return
        began = since or time.perf_counter_ns()
        event = FunctionEvent(len(self.events), label, began, self.thread)
        event.activity_type = "composite"
        if self.shapes:
            code = frame.f_code
            names = code.co_varnames[: code.co_argcount]
            given = [frame.f_locals.get(x) for x in names]
            event.input_shapes = [list(getattr(x, "shape", ())) for x in given]
        if self.stacks:
            event.stack = user_stack()
        self.events.append(event)
        self._open.append(event)
        self._call = (frame, event)

    def _end_operation(self) -> None:
        if self._call is not None and self._call[1] is not None:
            self._call[1].end_ns = time.perf_counter_ns()

    def _end_call(self) -> None:
        """Let go of the frame; what was allocated in it and only it kept is freed by the call."""
        if self._call is None:
            return
        event = self._ending = self._call[1]
        self._call = None
        self._ending = None
        if event is not None:
            self._open.remove(event)

    def _freeing(self, born_ns: int) -> FunctionEvent | None:
        """The event that memory allocated at a given time is freed in at this moment."""
        around = self._open[-1] if self._open else None
        if around is None:
            return None
        if around is self._ending:  # its arguments were let go of by the caller
            if born_ns >= around.start_ns:
                return around
        elif self._call is None or self._call[1] is not around:
            return around
        elif self._call[0].f_back is not None:
            return around  # the function is still running
        return self._open[-2] if len(self._open) > 1 else None

    # ---- what the tracer runs -------------------------------------------------------------------

    def operation(
        self, run: Callable[..., Tensor], op: Primitive, operands: Sequence[Any],
        params: Mapping[str, Any],
    ) -> Tensor:  # fmt: skip
        """One operation of the dispatcher."""
        event = self._operation(aten_name(op), users_operands(op, operands))
        try:
            out: Tensor = self._alone(event, run, op, operands, params)
        finally:
            self._end_operation()
        if out._grad_fn is not None:
            event.sequence_nr = out._grad_fn.sequence
        if self.memory:
            self._allocated(event, [out._array], operands)
        if self.flops:
            event.flops = flops(op, operands, params, int(out._array.size))
        return out

    def made(self, name: str, out: Sequence[Tensor], since: int, given: Sequence[Tensor]) -> None:
        """One call of a factory, which has ended; operations that it ran are events inside it."""
        now = time.perf_counter_ns()
        since = max(since or now, self._began_ns)
        name = f"aten::{name}"
        self._in_call(name, since)
        event = FunctionEvent(len(self.events), name, since, self.thread, end_ns=now)
        self._describe(event, given)
        self.events.append(event)
        self._end_operation()
        if self.memory:
            arrays = [x._array for x in out]
            self._allocated(event, arrays, given)

    def inplace(
        self, run: Callable[..., Tensor], name: str, target: Tensor, compute: Callable[..., Any],
        operands: Sequence[Any], params: Mapping[str, Any],
    ) -> Tensor:  # fmt: skip
        """One in-place operation, with what computes its value."""
        event = self._operation("aten::" + name, (target, *operands))
        try:
            out: Tensor = self._alone(event, run, name, target, compute, *operands, **params)
        finally:
            self._end_operation()
        if out._grad_fn is not None and state.grad_enabled:
            event.sequence_nr = out._grad_fn.sequence
        if self.flops and name in ("add_", "mul_"):
            event.flops = int(out._array.size)
        return out

    def launch(self, label: str, run: Callable[[list[Any]], Any], leaves: list[Any]) -> Any:
        """One replay of a compiled function; forgotten again where the trace did not apply."""
        from tracegrad.tracer.launcher import MISS

        tensors = [x for x in leaves if isinstance(x, Tensor)]
        self._end_call()
        event = self._enter(label, tensors, activity_type="compiled_call")
        results = self._alone(event, run, leaves)
        if results is MISS:
            if self.events[-1] is event:
                self.events.pop()
            else:  # memory was freed meanwhile
                self.events.remove(event)
            return results
        made = [x for x in results if isinstance(x, Tensor)]
        event.sequence_nr = next((x._grad_fn.sequence for x in made if x._grad_fn is not None), -1)
        if self.memory:
            arrays = [x._array for x in made]
            for node in {x._grad_fn for x in made}:  # keeps what no tensor shows
                residuals = getattr(node, "residuals", None) or ()
                arrays += [array for array, storage, _ in residuals if storage is None]
            read = [x for x in getattr(run, "__globals__", {}).values() if isinstance(x, Tensor)]
            self._allocated(event, arrays, [*tensors, *read])
        return results

    def capture(self, label: str, run: Callable[..., Any], *args: Any) -> Any:
        """The run of a function that is recorded, and its compilation."""
        with self._around(f"{label}: capture", activity_type="capture"):
            return run(*args)

    def backward(
        self, run: Callable[..., Sequence[Tensor | None]], node: BackwardNode,
        cotangents: list[Tensor | None], create_graph: bool,
    ) -> Sequence[Tensor | None]:  # fmt: skip
        """One step of the engine; the operations of its rule are events inside it."""
        given = [c for c in cotangents if c is not None]
        with self._around(node.name(), given, scope=BACKWARD) as event:
            event.sequence_nr = node.sequence
            parts = run(node, cotangents, create_graph)
        if self.memory:
            arrays = [part._array for part in parts if part is not None]
            self._allocated(event, arrays, cotangents)
        return parts

    @contextmanager
    def function(self, name: str, node: FunctionNode, given: Sequence[Any]) -> Iterator[None]:
        """The forward of a `Function`; the operations of it are events inside."""
        with self._around(name, given) as event:
            if node._recorded:
                event.sequence_nr = node.sequence
            yield

    def accumulate(
        self, run: Callable[..., None], leaf: Tensor, ct: Tensor, create_graph: bool, fresh: bool
    ) -> None:  # fmt: skip
        """What the engine adds to `.grad` of a leaf; the first gradient may be a copy."""
        first = leaf._grad is None
        with self._around(ACCUMULATE, (ct,), scope=BACKWARD) as event:
            run(leaf, ct, create_graph, fresh=fresh)
        if self.memory and first and leaf._grad is not None:
            self._allocated(event, [leaf._grad._array], (ct,))

    def launched(
        self, what: history.Launchable, start_ns: int, end_ns: int, span: Any = None
    ) -> None:
        """A call of a translation unit has returned: of a compiled function or its backward.

        On a device that of any operation.
        """
        if threading.get_ident() != self._ident:
            return
        around = self._open[-1] if self._open else None
        if span is not None:
            if self.device is not None:
                self.calls.append((around, what, start_ns, span))
        elif around is not None and (
            around.scope == BACKWARD or around.activity_type == "compiled_call"
        ):
            self.launches.append((around, what, start_ns, end_ns))

    def loaded(self, entry: history.KernelRecord) -> None:
        """A unit was generated, and compiled or found in a cache, in the time just past."""
        if threading.get_ident() != self._ident:
            return
        now = time.perf_counter_ns()
        began = now - round((entry.codegen_ms + entry.load_ms) * 1e6)
        name = f"{entry.label}: {_LOADS[entry.cache]}"
        event = FunctionEvent(len(self.events), name, began, self.thread, end_ns=now)
        event.activity_type = "capture"
        self.events.append(event)


def user_stack() -> list[str]:
    """The user's lines that led here, innermost first: `train.py(41): step`."""
    lines = []
    frame: Any = sys._getframe(1)
    while frame is not None:
        if is_user_frame(frame):
            code = frame.f_code
            lines.append(f"{code.co_filename}({frame.f_lineno}): {code.co_name}")
        frame = frame.f_back
    return lines
