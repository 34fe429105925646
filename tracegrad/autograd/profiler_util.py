"""What a profiler recorded, under PyTorch's name of the module: lists of events or averages.

The events themselves are in `profiler_events`. Start reading at `EventList.key_averages`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from tracegrad.autograd.profiler_events import (
    BACKWARD,
    FUNCTION,
    LABEL,
    DeviceType,
    FormattedTimesMixin,
    FunctionEvent,
    FunctionEventAvg,
    Interval,
    Kernel,
    format_time,
)
from tracegrad.ir.errors import ParameterError

__all__ = ["BACKWARD", "FUNCTION", "LABEL", "DeviceType", "EventList", "FormattedTimesMixin",
           "FunctionEvent", "FunctionEventAvg", "Interval", "Kernel", "format_time",
           "on_device"]  # fmt: skip


class EventList(list[Any]):
    """Events or averages, with the memory and FLOPs columns that were asked for.

    Args:
        events: what it holds.
        use_device: accepted for PyTorch's sake; the events know which device they ran on.
        profile_memory, with_flops: what was recorded beside times.
    Example:
        >>> import tracegrad as tg
        >>> x = tg.ones(2)
        >>> with tg.autograd.profiler.profile() as prof:
        ...     y = x * 2
        >>> [row.key for row in prof.key_averages()]
        ['aten::mul']
    """

    def __init__(
        self, events: Iterable[Any] = (), *, use_device: str | None = None,
        profile_memory: bool = False, with_flops: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(events)
        self.recorded = {"profile_memory": profile_memory, "with_flops": with_flops}

    def __str__(self) -> str:
        return self.table()

    @property
    def self_cpu_time_total(self) -> float:
        """The time spent in all of them, counted once, microseconds."""
        return sum(event.self_cpu_time_total for event in self)

    @property
    def self_device_time_total(self) -> float:
        """The time that devices were busy with them, microseconds."""
        busy = [e for e in self if e.device_type is not DeviceType.CPU]
        return sum(event.self_device_time_total for event in busy)

    def key_averages(
        self, group_by_input_shapes: bool = False, group_by_stack_n: int = 0,
        group_by_overload_name: bool = False,
    ) -> EventList:  # fmt: skip
        """Sum the events by name; also by shapes, and by the innermost lines of the stack.

        Labels and estimates form groups of their own beside operations of the same name.

        Args:
            group_by_input_shapes: events on other shapes form groups of their own.
            group_by_stack_n: how many lines of the stack must agree.
            group_by_overload_name: accepted for PyTorch's sake; operations have no overloads here.
        Raises:
            ParameterError: `group_by_stack_n` is negative.
            AssertionError: these are averages already.
        """
        if group_by_stack_n < 0:
            raise ParameterError(
                f"key_averages: group_by_stack_n must be at least 0, got {group_by_stack_n}"
            )
        if any(isinstance(event, FunctionEventAvg) for event in self):
            raise AssertionError(
                "Expected tree to be built before calling key_averages: these are averages already"
            )
        groups: dict[Any, FunctionEventAvg] = {}
        for event in self:
            shapes = str(event.input_shapes) if group_by_input_shapes else ""
            kind = (event.key, event.device_type, event.is_user_annotation, event.is_estimated)
            key = (*kind, shapes, *event.stack[:group_by_stack_n])
            group = groups.get(key)
            if group is None:
                group = groups[key] = FunctionEventAvg()
            group.add(event)
        for group in groups.values():
            group.stack = (group.stack or [])[:group_by_stack_n]
            if not group_by_input_shapes:
                group.input_shapes = ""
        return EventList(
            groups.values(), profile_memory=self.recorded["profile_memory"],
            with_flops=self.recorded["with_flops"],
        )  # fmt: skip

    def total_average(self) -> FunctionEventAvg:
        """One average over all events, named Total."""
        total = FunctionEventAvg()
        for event in self:
            total.key = None  # shapes, stack and parent are the last event's, as in PyTorch
            total += event
        total.key = "Total"
        return total

    def table(
        self, sort_by: str | None = None, row_limit: int = 100,
        max_src_column_width: int | None = 75, max_name_column_width: int | None = 55,
        max_shapes_column_width: int | None = 80, header: str | None = None,
        top_level_events_only: bool = False, time_unit: str | None = None,
    ) -> str:  # fmt: skip
        """The events as text, one row each; see `profile.table`."""
        from tracegrad.autograd.profiler_table import Layout, render

        layout = Layout(
            row_limit, max_src_column_width, max_name_column_width, max_shapes_column_width,
            header, top_level_events_only, time_unit,
        )  # fmt: skip
        return render(self, sort_by, layout)

    def export_chrome_trace(self, path: str | os.PathLike[str]) -> None:
        """Write the events as a JSON list of trace events, for Perfetto or chrome://tracing.

        Each is `{"name", "ph": "X", "ts", "dur", "tid", "pid", "cat", "args"}` with times in
        microseconds; between them are the arrows and names of lanes that `profile` exports too.
        """
        from tracegrad.autograd.profiler_trace import trace_events, write_json

        write_json(path, trace_events(self))

    def supported_export_stacks_metrics(self) -> list[str]:
        """What `export_stacks` takes as `metric`."""
        return ["self_cpu_time_total", "self_cuda_time_total", "self_xpu_time_total",
                "self_privateuse1_time_total"]  # fmt: skip

    def export_stacks(
        self, path: str | os.PathLike[str], metric: str = "self_cpu_time_total"
    ) -> None:
        """Write one line per event, `outer;...;inner microseconds`: the input of flame graphs.

        Raises:
            ParameterError: `metric` is none of `supported_export_stacks_metrics()`.
        """
        metrics = self.supported_export_stacks_metrics()
        if metric not in metrics:
            raise ParameterError(f"metric should be one of: {metrics}")
        blanks = str.maketrans(" ;\t\n", "____")
        with open(path, "w", encoding="utf-8") as file:
            for event in self:
                value = int(getattr(event, on_device(metric)))
                if event.stack and value > 0:
                    frames = [line.translate(blanks) for line in reversed(event.stack)]
                    file.write(f"{';'.join(frames)} {value}\n")


def on_device(metric: str) -> str:
    """The attribute that holds a metric of a device.

    Example:
        >>> on_device("self_cuda_time_total")
        'self_device_time_total'
    """
    for device in ("cuda", "xpu", "privateuse1"):
        metric = metric.replace(device, "device")
    return metric
