"""Places of the tape that users reach for by hand; behaviour, texts and figures are PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import tracegrad as tg

autograd = tg.autograd


def leaf(*sizes: int) -> Any:
    return tg.ones(*sizes, requires_grad=True)


# ---- backward(inputs=) and retain_grad ----------------------------------------------------------


@pytest.mark.parametrize("retained", [True, False])
@pytest.mark.parametrize("names", ["y", "xy", "yx", "yy", "x"])
def test_inputs_that_are_no_leaves_get_their_gradient_once(names: str, retained: bool) -> None:
    x = leaf(2)
    y = x * 3
    if retained:
        y.retain_grad()
    (y * 2).sum().backward(inputs=[{"x": x, "y": y}[c] for c in names])
    if retained or "y" in names:
        assert y.grad.tolist() == [2.0, 2.0]
    assert x.grad is None if "x" not in names else x.grad.tolist() == [6.0, 6.0]


# ---- nodes are callable -------------------------------------------------------------------------


def test_a_node_can_be_called() -> None:
    a, b = tg.tensor([2.0], requires_grad=True), tg.tensor([3.0], requires_grad=True)
    node = (a * b).grad_fn
    one, other = node(tg.tensor([10.0]))
    assert (one.item(), other.item()) == (30.0, 20.0)
    assert one.requires_grad  # recorded: the first factor is b
    assert autograd.grad(one, b)[0].item() == 10.0
    with tg.no_grad():
        assert not node(tg.tensor([10.0]))[0].requires_grad
    assert node(None) == (None, None)
    single = a.sin().grad_fn(tg.tensor([1.0]))
    assert single.item() == pytest.approx(float(tg.cos(tg.tensor(2.0))))


def test_the_node_of_a_leaf_accumulates() -> None:
    a = leaf(2)
    node = (a * 1).grad_fn.next_functions[0][0]
    assert node(tg.ones(2)) == () and node(tg.ones(2)) == ()
    assert a.grad.tolist() == [2.0, 2.0]
    assert node(None) == () and a.grad.tolist() == [2.0, 2.0]


@pytest.mark.parametrize(("arguments", "text"), [
    ((3,), "^argument 0 is not a Variable$"),
    ((None, None), "^expected 1 arguments, got 2 instead$"),
    ((), "^expected 1 arguments, got 0 instead$"),
])  # fmt: skip
def test_wrong_calls_of_a_node(arguments: tuple[Any, ...], text: str) -> None:
    with pytest.raises(TypeError, match=text):
        leaf(2).sin().grad_fn(*arguments)


def test_a_node_that_was_freed_says_so() -> None:
    y = leaf(2).sin()
    y.sum().backward()
    with pytest.raises(RuntimeError, match="^Trying to backward through the graph a second time"):
        y.grad_fn(tg.ones(2))


# ---- names of nodes after writes ----------------------------------------------------------------


@pytest.mark.parametrize(("write", "name"), [
    (lambda y: y.__setitem__(slice(None), 2.0), "FillBackward3"),
    (lambda y: y.__setitem__(..., 2.0), "FillBackward3"),
    (lambda y: y.__setitem__(slice(None), leaf(3)), "torch::autograd::CopyBackwards"),
    (lambda y: y.__setitem__(0, 2.0), "torch::autograd::CopySlices"),
    (lambda y: y.__setitem__(tg.tensor([0, 1]), leaf(3)[:2]), "IndexPutBackward0"),
    (lambda y: y.copy_(leaf(3)), "torch::autograd::CopyBackwards"),
    (lambda y: y.fill_(2.0), "FillBackward2"),
    (lambda y: y.fill_(leaf(3).sum()), "FillBackward3"),
    (lambda y: y.zero_(), "ZeroBackward0"),
])  # fmt: skip
def test_names_after_a_write(write: Callable[[Any], Any], name: str) -> None:
    y = leaf(3) * 1
    write(y)
    assert y.grad_fn.name() == name
    assert repr(y.grad_fn).startswith(f"<{name.rpartition(':')[2]} object at ")


def test_an_assigned_slice_is_the_next_function() -> None:
    y = leaf(3) * 1
    y[tg.tensor([0, 1])] = leaf(3)[:2]
    assert [node.name() for node, _ in y.grad_fn.next_functions] == [
        "MulBackward0", "SliceBackward0",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["eq", "ne", "lt", "le", "gt", "ge"])
def test_a_comparison_in_place_has_derivatives_of_zero(name: str) -> None:
    """Of the memory and of what it is compared with; a number takes none."""
    x, y = leaf(2), leaf(1)
    z = x * 1
    getattr(z, f"{name}_")(y)
    assert z.grad_fn.name() == f"{name.title()}Backward1"
    z.sum().backward()
    assert x.grad.tolist() == [0.0, 0.0] and y.grad.tolist() == [0.0]
    z = tg.zeros(2)
    getattr(z, f"{name}_")(y)
    assert z.requires_grad and z.grad_fn.next_functions[0] == (None, 0)
    z = x * 1
    getattr(z, f"{name}_")(2.0)
    assert z.grad_fn.name() == f"{name.title()}Backward0" and len(z.grad_fn.next_functions) == 1


# ---- versions -----------------------------------------------------------------------------------


def test_increment_version() -> None:
    x = tg.ones(2)
    autograd.graph.increment_version(x)
    assert x._version == 1
    autograd.graph.increment_version([x, x])
    assert x._version == 3
    with tg.inference_mode():
        y = tg.ones(2)
    autograd.graph.increment_version(y)  # it has none


@pytest.mark.parametrize("wrong", [3, [3], None])
def test_increment_version_refuses_what_is_no_tensor(wrong: Any) -> None:
    with pytest.raises(
        RuntimeError, match=r"^increment_version expect a Iterable\[Tensor\] as input"
    ):
        autograd.graph.increment_version(wrong)


def test_a_write_that_was_told_is_noticed_in_the_backward() -> None:
    x = leaf(2)
    y = x * 1
    z = y.exp() * y
    y.detach().numpy()[0] = 5
    autograd.graph.increment_version(y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


class AddOne(autograd.Function):
    """Writes to its argument."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        x.add_(1)
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return grad


def test_what_a_function_marks_as_dirty_has_another_version() -> None:
    """Once for `add_`, once for the mark, as the write may not have been tracegrad's."""
    for x in (tg.ones(2), leaf(2) * 1):
        AddOne.apply(x)
        assert x._version == 2


# ---- Function: what was saved is let go of ------------------------------------------------------


class Once(autograd.Function):
    """Lets go of what it saved."""

    clear_saved_tensors_on_access = True
    asks = 1

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        for _ in range(Once.asks):
            (x,) = ctx.saved_tensors
        return 2 * grad * x


@pytest.mark.parametrize("asks", [1, 2])
def test_saved_tensors_may_be_asked_for_once(asks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "^saved_tensors can only be accessed once when clear_saved_tensors_on_access=True is set on"
    )
    monkeypatch.setattr(Once, "asks", asks)
    x = leaf(2)
    y = Once.apply(x)
    if asks == 2:
        with pytest.raises(RuntimeError, match=text):
            y.sum().backward()
        return
    y.sum().backward(retain_graph=True)
    assert x.grad.tolist() == [2.0, 2.0]
    with pytest.raises(RuntimeError, match=text):
        y.sum().backward()


# ---- hooks and modes ----------------------------------------------------------------------------


def test_backward_hooks_of_a_tensor() -> None:
    for x in (leaf(2), leaf(2) * 1):
        assert x._backward_hooks is None
        handles = [x.register_hook(hook) for hook in (abs, len)]
        assert [*x._backward_hooks.values()] == [abs, len]
        assert [*x._backward_hooks] == [h.id for h in handles]
    assert tg.ones(2)._backward_hooks is None


def test_a_post_accumulate_hook_that_returns_something() -> None:
    x = leaf(2)
    x.register_post_accumulate_grad_hook(lambda p: p * 2)
    with pytest.raises(
        RuntimeError, match="^Tensor post accumulate grad hooks should return None.$"
    ):
        x.sum().backward()


def test_anomaly_mode_takes_bools_and_can_be_asked_for() -> None:
    assert not tg.is_anomaly_enabled() and tg.is_anomaly_check_nan_enabled()
    with autograd.set_detect_anomaly(True, check_nan=False):
        assert tg.is_anomaly_enabled() and not tg.is_anomaly_check_nan_enabled()
    text = r"^set_anomaly_enabled\(\): argument '{}' \(position {}\) must be bool, not int$"
    with pytest.raises(TypeError, match=text.format("enabled", 1)):
        autograd.set_detect_anomaly(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=text.format("check_nan", 2)):
        autograd.set_detect_anomaly(True, check_nan=3)  # type: ignore[arg-type]
    assert not tg.is_anomaly_enabled()


def test_multithreading_is_a_context() -> None:
    with autograd.set_multithreading_enabled(False) as entered:
        x = leaf(2)
        x.sum().backward()
    assert entered is None and x.grad.tolist() == [1.0, 1.0]
    text = (
        r"^set_multithreading_enabled\(\): argument 'enabled' \(position 1\) must be bool, not int$"
    )
    with pytest.raises(TypeError, match=text):
        autograd.set_multithreading_enabled(3)  # type: ignore[arg-type]


# ---- gradcheck ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0,)])
def test_gradcheck_takes_inputs_without_elements(shape: tuple[int, ...]) -> None:
    x = tg.zeros(shape, dtype=tg.float64, requires_grad=True)
    assert autograd.gradcheck(lambda x: x * 2, (x,))
    assert autograd.gradgradcheck(lambda x: x * x, (x,))


class Wrong(autograd.Function):
    """Has a wrong backward and no `jvp`."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return grad * 5


def test_gradcheck_reports_the_backward_before_it_asks_for_a_jvp() -> None:
    x = tg.tensor([1.5, 2.0], dtype=tg.float64, requires_grad=True)
    with pytest.raises(
        RuntimeError, match="^Jacobian mismatch for output 0 with respect to input 0,"
    ):
        autograd.gradcheck(Wrong.apply, (x,), check_forward_ad=True)
    assert not autograd.gradcheck(Wrong.apply, (x,), check_forward_ad=True, raise_exception=False)


# ---- out= ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gt", "eq", "ge", "lt", "le", "ne", "logical_and", "logical_xor"])
def test_out_of_a_comparison_may_have_operands_that_require_grad(name: str) -> None:
    x, out = leaf(3), tg.empty(3, dtype=tg.bool)
    function = getattr(tg, name)
    assert function(x, x * 2, out=out) is out
    assert out.tolist() == function(x, x * 2).tolist() and not out.requires_grad


@pytest.mark.parametrize(("name", "dtype"), [
    ("argmax", tg.int64), ("argmin", tg.int64), ("all", tg.bool), ("any", tg.bool),
    ("nonzero", tg.int64), ("logical_not", tg.bool),
])  # fmt: skip
def test_out_of_what_has_no_derivative(name: str, dtype: tg.dtype) -> None:
    x, out = leaf(3), tg.empty(0, dtype=dtype)
    assert getattr(tg, name)(x, out=out) is out
    assert out.tolist() == getattr(tg, name)(x).tolist()


@pytest.mark.parametrize("name", ["sign", "floor", "exp"])
def test_out_of_what_has_one_is_refused_and_left_alone(name: str) -> None:
    out = tg.full((3,), 7.0)
    with pytest.raises(
        RuntimeError, match=rf"^{name}\(\): functions with out=... arguments don't supp"
    ):
        getattr(tg, name)(leaf(3), out=out)
    assert out.tolist() == [7.0] * 3 and out._version == 0
