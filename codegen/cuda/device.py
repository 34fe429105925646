"""What all kernels of loops share on the device: indices, lanes, and the bodies of their loops.

A *span* is the loops that one counter runs over; its innermost loop may be cut into *lanes*,
neighbouring elements that one thread takes together and moves with accesses of up to 128 bits.
Start reading at `Span`, then `DeviceBody`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from tracegrad.codegen.affine import Affine
from tracegrad.codegen.body import Body, Item, where
from tracegrad.codegen.cuda.plan import CudaKernel, Dim3
from tracegrad.codegen.expressions import ATOM, UNARY, Expr
from tracegrad.codegen.lower import Buffer, Lowering, Term
from tracegrad.codegen.nest import Axis
from tracegrad.codegen.plan import KernelPlan, Line, Loop
from tracegrad.ir.sizes import Size

Items = Sequence[Any]
"""Lines, loops and blocks; typed loosely, because a loop of C holds no blocks by its type."""
THREADS = 256  # of a block, where nothing asks for another number
LEVELS = 4  # outside, in a row, in the loop along it, in its lanes; some without a loop
LANE = "u"  # the loop variable of lanes
REACH = 2**30  # indices up to here are int: a stride of the grid beyond it fits too
_ATOM = re.compile(r"[\w.]+")
_WORD = re.compile(r"\b[A-Za-z_]\w*\b")


def index_type(
    affines: Iterable[Affine], extents: Mapping[str, int], symbols: Mapping[str, int]
) -> str:
    """The type that holds all indices of a kernel; sizes that vary take 64 bits.

    Args:
        affines: the indices.
        extents: of the loops; `symbols`: of computed indices, where known.
    """
    known = {**symbols, **extents}
    if any(isinstance(n, Size) for n in known.values()) or prod(extents.values()) >= REACH:
        return "int64_t"
    for a in affines:
        if isinstance(a.const, Size) or any(isinstance(c, Size) for _, c in a.terms):
            return "int64_t"
        if abs(a.const) + sum(abs(c) * known.get(s, REACH) for s, c in a.terms) >= REACH:
            return "int64_t"
    return "int"


@dataclass(frozen=True)
class Span:
    """The loops that one counter runs over, innermost last.

    Attributes:
        axes: their variables and sizes.
        counter: its name; where there is one loop, that loop's variable.
        lanes: elements of the innermost loop that a thread takes together.
    """

    axes: tuple[Axis, ...]
    counter: str
    lanes: int = 1

    @staticmethod
    def over(axes: Sequence[Axis], counter: str, lanes: int = 1) -> Span:
        """The span over some loops."""
        return Span(tuple(axes), axes[0].variable if len(axes) == 1 else counter, lanes)

    @property
    def size(self) -> int:
        """How many elements."""
        return prod(a.extent for a in self.axes)

    @property
    def parts(self) -> int:
        """How many times a thread takes its lanes, all threads together."""
        return -(-int(self.size) // self.lanes)

    @property
    def has_rest(self) -> bool:
        """Whether the last lanes may be beyond the end."""
        if self.lanes == 1 or len(self.axes) > 1:
            return False
        return isinstance(self.size, Size) or self.size % self.lanes != 0

    @property
    def stop(self) -> int:
        """Where the counter stops."""
        return self.size if len(self.axes) == 1 else self.size // self.lanes

    def counted(self, parts: str) -> str:
        """A number of parts, in C, as the counter counts them."""
        if len(self.axes) != 1 or self.lanes == 1:
            return parts
        if parts.isdigit():
            return str(self.lanes * int(parts))
        return f"{self.lanes} * {parts if _ATOM.fullmatch(parts) else f'({parts})'}"

    def definitions(self) -> list[tuple[str, str]]:
        """The variables of the loops by the counter: (name, expression)."""
        if len(self.axes) <= 1:
            return []
        found: list[tuple[str, str]] = []
        inner = 1
        for place, axis in enumerate(reversed(self.axes)):
            extent = axis.extent // self.lanes if place == 0 else axis.extent
            text = self.counter if inner == 1 else f"{self.counter} / {inner}"
            if place < len(self.axes) - 1:
                text += f" % {extent}"
            if place == 0 and self.lanes > 1:
                text = f"{self.lanes} * ({text})"
            found.append((axis.variable, text))
            inner = inner * extent
        return found[::-1]


def used(definitions: Iterable[tuple[str, str]], kind: str, items: Items) -> list[Line]:
    """Lines for the definitions that the items use."""
    return [
        Line(f"const {kind} {name} = {text};") for name, text in definitions
        if name in words(items)
    ]  # fmt: skip


def words(items: Items) -> set[str]:
    """All names in some statements."""
    found: set[str] = set()
    for item in items:
        if isinstance(item, Line):
            found.update(_WORD.findall(item.text))
        elif isinstance(item, Loop):
            found.update(_WORD.findall(f"{item.start} {item.stop} {item.step}"))
            found |= words(item.body)
        else:
            found.update(_WORD.findall(item.head))
            found |= words(item.body)
    return found


class Held:
    """What several loops over the same elements read from memory: each thread keeps its share.

    Args:
        worth: the addresses that more than one loop reads; None to find out which these are.
    """

    def __init__(self, worth: set[Any] | None = None) -> None:
        self.worth = worth
        self.seen: dict[Any, set[int]] = {}
        self.names: dict[Any, str] = {}
        self.loop: tuple[Any, int, str] | None = None  # its elements, its number, its place

    def place(self, buffer: str, first: Affine) -> tuple[str, bool] | None:
        """The array for an address in the loop at hand, and whether it is still to be read."""
        if self.loop is None:
            return None
        elements, number, slot = self.loop
        key = (buffer, first, elements)
        self.seen.setdefault(key, set()).add(number)
        if self.worth is None or key not in self.worth:
            return None
        new = key not in self.names
        name = self.names.setdefault(key, f"{buffer}_row" if new else "")
        return f"{name}[{slot}]", new


class DeviceBody(Body):
    """The body of one nest of a kernel, whose innermost loop may have lanes.

    Args:
        lanes: how many elements of `along` a thread takes; 1: `along` is a loop like others.
        along: the loop variable that has lanes, at level `depths[along]`; lanes are one deeper.
        index: the type of indices.
        count: how many of the lanes there are, as C, where they may be fewer.
        slots: for arrays that a thread has to itself, the place of the element at hand.
        held: what loops over the same elements read for each other.
        aligned: whether inputs begin at the alignment of vectors, as all other memory does.
    """

    def __init__(
        self, lowering: Lowering, affine: Callable[[Affine], Affine], depths: Mapping[str, int],
        extents: Mapping[str, int], *, lanes: int = 1, along: str = "", index: str = "int",
        count: str = "", row: int = 0, named: int = 0,
        slots: Mapping[str, str] | None = None, held: Held | None = None,
        aligned: bool = False,
    ) -> None:  # fmt: skip
        depths, extents = dict(depths), dict(extents)
        self.lanes, self.along, self.index_type, self.count = lanes, along, index, count
        self.level = depths.get(along, 0)
        self.plain = affine
        if lanes > 1:
            depths[LANE], extents[LANE] = self.level + 1, lanes
        super().__init__(lowering, self._with_lane, depths, extents, row, named)
        self.statements += [[] for _ in range(LEVELS - len(self.statements))]
        self.arrays: dict[tuple[str, Affine], str] = {}
        self.put: list[Line] = []
        self.slots, self.held, self.aligned = slots or {}, held, aligned

    def _with_lane(self, a: Affine) -> Affine:
        a = self.plain(a)
        c = a.coefficient(self.along) if self.lanes > 1 else 0
        return a + Affine.symbol(LANE) * c if c else a

    def type_of(self, term: Term) -> str:
        """Computed indices have the type of indices."""
        return self.index_type if term.symbol else super().type_of(term)

    def _expression(self, term: Term, at: int) -> Expr:
        if term.kind == "index" and self.index_type != "int64_t":
            text = self.index(term.affine, at)
            return Expr(f"(int64_t){text if text.isidentifier() else f'({text})'}", UNARY)
        if term.symbol and (found := re.fullmatch(r"\{x\} ([/%]) (.+)", term.template)):
            text = self.index(term.operands["x"].affine, at)
            text = text if text.isidentifier() else f"({text})"
            return Expr(f"{text} {found[1]} {found[2]}", 11)
        return super()._expression(term, at)

    # ---- lanes ----------------------------------------------------------------------------------

    def _moves(self, a: Affine) -> Affine | None:
        """The address of the first lane, where the lanes are neighbours in memory."""
        final = self._with_lane(a)
        if self.lanes == 1 or final.coefficient(LANE) != 1:
            return None
        first = final + Affine.symbol(LANE) * -1
        if any(self._symbol_depth(s) > self.level for s in first.symbols):
            return None
        return first

    def _at_vectors(self, buffer: str, first: Affine) -> str:
        """The template argument for lanes that certainly begin at the alignment of vectors."""
        steps = [first.const, *(c for s, c in first.terms if s != self.along)]
        whole = all(not isinstance(c, Size) and c % self.lanes == 0 for c in steps)
        anywhere = buffer.startswith("in_") and not self.aligned
        return "<true>" if whole and not anywhere else ""

    def _array(self, buffer: str, first: Affine) -> tuple[str, bool]:
        """The array of the lanes at an address, and whether it is new."""
        found = self.arrays.get((buffer, first))
        if found is not None:
            return found, False
        name = f"{buffer}_{LANE}"
        while name in self.arrays.values():
            name += LANE
        self.arrays[buffer, first] = name
        return name, True

    def _load(self, term: Term, at: int) -> Expr:
        if term.template in self.slots:
            return self._loaded(f"{term.template}[{self.slots[term.template]}]", term)
        first = None if term.guards or term.is_variable else self._moves(term.affine)
        if first is None:
            return super()._load(term, at)
        for symbol in first.symbols:
            if symbol not in self.depths:
                self.emit(self.lowering.symbols[symbol], self.level)
        at_vectors = self._at_vectors(term.template, first)
        kept = None if self.held is None else self.held.place(term.template, first)
        if kept is not None:
            array, new = kept
            if new:
                self.statements[self.level].append(
                    Line(f"tg_fetch{at_vectors}({array}, &{term.template}[{first.text()}]);")
                )
            return self._loaded(f"{array}[{LANE}]", term)
        name, new = self._array(term.template, first)
        if new:
            count = f", {self.count}" if self.count else ""
            self.statements[self.level] += [
                Line(f"{term.dtype.c_type} {name}[{self.lanes}];"),
                Line(f"tg_fetch{at_vectors}({name}, &{term.template}[{first.text()}]{count});"),
            ]
        return self._loaded(f"{name}[{LANE}]", term)

    def _loaded(self, text: str, term: Term) -> Expr:
        if term.dtype.c_compute != term.dtype.c_type:
            text = f"tg_load_{term.dtype.name}({text})"
        return Expr(text, ATOM)

    def store(self, depth: int, buffer: Buffer, at: Affine, term: Term) -> None:
        """Add `buffer[at] = term`, of all lanes together where they are neighbours."""
        first = None if buffer.scalar else self._moves(at)
        slot = self.slots.get(buffer.name)
        if first is None and slot is None:
            super().store(depth, buffer, at, term)
            return
        place = f"{buffer.name}[{slot}]"
        if slot is None:
            assert first is not None
            name, _ = self._array(buffer.name, first)
            self.statements[self.level].append(Line(f"{buffer.dtype.c_type} {name}[{self.lanes}];"))
            place = f"{name}[{LANE}]"
        text = self.emit(term, depth).text
        line = where(term.location, term.op) if not text.isidentifier() else ""
        if buffer.dtype.c_compute != buffer.dtype.c_type:
            text = f"tg_store_{buffer.dtype.name}({text})"
        self.statements[depth].append(Line(f"{place} = {text};", line))
        if slot is not None or first is None:
            return
        count = f", {self.count}" if self.count else ""
        at_vectors = self._at_vectors(buffer.name, first)
        self.put.append(Line(f"tg_put{at_vectors}(&{buffer.name}[{first.text()}], {name}{count});"))

    def inside(self, depth: int, extra: Items = ()) -> list[Item]:
        """The statements inside the loop at level `depth`, lanes and all."""
        if self.lanes == 1:
            return [*self.statements[depth], *extra]
        inner = Loop(
            LANE, str(self.lanes), (*self.statements[depth + 1], *extra), pragmas=("unroll",)
        )
        return [*self.statements[depth], inner, *self.put]


def takes_lanes(terms: Iterable[Term], affine: Callable[[Affine], Affine], along: str) -> bool:
    """Whether lanes along a loop make sense: what is read moves with it by one element or none."""
    loads = [t for t in terms if t.kind == "load"]
    steps = [affine(t.affine).coefficient(along) for t in loads]
    return all(s in (0, 1) for s in steps) and not any(t.guards for t in loads)


def as_cuda(
    plan: KernelPlan, items: Items, grid: Dim3, block: Dim3, index: str = "int"
) -> CudaKernel:
    """A kernel with its launch, from what is the same for C."""
    return CudaKernel(
        plan.name, plan.summary, plan.parameters, tuple(items), index, "", plan.arguments, grid,
        block, nbytes=int(plan.nbytes), ops=int(plan.ops), uses_status=plan.uses_status,
        names=plan.names, scratch=plan.scratch,
    )  # fmt: skip
