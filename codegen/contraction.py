"""Contractions: which become BLAS calls, with which strides, and which become plain loops.

`expand_small` rewrites a product that is too small for BLAS, or of a dtype BLAS lacks, as a
broadcast multiply and a sum, which the loop planner then fuses like anything else.
`plan_contraction` turns the others into one gemm call per batch, transposes folded into the call.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from tracegrad.codegen.affine import Affine, Index, offset, reshaped
from tracegrad.codegen.lower import Buffer, aligned, same_memory
from tracegrad.codegen.plan import PARALLEL, KernelPlan, Line, Loop, Parameter, Target
from tracegrad.ir import dtypes, ops
from tracegrad.ir.graph import Graph, GraphBuilder, Node, Value
from tracegrad.ir.sizes import Size, ceil_div
from tracegrad.ir.types import Shape, contiguous_strides

SMALL = 8 * 8 * 8  # multiplications per product below which a BLAS call costs more than it saves
BLAS_FLOATS = ("float32", "float64")
PANEL_FLOPS = 4_000_000  # above this the rows are cut into panels for threads
PANELS = 8
UNPACKED = 1_000_000  # multiplications up to which OpenBLAS reads the operands where they lie
FEW_PARTS = 4  # of a product, each so small; more of them and packing pays
FEW_ROWS = 16  # of the left operand, up to which that is so with the right one transposed, too
PANEL_ROWS = 128  # fewer rows and a panel's time goes into packing the other operand again

Views = Mapping[Value, tuple[Buffer, Affine, dict[str, int]]]


def sizes_of(node: Node) -> tuple[list[int], list[int], list[int], list[int]]:
    """Axes of x and y that are free, and the sizes of batch and contracted axes."""
    x, y = node.inputs
    (cx, cy), (bx, by) = node.params["contract"], node.params["batch"]
    free_x = [a for a in range(x.ndim) if a not in cx and a not in bx]
    free_y = [a for a in range(y.ndim) if a not in cy and a not in by]
    return free_x, free_y, [x.shape[a] for a in bx], [x.shape[a] for a in cx]


def uses_blas(node: Node, floats: Collection[str] = BLAS_FLOATS) -> bool:
    """Whether a `dot_general` node becomes a gemm call: always where its size varies.

    `floats` are the names of the dtypes that there are calls for.
    """
    x, y = node.inputs
    free_x, free_y, batch, contract = sizes_of(node)
    m = prod(x.shape[a] for a in free_x)
    n = prod(y.shape[a] for a in free_y)
    k = prod(contract)
    large = isinstance(m * n * k, Size) or m * n * k > SMALL
    return x.dtype.name in floats and large and min(m, n, k) >= 1


def expand_small(graph: Graph, floats: Collection[str] = BLAS_FLOATS) -> Graph:
    """Write contractions that do not go to BLAS as multiply and sum. Pure; idempotent."""
    if all(n.primitive.name != "dot_general" or uses_blas(n, floats) for n in graph.nodes):
        return graph
    builder = GraphBuilder(graph.name)
    builder.inputs.extend(graph.inputs)
    new: dict[Value, Value] = {}
    for node in graph.nodes:
        inputs = tuple(new.get(v, v) for v in node.inputs)
        builder.location = node.location
        if node.primitive.name == "dot_general" and not uses_blas(node, floats):
            with builder:
                new[node.out] = _as_loops(node, *inputs)
        else:
            new[node.out] = builder.append(
                node.primitive, inputs, node.params, location=node.location, name=node.out.name
            )
    return builder.finish([new.get(v, v) for v in graph.outputs])


def _as_loops(node: Node, x: Any, y: Any) -> Any:
    """x and y laid out as (batch, free x, free y, contracted), multiplied and summed."""
    (cx, cy), (bx, by) = node.params["contract"], node.params["batch"]
    free_x, free_y, batch, contract = sizes_of(node)
    m, n = [x.shape[a] for a in free_x], [y.shape[a] for a in free_y]
    out = node.out.dtype
    wide = dtypes.float32 if out.c_compute != out.c_type else out
    left = ops.permute(_as(wide, x), axes=(*bx, *free_x, *cx))
    right = ops.permute(_as(wide, y), axes=(*by, *free_y, *cy))
    left = ops.reshape(left, shape=(*batch, *m, *(1,) * len(n), *contract))
    right = ops.reshape(right, shape=(*batch, *(1,) * len(m), *n, *contract))
    first = len(batch) + len(m) + len(n)
    product = left * right
    total = ops.reduce_sum(product, axes=tuple(range(first, first + len(contract))), keepdims=False)
    return _as(out, total)


def _as(dtype: dtypes.DType, x: Any) -> Any:
    return x if x.dtype is dtype else ops.cast(x, dtype=dtype)


# ---- operands as strided views ------------------------------------------------------------------


def strides_of(
    value: Value, symbols: Sequence[str], producer: Callable[[Value], Node | None],
    buffers: Mapping[Value, Buffer],
) -> tuple[Buffer, Affine] | None:  # fmt: skip
    """The buffer behind a chain of movement operations and the position of element `symbols`.

    None where the position is not affine in the symbols (a reshape of a transposed value).
    """
    index: Index = tuple(Affine.symbol(s) for s in symbols)
    extents = dict(zip(symbols, value.shape, strict=True))
    index = tuple(Affine() if n == 1 else e for e, n in zip(index, value.shape, strict=True))

    class NotAffine(Exception):
        pass

    def divmod_(e: Affine, b: int) -> tuple[Affine, Affine]:
        found = (e, Affine()) if b == 1 else e.divmod(b, extents)
        if found is None:
            raise NotAffine
        return found

    while value not in buffers:
        base = same_memory(value, producer)
        if base in buffers and buffers[base].strides == contiguous_strides(base.shape):
            return buffers[base], offset(index, contiguous_strides(value.shape))
        node = producer(value)
        assert node is not None
        name, p = node.primitive.name, node.params
        source = node.inputs[0]
        if name == "detach":
            pass
        elif name == "permute":
            at = [Affine()] * len(index)
            for i, axis in enumerate(p["axes"]):
                at[axis] = index[i]
            index = tuple(at)
        elif name == "broadcast":
            index = aligned(index, source.shape)
        elif name == "slice":
            index = tuple(e * t + s for e, s, t in zip(index, p["start"], p["step"], strict=True))
        elif name == "flip":
            index = tuple(e * -1 + (n - 1) if i in p["axes"] else e
                          for i, (e, n) in enumerate(zip(index, source.shape, strict=True)))  # fmt: skip
        elif name == "reshape":
            try:
                index = reshaped(index, value.shape, source.shape, divmod_)
            except NotAffine:
                return None
        else:
            return None
        value = source
    buffer = buffers[value]
    return buffer, offset(index, buffer.strides)


@dataclass(frozen=True)
class Operand:
    """A matrix in memory: row-major with leading dimension, or its transpose."""

    buffer: Buffer
    base: Affine
    transposed: bool
    leading: int


def _merged(at: Affine, symbols: Sequence[str], sizes: Sequence[int]) -> int | None:
    """The stride of several axes taken as one; None where they do not merge. 0 if of size 1."""
    stride: int | None = None
    reach = 0
    for s, n in zip(reversed(symbols), reversed(sizes), strict=True):
        if n == 1:
            continue
        c = at.coefficient(s)
        if stride is None:
            stride = c
        elif c != reach:
            return None
        reach = c * n
    return stride or 0


def _matrix(
    at: Affine, buffer: Buffer, rows: Sequence[tuple[str, int]], columns: Sequence[tuple[str, int]]
) -> Operand | None:
    """See an operand as rows x columns for BLAS; None where it cannot take it as it lies."""
    row = _merged(at, [s for s, _ in rows], [n for _, n in rows])
    column = _merged(at, [s for s, _ in columns], [n for _, n in columns])
    height, width = prod(n for _, n in rows), prod(n for _, n in columns)
    if row is None or column is None:
        return None
    keep = {s for s, _ in (*rows, *columns)}
    base = Affine(at.const, tuple((s, c) for s, c in at.terms if s not in keep))
    if (column == 1 or width == 1) and (height == 1 or row >= width):
        return Operand(buffer, base, False, row if height > 1 else max(width, 1))
    if (row == 1 or height == 1) and (width == 1 or column >= height):
        return Operand(buffer, base, True, column if width > 1 else max(height, 1))
    return None


def matrices(
    node: Node, producer: Callable[[Value], Node | None], buffers: Mapping[Value, Buffer]
) -> tuple[Operand | None, Operand | None]:
    """Both operands of a contraction as BLAS can take them; None where one needs a copy."""
    result: list[Operand | None] = []
    for side in (0, 1):
        v = node.inputs[side]
        symbols = [f"d{a}" for a in range(v.ndim)]
        found = strides_of(v, symbols, producer, buffers)
        free = sizes_of(node)[side]
        contract, batch = node.params["contract"][side], node.params["batch"][side]
        if found is None:
            result.append(None)
            continue
        buffer, at = found
        names = {f"d{a}": f"b{i}" for i, a in enumerate(batch)}
        at = Affine(at.const, tuple((names.get(s, s), c) for s, c in at.terms))
        outer = [(f"d{a}", v.shape[a]) for a in free]
        inner = [(f"d{a}", v.shape[a]) for a in contract]
        result.append(_matrix(at, buffer, *((outer, inner) if side == 0 else (inner, outer))))
    return result[0], result[1]


def plan_contraction(
    name: str, node: Node, producer: Callable[[Value], Node | None],
    buffers: Mapping[Value, Buffer], target: Target,
) -> KernelPlan:  # fmt: skip
    """The gemm call of one `dot_general` whose operands BLAS can take as they lie."""
    left, right = matrices(node, producer, buffers)
    assert left is not None and right is not None, "the schedule gave an operand no usable layout"
    x, y = node.inputs
    free_x, free_y, batch, contract = sizes_of(node)
    m, n, k = prod(x.shape[a] for a in free_x), prod(y.shape[a] for a in free_y), prod(contract)
    out = buffers[node.out]
    strides = contiguous_strides((*batch, m, n))
    at = Affine()
    for i, size in enumerate(batch):
        at = at + (Affine.symbol(f"b{i}") * strides[i] if size > 1 else 0)
    rows, panels = m, 1
    if 2 * m * n * k > PANEL_FLOPS and prod(batch) == 1 and m >= 2 * PANELS:
        rows = max(ceil_div(m, PANELS), min(PANEL_ROWS, ceil_div(m, 2)))
        panels = ceil_div(m, rows)
    parallel = panels > 1
    if not parallel and not batch:
        panels = _unpacked_parts(m, n, k, right.transposed)
        rows = ceil_div(m, panels)
    height = str(m)
    body: list[Line | Loop] = []
    if panels > 1:
        first = Affine.symbol("row")
        left_at = left.base + first * (1 if left.transposed else left.leading)
        at, height = at + first * n, "rows"
        body.append(Line(f"const int64_t rows = row + {rows} < {m} ? {rows} : {m} - row;"))
    else:
        left_at = left.base
    kind = "f32" if x.dtype.name == "float32" else "f64"
    call = (
        f"tg_gemm_{kind}({int(left.transposed)}, {int(right.transposed)}, {height}, {n}, {k}, "
        f"{left.buffer.name} + {left_at.text()}, {left.leading}, "
        f"{right.buffer.name} + {right.base.text()}, {right.leading}, "
        f"{out.name} + {at.text()}, {n});"
    ).replace(" + 0,", ",")
    where = str(node.location) if node.location is not None else ""
    body.append(Line(call, where))
    threads = (PARALLEL,) if target.openmp else ()
    items: tuple[Line | Loop, ...] = tuple(body)
    if panels > 1:
        why = "one thread each" if parallel else "small enough for BLAS to multiply without packing"
        items = (Loop("row", str(m), items, step=str(rows), pragmas=threads if parallel else (),
                      comment=f"panels of {rows} rows, {why}"),)  # fmt: skip
    busy = 2 * m * n * k * prod(batch) > PANEL_FLOPS
    for i in range(len(batch) - 1, -1, -1):
        if batch[i] > 1:
            outermost = all(size == 1 for size in batch[:i])
            pragmas = threads if outermost and busy and panels == 1 else ()
            items = (Loop(f"b{i}", str(batch[i]), items, pragmas=pragmas),)
    used = [left.buffer] + ([right.buffer] if right.buffer.name != left.buffer.name else [])
    parameters = [Parameter(b.name, b.dtype.c_type, False, _shape(b.shape)) for b in used]
    parameters.append(Parameter(out.name, out.dtype.c_type, True, _shape(node.out.shape)))
    transposes = "".join(" transposed" if o.transposed else "" for o in (left,))
    summary = (
        f"({m} x {k}){transposes} times ({k} x {n}){' transposed' if right.transposed else ''}"
    )
    if batch:
        summary = f"{' x '.join(map(str, batch))} products {summary}"
    place = [f"{node.location}: {node.location.text}"] if node.location is not None else []
    size = x.dtype.itemsize
    return KernelPlan(
        name, (summary, *place), tuple(parameters), items,
        tuple(p.name for p in parameters),
        nbytes=prod(batch) * (m * k + k * n + m * n) * size, ops=2 * prod(batch) * m * n * k,
    )  # fmt: skip


def _unpacked_parts(m: int, n: int, k: int, transposed: bool) -> int:
    """In how many parts of its rows a product of one thread is quicker than as a whole."""
    if isinstance(m * n * k, Size) or (transposed and m > FEW_ROWS):
        return 1
    parts = ceil_div(m * n * k, UNPACKED)
    return parts if parts <= FEW_PARTS and m >= 4 * parts else 1


def _shape(shape: Shape) -> str:
    return f"[{', '.join(map(str, shape))}]"


# ---- layouts of operands --------------------------------------------------------------------------


def _base(value: Value, producer: Callable[[Value], Node | None]) -> Value:
    """The value whose buffer a chain of movement operations looks at."""
    while (node := producer(value)) is not None:
        views = ("reshape", "permute", "broadcast", "slice", "flip", "detach")
        if node.primitive.name not in views:
            break
        value = node.inputs[0]
    return value


def _as_buffer(value: Value, strides: Mapping[Value, Shape]) -> dict[Value, Buffer]:
    own = strides.get(value, contiguous_strides(value.shape))
    return {value: Buffer("?", value.dtype, value.shape, own)}


def realised_operand(
    node: Node, side: int, producer: Callable[[Value], Node | None], strides: Mapping[Value, Shape]
) -> Value | None:
    """What must have a buffer so that BLAS can read this operand; None where only a copy in
    canonical order will do.

    First choice is the value behind a chain of views: transposes are then folded into the call.
    """
    operand = node.inputs[side]
    base = _base(operand, producer)
    if matrices(node, producer, _views(node, side, base, strides))[side] is not None:
        return base
    if matrices(node, producer, _views(node, side, operand, strides))[side] is not None:
        return operand
    return None


def _views(
    node: Node, side: int, value: Value, strides: Mapping[Value, Shape]
) -> dict[Value, Buffer]:
    """Buffers for asking about one operand: the other one is taken as it is."""
    return {**_as_buffer(node.inputs[1 - side], {}), **_as_buffer(value, strides)}


def canonical_operands(graph: Graph, strides: Mapping[Value, Shape]) -> Graph:
    """Permute operands that BLAS cannot read into (batch, free, contracted) order.

    Pure; idempotent. Run after `expand_small`.
    """
    builder = GraphBuilder(graph.name)
    builder.inputs.extend(graph.inputs)
    new: dict[Value, Value] = {}
    for node in graph.nodes:
        inputs = [new.get(v, v) for v in node.inputs]
        params = dict(node.params)
        if node.primitive.name == "dot_general":
            builder.location = node.location
            contract, batch = list(params["contract"]), list(params["batch"])
            for side in (0, 1):
                if realised_operand(node, side, graph.producer, strides) is not None:
                    continue
                free = sizes_of(node)[side]
                order = (*batch[side], *free, *contract[side])
                with builder:
                    inputs[side] = ops.permute(inputs[side], axes=order)
                batch[side] = tuple(range(len(batch[side])))
                first = len(batch[side]) + len(free)
                contract[side] = tuple(range(first, len(order)))
            params = {"contract": tuple(contract), "batch": tuple(batch)}
        new[node.out] = builder.append(
            node.primitive, inputs, params, location=node.location, name=node.out.name
        )
    return builder.finish([new.get(v, v) for v in graph.outputs])
