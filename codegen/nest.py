"""What all loop nests share: a group of values with one domain, its loops, and its terms.

Start reading at `Group`, then `Lowered`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from tracegrad.codegen.affine import Affine, Index, offset
from tracegrad.codegen.lower import Buffer, Lowering, Term
from tracegrad.codegen.plan import KernelPlan, Line, Loop, Parameter
from tracegrad.codegen.reducers import Reducer, reducer
from tracegrad.ir.graph import Node, Value
from tracegrad.ir.location import Location
from tracegrad.ir.types import Shape, contiguous_strides

SECONDS_PER_OP, SECONDS_PER_BYTE = 0.08e-9, 0.1e-9  # one core, vectorised; rough on purpose
CACHE, SECONDS_PER_CACHED_BYTE = 2 << 20, 0.01e-9  # bytes that stay in caches near a core


@dataclass(frozen=True)
class Group:
    """Values computed in one loop nest.

    Attributes:
        domain: the sizes of the loops.
        reduced: positions in the domain that the reductions sum over; empty for a map.
        stores: values of the domain's shape that get a buffer.
        reductions: nodes that reduce a value of the domain's shape.
    """

    domain: Shape
    reduced: tuple[int, ...]
    stores: tuple[Value, ...]
    reductions: tuple[Node, ...]

    @property
    def values(self) -> tuple[Value, ...]:
        """All values that this group computes into buffers."""
        return self.stores + tuple(n.out for n in self.reductions)


@dataclass
class Axis:
    """One loop: variable, size, whether it is reduced."""

    variable: str
    extent: int
    reduced: bool


def domain_loops(
    domain: Shape, reduced: Iterable[int], splits: Mapping[str, int]
) -> tuple[list[Axis], Index]:
    """Loops of a domain, size-1 axes dropped and asked-for splits made, and the index."""
    axes: list[Axis] = []
    index: list[Affine] = []
    along = set(reduced)

    def loop(variable: str, extent: int, is_reduced: bool) -> Affine:
        if variable in splits:
            inner = splits[variable]
            high = loop(f"{variable}h", extent // inner, is_reduced)
            low = loop(f"{variable}l", inner, is_reduced)
            return high * inner + low
        if extent == 1:
            return Affine()
        axes.append(Axis(variable, extent, is_reduced))
        return Affine.symbol(variable)

    for d, n in enumerate(domain):
        index.append(loop(f"i{d}", n, d in along))
    return axes, tuple(index)


class Lowered:
    """The terms of a group over its domain.

    Attributes:
        stored: (value, position in its buffer, term) of what is stored element by element.
        reduced: (node, position of the result, term that is reduced, accumulator).
    """

    def __init__(self, group: Group, index: Index, lowering: Lowering) -> None:
        self.lowering = lowering
        self.stored: list[tuple[Value, Affine, Term]] = []
        for v in group.stores:
            at = offset(index, contiguous_strides(v.shape))
            self.stored.append((v, at, lowering.term(v, index)))
        kept = [d for d in range(len(group.domain)) if d not in group.reduced]
        strides = contiguous_strides(tuple(group.domain[d] for d in kept))
        self.reduced: list[tuple[Node, Affine, Term, Reducer]] = []
        for node in group.reductions:
            at = offset([index[d] for d in kept], strides)
            term = lowering.term(node.inputs[0], index)
            self.reduced.append((node, at, term, reducer(node, index, group.domain)))

    def terms(self) -> list[Term]:
        """All terms, each once."""
        seen: dict[int, Term] = {}
        stack = [t for _, _, t in self.stored] + [t for _, _, t, _ in self.reduced]
        stack += list(self.lowering.symbols.values())
        while stack:
            term = stack.pop()
            if id(term) not in seen:
                seen[id(term)] = term
                stack.extend(term.operands.values())
        return list(seen.values())

    def affines(self) -> list[Affine]:
        """Every index expression that the loops must serve."""
        found = [at for _, at, _ in self.stored] + [at for _, at, _, _ in self.reduced]
        found += [r.position for _, _, _, r in self.reduced]
        for t in self.terms():
            found.append(t.affine)
            found.extend(g.index for g in t.guards)
        return found

    def seconds(self, elements: int | None = None) -> float:
        """About how long one element of so many takes on one core; from memory without a number."""
        varying = _varying(self.terms())
        ops = sum(t.cost for t in varying if t.kind == "apply")
        nbytes = sum(t.dtype.itemsize for t in varying if t.kind == "load")
        nbytes += sum(v.dtype.itemsize for v, *_ in self.stored)
        cached = elements is not None and elements * nbytes <= CACHE
        each = SECONDS_PER_CACHED_BYTE if cached else SECONDS_PER_BYTE
        return max(ops * SECONDS_PER_OP + nbytes * each, 1e-12)

    def locations(self) -> dict[str, Location]:
        """The Python lines that are computed here."""
        lines = {str(t.location): t.location for t in self.terms() if t.location is not None}
        for node, *_ in self.reduced:
            if node.location is not None:
                lines.setdefault(str(node.location), node.location)
        return lines


def _varying(terms: Sequence[Term]) -> list[Term]:
    """The terms that differ from element to element; others are computed once, before the loops."""
    users: dict[int, list[Term]] = {}
    for t in terms:
        for operand in t.operands.values():
            users.setdefault(id(operand), []).append(t)
    stack = [t for t in terms if t.affine.terms or any(g.index.terms for g in t.guards)]
    found = {id(t) for t in stack}
    while stack:
        for user in users.get(id(stack.pop()), ()):
            if id(user) not in found:
                found.add(id(user))
                stack.append(user)
    return [t for t in terms if id(t) in found]


@dataclass
class Merges:
    """Adjacent loops that became one, and the final names of loop variables."""

    pairs: list[tuple[str, str, str]] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)

    def affine(self, a: Affine) -> Affine:
        """An index in the final loop variables."""
        for outer, inner, into in self.pairs:
            a = a.merged(outer, inner, into)
        return Affine(a.const, tuple((self.names.get(n, n), c) for n, c in a.terms))

    def merge(self, axes: list[Axis], affines: Sequence[Affine]) -> list[Axis]:
        """Make one loop of two adjacent ones wherever every index allows it."""
        axes = list(axes)
        for outer, inner, into in self.pairs:
            affines = [a.merged(outer, inner, into) for a in affines]
        i = len(axes) - 2
        while i >= 0:
            outer_axis, inner_axis = axes[i], axes[i + 1]
            outer, inner = outer_axis.variable, inner_axis.variable
            fits = outer_axis.reduced == inner_axis.reduced and all(
                a.coefficient(outer) == a.coefficient(inner) * inner_axis.extent for a in affines
            )
            if fits:
                into = outer + inner[1:]
                self.pairs.append((outer, inner, into))
                affines = [a.merged(outer, inner, into) for a in affines]
                extent = outer_axis.extent * inner_axis.extent
                axes[i : i + 2] = [Axis(into, extent, outer_axis.reduced)]
            i -= 1
        return axes

    def rename(self, axes: Sequence[Axis], first: int = 0) -> None:
        """Give loops their final names, by their depth from `first`."""
        for position, axis in enumerate(axes, first):
            short = "ijklmnpq"[position] if position < 8 else f"i{position}"
            self.names[axis.variable] = short
            axis.variable = short


def stop_of_block(start: str, size: int | str, extent: int) -> str:
    """The C of where a block that begins at `start` ends."""
    return f"{start} + {size} < {extent} ? {start} + {size} : {extent}"


def natural(name: str) -> tuple[str, int]:
    """A key that sorts names by their number."""
    head, _, number = name.rpartition("_")
    return head, int(number) if number.isdigit() else 0


def shape_comment(buffer: Buffer) -> str:
    """The type of a buffer as a comment says it."""
    shape = ", ".join(map(str, buffer.shape))
    if buffer.strides != contiguous_strides(buffer.shape):
        return f"{buffer.dtype.name}[{shape}], strides {buffer.strides}"
    return f"{buffer.dtype.name}[{shape}]"


def nest_summary(group: Group, lowered: Lowered) -> tuple[str, ...]:
    """Comment lines of a group's kernel: what is computed, and the Python lines."""
    sizes = " x ".join(str(n) for n in group.domain)
    loops = f"{sizes} elements" if sizes else "One element"
    names = sorted({n.primitive.name for n in group.reductions})
    axes = ", ".join(map(str, group.reduced))
    made = [f"{' and '.join(names)} over axes {axes}"] if names else []
    return (f"{', '.join([loops, *made])}.", *python_lines(lowered.locations()))


def python_lines(locations: Mapping[str, Location]) -> list[str]:
    """Places in Python as comment lines, in order, with their text where it is known."""
    return [f"{k}: {v.text}" if v.text else k for k, v in sorted(locations.items())]


def kernel_plan(
    name: str, summary: tuple[str, ...], body: Sequence[Line | Loop], read: Iterable[str],
    written: Sequence[str], buffers: Iterable[Buffer], ops: int, uses_status: bool,
    names: tuple[tuple[str, str], ...],
) -> KernelPlan:  # fmt: skip
    """A plan whose parameters are the buffers that it reads, then those that it writes."""
    by_name = {b.name: b for b in buffers}
    reads = sorted(set(read) - set(written), key=natural)
    parameters = [
        Parameter(n, by_name[n].dtype.c_type, n in written, shape_comment(by_name[n]))
        for n in (*reads, *written)
    ]
    sizes = sum(prod(by_name[n].shape) * by_name[n].dtype.itemsize for n in (*reads, *written))
    return KernelPlan(
        name, summary, tuple(parameters), tuple(body), (*reads, *written),
        sizes, ops, uses_status, names,
    )  # fmt: skip
