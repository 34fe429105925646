"""`memory_plan()`: every buffer of every pass, as the generated code has it."""

from __future__ import annotations

import pytest

import tracegrad as tg
import tracegrad.nn.functional as F
from tracegrad.ir.errors import CaptureError
from tracegrad.tracer.joint import PATIENCE


def network(x, w, v):
    h = (x @ w).relu()
    return F.cross_entropy(h @ v, tg.zeros(32, dtype=tg.int64))


def operands() -> list[tg.Tensor]:
    return [tg.randn(*s, requires_grad=True) for s in ((32, 64), (64, 128), (128, 10))]


def test_forward_and_backward_of_a_network() -> None:
    f = tg.compile(network, wait=True)
    given = operands()
    f(*given).backward()
    f(*given).backward()
    forward, backward = f.memory_plan()
    assert (forward.title, backward.title) == ("forward of network", "backward of network")
    kinds = {kind: [b for b in forward.buffers if b.kind == kind] for kind in ("input", "residual")}
    assert [b.user_name for b in kinds["input"][:3]] == ["x", "w", "v"]
    assert [b.nbytes for b in kinds["input"][:3]] == [32 * 64 * 4, 64 * 128 * 4, 128 * 10 * 4]
    residuals = f(*given).grad_fn.residuals
    kept = sum(array.nbytes for array, storage, _ in residuals if storage is None)
    assert forward.residual_bytes == kept == sum(b.nbytes for b in kinds["residual"])
    (h,) = (b for b in forward.buffers if b.user_name == "h")
    assert h.kind == "temporary" and "test_memory_plan.py:" in h.line
    assert [b.nbytes for b in backward.buffers if b.kind == "output"] == [t.nbytes for t in given]


def test_temporaries_that_live_at_the_same_time_do_not_overlap() -> None:
    f = tg.compile(network, wait=True)
    given = operands()
    for _ in range(PATIENCE + 3):
        f(*given).backward()
    plans = f.memory_plan()
    assert plans[-1].title == "joint pass of network"
    for plan in plans:
        arena = [b for b in plan.buffers if b.offset is not None]
        assert plan.side_by_side == sum(b.nbytes for b in arena)
        assert all(b.offset + b.nbytes <= plan.arena_bytes for b in arena)
        for k, a in enumerate(arena):
            for b in arena[:k]:
                together = a.first <= b.last and b.first <= a.last
                apart = a.offset + a.nbytes <= b.offset or b.offset + b.nbytes <= a.offset
                assert apart or not together
    assert plans[-1].arena_bytes < plans[-1].side_by_side
    text = str(plans)
    assert "bytes are kept for the backward" in text and "side by side" in text
    assert text.count("\n\n") == len(plans) - 1


def test_updates_in_place_are_shown() -> None:
    def step(w, g):
        w.sub_(0.1 * g)

    f = tg.compile(step, wait=True)
    f(tg.ones(8), tg.ones(8))
    (plan,) = f.memory_plan()
    assert [(b.name, b.kind) for b in plan.buffers] == [
        ("in_0", "input"), ("in_1", "input"), ("in_0", "in place"),
    ]  # fmt: skip


def test_what_was_captured_is_waited_for_and_what_was_not_refused() -> None:
    f = tg.compile(lambda x: x.exp().sum(), wait=False)
    with pytest.raises(CaptureError, match="has no trace to show; call it first"):
        f.memory_plan()
    f(tg.ones(3))
    assert len(f.memory_plan()) == 1
