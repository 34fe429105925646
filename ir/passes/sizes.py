"""Marking the sizes that vary: the same graph, its ints as `Size`s wherever they follow from those.

Shapes follow by the rules of the primitives. What a node has among its parameters are plain ints,
of which we can only see that they are equal to a size at hand. Should they be so by chance, nothing is
wrong: a `Size` has the value of the int that it replaces. Start reading at `with_sizes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from tracegrad.ir.dtypes import DType
from tracegrad.ir.graph import Graph, GraphBuilder, Node, Value
from tracegrad.ir.sizes import Size
from tracegrad.ir.types import Shape, TensorType


def with_sizes(graph: Graph, inputs: Mapping[int, Shape], earlier: Sequence[Graph] = ()) -> Graph:
    """Mark what follows from the sizes of inputs that vary. Pure.

    Args:
        inputs: shapes of inputs, by number, with the sizes that vary.
        earlier: graphs for other sizes: an int that is the same in one that is otherwise alike does
            not vary.
    """
    if not inputs:
        return graph
    builder = GraphBuilder(graph.name)
    new: dict[Value, Value] = {}
    seen = _Seen()
    for k, v in enumerate(graph.inputs):
        new[v] = builder.input(TensorType(inputs.get(k, v.shape), v.dtype, v.device), v.name)
        seen.shape(new[v].shape)
    before = next(([n.params for n in g.nodes] for g in earlier if _alike(graph, g)), None)
    for k, node in enumerate(graph.nodes):
        operands = [new[v] for v in node.inputs]
        seen.fixed = before[k] if before else {}
        out = builder.append(
            node.primitive, operands, _params(node, operands, seen), location=node.location,
            name=node.out.name,
        )  # fmt: skip
        assert out.shape == node.out.shape, f"{node!r} has another shape with sizes that vary"
        new[node.out] = out
        seen.shape(out.shape)
    return builder.finish([new[v] for v in graph.outputs])


def with_sized_constants(graph: Graph) -> Graph:
    """Mark constants that follow from the sizes that vary, such as the `1 / n` of a mean. Pure."""
    seen = _Seen()
    for v in (*graph.inputs, *(n.out for n in graph.nodes)):
        seen.shape(v.shape)
        seen.count(v.shape, ())
    for node in graph.nodes:
        if node.primitive.family == "reduction":
            seen.count(node.inputs[0].shape, node.out.shape)
    nodes = [
        Node(n.primitive, n.inputs, {**n.params, "value": seen.number(n.params)}, n.out, n.location)
        if n.primitive.name == "constant" else n
        for n in graph.nodes
    ]  # fmt: skip
    return graph.replace(nodes=tuple(nodes)) if seen.sizes else graph


def _alike(graph: Graph, other: Graph) -> bool:
    """Whether two graphs are the same but for sizes."""
    return len(graph.nodes) == len(other.nodes) and all(
        a.primitive is b.primitive and a.params.keys() == b.params.keys()
        for a, b in zip(graph.nodes, other.nodes, strict=True)
    )


def symbols(graph: Graph) -> dict[str, int]:
    """The symbols of the sizes in a graph and their values; empty where nothing varies."""
    found: dict[str, int] = {}
    for v in (*graph.inputs, *(n.out for n in graph.nodes)):
        for size in v.shape:
            if isinstance(size, Size):
                found.update(size.symbols)
    return dict(sorted(found.items()))


class SizedNumber(float):
    """A constant that follows from sizes: `text` is an expression of C that gives it."""

    text: str

    def __new__(cls, value: float, text: str) -> SizedNumber:
        """The number, and how it comes about."""
        made = float.__new__(cls, value)
        made.text = text
        return made

    def __reduce__(self) -> Any:
        return SizedNumber, (float(self), self.text)


class _Seen:
    """The sizes that have occurred so far."""

    def __init__(self) -> None:
        self.sizes: dict[int, Size] = {}
        self.counts: dict[int, Size] = {}  # how many elements a reduction took together
        self.fixed: Mapping[str, Any] = {}  # what the parameters of the node at hand once were

    def shape(self, shape: Shape) -> None:
        for size in shape:
            if isinstance(size, Size):
                self.sizes.setdefault(int(size), size)

    def count(self, shape: Shape, reduced: Shape) -> None:
        """A reduction from one shape to another; in a backward it may be seen by its operand only."""
        whole, rest = prod(shape), prod(reduced)
        count = whole // rest if rest else 0
        if isinstance(count, Size):
            self.counts.setdefault(int(count), count)

    def marked(self, size: int) -> int:
        """A plain int as the size that it is equal to, if any."""
        return size if isinstance(size, Size) else self.sizes.get(size, size)

    def marked_shape(self, key: str, shape: Shape) -> Shape:
        """A shape among the parameters, its sizes marked that are others than they once were."""
        once = self.fixed.get(key, ())
        once = once if len(once) == len(shape) else (None,) * len(shape)
        return tuple(n if n == o else self.marked(n) for n, o in zip(shape, once, strict=True))

    def number(self, params: Mapping[str, Any]) -> Any:
        """The value of a constant, which may follow from a size or from how many a mean is of."""
        value, dtype = params["value"], params["dtype"]
        if type(value) is int:
            return self.marked(value) if value > 2 else value
        if type(value) is not float or dtype.name not in ("float32", "float64"):
            return value
        if not 0 < value < 2**53 or value in (1, 2):
            return value
        n = self.sizes.get(round(value))
        if n is not None and n > 2 and value == n:
            return SizedNumber(value, f"(({dtype.c_type}){n})")
        for n in self.counts.values():
            for number, text in _forms(n, dtype) if n > 2 else ():
                if number == value:
                    return SizedNumber(value, text)
        return value


def _forms(n: Size, dtype: DType) -> Iterator[tuple[float, str]]:
    """What means, variances and their derivatives make of a count: as numbers, and in C.

    Python computes some of them, in double precision, and operations of the dtype others.
    """
    kind, c_type = dtype.numpy.type, dtype.c_type
    for m in (n, n - 1):
        yield float(kind(int(m))), f"(({c_type}){m})"
        for k in (1, 2):
            yield float(kind(k) / kind(int(m))), f"(({c_type}){k} / ({c_type}){m})"
            yield float(kind(k / int(m))), f"(({c_type})({k}.0 / (double){m}))"
    yield float(kind(int(n) / int(n - 1))), f"(({c_type})((double){n} / (double){n - 1}))"


def _params(node: Node, operands: Sequence[Value], seen: _Seen) -> Mapping[str, Any]:
    """The parameters of a node with the sizes that they are equal to."""
    params, name = node.params, node.primitive.name
    if name == "reshape":
        return {"shape": _reshaped(operands[0].shape, seen.marked_shape("shape", params["shape"]))}
    if name == "broadcast":
        own = operands[0].shape
        lead = len(params["shape"]) - len(own)
        marked = seen.marked_shape("shape", params["shape"])
        return {"shape": tuple(
            own[d - lead] if d >= lead and own[d - lead] == n else n for d, n in enumerate(marked)
        )}  # fmt: skip
    if name == "slice":
        stop = params["stop"]
        fixed = seen.fixed.get("stop", ())
        if len(fixed) != len(stop):  # an earlier graph had other dimensions
            fixed = (None,) * len(stop)
        stops = zip(stop, fixed, operands[0].shape, strict=True)
        return {**params, "stop": tuple(
            s if s == o else n if s == n else n - 1 if s == n - 1 else s for s, o, n in stops
        )}  # fmt: skip
    found = dict(params)
    for key in ("shape", "input_size"):
        if key in found:
            found[key] = seen.marked_shape(key, found[key])
    return found


def _reshaped(source: Shape, target: Shape) -> Shape:
    """A new shape, run by run: sizes whose products are equal on both sides."""
    if 0 in source:
        return target
    result: list[int] = []
    at = 0
    while len(result) < len(target):
        first, start = len(result), at
        stop = first + 1
        have, want = 1, target[first]
        while have != want or (stop < len(target) and target[stop] == 1):
            if have < want:
                have *= source[at]
                at += 1
            elif have == want:
                stop += 1
            else:
                want *= target[stop]
                stop += 1
        result += _run(source[start:at], target[first:stop], have)
    return tuple(result)


def _run(source: Shape, target: Shape, total: int) -> Shape:
    """Sizes of one run, the product of which is `total`."""
    if source == target:
        return source
    marked = [next((s for s in source if isinstance(s, Size) and s == n), n) for n in target]
    if not isinstance(total, Size):
        return tuple(marked)
    loose = [k for k, n in enumerate(marked) if not isinstance(n, Size)]
    for k in sorted(loose, key=lambda k: -marked[k]):  # the largest is the one that varies
        others = prod(n for j, n in enumerate(marked) if j != k)
        if total // others == marked[k] and isinstance(total // others, Size):
            marked[k] = total // others
            break
        if prod(marked) == total and isinstance(prod(marked), Size):
            break
    return tuple(marked)
