"""Every public function of tensors, compiled: the replay gives eager's values and gradients.

`ROWS` says with which arguments each function of the tables `FUNCTIONS` is called; many go into
one compiled function, so that the C compiler runs few times. Start reading at `test_replay`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
from beside import assert_same, gradients

import tracegrad as tg
from tracegrad.tracer import (
    gathering,
    joining,
    linalg,
    pointwise,
    reductions,
    regions,
    shapes,
    updates,
)
from tracegrad.tracer.pytree import flatten

TABLES = (pointwise, reductions, shapes, joining, linalg, gathering, regions, updates)
PUBLIC = {name: f for module in TABLES for name, f in module.FUNCTIONS.items()}
A_TIME = 12  # functions in one compiled function

Call = Callable[..., Any]
"""`call(f, x, y, p, i, k, s)`: the function, then the arguments of `arguments`."""


def plain(f: Any, x: Any, *_: Any) -> Any:
    return f(x)


def pair(f: Any, x: Any, y: Any, *_: Any) -> Any:
    return f(x, y)


def positive(f: Any, x: Any, y: Any, p: Any, *_: Any) -> Any:
    return f(p)


def above_one(f: Any, x: Any, y: Any, p: Any, *_: Any) -> Any:
    return f(p + 1)


def inside(f: Any, x: Any, y: Any, p: Any, *_: Any) -> Any:
    return f(p * 0.5 - 0.4)


def by_positive(f: Any, x: Any, y: Any, p: Any, *_: Any) -> Any:
    return f(x, p)


def integers(f: Any, x: Any, y: Any, p: Any, i: Any, *_: Any) -> Any:
    return f(i, i.t() + 1)


def each(call: Call, *names: str) -> dict[str, Call]:
    return dict.fromkeys(names, call)


ROWS: dict[str, Call] = {
    **each(plain, *"neg negative abs absolute sign sgn exp exp2 expm1 sin cos tan atan arctan sinh "
           "cosh tanh asinh arcsinh erf erfc floor ceil trunc fix isnan isinf isfinite sigmoid "
           "round positive frac relu square ravel t flatten contiguous clone count_nonzero sum mean "
           "prod amax amin any all argmax argmin max min var std norm nan_to_num unbind squeeze "
           "diagonal logical_not real adjoint detach tril triu deg2rad rad2deg".split()),
    **each(positive, *"log log2 log10 log1p sqrt rsqrt reciprocal lgamma digamma".split()),
    **each(above_one, "acosh", "arccosh"),
    **each(inside, *"asin arcsin acos arccos atanh arctanh erfinv".split()),
    **each(pair, *"add sub subtract mul multiply maximum minimum atan2 arctan2 hypot copysign rsub "
           "eq ne not_equal lt less le less_equal gt greater ge greater_equal logical_and "
           "logical_or logical_xor isclose view_as reshape_as expand_as matmul mm".split()),
    **each(by_positive, *"div divide true_divide fmod remainder floor_divide".split()),
    **each(integers, *"bitwise_and bitwise_or bitwise_xor bitwise_left_shift "
           "bitwise_right_shift".split()),
    "bitwise_not": lambda f, x, y, p, i, k, s: f(i),
    "pow": lambda f, x, y, p, i, k, s: (f(p, y), f(x, 3)),
    "clamp": lambda f, x, y, p, i, k, s: (f(x, -0.5, 0.5), f(x, max=y)),
    "clip": lambda f, x, y, p, i, k, s: f(x, 0.1),
    "clamp_min": lambda f, x, y, p, i, k, s: f(x, 0.2),
    "clamp_max": lambda f, x, y, p, i, k, s: f(x, 0.2),
    "where": lambda f, x, y, p, i, k, s: f(x > y, x, 2 * y),
    "lerp": lambda f, x, y, p, i, k, s: f(x, y, p),
    "addcmul": lambda f, x, y, p, i, k, s: f(x, y, p, value=0.5),
    "addcdiv": lambda f, x, y, p, i, k, s: f(x, y, p, value=0.5),
    "reshape": lambda f, x, y, p, i, k, s: f(x, 3, -1),
    "view": lambda f, x, y, p, i, k, s: f(x, 9),
    "unflatten": lambda f, x, y, p, i, k, s: f(x, 0, (1, 3)),
    "permute": lambda f, x, y, p, i, k, s: f(x, 1, 0),
    "transpose": lambda f, x, y, p, i, k, s: f(x, 0, 1),
    "swapaxes": lambda f, x, y, p, i, k, s: f(x, 0, 1),
    "swapdims": lambda f, x, y, p, i, k, s: f(x, 0, 1),
    "movedim": lambda f, x, y, p, i, k, s: f(x, 0, 1),
    "moveaxis": lambda f, x, y, p, i, k, s: f(x, (0, 1), (1, 0)),
    "expand": lambda f, x, y, p, i, k, s: f(x, 2, 3, 3),
    "broadcast_to": lambda f, x, y, p, i, k, s: f(x, (2, 3, 3)),
    "unsqueeze": lambda f, x, y, p, i, k, s: f(x, 1),
    "narrow": lambda f, x, y, p, i, k, s: f(x, 1, 1, 2),
    "select": lambda f, x, y, p, i, k, s: f(x, 1, -1),
    "unfold": lambda f, x, y, p, i, k, s: (f(x, 1, 2, 1), f(x, 0, 3, 1)),
    "tensor_split": lambda f, x, y, p, i, k, s: (f(x, 2), f(x, (1, 2), 1)),
    "split_with_sizes": lambda f, x, y, p, i, k, s: f(x, [1, 2], 1),
    "cumsum": lambda f, x, y, p, i, k, s: (f(x, 0), f(i, 1)),
    "cumprod": lambda f, x, y, p, i, k, s: f(x, 1),
    "index_add": lambda f, x, y, p, i, k, s: f(x, 1, k, y[:, :2], alpha=2),
    "index_copy": lambda f, x, y, p, i, k, s: f(x, 0, k, y[:2]),
    "index_fill": lambda f, x, y, p, i, k, s: (f(x, 0, k, 2.0), f(x, 1, k, y[0, 0])),
    "addmv": lambda f, x, y, p, i, k, s: f(x[0], y, p[0], beta=0.5),
    "addr": lambda f, x, y, p, i, k, s: f(x, y[0], p[0], alpha=2),
    "addbmm": lambda f, x, y, p, i, k, s: f(x, y[None], p[None]),
    "xlogy": lambda f, x, y, p, i, k, s: f(x, p),
    "logit": lambda f, x, y, p, i, k, s: (f(p * 0.5), f(x, 0.1)),
    "split": lambda f, x, y, p, i, k, s: (f(x, 2), f(x, [1, 2], 1)),
    "chunk": lambda f, x, y, p, i, k, s: f(x, 2, 1),
    "cat": lambda f, x, y, p, i, k, s: f([x, y], 1),
    "concat": lambda f, x, y, p, i, k, s: f((x, y)),
    "concatenate": lambda f, x, y, p, i, k, s: f((x, y), -1),
    "stack": lambda f, x, y, p, i, k, s: f([x, y], 1),
    "flip": lambda f, x, y, p, i, k, s: f(x, 0, 1),
    "repeat": lambda f, x, y, p, i, k, s: f(x, 2, 1, 2),
    "tile": lambda f, x, y, p, i, k, s: f(x, 2),
    "roll": lambda f, x, y, p, i, k, s: (f(x, 2), f(x, (1, -1), (0, 1))),
    "mv": lambda f, x, y, p, i, k, s: f(x, y[0]),
    "dot": lambda f, x, y, p, i, k, s: f(x[0], y[1]),
    "bmm": lambda f, x, y, p, i, k, s: f(x[None], y[None]),
    "outer": lambda f, x, y, p, i, k, s: f(x[0], y[1]),
    "tensordot": lambda f, x, y, p, i, k, s: f(x, y, 1),
    "einsum": lambda f, x, y, p, i, k, s: f("ij,kj->ik", x, y),
    "addmm": lambda f, x, y, p, i, k, s: f(x, y, p, beta=0.5, alpha=2),
    "baddbmm": lambda f, x, y, p, i, k, s: f(x[None], y[None], p[None], beta=0.5),
    "softmax": lambda f, x, y, p, i, k, s: f(x, 1),
    "log_softmax": lambda f, x, y, p, i, k, s: f(x, 0),
    "logsumexp": lambda f, x, y, p, i, k, s: f(x, 1),
    "index_put": lambda f, x, y, p, i, k, s: (f(x, (k,), y[:2]), f(x, (k,), y[:2], True)),
    "index_select": lambda f, x, y, p, i, k, s: f(x, 1, k),
    "gather": lambda f, x, y, p, i, k, s: f(x, 1, i),
    "scatter": lambda f, x, y, p, i, k, s: (f(x, 0, s, y), f(x, 1, s, 2.0)),
    "scatter_add": lambda f, x, y, p, i, k, s: f(x, 0, i, y),
    "masked_fill": lambda f, x, y, p, i, k, s: f(x, y > 0, 3.0),
    **each(plain, *"i0 isneginf isposinf signbit sinc nansum nanmean std_mean var_mean diag diagflat "
           "diag_embed trace".split()),
    **each(pair, *"fmax fmin logaddexp logaddexp2 heaviside inner kron".split()),
    **each(integers, "gcd", "lcm"),
    "nextafter": lambda f, x, y, p, i, k, s: f(x, y),
    "float_power": lambda f, x, y, p, i, k, s: (f(p, y), f(x, 2), f(2, x)),
    "ldexp": lambda f, x, y, p, i, k, s: f(x, i),
    "polygamma": lambda f, x, y, p, i, k, s: (f(1, p), f(0, p + 1)),
    "mvlgamma": lambda f, x, y, p, i, k, s: f(p + 2, 3),
    "take": lambda f, x, y, p, i, k, s: f(x, i),
    "put": lambda f, x, y, p, i, k, s: (f(x, k, y[0, :2]), f(x, k, y[0, :2], True)),
    "scatter_reduce": lambda f, x, y, p, i, k, s: (
        *(f(x, 0, i, y, r) for r in ("sum", "prod", "mean", "amax", "amin")),
        f(x, 1, i, y, "mean", include_self=False), f(x, 1, i, y, "amin", include_self=False),
    ),
    "index_reduce": lambda f, x, y, p, i, k, s: (
        *(f(x, 0, k, y[:2], r) for r in ("prod", "mean", "amax", "amin")),
        f(x, 1, k, y[:, :2], "prod", include_self=False),
    ),
    "take_along_dim": lambda f, x, y, p, i, k, s: (f(x, i, 1), f(x, k)),
    "narrow_copy": lambda f, x, y, p, i, k, s: f(x, 1, 1, 2),
    "renorm": lambda f, x, y, p, i, k, s: (f(x, 2, 0, 1.5), f(p, 1, 1, 100)),
    "vdot": lambda f, x, y, p, i, k, s: f(x[0], y[1]),
    "ger": lambda f, x, y, p, i, k, s: f(x[0], y[1]),
    "cross": lambda f, x, y, p, i, k, s: f(x, y, dim=1),
    "chain_matmul": lambda f, x, y, p, i, k, s: f(x, y[:, :2], p[:2]),
    "matrix_power": lambda f, x, y, p, i, k, s: (f(x, 3), f(x, 0)),
    **each(lambda f, x, y, *_: (f([x, y]), f((x[0], y[0]))),
           *"hstack vstack row_stack dstack column_stack".split()),
}  # fmt: skip

BY_VALUES = {
    "nonzero": "the size of its result depends on values",
    "masked_select": "the size of its result depends on values",
    "masked_scatter": "how many elements it takes depends on values",
}


def arguments() -> tuple[Any, ...]:
    """x, y: normal; p: in [0.2, 1.4]; i: indices; k: two of them; s: distinct per column and row.

    float64, so that a compiled gradient that is wrong in a small term is seen.
    """
    x, y = (tg.randn(3, 3, dtype=tg.float64, requires_grad=True) for _ in range(2))
    p = (tg.rand(3, 3, dtype=tg.float64) * 1.2 + 0.2).requires_grad_()
    i = tg.tensor([[0, 2, 1], [2, 2, 0], [1, 0, 0]])
    return x, y, p, i, tg.tensor([2, 0]), tg.tensor([[0, 2, 1], [2, 1, 0], [1, 0, 2]])


def groups() -> list[tuple[str, ...]]:
    names = iter(ROWS)
    return list(iter(lambda: tuple(islice(names, A_TIME)), ()))


def test_every_public_function_has_a_row() -> None:
    assert not set(ROWS) & set(BY_VALUES)
    assert {*ROWS, *BY_VALUES} == set(PUBLIC)


def calling(names: tuple[str, ...]) -> Callable[..., Any]:
    chosen = [(PUBLIC[name], ROWS[name]) for name in names]

    def f(x: Any, y: Any, p: Any, *indices: Any) -> Any:
        inner = x * 1, y * 1, p * 1  # what returns views of its own inputs stays eager
        results: list[Any] = []
        for function, call in chosen:
            flatten(call(function, *inner, *indices), results)
        return [t.clone().contiguous() for t in results]  # no two share memory

    return f


@pytest.mark.parametrize("names", groups(), ids=lambda names: f"{names[0]}-{names[-1]}")
def test_replay(names: tuple[str, ...]) -> None:
    plain, given = calling(names), arguments()
    assert_same(plain, given, traces=1)
    found = [g for g in gradients(plain(*given), given) if g is not None]
    assert found or names[0] in ("gt", "eq")  # comparisons have none
    assert all(bool(g.isfinite().all()) for g in found)  # a NaN would hide the other functions


@pytest.mark.parametrize("name", BY_VALUES)
def test_what_depends_on_values_is_a_path_of_its_own(name: str) -> None:
    def f(x: Any, y: Any) -> Any:
        if name == "nonzero":
            return (x * 2)[PUBLIC[name](y > 0, as_tuple=True)]
        if name == "masked_scatter":
            return PUBLIC[name](x * 2, y > 0, x * 3)
        return PUBLIC[name](x * 2, y > 0)

    x, y = arguments()[:2]
    compiled = assert_same(f, (x, y), traces=1)
    for other in (-y, y.abs(), y):
        assert tg.equal(compiled(x, other), f(x, other))
    assert compiled.cache_info().traces == 3
