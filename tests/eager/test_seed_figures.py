"""The figures of PyTorch's autograd tutorial that do not depend on random numbers."""

from __future__ import annotations

import math
import warnings

import pytest

import tracegrad as torch

# sin at 25 points of [0, 2 pi], as printed to five digits; the float32 noise near multiples of pi
# shows whether linspace and sin round as they should.
QUARTER = ["2.5882e-01", "5.0000e-01", "7.0711e-01", "8.6603e-01", "9.6593e-01"]
DOUBLED = ["5.1764e-01", "1.0000e+00", "1.4142e+00", "1.7321e+00", "1.9319e+00"]


def wave(zeros: list[str], rising: list[str], top: str) -> list[str]:
    """The 25 printed values of a sine from its zeros, its rising quarter and its top."""
    half = [*rising, top, *reversed(rising)]
    return [zeros[0], *half, zeros[1], *("-" + x for x in half), zeros[2]]


def printed(x: torch.Tensor) -> list[str]:
    text = repr(x)
    body = text[text.index("[") + 1 : text.rindex("]")]
    return [word.strip() for word in body.split(",")]


@pytest.fixture()
def a() -> torch.Tensor:
    return torch.linspace(0.0, 2.0 * math.pi, steps=25, requires_grad=True)


def test_sine_prints_the_float32_noise_at_multiples_of_pi(a: torch.Tensor) -> None:
    b = torch.sin(a)
    assert printed(b) == wave(["0.0000e+00", "-8.7423e-08", "1.7485e-07"], QUARTER, "1.0000e+00")
    c = 2 * b
    assert printed(c) == wave(["0.0000e+00", "-1.7485e-07", "3.4969e-07"], DOUBLED, "2.0000e+00")


def test_shifted_wave_cancels_to_the_printed_rest(a: torch.Tensor) -> None:
    d = 2 * torch.sin(a) + 1
    values = printed(d)
    assert values[14] == "-3.5763e-07"
    assert values[22] == "4.7684e-07"
    assert values[13] == values[23] == "4.8236e-01"


def test_sum_and_gradient(a: torch.Tensor) -> None:
    out = (2 * torch.sin(a) + 1).sum()
    assert repr(out) == "tensor(25., grad_fn=<SumBackward0>)"
    out.backward()
    values = printed(a.grad)
    assert values[:6] == [
        "2.0000e+00", "1.9319e+00", "1.7321e+00", "1.4142e+00", "1.0000e+00", "5.1764e-01",
    ]  # fmt: skip
    assert (values[6], values[18]) == ("-8.7423e-08", "2.3850e-08")
    assert "grad_fn" not in repr(a.grad) and "requires_grad" not in repr(a.grad)


def test_suffix_goes_to_a_new_line_past_eighty_columns(a: torch.Tensor) -> None:
    lines = repr(a).splitlines()
    assert len(lines) == 4 and lines[-1] == "       requires_grad=True)"
    assert lines[0] == (
        "tensor([0.0000, 0.2618, 0.5236, 0.7854, 1.0472, 1.3090, 1.5708, 1.8326, 2.0944,"
    )


def test_next_functions_lead_to_the_leaf(a: torch.Tensor) -> None:
    d = 2 * torch.sin(a) + 1
    add = d.grad_fn
    assert repr(add).startswith("<AddBackward0 object at 0x")
    (mul, number), scalar = add.next_functions
    assert (mul.name(), number, scalar) == ("MulBackward0", 0, (None, 0))
    (sin, _), scalar = mul.next_functions
    assert (sin.name(), scalar) == ("SinBackward0", (None, 0))
    ((leaf, _),) = sin.next_functions
    assert leaf.name() == "torch::autograd::AccumulateGrad" and leaf.variable is a
    assert leaf.next_functions == ()
    assert a.grad_fn is None


def test_grad_of_a_non_leaf_is_none_and_warns(a: torch.Tensor) -> None:
    b = torch.sin(a)
    with pytest.warns(UserWarning, match="not a leaf Tensor is being accessed"):
        assert b.grad is None
    b.retain_grad()
    b.sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert b.grad.tolist() == [1.0] * 25


def test_requires_grad_switched_off_on_a_leaf() -> None:
    a = torch.ones(2, 3, requires_grad=True)
    assert "grad_fn=<MulBackward0>" in repr(2 * a)
    a.requires_grad = False
    assert repr(2 * a) == "tensor([[2., 2., 2.],\n        [2., 2., 2.]])"


def test_doubling_loop_decided_by_the_data() -> None:
    x = torch.tensor([-0.5, 0.25, 1.0], requires_grad=True)
    y = x * 2
    while y.data.norm() < 1000:
        y = y * 2
    assert y.grad_fn.name() == "MulBackward0"
    y.backward(torch.tensor([0.1, 1.0, 0.0001], dtype=torch.float))
    assert repr(x.grad) == "tensor([1.0240e+02, 1.0240e+03, 1.0240e-01])"


def test_slice_of_a_row_names_the_slice() -> None:
    w = torch.zeros(3, 20, requires_grad=True)
    assert repr(w[0][0:2]) == "tensor([0., 0.], grad_fn=<SliceBackward0>)"
    assert w[0].grad_fn.name() == "SelectBackward0"
    assert (w - 1).pow(2).grad_fn.name() == "PowBackward0"
    assert w.t().grad_fn.name() == "TBackward0"
    assert torch.addmm(w[0][:2], w, w.t()[:, :2]).grad_fn.name() == "AddmmBackward0"
    assert torch.relu(w).grad_fn.name() == "ReluBackward0"


def test_device_branch_of_the_tutorial() -> None:
    assert torch.device("cpu") == torch.ones(1).device
    assert torch.cuda.is_available() in (False, True)


def test_detached_tensors_convert_to_arrays(a: torch.Tensor) -> None:
    import numpy as np

    assert np.asarray(a.detach()).dtype == np.float32
    with pytest.raises(RuntimeError, match=r"Use tensor.detach\(\).numpy\(\) instead."):
        np.asarray(a)
