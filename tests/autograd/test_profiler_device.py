"""Events with times of a device, without one: sums, groups, columns. See also `test_cuda_times.py`."""

from __future__ import annotations

import pytest

from tracegrad.autograd.profiler_events import DeviceType, FunctionEvent, Kernel
from tracegrad.autograd.profiler_trace import trace_events
from tracegrad.autograd.profiler_util import EventList


def made() -> list[FunctionEvent]:
    """A labelled block with an operation that runs two kernels of 3 and 1 us on device 1."""
    block = FunctionEvent(0, "block", 0, 5, end_ns=10_000)
    op = FunctionEvent(1, "aten::mul", 1000, 5, block, end_ns=6000)
    block.cpu_children.append(op)
    op.kernels += [Kernel("k", 1, 3.0), Kernel("k", 1, 1.0)]
    kernels = [
        FunctionEvent(
            2 + k, "k", start, 5, end_ns=end, activity_type="kernel", device_type=DeviceType.CUDA,
            device_index=1,
        )
        for k, (start, end) in enumerate([(2000, 5000), (5000, 6000)])
    ]  # fmt: skip
    events = [block, op, *kernels]
    for event in events:
        event.use_device = "cuda"
    return events


def test_times_of_the_device_are_those_of_kernels() -> None:
    block, op, first, _ = made()
    assert (block.self_device_time_total, block.device_time_total) == (0, 4)
    assert (op.self_device_time_total, op.device_time_total, op.device_time) == (4, 4, 4)
    assert (first.self_device_time_total, first.device_time_total, first.cpu_time_total) == (
        3,
        3,
        0,
    )
    assert (block.cpu_time_total, block.self_cpu_time_total) == (10, 5)
    with pytest.warns(FutureWarning, match="`cuda_time_total` is deprecated"):
        assert op.cuda_time_total == 4
    assert "cuda_time=4.000us" in repr(op) and "device_type=DeviceType.CUDA" in repr(first)


def test_averages_keep_devices_apart() -> None:
    events = made()
    events[2].name = events[3].name = "aten::mul"
    rows = EventList(events).key_averages()
    assert [(r.key, r.device_type.name, r.count, r.device_time) for r in rows] == [
        ("block", "CPU", 1, 4), ("aten::mul", "CPU", 1, 4), ("aten::mul", "CUDA", 2, 2),
    ]  # fmt: skip
    assert (rows.self_cpu_time_total, rows.self_device_time_total) == (10, 4)


def test_the_table_is_that_of_pytorch() -> None:
    lines = EventList(made()).key_averages().table(sort_by="self_cuda_time_total").splitlines()
    assert [line.split() for line in lines[3:6]] == [
        ["aten::mul", "50.00%", "5.000us", "50.00%", "5.000us", "5.000us", "4.000us", "100.00%",
         "4.000us", "4.000us", "1"],
        ["k", "0.00%", "0.000us", "0.00%", "0.000us", "0.000us", "4.000us", "100.00%", "4.000us",
         "2.000us", "2"],
        ["block", "50.00%", "5.000us", "100.00%", "10.000us", "10.000us", "0.000us", "0.00%",
         "4.000us", "4.000us", "1"],
    ]  # fmt: skip
    assert lines[-2:] == ["Self CPU time total: 10.000us", "Self CUDA time total: 4.000us"]


def test_without_a_time_there_are_no_columns() -> None:
    events = made()[:2]
    events[1].kernels.clear()
    assert "CUDA" not in EventList(events).table()


def test_memory_of_the_device_has_columns_where_it_grew() -> None:
    events = made()
    assert "CUDA Mem" not in EventList(events, profile_memory=True).table()
    events[1].self_device_memory_usage = 2048
    text = EventList(events, profile_memory=True).table()
    assert "    CUDA Mem  Self CUDA Mem  " in text and "2.00 KB" in text
    assert events[0].device_memory_usage == 2048


def test_kernels_on_the_device_have_a_lane() -> None:
    found = trace_events(made())
    lanes = {e["tid"]: e["args"]["name"] for e in found if e["name"] == "thread_name"}
    assert set(lanes.values()) == {"thread 5", "thread 5: kernels on the device"}
    [first, second] = [e for e in found if e["name"] == "k"]
    assert (first["dur"], second["dur"]) == (3, 1) and first["tid"] == second["tid"] != 5
