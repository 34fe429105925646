"""Products: calls of cuBLAS, or kernels in tiles, by rows or by columns.

`dot_general` reads its operands as they lie, through the same strided views as in C
(`contraction.matrices`). With cuBLAS large products of floats become `Product`s; else a product of two
matrices runs in tiles (`codegen.cuda.tiles`) and a matrix times a vector by a warp for each row, or,
where the rows are neighbours in memory, by a thread for each. All sums are taken in an order that is fixed
by the sizes. Start reading at `plan_product`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from tracegrad.codegen.affine import Affine
from tracegrad.codegen.contraction import Operand, matrices, sizes_of
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
    reach,
    summary_of,
)
from tracegrad.codegen.cuda.plan import WARP, CudaKernel, CudaTarget, Product
from tracegrad.codegen.cuda.tiles import (
    MOST_SPLITS,
    Side,
    Work,
    combining,
    plan_tiles,
    split_results,
)
from tracegrad.codegen.lower import Buffer
from tracegrad.ir.graph import Node, Value

MOST_CALLS = 16  # calls of cuBLAS for one node whose batches do not lie evenly
LEAST_OPS = {2: 1 << 23, 4: 1 << 26, 8: 1 << 26}
"""Operations of one call, by bytes of an element, below which a kernel of ours is launched sooner: the
host takes 10 to 15 microseconds for a call and 2 to 4 for a launch. Halves gain more from a call."""
VECTOR_THREADS = 256
FEW_ROWS = 256  # rows up to which a block, not a warp, takes each
LEAST_SHARE = 8  # products of one thread below which a further part costs more than it saves


@dataclass(frozen=True)
class Layout:
    """A `dot_general` as matrices: sizes, and operands as they lie in memory."""

    m: int
    n: int
    k: int
    batch: tuple[int, ...]
    left: Operand
    right: Operand
    out: Buffer

    @property
    def ops(self) -> int:
        """Multiplications and additions."""
        return 2 * prod(self.batch) * self.m * self.n * self.k

    @property
    def summary(self) -> str:
        """What is multiplied, in words."""
        turned = [" transposed" if o.transposed else "" for o in (self.left, self.right)]
        text = f"({self.m} x {self.k}){turned[0]} times ({self.k} x {self.n}){turned[1]}"
        return f"{' x '.join(map(str, self.batch))} products {text}" if self.batch else text


def plan_product(
    name: str, node: Node, producer: Callable[[Value], Node | None],
    buffers: Mapping[Value, Buffer], target: CudaTarget,
) -> tuple[CudaKernel, ...]:  # fmt: skip
    """The kernels of one `dot_general` whose operands lie as rows or columns."""
    layout = _layout(node, producer, buffers)
    if layout.m * layout.n * prod(layout.batch) == 0:
        return ()
    numbers = element(node.out.dtype)
    calls = _calls(layout, numbers) if target.cublas else None
    if calls is not None and layout.ops >= LEAST_OPS[numbers.dtype.itemsize] * len(calls):
        return tuple(_call(name, i, node, layout, p, len(calls)) for i, p in enumerate(calls))
    if min(layout.m, layout.n) == 1 and layout.k > 0:
        return _vector(name, node, layout, numbers, target)
    work = _work(layout, numbers)
    return plan_tiles(
        name, work, target, summary_of(node, layout.summary), _nbytes(layout), layout.ops
    )


def _layout(
    node: Node, producer: Callable[[Value], Node | None], buffers: Mapping[Value, Buffer]
) -> Layout:
    left, right = matrices(node, producer, buffers)
    assert left is not None and right is not None, "the schedule gave an operand no usable layout"
    x, y = node.inputs
    free_x, free_y, batch, contract = sizes_of(node)
    m, n = prod(plain([x.shape[a] for a in free_x])), prod(plain([y.shape[a] for a in free_y]))
    return Layout(m, n, prod(plain(contract)), plain(batch), left, right, buffers[node.out])


def _nbytes(layout: Layout) -> int:
    m, n, k = layout.m, layout.n, layout.k
    return prod(layout.batch) * (m * k + k * n + m * n) * layout.out.dtype.itemsize


# ---- cuBLAS ---------------------------------------------------------------------------------------


def _strides(operand: Operand, batch: Sequence[int]) -> list[int]:
    return [int(operand.base.coefficient(f"b{i}")) for i in range(len(batch))]


def _calls(layout: Layout, numbers: Element) -> list[Product] | None:
    """The calls; one where the batches lie evenly. None where cuBLAS cannot do it."""
    m, n, k, batch = layout.m, layout.n, layout.k, layout.batch
    leading = (int(layout.left.leading), int(layout.right.leading), n)
    if not numbers.is_float or k == 0 or max(m, n, k, *leading) > INT_MAX:
        return None
    whole = [m * n * prod(batch[i + 1 :]) for i in range(len(batch))]
    strides = [_strides(layout.left, batch), _strides(layout.right, batch), whole]
    outer = len(batch)  # axes from here on are one batch
    count, apart = 1, (0, 0, 0)
    for i in range(len(batch) - 1, -1, -1):
        step = (strides[0][i], strides[1][i], strides[2][i])
        if batch[i] > 1:
            if count > 1 and any(s != a * count for s, a in zip(step, apart, strict=True)):
                break
            apart = step if count == 1 else apart
            count *= batch[i]
        outer = i
    if prod(batch[:outer]) > MOST_CALLS or min(min(apart), 0) < 0:
        return None
    start = (int(layout.left.base.const), int(layout.right.base.const), 0)
    calls = []
    for at in itertools.product(*(range(size) for size in batch[:outer])):
        offsets = tuple(
            first + sum(b * s for b, s in zip(at, own, strict=False))
            for first, own in zip(start, strides, strict=True)
        )
        calls.append(Product(
            numbers.dtype.name, m, n, k, count, (layout.left.transposed, layout.right.transposed),
            leading, apart, (offsets[0], offsets[1], offsets[2]),
        ))  # fmt: skip
    return calls


def _call(
    name: str, number: int, node: Node, layout: Layout, product: Product, calls: int
) -> CudaKernel:
    arguments = (layout.left.buffer.name, layout.right.buffer.name, layout.out.name)
    return CudaKernel(
        f"{name}_{number}" if calls > 1 else name, summary_of(node, layout.summary),
        arguments=arguments, product=product, nbytes=_nbytes(layout) // calls,
        ops=layout.ops // calls,
    )  # fmt: skip


# ---- tiles ----------------------------------------------------------------------------------------


def _work(layout: Layout, numbers: Element) -> Work:
    """The product as `plan_tiles` takes it."""
    left, right, m, n = layout.left, layout.right, layout.m, layout.n
    batch = prod(layout.batch)
    index = index_type(batch * m * n, reach(left.buffer), reach(right.buffer))
    wide = "(int64_t)" if index == "int64_t" else ""
    used = {s for o in (left, right) for s in o.base.symbols}
    lines = parts_of("batch", [(f"b{i}", size) for i, size in enumerate(layout.batch)], index)
    sides = (
        Side(described("a", left.buffer), "outer" if left.transposed else "k",
             _element("a", left, "row", "k", wide)),
        Side(described("b", right.buffer), "k" if right.transposed else "outer",
             _element("b", right, "k", "column", wide)),
    )  # fmt: skip
    at = f"batch * {m * n} + " if batch > 1 else ""
    return Work(
        m, n, layout.k, batch, numbers, sides, described("c", layout.out, True),
        f"{wide}{at}{wide}row * {n} + column",
        (left.buffer.name, right.buffer.name, layout.out.name), index, "batch",
        tuple(line for line in lines if line.split()[2] in used),
    )  # fmt: skip


def _element(name: str, operand: Operand, row: str, column: str, wide: str = "") -> str:
    """The element of an operand at a row and a column (or "": 0) of the matrix that it stands for."""
    high, low = (column, row) if operand.transposed else (row, column)
    at = operand.base + (Affine.symbol("line") * int(operand.leading) if high else 0)
    at += Affine.symbol("place") if low else 0
    return f"{name}[{at.text().replace('line', f'{wide}{high}').replace('place', low)}]"


# ---- a matrix times a vector ----------------------------------------------------------------------


@dataclass(frozen=True)
class VectorPlan:
    """What the template `product_vector.cu.j2` lays out.

    Attributes:
        k, rows: of the matrix; total: rows of all products together.
        work: the product; its text for reading elements is not used.
        matrix, vector: the elements at `row` and `k`, in C.
        lanes: threads that share one sum; each: sums of a block.
        lane_first: neighbouring threads are lanes of one sum, not rows.
        splits, part: parts of the sum, and the length of one.
    """

    k: int
    rows: int
    total: int
    work: Work
    matrix: str
    vector: str
    lanes: int
    each: int
    lane_first: bool
    splits: int
    part: int


def _vector(
    name: str, node: Node, layout: Layout, numbers: Element, target: CudaTarget
) -> tuple[CudaKernel, ...]:
    """A matrix times a vector, or a vector times a matrix."""
    work = _work(layout, numbers)
    turned = layout.m == 1 and layout.n > 1  # the vector is on the left
    rows = max(layout.m, layout.n)
    wide = "(int64_t)" if work.index == "int64_t" else ""
    if turned:
        matrix = _element("b", layout.right, "k", "row", wide)
        vector = _element("a", layout.left, "", "k", wide)
    else:
        matrix = _element("a", layout.left, "row" if rows > 1 else "", "k", wide)
        vector = _element("b", layout.right, "k", "", wide)
    lane_first = rows == 1 or work.sides[turned].along == "k"
    total = rows * work.batch
    lanes = VECTOR_THREADS // WARP
    if lane_first:
        few = total <= FEW_ROWS and layout.k >= LEAST_SHARE * VECTOR_THREADS
        lanes = VECTOR_THREADS if few else WARP
    each = VECTOR_THREADS // lanes
    blocks = ceil_div(total, each)
    splits = 1
    if blocks < target.multiprocessors:
        splits = min(ceil_div(target.multiprocessors, blocks), layout.k // (LEAST_SHARE * lanes))
    splits = max(1, min(splits, MOST_SPLITS))
    part = ceil_div(layout.k, splits)
    splits = ceil_div(layout.k, part)
    plan = VectorPlan(
        layout.k, rows, total, work, matrix, vector, lanes, each, lane_first, splits, part
    )
    how = f"{lanes} threads for each of {total} sums"
    how += f"; the sums in {splits} parts of {part}." if splits > 1 else "."
    results, arguments, scratch = split_results(name, work, splits)
    kernel = own_kernel("product_vector.cu.j2", CudaKernel(
        name, summary_of(node, layout.summary, how), (*(s.parameter for s in work.sides), results),
        arguments=arguments, grid=(blocks, splits, 1), block=(VECTOR_THREADS, 1, 1),
        nbytes=_nbytes(layout), ops=layout.ops, scratch=scratch,
    ), plan=plan)  # fmt: skip
    return kernel, *combining(name, work, splits, scratch, summary_of(node, layout.summary))
