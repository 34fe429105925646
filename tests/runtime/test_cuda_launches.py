"""The table of launches: which numbers C is given, and what people are shown."""

from __future__ import annotations

import pytest
from cuda_units import product_unit, scale_unit, take_unit, unit

from tracegrad.codegen.cuda.plan import Launch, Place, Product
from tracegrad.ir.errors import GraphError
from tracegrad.runtime.cuda import executable
from tracegrad.runtime.cuda.launches import Bases, arguments, table, table_text


def handle(kernel: str, shared: int) -> int:
    return 1000 + shared


def test_the_table_of_kernels() -> None:
    first = [0, 1000, 4, 1, 1, 256, 1, 1, 0, 3, -1, 1000, 0, 0, 2, 512]
    second = [0, 1000, 4, 1, 1, 256, 1, 1, 0, 3, -1, 1000, 2, 512, 1, 0]
    assert table(scale_unit(1000), Bases(1, 1), handle) == [2, *first, *second]


def test_the_status_comes_behind_the_arena() -> None:
    bases = Bases(2, 1)
    assert arguments(take_unit(3, 9).launches[0], bases)[-1] == (bases.status, 0) == (4, 0)


def test_handles_past_63_bits_keep_their_bits() -> None:
    made = unit("", [Launch("k", (Place("output"),))])
    assert table(made, Bases(0, 1), lambda *_: (1 << 63) + 5)[2] == 5 - (1 << 63)


def test_a_product_is_told_as_that_of_the_transposes() -> None:
    product = Product("bfloat16", 3, 4, 5, 2, (False, True), (5, 6, 4), (15, 24, 12), (1, 2, 3))
    row = [1, 14, 1, 0, 4, 3, 5, 6, 5, 4, 24, 15, 12, 2, 1, 4, 0, 2, 2, 6]
    assert table(product_unit(product), Bases(2, 1), handle) == [1, *row]


def test_the_launches_for_people() -> None:
    places = (Place("input", 1), Place("arena", 256), Place("output"))
    launch = Launch("k_0", places, (7,), (2, 1, 1), (32, 4, 1), 128)
    product = Product("float32", 3, 4, 5, 2, (False, False), (5, 4, 4), (15, 20, 12))
    made = unit("", [launch, Launch("", places, product=product), *take_unit(1, 2).launches])
    assert table_text(made, Bases(2, 1)).splitlines() == [
        "k_0<(2, 1, 1), (32, 4, 1), 128 bytes>(7, in_1, arena + 256, out_0)",
        "product[2 x 3 x 4 x 5 float32](in_1, arena + 256, out_0)",
        "take<(1, 1, 1), (256, 1, 1)>(1, 2, in_0, in_1, out_0, status)",
    ]


@pytest.mark.parametrize("place", [Place("input", 2), Place("output", 1), Place("elsewhere")])
def test_a_place_that_is_not_there_is_refused(place: Place) -> None:
    with pytest.raises(GraphError, match="a launch names Place"):
        Bases(2, 1).of(place)


def test_more_arguments_than_c_has_room_for_are_refused() -> None:
    with pytest.raises(GraphError, match="k has 1025 arguments"):
        table(unit("", [Launch("k", (Place("output"),) * 1025)]), Bases(0, 1), handle)


def test_the_text_of_a_call() -> None:
    text = executable.call_text("forward", scale_unit(10), Bases(1, 1), [40], 0)
    assert (
        text
        == '''\
def forward(in_0):
    """Device addresses of 1 inputs -> 1 pieces of memory on cuda:0; 2 launches."""
    out_0 = allocate(40)
    arena = allocate(552)
    try:
        slot = slots.pop()
    except IndexError:
        slot = new_slot()
    args = slot.view
    args[4] = in_0
    args[5] = out_0.address
    args[6] = arena.address
    code = tg_run(slot.pointers)
    if code:
        fail(slot, code)
    slots.append(slot)
    record.launches += 1
    return (out_0,)
'''
    )
