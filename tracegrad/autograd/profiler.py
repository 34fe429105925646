"""A profiler: how long each operation, backward node, compiled function and labelled block took.

    with tracegrad.autograd.profiler.profile() as prof:
        loss(x).backward()
    print(prof.key_averages().table(sort_by="self_cpu_time_total"))

While a `profile` is open in a thread, the tracer hands it what that thread runs (see
`tracer/profiling.py`) and `Timeline` writes events down; otherwise nothing is paid. A compiled
function is one event, named after it: guards, kernels and wrapping. Start reading at `profile`.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ContextDecorator, contextmanager
from typing import Any

from tracegrad.autograd.profiler_util import (
    EventList,
    FunctionEvent,
    FunctionEventAvg,
    Interval,
    format_time,
)
from tracegrad.ir.errors import OperandError, ProfilerError
from tracegrad.ir.primitive import Primitive
from tracegrad.tracer.modules import is_user_frame
from tracegrad.tracer.profiling import Profiler, profilers
from tracegrad.tracer.state import state
from tracegrad.tracer.tensor import Tensor

__all__ = ["EventList", "FunctionEvent", "FunctionEventAvg", "Interval", "format_time", "profile",
           "record_function"]  # fmt: skip

ATEN_NAMES = {
    "broadcast": "expand", "cast": "to", "concat": "cat", "conv": "convolution",
    "dot_general": "matmul", "equal": "eq", "greater": "gt", "greater_equal": "ge", "less": "lt",
    "less_equal": "le", "not_equal": "ne", "random_bernoulli": "bernoulli",
    "random_normal": "randn", "random_randint": "randint", "random_uniform": "rand",
    "reduce_all": "all", "reduce_any": "any", "reduce_max": "amax", "reduce_min": "amin",
    "reduce_prod": "prod", "reduce_sum": "sum",
}  # fmt: skip
"""Where PyTorch's name of an operation is not the primitive's."""


def flops(op: Primitive, operands: Sequence[Any], params: Mapping[str, Any], out: Tensor) -> int:
    """Floating-point operations of products, convolutions, additions and multiplications."""
    size = int(out._array.size)
    if op.name in ("add", "mul"):
        return size
    if op.name == "dot_general":
        inner = 1
        for axis in params["contract"][0]:
            inner *= operands[0].shape[axis]
        return 2 * size * inner
    if op.name == "conv":
        inner = 1
        for n in operands[1].shape[1:]:
            inner *= n
        return 2 * size * inner
    return 0


class Timeline(Profiler):
    """Writes down what one thread runs, with the clock read right before and after."""

    def __init__(self, shapes: bool, stacks: bool, flops: bool, memory: bool) -> None:
        self.events: list[FunctionEvent] = []
        self._open: list[FunctionEvent] = []
        self._shapes, self._stacks, self._flops, self._memory = shapes, stacks, flops, memory
        self._thread = threading.get_ident()

    def _enter(self, name: str, operands: Sequence[Any] = ()) -> FunctionEvent:
        parent = self._open[-1] if self._open else None
        event = FunctionEvent(len(self.events), name, 0, self._thread, parent)
        if parent is not None:
            parent.cpu_children.append(event)
        if self._shapes:
            event.input_shapes = [list(getattr(x, "shape", ())) for x in operands]
        if self._stacks:
            event.stack = user_stack()
        self.events.append(event)
        self._open.append(event)
        event.start_ns = time.perf_counter_ns()
        return event

    def _leave(self, event: FunctionEvent) -> None:
        """Close `event`, and what is still open inside it."""
        now = time.perf_counter_ns()
        if event.end_ns:
            return  # it was closed together with a block around it
        while self._open:
            inner = self._open.pop()
            inner.end_ns = now
            if inner is event:
                return

    def close(self) -> None:
        """End whatever is still open."""
        if self._open:
            self._leave(self._open[0])

    @contextmanager
    def block(self, name: str) -> Iterator[FunctionEvent]:
        """An event around a `with` block; what runs inside belongs to it."""
        event = self._enter(name)
        try:
            yield event
        finally:
            self._leave(event)

    def _alone(self, event: FunctionEvent, run: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        """Run something as one event: operations inside it are not listed."""
        state.profiler = None
        try:
            return run(*args, **kw)
        finally:
            self._leave(event)
            state.profiler = self

    def operation(
        self, run: Callable[..., Tensor], op: Primitive, operands: Sequence[Any],
        params: Mapping[str, Any],
    ) -> Tensor:  # fmt: skip
        """One operation of the dispatcher."""
        event = self._enter("aten::" + ATEN_NAMES.get(op.name, op.name), operands)
        out = self._alone(event, run, op, operands, params)
        if self._memory:
            event.self_cpu_memory_usage = new_bytes(out)
        if self._flops:
            event.flops = flops(op, operands, params, out)
        return out

    def inplace(
        self, run: Callable[..., Tensor], name: str, target: Tensor, compute: Callable[..., Any],
        operands: Sequence[Any], params: Mapping[str, Any],
    ) -> Tensor:  # fmt: skip
        """One in-place operation, with what computes its value."""
        event = self._enter("aten::" + name, (target, *operands))
        return self._alone(event, run, name, target, compute, *operands, **params)

    def launch(self, label: str, run: Callable[[list[Any]], Any], leaves: list[Any]) -> Any:
        """One replay of a compiled function; forgotten again where the trace did not apply."""
        from tracegrad.tracer.launcher import MISS

        event = self._enter(label, [x for x in leaves if isinstance(x, Tensor)])
        results = self._alone(event, run, leaves)
        if results is MISS:
            self.events.pop()
            if event.cpu_parent is not None:
                event.cpu_parent.cpu_children.pop()
        elif self._memory:
            event.self_cpu_memory_usage = sum(
                new_bytes(x) for x in results if isinstance(x, Tensor)
            )
        return results


def new_bytes(out: Tensor) -> int:
    """Bytes of memory that a result does not share with an operand."""
    return int(out._array.nbytes) if out._view is None else 0


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


class profile:
    """Measure what this thread runs inside a `with` block.

    Args:
        enabled: False makes it a block that measures nothing.
        use_cuda: deprecated by PyTorch; as `use_device="cuda"`.
        use_device: "cuda" warns that there is none, and CPU times alone are taken.
        record_shapes: keep the operands' shapes, to group by.
        with_flops: count operations of products, convolutions, `add` and `mul`.
        profile_memory: count the bytes of results' new memory (what is freed is not subtracted).
        with_stack: keep the user's lines (slower).
        with_modules, use_kineto: accepted; there is nothing they would change.
        use_cpu: False records nothing, as there is no device.
    Raises:
        RuntimeError: it is entered twice, another one is open in this thread, or it is asked for
            results before it has ended.
    Example:
        >>> import tracegrad as tg
        >>> x = tg.ones(3)
        >>> with profile(record_shapes=True) as prof:
        ...     y = x * 2 + 1
        >>> [(row.key, row.count) for row in prof.key_averages()]
        [('aten::mul', 1), ('aten::add', 1)]
    """

    def __init__(
        self, enabled: bool = True, *, use_cuda: bool = False, use_device: str | None = None,
        record_shapes: bool = False, with_flops: bool = False, profile_memory: bool = False,
        with_stack: bool = False, with_modules: bool = False, use_kineto: bool = True,
        use_cpu: bool = True,
    ) -> None:  # fmt: skip
        self.enabled = enabled
        self.use_cpu = use_cpu
        self.with_stack = with_stack
        self.record_shapes = record_shapes or with_flops
        self.with_flops = with_flops
        self.profile_memory = profile_memory
        self.function_events: EventList | None = None
        self.entered = False
        self._timeline: Timeline | None = None
        if use_cuda:
            warnings.warn(
                "The attribute `use_cuda` will be deprecated soon, please use "
                "``use_device = 'cuda'`` instead.",
                FutureWarning, stacklevel=2,
            )  # fmt: skip
            use_device = "cuda"
        if use_device == "cuda":
            warnings.warn("CUDA is not available, disabling CUDA profiling", stacklevel=2)
        elif use_device is not None:
            warnings.warn(f"The {use_device} is not a valid device option.", stacklevel=2)
        self.use_device = None

    def __enter__(self) -> profile:
        if not self.enabled:
            return self
        if self.entered:
            raise ProfilerError("Profiler context manager is not reentrant")
        if state.profiler is not None:
            raise ProfilerError("Profiler is already enabled on this thread")
        self.entered = True
        self._timeline = Timeline(
            self.record_shapes, self.with_stack, self.with_flops, self.profile_memory
        )
        if self.use_cpu:
            profilers.append(self._timeline)
            state.profiler = self._timeline
        return self

    def __exit__(self, *exception: Any) -> None:
        timeline = self._timeline
        if not self.enabled or timeline is None:
            return
        if self.use_cpu:
            state.profiler = None
            profilers.remove(timeline)
        timeline.close()
        self.function_events = EventList(
            timeline.events, profile_memory=self.profile_memory, with_flops=self.with_flops,
            with_stack=self.with_stack,
        )  # fmt: skip

    def _finished(self) -> EventList:
        if self.function_events is None:
            raise ProfilerError("Profiler didn't finish running")
        return self.function_events

    def __repr__(self) -> str:
        if self.function_events is None:
            return "<unfinished torch.autograd.profile>"
        return repr(self.function_events)

    def __str__(self) -> str:
        return repr(self) if self.function_events is None else self.function_events.table()

    @property
    def self_cpu_time_total(self) -> float:
        """The time spent in all events, counted once, microseconds."""
        return self._finished().self_cpu_time_total

    def key_averages(
        self, group_by_input_shape: bool = False, group_by_stack_n: int = 0,
        group_by_overload_name: bool = False,
    ) -> EventList:  # fmt: skip
        """One row per name; also per shapes and per the innermost lines, where asked for.

        Args:
            group_by_input_shape: needs `record_shapes=True` to tell shapes apart.
            group_by_stack_n: needs `with_stack=True`; how many lines must agree.
            group_by_overload_name: accepted; operations have no overloads here.
        """
        events = self._finished()
        return events.key_averages(group_by_input_shape, group_by_stack_n, group_by_overload_name)

    def total_average(self) -> FunctionEventAvg:
        """One average over all events, named Total."""
        return self._finished().total_average()

    def table(self, sort_by: str | None = None, row_limit: int = 100, **layout: Any) -> str:
        """The single events as text, one row each, in the order in which they started.

        Args:
            sort_by: a column, largest first: `cpu_time`, `cpu_time_total`,
                `self_cpu_time_total`, `cpu_memory_usage`, `self_cpu_memory_usage`, `count`, ...
            row_limit: how many rows; -1 for all.
            layout: `max_src_column_width=75`, `max_name_column_width=55`,
                `max_shapes_column_width=80`, `header=None`, `top_level_events_only=False`,
                `time_unit=None` ("s", "ms" or "us").
        Raises:
            AttributeError: `sort_by` is no sort key.
            ParameterError: `time_unit` is something else.
        """
        return self._finished().table(sort_by, row_limit, **layout)

    def export_chrome_trace(self, path: str | os.PathLike[str]) -> None:
        """Write the events as JSON that Perfetto and chrome://tracing open."""
        self._finished().export_chrome_trace(path)

    def export_stacks(
        self, path: str | os.PathLike[str], metric: str = "self_cpu_time_total"
    ) -> None:
        """Write the stacks with their times, the input of flame graphs.

        Raises:
            AssertionError: the profile was made without `with_stack=True`.
            ParameterError: `metric` is unknown.
        """
        if not self.with_stack:
            raise AssertionError("export_stacks() requires with_stack=True")
        self._finished().export_stacks(path, metric)


class record_function(ContextDecorator):
    """Label a block or a function: it becomes a row that the operations inside belong to.

    Args:
        name: the label.
        args: accepted for PyTorch's sake; it is not shown.
    Raises:
        OperandError: `name` is not a string.
    Example:
        >>> import tracegrad as tg
        >>> with profile() as prof:
        ...     with record_function("doubling"):
        ...         y = tg.ones(3) * 2
        >>> [row.key for row in prof.key_averages()]
        ['doubling', 'aten::mul']
    """

    def __init__(self, name: str, args: str | None = None) -> None:
        if not isinstance(name, str):
            raise OperandError(f"record_function: name must be a str, got {type(name).__name__}")
        self.name = name
        self.args = args
        self._blocks: list[Any] = []

    def _recreate_cm(self) -> record_function:
        """A label of its own for each call of a decorated function, so that calls may nest."""
        return record_function(self.name, self.args)

    def __enter__(self) -> record_function:
        profiler = state.profiler
        block = None if profiler is None else profiler.block(self.name)
        self._blocks.append(block)
        if block is not None:
            block.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        block = self._blocks.pop()
        if block is not None:
            block.__exit__(None, None, None)
