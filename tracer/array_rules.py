"""Backward rules as functions of NumPy arrays: what the eager engine runs when nobody watches.

A vjp rule is written with operations; run on Tensors it goes through the dispatcher at each step. In
the usual case (no history asked for, no recorder) that is not needed: so the rule is run once on
symbolic values, and the nodes it leaves become the text of a Python function that calls the
kernels one after the other. Start reading at `array_rule`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import CodeType
from typing import Any

import numpy as np

from tracegrad.ir import ops
from tracegrad.ir.graph import Graph, GraphBuilder, Node, Value
from tracegrad.ir.passes import optimize
from tracegrad.ir.primitive import Primitive
from tracegrad.ir.primitives.contraction import MATRIX_PRODUCT
from tracegrad.ir.types import TensorType
from tracegrad.runtime.cuda import eager
from tracegrad.runtime.cuda.array import DeviceArray, filled
from tracegrad.runtime.cuda.placing import device_index, resident

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
    arguments = [f"x{k}" for k in kept]
    return rule_of(builder.nodes, parts, Lines(names), arguments, {i: types[i] for i in zeros})


def kernel_of(op: Primitive, types: Sequence[TensorType]) -> Callable[..., Any]:
    """The eager kernel, without the part that widens half types where there are none."""
    half = any(t.dtype.itemsize == 2 and t.dtype.is_floating_point for t in types)
    found: Callable[..., Any] = op.eager if half else getattr(op.eager, "kernel", op.eager)
    return found


def bound(
    op: Primitive, types: Sequence[TensorType], params: Mapping[str, Any], out: TensorType
) -> Callable[..., Any]:
    """The eager kernel with its parameters filled in; a kernel's own `bind` may do better."""
    if out.device != "cpu":
        return eager.bound(op, types, params, out)
    kernel = kernel_of(op, types)
    bind = getattr(kernel, "bind", None)
    if bind is not None:
        found: Callable[..., Any] = bind(types, params)
        return found
    return partial(kernel, **params) if params else kernel


def is_exact(kernel: Callable[..., Any], types: Sequence[TensorType], out: TensorType) -> bool:
    """Whether a kernel is known to give an array of the dtype that the record's rule says.

    NumPy's own functions do so for floats of one dtype; of 0-d arrays they make scalars.
    """
    if kernel is MATRIX_PRODUCT:
        return True
    if out.device != "cpu":
        return not isinstance(kernel, eager.Viewer)
    same = all(t.dtype is out.dtype for t in types) and out.dtype.name in ("float32", "float64")
    return same and isinstance(kernel, np.ufunc) and bool(out.shape)


class Lines:
    """Text of a Python function that calls kernels, and what its names stand for.

    Attributes:
        names: of the values that are at hand.
        lines: of the body, so far.
        globals: what other names in the text stand for.
    """

    def __init__(self, names: dict[Value, str]) -> None:
        self.names = names
        self.lines: list[str] = []
        self.globals: dict[str, Any] = {"as_array": np.asarray}

    def step(
        self, op: Primitive, types: Sequence[TensorType], params: Mapping[str, Any],
        out: TensorType, name: str, given: Sequence[str],
    ) -> None:  # fmt: skip
        """Add `name = op(given)`, an array of the dtype that the record's rule says."""
        kernel = bound(op, types, params, out)
        called = (
            op.name if self.globals.setdefault(op.name, kernel) is kernel else f"{op.name}_{name}"
        )
        self.globals[called] = kernel
        call = f"{called}({', '.join(given)})"
        exact = out.device != "cpu" or op.family == "movement" or is_exact(kernel, types, out)
        if not exact:
            self.globals[f"d_{name}"] = out.dtype.numpy
            call = f"as_array({call}, d_{name})"
        self.lines.append(f"{name} = {call}")

    def function(self, signature: str, returned: Sequence[str]) -> Any:
        """The function `signature` that returns a tuple; its text is `text`."""
        what = ", ".join(returned) + "," * (len(returned) == 1)
        self.text = "\n    ".join([f"def {signature}:", *self.lines, f"return {what}"])
        return function_of(self.text, self.globals, signature.partition("(")[0])


def function_of(text: str, known: dict[str, Any], name: str) -> Any:
    """The function `name` that `text` defines over the names in `known`."""
    code = _CODE.get(text)
    if code is None:
        code = _CODE[text] = compile(text, "<tracegrad kernels>", "exec")
    exec(code, known)
    return known[name]


def _of_nothing(node: Node) -> bool:
    """Whether a node sums no elements: its result is known (see `zero_of`)."""
    return node.primitive.name == "reduce_sum" and not node.inputs[0].type.size


def _constant(node: Node) -> Any:
    """The value of a node that depends on no data."""
    if node.inputs:
        return zeros_of(node.out.type)
    return as_array(bound(node.primitive, (), node.params, node.out.type)())


def as_array(x: Any, dtype: Any = None) -> Any:
    """As `numpy.asarray`; arrays on a device are what they should be."""
    return x if x.__class__ is DeviceArray else np.asarray(x, dtype)


def as_array_of(type: TensorType) -> Any:
    """`numpy.asarray`, or for results on a device a function that leaves them as they are."""
    return np.asarray if type.device == "cpu" else as_array


def ones_of(type: TensorType) -> Any:
    """A new array of ones."""
    if type.device == "cpu":
        return np.ones(type.shape, type.dtype.numpy)
    return filled(type.shape, np.ones((), type.dtype.numpy), device_index(type.device))


def zeros_of(type: TensorType) -> Any:
    """A new array of zeros."""
    if type.device == "cpu":
        return np.zeros(type.shape, type.dtype.numpy)
    return DeviceArray.zeros(type.shape, type.dtype.numpy, device_index(type.device))


def _compiled_rule(
    nodes: Sequence[Node], parts: Sequence[Value | None], lines: Lines, arguments: Sequence[str],
    zeros: Mapping[int, TensorType], device: str,
) -> ArrayRule:  # fmt: skip
    """The same on a device: one graph, compiled, for all parts."""
    values = {name: v for v, name in lines.names.items()}
    given = ["ct", *arguments]
    held = [name for name in values if name in lines.globals]  # constants of the function
    outputs = [p for p in parts if p is not None]
    graph = Graph(
        tuple(values[name] for name in (*given, *held)), tuple(nodes), tuple(outputs), "rule"
    )
    from tracegrad.runtime.cuda.programs import Program

    program = Program(optimize(graph), device)
    constants = [resident(as_array(lines.globals[name]), program.index) for name in held]

    def run(*arrays: Any) -> tuple[Any, ...]:
        made = iter(program(*arrays, *constants))
        return tuple([
            zeros_of(zeros[i]) if i in zeros else None if p is None else next(made)
            for i, p in enumerate(parts)
        ])  # fmt: skip

    fresh = tuple(p is not None or i in zeros for i, p in enumerate(parts))
    return ArrayRule(run, fresh, str(program.graph))


def rule_of(
    nodes: Sequence[Node], parts: Sequence[Value | None], lines: Lines, arguments: Sequence[str],
    zeros: Mapping[int, TensorType],
) -> ArrayRule:  # fmt: skip
    """The function of a cotangent `ct` and `arguments` that computes `parts`.

    Args:
        nodes: where the parts come from.
        lines: with the names of the values that are at hand.
        zeros: positions of parts that are zeros, and their types.
    """
    live = {p for p in parts if p is not None}
    for node in reversed(nodes):
        if node.out in live and not _of_nothing(node):
            live.update(node.inputs)
    at_work = [n for n in nodes if n.out in live]
    device = next((v.type.device for v in lines.names if v.type.device != "cpu"), "cpu")
    if device != "cpu" and any(n.inputs and n.primitive.name not in eager.VIEWS for n in at_work):
        return _compiled_rule(at_work, parts, lines, arguments, zeros, device)
    for number, node in enumerate(at_work):
        if node.primitive.name == "constant" or _of_nothing(node):
            name = lines.names[node.out] = f"c{number}"
            lines.globals[name] = _constant(node)
            continue
        name = f"t{number}"
        given = [lines.names[v] for v in node.inputs]
        types = [v.type for v in node.inputs]
        lines.step(node.primitive, types, node.params, node.out.type, name, given)
        lines.names[node.out] = name
    producers = {node.out: node for node in nodes}
    returned, fresh, seen = [], [], set()
    for i, part in enumerate(parts):
        if i in zeros:
            lines.globals |= {"zeros": zeros_of, f"type_{i}": zeros[i]}
            returned.append(f"zeros(type_{i})")
            fresh.append(True)
            continue
        name = "None" if part is None else lines.names[part]
        made = producers.get(part) if part is not None else None
        own = made is not None and made.primitive.family != "movement"
        own = own and made is not None and made.primitive.name not in ("detach", "constant")
        own = own and made is not None and not _of_nothing(made)
        if part in seen and name not in ("None", "ct"):
            name, own = f"{name}.copy()", True  # operands must not share what may be added to
        seen.add(part)
        returned.append(name)
        fresh.append(own)
    run = lines.function(f"rule({', '.join(['ct', *arguments])})", returned)
    return ArrayRule(run, tuple(fresh), lines.text)
