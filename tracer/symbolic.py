"""Symbolic numbers: stand in for the Python numbers among the arguments of a captured run.

A number that is another one at each call must not be a constant of the trace. So once a number has
been seen to vary, the captured run is given a `SymbolicNumber` in its place, which computes like the
number and knows the Python expression that it is. Beside a tensor it becomes an input of the graph,
which a replay evaluates afresh; a comparison becomes a condition of the trace; whatever else reads
its value (`math.sqrt`, `range`, `format`) *pins* it: the trace holds for that value only, as if the
number had never been replaced. Start reading at `SymbolicNumber`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tracegrad.ir.dtypes import DType, float32, float64
from tracegrad.ir.location import Location, here
from tracegrad.tracer.capture_state import Number, number_tensor
from tracegrad.tracer.state import state
from tracegrad.tracer.tensor import Tensor

if TYPE_CHECKING:
    from tracegrad.tracer.capture import GraphRecorder

NUMBERS = (int, float)  # exact types that can be replaced
_PLAIN = (int, float, bool)  # exact types that an expression may be made with
_LONGEST = 300  # characters of an expression
MOST_CONDITIONS = 200  # of one trace: then the numbers are pinned
_OWN = frozenset("_reads _value _text _shown _of _made _too_much __array__ __array_ufunc__".split())
_EXACT = 2**53  # integers up to it are float64 numbers


@dataclass(frozen=True)
class Condition:
    """What must hold of the numbers among a call's arguments for a trace to be replayed.

    Attributes:
        text: a Python expression over `leaves`.
        shown: the same in words, with the names of the user.
        location: the line that depends on it.
    """

    text: str
    shown: str
    location: Location | None

    def __str__(self) -> str:
        where = f", read at {self.location}" if self.location else ""
        return f"{self.shown}{where}"


class NumberReads:
    """What one captured run reads of the numbers that were replaced.

    Attributes:
        conditions: what must hold of them, by text.
        pinned: by position, the arguments whose very value was read: their names, and where.
    """

    def __init__(self, recorder: GraphRecorder) -> None:
        self.conditions: dict[str, Condition] = {}
        self.pinned: dict[int, tuple[str, Location | None]] = {}
        self._recorder: GraphRecorder | None = recorder
        self._tensors: dict[str, Tensor] = {}
        self._names: dict[int, str] = {}

    def stand_in(self, position: int, value: float, name: str) -> SymbolicNumber:
        """For the number at `position` among the arguments' leaves."""
        self._names[position] = name
        return symbolic(self, value, f"leaves[{position}]", name, frozenset((position,)))

    def close(self) -> None:
        """The run is over: numbers that outlive it are numbers like others."""
        self._recorder = None

    def pin(self, x: SymbolicNumber) -> None:
        """The trace is for this value only."""
        if self._recorder is not None:
            self._pin(x._of)

    def _pin(self, of: frozenset[int]) -> None:
        for position in of:
            self.pinned.setdefault(position, (self._names[position], here()))

    def require(self, of: frozenset[int], text: str, words: str) -> None:
        """The trace is for numbers of which `text` is true, made of the arguments `of`."""
        if self._recorder is None or text in self.conditions or of <= self.pinned.keys():
            return
        if len(self.conditions) < MOST_CONDITIONS:
            self.conditions[text] = Condition(text, words, here())
        else:
            self._pin(of)

    def tensor(self, x: SymbolicNumber) -> Tensor | None:
        """The number as an input of the graph, float64 (); None where it can be none."""
        recorder = self._recorder
        if recorder is None or state.recorder is None:
            return None
        value, text = x._value, x._text
        if type(value) is int and not -_EXACT <= value <= _EXACT:
            return None
        made = self._tensors.get(text)
        if made is None:
            made = self._tensors[text] = number_tensor(value)
            kind = type(value).__name__
            if any(symbol in text for symbol in "/%") or "**" in text:  # may raise, or be another
                self.require(x._of, f"type({text}) is {kind}", f"{shown(x)} is of type {kind}")
            if kind == "int":
                exact = f"-{_EXACT} <= {text} <= {_EXACT}"
                self.require(x._of, exact, f"{shown(x)} is exact as a float")
            recorder.number(
                made, shown(x) if shown(x).isidentifier() else "number", Number(text, {})
            )
        return made


class SymbolicNumber:
    """A number of a captured run, of which the trace does not depend on the value.

    To the user's code it is the `float` or `int` that it stands for: `isinstance` says so.
    """

    __slots__ = ("_reads", "_value", "_text", "_shown", "_of")

    def __init__(
        self, reads: NumberReads, value: float, text: str, shown: str, of: frozenset[int]
    ) -> None:
        self._reads = reads
        self._value = value
        self._text = text
        self._shown = shown
        self._of = of

    def __getattribute__(self, name: str) -> Any:
        """The attributes of the number, such as `is_integer`, and no others."""
        if name in _OWN:
            return object.__getattribute__(self, name)
        value = self._value
        if name == "__class__":
            return type(value)
        found = getattr(value, name)
        self._reads.pin(self)
        return found

    # ---- reads that pin -------------------------------------------------------------------------

    def __float__(self) -> float:
        return float(plain_number(self))

    def __int__(self) -> int:
        return int(plain_number(self))

    def __complex__(self) -> complex:
        return complex(plain_number(self))

    def __hash__(self) -> int:
        return hash(plain_number(self))

    def __repr__(self) -> str:
        return repr(plain_number(self))

    def __str__(self) -> str:
        return str(plain_number(self))

    def __format__(self, how: str) -> str:
        return format(plain_number(self), how)

    def __invert__(self) -> int:
        return operator.invert(plain_number(self))

    def __round__(self, *digits: Any) -> Any:
        return round(plain_number(self), *digits)

    def __trunc__(self) -> int:
        return plain_number(self).__trunc__()

    def __floor__(self) -> int:
        return plain_number(self).__floor__()

    def __ceil__(self) -> int:
        return plain_number(self).__ceil__()

    def __divmod__(self, other: Any) -> Any:
        return divmod(plain_number(self), plain_number(other))

    def __rdivmod__(self, other: Any) -> Any:
        return divmod(plain_number(other), plain_number(self))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(plain_number(self), dtype)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        return getattr(ufunc, method)(*map(plain_number, inputs), **plain_numbers(kwargs))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return type(self._value), (plain_number(self),)

    def __copy__(self) -> float:
        return plain_number(self)

    def __deepcopy__(self, memo: Any) -> float:
        return plain_number(self)

    # ---- conditions -----------------------------------------------------------------------------

    def __bool__(self) -> bool:
        answer = bool(self._value)
        text = f"bool({self._text}) is {answer}"
        self._reads.require(self._of, text, f"{shown(self)} is {'not ' if answer else ''}zero")
        return answer

    # ---- arithmetic -----------------------------------------------------------------------------

    def __neg__(self) -> Any:
        return self._made(operator.neg(self._value), f"(-{self._text})", f"-{self._shown}")

    def __pos__(self) -> Any:
        return self

    def __abs__(self) -> Any:
        return self._made(abs(self._value), f"(abs({self._text}))", f"abs({self._shown})")

    def _made(self, value: Any, text: str, shown: str, of: frozenset[int] = frozenset()) -> Any:
        if type(value) not in NUMBERS or len(text) > _LONGEST:
            return value if type(value) is bool else self._too_much(value)
        return symbolic(self._reads, value, text, shown, self._of | of)

    def _too_much(self, value: Any) -> Any:
        self._reads.pin(self)
        return value


class SymbolicInteger(SymbolicNumber):
    """A symbolic number that can be an index."""

    __slots__ = ()

    def __index__(self) -> int:
        return int(plain_number(self))


def symbolic(
    reads: NumberReads, value: float, text: str, shown: str, of: frozenset[int]
) -> SymbolicNumber:
    """The number that the expression `text` is, made of the arguments `of`."""
    kind = SymbolicInteger if type(value) is int else SymbolicNumber
    return kind(reads, value, text, shown, of)


def is_symbolic(x: Any) -> bool:
    """Whether `x` stands for a number."""
    return issubclass(type(x), SymbolicNumber)


def plain_numbers(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Parameters of an operation with the values of symbolic numbers in them, which are pinned."""
    return {
        name: tuple(map(plain_number, x)) if type(x) is tuple else plain_number(x)
        for name, x in params.items()
    }


def plain_number(x: Any) -> Any:
    """The value of a symbolic number, for which alone the trace then is; others as they are."""
    if not is_symbolic(x):
        return x
    x._reads.pin(x)
    return x._value


def shown(x: SymbolicNumber) -> str:
    """What a symbolic number is, in the names of the user."""
    text: str = x._shown
    return text[1:-1] if text.startswith("(") else text


def number_beside(x: SymbolicNumber, tensor: Any) -> Any:
    """What stands for a number beside `tensor`: a tensor () of its dtype, or the plain number."""
    made = number_as_tensor(x, tensor.dtype) if isinstance(tensor, Tensor) else None
    return plain_number(x) if made is None else made


def number_as_tensor(x: SymbolicNumber, dtype: DType) -> Tensor | None:
    """A number as a tensor () of a dtype, which nobody writes to; None where it can be none."""
    made = x._reads.tensor(x) if dtype in (float32, float64) else None
    return made if made is None or dtype is float64 else made.to(dtype)


def _literal(x: Any) -> str:
    if type(x) is float and not np.isfinite(x):
        return f"float('{x}')"
    return f"({x!r})" if repr(x).startswith("-") else repr(x)  # -1 ** n is -(1 ** n)


def _side(x: Any) -> tuple[Any, str, str, frozenset[int]]:
    """Value, expression, the same for the user, and arguments of one side of an operator."""
    if is_symbolic(x):
        return x._value, x._text, x._shown, x._of
    return x, _literal(x), _literal(x), frozenset()


def _beside(a: Any, b: Any) -> tuple[Any, Any]:
    """The two sides of an operator, one of them a tensor or an object of some other class."""
    if is_symbolic(a):
        return number_beside(a, b), b
    return a, number_beside(b, a)


def _expression(compute: Callable[[Any, Any], Any], symbol: str, a: Any, b: Any) -> Any:
    """`a symbol b`, one of them symbolic."""
    other = b if is_symbolic(a) else a
    if not is_symbolic(other) and type(other) not in _PLAIN:
        if symbol == "**":  # the exponent chooses the formula
            return compute(plain_number(a), plain_number(b))
        return compute(*_beside(a, b))
    x, left, shown_left, of = _side(a)
    y, right, shown_right, also_of = _side(b)
    try:
        value = compute(x, y)
    except ArithmeticError:
        return compute(plain_number(a), plain_number(b))  # raises it; others may not
    made: SymbolicNumber = a if is_symbolic(a) else b
    return made._made(
        value, f"({left} {symbol} {right})", f"({shown_left} {symbol} {shown_right})", of | also_of
    )


def _comparison(compute: Callable[[Any, Any], Any], symbol: str, a: Any, b: Any) -> Any:
    """`a symbol b`, `a` symbolic."""
    if not is_symbolic(b) and type(b) not in _PLAIN:
        return compute(a._value, b) if b is None else compute(*_beside(a, b))
    x, left, shown_left, of = _side(a)
    y, right, shown_right, also_of = _side(b)
    answer = compute(x, y)
    if y != y and x == x:  # this may be `in`, which finds the same nan
        a._reads.require(of, f"{left} == {left}", f"{shown_left} is not nan")
    words = f"{shown_left} {symbol} {shown_right} is {answer}"
    a._reads.require(of | also_of, f"({left} {symbol} {right}) is {answer}", words)
    return answer


for _name, _symbol, _compute in (
    ("add", "+", operator.add), ("sub", "-", operator.sub), ("mul", "*", operator.mul),
    ("truediv", "/", operator.truediv), ("floordiv", "//", operator.floordiv),
    ("mod", "%", operator.mod), ("pow", "**", operator.pow),
):  # fmt: skip
    setattr(SymbolicNumber, f"__{_name}__",
            lambda self, other, c=_compute, s=_symbol: _expression(c, s, self, other))  # fmt: skip
    setattr(SymbolicNumber, f"__r{_name}__",
            lambda self, other, c=_compute, s=_symbol: _expression(c, s, other, self))  # fmt: skip
for _name, _compute in (
    ("and", operator.and_), ("or", operator.or_), ("xor", operator.xor),
    ("lshift", operator.lshift), ("rshift", operator.rshift),
):  # fmt: skip
    setattr(SymbolicNumber, f"__{_name}__",
            lambda self, other, c=_compute: c(plain_number(self), plain_number(other)))  # fmt: skip
    setattr(SymbolicNumber, f"__r{_name}__",
            lambda self, other, c=_compute: c(plain_number(other), plain_number(self)))  # fmt: skip
for _name, _symbol, _compute in (
    ("lt", "<", operator.lt), ("le", "<=", operator.le), ("gt", ">", operator.gt),
    ("ge", ">=", operator.ge), ("eq", "==", operator.eq), ("ne", "!=", operator.ne),
):  # fmt: skip
    setattr(SymbolicNumber, f"__{_name}__",
            lambda self, other, c=_compute, s=_symbol: _comparison(c, s, self, other))  # fmt: skip
