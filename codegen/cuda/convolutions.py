"""Convolution and its two transposes: products of matrices that nobody lays out, or direct sums.

A convolution is the product of its weights with a matrix of columns, the taps that each position sees. Here no
columns are stored: the kernel in tiles (`codegen.cuda.tiles`) finds each element of that matrix in the images
when it reads it. The transposes are products too, in which the images' positions are the columns (input
gradient) or are summed over (weight gradient). For each group:

    conv              (filters x channels, taps)  times (channels, taps x images, outputs)
    conv_input_grad   (channels x filters, taps)  times (filters, taps x images, inputs)
    conv_weight_grad  (filters x images, outputs) times (images, outputs x channels, taps)

Groups with few filters (or channels) would leave most of a tile empty: there a thread computes one position
of all of a group's filters, and a block one weight's gradient, by direct sums. Sums run in float for
float32 and halves, in double for float64 (as the direct loops of C do), in uint64_t for integers; the parts
of long sums are added in double, in order. Start reading at `plan_convolution`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from tracegrad.codegen.cuda.elements import (
    INT_MAX,
    Element,
    ceil_div,
    described,
    element,
    index_type,
    own_kernel,
    parts_of,
    plain,
    position,
    reach,
    summary_of,
)
from tracegrad.codegen.cuda.plan import CudaKernel, CudaTarget, Product
from tracegrad.codegen.cuda.products import MOST_CALLS
from tracegrad.codegen.cuda.spatial import Space, space
from tracegrad.codegen.cuda.tiles import (
    MOST_SPLITS,
    Side,
    Work,
    combining,
    plan_tiles,
    split_results,
)
from tracegrad.codegen.lower import Buffer, same_memory
from tracegrad.codegen.plan import Parameter
from tracegrad.ir.graph import Node, Value
from tracegrad.ir.windows import window_axes

THREADS = 256
FEW = 8  # filters (or channels) of a group below which tiles would be mostly empty
LEAST_SHARE = 8  # products of one thread below which a further part costs more than it saves
_TITLES = {
    "conv": "Convolution (cross-correlation) of x with w",
    "conv_input_grad": "Transpose of a convolution in its input",
    "conv_weight_grad": "Transpose of a convolution in its weights",
}


@dataclass(frozen=True)
class Convolution:
    """One of the three operations in numbers and texts.

    Attributes:
        op: the primitive's name. element: its types. space: its spatial axes.
        images, groups: how many there are; filters, channels: of one group.
        first, second, out: the operands and the result. arguments: their buffers.
        index: the C type of positions.
        x, w, ct: the element at the named indices, in C: `image`, `group`, `channel`,
            `filter`, outputs `o0`, inputs `i0`, taps `k0`.
    """

    op: str
    element: Element
    space: Space
    images: int
    groups: int
    filters: int
    channels: int
    first: Parameter
    second: Parameter
    out: Parameter
    arguments: tuple[str, str, str]
    index: str

    @property
    def wide(self) -> str:
        """The cast that makes products of indices 64 bits wide, where they must be."""
        return "(int64_t)" if self.index == "int64_t" else ""

    def _at(self, name: str, terms: Sequence[tuple[str, int, int]], inner: str) -> str:
        text = position([(f"{self.wide}{n}", size, step) for n, size, step in terms])
        return f"{name}[{text} + {inner}]".replace("[0 + ", "[").replace(" + 0]", "]")

    def image_element(self, name: str, place: str, channel: str = "channel") -> str:
        """The element of an array like x at a position of its plane."""
        s, c, g = self.space.in_plane, self.channels, self.groups
        terms = [("image", self.images, g * c * s), ("group", g, c * s), (channel, c, s)]
        return self._at(name, terms, place)

    def result_element(self, name: str, place: str, filter: str = "filter") -> str:
        """The element of an array like the convolution's result."""
        s, f, g = self.space.out_plane, self.filters, self.groups
        terms = [("image", self.images, g * f * s), ("group", g, f * s), (filter, f, s)]
        return self._at(name, terms, place)

    def weight(self, name: str, filter: str, channel: str, tap: str) -> str:
        """The element of an array like w."""
        t, c, f = self.space.taps, self.channels, self.filters
        terms = [("group", self.groups, f * c * t), (filter, f, c * t), (channel, c, t)]
        return self._at(name, terms, tap)


def plan_convolution(
    name: str, node: Node, producer: Callable[[Value], Node | None],
    buffers: Mapping[Value, Buffer], target: CudaTarget,
) -> tuple[CudaKernel, ...]:  # fmt: skip
    """The kernels of a convolution or one of its transposes; operands are contiguous."""
    size = prod(plain(node.out.shape))
    if size == 0:
        return ()
    conv = _convolution(node, producer, buffers)
    s, op = conv.space, conv.op
    sizes = {
        "conv": (conv.filters, conv.images * s.out_plane, conv.channels * s.taps),
        "conv_input_grad": (conv.channels, conv.images * s.in_plane, conv.filters * s.taps),
        "conv_weight_grad": (conv.filters, conv.channels * s.taps, conv.images * s.out_plane),
    }[op]  # fmt: skip
    m, n, k = sizes
    assert max(sizes) < INT_MAX - THREADS, f"{op}: sizes beyond 32 bits have no CUDA kernel"
    nbytes = sum(int(v.type.nbytes) for v in (*node.inputs, node.out))
    ops = 2 * conv.groups * m * n * k
    if k == 0:
        return (_zeros(name, node, conv, size),)
    if target.cublas and _is_product(conv):
        return _products(name, node, conv, sizes, nbytes, ops)
    if min(m, n if op == "conv_weight_grad" else m) < FEW:
        direct = _weights if op == "conv_weight_grad" else _positions
        return direct(name, node, conv, sizes, target, nbytes, ops)
    summary = summary_of(node, f"{_TITLES[op]}, as products ({m} x {k}) times ({k} x {n}).")
    return plan_tiles(name, _work(conv, sizes), target, summary, nbytes, ops)


def _convolution(
    node: Node, producer: Callable[[Value], Node | None], buffers: Mapping[Value, Buffer]
) -> Convolution:
    op, p = node.primitive.name, node.params
    shapes = [plain(v.shape) for v in (*node.inputs, node.out)]
    x, w, _ = {
        "conv": shapes, "conv_input_grad": [shapes[2], shapes[1], shapes[0]],
        "conv_weight_grad": [shapes[0], shapes[2], shapes[1]],
    }[op]  # fmt: skip
    names = {"conv": ("x", "w"), "conv_input_grad": ("ct", "w"), "conv_weight_grad": ("x", "ct")}[
        op
    ]
    axes = window_axes(x[2:], w[2:], p["stride"], p["padding"], p["dilation"])
    operands = [buffers[v if v in buffers else same_memory(v, producer)] for v in node.inputs]
    out = buffers[node.out]
    return Convolution(
        op, element(node.out.dtype), space(axes), x[0], p["groups"], w[0] // p["groups"], w[1],
        described(names[0], operands[0]), described(names[1], operands[1]),
        described("out", out, True), (operands[0].name, operands[1].name, out.name),
        index_type(*(reach(b) for b in (*operands, out))),
    )  # fmt: skip


# ---- as products of matrices ----------------------------------------------------------------------


def _work(conv: Convolution, sizes: tuple[int, int, int]) -> Work:
    m, n, k = sizes
    left, right = {
        "conv": _forward, "conv_input_grad": _input_grad, "conv_weight_grad": _weight_grad,
    }[conv.op](conv)  # fmt: skip
    s = conv.space
    if conv.op == "conv_weight_grad":  # the result lies as the products do
        at = position([("group", conv.groups, m * n), ("row", m, n), ("column", n, 1)])
        lines, text = [], at
    else:
        plane = s.out_plane if conv.op == "conv" else s.in_plane
        lines = parts_of("column", [("image", conv.images), ("place", plane)])
        place = "place" if conv.images > 1 else "column"
        element = conv.result_element if conv.op == "conv" else conv.image_element
        text = element("out", place if plane > 1 else "0", "row")[4:-1]
        lines = lines if conv.images > 1 else []
    arguments = (conv.arguments[1], conv.arguments[0], conv.arguments[2])
    return Work(
        m, n, k, conv.groups, conv.element, (left, right), conv.out, text, arguments, conv.index,
        "group", (), tuple(lines),
    )  # fmt: skip


def _forward(conv: Convolution) -> tuple[Side, Side]:
    """Weights, and the taps that each position sees."""
    s = conv.space
    k = conv.channels * s.taps
    at = position([("group", conv.groups, conv.filters * k), ("row", conv.filters, k), ("k", k, 1)])
    columns = Side(
        conv.first, "outer", conv.image_element("x", s.image),
        tuple(parts_of("column", [("image", conv.images), *s.sizes("outputs")])),
        (*parts_of("k", [("channel", conv.channels), *s.sizes("taps")]), *s.reads), s.inside,
    )  # fmt: skip
    return Side(conv.second, "k", f"w[{at}]"), columns


def _input_grad(conv: Convolution) -> tuple[Side, Side]:
    """Weights, and the cotangents of the positions that see each input through each tap."""
    s = conv.space
    weights = Side(
        conv.second, "k", conv.weight("w", "filter", "row", "tap" if s.taps > 1 else "0"),
        (), tuple(parts_of("k", [("filter", conv.filters), ("tap", s.taps)])),
    )  # fmt: skip
    columns = Side(
        conv.first, "outer", conv.result_element("ct", s.window),
        tuple(parts_of("column", [("image", conv.images), *s.sizes("inputs")])),
        (*parts_of("k", [("filter", conv.filters), *s.sizes("taps")]), *s.meets), s.on,
    )  # fmt: skip
    return weights, columns


def _weight_grad(conv: Convolution) -> tuple[Side, Side]:
    """Cotangents, and what each tap of each channel sees at each position."""
    s = conv.space
    place = "place" if s.out_plane > 1 else "0"
    cotangents = Side(
        conv.second, "k", conv.result_element("ct", place, "row"),
        (), tuple(parts_of("k", [("image", conv.images), ("place", s.out_plane)])),
    )  # fmt: skip
    columns = Side(
        conv.first, "k", conv.image_element("x", s.image),
        tuple(parts_of("column", [("channel", conv.channels), *s.sizes("taps")])),
        (*parts_of("k", [("image", conv.images), *s.sizes("outputs")]), *s.reads), s.inside,
    )  # fmt: skip
    return cotangents, columns


def _is_product(conv: Convolution) -> bool:
    """Whether cuBLAS can compute it: windows of one tap, side by side, are the images as they lie."""
    plain_axes = all(
        (a.axis.kernel, a.axis.stride, a.axis.low, a.axis.high) == (1, 1, 0, 0)
        for a in conv.space.axes
    )
    summed = conv.op == "conv_weight_grad" and conv.images > 1  # over images: no single product
    return plain_axes and conv.element.is_float and conv.groups <= MOST_CALLS and not summed


def _products(
    name: str, node: Node, conv: Convolution, sizes: tuple[int, int, int], nbytes: int, ops: int
) -> tuple[CudaKernel, ...]:
    """A call of cuBLAS for each group, its images a batch."""
    m, n, k = sizes
    s, f, c, g = conv.space.out_plane, conv.filters, conv.channels, conv.groups
    x, ct, w = (
        g * c * s,
        g * f * s,
        f * c,
    )  # elements of an image, of a result, of a group's weights
    arguments = (conv.arguments[1], conv.arguments[0], conv.arguments[2])
    turned = (False, False)
    if conv.op == "conv":
        leading, apart, steps = (c, s, s), (0, x, ct), (w, c * s, f * s)
    elif conv.op == "conv_input_grad":
        leading, apart, steps = (c, s, s), (0, ct, x), (w, f * s, c * s)
        turned = (True, False)
    else:
        leading, apart, steps = (s, s, c), (0, 0, 0), (f * s, c * s, w)
        turned = (False, True)
    kernels = []
    batch = conv.images if conv.op != "conv_weight_grad" else 1
    columns = n // conv.images if conv.op != "conv_weight_grad" else n
    for group in range(g):
        product = Product(
            conv.element.dtype.name, m, columns, k, batch, turned, leading, apart,
            (group * steps[0], group * steps[1], group * steps[2]),
        )  # fmt: skip
        kernels.append(CudaKernel(
            f"{name}_{group}" if g > 1 else name, summary_of(node, f"{_TITLES[conv.op]}."),
            arguments=arguments, product=product, nbytes=nbytes // g, ops=ops // g,
        ))  # fmt: skip
    return tuple(kernels)


# ---- direct sums ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class DirectPlan:
    """What the templates `conv_positions.cu.j2` and `conv_weights.cu.j2` lay out.

    Attributes:
        conv: the operation. size: threads, or sums. parts: lines that take a thread's number apart.
        each: sums of a thread. terms, term: the loop beside those over taps.
        lines, conditions: find the element that is multiplied, and whether there is one.
        value, weight, out: these elements, in C. splits, part: of a long sum.
    """

    conv: Convolution
    size: int
    parts: tuple[str, ...]
    each: int
    term: str
    terms: int
    lines: tuple[str, ...]
    conditions: tuple[str, ...]
    value: str
    weight: str
    out: str
    splits: int = 1
    part: int = 0


def _positions(
    name: str, node: Node, conv: Convolution, sizes: tuple[int, int, int], target: CudaTarget,
    nbytes: int, ops: int,
) -> tuple[CudaKernel, ...]:  # fmt: skip
    """A thread for each position and group, which computes all of its filters (or channels)."""
    s, forward = conv.space, conv.op == "conv"
    plane = s.out_plane if forward else s.in_plane
    size = conv.images * conv.groups * plane
    parts = parts_of("at", [("image", conv.images), ("group", conv.groups), ("place", plane)])
    alone = conv.images * conv.groups == 1
    place = "0" if plane == 1 else "at" if alone else "place"
    parts = [line.replace("const int place = at;", "") for line in parts]
    parts += parts_of(place, s.sizes("outputs" if forward else "inputs"))
    if forward:
        plan = DirectPlan(
            conv, size, tuple(p for p in parts if p), conv.filters, "channel", conv.channels,
            s.reads, s.inside, conv.image_element("x", s.image),
            conv.weight("w", "j", "channel", s.tap), conv.result_element("out", place, "j"),
        )  # fmt: skip
    else:
        plan = DirectPlan(
            conv, size, tuple(p for p in parts if p), conv.channels, "filter", conv.filters,
            s.meets, s.on, conv.result_element("ct", s.window),
            conv.weight("w", "filter", "j", s.tap), conv.image_element("out", place, "j"),
        )  # fmt: skip
    kernel = CudaKernel(
        name, summary_of(node, f"{_TITLES[conv.op]}, one thread for each position."),
        (conv.first, conv.second, conv.out), arguments=conv.arguments,
        grid=(ceil_div(size, THREADS), 1, 1), block=(THREADS, 1, 1), nbytes=nbytes, ops=ops,
    )  # fmt: skip
    return (own_kernel("conv_positions.cu.j2", kernel, plan=plan),)


def _weights(
    name: str, node: Node, conv: Convolution, sizes: tuple[int, int, int], target: CudaTarget,
    nbytes: int, ops: int,
) -> tuple[CudaKernel, ...]:  # fmt: skip
    """A block for each weight, or several for the parts of its sum."""
    m, n, k = sizes
    s, size = conv.space, conv.groups * m * n
    splits = 1
    if size < 4 * target.multiprocessors:
        splits = min(ceil_div(4 * target.multiprocessors, size), k // (LEAST_SHARE * THREADS))
    part = ceil_div(k, max(1, min(splits, MOST_SPLITS)))
    splits = ceil_div(k, part)
    numbers = [("group", conv.groups), ("filter", m), ("channel", conv.channels), *s.sizes("taps")]
    lines = parts_of("k", [("image", conv.images), *s.sizes("outputs")])
    plan = DirectPlan(
        conv, size, tuple(parts_of("number", numbers)), 1, "k", k, (*lines, *s.reads), s.inside,
        conv.image_element("x", s.image), conv.result_element("ct", s.window), "out[number]",
        splits, part,
    )  # fmt: skip
    work = Work(
        m, n, k, conv.groups, conv.element, (Side(conv.second, "k", ""), Side(conv.first, "k", "")),
        conv.out, "", conv.arguments, conv.index,
    )  # fmt: skip
    results, arguments, scratch = split_results(name, work, splits)
    how = f" in {splits} parts of {part}" if splits > 1 else ""
    summary = summary_of(node, f"{_TITLES[conv.op]}, a block for each weight's sum{how}.")
    kernel = CudaKernel(
        name, summary, (conv.first, conv.second, results), arguments=arguments,
        grid=(size, splits, 1), block=(THREADS, 1, 1), nbytes=nbytes, ops=ops, scratch=scratch,
    )  # fmt: skip
    made = own_kernel("conv_weights.cu.j2", kernel, plan=plan)
    return made, *combining(name, work, splits, scratch, summary)


def _zeros(name: str, node: Node, conv: Convolution, size: int) -> CudaKernel:
    """A sum of nothing."""
    kernel = CudaKernel(
        name, summary_of(node, f"{_TITLES[conv.op]}: sums of nothing."), (conv.out,),
        arguments=conv.arguments[2:], grid=(ceil_div(size, THREADS), 1, 1), block=(THREADS, 1, 1),
        nbytes=int(node.out.type.nbytes),
    )  # fmt: skip
    return own_kernel("fill.cu.j2", kernel, size=size)
