"""Rows of the profiler for public functions, and backward nodes beside what they differentiate."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import tracegrad as tg
import tracegrad.nn.functional as F
from tracegrad.autograd.profiler import profile
from tracegrad.tracer.state import state

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


ONE_ROW = {
    "zero_": lambda x: x.zero_(), "fill_": lambda x: x.fill_(2), "copy_": lambda x: x.copy_(OTHER),
    "uniform_": lambda x: x.uniform_(), "normal_": lambda x: x.normal_(),
    "bernoulli_": lambda x: x.bernoulli_(0.5), "random_": lambda x: x.random_(3),
    "exponential_": lambda x: x.exponential_(), "geometric_": lambda x: x.geometric_(0.5),
    "t_": lambda x: x.t_(), "unsqueeze_": lambda x: x.unsqueeze_(0), "tril_": lambda x: x.tril_(),
    "cumsum": lambda x: x.cumsum(0), "cumprod": lambda x: x.cumprod(0), "tril": lambda x: x.tril(),
    "triu": lambda x: x.triu(), "addmv": lambda x: tg.addmv(OTHER[0], x, OTHER[0]),
    "diagonal": lambda x: x.diagonal(), "index_add": lambda x: x.index_add(0, PLACES, OTHER),
    "allclose": lambda x: tg.allclose(x, x), "equal": lambda x: tg.equal(x, x),
}  # fmt: skip
OTHER, PLACES = tg.ones(4, 4, dtype=tg.float64), tg.arange(4)


@pytest.mark.parametrize("name", ONE_ROW)
def test_in_place_and_composed_functions_have_no_rows_but_their_own(name: str) -> None:
    """PyTorch 2.13 lists one event outside all others for each of these calls, too."""
    x = tg.rand(4, 4, dtype=tg.float64, generator=tg.Generator().manual_seed(0))
    with profile(profile_memory=True) as prof:
        kept = ONE_ROW[name](x)
    top = [e for e in prof.function_events if e.cpu_parent is None]
    assert [e.name for e in top if e.name not in ("aten::select", "[memory]")] == [f"aten::{name}"]
    own = isinstance(kept, tg.Tensor) and not name.endswith("_") and name != "diagonal"
    assert sum(e.cpu_memory_usage for e in top) == (kept.numel() * 8 if own else 0)


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
    def forward(ctx: Any, x: Any, n: int) -> Any:
        ctx.save_for_backward(x)
        return x**n

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        (x,) = ctx.saved_tensors
        return g * x * x * 3, None


FACTORIES = {
    "zeros": lambda x: tg.zeros(3, 4), "ones": lambda x: tg.ones(3, 4, dtype=tg.float64),
    "empty": lambda x: tg.empty(2), "full": lambda x: tg.full((2,), 3.0),
    "arange": lambda x: tg.arange(5), "linspace": lambda x: tg.linspace(0, 1, 5),
    "eye": lambda x: tg.eye(3), "zeros_like": tg.zeros_like, "ones_like": tg.ones_like,
    "empty_like": tg.empty_like, "full_like": lambda x: tg.full_like(x, 2.0),
    "scalar_tensor": lambda x: tg.scalar_tensor(3.0), "new_zeros": lambda x: x.new_zeros(2),
    "new_ones": lambda x: x.new_ones(2), "new_empty": lambda x: x.new_empty(2),
    "new_full": lambda x: x.new_full((2,), 1.0), "nonzero": lambda x: tg.nonzero(x),
    "randn": lambda x: tg.randn(2, 2), "rand": lambda x: tg.rand(3),
    "randint": lambda x: tg.randint(0, 4, (3,)), "randperm": lambda x: tg.randperm(4),
    "empty_strided": lambda x: tg.empty_strided((2, 2), (2, 1)),
}  # fmt: skip


TAKE_ONE = ("new_zeros", "new_ones", "new_empty", "new_full", "nonzero")


@pytest.mark.parametrize("name", FACTORIES)
def test_a_factory_is_one_row_with_its_memory(name: str) -> None:
    x = tg.ones(2, 3)
    with profile(profile_memory=True, record_shapes=True) as prof:
        made = FACTORIES[name](x)
    (row,) = (e for e in prof.function_events if e.cpu_parent is None)
    assert row.name == f"aten::{name}"
    assert row.cpu_memory_usage == made.numel() * made.element_size()
    shapes = {"randperm": [[]]}  # of the arguments of a composed function, as written in Python
    wanted = [[2, 3]] if "like" in name or name in TAKE_ONE else shapes.get(name, [])
    assert row.input_shapes == wanted
    assert row.end_ns > row.start_ns >= 0


DATA = {
    "tensor": lambda x: tg.tensor([1.0, 2.0]), "as_tensor": lambda x: tg.as_tensor([1.0, 2.0]),
    "asarray": lambda x: tg.asarray([1.0, 2.0]), "new_tensor": lambda x: x.new_tensor([1.0, 2.0]),
    "FloatTensor": lambda x: tg.FloatTensor([1.0, 2.0]), "Tensor": lambda x: tg.Tensor([1.0, 2.0]),
}  # fmt: skip


@pytest.mark.parametrize("name", DATA)
def test_data_become_a_tensor_in_a_row_of_pytorchs_name(name: str) -> None:
    x = tg.ones(2, 3)
    with profile(profile_memory=True) as prof:
        made = DATA[name](x)
    assert [(e.name, e.cpu_memory_usage) for e in prof.function_events] == [("aten::lift_fresh", 8)]
    assert made.tolist() == [1.0, 2.0]


def test_tensors_that_share_memory_have_no_bytes() -> None:
    x = tg.ones(2, 3)
    with profile(profile_memory=True) as prof:
        kept = [tg.from_numpy(x.numpy()), tg.as_tensor(x), tg.arange(6, out=tg.empty(0).long())]
        tg.zeros(2, 3, out=x)
        tg.Tensor(x)
    rows = {r.key: r.self_cpu_memory_usage for r in prof.key_averages()}
    assert rows["aten::zeros"] == 0 and rows["aten::arange"] == 48 and len(kept) == 3
    assert "aten::lift_fresh" not in rows


def test_a_factory_inside_a_public_function_belongs_to_it() -> None:
    x = tg.ones(4, 3)
    labels = tg.tensor([0, 1, 2, 0])
    with profile() as prof:
        F.cross_entropy(x, labels)
    (top,) = (e for e in prof.function_events if e.cpu_parent is None)
    arange = next(e for e in prof.function_events if e.name == "aten::arange")
    assert top.name == "aten::cross_entropy_loss" and arange.cpu_parent is top
    assert prof.self_cpu_time_total == pytest.approx(top.cpu_time_total)


def test_factories_beside_an_open_profile_of_another_thread_have_no_row() -> None:
    with profile() as prof:
        other = threading.Thread(target=lambda: tg.zeros(3))
        other.start()
        other.join()
    assert list(prof.function_events) == []


def test_a_function_is_an_operation_with_its_backward() -> None:
    """As in PyTorch: shapes, and the sequence number that both have; no label of the user."""
    w = tg.ones(3, requires_grad=True)
    with profile(record_shapes=True, with_stack=True, profile_memory=True) as prof:
        y = Cube.apply(w, 3)
        y.sum().backward()
        with tg.no_grad():
            Cube.apply(w, 3)
    forward, unrecorded = (e for e in prof.function_events if e.name == "Cube")
    (backward,) = (e for e in prof.function_events if e.name == "CubeBackward")
    assert (forward.scope, forward.activity_type) == (0, "cpu_op")
    assert not forward.is_user_annotation and forward.input_shapes == [[3], []]
    assert forward.cpu_memory_usage == 12 and [c.name for c in forward.cpu_children] == [
        "aten::pow"
    ]
    assert forward.sequence_nr == backward.sequence_nr >= 0 and unrecorded.sequence_nr == -1
    assert backward.stack == forward.stack != [] and backward.fwd_thread == forward.thread


def test_a_factory_that_began_before_the_profile_begins_with_it() -> None:
    x = tg.zeros(3)
    with profile() as prof:
        state.profiler.made("zeros", (x,), 1, ())  # as where another thread's profile was open
    (zeros,) = prof.function_events
    assert zeros.start_ns == 0 <= zeros.end_ns


def test_a_function_that_fails_ends_its_event() -> None:
    class Failing(tg.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            raise KeyError

    x = tg.ones(3)
    with profile() as prof:
        with pytest.raises(KeyError):
            Failing.apply(x)
        x + 1
    failing, add = prof.function_events
    assert failing.name == "Failing" and failing.end_ns <= add.start_ns and add.cpu_parent is None
