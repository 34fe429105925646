"""`nn.utils`: figures of PyTorch 2.13 in float64, texts, and clipping inside compiled steps."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

import tracegrad as tg
from tracegrad import nn
from tracegrad.nn import utils

A, B = [0.5, -2.0, 1.5], [[3.0, -0.25], [0.0, 1.0]]
INF, NAN = math.inf, math.nan
NORMS = {
    2.0: 4.0697051490249265, 1.0: 8.25, 3.0: 3.4060913008575, 0.5: 43.27161040573578, 0.0: 2.0,
    -1.0: 0.0, INF: 3.0, -INF: 0.0,
}  # fmt: skip


def pair(dtype=tg.float64):
    """Two parameters with gradients A and B."""
    a = nn.Parameter(tg.zeros(3, dtype=dtype))
    b = nn.Parameter(tg.zeros(2, 2, dtype=dtype))
    a.grad, b.grad = tg.tensor(A, dtype=dtype), tg.tensor(B, dtype=dtype)
    return a, b


@pytest.mark.parametrize(("p", "expected"), NORMS.items())
def test_total_norm_of_every_order(p, expected):
    a, b = pair()
    total = utils.get_total_norm([a.grad, b.grad], p)
    assert total.shape == () and total.dtype is tg.float64
    np.testing.assert_allclose(total.item(), expected, rtol=1e-15)
    assert utils.get_total_norm(iter([a.grad, b.grad]), str(p)).item() == total.item()


def test_clip_grad_norm_scales_in_place():
    a, b = pair()
    grad, version = a.grad, a.grad._version
    assert utils.clip_grad_norm_(iter([a, b, nn.Parameter(tg.ones(1))]), 1.5) == NORMS[2.0]
    assert a.grad is grad and grad._version > version
    factor = 1.5 / (NORMS[2.0] + 1e-6)
    np.testing.assert_allclose(grad.numpy(), np.array(A) * factor, rtol=1e-15)
    np.testing.assert_allclose(b.grad.numpy(), np.array(B) * factor, rtol=1e-15)
    assert not grad.requires_grad


def test_small_gradients_are_left_as_they_are():
    a, b = pair()
    assert utils.clip_grad_norm_([a, b], 5.0, foreach=True) == NORMS[2.0]
    assert a.grad.tolist() == A and b.grad.tolist() == B


def test_clip_grads_with_norm_takes_the_norm_as_given():
    a, b = pair()
    utils.clip_grads_with_norm_([a, b], 1.0, tg.tensor(4.0, dtype=tg.float64))
    np.testing.assert_allclose(b.grad.numpy(), np.array(B) / (4 + 1e-6), rtol=1e-15)


def test_clip_grad_value_clamps_in_place():
    a, b = pair()
    grad = a.grad
    assert utils.clip_grad_value_([a, b], 0.75) is None
    assert a.grad is grad and grad.tolist() == [0.5, -0.75, 0.75]
    assert b.grad.tolist() == [[0.75, -0.25], [0.0, 0.75]]


def test_one_tensor_none_and_no_gradients():
    a, _ = pair()
    assert utils.clip_grad_norm_(a, 1.0, INF) == 2.0
    assert str(utils.get_total_norm([])) == "tensor(0.)"
    assert utils.clip_grad_norm_([nn.Parameter(tg.ones(1))], 1.0) == 0.0
    with pytest.warns(UserWarning) as caught:
        utils.clip_grad_norm_((p for p in ()), 1.0)
    assert [str(w.message) for w in caught] == [
        "`parameters` is an empty generator, no gradient clipping will occur."
    ]
    assert caught[0].filename == __file__


def test_dtypes_are_promoted_and_gradients_keep_theirs():
    a, _ = pair(tg.float32)
    _, b = pair(tg.float64)
    total = utils.clip_grad_norm_([a, b], 1.0)
    assert total.dtype is tg.float64 and a.grad.dtype is tg.float32
    np.testing.assert_allclose(a.grad.numpy(), np.array(A) / NORMS[2.0], rtol=2e-6)


def test_squares_of_half_precision_do_not_overflow():
    a = nn.Parameter(tg.zeros(2).half())
    a.grad = tg.tensor([300.0, 400.0]).half()
    total = utils.clip_grad_norm_(a, 1.0)
    assert (total.dtype, total.item()) == (tg.float16, 500.0)
    np.testing.assert_allclose(a.grad.numpy(), [0.6, 0.8], rtol=2e-3)  # 2 ulp of float16


def test_norms_that_are_not_finite():
    a, _ = pair()
    a.grad = tg.tensor([NAN, 1.0, INF], dtype=tg.float64)
    with pytest.raises(tg.errors.GradientError) as raised:
        utils.clip_grad_norm_(a, 1.0, error_if_nonfinite=True)
    assert str(raised.value) == (
        "The total norm of order 2.0 for gradients from `parameters` is non-finite, so it cannot "
        "be clipped. To disable this error and scale the gradients by the non-finite norm anyway, "
        "set `error_if_nonfinite=False`"
    )
    np.testing.assert_array_equal(a.grad.numpy(), [NAN, 1.0, INF])
    assert math.isnan(utils.clip_grad_norm_(a, 1.0))
    np.testing.assert_array_equal(a.grad.numpy(), [NAN] * 3)


@pytest.mark.parametrize(("call", "kind", "text"), [
    (lambda: utils.get_total_norm([tg.zeros(0)], INF), RuntimeError,
     "_foreach_norm cannot compute the infinity norm on an empty tensor because the operation "
     "does not have an identity"),
    (lambda: utils.get_total_norm([tg.ones(2)], "x"), ValueError,
     "could not convert string to float: 'x'"),
    (lambda: utils.get_total_norm([tg.arange(2)]), RuntimeError,
     "linalg.vector_norm: Expected a floating point or complex tensor as input. Got Long"),
    (lambda: utils.clip_grad_norm_([1], 1.0), AttributeError,
     "'int' object has no attribute 'grad'"),
    (lambda: utils.parameters_to_vector([]), ValueError,
     "torch.cat(): expected a non-empty list of Tensors"),
    (lambda: utils.vector_to_parameters([1.0], [tg.ones(1)]), TypeError,
     "expected torch.Tensor, but got: list"),
    (lambda: utils.vector_to_parameters(tg.ones(1), [tg.ones(2)]), RuntimeError,
     "shape '[2]' is invalid for input of size 1"),
])  # fmt: skip
def test_refused(call, kind, text):
    with pytest.raises(kind) as raised:
        call()
    assert str(raised.value) == text


def test_parameters_as_one_vector_and_back():
    layer = nn.Linear(2, 3).double()
    vector = utils.parameters_to_vector(layer.parameters())
    assert vector.tolist() == [*layer.weight.flatten().tolist(), *layer.bias.tolist()]
    (vector * tg.arange(9)).sum().backward()
    assert layer.bias.grad.tolist() == [6.0, 7.0, 8.0]
    given = tg.arange(10.0)  # one too many, and of another dtype
    bias = layer.bias
    utils.vector_to_parameters(given, layer.parameters())
    assert layer.bias is bias and bias.tolist() == [6.0, 7.0, 8.0] and bias.dtype is tg.float32
    given[6] = -1.0
    assert bias.tolist() == [-1.0, 7.0, 8.0]  # nothing was copied


def test_a_vector_too_short_changes_nothing():
    layer = nn.Linear(2, 1)
    before = layer.weight.tolist()
    with pytest.raises(tg.errors.ShapeError):
        utils.vector_to_parameters(tg.ones(2), layer.parameters())
    assert layer.weight.tolist() == before


@pytest.mark.parametrize("p", [2.0, INF, 1.0])
def test_clipping_inside_a_compiled_step_is_replayed(p):
    def step(layer, x):
        for q in layer.parameters():
            q.grad = None
        layer(x).pow(2).sum().backward()
        return utils.clip_grad_norm_(layer.parameters(), 0.5, p)

    tg.manual_seed(0)
    layers = [nn.Linear(3, 2) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    compiled = tg.compile(lambda x: step(layers[1], x))
    with warnings.catch_warnings():
        warnings.simplefilter("error", tg.EagerWarning)
        for k in range(4):
            x = tg.randn(5, 3) * (0.01 if k == 2 else 1.0)  # once nothing is clipped
            want, got = step(layers[0], x), compiled(x)
            np.testing.assert_allclose(got.item(), want.item(), rtol=1e-5)
            for a, b in zip(layers[0].parameters(), layers[1].parameters(), strict=True):
                np.testing.assert_allclose(b.grad.numpy(), a.grad.numpy(), rtol=1e-5, atol=1e-7)
    assert compiled.cache_info().hits == 3, compiled.explain()
