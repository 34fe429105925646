"""Backwards in several threads: no update is lost, no thread sees another's mode or graph.

As in PyTorch: `.grad` of a shared leaf gets the sum of all; a graph that one thread frees is
refused to the others. Threads change often here (`switch`), so that races show.
"""

from __future__ import annotations

import math
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import tracegrad as tg

THREADS = 6


@pytest.fixture(autouse=True)
def switch() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(function: Callable[[int], Any]) -> list[BaseException]:
    """Run `function(k)` in each thread, all at the same time; returns what they raised."""
    raised: list[BaseException] = []
    start = threading.Barrier(THREADS)

    def run(k: int) -> None:
        start.wait()
        try:
            function(k)
        except BaseException as error:  # told to the test
            raised.append(error)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def leaf(size: int = 3) -> Any:
    return tg.ones(size, dtype=tg.float64, requires_grad=True)


@pytest.mark.parametrize("size", [1, 20_000])
def test_graphs_of_their_own_over_one_leaf(size: int) -> None:
    """Small sums hold the interpreter lock, large ones do not."""
    x = leaf(size)
    assert not together(lambda k: [(x * 2).sum().backward() for _ in range(20)])
    assert x.grad.min() == x.grad.max() == THREADS * 20 * 2


def test_differentiable_gradients_over_one_leaf() -> None:
    for _ in range(5):
        x = leaf()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            assert not together(
                lambda k, x=x: [(x**3).sum().backward(create_graph=True) for _ in range(5)]
            )
        assert x.grad.tolist() == [THREADS * 5 * 3] * 3
        assert x.grad.requires_grad
        x.grad = None  # PyTorch warns of this cycle too


def test_one_graph_that_is_kept() -> None:
    x = leaf()
    y = (x.exp() * x).sum()
    assert not together(lambda k: [y.backward(retain_graph=True) for _ in range(20)])
    for g in x.grad.tolist():
        assert math.isclose(g, THREADS * 20 * 2 * math.e, rel_tol=1e-12)


def test_one_graph_that_is_freed_is_refused_to_the_late() -> None:
    """Whatever was freed when: each thread ends, or is told that the graph is gone."""
    for _ in range(30):
        x = leaf()
        y = (x.exp().sin() * x).sum()
        for error in together(lambda k, y=y: y.backward()):
            assert isinstance(error, RuntimeError)
            assert str(error).startswith("Trying to backward through the graph a second time")


def test_a_new_leaf_used_by_all_at_once_has_one_place_in_the_tape() -> None:
    for _ in range(30):
        x = leaf()
        nodes: list[Any] = []

        def function(k: int, x: Any = x, nodes: Any = nodes) -> None:
            y = (x * 2).sum()
            nodes.append(y.grad_fn.next_functions[0][0].next_functions[0][0])
            assert tg.autograd.grad(y, x)[0].tolist() == [2, 2, 2]

        assert not together(function)
        assert len({id(n) for n in nodes}) == 1


def test_hooks_run_in_the_thread_of_the_backward() -> None:
    x = leaf()
    seen: list[Any] = []
    x.register_hook(lambda g: seen.append((threading.get_ident(), g.tolist()[0])))
    x.register_post_accumulate_grad_hook(lambda p: seen.append((threading.get_ident(), "after")))
    want: list[Any] = []

    def function(k: int) -> None:
        want.extend([(threading.get_ident(), float(k)), (threading.get_ident(), "after")])
        (x * k).sum().backward()

    assert not together(function)
    assert sorted(map(str, seen)) == sorted(map(str, want))
    assert x.grad.tolist() == [sum(range(THREADS))] * 3


def test_a_hook_over_several_tensors_is_called_once_per_backward() -> None:
    x, w = leaf(), leaf()
    calls: list[Any] = []
    tg.autograd.graph.register_multi_grad_hook((x, w), lambda gs: calls.append(gs))
    assert not together(lambda k: [(x * w).sum().backward() for _ in range(5)])
    assert len(calls) == THREADS * 5
    assert all(len(gs) == 2 and None not in map(type, gs) for gs in calls)


def test_the_grad_mode_of_a_backward_stays_in_its_thread() -> None:
    """A backward switches recording off (or on) for its own thread only."""
    inside, stop = threading.Event(), threading.Event()

    class Waits(tg.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x * 1

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            modes.append(tg.is_grad_enabled())
            inside.set()
            stop.wait(10)
            return grad

    modes: list[bool] = []
    y = Waits.apply(leaf()).sum()
    thread = threading.Thread(target=y.backward)
    thread.start()
    assert inside.wait(10)
    assert tg.is_grad_enabled() and (leaf() * 2).requires_grad
    with tg.no_grad():
        stop.set()
        thread.join()
        assert not tg.is_grad_enabled()
    assert modes == [False]


def test_modes_do_not_reach_new_threads() -> None:
    """PyTorch: a thread starts with recording on and without saved-tensor hooks."""
    found: list[Any] = []
    hooks = tg.autograd.graph.saved_tensors_hooks(lambda t: found.append("packed"), lambda t: t)
    with tg.no_grad(), tg.inference_mode(), hooks:
        thread = threading.Thread(
            target=lambda: found.append(
                (tg.is_grad_enabled(), tg.is_inference_mode_enabled(), leaf().exp().requires_grad)
            )
        )
        thread.start()
        thread.join()
    assert found == [(True, False, True)]


def test_functions_are_differentiated_by_several_threads() -> None:
    class Square(tg.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            return 2 * ctx.saved_tensors[0] * grad

    x = leaf()
    y = Square.apply(Square.apply(x)).sum()
    assert not together(lambda k: [y.backward(retain_graph=True) for _ in range(10)])
    assert x.grad.tolist() == [THREADS * 10 * 4] * 3


def test_views_whose_memory_was_written_are_brought_up_to_date_once() -> None:
    """The history of a view is made anew when it is next asked for, by whichever thread."""
    for _ in range(10):
        x = leaf()
        base = x * 1
        view = base[:2]
        base.mul_(3)

        def function(k: int, view: Any = view, x: Any = x) -> None:
            (g,) = tg.autograd.grad(view.sum(), x, retain_graph=True)
            assert g.tolist() == [3, 3, 0]

        assert not together(function)


def test_checkpoints_in_several_threads() -> None:
    x = leaf()

    def function(k: int) -> None:
        for reentrant in (True, False):
            y = tg.utils.checkpoint.checkpoint(
                lambda x: x.sin() * x, x, use_reentrant=reentrant, preserve_rng_state=False
            )
            y.sum().backward()

    assert not together(function)
    want = THREADS * 2 * (math.sin(1) + math.cos(1))
    assert all(math.isclose(g, want, rel_tol=1e-12) for g in x.grad.tolist())


def test_deep_graphs_in_threads_of_small_stacks() -> None:
    before = threading.stack_size(256 * 1024)
    try:
        x = leaf(1)

        def function(k: int) -> None:
            y = x
            for _ in range(5000):
                y = y * 1.0
            y.backward()

        assert not together(function)
    finally:
        threading.stack_size(before)
    assert x.grad.tolist() == [THREADS]
