"""The profiler: what becomes an event, with which name, place, memory and lines."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time

import pytest

import tracegrad as tg
from tracegrad.autograd import profiler
from tracegrad.autograd.profiler import profile, record_function
from tracegrad.runtime.cuda import driver
from tracegrad.tracer.profiling import profilers
from tracegrad.tracer.state import state


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


def test_labels_nest_as_blocks_and_decorate() -> None:
    @record_function("inner")
    def step(x, depth):
        return step(x, depth - 1) if depth else x * 2

    x = tg.ones(2)
    with profile() as prof:
        with record_function("outer"):
            step(x, 2)
    assert counts(prof) == {"outer": 1, "inner": 3, "aten::mul": 1}
    outer, *_, mul = prof.function_events
    assert mul.cpu_parent.cpu_parent.cpu_parent.cpu_parent is outer
    with record_function("no profiler is open"):
        assert (tg.ones(1) + 1).item() == 2


def test_labels_nest_deeper_than_python_calls() -> None:
    x = tg.ones(3)
    with profile(profile_memory=True) as prof, contextlib.ExitStack() as open_labels:
        for depth in range(2000):
            open_labels.enter_context(record_function(f"at {depth}"))
        y = x * 2
    outermost = prof.function_events[0]
    assert outermost.cpu_memory_usage == y.numel() * 4
    assert "at 1999" in prof.key_averages().table(row_limit=-1)


def test_label_closed_by_an_exception_ends_there() -> None:
    x = tg.ones(2)
    with profile() as prof:
        with pytest.raises(ZeroDivisionError), record_function("failing"):
            1 / 0  # noqa: B018
        x + 1
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


def test_groups_by_shape_and_stack() -> None:
    def one(x):
        return x * 2

    def two(x):
        return x * 2

    x, y = tg.ones(3), tg.ones(4)
    with profile(record_shapes=True, with_stack=True) as prof:
        one(x), one(y), two(y)
    by_shape = prof.key_averages(group_by_input_shape=True)
    assert [(r.input_shapes, r.count) for r in by_shape] == [([[3], []], 1), ([[4], []], 2)]
    by_stack = prof.key_averages(group_by_stack_n=1)
    assert [(r.stack[0].rpartition(" ")[2], r.count) for r in by_stack] == [("one", 2), ("two", 1)]
    assert all(len(r.stack) == 1 for r in by_stack)
    assert len(prof.key_averages()) == 1


def test_memory_counts_results_but_not_views() -> None:
    x = tg.ones(256)
    with profile(profile_memory=True) as prof:
        with record_function("both"):
            (x + 1).reshape(16, 16)
    both, add, view = prof.function_events
    assert (add.self_cpu_memory_usage, view.self_cpu_memory_usage) == (1024, 0)
    assert (both.cpu_memory_usage, both.self_cpu_memory_usage) == (0, -1024)  # freed at once


def test_memory_freed_outside_all_events_is_a_row() -> None:
    """PyTorch's name of that row is `[memory]`; views keep the memory of their base."""
    old = tg.ones(64)
    with profile(profile_memory=True) as prof:
        y = old * 2
        part = y[:3]
        del y
        z = part + 1
        del part, old
    kept, *_ = [e for e in prof.function_events if e.name == "[memory]"]
    rows = {e.name: e.cpu_memory_usage for e in prof.function_events}
    assert rows == {"aten::mul": 256, "aten::slice": 0, "aten::add": 12, "[memory]": -256}
    assert kept.trace_name is None and kept.cpu_time_total == 0 and z.shape == (3,)


def test_memory_of_temporaries_is_freed_in_the_function_that_made_them() -> None:
    x = tg.ones(32, 32)
    with profile(profile_memory=True) as prof:
        y = tg.softmax(x, 0)
    row = next(e for e in prof.function_events if e.name == "aten::softmax")
    assert row.cpu_memory_usage == y.numel() * 4  # of all that was allocated, the result is left
    assert row.self_cpu_memory_usage < 0


def test_memory_of_gradients_stays() -> None:
    """Of a backward, what `.grad` holds is left; the first gradient may be a copy in its leaf."""
    for function in (lambda w: w.sum(), lambda w: (w * 2).sum(), lambda w: w.t().mean()):
        w = tg.ones(8, 8, requires_grad=True)
        with profile(profile_memory=True) as prof:
            for _ in range(2):  # the second is added in place
                function(w).backward()
        assert sum(e.self_cpu_memory_usage for e in prof.function_events) == 256
    rows = {row.key: row.self_cpu_memory_usage for row in prof.key_averages()}
    assert rows["torch::autograd::AccumulateGrad"] == 256
    with profile(profile_memory=True) as prof:
        w.sum().backward()  # to a gradient from before
    assert sum(e.self_cpu_memory_usage for e in prof.function_events) == 0


def test_memory_of_arguments_is_not_freed_in_the_function() -> None:
    """Who calls has let go of them: PyTorch counts that outside, too."""
    x = tg.ones(64)
    with profile(profile_memory=True) as prof:
        y = (x * 2).softmax(0)
        z = y + 1
    top = [(e.name, e.cpu_memory_usage) for e in prof.function_events if e.cpu_parent is None]
    assert top == [
        ("aten::mul", 256),
        ("aten::softmax", 256),
        ("[memory]", -256),
        ("aten::add", 256),
    ]
    assert z.shape == (64,)


def test_memory_freed_before_a_function_that_begins_with_a_factory_is_outside_it() -> None:
    x = tg.ones(3)
    with profile(profile_memory=True) as prof:
        tg.nonzero(x)
        kept = tg.where(x)
    top = [(e.name, e.cpu_memory_usage) for e in prof.function_events if e.cpu_parent is None]
    assert sorted(top) == [("[memory]", -24), ("aten::nonzero", 24), ("aten::where", 24)]
    assert kept[0].shape == (3,)


def test_flops_of_a_product_and_a_convolution() -> None:
    with profile(with_flops=True) as prof:
        tg.ones(4, 5) @ tg.ones(5, 6)
        tg.nn.functional.conv2d(tg.ones(1, 3, 8, 8), tg.ones(2, 3, 3, 3))
    found = {r.key: r.flops for r in prof.key_averages()}
    assert found["aten::matmul"] == 2 * 4 * 5 * 6
    assert found["aten::convolution"] == 2 * (2 * 6 * 6) * (3 * 3 * 3)


def test_flops_of_writes_and_the_shapes_that_they_bring() -> None:
    x = tg.ones(3, 4)
    with profile(with_flops=True) as prof:
        x.add_(1).mul_(2).sub_(1)
    rows = [(e.name, e.flops, e.input_shapes) for e in prof.function_events]
    shapes = [[3, 4], []]
    assert rows == [
        ("aten::add_", 12, shapes),
        ("aten::mul_", 12, shapes),
        ("aten::sub_", 0, shapes),
    ]


def test_writes_have_the_number_of_the_node_that_they_record() -> None:
    y = tg.ones(3, requires_grad=True) * 2
    with profile() as prof:
        y.mul_(3)
        with tg.no_grad():
            y.add_(1)
    recorded, unrecorded = prof.function_events
    assert recorded.sequence_nr == y.grad_fn._sequence_nr() and unrecorded.sequence_nr == -1


def test_wrong_use_is_refused() -> None:
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
    assert counts(prof) == {"aten::ones": 1, "aten::add": 1}  # the refusals have changed nothing
    with pytest.raises(RuntimeError, match="type 'str' for argument 'name' but .* type 'int'"):
        record_function(3)
    with pytest.raises(RuntimeError, match=r"'Optional\[str\]' for argument 'args' but .* 'int'"):
        record_function("label", 3)
    with pytest.raises(AssertionError, match="^Expected record to be set$"):
        record_function("label").__exit__(None, None, None)
    with pytest.raises(AssertionError, match="^Device-only events supported only with Kineto"):
        profile(use_cpu=False)
    with pytest.raises(AssertionError, match="^No activities specified for the profiler$"):
        profile(use_cpu=False, use_kineto=True)
    with pytest.raises(ValueError, match="^post_processing_timeout_s must be non-negative$"):
        profile(post_processing_timeout_s=-1)
    with pytest.raises(NotImplementedError, match="no experimental options"):
        profile(experimental_config=object())


def test_devices_that_are_not_there_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "device_count", lambda: 0)
    with pytest.warns(UserWarning, match="^CUDA is not available, disabling CUDA profiling$"):
        profile(use_device="cuda")
    with pytest.warns(FutureWarning, match="`use_cuda` will be deprecated soon"):
        with pytest.warns(UserWarning, match="CUDA is not available"):
            profile(use_cuda=True)
    with pytest.warns(UserWarning, match="^The foo is not a valid device option.$"):
        profile(use_device="foo")


def test_switched_off_it_records_nothing() -> None:
    with profile(enabled=False) as prof:
        tg.ones(2) + 1
        assert state.profiler is None
    with pytest.raises(RuntimeError, match="didn't finish"):
        prof.key_averages()


def test_profilers_of_other_tools_are_refused_in_words() -> None:
    """PyTorch without CUDA says the first sentence at `emit_nvtx` too."""
    with pytest.raises(AssertionError, match="^Torch not compiled with CUDA enabled: .*profile()"):
        profiler.emit_nvtx().__enter__()
    with pytest.raises(NotImplementedError, match="emit_itt: VTune's ITT is not available"):
        profiler.emit_itt().__enter__()
    with pytest.raises(NotImplementedError, match="load_nvprof: cannot read 'x.sql'"):
        profiler.load_nvprof("x.sql")
    with profiler.emit_nvtx(enabled=False), profiler.emit_itt(enabled=False):
        tg.ones(1) + 1


def test_decorated_generators_and_coroutines_are_labelled_where_they_are_called() -> None:
    """As in PyTorch: the label ends before the body runs; inside, a `with` block labels it."""

    @record_function("numbers")
    def numbers(x):
        yield x * 2
        yield x * 3

    @record_function("later")
    async def later(x):
        await asyncio.sleep(0)
        with record_function("body"):
            return x.exp()

    async def both(x):
        with record_function("gather"):
            return await asyncio.gather(later(x), later(x))

    x = tg.ones(2)
    with profile() as prof:
        list(numbers(x))
        asyncio.run(both(x))
    found = {e.name: e for e in prof.function_events}
    assert counts(prof) == {"numbers": 1, "aten::mul": 2, "gather": 1, "later": 2, "body": 2,
                            "aten::exp": 2}  # fmt: skip
    assert found["aten::mul"].cpu_parent is None and found["later"].cpu_children == []
    assert found["aten::exp"].cpu_parent is found["body"]
    assert found["body"].cpu_parent is found["gather"]


def test_blocks_of_coroutines_that_overlap_are_nobodys_parents() -> None:
    """Of two intervals that overlap in part, PyTorch makes neither the other's parent."""

    async def worker(name, first, second):
        await asyncio.sleep(first)
        with record_function(name):
            await asyncio.sleep(second)
            tg.ones(1) + 1

    async def both():
        await asyncio.gather(worker("a", 0, 0.03), worker("b", 0.01, 0.06))

    with profile() as prof:
        asyncio.run(both())
    a, b = (next(e for e in prof.function_events if e.name == n) for n in "ab")
    assert a.start_ns < b.start_ns < a.end_ns < b.end_ns  # b is not cut short where a ends
    assert a.cpu_parent is None and b.cpu_parent is None
    assert b.is_overlapping and not a.is_overlapping


def test_a_profile_must_end_in_its_thread() -> None:
    prof = profile()
    refused = []

    def leave() -> None:
        try:
            prof.__exit__(None, None, None)
        except RuntimeError as error:
            refused.append(str(error))

    with prof:
        other = threading.Thread(target=leave)
        other.start()
        other.join()
        tg.ones(1) + 1
    assert refused == [
        "a profiler must be stopped in the thread in which it was started; it goes on there"
    ]
    assert counts(prof) == {"aten::ones": 1, "aten::add": 1}


def test_a_forgotten_profile_makes_room_for_the_next() -> None:
    profile().__enter__()
    gc.collect()
    with profile() as prof:
        tg.ones(1) + 1
    assert counts(prof) == {"aten::ones": 1, "aten::add": 1} and profilers == []


def test_two_threads_profile_at_once_each_their_own() -> None:
    found = {}
    ready = threading.Barrier(2)

    def work(name: str, times: int) -> None:
        x = tg.ones(3)
        with profile() as prof:
            ready.wait()
            for _ in range(times):
                getattr(x, name)()
            ready.wait()
        found[name] = (counts(prof), {e.thread for e in prof.function_events})

    threads = [threading.Thread(target=work, args=a) for a in (("sin", 5), ("cos", 7))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found["sin"][0] == {"aten::sin": 5} and found["cos"][0] == {"aten::cos": 7}
    assert len(found["sin"][1] | found["cos"][1]) == 2


def test_pauses_of_the_garbage_collector_are_short() -> None:
    """What was there before is not looked at by collections while a profile is open."""

    assert gc.get_freeze_count() == 0
    with profile():
        assert gc.get_freeze_count() > 1000
        tg.ones(2) * 2
    assert gc.get_freeze_count() == 0
    gc.freeze()  # by the user: it stays so
    try:
        with profile():
            tg.ones(2) * 2
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
