"""Places in the arena: buffers alive at one time never overlap, and sharing saves memory."""

from __future__ import annotations

from typing import Any

from drawing import BARE, graph, plan, temporaries
from hypothesis import HealthCheck, given, settings
from random_graphs import graphs

from tracegrad.codegen.arena import ALIGN
from tracegrad.codegen.plan import Slot
from tracegrad.codegen.unit import UnitPlan, plan_unit
from tracegrad.ir import ops


def alive(made: UnitPlan, slot: Slot) -> set[int]:
    """The kernels between the first and the last that take a buffer."""
    users = [k for k, kernel in enumerate(made.kernels) if slot.name in kernel.arguments]
    return set(range(min(users), max(users) + 1)) if users else set()


def check(made: UnitPlan) -> None:
    """No two arena buffers that are alive together overlap; all lie inside, aligned."""
    slots = [s for s in made.slots if s.kind == "arena"]
    for k, a in enumerate(slots):
        assert a.position % ALIGN == 0
        assert a.position + a.nbytes <= made.arena_bytes
        for b in slots[:k]:
            apart = a.position + a.nbytes <= b.position or b.position + b.nbytes <= a.position
            assert apart or not (alive(made, a) & alive(made, b)), (a, b)
    assert made.arena_bytes <= sum(-(-s.nbytes // ALIGN) * ALIGN + ALIGN for s in slots)
    assert made.temporaries == sum(s.nbytes for s in slots)


@settings(
    max_examples=200, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
)
@given(graphs(nodes=25))
def test_no_two_live_buffers_overlap(drawn: Any) -> None:
    g, _ = drawn
    made = tuple(n.out for n in g.nodes)
    outputs = tuple(dict.fromkeys(v for v in g.outputs if v in made))[-2:]
    if outputs:
        check(plan_unit(g.replace(outputs=outputs), BARE, {}))


def chain(x: Any, w: Any) -> Any:
    for _ in range(6):
        x = ops.tanh(ops.dot_general(x, w, contract=((1,), (0,)), batch=((), ())))
    return x


def test_a_chain_of_products_needs_two_buffers() -> None:
    made = plan(chain, (64, 64), (64, 64))
    check(made)
    assert len(temporaries(made)) == 11
    assert made.arena_bytes == 2 * 64 * 64 * 4
    assert made.temporaries == 11 * 64 * 64 * 4


def test_scratch_of_a_convolution_lies_apart_from_its_operands() -> None:
    def f(x: Any, w: Any) -> Any:
        for _ in range(3):
            x = ops.conv(ops.exp(x), w, stride=(1, 1), padding=((1, 1), (1, 1)),
                                dilation=(1, 1), groups=1)  # fmt: skip
        return x

    made = plan_unit(graph(f, (2, 16, 24, 24), (16, 16, 3, 3)), BARE, {})
    check(made)
    used = {a for k in made.kernels for a in k.arguments}
    scratch = [s for s in made.slots if s.name.startswith("scratch")]
    assert all(s.name in used for s in scratch)
    assert ALIGN == 64
