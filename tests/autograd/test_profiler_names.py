"""Rows of the profiler for public functions, and backward nodes beside what they differentiate."""

from __future__ import annotations

from typing import Any

import pytest

import tracegrad as tg
import tracegrad.nn.functional as F
from tracegrad.autograd.profiler import profile

CALLS = {
    "softmax": lambda x: x.softmax(0), "mean": lambda x: x.mean(), "relu": lambda x: x.relu(),
    "clone": lambda x: x.clone(), "square": lambda x: x.square(), "t": lambda x: x.t(),
    "unsqueeze": lambda x: x.unsqueeze(0), "var": lambda x: x.var(), "std": lambda x: x.std(),
    "logsumexp": lambda x: x.logsumexp(0), "masked_fill": lambda x: x.masked_fill(x > 0.5, 1),
    "linalg_vector_norm": lambda x: x.norm(), "roll": lambda x: x.roll(1, 0),
    "stack": lambda x: tg.stack([x, x]), "einsum": lambda x: tg.einsum("ij,jk", x, x),
    "log_softmax": lambda x: F.log_softmax(x, 0), "linear": lambda x: F.linear(x, x),
    "mse_loss": lambda x: F.mse_loss(x, x + 1), "conv2d": lambda x: F.conv2d(x[None, None], PATCH),
    "cross_entropy_loss": lambda x: F.cross_entropy(x, tg.tensor([0, 1, 2, 0])),
    "matmul": lambda x: x @ x, "index": lambda x: x[tg.tensor([0, 1])],
    "max": lambda x: x.max(0), "min": lambda x: x.min(), "absolute": lambda x: x.absolute(),
    "arccos": lambda x: tg.arccos(x), "rand_like": lambda x: tg.rand_like(x),
    "sum": lambda x: x.sum(), "select": lambda x: x[1], "repeat": lambda x: x.repeat(2, 2),
}  # fmt: skip
PATCH = tg.ones(1, 1, 2, 2)


@pytest.mark.parametrize("name", CALLS)
def test_a_public_function_is_one_row_under_pytorchs_name(name: str) -> None:
    """PyTorch 2.13 lists each of these calls as one event outside all others."""
    x = tg.rand(4, 4, generator=tg.Generator().manual_seed(0))
    with profile() as prof:
        for _ in range(3):
            CALLS[name](x)
    top = [e.name for e in prof.function_events if e.cpu_parent is None]
    assert top.count(f"aten::{name}") == 3


def test_children_of_a_public_function_are_its_operations() -> None:
    x = tg.ones(2, 3)
    with profile(record_shapes=True) as prof:
        x.softmax(1)
    around, *inside = prof.function_events
    assert (around.name, around.input_shapes[0]) == ("aten::softmax", [2, 3])
    assert {e.cpu_parent for e in inside} == {around} and "aten::exp" in {e.name for e in inside}
    assert around.cpu_time_total >= sum(e.cpu_time_total for e in inside)


def test_backward_nodes_are_told_by_their_forward_operation() -> None:
    """PyTorch gives both the same sequence number, and the backward the forward's lines."""

    def loss(w):
        return (w * 2).exp().sum()

    w = tg.ones(3, requires_grad=True)
    with profile(with_stack=True) as prof:
        loss(w).backward()
    events = {e.name: e for e in prof.function_events if e.cpu_parent is None}
    for forward, backward in (("aten::mul", "MulBackward0"), ("aten::exp", "ExpBackward0")):
        assert events[forward].sequence_nr == events[backward].sequence_nr >= 0
        assert events[backward].fwd_thread == events[forward].thread
        assert (events[forward].scope, events[backward].scope) == (0, 1)
        assert events[backward].stack == events[forward].stack
        assert events[backward].stack[0].endswith(": loss")
        assert all(e.stack == events[backward].stack for e in events[backward].cpu_children)
    assert events["torch::autograd::AccumulateGrad"].scope == 1
    assert events["torch::autograd::AccumulateGrad"].stack == []


def test_steps_of_optimizers_are_labelled() -> None:
    """PyTorch labels them so, the closure inside included."""
    w = tg.ones(3, requires_grad=True)
    optimizer = tg.optim.SGD([w], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (w * 2).sum()
        loss.backward()
        return loss

    with profile() as prof:
        optimizer.step(closure)
        optimizer.step()
    top = [e for e in prof.function_events if e.cpu_parent is None]
    assert [e.name for e in top] == ["Optimizer.step#SGD.step"] * 2
    assert all(e.is_user_annotation for e in top)
    inside = [e.name for e in top[0].cpu_children]
    assert inside[0] == "Optimizer.zero_grad#SGD.zero_grad" and "MulBackward0" in inside
    assert [e.name for e in top[1].cpu_children] == ["aten::add_"]


class Cube(tg.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        (x,) = ctx.saved_tensors
        return g * x * x * 3


def test_factories_and_functions_have_rows() -> None:
    with tg.profiler.profile(profile_memory=True) as p:
        x = tg.zeros(3, 4)
        tg.ones_like(x)
        tg.full((2,), 3.0)
        tg.arange(5)
        tg.tensor([1.0, 2.0])
        tg.from_numpy(x.numpy())
        Cube.apply(x.requires_grad_()).sum().backward()
    rows = {row.key: row for row in p.key_averages()}
    sizes = {"zeros": 48, "ones_like": 48, "full": 8, "arange": 40, "lift_fresh": 8}
    for name, nbytes in sizes.items():
        assert rows[f"aten::{name}"].count == 1
        assert rows[f"aten::{name}"].self_cpu_memory_usage == nbytes, name
    assert "aten::from_numpy" not in rows  # it makes no memory
    forward, backward = rows["Cube"], rows["CubeBackward"]
    assert forward.count == backward.count == 1
    assert forward.cpu_time_total >= rows["aten::pow"].cpu_time_total > 0
    assert forward.self_cpu_time_total < forward.cpu_time_total
