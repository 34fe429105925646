"""Records of launches on a device, and `cuda.kernel_times` where there is none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import tracegrad as tg
from tracegrad.codegen.cuda.costs import launch_costs
from tracegrad.codegen.cuda.plan import CudaTarget
from tracegrad.codegen.cuda.unit import build_cuda
from tracegrad.ir.errors import AcceleratorError, CaptureError, OperandError
from tracegrad.runtime import history


class Span:
    """One of a device that takes so long."""

    def __init__(self, ms: float) -> None:
        self.ms, self.asked = ms, 0

    def end(self) -> None: ...

    def milliseconds(self) -> float:
        self.asked += 1
        if self.ms < 0:
            raise AcceleratorError("it broke")
        return self.ms


def record() -> history.DeviceRecord:
    return history.DeviceRecord("ab" * 32, "f", "memory", inputs=1, outputs=1, ops=2)


def test_spans_are_read_once_and_where_the_time_is() -> None:
    entry, spans = record(), [Span(0.5), Span(0.25)]
    for span in spans:
        entry.timed_by(span)
    assert [s.asked for s in spans] == [0, 0] and entry.timed == 2
    assert entry.run_ms == entry.run_ms == 0.75
    assert [s.asked for s in spans] == [1, 1]
    assert str(entry) == (
        "launch ababab (in=1, out=1, ops=2): cache hit, 2 timed launches 0.750 ms on the device"
    )


def test_the_oldest_of_many_are_added_up() -> None:
    entry = record()
    spans = [Span(1.0) for _ in range(entry.MOST + 1)]
    for span in spans:
        entry.timed_by(span)
    assert [s.asked for s in spans].index(0) == entry.MOST // 2
    assert entry.run_ms == entry.MOST + 1


def test_a_device_that_broke_does_not_break_the_history() -> None:
    entry = record()
    for ms in (1.0, -1.0, 2.0):
        entry.timed_by(Span(ms))
    assert entry.run_ms == 3.0


def test_launchers_tell_the_listeners_and_leave_faults_alone() -> None:
    told: list[Any] = []

    class Listener(history.Listener):
        def launched(self, *what: Any) -> None:
            told.append(what)

        def loaded(self, entry: Any) -> None: ...

    entry, codes = record(), [0, -1, 700]
    namespace: dict[str, Any] = {"tg_run": None}
    exec("def call(args): return tg_run(args)", namespace)
    graph: Any = SimpleNamespace()
    watched = history.Launchable(
        lambda args: codes.pop(0), entry, graph, {}, 0, None, lambda: Span(0.5)
    )
    history.watch(namespace["call"], watched)
    listener = Listener()
    history.listen(listener)
    history.timing(True)
    try:
        assert [namespace["call"](None) for _ in range(3)] == [0, -1, 700]
    finally:
        history.timing(False)
        history.unlisten(listener)
    assert namespace["tg_run"] is watched.run
    assert (entry.timed, entry.run_ms) == (2, 1.0)
    assert len(told) == 2 and all(isinstance(t[3], Span) for t in told)


# --- costs of launches ----------------------------------------------------------------------------


def test_costs_are_those_of_the_launches_of_the_unit() -> None:
    f = tg.compile(lambda x, w: ((x @ w).softmax(1) * 2).sum(), wait=True)
    f(tg.randn(40, 300), tg.randn(300, 50))
    for target in (CudaTarget(), CudaTarget(cublas=True)):
        unit = build_cuda(f._trace(-1).kernel_graph(), target=target)
        costs = launch_costs(f._trace(-1).kernel_graph(), target, {})
        assert [c.kernel for c in costs] == [x.kernel or "cublas" for x in unit.launches]
        assert (sum(c.nbytes for c in costs), sum(c.ops for c in costs)) == (unit.nbytes, unit.ops)
        assert all(c.operations and c.lines and c.seconds > 0 for c in costs)


# --- kernel_times without a device ----------------------------------------------------------------


def test_kernel_times_refuses_what_is_no_compiled_function() -> None:
    with pytest.raises(OperandError, match="made by tracegrad.compile, got function"):
        tg.cuda.kernel_times(lambda x: x)


def test_kernel_times_needs_a_trace_on_a_device() -> None:
    f = tg.compile(lambda x: x * 2, wait=True)
    with pytest.raises(CaptureError, match="has no trace to show; call it first"):
        tg.cuda.kernel_times(f)
    f(tg.ones(3))
    with pytest.raises(CaptureError, match="no trace on a device: the newest one is on cpu"):
        tg.cuda.kernel_times(f)
