"""A graph that is released leaves no memory, at once: the garbage collector is switched off here.

`alive` tells what of a graph is still there; `growth` counts bytes over many runs. As in PyTorch,
what a backward used up is freed by it, and `backward(create_graph=True)` makes a cycle through
`.grad` that the user breaks.
"""

from __future__ import annotations

import gc
import tracemalloc
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import tracegrad as tg
from tracegrad.autograd import graph
from tracegrad.utils.checkpoint import checkpoint


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def leaf() -> Any:
    return tg.tensor([1.0, 2.0], dtype=tg.float64, requires_grad=True)


class Square(tg.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        y = x * x
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return 2 * ctx.saved_tensors[0] * grad


class Dirty(tg.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.mark_dirty(x)
        y = x * 1
        ctx.mark_non_differentiable(y)
        return x.mul_(2), y

    @staticmethod
    def backward(ctx: Any, grad: Any, none: Any) -> Any:
        return grad * 2


def hooked(x: Any) -> Any:
    y = x.exp()
    y.register_hook(lambda g: g * 2)
    y.grad_fn.register_hook(lambda a, b: None)
    y.grad_fn.register_prehook(lambda a: None)
    graph.register_multi_grad_hook((x, y), lambda gs: None)
    y.retain_grad()
    return y


def written(x: Any) -> Any:
    y = x * 1
    v = y[:1]
    v.mul_(2)
    y.sin_()
    return v.exp() + y


def packed(x: Any) -> Any:
    with graph.saved_tensors_hooks(lambda t: t.detach(), lambda t: t):
        return x.exp() * x


def on_cpu(x: Any) -> Any:
    with graph.save_on_cpu():
        return x.exp() * x


def mutated(x: Any) -> Any:
    with graph.allow_mutation_on_saved_tensors():
        y = x.exp()
        z = y.sin()
        y.zero_()
        z.sum().backward(retain_graph=True)
    return x * z.detach()


compiled = tg.compile(lambda x: x.exp() * x)
GRAPHS: dict[str, Callable[[Any], Any]] = {
    "operations": lambda x: (x.exp() * x).sin() / x,
    "reductions": lambda x: x.softmax(0).logsumexp(0) + x.var() + x.max(),
    "views": lambda x: (x * 1)[None].expand(3, 2).t().reshape(6)[1:].view(5),
    "writes": written,
    "Function": lambda x: Square.apply(Square.apply(x)),
    "dirty": lambda x: Dirty.apply(x * 1)[0],
    "hooks": hooked,
    "saved hooks": packed,
    "save_on_cpu": on_cpu,
    "mutation": mutated,
    "checkpoint": lambda x: checkpoint(lambda x: x.exp() * x, x, use_reentrant=False),
    "reentrant": lambda x: checkpoint(lambda x: x.exp() * x, x, use_reentrant=True),
    "compiled": compiled,
}


def alive(output: Any) -> Callable[[], int]:
    """How many nodes of the graph of `output`, leaves left out, are still there when called."""
    found, stack = [], [output.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or type(node).__name__ == "AccumulateGrad":
            continue
        found.append(weakref.ref(node))
        stack.extend(n for n, _ in node.next_functions)
    assert found
    return lambda: sum(r() is not None for r in found)


@pytest.mark.parametrize("build", GRAPHS.values(), ids=GRAPHS.keys())
def test_a_graph_goes_with_its_output(build: Callable[[Any], Any]) -> None:
    """Without a backward, after one, after one that kept it, and after `grad`."""
    for use in (
        lambda y, x: None,
        lambda y, x: y.sum().backward(),
        lambda y, x: y.sum().backward(retain_graph=True),
        lambda y, x: [y.sum().backward(retain_graph=True), y.sum().backward()],
    ):
        x = leaf()
        build(x).sum().backward()  # the first call of a compiled function is captured
        gc.collect()
        y = build(x)
        left = alive(y)
        use(y, x)
        assert left() > 0
        del y
        assert left() == 0
        array = weakref.ref(x._array)
        del x
        assert array() is None


@pytest.mark.parametrize(
    "build", [b for k, b in GRAPHS.items() if k not in ("reentrant", "dirty")],
    ids=[k for k in GRAPHS if k not in ("reentrant", "dirty")],
)  # fmt: skip
def test_graphs_of_gradients_go_too(build: Callable[[Any], Any]) -> None:
    x = leaf()
    build(x).sum().backward()  # the first call of a compiled function is captured
    gc.collect()
    y = build(x)
    first = alive(y)
    (g,) = tg.autograd.grad(y.sum(), x, create_graph=True)
    if g.grad_fn is not None:
        second = alive(g)
        (h,) = tg.autograd.grad(g.sum(), x, create_graph=True, allow_unused=True)
        del g, h
    else:
        second = first
        del g
    del y
    assert first() == second() == 0


def test_what_the_backward_used_is_freed_by_it() -> None:
    x = leaf()
    y = x.exp()
    kept = weakref.ref(y._array)
    z = y.sin()
    del y
    assert kept() is not None
    z.sum().backward()
    assert kept() is None and z.grad_fn is not None


def test_an_exception_in_a_backward_leaves_nothing() -> None:
    class Fails(tg.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.save_for_backward(x)
            return x * 1

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            raise ValueError("boom")

    x = leaf()
    y = Fails.apply(x.exp()).sin()
    left = alive(y)
    with pytest.raises(ValueError, match="boom") as error:
        y.sum().backward()
    del error
    assert left() > 0
    del y
    assert left() == 0
    with pytest.raises(RuntimeError, match="element 0 of tensors does not require grad"):
        tg.ones(2).sum().backward()


def test_handles_keep_neither_graph_nor_hook() -> None:
    x = leaf()
    y = x.exp()

    def hook(g: Any) -> None: ...

    handles = [
        y.register_hook(hook),
        y.grad_fn.register_hook(lambda a, b: None),
        y.grad_fn.register_prehook(lambda a: None),
        x.register_hook(hook),
        x.register_post_accumulate_grad_hook(lambda p: None),
        graph.register_multi_grad_hook((x, y), lambda gs: None),
    ]
    left, gone = alive(y), weakref.ref(hook)
    del y, hook
    assert left() == 0
    array = weakref.ref(x._array)
    del x
    assert array() is None and gone() is None
    for handle in handles:
        handle.remove()


def test_hooks_of_a_leaf_stay_while_its_graphs_come_and_go() -> None:
    x, seen = leaf(), []
    handle = x.register_hook(lambda g: seen.append(g.tolist()))
    for k in range(3):
        (x * k).sum().backward()
    assert seen == [[0, 0], [1, 1], [2, 2]]
    handle.remove()
    x.sum().backward()
    assert len(seen) == 3


def test_an_edge_keeps_the_graph_but_not_the_tensor() -> None:
    x = leaf()
    y = x.exp() * 2
    edge = graph.get_gradient_edge(y)
    tensor, left = weakref.ref(y), alive(y)
    del y
    assert tensor() is None and left() == 2
    del edge
    assert left() == 0


def test_anomaly_mode_keeps_no_graph() -> None:
    with tg.autograd.set_detect_anomaly(True):
        x = leaf()
        y = (x.exp() * x).sum()
        (g,) = tg.autograd.grad(y, x, create_graph=True)
        first, second = alive(y), alive(g)
        tg.autograd.grad(g.sum(), x)
        del y, g
        assert first() == second() == 0


def test_a_graph_in_grad_is_the_users_to_break() -> None:
    """PyTorch warns of this cycle; it ends with `x.grad = None`, or here with a collection."""
    x = leaf()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        (x**3).sum().backward(create_graph=True)
    left, array = alive(x.grad), weakref.ref(x._array)
    assert left() > 0
    x.grad = None
    assert left() == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        (x**3).sum().backward(create_graph=True)
    del x
    assert array() is not None
    gc.collect()
    assert array() is None


def test_training_does_not_grow() -> None:
    """Thirty steps leave no object, and less memory than one of the arrays that they make."""
    x = tg.ones(100_000, dtype=tg.float64, requires_grad=True)

    def steps(count: int) -> None:
        for _ in range(count):
            for name in ("operations", "writes", "Function", "checkpoint", "reentrant"):
                x.grad = None
                GRAPHS[name](x).sum().backward()

    steps(3)
    objects = len(gc.get_objects())
    steps(10)
    assert len(gc.get_objects()) - objects < 10
    tracemalloc.start()
    try:
        steps(3)
        before = tracemalloc.get_traced_memory()[0]
        steps(20)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < x.nbytes / 2


# ---- deep graphs --------------------------------------------------------------------------------

DEEP = 100_000


def chain(step: Callable[[Any], Any], depth: int) -> Any:
    x = tg.ones(1, dtype=tg.float64, requires_grad=True)
    y = x * 1
    for _ in range(depth):
        y = step(y)
    return x, y


class Same(tg.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return grad * 1.0


def write_part(y: Any) -> Any:
    y[0:1].mul_(1.0)
    return y


STEPS = {
    "operations": (lambda y: y * 1.0, DEEP),
    "Function": (Same.apply, DEEP // 5),
    "in place": (lambda y: y.mul_(1.0), DEEP // 5),
    "CopySlices": (write_part, DEEP // 20),
    "checkpoint": (lambda y: checkpoint(lambda x: x * 1.0, y, use_reentrant=False), DEEP // 20),
}


@pytest.mark.parametrize(("step", "depth"), STEPS.values(), ids=STEPS.keys())
def test_deep_graphs_are_differentiated_and_freed_without_recursion(step: Any, depth: int) -> None:
    x, y = chain(step, depth)
    node = weakref.ref(y.grad_fn)
    y.backward()
    assert x.grad.tolist() == [1]
    del y
    assert node() is None
    x, y = chain(step, depth // 10)
    node = weakref.ref(y.grad_fn)
    del y  # not differentiated
    assert node() is None


def test_the_graph_of_a_deep_backward_is_deep_too() -> None:
    x, y = chain(lambda y: y.sin(), DEEP // 20)
    (g,) = tg.autograd.grad(y, x, create_graph=True)
    (h,) = tg.autograd.grad(g, x, retain_graph=True)
    left = weakref.ref(g.grad_fn), weakref.ref(y.grad_fn)
    assert h.item() < 0 < g.item()
    del y, g
    assert left[0]() is left[1]() is None
