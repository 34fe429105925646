"""Hooks on tensors, leaves and nodes: when they run, what they may return, how they are refused.

Each test states the behaviour of PyTorch that it mirrors; messages are PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import tracegrad as tg

MODES = [lambda f: f, tg.compile]
modes = pytest.mark.parametrize("mode", MODES, ids=["eager", "compiled"])


def leaf(n: int = 2) -> Any:
    return tg.ones(n, requires_grad=True)


def calls(f: Any, n: int = 3) -> Any:
    """Capture `f`, if it is compiled, so that what follows meets a replay."""
    for _ in range(n):
        f(leaf()).sum().backward()
    return f


# ---- tensors ------------------------------------------------------------------------------------


@modes
def test_hooks_run_in_order_of_registration_each_on_the_result_of_the_one_before(
    mode: Callable[..., Any],
) -> None:
    """`Tensor.register_hook`: hooks form a chain, on leaves and on results."""
    f = calls(mode(lambda x: x * 2))
    x = leaf()
    seen: list[Any] = []
    x.register_hook(lambda g: seen.append(("x1", g.tolist())) or g * 10)
    x.register_hook(lambda g: seen.append(("x2", g.tolist())))
    y = f(x)
    y.register_hook(lambda g: seen.append(("y1", g.tolist())) or g + 1)
    y.register_hook(lambda g: seen.append(("y2", g.tolist())) or g + 1)
    y.sum().backward()
    assert seen == [("y1", [1, 1]), ("y2", [2, 2]), ("x1", [6, 6]), ("x2", [60, 60])]
    assert x.grad.tolist() == [60, 60]


@modes
def test_a_removed_hook_does_not_run(mode: Callable[..., Any]) -> None:
    """`RemovableHandle.remove()`; it is also a context manager; removing twice is no error."""
    f = calls(mode(lambda x: x * 2))
    x = leaf()
    handle = x.register_hook(lambda g: g * 10)
    with x.register_hook(lambda g: g * 5):
        f(x).sum().backward()
    assert x.grad.tolist() == [100, 100]
    handle.remove()
    handle.remove()
    x.grad = None
    f(x).sum().backward()
    assert x.grad.tolist() == [2, 2]


@modes
def test_a_leaf_hook_changes_what_grad_returns(mode: Callable[..., Any]) -> None:
    """Tensor hooks run before `autograd.grad` takes the gradient."""
    f = calls(mode(lambda x: x * 2))
    x = leaf()
    x.register_hook(lambda g: g * 10)
    (got,) = tg.autograd.grad(f(x).sum(), x)
    assert got.tolist() == [20, 20]
    assert x.grad is None


def test_retained_gradients_are_those_after_the_hooks() -> None:
    """`retain_grad` runs after all tensor hooks whenever it was asked for, before prehooks."""
    a = leaf()
    b = a * 2
    b.retain_grad()
    b.register_hook(lambda g: g * 10)
    b.grad_fn.register_prehook(lambda gs: (gs[0] * 7,))
    b.sum().backward()
    assert b.grad.tolist() == [10, 10]
    assert a.grad.tolist() == [140, 140]


def test_hooks_stay_with_the_value_that_they_were_registered_on() -> None:
    """A hook registered before an in-place operation sees the gradient of the old value."""
    seen: list[Any] = []
    y = leaf() * 2
    y.register_hook(lambda g: seen.append(("old", g.tolist())))
    y.mul_(3)
    y.register_hook(lambda g: seen.append(("new", g.tolist())))
    y.sum().backward()
    assert seen == [("new", [1, 1]), ("old", [3, 3])]


@pytest.mark.parametrize("on_leaf", [True, False])
@pytest.mark.parametrize(
    ("hook", "kind", "text"),
    [
        (lambda g: 3, TypeError, "expected Variable, but hook returned 'int'"),
        (lambda g: g.sum(), RuntimeError, "hook '<lambda>' has changed the size of value"),
        (lambda g: g.double(), RuntimeError,
         r"hook '<lambda>' has changed the type of value \(was torch.FloatTensor got "
         r"torch.DoubleTensor\)"),
    ],
)  # fmt: skip
def test_what_a_hook_returns_must_fit(
    on_leaf: bool, hook: Any, kind: type[Exception], text: str
) -> None:
    a = leaf()
    b = a * 2
    (a if on_leaf else b).register_hook(hook)
    with pytest.raises(kind, match=text):
        b.sum().backward()
    assert a.grad is None


def test_tensors_without_gradient_take_no_hooks() -> None:
    text = "cannot register a hook on a tensor that doesn't require gradient"
    with pytest.raises(RuntimeError, match=text):
        tg.ones(2).register_hook(print)
    with pytest.raises(RuntimeError, match=text):
        tg.ones(2).register_post_accumulate_grad_hook(print)
    with pytest.raises(RuntimeError, match="cannot be registered on non-leaf tensors"):
        (leaf() * 2).register_post_accumulate_grad_hook(print)


# ---- leaves -------------------------------------------------------------------------------------


@modes
def test_a_post_accumulate_hook_sees_the_new_grad(mode: Callable[..., Any]) -> None:
    """It may step an optimizer and drop `.grad`; it runs in `backward`, not in `autograd.grad`."""
    f = calls(mode(lambda x: x * 2))
    x = leaf()
    seen: list[Any] = []

    def hook(p: Any) -> None:
        seen.append(p.grad.tolist())
        assert p is x

    handle = x.register_post_accumulate_grad_hook(hook)
    f(x).sum().backward()
    f(x).sum().backward()
    f(x).sum().backward(inputs=[x])
    tg.autograd.grad(f(x).sum(), x)
    handle.remove()
    f(x).sum().backward()
    assert seen == [[2, 2], [4, 4], [6, 6]]
    assert x.grad.tolist() == [8, 8]


def test_a_post_accumulate_hook_returns_nothing() -> None:
    x = leaf()
    x.register_post_accumulate_grad_hook(lambda p: 3)
    with pytest.raises(TypeError, match="expected Variable, but hook returned 'int'"):
        (x * 2).sum().backward()


# ---- nodes --------------------------------------------------------------------------------------


def test_a_node_hook_sees_both_sides_and_may_replace_the_results() -> None:
    """`Node.register_hook(fn(grad_inputs, grad_outputs))`; one entry per input, None included."""
    a = leaf()
    b = a * 2
    seen: list[Any] = []
    handle = b.grad_fn.register_hook(lambda gi, go: seen.append((gi, go)))
    b.grad_fn.register_hook(lambda gi, go: (gi[0] * 10, None))
    b.sum().backward(retain_graph=True)
    ((gi, go),) = seen
    assert gi[0].tolist() == [2, 2] and gi[1] is None and go[0].tolist() == [1, 1]
    assert a.grad.tolist() == [20, 20]
    handle.remove()
    b.sum().backward()
    assert len(seen) == 1


def test_a_node_prehook_may_replace_the_cotangents() -> None:
    a = leaf()
    b = a * 2
    b.grad_fn.register_prehook(lambda go: (go[0] * 10,))
    b.sum().backward()
    assert a.grad.tolist() == [20, 20]


@pytest.mark.parametrize("pre", [True, False])
@pytest.mark.parametrize(
    ("result", "kind", "text"),
    [
        (3, TypeError, "expected tuple, but hook returned 'int'"),
        ((None,) * 5, RuntimeError,
         r"hook '<lambda>' has returned an incorrect number of values \(got 5, but expected "),
    ],
)  # fmt: skip
def test_what_a_node_hook_returns_must_fit(
    pre: bool, result: Any, kind: type[Exception], text: str
) -> None:
    b = leaf() * 2
    register = b.grad_fn.register_prehook if pre else b.grad_fn.register_hook
    register(lambda *grads: result)
    with pytest.raises(kind, match=text):
        b.sum().backward()


def test_hooks_of_an_accumulating_node_run_around_the_accumulation() -> None:
    """Order on a leaf: tensor hook, prehook, accumulation, node hook with (), post-accumulate."""
    a = leaf()
    node = (a * 1).grad_fn.next_functions[0][0]
    seen: list[Any] = []
    a.register_post_accumulate_grad_hook(lambda p: seen.append(("post", p.grad.tolist())))
    node.register_hook(lambda gi, go: seen.append(("node", gi, go[0].tolist())))
    node.register_prehook(lambda go: seen.append("pre") or (go[0] * 5,))
    a.register_hook(lambda g: seen.append("tensor"))
    (a * 2).sum().backward()
    assert seen == ["tensor", "pre", ("post", [10, 10]), ("node", (), [10, 10])]
    seen.clear()
    tg.autograd.grad((a * 2).sum(), a)
    assert seen == ["tensor"]


def test_metadata_is_the_users_dictionary() -> None:
    """`grad_fn.metadata`: starts empty, keeps what is put in."""
    node = (leaf() * 2).grad_fn
    assert node.metadata == {}
    node.metadata["note"] = 1
    assert node.metadata == {"note": 1}


# ---- inside compiled functions ------------------------------------------------------------------


@pytest.mark.parametrize(
    "register",
    [
        lambda y, x: x.register_post_accumulate_grad_hook(lambda p: None),
        lambda y, x: y.grad_fn.register_prehook(lambda g: (g[0] * 10,)),
        lambda y, x: y.grad_fn.register_hook(lambda a, b: (a[0] * 10, None)),
    ],
    ids=["post_accumulate", "prehook", "node"],
)
def test_hooks_on_leaves_and_nodes_inside_a_compiled_function_run_it_eagerly(
    register: Callable[..., Any],
) -> None:
    def fn(x: Any) -> Any:
        y = x * 2
        register(y, x)
        return y * 3

    f = tg.compile(fn)
    for k in range(3):
        x, z = leaf(), leaf()
        if k == 0:
            with pytest.warns(tg.EagerWarning, match="hook"):
                y = f(x)
        else:
            y = f(x)
        y.sum().backward()
        fn(z).sum().backward()
        assert x.grad.tolist() == z.grad.tolist()
    assert f.cache_info().traces == 0


def test_a_hook_on_a_result_inside_a_compiled_function_is_replayed() -> None:
    def fn(x: Any) -> Any:
        y = x * 2
        y.register_hook(lambda g: g * 10)
        return y * 3

    f = tg.compile(fn, wait=True, strict=True)
    for _ in range(3):
        x = leaf()
        f(x).sum().backward()
        assert x.grad.tolist() == [60.0] * x.numel()
    assert f.cache_info().hits == 2


@pytest.mark.parametrize("held", [False, True])
def test_leaves_are_reached_as_soon_as_they_are_ready(held: bool) -> None:
    """In PyTorch's order, which does not depend on how old the nodes of the leaves are."""
    log: list[str] = []
    weights = [tg.ones(2, requires_grad=True) for _ in range(3)]
    alive = [w * 1 for w in reversed(weights)] if held else None
    names = {f"w{k}": w for k, w in enumerate(weights)}
    names["y"] = tg.ones(2) * weights[0]
    names["z"] = names["y"] * weights[1]
    names["u"] = names["z"] * weights[2] + weights[0]
    for name, x in names.items():
        x.register_hook(lambda g, name=name: log.append(name))
    names["u"].sum().backward()
    assert log == ["u", "w2", "z", "w1", "y", "w0"]
    assert alive is None or len(alive) == 3
