"""What a compiled function tells about itself."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

import tracegrad as tg
from tracegrad.runtime import history

scale = 2.0


def model(x: Any, w: Any) -> Any:
    return (tg.sin(x @ w) * scale).sum()


LINE = f"test_inspection.py:{model.__code__.co_firstlineno + 1}"


def called() -> Any:
    f = tg.compile(model)
    x, w = tg.randn(3, 4), tg.randn(4, 2, requires_grad=True)
    f(x, w)
    f(x, w).backward()
    return f


def test_graph_shows_types_and_lines() -> None:
    text = str(called().graph())
    assert "def model(x, w):" in text
    assert "float32[3, 4]" in text
    assert LINE in text


def test_backward_graph_takes_residuals_and_a_cotangent() -> None:
    text = str(called().backward_graph())
    assert "cos" in text
    assert "return" in text


def test_sources_are_c_with_python_lines() -> None:
    f = called()
    assert "tg_run" in f.source()
    assert f"// {LINE}" in f.source("forward")
    assert "cosf" in f.source("backward")
    with pytest.raises(
        tg.errors.ParameterError, match="'forward', 'backward' or 'joint', got 'both'"
    ):
        f.source("both")


def test_backward_can_be_shown_before_it_ran_and_before_it_is_compiled() -> None:
    f = tg.compile(model)
    f(tg.randn(3, 4), tg.randn(4, 2, requires_grad=True))
    launched = len(tg.kernel_history())
    assert "cosf" in f.source("backward")
    assert len(tg.kernel_history()) == launched


def test_without_gradients_there_is_no_backward() -> None:
    f = tg.compile(model)
    f(tg.randn(3, 4), tg.randn(4, 2))
    with pytest.raises(tg.errors.CaptureError, match="model has no backward: no result depends"):
        f.source("backward")


def test_before_the_first_call_there_is_nothing() -> None:
    with pytest.raises(tg.errors.CaptureError, match="model has no trace to show; call it first"):
        tg.compile(model).graph()


@pytest.mark.parametrize("index", [9, 1, -2])
def test_a_trace_that_is_not_there_is_named(index: int) -> None:
    f = called()
    for show in (f.graph, f.backward_graph, f.launcher, f.guards, lambda k: f.source("forward", k)):
        with pytest.raises(
            tg.errors.ParameterError, match=rf"model has 1 trace\(s\); there is no trace {index}\."
        ):
            show(index)
    assert f.source("forward", 0) == f.source("forward", -1)


def test_the_launcher_is_python_that_compiles() -> None:
    text = called().launcher()
    compile(text, "launcher", "exec")
    assert "def launch(leaves):" in text
    assert "scale" in text


def test_guards_hold_and_explain_themselves() -> None:
    global scale
    f = called()
    guards = {g.name: g for g in f.guards()}
    assert guards["scale"].holds()
    scale = 3.0
    try:
        assert not guards["scale"].holds()
        f(tg.randn(3, 4), tg.randn(4, 2, requires_grad=True))
        assert "scale was 2.0, now it is 3.0" in f.explain()
        assert f.cache_info().traces == 2
    finally:
        scale = 2.0


def test_explain_says_why_each_trace_was_captured() -> None:
    f = called()
    f(tg.randn(5, 4), tg.randn(4, 2, requires_grad=True))
    text = f.explain()
    assert "model: 2 trace(s), 1 replay(s), 2 capture(s), 0 eager call(s)" in text
    assert "called for the first time" in text
    assert "shape (3, 4) -> (5, 4)" in text
    assert "guarded: scale: value 2.0; read at test_inspection.py:" in text


class Settings:
    def __init__(self) -> None:
        self.rate, self.names = 0.5, ["a", "b"]


def test_explain_groups_what_is_guarded() -> None:
    """A line for each object that the function starts from, however much of it is read."""
    settings, table = Settings(), [tg.rand(3) for _ in range(40)]
    network = tg.nn.Sequential(tg.nn.Linear(3, 3), tg.nn.BatchNorm1d(3))
    weights = {"w": tg.rand(3), "b": tg.rand(3)}

    def helper(x: Any) -> Any:
        return x * settings.rate if "a" in settings.names else x

    def fn(x: Any) -> Any:
        y = helper(x * weights["w"] + weights["b"])
        for t in table:
            y = y + t
        return network(y)

    f = tg.compile(fn, wait=True)
    f(tg.rand(2, 3))
    lines = [line.strip() for line in f.explain().splitlines()]
    words = [line.removeprefix("guarded: ") for line in lines if line.startswith("guarded: ")]
    assert len(f.guards()) > 50 and len(words) == 5
    at = r"read at test_inspection.py:\d+"
    for line, pattern in zip(
        words,
        (
            rf"functions and classes, the same ones: fn, helper.*; {at}, test_inspection.py:\d+",
            rf"weights: the same dict; 2 tensors \(weights\['w'\], weights\['b'\]\); {at}$",
            rf"table: the same list; the elements of table; 40 tensors \(table\[0\], table\[1\], "
            rf"table\[2\] \.\.\.\); {at}$",
            rf"network: the same Sequential; nothing has changed, with 7 tensors \(0.weight, 0.bias, "
            rf"1.weight \.\.\.\); {at}$",
            rf"settings: the same Settings; 1 object of it \(settings.names\); the elements of "
            rf"settings.names; value settings.rate = 0.5; {at}$",
        ),
        strict=True,
    ):
        assert re.match(pattern, line), line
    assert next(line for line in lines if line.startswith("inputs: ")).endswith("and 38 more")


def test_counters_and_history() -> None:
    before = len(tg.kernel_history())
    f = called()
    assert f.cache_info() == (1, 1, 1, 0)
    made = tg.kernel_history()[before:]
    assert {r.cache for r in made} <= {"built", "disk", "memory"}
    assert repr(f) == "<compiled model: 1 trace(s)>"


def test_launches_are_timed_while_timing_is_on() -> None:
    before = len(tg.kernel_history())
    f = tg.compile(model)
    x, w = tg.randn(3, 4), tg.randn(4, 2)
    f(x, w)
    (made,) = tg.kernel_history()[before:]
    assert (made.timed, made.run_ms) == (0, 0.0) and "timed" not in str(made)
    history.timing(True)
    try:
        start = time.perf_counter()
        for _ in range(5):
            f(x, w)
        wall = (time.perf_counter() - start) * 1e3
    finally:
        history.timing(False)
    assert made.timed == 5 and 0 < made.run_ms < wall
    assert "5 timed launches" in str(made)
    told, launches = made.run_ms, made.launches
    f(x, w)
    assert (made.timed, made.run_ms, made.launches) == (5, told, launches + 1)


def test_attributes_of_the_function_are_reached() -> None:
    class Net(tg.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = tg.nn.Parameter(tg.ones(2))

        def forward(self, x: Any) -> Any:
            return x * self.weight

    net = Net()
    f = tg.compile(net)
    assert f.weight is net.weight
    assert [n for n, _ in f.named_parameters()] == ["weight"]
    with pytest.raises(AttributeError):
        f.nothing  # noqa: B018


def test_graph_and_source_show_the_users_variables() -> None:
    def price(spot: Any, strike: Any) -> Any:
        ratio = tg.log(spot / strike)
        square = ratio * ratio
        return (square + ratio).sum()

    f = tg.compile(price)
    spot = tg.tensor([1.5, 2.5, 3.5], requires_grad=True)
    f(spot, tg.tensor([1.0, 2.0, 3.0]))
    assert "ratio = log(" in str(f.graph())
    assert "const float ratio = logf(" in f.source()
    assert "* ratio" in f.source("backward") or "ratio *" in f.source("backward")
