"""What is asked across devices: gradients, out=, numbers of the host, defaults, names of types."""

from __future__ import annotations

from typing import Any

import numpy as np

import tracegrad as tg


def test_composites_take_numbers_of_the_host(device: str) -> None:
    rates = []
    for lr in (0.1, tg.tensor(0.1)):
        w = tg.ones(3, device=device, requires_grad=True)
        optimizer = tg.optim.Adam([w], lr=lr)
        for _ in range(4):
            optimizer.zero_grad()
            (w * w).sum().backward()
            optimizer.step()
        rates.append(w.tolist())
    np.testing.assert_allclose(rates[0], rates[1], rtol=1e-6)


def test_composites_with_constants_differentiate_in_any_layout(device: str) -> None:
    def run(d: str) -> Any:
        w = tg.linspace(-1, 2, 20, device=d).reshape(4, 5).requires_grad_()
        x = (w.t() * 1.0).t()
        x.index_fill_(1, tg.tensor([2, 0], device=d), 3.0)
        (x * x).sum().backward()
        assert w.grad is not None
        return w.grad.tolist()

    for _ in range(3):
        assert run(device) == run("cpu")
