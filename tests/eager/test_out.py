"""`out=`: results written into a tensor of the caller, under PyTorch's rules."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest

import tracegrad as tg
from tracegrad.tracer import out as out_module

x = tg.tensor([[0.5, 0.25], [0.125, 0.75]])
i = tg.tensor([[0, 1], [1, 0]])
v = tg.tensor([0.5, 0.25])

CALLS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(
        "abs absolute acos arccos arcsin arcsinh arctan arctanh asin asinh atan atanh ceil cos cosh "
        "deg2rad digamma erf erfc erfinv exp exp2 expm1 fix floor frac lgamma log log10 log1p log2 "
        "logical_not logit nan_to_num neg negative rad2deg reciprocal round rsqrt sgn sigmoid sign "
        "sin sinh sqrt square tan tanh trunc all any argmax argmin max min mean nonzero norm std var "
        "tril triu sum prod amax amin bernoulli".split(),
        lambda f, **o: f(x, **o),
    ),
    **dict.fromkeys(("acosh", "arccosh"), lambda f, **o: f(x + 1, **o)),
    **dict.fromkeys(
        "add arctan2 atan2 copysign div divide eq floor_divide fmod ge greater greater_equal gt "
        "hypot le less less_equal logical_and logical_or logical_xor lt maximum minimum mul "
        "multiply ne not_equal pow remainder sub subtract true_divide xlogy matmul mm "
        "tensordot".split(),
        lambda f, **o: f(x, x.t(), **o),
    ),
    **dict.fromkeys(
        "bitwise_and bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor".split(),
        lambda f, **o: f(i, i.t(), **o),
    ),
    "bitwise_not": lambda f, **o: f(i, **o),
    **dict.fromkeys(("addcdiv", "addcmul"), lambda f, **o: f(x, x, x.t(), value=2, **o)),
    **dict.fromkeys(("clamp", "clip"), lambda f, **o: f(x, 0.2, 0.6, **o)),
    **dict.fromkeys(("clamp_min", "clamp_max"), lambda f, **o: f(x, 0.3, **o)),
    **dict.fromkeys(
        ("softmax", "log_softmax", "logsumexp", "cumsum", "cumprod"), lambda f, **o: f(x, 1, **o)
    ),
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), lambda f, **o: f([x, x], 1, **o)),
    "where": lambda f, **o: f(x > 0.3, x, 2 * x, **o),
    "lerp": lambda f, **o: f(x, x.t(), 0.5, **o),
    "addmm": lambda f, **o: f(x, x, x, **o), "addmv": lambda f, **o: f(v, x, v, **o),
    "addr": lambda f, **o: f(x, v, v, **o),
    "addbmm": lambda f, **o: f(x, x[None], x[None], **o),
    "baddbmm": lambda f, **o: f(x[None], x[None], x[None], **o),
    "bmm": lambda f, **o: f(x[None], x[None], **o), "mv": lambda f, **o: f(x, v, **o),
    "dot": lambda f, **o: f(v, v, **o), "outer": lambda f, **o: f(v, v, **o),
    "gather": lambda f, **o: f(x, 0, i, **o),
    "index_select": lambda f, **o: f(x, 0, i[0], **o),
    "index_add": lambda f, **o: f(x, 0, i[0], x, **o),
    "index_copy": lambda f, **o: f(x, 0, i[0], x.t(), **o),
    "scatter": lambda f, **o: f(x, 0, i, x, **o), "scatter_add": lambda f, **o: f(x, 0, i, x, **o),
    "masked_select": lambda f, **o: f(x, x > 0.3, **o),
    **dict.fromkeys(
        "i0 isneginf isposinf signbit sinc nansum nanmean diag".split(), lambda f, **o: f(x, **o)
    ),
    **dict.fromkeys(
        "fmax fmin logaddexp logaddexp2 heaviside nextafter inner kron float_power ldexp".split(),
        lambda f, **o: f(x, x.t(), **o),
    ),
    **dict.fromkeys(("gcd", "lcm"), lambda f, **o: f(i, i.t(), **o)),
    **dict.fromkeys(("vdot", "ger"), lambda f, **o: f(v, v, **o)),
    **dict.fromkeys(
        "hstack vstack row_stack dstack column_stack".split(), lambda f, **o: f([x, x], **o)
    ),
    "polygamma": lambda f, **o: f(1, x, **o), "mvlgamma": lambda f, **o: f(x + 1, 2, **o),
    "take": lambda f, **o: f(x, i, **o), "take_along_dim": lambda f, **o: f(x, i, 0, **o),
    "scatter_reduce": lambda f, **o: f(x, 0, i, x, "amax", **o),
    "index_reduce": lambda f, **o: f(x, 0, i[0], x, "prod", **o),
    "narrow_copy": lambda f, **o: f(x, 1, 0, 1, **o), "renorm": lambda f, **o: f(x, 2, 0, 0.5, **o),
    "cross": lambda f, **o: f(tg.eye(3), tg.ones(3, 3), dim=1, **o),
    "chain_matmul": lambda f, **o: f(x, x, x, **o), "matrix_power": lambda f, **o: f(x, 3, **o),
    **dict.fromkeys(("zeros", "ones", "rand", "randn"), lambda f, **o: f(2, 3, **o)),
    "empty": lambda f, **o: f(0, **o), "eye": lambda f, **o: f(3, **o),
    "full": lambda f, **o: f((2,), 7.0, **o), "arange": lambda f, **o: f(1, 4, **o),
    "linspace": lambda f, **o: f(0, 1, 5, **o), "logspace": lambda f, **o: f(0, 1, 5, **o),
    "randint": lambda f, **o: f(0, 9, (4,), **o), "randperm": lambda f, **o: f(6, **o),
}  # fmt: skip


def test_every_function_that_takes_out_is_called() -> None:
    factories = set(CALLS) - set(out_module.NAMES)  # read `out` themselves
    assert set(CALLS) >= set(out_module.NAMES)
    assert factories == set("arange empty eye full linspace logspace ones rand randint randn "
                            "randperm zeros".split())  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_out_receives_the_result_and_its_shape(name: str) -> None:
    function, call = getattr(tg, name), CALLS[name]
    tg.manual_seed(3)
    want = call(function)
    room = tg.empty(0, dtype=want.dtype)
    tg.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = call(function, out=room)
    assert got is room and room.shape == want.shape and room.dtype is want.dtype
    assert room.tolist() == want.tolist() and room._version == 1


def test_out_of_another_shape_is_resized_with_a_warning() -> None:
    room = tg.empty(2)
    text = (
        "An output with one or more elements was resized since it had shape [2], which does not "
        "match the required output shape [2, 2]. This behavior is deprecated, and in a future "
        "PyTorch release outputs will not be resized unless they have zero elements. You can "
        "explicitly reuse an out tensor t by resizing it, inplace, to zero elements with "
        "t.resize_(0)."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(text)}$"):
        tg.sin(x, out=room)
    assert room.tolist() == x.sin().tolist()


def test_out_is_written_through_views_and_cast() -> None:
    room = tg.zeros(2, 2, dtype=tg.float64)
    tg.add(x, 1, out=room.t())
    assert room.tolist() == (x + 1).t().tolist() and room._version == 1
    tg.eq(x, x, out=room)
    assert room.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert tg.sum(x, 0, out=tg.empty(2, dtype=tg.int64)).tolist() == [0, 0]  # computed in int64


def test_out_that_is_an_operand() -> None:
    y = x.clone()
    tg.mm(y, y, out=y)
    assert y.tolist() == (x @ x).tolist()
    assert tg.mul(y, 2, out=y) is y


def test_pair_of_outs() -> None:
    values, indices = tg.empty(0), tg.empty(0, dtype=tg.int64)
    pair = tg.max(x, 0, out=(values, indices))
    assert pair.values is values and pair.indices is indices
    assert values.tolist() == [0.5, 0.75] and indices.tolist() == [0, 1]


_GRADIENT = (
    "sin(): functions with out=... arguments don't support automatic differentiation, but one of "
    "the arguments requires grad."
)


@pytest.mark.parametrize(
    ("act", "error", "text"),
    [
        (lambda o: tg.sin(x, out=3), TypeError, "sin(): argument 'out' must be Tensor, not int"),
        (lambda o: tg.sin(x.clone().requires_grad_(), out=o), RuntimeError, _GRADIENT),
        (lambda o: tg.sin(x, out=o.requires_grad_()), RuntimeError, _GRADIENT),
        (lambda o: tg.sin(x, out=o.long()), RuntimeError,
         "result type Float can't be cast to the desired output type Long"),
        (lambda o: tg.mm(x, x, out=o.double()), RuntimeError,
         "Expected out tensor to have dtype float, but got double instead"),
        (lambda o: tg.argmax(x, out=o), RuntimeError,
         "Expected out tensor to have dtype long int, but got float instead"),
        (lambda o: tg.cat([x, x], out=o.long()), TypeError,
         "torch.cat(): input types can't be cast to the desired output type Long"),
        (lambda o: tg.clamp(x, 0, 1, out=o.long()), RuntimeError,
         "Found dtype Long but expected Float"),
        (lambda o: tg.zeros(2, out=o, dtype=tg.int64), RuntimeError,
         "dtype Long does not match dtype of out parameter (Float)"),
        (lambda o: tg.max(x, 0, out=(o,)), TypeError, "expected tuple of 2 elements but got 1"),
        (lambda o: tg.add(o.view(-1)[1:], 1, out=o.view(-1)[:-1]), RuntimeError,
         "unsupported operation: some elements of the input tensor and the written-to tensor refer"),
        (lambda o: tg.add(o, 1, out=o.t()), RuntimeError,
         "unsupported operation: some elements of the input tensor and the written-to tensor refer"),
        (lambda o: tg.sin(x, out=o[:1].expand(2, 2)), RuntimeError,
         "unsupported operation: more than one element of the written-to tensor refers to a single"),
        (lambda o: tg.add(o, 1, out=o[0]), RuntimeError,
         "add(): out is a view of shape [2], and cannot take the shape [2, 2] of the result"),
        (lambda o: o.add(1, out=o), TypeError, "got an unexpected keyword argument 'out'"),
    ],
)  # fmt: skip
def test_refused_call_changes_nothing(act: Any, error: type[Exception], text: str) -> None:
    room = tg.arange(4.0).reshape(2, 2).clone()
    values = room.tolist()
    with pytest.raises(error, match=re.escape(text)):
        act(room)
    assert room.tolist() == values and room._version == 0 and room.grad_fn is None
    assert tuple(room.shape) == (2, 2)


def test_under_no_grad_history_stays_as_it_was() -> None:
    y = tg.zeros(2, requires_grad=True) * 1
    with tg.no_grad():
        tg.add(v, 1, out=y)
    assert y.grad_fn.name() == "MulBackward0" and y._version == 1
    z = tg.exp(tg.ones(2, requires_grad=True))
    tg.add(v, 1, out=z.detach())
    with pytest.raises(RuntimeError, match=r"It was modified by add\(out=\) at test_out.py:"):
        z.sum().backward()
