"""Averages and tables of a profile: `EventList`, laid out as PyTorch 2.13 lays it out."""

from __future__ import annotations

import re

import pytest

from tracegrad.autograd.profiler_table import format_memory
from tracegrad.autograd.profiler_tree import merged
from tracegrad.autograd.profiler_util import (
    EventList,
    FunctionEvent,
    FunctionEventAvg,
    format_time,
)


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


def test_self_time_is_total_less_children() -> None:
    block, first, second, last = made_events()
    assert (block.cpu_time_total, block.self_cpu_time_total) == (10.0, 5.0)
    rows = {r.key: r for r in made_events().key_averages()}
    mul = rows["aten::mul"]
    assert (mul.count, mul.cpu_time_total, mul.cpu_time) == (2, 5.0, 2.5)
    assert made_events().self_cpu_time_total == 15.0
    total = made_events().total_average()
    assert (total.key, total.count, total.self_cpu_time_total) == ("Total", 4, 15.0)


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
    assert "2.00 KB" in "\n".join(lines)


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


def test_flops_are_scaled_by_the_smallest_number() -> None:
    """PyTorch chooses the unit that suits the least of the rows; `--` where nothing is known."""
    few = EventList([event(0, "a", 0, 1, flops=12), event(1, "b", 2, 3, flops=48_000_000),
                     event(2, "c", 4, 5)], with_flops=True)  # fmt: skip
    lines = few.table().splitlines()
    assert lines[1].rstrip().endswith(" Total FLOPs")
    assert [line.split()[-1] for line in lines[3:6]] == ["12.000", "48000000.000", "--"]
    many = EventList([event(0, "a", 0, 1, flops=2_500_000)], with_flops=True).table()
    assert "Total MFLOPs" in many and "2.500" in many
    assert "FLOPs" not in EventList([event(0, "a", 0, 1)], with_flops=True).table()


def test_widths_of_none_are_as_wide_as_needed() -> None:
    name, line = "n" * 70, "f" * 90 + ".py(1): g"
    events = EventList([event(0, name, 0, 1, input_shapes=[[1] * 40], stack=[line])])
    free = events.table(
        max_name_column_width=None, max_src_column_width=None, max_shapes_column_width=None
    )
    assert name in free and line in free and str([[1] * 40]) in free
    cut = events.table()
    assert name not in cut and "n" * 52 + "..." in cut
    assert "..." + line[3 - 75 :] in cut and line not in cut


def test_share_of_no_time_is_nan() -> None:
    assert EventList([event(0, "a", 5, 5)]).table().splitlines()[3].split()[1] == "NaN"


def test_sort_keys_are_attributes_of_the_rows() -> None:
    """PyTorch sorts by any attribute, `cuda` and `xpu` read as `device`."""
    averages = made_events().key_averages()
    for key in ("cpu_time", "cuda_time", "xpu_time", "cpu_time_total", "cuda_time_total",
                "self_cpu_time_total", "self_cuda_time_total", "cpu_memory_usage",
                "self_cuda_memory_usage", "xpu_memory_usage", "count", "flops", "key"):  # fmt: skip
        assert len(averages.table(sort_by=key).splitlines()) == 8
    assert averages.table(sort_by="count").splitlines()[3].split()[0] == "aten::mul"
    with pytest.raises(AttributeError, match="'FunctionEventAvg' object has no attribute 'nope'; "
                       "sort_by is one of cpu_time, "):  # fmt: skip
        averages.table(sort_by="nope")
    with pytest.raises(AttributeError, match="'FunctionEvent' object has no attribute 'nope'"):
        made_events().table(sort_by="nope")
    with pytest.raises(ValueError, match="time_unit must be one of .* got 'h'"):
        averages.table(time_unit="h")


def test_groups_are_refused_where_they_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="group_by_stack_n must be at least 0, got -1"):
        made_events().key_averages(group_by_stack_n=-1)
    with pytest.raises(AssertionError, match="^Expected tree to be built before calling key_av"):
        made_events().key_averages().key_averages()


def test_a_label_with_the_name_of_an_operation_is_a_row_of_its_own() -> None:
    label = event(0, "aten::mul", 0, 9_000, scope=7, activity_type="user_annotation")
    inside = event(1, "aten::mul", 1_000, 3_000, label)
    rows = EventList([label, inside]).key_averages()
    assert [(r.key, r.count, r.is_user_annotation) for r in rows] == [
        ("aten::mul", 1, True), ("aten::mul", 1, False)
    ]  # fmt: skip


def test_an_operation_is_merged_into_the_function_of_its_name() -> None:
    around = event(0, "aten::max", 0, 9_000, activity_type="composite", self_cpu_memory_usage=-8)
    more = {"flops": 5, "sequence_nr": 3, "self_cpu_memory_usage": 24}
    same, other = event(1, "aten::max", 1, 2, around, **more), event(2, "aten::to", 4, 5, around)
    assert merged([around, same, other]) == [around, other] and around.cpu_children == [other]
    assert (around.flops, around.sequence_nr, around.self_cpu_memory_usage) == (5, 3, 16)
    assert around.activity_type == "cpu_op"


def test_averages_have_pytorchs_attributes() -> None:
    """Attribute by attribute what `vars()` of PyTorch's average holds."""
    block, mul, last = made_events().key_averages(group_by_input_shapes=False)
    wanted = {
        "key": "aten::mul", "count": 2, "node_id": -1, "is_async": False, "is_remote": False,
        "use_device": None, "device_time_total": 0, "self_device_time_total": 0,
        "input_shapes": "", "overload_name": "", "stack": [], "scope": 0, "cpu_memory_usage": 0,
        "device_memory_usage": 0, "is_legacy": False, "flops": 10_000, "cpu_children": [],
        "is_user_annotation": False, "cpu_time_str": "2.500us", "self_cpu_time_total_str": "5.000us",
        "cpu_time_total_str": "5.000us", "device_time_str": "0.000us",
    }  # fmt: skip
    assert {name: getattr(mul, name) for name in wanted} == wanted
    assert str(mul.device_type) == "DeviceType.CPU" and mul.cpu_parent.name == "block"
    with pytest.warns(FutureWarning, match="^`cuda_time` is deprecated, please use `device_time`"):
        assert mul.cuda_time == 0
    with pytest.warns(FutureWarning, match="^`self_cuda_time_total` is deprecated. Use `self_dev"):
        assert made_events()[0].self_cuda_time_total == 0
    assert repr(mul) == (
        "<FunctionEventAvg key=aten::mul self_cpu_time=5.000us cpu_time=2.500us  "
        "self_cuda_time=0.000us cuda_time=0.000us input_shapes= cpu_memory_usage=0 "
        "cuda_memory_usage=0>"
    )
    assert repr(made_events()[0]) == (
        "<FunctionEvent id=0 name=block overload_name= device_type=DeviceType.CPU node_id=-1 "
        "cpu_time=10.000us start_us=0.0 end_us=10.0 cpu_children=[1, 2] None_time=0.000us "
        "name=block thread=1 input_shapes=[] cpu_memory_usage=0 None_memory_usage=0 "
        "is_async=False is_remote=False seq_nr=-1 is_legacy=False>"
    )


def test_averages_add_only_their_own_kind() -> None:
    total = FunctionEventAvg()
    total += made_events()[1]
    with pytest.raises(AssertionError, match="Expected keys to match, but got block vs aten::mul"):
        total.add(made_events()[0])
    with pytest.raises(AssertionError, match="Expected other to be a FunctionEvent or FunctionEv"):
        total.add(3)
    assert total.count == 1
