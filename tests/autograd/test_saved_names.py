"""What nodes keep, under PyTorch's names: `_saved_self`, `_raw_saved_self`, and their neighbours.

Values, None and texts are PyTorch's for the same programs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tracegrad as tg
from tracegrad.autograd.graph import saved_tensors_hooks
from tracegrad.tracer.saved_names import OTHERS, TENSORS

_FREED = "^Trying to backward through the graph a second time"


def leaf(*values: float) -> Any:
    return tg.tensor(values or (0.25, 0.75), dtype=tg.float64, requires_grad=True)


X = leaf()
Y = leaf(3.0, 4.0)
M = tg.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=tg.float64, requires_grad=True)
B = M.reshape(1, 2, 2)

SAVED: list[tuple[Any, dict[str, Any]]] = [
    *((getattr(X, name)(), {"self": X}) for name in "abs acos asin atan atanh cos cosh digamma erf "
      "lgamma log log10 log2 log1p sin sinh asinh".split()),
    *((f, {"result": f}) for f in (getattr(X, name)() for name in "exp exp2 expm1 reciprocal rsqrt "
      "sigmoid sqrt tan tanh".split())),
    ((X + 1).acosh(), {"self": X + 1}),
    (X * Y, {"self": X, "other": Y}),
    (X * 2, {"self": None, "other": 2.0}),
    (X * Y.detach(), {"self": None, "other": Y}),
    (X / Y, {"other": Y}),
    (tg.fmod(X, Y), {"self": X, "other": Y}),
    (tg.remainder(X, Y), {"self": X, "other": Y}),
    (tg.maximum(X, Y), {"self": X, "other": Y}),
    (tg.minimum(X, Y), {"self": X, "other": Y}),
    (tg.atan2(X, Y), {"self": X, "other": Y}),
    (tg.hypot(X, Y), {"self": X, "other": Y, "result": tg.hypot(X, Y)}),
    (tg.copysign(X, Y), {"self": X, "result": X}),
    (X**2, {"self": X, "exponent": 2.0}),
    (X.clamp(0.5, 1.5), {"self": X, "min": 0.5, "max": 1.5}),
    (tg.where(X > 0.5, X, Y), {"condition": X > 0.5}),
    (X.masked_fill(X > 0.5, 0.0), {"mask": X > 0.5}),
    (X.relu(), {"result": X}),
    (M.mean(), {"self_sym_sizes": (2, 2), "self_sym_numel": 4}),
    (M.sum(), {"self_sym_sizes": (2, 2)}),
    (M.sum(0), {"self_sym_sizes": (2, 2), "dim": (0,), "keepdim": False}),
    (M.prod(), {"self": M}),
    (M.prod(1, keepdim=True), {"self": M, "dim": 1, "keepdim": True}),
    (M.max(), {"self": M, "result": 4.0}),
    (M.min(), {"self": M, "result": 1.0}),
    (M.amax(0), {"self": M, "result": M[1], "dim": (0,), "keepdim": False}),
    (M.amin(0), {"self": M, "result": M[0], "dim": (0,), "keepdim": False}),
    (M @ M, {"self": M, "mat2": M}),
    (tg.nn.functional.linear(M, M), {"self": M, "mat2": M.t()}),
    (M @ X, {"self": M, "vec": X}),
    (X.dot(Y), {"self": X, "tensor": Y}),
    (X.vdot(Y), {"self": X, "other": Y}),
    (tg.bmm(B, B), {"self": B, "mat2": B}),
    (M.reshape(4), {"self_sym_sizes": (2, 2)}),
    (X.expand(3, 2), {"self_sym_sizes": (2,)}),
    (M.permute(1, 0), {"dims": (1, 0)}),
    (M.flip(1), {"dims": (1,)}),
    (tg.cat([M, M], 1), {"dim": 1}),
    (tg.nn.functional.conv2d(B[None], B[None]),
     {"input": B[None], "weight": B[None], "stride": (1, 1), "dilation": (1, 1), "groups": 1}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("output", "want"), SAVED, ids=[type(out.grad_fn).__name__ for out, _ in SAVED]
)
def test_saved_values_have_pytorchs_names(output: Any, want: dict[str, Any]) -> None:
    node = output.grad_fn
    for name, value in want.items():
        found = getattr(node, f"_saved_{name}")
        assert f"_saved_{name}" in dir(node)
        if value is None:
            assert found is None
        elif isinstance(found, tg.Tensor):
            value = value.detach().numpy() if isinstance(value, tg.Tensor) else value
            np.testing.assert_array_equal(found.detach().numpy(), value)
        else:
            assert found == value


def test_every_name_of_the_table_is_tested() -> None:
    tested = {type(out.grad_fn).__name__ for out, _ in SAVED}
    others = {"PowBackward1", "PowBackward2", "SqueezeBackward0"}
    assert set(TENSORS) | set(OTHERS) <= tested | others


def test_a_leaf_is_found_itself_and_a_result_with_its_history() -> None:
    x = leaf()
    assert x.sin().grad_fn._saved_self is x
    y = x.exp()
    assert y.grad_fn._saved_result is not y
    assert y.grad_fn._saved_result.grad_fn is y.grad_fn
    z = y * 3
    assert z.sin().grad_fn._saved_self.grad_fn is z.grad_fn


def test_names_that_a_node_does_not_have() -> None:
    node = leaf().exp().grad_fn
    with pytest.raises(AttributeError, match="^'ExpBackward0' object has no attribute '_saved_x'$"):
        node._saved_x  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute '_raw_saved_x'$"):
        node._raw_saved_x  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'anything'$"):
        node.anything  # noqa: B018


def test_freed_and_overwritten_values_are_refused() -> None:
    y = leaf().exp()
    node = y.grad_fn
    y.sum().backward()
    with pytest.raises(RuntimeError, match=_FREED):
        node._saved_result  # noqa: B018
    with pytest.raises(
        RuntimeError, match="^Calling register_hooks on a saved tensor after it has been freed. "
    ):
        node._raw_saved_result.register_hooks(lambda t: t, lambda t: t)
    z = leaf() * 1
    y = z.sin()
    z.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.grad_fn._saved_self  # noqa: B018


def test_hooks_on_one_saved_tensor() -> None:
    """Packed at once, detached and without recording; the other operand is as it was."""
    x, log = leaf(1.0, 2.0), []
    y = x * x

    def pack(t: Any) -> Any:
        log.append((t is x, t.requires_grad, tg.is_grad_enabled()))
        return t.tolist()

    y.grad_fn._raw_saved_self.register_hooks(pack, lambda v: tg.tensor(v, dtype=tg.float64) * 5)
    assert log == [(False, False, False)]
    found = y.grad_fn._saved_self
    assert found.tolist() == [5, 10] and found.is_leaf and found.requires_grad
    with pytest.raises(
        RuntimeError, match="^Calling register_hooks on a saved tensor whose hooks have already"
    ):
        y.grad_fn._raw_saved_self.register_hooks(pack, pack)
    y.sum().backward()
    assert x.grad.tolist() == [6, 12]


def test_hooks_on_one_saved_tensor_are_checked() -> None:
    x = leaf()
    with pytest.raises(
        RuntimeError, match="^Calling register_hooks on a saved tensor with value None is forbidden"
    ):
        (x * 2).grad_fn._raw_saved_self.register_hooks(lambda t: t, lambda t: t)
    with pytest.raises(TypeError, match=r"^register_hooks\(\): hooks must be functions, got int$"):
        x.exp().grad_fn._raw_saved_result.register_hooks(3, lambda t: t)
    with pytest.raises(
        RuntimeError, match="^A saved tensor pack hook is modifying its input in place."
    ):
        (x * x).grad_fn._raw_saved_self.register_hooks(lambda t: t.mul_(3), lambda t: t)
    y = x.exp()
    y.grad_fn._raw_saved_result.register_hooks(lambda t: 3, lambda t: t)
    with pytest.raises(TypeError, match="unpack_hook expected to be a Tensor but got result of"):
        y.sum().backward()
    with saved_tensors_hooks(lambda t: t, lambda t: t):
        y = x.exp()
    with pytest.raises(RuntimeError, match="hooks have already been set"):
        y.grad_fn._raw_saved_result.register_hooks(lambda t: t, lambda t: t)


def test_second_derivatives_go_through_hooks_on_one_tensor() -> None:
    x = leaf(1.0, 2.0)
    y = x**3
    y.grad_fn._raw_saved_self.register_hooks(lambda t: t.clone(), lambda t: t)
    (g,) = tg.autograd.grad(y.sum(), x, create_graph=True)
    (h,) = tg.autograd.grad(g.sum(), x)
    assert h.tolist() == [6, 12]


class Exp(tg.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        y = x.exp()
        ctx.save_for_backward(x, y, None)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return grad * ctx.saved_tensors[1]


def test_saved_tensors_of_a_function_take_hooks_too() -> None:
    x = leaf()
    y = Exp.apply(x)
    node = y.grad_fn
    assert len(node._raw_saved_tensors) == 3
    for raw in node._raw_saved_tensors[:2]:
        raw.register_hooks(lambda t: t, lambda t: t * 2)
    with pytest.raises(RuntimeError, match="hooks have already been set"):
        node._raw_saved_tensors[0].register_hooks(lambda t: t, lambda t: t)
    with pytest.raises(RuntimeError, match="with value None is forbidden"):
        node._raw_saved_tensors[2].register_hooks(lambda t: t, lambda t: t)
    first, second, third = node.saved_tensors
    assert first.is_leaf and first.requires_grad and second.grad_fn is node and third is None
    raw = node._raw_saved_tensors[0]
    y.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 2 * np.exp([0.25, 0.75]))
    with pytest.raises(RuntimeError, match=_FREED):
        node._raw_saved_tensors  # noqa: B018
    with pytest.raises(RuntimeError, match="after it has been freed"):
        raw.register_hooks(lambda t: t, lambda t: t)


def test_what_else_nodes_tell() -> None:
    x = leaf()
    y = x * 2
    node = y.grad_fn
    assert node.name() == "MulBackward0" and node.requires_grad and node.metadata == {}
    assert node._input_metadata[0].shape == (2,)
    assert (y * 2).grad_fn._sequence_nr() > node._sequence_nr()
    (end, number), (none, zero) = node.next_functions
    assert (number, none, zero) == (0, None, 0)
    assert end.name() == "torch::autograd::AccumulateGrad"
    assert repr(end).startswith("<AccumulateGrad object at 0x")
    assert end.variable is x and end.next_functions == ()
    assert end._sequence_nr() == 2**64 - 1 and end._input_metadata[0].shape == (2,)
