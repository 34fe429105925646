"""`autograd.graph`, anomaly mode, gradient edges and batched cotangents, as PyTorch has them."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tracegrad as tg
from tracegrad.autograd import graph

modes = pytest.mark.parametrize("mode", [lambda f: f, tg.compile], ids=["eager", "compiled"])


def leaf(*values: float) -> Any:
    return tg.tensor(values or (1.0, 2.0), requires_grad=True)


# ---- hooks over several tensors -----------------------------------------------------------------


@modes
def test_a_multi_grad_hook_is_called_once_per_backward(mode: Callable[..., Any]) -> None:
    """mode="all": with every gradient that this backward computes, None for the others."""
    f = mode(lambda a, b: a * b)
    for _ in range(3):
        a, b, c = leaf(), leaf(), leaf()
        seen: list[Any] = []
        handle = graph.register_multi_grad_hook(
            (a, b, c),
            lambda gs, seen=seen: seen.append([None if g is None else g.tolist() for g in gs]),
        )
        f(a, b).sum().backward()
        f(a, b).sum().backward(inputs=[a])
        tg.autograd.grad((f(a, b) * c).sum(), (b, c))
        handle.remove()
        f(a, b).sum().backward()
        assert seen == [[[1, 2], [1, 2], None], [[1, 2], None, None], [None, [1, 4], [1, 4]]]


def test_a_multi_grad_hook_in_mode_any_is_called_for_the_first() -> None:
    a, b = leaf(), leaf()
    seen: list[Any] = []
    graph.register_multi_grad_hook((a, b), lambda g: seen.append(g.tolist()), mode="any")
    (a * 2 + b * 3).sum().backward()
    (a * 4).sum().backward()
    assert len(seen) == 2
    assert seen[0] in ([2, 2], [3, 3]) and seen[1] == [4, 4]
    with pytest.raises(ValueError, match=r"Expects mode to be one of \('all', 'any'\) but got foo"):
        graph.register_multi_grad_hook((a,), print, mode="foo")


# ---- saved tensors ------------------------------------------------------------------------------


@modes
def test_pack_and_unpack_are_called_for_what_is_saved(mode: Callable[..., Any]) -> None:
    """Inputs as they are, results too; unpacked when the backward needs them."""
    f = mode(lambda x: tg.exp(x) * x)
    f(leaf())
    f(leaf())
    packed: list[Any] = []
    unpacked: list[Any] = []

    def pack(t: Any) -> Any:
        packed.append((tuple(t.shape), t.requires_grad))
        return t.detach().numpy().copy()

    def unpack(a: Any) -> Any:
        unpacked.append(1)
        return tg.from_numpy(a)

    x = leaf()
    with graph.saved_tensors_hooks(pack, unpack):
        y = f(x)
    assert packed == [((2,), True)] * 3 and not unpacked
    y.sum().backward()
    assert len(unpacked) == 3
    want = np.exp([1.0, 2.0]) * np.array([2.0, 3.0])
    np.testing.assert_allclose(x.grad.numpy(), want, rtol=1e-6)


def test_what_is_unpacked_is_what_the_backward_uses() -> None:
    """The documentation's example: hooks may change the values; nested, the innermost counts."""
    x = leaf()
    with graph.saved_tensors_hooks(lambda t: t, lambda t: t * 0):
        with graph.saved_tensors_hooks(lambda t: t.detach() * 4, lambda t: t):
            y = x**2
        z = x**2
    (g,) = tg.autograd.grad(y.sum(), x)
    (h,) = tg.autograd.grad(z.sum(), x)
    assert g.tolist() == [8, 16] and h.tolist() == [0, 0]


def test_second_derivatives_through_unpacked_tensors() -> None:
    x = leaf()
    with graph.save_on_cpu():
        y = (tg.exp(x) * x).sum()
    (g,) = tg.autograd.grad(y, x, create_graph=True)
    (h,) = tg.autograd.grad(g.sum(), x)
    v = np.array([1.0, 2.0])
    np.testing.assert_allclose(h.numpy(), np.exp(v) * (v + 2), rtol=1e-6)


def test_functions_save_through_the_hooks() -> None:
    class Square(tg.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            return grad * 2 * ctx.saved_tensors[0]

    x = leaf()
    with graph.saved_tensors_hooks(lambda t: t.tolist(), lambda v: tg.tensor(v) * 10):
        y = Square.apply(x)
    y.sum().backward()
    assert x.grad.tolist() == [20, 40]


@modes
def test_save_on_cpu_keeps_copies(mode: Callable[..., Any]) -> None:
    """A later write does not reach them."""
    f = mode(lambda x: x * x)
    x = leaf() * 1
    x.retain_grad()
    with graph.save_on_cpu():
        y = f(x)
    with tg.no_grad():
        x.zero_()
    (g,) = tg.autograd.grad(y.sum(), x)
    assert g.tolist() == [2, 4]
    with pytest.raises(NotImplementedError, match="pin_memory"):
        graph.save_on_cpu(pin_memory=True)


@pytest.mark.parametrize(
    ("pack", "unpack", "kind", "text"),
    [
        (lambda t: t, lambda t: 3, TypeError,
         "Output of saved tensor unpack_hook expected to be a Tensor but got result of type int"),
        (lambda t: t.detach().add_(1), lambda t: t, RuntimeError,
         "A saved tensor pack hook is modifying its input in place"),
        (lambda t: 1 / 0, lambda t: t, ZeroDivisionError, "division by zero"),
    ],
)  # fmt: skip
def test_what_hooks_do_must_be_sound(pack: Any, unpack: Any, kind: Any, text: str) -> None:
    with pytest.raises(kind, match=text):
        with graph.saved_tensors_hooks(pack, unpack):
            y = tg.exp(leaf() * 1)
        y.sum().backward()


def test_hooks_can_be_disabled() -> None:
    hooks = graph.saved_tensors_hooks(lambda t: t, lambda t: t)
    with graph.disable_saved_tensors_hooks("not here"):
        with pytest.raises(RuntimeError, match="^not here$"), hooks:
            pass
    with hooks, pytest.raises(RuntimeError, match="^not here$"):
        with graph.disable_saved_tensors_hooks("not here"):
            pass
    with hooks:
        pass


def test_hooks_belong_to_a_thread() -> None:
    seen: list[Any] = []
    with graph.saved_tensors_hooks(lambda t: seen.append(t), lambda t: t):
        thread = threading.Thread(target=lambda: tg.exp(leaf()).sum().backward())
        thread.start()
        thread.join()
    assert not seen


def test_hooks_inside_a_compiled_function_act_each_time() -> None:
    def fn(x: Any) -> Any:
        with graph.saved_tensors_hooks(lambda t: t.detach().clone(), lambda t: t * 2):
            return x * x

    f = tg.compile(fn, wait=True, strict=True)
    for _ in range(3):
        x = leaf()
        f(x).sum().backward()
        assert x.grad.tolist() == [4, 8]
    assert f.cache_info().hits == 2


# ---- edges, batches -----------------------------------------------------------------------------


@modes
def test_gradient_edges_stand_for_tensors(mode: Callable[..., Any]) -> None:
    """As inputs and as outputs of `grad` and `backward`."""
    f = mode(lambda x: x * 3)
    for _ in range(3):
        x = leaf()
        y = f(x)
        edge = graph.get_gradient_edge(y)
        assert edge.node is y.grad_fn and edge.output_nr == 0
        (g,) = tg.autograd.grad((y * y).sum(), edge, retain_graph=True)
        assert g.tolist() == [6, 12]
        (g,) = tg.autograd.grad(edge, graph.get_gradient_edge(x), tg.ones(2), retain_graph=True)
        assert g.tolist() == [3, 3]
        tg.autograd.backward(edge, tg.ones(2))
        assert x.grad.tolist() == [3, 3]
    with pytest.raises(RuntimeError, match="not possible to get the gradient edge for a Tensor"):
        graph.get_gradient_edge(tg.ones(2))
    with pytest.raises(RuntimeError, match="Mismatch in shape: grad_output"):
        tg.autograd.grad(graph.get_gradient_edge(leaf() * 2), leaf(), tg.ones(3))


@modes
def test_batched_cotangents_give_a_jacobian(mode: Callable[..., Any]) -> None:
    """`is_grads_batched`: one backward per row; differentiable with `create_graph`."""
    f = mode(lambda x: x**3)
    for _ in range(2):
        x, unused = leaf(), leaf(5.0)
        jacobian, zeros = tg.autograd.grad(
            f(x), (x, unused), tg.eye(2), is_grads_batched=True, materialize_grads=True,
            create_graph=True,
        )  # fmt: skip
        assert jacobian.tolist() == [[3, 0], [0, 12]]
        assert zeros.tolist() == [[0], [0]]
        (h,) = tg.autograd.grad(jacobian.sum(), x)
        assert h.tolist() == [6, 12]


def test_batched_cotangents_must_fit() -> None:
    x = leaf()
    with pytest.raises(RuntimeError, match=r"If `is_grads_batched=True`, we interpret the first"):
        tg.autograd.grad(x * 2, x, tg.ones(2), is_grads_batched=True)
    with pytest.raises(ValueError, match=r"needs grad_outputs\[0\]"):
        tg.autograd.grad(x.sum(), x, is_grads_batched=True)
    with pytest.raises(RuntimeError, match=r"same first dimension, got \[2, 3\]"):
        tg.autograd.grad([x, x * 2], x, [tg.ones(2, 2), tg.ones(3, 2)], is_grads_batched=True)
    with pytest.raises(RuntimeError, match="batch of at least one"):
        tg.autograd.grad(x * 2, x, tg.ones(0, 2), is_grads_batched=True)


# ---- anomaly mode -------------------------------------------------------------------------------


@modes
def test_nan_in_the_backward_names_the_line_of_the_forward(mode: Callable[..., Any]) -> None:
    def fn(x: Any) -> Any:
        y = tg.sqrt(x * 0)  # the culprit
        return (y * 0).sum()

    f = mode(fn)
    f(leaf())
    with pytest.warns(UserWarning, match="Anomaly Detection has been enabled"):
        context = tg.autograd.detect_anomaly()
    text = (
        r"^Function 'SqrtBackward0' returned nan values in its 0th output\. Recorded at .*culprit"
    )
    with context:
        y = f(leaf())
        with pytest.warns(UserWarning, match="Error detected in SqrtBackward0. Traceback") as found:
            with pytest.raises(RuntimeError, match=text):
                y.backward()
    assert "# the culprit" in str(found[0].message)
    assert not tg.autograd.is_anomaly_enabled()


def test_a_graph_made_before_anomaly_mode_has_no_traceback() -> None:
    y = (tg.sqrt(leaf() * 0) * 0).sum()
    with tg.autograd.set_detect_anomaly(True):
        with pytest.warns(UserWarning, match="No forward pass information available. Enable"):
            with pytest.raises(RuntimeError, match="returned nan values in its 0th output.$"):
                y.backward()


def test_exceptions_of_a_backward_are_explained_and_pass() -> None:
    class Bad(tg.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x * 1

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            raise KeyError("mine")

    with tg.autograd.set_detect_anomaly(True):
        y = Bad.apply(leaf()).sum()
        with pytest.warns(UserWarning, match="Error detected in BadBackward. Traceback"):
            with pytest.raises(KeyError, match="mine"):
                y.backward()


def test_the_second_backward_names_the_first_one_too() -> None:
    """`Previous calculation was induced by`: the node whose backward made the failing one."""
    x = leaf(0.0)
    with tg.autograd.set_detect_anomaly(True, check_nan=False):
        (g,) = tg.autograd.grad(tg.sqrt(x).sum(), x, create_graph=True)
    with tg.autograd.set_detect_anomaly(True):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with pytest.raises(RuntimeError, match="returned nan values"):
                tg.autograd.grad((g * 0).sum(), x)
    text = "".join(str(w.message) for w in caught)
    assert "Previous calculation was induced by SqrtBackward0. Traceback of forward" in text


def test_anomaly_mode_is_set_and_restored() -> None:
    assert not tg.autograd.is_anomaly_enabled()
    with tg.autograd.set_detect_anomaly(True, check_nan=False):
        assert tg.autograd.is_anomaly_enabled() and not tg.autograd.is_anomaly_check_nan_enabled()
        (tg.sqrt(leaf() * 0) * 0).sum().backward()
    assert not tg.autograd.is_anomaly_enabled() and tg.autograd.is_anomaly_check_nan_enabled()
    tg.autograd.set_detect_anomaly(True)
    assert tg.autograd.is_anomaly_enabled()
    tg.autograd.set_detect_anomaly(False)
    assert not tg.autograd.is_anomaly_enabled()


def test_the_old_name_of_the_cotangents_warns_and_is_refused_beside_the_new() -> None:
    """As torch 2.13: a FutureWarning, and the fifth positional argument."""
    x = tg.tensor([1.0, 2.0], requires_grad=True)
    text = "^`grad_variables` is deprecated. Use `grad_tensors` instead.$"
    with pytest.warns(FutureWarning, match=text) as told:
        tg.autograd.backward([x * x], grad_variables=[tg.ones(2)])
    assert told[0].filename == __file__
    assert x.grad.tolist() == [2.0, 4.0]
    with pytest.warns(FutureWarning, match=text):
        tg.autograd.backward(x * x, None, None, False, tg.ones(2))
    assert x.grad.tolist() == [4.0, 8.0]
    with (
        pytest.warns(FutureWarning, match=text),
        pytest.raises(RuntimeError, match="`grad_variables` .deprecated. arguments both passed to"),
    ):
        tg.autograd.backward(x * x, tg.ones(2), grad_variables=tg.ones(2))
    assert x.grad.tolist() == [4.0, 8.0]
    with pytest.raises(TypeError, match="unexpected keyword argument 'grad_variables'"):
        (x * x).sum().backward(grad_variables=tg.ones(2))


def test_only_inputs_is_ignored_with_a_warning_and_keeps_its_place() -> None:
    """As torch 2.13, where it stands before `allow_unused`."""
    x, other = (tg.tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
    with pytest.warns(
        FutureWarning, match="^only_inputs argument is deprecated and is ignored now"
    ):
        assert tg.autograd.grad((x * x).sum(), x, only_inputs=False)[0].tolist() == [2.0, 4.0]
    assert tg.autograd.grad((x * x).sum(), x, None, None, False, True)[0].tolist() == [2.0, 4.0]
    with pytest.raises(RuntimeError, match="appears to not have been used in the graph"):
        tg.autograd.grad((x * x).sum(), other, None, None, False, True)
    assert tg.autograd.grad((x * x).sum(), other, None, None, False, True, True) == (None,)


def test_inputs_by_name_give_gradients_by_name() -> None:
    """As torch 2.13: a dict of tensors gives a dict; `backward` accumulates into its values."""
    x, y = (tg.tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
    found = tg.autograd.grad((x * x * y).sum(), {"y": y, "x": x})
    assert {k: v.tolist() for k, v in found.items()} == {"y": [1.0, 4.0], "x": [2.0, 8.0]}
    tg.autograd.backward((x * y).sum(), inputs={"x": x})
    assert x.grad.tolist() == [1.0, 2.0]
    assert y.grad is None
    with pytest.raises(RuntimeError, match="cannot be empty"):
        tg.autograd.grad((x * y).sum(), {})
