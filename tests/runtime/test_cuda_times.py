"""Times of a device: the history, `cuda.kernel_times`, the profiler. On a GPU or the emulated driver."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tracegrad as tg
from tracegrad.autograd.profiler_util import DeviceType, FunctionEvent
from tracegrad.ir.errors import AcceleratorError, CaptureError
from tracegrad.profiler import ProfilerActivity, profile, schedule, supported_activities
from tracegrad.runtime import history
from tracegrad.runtime.cuda import driver, events

problem = driver.status()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(problem is not None, reason=f"no CUDA: {problem}"),
]
FILE = Path(__file__).name
CUDA, CPU = ProfilerActivity.CUDA, ProfilerActivity.CPU


def attention(x: Any, w: Any) -> Any:
    y = (x @ w).relu()
    return (y.softmax(1) * y).sum()


FIRST = attention.__code__.co_firstlineno


def arguments() -> tuple[Any, Any]:
    tg.manual_seed(0)
    return tg.randn(48, 32).to("cuda"), tg.randn(32, 64).to("cuda").requires_grad_()


@pytest.fixture(scope="module")
def compiled() -> Any:
    f = tg.compile(attention, wait=True)
    for _ in range(2):
        f(*arguments()).backward()
    assert f.cache_info().eager_calls == 0
    return f


class Heard(history.Listener):
    """The records of launches, each once."""

    def __init__(self) -> None:
        self.records: list[history.KernelRecord] = []

    def launched(self, what: history.Launchable, *times: Any) -> None:
        if all(what.entry is not r for r in self.records):
            self.records.append(what.entry)

    def loaded(self, entry: history.KernelRecord) -> None: ...


def timed(run: Callable[[], Any]) -> list[history.KernelRecord]:
    """The records of launches that were timed in a run."""
    heard = Heard()
    history.listen(heard)
    history.timing(True)
    try:
        run()
    finally:
        history.timing(False)
        history.unlisten(heard)
    return heard.records


# --- the history ----------------------------------------------------------------------------------


def test_the_history_has_the_time_of_the_device(compiled: Any) -> None:
    given = arguments()
    found = timed(lambda: compiled(*given).backward())
    assert [r.label for r in found if "attention" in r.label] == ["attention", "attention_backward"]
    for record in found:
        assert record.run_ms > 0
        assert str(record).endswith(
            f", {record.timed} timed launches {record.run_ms:.3f} ms on the device"
        )


def test_no_timed_call_waits(compiled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = arguments()
    compiled(*given)

    def refused(*args: Any) -> None:
        raise AssertionError("it waits")

    with monkeypatch.context() as patch:
        patch.setattr(events.Event, "synchronize", refused)
        patch.setattr(driver, "synchronize", refused)
        found = timed(lambda: [compiled(*given) for _ in range(3)])
    assert sum(r.run_ms for r in found) > 0


def test_launches_are_bare_without_timing(compiled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = arguments()
    compiled(*given)
    monkeypatch.setattr(events, "Event", None)
    compiled(*given)


def test_many_launches_are_added_up_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history.DeviceRecord, "MOST", 4)
    x = tg.ones(8, device="cuda")
    x.sin()
    [record] = timed(lambda: [x.sin() for _ in range(20)])
    assert isinstance(record, history.DeviceRecord)
    assert record.timed >= 20 and len(record.spans) <= 4
    before = record.run_ms
    assert before > 0 and record.run_ms == before and not record.spans


def test_a_copy_that_is_compiled_in_a_capture_is_no_part_of_it() -> None:
    f = tg.compile(lambda x: x + tg.full_like(x, 3), strict=True, wait=True)
    x = tg.ones(7, 13, device="cuda")
    for _ in range(2):
        assert f(x).sum().item() == 4 * 7 * 13
    assert f.cache_info().hits == 1


# --- kernel_times ---------------------------------------------------------------------------------


def test_each_launch_has_its_time_and_lines(compiled: Any) -> None:
    found = tg.cuda.kernel_times(compiled)
    text = compiled.source("forward")
    forward = [row for row in found if row.part == "forward"]
    backward = [row for row in found if row.part == "backward"]
    assert forward and backward and len(found) == len(forward) + len(backward)
    assert len(forward) == compiled._trace(-1).executable.unit.kernels
    for row in found:
        assert row.microseconds > 0 and row.nbytes > 0 and row.gigabytes_per_second > 0
        assert row.lines and set(row.lines) <= {f"{FILE}:{FIRST + k}" for k in (1, 2)}
    assert all(row.kernel in text or row.kernel == "cublas" for row in forward)
    products = 2 * 48 * 32 * 64
    assert max(row.operations for row in forward) >= products
    first, head, *rest = str(found).splitlines()
    assert first == f"attention on cuda:0: {found.microseconds:.1f} us in {len(found)} launches"
    assert head.split() == ["kernel", "us", "bytes", "GB/s", "operations", "lines"]
    assert len(rest) == len(found)


def test_a_function_without_a_backward_has_no_rows_of_one() -> None:
    f = tg.compile(lambda x: x * 2 + 1, wait=True)
    f(tg.ones(100, device="cuda"))
    [row] = tg.cuda.kernel_times(f)
    assert (row.part, row.kernel, row.nbytes) == ("forward", "kernel_0", 800)


def test_sizes_that_vary_are_those_of_the_newest_trace() -> None:
    f = tg.compile(lambda x: x.softmax(1).sum(0), wait=True)
    for n in (20, 21, 22, 23):
        f(tg.ones(n, 30, device="cuda"))
    assert "sizes that vary" in f.explain()
    assert sum(row.nbytes for row in tg.cuda.kernel_times(f)) >= 4 * 23 * 30
    with profile() as prof:
        f(tg.ones(23, 30, device="cuda"))
    assert sum(e.device_time_total for e in on_device(prof.events())) > 0


def test_the_newest_trace_must_be_on_a_device() -> None:
    f = tg.compile(lambda x: x * 2 + 1, wait=True)
    f(tg.ones(100, device="cuda"))
    f(tg.ones(100))
    with pytest.raises(CaptureError, match="has no trace on a device: the newest one is on cpu"):
        tg.cuda.kernel_times(f)


# --- the profiler ---------------------------------------------------------------------------------


def on_device(found: Any) -> list[FunctionEvent]:
    return [e for e in found if e.device_type is DeviceType.CUDA]


def test_eager_operations_list_their_kernels() -> None:
    x = tg.ones(1000, device="cuda")
    x * 2 + 1
    with profile() as prof, tg.autograd.profiler.record_function("mine"):
        x * 2 + 1
    assert {CPU, CUDA} == supported_activities()
    kernels = on_device(prof.events())
    assert [k.name for k in kernels] == ["mul: kernel_0", "add: kernel_0"]
    for kernel in kernels:
        assert kernel.cpu_time_total == kernel.self_cpu_time_total == 0
        assert kernel.device_time_total == kernel.self_device_time_total > 0
        assert kernel.use_device == "cuda" and not kernel.is_estimated
    mine, mul, add = (e for e in prof.events() if e.device_type is DeviceType.CPU)
    for op, kernel in zip((mul, add), kernels, strict=True):
        assert [(k.name, k.device) for k in op.kernels] == [(kernel.name, 0)]
        assert op.self_device_time_total == pytest.approx(kernel.device_time_total)
    assert mine.self_device_time_total == 0
    total = sum(k.device_time_total for k in kernels)
    assert mine.device_time_total == pytest.approx(total)
    assert prof.key_averages().self_device_time_total == pytest.approx(total)


def test_a_compiled_call_has_its_kernels_and_their_operations(compiled: Any) -> None:
    given = arguments()
    compiled(*given).backward()
    with profile(with_stack=True) as prof:
        compiled(*given).backward()
    found = {row.key: row for row in prof.key_averages() if row.device_type is DeviceType.CPU}
    parts = [found["attention"], found["CompiledBackward0"]]
    launches = [e for e in on_device(prof.events()) if e.activity_type == "kernel"]
    assert all(part.self_device_time_total > 0 for part in parts)
    for part, label in zip(parts, ("attention: ", "attention_backward: "), strict=True):
        times = [e.device_time_total for e in launches if e.name.startswith(label)]
        assert sum(times) == pytest.approx(part.self_device_time_total, abs=0.01)
    inner = [e.name for e in on_device(prof.events()) if e.activity_type != "kernel"]
    assert {"aten::matmul", "aten::relu", "aten::exp"} <= set(inner)
    assert any(FILE in line for e in on_device(prof.events()) for line in e.stack)


def test_the_table_has_the_columns_of_the_device() -> None:
    x = tg.ones(1000, device="cuda")
    x * 2
    with profile(profile_memory=True) as prof:
        kept = x * 2
    text = prof.key_averages().table(sort_by="cuda_time_total")
    titles = [t.strip() for t in text.splitlines()[1].split("  ") if t.strip()]
    assert titles == [
        "Name", "Self CPU %", "Self CPU", "CPU total %", "CPU total", "CPU time avg", "Self CUDA",
        "Self CUDA %", "CUDA total", "CUDA time avg", "CPU Mem", "Self CPU Mem", "CUDA Mem",
        "Self CUDA Mem", "# of Calls",
    ]  # fmt: skip
    assert "\nSelf CUDA time total: " in text
    [row] = [r for r in prof.key_averages() if r.key == "aten::mul"]
    assert row.self_device_memory_usage == kept.nbytes and row.self_cpu_memory_usage == 0


def test_steps_of_a_schedule_have_the_time_of_the_device() -> None:
    x = tg.ones(1000, device="cuda")
    with profile(schedule=schedule(wait=1, warmup=1, active=2, repeat=1)) as prof:
        for _ in range(5):
            x * 2
            prof.step()
    found = {row.key: row for row in prof.key_averages()}
    assert found["ProfilerStep*"].count == found["mul: kernel_0"].count == 2
    busy = found["mul: kernel_0"].device_time_total
    assert found["ProfilerStep*"].device_time_total == pytest.approx(busy) and busy > 0


def test_cpu_alone_takes_no_time_of_the_device(compiled: Any) -> None:
    given = arguments()
    with profile(activities=[CPU]) as prof:
        compiled(*given)
        given[0] * 2
    assert not on_device(prof.events()) and "CUDA" not in str(prof.key_averages())
    assert all(e.device_time_total == 0 and e.use_device is None for e in prof.events())


def test_the_device_alone() -> None:
    x = tg.ones(1000, device="cuda")
    x * 2
    with profile(activities=[CUDA]) as prof:
        x * 2
    assert [e.name for e in prof.events()] == ["mul: kernel_0"]


def test_the_older_interface() -> None:
    x = tg.ones(1000, device="cuda")
    with tg.autograd.profiler.profile(use_device="cuda") as prof:
        x * 2
    assert "Self CUDA time total" in prof.table()
    with (
        pytest.warns(FutureWarning, match="`use_cuda` will be deprecated"),
        tg.autograd.profiler.profile(use_cuda=True) as prof,
    ):
        x * 2
    assert prof.use_device == "cuda"


def test_a_trace_file_has_lanes_of_the_device(compiled: Any, tmp_path: Path) -> None:
    given = arguments()
    with profile() as prof:
        compiled(*given)
    prof.export_chrome_trace(tmp_path / "trace.json")
    content = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    lanes = {e["tid"]: e["args"]["name"] for e in content if e["name"] == "thread_name"}
    kernels = [e for e in content if e.get("cat") == "kernel"]
    assert kernels and all(e["dur"] > 0 for e in kernels)
    assert all(lanes[e["tid"]].endswith("kernels on the device") for e in kernels)


def test_a_fault_names_its_launch_while_launches_are_timed() -> None:
    from cuda_units import FAULT, build, unit

    from tracegrad.codegen.cuda.plan import Launch

    made = build(unit(FAULT, [Launch("fault", (), (), (1, 1, 1), (2000, 1, 1))]), 0)
    history.timing(True)
    try:
        with pytest.raises(AcceleratorError, match="launch 1 of 1, fault"):
            made.call()
    finally:
        history.timing(False)
