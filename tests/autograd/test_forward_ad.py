"""autograd.forward_ad: dual numbers, as PyTorch documents them.

Mirrors torch.autograd.forward_ad: a dual tensor is a view of its primal, tangents follow eager code
through views and writes in place, they die with the level, and reverse mode goes through both.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tracegrad as torch
import tracegrad.autograd.forward_ad as fwad
from tracegrad import func

X, V = [0.5, -1.5, 2.0], [1.0, -2.0, 0.25]


def double(values: Any, requires_grad: bool = False) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=requires_grad)


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-13, atol=1e-13)


def push(f: Callable[[torch.Tensor], torch.Tensor], x: Any = X, v: Any = V) -> Any:
    with fwad.dual_level():
        return fwad.unpack_dual(f(fwad.make_dual(double(x), double(v))))


# ---- values -------------------------------------------------------------------------------------


def test_tangent_of_a_composition_is_the_chain_rule() -> None:
    x, v = np.array(X), np.array(V)
    primal, tangent = push(lambda a: torch.sin(a) * a.exp() + 3)
    close(primal, np.sin(x) * np.exp(x) + 3)
    close(tangent, (np.cos(x) + np.sin(x)) * np.exp(x) * v)


def test_reductions_products_and_gathers_follow() -> None:
    x, v = np.array(X), np.array(V)
    w = np.arange(9.0).reshape(3, 3)
    close(push(lambda a: double(w.tolist()) @ a).tangent, w @ v)
    close(push(lambda a: a.prod()).tangent, x.prod() * (v / x).sum())
    close(push(lambda a: a[torch.tensor([2, 0, 2])].sum()).tangent, v[2] * 2 + v[0])
    close(push(lambda a: torch.where(a > 0, a * a, a)).tangent, np.where(x > 0, 2 * x * v, v))


def test_what_does_not_depend_on_a_dual_has_no_tangent() -> None:
    assert push(lambda a: torch.ones(2)).tangent is None
    assert push(lambda a: a.detach() * 2).tangent is None
    assert push(lambda a: a.data * 2).tangent is None
    assert push(lambda a: (a > 0).to(torch.float64)).tangent is None
    assert push(lambda a: a.argmax()).tangent is None
    assert push(lambda a: torch.floor(a)).tangent.tolist() == [0.0, 0.0, 0.0]  # it does depend


def test_no_grad_keeps_tangents_and_inference_mode_does_not() -> None:
    def under(mode: Any) -> Any:
        with fwad.dual_level():
            x = fwad.make_dual(torch.ones(2), torch.ones(2))
            with mode:
                return fwad.unpack_dual(x * 2).tangent

    assert under(torch.no_grad()).tolist() == [2.0, 2.0]
    assert under(torch.inference_mode()) is None


def test_python_control_flow_follows_the_values() -> None:
    def doubled(a: torch.Tensor) -> torch.Tensor:
        while a.norm() < 100:
            a = a * 2
        return a

    primal, tangent = push(doubled)
    factor = float(primal[0]) / X[0]
    close(tangent, factor * np.array(V))


# ---- views and writes in place ------------------------------------------------------------------


def test_a_dual_is_a_view_of_its_primal_and_keeps_the_tangent_given() -> None:
    x, v = torch.ones(3), torch.tensor([1.0, 2.0, 3.0])
    with fwad.dual_level():
        dual = fwad.make_dual(x, v)
        assert dual._is_view() and dual.data_ptr() == x.data_ptr()
        assert fwad.unpack_dual(dual).tangent is v
        assert fwad.unpack_dual(dual).primal.data_ptr() == x.data_ptr()
        dual.mul_(3)
    assert x.tolist() == [3.0, 3.0, 3.0]
    assert v.tolist() == [3.0, 6.0, 9.0]


def test_tangent_laid_out_otherwise_is_copied() -> None:
    x, v = torch.ones(2, 3), torch.arange(6.0).reshape(3, 2).t()
    with fwad.dual_level():
        tangent = fwad.unpack_dual(fwad.make_dual(x, v)).tangent
    assert tangent is not v
    assert tangent.tolist() == v.tolist()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_writes_through_a_view_reach_the_tangent_of_the_base(order: tuple[int, int]) -> None:
    def program(a: torch.Tensor) -> torch.Tensor:
        b = torch.stack([a, a * 2]).permute(*order).clone()
        row = b.permute(*order)[1]
        row.mul_(a)
        b[0] += 1
        return b.permute(*order)

    x, v = np.array(X), np.array(V)
    primal, tangent = push(program)
    want = np.stack([x, 2 * x * x]), np.stack([v, 4 * x * v])
    if order == (0, 1):
        want[0][0] += 1
    else:
        want[0][:, 0] += 1
    close(primal, want[0])
    close(tangent, want[1])


def test_a_plain_tensor_gets_a_tangent_when_a_dual_is_written_to_it() -> None:
    with fwad.dual_level():
        base = torch.ones(4)
        early, part = base[1:], base[:2]
        part.copy_(fwad.make_dual(torch.zeros(2), torch.tensor([5.0, 7.0])))
        assert fwad.unpack_dual(base).tangent.tolist() == [5.0, 7.0, 0.0, 0.0]
        assert fwad.unpack_dual(early).tangent.tolist() == [7.0, 0.0, 0.0]
        assert fwad.unpack_dual(base[:3]).tangent.tolist() == [5.0, 7.0, 0.0]


def test_a_constant_written_over_a_dual_clears_its_tangent() -> None:
    def program(a: torch.Tensor) -> torch.Tensor:
        b = a * 1
        b[1] = 9.0
        b[2:].zero_()
        return b

    close(push(program).tangent, [V[0], 0.0, 0.0])


def test_sums_with_constants_do_not_share_the_tangent_that_is_written_to() -> None:
    """`a + 1` has the tangent of `a`; writing to the sum must leave it alone."""
    v = torch.tensor([1.0, 2.0])
    with fwad.dual_level():
        a = fwad.make_dual(torch.ones(2), v)
        b = a + 1
        b.mul_(10)
        assert fwad.unpack_dual(a).tangent.tolist() == [1.0, 2.0]
        assert fwad.unpack_dual(b).tangent.tolist() == [10.0, 20.0]


# ---- with reverse mode, transforms and compiled functions ---------------------------------------


def test_reverse_over_forward_and_forward_over_reverse() -> None:
    x = double(X, requires_grad=True)
    v = double(V, requires_grad=True)
    with fwad.dual_level():
        y = (fwad.make_dual(x, v) ** 3).sum()
        slope = fwad.unpack_dual(y).tangent
    by_x, by_v = torch.autograd.grad(slope, (x, v))
    close(by_x, 6 * np.array(X) * np.array(V))
    close(by_v, 3 * np.array(X) ** 2)
    with fwad.dual_level():
        dual = fwad.make_dual(x, v)
        (gradient,) = torch.autograd.grad((dual**3).sum(), dual)
        tangent = fwad.unpack_dual(gradient).tangent
    close(tangent, 6 * np.array(X) * np.array(V))


def test_transforms_inside_a_level_carry_the_tangents() -> None:
    grad = func.grad(lambda a: (a**3).sum())
    close(push(grad).tangent, 6 * np.array(X) * np.array(V))
    close(push(func.vmap(lambda a: a * a)).tangent, 2 * np.array(X) * np.array(V))
    inner = push(lambda a: func.jvp(lambda b: b**3, (a,), (torch.ones_like(a),))[1])
    close(inner.tangent, 6 * np.array(X) * np.array(V))


def test_a_level_inside_vmap() -> None:
    def slope(x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with fwad.dual_level():
            return fwad.unpack_dual(torch.sin(fwad.make_dual(x, v))).tangent

    x, v = np.array(X), np.array(V)
    close(func.vmap(slope)(double(X), double(V)), np.cos(x) * v)


def test_compiled_functions_run_eagerly_inside_a_level() -> None:
    f = torch.compile(lambda a: torch.sin(a) * a)
    f(double(X)), f(double(X))
    x, v = np.array(X), np.array(V)
    close(push(f).tangent, (np.cos(x) * x + np.sin(x)) * v)
    opened = torch.compile(lambda a: push(torch.sin).tangent * a)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.EagerWarning)
        first, second = opened(double(X)), opened(double(X))
    close(first, np.cos(x) * v * x)
    close(second, np.cos(x) * v * x)
    assert "dual_level()" in opened.explain()


# ---- Function.jvp -------------------------------------------------------------------------------


class Scaled(torch.autograd.Function):
    """x * y * k, with a jvp that is twice too large: so that it is seen to be the one called."""

    @staticmethod
    def forward(ctx: Any, x: Any, y: Any, k: int) -> Any:
        ctx.save_for_forward(x, y)
        ctx.save_for_backward(x)
        ctx.k = k
        return x * y * k, x + y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise AssertionError("reverse mode is not used")

    @staticmethod
    def jvp(ctx: Any, dx: Any, dy: Any, dk: None) -> Any:
        assert dk is None
        x, y = ctx.saved_tensors
        return 2 * ctx.k * (dx * y + x * dy), dx + dy


def test_jvp_of_a_function_is_called_with_zeros_for_what_is_constant() -> None:
    y = double([2.0, 3.0, 4.0])
    with fwad.dual_level():
        dual = fwad.make_dual(double(X), double(V))
        first, second = Scaled.apply(dual, y, 5)
        close(fwad.unpack_dual(first).tangent, 10 * np.array(V) * y.numpy())
        close(fwad.unpack_dual(second).tangent, V)
        assert fwad.unpack_dual(Scaled.apply(y, y, 5)[0]).tangent is None
    close(func.jvp(lambda a: Scaled.apply(a, y, 1)[0], (double(X),), (double(V),))[1],
          2 * np.array(V) * y.numpy())  # fmt: skip


def test_jvp_gets_none_without_materialized_grads() -> None:
    seen: list[Any] = []

    class Pair(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, y: Any) -> Any:
            ctx.set_materialize_grads(False)
            return x + y

        @staticmethod
        def jvp(ctx: Any, dx: Any, dy: Any) -> Any:
            seen.append(dy)
            return dx

    with fwad.dual_level():
        Pair.apply(fwad.make_dual(torch.ones(2), torch.ones(2)), torch.ones(2))
    assert seen == [None]


def returning(*tangents: Any) -> type[torch.autograd.Function]:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x * 2, x * 3

        @staticmethod
        def jvp(ctx: Any, dx: Any) -> Any:
            return tangents

    return Wrong


@pytest.mark.parametrize(
    ("tangents", "text"),
    [
        ((torch.ones(2),), "jvp returned an invalid number of forward gradients "
                           "(expected 2 but got 1)"),
        ((torch.ones(3), torch.ones(2)), "Tensor is of size [2] while the given forward gradient "
                                         "is of size [3]."),
        ((1.0, torch.ones(2)), "expected Variable or None (got float) for grad output 0."),
    ],
)  # fmt: skip
def test_wrong_results_of_jvp_are_refused(tangents: Any, text: str) -> None:
    with fwad.dual_level(), pytest.raises(RuntimeError, match=re.escape(text)):
        returning(*tangents).apply(fwad.make_dual(torch.ones(2), torch.ones(2)))


def test_function_without_jvp_is_refused() -> None:
    class Plain(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x * 2

    assert Plain.apply(torch.ones(2)).tolist() == [2.0, 2.0]
    with fwad.dual_level(), pytest.raises(NotImplementedError, match="implement the jvp function"):
        Plain.apply(fwad.make_dual(torch.ones(2), torch.ones(2)))


# ---- levels, printing, refusals -----------------------------------------------------------------


def test_tangents_end_with_the_level() -> None:
    with fwad.dual_level():
        dual = fwad.make_dual(torch.ones(2), torch.ones(2))
    assert fwad.unpack_dual(dual).tangent is None
    assert repr(dual) == "tensor([1., 1.])"


def test_functions_for_the_level_and_the_decorator() -> None:
    assert fwad.enter_dual_level() == 0
    dual = fwad.make_dual(torch.ones(2), torch.ones(2))
    assert fwad.unpack_dual(dual, level=0).tangent.tolist() == [1.0, 1.0]
    fwad.exit_dual_level(level=0)

    @fwad.dual_level()
    def slope(x: torch.Tensor) -> Any:
        return fwad.unpack_dual(fwad.make_dual(x, x) * 3).tangent

    assert slope(torch.ones(2)).tolist() == [3.0, 3.0]


def test_an_exception_inside_closes_the_level() -> None:
    with pytest.raises(KeyError), fwad.dual_level():
        raise KeyError
    with fwad.dual_level():
        assert fwad.unpack_dual(torch.ones(1)).tangent is None


def test_repr_shows_the_tangent() -> None:
    with fwad.dual_level():
        dual = fwad.make_dual(torch.ones(2), torch.tensor([3.0, 4.0]))
        assert repr(dual) == "tensor([1., 1.], tangent=tensor([3., 4.]))"
        assert repr(torch.ones(2)) == "tensor([1., 1.])"


def refused(error: type[Exception], text: str, call: Callable[[], Any]) -> None:
    with pytest.raises(error, match=re.escape(text)):
        call()


def test_refusals() -> None:
    x = torch.ones(2)
    refused(RuntimeError, "no level exists", lambda: fwad.make_dual(x, x))
    refused(RuntimeError, "Dual level must be a positive number.", fwad.exit_dual_level)
    assert fwad.unpack_dual(x).primal is x
    with fwad.dual_level():
        refused(RuntimeError, "Nested forward mode AD is not supported", fwad.enter_dual_level)
        refused(ValueError, "Expected primal to be floating point or complex, but got: ",
                lambda: fwad.make_dual(x.long(), x))  # fmt: skip
        refused(ValueError, "Expected tangent to be floating point or complex, but got: ",
                lambda: fwad.make_dual(x, x.long()))  # fmt: skip
        refused(RuntimeError, "Tensor is of size [2] while the given forward gradient is of size [3].",
                lambda: fwad.make_dual(x, torch.ones(3)))  # fmt: skip
        refused(TypeError, "tangent must be a Tensor, not float", lambda: fwad.make_dual(x, 1.0))
        refused(TypeError, "tensor must be a Tensor, not int", lambda: fwad.unpack_dual(1))
        dual = fwad.make_dual(x, x)
        refused(RuntimeError, "already has a forward gradient at the same level",
                lambda: fwad.make_dual(dual, x))  # fmt: skip
        refused(RuntimeError, "not the last one", lambda: fwad.exit_dual_level(level=3))
        refused(RuntimeError, "forward AD level 1 does not exist",
                lambda: fwad.unpack_dual(x, level=1))  # fmt: skip
        refused(RuntimeError, "inside a transform",
                lambda: func.vmap(lambda a: fwad.make_dual(a, a))(x))  # fmt: skip
