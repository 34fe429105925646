"""The launches of a unit as a table of numbers, which `launch.c` runs through, or Python.

`Bases` numbers the buffers whose addresses a call fills in; `table` writes the numbers, `table_text`
prints them for people. Start reading at `table`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tracegrad.codegen.cuda.plan import CudaUnit, Launch, Place, Product
from tracegrad.ir.errors import GraphError
from tracegrad.runtime.cuda.cublas import TYPES

MOST_ARGUMENTS = 1024  # of a kernel; as in launch.c
NUMBER = -1  # the base of an argument that is a number
_SIGN = 1 << 63


@dataclass(frozen=True)
class Bases:
    """Which base address each buffer of a unit has: inputs, outputs, the arena, the status.

    Example:
        >>> Bases(2, 1).of(Place("arena", 512))
        (3, 512)
    """

    inputs: int
    outputs: int

    @property
    def arena(self) -> int:
        """The base of the temporaries."""
        return self.inputs + self.outputs

    @property
    def status(self) -> int:
        """The base of the status."""
        return self.arena + 1

    @property
    def count(self) -> int:
        """How many there are."""
        return self.arena + 2

    def of(self, place: Place) -> tuple[int, int]:
        """The base of a place, and the bytes from there."""
        k = place.position
        if place.kind == "input" and 0 <= k < self.inputs:
            return k, 0
        if place.kind == "output" and 0 <= k < self.outputs:
            return self.inputs + k, 0
        if place.kind == "arena":
            return self.arena, k
        if place.kind == "status":
            return self.status, 0
        raise GraphError(
            f"a launch names {place}; there are {self.inputs} inputs, {self.outputs} outputs"
        )


def arguments(launch: Launch, bases: Bases) -> list[tuple[int, int]]:
    """What a kernel is given: pairs of a base and bytes from there, or of `NUMBER` and a number."""
    numbers = [(NUMBER, n) for n in launch.numbers]
    return numbers + [bases.of(place) for place in launch.arguments]


def table(unit: CudaUnit, bases: Bases, handle: Callable[[str, int], int]) -> list[int]:
    """The numbers that `launch.c` runs through; it says what they mean.

    Args:
        handle: gives the CUfunction of a kernel that is launched with so many bytes of shared memory.
    """
    result = [len(unit.launches)]
    for launch in unit.launches:
        if launch.product is not None:
            result += product_row(launch.product, launch.arguments, bases)
            continue
        given = arguments(launch, bases)
        if len(given) > MOST_ARGUMENTS:
            raise GraphError(f"{launch.kernel} has {len(given)} arguments, of {MOST_ARGUMENTS}")
        result += [0, handle(launch.kernel, launch.shared), *launch.grid, *launch.block]
        result += [launch.shared, len(given)]
        for pair in given:
            result += pair
    return [n - 2 * _SIGN if n >= _SIGN else n for n in result]


def product_row(product: Product, places: Sequence[Place], bases: Bases) -> list[int]:
    """A product as cuBLAS takes it: it reads columns, so it is told `c' = b' a'`, rows as columns."""
    a, b, c = (
        (base, start + offset * itemsize(product.dtype))
        for (base, start), offset in zip(map(bases.of, places), product.offsets)
    )
    transposed_a, transposed_b = product.transposed
    (ld_a, ld_b, ld_c), (apart_a, apart_b, apart_c) = product.leading, product.apart
    shape = [product.n, product.m, product.k, ld_b, ld_a, ld_c, apart_b, apart_a, apart_c]
    head = [1, TYPES[product.dtype], int(transposed_b), int(transposed_a)]
    return [*head, *shape, product.batch, *b, *a, *c]


def itemsize(dtype: str) -> int:
    """Bytes of an element that cuBLAS can multiply.

    Example:
        >>> itemsize("bfloat16")
        2
    """
    return {"float32": 4, "float64": 8}.get(dtype, 2)


def table_text(unit: CudaUnit, bases: Bases) -> str:
    """The launches, one a line, for people."""
    names = [f"in_{k}" for k in range(bases.inputs)]
    names += [*(f"out_{k}" for k in range(bases.outputs)), "arena", "status"]

    def shown(pair: tuple[int, int]) -> str:
        base, value = pair
        if base == NUMBER:
            return str(value)
        return f"{names[base]} + {value}" if value else names[base]

    lines = []
    for launch in unit.launches:
        given = ", ".join(map(shown, arguments(launch, bases)))
        if launch.product is not None:
            p = launch.product
            lines.append(f"product[{p.batch} x {p.m} x {p.n} x {p.k} {p.dtype}]({given})")
        else:
            shared = f", {launch.shared} bytes" if launch.shared else ""
            lines.append(f"{launch.kernel}<{launch.grid}, {launch.block}{shared}>({given})")
    return "\n".join(lines)
