"""Trace files and stacks: what Perfetto, chrome://tracing and flame graphs read."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import time
from collections import defaultdict

import pytest

import tracegrad as tg
from tracegrad.autograd.profiler import profile, record_function
from tracegrad.autograd.profiler_util import EventList, FunctionEvent
from tracegrad.profiler import schedule


def check(events: list[dict]) -> None:
    """The rules of the Trace Event Format that viewers rely on; nothing else may be in a file."""
    needed = {"X": {"ts", "dur"}, "M": {"args"}, "s": {"id", "ts"}, "f": {"id", "ts", "bp"},
              "b": {"id", "ts", "cat"}, "e": {"id", "ts", "cat"}}  # fmt: skip
    slices = defaultdict(list)
    for event in events:
        assert {"ph", "name", "pid", "tid"} | needed[event["ph"]] <= set(event), event
        assert isinstance(event["pid"], int) and 0 <= event["tid"] < 2**31
        if "ts" in event:
            assert event["ts"] >= 0
        if event["ph"] == "X":
            assert event["dur"] >= 0
            slices[event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for lane in slices.values():  # slices of a lane are nested or apart
        inside: list[float] = []
        for start, end in sorted(lane, key=lambda s: (s[0], -s[1])):
            while inside and inside[-1] <= start + 1e-9:
                inside.pop()
            assert not inside or end <= inside[-1] + 1e-6
            inside.append(end)
    named = {e["tid"] for e in events if e["name"] == "thread_name"}
    assert set(slices) <= named
    ends = defaultdict(list)
    for event in events:
        if event["ph"] in "sfbe":
            ends[event["cat"], event["id"]].append((event["ph"], event["ts"]))
    for pair in ends.values():
        (first, start), (second, end) = pair
        assert first + second in ("sf", "be") and start <= end


def written(prof: profile, path) -> list[dict]:
    prof.export_chrome_trace(path)
    events = json.loads(path.read_text())["traceEvents"]
    check(events)
    return events


def test_trace_is_an_object_with_complete_events(tmp_path) -> None:
    """PyTorch writes an object with `traceEvents` and these keys, too."""
    x = tg.ones(2, 3)
    with profile(record_shapes=True) as prof:
        with record_function("block"):
            x * 2
    path = tmp_path / "trace.json"
    block, mul = (e for e in written(prof, path) if e["ph"] == "X")
    assert set(block) == {"name", "ph", "ts", "dur", "tid", "pid", "cat", "args"}
    assert (block["name"], block["cat"]) == ("block", "user_annotation")
    assert (mul["name"], mul["cat"]) == ("aten::mul", "cpu_op")
    assert mul["args"]["Input Dims"] == [[2, 3], []] and mul["pid"] == os.getpid()
    assert block["ts"] <= mul["ts"] and mul["ts"] + mul["dur"] <= block["ts"] + block["dur"] + 1e-3
    whole = json.loads(path.read_text())
    assert set(whole) == {"schemaVersion", "deviceProperties", "trace_id", "displayTimeUnit",
                          "baseTimeNanoseconds", "traceName", "traceEvents"}  # fmt: skip
    assert whole["traceName"] == str(path) and len(whole["trace_id"]) == 32
    assert abs(whole["baseTimeNanoseconds"] / 1e9 - time.time()) < 3600


def test_arrows_lead_from_an_operation_to_its_backward_node(tmp_path) -> None:
    """PyTorch draws them with category `fwdbwd`, from start to start."""
    w = tg.ones(3, requires_grad=True)
    with profile() as prof:
        (w * 2).exp().sum().backward()
    events = written(prof, tmp_path / "trace.json")
    start = {e["name"]: e["ts"] for e in events if e["ph"] == "X" and "args" in e
             and "Sequence number" in e["args"]}  # fmt: skip
    arrows = defaultdict(dict)
    for event in events:
        if event["ph"] in "sf":
            assert (event["name"], event["cat"]) == ("fwdbwd", "fwdbwd")
            arrows[event["id"]][event["ph"]] = event["ts"]
    pairs = {(a["s"], a["f"]) for a in arrows.values()}
    assert pairs == {
        (start["aten::mul"], start["MulBackward0"]), (start["aten::exp"], start["ExpBackward0"]),
        (start["aten::sum"], start["SumBackward0"]),
    }  # fmt: skip


def test_events_of_several_cycles_are_one_timeline(tmp_path) -> None:
    """Each event after those of earlier cycles, with an id of its own, in files too."""
    w = tg.ones(3, requires_grad=True)
    when = schedule(wait=0, warmup=1, active=1, repeat=3)
    with tg.profiler.profile(schedule=when, acc_events=True) as prof:
        for _ in range(6):
            (w * 2).sum().backward()
            prof.step()
    events = prof.events()
    starts = [e.time_range.start for e in events]
    assert starts == sorted(starts) and [e.id for e in events] == list(range(len(events)))
    first, second, third = (e.time_range for e in events if e.name == "ProfilerStep*")
    assert first.end <= second.start and second.end <= third.start
    arrows = [e for e in written(prof, tmp_path / "trace.json") if e["ph"] == "s"]
    assert len(arrows) == 6  # from mul and sum to their nodes, each time


def test_overlapping_blocks_are_asynchronous_events(tmp_path) -> None:
    """A lane of nested slices could not show them."""

    async def worker(name, first, second):
        await asyncio.sleep(first)
        with record_function(name):
            await asyncio.sleep(second)

    async def both():
        await asyncio.gather(worker("a", 0, 0.02), worker("b", 0.005, 0.04))

    with profile() as prof:
        asyncio.run(both())
    events = written(prof, tmp_path / "trace.json")
    assert [(e["ph"], e["name"]) for e in events if e["ph"] in "Xbe"] == [
        ("X", "a"), ("b", "b"), ("e", "b")
    ]  # fmt: skip


def test_lanes_of_compiled_functions(tmp_path) -> None:
    """Kernels, and the operations inside them, each in a lane that says what it holds."""

    @tg.compile
    def wave(x):
        return (x.sin() * 2).sum()

    x = tg.ones(3, requires_grad=True)
    for _ in range(2):
        wave(x).backward()
    with profile() as prof:
        wave(x).backward()
    events = written(prof, tmp_path / "trace.json")
    lanes = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    at = {(e["name"], lanes[e["tid"]].partition(": ")[2]) for e in events if e["ph"] == "X"}
    assert ("wave", "") in at and ("CompiledBackward0", "") in at
    assert ("wave: kernel_0", "kernels of compiled functions") in at
    assert ("aten::sin", "operations inside kernels (estimated)") in at
    for event in events:
        if event["ph"] == "X":
            inside = lanes[event["tid"]].endswith("(estimated)")
            assert ("Estimated" in event["args"]) is inside
    assert sum(e["ph"] == "s" for e in events) == 1  # from the call to its backward


def test_memory_rows_are_not_drawn_and_bytes_are(tmp_path) -> None:
    x = tg.ones(4)
    with profile(profile_memory=True) as prof:
        x * 2
    events = [e for e in written(prof, tmp_path / "trace.json") if e["ph"] == "X"]
    assert [(e["name"], e["args"]["Bytes"]) for e in events] == [("aten::mul", 16)]
    assert len(prof.function_events) == 2


def test_names_are_kept_letter_by_letter(tmp_path) -> None:
    name = 'say "hi"\\ \n ü'
    with profile() as prof:
        with record_function(name):
            pass
    (block,) = (e for e in written(prof, tmp_path / "trace.json") if e["ph"] == "X")
    assert block["name"] == name


def test_gz_is_compressed(tmp_path) -> None:
    with profile() as prof:
        tg.ones(2) + 1
    path = tmp_path / "trace.json.gz"
    prof.export_chrome_trace(str(path))
    with gzip.open(path, "rt") as file:
        check(json.load(file)["traceEvents"])


def test_event_list_writes_a_bare_list(tmp_path) -> None:
    """So does PyTorch's `EventList.export_chrome_trace`."""
    path = tmp_path / "list.json"
    EventList([FunctionEvent(0, "aten::mul", 1_000, 7, None, 3_000)]).export_chrome_trace(path)
    events = json.loads(path.read_text())
    check(events)
    (mul,) = (e for e in events if e["ph"] == "X")
    assert (mul["ts"], mul["dur"], mul["tid"]) == (1.0, 2.0, 7)


# ---- stacks -------------------------------------------------------------------------------------


def test_exported_stacks_are_outermost_first(tmp_path) -> None:
    def leaf(x):
        with record_function("long"):
            time.sleep(0.002)

    x = tg.ones(2)
    with profile(with_stack=True) as prof:
        leaf(x)
    path = tmp_path / "stacks.txt"
    prof.export_stacks(path, "self_cpu_time_total")
    frames, _, value = path.read_text().splitlines()[0].rpartition(" ")
    assert frames.split(";")[-1].endswith("_leaf") and int(value) >= 2000


def test_stacks_are_folded_lines_of_whole_microseconds(tmp_path) -> None:
    """PyTorch's format: blanks and semicolons inside a line become `_`; rows below 1 us are left."""
    stack = ["a b.py(3): step;x", "train.py(9): loop"]
    events = [FunctionEvent(0, "long", 0, 1, None, 2_700, stack=stack),
              FunctionEvent(1, "short", 3_000, 1, None, 3_900, stack=stack),
              FunctionEvent(2, "bare", 4_000, 1, None, 9_000)]  # fmt: skip
    path = tmp_path / "stacks.txt"
    EventList(events).export_stacks(path)
    assert path.read_text() == "train.py(9):_loop;a_b.py(3):_step_x 2\n"
    EventList(events).export_stacks(path, "self_cuda_time_total")
    assert path.read_text() == ""


def test_stacks_that_cannot_be_written_are_refused(tmp_path) -> None:
    with profile() as prof:
        tg.ones(2) + 1
    with pytest.raises(AssertionError, match=r"export_stacks\(\) requires with_stack=True"):
        prof.export_stacks(tmp_path / "x")
    with pytest.raises(ValueError, match=r"metric should be one of: \['self_cpu_time_total', 'self_"
                       r"cuda_time_total', 'self_xpu_time_total', 'self_privateuse1"):  # fmt: skip
        prof.function_events.export_stacks(tmp_path / "x", "count")
    assert not (tmp_path / "x").exists()
