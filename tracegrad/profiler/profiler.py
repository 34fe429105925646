"""`profile` with activities, a schedule of steps and a callback; around `autograd.profiler`.

Each step has a `ProfilerAction`; what must be done between two of them is the table
`TRANSITIONS`. Start reading at `profile`.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any

from tracegrad.autograd import profiler as base
from tracegrad.autograd.profiler_timeline import STEP
from tracegrad.autograd.profiler_util import EventList
from tracegrad.ir.errors import ParameterError, UnsupportedError
from tracegrad.ir.location import user_stacklevel
from tracegrad.profiler.scheduling import ProfilerAction, Schedule, always
from tracegrad.runtime.cuda import driver


class ProfilerActivity(Enum):
    """Kinds of events. There are `CPU`, and `CUDA` where there is a device.

    Example:
        >>> ProfilerActivity.CPU
        <ProfilerActivity.CPU: 0>
    """

    CPU = 0
    XPU = 1
    CUDA = 2
    HPU = 3
    MTIA = 4
    PrivateUse1 = 5


DEVICES = {
    ProfilerActivity.CUDA: "cuda", ProfilerActivity.XPU: "xpu", ProfilerActivity.MTIA: "mtia",
    ProfilerActivity.HPU: "hpu",
}  # fmt: skip

NONE, WARMUP = ProfilerAction.NONE, ProfilerAction.WARMUP
RECORD, SAVE = ProfilerAction.RECORD, ProfilerAction.RECORD_AND_SAVE

_BEGIN, _END = ("prepare", "start"), ("stop", "ready")
TRANSITIONS: Mapping[tuple[ProfilerAction, ProfilerAction | None], tuple[str, ...]] = {
    (NONE, WARMUP): ("prepare",),
    (NONE, RECORD): _BEGIN,
    (NONE, SAVE): _BEGIN,
    (WARMUP, NONE): ("Incorrect schedule: WARMUP followed by NONE", "start", "stop"),
    (WARMUP, RECORD): ("start",),
    (WARMUP, SAVE): ("start",),
    (WARMUP, None): ("start", "stop"),
    (RECORD, NONE): ("Incorrect schedule: RECORD followed by NONE", "stop"),
    (RECORD, WARMUP): ("Incorrect schedule: RECORD followed by WARMUP", "stop", "prepare"),
    (RECORD, None): _END,
    (SAVE, NONE): _END,
    (SAVE, WARMUP): (*_END, "prepare"),
    (SAVE, RECORD): (*_END, *_BEGIN),
    (SAVE, SAVE): (*_END, *_BEGIN),
    (SAVE, None): _END,
}
"""From (action, next action or None at the end) to what is done; a sentence is a warning."""

_CLEARS = (
    "Warning: Profiler clears events at the end of each cycle. Only events from the current cycle "
    "will be reported. To keep events across cycles, set acc_events=True."
)
_said: set[str] = set()


def supported_activities() -> set[ProfilerActivity]:
    """The kinds of events that can be recorded.

    Example:
        >>> ProfilerActivity.CPU in supported_activities()
        True
    """
    cuda = {ProfilerActivity.CUDA} if driver.device_count() > 0 else set()
    return {ProfilerActivity.CPU} | cuda


def kineto_available() -> bool:
    """True: what PyTorch needs its library Kineto for, `profile` and trace files, is there.

    Example:
        >>> kineto_available()
        True
    """
    return True


def _parsed(activities: Iterable[Any] | None, use_cuda: bool | None) -> set[ProfilerActivity]:
    """The kinds asked for, checked as PyTorch checks them."""
    items = list(supported_activities() if activities is None else activities)
    known = {x for x in items if isinstance(x, ProfilerActivity)}
    known |= {key for x in items if isinstance(x, dict) for key in x}
    if use_cuda is not None:
        text = "`use_cuda` is deprecated, use `activities` argument instead"
        warnings.warn(text, FutureWarning, stacklevel=user_stacklevel())
    if not known and not use_cuda:
        raise AssertionError("No valid profiler activities found")
    chosen: set[ProfilerActivity] = set()
    for item in items:
        if not isinstance(item, ProfilerActivity | dict):
            raise TypeError(f"Expected ProfilerActivity or dict, got {type(item)}")
        for activity in item if isinstance(item, dict) else (item,):
            if activity in chosen:
                raise ParameterError(f"Activity {activity} specified more than once")
            chosen.add(activity)
    return chosen


class profile:
    """Measure what this thread runs inside a `with` block, or between `start()` and `stop()`.

    Args:
        activities: `ProfilerActivity.CPU`, and `CUDA` where there is a device; others warn that
            there is no such device. By default all that there are.
        schedule: from the number of a step to a `ProfilerAction`; `step()` begins the next one,
            and each recorded step is a row `ProfilerStep*`. Without one, everything is recorded.
        on_trace_ready: called with this object at the end of each recorded cycle.
        record_shapes, profile_memory, with_stack, with_flops, with_modules,
            custom_trace_id_callback, post_processing_timeout_s: as for
            `tracegrad.autograd.profiler.profile`.
        experimental_config: None; there are no such options.
        execution_trace_observer: an object with `start()`, `stop()` and `cleanup()`, called with
            the recording.
        acc_events: keep the events of earlier cycles.
        use_cuda: deprecated by PyTorch.
    Raises:
        AssertionError: no activity is left; results are asked for before it was started.
        ParameterError: an activity is given twice, or the schedule returns DEVICE_STOPPED.
        RuntimeError: another profiler is open in this thread.
    Example:
        >>> import tracegrad as tg
        >>> x = tg.ones(3)
        >>> with profile() as prof:
        ...     y = x * 2
        >>> [row.key for row in prof.key_averages()]
        ['aten::mul']
        >>> chosen = [ProfilerActivity.CPU]
        >>> if tg.cuda.is_available():
        ...     chosen.append(ProfilerActivity.CUDA)
        >>> with profile(activities=chosen) as prof:
        ...     y = x * 2
    """

    def __init__(
        self, *, activities: Iterable[Any] | None = None, schedule: Schedule | None = None,
        on_trace_ready: Callable[[Any], Any] | None = None, record_shapes: bool = False,
        profile_memory: bool = False, with_stack: bool = False, with_flops: bool = False,
        with_modules: bool = False, experimental_config: None = None,
        execution_trace_observer: Any = None, acc_events: bool = False,
        use_cuda: bool | None = None, custom_trace_id_callback: Callable[[], str] | None = None,
        post_processing_timeout_s: float | None = None,
    ) -> None:  # fmt: skip
        self.activities = _parsed(activities, use_cuda)
        if experimental_config is not None:
            raise UnsupportedError(
                "profile: there are no experimental options; leave experimental_config=None"
            )
        self.record_shapes, self.profile_memory = record_shapes, profile_memory
        self.with_stack, self.with_flops, self.with_modules = with_stack, with_flops, with_modules
        self.acc_events = acc_events
        self.execution_trace_observer = execution_trace_observer
        self.custom_trace_id_callback = custom_trace_id_callback
        self.post_processing_timeout_s = post_processing_timeout_s
        self.profiler: base.profile | None = None
        self.on_trace_ready = on_trace_ready
        self.record_steps = schedule is not None
        self.schedule: Schedule = always if schedule is None else schedule
        self.step_num = 0
        self.current_action = self._action_of(0)
        self._step_label: base.record_function | None = None
        self._metadata: dict[str, Any] = {}
        self._preset: dict[str, Any] = {}

    def _action_of(self, step: int) -> ProfilerAction:
        action = self.schedule(step)
        if not isinstance(action, ProfilerAction):
            raise ParameterError(
                f"a schedule must return a ProfilerAction, got {action!r} for step {step}"
            )
        if action is ProfilerAction.DEVICE_STOPPED:
            raise ParameterError(
                "ProfilerAction.DEVICE_STOPPED is set internally by the profiler and must not be "
                "returned by a user-provided schedule"
            )
        return action

    # ---- steps ----------------------------------------------------------------------------------

    def __enter__(self) -> profile:
        self.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.stop()
        if self.execution_trace_observer is not None:
            self.execution_trace_observer.cleanup()

    def start(self) -> None:
        """Begin with the action of the current step."""
        base.note_use()
        self._change(NONE, self.current_action)
        self._begin_label()

    def stop(self) -> None:
        """End what is recorded; `on_trace_ready` is called if something was.

        Raises:
            AssertionError: it was not started.
        """
        base.note_use()
        self._end_label()
        self._change(self.current_action, None)

    def step(self) -> None:
        """Begin the next step of the schedule."""
        base.note_use()
        self._end_label()
        before, action = self.current_action, self._action_of(self.step_num + 1)
        self.step_num += 1
        self.current_action = action
        self._change(before, action)
        self._begin_label()

    def _begin_label(self) -> None:
        if self.record_steps:
            self._step_label = base.record_function(f"{STEP}{self.step_num}")
            self._step_label.__enter__()

    def _end_label(self) -> None:
        label, self._step_label = self._step_label, None
        if label is not None:
            label.__exit__(None, None, None)

    def _change(self, before: ProfilerAction, action: ProfilerAction | None) -> None:
        for what in TRANSITIONS.get((before, action), ()):
            if what == "prepare":
                self.prepare_trace()
            elif what == "start":
                self.start_trace()
            elif what == "stop":
                self.stop_trace()
            elif what == "ready":
                if self.on_trace_ready is not None:
                    self.on_trace_ready(self)
            else:
                warnings.warn(what, stacklevel=user_stacklevel())

    def prepare_trace(self) -> None:
        """Get ready to record; events of an earlier cycle go, unless `acc_events`."""
        if self.profiler is not None and self.acc_events:
            return
        if self.profiler is not None and _CLEARS not in _said:
            _said.add(_CLEARS)
            warnings.warn(_CLEARS, stacklevel=user_stacklevel())
        device = next((name for a, name in DEVICES.items() if a in self.activities), None)
        self.profiler = base.profile(
            use_cpu=ProfilerActivity.CPU in self.activities, use_device=device, use_kineto=True,
            record_shapes=self.record_shapes, with_flops=self.with_flops,
            profile_memory=self.profile_memory, with_stack=self.with_stack,
            with_modules=self.with_modules, acc_events=self.acc_events,
            custom_trace_id_callback=self.custom_trace_id_callback,
            post_processing_timeout_s=self.post_processing_timeout_s,
        )  # fmt: skip

    def start_trace(self) -> None:
        """Begin to record.

        Raises:
            AssertionError: `prepare_trace` was not called.
        """
        if self.execution_trace_observer is not None:
            self.execution_trace_observer.start()
        self._prepared("starting trace")._start()
        for name in ("profile_memory", "with_stack", "record_shapes", "with_modules",
                     "with_flops"):  # fmt: skip
            if getattr(self, name):
                self._metadata[name] = 1
        self._metadata.update(self._preset)

    def stop_trace(self) -> None:
        """End recording.

        Raises:
            AssertionError: `prepare_trace` was not called.
        """
        if self.execution_trace_observer is not None:
            self.execution_trace_observer.stop()
        self._prepared("stopping trace")._stop()

    def _prepared(self, what: str) -> base.profile:
        if self.profiler is None:
            raise AssertionError(f"Profiler must be initialized before {what}")
        return self.profiler

    def toggle_collection_dynamic(
        self, enable: bool, activities: Iterable[ProfilerActivity]
    ) -> None:
        """Record no more, or again, while the profiler goes on.

        Args:
            activities: nothing happens unless `ProfilerActivity.CPU` is among them.
        """
        if self.profiler is not None and ProfilerActivity.CPU in set(activities):
            self.profiler._listen(enable)

    # ---- results --------------------------------------------------------------------------------

    def events(self) -> EventList:
        """The single events of the last cycle, in the order in which they started."""
        return self._prepared("accessing events").function_events

    def key_averages(
        self, group_by_input_shape: bool = False, group_by_stack_n: int = 0,
        group_by_overload_name: bool = False,
    ) -> EventList:  # fmt: skip
        """One row per name; arguments as for `tracegrad.autograd.profiler.profile`."""
        return self._prepared("getting key averages").key_averages(
            group_by_input_shape, group_by_stack_n, group_by_overload_name
        )

    def export_chrome_trace(
        self, path: str | os.PathLike[str], use_python_export: bool = False
    ) -> None:
        """Write the last cycle as a trace file, compressed where `path` ends in `.gz`."""
        prof = self._prepared("exporting chrome trace")
        prof.export_chrome_trace(path, self._metadata)

    def export_stacks(
        self, path: str | os.PathLike[str], metric: str = "self_cpu_time_total"
    ) -> None:
        """Write the stacks with their times, the input of flame graphs; needs `with_stack`."""
        self._prepared("exporting stacks").export_stacks(path, metric)

    def export_memory_timeline(
        self, path: str | os.PathLike[str], device: str | None = None
    ) -> None:
        """Refused; PyTorch has deprecated it.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            "export_memory_timeline is not available. With profile_memory=True the table has "
            "columns of memory, and trace files the bytes of each event"
        )

    def add_metadata(self, key: str, value: str) -> None:
        """Add a text under `key` to trace files."""
        self._metadata[key] = value

    def add_metadata_json(self, key: str, value: str) -> None:
        """Add a piece of JSON under `key` to trace files.

        Raises:
            ParameterError: `value` is no JSON.
        """
        self._metadata[key] = _json(key, value)

    def preset_metadata_json(self, key: str, value: str) -> None:
        """The same, before the profiler was started.

        Raises:
            ParameterError: `value` is no JSON.
        """
        self._preset[key] = _json(key, value)

    def get_trace_id(self) -> str | None:
        """The identity of the last cycle in trace files; None before the first."""
        return None if self.profiler is None else self.profiler.trace_id

    def set_custom_trace_id_callback(self, callback: Callable[[], str] | None) -> None:
        """What makes the `trace_id` of the cycles to come."""
        self.custom_trace_id_callback = callback
        if self.profiler is not None:
            self.profiler.custom_trace_id_callback = callback


def _json(key: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ParameterError(f"the metadata {key!r} is no JSON: {error}; got {text!r}") from None
