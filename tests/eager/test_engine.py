"""The backward engine: order, accumulation, freeing, second derivatives, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tracegrad as tg
from tracegrad.autograd import grad
from tracegrad.tracer.tape import BackwardNode, attach, gradient_edge


def leaf(*values: float) -> tg.Tensor:
    return tg.tensor(list(values), dtype=tg.float64, requires_grad=True)


def test_chain_of_100_000_operations_differentiates_and_is_freed() -> None:
    x = leaf(1.0)
    y = x
    for _ in range(100_000):
        y = y * 1.0
    y.sum().backward()
    assert x.grad.tolist() == [1.0]
    unused = x
    for _ in range(100_000):
        unused = unused * x
    del unused, y  # must not recurse


def test_diamond_sums_both_paths() -> None:
    x = leaf(2.0)
    y = x * x
    z = y * 3 + y * y
    z.sum().backward()
    assert x.grad.item() == 3 * 4 + 4 * 8


def test_operand_used_twice_in_one_operation() -> None:
    x = leaf(3.0)
    (x * x + x / x).sum().backward()
    assert x.grad.item() == pytest.approx(6.0)


def test_gradients_accumulate_over_calls_in_place() -> None:
    x = leaf(1.0, 2.0)
    (x * 2).sum().backward()
    first = x.grad
    (x * 3).sum().backward()
    assert x.grad is first and x.grad.tolist() == [5.0, 5.0]


def test_gradients_of_two_leaves_never_share_memory() -> None:
    x, y = leaf(1.0, 2.0), leaf(3.0, 4.0)
    seed = tg.ones(2, dtype=tg.float64)
    (x + y).backward(seed)
    (x + y).backward(seed)
    assert x.grad.tolist() == y.grad.tolist() == [2.0, 2.0]
    assert seed.tolist() == [1.0, 1.0]


def test_saved_operand_returned_as_cotangent_is_copied() -> None:
    x = leaf(1.0, 2.0)
    w = tg.tensor([5.0, 7.0], dtype=tg.float64)
    (x * w).sum().backward()
    x.grad.mul_(0)
    assert w.tolist() == [5.0, 7.0]


def test_second_backward_needs_retain_graph() -> None:
    x = leaf(2.0)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.item() == 8.0
    with pytest.raises(RuntimeError, match="Trying to backward through the graph a second time"):
        y.backward()


def test_graph_that_saved_nothing_can_run_again() -> None:
    x = leaf(2.0)
    y = (x + x).sum()
    y.backward()
    y.backward()
    assert x.grad.item() == 4.0


def test_derivatives_to_order_three() -> None:
    x = leaf(0.7)
    y = tg.sin(x) * tg.exp(x)
    orders = []
    for _ in range(3):
        (y,) = grad(y.sum(), x, create_graph=True)
        orders.append(y.item())
    s, c, e = np.sin(0.7), np.cos(0.7), np.exp(0.7)
    assert orders == pytest.approx([e * (s + c), 2 * e * c, 2 * e * (c - s)], rel=1e-13)


def test_create_graph_accumulates_differentiable_gradients() -> None:
    x = leaf(3.0)
    with pytest.warns(UserWarning, match="will create a reference cycle"):
        (x**3).sum().backward(create_graph=True)
    assert x.grad.requires_grad
    (second,) = grad(x.grad.sum(), x)
    assert second.item() == pytest.approx(18.0)


def test_backward_into_chosen_inputs_only() -> None:
    x, y = leaf(2.0), leaf(3.0)
    (x * y).sum().backward(inputs=[x])
    assert x.grad.item() == 3.0 and y.grad is None
    with pytest.raises(
        RuntimeError, match="^`inputs` argument to `backward\\(\\)` cannot be empty"
    ):
        (x * y).sum().backward(inputs=[])


def test_grad_of_an_intermediate_and_of_the_output_itself() -> None:
    x = leaf(2.0)
    y = x * x
    z = y * y
    by, bz = grad(z.sum(), (y, z), retain_graph=True)
    assert (by.item(), bz.item()) == (8.0, 1.0)
    assert x.grad is None


def test_unused_inputs() -> None:
    x, y = leaf(1.0), leaf(1.0, 2.0)
    with pytest.raises(RuntimeError, match="Set allow_unused=True if this is the desired"):
        grad((x * 2).sum(), (x, y))
    assert grad((x * 2).sum(), (x, y), allow_unused=True)[1] is None
    zeros = grad((x * 2).sum(), (x, y), materialize_grads=True)[1]
    assert zeros.tolist() == [0.0, 0.0]
    with pytest.raises(RuntimeError, match="does not require grad"):
        grad((x * 2).sum(), tg.ones(1))


def test_gradient_is_cast_to_the_dtype_of_its_output() -> None:
    x = tg.ones(2, requires_grad=True)
    (x * 2).backward(tg.ones(2, dtype=tg.float64))
    assert x.grad.dtype is tg.float32


def test_mixed_precision_gradients_have_the_operand_dtype() -> None:
    x = tg.ones(2, requires_grad=True)
    y = tg.ones(2, dtype=tg.float64, requires_grad=True)
    (x * y).sum().backward()
    assert (x.grad.dtype, y.grad.dtype) == (tg.float32, tg.float64)


def test_hooks_see_and_replace_gradients() -> None:
    x = leaf(1.0, 2.0)
    y = x * 3
    seen: list[Any] = []
    handle = y.register_hook(lambda g: seen.append(g.tolist()) or g * 10)
    y.sum().backward()
    assert seen == [[1.0, 1.0]] and x.grad.tolist() == [30.0, 30.0]
    handle.remove()
    x.grad = None
    (x * 3).sum().backward()
    assert x.grad.tolist() == [3.0, 3.0]


def test_custom_node_with_two_outputs() -> None:
    class SplitBackward(BackwardNode):
        """(x) -> (2x, 3x)."""

        def apply(self, cotangents: list[Any], create_graph: bool) -> list[Any]:
            a, b = cotangents
            total = None
            for ct, factor in ((a, 2.0), (b, 3.0)):
                if ct is not None:
                    total = ct * factor if total is None else total + ct * factor
            return [total]

    def split(x: tg.Tensor) -> tuple[tg.Tensor, tg.Tensor]:
        with tg.no_grad():
            outputs = (x * 2, x * 3)
        node = SplitBackward([gradient_edge(x)], [o.type_info for o in outputs])
        attach(node, outputs)
        return outputs

    x = leaf(1.0, 1.0)
    a, b = split(x * 1)
    assert (b.output_nr, b.grad_fn.name()) == (1, "SplitBackward")
    (a * b).sum().backward()
    assert x.grad.tolist() == [12.0, 12.0]
    x.grad = None
    split(x)[1].sum().backward()
    assert x.grad.tolist() == [3.0, 3.0]


def test_integer_results_stay_outside_the_tape() -> None:
    x = leaf(1.5, 2.5)
    assert not x.argmax().requires_grad
    assert not (x > 2).requires_grad
    assert not x.long().requires_grad


def test_only_needed_operands_are_kept() -> None:
    x, w = leaf(1.0), tg.ones(1, dtype=tg.float64)
    kept = (x * w).grad_fn.saved
    assert len(kept) == 1 and kept[0][0] is w._array
    assert (x + w).grad_fn.saved == ()
    out = tg.exp(x)
    assert out.grad_fn.saved[0][0] is out._array


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda x: x.backward(), RuntimeError, "grad can be implicitly created only for scalar"),
        (lambda x: x.detach().sum().backward(), RuntimeError,
         "element 0 of tensors does not require grad and does not have a grad_fn"),
        (lambda x: x.backward(tg.ones(3, dtype=tg.float64)), RuntimeError,
         r"grad_output\[0\] has a shape of torch.Size\(\[3\]\) and output\[0\] has a shape of "
         r"torch.Size\(\[2\]\)."),
        (lambda x: x.backward(1), TypeError, "gradients can be either Tensors or None, but got"),
        (lambda x: setattr(x * 2, "requires_grad", False), RuntimeError,
         "^you can only change requires_grad flags of leaf variables. If you want to use a computed "
         "variable in a subgraph that doesn't require differentiation use var_no_grad"),
        (lambda x: (x * 2).requires_grad_(False), RuntimeError,
         "^you can only change requires_grad flags of leaf variables. If you want to use a computed"),
        (lambda x: setattr(x * 2, "requires_grad", True), RuntimeError,
         "^you can only change requires_grad flags of leaf variables.$"),
        (lambda x: setattr(x[:1], "requires_grad", True), RuntimeError,
         "^you can only change requires_grad flags of leaf variables.$"),
        (lambda x: setattr(x * 2, "requires_grad", 1), RuntimeError, "^requires_grad must be a bool$"),
        (lambda x: setattr(x, "grad", tg.ones(3, dtype=tg.float64)), RuntimeError,
         "attempting to assign a gradient of size"),
        (lambda x: x.detach().retain_grad(), RuntimeError, "can't retain_grad on Tensor"),
        (lambda x: tg.ones(2, dtype=tg.int64).requires_grad_(), RuntimeError,
         "only Tensors of floating point dtype can require gradients"),
    ],
)  # fmt: skip
def test_refusals(make: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make(leaf(1.0, 2.0))


def test_requires_grad_may_be_asked_of_a_result_that_has_it() -> None:
    """As in PyTorch: the method is idle there, where the assignment raises."""
    y = leaf(1.0) * 2
    node = y.grad_fn
    assert y.requires_grad_() is y and y.requires_grad_(True) is y
    assert y.grad_fn is node and not y.is_leaf
