"""Every in-place method, compiled: the replay gives eager's values and gradients, or stays eager.

`ROWS` says with which arguments each method is called on a tensor that the function made; many go
into one compiled function, so that the C compiler runs few times. Start reading at `test_replay`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
from beside import assert_same

import tracegrad as tg
from tracegrad.tracer.inplace_methods import INPLACE_FUNCTIONS

A_TIME = 24  # methods in one compiled function

Call = Callable[..., Any]
"""`call(name, x, y, p, i, k, m)`: the tensor that was written to, and what else may change."""


def of(which: str, *args: Any, **options: Any) -> Call:
    """Call the method on a copy of x, p (in [0.2, 1.4]), q (p / 2), r (p + 1) or i (integers)."""

    def call(name: str, x: Any, y: Any, p: Any, i: Any, k: Any, m: Any) -> Any:
        given = {"x": x, "y": y, "p": p, "q": p * 0.5, "r": p + 1, "i": i, "k": k, "m": m}
        target = given[which].clone()
        values = [given[a] if isinstance(a, str) else a for a in args]
        assert getattr(target, name)(*values, **options) is target
        return target

    return call


def each(call: Call, names: str) -> dict[str, Call]:
    return dict.fromkeys(names.split(), call)


ROWS: dict[str, Call] = {
    **each(of("x"), "abs_ absolute_ neg_ negative_ exp_ exp2_ expm1_ sin_ cos_ tan_ atan_ arctan_ "
           "sinh_ cosh_ tanh_ asinh_ arcsinh_ erf_ erfc_ floor_ ceil_ trunc_ fix_ round_ frac_ relu_ "
           "sigmoid_ square_ sign_ sgn_ nan_to_num_ logical_not_ zero_ tril_ triu_ deg2rad_ rad2deg_"),
    **each(of("p"), "log_ log2_ log10_ log1p_ sqrt_ rsqrt_ reciprocal_ lgamma_ digamma_"),
    **each(of("q"), "asin_ arcsin_ acos_ arccos_ atanh_ arctanh_ erfinv_ logit_"),
    **each(of("r"), "acosh_ arccosh_"),
    **each(of("x", "y"), "add_ sub_ subtract_ mul_ multiply_ atan2_ arctan2_ hypot_ copysign_ copy_ "
           "eq_ ne_ not_equal_ lt_ less_ le_ less_equal_ gt_ greater_ ge_ greater_equal_ "
           "logical_and_ logical_or_ logical_xor_"),
    **each(of("x", "p"), "div_ divide_ true_divide_ fmod_ remainder_ floor_divide_ xlogy_"),
    **each(of("i", 1), "bitwise_and_ bitwise_or_ bitwise_xor_ bitwise_left_shift_ "
           "bitwise_right_shift_"),
    **each(of("i", "i"), "gcd_ lcm_"),
    "bitwise_not_": of("i"),
    **each(of("x"), "sinc_ i0_"),
    "float_power_": of("p", "y"), "polygamma_": of("r", 1), "mvlgamma_": of("r", 2),
    "ldexp_": of("x", "i"), "heaviside_": of("x", "y"), "nextafter_": of("x", "y"),
    "renorm_": of("x", 2, 0, 1.5), "conj_physical_": of("x"),
    "scatter_reduce_": lambda name, x, y, p, i, k, m: x.clone().scatter_reduce_(0, i, y, "amax"),
    "index_reduce_": lambda name, x, y, p, i, k, m: x.clone().index_reduce_(0, k, y[:2], "mean"),
    "put_": lambda name, x, y, p, i, k, m: x.clone().put_(k, y[0, :2]),
    "pow_": of("p", "y"), "lerp_": of("x", "y", 0.3),
    "addcmul_": of("x", "y", "p", value=0.5), "addcdiv_": of("x", "y", "p", value=0.5),
    **each(of("x", 0.2), "clamp_min_ clamp_max_ fill_ fill_diagonal_"),
    **each(of("x", -0.5, 0.5), "clamp_ clip_"),
    **each(of("x", 1), "cumsum_ cumprod_"),
    **each(of("x", "y", "p"), "addmm_"),
    "addmv_": lambda name, x, y, p, i, k, m: x[0].clone().addmv_(y, p[0]),
    "addr_": lambda name, x, y, p, i, k, m: x.clone().addr_(y[0], p[0]),
    "addbmm_": lambda name, x, y, p, i, k, m: x.clone().addbmm_(y[None], p[None]),
    "baddbmm_": lambda name, x, y, p, i, k, m: x[None].clone().baddbmm_(y[None], p[None]),
    "masked_fill_": of("x", "m", 3.0),
    "masked_scatter_": of("x", "m", "y"),
    "index_put_": lambda name, x, y, p, i, k, m: x.clone().index_put_((k,), y[:2]),
    "index_add_": lambda name, x, y, p, i, k, m: x.clone().index_add_(0, k, y[:2]),
    "index_copy_": lambda name, x, y, p, i, k, m: x.clone().index_copy_(0, k, y[:2]),
    "index_fill_": of("x", 1, "k", 2.0),
    "scatter_": of("x", 0, "i", 2.0), "scatter_add_": of("x", 0, "i", "y"),
    **each(of("x"), "uniform_ normal_ bernoulli_ exponential_ cauchy_ log_normal_ t_ squeeze_"),
    "random_": of("x", 7), "geometric_": of("x", 0.3),
    **each(of("x", 0, 1), "transpose_ swapaxes_ swapdims_"),
    "unsqueeze_": of("x", 0),
    "set_": lambda name, x, y, p, i, k, m: tg.zeros(2, dtype=tg.float64).set_(y.detach()) * 1,
    "resize_": lambda name, x, y, p, i, k, m: x.detach().clone().resize_(2, 2),
    "resize_as_": lambda name, x, y, p, i, k, m: x.detach().clone().resize_as_(y[:1]),
}  # fmt: skip

EAGER = {
    "t_", "transpose_", "swapaxes_", "swapdims_", "squeeze_", "unsqueeze_", "set_", "resize_",
    "resize_as_",
}  # fmt: skip
"""What has no place in a graph; the function that calls one of them stays eager and says so."""


def arguments() -> tuple[Any, ...]:
    x, y = (tg.randn(3, 3, dtype=tg.float64, requires_grad=True) for _ in range(2))
    p = (tg.rand(3, 3, dtype=tg.float64) * 1.2 + 0.2).requires_grad_()
    i = tg.tensor([[0, 2, 1], [2, 2, 0], [1, 0, 0]])
    return x, y, p, i, tg.tensor([2, 0]), tg.tensor([[True, False, True]] * 3)


def calling(names: tuple[str, ...]) -> Callable[..., Any]:
    chosen = [(name, ROWS[name]) for name in names]

    def f(x: Any, y: Any, p: Any, i: Any, k: Any, m: Any) -> Any:
        inner = x * 1, y * 1, p * 1
        return [call(name, *inner, i, k, m).clone().contiguous() for name, call in chosen]

    return f


def groups() -> list[tuple[str, ...]]:
    names = iter(name for name in ROWS if name not in EAGER)
    return list(iter(lambda: tuple(islice(names, A_TIME)), ()))


def test_every_in_place_method_has_a_row() -> None:
    assert set(ROWS) == set(INPLACE_FUNCTIONS)


@pytest.mark.parametrize("names", groups(), ids=lambda names: f"{names[0]}-{names[-1]}")
def test_replay(names: tuple[str, ...]) -> None:
    assert_same(calling(names), arguments(), traces=1)


@pytest.mark.parametrize("name", sorted(EAGER))
def test_what_changes_the_layout_stays_eager(name: str) -> None:
    with pytest.warns(tg.EagerWarning, match="f runs eagerly"):
        compiled = assert_same(calling((name,)), arguments())
    assert compiled.cache_info().traces == 0


def rows_of_a_base(x: Any, y: Any) -> Any:
    base = x * 1
    base[0] = y[1]
    base[:, 1] *= 2
    base[base > 1] = 0.5
    return base * x


def parts_written(x: Any, y: Any) -> Any:
    base = x * 2
    view = base.t()[1:]
    view.mul_(y[:, 1:].t())
    base.diagonal().add_(y[0])
    return base.sum() + view.exp().sum()


def parts_read(x: Any, y: Any) -> Any:
    first, *rest = (x * y).split(1)
    a, b, c = (x + y).unbind(1)
    return first.sum() * rest[0] + a * b + c + (x * y).unfold(0, 2, 1).sum(0).diagonal()[:2].sum()


def written_out(x: Any, y: Any) -> Any:
    room = tg.zeros(3, 3, dtype=tg.float64)
    tg.add(x.detach(), y.detach(), out=room)
    return room * x


def overwritten_and_used(x: Any, y: Any) -> Any:
    lost = x * 1
    lost.zero_()  # x gets a gradient of zeros
    return lost + y


def overwritten_and_returned(x: Any, y: Any) -> Any:
    lost = x * y
    lost[...] = 2.0
    return lost


def overwritten_in_part(x: Any, y: Any) -> Any:
    lost = x * 1
    lost.masked_fill_(tg.ones(3, 3) > 0, 1.0)
    return lost * y


def view_made_under_no_grad(x: Any, y: Any) -> Any:
    base = x * y
    with tg.no_grad():
        view = base[0]
    return base * view.detach() + (view * 2).sum()


@pytest.mark.parametrize(
    "function",
    [rows_of_a_base, parts_written, parts_read, written_out, overwritten_and_used,
     overwritten_and_returned, overwritten_in_part, view_made_under_no_grad],
)  # fmt: skip
def test_views_and_writes_are_eager_mode_s(function: Call) -> None:
    x, y = arguments()[:2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tg.EagerWarning)  # staying eager is right too
        assert_same(function, (x, y))
