"""The tapes of replays in which the user's functions are called: what they keep, and what they do not.

What changes between calls is seen; what no replay could make again stays eager, with the reason.
"""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
from user_node_cases import (
    LOG,
    Cube,
    Exp,
    Two,
    agree,
    backwards,
    function,
    function_of_arguments,
    function_of_views,
    functions_in_a_row,
    functions_side_by_side,
    hook,
    hook_on_a_functions_result,
    hook_that_sees_tensors,
    note,
    result_is_a_functions,
    run,
    taken,
    two_results,
)  # fmt: skip

import tracegrad as tg


@pytest.fixture(autouse=True)
def _empty_log() -> None:
    LOG.clear()


# ---- what the tape is like ----------------------------------------------------------------------


def leaves() -> tuple[Any, Any]:
    w = tg.tensor([0.5, 1.0, -0.7], requires_grad=True)
    return w, tg.tensor([0.1, 0.2, 0.4], requires_grad=True)


def compiled_after_a_call(program: Any, **options: Any) -> Any:
    """The compiled function, whose next call is a replay."""
    made = tg.compile(program, wait=True, strict=True, **options)
    made(*leaves())
    taken()
    return made


def replay(made: Any) -> tuple[Any, Any, Any]:
    w, x = leaves()
    hits = made.cache_info().hits
    result = made(w, x)
    assert made.cache_info().hits == hits + 1
    return result, w, x


def test_a_functions_node_is_the_users() -> None:
    made = compiled_after_a_call(lambda w, x: Two.apply(w * x, w, 1.5)[1])
    result, w, x = replay(made)
    node = result.grad_fn
    assert node.name() == "TwoBackward" and node.by == 1.5
    assert node.kept["list"][1] == 3 and node.kept["mean"].item() == (w * x).mean().item()
    assert node.saved_tensors[2] is w
    assert node.saved_tensors[0].tolist() == (w * x).tolist()
    assert node.saved_tensors[0].grad_fn is node.next_functions[0][0]


def test_nodes_of_replays_share_nothing() -> None:
    made = compiled_after_a_call(lambda w, x: Two.apply(w * x, w, 1.5)[1])
    first, second = replay(made)[0].grad_fn, replay(made)[0].grad_fn
    assert first is not second and first.kept is not second.kept
    first.kept["list"].append(4)
    first.by = 2.0
    assert len(second.kept["list"]) == 2 and second.by == 1.5


def test_freed_after_a_backward() -> None:
    for program in (hook, function, functions_in_a_row, result_is_a_functions):
        result, w, _ = replay(compiled_after_a_call(program))
        result.sum().backward()
        with pytest.raises(tg.errors.GradientError, match="second time"):
            result.sum().backward()
        assert w.grad is not None
    taken()


@pytest.mark.parametrize("eager", [True, False])
def test_a_saved_argument_that_is_written_to(eager: bool) -> None:
    program = function_of_arguments
    made = program if eager else compiled_after_a_call(program)
    for change in (lambda w, x: w.add_(1), lambda w, x: x[1:].zero_()):
        w, x = leaves()
        result = made(w, x)
        with tg.no_grad():
            change(w, x)
        with pytest.raises(tg.errors.GradientError, match="modified by an inplace operation"):
            result.sum().backward()
    taken()


@pytest.mark.parametrize("eager", [True, False])
def test_a_saved_result_that_is_written_to(eager: bool) -> None:
    made = result_is_a_functions if eager else compiled_after_a_call(result_is_a_functions)
    result = made(*leaves())
    total = result.sum()
    with tg.no_grad():
        result.add_(1)
    with pytest.raises(tg.errors.GradientError, match="output 0 of ExpBackward"):
        total.backward()


@pytest.mark.parametrize("eager", [True, False])
def test_a_saved_view_whose_base_is_written_to(eager: bool) -> None:
    made = function_of_views if eager else compiled_after_a_call(function_of_views)
    w, x = leaves()
    result = made(w, x)
    with tg.no_grad():
        x[0] = 7.0
    with pytest.raises(tg.errors.GradientError, match="modified by an inplace operation"):
        result.backward()
    taken()


def test_hooks_put_on_a_result_come_after_those_of_the_run() -> None:
    def program(w: Any, x: Any) -> Any:
        y = w * x
        y.register_hook(lambda g: (note("inside", g), g * 2)[1])
        return y

    def after(result: Any, w: Any, x: Any) -> list[Any]:
        handle = result.register_hook(lambda g: (note("outside", g), g * 5)[1])
        result.register_hook(lambda g: note("last", g))
        (result * 2).sum().backward(retain_graph=True)
        handle.remove()
        (result * 2).sum().backward()
        return [result, w.grad, x.grad]

    made = tg.compile(program, wait=True, strict=True)
    agree(run(made, 5, after), run(program, 5, after))
    assert made.cache_info().hits == 3


def test_nothing_of_a_replay_outlives_it() -> None:
    made = compiled_after_a_call(function_of_arguments)
    result, w, x = replay(made)
    alive = [weakref.ref(t) for t in (result, w, x)]
    del result, w, x
    assert [r() for r in alive] == [None] * 3  # without the garbage collector


def test_nothing_of_the_captured_call_is_kept() -> None:
    made = tg.compile(hook_that_sees_tensors, wait=True, strict=True)
    w, x = leaves()
    result = made(w, x)
    alive = [weakref.ref(t) for t in (result, w, x)]
    del result, w, x
    gc.collect()
    assert [r() for r in alive] == [None] * 3


def test_an_error_in_a_backward_is_the_users() -> None:
    class Raises(tg.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x * 2

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            raise KeyError("mine")

    class Wrong(tg.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x * 2

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return g[1:]

    def of_hook(w: Any, x: Any) -> Any:
        y = w * x
        y.register_hook(lambda g: g[1:])
        return y

    for program, error, text in (
        (lambda w, x: Raises.apply(w * x).sin(), KeyError, "mine"),
        (lambda w, x: Wrong.apply(w * x).sin(), tg.errors.GradientError, "expected shape"),
        (of_hook, tg.errors.GradientError, "changed the size of value"),
    ):
        made = compiled_after_a_call(program)
        for _ in range(2):
            result, *_ = replay(made)
            with pytest.raises(error, match=text):
                result.sum().backward()


def test_sizes_that_vary_share_code() -> None:
    def program(x: Any) -> Any:
        y = Cube.apply(x.sin())
        y.register_hook(lambda g: g * 2)
        return y.exp()

    made = tg.compile(program, wait=True, strict=True)
    for n in (30, 31, 32, 33, 30, 31, 32, 33):
        got, want = (tg.linspace(0, 1, n, requires_grad=True) for _ in range(2))
        made(got).sum().backward()
        program(want).sum().backward()
        agree(got.grad, want.grad)
    assert made.cache_info().hits == 4
    assert "n0" in made.source("backward", trace=-1)
    traces = [made._trace(k) for k in range(1, 4)]
    assert len({t.forward_unit().code for t in traces}) == 1
    for number in range(len(traces[0].full_backwards())):
        assert len({t.full_backwards()[number].unit().code for t in traces}) == 1


def test_compiled_by_the_worker() -> None:
    made = tg.compile(functions_side_by_side, strict=True)
    agree(run(made, 2, backwards), run(functions_side_by_side, 2, backwards))
    assert made.wait()
    agree(run(made, 5, backwards), run(functions_side_by_side, 5, backwards))
    assert made.wait()
    agree(run(made, 5, backwards), run(functions_side_by_side, 5, backwards))
    assert made.cache_info().hits >= 8


def test_every_replay_verified() -> None:
    made = tg.compile(hook_on_a_functions_result, wait=True, strict=True, verify="always")
    want = run(hook_on_a_functions_result, 5, backwards)
    agree(run(made, 5, backwards), want)


def test_each_backward_that_is_several() -> None:
    made = compiled_after_a_call(functions_in_a_row)
    result, w, _ = replay(made)
    result.sum().backward()
    assert made.source("backward").count("int tg_run") == 1  # of x * w: the rest is the user's
    assert "segment 0 of" in made.source("backward")
    with pytest.raises(tg.errors.CaptureError, match="several backward graphs"):
        made.backward_graph()
    taken()


# ---- what changes between calls -----------------------------------------------------------------


class Holder:
    def __init__(self) -> None:
        self.by = 2.0
        self.seen: list[Any] = []

    def scaled(self, g: Any) -> Any:
        self.seen.append(g.tolist())
        return g * self.by


def doubled(g: Any) -> Any:
    return g * 2


def tripled(g: Any) -> Any:
    return g * 3


HOLDER, CHOSEN = Holder(), doubled


def test_what_the_users_code_reads_in_a_backward_is_read_then() -> None:
    def program(w: Any, x: Any) -> Any:
        y = w * x
        y.register_hook(HOLDER.scaled)
        y.register_hook(CHOSEN)
        return y.exp()

    global HOLDER, CHOSEN
    made = tg.compile(program, wait=True, strict=True)
    found: dict[Any, Any] = {}
    for fn in (made, program):
        HOLDER, CHOSEN = Holder(), doubled
        grads = []
        for k in range(8):
            w, x = leaves()
            if k == 2:
                HOLDER.by = 5.0
            if k == 4:
                CHOSEN = tripled
            if k == 6:
                HOLDER = Holder()
            result = fn(w, x)
            HOLDER.by += k  # between forward and backward
            result.sum().backward()
            grads.append(w.grad)
        found[fn] = [grads, HOLDER.seen]
    agree(found[made], found[program])
    assert made.cache_info().hits >= 4


def test_numbers_that_a_node_keeps_are_the_calls() -> None:
    def program(w: Any, x: Any, by: Any, more: Any) -> Any:
        a, b = Two.apply(w * x, w, by)
        y = a * b
        y.register_hook(lambda g: g * more)
        return y

    made = tg.compile(program, wait=True, strict=True)
    for k in range(12):
        found = []
        for fn in (made, program):
            w, x = leaves()
            fn(w, x, 0.5 + k // 3, 1 + k // 4).sum().backward()
            found.append([w.grad, x.grad, taken()])
        agree(*found)
    assert made.cache_info().hits >= 5


def test_requires_grad_and_grad_mode_that_change() -> None:
    made = tg.compile(two_results, wait=True, strict=True)
    for k in range(12):
        found = []
        for fn in (made, two_results):
            w, x = leaves()
            w.requires_grad_(k % 2 == 0)
            x.requires_grad_(k % 3 == 0)
            with tg.set_grad_enabled(k % 5 != 4):
                result = fn(w, x)
            if result.requires_grad:
                result.backward()
            found.append([result, w.grad, x.grad, taken()])
        agree(*found)
    assert made.cache_info().hits >= 4


def test_a_cell_from_before_the_run_is_shared() -> None:
    total = 0

    def program(w: Any, x: Any) -> Any:
        y = w * x

        def counted(g: Any) -> None:
            nonlocal total
            total += 1

        y.register_hook(counted)
        return y.exp()

    made = tg.compile(program, wait=True, strict=True)
    for k in range(1, 5):
        made(*leaves()).sum().backward()
        assert total == k
    assert made.cache_info().hits == 3


def test_a_list_from_outside_is_filled_by_a_hook() -> None:
    seen: list[Any] = []

    def program(w: Any, x: Any) -> Any:
        y = w * x
        y.register_hook(seen.append)
        return y.exp()

    made = tg.compile(program, wait=True)
    for k in range(1, 5):
        made(*leaves()).sum().backward()
        assert len(seen) == k


# ---- what stays eager, and why ------------------------------------------------------------------


class Thing:
    def __call__(self, g: Any) -> Any:
        return g * 3


def keeps_an_object(w: Any, x: Any) -> Any:
    y = w * x
    y.register_hook(Thing())
    return y.exp()


def keeps_a_set(w: Any, x: Any) -> Any:
    y, seen = w * x, {1, 2}
    y.register_hook(lambda g: g * len(seen))
    return y.exp()


def on_an_argument(w: Any, x: Any) -> Any:
    w.register_hook(lambda g: g * 2)
    return w * x


def on_a_node(w: Any, x: Any) -> Any:
    y = w * x
    y.grad_fn.register_prehook(lambda grads: (grads[0] * 2,))
    return y.exp()


def class_made_inside(w: Any, x: Any) -> Any:
    class Mine(tg.autograd.Function):
        @staticmethod
        def forward(ctx: Any, y: Any) -> Any:
            return y * 2

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return g * 7 * x.detach()

    return Mine.apply(w * x)


def through_a_view(w: Any, x: Any) -> Any:
    y = Cube.apply(w * x)
    y[1:].mul_(2)
    return y


def freed_inside(w: Any, x: Any) -> Any:
    y = Cube.apply(w * x)
    y.sum().backward()
    return y.detach() + Exp.apply(w)


def leaf_made_inside(w: Any, x: Any) -> Any:
    y = w * x
    extra = tg.ones(3, requires_grad=True)
    y.register_hook(lambda g: g * extra.detach())
    return y.exp()


@pytest.mark.parametrize(
    ("program", "text"),
    [
        (keeps_an_object, r"register_hook\(\) keeps a Thing that the function makes at"),
        (keeps_a_set, r"register_hook\(\) keeps a set that the function makes"),
        (on_an_argument, r"register_hook\(\) is used inside the function at"),
        (on_a_node, "grad_fn is used inside the function"),
        (class_made_inside, "Function Mine keeps a class that the function makes"),
        (through_a_view, "is written to through a view"),
        (leaf_made_inside, "leaf that the function makes"),
    ],
)
def test_eager_with_the_reason(program: Any, text: str) -> None:
    made = tg.compile(program, wait=True)
    with pytest.warns(tg.EagerWarning, match=text):
        found = run(made, 4, backwards)
    agree(found, run(program, 4, backwards))
    assert made.cache_info().hits == 0
