"""func.functional_call: weights given for one call, tied weights, restoring, refusals.

Mirrors torch.func.functional_call.
"""

from __future__ import annotations

import re

import pytest

import tracegrad as torch
from tracegrad import func


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(2, 2, bias=False)
        self.second = torch.nn.Linear(2, 2, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def test_functional_call_uses_the_given_weights_and_restores_the_own() -> None:
    layer = torch.nn.Linear(2, 1)
    own = layer.weight
    w, b = torch.tensor([[1.0, 2.0]]), torch.tensor([3.0])
    x = torch.tensor([10.0, 100.0])
    assert func.functional_call(layer, {"weight": w, "bias": b}, x).item() == 213.0
    assert func.functional_call(layer, [{"weight": w}, {"bias": b}], (x,)).item() == 213.0
    found = func.grad(lambda p: func.functional_call(layer, p, x).sum())({"weight": w, "bias": b})
    assert found["weight"].tolist() == [[10.0, 100.0]] and found["bias"].tolist() == [1.0]
    with pytest.raises(RuntimeError):
        func.functional_call(layer, {"weight": w}, (torch.ones(3),))
    assert layer.weight is own and own.grad is None


def test_functional_call_reaches_a_compiled_module() -> None:
    layer = torch.nn.Linear(2, 1, bias=False)
    compiled = torch.compile(lambda x: layer(x))
    x = torch.tensor([1.0, 1.0])
    before = compiled(x).item()
    wrapper = torch.nn.Sequential(layer)
    given = {"0.weight": torch.tensor([[4.0, 5.0]])}
    assert func.functional_call(wrapper, given, (x,)).item() == 9.0
    assert compiled(x).item() == before


def test_functional_call_fills_in_tied_names() -> None:
    module, w = Tied(), torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    x = torch.tensor([1.0, 1.0])
    assert func.functional_call(module, {"first.weight": w}, (x,)).tolist() == [4.0, 9.0]
    with pytest.raises(ValueError, match="functional_call got multiple values for keys"):
        func.functional_call(module, {"first.weight": w, "second.weight": w * 2}, (x,))


def test_functional_call_refusals() -> None:
    layer, x = torch.nn.Linear(3, 1), torch.ones(3)
    call = func.functional_call
    for error, text, given in (
        (ValueError, "['bias'] appeared in multiple dictionaries; behavior of functional call is "
         "ambiguous", [{"bias": x}, {"bias": x}]),
        (ValueError, "Expected parameter_and_buffer_dicts to be a dict, or a list/tuple of dicts, "
         "but got <class 'int'>", 3),
        (ValueError, "Expected all elements of parameter_and_buffer_dicts to be dictionaries", [3]),
    ):  # fmt: skip
        with pytest.raises(error, match=f"^{re.escape(text)}$"):
            call(layer, given, (x,))
    with pytest.raises(RuntimeError, match="Unexpected key.*'nope'.\n\tMissing.*'bias', 'weight'"):
        call(layer, {"nope": x}, (x,), strict=True)
    with pytest.raises(TypeError, match="is not an instance of Tensor"):
        call(layer, {"bias": 1.0}, (x,))
    with pytest.raises(TypeError, match="expected a module, got int"):
        call(3, {}, x)
