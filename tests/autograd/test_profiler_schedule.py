"""`tracegrad.profiler`: activities, schedules of steps, callbacks, files. As PyTorch 2.13."""

from __future__ import annotations

import gzip
import json
import warnings

import pytest

import tracegrad as tg
from tracegrad import profiler
from tracegrad.profiler import (
    ProfilerAction,
    ProfilerActivity,
    profile,
    record_function,
    schedule,
    tensorboard_trace_handler,
)
from tracegrad.runtime.cuda import driver
from tracegrad.tracer.profiling import profilers
from tracegrad.tracer.state import state

CPU, CUDA = ProfilerActivity.CPU, ProfilerActivity.CUDA
X = tg.ones(3)


def counts(prof: profile) -> list[tuple[str, int]]:
    return [(row.key, row.count) for row in prof.key_averages()]


def steps(number: int, **options) -> tuple[profile, list]:
    """`number` steps of one sine each; what the callback saw."""
    seen: list = []
    options.setdefault("on_trace_ready", lambda p: seen.append((p.step_num, counts(p))))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning: Profiler clears events")
        with profile(**options) as prof:
            for _ in range(number):
                X.sin()
                prof.step()
    return prof, seen


def test_names_are_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "device_count", lambda: 0)
    assert profiler.__all__ == [
        "DeviceType", "ProfilerAction", "ProfilerActivity", "kineto_available", "profile",
        "record_function", "schedule", "supported_activities", "tensorboard_trace_handler",
    ]  # fmt: skip
    assert tg.profiler is profiler and profiler.kineto_available()
    assert repr(profiler.supported_activities()) == "{<ProfilerActivity.CPU: 0>}"
    assert record_function is tg.autograd.profiler.record_function


def test_each_cycle_is_reported_when_it_ends() -> None:
    """The figures are those of PyTorch for the same program."""
    prof, seen = steps(10, schedule=schedule(wait=1, warmup=1, active=2, repeat=2))
    cycle = [("ProfilerStep*", 2), ("aten::sin", 2)]
    assert seen == [(4, cycle), (8, cycle)]
    assert prof.step_num == 10 and prof.current_action is ProfilerAction.NONE
    assert [e.trace_name for e in prof.events()][::2] == ["ProfilerStep#6", "ProfilerStep#7"]


def test_without_a_schedule_everything_is_recorded() -> None:
    prof, seen = steps(3)
    assert (
        seen == [(3, [("aten::sin", 3)])] and [e.name for e in prof.events()] == ["aten::sin"] * 3
    )


def test_a_cycle_cut_short_is_reported_at_the_end() -> None:
    with pytest.warns(UserWarning, match="^Profiler won't be using warmup, this can skew profiler"):
        when = schedule(wait=0, warmup=0, active=2)
    _, seen = steps(5, schedule=when)
    assert [n for n, _ in seen] == [2, 4, 5]
    assert seen[-1][1] == [("ProfilerStep*", 2), ("aten::sin", 1)]


def test_events_of_earlier_cycles_stay_if_asked() -> None:
    when = schedule(wait=0, warmup=1, active=1, repeat=2)
    prof, seen = steps(6, schedule=when, acc_events=True)
    assert [n for n, _ in seen] == [2, 4]
    assert counts(prof) == [("ProfilerStep*", 2), ("aten::sin", 2)]


def test_that_events_are_cleared_is_said_once(monkeypatch) -> None:
    monkeypatch.setattr("tracegrad.profiler.profiler._said", set())
    prof = profile()
    prof.start()
    prof.stop()
    with pytest.warns(UserWarning, match="^Warning: Profiler clears events at the end of each cyc"):
        prof.start()
    prof.stop()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prof.start()
        prof.stop()


def test_start_and_stop() -> None:
    prof = profile()
    prof.start()
    X.cos()
    with pytest.raises(RuntimeError, match="^Profiler is already enabled on this thread$"):
        profile().start()
    prof.stop()
    X.sin()
    assert counts(prof) == [("aten::cos", 1)]


def test_stopping_twice_warns() -> None:
    """PyTorch's library says so too, and goes on."""
    with pytest.warns(UserWarning, match="^the profiler is not running$"):
        with profile() as prof:
            X.sin()
            prof.stop()
    assert counts(prof) == [("aten::sin", 1)] and profilers == []


def test_nothing_is_left_after_an_exception() -> None:
    """PyTorch calls `on_trace_ready` then too."""
    seen = []
    with pytest.raises(KeyError):
        with profile(on_trace_ready=lambda p: seen.append(counts(p))):
            X.sin()
            raise KeyError
    assert seen == [[("aten::sin", 1)]] and state.profiler is None and profilers == []


def test_schedules() -> None:
    def names(n: int, **numbers) -> str:
        when = schedule(**numbers)
        return " ".join(when(i).name.replace("RECORD_AND_SAVE", "SAVE") for i in range(n))

    assert names(8, wait=1, warmup=1, active=2, repeat=1, skip_first=1) == (
        "NONE NONE WARMUP RECORD SAVE NONE NONE NONE"
    )
    assert names(8, wait=3, warmup=1, active=1, skip_first_wait=1) == (
        "WARMUP SAVE NONE NONE NONE WARMUP SAVE NONE"
    )
    with pytest.raises(AssertionError) as caught:
        schedule(wait=-1, warmup=0, active=0)
    assert str(caught.value) == (
        "Invalid profiler schedule arguments. Got wait=-1 (need >= 0), warmup=0 (need >= 0), "
        "active=0 (need > 0), repeat=0 (need >= 0), skip_first=0 (need >= 0)."
    )
    with pytest.raises(AssertionError, match=r"^Step must be non-negative. Got -1.$"):
        schedule(wait=1, warmup=1, active=1)(-1)


@pytest.mark.parametrize(
    ("actions", "warning", "rows"),
    [
        ("WARMUP NONE", "Incorrect schedule: WARMUP followed by NONE", []),
        ("RECORD NONE", "Incorrect schedule: RECORD followed by NONE",
         [("ProfilerStep*", 1), ("aten::sin", 1)]),
        ("WARMUP", None, []),
        ("RECORD", None, [("ProfilerStep*", 1)]),
    ],
)  # fmt: skip
def test_odd_schedules(actions: str, warning: str | None, rows: list) -> None:
    chosen = [ProfilerAction[name] for name in actions.split()]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prof, _ = steps(len(chosen) - 1, schedule=lambda i: chosen[i])
    assert [str(w.message) for w in caught] == ([warning] if warning else [])
    assert counts(prof) == rows and profilers == []


def test_what_a_schedule_returns_is_checked_before_anything_changes() -> None:
    with pytest.raises(ValueError, match="^ProfilerAction.DEVICE_STOPPED is set internally by the"):
        profile(schedule=lambda i: ProfilerAction.DEVICE_STOPPED)
    with pytest.raises(ValueError, match="must return a ProfilerAction, got 3 for step 0"):
        profile(schedule=lambda i: 3)
    when = [ProfilerAction.RECORD, ProfilerAction.DEVICE_STOPPED]
    with profile(schedule=lambda i: when[i]) as prof:
        with pytest.raises(ValueError, match="DEVICE_STOPPED"):
            prof.step()
        assert prof.step_num == 0 and prof.current_action is ProfilerAction.RECORD


def test_activities_are_checked_in_pytorchs_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "device_count", lambda: 0)
    with pytest.raises(AssertionError, match="^No valid profiler activities found$"):
        profile(activities=[])
    with pytest.raises(
        ValueError, match="^Activity ProfilerActivity.CPU specified more than once$"
    ):
        profile(activities=[CPU, {CPU: []}])
    with pytest.raises(TypeError, match="^Expected ProfilerActivity or dict, got <class 'int'>$"):
        profile(activities=[CPU, 3])
    with pytest.warns(UserWarning, match="^CUDA is not available, disabling CUDA profiling$"):
        with profile(activities=[CPU, CUDA]) as prof:
            X.sin()
    assert counts(prof) == [("aten::sin", 1)]
    with pytest.warns(UserWarning, match="^CUDA is not available"):
        with pytest.raises(AssertionError, match="^No activities specified for the profiler$"):
            profile(activities=[CUDA]).start()
    with pytest.warns(FutureWarning, match="^`use_cuda` is deprecated, use `activities` argument"):
        profile(use_cuda=False)
    assert profilers == []


def test_results_before_the_start_are_refused(tmp_path) -> None:
    prof = profile()
    for call, what in (
        (prof.key_averages, "getting key averages"), (prof.events, "accessing events"),
        (prof.stop, "stopping trace"),
        (lambda: prof.export_chrome_trace(tmp_path / "x"), "exporting chrome trace"),
        (lambda: prof.export_stacks(tmp_path / "x"), "exporting stacks"),
    ):  # fmt: skip
        with pytest.raises(AssertionError, match=f"^Profiler must be initialized before {what}$"):
            call()
    with pytest.raises(NotImplementedError, match="export_memory_timeline is not available"):
        prof.export_memory_timeline("x.html")
    with pytest.raises(NotImplementedError, match="no experimental options"):
        profile(experimental_config=object())


def test_collection_can_be_switched_off_meanwhile() -> None:
    with profile(activities=[CPU]) as prof:
        X.sin()
        prof.toggle_collection_dynamic(False, [CPU])
        X.cos()
        prof.toggle_collection_dynamic(True, [CPU])
        X.exp()
        prof.toggle_collection_dynamic(False, [CUDA])
        X.tan()
    assert [e.name for e in prof.events()] == ["aten::sin", "aten::exp", "aten::tan"]


def test_trace_handler_writes_files_for_tensorboard(tmp_path) -> None:
    folder = tmp_path / "logs" / "run"
    for use_gzip in (False, True):
        handler = tensorboard_trace_handler(str(folder), "worker", use_gzip=use_gzip)
        prof = profile(on_trace_ready=handler, record_shapes=True)
        prof.preset_metadata_json("early", '{"a": 1}')
        with prof:
            prof.add_metadata("note", 'a "quoted" text')
            prof.add_metadata_json("list", "[1, 2]")
            X.sin()
    plain, packed = sorted(folder.iterdir(), key=lambda p: p.suffix, reverse=True)
    assert plain.name.startswith("worker.") and plain.name.endswith(".pt.trace.json")
    assert packed.name.endswith(".pt.trace.json.gz")
    for text in (plain.read_text(), gzip.open(packed, "rt").read()):
        trace = json.loads(text)
        assert (trace["note"], trace["list"]) == ('a "quoted" text', [1, 2])
        assert trace["record_shapes"] == 1 and trace["trace_id"] and trace["early"] == {"a": 1}
        assert "aten::sin" in {e["name"] for e in trace["traceEvents"]}
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeError, match="^Can't create directory: .*file/x$"):
        tensorboard_trace_handler(str(tmp_path / "file" / "x"))(prof)
    with pytest.raises(ValueError, match="the metadata 'bad' is no JSON: .* got '{'"):
        prof.add_metadata_json("bad", "{")


def test_trace_ids_and_observers() -> None:
    calls = []

    class Observer:
        def __getattr__(self, name: str):
            return lambda: calls.append(name)

    prof = profile(execution_trace_observer=Observer(), custom_trace_id_callback=lambda: "mine")
    assert prof.get_trace_id() is None
    with prof:
        X.sin()
    assert prof.get_trace_id() == "mine" and calls == ["start", "stop", "cleanup"]


def test_an_observer_that_fails_to_start_leaves_no_profiler_open() -> None:
    class Failing:
        def start(self) -> None:
            raise KeyError

    prof = profile(execution_trace_observer=Failing())
    with pytest.raises(KeyError):
        prof.start()
    assert state.profiler is None and profilers == []


def test_stacks_shapes_and_flops_are_passed_on(tmp_path) -> None:
    with profile(with_stack=True, record_shapes=True, with_flops=True, profile_memory=True) as prof:
        X * 2
    (event,) = (e for e in prof.events() if e.name == "aten::mul")
    assert (event.input_shapes, event.flops, event.self_cpu_memory_usage) == ([[3], []], 3, 12)
    assert event.stack[0].endswith(": test_stacks_shapes_and_flops_are_passed_on")
    prof.export_stacks(tmp_path / "stacks")
    assert len(prof.key_averages(group_by_input_shape=True, group_by_stack_n=1)) == 2
