"""Gradients of the composed functions at first and second order, and their refused inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import tracegrad as tg

X = [[0.6, -1.2, 0.3], [2.1, 0.4, -0.7], [1.4, -0.2, 0.9]]
Y = [[0.5, -1.2, 1.3], [1.9, -0.8, -0.7], [0.1, 0.2, 2.9]]
I = tg.tensor([[0, 2, 1], [2, 2, 0]])

CASES: dict[str, Callable[[Any, Any], Any]] = {
    "logaddexp": tg.logaddexp, "logaddexp2": tg.logaddexp2,
    "fmax": lambda x, y: tg.fmax(x, y + 0.05), "fmin": lambda x, y: tg.fmin(x, y + 0.05),
    "float_power": lambda x, y: tg.float_power(x.exp(), y),
    "ldexp": lambda x, y: tg.ldexp(x, I[:1]) + y,
    "sinc": lambda x, y: tg.sinc(x) * y, "i0": lambda x, y: tg.i0(x) * y,
    "polygamma": lambda x, y: tg.polygamma(2, x.exp()) * y,
    "mvlgamma": lambda x, y: tg.mvlgamma(x.exp() + 1, 3) * y,
    "heaviside": lambda x, y: tg.heaviside(x, y) + x * y,
    "take": lambda x, y: tg.take(x * y, I), "put": lambda x, y: x.put(I[0], y[0]) * y,
    "put and add": lambda x, y: x.put(I[1], y[0], accumulate=True) * y,
    **{
        f"scatter_reduce {r} {own}": lambda x, y, r=r, own=own: tg.scatter_reduce(
            x, 1, I, y + 0.05, r, include_self=own
        )
        for r in ("sum", "prod", "mean", "amax", "amin") for own in (True, False)
    },
    **{
        f"index_reduce {r} {own}": lambda x, y, r=r, own=own: tg.index_reduce(
            x, 0, I[0], y + 0.05, r, include_self=own
        )
        for r in ("prod", "mean", "amax", "amin") for own in (True, False)
    },
    "take_along_dim": lambda x, y: tg.take_along_dim(x * y, I, 0),
    "narrow_copy": lambda x, y: tg.narrow_copy(x * y, 1, 1, 2),
    "renorm": lambda x, y: tg.renorm(x, 2, 0, 1.5) * y,
    "renorm of all": lambda x, y: tg.renorm(x, 3, 1, 0.5) * y,
    "diag": lambda x, y: tg.diag(x[0], 1).sum() * tg.diag(y),
    "diag_embed": lambda x, y: tg.diag_embed(x * y, -1, 0, 2), "trace": lambda x, y: tg.trace(x @ y),
    "inner": tg.inner, "kron": tg.kron, "cross": lambda x, y: tg.cross(x, y, dim=1),
    "chain_matmul": lambda x, y: tg.chain_matmul(x, y[:, :1], x[:1], y),
    "matrix_power": lambda x, y: tg.matrix_power(x, 5) @ y,
    "column_stack": lambda x, y: tg.column_stack([x * y, y[0]]),
    "hstack": lambda x, y: tg.hstack([x * y, y]) ** 2, "dstack": lambda x, y: tg.dstack([x, y]) ** 2,
    "nansum": lambda x, y: tg.nansum(x * y, 1), "nanmean": lambda x, y: tg.nanmean(x * y, 0),
    "nextafter": lambda x, y: tg.nextafter(x * y, tg.zeros(1, dtype=tg.float64)),
    "std_mean": lambda x, y: tg.std_mean(x * y, 1), "var_mean": lambda x, y: tg.var_mean(x * y),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_first_and_second_derivatives(name: str) -> None:
    x, y = (tg.tensor(v, dtype=tg.float64, requires_grad=True) for v in (X, Y))
    assert tg.autograd.gradcheck(CASES[name], (x, y), check_forward_ad=True)
    assert tg.autograd.gradgradcheck(CASES[name], (x, y), atol=1e-4)


def test_sums_of_exponentials_are_smooth_where_the_operands_are_equal() -> None:
    """The second derivative is 1/4 (of base 2: log(2) / 4), which a kink would make 0."""
    for function, want in ((tg.logaddexp, 0.25), (tg.logaddexp2, 0.17328679513998632)):
        x = tg.tensor([1.5], dtype=tg.float64, requires_grad=True)
        (slope,) = tg.autograd.grad(function(x, tg.tensor([1.5])).sum(), x, create_graph=True)
        (bend,) = tg.autograd.grad(slope, x)
        assert slope.item() == pytest.approx(0.5) and bend.item() == pytest.approx(want)


def test_nan_of_one_operand_takes_no_gradient() -> None:
    x = tg.tensor([tg.nan, 1.0], requires_grad=True)
    y = tg.tensor([2.0, tg.nan], requires_grad=True)
    for function in (tg.fmax, tg.fmin):
        dx, dy = tg.autograd.grad(function(x, y).sum(), (x, y))
        assert dx.tolist() == [0.0, 1.0] and dy.tolist() == [1.0, 0.0]


WRITES: dict[str, Callable[[Any], Any]] = {
    "float_power_": lambda x: x.float_power_(2), "ldexp_": lambda x: x.ldexp_(I[0]),
    "sinc_": lambda x: x.sinc_(), "polygamma_": lambda x: x.polygamma_(1),
    "mvlgamma_": lambda x: x.mvlgamma_(1),
    "put_": lambda x: x.put_(I[0], tg.ones(3, dtype=tg.float64)),
    "renorm_": lambda x: x.renorm_(2, 0, 1.5), "nextafter_": lambda x: x.nextafter_(x.detach() * 0),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITES)
def test_in_place_forms_have_the_values_and_gradients_of_the_others(name: str) -> None:
    x = (tg.tensor(X, dtype=tg.float64).abs() + 0.3).requires_grad_()
    results = []
    for in_place in (True, False):
        y = x * 1
        if in_place:
            z = WRITES[name](y)
            assert z is y and y._version == 1
        else:
            other = y.clone()
            z = WRITES[name](y.detach().clone())
            form = {"put_": lambda t: t.put(I[0], tg.ones(3, dtype=tg.float64)),
                    "polygamma_": lambda t: t.polygamma(1), "sinc_": tg.sinc,
                    "float_power_": lambda t: t.float_power(2), "ldexp_": lambda t: t.ldexp(I[0]),
                    "mvlgamma_": lambda t: t.mvlgamma(1), "renorm_": lambda t: t.renorm(2, 0, 1.5),
                    "nextafter_": lambda t: t.nextafter(t.detach() * 0)}[name]  # fmt: skip
            z = form(other)
        (slope,) = tg.autograd.grad((z * tg.tensor(Y, dtype=tg.float64)).sum(), x)
        results.append((z.tolist(), slope.tolist()))
    assert results[0] == results[1]


def test_heaviside_in_place() -> None:
    values = tg.tensor([0.5, 0.5], requires_grad=True)
    x = tg.tensor([0.0, 2.0])
    assert x.heaviside_(values) is x and x.tolist() == [0.5, 1.0]
    x.sum().backward()
    assert values.grad.tolist() == [1.0, 0.0]


def test_integers_in_place() -> None:
    assert tg.tensor([12, -9]).gcd_(tg.tensor([8, 6])).tolist() == [4, 3]
    assert tg.tensor([4, -6]).lcm_(tg.tensor([6, 4])).tolist() == [12, 12]


REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: tg.atleast_2d(3), TypeError, "must be Tensor, not int"),
    (lambda: tg.atleast_3d(tg.ones(1), 3), TypeError, "must be Tensor, not int"),
    (lambda: tg.float_power("a", 2), TypeError, "invalid combination of arguments"),
    (lambda: tg.ones(2).float_power("a"), TypeError, "invalid combination of arguments"),
    (lambda: tg.ones(2).gcd_(tg.ones(2)), RuntimeError, "not implemented for 'Float'"),
    (lambda: tg.ones(2).lcm_(tg.ones(2)), RuntimeError, "not implemented for 'Float'"),
    (lambda: tg.ones(2).heaviside_(tg.tensor([1])), RuntimeError, "different dtypes"),
    (lambda: tg.ones(2).ldexp_(2), TypeError, "must be Tensor, not int"),
    (lambda: tg.ones(2).map2_(tg.ones(2), 3, max), TypeError, "'y' .position 2. must be Tensor"),
    (lambda: tg.ones(2).mvlgamma_(0), RuntimeError, "p has to be greater than or equal to 1"),
    (lambda: tg.ones(2).nextafter_(1), TypeError, "must be Tensor, not int"),
    (lambda: tg.ones(2).polygamma_(-1), RuntimeError, "does not support negative n"),
    (lambda: tg.ones(2).polygamma(-1), RuntimeError, "does not support negative n"),
    (lambda: tg.ones(2).renorm_(2, 0, 1), RuntimeError, "at least 2 dimensions"),
    (lambda: tg.i0("a"), TypeError, "must be Tensor"),
    (lambda: tg.tensor([1]).i0_(), RuntimeError, "can't be cast to the desired output type"),
    (lambda: tg.tensor([1]).sinc_(), RuntimeError, "can't be cast to the desired output type"),
    (lambda: tg.matrix_power(tg.ones(2, 2), -1), RuntimeError, "needs an inverse"),
    (lambda: tg.chain_matmul(), RuntimeError, "Expected one or more matrices"),
    (lambda: tg.zeros(2).put(tg.tensor([0]), tg.tensor([1])), RuntimeError, "have the same dtype"),
    (lambda: tg.scatter_reduce(tg.ones(2), 0, I[0], tg.ones(3), "or"), RuntimeError, "must be either sum"),
    (lambda: tg.ones(2).scatter_reduce_(0, I[0], tg.ones(3), "sum"), IndexError, "out of bounds"),
    (lambda: tg.index_reduce(tg.ones(2), 0, I[0], tg.ones(3), "sum"), RuntimeError, "one of prod, mean"),
    (lambda: tg.ones(2).index_reduce_(0, I, tg.ones(3), "prod"), IndexError, "to be a vector"),
    (lambda: tg.ones(2).index_reduce(0, I[0], tg.ones(2), "prod"), RuntimeError, "does not fit 3 ind"),
    (lambda: tg.Tensor.conj_physical_(3), TypeError, "must be Tensor"),  # type: ignore[arg-type]
    (lambda: tg.var_mean(3), TypeError, "must be Tensor, not int"),
]  # fmt: skip


@pytest.mark.parametrize(("act", "error", "text"), REFUSED)
def test_refused(act: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        act()
