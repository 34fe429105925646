"""Kernels of scatter_add, scatter_set and the like: copy the operand, then take the updates in in order.

The updates run on one thread in row-major order, so repeated indices give the same bits as eager
mode. Start reading at `plan_scatter`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

from tracegrad.codegen.affine import Affine, Index, offset
from tracegrad.codegen.body import Body
from tracegrad.codegen.lower import Buffer, Lowering, Term
from tracegrad.codegen.plan import KernelPlan, Line, Loop, Parameter
from tracegrad.ir.graph import Node, Value
from tracegrad.ir.types import Shape, contiguous_strides


def plan_scatter(
    name: str, node: Node, producer: Callable[[Value], Node | None], buffers: Mapping[Value, Buffer]
) -> KernelPlan:
    """The two loop nests of a scatter node."""
    x, updates, picks = node.inputs[0], node.inputs[1], node.inputs[2:]
    out = buffers[node.out]
    copy, _ = _nest(x.shape, "i", producer, buffers)
    index = _index(x.shape, "i")
    items: list[Line | Loop] = []
    if x.type.size:
        body = _body(copy, x.shape, "i")
        body.store(x.ndim, out, offset(index, contiguous_strides(x.shape)), copy.term(x, index))
        items += body.nest(_loops(x.shape, "i"))

    scatter, _ = _nest(updates.shape, "j", producer, buffers)
    at = _index(updates.shape, "j")
    if updates.type.size:
        where = scatter.picked(picks, node.params["axes"], x.shape, at, ())
        body = _body(scatter, updates.shape, "j")
        position = body.index(offset(where, contiguous_strides(x.shape)), updates.ndim)
        if x.type.size:  # else the indices are only checked, and refused
            value = body.emit(scatter.term(updates, at), updates.ndim)
            element = f"{out.name}[{position}]"
            body.at(updates.ndim, *_update(node, out, element, value.text))
        items += body.nest(_loops(updates.shape, "j"))
    read = sorted({t.template for low in (copy, scatter) for t in low.memo.values()
                   if isinstance(t, Term) and t.kind == "load"})  # fmt: skip
    by_name = {b.name: b for b in buffers.values()}
    parameters = [Parameter(n, by_name[n].dtype.c_type, False) for n in read]
    parameters.append(Parameter(out.name, out.dtype.c_type, True))
    place = [f"{node.location}: {node.location.text}"] if node.location is not None else []
    nbytes = (2 * prod(x.shape) + prod(updates.shape)) * x.dtype.itemsize
    return KernelPlan(
        name, (f"{node.primitive.name} of {prod(updates.shape)} updates", *place), tuple(parameters),
        tuple(items), (*read, out.name), nbytes=nbytes, ops=prod(updates.shape),
        uses_status=updates.type.size > 0,
    )  # fmt: skip


def _update(node: Node, out: Buffer, element: str, value: str) -> list[Line]:
    where = str(node.location) if node.location is not None else ""
    half = out.dtype.c_compute != out.dtype.c_type
    if node.primitive.name in _JOINED:
        return _joined(_JOINED[node.primitive.name], out, element, value, where)
    if node.primitive.name == "scatter_set":
        return [
            Line(f"{element} = {f'tg_store_{out.dtype.name}({value})' if half else value};", where)
        ]
    if half:
        total = f"tg_load_{out.dtype.name}({element}) + {value}"
        return [Line(f"{element} = tg_store_{out.dtype.name}({total});", where)]
    return [Line(f"{element} {'|' if out.dtype.kind == 'b' else '+'}= {value};", where)]


_JOINED = {
    "scatter_max": ("update > held{nan} ? update : held", "held | update"),
    "scatter_min": ("update < held{nan} ? update : held", "held & update"),
    "scatter_mul": ("held * update", "held & update"),
}
"""What comes to stand in the place of `held`: for numbers (NaN wins), and for truth values."""


def _joined(
    texts: tuple[str, str], out: Buffer, element: str, value: str, where: str
) -> list[Line]:
    dtype = out.dtype
    nan = " || update != update" if dtype.kind == "f" else ""
    text = texts[dtype.kind == "b"].format(nan=nan)
    half = dtype.c_compute != dtype.c_type
    held = f"tg_load_{dtype.name}({element})" if half else element
    new = f"tg_store_{dtype.name}({text})" if half else f"({dtype.c_type})({text})"
    return [
        Line(f"const {dtype.c_compute} update = {value};", where),
        Line(f"const {dtype.c_compute} held = {held};", where),
        Line(f"{element} = {new};", where),
    ]


def _variables(shape: Shape, letter: str) -> dict[str, int]:
    return {f"{letter}{d}": n for d, n in enumerate(shape)}


def _index(shape: Shape, letter: str) -> Index:
    return tuple(Affine() if n == 1 else Affine.symbol(f"{letter}{d}") for d, n in enumerate(shape))


def _nest(
    shape: Shape,
    letter: str,
    producer: Callable[[Value], Node | None],
    buffers: Mapping[Value, Buffer],
) -> tuple[Lowering, Index]:
    extents = _variables(shape, letter)
    lowering = Lowering(producer, buffers, extents, {}, prefix=letter, splits=False)
    return lowering, _index(shape, letter)


def _body(lowering: Lowering, shape: Shape, letter: str) -> Body:
    extents = _variables(shape, letter)
    return Body(lowering, lambda a: a, {v: d + 1 for d, v in enumerate(extents)}, extents)


def _loops(shape: Shape, letter: str) -> list[Loop]:
    return [Loop(v, str(n), ()) for v, n in _variables(shape, letter).items()]
