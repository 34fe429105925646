"""Backward rules as functions of NumPy arrays: what the eager engine runs when nobody watches.

A vjp rule is written with operations; run on Tensors it goes through the dispatcher at each step. In
the usual case (no history asked for, no recorder) that is not needed: so the rule is run once on
symbolic values, and the nodes it leaves become the text of a Python function that calls the
kernels one after the other. Start reading at `array_rule`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any

import numpy as np

from tracegrad.ir import ops
from tracegrad.ir.graph import GraphBuilder, Node, Value
from tracegrad.ir.primitive import Primitive
from tracegrad.ir.types import TensorType

_CODE: dict[str, CodeType] = {}  # by text: rules of one operation differ in shapes, not in text


@dataclass(frozen=True, slots=True)
class ArrayRule:
    """A rule for operands of given types.

    Attributes:
        run: from the cotangent and the arrays kept, in order, to one array per operand (None where
            no cotangent is wanted or it is zero).
        fresh: for each operand, whether its array is new memory that nobody else has.
        text: the source of `run`.
    """

    run: Callable[..., tuple[Any, ...]]
    fresh: tuple[bool, ...]
    text: str


def array_rule(
    op: Primitive, types: Sequence[TensorType], params: Mapping[str, Any], wanted: int,
    kept: Sequence[int],
) -> ArrayRule:  # fmt: skip
    """The vjp rules of the operands in bit set `wanted`, as one function.

    Args:
        kept: positions of the operands (last, of the result) that are at hand.
    Example:
        >>> from tracegrad.ir import dtypes
        >>> row = TensorType((3,), dtypes.float32)
        >>> print(array_rule(ops.mul, (row, row), {}, 0b11, (0, 1)).text)
        def rule(ct, x0, x1):
            t0 = mul(ct, x1)
            t1 = mul(ct, x0)
            return t0, t1
    """
    builder = GraphBuilder()
    values = [builder.input(t) for t in (*types, op.infer(types, params))]
    ct = builder.input(values[-1].type)
    parts: list[Value | None] = []
    zeros: set[int] = set()  # operands whose derivative is zero everywhere
    with builder:
        for i, type in enumerate(types):
            part = None
            if wanted >> i & 1:
                part = op.cotangent(i, ct, values[-1], values[:-1], params)
                if part is None:
                    zeros.add(i)
                elif part.shape != type.shape:
                    part = ops.unbroadcast(part, type.shape)
            parts.append(part)
    names = {ct: "ct"} | {values[k]: f"x{k}" for k in kept}
    writer = _Writer(builder.nodes, names, {i: types[i] for i in zeros})
    return writer.written(parts, [f"x{k}" for k in kept])


def kernel_of(op: Primitive, types: Sequence[TensorType]) -> Callable[..., Any]:
    """The eager kernel, without the part that widens half types where there are none."""
    half = any(t.dtype.itemsize == 2 and t.dtype.is_floating_point for t in types)
    found: Callable[..., Any] = op.eager if half else getattr(op.eager, "kernel", op.eager)
    return found


def is_exact(kernel: Callable[..., Any], types: Sequence[TensorType], out: TensorType) -> bool:
    """Whether a kernel is known to give an array of the dtype that the record's rule says.

    NumPy's own functions do so for floats of one dtype; of 0-d arrays they make scalars.
    """
    same = all(t.dtype is out.dtype for t in types) and out.dtype.name in ("float32", "float64")
    return same and isinstance(kernel, np.ufunc) and bool(out.shape)


class _Writer:
    """Writes the nodes of a rule as lines, and collects what their names stand for."""

    def __init__(
        self, nodes: Sequence[Node], names: dict[Value, str], zeros: Mapping[int, TensorType]
    ) -> None:
        self.nodes = nodes
        self.names = names
        self.zeros = zeros
        self.lines: list[str] = []
        self.globals: dict[str, Any] = {"as_array": np.asarray}

    def written(self, parts: Sequence[Value | None], arguments: Sequence[str]) -> ArrayRule:
        """The function that computes `parts`."""
        live = {p for p in parts if p is not None}
        for node in reversed(self.nodes):
            if node.out in live:
                live.update(node.inputs)
        for node in self.nodes:
            if node.out in live:
                self._node(node)
        producers = {node.out: node for node in self.nodes}
        results, fresh, seen = [], [], set()
        for i, part in enumerate(parts):
            if i in self.zeros:
                type = self.zeros[i]
                self.globals |= {"zeros": np.zeros, f"s{i}": type.shape, f"z{i}": type.dtype.numpy}
                results.append(f"zeros(s{i}, z{i})")
                fresh.append(True)
                continue
            name = "None" if part is None else self.names[part]
            made = producers.get(part) if part is not None else None
            own = made is not None and made.primitive.family != "movement"
            own = own and made is not None and made.primitive.name not in ("detach", "constant")
            if part in seen and name not in (
                "None",
                "ct",
            ):  # two operands must not share what may be added to
                name, own = f"{name}.copy()", True
            seen.add(part)
            results.append(name)
            fresh.append(own)
        returned = results[0] + "," if len(results) == 1 else ", ".join(results)
        body = [*self.lines, f"return {returned}"]
        text = "\n    ".join([f"def rule({', '.join(['ct', *arguments])}):", *body])
        code = _CODE.get(text)
        if code is None:
            code = _CODE[text] = compile(text, "<tracegrad backward rule>", "exec")
        exec(code, self.globals)
        return ArrayRule(self.globals["rule"], tuple(fresh), text)

    def _node(self, node: Node) -> None:
        op, out = node.primitive, node.out
        number = sum(name[0] in "tc" and name != "ct" for name in self.names.values())
        if op.name == "constant":
            name = self.names[out] = f"c{number}"
            self.globals[name] = np.asarray(op.eager(**node.params))
            return
        name = self.names[out] = f"t{number}"
        types = [v.type for v in node.inputs]
        kernel = kernel_of(op, types)
        self.globals[op.name] = kernel
        given = [self.names[v] for v in node.inputs]
        if node.params:
            self.globals[f"p{number}"] = dict(node.params)
            given.append(f"**p{number}")
        call = f"{op.name}({', '.join(given)})"
        if op.family == "movement" or is_exact(kernel, types, out.type):
            self.lines.append(f"{name} = {call}")
        else:
            self.globals[f"d{number}"] = out.dtype.numpy
            self.lines.append(f"{name} = as_array({call}, d{number})")
