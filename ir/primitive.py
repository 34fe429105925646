"""The record of a primitive, the table of all records, and `bind`, which applies one.

A primitive is declared once, in `ir/primitives/<family>.py`; its record holds all that any part
of the system needs. The record is callable: `sin(x)` checks and promotes the operands, then hands
them to `bind`, which looks at what they are:

- NumPy arrays: the eager kernel runs;
- `Value`s of a graph under construction: a node is appended;
- objects of a higher layer (Tensors): their class's `__tracegrad_bind__` takes over.

So a rule written with records builds IR in a pass and computes in the eager tape.
Start reading at `Primitive`, then `bind`.

Rules are given one per argument, so that the eager engine evaluates only what is asked for:
`vjp[i](ct, out, *args, **params)` is the cotangent of argument i; `jvp[i](dx, out, *args, **params)`
is what the tangent of argument i contributes to the tangent of the result (contributions are
summed by the driver). Rules never un-broadcast, never sum, never ask who needs a gradient.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import DTypeError, KernelError, NotDifferentiableError, OperandError
from tracegrad.ir.types import Shape, TensorType


class _Stated:
    """A derivative that is stated in words rather than by a rule."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


LINEAR = _Stated("LINEAR")
"""As a `jvp`: the operation applied to the tangent (the operation is linear in its argument)."""
ZERO = _Stated("ZERO")
"""The derivative exists and is zero (floor, comparisons, integer results)."""
NOT_DIFFERENTIABLE = _Stated("NOT_DIFFERENTIABLE")
"""Asking for the derivative raises `NotDifferentiableError`, naming the operation."""

Rule = Callable[..., Any]
Derivative = Any  # tuple of (Rule | ZERO | None), one per argument; a Rule for variadic; or _Stated

NUMERIC, FLOAT, INTEGRAL, NO_PROMOTION = "numeric", "float", "integral", "none"


@dataclass(frozen=True)
class Sample:
    """Operands and parameters with which tests exercise a primitive.

    `kind` is the shape class: "plain", "scalar", "empty", "broadcast", "strided" or "large".
    """

    operands: tuple[Any, ...]
    params: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "plain"


@dataclass(frozen=True)
class Refusal:
    """Operands that a primitive refuses: the error class and a regular expression of its text."""

    operands: tuple[Any, ...]
    params: Mapping[str, Any]
    error: type[Exception]
    match: str


@dataclass(frozen=True, eq=False)
class Primitive:
    """Everything about one operation.

    Attributes:
        name: the name in the IR and in the table.
        args: names of the array operands, in order; one name, with `variadic`, for any number.
        params: names of the static keyword parameters; their values are hashable.
        family: "pointwise", "reduction", "movement", "indexing", "contraction", "convolution",
            "window", "random" or "creation"; the code generator dispatches on it.
        shape: `shape(*types, **params)` -> result shape; raises what bad shapes deserve.
        dtype: `dtype(*types, **params)` -> result DType.
        eager: `eager(*arrays, **params)` -> ndarray, the NumPy reference.
        vjp, jvp: see the module; `None` for an argument means it takes no gradient (integers).
        batch: `batch(size, batched, *args, **params)` -> result with the new axis first, where
            `batched[i]` says that argument i carries the new axis first; or a string saying why
            the primitive has none.
        promote: which operands take part in type promotion (None: all of them).
        promotion: NUMERIC, FLOAT (integers become the default float), INTEGRAL (integers and
            bool only) or NO_PROMOTION.
        dtypes: dtypes accepted for the promoted operands.
        refused: the text of the error for some of the other dtypes, by dtype name, where PyTorch
            has one of its own.
        kernel: PyTorch's kernel, which the error for the others names; by default `<name>_cpu`.
        normalize: `normalize(types, params)` -> canonical params (axes counted from 0, tuples).
        c_expr: C expression of one element, by dtype name of the first promoted operand or one
            for all; `{x}` stands for operand x, `{f}` for the libm suffix, `{T}` for the C type,
            `{order}` for the parameter of that name. A helper that can fail takes `status`.
        cuda_expr: the same for CUDA where it differs.
        cost: operations per element, about; 1 for add, 10 or more for libm calls.
        ulp: how far compiled may be from eager, in units in the last place.
        samples: `samples(rng, dtype)` yields Samples of every shape class that makes sense.
        refusals: what it must refuse.
        numbers: `numbers(*operands)` refuses Python numbers among them by their value.
        backward_name: how the gradient node prints (`SinBackward0`), or a function of params.
        source: where the formula or the kernel comes from.
    """

    name: str
    args: tuple[str, ...]
    family: str
    shape: Callable[..., Shape]
    dtype: Callable[..., DType]
    eager: Callable[..., Any]
    vjp: Derivative
    jvp: Derivative
    batch: Callable[..., Any] | str
    samples: Callable[[np.random.Generator, DType], Iterable[Sample]]
    source: str
    doc: str = ""
    params: tuple[str, ...] = ()
    variadic: bool = False
    promote: tuple[str, ...] | None = None
    promotion: str = NUMERIC
    dtypes: tuple[DType, ...] = dtypes.ALL
    refused: Mapping[str, str] = field(default_factory=dict)
    kernel: str = ""
    normalize: Callable[..., Mapping[str, Any]] | None = None
    c_expr: Mapping[str, str] | str | None = None
    cuda_expr: Mapping[str, str] | str | None = None
    cost: int = 1
    ulp: int = 0
    refusals: tuple[Refusal, ...] = ()
    numbers: Callable[..., None] | None = None
    backward_name: str | Callable[[Mapping[str, Any]], str] = ""

    def __post_init__(self) -> None:
        for which in ("vjp", "jvp"):
            rules = getattr(self, which)
            stated = isinstance(rules, _Stated) or (self.variadic and callable(rules))
            if not stated and not (isinstance(rules, tuple) and len(rules) == len(self.args)):
                raise TypeError(f"primitive {self.name}: {which} must state one rule per argument")

    def __repr__(self) -> str:
        return f"<primitive {self.name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return (get, (self.name,))

    def __call__(self, *operands: Any, **params: Any) -> Any:
        """Check and promote `operands`, then apply the primitive to them."""
        if self.numbers is not None:
            self.numbers(*operands)
        for x in operands:
            call = getattr(type(x), "__tracegrad_call__", None)
            if call is not None:
                return call(self, operands, params)
        return self.checked(operands, params)

    def checked(self, operands: tuple[Any, ...], params: Mapping[str, Any]) -> Any:
        """As a call, without looking whether the layer of the operands has a shorter way."""
        operands, params = self.prepared(operands, params)
        return bind(self, operands, params)

    def prepared(
        self, operands: tuple[Any, ...], params: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Promoted operands and canonical parameters."""
        if not self.variadic and len(operands) != len(self.args):
            raise OperandError(
                f"{self.name}: takes {len(self.args)} operand(s) ({', '.join(self.args)}), "
                f"got {len(operands)}"
            )
        operands = promoted(self, operands)
        if self.normalize is not None:
            params = dict(self.normalize([type_of(x) for x in operands], params))
        return operands, params

    def infer(self, types: Sequence[TensorType], params: Mapping[str, Any]) -> TensorType:
        """The type of the result; raises the error that unfit operands deserve."""
        device = "cpu"
        for t in types:
            if t.device != "cpu":
                device = t.device
                break
        return TensorType(self.shape(*types, **params), self.dtype(*types, **params), device)

    def grad_name(self, params: Mapping[str, Any]) -> str:
        """The PyTorch-style name of the backward node, e.g. `SinBackward0`."""
        if callable(self.backward_name):
            return self.backward_name(params)
        if self.backward_name:
            return self.backward_name
        return "".join(w.capitalize() for w in self.name.split("_")) + "Backward0"

    def cotangent(
        self, i: int, ct: Any, out: Any, args: Sequence[Any], params: Mapping[str, Any]
    ) -> Any:
        """Cotangent of argument `i`, not yet un-broadcast; None where it is zero."""
        rule = self._rule("vjp", i)
        if rule is None:
            return None
        if self.variadic:
            return rule(i, ct, out, *args, **params)
        return rule(ct, out, *args, **params)

    def tangent(
        self, i: int, dx: Any, out: Any, args: Sequence[Any], params: Mapping[str, Any]
    ) -> Any:
        """What tangent `dx` of argument `i` adds to the result's tangent; None where it is zero."""
        rule = self._rule("jvp", i)
        if rule is None:
            return None
        if rule is LINEAR:
            return bind(self, tuple(dx if j == i else a for j, a in enumerate(args)), dict(params))
        if self.variadic:
            return rule(i, dx, out, *args, **params)
        return rule(dx, out, *args, **params)

    def _rule(self, which: str, i: int) -> Any:
        rules = getattr(self, which)
        rule = rules[i] if isinstance(rules, tuple) else rules
        if rule is NOT_DIFFERENTIABLE:
            raise NotDifferentiableError(
                f"{self.name}: has no derivative; detach() its operand if none should flow"
            )
        return None if rule is ZERO else rule

    def takes_gradient(self, i: int) -> bool:
        """False where argument `i` can never pass a gradient on (stated ZERO, or an index)."""
        rules = self.vjp
        rule = rules[i] if isinstance(rules, tuple) else rules
        return rule is not None and rule is not ZERO

    def has_history(self, i: int) -> bool:
        """Whether a result depends on argument `i` as PyTorch sees it: also where the derivative is
        zero everywhere (`floor`), whose gradients are zeros then. Not for `detach`, nor an index.
        """
        rules = self.vjp
        rule = rules[i] if isinstance(rules, tuple) else rules
        return rule is not None and self.name != "detach"


TABLE: dict[str, Primitive] = {}
"""All primitives by name, in the order of their declaration."""


def primitive(name: str, **record: Any) -> Primitive:
    """Declare a primitive: build its record and enter it into the table.

    Raises:
        TypeError: a field is missing, or the name is taken.
    """
    if name in TABLE:
        raise TypeError(f"primitive {name} is declared twice")
    TABLE[name] = made = Primitive(name=name, **record)
    return made


def get(name: str) -> Primitive:
    """The record called `name`."""
    return TABLE[name]


def is_scalar(x: Any) -> bool:
    """True for Python and NumPy numbers, which are weak in type promotion beside tensors."""
    return isinstance(x, (bool, int, float, np.generic))


def type_of(x: Any) -> TensorType:
    """The TensorType of an operand of any layer."""
    if isinstance(x, np.ndarray | np.generic):
        return TensorType(x.shape, dtypes.from_numpy(x.dtype))
    found = getattr(x, "type", None)
    if isinstance(found, TensorType):
        return found
    return TensorType(x.shape, x.dtype, str(getattr(x, "device", "cpu")))


def _operand_dtype(op: Primitive, x: Any, operands: Sequence[Any]) -> tuple[DType, int | None]:
    if isinstance(x, np.generic) and not any(
        hasattr(type(y), "__tracegrad_bind__") for y in operands
    ):
        # among arrays it is the result of arithmetic on 0-d ones, and keeps its dtype
        return dtypes.from_numpy(x.dtype), 0
    if is_scalar(x):
        return dtypes.scalar_dtype(x.item() if isinstance(x, np.generic) else x), None
    if isinstance(x, np.ndarray):
        return dtypes.from_numpy(x.dtype), x.ndim
    if hasattr(type(x), "__tracegrad_bind__"):
        return x.dtype, x.ndim
    raise OperandError(f"{op.name}: operand must be a tensor or a number, got {type(x).__name__}")


def promoted(op: Primitive, operands: Sequence[Any]) -> tuple[Any, ...]:
    """Cast the operands that take part in promotion to their common dtype.

    Numbers become NumPy scalars of that dtype, so a kernel never sees a weak type.

    Raises:
        DTypeError: the common dtype is not among those that `op` accepts.
        OperandError: an operand is neither a tensor nor a number.
    """
    seen = [_operand_dtype(op, x, operands) for x in operands]
    names = op.args if not op.variadic else op.args * len(operands)
    chosen = [i for i, n in enumerate(names) if op.promote is None or n in op.promote]
    target = None
    if op.promotion != NO_PROMOTION and chosen:
        target = dtypes.promote(seen[i] for i in chosen)
        if op.promotion == FLOAT and target.category < 2:
            target = dtypes.get_default_dtype()
    result = list(operands)
    for i, x in enumerate(operands):
        want = target if target is not None and i in chosen else seen[i][0]
        if is_scalar(x):
            result[i] = numpy_scalar(x, want)
        elif seen[i][0] is not want:
            result[i] = bind(TABLE["cast"], (x,), {"dtype": want})
        if i in chosen and want not in op.dtypes:
            raise _refusal(op, want)
    return tuple(result)


def _refusal(op: Primitive, dtype: DType) -> DTypeError:
    """The error for operands of a dtype that `op` does not accept."""
    if dtype.name in op.refused:
        return DTypeError(op.refused[dtype.name])
    known = ", ".join(d.name for d in op.dtypes)
    kernel = op.kernel or f"{op.name}_cpu"
    word = dtypes.torch_name(dtype)
    return KernelError(f"\"{kernel}\" not implemented for '{word}'; it accepts {known}")


def numpy_scalar(x: Any, dtype: DType) -> np.generic:
    """The number `x`, an operand beside arrays of `dtype`: an integer wraps around, as in PyTorch.

    Raises:
        DTypeError: the integer does not even fit 64 bits.
    """
    if dtype.category == 1 and isinstance(x, int) and -(2**63) <= x < 2**64:
        return np.uint64(x % 2**64).astype(dtype.numpy)
    return exact_scalar(x, dtype)


def exact_scalar(x: Any, dtype: DType) -> np.generic:
    """The number `x` as a NumPy scalar of `dtype`.

    Raises:
        DTypeError: the integer does not fit.
    """
    try:
        with np.errstate(over="ignore"):  # a float beyond the range becomes infinite
            return dtype.numpy.type(x)
    except OverflowError:
        raise DTypeError(
            f"value cannot be converted to type {dtype.name} without overflow: {x}"
        ) from None


def bind(op: Primitive, operands: tuple[Any, ...], params: Mapping[str, Any]) -> Any:
    """Apply `op` to operands that are already promoted, at the layer they belong to."""
    for x in operands:
        handler = getattr(type(x), "__tracegrad_bind__", None)
        if handler is not None:
            return handler(op, operands, params)
    if not operands and ambient.handlers:
        return ambient.handlers[-1](op, operands, params)
    return evaluate_primitive(op, operands, params)


def evaluate_primitive(
    op: Primitive, arrays: Sequence[Any], params: Mapping[str, Any]
) -> np.ndarray:
    """Run the eager kernel and hold its result to the record's shape and dtype rules."""
    types = [type_of(a) for a in arrays]
    expected = op.infer(types, params)
    with np.errstate(all="ignore"):
        out = np.asarray(op.eager(*arrays, **params))
        if out.dtype != expected.dtype.numpy:
            out = out.astype(expected.dtype.numpy)
    assert out.shape == expected.shape, (
        f"{op.name}: kernel gave shape {out.shape}, rule says {expected.shape}"
    )
    return out


class _Ambient(threading.local):
    def __init__(self) -> None:
        self.handlers: list[Callable[..., Any]] = []


ambient = _Ambient()
"""Per thread: handlers of operations that have no operand to dispatch on (iota), innermost last."""


# ---- rules shared by many records ---------------------------------------------------------------


def same_as(arg_index: int = 0) -> Callable[..., Shape]:
    """A shape rule: the shape of one operand."""
    return lambda *types, **params: types[arg_index].shape


def same_dtype(arg_index: int = 0) -> Callable[..., DType]:
    """A dtype rule: the dtype of one operand."""
    return lambda *types, **params: types[arg_index].dtype


def always(dtype: DType) -> Callable[..., DType]:
    """A dtype rule: `dtype`, whatever the operands."""
    return lambda *types, **params: dtype


def draw(
    rng: np.random.Generator, dtype: DType, shape: Shape, low: float = -3.0, high: float = 3.0
) -> np.ndarray:
    """Random operand values for samples: uniform in [low, high), rounded for integers."""
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    if dtype.kind == "u":
        low = max(low, 0.0)
    values = rng.uniform(low, high, shape)
    return np.asarray(values if dtype.kind == "f" else np.floor(values)).astype(dtype.numpy)


def strided(array: np.ndarray) -> np.ndarray:
    """The same values in a buffer with gaps and, from two dimensions on, permuted axes."""
    base = np.empty(tuple(2 * n for n in reversed(array.shape)), array.dtype)
    view = base[tuple(slice(None, None, 2) for _ in array.shape)].transpose()
    view[...] = array
    return view


Samples = Callable[["np.random.Generator", DType], Iterator[Sample]]
