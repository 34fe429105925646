"""The profiler: what becomes an event, how events are summed, what the table and files say."""

from __future__ import annotations

import json
import re
import threading
import time

import pytest

import tracegrad as tg
from tracegrad.autograd.profiler import profile, record_function
from tracegrad.autograd.profiler_table import format_memory
from tracegrad.autograd.profiler_util import EventList, FunctionEvent, format_time
from tracegrad.tracer.profiling import profilers
from tracegrad.tracer.state import state


def event(number: int, name: str, start: int, end: int, parent=None, **more) -> FunctionEvent:
    made = FunctionEvent(number, name, start, 1, parent, end, **more)
    if parent is not None:
        parent.cpu_children.append(made)
    return made


def made_events(**recorded) -> EventList:
    """A block of 10 us with two products of 2 us and 3 us inside, then a sum of 5 us."""
    block = event(0, "block", 0, 10_000)
    first = event(1, "aten::mul", 1_000, 3_000, block, input_shapes=[[2, 3], []], flops=6_000)
    second = event(2, "aten::mul", 4_000, 7_000, block, input_shapes=[[4], [4]], flops=4_000)
    last = event(3, "aten::sum", 11_000, 16_000, self_cpu_memory_usage=2048)
    return EventList([block, first, second, last], **recorded)


def counts(prof: profile) -> dict[str, int]:
    return {row.key: row.count for row in prof.key_averages()}


def test_operations_have_pytorch_names_and_counts() -> None:
    x = tg.ones(2, 3)
    with profile() as prof:
        for _ in range(4):
            x = (x / 2) * 3
        x.sum(), x @ x.t(), x.to(tg.float64), x == x, tg.cat([x, x])
    found = counts(prof)
    assert found["aten::div"] == found["aten::mul"] == 4
    assert {"aten::sum", "aten::matmul", "aten::to", "aten::eq", "aten::cat"} <= set(found)


def test_backward_nodes_hold_their_operations() -> None:
    x = tg.ones(3, requires_grad=True)
    y = (x * 2 * 3).sum()
    with profile() as prof:
        y.backward()
    rows = {e.name: e for e in prof.function_events}
    assert counts(prof)["MulBackward0"] == 2
    node = rows["MulBackward0"]
    assert [c.name for c in node.cpu_children] == ["aten::mul"]
    assert node.cpu_children[0].cpu_parent is node
    assert node.self_cpu_time_total < node.cpu_time_total


def test_in_place_operation_is_one_row() -> None:
    x = tg.ones(3)
    with profile() as prof:
        x.mul_(2).exp_()
    assert counts(prof) == {"aten::mul_": 1, "aten::exp_": 1}
    assert x.tolist() == tg.exp(tg.full((3,), 2.0)).tolist()


def test_compiled_function_is_one_row_named_after_it() -> None:
    @tg.compile
    def wave(x):
        return (x.sin() * 2).sum()

    x = tg.ones(3, requires_grad=True)
    wave(x).backward()
    with profile(record_shapes=True) as prof:
        for _ in range(3):
            wave(x).backward()
    assert counts(prof) == {"wave": 3, "CompiledBackward0": 3}
    assert prof.function_events[0].input_shapes == [[3]]


def test_trace_that_does_not_apply_leaves_no_row() -> None:
    scale = [2.0]

    @tg.compile
    def scaled(x):
        return x * scale[0]

    x = tg.ones(3)
    scaled(x)
    scale[0] = 3.0
    with profile() as prof:
        scaled(x)  # captured anew: the eager operations are what runs
    assert "scaled" not in counts(prof) and counts(prof)["aten::mul"] == 1


def test_labels_nest_as_blocks_and_decorate() -> None:
    @record_function("inner")
    def step(x, depth):
        return step(x, depth - 1) if depth else x * 2

    with profile() as prof:
        with record_function("outer"):
            step(tg.ones(2), 2)
    assert counts(prof) == {"outer": 1, "inner": 3, "aten::mul": 1}
    outer, *_, mul = prof.function_events
    assert mul.cpu_parent.cpu_parent.cpu_parent.cpu_parent is outer
    with record_function("no profiler is open"):
        assert (tg.ones(1) + 1).item() == 2


def test_label_closed_by_an_exception_ends_there() -> None:
    with profile() as prof:
        with pytest.raises(ZeroDivisionError), record_function("failing"):
            1 / 0  # noqa: B018
        tg.ones(2) + 1
    failing, add = prof.function_events
    assert add.cpu_parent is None and failing.end_ns <= add.start_ns


def test_label_around_the_end_of_the_profile() -> None:
    label = record_function("cut")
    with profile() as prof:
        label.__enter__()
    label.__exit__(None, None, None)
    assert counts(prof) == {"cut": 1}


def test_refused_operation_leaves_a_closed_event_and_the_profiler_on() -> None:
    with profile() as prof:
        with pytest.raises(RuntimeError):
            tg.ones(3).add_(tg.ones(2, 3))
        tg.ones(2) + 1
    assert all(e.end_ns >= e.start_ns > 0 for e in prof.function_events)
    assert counts(prof)["aten::add"] == 1


def test_other_threads_are_not_recorded() -> None:
    with profile() as prof:
        other = threading.Thread(target=lambda: tg.ones(3) * 2)
        other.start()
        other.join()
    assert counts(prof) == {}


def test_nothing_is_left_installed() -> None:
    with pytest.raises(KeyError), profile():
        raise KeyError
    assert state.profiler is None and profilers == []


def test_time_is_real_time() -> None:
    with profile() as prof:
        with record_function("sleep"):
            time.sleep(0.02)
    assert 20e3 <= prof.self_cpu_time_total < 20e6  # microseconds


def test_self_time_is_total_less_children() -> None:
    block, first, second, last = made_events()
    assert (block.cpu_time_total, block.self_cpu_time_total) == (10.0, 5.0)
    rows = {r.key: r for r in made_events().key_averages()}
    mul = rows["aten::mul"]
    assert (mul.count, mul.cpu_time_total, mul.cpu_time) == (2, 5.0, 2.5)
    assert made_events().self_cpu_time_total == 15.0
    total = made_events().total_average()
    assert (total.key, total.count, total.self_cpu_time_total) == ("Total", 4, 15.0)


def test_groups_by_shape_and_stack() -> None:
    def one(x):
        return x * 2

    def two(x):
        return x * 2

    with profile(record_shapes=True, with_stack=True) as prof:
        one(tg.ones(3)), one(tg.ones(4)), two(tg.ones(4))
    by_shape = prof.key_averages(group_by_input_shape=True)
    assert [(r.input_shapes, r.count) for r in by_shape] == [([[3], []], 1), ([[4], []], 2)]
    by_stack = prof.key_averages(group_by_stack_n=1)
    assert [(r.stack[0].rpartition(" ")[2], r.count) for r in by_stack] == [("one", 2), ("two", 1)]
    assert len(prof.key_averages()) == 1


TABLE = """\
-------------  ------------  ------------  ------------  ------------  ------------  ------------  
         Name    Self CPU %      Self CPU   CPU total %     CPU total  CPU time avg    # of Calls  
-------------  ------------  ------------  ------------  ------------  ------------  ------------  
        block        33.33%       5.000us        66.67%      10.000us      10.000us             1  
    aten::mul        33.33%       5.000us        33.33%       5.000us       2.500us             2  
    aten::sum        33.33%       5.000us        33.33%       5.000us       5.000us             1  
-------------  ------------  ------------  ------------  ------------  ------------  ------------  
Self CPU time total: 15.000us
"""  # noqa: W291


def test_table_is_laid_out_as_pytorch_lays_it_out() -> None:
    assert made_events().key_averages().table(sort_by="cpu_time_total") == TABLE


def test_table_with_every_further_column() -> None:
    events = made_events(profile_memory=True, with_flops=True)
    lines = events.key_averages(group_by_input_shapes=True).table(sort_by="flops").splitlines()
    assert re.split(r"  +", lines[1].strip()) == [
        "Name", "Self CPU %", "Self CPU", "CPU total %", "CPU total", "CPU time avg", "CPU Mem",
        "Self CPU Mem", "# of Calls", "Input Shapes", "Total KFLOPs",
    ]  # fmt: skip
    assert re.split(r"  +", lines[3].strip()) == [
        "aten::mul", "13.33%", "2.000us", "13.33%", "2.000us", "2.000us", "0 B", "0 B", "1",
        "[[2, 3], []]", "6.000",
    ]  # fmt: skip
    assert "2.00 KB" in lines[-3] or "2.00 KB" in "\n".join(lines)


def test_table_options() -> None:
    events = made_events()
    top = events.table(top_level_events_only=True, header="Head", time_unit="ms")
    lines = top.splitlines()
    assert set(lines[0]) == {"="} and lines[1] == "Head"
    assert lines[3] == "This report only display top-level ops statistics"
    assert [line.split()[0] for line in lines[7:9]] == ["block", "aten::sum"]
    assert "0.010ms" in lines[7] and lines[-1] == "Self CPU time total: 0.015ms"
    assert len(events.table(row_limit=1).splitlines()) == 6
    assert len(events.table(row_limit=-1).splitlines()) == 9
    assert "aten..." in events.table(max_name_column_width=7)
    cut = events.table(max_shapes_column_width=6).splitlines()[4]
    assert cut.endswith("      [[2, 3  ")
    assert EventList().table() == ""


def test_stack_is_a_column_of_several_lines() -> None:
    stacked = event(0, "aten::mul", 0, 1_000, stack=["model.py(3): step", "train.py(9): loop"])
    lines = EventList([stacked]).table().splitlines()
    assert lines[3].rstrip().endswith("model.py(3): step")
    assert lines[4].strip() == "train.py(9): loop" and lines[4].index("train") > 80
    assert lines[5].strip() == "" and lines[1].endswith("Source Location        ")


def test_units() -> None:
    assert [format_time(t) for t in (5.509, 26488.0, 2.947e6)] == ["5.509us", "26.488ms", "2.947s"]
    sizes = [format_memory(n) for n in (4, 4004, -1536 * 1024, 3 * 1024**3)]
    assert sizes == ["4 B", "3.91 KB", "-1.50 MB", "3.00 GB"]


def test_memory_counts_results_but_not_views() -> None:
    x = tg.ones(256)
    with profile(profile_memory=True) as prof:
        with record_function("both"):
            (x + 1).reshape(16, 16)
    both, add, view = prof.function_events
    assert (both.cpu_memory_usage, both.self_cpu_memory_usage) == (1024, 0)
    assert (add.self_cpu_memory_usage, view.self_cpu_memory_usage) == (1024, 0)


def test_flops_of_a_product_and_a_convolution() -> None:
    with profile(with_flops=True) as prof:
        tg.ones(4, 5) @ tg.ones(5, 6)
        tg.nn.functional.conv2d(tg.ones(1, 3, 8, 8), tg.ones(2, 3, 3, 3))
    found = {r.key: r.flops for r in prof.key_averages()}
    assert found["aten::matmul"] == 2 * 4 * 5 * 6
    assert found["aten::convolution"] == 2 * (2 * 6 * 6) * (3 * 3 * 3)


def test_chrome_trace_has_complete_events(tmp_path) -> None:
    with profile(record_shapes=True) as prof:
        with record_function("block"):
            tg.ones(2, 3) * 2
    path = tmp_path / "trace.json"
    prof.export_chrome_trace(path)
    block, mul = json.loads(path.read_text())
    assert set(block) == {"name", "ph", "ts", "dur", "tid", "pid", "args"}
    assert (block["name"], mul["name"], mul["ph"]) == ("block", "aten::mul", "X")
    assert mul["args"]["Input Dims"] == [[2, 3], []]
    assert block["ts"] <= mul["ts"] and mul["ts"] + mul["dur"] <= block["ts"] + block["dur"] + 1e-3


def test_exported_stacks_are_outermost_first(tmp_path) -> None:
    def leaf(x):
        with record_function("long"):
            time.sleep(0.002)

    with profile(with_stack=True) as prof:
        leaf(tg.ones(2))
    path = tmp_path / "stacks.txt"
    prof.export_stacks(path, "self_cpu_time_total")
    frames, _, value = path.read_text().splitlines()[0].rpartition(" ")
    assert frames.split(";")[-1].endswith("_leaf") and int(value) >= 2000


def test_wrong_use_is_refused(tmp_path) -> None:
    prof = profile()
    assert repr(prof) == "<unfinished torch.autograd.profile>"
    with pytest.raises(RuntimeError, match="Profiler didn't finish running"):
        prof.key_averages()
    with prof:
        with pytest.raises(RuntimeError, match="Profiler context manager is not reentrant"):
            prof.__enter__()
        with pytest.raises(RuntimeError, match="Profiler is already enabled on this thread"):
            profile().__enter__()
        tg.ones(1) + 1
    with pytest.raises(RuntimeError, match="Profiler context manager is not reentrant"):
        prof.__enter__()
    assert counts(prof) == {"aten::add": 1}  # the refusals have changed nothing
    with pytest.raises(AttributeError, match="no attribute 'nope'; sort_by is one of cpu_time, "):
        prof.table(sort_by="nope")
    with pytest.raises(ValueError, match="time_unit must be one of .* got 'h'"):
        prof.table(time_unit="h")
    with pytest.raises(AssertionError, match=r"export_stacks\(\) requires with_stack=True"):
        prof.export_stacks(tmp_path / "x")
    with pytest.raises(ValueError, match="metric should be one of"):
        prof.function_events.export_stacks(tmp_path / "x", "count")
    with pytest.raises(ValueError, match="group_by_stack_n must be at least 0, got -1"):
        prof.key_averages(group_by_stack_n=-1)
    with pytest.raises(TypeError, match="name must be a str, got int"):
        record_function(3)


def test_devices_that_are_not_there_warn() -> None:
    with pytest.warns(UserWarning, match="^CUDA is not available, disabling CUDA profiling$"):
        profile(use_device="cuda")
    with pytest.warns(FutureWarning, match="`use_cuda` will be deprecated soon"):
        with pytest.warns(UserWarning, match="CUDA is not available"):
            profile(use_cuda=True)
    with pytest.warns(UserWarning, match="^The foo is not a valid device option.$"):
        profile(use_device="foo")


@pytest.mark.parametrize("options", [{"enabled": False}, {"use_cpu": False}])
def test_switched_off_it_records_nothing(options) -> None:
    with profile(**options) as prof:
        tg.ones(2) + 1
    if options.get("enabled", True):
        assert prof.key_averages() == []
    else:
        with pytest.raises(RuntimeError, match="didn't finish"):
            prof.key_averages()
