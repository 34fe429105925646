"""What a profile says of compiled functions: their calls, kernels, and the operations inside."""

from __future__ import annotations

import pytest

import tracegrad as tg
from tracegrad.autograd.profiler import profile, record_function
from tracegrad.autograd.profiler_kernels import NOTE, division, shared
from tracegrad.runtime import history, rehearsal


def counts(prof: profile) -> dict[str, int]:
    return {row.key: row.count for row in prof.key_averages()}


def replayed(function, *args):
    """The function compiled, with its forward and backward built and verified."""
    compiled = tg.compile(function)
    for _ in range(2):
        compiled(*args).backward()
    return compiled


def wave(x):
    return (x.sin() * 2).sum()


def several(x, w):
    """A softmax, whose sums and maxima make kernels of their own, and a product for BLAS."""
    return ((x.sin() + 1).softmax(-1) @ w).tanh().sum()


def operands() -> tuple[tg.Tensor, tg.Tensor]:
    generator = tg.Generator().manual_seed(0)
    x = tg.rand(30, 40, generator=generator, requires_grad=True)
    return x, tg.rand(40, 16, generator=generator, requires_grad=True)


@pytest.fixture
def profiled_several() -> profile:
    x, w = operands()
    compiled = replayed(several, x, w)
    with profile(record_shapes=True, with_stack=True, with_flops=True) as prof:
        for _ in range(3):
            compiled(x, w).backward()
    return prof


def test_calls_kernels_and_operations_have_rows() -> None:
    x = tg.ones(3, requires_grad=True)
    compiled = replayed(wave, x)
    with profile(record_shapes=True) as prof:
        for _ in range(3):
            compiled(x).backward()
    found = counts(prof)
    for name in ("wave", "wave: kernel_0", "CompiledBackward0", "wave_backward: kernel_0",
                 "aten::sin", "aten::cos", "torch::autograd::AccumulateGrad"):  # fmt: skip
        assert found[name] == 3
    call = prof.function_events[0]
    assert (call.name, call.input_shapes, call.activity_type) == ("wave", [[3]], "compiled_call")
    (kernel,) = call.cpu_children
    assert [e.name for e in kernel.cpu_children] == ["aten::sin", "aten::mul", "aten::sum"]
    assert kernel.cpu_children[0].input_shapes == [[3]]
    assert all(e.cpu_parent is kernel for e in kernel.cpu_children)


def test_self_times_add_up_to_what_was_measured(profiled_several: profile) -> None:
    """In whole nanoseconds: no part of a measured time is lost or counted twice."""
    events = profiled_several.function_events
    for call in events:
        if call.activity_type == "kernel":
            inside = sum(e.end_ns - e.start_ns for e in call.cpu_children)
            assert inside == call.end_ns - call.start_ns and call.self_cpu_time_total == 0
    outside = sum(e.end_ns - e.start_ns for e in events if e.cpu_parent is None)
    assert profiled_several.self_cpu_time_total == pytest.approx(outside / 1e3, rel=1e-9)


def test_kernels_tile_the_measured_call(profiled_several: profile) -> None:
    calls = [e for e in profiled_several.function_events if e.activity_type == "compiled_call"]
    assert len(calls) == 3
    for call in calls:
        kernels = call.cpu_children
        assert len(kernels) > 2 and {k.activity_type for k in kernels} == {"kernel"}
        assert call.start_ns <= kernels[0].start_ns and kernels[-1].end_ns <= call.end_ns
        for before, after in zip(kernels, kernels[1:], strict=False):
            assert before.end_ns == after.start_ns


def test_estimates_are_marked_and_measurements_are_not(profiled_several: profile) -> None:
    for event in profiled_several.function_events:
        inside = event.cpu_parent is not None and event.cpu_parent.activity_type == "kernel"
        assert event.is_estimated is (inside or event.activity_type == "kernel")
    x = tg.ones(3, requires_grad=True)
    alone = replayed(wave, x)
    with profile() as prof:
        alone(x)
    assert [e.is_estimated for e in prof.function_events] == [False, False, True, True, True]


def test_table_says_what_is_estimated(profiled_several: profile) -> None:
    text = profiled_several.key_averages().table(sort_by="cpu_time_total")
    assert text.endswith(NOTE + "\n") and "several: kernel_0 (est.)" in text
    assert "aten::sin (est.)" in text and "several (est.)" not in text
    assert "(est.)" not in profiled_several.key_averages().table(row_limit=1)


def test_estimates_and_measurements_are_different_rows() -> None:
    x = tg.ones(3, requires_grad=True)
    compiled = replayed(wave, x)
    with profile() as prof:
        compiled(x)
        x.sin()
    rows = [(r.count, r.is_estimated) for r in prof.key_averages() if r.key == "aten::sin"]
    assert rows == [(1, True), (1, False)]


def test_operations_know_their_lines_and_flops(profiled_several: profile) -> None:
    rows = {e.name: e for e in profiled_several.function_events if e.is_estimated}
    sin = rows["aten::sin"]
    assert sin.stack[0].endswith(": several") and "test_profiler_compiled.py(" in sin.stack[0]
    assert sin.stack[1].endswith(": profiled_several")
    product = next(e for e in profiled_several.function_events if e.name == "aten::matmul")
    assert (product.flops, product.input_shapes) == (2 * 30 * 40 * 16, [[30, 40], [40, 16]])
    backward = next(e for e in profiled_several.function_events if e.name == "CompiledBackward0")
    assert backward.stack == profiled_several.function_events[0].stack  # the forward's
    assert backward.sequence_nr == profiled_several.function_events[0].sequence_nr


def test_costly_operations_get_most_of_a_kernel() -> None:
    """By the cost model: a sine is about twenty additions."""
    x = tg.ones(2000, requires_grad=True)
    compiled = replayed(wave, x)
    with profile() as prof:
        for _ in range(20):
            compiled(x)
    rows = {r.key: r.cpu_time_total for r in prof.key_averages()}
    assert 15 < rows["aten::sin"] / rows["aten::mul"] < 25


def test_profile_changes_no_result() -> None:
    x, w = operands()
    compiled = replayed(several, x, w)
    x.grad = w.grad = None
    plain = compiled(x, w)
    plain.backward()
    wanted = (plain.item(), x.grad.tolist(), w.grad.tolist())
    x.grad = w.grad = None
    with profile() as prof:
        measured = compiled(x, w)
        measured.backward()
    assert (measured.item(), x.grad.tolist(), w.grad.tolist()) == wanted
    prof.key_averages()  # rehearses
    assert compiled(x, w).item() == wanted[0]


def test_launches_are_bare_outside_profiles() -> None:
    x = tg.ones(3)
    compiled = tg.compile(lambda x: x * 2)
    compiled(x)
    names = compiled._order[0].executable.call.__globals__
    bare = names["tg_run"]
    with profile():
        assert names["tg_run"] is not bare
    assert names["tg_run"] is bare and history._listeners == ()


def test_capture_and_compilation_are_rows() -> None:
    @tg.compile
    def cubed(x):
        return (x * x * x).sum()

    x = tg.ones(5, requires_grad=True)
    with profile() as prof:
        with record_function("first"):
            cubed(x)
        cubed(x).backward()
    first, capture, *_ = prof.function_events
    assert (capture.name, capture.cpu_parent) == ("cubed: capture", first)
    loads = [e for e in capture.cpu_children if e.activity_type == "capture"]
    (load,) = loads
    assert load.name in ("cubed: compile", "cubed: load from disk", "cubed: load")
    assert capture.start_ns <= load.start_ns and load.end_ns <= capture.end_ns
    assert "aten::mul" in {e.name for e in capture.cpu_children}  # the first run is an eager one
    assert not any(e.is_estimated for e in capture.cpu_children)
    node = next(e for e in prof.function_events if e.name == "CompiledBackward0")
    assert any(e.name.startswith("cubed_backward: ") for e in node.cpu_children)


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
    assert "scaled" not in counts(prof)
    assert counts(prof)["aten::mul"] == counts(prof)["scaled: capture"] == 1


def test_compiled_calls_of_other_threads_are_not_listed() -> None:
    import threading

    x = tg.ones(3, requires_grad=True)
    compiled = replayed(wave, x)
    with profile() as prof:
        other = threading.Thread(target=lambda: compiled(x))
        other.start()
        other.join()
    assert counts(prof) == {}


def test_memory_of_compiled_calls_is_that_of_their_results() -> None:
    @tg.compile
    def outer(x):
        return x[:, None] * x + 1

    x = tg.ones(16)
    outer(x), outer(x)
    with profile(profile_memory=True) as prof:
        y = outer(x)
    assert prof.function_events[0].cpu_memory_usage == 16 * 16 * 4 == y.numel() * 4


def test_tensors_that_are_passed_through_are_no_new_memory() -> None:
    constant = tg.ones(100)

    @tg.compile
    def passing(x):
        return x, constant, x + 1

    x = tg.ones(16)
    passing(x), passing(x)
    with profile(profile_memory=True) as prof:
        kept = passing(x)
    assert kept[1] is constant and prof.function_events[0].cpu_memory_usage == 16 * 4


def test_what_a_compiled_call_keeps_for_its_backward_counts_too() -> None:
    x, w = operands()
    compiled = replayed(several, x, w)
    kept = [r for r in compiled(x, w).grad_fn.residuals if r[1] is None]
    assert kept
    x.grad = w.grad = None
    with profile(profile_memory=True) as prof:
        y = compiled(x, w)
        y.backward()
    call = prof.function_events[0]
    assert call.cpu_memory_usage == y._array.nbytes + sum(r[0].nbytes for r in kept)
    backward = next(e for e in prof.function_events if e.name == "CompiledBackward0")
    assert backward.self_cpu_memory_usage == x._array.nbytes + w._array.nbytes
    freed = sum(e.self_cpu_memory_usage for e in prof.function_events if e.name == "[memory]")
    assert freed == -sum(r[0].nbytes for r in kept)  # when the backward has used it


def test_dividing_a_launch_falls_back_on_the_cost_model(monkeypatch, profiled_several) -> None:
    """Where nothing can be rehearsed, plans say how much each kernel has to do."""
    x, w = operands()
    compiled = replayed(several, x, w)
    (what,) = {v for v in history._watched.values()
               if v.entry is compiled._order[0].executable.kernel.record}  # fmt: skip
    assert len(rehearsal.rehearse(what)) == len(division(what)[0])
    monkeypatch.setattr(rehearsal, "MANY_KERNELS", 0)
    assert rehearsal.rehearse(what) is None
    from tracegrad.autograd import profiler_kernels

    profiler_kernels._divisions.pop(what)
    costs, weights = division(what)
    assert weights == [cost.seconds for cost in costs] and min(weights) > 0
    profiler_kernels._divisions.pop(what)


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")
def test_a_function_that_runs_a_profiler_stays_eager() -> None:
    """A replay would not take its steps, nor its time."""
    scheduled = tg.profiler.profile(schedule=tg.profiler.schedule(wait=0, warmup=1, active=1))

    def step(x):
        scheduled.step()
        return x * 2

    def timed(x):
        with profile() as prof:
            y = x * 2
        return y * len(prof.key_averages())

    def stays_eager(function, line: str) -> None:
        compiled = tg.compile(function)
        with pytest.warns(tg.EagerWarning) as caught:
            for _ in range(3):
                assert compiled(tg.ones(2)).tolist() == [2.0, 2.0]
        assert "a profiler is used inside the function at " in str(caught[0].message)
        assert str(caught[0].message).endswith(f"({line})")

    with scheduled:
        stays_eager(step, "scheduled.step()")
    assert scheduled.step_num == 3
    stays_eager(timed, "with profile() as prof:")


def test_labels_inside_a_compiled_function_hold_their_operations() -> None:
    """Eagerly a label holds what runs in its block; in a kernel, what was written there."""

    @record_function("whole")
    def labelled(x):
        with record_function("outer"):
            y = x.sin()
            with record_function("inner"):
                y = y.exp()
        return (y * 2).sum()

    x = tg.rand(500, generator=tg.Generator().manual_seed(0), requires_grad=True)
    compiled = tg.compile(labelled)
    for call in range(3):
        x.grad = None
        with profile() as prof:
            out = compiled(x)
            out.backward()
        events = {e.name: e for e in reversed(prof.function_events)}  # the first of each
        assert events["inner"].cpu_parent is events["outer"]
        assert events["outer"].cpu_parent is events["whole"]
        assert events["inner"].cpu_children == [events["aten::exp"]]
        assert [e.name for e in events["outer"].cpu_children] == ["aten::sin", "inner"]
        assert all(events[n].is_user_annotation for n in ("whole", "outer", "inner"))
        assert events["inner"].is_estimated is (call > 0)  # the first call is captured
        assert counts(prof)["inner"] == counts(prof)["whole"] == 1  # and none in the backward
        assert out.item() == pytest.approx(labelled(x).item(), rel=1e-6)
    assert len(compiled._order) == 1
    assert events["outer"].self_cpu_time_total == 0
    assert events["whole"].cpu_time_total == events["labelled: kernel_0"].cpu_time_total


def test_shares_lose_nothing() -> None:
    parts = shared((10, 1_000_003), [0.1, 0.7, 1e-12, 0.3])
    assert parts[0][0] == 10 and parts[-1][1] == 1_000_003
    assert all(a[1] == b[0] for a, b in zip(parts, parts[1:], strict=False))
    assert shared((0, 5), []) == []


def test_random_operations_do_not_show_the_state_of_the_generator() -> None:
    x = tg.ones(3)
    compiled = tg.compile(lambda x: (x + tg.rand(3)).sum())
    for _ in range(2):
        compiled(x)
        compiled.wait()
    with profile(record_shapes=True) as prof:
        compiled(x)
        tg.rand(3)
    fused, eager = (e for e in prof.function_events if e.name == "aten::rand")
    assert fused.is_estimated and not eager.is_estimated
    assert fused.input_shapes == eager.input_shapes == []
