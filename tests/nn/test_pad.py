"""`nn.functional.pad`: NumPy's `pad` as the reference, gradients by slopes, PyTorch's refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tracegrad as tg
from tracegrad.nn import functional as F

RNG = np.random.default_rng(8)
NUMPY_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge",
               "circular": "wrap"}  # fmt: skip
CASES = [((2, 3), (1, 2)), ((2, 4, 5), (2, 0, 1, 3)), ((1, 2, 4, 5, 3), (1, 1, 0, 2, 3, 1)),
         ((3, 1, 6), (0, 5))]  # fmt: skip


@pytest.mark.parametrize("mode", NUMPY_MODES)
@pytest.mark.parametrize(("shape", "pad"), CASES, ids=str)
def test_values_are_those_of_numpy(shape: Any, pad: Any, mode: str) -> None:
    x = RNG.standard_normal(shape)
    rows = [*zip(pad[::2], pad[1::2], strict=True)][::-1]
    want = np.pad(x, [(0, 0)] * (len(shape) - len(rows)) + rows, mode=NUMPY_MODES[mode])
    np.testing.assert_array_equal(F.pad(tg.tensor(x), pad, mode).numpy(), want)


@pytest.mark.parametrize("mode", NUMPY_MODES)
def test_gradients(mode: str) -> None:
    x = tg.tensor(RNG.standard_normal((2, 3, 4)), requires_grad=True)
    assert tg.autograd.gradcheck(lambda x: F.pad(x, (1, -1, 2, 1), mode) ** 2, (x,))


@pytest.mark.parametrize("mode", NUMPY_MODES)
def test_compiled(mode: str) -> None:
    def f(x: Any) -> Any:
        return F.pad(x * 2, (2, 1), mode) * 3

    compiled = tg.compile(f)
    for _ in range(2):
        given = tg.tensor(RNG.standard_normal((2, 4)), requires_grad=True)
        plain = given.detach().clone().requires_grad_()
        got, want = compiled(given), f(plain)
        assert got.tolist() == want.tolist()
        (got * got).sum().backward()
        (want * want).sum().backward()
        np.testing.assert_allclose(given.grad.numpy(), plain.grad.numpy(), rtol=1e-14)
    assert compiled.cache_info().hits == 1


def test_constants_and_cropping() -> None:
    x = tg.tensor([[0, 1, 2], [3, 4, 5]])
    assert F.pad(x, (1, 0), value=1.7).tolist() == [[1, 0, 1, 2], [1, 3, 4, 5]]
    assert F.pad(x, (-1, 2)).tolist() == [[1, 2, 0, 0], [4, 5, 0, 0]]
    assert F.pad(x, (-1, -1, 1, -1), value=9).tolist() == [[9], [1]]
    assert F.pad(x, (-3, 0)).shape == (2, 0)
    assert F.pad(tg.zeros(2, 0), (1, 1)).tolist() == [[0, 0], [0, 0]]
    assert F.pad(tg.tensor(3.0), ()).item() == 3.0
    assert F.pad(x, (-1, 2), "replicate").tolist() == [[1, 2, 2, 2], [4, 5, 5, 5]]
    assert F.pad(x, (-1, 1), "reflect").tolist() == [[1, 2, 1], [4, 5, 4]]
    assert F.pad(x, (-1, 3), "circular").tolist() == [[1, 2, 1, 2, 1], [4, 5, 4, 5, 4]]
    copy = F.pad(x, (0, 0))
    copy[0, 0] = 7
    assert x[0, 0] == 0


X = tg.ones(2, 3)
REFUSED = [
    ((X, (1,)), RuntimeError, r"Padding length must be divisible by 2"),
    ((X, (1,) * 6), RuntimeError, r"but got padding length 6 and input of dimension 2"),
    ((X, (-2, -2)), RuntimeError, r"narrow\(\): length must be non-negative\."),
    ((X, (-4, 3)), RuntimeError, r"narrow\(\): length must be non-negative\."),
    ((X, 1), TypeError, r"argument 'pad' \(position 2\) must be tuple of ints, not int"),
    ((X, (1.5, 1)), TypeError, r"but found element of type float at pos 0"),
    (([1.0], (1, 1)), TypeError, r"argument 'input' \(position 1\) must be Tensor, not list"),
    ((X, (1, 1), "reflect", 1.0), RuntimeError, r'mode "reflect" doesn\'t take in value argument'),
    ((X, (1, 1), "mirror"), NotImplementedError, r"Unrecognised padding mode mirror; the modes"),
    ((X, (1, 1, 1, 1), "reflect"), NotImplementedError,
     r"Padding size 4 is not supported for 2D input tensor\."),
    ((X, (3, 0), "reflect"), RuntimeError,
     r"less than the corresponding input dimension, but got: padding \(3, 0\) at dimension 1 of "
     r"input \[2, 3\]"),
    ((X, (4, 0), "circular"), RuntimeError, r"wrapping around more than once\."),
    ((X, (-4, 3), "circular"), RuntimeError, r"wrapping around more than once\."),
    ((X, (-2, -1), "replicate"), RuntimeError, r"too small\. Calculated output size: 0"),
    ((tg.ones(2, 0), (1, 1), "replicate"), RuntimeError, r"dimension 1 of the input \[2, 0\]"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "error", "match"), REFUSED)
def test_refusals(arguments: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match) as raised:
        F.pad(*arguments)
    assert isinstance(raised.value, tg.errors.TracegradError)
