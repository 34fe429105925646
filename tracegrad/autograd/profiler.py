"""A profiler: how long operations, backward nodes, compiled functions and labelled blocks took.

    with tracegrad.autograd.profiler.profile() as prof:
        loss(x).backward()
    print(prof.key_averages().table(sort_by="self_cpu_time_total"))

While a `profile` is open in a thread, the tracer hands it what that thread runs and
`profiler_timeline.Timeline` writes events down; otherwise nothing is paid. A compiled function is
an event that holds its kernels, and those the operations fused into them, whose times are estimates
(`profiler_kernels`). `tracegrad.profiler` has the newer interface. Start reading at `profile`.
"""

from __future__ import annotations

import os
import uuid
import warnings
import weakref
from collections.abc import Callable, Mapping
from contextlib import ContextDecorator
from typing import Any, NoReturn

from tracegrad.autograd.profiler_timeline import Timeline
from tracegrad.autograd.profiler_trace import trace_events, write_json
from tracegrad.autograd.profiler_tree import finished
from tracegrad.autograd.profiler_util import (
    DeviceType,
    EventList,
    FormattedTimesMixin,
    FunctionEvent,
    FunctionEventAvg,
    Interval,
    Kernel,
    format_time,
)
from tracegrad.ir.errors import ParameterError, ProfilerError, UnsupportedError
from tracegrad.ir.location import user_stacklevel
from tracegrad.runtime.cuda import driver
from tracegrad.tracer.state import state

__all__ = ["EventList", "FormattedTimesMixin", "FunctionEvent", "FunctionEventAvg", "Interval",
           "Kernel", "emit_itt", "emit_nvtx", "format_time", "load_nvprof", "profile",
           "record_function"]  # fmt: skip

DEVICES = ("cuda", "xpu", "mtia", "hpu")  # that PyTorch may have; "cuda" may be here


class profile:
    """Measure what this thread runs inside a `with` block.

    Args:
        enabled: False makes it a block that measures nothing.
        use_cuda: deprecated by PyTorch; as `use_device="cuda"`.
        use_device: "cuda" takes times of CUDA devices too, and memory there. Where there is none,
            and for "xpu" and "hpu", it warns, and CPU times alone are taken.
        record_shapes: keep the operands' shapes, to group by.
        with_flops: count operations of products, convolutions, `add` and `mul`.
        profile_memory: count bytes that results allocate, less those that are freed meanwhile;
            what is freed outside all events is a row `[memory]`.
        with_stack: keep the user's lines (slower).
        with_modules, activity_filters, post_processing_timeout_s: accepted; there is nothing they
            would change. So is use_kineto, where the CPU is measured.
        use_cpu: False (with `use_kineto`, and a device): keep the device's events alone.
        experimental_config: None; there are no such options.
        acc_events: when it is started again (by `tracegrad.profiler`), earlier events stay.
        custom_trace_id_callback: makes the `trace_id` of trace files.
    Raises:
        RuntimeError: it is entered twice, another one is open in this thread, it is left in
            another thread, or it is asked for results before it has ended.
        AssertionError: nothing was left to be measured.
        ParameterError: `post_processing_timeout_s` is negative.
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
        with_stack: bool = False, with_modules: bool = False, use_kineto: bool = False,
        use_cpu: bool = True, experimental_config: None = None, acc_events: bool = False,
        custom_trace_id_callback: Callable[[], str] | None = None,
        post_processing_timeout_s: float | None = None,
        activity_filters: Mapping[Any, Any] | None = None,
    ) -> None:  # fmt: skip
        self.enabled = enabled
        self.use_cpu = use_cpu
        self.use_device: str | None = None
        self.record_shapes = record_shapes or with_flops
        self.with_flops = with_flops
        self.profile_memory = profile_memory
        self.with_stack = with_stack
        self.with_modules = with_modules
        self.acc_events = acc_events
        self.custom_trace_id_callback = custom_trace_id_callback
        self.trace_id = ""
        self.entered = False
        self._timeline: Timeline | None = None
        self._ended = False
        self._events: EventList | None = None
        self._earlier: list[FunctionEvent] = []
        if not enabled:
            return
        if use_cuda:
            warnings.warn(
                "The attribute `use_cuda` will be deprecated soon, please use "
                "``use_device = 'cuda'`` instead.",
                FutureWarning, stacklevel=2,
            )  # fmt: skip
            use_device = "cuda"
        if experimental_config is not None:
            raise UnsupportedError(
                "profile: there are no experimental options; leave experimental_config=None"
            )
        if not use_cpu and not use_kineto:
            raise AssertionError("Device-only events supported only with Kineto (use_kineto=True)")
        self.use_device = _checked_device(use_device)
        if not use_cpu and self.use_device is None:
            raise AssertionError("No activities specified for the profiler")
        if post_processing_timeout_s is not None and post_processing_timeout_s < 0:
            raise ParameterError("post_processing_timeout_s must be non-negative")

    # ---- recording ------------------------------------------------------------------------------

    def __enter__(self) -> profile:
        if not self.enabled:
            return self
        if self.entered:
            raise ProfilerError("Profiler context manager is not reentrant")
        self._start()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.enabled and self._timeline is not None:
            self._stop()

    def _start(self) -> None:
        """Begin to record; what was recorded before goes, or stays with `acc_events`."""
        note_use()
        running = state.profiler
        if isinstance(running, Timeline) and running.owner() is None:
            running.stop()  # it was started, and then forgotten
        elif running is not None:
            raise ProfilerError("Profiler is already enabled on this thread")
        earlier = self._timeline if self._ended and self.acc_events else None
        if earlier is not None:
            self._earlier = list(self._finished())
        make_id = self.custom_trace_id_callback
        self.trace_id = f"{uuid.uuid4().int:032X}" if make_id is None else make_id()
        self.entered, self._ended, self._events = True, False, None
        self._timeline = Timeline(
            self.record_shapes, self.with_stack, self.with_flops, self.profile_memory,
            weakref.ref(self), self.use_device,
        )  # fmt: skip
        self._timeline.start()
        if earlier is not None:  # times go on counting from the first start
            self._timeline.origin_ns, self._timeline.epoch_ns = earlier.origin_ns, earlier.epoch_ns

    def _stop(self) -> None:
        note_use()
        if self._timeline is None or self._ended:
            warnings.warn("the profiler is not running", stacklevel=user_stacklevel())
            return
        self._timeline.stop()
        self._ended = True

    def _listen(self, on: bool) -> None:
        """Record no more until it is called again."""
        note_use()
        if self._timeline is not None and not self._ended:
            self._timeline.listen(on)

    def _finished(self) -> EventList:
        note_use()
        if not self._ended or self._timeline is None:
            raise ProfilerError(
                "Profiler didn't finish running: ask for results after its `with` block"
            )
        if self._events is None:
            events = [*self._earlier, *finished(self._timeline)]
            if not self.use_cpu:
                events = [e for e in events if e.device_type is not DeviceType.CPU]
            for number, event in enumerate(events):
                event.id = number
            self._events = EventList(
                events, profile_memory=self.profile_memory, with_flops=self.with_flops
            )
            self._earlier = []
        return self._events

    # ---- results --------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return repr(self._finished()) if self._ended else "<unfinished torch.autograd.profile>"

    def __str__(self) -> str:
        return self._finished().table() if self._ended else repr(self)

    @property
    def function_events(self) -> EventList:
        """The single events, in the order in which they started."""
        return self._finished()

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

        Rows whose time is a share of a measured one are marked, with a note below.

        Args:
            sort_by: an attribute of the rows, largest first: `cpu_time`, `cpu_time_total`,
                `self_cpu_time_total`, `cpu_memory_usage`, `self_cpu_memory_usage`, `count`, ...
            row_limit: how many rows; negative for all.
            layout: `max_src_column_width=75`, `max_name_column_width=55`,
                `max_shapes_column_width=80` (None: as wide as needed), `header=None`,
                `top_level_events_only=False`, `time_unit=None` ("s", "ms" or "us").
        Raises:
            AttributeError: `sort_by` is no attribute.
            ParameterError: `time_unit` is something else.
        """
        return self._finished().table(sort_by, row_limit, **layout)

    def export_chrome_trace(
        self, path: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Write a JSON object that Perfetto and chrome://tracing open, events in `traceEvents`.

        Arrows lead from each operation to the backward node that differentiates it; kernels of
        compiled functions and the operations inside them have lanes of their own.

        Args:
            path: a name that ends in `.gz` makes it a compressed file.
            metadata: further keys of the object.
        """
        events = self._finished()
        assert self._timeline is not None
        content = {
            "schemaVersion": 1, "deviceProperties": [], **(metadata or {}),
            "trace_id": self.trace_id, "displayTimeUnit": "ms",
            "baseTimeNanoseconds": self._timeline.epoch_ns, "traceName": os.fspath(path),
            "traceEvents": trace_events(events),
        }  # fmt: skip
        write_json(path, content)

    def export_stacks(
        self, path: str | os.PathLike[str], metric: str = "self_cpu_time_total"
    ) -> None:
        """Write the stacks with their times, the input of flame graphs.

        Raises:
            AssertionError: the profile was made without `with_stack=True`.
            ParameterError: `metric` is unknown.
        """
        events = self._finished()
        if not self.with_stack:
            raise AssertionError("export_stacks() requires with_stack=True")
        events.export_stacks(path, metric)


def note_use() -> None:
    """A profiler inside a function that is being captured: replays would not run it."""
    if state.recorder is not None:
        state.recorder.note("a profiler")


def _checked_device(device: str | None) -> str | None:
    """The device that is measured; a warning, in PyTorch's words, of one that is not there."""
    if device is None:
        return None
    if device == "cuda" and driver.device_count() > 0:
        return device
    if device not in DEVICES:
        warnings.warn(f"The {device} is not a valid device option.", stacklevel=3)
    elif device == "mtia":
        raise AssertionError(
            "Legacy MTIA profiling is not supported. Requires use_kineto=True on MTIA devices."
        )
    else:
        name = device.upper()
        warnings.warn(f"{name} is not available, disabling {name} profiling", stacklevel=3)
    return None


class record_function(ContextDecorator):
    """Label a block or a function: it becomes a row that the operations inside belong to.

    A decorated generator or coroutine function is labelled, as in PyTorch, where it is called,
    before its body runs; to label the body, use `with record_function(...)` in it. A label inside a
    compiled function holds, in each kernel, the operations that were written in its block.

    Args:
        name: the label.
        args: accepted for PyTorch's sake; it is not shown.
    Raises:
        RuntimeError: `name` or `args` is not a string.
        AssertionError: it is left before it was entered.
    Example:
        >>> import tracegrad as tg
        >>> x = tg.ones(3)
        >>> with profile() as prof:
        ...     with record_function("doubling"):
        ...         y = x * 2
        >>> [row.key for row in prof.key_averages()]
        ['doubling', 'aten::mul']
    """

    def __init__(self, name: str, args: str | None = None) -> None:
        for which, value, kind in (("name", name, "str"), ("args", args, "Optional[str]")):
            if not (isinstance(value, str) or (value is None and which == "args")):
                raise ProfilerError(
                    "profiler::_record_function_enter_new() Expected a value of type "
                    f"'{kind}' for argument '{which}' but instead found type "
                    f"'{type(value).__name__}'."
                )
        self.name = name
        self.args = args
        self._blocks: list[Any] = []

    def _recreate_cm(self) -> record_function:
        """A label of its own for each call of a decorated function, so that calls may nest."""
        return record_function(self.name, self.args)

    def __enter__(self) -> record_function:
        profiler, recorder = state.profiler, state.recorder
        block = None if profiler is None else profiler.block(self.name)
        self._blocks.append((block, recorder))
        if recorder is not None:
            recorder.labels = (*recorder.labels, self.name)
        if block is not None:
            block.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        if not self._blocks:
            raise AssertionError("Expected record to be set")
        block, recorder = self._blocks.pop()
        if recorder is not None:
            recorder.labels = recorder.labels[:-1]
        if block is not None:
            block.__exit__(None, None, None)


# ---- other profilers ----------------------------------------------------------------------------


class emit_nvtx:
    """Ranges for NVIDIA's tools: there is no CUDA here, so entering it is refused.

    Args:
        enabled: False makes it a block that does nothing.
        record_shapes: as for `profile`.
    Raises:
        AssertionError: it is entered.
    Example:
        >>> with emit_nvtx(enabled=False):
        ...     pass
    """

    _REFUSAL = (
        "Torch not compiled with CUDA enabled: emit_nvtx has no device to mark. Use profile(), and "
        "its export_chrome_trace() for a timeline"
    )

    def __init__(self, enabled: bool = True, record_shapes: bool = False) -> None:
        self.enabled = enabled
        self.record_shapes = record_shapes

    def __enter__(self) -> None:
        if self.enabled:
            raise AssertionError(self._REFUSAL)

    def __exit__(self, *exception: Any) -> None:
        return None


class emit_itt(emit_nvtx):
    """Ranges for Intel's VTune: its library is not used here, so entering it is refused.

    Args:
        enabled: False makes it a block that does nothing.
        record_shapes: as for `profile`.
    Raises:
        UnsupportedError: it is entered.
    Example:
        >>> with emit_itt(enabled=False):
        ...     pass
    """

    def __enter__(self) -> None:
        if self.enabled:
            raise UnsupportedError(
                "emit_itt: VTune's ITT is not available. Use profile(), and its "
                "export_chrome_trace() for a timeline"
            )


def load_nvprof(path: str | os.PathLike[str]) -> NoReturn:
    """Refused: files of nvprof describe CUDA kernels, which there are none of.

    Raises:
        UnsupportedError: always.
    Example:
        >>> load_nvprof("trace.prof")
        Traceback (most recent call last):
        tracegrad.ir.errors.UnsupportedError: ...
    """
    raise UnsupportedError(
        f"load_nvprof: cannot read {os.fspath(path)!r}: there is no CUDA here. Use profile()"
    )
