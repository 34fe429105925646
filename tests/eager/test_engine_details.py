"""Details of `backward`, `grad` and hooks, as PyTorch has them (figures and texts are its own)."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

import tracegrad as tg

grad, backward = tg.autograd.grad, tg.autograd.backward


def leaf(*values: float) -> Any:
    return tg.tensor(values or (1.0, 2.0), dtype=tg.float64, requires_grad=True)


# ---- arguments ----------------------------------------------------------------------------------


def ones() -> Any:
    return tg.ones(2, dtype=tg.float64)


REFUSED: list[tuple[Any, type[Exception], str]] = [
    (lambda: grad(leaf().sum(), []), RuntimeError, "^`inputs` argument to `grad\\(\\)` cannot be"),
    (lambda: grad(leaf().sum(), ()), RuntimeError, "^`inputs` argument to `grad\\(\\)` cannot be"),
    (lambda: leaf().sum().backward(inputs=[]), RuntimeError,
     "^`inputs` argument to `backward\\(\\)` cannot be empty.$"),
    (lambda: grad(leaf().sum(), [leaf(), 3]), RuntimeError,
     "^all inputs have to be Tensors or GradientEdges, but got int$"),
    (lambda: grad(leaf().sum(), leaf()), RuntimeError,
     "^The differentiated Tensor at index 0 appears to not have been used in the graph. Set "),
    (lambda: grad((x := leaf()).sum(), [x, leaf()], allow_unused=False), RuntimeError,
     "^The differentiated Tensor at index 1 appears to not have been used in the graph. Set "),
    (lambda: grad(leaf() * 2, leaf(), ones().int()[0]), RuntimeError, "^Mismatch in shape: grad_o"),
    (lambda: grad(leaf() * 2, leaf(), []), RuntimeError, "^got 1 tensors and 0 gradients$"),
    (lambda: grad(leaf() * 2, leaf(), ["a"]), TypeError,
     "^gradients can be either Tensors or None, but got str$"),
    (lambda: (leaf() * 2).backward([1.0]), TypeError,
     "^gradients can be either Tensors or None, but got float$"),
    (lambda: backward([leaf().sum(), ones().sum()]), RuntimeError,
     "^element 1 of tensors does not require grad and does not have a grad_fn$"),
    (lambda: setattr(leaf(), "grad", tg.ones(3, dtype=tg.float64)), RuntimeError,
     "^attempting to assign a gradient of size '\\[3\\]' to a tensor of size '\\[2\\]'. Please "),
    (lambda: setattr(leaf(), "grad", tg.ones(2, dtype=tg.int64)), RuntimeError,
     "^attempting to assign a gradient with dtype 'long int' to a tensor with grad_dtype 'Double'. "
     "The gradient must match the tensor's grad_dtype \\(defaults to the tensor's dtype\\). You can set "
     "the tensor's grad_dtype attribute with a specific dtype, or None to allow any dtype. Set "
     "grad_dtype with caution. Diverging the dtypes of a tensor and its gradient may break "
     "downstream systems that assume they match. .*convert with gradient.to\\(torch.float64\\)"),
    (lambda: setattr(leaf(), "grad", tg.ones(3)), RuntimeError,  # the dtype comes before the size
     "^attempting to assign a gradient with dtype 'float' to a tensor with grad_dtype 'Double'"),
    (lambda: tg.set_grad_enabled(3), TypeError,
     "^set_grad_enabled\\(\\): argument 'enabled' \\(position 1\\) must be bool, not int$"),
    (lambda: tg.autograd.graph.saved_tensors_hooks(3, 4).__enter__(), TypeError,
     "^saved_tensors_hooks: hooks must be functions, got int$"),
]  # fmt: skip


_NO_HISTORY = "^element {} of tensors does not require grad and does not have a grad_fn$"
_IMPLICIT = "^grad can be implicitly created only for scalar outputs$"
_NO_TENSOR = "^gradients can be either Tensors or None, but got {}$"
_EMPTY = "^`inputs` argument to `{}\\(\\)` cannot be empty.$"

TWO_FAULTS: list[tuple[Any, type[Exception], str]] = [  # the one that PyTorch 2.13 reports
    (lambda: (leaf() * 2).backward((1.0, 1.0, 1.0)), TypeError, _NO_TENSOR.format("float")),
    (lambda: (leaf() * 2).backward("abc"), TypeError, _NO_TENSOR.format("str")),
    (lambda: (leaf() * 2).backward((None, None)), RuntimeError, _IMPLICIT),
    (lambda: ones().backward((1.0,)), TypeError, _NO_TENSOR.format("float")),
    (lambda: ones().backward(tg.ones(3)), RuntimeError, "^Mismatch in shape: grad_output\\[0\\]"),
    (lambda: backward((ones(), leaf() * 2)), RuntimeError, _IMPLICIT),
    (lambda: backward((leaf().sum(), ones())), RuntimeError, _NO_HISTORY.format(1)),
    (lambda: backward([leaf() * 2, 3.0]), RuntimeError, _IMPLICIT),
    (lambda: backward([3.0, leaf() * 2]), AssertionError, "^Expected output to be a torch.Tensor$"),
    (lambda: (leaf() * 2).backward(inputs=[]), RuntimeError, _EMPTY.format("backward")),
    (lambda: ones().backward(inputs=()), RuntimeError, _EMPTY.format("backward")),
    (lambda: (leaf() * 2).backward(1.0, inputs=[]), RuntimeError, _EMPTY.format("backward")),
    (lambda: (leaf() * 2).backward(inputs=3.0), TypeError, "^'float' object is not iterable$"),
    (lambda: (leaf() * 2).backward(inputs=[ones()]), RuntimeError, _IMPLICIT),
    (lambda: leaf().sum().backward(inputs=[ones(), 3.0]), RuntimeError,
     "^can't retain_grad on Tensor that has requires_grad=False$"),
    (lambda: grad(leaf() * 2, []), RuntimeError, _EMPTY.format("grad")),
    (lambda: grad(leaf() * 2, [], tg.ones(3)), RuntimeError, _EMPTY.format("grad")),
    (lambda: grad(ones(), []), RuntimeError, _EMPTY.format("grad")),
    (lambda: grad([3.0], []), RuntimeError, _EMPTY.format("grad")),
    (lambda: grad(3.0, []), TypeError, "^'float' object is not iterable$"),
    (lambda: grad(leaf().sum(), [], is_grads_batched=True), RuntimeError, _EMPTY.format("grad")),
    (lambda: grad(leaf() * 2, [3.0]), RuntimeError, _IMPLICIT),
    (lambda: grad(leaf() * 2, [ones()], tg.ones(3)), RuntimeError, "^Mismatch in shape: grad_outp"),
    (lambda: grad(ones().sum(), [3.0]), RuntimeError, _NO_HISTORY.format(0)),
    (lambda: grad((leaf() * 2, leaf() * 2), [ones()], ones()), RuntimeError,
     "^got 2 tensors and 1 gradients$"),
    (lambda: grad(leaf().sum(), [leaf(), ones()]), RuntimeError,
     "^One of the differentiated Tensors does not require grad$"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "text"), REFUSED + TWO_FAULTS)
def test_refusals(call: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        call()


def test_cotangents_may_come_in_a_list_and_in_another_dtype() -> None:
    x = leaf()
    (x * 3).backward([ones()])
    assert x.grad.tolist() == [3, 3]
    assert grad(x * 2, x, tg.ones(2, dtype=tg.int64))[0].dtype is tg.float64


def test_more_cotangents_than_outputs_are_refused() -> None:
    """PyTorch leaves the ones at the end out without a word."""
    x = leaf()
    with pytest.raises(RuntimeError, match="^got 1 tensors and 2 gradients$"):
        (x * 2).backward([ones(), ones()])


def test_a_backward_that_is_refused_does_not_warn_of_the_cycle(recwarn: Any) -> None:
    with pytest.raises(RuntimeError, match=_IMPLICIT):
        (leaf() * 2).backward(create_graph=True)
    assert not recwarn.list


def test_backward_of_nothing_does_nothing() -> None:
    backward([])
    backward(())


def test_backward_with_create_graph_warns_of_the_cycle() -> None:
    x = leaf()
    with pytest.warns(
        UserWarning, match=r"^Using backward\(\) with create_graph=True will create a reference"
    ) as told:
        (x**3).sum().backward(create_graph=True)
    assert told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grad((x**3).sum(), x, create_graph=True)
    x.grad = None


# ---- retain_grad --------------------------------------------------------------------------------


def test_retain_grad_goes_with_the_tensor_through_writes() -> None:
    """`.grad` is that of the value that the tensor has last."""
    x = leaf()
    y = x * 2
    y.retain_grad()
    y.mul_(3)
    assert y.retains_grad
    y.sum().backward()
    assert y.grad.tolist() == [1, 1] and x.grad.tolist() == [6, 6]


def test_retain_grad_of_a_view_and_of_a_base_go_through_writes_by_the_other() -> None:
    x = leaf()
    y = x * 2
    v = y[0]
    v.retain_grad()
    y.mul_(2)
    assert v.retains_grad
    v.backward()
    assert v.grad.item() == 1 and x.grad.tolist() == [4, 0]
    x = leaf()
    y = x * 2
    y.retain_grad()
    y[0].mul_(5)
    y.sum().backward()
    assert y.grad.tolist() == [1, 1] and x.grad.tolist() == [10, 2]


# ---- hooks --------------------------------------------------------------------------------------


def test_a_hook_belongs_to_the_value_it_was_put_on() -> None:
    x, log = leaf(), []
    y = x * 2
    y.register_hook(lambda g: log.append(("old", g.tolist())))
    y.mul_(3)
    y.register_hook(lambda g: log.append(("new", g.tolist())))
    y.sum().backward()
    assert log == [("new", [1, 1]), ("old", [3, 3])]


class Two(tg.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x * 2, x * 3

    @staticmethod
    def backward(ctx: Any, a: Any, b: Any) -> Any:
        return a * 2 + b * 3


def test_hooks_of_an_output_that_nothing_depends_on_see_none() -> None:
    x, log = leaf(), []
    a, b = Two.apply(x)
    a.register_hook(lambda g: log.append(("a", g.tolist())))
    b.register_hook(lambda g: log.append(("b", g)))
    a.sum().backward()
    assert log == [("a", [1, 1]), ("b", None)] and x.grad.tolist() == [2, 2]
    a, b = Two.apply(leaf())
    b.register_hook(lambda g: ones())
    with pytest.raises(RuntimeError, match="^can't replace a None gradient with a non-None value"):
        a.sum().backward()


def test_a_hook_over_two_outputs_of_one_node_is_called() -> None:
    log: list[Any] = []
    a, b = Two.apply(leaf())
    tg.autograd.graph.register_multi_grad_hook((a, b), lambda gs: log.append(gs))
    a.sum().backward()
    ((first, second),) = log
    assert first.tolist() == [1, 1] and second is None


def test_prehooks_may_take_the_cotangents_away() -> None:
    x = leaf()
    y = x * 2
    y.grad_fn.register_prehook(lambda cts: (None,))
    y.sum().backward()
    assert x.grad is None
    a, b = Two.apply(x)
    a.grad_fn.register_prehook(lambda cts: (None, None))
    (a + b).sum().backward()  # a Function is given zeros
    assert x.grad.tolist() == [0, 0]


def test_hooks_of_a_leaf_and_of_its_node_run_in_pytorchs_order() -> None:
    x, log = leaf(), []
    x.register_post_accumulate_grad_hook(lambda p: log.append("after"))
    node = (x * 1).grad_fn.next_functions[0][0]
    node.register_hook(lambda inputs, outputs: log.append("node"))
    node.register_prehook(lambda cts: log.append("before node"))
    x.register_hook(lambda g: log.append("tensor"))
    x.sum().backward()
    assert log == ["tensor", "before node", "after", "node"]


def test_hooks_may_write_to_what_they_see() -> None:
    x = leaf()
    y = x * 3
    y.register_hook(lambda g: g.__setitem__(0, 7.0))
    (y * 2).sum().backward()
    assert x.grad.tolist() == [21, 6]


def test_hooks_may_differentiate() -> None:
    """`grad` inside a hook, another backward through the same graph, and a recorded product."""
    x = leaf()
    y = x**3

    def other(g: Any) -> Any:  # hooks run without recording
        with tg.enable_grad():
            return grad((x**2).sum(), x)[0]

    y.register_hook(other)
    y.sum().backward()
    assert x.grad.tolist() == [6, 48]
    x, w = leaf(), leaf()
    y = x * 2
    y.register_hook(lambda g: g * w)
    (g,) = grad(y.sum(), x, create_graph=True)
    assert grad(g.sum(), w)[0].tolist() == [2, 2]
    x, once = leaf(), []
    z = (h := x**2).sum()

    def hook(g: Any) -> None:
        if not once:
            once.append(1)
            z.backward(retain_graph=True)

    h.register_hook(hook)
    z.backward()
    assert x.grad.tolist() == [4, 8]


# ---- grad modes ---------------------------------------------------------------------------------


def test_decorating_a_class_warns_and_decorates_its_making() -> None:
    with pytest.warns(FutureWarning, match="^Decorating classes is deprecated and will be"):

        @tg.no_grad()
        class Made:
            def __init__(self) -> None:
                self.mode = tg.is_grad_enabled()

    assert Made().mode is False and tg.is_grad_enabled()
